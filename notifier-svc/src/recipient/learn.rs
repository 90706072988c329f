//! What change events on `suppliers`, `wedding_vendors` and `wedding_details` teach the directory.
//!
//! [`lessons`] is pure and reads an event; the directory then takes each in, in one transaction, unless a later event
//! about the same thing was taken in before. A column that a change doesn't carry leaves what was known; one that it
//! carries as null clears it.

use chassis::{error::Result, id::OrganizationId, store::Tx, with};
use serde_json::Value;

use super::{
    Contact, Directory, Kind, Recipient, WEDDING_LIMIT, check_id, erase, is_channel,
    member::{Membership, join, leave},
    write,
};
use crate::event::{Event, Operation, Position, Record, list, object, plain, text};
use crate::room;

/// One thing that an event says about the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lesson {
    /// A supplier's columns, as far as they were sent.
    Supplier {
        id: String,
        row: Record,
    },
    SupplierGone {
        id: String,
    },
    /// A vendor joined a wedding, or does something else there.
    Vendor {
        wedding: String,
        member: String,
        recipient: String,
        vendor_type: String,
    },
    VendorGone {
        wedding: String,
        member: String,
    },
    /// All the suppliers that a wedding lists.
    Vendors {
        wedding: String,
        recipients: Vec<String>,
    },
}

impl Lesson {
    /// What it is about: later lessons about the same replace earlier ones.
    fn about(&self) -> String {
        match self {
            Self::Supplier { id, .. } | Self::SupplierGone { id } => format!("suppliers/{id}"),
            Self::Vendor { wedding, member, .. } | Self::VendorGone { wedding, member } => {
                format!("wedding_vendors/{}/{wedding}/{member}", wedding.len())
            }
            Self::Vendors { wedding, .. } => format!("wedding_details/{wedding}"),
        }
    }
}

