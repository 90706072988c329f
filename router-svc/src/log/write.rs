//! The one writer of the log: gathers what waits, commits it in one transaction, answers, wakes the readers.
//!
//! It commits at once when idle; what comes while a commit is under way forms the next group. It runs in a task of its
//! own, so that a publisher who goes away can't cut a commit short.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    store::{Engine, Tx},
    with,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Appended, Draft, Entry, Log, number, stored};
use crate::{
    wedding::Learnt,
    weddings::{self, Weddings},
};

/// Events in one commit.
const GROUP_MAX: usize = 512;
/// Cursors that moved are stored within this time, even when nothing is published.
const CURSORS_EVERY: Duration = Duration::from_millis(200);

/// A draft and who waits for it.
pub(super) struct Append {
    pub(super) draft: Draft,
    pub(super) done: oneshot::Sender<Result<Appended>>,
    /// Its share of the bytes that may wait.
    pub(super) _room: OwnedSemaphorePermit,
}

/// What one transaction did.
struct Committed {
    /// What became of each draft.
    appended: Vec<Result<Appended>>,
    /// The log's head after it.
    head: u64,
    learnt: Vec<(OrganizationId, Learnt)>,
}

pub(super) struct Writer {
    pub(super) log: Log,
    pub(super) weddings: Weddings,
    pub(super) clock: Clock,
    pub(super) epoch: i64,
}

