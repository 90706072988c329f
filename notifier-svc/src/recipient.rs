//! The directory: who can be told, where, and who belongs to which wedding.
//!
//! It is kept over gRPC and from change events ([`learn`]). Names, e-mail addresses and telephone numbers are sealed with
//! the organization's data key; what must be searched (ids, kinds, vendor types) is not personal.
//!
//! Guarantee: a change event that comes again after a later one about the same thing changes nothing.

mod contact;
pub(crate) mod learn;
pub(crate) mod member;

use std::collections::BTreeMap;

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

pub(crate) use self::contact::{Contact, PushTarget, e164, is_e164, mailbox};
use self::member::{Membership, join};
use crate::room;

/// The longest id of a recipient or a wedding.
const ID_BYTES: usize = 128;
/// How many people one wedding may have.
pub(crate) const WEDDING_LIMIT: usize = 200;

/// What a recipient is to the wedding business. The numbers are those of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Kind {
    Supplier = 1,
    Couple = 2,
    Planner = 3,
    Operator = 4,
}

impl Kind {
    fn from_number(number: i64) -> Option<Self> {
        [Self::Supplier, Self::Couple, Self::Planner, Self::Operator].into_iter().find(|kind| *kind as i64 == number)
    }
}

/// Someone who can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipient {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) contact: Contact,
    pub(crate) name: String,
    pub(crate) vendor_type: String,
    /// IANA name; empty: the organization's.
    pub(crate) time_zone: String,
    /// BCP 47; empty: `en`.
    pub(crate) locale: String,
    /// Chosen among those that a route offers; empty: what the route says.
    pub(crate) channels: Vec<String>,
    /// Microseconds since the Unix epoch.
    pub(crate) updated_at: i64,
}

/// What is sealed of a recipient.
#[derive(Serialize, Deserialize)]
struct Sealed {
    name: String,
    #[serde(flatten)]
    contact: Contact,
}

impl Recipient {
    /// Holds what a caller gives to every limit.
    ///
    /// # Errors
    /// `Error::Invalid` for the first field at fault.
    pub(crate) fn check(&self) -> Result<()> {
        check_id("id", &self.id)?;
        if room::is_room(&self.id) {
            return Err(Error::invalid("id", "must not begin as the ids of weddings' rooms do"));
        }
        let fields = [("name", &self.name, 200), ("vendor_type", &self.vendor_type, 64), ("locale", &self.locale, 35)];
        for (field, text, bytes) in fields {
            if text.len() > bytes || text.chars().any(char::is_control) {
                return Err(Error::invalid(
                    field,
                    format!("must have at most {bytes} bytes, without control characters"),
                ));
            }
        }
        self.contact.check()?;
        if !self.time_zone.is_empty() && TimeZone::get(&self.time_zone).is_err() {
            return Err(Error::invalid("time_zone", "must be an IANA time zone, for example Europe/Berlin"));
        }
        if !self.locale.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::invalid("locale", "must be a BCP 47 tag, for example en-GB"));
        }
        if self.channels.len() > 16 || !self.channels.iter().all(|channel| is_channel(channel)) {
            return Err(Error::invalid("channels", "must be at most 16 names like `email` or `in_app`"));
        }
        Ok(())
    }
}

/// Holds an id to its limit.
///
/// # Errors
/// `Error::Invalid` naming `field`.
pub(crate) fn check_id(field: &'static str, id: &str) -> Result<()> {
    if id.is_empty() || id.len() > ID_BYTES || id.chars().any(char::is_control) {
        return Err(Error::invalid(field, format!("must have 1 to {ID_BYTES} bytes, without control characters")));
    }
    Ok(())
}

pub(crate) fn is_channel(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// How someone has to do with an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Relation {
    /// The event names them as its supplier.
    pub(crate) supplier: bool,
    /// The event names them as its couple.
    pub(crate) couple: bool,
    /// They belong to its wedding.
    pub(crate) wedding: bool,
    /// They run the organization.
    pub(crate) operator: bool,
    /// Whoever asked for the notification named them.
    pub(crate) chosen: bool,
}

