//! What has waited in a lane for too long: told by key, with what waits, for those who tell people.

use bytes::Bytes;
use jiff::Timestamp;

use super::{delivery::State, recorder::content_aad};
use crate::{clock::from_micros, error::Result, id::OrganizationId, secret::DataKeys, store::Store, with};

/// An ordering key of which deliveries wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// What must stay in order.
    pub ordering_key: String,
    /// Since when the oldest waits.
    pub since: Timestamp,
    /// The newest of those that have waited for too long; newer deliveries have higher ids.
    pub late: i64,
    /// The newest of all that wait.
    pub newest: i64,
}

/// A delivery that waits, with what is to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its id.
    pub id: i64,
    /// In the courier's own form.
    pub content: Bytes,
}

/// Keys of a lane of which a delivery was made before `before` and hasn't come to its end; in their order, at most `limit`
/// after the key `after`.
///
/// # Errors
/// Those of the store.
pub async fn keys(store: &Store, lane_id: &str, before: Timestamp, after: &str, limit: i64) -> Result<Vec<Overdue>> {
    let found: Vec<(String, i64, i64, i64)> = with!(store.reader(), c => sqlx::query_as(
        "SELECT ordering_key, MIN(created_at), MAX(CASE WHEN created_at < $3 THEN id END), MAX(id) FROM deliveries
         WHERE lane = (SELECT number FROM lanes WHERE id = $1) AND state IN (0, 1, 2) AND ordering_key > $2
         GROUP BY ordering_key HAVING MIN(created_at) < $3 ORDER BY ordering_key LIMIT $4",
    ).bind(lane_id).bind(after).bind(before.as_microsecond()).bind(limit).fetch_all(c).await)?;
    let overdue =
        |(ordering_key, since, late, newest)| Overdue { ordering_key, since: from_micros(since), late, newest };
    Ok(found.into_iter().map(overdue).collect())
}

/// What waits for one key of a lane, the newest first, at most `limit`; what can't be opened any more is left out.
///
/// # Errors
/// Those of the store.
pub async fn waiting(
    store: &Store,
    keys: &DataKeys,
    organization: &OrganizationId,
    (lane_id, ordering_key): (&str, &str),
    limit: i64,
) -> Result<Vec<Waiting>> {
    let found: Vec<(i64, Option<Vec<u8>>)> = with!(store.reader(), c => sqlx::query_as(
        "SELECT id, content FROM deliveries WHERE lane = (SELECT number FROM lanes WHERE id = $1 AND organization_id = $2)
         AND state IN (0, 1, 2) AND ordering_key = $3 ORDER BY id DESC LIMIT $4",
    ).bind(lane_id).bind(organization.as_str()).bind(ordering_key).bind(limit).fetch_all(c).await)?;
    let key = keys.of(organization).await?;
    let open = |(id, content): (i64, Option<Vec<u8>>)| {
        let content = Bytes::from(key.open(&content_aad(id), &content?).ok()?);
        Some(Waiting { id, content })
    };
    Ok(found.into_iter().filter_map(open).collect())
}

/// How it ended with the key since the delivery `id`: none while something of then still waits; else the state of the
/// newest that has come to its end.
///
/// # Errors
/// Those of the store.
pub async fn ended(store: &Store, lane_id: &str, ordering_key: &str, id: i64) -> Result<Option<State>> {
    let waits: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT id FROM deliveries WHERE lane = (SELECT number FROM lanes WHERE id = $1)
         AND state IN (0, 1, 2) AND ordering_key = $2 AND id <= $3 LIMIT 1",
    ).bind(lane_id).bind(ordering_key).bind(id).fetch_optional(c).await)?;
    if waits.is_some() {
        return Ok(None);
    }
    let state: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT state FROM deliveries WHERE lane = (SELECT number FROM lanes WHERE id = $1)
         AND ordering_key = $2 AND id >= $3 AND state NOT IN (0, 1, 2) ORDER BY id DESC LIMIT 1",
    ).bind(lane_id).bind(ordering_key).bind(id).fetch_optional(c).await)?;
    Ok(Some(state.and_then(State::from_number).unwrap_or(State::Cancelled)))
}
