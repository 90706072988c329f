//! The organizations' own texts, by workflow, part and language: every version as it was put, the latest compiled.
//!
//! They are an organization's words and hold nobody's data, so they are stored as they are. A version is never changed;
//! going back to an earlier one, or to ours, is a version too. Invariant: a version follows the one that its author saw.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    expression::Template,
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    audit,
    settings::{self, Settings},
};

/// How many texts of its own an organization may have, those that it took back among them, of which the first makes room
/// for a new one; and how many versions of each are kept.
pub(crate) const TEXTS: i64 = 200;
const VERSIONS: i64 = 50;
/// How many compiled texts are kept at hand; over it, all are compiled anew as they are needed.
const AT_HAND: usize = 2_000;
/// As long as they are believed without a look at the store: a change whose commit was never answered counts after that.
const HELD_FOR: SignedDuration = SignedDuration::from_mins(5);

/// What a text is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) workflow: String,
    /// Channel and part: `email.subject`.
    pub(crate) part: String,
    /// In one spelling: see [`normal`](super::texts::normal).
    pub(crate) locale: String,
}

/// One version of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) key: Key,
    pub(crate) version: i64,
    /// None: ours is used.
    pub(crate) source: Option<String>,
    pub(crate) author: String,
    pub(crate) created_at: Timestamp,
}

/// An organization's way of putting things.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wording {
    texts: HashMap<Key, Arc<Template>>,
    pub(crate) settings: Settings,
}

impl Wording {
    pub(super) fn get(&self, workflow: &str, part: &str, locale: &str) -> Option<&Template> {
        if self.texts.is_empty() {
            return None;
        }
        let key = Key { workflow: workflow.to_owned(), part: part.to_owned(), locale: locale.to_owned() };
        self.texts.get(&key).map(|template| &**template)
    }

    /// The same with another text.
    pub(crate) fn with(mut self, key: Key, template: Template) -> Self {
        self.texts.insert(key, Arc::new(template));
        self
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    workflow: String,
    part: String,
    locale: String,
    version: i64,
    source: Option<String>,
    author: String,
    created_at: i64,
}

impl From<Row> for Version {
    fn from(row: Row) -> Self {
        let key = Key { workflow: row.workflow, part: row.part, locale: row.locale };
        let created_at = from_micros(row.created_at);
        Self { key, version: row.version, source: row.source, author: row.author, created_at }
    }
}

/// All organizations' own texts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wordings {
    store: Store,
    clock: Clock,
    at_hand: Arc<Mutex<AtHand>>,
}

/// What was read; a change makes what is being read meanwhile worthless.
#[derive(Default)]
struct AtHand {
    changes: u64,
    of: HashMap<OrganizationId, (Timestamp, Arc<Wording>)>,
}