/// Someone who may have to be told of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) id: String,
    pub(crate) relation: Relation,
    /// None where the directory doesn't know them.
    pub(crate) recipient: Option<Recipient>,
    /// What they do at this wedding; else what they do anyway.
    pub(crate) vendor_types: Vec<String>,
}

/// Whom to look up for an event.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Named<'a> {
    pub(crate) wedding: Option<&'a str>,
    pub(crate) supplier: Option<&'a str>,
    pub(crate) couple: Option<&'a str>,
    pub(crate) chosen: &'a [String],
}

/// The directory of all organizations. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Directory {
    store: Store,
    keys: DataKeys,
    clock: Clock,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    kind: i64,
    vendor_type: String,
    time_zone: String,
    locale: String,
    channels: String,
    contact: Vec<u8>,
    updated_at: i64,
}

/// A row's place for its seal: ids may hold any character, so the organization's length goes first.
fn contact_place(organization: &OrganizationId, id: &str) -> Vec<u8> {
    place("recipients", "contact", &format!("{}:{organization}:{id}", organization.as_str().len()))
}

impl Directory {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock }
    }

    /// Creates or replaces a recipient that passed [`Recipient::check`]; gives it as it is stored.
    pub(crate) async fn upsert(&self, organization: &OrganizationId, recipient: Recipient) -> Result<Recipient> {
        let recipient = Recipient { updated_at: self.clock.now_micros(), ..recipient };
        let sealed = self.seal(organization, &recipient).await?;
        let mut tx = self.store.begin().await?;
        write(&mut tx, organization, &recipient, &sealed).await?;
        room::touch_of(&mut tx, organization, &recipient.id, recipient.updated_at).await?;
        tx.commit().await?;
        Ok(recipient)
    }

    /// One recipient.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn get(&self, organization: &OrganizationId, id: &str) -> Result<Recipient> {
        self.find(organization, id).await?.ok_or_else(|| Error::NotFound("recipient".into()))
    }

    pub(crate) async fn find(&self, organization: &OrganizationId, id: &str) -> Result<Option<Recipient>> {
        let row: Option<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, kind, vendor_type, time_zone, locale, channels, contact, updated_at FROM recipients
             WHERE organization_id = $1 AND id = $2",
        ).bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        match row {
            Some(row) => Ok(Some(self.open(organization, row).await?)),
            None => Ok(None),
        }
    }

    /// Up to `limit` recipients by id, after `after`; of one wedding unless `wedding` is empty.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        wedding: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Recipient>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, kind, vendor_type, time_zone, locale, channels, contact, updated_at FROM recipients
             WHERE organization_id = $1 AND id > $2 AND ($3 = '' OR id IN
                 (SELECT recipient_id FROM wedding_recipients WHERE organization_id = $1 AND wedding_id = $3))
             ORDER BY id LIMIT $4",
        ).bind(organization.as_str()).bind(after).bind(wedding).bind(i64::from(limit)).fetch_all(c).await)?;
        let mut recipients = Vec::with_capacity(rows.len());
        for row in rows {
            recipients.push(self.open(organization, row).await?);
        }
        Ok(recipients)
    }

    /// Removes a recipient with their memberships and their inbox, and cancels what waits for them.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn delete(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        let mut tx = self.store.begin().await?;
        if !erase(&mut tx, organization, id, self.clock.now_micros()).await? {
            return Err(Error::NotFound("recipient".into()));
        }
        tx.commit().await
    }

    /// Says whom a wedding has; replaces all that was known.
    pub(crate) async fn set_wedding(
        &self,
        organization: &OrganizationId,
        wedding: &str,
        recipients: &[String],
    ) -> Result<()> {
        let mut tx = self.store.begin().await?;
        with!(tx.on(), c => sqlx::query("DELETE FROM wedding_recipients WHERE organization_id = $1 AND wedding_id = $2")
            .bind(organization.as_str()).bind(wedding).execute(c).await.map(drop))?;
        for recipient in recipients {
            join(
                &mut tx,
                organization,
                &Membership { wedding, source: "rpc", member: recipient, recipient, vendor_type: "" },
            )
            .await?;
        }
        room::touch(&mut tx, organization, wedding, self.clock.now_micros()).await?;
        tx.commit().await
    }

    /// Everybody who may have to be told: whom the event names, who belongs to its wedding, and the operators.
    pub(crate) async fn people(&self, organization: &OrganizationId, named: Named<'_>) -> Result<Vec<Person>> {
        let mut people: BTreeMap<String, Person> = BTreeMap::new();
        let members: Vec<(String, String)> = match named.wedding {
            Some(wedding) => with!(self.store.reader(), c => sqlx::query_as(
                "SELECT recipient_id, vendor_type FROM wedding_recipients WHERE organization_id = $1 AND wedding_id = $2
                 ORDER BY recipient_id, vendor_type",
            ).bind(organization.as_str()).bind(wedding).fetch_all(c).await)?,
            None => Vec::new(),
        };
        for (id, vendor_type) in members {
            let person = entry(&mut people, &id);
            person.relation.wedding = true;
            if !vendor_type.is_empty() && !person.vendor_types.contains(&vendor_type) {
                person.vendor_types.push(vendor_type);
            }
        }
        if let Some(supplier) = named.supplier {
            entry(&mut people, supplier).relation.supplier = true;
        }
        if let Some(couple) = named.couple {
            entry(&mut people, couple).relation.couple = true;
        }
        for id in named.chosen {
            entry(&mut people, id).relation.chosen = true;
        }
        for id in self.operators(organization).await? {
            entry(&mut people, &id).relation.operator = true;
        }
        // A wedding's people in one query, the few others one by one.
        let of_wedding = match named.wedding {
            Some(wedding) if !wedding.is_empty() => {
                self.list(organization, wedding, "", 2 * WEDDING_LIMIT as u32).await?
            }
            _ => Vec::new(),
        };
        let mut known: BTreeMap<String, Recipient> =
            of_wedding.into_iter().map(|recipient| (recipient.id.clone(), recipient)).collect();
        let mut people: Vec<Person> = people.into_values().collect();
        for person in &mut people {
            person.recipient = match known.remove(&person.id) {
                Some(recipient) => Some(recipient),
                None => self.find(organization, &person.id).await?,
            };
            if let Some(recipient) = &person.recipient
                && person.vendor_types.is_empty()
                && !recipient.vendor_type.is_empty()
            {
                person.vendor_types.push(recipient.vendor_type.clone());
            }
        }
        Ok(people)
    }

    async fn operators(&self, organization: &OrganizationId) -> Result<Vec<String>> {
        let ids = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM recipients WHERE organization_id = $1 AND kind = $2 ORDER BY id LIMIT 200",
        ).bind(organization.as_str()).bind(Kind::Operator as i64).fetch_all(c).await)?;
        Ok(ids)
    }

    async fn seal(&self, organization: &OrganizationId, recipient: &Recipient) -> Result<Vec<u8>> {
        let sealed = Sealed { name: recipient.name.clone(), contact: recipient.contact.clone() };
        let plain = serde_json::to_vec(&sealed).map_err(Error::internal)?;
        Ok(self.keys.of(organization).await?.seal(&contact_place(organization, &recipient.id), &plain))
    }

    async fn open(&self, organization: &OrganizationId, row: Row) -> Result<Recipient> {
        let plain = self.keys.of(organization).await?.open(&contact_place(organization, &row.id), &row.contact)?;
        let Sealed { name, contact } = serde_json::from_slice(&plain).map_err(Error::internal)?;
        let kind = Kind::from_number(row.kind)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("recipient of unknown kind {}", row.kind)))?;
        Ok(Recipient {
            id: row.id,
            kind,
            // What was learnt before numbers were told apart from how they are written.
            contact: contact.with_plain_numbers(),
            name,
            vendor_type: row.vendor_type,
            time_zone: row.time_zone,
            locale: row.locale,
            channels: serde_json::from_str(&row.channels).map_err(Error::internal)?,
            updated_at: row.updated_at,
        })
    }
}

