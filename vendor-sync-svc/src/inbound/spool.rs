//! Requests of senders that never retry: committed, sealed, before their 2xx, and published from here.
//!
//! Each integration's requests are published in the order they came; integrations take turns, a page each (`rounds`).
//! What the router will never take is set aside with its reason for 30 days: it holds nothing up. So is what a
//! connector's vendor sent once and for all and can't be taken.

use std::sync::Arc;

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    tasks::Tasks,
    with,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::{
    Answer, Request,
    dedupe::{Key, Receipts},
    json,
    publish::{Event, Publisher, Sender},
    set_aside::{SetAside, written},
    transform::change_event,
    validate::change,
};
use crate::{
    integration::Integration,
    rounds::{self, Waiting},
};

/// Bodies are at most 1 MiB, so a page is at most 16 MiB.
const PAGE: i64 = 16;
const PURGE_STEP: i64 = 100;
const KEEP_REFUSED: SignedDuration = SignedDuration::from_hours(30 * 24);
const REASON_CHARS: usize = 300;

/// The spool. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    store: Store,
    keys: DataKeys,
    clock: Clock,
    filled: Arc<Notify>,
}

#[derive(sqlx::FromRow)]
pub(super) struct Row {
    pub(super) sequence: i64,
    pub(super) integration_id: String,
    organization_id: String,
    supplier_id: String,
    pub(super) event_id: String,
    traceparent: String,
    pub(super) received_at: i64,
    body: Vec<u8>,
    pub(super) refused: String,
    /// Sealed is the whole request, since a connector may read its headers and its query too.
    pub(super) has_request: i64,
}

/// A request to keep.
struct New<'a> {
    event_id: &'a str,
    traceparent: &'a str,
    at: Timestamp,
    body: &'a [u8],
    /// Why it can't be taken; empty: it waits.
    refused: &'a str,
    has_request: bool,
}

