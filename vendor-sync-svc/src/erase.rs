//! Erases what is kept of a client, a wedding or a booking (GDPR, article 17), as far as it is kept here.
//!
//! Gone afterwards: the record's fields, conflicts and pins, its names in linked systems and what was agreed with them, letters
//! about it that wait or may be sent again, what vendors answered to them, events about it that wait for the router, and
//! webhooks that were set aside and name it. What stays is its id, that it was erased and by whom, and ids, times and
//! outcomes of deliveries. A webhook to an endpoint that waits is still sent, and its body gone then.
//!
//! What was said up to then is not taken any more, when an event or a page of a list comes late or again. What is said
//! later is new: who has the person still must erase them too, before.
//!
//! [`sweep`] looks through what is sealed; everything else is one transaction. Begun anew after an interruption, it does
//! the rest. A file that is being imported can't be cut: an open import is waited for.

mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    secret::DataKey,
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;

use crate::{
    integration::Integration,
    record::{Link, Record, RecordKey, RecordKind, link::external_hash},
    resolve::{Incoming, Resolver},
};

/// Shorter texts would be found everywhere.
const SHORTEST_TRACE: usize = 6;

/// What an erasure took, or would take.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Taken {
    /// What it was called in linked systems, which may still have it.
    pub(crate) links: Vec<Link>,
    /// Other records that it named.
    pub(crate) related: Vec<String>,
    /// Letters to integrations.
    pub(crate) letters: u64,
    /// Events that waited for the router.
    pub(crate) events: u64,
    /// Webhooks that were set aside, or may be sent again.
    pub(crate) webhooks: u64,
    /// Lines of finished imports.
    pub(crate) lines: u64,
}

/// One that was done.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Erasure {
    kind: String,
    pub(crate) record_id: String,
    erased_at: i64,
    pub(crate) erased_by: String,
}

impl Erasure {
    pub(crate) fn kind(&self) -> Option<RecordKind> {
        RecordKind::parse(&self.kind)
    }

    pub(crate) fn at(&self) -> Timestamp {
        from_micros(self.erased_at)
    }
}

/// By what the person is found where no column says whose something is.
#[derive(Debug)]
struct Subject<'a> {
    key: &'a RecordKey,
    /// What deliveries about it are ordered by.
    orders: [String; 2],
    /// In lower case.
    traces: BTreeSet<String>,
}

impl<'a> Subject<'a> {
    fn of(key: &'a RecordKey, record: &Record, links: &[Link]) -> Self {
        let text = |name: &str| record.fields.get(name).and_then(|field| field.value.as_str()).unwrap_or_default();
        let name = |first: &str, last: &str| match (text(first), text(last)) {
            ("", _) | (_, "") => String::new(),
            (first, last) => format!("{first} {last}"),
        };
        let all = record.fields.values().chain(record.others.values().flatten());
        let addresses =
            all.filter_map(|field| field.value.as_str()).filter(|value| value.contains('@') && !value.contains(' '));
        let whole = [
            name("first_name", "last_name"),
            name("partner_first_name", "partner_last_name"),
            text("phone").to_owned(),
        ];
        let named = links.iter().map(|link| link.external_id.clone()).chain(whole).chain([key.id.clone()]);
        let traces = named.chain(addresses.map(str::to_owned)).filter(|trace| trace.len() >= SHORTEST_TRACE);
        let wedding = if key.kind == RecordKind::Wedding { String::new() } else { text("wedding_id").to_owned() };
        Self { key, orders: [key.id.clone(), wedding], traces: traces.map(|trace| trace.to_lowercase()).collect() }
    }

    /// Whether a text names the person, as it is or as forms write it.
    fn is_in(&self, body: &[u8]) -> bool {
        let plain = String::from_utf8_lossy(body).to_lowercase();
        let form = percent_encoding::percent_decode_str(&plain).decode_utf8_lossy().to_lowercase();
        self.traces.iter().any(|trace| plain.contains(trace) || form.contains(trace))
    }
}

impl Resolver {
    /// Erases a record; with `dry`, only says what would go.
    ///
    /// # Errors
    /// `Error::NotFound` for one that was never heard of; `Error::FailedPrecondition` while an import is open.
    pub(crate) async fn erase(&self, key: &RecordKey, by: &str, dry: bool) -> Result<Taken> {
        let record = self.records.get(key).await?.ok_or_else(|| Error::NotFound("record".into()))?;
        self.check_imports(&key.organization).await?;
        let links = self.links.of_record(&key.organization, key.kind, &key.id).await?;
        let subject = Subject::of(key, &record, &links);
        let mut taken = self.sweep(&subject, dry).await?;
        (taken.links, taken.related) = (links, related(&record));
        if dry {
            return Ok(taken);
        }
        let mut taking = self.begin_at_once(&key.organization).await?;
        let now = self.clock.now();
        self.records.erase_in(&mut taking.tx, key, now).await?;
        forget_in(&mut taking.tx, key, now, by).await?;
        taking.commit().await?;
        // What came up meanwhile.
        let late = self.sweep(&subject, false).await?;
        tracing::info!(record.id = key.id, kind = key.kind.as_str(), by, "a record was erased");
        Ok(Taken { letters: taken.letters + late.letters, events: taken.events + late.events, ..taken })
    }