fn entry<'p>(people: &'p mut BTreeMap<String, Person>, id: &str) -> &'p mut Person {
    let new = || Person { id: id.to_owned(), relation: Relation::default(), recipient: None, vendor_types: Vec::new() };
    people.entry(id.to_owned()).or_insert_with(new)
}

async fn write(tx: &mut Tx, organization: &OrganizationId, recipient: &Recipient, sealed: &[u8]) -> Result<()> {
    let channels = serde_json::to_string(&recipient.channels).map_err(Error::internal)?;
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO recipients (organization_id, id, kind, vendor_type, time_zone, locale, channels, contact, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (organization_id, id) DO UPDATE SET kind = excluded.kind, vendor_type = excluded.vendor_type,
             time_zone = excluded.time_zone, locale = excluded.locale, channels = excluded.channels,
             contact = excluded.contact, updated_at = excluded.updated_at",
    )
    .bind(organization.as_str())
    .bind(&recipient.id)
    .bind(recipient.kind as i64)
    .bind(&recipient.vendor_type)
    .bind(&recipient.time_zone)
    .bind(&recipient.locale)
    .bind(&channels)
    .bind(sealed)
    .bind(recipient.updated_at)
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Removes what is kept of a recipient; false if there was none. Messages that are on their way or over stay as they are.
pub(crate) async fn erase(tx: &mut Tx, organization: &OrganizationId, id: &str, now: i64) -> Result<bool> {
    room::touch_of(tx, organization, id, now).await?;
    let removed = with!(tx.on(), c => sqlx::query("DELETE FROM recipients WHERE organization_id = $1 AND id = $2")
        .bind(organization.as_str()).bind(id).execute(c).await.map(|done| done.rows_affected()))?;
    with!(tx.on(), c => sqlx::query("DELETE FROM wedding_recipients WHERE organization_id = $1 AND recipient_id = $2")
        .bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query("DELETE FROM notices WHERE organization_id = $1 AND recipient_id = $2")
        .bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
    // This holds what may still be sent, so that what follows sees what is being sent already: the last look waits for us.
    with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET cancelled = cancelled WHERE organization_id = $1 AND recipient_id = $2 AND fate = 0 AND cancelled = 0
             AND (content IS NOT NULL OR EXISTS
                 (SELECT 1 FROM deliveries WHERE deliveries.event = messages.uid AND deliveries.state IN (0, 1, 2)))",
    ).bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET cancelled = 1, content = NULL WHERE organization_id = $1 AND recipient_id = $2 AND fate = 0
             AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event = messages.uid AND deliveries.state NOT IN (0, 2))",
    ).bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
    Ok(removed > 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A supplier with an address and nothing else.
    pub(crate) fn supplier(id: &str) -> Recipient {
        Recipient {
            id: id.to_owned(),
            kind: Kind::Supplier,
            contact: Contact { email: format!("{id}@example.org"), ..Contact::default() },
            name: id.to_uppercase(),
            vendor_type: String::new(),
            time_zone: String::new(),
            locale: String::new(),
            channels: Vec::new(),
            updated_at: 0,
        }
    }

    #[test]
    fn what_a_caller_gives_is_held_to_every_limit() {
        let refused = |change: fn(&mut Recipient)| {
            let mut recipient = supplier("s1");
            change(&mut recipient);
            match recipient.check() {
                Err(Error::Invalid { field, .. }) => field.into_owned(),
                other => format!("{other:?}"),
            }
        };
        assert!(supplier("s1").check().is_ok());
        assert_eq!(refused(|r| r.id = String::new()), "id");
        assert_eq!(refused(|r| r.id = "i".repeat(129)), "id");
        assert_eq!(refused(|r| r.name = "Ada\r\nBcc: all@example.org".to_owned()), "name");
        assert_eq!(refused(|r| r.contact.email = "ada".to_owned()), "email");
        assert_eq!(refused(|r| r.contact.phone = "030 1234567".to_owned()), "phone");
        assert_eq!(refused(|r| r.time_zone = "Mars/Olympus".to_owned()), "time_zone");
        assert_eq!(refused(|r| r.locale = "en GB".to_owned()), "locale");
        assert_eq!(refused(|r| r.channels = vec!["E-Mail".to_owned()]), "channels");
    }
}
