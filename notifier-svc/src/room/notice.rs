//! What is told in a room: the room as a recipient of its own, and back to each by name where that comes to nothing.

use chassis::{error::Result, store::Tx, with};
use jiff::Timestamp;

use crate::{
    notification::{Route, trail},
    recipient::{Contact, Kind, Person, Recipient, Relation},
    resolve::How,
    settings::Settings,
};

const PREFIX: &str = "room:";

/// What a wedding's room is called among recipients.
pub(crate) fn id_of(wedding: &str) -> String {
    format!("{PREFIX}{wedding}")
}

pub(crate) fn is_room(recipient: &str) -> bool {
    recipient.starts_with(PREFIX)
}

/// The room of a wedding as somebody who can be told: in the organization's language, by Slack alone.
pub(crate) fn as_person(wedding: &str, slack_channel: &str, settings: &Settings) -> Person {
    let contact = Contact { slack_channel: slack_channel.to_owned(), ..Contact::default() };
    let recipient = Recipient {
        id: id_of(wedding),
        kind: Kind::Supplier,
        contact,
        name: String::new(),
        vendor_type: String::new(),
        time_zone: settings.time_zone.clone(),
        locale: settings.locale.clone(),
        channels: Vec::new(),
        updated_at: 0,
    };
    Person { id: id_of(wedding), relation: Relation::default(), recipient: Some(recipient), vendor_types: Vec::new() }
}

/// What a room's message would have said is decided anew for each of its members: the room doesn't get it any more.
pub(crate) async fn leave(tx: &mut Tx, notification: &str, uid: &[u8; 16], now: Timestamp) -> Result<()> {
    let line = trail(&["the wedding's room didn't get it: they are told by name".to_owned()], now);
    with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET fate = $3, how = $4, due_at = $5, carried_by = NULL, trail = trail || $6
         WHERE notification_id = $1 AND carried_by = $2 AND fate = $7 AND cancelled = 0",
    )
    .bind(notification)
    .bind(&uid[..])
    .bind(Route::Held as i64)
    .bind(How::Deferred as i64)
    .bind(now.as_microsecond())
    .bind(line)
    .bind(Route::Carried as i64)
    .execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query("UPDATE messages SET failed_at = NULL WHERE uid = $1")
        .bind(&uid[..]).execute(c).await.map(drop))?;
    Ok(())
}
