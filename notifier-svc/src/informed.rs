//! Who knows a fact: what each person was last told of it on each channel, whether it arrived, and who confirmed it.

use chassis::{clock::from_micros, error::Result, id::OrganizationId, lane::State, store::Store, with};
use jiff::Timestamp;

use crate::{
    callback::Stage,
    notification::{Standing, standing},
};

/// Most rows that are shown of one fact: 200 people on seven channels, and some.
const ROWS: i64 = 2_000;

/// What one person was last told on one channel.
#[derive(Debug, Clone)]
pub(crate) struct Informed {
    pub(crate) recipient: String,
    pub(crate) channel: String,
    pub(crate) value: String,
    pub(crate) standing: Standing,
    pub(crate) notification: String,
    pub(crate) told_at: Timestamp,
    pub(crate) acknowledged_at: Option<Timestamp>,
    pub(crate) acknowledged_by: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    recipient_id: String,
    channel: String,
    value: String,
    told_at: i64,
    notification_id: Option<String>,
    fate: Option<i64>,
    cancelled: Option<i64>,
    state: Option<i64>,
    stage: Option<i64>,
    acknowledged_at: Option<i64>,
    acknowledged_by: Option<String>,
}

/// Everybody who was told of a fact, by person and channel.
pub(crate) async fn of(store: &Store, organization: &OrganizationId, fact: &str) -> Result<Vec<Informed>> {
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT f.recipient_id, f.channel, f.value, f.told_at, m.notification_id, COALESCE(k.fate, m.fate) AS fate,
             COALESCE(k.cancelled, m.cancelled) AS cancelled, d.state, r.stage, c.acknowledged_at, c.acknowledged_by
         FROM known_facts AS f LEFT JOIN messages AS m ON m.uid = f.message
         LEFT JOIN messages AS k ON k.uid = m.carried_by
         LEFT JOIN deliveries AS d ON d.event = COALESCE(m.carried_by, m.uid)
         LEFT JOIN receipts AS r ON r.uid = COALESCE(m.carried_by, m.uid)
         LEFT JOIN confirmations AS c ON c.notification_id = m.notification_id AND c.recipient_id = f.recipient_id
         WHERE f.organization_id = $1 AND f.fact = $2 ORDER BY f.recipient_id, f.channel LIMIT $3",
    ).bind(organization.as_str()).bind(fact).bind(ROWS).fetch_all(c).await)?;
    Ok(rows.into_iter().map(shown).collect())
}

fn shown(row: Row) -> Informed {
    let state = row.state.and_then(State::from_number);
    let standing = row.fate.map_or(Standing::Unknown, |fate| standing(fate, row.cancelled == Some(1), state));
    let standing = standing.after(Stage::from_number(row.stage.unwrap_or_default()));
    Informed {
        recipient: row.recipient_id,
        channel: row.channel,
        value: row.value,
        standing,
        notification: row.notification_id.unwrap_or_default(),
        told_at: from_micros(row.told_at),
        acknowledged_at: row.acknowledged_at.map(from_micros),
        acknowledged_by: row.acknowledged_by.unwrap_or_default(),
    }
}
