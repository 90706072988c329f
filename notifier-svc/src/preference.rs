//! What people wish: by which channels they hear of what, when they want quiet, and what is gathered for them.
//!
//! The most specific rule counts: that of a workflow, else that of its category, else the general one. A rule chooses
//! among the channels of the route, and may add others.

use std::collections::HashSet;

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::{Timestamp, civil::Time, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::{
    audit,
    category::{ALL, MARKETING},
    recipient::{check_id, is_channel},
    when::{Quiet, next, next_hour},
};

/// How many rules a person may have, and how many other people may stand in for them.
const RULES: usize = 64;
const CONTACTS: usize = 5;
/// When a daily digest comes, if nothing else is said.
const MORNING: Time = Time::constant(8, 0, 0, 0);

/// How soon a person wants to hear of things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Digest {
    #[default]
    Immediate,
    Hourly,
    Daily,
}

/// A person's wishes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Preference {
    pub(crate) rules: Vec<Rule>,
    pub(crate) quiet: Option<Quiet>,
    pub(crate) digest: Digest,
    /// Local time of the daily digest.
    pub(crate) daily_at: Option<Time>,
    /// IANA name; empty: the directory's.
    pub(crate) time_zone: String,
    /// BCP 47; empty: the directory's.
    pub(crate) locale: String,
    /// Recipients who are told when this one doesn't confirm, in order.
    pub(crate) contacts: Vec<String>,
    /// That they agreed to commercial mail.
    pub(crate) consent: Option<Consent>,
}

/// What holds for one subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rule {
    /// A workflow or a category; empty: everything.
    pub(crate) subject: String,
    /// Chosen among the route's; empty: all of them.
    pub(crate) channels: Vec<String>,
    /// Added to the route's.
    pub(crate) also: Vec<String>,
    /// Nothing is wanted of it.
    pub(crate) off: bool,
    /// Instead of the general one.
    pub(crate) digest: Option<Digest>,
}

/// When and how somebody agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Consent {
    pub(crate) given_at: Timestamp,
    /// In the organization's words: which form, which page.
    pub(crate) source: String,
}

impl Preference {
    /// Holds what a caller gives to every limit.
    ///
    /// # Errors
    /// `Error::Invalid` for the first field at fault.
    pub(crate) fn check(&self) -> Result<()> {
        if self.rules.len() > RULES {
            return Err(Error::invalid("rules", format!("must be at most {RULES}")));
        }
        let mut subjects = HashSet::new();
        for rule in &self.rules {
            rule.check()?;
            if !subjects.insert(&rule.subject) {
                return Err(Error::invalid("rules.subject", "must not come twice"));
            }
        }
        if !self.time_zone.is_empty() && TimeZone::get(&self.time_zone).is_err() {
            return Err(Error::invalid("time_zone", "must be an IANA time zone, for example Europe/Berlin"));
        }
        if self.locale.len() > 35 || !self.locale.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::invalid("locale", "must be a BCP 47 tag, for example en-GB"));
        }
        if self.contacts.len() > CONTACTS {
            return Err(Error::invalid("contacts", format!("must be at most {CONTACTS}")));
        }
        if self.consent.as_ref().is_some_and(|consent| !(1..=200).contains(&consent.source.len())) {
            return Err(Error::invalid("consent_source", "must have 1 to 200 bytes"));
        }
        self.contacts.iter().try_for_each(|id| check_id("contacts", id))
    }

    /// The rule that counts for a workflow of this category.
    pub(crate) fn rule(&self, workflow: &str, category: &str) -> Option<&Rule> {
        let of = |subject: &str| self.rules.iter().find(|rule| rule.subject == subject);
        of(workflow).or_else(|| of(category)).or_else(|| of(""))
    }

    /// By whose clock a person lives: as they wish, else the directory's, else their organization's.
    pub(crate) fn zone(&self, directory: &str, organization: &str) -> TimeZone {
        let name = [&*self.time_zone, directory, organization].into_iter().find(|name| !name.is_empty());
        name.and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC)
    }

    /// When what is told now would be gathered up for this person; none if at once.
    pub(crate) fn digest_due(&self, rule: Option<&Rule>, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match rule.and_then(|rule| rule.digest).unwrap_or(self.digest) {
            Digest::Immediate => None,
            Digest::Hourly => Some(next_hour(now, zone)),
            Digest::Daily => Some(next(self.daily_at.unwrap_or(MORNING), now, zone)),
        }
    }

    /// Turns a category off, as a link in a message asks.
    pub(crate) fn unsubscribe(&mut self, category: &str) {
        match self.rules.iter_mut().find(|rule| rule.subject == category) {
            Some(rule) => rule.off = true,
            None => self.rules.insert(0, Rule { subject: category.to_owned(), off: true, ..Rule::default() }),
        }
        if category == MARKETING {
            self.consent = None;
        }
    }
}