impl Spool {
    pub(super) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock, filled: Arc::default() }
    }

    /// Keeps a request, durably, under the id that its event will have.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away or full.
    pub(super) async fn put(&self, sender: &Sender, event: &Event, body: &[u8]) -> Result<()> {
        let key = self.keys.of(&sender.organization).await?;
        let new = New {
            event_id: &event.id,
            traceparent: &event.traceparent,
            at: event.time,
            body,
            refused: "",
            has_request: false,
        };
        let mut tx = self.store.begin().await?;
        insert_in(&mut tx, &key, sender, &new).await?;
        with!(tx.on(), c => {
            sqlx::query("UPDATE integrations SET last_received_at = $2 WHERE id = $1")
                .bind(&sender.integration)
                .bind(event.time.as_microsecond())
                .execute(c)
                .await
                .map(drop)
        })?;
        tx.commit().await?;
        self.filled.notify_one();
        Ok(())
    }

    /// Keeps a request that can't be taken for people to look at, with why, in the transaction that notes its receipt. False if
    /// it was kept before.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn keep(
        &self,
        receipts: &Receipts,
        integration: &Integration,
        key: &Key,
        (request, reason): (&Request, &str),
        now: Timestamp,
    ) -> Result<bool> {
        let (refused, written) = (shown(reason), written(request));
        let traceparent = chassis::trace::current().map(|context| context.to_string()).unwrap_or_default();
        let new = New {
            event_id: &key.event_id,
            traceparent: &traceparent,
            at: now,
            body: &written,
            refused: &refused,
            has_request: true,
        };
        let data_key = self.keys.of(&integration.organization).await?;
        let mut tx = self.store.begin().await?;
        if !receipts.record_in(&mut tx, integration, key, now).await? {
            return Ok(false);
        }
        insert_in(&mut tx, &data_key, &Sender::of(integration), &new).await?;
        tx.commit().await?;
        tracing::error!(
            integration.id,
            reason = refused,
            "a webhook that nobody sends again can't be taken; it is kept"
        );
        metrics::counter!("inbound_spool_refused_total").increment(1);
        Ok(true)
    }

    /// Publishes what is there and what comes, until the process stops.
    pub(super) async fn run(self, publisher: Publisher, tasks: Tasks) {
        rounds::run(Publishing { spool: &self, publisher: &publisher }, &self.filled, &self.clock, &tasks).await;
    }

    /// For tests: one page of every integration that isn't held.
    #[cfg(test)]
    pub(super) async fn turn(&self, publisher: &Publisher) -> Result<bool> {
        rounds::turn(&Publishing { spool: self, publisher }, &mut rounds::Held::default(), &self.clock).await
    }

    async fn next_integration(&self, after: &str) -> Result<Option<String>> {
        Ok(with!(self.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT integration_id FROM inbound_spool WHERE refused = '' AND integration_id > $1 ORDER BY integration_id LIMIT 1",
            )
            .bind(after)
            .fetch_optional(c)
            .await
        })?)
    }

    /// In order, up to the first that must wait.
    async fn publish_page(&self, integration: &str, publisher: &Publisher) -> Result<bool> {
        let rows: Vec<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT * FROM inbound_spool WHERE refused = '' AND integration_id = $1 ORDER BY sequence LIMIT $2",
            )
            .bind(integration)
            .bind(PAGE)
            .fetch_all(c)
            .await
        })?;
        let (mut done, mut outcome) = (Vec::new(), Ok(!rows.is_empty()));
        for row in rows {
            match self.publish_row(&row, publisher).await {
                Ok(()) => done.push(row.sequence),
                Err(error) if can_wait(&error) => {
                    outcome = Err(error);
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, integration.id = integration, event.id = row.event_id, "a spooled webhook was refused for good");
                    metrics::counter!("inbound_spool_refused_total").increment(1);
                    self.set_aside_anew(&row, &error).await?;
                }
            }
        }
        self.remove(&done).await?;
        outcome
    }

    async fn publish_row(&self, row: &Row, publisher: &Publisher) -> Result<()> {
        let organization = OrganizationId::parse(&row.organization_id)?;
        let body = self.open(&organization, row).await?;
        let received_at = from_micros(row.received_at);
        let event = event(row, &body, received_at)?;
        let (integration, supplier_id) = (row.integration_id.clone(), row.supplier_id.clone());
        let sender = Sender { organization, integration, supplier_id };
        // A second time for one that a stop came between: the router keeps one event per id.
        publisher.publish(&sender, &event).await.map(drop)
    }

    /// All in one transaction, each by its own number: one that was committed late may have a lower one.
    async fn remove(&self, done: &[i64]) -> Result<()> {
        if done.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        for sequence in done {
            remove_in(&mut tx, *sequence).await?;
        }
        tx.commit().await
    }

    /// What is sealed in a row.
    pub(super) async fn open(&self, organization: &OrganizationId, row: &Row) -> Result<Vec<u8>> {
        self.keys.of(organization).await?.open(&place_of(&row.event_id), &row.body)
    }

    /// One that was set aside.
    ///
    /// # Errors
    /// `Error::NotFound` also for another organization's, and for one that waits.
    pub(super) async fn row(&self, organization: &OrganizationId, sequence: i64) -> Result<Row> {
        let row = with!(self.store.reader(), c => {
            sqlx::query_as("SELECT * FROM inbound_spool WHERE organization_id = $1 AND sequence = $2 AND refused <> ''")
                .bind(organization.as_str())
                .bind(sequence)
                .fetch_optional(c)
                .await
        })?;
        row.ok_or_else(|| Error::NotFound("webhook".into()))
    }

    /// Those that were set aside of an organization, of one integration or of all.
    pub(super) async fn set_aside(
        &self,
        organization: &OrganizationId,
        integration: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<SetAside>> {
        Ok(with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT sequence, integration_id, received_at, refused FROM inbound_spool WHERE organization_id = $1 \
                 AND refused <> '' AND ($2 = '' OR integration_id = $2) AND sequence > $3 ORDER BY sequence LIMIT $4",
            )
            .bind(organization.as_str())
            .bind(integration)
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await
        })?)
    }

    /// Publishes one that was set aside, which then goes.
    ///
    /// # Errors
    /// What the router, or its own content, has against it.
    pub(super) async fn publish_again(&self, row: &Row, publisher: &Publisher) -> Result<()> {
        self.publish_row(row, publisher).await?;
        self.remove(&[row.sequence]).await
    }

    /// Sets it aside, with why, which is returned as it is shown.
    pub(super) async fn set_aside_anew(&self, row: &Row, error: &Error) -> Result<String> {
        let reason = shown(&error.to_string());
        with!(self.store.writer(), c => {
            sqlx::query("UPDATE inbound_spool SET refused = $2 WHERE sequence = $1")
                .bind(row.sequence)
                .bind(&reason)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(reason)
    }

    /// Forgets what was set aside over 30 days ago, in small steps.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn purge(&self, now: Timestamp) -> Result<()> {
        loop {
            let purged = with!(self.store.writer(), c => {
                sqlx::query(
                    "DELETE FROM inbound_spool WHERE sequence IN (SELECT sequence FROM inbound_spool \
                     WHERE refused <> '' AND received_at < $1 ORDER BY received_at LIMIT $2)",
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

/// Takes a row out of the store, in the transaction of what becomes of it. False if it isn't there any more.
pub(super) async fn remove_in(tx: &mut Tx, sequence: i64) -> Result<bool> {
    Ok(with!(tx.on(), c => {
        sqlx::query("DELETE FROM inbound_spool WHERE sequence = $1")
            .bind(sequence)
            .execute(c)
            .await
            .map(|done| done.rows_affected() == 1)
    })?)
}

fn shown(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect()
}

async fn insert_in(tx: &mut Tx, key: &DataKey, sender: &Sender, new: &New<'_>) -> Result<()> {
    let sealed = key.seal(&place_of(new.event_id), new.body);
    with!(tx.on(), c => {
        sqlx::query(
            "INSERT INTO inbound_spool (integration_id, organization_id, supplier_id, event_id, traceparent, received_at, \
             body, refused, has_request) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&sender.integration)
        .bind(sender.organization.as_str())
        .bind(&sender.supplier_id)
        .bind(new.event_id)
        .bind(new.traceparent)
        .bind(new.at.as_microsecond())
        .bind(&sealed)
        .bind(new.refused)
        .bind(i64::from(new.has_request))
        .execute(c)
        .await
        .map(drop)
    })?;
    Ok(())
}

fn place_of(event_id: &str) -> Vec<u8> {
    place("inbound_spool", "body", event_id)
}

/// Reads the body anew, as it was read when it came.
fn event(row: &Row, body: &[u8], received_at: Timestamp) -> Result<Event> {
    match json::check(body).and_then(change) {
        Ok(change) => {
            Ok(Event { traceparent: row.traceparent.clone(), ..change_event(&change, &row.event_id, received_at) })
        }
        Err(Answer::Invalid { field, reason }) => Err(Error::Invalid { field, reason }),
        Err(_) => Err(Error::invalid("body", "can't be read")),
    }
}

/// Whether the same row may succeed later: what is wrong with us, our keys or our standing at the router can be mended.
pub(super) fn can_wait(error: &Error) -> bool {
    !matches!(
        error,
        Error::Invalid { .. }
            | Error::AlreadyExists(_)
            | Error::FailedPrecondition(_)
            | Error::OutOfRange { .. }
            | Error::NotFound(_)
    )
}

/// Integrations take turns, a page each.
struct Publishing<'a> {
    spool: &'a Spool,
    publisher: &'a Publisher,
}

impl Waiting for Publishing<'_> {
    const WHAT: &'static str = "spooled webhooks";

    async fn next(&self, after: &str) -> Result<Option<String>> {
        self.spool.next_integration(after).await
    }

    async fn page(&self, integration: &str) -> Result<bool> {
        self.spool.publish_page(integration, self.publisher).await
    }
}