impl Wordings {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, at_hand: Arc::default() }
    }

    /// How an organization puts things now.
    pub(crate) async fn of(&self, organization: &OrganizationId) -> Result<Arc<Wording>> {
        let now = self.clock.now();
        let changes = {
            let at_hand = self.at_hand.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some((read_at, wording)) = at_hand.of.get(organization)
                && now.duration_since(*read_at).abs() < HELD_FOR
            {
                return Ok(Arc::clone(wording));
            }
            at_hand.changes
        };
        let wording = Arc::new(self.read(organization).await?);
        let mut at_hand = self.at_hand.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if at_hand.changes == changes {
            let held: usize = at_hand.of.values().map(|(_, wording)| 1 + wording.texts.len()).sum();
            if held + wording.texts.len() >= AT_HAND {
                at_hand.of.clear();
            }
            at_hand.of.insert(organization.clone(), (now, Arc::clone(&wording)));
        }
        Ok(wording)
    }

    async fn read(&self, organization: &OrganizationId) -> Result<Wording> {
        let settings = settings::read(&self.store, organization).await?;
        let mut texts = HashMap::new();
        for version in self.list(organization, "", "", TEXTS).await? {
            let Some(source) = &version.source else { continue };
            // What was checked when it was put may be refused by a newer language: ours is used then.
            match compile(&version.key, source) {
                Ok(template) => drop(texts.insert(version.key, Arc::new(template))),
                Err(error) => tracing::error!(%error, "an organization's own text can't be compiled any more"),
            }
        }
        Ok(Wording { texts, settings })
    }

    /// Whatever was read is read anew.
    pub(crate) fn forget(&self, organization: &OrganizationId) {
        let mut at_hand = self.at_hand.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        at_hand.changes += 1;
        at_hand.of.remove(organization);
    }

    /// The texts in use, of one workflow unless that is empty, in the order of their names.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        workflow: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Version>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT workflow, part, locale, version, source, author, created_at FROM templates AS t
             WHERE organization_id = $1 AND ($2 = '' OR workflow = $2) AND source IS NOT NULL
                 AND workflow || '/' || part || '/' || locale > $3
                 AND version = (SELECT MAX(version) FROM templates AS l WHERE l.organization_id = t.organization_id
                     AND l.workflow = t.workflow AND l.part = t.part AND l.locale = t.locale)
             ORDER BY workflow || '/' || part || '/' || locale LIMIT $4",
        ).bind(organization.as_str()).bind(workflow).bind(after).bind(limit).fetch_all(c).await)?;
        Ok(rows.into_iter().map(Version::from).collect())
    }

    /// The versions that are kept of a text, latest first.
    pub(crate) async fn versions(&self, organization: &OrganizationId, key: &Key) -> Result<Vec<Version>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT workflow, part, locale, version, source, author, created_at FROM templates
             WHERE organization_id = $1 AND workflow = $2 AND part = $3 AND locale = $4 ORDER BY version DESC LIMIT $5",
        )
        .bind(organization.as_str())
        .bind(&key.workflow)
        .bind(&key.part)
        .bind(&key.locale)
        .bind(VERSIONS)
        .fetch_all(c).await)?;
        Ok(rows.into_iter().map(Version::from).collect())
    }

    /// Puts a version after the one that its author saw (0: none); no source means ours from now on.
    ///
    /// # Errors
    /// `Error::Aborted` where another version is the latest; `Error::FailedPrecondition` for one text too many.
    pub(crate) async fn put(
        &self,
        organization: &OrganizationId,
        key: &Key,
        source: Option<&str>,
        expected: i64,
        author: &str,
    ) -> Result<Version> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let latest: Option<i64> = with!(tx.on(), c => sqlx::query_scalar(
            "SELECT MAX(version) FROM templates WHERE organization_id = $1 AND workflow = $2 AND part = $3 AND locale = $4",
        )
        .bind(organization.as_str())
        .bind(&key.workflow)
        .bind(&key.part)
        .bind(&key.locale)
        .fetch_one(c).await)?;
        let latest = latest.unwrap_or(0);
        if latest == 0 && source.is_some() {
            has_room(&mut tx, organization).await?;
        }
        let version = latest + 1;
        let stored = latest == expected && insert(&mut tx, organization, key, version, source, author, now).await?;
        if !stored {
            return Err(Error::Aborted(format!("version {latest} is the latest, not {expected}")));
        }
        let subject = format!("{}/{}/{}", key.workflow, key.part, key.locale);
        let what = if source.is_some() { "put" } else { "ours again" };
        let detail = format!("version {version}: {what}");
        let entry = audit::Entry { action: audit::Action::Template, by: author, subject: &subject, detail: &detail };
        audit::note(&mut tx, organization, &entry, now).await?;
        let committed = tx.commit().await;
        // What wasn't answered may be in force all the same.
        self.forget(organization);
        committed?;
        let (key, source, author) = (key.clone(), source.map(str::to_owned), author.to_owned());
        Ok(Version { key, version, source, author, created_at: now })
    }
}

/// Compiles a text over what its workflow gives.
///
/// # Errors
/// The first thing that isn't in the language, or a variable that the workflow doesn't give, with its line.
pub(crate) fn compile(key: &Key, source: &str) -> Result<Template, chassis::expression::ExpressionError> {
    let names = super::check::names(crate::workflow::find(&key.workflow));
    Template::compile_over(&key.part, source, &names)
}

