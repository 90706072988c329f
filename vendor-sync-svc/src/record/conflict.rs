//! The conflict log: what lost, to whom and why, and what somebody is asked.
//!
//! A row per word that doesn't stand though its source holds it. It is open where nothing but a person ends it, settled
//! where a rule did, and resolved once a person has said. A source that says something else takes its row along: the log
//! shows what sources hold now, and what people decided. What they decided is kept for 90 days.

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::{self, OrganizationId},
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Field, RecordKey, RecordKind, Source,
    merge::{Conflict, Reason},
};

const KEEP_RESOLVED: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Old rows that one decision removes.
const PURGE_STEP: i64 = 100;

/// Where a conflict stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Somebody must say.
    Open,
    /// A rule decided; a person may still say otherwise.
    Settled,
    /// A person has said.
    Resolved,
}

impl State {
    const ALL: [Self; 3] = [Self::Open, Self::Settled, Self::Resolved];

    /// As the store has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Settled => "settled",
            Self::Resolved => "resolved",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// A UUID; another value of the same source has another.
    pub(crate) id: String,
    pub(crate) key: RecordKey,
    pub(crate) conflict: Conflict,
    pub(crate) state: State,
    pub(crate) found_at: Timestamp,
    pub(crate) decision: Option<Decision>,
}

/// What a person said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    /// `keep`, `take` or `value`.
    pub(crate) resolution: String,
    pub(crate) by: String,
    pub(crate) at: Timestamp,
}

/// Which entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) state: Option<State>,
    pub(crate) kind: Option<RecordKind>,
    /// Empty: of every record.
    pub(crate) record_id: String,
    /// Whose word lost or stands; empty: anybody's.
    pub(crate) source: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    kept: Option<Field>,
    losing: Field,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    kind: String,
    record_id: String,
    field: String,
    reason: String,
    state: String,
    found_at: i64,
    body: Vec<u8>,
    resolution: String,
    resolved_by: String,
    resolved_at: Option<i64>,
}

/// At most `limit`, oldest first, after the one with the id `after`.
pub(crate) async fn list(
    (store, keys): (&Store, &DataKeys),
    organization: &OrganizationId,
    filter: &Filter,
    after: &str,
    limit: i64,
) -> Result<Vec<Entry>> {
    let rows = with!(store.reader(), c => {
        sqlx::query_as::<_, Row>(
            "SELECT * FROM record_conflicts WHERE organization_id = $1 AND id > $2 AND ($3 = '' OR state = $3) \
             AND ($4 = '' OR kind = $4) AND ($5 = '' OR record_id = $5) \
             AND ($6 = '' OR source = $6 OR kept_source = $6) ORDER BY id LIMIT $7",
        )
        .bind(organization.as_str())
        .bind(after)
        .bind(filter.state.map_or("", State::as_str))
        .bind(filter.kind.map_or("", RecordKind::as_str))
        .bind(&filter.record_id)
        .bind(&filter.source)
        .bind(limit)
        .fetch_all(c)
        .await
    })?;
    let key = keys.of(organization).await?;
    rows.into_iter().map(|row| open(&key, organization, row)).collect()
}

/// One entry.
///
/// # Errors
/// `Error::NotFound` also for another organization's, and for one that its source has taken back.
pub(super) async fn get_in(tx: &mut Tx, data_key: &DataKey, organization: &OrganizationId, id: &str) -> Result<Entry> {
    if id::parse_uuid(id).is_none() {
        return Err(Error::NotFound("conflict".into()));
    }
    let row = with!(tx.on(), c => {
        sqlx::query_as::<_, Row>("SELECT * FROM record_conflicts WHERE organization_id = $1 AND id = $2")
            .bind(organization.as_str())
            .bind(id)
            .fetch_optional(c)
            .await
    })?;
    open(data_key, organization, row.ok_or_else(|| Error::NotFound("conflict".into()))?)
}

/// Has the log of one record say `losing`, beside what people have decided.
pub(super) async fn note(
    tx: &mut Tx,
    data_key: &DataKey,
    key: &RecordKey,
    losing: &[Conflict],
    now: Timestamp,
) -> Result<()> {
    let noted = unresolved(tx, data_key, key).await?;
    for entry in noted.iter().filter(|entry| !losing.contains(&entry.conflict)) {
        with!(tx.on(), c => {
            sqlx::query("DELETE FROM record_conflicts WHERE organization_id = $1 AND id = $2")
                .bind(key.organization.as_str()).bind(&entry.id).execute(c).await.map(drop)
        })?;
    }
    for conflict in losing.iter().filter(|conflict| !noted.iter().any(|entry| entry.conflict == **conflict)) {
        insert(tx, data_key, key, conflict, now).await?;
    }
    Ok(())
}

