//! The rooms and their members as the store holds them.

use std::collections::BTreeSet;

use chassis::{
    clock::from_micros,
    error::Result,
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;

/// How far a room is. The numbers are those of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Stage {
    /// It is to be made.
    Wanted = 0,
    /// It is there, and isn't marked as ours yet.
    Made = 1,
    Open = 2,
    Archived = 3,
}

impl Stage {
    fn from_number(number: i64) -> Self {
        match number {
            1 => Self::Made,
            2 => Self::Open,
            3 => Self::Archived,
            _ => Self::Wanted,
        }
    }
}

/// How a member stands. Likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Standing {
    /// Slack is being asked to bring them in.
    Asked = 0,
    In = 1,
    /// Slack can't bring them in.
    Skipped = 2,
    /// Slack is being asked to take them out.
    Leaving = 3,
}

impl Standing {
    fn from_number(number: i64) -> Self {
        match number {
            1 => Self::In,
            2 => Self::Skipped,
            3 => Self::Leaving,
            _ => Self::Asked,
        }
    }
}

/// A room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) wedding: String,
    pub(crate) stage: Stage,
    /// Slack's; empty until it is known.
    pub(crate) id: String,
    pub(crate) name: String,
    /// How many names turned out to be taken.
    pub(crate) taken: i64,
    /// When its name was asked for first.
    pub(crate) asked_at: Option<Timestamp>,
    /// Calls in a row that came to nothing.
    pub(crate) tries: i64,
    /// What came to nothing, as Slack says it.
    pub(crate) said: String,
    /// How often it was touched.
    pub(crate) touched: i64,
}

/// Somebody whom we brought into a room, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Slack's id.
    pub(crate) user: String,
    pub(crate) standing: Standing,
    pub(crate) said: String,
}

/// What makes a room of each row that `$rows` selects, or has one that there is looked at again.
macro_rules! touching {
    ($rows:literal) => {
        concat!(
            "INSERT INTO rooms (organization_id, wedding_id, stage, room_id, name, taken, asked_at, tries, said, touched, due_at) ",
            $rows,
            " ON CONFLICT (organization_id, wedding_id) DO UPDATE SET due_at = excluded.due_at, tries = 0, touched = rooms.touched + 1"
        )
    };
}

/// Something about a wedding changed: its room is looked at again, and there is one if the organization wants that.
pub(crate) async fn touch(tx: &mut Tx, organization: &OrganizationId, wedding: &str, now: i64) -> Result<()> {
    Ok(with!(tx.on(), c => sqlx::query(touching!(
        "SELECT organization_id, $2, 0, '', '', 0, CAST(NULL AS BIGINT), 0, '', 0, $3 FROM organization_settings
         WHERE organization_id = $1 AND slack_weddings = 1"
    )).bind(organization.as_str()).bind(wedding).bind(now).execute(c).await.map(drop))?)
}

/// The same of every wedding of a person; of the organization where nobody is named.
pub(crate) async fn touch_of(tx: &mut Tx, organization: &OrganizationId, recipient: &str, now: i64) -> Result<()> {
    Ok(with!(tx.on(), c => sqlx::query(touching!(
        "SELECT DISTINCT w.organization_id, w.wedding_id, 0, '', '', 0, CAST(NULL AS BIGINT), 0, '', 0, $3
         FROM wedding_recipients AS w JOIN organization_settings AS s ON s.organization_id = w.organization_id
         WHERE w.organization_id = $1 AND ($2 = '' OR w.recipient_id = $2) AND s.slack_weddings = 1"
    )).bind(organization.as_str()).bind(recipient).bind(now).execute(c).await.map(drop))?)
}

/// The same of every wedding of an organization.
pub(crate) async fn touch_all(tx: &mut Tx, organization: &OrganizationId, now: i64) -> Result<()> {
    touch_of(tx, organization, "", now).await
}

/// The rooms that are due: organization and wedding.
pub(super) async fn due(store: &Store, now: Timestamp, limit: i64) -> Result<Vec<(String, String)>> {
    Ok(with!(store.reader(), c => sqlx::query_as(
        "SELECT organization_id, wedding_id FROM rooms WHERE due_at IS NOT NULL AND due_at <= $1 ORDER BY due_at LIMIT $2",
    ).bind(now.as_microsecond()).bind(limit).fetch_all(c).await)?)
}

#[derive(sqlx::FromRow)]
struct Row {
    wedding_id: String,
    stage: i64,
    room_id: String,
    name: String,
    taken: i64,
    asked_at: Option<i64>,
    tries: i64,
    said: String,
    touched: i64,
}

impl From<Row> for Room {
    fn from(row: Row) -> Self {
        Self {
            wedding: row.wedding_id,
            stage: Stage::from_number(row.stage),
            id: row.room_id,
            name: row.name,
            taken: row.taken,
            asked_at: row.asked_at.map(from_micros),
            tries: row.tries,
            said: row.said,
            touched: row.touched,
        }
    }
}