    async fn check_imports(&self, organization: &OrganizationId) -> Result<()> {
        let open: Option<String> = with!(self.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT id FROM imports WHERE organization_id = $1 AND state IN ('receiving', 'running', 'asked') LIMIT 1",
            )
            .bind(organization.as_str())
            .fetch_optional(c)
            .await
        })?;
        match open {
            None => Ok(()),
            Some(id) => Err(Error::FailedPrecondition(format!(
                "import {id} is open, and may hold the person's rows: wait for it, or cancel it"
            ))),
        }
    }
}

/// Keeps, in hashes, what the next ones forget.
const REMEMBER: &str = "INSERT INTO erased_links (integration_id, kind, external_hash, organization_id, erased_at) \
     SELECT integration_id, kind, external_hash, organization_id, $4 FROM record_links \
     WHERE organization_id = $1 AND kind = $2 AND record_id = $3 AND external_hash IS NOT NULL \
     ON CONFLICT (integration_id, kind, external_hash) DO UPDATE SET erased_at = excluded.erased_at";
const FORGET: [&str; 5] = [
    "DELETE FROM rereads WHERE organization_id = $1 AND kind = $2 AND external_hash IN \
     (SELECT external_hash FROM record_links WHERE organization_id = $1 AND kind = $2 AND record_id = $3)",
    "DELETE FROM import_items WHERE record_kind = $2 AND external_hash IN \
     (SELECT external_hash FROM record_links WHERE organization_id = $1 AND kind = $2 AND record_id = $3)",
    "DELETE FROM record_links WHERE organization_id = $1 AND kind = $2 AND record_id = $3",
    "DELETE FROM own_writes WHERE organization_id = $1 AND kind = $2 AND record_id = $3",
    "DELETE FROM erasures WHERE organization_id = $1 AND kind = $2 AND record_id = $3",
];
const NOTE: &str =
    "INSERT INTO erasures (organization_id, kind, record_id, erased_at, erased_by) VALUES ($1, $2, $3, $4, $5)";

async fn forget_in(tx: &mut Tx, key: &RecordKey, now: Timestamp, by: &str) -> Result<()> {
    let (organization, kind, at) = (key.organization.as_str(), key.kind.as_str(), now.as_microsecond());
    with!(tx.on(), c => {
        sqlx::query(REMEMBER).bind(organization).bind(kind).bind(&key.id).bind(at).execute(c).await.map(drop)
    })?;
    for statement in FORGET {
        with!(tx.on(), c => {
            sqlx::query(statement).bind(organization).bind(kind).bind(&key.id).execute(c).await.map(drop)
        })?;
    }
    with!(tx.on(), c => {
        sqlx::query(NOTE).bind(organization).bind(kind).bind(&key.id).bind(at).bind(by).execute(c).await.map(drop)
    })?;
    Ok(())
}

/// Whether what a vendor says was said before the record that it is about was erased.
///
/// # Errors
/// Those of the store.
pub(crate) async fn is_past_in(tx: &mut Tx, key: &DataKey, integration: &Integration, said: &Incoming) -> Result<bool> {
    let erased: Option<i64> = with!(tx.on(), c => {
        sqlx::query_scalar(
            "SELECT erased_at FROM erased_links WHERE integration_id = $1 AND kind = $2 AND external_hash = $3",
        )
        .bind(&integration.id)
        .bind(said.kind.as_str())
        .bind(external_hash(key, &said.external_id))
        .fetch_optional(c)
        .await
    })?;
    Ok(erased.is_some_and(|erased| said.at <= from_micros(erased)))
}

/// Whether `record` was erased after `time`. Only one that a person deleted may have been.
///
/// # Errors
/// Those of the store.
pub(crate) async fn was_erased_in(tx: &mut Tx, record: &Record, time: Timestamp) -> Result<bool> {
    if !record.deletion.as_ref().is_some_and(|deletion| deletion.source.is_person() && time <= deletion.at) {
        return Ok(false);
    }
    let key = &record.key;
    let erased: Option<i64> = with!(tx.on(), c => {
        sqlx::query_scalar(
            "SELECT erased_at FROM erasures WHERE organization_id = $1 AND kind = $2 AND record_id = $3",
        )
        .bind(key.organization.as_str())
        .bind(key.kind.as_str())
        .bind(&key.id)
        .fetch_optional(c)
        .await
    })?;
    Ok(erased.is_some_and(|erased| time <= from_micros(erased)))
}

/// An organization's, oldest first, after the one at `after`.
///
/// # Errors
/// Those of the store.
pub(crate) async fn list(
    store: &Store,
    organization: &OrganizationId,
    (after, kind, id): (i64, &str, &str),
    limit: i64,
) -> Result<Vec<Erasure>> {
    let erasures = with!(store.reader(), c => {
        sqlx::query_as(
            "SELECT kind, record_id, erased_at, erased_by FROM erasures \
             WHERE organization_id = $1 AND (erased_at, kind, record_id) > ($2, $3, $4) \
             ORDER BY erased_at, kind, record_id LIMIT $5",
        )
        .bind(organization.as_str())
        .bind(after)
        .bind(kind)
        .bind(id)
        .bind(limit)
        .fetch_all(c)
        .await
    })?;
    Ok(erasures)
}

/// Other records that it names: they may name the person too.
fn related(record: &Record) -> Vec<String> {
    let text = |name: &str| record.fields.get(name).and_then(|field| field.value.as_str());
    let named = [("wedding_id", RecordKind::Wedding), ("couple_id", RecordKind::Client)];
    let others = named.iter().filter(|(_, kind)| *kind != record.key.kind);
    others.filter_map(|(name, kind)| Some(format!("{} {}", kind.as_str(), text(name)?))).collect()
}
