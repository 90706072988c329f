//! The inboxes: notices in the store, and whoever watches them live.
//!
//! Titles and bodies hold names: they are sealed with the organization's data key. A watcher is told of a notice after
//! its commit; one that falls behind is cut off and begins anew with what is unread.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::{OrganizationId, uuid},
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::channel::in_app::Words;

/// How many changes a watcher may be behind.
const BEHIND: usize = 256;

/// A notice to be recorded.
pub(crate) struct NewNotice<'a> {
    pub(crate) organization: &'a OrganizationId,
    pub(crate) recipient: &'a str,
    pub(crate) workflow: &'a str,
    pub(crate) event_uid: &'a str,
    pub(crate) priority: i64,
    /// [`Words`] as the channel rendered them.
    pub(crate) content: &'a [u8],
}

/// A notice that came or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    organization: OrganizationId,
    recipient: String,
    notice: Arc<str>,
}

impl Changed {
    /// One that was changed in a transaction that is committed.
    pub(crate) fn of(organization: OrganizationId, recipient: String, notice: &str) -> Self {
        Self { organization, recipient, notice: notice.into() }
    }
}

/// A notice as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) id: String,
    pub(crate) recipient: String,
    pub(crate) workflow: String,
    pub(crate) words: Words,
    pub(crate) event_uid: String,
    pub(crate) priority: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) read_at: Option<Timestamp>,
    pub(crate) archived_at: Option<Timestamp>,
    /// When what it tells was over.
    pub(crate) resolved_at: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    recipient_id: String,
    workflow: String,
    event_uid: String,
    priority: i64,
    content: Vec<u8>,
    created_at: i64,
    read_at: Option<i64>,
    archived_at: Option<i64>,
    resolved_at: Option<i64>,
}

/// Which notices to list, newest first; archived ones are left out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter<'a> {
    pub(crate) unread_only: bool,
    /// Only older ones than this id; empty: all.
    pub(crate) before: &'a str,
}

type Watched = HashMap<(OrganizationId, String), broadcast::Sender<Arc<str>>>;

/// All inboxes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox {
    store: Store,
    keys: DataKeys,
    clock: Clock,
    watched: Arc<Mutex<Watched>>,
}

/// Puts a notice into an inbox; tell the watchers by [`Inbox::publish`] after the commit.
pub(crate) async fn insert(tx: &mut Tx, key: &DataKey, new: &NewNotice<'_>, now: Timestamp) -> Result<Changed> {
    let id = uuid(now);
    let sealed = key.seal(&place("notices", "content", &id), new.content);
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO notices (id, organization_id, recipient_id, workflow, event_uid, priority, content, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&id)
    .bind(new.organization.as_str())
    .bind(new.recipient)
    .bind(new.workflow)
    .bind(new.event_uid)
    .bind(new.priority)
    .bind(sealed)
    .bind(now.as_microsecond())
    .execute(c).await.map(drop))?;
    Ok(Changed { organization: new.organization.clone(), recipient: new.recipient.to_owned(), notice: id.into() })
}