impl Writer {
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Append>, stopping: CancellationToken) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        loop {
            tokio::select! {
                biased;
                // The store's own latency is what gathers a group: whatever came meanwhile is in the queue.
                _ = queue.recv_many(&mut group, GROUP_MAX) => {}
                () = tokio::time::sleep(CURSORS_EVERY) => {}
                () = stopping.cancelled() => queue.close(),
            }
            // A last commit for the cursors; should it fail, their events come again.
            let is_last = stopping.is_cancelled() && group.is_empty() && queue.is_empty();
            if !group.is_empty() || self.log.dirty.any() {
                self.write(&mut group).await;
            }
            if is_last {
                return;
            }
        }
    }

    async fn write(&self, group: &mut Vec<Append>) {
        let drafts: Vec<&Draft> = group.iter().map(|append| &append.draft).collect();
        let outcome = self.commit(&drafts).await;
        match outcome {
            Ok(committed) => self.publish(group.drain(..), committed),
            Err(error) => {
                self.after_failure().await;
                if error.is_retryable() || group.len() <= 1 {
                    self.refuse(group, &error);
                } else {
                    self.write_singly(group).await;
                }
            }
        }
    }

    /// One of the group can't be stored: find out which, and store the others.
    async fn write_singly(&self, group: &mut Vec<Append>) {
        for append in group.drain(..) {
            match self.commit(&[&append.draft]).await {
                Ok(committed) => self.publish(std::iter::once(append), committed),
                Err(error) => {
                    self.after_failure().await;
                    self.refuse(&mut vec![append], &error);
                }
            }
        }
    }

    fn refuse(&self, group: &mut Vec<Append>, error: &Error) {
        tracing::error!(%error, cause = ?std::error::Error::source(error).map(ToString::to_string), events = group.len(), "append failed");
        metrics::counter!("log_append_failures_total").increment(1);
        for append in group.drain(..) {
            // A publisher who went away doesn't hear it.
            let _ = append.done.send(Err(again(error)));
        }
    }

    /// Makes what was committed visible, then answers: whoever is answered can read it.
    fn publish(&self, group: impl Iterator<Item = Append>, committed: Committed) {
        chassis::fail::point("router.append.committed");
        let mut answers = Vec::new();
        let mut fresh = Vec::new();
        for (append, appended) in group.zip(committed.appended) {
            if let Ok(Appended { sequence, duplicate: false, .. }) = appended {
                fresh.push(Arc::new(self.entry(append.draft, sequence)));
            }
            answers.push((append.done, appended));
        }
        metrics::counter!("log_events_total").increment(fresh.len() as u64);
        self.log.tail.extend(fresh);
        // The store's head, not the last fresh event's: a commit whose outcome was unknown may have moved it.
        self.log.head.send_if_modified(|head| std::mem::replace(head, committed.head) != committed.head);
        for (done, appended) in answers {
            // As above: the event is durable all the same.
            let _ = done.send(appended);
        }
    }

    fn entry(&self, draft: Draft, sequence: u64) -> Entry {
        let mut logged = draft.logged;
        if let Some(event) = &mut logged.event {
            event.position = Some(self.log.position(sequence));
        }
        Entry {
            sequence,
            organization: draft.organization,
            priority: draft.priority,
            type_: draft.type_.into(),
            ordering_key: draft.ordering_key.into(),
            bytes: draft.body.len() + 256,
            logged,
        }
    }

    /// What was committed is not known: forget the tail and read the head again.
    async fn after_failure(&self) {
        let head: Result<i64, sqlx::Error> =
            with!(self.log.store.reader(), c => sqlx::query_scalar("SELECT head FROM log").fetch_one(c).await);
        match head {
            Ok(head) => {
                self.log.tail.reset(number(head));
                self.log.head.send_replace(number(head));
            }
            // Readers find nothing in the tail and ask the store, which answers once it is back.
            Err(_) => self.log.tail.reset(u64::MAX - 1),
        }
    }

    async fn commit(&self, drafts: &[&Draft]) -> Result<Committed> {
        let teaches = drafts.iter().any(|draft| draft.lesson.is_some());
        let _changing = if teaches { Some(self.weddings.change().await) } else { None };
        let cursors = self.log.dirty.take();
        let written = self.transaction(drafts, &cursors).await;
        match written {
            Ok(mut committed) => {
                for (organization, learnt) in committed.learnt.drain(..) {
                    self.weddings.learn(organization, learnt);
                }
                Ok(committed)
            }
            Err(error) => {
                self.log.dirty.put_back(cursors);
                // Whether it was stored is not known: they are read again.
                for (draft, lesson) in drafts.iter().filter_map(|draft| Some((draft, draft.lesson.as_ref()?))) {
                    self.weddings.forget(&draft.organization, &lesson.wedding_id);
                }
                Err(error)
            }
        }
    }

    async fn transaction(&self, drafts: &[&Draft], cursors: &[(i64, i64, u64)]) -> Result<Committed> {
        let mut tx = self.log.store.begin().await?;
        let head: Option<i64> = with!(tx.on(), c => sqlx::query_scalar("UPDATE log SET head = head WHERE epoch = $1 RETURNING head")
            .bind(self.epoch).fetch_optional(c).await)?;
        let head =
            number(head.ok_or_else(|| {
                Error::Unavailable("another router has taken this log over; this one must stop".into())
            })?);
        let appended = insert(&mut tx, drafts, head, self.clock.now_micros()).await?;
        let new_head = appended
            .iter()
            .flatten()
            .filter(|appended| !appended.duplicate)
            .map(|appended| appended.sequence)
            .max()
            .unwrap_or(head);
        if new_head > head {
            with!(tx.on(), c => sqlx::query("UPDATE log SET head = $1").bind(stored(new_head)).execute(c).await.map(drop))?;
        }
        let mut learnt = Vec::new();
        for (draft, appended) in drafts.iter().zip(&appended) {
            if let (Some(lesson), Ok(Appended { duplicate: false, .. })) = (&draft.lesson, appended) {
                let taught = weddings::teach(&mut tx, &draft.organization, lesson, self.clock.now_micros()).await?;
                learnt.extend(taught.map(|taught| (draft.organization.clone(), taught)));
            }
        }
        for (group, priority, sequence) in cursors {
            chassis::fail::point("router.cursor.commit");
            with!(tx.on(), c => sqlx::query("UPDATE cursors SET sequence = $3 WHERE group_number = $1 AND priority = $2 AND sequence < $3")
                .bind(group).bind(priority).bind(stored(*sequence)).execute(c).await.map(drop))?;
        }
        chassis::fail::point("router.append.commit");
        tx.commit().await?;
        Ok(Committed { appended, head: new_head, learnt })
    }
}

/// The same refusal for another member of the group.
fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable(reason) => Error::Unavailable(reason.clone()),
        other => Error::Internal(anyhow::anyhow!("append failed: {other}")),
    }
}

