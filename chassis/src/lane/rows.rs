//! Lanes, deliveries and attempts as the store holds them: what the dispatcher loads, and what services list and change.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    delivery::{Delivery, State},
    limit::WINDOW_MICROS,
    recorder::{content_aad, response_aad},
};
use crate::{
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys},
    store::{Store, Tx},
    with,
};

/// What the dispatcher must know of a lane when it starts.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub(super) breaker_opened_at: Option<i64>,
    pub(super) breaker_openings: u32,
    pub(super) failing_since: Option<i64>,
    /// As [`take_over`] would take it.
    pub(super) repeatable: bool,
    /// The most urgent priority among the deliveries that are not final; none: there are none.
    pub(super) most_urgent: Option<i64>,
    /// What may be missing from the record.
    pub(super) deaths: Deaths,
    /// Times of the attempts in the last window, oldest first.
    pub(super) recent: Vec<i64>,
}

/// Finds the lane of a destination, or makes it.
pub(super) async fn lane(store: &Store, id: &str, organization: &OrganizationId) -> Result<i64> {
    loop {
        let found = with!(store.reader(), c => sqlx::query_scalar("SELECT number FROM lanes WHERE id = $1").bind(id).fetch_optional(c).await)?;
        if let Some(number) = found {
            return Ok(number);
        }
        // Another lane may be made at the same time and take the number: then this one tries the next.
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO lanes (number, id, organization_id, breaker_openings) SELECT COALESCE(MAX(number), 0) + 1, $1, $2, 0 FROM lanes
             WHERE TRUE ON CONFLICT DO NOTHING",
        ).bind(id).bind(organization.as_str()).execute(c).await.map(drop))?;
    }
}

/// Notes whether what a crash interrupts in this lane may be tried again.
pub(super) async fn set_repeatable(store: &Store, lane: i64, repeatable: bool) -> Result<()> {
    with!(store.writer(), c => sqlx::query("UPDATE lanes SET repeatable = $2 WHERE number = $1")
        .bind(lane).bind(i64::from(repeatable)).execute(c).await.map(drop))?;
    Ok(())
}

pub(super) async fn remembered(store: &Store, lane: i64, limit: u32, window_start: i64) -> Result<Remembered> {
    let (breaker_opened_at, openings, failing_since, repeatable): (Option<i64>, i64, Option<i64>, i64) = with!(store.reader(), c => sqlx::query_as(
        "SELECT breaker_opened_at, breaker_openings, failing_since, repeatable FROM lanes WHERE number = $1",
    ).bind(lane).fetch_one(c).await)?;
    let most_urgent: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT MIN(priority) FROM deliveries WHERE lane = $1 AND state IN (0, 1, 2)",
    ).bind(lane).fetch_one(c).await)?;
    let mut recent: Vec<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT started_at FROM attempts WHERE lane = $1 AND started_at > $2 ORDER BY started_at DESC LIMIT $3",
    ).bind(lane).bind(window_start).bind(i64::from(limit)).fetch_all(c).await)?;
    recent.reverse();
    Ok(Remembered {
        breaker_opened_at,
        breaker_openings: u32::try_from(openings).unwrap_or(0),
        failing_since,
        repeatable: repeatable != 0,
        deaths: Deaths::default(),
        most_urgent,
        recent,
    })
}

/// Processes that died, each within a window of the start after it: their last attempts may be missing from the record.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deaths {
    pub(super) number: u32,
    /// When this process started: whatever they attempted, they attempted before.
    pub(super) before: i64,
}