async fn has_room(tx: &mut Tx, organization: &OrganizationId) -> Result<()> {
    let known: i64 = with!(tx.on(), c => sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT DISTINCT workflow, part, locale FROM templates WHERE organization_id = $1) AS texts",
    ).bind(organization.as_str()).fetch_one(c).await)?;
    if known < TEXTS {
        return Ok(());
    }
    let made = with!(tx.on(), c => sqlx::query(
        "DELETE FROM templates WHERE organization_id = $1 AND (workflow, part, locale) = (SELECT workflow, part, locale
             FROM templates AS t WHERE organization_id = $1 AND source IS NULL AND version = (SELECT MAX(version)
                 FROM templates AS l WHERE l.organization_id = t.organization_id AND l.workflow = t.workflow
                     AND l.part = t.part AND l.locale = t.locale)
             ORDER BY created_at LIMIT 1)",
    ).bind(organization.as_str()).execute(c).await.map(|done| done.rows_affected()))?;
    if made == 0 {
        return Err(Error::FailedPrecondition(format!("an organization may have {TEXTS} texts of its own")));
    }
    Ok(())
}

async fn insert(
    tx: &mut Tx,
    organization: &OrganizationId,
    key: &Key,
    version: i64,
    source: Option<&str>,
    author: &str,
    now: Timestamp,
) -> Result<bool> {
    let inserted = with!(tx.on(), c => sqlx::query(
        "INSERT INTO templates (organization_id, workflow, part, locale, version, source, author, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (organization_id, workflow, part, locale, version) DO NOTHING",
    )
    .bind(organization.as_str())
    .bind(&key.workflow)
    .bind(&key.part)
    .bind(&key.locale)
    .bind(version)
    .bind(source)
    .bind(author)
    .bind(now.as_microsecond())
    .execute(c).await.map(|done| done.rows_affected()))?;
    with!(tx.on(), c => sqlx::query(
        "DELETE FROM templates WHERE organization_id = $1 AND workflow = $2 AND part = $3 AND locale = $4 AND version <= $5",
    )
    .bind(organization.as_str())
    .bind(&key.workflow)
    .bind(&key.part)
    .bind(&key.locale)
    .bind(version - VERSIONS)
    .execute(c).await.map(drop))?;
    Ok(inserted > 0)
}

#[cfg(test)]
mod tests {
    use chassis::testing::{manual_clock, on_each_engine};

    use super::*;
    use crate::MIGRATIONS;

    fn key(number: i64) -> Key {
        let (workflow, part) = ("wedding_date_change".to_owned(), "sms.text".to_owned());
        Key { workflow, part, locale: format!("x-{number}") }
    }

    async fn put(wordings: &Wordings, number: i64, source: Option<&str>, expected: i64) -> Result<Version> {
        let organization = OrganizationId::parse("o").unwrap();
        wordings.put(&organization, &key(number), source, expected, "me").await
    }

    #[tokio::test]
    async fn what_was_taken_back_makes_room_for_what_is_new_and_nothing_else_does() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let wordings = Wordings::new(store, Clock::System);
            for number in 0..TEXTS {
                put(&wordings, number, Some("a text"), 0).await.unwrap();
            }
            let full = put(&wordings, TEXTS, Some("one too many"), 0).await;
            assert!(matches!(full, Err(Error::FailedPrecondition(_))), "{full:?}");
            put(&wordings, 7, None, 1).await.unwrap();
            put(&wordings, TEXTS, Some("there is room"), 0).await.unwrap();
            let full = put(&wordings, 7, Some("once more"), 0).await;
            assert!(matches!(full, Err(Error::FailedPrecondition(_))), "{full:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_change_that_nobody_was_told_of_counts_after_some_minutes() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let (manual, clock) = manual_clock();
            let (wordings, elsewhere) = (Wordings::new(store.clone(), clock.clone()), Wordings::new(store, clock));
            let organization = OrganizationId::parse("o").unwrap();
            let has = async || {
                wordings.of(&organization).await.unwrap().get("wedding_date_change", "sms.text", "x-1").is_some()
            };
            assert!(!has().await);
            // As if the commit had never been answered.
            put(&elsewhere, 1, Some("a text"), 0).await.unwrap();
            manual.advance(std::time::Duration::from_secs(299));
            assert!(!has().await);
            manual.advance(std::time::Duration::from_secs(1));
            assert!(has().await);
        })
        .await;
    }
}
