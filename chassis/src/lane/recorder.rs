//! Writes what the dispatcher knows, a group at a time: one transaction for everything that came up while the one
//! before was committed. If a commit fails it is tried again from memory until it succeeds; nothing is sent again for it.
//!
//! The hot statements stand in both dialects side by side: PostgreSQL takes whole columns (UNNEST), SQLite rows of values,
//! `OR FAIL`: a statement that fails ends the transaction, so that there is nothing to undo within it, and no journal of it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::anyhow;
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::{PgConnection, QueryBuilder, Sqlite, SqliteConnection};
use tokio::sync::mpsc;

use super::{
    delivery::{Delivery, State},
    dispatcher::Signal,
};
use crate::{
    error::{Error, Result},
    secret::DataKeys,
    store::{self, Engine, Kept, Store, Tx, Writer},
    with,
};

/// Rows of a group that is recorded in one trip on SQLite: each number of them is a text of its own to prepare.
const AT_ONCE_MAX: usize = 8;

/// Everything that one commit writes.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) inserts: Vec<Insert>,
    pub(super) updates: Vec<Update>,
    pub(super) attempts: Vec<AttemptRow>,
    pub(super) lanes: Vec<LaneRow>,
    /// Ordered lanes and their keys whose first blocked delivery may go now, unless another of the key is on its way.
    pub(super) releases: Vec<(i64, String)>,
    /// Lanes that are ordered no more: whatever is blocked there may go.
    pub(super) unordered: Vec<i64>,
    /// Offers to be told about after the commit, with their events; not written.
    pub(super) offers: Vec<(u64, [u8; 16])>,
}

/// What a commit found in the store.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Lanes where something was released.
    pub(super) released: Vec<i64>,
    /// Inserts that the store had before, under another id: their event was handled already.
    pub(super) repeated: Vec<i64>,
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.inserts.is_empty()
            && self.updates.is_empty()
            && self.lanes.is_empty()
            && self.releases.is_empty()
            && self.unordered.is_empty()
            && self.offers.is_empty()
    }

    /// New deliveries and their attempts, and nothing else, as is usual.
    fn is_plain(&self) -> bool {
        !self.inserts.is_empty()
            && self.updates.is_empty()
            && self.lanes.is_empty()
            && self.releases.is_empty()
            && self.unordered.is_empty()
            && !self.inserts.iter().any(|insert| insert.may_be_behind)
    }
}

/// A delivery that the store doesn't have yet.
#[derive(Debug)]
pub(super) struct Insert {
    pub(super) delivery: Arc<Delivery>,
    pub(super) end: End,
    /// In an ordered lane that holds others: it is blocked if one of its key is among them.
    pub(super) may_be_behind: bool,
    /// It is tried without waiting in the store, and is in the dispatcher's hands until its end is durable.
    pub(super) tried: bool,
}

impl Insert {
    /// It is to be tried as soon as there is a slot.
    pub(super) fn is_queued(&self) -> bool {
        self.tried && self.end.state == State::Waiting && self.end.attempts == 0
    }
}

/// Where a delivery stands after its last attempt, or before its first.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) state: State,
    pub(super) attempts: u32,
    pub(super) next_at: i64,
    pub(super) finished_at: Option<i64>,
    pub(super) status_code: Option<i64>,
    pub(super) reason: String,
}

impl End {
    /// Nothing more happens to it.
    pub(super) fn final_at(state: State, reason: &str, now: Timestamp) -> Self {
        let now = now.as_microsecond();
        Self { state, attempts: 0, next_at: now, finished_at: Some(now), status_code: None, reason: reason.to_owned() }
    }
}

/// A change to a delivery that the store has.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) id: i64,
    pub(super) end: End,
}

#[derive(Debug)]
pub(super) struct AttemptRow {
    pub(super) delivery: i64,
    pub(super) number: u32,
    pub(super) lane: i64,
    pub(super) organization: crate::id::OrganizationId,
    pub(super) started_at: i64,
    pub(super) duration: i64,
    pub(super) status_code: Option<i64>,
    pub(super) outcome: &'static str,
    pub(super) error: String,
    pub(super) response: Bytes,
}

