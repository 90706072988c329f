//! Events that a resolved change leads to: committed, sealed, in the transaction of the change, and published from here.
//!
//! Guarantees: what a committed change has to say is published, whatever stops the process in between, since a row goes
//! only once the router has answered; a row that is published a second time has the same id, of which the router keeps
//! one event. Events of one ordering key are published in the order of their commits: a batch holds one of each key.
//!
//! Organizations take turns, a batch each (`rounds`). While the router is away everything waits in the store, never in
//! memory; beyond [`BACKLOG`] rows of one organization `Outbox::check` refuses its new changes, so that its webhooks are answered
//! 503, and its polls, imports and spools wait. What the router will never take is set aside with its reason for 30 days.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    error::{Error, Result},
    fail,
    id::OrganizationId,
    lane::{Dispatcher, Offer},
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    tasks::Tasks,
    with,
};
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use proto::router::v1 as wire;
use tokio::sync::Notify;

#[cfg(test)]
pub(crate) use crate::rounds::Held;
use crate::{
    event::Priority,
    integration::Integration,
    rounds::{self, Waiting},
    router::Router,
    sync::letter::Letter,
};

/// Rows in one look; and bytes in one batch, unless one event is larger.
const PAGE: i64 = 128;
const BATCH_BYTES: usize = 3 << 20;
/// Rows of one organization that may wait.
const BACKLOG: i64 = 50_000;
const PURGE_STEP: i64 = 100;
const KEEP_REFUSED: SignedDuration = SignedDuration::from_hours(30 * 24);
const PURGE_EVERY: Duration = Duration::from_secs(600);
const REASON_CHARS: usize = 300;

/// The outbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outbox {
    store: Store,
    keys: DataKeys,
    dispatcher: Dispatcher,
    clock: Clock,
    filled: Arc<Notify>,
}

/// What a row says in clear.
struct New<'a> {
    organization: &'a str,
    lane: &'a str,
    id: &'a str,
    ordering_key: &'a str,
}

#[derive(sqlx::FromRow)]
struct Row {
    sequence: i64,
    lane_id: String,
    event_id: String,
    ordering_key: String,
    event: Vec<u8>,
}

/// What is sent at once: at most one of each ordering key.
#[derive(Default)]
struct Batch {
    events: Vec<(i64, wire::Event)>,
    letters: Vec<(i64, Offer)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.letters.is_empty()
    }

    fn add(&mut self, row: Row, plain: Bytes) -> Result<()> {
        if row.lane_id.is_empty() {
            let event = wire::Event::decode(plain).map_err(|error| Error::internal(anyhow::Error::new(error)))?;
            self.events.push((row.sequence, event));
        } else {
            let letter = Letter::open(plain)?;
            let priority = if letter.low { Priority::Low } else { Priority::Normal };
            self.letters.push((row.sequence, letter.offer(&row.lane_id, priority as i64, "realtime")));
        }
        Ok(())
    }
}

/// How a row fared.
enum Fate {
    Gone(i64),
    Refused(i64, String),
}

impl Outbox {
    pub(crate) fn new(store: Store, keys: DataKeys, dispatcher: Dispatcher, clock: Clock) -> Self {
        Self { store, keys, dispatcher, clock, filled: Arc::default() }
    }

    /// Whether there is room for more of an organization.
    ///
    /// # Errors
    /// `Error::Unavailable` when too much of it waits for the router.
    pub(crate) async fn check(&self, organization: &OrganizationId) -> Result<()> {
        if self.holds(organization, BACKLOG).await? {
            return Err(Error::Unavailable("too many changes wait for the router".to_owned()));
        }
        Ok(())
    }