/// Takes the store over from an earlier process: says what may be missing from the record, and what to number from.
///
/// What it left as `sending` is unknown: it waits again in a lane that is repeatable, else it stays unknown.
/// What it left blocked behind nothing goes.
pub(super) async fn take_over(store: &Store, now: i64) -> Result<(Deaths, i64)> {
    let before: Option<(i64, i64, i64)> = with!(store.reader(), c => sqlx::query_as("SELECT stopped_cleanly, started_at, deaths FROM lane_owner")
        .fetch_optional(c).await)?;
    let deaths = before.map_or(0, |(clean, started_at, deaths)| {
        let lasting = if started_at > now - WINDOW_MICROS { deaths } else { 0 };
        if clean == 1 { lasting } else { lasting + 1 }
    });
    let mut tx = store.begin().await?;
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO lane_owner (id, stopped_cleanly, started_at, deaths) VALUES (1, 0, $1, $2)
         ON CONFLICT (id) DO UPDATE SET stopped_cleanly = 0, started_at = excluded.started_at, deaths = excluded.deaths",
    ).bind(now).bind(deaths).execute(c).await.map(drop))?;
    for (repeatable, state, finished_at, reason) in [
        (1, State::Waiting, None, "the process stopped while it was sent"),
        (0, State::Unknown, Some(now), "the process stopped while it was sent; it may have arrived"),
    ] {
        with!(tx.on(), c => sqlx::query(
            "UPDATE deliveries SET state = $1, next_at = $2, finished_at = $3, reason = $4
             WHERE state = 1 AND lane IN (SELECT number FROM lanes WHERE repeatable = $5)",
        ).bind(state as i64).bind(now).bind(finished_at).bind(reason).bind(repeatable).execute(c).await.map(drop))?;
    }
    release_first_of_each_key(&mut tx, 0, i64::MAX).await?;
    crate::fail::point("lane.take_over.commit");
    tx.commit().await?;
    let last: i64 = with!(store.reader(), c => sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM deliveries").fetch_one(c).await)?;
    Ok((Deaths { number: u32::try_from(deaths).unwrap_or(u32::MAX), before: now }, last))
}

/// Notes that nothing was under way when the process stopped.
pub(super) async fn stopped_cleanly(store: &Store) -> Result<()> {
    with!(store.writer(), c => sqlx::query("UPDATE lane_owner SET stopped_cleanly = 1").execute(c).await.map(drop))?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct DueRow {
    id: i64,
    organization_id: String,
    event: Vec<u8>,
    event_id: String,
    event_type: String,
    ordering_key: String,
    priority: i64,
    origin: String,
    attempts: i64,
    reopened_after: i64,
    created_at: i64,
    content: Option<Vec<u8>>,
}

/// What a look into a lane found.
#[derive(Debug)]
pub(super) struct Due {
    /// Most urgent first, then those that are due longest.
    pub(super) deliveries: Vec<Delivery>,
    /// Those whose content can't be opened: no attempt can ever be made of them.
    pub(super) unreadable: Vec<Delivery>,
    /// The priority of the next one, where there are more than were asked for.
    pub(super) more: Option<i64>,
    /// When the next one is due that wasn't yet, and its priority; not looked for where there is more.
    pub(super) next: Option<(i64, i64)>,
}

/// When the next delivery of a lane is due, after a time, and its priority: the first of each priority is looked up.
const NEXT: &str = "SELECT next_at, priority FROM (SELECT priority, (SELECT next_at FROM deliveries
         WHERE lane = $1 AND deliveries.priority = priorities.priority AND state = 0 AND next_at > $2 ORDER BY next_at LIMIT 1) AS next_at
         FROM (SELECT CAST(1 AS BIGINT) AS priority UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4) AS priorities) AS firsts
     WHERE next_at IS NOT NULL ORDER BY next_at, priority LIMIT 1";

/// Up to `limit` deliveries of a lane that are due at `now`, without those that are `known`.
pub(super) async fn due(
    store: &Store,
    keys: &DataKeys,
    (lane, lane_id): (i64, &Arc<str>),
    known: &HashSet<i64>,
    now: i64,
    limit: usize,
) -> Result<Due> {
    let (known, ids) = store.reader().any_of("$4", known.iter().copied());
    // One index range per priority: the index (lane, priority, next_at) gives each in order without sorting.
    let of = |priority| {
        format!(
            "SELECT * FROM (SELECT id, organization_id, event, event_id, event_type, ordering_key, priority, origin, attempts,
                 reopened_after, next_at, created_at, content FROM deliveries
             WHERE lane = $1 AND priority = {priority} AND state = 0 AND next_at <= $2 AND NOT id {known}
             ORDER BY next_at, id LIMIT $3) AS of_{priority}"
        )
    };
    let text =
        format!("{} ORDER BY priority, next_at, id LIMIT $3", (1..=4).map(of).collect::<Vec<_>>().join(" UNION ALL "));
    let asked = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows: Vec<DueRow> = with!(store.reader(), c => sqlx::query_as(sqlx::AssertSqlSafe(text.as_str()))
        .bind(lane).bind(now).bind(asked).bind(&ids).fetch_all(c).await)?;
    let more = rows.get(limit).map(|row| row.priority);
    rows.truncate(limit);
    let (mut deliveries, mut unreadable) = (Vec::new(), Vec::new());
    for row in rows {
        match open(keys, lane, lane_id, row).await? {
            (delivery, true) => deliveries.push(delivery),
            (delivery, false) => unreadable.push(delivery),
        }
    }
    let next = match more {
        // Another look comes first.
        Some(_) => None,
        None => with!(store.reader(), c => sqlx::query_as(NEXT).bind(lane).bind(now).fetch_optional(c).await)?,
    };
    Ok(Due { deliveries, unreadable, more, next })
}

