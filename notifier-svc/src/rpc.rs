//! The RPCs: wire types are parsed and printed here, one file per service, and decided upon elsewhere.

pub(crate) mod audits;
pub(crate) mod callbacks;
pub(crate) mod confirmations;
pub(crate) mod inbox;
pub(crate) mod notifications;
pub(crate) mod persons;
pub(crate) mod preferences;
pub(crate) mod recipients;
pub(crate) mod rooms;
pub(crate) mod settings;
pub(crate) mod suppressions;
pub(crate) mod templates;

use chassis::{
    auth::{Access, AccessTable, Scope},
    error::{Error, Result},
};
use jiff::Timestamp;

/// What each RPC asks for. Contact data is for those who manage it; what was said, for those who take things out.
pub(crate) const ACCESS: AccessTable = &[
    ("/wedsync.notifier.v1.RecipientService/UpsertRecipient", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RecipientService/GetRecipient", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RecipientService/ListRecipients", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RecipientService/DeleteRecipient", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RecipientService/AddPushTarget", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RecipientService/RemovePushTarget", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RecipientService/SetWeddingRecipients", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.ConfirmationService/Acknowledge", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.ConfirmationService/ListInformed", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.ConfirmationService/ExplainNotification", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.PersonService/ExportPerson", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.PersonService/ErasePerson", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.PreferenceService/GetPreference", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.PreferenceService/UpdatePreference", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.PreferenceService/Unsubscribe", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.SuppressionService/ListSuppressions", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.SuppressionService/CreateSuppression", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.SuppressionService/DeleteSuppression", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.AuditService/ListAudits", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.RoomService/ListRooms", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.SettingsService/GetOrganizationSettings", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.SettingsService/UpdateOrganizationSettings", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.TemplateService/PutTemplate", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.TemplateService/GetTemplate", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.TemplateService/ListTemplates", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.TemplateService/DeleteTemplate", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.TemplateService/RollbackTemplate", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.TemplateService/PreviewTemplate", Access::Scope(Scope::Manage)),
    ("/wedsync.notifier.v1.NotificationService/Send", Access::Scope(Scope::Publish)),
    ("/wedsync.notifier.v1.NotificationService/SendWeddingDateChange", Access::Scope(Scope::Publish)),
    ("/wedsync.notifier.v1.NotificationService/GetNotification", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.NotificationService/ListNotifications", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.InboxService/ListNotices", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.InboxService/GetUnreadCount", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.InboxService/UpdateNotice", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.InboxService/WatchInbox", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.CallbackService/ReceiveCallback", Access::Service),
];

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 500;

/// How many items a page may have: 0 asks for 100, more than 500 gets 500.
fn page_size(asked: i32) -> Result<u32> {
    match u32::try_from(asked) {
        Ok(0) => Ok(PAGE),
        Ok(asked) => Ok(asked.min(PAGE_MAX)),
        Err(_) => Err(Error::invalid("page_size", "must not be negative")),
    }
}

/// Cuts what was read one item beyond the page; gives the token of the next page, empty after the last. A token is the
/// id of the last item.
fn cut<T>(items: &mut Vec<T>, size: u32, id: impl Fn(&T) -> &str) -> String {
    let size = size as usize;
    if items.len() <= size {
        return String::new();
    }
    items.truncate(size);
    items.last().map(|last| id(last).to_owned()).unwrap_or_default()
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_says_what_it_asks_for() {
        assert_eq!(chassis::auth::uncovered(ACCESS, "wedsync.notifier.v1"), Vec::<String>::new());
    }

    #[test]
    fn a_page_names_its_successor_only_if_there_is_one() {
        let mut items: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(cut(&mut items, 2, |item| item), "b");
        assert_eq!(items, ["a", "b"]);
        assert_eq!(cut(&mut items, 2, |item| item), "");
        assert_eq!((page_size(0).unwrap(), page_size(501).unwrap()), (100, 500));
        assert!(page_size(-1).is_err());
    }
}
