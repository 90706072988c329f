//! The one writer of the log: gathers what waits, commits it in one transaction, answers, wakes the readers.
//!
//! It commits at once when idle; what comes while a commit is under way forms the next group. It runs in a task of its
//! own, so that a publisher who goes away can't cut a commit short.

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    store::{self, Engine, Kept},
    with,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Appended, Draft, Entry, Log, Order, append, number, stored};
use crate::{
    consumer::cursor::Moved,
    wedding::Learnt,
    weddings::{self, Weddings},
};

/// Events in one commit.
const GROUP_MAX: usize = 512;
/// Cursors that moved are stored after this time, with a commit of events where there is one: they may lag, since what
/// comes again is marked.
const CURSORS_EVERY: Duration = Duration::from_millis(200);

/// A draft and who waits for it.
pub(super) struct Append {
    pub(super) draft: Draft,
    pub(super) order: Option<Order>,
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
    pub(super) kept: Engine<store::Writer, Kept>,
    pub(super) weddings: Weddings,
    pub(super) clock: Clock,
}

impl Writer {
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Append>, stopping: CancellationToken) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        let mut cursors_at = Instant::now() + CURSORS_EVERY;
        loop {
            tokio::select! {
                biased;
                // The store's own latency is what gathers a group: whatever came meanwhile is in the queue.
                _ = queue.recv_many(&mut group, GROUP_MAX) => {}
                () = tokio::time::sleep_until(cursors_at) => {}
                () = stopping.cancelled() => queue.close(),
            }
            // A last commit for the cursors; should it fail, their events come again.
            let is_last = stopping.is_cancelled() && group.is_empty() && queue.is_empty();
            let mut cursors = Vec::new();
            if is_last || cursors_at <= Instant::now() {
                cursors = self.log.dirty.take();
                cursors_at = Instant::now() + CURSORS_EVERY;
            }
            if !group.is_empty() || !cursors.is_empty() {
                self.write(&mut group, cursors).await;
            }
            if is_last {
                return;
            }
        }
    }

    async fn write(&mut self, group: &mut Vec<Append>, cursors: Vec<Moved>) {
        self.refuse_late(group);
        if group.is_empty() && cursors.is_empty() {
            return;
        }
        let drafts: Vec<&Draft> = group.iter().map(|append| &append.draft).collect();
        let outcome = self.commit(&drafts, &cursors).await;
        match outcome {
            Ok(committed) => self.publish(group.drain(..), committed),
            Err(error) => {
                self.log.dirty.put_back(cursors);
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
    async fn write_singly(&mut self, group: &mut Vec<Append>) {
        while !group.is_empty() {
            self.refuse_late(group);
            let Some(append) = (!group.is_empty()).then(|| group.remove(0)) else { return };
            match self.commit(&[&append.draft], &[]).await {
                Ok(committed) => self.publish(std::iter::once(append), committed),
                Err(error) => {
                    self.after_failure().await;
                    self.refuse(&mut vec![append], &error);
                }
            }
        }
    }

    /// Those whose order an earlier failure broke.
    fn refuse_late(&self, group: &mut Vec<Append>) {
        for late in group.extract_if(.., |append| append.order.as_ref().is_some_and(Order::is_broken)) {
            let error = Error::Unavailable("an earlier event of the same source wasn't taken".into());
            // As in `refuse`.
            let _ = late.done.send(Err(error));
        }
    }

    fn refuse(&self, group: &mut Vec<Append>, error: &Error) {
        tracing::error!(%error, cause = ?std::error::Error::source(error).map(ToString::to_string), events = group.len(), "append failed");
        metrics::counter!("log_append_failures_total").increment(1);
        for append in group.drain(..) {
            if let Some(order) = &append.order {
                order.break_off();
            }
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

    async fn commit(&mut self, drafts: &[&Draft], cursors: &[Moved]) -> Result<Committed> {
        let teaches = drafts.iter().any(|draft| draft.lesson.is_some());
        let _changing = if teaches { Some(self.weddings.change().await) } else { None };
        let written = self.transaction(drafts, cursors).await;
        match written {
            Ok(mut committed) => {
                for (organization, learnt) in committed.learnt.drain(..) {
                    self.weddings.learn(organization, learnt);
                }
                Ok(committed)
            }
            Err(error) => {
                // Whether it was stored is not known: they are read again.
                for (draft, lesson) in drafts.iter().filter_map(|draft| Some((draft, draft.lesson.as_ref()?))) {
                    self.weddings.forget(&draft.organization, &lesson.wedding_id);
                }
                Err(error)
            }
        }
    }

    /// In one statement where the log knows none of them and nothing else is to be stored, as is usual; else step by step.
    async fn transaction(&mut self, drafts: &[&Draft], cursors: &[Moved]) -> Result<Committed> {
        let (head, now) = (self.log.head(), self.clock.now_micros());
        let plain = cursors.is_empty() && drafts.iter().all(|draft| draft.lesson.is_none());
        chassis::fail::point("router.append.commit");
        if plain && append::at_once(&mut self.kept, drafts, head, self.log.epoch, now).await? {
            let appended = (head + 1..).zip(drafts).map(|(sequence, draft)| Ok(draft.appended(sequence)));
            let appended: Vec<_> = appended.collect();
            return Ok(Committed { head: head + drafts.len() as u64, appended, learnt: Vec::new() });
        }
        self.step_by_step(drafts, cursors).await
    }

    async fn step_by_step(&self, drafts: &[&Draft], cursors: &[Moved]) -> Result<Committed> {
        let mut tx = self.log.store.begin().await?;
        // Moved as if the log knew none of them, which is nearly always so.
        let hoped: Option<i64> = with!(tx.on(), c => sqlx::query_scalar("UPDATE log SET head = head + $2 WHERE epoch = $1 RETURNING head")
            .bind(self.log.epoch).bind(stored(drafts.len() as u64)).fetch_optional(c).await)?;
        let hoped = number(hoped.ok_or_else(|| {
            self.log.lost.cancel();
            Error::Unavailable("another router has taken this log over; this one must stop".into())
        })?);
        let head = hoped - drafts.len() as u64;
        let appended = append::step_by_step(&mut tx, drafts, head, self.clock.now_micros()).await?;
        let new_head = head + appended.iter().flatten().filter(|appended| !appended.duplicate).count() as u64;
        if new_head < hoped {
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