/// The delivery of a row, and whether its content could be opened.
async fn open(keys: &DataKeys, lane: i64, lane_id: &Arc<str>, row: DueRow) -> Result<(Delivery, bool)> {
    let organization = OrganizationId::parse(&row.organization_id)?;
    let key = keys.of(&organization).await?;
    let content = row.content.and_then(|sealed| key.open(&content_aad(row.id), &sealed).ok());
    let readable = content.is_some();
    let event = row
        .event
        .try_into()
        .map_err(|_| Error::internal(anyhow::anyhow!("delivery {} has a malformed event uid", row.id)))?;
    let delivery = Delivery {
        id: row.id,
        lane,
        lane_id: lane_id.clone(),
        organization,
        event,
        event_id: row.event_id,
        event_type: row.event_type,
        ordering_key: row.ordering_key,
        priority: row.priority,
        origin: row.origin,
        attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
        reopened_after: u32::try_from(row.reopened_after).unwrap_or(0),
        created_at: row.created_at,
        content: Bytes::from(content.unwrap_or_default()),
    };
    Ok((delivery, readable))
}

/// What waits in a lane is due now.
pub(super) async fn hasten(store: &Store, lane: i64, now: i64) -> Result<u64> {
    let hastened = with!(store.writer(), c => sqlx::query("UPDATE deliveries SET next_at = $2 WHERE lane = $1 AND state = 0 AND next_at > $2")
        .bind(lane).bind(now).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(hastened)
}

/// Whether an event was handled before: its deliveries were fixed then.
pub(super) async fn is_known(store: &Store, event: &[u8; 16]) -> Result<bool> {
    let found: Option<i64> = with!(store.reader(), c => sqlx::query_scalar("SELECT id FROM deliveries WHERE event = $1 LIMIT 1")
        .bind(&event[..]).fetch_optional(c).await)?;
    Ok(found.is_some())
}

/// A delivery as it is shown.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Record {
    /// Newer ones have higher ids.
    pub id: i64,
    /// Of its destination.
    pub lane_id: String,
    /// The event's uid, 16 bytes.
    pub event: Vec<u8>,
    /// The event's idempotency key.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Its order's key.
    pub ordering_key: String,
    /// 1 CRITICAL to 4 LOW.
    pub priority: i64,
    /// A [`State`]'s number.
    pub state: i64,
    /// Attempts that have ended.
    pub attempts: i64,
    /// When the next attempt is due, for those that wait.
    pub next_at: i64,
    /// Microseconds since the Unix epoch.
    pub created_at: i64,
    /// When it came to its end, if it did.
    pub finished_at: Option<i64>,
    /// Of the last attempt.
    pub status_code: Option<i64>,
    /// Why it is where it is, in plain words.
    pub reason: String,
}

/// Which deliveries to list: of one organization, newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of one destination.
    pub lane_id: Option<String>,
    /// In these states; empty: all.
    pub states: Vec<State>,
    /// Of one event, by idempotency key.
    pub event_id: Option<String>,
    /// Of one event, by uid.
    pub event: Option<[u8; 16]>,
    /// Made at or after, microseconds.
    pub since: Option<i64>,
    /// Made before, microseconds.
    pub until: Option<i64>,
    /// Only older ones than this id: where the page before ended.
    pub before: Option<i64>,
}

