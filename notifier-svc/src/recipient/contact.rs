//! Where someone can be reached: the part of a recipient that is sealed, and how browsers and devices come and go.

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use lettre::Address;
use serde::{Deserialize, Serialize};
use url::Url;

use super::Directory;

/// The browsers and devices that one person may have.
pub(crate) const PUSH_TARGETS: usize = 10;
const URL_BYTES: usize = 2048;
const TOKEN_BYTES: usize = 4096;

/// Where someone can be reached; an empty text: not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Contact {
    pub(crate) email: String,
    /// E.164.
    pub(crate) phone: String,
    /// E.164.
    pub(crate) whatsapp: String,
    /// Until when free text may be sent there, in microseconds since the Unix epoch: a day after the person's last message.
    pub(crate) whatsapp_open_until: i64,
    /// Id of a channel: `C012AB3CD`.
    pub(crate) slack_channel: String,
    /// Id of a member: `U012AB3CD`.
    pub(crate) slack_user_id: String,
    /// An incoming webhook; whoever has it can post there.
    pub(crate) slack_webhook: String,
    /// A workflow's webhook; likewise.
    pub(crate) teams_webhook: String,
    /// Browsers and devices, the latest last.
    pub(crate) push: Vec<PushTarget>,
}

/// One browser or device that notices can be pushed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PushTarget {
    /// A subscription of the Push API: where to, and the browser's keys, in base64url.
    Web { endpoint: String, p256dh: String, auth: String },
    /// A registration token of Firebase Cloud Messaging.
    Fcm { token: String },
}

impl PushTarget {
    /// What tells it apart.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Web { endpoint, .. } => endpoint,
            Self::Fcm { token } => token,
        }
    }

    /// Holds it to every limit.
    ///
    /// # Errors
    /// `Error::Invalid` for the first field at fault.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Web { endpoint, p256dh, auth } => {
                check_url("endpoint", endpoint)?;
                for (field, key, length) in [("p256dh", p256dh, 87), ("auth", auth, 22)] {
                    if key.trim_end_matches('=').len() != length || !is_plain(key.trim_end_matches('='), "-_") {
                        return Err(Error::invalid(field, "must be the key that the browser gave, in base64url"));
                    }
                }
                Ok(())
            }
            Self::Fcm { token } if token.is_empty() || token.len() > TOKEN_BYTES || !is_plain(token, "-_:.") => {
                Err(Error::invalid("token", "must be a registration token"))
            }
            Self::Fcm { .. } => Ok(()),
        }
    }
}

impl Contact {
    /// Holds what a caller gives to every limit.
    ///
    /// # Errors
    /// `Error::Invalid` for the first field at fault.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.email.is_empty() && self.email.parse::<Address>().is_err() {
            return Err(Error::invalid("email", "must be an e-mail address"));
        }
        for (field, number) in [("phone", &self.phone), ("whatsapp", &self.whatsapp)] {
            if !number.is_empty() && !is_e164(number) {
                return Err(Error::invalid(field, "must be in E.164: a plus and 7 to 15 digits"));
            }
        }
        for (field, id, first) in
            [("slack_channel", &self.slack_channel, "CGD"), ("slack_user_id", &self.slack_user_id, "UW")]
        {
            if !id.is_empty() && !is_slack_id(id, first) {
                return Err(Error::invalid(field, format!("must be Slack's id, which begins with one of {first}")));
            }
        }
        for (field, url) in [("slack_webhook", &self.slack_webhook), ("teams_webhook", &self.teams_webhook)] {
            if !url.is_empty() {
                check_url(field, url)?;
            }
        }
        self.push.iter().try_for_each(PushTarget::check)
    }

    /// Its numbers as providers say them: a report names them so.
    pub(super) fn with_plain_numbers(self) -> Self {
        Self { phone: e164(&self.phone), whatsapp: e164(&self.whatsapp), ..self }
    }

    /// Adds a browser or device, or renews what is known of it; beyond the limit the oldest goes.
    pub(crate) fn add_push(&mut self, target: PushTarget) {
        self.push.retain(|known| known.id() != target.id());
        self.push.push(target);
        let over = self.push.len().saturating_sub(PUSH_TARGETS);
        self.push.drain(..over);
    }

    /// Forgets a browser or device; false if it wasn't known.
    pub(crate) fn remove_push(&mut self, id: &str) -> bool {
        let before = self.push.len();
        self.push.retain(|known| known.id() != id);
        self.push.len() < before
    }
}