async fn unresolved(tx: &mut Tx, data_key: &DataKey, key: &RecordKey) -> Result<Vec<Entry>> {
    let rows = with!(tx.on(), c => {
        sqlx::query_as::<_, Row>(
            "SELECT * FROM record_conflicts \
             WHERE organization_id = $1 AND kind = $2 AND record_id = $3 AND state <> 'resolved'",
        )
        .bind(key.organization.as_str())
        .bind(key.kind.as_str())
        .bind(&key.id)
        .fetch_all(c)
        .await
    })?;
    rows.into_iter().map(|row| open(data_key, &key.organization, row)).collect()
}

async fn insert(tx: &mut Tx, data_key: &DataKey, key: &RecordKey, conflict: &Conflict, now: Timestamp) -> Result<()> {
    let (id, state) = (id::uuid(now), if conflict.reason.asks() { State::Open } else { State::Settled });
    let body = Body { kept: conflict.kept.clone(), losing: conflict.losing.clone() };
    let plain = serde_json::to_vec(&body).map_err(Error::internal)?;
    with!(tx.on(), c => {
        sqlx::query(
            "INSERT INTO record_conflicts (id, organization_id, kind, record_id, field, source, kept_source, reason, state, \
             found_at, body, resolution, resolved_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, '', '')",
        )
        .bind(&id)
        .bind(key.organization.as_str())
        .bind(key.kind.as_str())
        .bind(&key.id)
        .bind(&conflict.field)
        .bind(conflict.losing.source.as_str())
        .bind(conflict.kept.as_ref().map_or("", |kept| kept.source.as_str()))
        .bind(conflict.reason.as_str())
        .bind(state.as_str())
        .bind(now.as_microsecond())
        .bind(data_key.seal(&place("record_conflicts", "body", &id), &plain))
        .execute(c)
        .await
        .map(drop)
    })?;
    Ok(())
}

/// A person's word on a field settles all that lost on it.
pub(super) async fn resolve(tx: &mut Tx, key: &RecordKey, field: &str, decision: &Decision) -> Result<()> {
    with!(tx.on(), c => {
        sqlx::query(
            "UPDATE record_conflicts SET state = 'resolved', resolution = $5, resolved_by = $6, resolved_at = $7 \
             WHERE organization_id = $1 AND kind = $2 AND record_id = $3 AND field = $4 AND state <> 'resolved'",
        )
        .bind(key.organization.as_str())
        .bind(key.kind.as_str())
        .bind(&key.id)
        .bind(field)
        .bind(&decision.resolution)
        .bind(&decision.by)
        .bind(decision.at.as_microsecond())
        .execute(c)
        .await
        .map(drop)
    })?;
    purge(tx, &key.organization, decision.at).await
}

async fn purge(tx: &mut Tx, organization: &OrganizationId, now: Timestamp) -> Result<()> {
    with!(tx.on(), c => {
        sqlx::query(
            "DELETE FROM record_conflicts WHERE id IN (SELECT id FROM record_conflicts \
             WHERE organization_id = $1 AND state = 'resolved' AND resolved_at < $2 LIMIT $3)",
        )
        .bind(organization.as_str())
        .bind((now - KEEP_RESOLVED).as_microsecond())
        .bind(PURGE_STEP)
        .execute(c)
        .await
        .map(drop)
    })?;
    Ok(())
}

fn open(data_key: &DataKey, organization: &OrganizationId, row: Row) -> Result<Entry> {
    let plain = data_key.open(&place("record_conflicts", "body", &row.id), &row.body)?;
    let Body { kept, losing } = serde_json::from_slice(&plain).map_err(Error::internal)?;
    let unknown = || Error::internal(anyhow::anyhow!("conflict {} says what we don't know", row.id));
    let kind = RecordKind::parse(&row.kind).ok_or_else(unknown)?;
    let reason = Reason::parse(&row.reason).ok_or_else(unknown)?;
    let state = State::parse(&row.state).ok_or_else(unknown)?;
    let (resolution, by) = (row.resolution, row.resolved_by);
    let decision = row.resolved_at.map(|at| Decision { resolution, by, at: from_micros(at) });
    let key = RecordKey { organization: organization.clone(), kind, id: row.record_id };
    let conflict = Conflict { field: row.field, kept, losing, reason };
    Ok(Entry { id: row.id, key, conflict, state, found_at: from_micros(row.found_at), decision })
}

impl Entry {
    /// Whose word it is that lost.
    pub(crate) fn source(&self) -> &Source {
        &self.conflict.losing.source
    }
}