/// Lists up to `limit` deliveries.
///
/// # Errors
/// Those of the store.
pub async fn list(store: &Store, organization: &OrganizationId, filter: &Filter, limit: u32) -> Result<Vec<Record>> {
    // States as digits in one text, since an array is no type that both engines have.
    let states: String = filter.states.iter().map(|state| (*state as i64).to_string()).collect();
    let text = listing(filter);
    let rows = with!(store.reader(), c => sqlx::query_as(sqlx::AssertSqlSafe(text.as_str()))
    .bind(organization.as_str())
    .bind(filter.before.unwrap_or(i64::MAX))
    .bind(filter.lane_id.as_deref().unwrap_or_default())
    .bind(states)
    .bind(filter.event_id.as_deref().unwrap_or_default())
    .bind(filter.event.map(|uid| uid.to_vec()))
    .bind(filter.since.unwrap_or(i64::MIN))
    .bind(filter.until.unwrap_or(i64::MAX))
    .bind(i64::from(limit))
    .fetch_all(c).await)?;
    Ok(rows)
}

/// How deliveries are found: an index serves each way, the event's, the lane's (by state) or the organization's.
pub(super) fn listing(filter: &Filter) -> String {
    let wanted = "id < $2 AND ($5 = '' OR event_id = $5) AND created_at >= $7 AND created_at < $8";
    let owned = match (filter.event, &filter.lane_id) {
        (Some(_), _) => format!("event = $6 AND l.organization_id = $1 AND ($3 = '' OR l.id = $3) AND d.{wanted}"),
        (None, Some(_)) => {
            let states = if filter.states.is_empty() { &State::ALL[..] } else { &filter.states };
            let of_state = |state: &State| {
                format!(
                    "SELECT id FROM (SELECT id FROM deliveries
                         WHERE lane = (SELECT number FROM lanes WHERE id = $3 AND organization_id = $1) AND state = {} AND {wanted}
                         ORDER BY id DESC LIMIT $9) AS found",
                    *state as i64
                )
            };
            let found: Vec<_> = states.iter().map(of_state).collect();
            format!("$6 IS NULL AND d.id IN ({})", found.join(" UNION ALL "))
        }
        (None, None) => format!("d.organization_id = $1 AND $3 = '' AND $6 IS NULL AND d.{wanted}"),
    };
    format!(
        "SELECT d.id, l.id AS lane_id, event, event_id, event_type, ordering_key, priority, state, attempts, next_at, created_at,
             finished_at, status_code, reason
         FROM deliveries AS d JOIN lanes AS l ON l.number = d.lane
         WHERE {owned} AND ($4 = '' OR REPLACE($4, CAST(state AS TEXT), '') <> $4)
         ORDER BY d.id DESC LIMIT $9"
    )
}

/// One delivery.
///
/// # Errors
/// `Error::NotFound` when the organization has none of this id.
pub async fn get(store: &Store, organization: &OrganizationId, id: i64) -> Result<Record> {
    let filter = Filter { before: Some(id.saturating_add(1)), ..Filter::default() };
    let found = list(store, organization, &filter, 1).await?.into_iter().find(|record| record.id == id);
    found.ok_or_else(|| Error::NotFound("delivery".into()))
}

/// An attempt as it is shown.
#[derive(Clone, Debug)]
pub struct AttemptRecord {
    /// 1 for the first.
    pub number: i64,
    /// Microseconds since the Unix epoch.
    pub started_at: i64,
    /// Microseconds.
    pub duration: i64,
    /// Of the answer, where one came.
    pub status_code: Option<i64>,
    /// `delivered`, or what went wrong in one word.
    pub outcome: String,
    /// In plain words.
    pub error: String,
    /// The beginning of the answer's body.
    pub response: Vec<u8>,
}

/// The beginning of an answer, as an attempt of this delivery keeps it.
///
/// # Errors
/// One that was sealed for something else.
pub fn open_response(key: &DataKey, delivery: i64, sealed: &[u8]) -> Result<Vec<u8>> {
    key.open(&response_aad(delivery), sealed)
}

/// What a delivery says, as the store keeps it.
///
/// # Errors
/// One that was sealed for something else.
pub fn open_content(key: &DataKey, delivery: i64, sealed: &[u8]) -> Result<Bytes> {
    key.open(&content_aad(delivery), sealed).map(Bytes::from)
}