#[derive(Debug)]
pub(super) struct LaneRow {
    pub(super) number: i64,
    pub(super) breaker_opened_at: Option<i64>,
    pub(super) breaker_openings: i64,
    pub(super) failing_since: Option<i64>,
}

/// Commits groups as they come and tells the dispatcher; ends when the dispatcher does.
pub(super) async fn run(
    store: Store,
    keys: DataKeys,
    mut groups: mpsc::Receiver<Group>,
    signals: mpsc::Sender<Signal>,
) {
    let mut kept = store.keep();
    while let Some(group) = groups.recv().await {
        let mut failures = 0u32;
        let mut found = loop {
            let error = match commit(&store, &mut kept, &keys, &group).await {
                Ok(found) => break found,
                Err(error) => error,
            };
            failures += 1;
            tracing::error!(%error, failures, "deliveries can't be recorded; sending stops until they can");
            metrics::counter!("lane_commit_failures_total").increment(1);
            if failures == 1 && signals.send(Signal::Stalled).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50 << failures.min(5))).await;
        };
        if failures > 0 {
            // A commit whose answer was lost may have released them before.
            found.released = group.releases.iter().map(|(lane, _)| *lane).chain(group.unordered.clone()).collect();
        }
        if signals.send(Signal::Committed(group, found)).await.is_err() {
            return;
        }
    }
}

async fn commit(store: &Store, kept: &mut Engine<Writer, Kept>, keys: &DataKeys, group: &Group) -> Result<Found> {
    let sealed = seal(keys, group).await?;
    if group.is_plain()
        && let Some(inserted) = at_once(kept, group, &sealed).await?
    {
        crate::fail::point("lane.record.committed");
        return Ok(Found { repeated: repeated(store, &group.inserts, inserted).await?, released: Vec::new() });
    }
    let mut tx = store.begin().await?;
    let inserted = insert(tx.on(), group, &sealed).await?;
    block(&mut tx, &group.inserts).await?;
    update_deliveries(&mut tx, &group.updates).await?;
    for lane in &group.lanes {
        crate::fail::point("lane.breaker.commit");
        with!(tx.on(), c => sqlx::query(
            "UPDATE lanes SET breaker_opened_at = $2, breaker_openings = $3, failing_since = $4 WHERE number = $1",
        ).bind(lane.number).bind(lane.breaker_opened_at).bind(lane.breaker_openings).bind(lane.failing_since).execute(c).await.map(drop))?;
    }
    let released = release(&mut tx, group).await?;
    crate::fail::point("lane.record.commit");
    tx.commit().await?;
    crate::fail::point("lane.record.committed");
    Ok(Found { released, repeated: repeated(store, &group.inserts, inserted).await? })
}

/// Records a plain group in one trip to the store, a transaction of its own; gives how many of the deliveries it didn't have.
/// None where there are too many: nothing was written then.
async fn at_once(kept: &mut Engine<Writer, Kept>, group: &Group, sealed: &Sealed) -> Result<Option<usize>> {
    match kept {
        Engine::Sqlite(_) if group.inserts.len().max(group.attempts.len()) > AT_ONCE_MAX => Ok(None),
        Engine::Sqlite(writer) => {
            let mut query = QueryBuilder::new("BEGIN IMMEDIATE; ");
            delivery_values(&mut query, &group.inserts.iter().zip(&sealed.contents).collect::<Vec<_>>());
            query.push(" RETURNING id");
            if !group.attempts.is_empty() {
                query.push("; ");
                attempt_values(&mut query, &group.attempts.iter().zip(&sealed.responses).collect::<Vec<_>>());
            }
            query.push("; COMMIT");
            crate::fail::point("lane.record.commit");
            Ok(Some(writer.run_whole(query).await?.len()))
        }
        Engine::Postgres(kept) => {
            let mut connection = kept.take().await?;
            crate::fail::point("lane.record.commit");
            let inserted = insert(Engine::Postgres(&mut connection), group, sealed).await?;
            kept.put_back(connection);
            Ok(Some(inserted))
        }
    }
}