    /// Whether more than `count` wait of an organization. No more are looked at.
    async fn holds(&self, organization: &OrganizationId, count: i64) -> Result<bool> {
        let beyond: Option<i64> = with!(self.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT sequence FROM outbox WHERE refused = '' AND organization_id = $1 ORDER BY sequence LIMIT 1 OFFSET $2",
            )
            .bind(organization.as_str())
            .bind(count)
            .fetch_optional(c)
            .await
        })?;
        Ok(beyond.is_some())
    }

    /// Adds an event to a transaction. Its id must be the same whenever the same change is made again.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn put_in(&self, tx: &mut Tx, key: &DataKey, event: &wire::Event) -> Result<()> {
        let row =
            New { organization: &event.organization_id, lane: "", id: &event.id, ordering_key: &event.ordering_key };
        self.insert_in(tx, key, &row, &event.encode_to_vec()).await
    }

    /// Adds what one integration is told, which is no event for the others.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn put_letter_in(
        &self,
        tx: &mut Tx,
        key: &DataKey,
        integration: &Integration,
        letter: &Letter,
    ) -> Result<()> {
        let (organization, lane) = (integration.organization.as_str(), integration.id.as_str());
        let row = New { organization, lane, id: &letter.event_id, ordering_key: letter.ordering_key() };
        self.insert_in(tx, key, &row, &letter.seal()).await
    }

    async fn insert_in(&self, tx: &mut Tx, key: &DataKey, row: &New<'_>, plain: &[u8]) -> Result<()> {
        let sealed = key.seal(&place_of(row.id), plain);
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO outbox (organization_id, lane_id, event_id, ordering_key, created_at, event, refused) \
                 VALUES ($1, $2, $3, $4, $5, $6, '')",
            )
            .bind(row.organization)
            .bind(row.lane)
            .bind(row.id)
            .bind(row.ordering_key)
            .bind(self.clock.now_micros())
            .bind(&sealed)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Tells the publisher that a transaction with events was committed.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Publishes what is there and what comes, and forgets what is old, until the process stops.
    pub(crate) fn start(&self, router: Router, tasks: &Tasks) {
        let (outbox, stop) = (self.clone(), tasks.clone());
        tasks.spawn("outbox", async move {
            let (filled, clock) = (outbox.filled.clone(), outbox.clock.clone());
            rounds::run(Publishing { outbox: &outbox, router: &router }, &filled, &clock, &stop).await;
        });
        tasks.spawn("outbox.purge", self.clone().purge_at_times(tasks.clone()));
    }

    async fn purge_at_times(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        while let Some(purged) = stopping.run_until_cancelled(self.purge(self.clock.now())).await {
            if let Err(error) = purged {
                tracing::warn!(%error, "refused events were not purged; trying again later");
            }
            if stopping.run_until_cancelled(self.clock.sleep(PURGE_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// For tests: one batch of every organization that isn't held.
    #[cfg(test)]
    pub(crate) async fn turn(&self, router: &Router, held: &mut Held) -> Result<bool> {
        rounds::turn(&Publishing { outbox: self, router }, held, &self.clock).await
    }

    async fn next_organization(&self, after: &str) -> Result<Option<String>> {
        Ok(with!(self.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT organization_id FROM outbox WHERE refused = '' AND organization_id > $1 ORDER BY organization_id LIMIT 1",
            )
            .bind(after)
            .fetch_optional(c)
            .await
        })?)
    }

    async fn publish_batch(&self, organization: &str, router: &Router) -> Result<bool> {
        let rows: Vec<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT sequence, lane_id, event_id, ordering_key, event FROM outbox WHERE refused = '' AND organization_id = $1 \
                 ORDER BY sequence LIMIT $2",
            )
            .bind(organization)
            .bind(PAGE)
            .fetch_all(c)
            .await
        })?;
        if rows.is_empty() {
            return Ok(false);
        }
        let organization = OrganizationId::parse(organization)?;
        let (batch, mut fates) = self.open(&organization, rows).await?;
        fail::point("outbox.publish");
        let told = self.tell(batch.letters, &mut fates).await;
        let published = publish(router, batch.events, &mut fates).await;
        fail::point("outbox.published");
        self.settle(&fates).await?;
        told.and(published).map(|()| true)
    }

    /// What one batch holds of these rows, with the rows that can't be read.
    async fn open(&self, organization: &OrganizationId, rows: Vec<Row>) -> Result<(Batch, Vec<Fate>)> {
        let key = self.keys.of(organization).await?;
        let (mut keys, mut bytes, mut batch, mut fates) = (HashSet::new(), 0, Batch::default(), Vec::new());
        for row in rows {
            if !keys.insert(row.ordering_key.clone()) {
                continue;
            }
            bytes += row.event.len();
            if bytes > BATCH_BYTES && !batch.is_empty() {
                break;
            }
            let sequence = row.sequence;
            let added =
                key.open(&place_of(&row.event_id), &row.event).and_then(|plain| batch.add(row, Bytes::from(plain)));
            if added.is_err() {
                fates.push(Fate::Refused(sequence, "the stored event can't be read".to_owned()));
            }
        }
        Ok((batch, fates))
    }

    /// Hands letters to their lanes. Offered a second time, a letter finds its delivery there.
    async fn tell(&self, letters: Vec<(i64, Offer)>, fates: &mut Vec<Fate>) -> Result<()> {
        for (sequence, offer) in letters {
            self.dispatcher.offer(vec![offer], true).await?.wait().await?;
            fates.push(Fate::Gone(sequence));
        }
        Ok(())
    }

    /// For tests: what waits of an organization, in order.
    #[cfg(test)]
    pub(crate) async fn look(&self, organization: &OrganizationId) -> (Vec<wire::Event>, Vec<Letter>) {
        let rows: Vec<Row> = with!(self.store.reader(), c => {
            sqlx::query_as("SELECT sequence, lane_id, event_id, ordering_key, event FROM outbox ORDER BY sequence").fetch_all(c).await
        })
        .expect("they are read");
        let key = self.keys.of(organization).await.expect("a key");
        let (mut events, mut letters) = (Vec::new(), Vec::new());
        for row in rows {
            let plain = Bytes::from(key.open(&place_of(&row.event_id), &row.event).expect("it opens"));
            if row.lane_id.is_empty() {
                events.push(wire::Event::decode(plain).expect("an event"));
            } else {
                letters.push(Letter::open(plain).expect("a letter"));
            }
        }
        (events, letters)
    }

    /// All in one transaction, each by its own number.
    async fn settle(&self, fates: &[Fate]) -> Result<()> {
        let mut tx = self.store.begin().await?;
        for fate in fates {
            match fate {
                Fate::Gone(sequence) => with!(tx.on(), c => {
                    sqlx::query("DELETE FROM outbox WHERE sequence = $1").bind(sequence).execute(c).await.map(drop)
                })?,
                Fate::Refused(sequence, reason) => {
                    tracing::error!(reason, "an event of a resolved change was refused for good");
                    metrics::counter!("outbox_refused_total").increment(1);
                    with!(tx.on(), c => {
                        sqlx::query("UPDATE outbox SET refused = $2 WHERE sequence = $1").bind(sequence).bind(reason).execute(c).await.map(drop)
                    })?;
                }
            }
        }
        tx.commit().await
    }

    /// Forgets what was set aside over 30 days ago, in small steps.
    async fn purge(&self, now: Timestamp) -> Result<()> {
        loop {
            let purged = with!(self.store.writer(), c => {
                sqlx::query(
                    "DELETE FROM outbox WHERE sequence IN (SELECT sequence FROM outbox \
                     WHERE refused <> '' AND created_at < $1 ORDER BY created_at LIMIT $2)",
                )
                .bind((now - KEEP_REFUSED).as_microsecond())
                .bind(PURGE_STEP)
                .execute(c)
                .await
                .map(|done| done.rows_affected())
            })?;
            if purged < PURGE_STEP.unsigned_abs() {
                return Ok(());
            }
        }
    }
}