/// Every attempt of a delivery, oldest first.
///
/// # Errors
/// `Error::NotFound` when the organization has no such delivery.
pub async fn attempts(
    store: &Store,
    keys: &DataKeys,
    organization: &OrganizationId,
    delivery: i64,
) -> Result<Vec<AttemptRecord>> {
    get(store, organization, delivery).await?;
    type Row = (i64, i64, i64, Option<i64>, String, String, Option<Vec<u8>>);
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT number, started_at, duration, status_code, outcome, error, response FROM attempts WHERE delivery = $1 ORDER BY number LIMIT 1000",
    ).bind(delivery).fetch_all(c).await)?;
    let key = keys.of(organization).await?;
    rows.into_iter()
        .map(|(number, started_at, duration, status_code, outcome, error, response)| {
            let response =
                response.map(|sealed| key.open(&response_aad(delivery), &sealed)).transpose()?.unwrap_or_default();
            Ok(AttemptRecord { number, started_at, duration, status_code, outcome, error, response })
        })
        .collect()
}

/// Counts and latencies of one lane.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Deliveries by state, of those made since the time asked for.
    pub states: Vec<(State, u64)>,
    /// Deliveries that wait now, by priority.
    pub waiting: Vec<(i64, u64)>,
    /// Attempts since the time asked for.
    pub attempts: u64,
    /// Of those, how many failed.
    pub failed_attempts: u64,
    /// Of the successful ones.
    pub latency_p50: Duration,
    /// Of the successful ones.
    pub latency_p99: Duration,
    /// Microseconds since the Unix epoch.
    pub last_success_at: Option<i64>,
    /// When the oldest that waits was made.
    pub oldest_waiting_at: Option<i64>,
}

pub(super) const COUNTS: &str =
    "SELECT state, priority, COUNT(*), COUNT(CASE WHEN created_at >= $2 THEN 1 END), MIN(created_at)
     FROM deliveries WHERE lane = $1 GROUP BY state, priority";

/// How a lane did since `since`. Latencies are of the last 10,000 successful attempts.
///
/// # Errors
/// Those of the store.
pub async fn statistics(store: &Store, lane_id: &str, since: Timestamp) -> Result<Statistics> {
    let since = since.as_microsecond();
    let lane: Option<i64> = with!(store.reader(), c => sqlx::query_scalar("SELECT number FROM lanes WHERE id = $1")
        .bind(lane_id).fetch_optional(c).await)?;
    let Some(lane) = lane else { return Ok(Statistics::default()) };
    // State, priority, how many, how many of them since then, when the first was made: read from one index.
    type Group = (i64, i64, i64, i64, i64);
    let groups: Vec<Group> =
        with!(store.reader(), c => sqlx::query_as(COUNTS).bind(lane).bind(since).fetch_all(c).await)?;
    let (attempts, succeeded, last_success_at): (i64, i64, Option<i64>) = with!(store.reader(), c => sqlx::query_as(
        "SELECT COUNT(*), COUNT(CASE WHEN outcome = 'delivered' THEN 1 END), MAX(CASE WHEN outcome = 'delivered' THEN started_at END)
         FROM attempts WHERE lane = $1 AND started_at >= $2",
    ).bind(lane).bind(since).fetch_one(c).await)?;
    let mut durations: Vec<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT duration FROM attempts WHERE lane = $1 AND started_at >= $2 AND outcome = 'delivered' ORDER BY started_at DESC LIMIT 10000",
    ).bind(lane).bind(since).fetch_all(c).await)?;
    durations.sort_unstable();
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let quantile = |part: usize| {
        durations
            .get(durations.len() * part / 100)
            .map_or(Duration::ZERO, |micros| Duration::from_micros(count(*micros)))
    };
    let (mut states, mut waiting) = (BTreeMap::new(), BTreeMap::new());
    for (state, priority, all, recent, _) in &groups {
        *states.entry(*state).or_default() += count(*recent);
        if waits(*state) {
            *waiting.entry(*priority).or_default() += count(*all);
        }
    }
    Ok(Statistics {
        states: states
            .into_iter()
            .filter_map(|(state, number)| Some((State::from_number(state)?, number)))
            .filter(|(_, number)| *number > 0)
            .collect(),
        waiting: waiting.into_iter().collect(),
        attempts: count(attempts),
        failed_attempts: count(attempts - succeeded),
        latency_p50: quantile(50),
        latency_p99: quantile(99),
        last_success_at,
        oldest_waiting_at: groups.iter().filter(|(state, ..)| waits(*state)).map(|(.., first)| *first).min(),
    })
}