impl Rule {
    fn check(&self) -> Result<()> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if self.subject.len() > 64 || !self.subject.bytes().all(plain) {
            let categories = ALL.join(", ");
            return Err(Error::invalid("rules.subject", format!("must be a workflow, one of {categories}, or empty")));
        }
        for (field, names) in [("rules.channels", &self.channels), ("rules.also", &self.also)] {
            if names.len() > 16 || !names.iter().all(|name| is_channel(name)) {
                return Err(Error::invalid(field, "must be at most 16 names like `email` or `in_app`"));
            }
        }
        Ok(())
    }
}

/// All people's wishes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Preferences {
    store: Store,
    clock: Clock,
}

impl Preferences {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock }
    }

    /// A person's wishes; the default where they have said nothing.
    pub(crate) async fn get(&self, organization: &OrganizationId, recipient: &str) -> Result<Preference> {
        let definition: Option<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT definition FROM preferences WHERE organization_id = $1 AND recipient_id = $2",
        ).bind(organization.as_str()).bind(recipient).fetch_optional(c).await)?;
        definition.map_or_else(
            || Ok(Preference::default()),
            |definition| serde_json::from_str(&definition).map_err(Error::internal),
        )
    }

    /// Replaces a person's wishes, which passed [`Preference::check`]; `by` is the key that does it for them.
    pub(crate) async fn put(
        &self,
        organization: &OrganizationId,
        recipient: &str,
        preference: &Preference,
        by: Option<&str>,
    ) -> Result<()> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        write(&mut tx, organization, recipient, preference, now.as_microsecond()).await?;
        if let Some(by) = by {
            let entry = audit::Entry { action: audit::Action::Preference, by, subject: recipient, detail: "" };
            audit::note(&mut tx, organization, &entry, now).await?;
        }
        tx.commit().await
    }
}

/// Replaces a person's wishes.
pub(crate) async fn write(
    tx: &mut Tx,
    organization: &OrganizationId,
    recipient: &str,
    preference: &Preference,
    now: i64,
) -> Result<()> {
    let definition = serde_json::to_string(preference).map_err(Error::internal)?;
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO preferences (organization_id, recipient_id, definition, updated_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (organization_id, recipient_id) DO UPDATE SET definition = excluded.definition, updated_at = excluded.updated_at",
    ).bind(organization.as_str()).bind(recipient).bind(definition).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(subject: &str) -> Rule {
        Rule { subject: subject.to_owned(), ..Rule::default() }
    }

    #[test]
    fn the_most_specific_rule_counts() {
        let mut preference = Preference { rules: vec![rule(""), rule("weddings")], ..Preference::default() };
        let subject = |preference: &Preference| {
            preference.rule("timeline_changed", "weddings").map(|rule| rule.subject.clone()).unwrap()
        };
        assert_eq!(subject(&preference), "weddings");
        preference.rules.push(rule("timeline_changed"));
        assert_eq!(subject(&preference), "timeline_changed");
        assert_eq!(preference.rule("payment_failed", "payments").unwrap().subject, "");
    }

    #[test]
    fn an_unsubscribed_category_is_off_and_takes_the_consent_along() {
        let consent = Consent { given_at: Timestamp::UNIX_EPOCH, source: "form".to_owned() };
        let mut preference = Preference { consent: Some(consent), ..Preference::default() };
        preference.unsubscribe("clients");
        assert!(preference.rule("x", "clients").unwrap().off && preference.consent.is_some());
        preference.unsubscribe(MARKETING);
        assert!(preference.rule("x", MARKETING).unwrap().off && preference.consent.is_none());
    }

    #[test]
    fn what_a_caller_gives_is_held_to_every_limit() {
        let refused = |change: fn(&mut Preference)| {
            let mut preference = Preference::default();
            change(&mut preference);
            match preference.check() {
                Err(Error::Invalid { field, .. }) => field.into_owned(),
                other => format!("{other:?}"),
            }
        };
        assert!(Preference::default().check().is_ok());
        assert_eq!(refused(|p| p.rules = vec![Rule::default(); 65]), "rules");
        assert_eq!(refused(|p| p.rules = vec![Rule::default(); 2]), "rules.subject");
        assert_eq!(refused(|p| p.rules = vec![rule("Weddings!")]), "rules.subject");
        assert_eq!(
            refused(|p| p.rules = vec![Rule { also: vec!["E-Mail".to_owned()], ..Rule::default() }]),
            "rules.also"
        );
        assert_eq!(refused(|p| p.time_zone = "Mars/Olympus".to_owned()), "time_zone");
        assert_eq!(refused(|p| p.contacts = vec!["c".to_owned(); 6]), "contacts");
    }
}