/// What an event teaches; nothing for most.
pub(crate) fn lessons(event: &Event) -> Vec<Lesson> {
    let Some(change) = &event.change else { return Vec::new() };
    let gone = change.operation == Operation::Delete;
    match change.table.as_str() {
        "suppliers" => of_supplier(event.row(), gone).into_iter().collect(),
        "wedding_vendors" => of_vendor(event, gone),
        "wedding_details" => of_wedding(event.row(), gone).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn of_supplier(row: &Record, gone: bool) -> Option<Lesson> {
    let id = id(row, &["id"])?;
    Some(if gone { Lesson::SupplierGone { id } } else { Lesson::Supplier { id, row: row.clone() } })
}

fn of_vendor(event: &Event, gone: bool) -> Vec<Lesson> {
    let key = |row: &Record| Some((id(row, &["wedding_id"])?, id(row, &["vendor_id", "supplier_id"])?));
    let (before, now) = (key(&event.old), key(&event.new).filter(|_| !gone));
    let mut lessons = Vec::new();
    // A row whose key changed is another row.
    if let Some((wedding, member)) = before.filter(|before| Some(before) != now.as_ref()) {
        lessons.push(Lesson::VendorGone { wedding, member });
    }
    if let Some((wedding, member)) = now {
        let recipient = id(&event.new, &["supplier_id"]).unwrap_or_else(|| member.clone());
        let vendor_type = text(&event.new, &["vendor_type"]).unwrap_or_default();
        lessons.push(Lesson::Vendor { wedding, member, recipient, vendor_type });
    }
    lessons
}

fn of_wedding(row: &Record, gone: bool) -> Option<Lesson> {
    let wedding = id(row, &["id"])?;
    if gone {
        return Some(Lesson::Vendors { wedding, recipients: Vec::new() });
    }
    let listed = list(row.get("vendor_ids")?).into_iter().filter(|id| check_id("id", id).is_ok());
    Some(Lesson::Vendors { wedding, recipients: listed.take(WEDDING_LIMIT).collect() })
}

fn id(row: &Record, names: &[&str]) -> Option<String> {
    text(row, names).filter(|id| check_id("id", id).is_ok())
}

/// A supplier as its row says, over what was known.
fn supplier(id: String, row: &Record, known: Option<Recipient>) -> Recipient {
    let mut supplier = known.unwrap_or_else(|| Recipient {
        id,
        kind: Kind::Supplier,
        contact: Contact::default(),
        name: String::new(),
        vendor_type: String::new(),
        time_zone: String::new(),
        locale: String::new(),
        channels: Vec::new(),
        updated_at: 0,
    });
    let columns = [
        ("business_name", &mut supplier.name),
        ("email", &mut supplier.contact.email),
        ("phone", &mut supplier.contact.phone),
        ("whatsapp", &mut supplier.contact.whatsapp),
        ("slack_channel", &mut supplier.contact.slack_channel),
        ("slack_user_id", &mut supplier.contact.slack_user_id),
        ("vendor_type", &mut supplier.vendor_type),
        ("time_zone", &mut supplier.time_zone),
        ("locale", &mut supplier.locale),
    ];
    for (column, field) in columns {
        if let Some(value) = row.get(column) {
            *field = plain(value).unwrap_or_default().trim().to_owned();
        }
    }
    supplier.contact = supplier.contact.with_plain_numbers();
    if let Some(preferences) = row.get("notification_preferences") {
        supplier.channels = channels(preferences);
    }
    supplier
}

/// `realtime_channels`, in our spelling; without it, the person has chosen none.
fn channels(preferences: &Value) -> Vec<String> {
    let chosen =
        object(preferences).and_then(|preferences| preferences.get("realtime_channels").map(list)).unwrap_or_default();
    let mut channels: Vec<String> = Vec::new();
    for name in chosen {
        let name = name.trim().to_lowercase().replace(['-', ' '], "_");
        let name = if name == "inapp" { "in_app".to_owned() } else { name };
        if is_channel(&name) && !channels.contains(&name) {
            channels.push(name);
        }
    }
    channels.truncate(16);
    channels
}

impl Directory {
    /// Takes in what an event teaches. Durable when it returns; repeats change nothing.
    pub(crate) async fn learn(&self, event: &Event) -> Result<()> {
        for lesson in lessons(event) {
            self.take(&event.organization, &event.position, lesson).await?;
        }
        Ok(())
    }

    async fn take(&self, organization: &OrganizationId, position: &Position, lesson: Lesson) -> Result<()> {
        let (about, now) = (lesson.about(), self.clock.now_micros());
        // Sealing may have to make the organization's key, which is a commit of its own: so it comes first.
        let supplier = match &lesson {
            Lesson::Supplier { id, row } => {
                let known = self.find(organization, id).await?;
                let supplier = Recipient { updated_at: now, ..supplier(id.clone(), row, known) };
                let sealed = self.seal(organization, &supplier).await?;
                Some((supplier, sealed))
            }
            _ => None,
        };
        let mut tx = self.store.begin().await?;
        if !is_news(&mut tx, organization, &about, position).await? {
            return Ok(());
        }
        match (lesson, supplier) {
            (Lesson::Supplier { .. }, Some((supplier, sealed))) => {
                write(&mut tx, organization, &supplier, &sealed).await?;
                room::touch_of(&mut tx, organization, &supplier.id, now).await?;
            }
            (Lesson::Supplier { .. }, None) => {}
            (Lesson::SupplierGone { id }, _) => drop(erase(&mut tx, organization, &id, now).await?),
            (Lesson::Vendor { wedding, member, recipient, vendor_type }, _) => {
                let membership = Membership {
                    wedding: &wedding,
                    source: "wedding_vendors",
                    member: &member,
                    recipient: &recipient,
                    vendor_type: &vendor_type,
                };
                join(&mut tx, organization, &membership).await?;
                room::touch(&mut tx, organization, &wedding, now).await?;
            }
            (Lesson::VendorGone { wedding, member }, _) => {
                leave(&mut tx, organization, &wedding, "wedding_vendors", &member).await?;
                room::touch(&mut tx, organization, &wedding, now).await?;
            }
            (Lesson::Vendors { wedding, recipients }, _) => {
                leave(&mut tx, organization, &wedding, "wedding_details", "").await?;
                room::touch(&mut tx, organization, &wedding, now).await?;
                for recipient in &recipients {
                    let membership = Membership {
                        wedding: &wedding,
                        source: "wedding_details",
                        member: recipient,
                        recipient,
                        vendor_type: "",
                    };
                    join(&mut tx, organization, &membership).await?;
                }
            }
        }
        tx.commit().await
    }
}

/// Notes that an event about something was taken in; false if that one or a later one of the log was before.
pub(crate) async fn is_news(
    tx: &mut Tx,
    organization: &OrganizationId,
    about: &str,
    position: &Position,
) -> Result<bool> {
    let noted = with!(tx.on(), c => sqlx::query(
        "INSERT INTO learnt (organization_id, about, log_id, sequence) VALUES ($1, $2, $3, $4)
         ON CONFLICT (organization_id, about) DO UPDATE SET log_id = excluded.log_id, sequence = excluded.sequence
         WHERE learnt.log_id <> excluded.log_id OR learnt.sequence < excluded.sequence",
    )
    .bind(organization.as_str())
    .bind(about)
    .bind(&position.log_id)
    .bind(position.sequence)
    .execute(c).await.map(|done| done.rows_affected()))?;
    Ok(noted > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::tests::change;

    #[test]
    fn a_suppliers_row_replaces_what_it_carries_and_leaves_the_rest() {
        let row = json!({"id": "s", "business_name": "Petal & Stem", "email": null, "phone": "+49 30 1234567", "whatsapp": "ask Ada", "notification_preferences": {"realtime_channels": ["In-App", "email", "carrier pigeon", "inApp"]}});
        let mut known = crate::recipient::tests::supplier("s");
        known.vendor_type = "florist".to_owned();
        let taught = supplier("s".to_owned(), row.as_object().unwrap(), Some(known));
        assert_eq!(
            (taught.name.as_str(), taught.contact.email.as_str(), taught.vendor_type.as_str()),
            ("Petal & Stem", "", "florist")
        );
        assert_eq!((taught.contact.phone.as_str(), taught.contact.whatsapp.as_str()), ("+49301234567", ""));
        assert_eq!(taught.channels, ["in_app", "email", "carrier_pigeon"]);
    }

    #[test]
    fn a_vendor_that_moves_to_another_wedding_leaves_the_first() {
        let event = change(
            "wedding_vendors",
            Operation::Update,
            json!({"wedding_id": "w1", "vendor_id": "v"}),
            json!({"wedding_id": "w2", "vendor_id": "v", "supplier_id": "s", "vendor_type": "dj"}),
        );
        let vendor = Lesson::Vendor {
            wedding: "w2".into(),
            member: "v".into(),
            recipient: "s".into(),
            vendor_type: "dj".into(),
        };
        assert_eq!(lessons(&event), [Lesson::VendorGone { wedding: "w1".into(), member: "v".into() }, vendor]);
    }

    #[test]
    fn a_wedding_that_does_not_say_who_its_vendors_are_changes_none() {
        let of = |row| lessons(&change("wedding_details", Operation::Update, json!({}), row));
        assert_eq!(of(json!({"id": "w", "guest_count": 3})), []);
        assert_eq!(
            of(json!({"id": "w", "vendor_ids": ["a", "b"]})),
            [Lesson::Vendors { wedding: "w".into(), recipients: vec!["a".into(), "b".into()] }]
        );
        assert_eq!(
            of(json!({"id": "w", "vendor_ids": null})),
            [Lesson::Vendors { wedding: "w".into(), recipients: vec![] }]
        );
    }

    #[test]
    fn what_a_delete_took_away_is_gone_and_other_tables_teach_nothing() {
        let of = |table| {
            lessons(&change(
                table,
                Operation::Delete,
                json!({"id": "x", "wedding_id": "w", "vendor_id": "v"}),
                Value::Null,
            ))
        };
        assert_eq!(of("suppliers"), [Lesson::SupplierGone { id: "x".into() }]);
        assert_eq!(of("wedding_vendors"), [Lesson::VendorGone { wedding: "w".into(), member: "v".into() }]);
        assert_eq!(of("wedding_details"), [Lesson::Vendors { wedding: "x".into(), recipients: vec![] }]);
        assert_eq!(of("form_responses"), []);
    }
}