/// Contents of the rows that may still be sent, and the answers' bodies, sealed with their organizations' data keys.
struct Sealed {
    contents: Vec<Option<Vec<u8>>>,
    responses: Vec<Option<Vec<u8>>>,
}

async fn seal(keys: &DataKeys, group: &Group) -> Result<Sealed> {
    let mut contents = Vec::with_capacity(group.inserts.len());
    for Insert { delivery, end, .. } in &group.inserts {
        let keep = !matches!(end.state, State::Delivered | State::Cancelled);
        contents.push(match keep {
            true => Some(keys.of(&delivery.organization).await?.seal(&content_aad(delivery.id), &delivery.content)),
            false => None,
        });
    }
    let mut responses = Vec::with_capacity(group.attempts.len());
    for row in &group.attempts {
        responses.push(match row.response.is_empty() {
            true => None,
            false => Some(keys.of(&row.organization).await?.seal(&response_aad(row.delivery), &row.response)),
        });
    }
    Ok(Sealed { contents, responses })
}

pub(super) fn content_aad(delivery: i64) -> Vec<u8> {
    format!("deliveries|content|{delivery}").into_bytes()
}

pub(super) fn response_aad(delivery: i64) -> Vec<u8> {
    format!("attempts|response|{delivery}").into_bytes()
}

/// Writes new deliveries and attempts; gives how many of the deliveries the store didn't have.
async fn insert(
    on: Engine<&mut SqliteConnection, &mut PgConnection>,
    Group { inserts, attempts, .. }: &Group,
    Sealed { contents, responses }: &Sealed,
) -> Result<usize> {
    if inserts.is_empty() && attempts.is_empty() {
        return Ok(0);
    }
    // A commit whose answer was lost is tried again: the second time finds its rows there. The attempt of a delivery that
    // was another's repeat belongs to no row.
    match on {
        Engine::Sqlite(connection) => {
            let mut inserted = 0;
            for part in store::parts(&inserts.iter().zip(contents).collect::<Vec<_>>()) {
                let mut query = QueryBuilder::new("");
                delivery_values(&mut query, part);
                inserted += query.build().execute(&mut *connection).await?.rows_affected();
            }
            for part in store::parts(&attempts.iter().zip(responses).collect::<Vec<_>>()) {
                let mut query = QueryBuilder::new("");
                attempt_values(&mut query, part);
                query.build().execute(&mut *connection).await?;
            }
            Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
        }
        Engine::Postgres(connection) => {
            let d = || inserts.iter().map(|row| &row.delivery);
            let end = || inserts.iter().map(|row| &row.end);
            // What a statement inserts, another part of it doesn't see but by what is returned.
            let query = sqlx::query_scalar(
                "WITH inserted AS (
                     INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state,
                         origin, attempts, reopened_after, next_at, created_at, finished_at, status_code, reason, content)
                     SELECT id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state,
                         origin, attempts, 0, next_at, created_at, finished_at, status_code, reason, content
                     FROM UNNEST($1::bigint[], $2::bigint[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::bigint[],
                         $9::bigint[], $10::text[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[],
                         $17::bytea[]) AS t (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state,
                         origin, attempts, next_at, created_at, finished_at, status_code, reason, content)
                     ON CONFLICT (event, lane) DO NOTHING RETURNING id
                 ), tried AS (
                     INSERT INTO attempts (delivery, number, lane, started_at, duration, status_code, outcome, error, response)
                     SELECT * FROM UNNEST($18::bigint[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $23::bigint[],
                         $24::text[], $25::text[], $26::bytea[])
                         AS t (delivery, number, lane, started_at, duration, status_code, outcome, error, response)
                     WHERE delivery IN (SELECT id FROM inserted UNION ALL SELECT id FROM deliveries WHERE id = ANY($18))
                     ON CONFLICT (delivery, number) DO NOTHING
                 )
                 SELECT COUNT(*) FROM inserted",
            )
            .bind(d().map(|d| d.id).collect::<Vec<_>>())
            .bind(d().map(|d| d.lane).collect::<Vec<_>>())
            .bind(d().map(|d| d.organization.as_str()).collect::<Vec<_>>())
            .bind(d().map(|d| &d.event[..]).collect::<Vec<_>>())
            .bind(d().map(|d| d.event_id.as_str()).collect::<Vec<_>>())
            .bind(d().map(|d| d.event_type.as_str()).collect::<Vec<_>>())
            .bind(d().map(|d| d.ordering_key.as_str()).collect::<Vec<_>>())
            .bind(d().map(|d| d.priority).collect::<Vec<_>>())
            .bind(end().map(|end| end.state as i64).collect::<Vec<_>>())
            .bind(d().map(|d| d.origin.as_str()).collect::<Vec<_>>())
            .bind(end().map(|end| i64::from(end.attempts)).collect::<Vec<_>>())
            .bind(end().map(|end| end.next_at).collect::<Vec<_>>())
            .bind(d().map(|d| d.created_at).collect::<Vec<_>>())
            .bind(end().map(|end| end.finished_at).collect::<Vec<_>>())
            .bind(end().map(|end| end.status_code).collect::<Vec<_>>())
            .bind(end().map(|end| end.reason.as_str()).collect::<Vec<_>>())
            .bind(contents)
            .bind(attempts.iter().map(|row| row.delivery).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| i64::from(row.number)).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| row.lane).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| row.started_at).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| row.duration).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| row.status_code).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| row.outcome).collect::<Vec<_>>())
            .bind(attempts.iter().map(|row| row.error.as_str()).collect::<Vec<_>>())
            .bind(responses);
            let inserted: i64 = store::answered(query.fetch_one(connection)).await?;
            Ok(usize::try_from(inserted).unwrap_or(0))
        }
    }
}