/// Whether a delivery of this state is still to be attempted, and not under way.
fn waits(state: i64) -> bool {
    [State::Waiting, State::Blocked].iter().any(|waiting| *waiting as i64 == state)
}

/// How many rows one statement of a bulk change touches, so that no commit waits long behind it.
const STEP: i64 = 500;

/// Ends every delivery of a lane that is not final, as `state`, in small steps. Gives their number.
pub(super) async fn end_all(store: &Store, lane: i64, state: State, reason: &str, now: i64) -> Result<u64> {
    let mut ended = 0;
    loop {
        let step = with!(store.writer(), c => sqlx::query(
            "UPDATE deliveries SET state = $2, reason = $3, finished_at = $4 WHERE id IN
                 (SELECT id FROM deliveries WHERE lane = $1 AND state IN (0, 2) LIMIT $5)",
        ).bind(lane).bind(state as i64).bind(reason).bind(now).bind(STEP).execute(c).await.map(|done| done.rows_affected()))?;
        ended += step;
        if step == 0 {
            return Ok(ended);
        }
    }
}

/// Counts the dead deliveries of a lane made since `since` that [`recover`] would take: what they said is still kept.
pub(super) async fn count_dead(store: &Store, lane: i64, since: i64) -> Result<u64> {
    let dead: i64 = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT COUNT(*) FROM deliveries WHERE lane = $1 AND state = 4 AND created_at >= $2 AND content IS NOT NULL",
    ).bind(lane).bind(since).fetch_one(c).await)?;
    Ok(u64::try_from(dead).unwrap_or(0))
}

/// Lets the dead deliveries of a lane wait again, with a fresh schedule, in small steps. Gives their number.
pub(super) async fn recover(store: &Store, lane: i64, ordered: bool, since: i64, now: i64) -> Result<u64> {
    let state = if ordered { State::Blocked } else { State::Waiting };
    let mut recovered = 0;
    loop {
        let step = with!(store.writer(), c => sqlx::query(
            "UPDATE deliveries SET state = $5, reason = '', finished_at = NULL, next_at = $3, reopened_after = attempts, origin = 'replay'
             WHERE id IN (SELECT id FROM deliveries WHERE lane = $1 AND state = 4 AND created_at >= $2 AND content IS NOT NULL ORDER BY id LIMIT $4)",
        ).bind(lane).bind(since).bind(now).bind(STEP).bind(state as i64).execute(c).await.map(|done| done.rows_affected()))?;
        recovered += step;
        if step == 0 {
            break;
        }
    }
    if ordered {
        let mut tx = store.begin().await?;
        release_first_of_each_key(&mut tx, lane, lane).await?;
        tx.commit().await?;
    }
    Ok(recovered)
}

/// Lets the first blocked delivery of each key in these lanes go, where none of the key is on its way.
async fn release_first_of_each_key(tx: &mut Tx, first_lane: i64, last_lane: i64) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "UPDATE deliveries SET state = 0 WHERE id IN (SELECT MIN(id) FROM deliveries AS blocked
             WHERE lane BETWEEN $1 AND $2 AND state = 2
                 AND NOT EXISTS (SELECT 1 FROM deliveries AS active WHERE active.lane = blocked.lane
                     AND active.ordering_key = blocked.ordering_key AND active.state <> 2 AND active.state IN (0, 1, 2))
             GROUP BY lane, ordering_key)",
    ).bind(first_lane).bind(last_lane).execute(c).await.map(drop))?;
    Ok(())
}

/// Opens one final delivery again with this content: same row, same event, a fresh schedule.
pub(super) async fn reopen(
    store: &Store,
    keys: &DataKeys,
    organization: &OrganizationId,
    id: i64,
    content: &[u8],
    now: i64,
) -> Result<()> {
    let sealed = keys.of(organization).await?.seal(&content_aad(id), content);
    let reopened = with!(store.writer(), c => sqlx::query(
        "UPDATE deliveries SET state = 0, reason = '', finished_at = NULL, next_at = $3, reopened_after = attempts, origin = 'replay', content = $4
         WHERE id = $1 AND organization_id = $2 AND state IN (3, 4, 5, 6)",
    ).bind(id).bind(organization.as_str()).bind(now).bind(sealed).execute(c).await.map(|done| done.rows_affected()))?;
    if reopened == 0 {
        return Err(Error::FailedPrecondition("the delivery is still on its way".into()));
    }
    Ok(())
}