impl Directory {
    /// Adds a browser or device of a recipient's, or renews what is known of it.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has nobody of this id.
    pub(crate) async fn add_push(&self, organization: &OrganizationId, id: &str, target: PushTarget) -> Result<()> {
        let mut recipient = self.get(organization, id).await?;
        recipient.contact.add_push(target);
        self.upsert(organization, recipient).await.map(drop)
    }

    /// Forgets a browser or device; one that isn't known is no fault.
    pub(crate) async fn forget_push(&self, organization: &OrganizationId, id: &str, target: &str) -> Result<()> {
        let Some(mut recipient) = self.find(organization, id).await? else { return Ok(()) };
        if recipient.contact.remove_push(target) {
            self.upsert(organization, recipient).await?;
        }
        Ok(())
    }
}

/// Whether requests may go there is judged when they do.
fn check_url(field: &'static str, text: &str) -> Result<()> {
    let is_web = Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
    if text.len() > URL_BYTES || !is_web {
        return Err(Error::invalid(field, format!("must be a URL of at most {URL_BYTES} bytes")));
    }
    Ok(())
}

fn is_plain(text: &str, others: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn is_slack_id(id: &str, first: &str) -> bool {
    (2..=32).contains(&id.len()) && id.starts_with(|c| first.contains(c)) && is_plain(id, "")
}

/// A number as providers say it, without what people write between its digits; empty if that isn't E.164.
pub(crate) fn e164(number: &str) -> String {
    let between = |c: &char| c.is_whitespace() || "-\u{2010}\u{2011}\u{2013}./()".contains(*c);
    let number: String = number.replace("(0)", "").chars().filter(|c| !between(c)).collect();
    if is_e164(&number) { number } else { String::new() }
}

pub(crate) fn is_e164(phone: &str) -> bool {
    let digits = phone.strip_prefix('+').unwrap_or_default();
    (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Contact)) -> String {
        let mut contact = Contact::default();
        change(&mut contact);
        match contact.check() {
            Err(Error::Invalid { field, .. }) => field.into_owned(),
            other => format!("{other:?}"),
        }
    }

    fn browser(number: usize) -> PushTarget {
        PushTarget::Web {
            endpoint: format!("https://push.example/{number}"),
            p256dh: "B".repeat(87),
            auth: "a".repeat(22),
        }
    }

    #[test]
    fn every_address_is_held_to_its_form() {
        assert_eq!(refused(|_| ()), "Ok(())");
        assert_eq!(refused(|c| c.whatsapp = "030 1234567".to_owned()), "whatsapp");
        assert_eq!(refused(|c| c.slack_channel = "#general".to_owned()), "slack_channel");
        assert_eq!(refused(|c| c.slack_channel = "U012AB3CD".to_owned()), "slack_channel");
        assert_eq!(refused(|c| c.slack_user_id = "C012AB3CD".to_owned()), "slack_user_id");
        assert_eq!(refused(|c| c.teams_webhook = "javascript:alert(1)".to_owned()), "teams_webhook");
        assert_eq!(refused(|c| c.slack_webhook = format!("https://x.example/{}", "a".repeat(2048))), "slack_webhook");
        assert_eq!(refused(|c| c.push = vec![PushTarget::Fcm { token: "a b".to_owned() }]), "token");
        assert_eq!(refused(|c| c.push = vec![browser(1)]), "Ok(())");
    }

    #[test]
    fn a_number_is_the_same_however_it_is_written_and_none_if_nobody_can_call_it() {
        for number in ["+49301234567", " +49 30 1234567", "+49 (0)30/123-45-67", "+49\u{a0}30\u{2011}1234567"] {
            assert_eq!(e164(number), "+49301234567", "{number}");
        }
        for none in ["", "030 1234567", "+49", "call me", "+49 30 1234567 ext. 3", "ada@example.org", "+0301234567"] {
            assert_eq!(e164(none), "", "{none}");
        }
    }

    #[test]
    fn a_browser_is_known_once_and_the_oldest_makes_room() {
        let mut contact = Contact::default();
        (0..PUSH_TARGETS + 2).for_each(|number| contact.add_push(browser(number)));
        contact.add_push(browser(5));
        assert_eq!(contact.push.len(), PUSH_TARGETS);
        assert_eq!((contact.push[0].id(), contact.push[9].id()), ("https://push.example/2", "https://push.example/5"));
        assert!(contact.remove_push("https://push.example/2") && !contact.remove_push("https://push.example/2"));
    }

    #[test]
    fn a_contact_that_was_sealed_before_there_were_more_addresses_is_read() {
        let read: Contact = serde_json::from_str(r#"{"email":"a@example.org","phone":""}"#).unwrap();
        assert_eq!(read, Contact { email: "a@example.org".to_owned(), ..Contact::default() });
    }
}