fn delivery_values(query: &mut QueryBuilder<Sqlite>, rows: &[(&Insert, &Option<Vec<u8>>)]) {
    query.push(
        "INSERT OR FAIL INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state,
             origin, attempts, reopened_after, next_at, created_at, finished_at, status_code, reason, content) ",
    );
    query.push_values(rows, |mut row, (Insert { delivery: d, end, .. }, content)| {
        row.push_bind(d.id)
            .push_bind(d.lane)
            .push_bind(d.organization.as_str())
            .push_bind(&d.event[..])
            .push_bind(d.event_id.as_str())
            .push_bind(d.event_type.as_str())
            .push_bind(d.ordering_key.as_str())
            .push_bind(d.priority)
            .push_bind(end.state as i64)
            .push_bind(d.origin.as_str())
            .push_bind(i64::from(end.attempts))
            .push("0")
            .push_bind(end.next_at)
            .push_bind(d.created_at)
            .push_bind(end.finished_at)
            .push_bind(end.status_code)
            .push_bind(end.reason.as_str())
            .push_bind(content.as_deref());
    });
    query.push(" ON CONFLICT (event, lane) DO NOTHING");
}

fn attempt_values(query: &mut QueryBuilder<Sqlite>, rows: &[(&AttemptRow, &Option<Vec<u8>>)]) {
    query.push(
        "INSERT OR FAIL INTO attempts (delivery, number, lane, started_at, duration, status_code, outcome, error, response)
         SELECT * FROM (",
    );
    query.push_values(rows, |mut values, (row, response)| {
        values
            .push_bind(row.delivery)
            .push_bind(i64::from(row.number))
            .push_bind(row.lane)
            .push_bind(row.started_at)
            .push_bind(row.duration)
            .push_bind(row.status_code)
            .push_bind(row.outcome)
            .push_bind(row.error.as_str())
            .push_bind(response.as_deref());
    });
    query.push(
        ") AS t WHERE EXISTS (SELECT 1 FROM deliveries WHERE id = t.column1) ON CONFLICT (delivery, number) DO NOTHING",
    );
}

/// Which of these, of which so many were new to it, the store has under another id.
async fn repeated(store: &Store, rows: &[Insert], inserted: usize) -> Result<Vec<i64>> {
    if inserted == rows.len() {
        return Ok(Vec::new());
    }
    let (these, ids) = store.reader().any_of("$1", rows.iter().map(|row| row.delivery.id));
    let text = format!("SELECT id FROM deliveries WHERE id {these}");
    let written: Vec<i64> = with!(store.reader(), c => sqlx::query_scalar(sqlx::AssertSqlSafe(text.as_str()))
        .bind(&ids).fetch_all(c).await)?;
    let written = HashSet::<i64>::from_iter(written);
    let mut repeated = Vec::new();
    for Insert { delivery, .. } in rows.iter().filter(|row| !written.contains(&row.delivery.id)) {
        let stored: Option<i64> = with!(store.reader(), c => sqlx::query_scalar("SELECT id FROM deliveries WHERE event = $1 AND lane = $2")
            .bind(&delivery.event[..]).bind(delivery.lane).fetch_optional(c).await)?;
        // Whatever answered for it, nothing may be acknowledged that isn't there.
        if stored.is_none() {
            return Err(Error::internal(anyhow!("delivery {} was committed and isn't there", delivery.id)));
        }
        repeated.push(delivery.id);
    }
    Ok(repeated)
}

async fn update_deliveries(tx: &mut Tx, rows: &[Update]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    // A row that was cancelled while its attempt ran stays cancelled, unless the message arrived after all.
    match tx.on() {
        Engine::Sqlite(connection) => {
            for part in store::parts(rows) {
                let mut query = QueryBuilder::new(
                    "UPDATE OR FAIL deliveries SET state = t.column2, attempts = t.column3, next_at = t.column4, finished_at = t.column5,
                         status_code = t.column6, reason = t.column7,
                         content = CASE WHEN t.column2 = 3 THEN NULL ELSE content END FROM (",
                );
                query.push_values(part, |mut row, Update { id, end }| {
                    row.push_bind(*id)
                        .push_bind(end.state as i64)
                        .push_bind(i64::from(end.attempts))
                        .push_bind(end.next_at)
                        .push_bind(end.finished_at)
                        .push_bind(end.status_code)
                        .push_bind(end.reason.as_str());
                });
                query.push(") AS t WHERE deliveries.id = t.column1 AND (deliveries.state <> 5 OR t.column2 = 3)");
                query.build().execute(&mut *connection).await?;
            }
        }
        Engine::Postgres(connection) => {
            let end = || rows.iter().map(|row| &row.end);
            let query = sqlx::query(
                "UPDATE deliveries SET state = t.state, attempts = t.attempts, next_at = t.next_at, finished_at = t.finished_at,
                     status_code = t.status_code, reason = t.reason,
                     content = CASE WHEN t.state = 3 THEN NULL ELSE content END
                 FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[])
                     AS t (id, state, attempts, next_at, finished_at, status_code, reason)
                 WHERE deliveries.id = t.id AND (deliveries.state <> 5 OR t.state = 3)",
            )
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
            .bind(end().map(|end| end.state as i64).collect::<Vec<_>>())
            .bind(end().map(|end| i64::from(end.attempts)).collect::<Vec<_>>())
            .bind(end().map(|end| end.next_at).collect::<Vec<_>>())
            .bind(end().map(|end| end.finished_at).collect::<Vec<_>>())
            .bind(end().map(|end| end.status_code).collect::<Vec<_>>())
            .bind(end().map(|end| end.reason.as_str()).collect::<Vec<_>>());
            store::answered(query.execute(connection)).await?;
        }
    }
    Ok(())
}

/// Puts these new deliveries behind their predecessors of the same key.
const BLOCK: &str = "UPDATE deliveries SET state = 2 WHERE id {these} AND state = 0 AND EXISTS (SELECT 1 FROM deliveries AS earlier
         WHERE earlier.lane = deliveries.lane AND earlier.ordering_key = deliveries.ordering_key AND earlier.state IN (0, 1, 2)
             AND earlier.id < deliveries.id)";