/// The rooms of an organization by their weddings, after `after`; one alone if `wedding` isn't empty.
pub(crate) async fn list(
    store: &Store,
    organization: &OrganizationId,
    wedding: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<Room>> {
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT wedding_id, stage, room_id, name, taken, asked_at, tries, said, touched FROM rooms
         WHERE organization_id = $1 AND ($2 = '' OR wedding_id = $2) AND wedding_id > $3 ORDER BY wedding_id LIMIT $4",
    ).bind(organization.as_str()).bind(wedding).bind(after).bind(limit).fetch_all(c).await)?;
    Ok(rows.into_iter().map(Room::from).collect())
}

/// Whether a room of Slack's is known as some wedding's, in whatever organization: all share one workspace.
pub(super) async fn is_known(store: &Store, id: &str) -> Result<bool> {
    let known: i64 = with!(store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM rooms WHERE room_id = $1")
        .bind(id).fetch_one(c).await)?;
    Ok(known > 0)
}

/// Writes how far a room is; what is due stays due.
pub(super) async fn save(store: &Store, organization: &OrganizationId, room: &Room) -> Result<()> {
    Ok(with!(store.writer(), c => sqlx::query(
        "UPDATE rooms SET stage = $3, room_id = $4, name = $5, taken = $6, asked_at = $7, tries = $8, said = $9
         WHERE organization_id = $1 AND wedding_id = $2",
    )
    .bind(organization.as_str())
    .bind(&room.wedding)
    .bind(room.stage as i64)
    .bind(&room.id)
    .bind(&room.name)
    .bind(room.taken)
    .bind(room.asked_at.map(Timestamp::as_microsecond))
    .bind(room.tries)
    .bind(&room.said)
    .execute(c).await.map(drop))?)
}

/// Says when a room is due next, unless it was touched meanwhile: then it is due as it was.
pub(super) async fn settle(
    store: &Store,
    organization: &OrganizationId,
    room: &Room,
    next: Option<Timestamp>,
) -> Result<()> {
    Ok(with!(store.writer(), c => sqlx::query(
        "UPDATE rooms SET due_at = $3, tries = $4, said = $5 WHERE organization_id = $1 AND wedding_id = $2 AND touched = $6",
    )
    .bind(organization.as_str())
    .bind(&room.wedding)
    .bind(next.map(Timestamp::as_microsecond))
    .bind(room.tries)
    .bind(&room.said)
    .bind(room.touched)
    .execute(c).await.map(drop))?)
}

/// Whom we have to do with in a room.
pub(crate) async fn members(store: &Store, organization: &OrganizationId, wedding: &str) -> Result<Vec<Member>> {
    let rows: Vec<(String, i64, String)> = with!(store.reader(), c => sqlx::query_as(
        "SELECT user_id, standing, said FROM room_members WHERE organization_id = $1 AND wedding_id = $2 ORDER BY user_id",
    ).bind(organization.as_str()).bind(wedding).fetch_all(c).await)?;
    let member = |(user, standing, said)| Member { user, standing: Standing::from_number(standing), said };
    Ok(rows.into_iter().map(member).collect())
}

/// The room of a wedding that is open: Slack's id, and the members that are in.
pub(crate) async fn open(
    store: &Store,
    organization: &OrganizationId,
    wedding: &str,
) -> Result<Option<(String, BTreeSet<String>)>> {
    let rows: Vec<(String, Option<String>)> = with!(store.reader(), c => sqlx::query_as(
        "SELECT r.room_id, m.user_id FROM rooms AS r LEFT JOIN room_members AS m
             ON m.organization_id = r.organization_id AND m.wedding_id = r.wedding_id AND m.standing = $4
         WHERE r.organization_id = $1 AND r.wedding_id = $2 AND r.stage = $3",
    )
    .bind(organization.as_str())
    .bind(wedding)
    .bind(Stage::Open as i64)
    .bind(Standing::In as i64)
    .fetch_all(c).await)?;
    let id = rows.first().map(|(id, _)| id.clone());
    Ok(id.map(|id| (id, rows.into_iter().filter_map(|(_, user)| user).collect())))
}

pub(super) async fn put_member(
    store: &Store,
    organization: &OrganizationId,
    wedding: &str,
    member: &Member,
) -> Result<()> {
    Ok(with!(store.writer(), c => sqlx::query(
        "INSERT INTO room_members (organization_id, wedding_id, user_id, standing, said) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (organization_id, wedding_id, user_id) DO UPDATE SET standing = excluded.standing, said = excluded.said",
    )
    .bind(organization.as_str())
    .bind(wedding)
    .bind(&member.user)
    .bind(member.standing as i64)
    .bind(&member.said)
    .execute(c).await.map(drop))?)
}

pub(super) async fn drop_member(store: &Store, organization: &OrganizationId, wedding: &str, user: &str) -> Result<()> {
    Ok(with!(store.writer(), c => sqlx::query(
        "DELETE FROM room_members WHERE organization_id = $1 AND wedding_id = $2 AND user_id = $3",
    ).bind(organization.as_str()).bind(wedding).bind(user).execute(c).await.map(drop))?)
}

/// We have to do with nobody there any more.
pub(super) async fn drop_members(store: &Store, organization: &OrganizationId, wedding: &str) -> Result<()> {
    Ok(
        with!(store.writer(), c => sqlx::query("DELETE FROM room_members WHERE organization_id = $1 AND wedding_id = $2")
        .bind(organization.as_str()).bind(wedding).execute(c).await.map(drop))?,
    )
}