/// Adds how each event fared; the error of the first that must wait.
async fn publish(router: &Router, batch: Vec<(i64, wire::Event)>, fates: &mut Vec<Fate>) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let (sequences, events): (Vec<i64>, Vec<wire::Event>) = batch.into_iter().unzip();
    let mut waits = Ok(());
    for (sequence, result) in sequences.into_iter().zip(router.publish_batch(events).await?) {
        match result {
            Ok(()) => fates.push(Fate::Gone(sequence)),
            Err(error) if error.is_retryable() => waits = waits.and(Err(error)),
            Err(error) => {
                let reason = error.to_string().chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect();
                fates.push(Fate::Refused(sequence, reason));
            }
        }
    }
    waits
}

fn place_of(event_id: &str) -> Vec<u8> {
    place("outbox", "event", event_id)
}

/// Organizations take turns, a batch each.
struct Publishing<'a> {
    outbox: &'a Outbox,
    router: &'a Router,
}

impl Waiting for Publishing<'_> {
    const WHAT: &'static str = "resolved changes";

    async fn next(&self, after: &str) -> Result<Option<String>> {
        self.outbox.next_organization(after).await
    }

    async fn page(&self, organization: &str) -> Result<bool> {
        self.outbox.publish_batch(organization, self.router).await
    }
}

#[cfg(test)]
mod tests;