/// Raises the predecessors of these to their priority. SQLite keeps the order of a cross join.
const RAISE: &str = "UPDATE deliveries SET priority = raised.priority
     FROM (SELECT earlier.id, MIN(later.priority) AS priority FROM deliveries AS later CROSS JOIN deliveries AS earlier
         WHERE later.id {these} AND earlier.lane = later.lane AND earlier.ordering_key = later.ordering_key
             AND earlier.state IN (0, 1, 2) AND earlier.id < later.id AND earlier.priority > later.priority
         GROUP BY earlier.id) AS raised
     WHERE deliveries.id = raised.id";

/// Runs a statement on these deliveries, if there are any.
async fn on_these(tx: &mut Tx, text: &str, ids: Vec<i64>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let (these, ids) = tx.on().any_of("$1", ids);
    let text = text.replace("{these}", &these);
    with!(tx.on(), c => sqlx::query(sqlx::AssertSqlSafe(text.as_str())).bind(&ids).execute(c).await.map(drop))?;
    Ok(())
}

/// Gives new deliveries of ordered lanes their place among those of the same key.
async fn block(tx: &mut Tx, inserts: &[Insert]) -> Result<()> {
    let behind = || inserts.iter().filter(|row| row.may_be_behind).map(|row| &row.delivery);
    on_these(tx, BLOCK, behind().map(|delivery| delivery.id).collect()).await?;
    // The last of a key and a priority is behind all that the others of them are behind.
    let last: BTreeMap<_, i64> =
        behind().map(|delivery| ((delivery.lane, &*delivery.ordering_key, delivery.priority), delivery.id)).collect();
    on_these(tx, RAISE, last.into_values().collect()).await
}