impl Inbox {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock, watched: Arc::default() }
    }

    /// Up to `limit` notices of a recipient.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        recipient: &str,
        filter: &Filter<'_>,
        limit: u32,
    ) -> Result<Vec<Notice>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, recipient_id, workflow, event_uid, priority, content, created_at, read_at, archived_at, resolved_at FROM notices
             WHERE organization_id = $1 AND recipient_id = $2 AND archived_at IS NULL AND ($3 = 0 OR read_at IS NULL)
                 AND ($4 = '' OR id < $4)
             ORDER BY id DESC LIMIT $5",
        )
        .bind(organization.as_str())
        .bind(recipient)
        .bind(i64::from(filter.unread_only))
        .bind(filter.before)
        .bind(i64::from(limit))
        .fetch_all(c).await)?;
        let key = self.keys.of(organization).await?;
        rows.into_iter().map(|row| open(&key, row)).collect()
    }

    /// Up to `limit` notices of a recipient, archived ones too, newest first.
    pub(crate) async fn all(&self, organization: &OrganizationId, recipient: &str, limit: u32) -> Result<Vec<Notice>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, recipient_id, workflow, event_uid, priority, content, created_at, read_at, archived_at, resolved_at FROM notices
             WHERE organization_id = $1 AND recipient_id = $2 ORDER BY id DESC LIMIT $3",
        ).bind(organization.as_str()).bind(recipient).bind(i64::from(limit)).fetch_all(c).await)?;
        let key = self.keys.of(organization).await?;
        rows.into_iter().map(|row| open(&key, row)).collect()
    }

    /// One notice.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn get(&self, organization: &OrganizationId, id: &str) -> Result<Notice> {
        let row: Option<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, recipient_id, workflow, event_uid, priority, content, created_at, read_at, archived_at, resolved_at FROM notices
             WHERE organization_id = $1 AND id = $2",
        ).bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        let row = row.ok_or_else(|| Error::NotFound("notice".into()))?;
        open(&*self.keys.of(organization).await?, row)
    }

    /// How many notices of a recipient are unread.
    pub(crate) async fn unread(&self, organization: &OrganizationId, recipient: &str) -> Result<u64> {
        let unread: i64 = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT COUNT(*) FROM notices WHERE organization_id = $1 AND recipient_id = $2 AND read_at IS NULL AND archived_at IS NULL",
        ).bind(organization.as_str()).bind(recipient).fetch_one(c).await)?;
        Ok(u64::try_from(unread).unwrap_or(0))
    }

    /// Marks a notice read or unread, archived or not; what is `None` stays. What is read already keeps its time.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn update(
        &self,
        organization: &OrganizationId,
        id: &str,
        read: Option<bool>,
        archived: Option<bool>,
    ) -> Result<Notice> {
        let number = |choice: Option<bool>| choice.map_or(2, i64::from);
        with!(self.store.writer(), c => sqlx::query(
            "UPDATE notices SET
                 read_at = CASE $3 WHEN 1 THEN COALESCE(read_at, $5) WHEN 0 THEN NULL ELSE read_at END,
                 archived_at = CASE $4 WHEN 1 THEN COALESCE(archived_at, $5) WHEN 0 THEN NULL ELSE archived_at END
             WHERE organization_id = $1 AND id = $2",
        )
        .bind(organization.as_str())
        .bind(id)
        .bind(number(read))
        .bind(number(archived))
        .bind(self.clock.now_micros())
        .execute(c).await.map(drop))?;
        let notice = self.get(organization, id).await?;
        self.publish(&Changed {
            organization: organization.clone(),
            recipient: notice.recipient.clone(),
            notice: id.into(),
        });
        Ok(notice)
    }

    /// Ids of a recipient's notices as they come or change, from now on.
    pub(crate) fn watch(&self, organization: &OrganizationId, recipient: &str) -> broadcast::Receiver<Arc<str>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (organization.clone(), recipient.to_owned());
        watched.entry(key).or_insert_with(|| broadcast::Sender::new(BEHIND)).subscribe()
    }

    /// Forgets an inbox that nobody watches any more; watchers call it when they leave.
    pub(crate) fn leave(&self, organization: &OrganizationId, recipient: &str) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (organization.clone(), recipient.to_owned());
        if watched.get(&key).is_some_and(|sender| sender.receiver_count() == 0) {
            watched.remove(&key);
        }
    }

    /// Tells the watchers of one inbox; forgets it if nobody watches any more.
    pub(crate) fn publish(&self, changed: &Changed) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (changed.organization.clone(), changed.recipient.clone());
        if watched.get(&key).is_some_and(|sender| sender.send(Arc::clone(&changed.notice)).is_err()) {
            watched.remove(&key);
        }
    }
}

fn open(key: &DataKey, row: Row) -> Result<Notice> {
    // What it said may have been purged.
    let words = match &row.content[..] {
        [] => Words::default(),
        sealed => {
            let plain = key.open(&place("notices", "content", &row.id), sealed)?;
            serde_json::from_slice(&plain).map_err(Error::internal)?
        }
    };
    Ok(Notice {
        words,
        id: row.id,
        recipient: row.recipient_id,
        workflow: row.workflow,
        event_uid: row.event_uid,
        priority: row.priority,
        created_at: from_micros(row.created_at),
        read_at: row.read_at.map(from_micros),
        archived_at: row.archived_at.map(from_micros),
        resolved_at: row.resolved_at.map(from_micros),
    })
}