/// Numbers and stores the drafts that the log doesn't know, and says what became of each.
async fn insert(tx: &mut Tx, drafts: &[&Draft], head: u64, now: i64) -> Result<Vec<Result<Appended>>> {
    match tx.on() {
        Engine::Sqlite(connection) => {
            let mut appended = Vec::with_capacity(drafts.len());
            let mut next = head + 1;
            for draft in drafts {
                let inserted = sqlx::query(
                    "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (organization_id, id) DO NOTHING",
                )
                .bind(stored(next))
                .bind(draft.organization.as_str())
                .bind(&draft.id)
                .bind(&draft.uid[..])
                .bind(&draft.type_)
                .bind(&draft.ordering_key)
                .bind(draft.priority)
                .bind(&draft.content_hash[..])
                .bind(now)
                .bind(&draft.body[..])
                .execute(&mut *connection)
                .await?;
                if inserted.rows_affected() == 1 {
                    appended.push(Ok(Appended { sequence: next, uid: draft.uid, duplicate: false }));
                    next += 1;
                    continue;
                }
                let known: Known = sqlx::query_as(
                    "SELECT sequence, uid, content_hash FROM events WHERE organization_id = $1 AND id = $2",
                )
                .bind(draft.organization.as_str())
                .bind(&draft.id)
                .fetch_one(&mut *connection)
                .await?;
                appended.push(known.answer(draft));
            }
            Ok(appended)
        }
        Engine::Postgres(connection) => {
            let mut known = find_known(connection, drafts).await?;
            let mut appended = Vec::with_capacity(drafts.len());
            let mut fresh = Vec::with_capacity(drafts.len());
            for draft in drafts {
                let key = (draft.organization.as_str().to_owned(), draft.id.clone());
                if let Some(known) = known.get(&key) {
                    appended.push(known.answer(draft));
                    continue;
                }
                let sequence = head + 1 + fresh.len() as u64;
                fresh.push((stored(sequence), *draft));
                known.insert(
                    key,
                    Known {
                        sequence: stored(sequence),
                        uid: draft.uid.to_vec(),
                        content_hash: draft.content_hash.to_vec(),
                    },
                );
                appended.push(Ok(Appended { sequence, uid: draft.uid, duplicate: false }));
            }
            insert_fresh(connection, &fresh, now).await?;
            Ok(appended)
        }
    }
}

/// An event that the log holds under the same id.
#[derive(sqlx::FromRow)]
struct Known {
    sequence: i64,
    uid: Vec<u8>,
    content_hash: Vec<u8>,
}

impl Known {
    fn answer(&self, draft: &Draft) -> Result<Appended> {
        if self.content_hash != draft.content_hash {
            return Err(Error::AlreadyExists(format!(
                "event {} exists with other content: give this one an id of its own",
                draft.id
            )));
        }
        let uid = self
            .uid
            .as_slice()
            .try_into()
            .map_err(|_| Error::internal(anyhow::anyhow!("event {} has a malformed uid", self.sequence)))?;
        Ok(Appended { sequence: number(self.sequence), uid, duplicate: true })
    }
}

async fn find_known(
    connection: &mut sqlx::PgConnection,
    drafts: &[&Draft],
) -> Result<HashMap<(String, String), Known>> {
    type Row = (String, String, i64, Vec<u8>, Vec<u8>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT e.organization_id, e.id, e.sequence, e.uid, e.content_hash FROM events AS e
         JOIN UNNEST($1::text[], $2::text[]) AS t (organization_id, id) ON e.organization_id = t.organization_id AND e.id = t.id",
    )
    .bind(drafts.iter().map(|draft| draft.organization.as_str()).collect::<Vec<_>>())
    .bind(drafts.iter().map(|draft| draft.id.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(organization, id, sequence, uid, content_hash)| {
            ((organization, id), Known { sequence, uid, content_hash })
        })
        .collect())
}

async fn insert_fresh(connection: &mut sqlx::PgConnection, fresh: &[(i64, &Draft)], now: i64) -> Result<()> {
    if fresh.is_empty() {
        return Ok(());
    }
    let drafts = || fresh.iter().map(|(_, draft)| *draft);
    sqlx::query(
        "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
         SELECT sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, $9, body
         FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::bytea[], $10::bytea[])
             AS t (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, body)",
    )
    .bind(fresh.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>())
    .bind(drafts().map(|draft| draft.organization.as_str()).collect::<Vec<_>>())
    .bind(drafts().map(|draft| draft.id.as_str()).collect::<Vec<_>>())
    .bind(drafts().map(|draft| &draft.uid[..]).collect::<Vec<_>>())
    .bind(drafts().map(|draft| draft.type_.as_str()).collect::<Vec<_>>())
    .bind(drafts().map(|draft| draft.ordering_key.as_str()).collect::<Vec<_>>())
    .bind(drafts().map(|draft| draft.priority).collect::<Vec<_>>())
    .bind(drafts().map(|draft| &draft.content_hash[..]).collect::<Vec<_>>())
    .bind(now)
    .bind(drafts().map(|draft| &draft.body[..]).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