/// Lets the first blocked delivery of each of these keys go, where none of the key is still on its way; gives their lanes.
/// The repeated condition lets SQLite see that its partial index serves.
const RELEASE: &str = "UPDATE deliveries SET state = 0
     WHERE id IN (SELECT (SELECT MIN(id) FROM deliveries AS blocked
             WHERE blocked.lane = keys.lane AND blocked.ordering_key = keys.ordering_key AND blocked.state = 2)
         FROM (SELECT CAST(value ->> 0 AS BIGINT) AS lane, value ->> 1 AS ordering_key FROM {each}) AS keys
         WHERE NOT EXISTS (SELECT 1 FROM deliveries AS active WHERE active.lane = keys.lane
             AND active.ordering_key = keys.ordering_key AND active.state <> 2 AND active.state IN (0, 1, 2)))
     RETURNING lane";

/// Lets go what was blocked behind what has ended; gives the lanes where something was released.
async fn release(tx: &mut Tx, group: &Group) -> Result<Vec<i64>> {
    let mut released: Vec<i64> = Vec::new();
    if !group.releases.is_empty() {
        let keys = serde_json::json!(group.releases).to_string();
        let each = match tx.on() {
            Engine::Sqlite(_) => "json_each($1)",
            Engine::Postgres(_) => "json_array_elements($1::json)",
        };
        let text = RELEASE.replace("{each}", each);
        released =
            with!(tx.on(), c => sqlx::query_scalar(sqlx::AssertSqlSafe(text.as_str())).bind(&keys).fetch_all(c).await)?;
    }
    for lane in &group.unordered {
        let freed = with!(tx.on(), c => sqlx::query("UPDATE deliveries SET state = 0 WHERE lane = $1 AND state = 2")
            .bind(lane).execute(c).await.map(|done| done.rows_affected()))?;
        released.extend((freed > 0).then_some(*lane));
    }
    released.sort_unstable();
    released.dedup();
    Ok(released)
}
