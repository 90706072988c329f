//! The way out: messages that were recorded are given to the lanes, and carried from there.
//!
//! One lane per organization and channel: all of an organization's mail goes to one server, so its breaker and its slots
//! belong together, and one organization's flood never delays another's.
//!
//! Guarantee: a recorded message is offered to its lane until that has it for good, across crashes, and never twice. It
//! then leaves the outbox, and only the lane's (sealed) copy remains until it is sent. What an earlier attempt may have brought
//! to its provider is only ever resumed, by that provider.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::OrganizationId,
    lane::{Attempted, Blame, Courier, Delivery, Dispatcher, Offer, Outcome, Settings},
    secret::DataKeys,
    store::Store,
    with,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    channel::{Carriage, Channels, provider::Class},
    failover,
    last_look::{Look, last_look},
    notification::content_place,
    suppression::{self, Listed, Reason},
};

/// Messages in one pass.
const PAGE: i64 = 200;
/// How long to wait when the store is away.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it is tried to find out whether a message was taken: Resend keeps an idempotency key for a day.
const SETTLED_WITHIN: SignedDuration = SignedDuration::from_hours(23);
/// Our mail server is never gone for good: a lane that fails waits on, however long that takes.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Carries what lies in the lanes, by its channel.
pub(crate) struct Post {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
    pub(crate) channels: Arc<Channels>,
    /// What goes on after a failure waits for it.
    pub(crate) later: Arc<Notify>,
}

impl Post {
    /// An address that reaches nobody isn't used again, and what is urgent and was refused for good goes on to another channel.
    async fn failed(&self, delivery: &Delivery, to: Option<String>, class: &str) {
        let noting = async {
            let ended = self.ended_address(delivery, to, class).await?;
            let now = self.clock.now();
            let mut tx = self.store.begin().await?;
            if let Some((listed, reason)) = &ended {
                suppression::list_in(&mut tx, listed, *reason, "its provider", now).await?;
            }
            let noted = failover::note(&mut tx, &delivery.event, now).await?;
            tx.commit().await.map(|()| noted)
        };
        match noting.await {
            Ok(true) => self.later.notify_one(),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "can't note that a message failed; no other channel is tried"),
        }
    }

    /// The address that an attempt found to reach nobody, as its message was written to it; a room is looked after elsewhere.
    async fn ended_address(
        &self,
        delivery: &Delivery,
        to: Option<String>,
        class: &str,
    ) -> Result<Option<(Listed, Reason)>> {
        let (Some(to), Some(reason)) = (to, Class::ends_address(class)) else { return Ok(None) };
        let organization = delivery.organization.clone();
        let hash = suppression::hash(&organization, &to);
        let channel: Option<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT channel FROM messages WHERE uid = $1 AND address = $2 AND recipient_id NOT LIKE 'room:%'",
        ).bind(&delivery.event[..]).bind(&hash).fetch_optional(c).await)?;
        let Some(channel) = channel else { return Ok(None) };
        let sealed = suppression::seal(&*self.keys.of(&organization).await?, &channel, &hash, &to);
        Ok(Some((Listed { organization, channel, hash, sealed }, reason)))
    }
}

impl Courier for Post {
    async fn attempt(&self, delivery: Arc<Delivery>) -> Attempted {
        match last_look(&self.store, &self.keys, &self.clock, &delivery).await {
            Ok(Look::Send) => {}
            Ok(Look::Drop(class, why)) => return ended(Outcome::Permanent, class, &why),
            Ok(Look::Wait(after)) => {
                return ended(
                    Outcome::Retry { after: Some(after), blame: Blame::Message },
                    "quiet",
                    "their quiet hours",
                );
            }
            Err(error) => {
                tracing::warn!(%error, "can't look a message up before sending it; it waits");
                return ended(Outcome::Retry { after: None, blame: Blame::Message }, "store", "the store was away");
            }
        }
        let channel = delivery.lane_id.split_once(':').and_then(|(channel, _)| self.channels.get(channel));
        let unsettled = match unsettled_since(&self.store, &delivery).await {
            Ok(Some(since)) if since + SETTLED_WITHIN <= self.clock.now() => return never_settled(),
            Ok(since) => since,
            Err(error) => {
                tracing::warn!(%error, "can't look up what became of a message before; it waits");
                return ended(Outcome::Retry { after: None, blame: Blame::Message }, "store", "the store was away");
            }
        };
        match channel.map(|channel| channel.carriage()) {
            Some(Carriage::Carry(carrier)) => {
                let attempted = match unsettled {
                    Some(_) => carrier.resume(&delivery).await,
                    None => carrier.carry(&delivery).await,
                };
                if matches!(attempted.outcome, Outcome::Permanent | Outcome::Gone) {
                    self.failed(&delivery, carrier.goes_to(&delivery), attempted.class).await;
                }
                attempted
            }
            _ => ended(
                Outcome::Retry { after: None, blame: Blame::Destination },
                "channel",
                "the channel is not set up here any more",
            ),
        }
    }

    async fn closed(&self, lane_id: &str, reason: &str) {
        tracing::error!(lane.id = lane_id, reason, "a lane to people was closed; what waited in it can be recovered");
    }
}

/// When a message was given to its provider that may have taken it; none if none can have.
async fn unsettled_since(store: &Store, delivery: &Delivery) -> Result<Option<Timestamp>> {
    if delivery.attempts == 0 {
        return Ok(None);
    }
    let since: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT MIN(started_at) FROM attempts WHERE delivery = $1 AND outcome IN ('unsettled', 'unknown')",
    ).bind(delivery.id).fetch_one(c).await)?;
    Ok(since.map(from_micros))
}

fn never_settled() -> Attempted {
    ended(Outcome::Unknown, "unknown", "its provider didn't say within a day whether it has it; it may have been taken")
}

fn ended(outcome: Outcome, class: &'static str, error: &str) -> Attempted {
    Attempted { outcome, status_code: None, class, error: error.to_owned(), response: Bytes::new() }
}

/// Gives what was recorded to the lanes.
pub(crate) struct Outbox {
    store: Store,
    keys: DataKeys,
    dispatcher: Dispatcher,
    wake: Arc<Notify>,
    open: HashSet<String>,
}

#[derive(sqlx::FromRow)]
struct Row {
    uid: Vec<u8>,
    organization_id: String,
    recipient_id: String,
    channel: String,
    priority: i64,
    content: Vec<u8>,
    workflow: String,
    event_id: String,
}

impl Outbox {
    pub(crate) fn new(store: Store, keys: DataKeys, dispatcher: Dispatcher, wake: Arc<Notify>) -> Self {
        Self { store, keys, dispatcher, wake, open: HashSet::new() }
    }

    /// Opens the lanes that there are, so that what waits in them goes on.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn reopen(&mut self) -> Result<()> {
        let lanes: Vec<(String, String)> = with!(self.store.reader(), c => sqlx::query_as("SELECT id, organization_id FROM lanes ORDER BY number").fetch_all(c).await)?;
        for (lane, organization) in lanes {
            self.open(&lane, &OrganizationId::parse(&organization)?).await?;
        }
        Ok(())
    }

    /// Empties the outbox whenever it is woken, until told to stop.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let wake = Arc::clone(&self.wake);
        while !stopping.is_cancelled() {
            match self.pass().await {
                Ok(passed) if passed == PAGE => {}
                Ok(_) => drop(stopping.run_until_cancelled(wake.notified()).await),
                Err(error) => {
                    tracing::warn!(%error, "recorded messages can't be given to their lanes; trying again in a second");
                    stopping.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                }
            }
        }
    }

    /// Gives up to a page of messages to their lanes, the most urgent first; gives their number.
    async fn pass(&mut self) -> Result<i64> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT m.uid, m.organization_id, m.recipient_id, m.channel, m.priority, m.content, n.workflow, n.event_id
             FROM messages AS m JOIN notifications AS n ON n.id = m.notification_id
             WHERE m.content IS NOT NULL AND m.cancelled = 0 ORDER BY m.priority, m.created_at LIMIT $1",
        ).bind(PAGE).fetch_all(c).await)?;
        let passed = i64::try_from(rows.len()).unwrap_or(PAGE);
        let mut promises = Vec::with_capacity(rows.len());
        for row in rows {
            let (name, organization) = (row.uid.clone(), row.organization_id.clone());
            let offer = match self.offer(row).await {
                Err(error) if !error.is_retryable() => {
                    self.give_up(&name, &error).await?;
                    continue;
                }
                offer => offer?,
            };
            self.open(&offer.lane_id, &OrganizationId::parse(&organization)?).await?;
            let uid = offer.event;
            // Each by itself, and as one that may be known: a crash may have come between the lane's commit and ours.
            promises.push((uid, self.dispatcher.offer(vec![offer], true).await?));
        }
        let mut taken = Vec::with_capacity(promises.len());
        for (uid, promise) in promises {
            promise.wait().await?;
            taken.push(uid);
        }
        self.forget(&taken).await?;
        Ok(passed)
    }

    async fn offer(&self, row: Row) -> Result<Offer> {
        let organization = OrganizationId::parse(&row.organization_id)?;
        let uid: [u8; 16] =
            row.uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
        let content = self.keys.of(&organization).await?.open(&content_place(&uid), &row.content)?;
        Ok(Offer {
            lane_id: format!("{}:{organization}", row.channel).into(),
            event: uid,
            event_id: row.event_id,
            event_type: row.workflow,
            ordering_key: row.recipient_id,
            priority: row.priority,
            origin: "realtime".to_owned(),
            content: content.into(),
        })
    }

    /// Ends a message that can't be read: it would hold up everybody's. Its text stays, should its key come back.
    async fn give_up(&self, uid: &[u8], error: &Error) -> Result<()> {
        tracing::error!(%error, message = hex::encode(uid), "a message can't be read; it isn't sent");
        with!(self.store.writer(), c => sqlx::query(
            "UPDATE messages SET cancelled = 1, ended = 'its text can''t be read: was a master key or the store replaced?' WHERE uid = $1",
        ).bind(uid).execute(c).await.map(drop))?;
        Ok(())
    }

    async fn open(&mut self, lane: &str, organization: &OrganizationId) -> Result<()> {
        if !self.open.contains(lane) {
            // No person is to be told twice, and a mail server can't drop a repeat: not `repeatable`.
            let settings = Settings { disable_after: NEVER, ..Settings::default() };
            self.dispatcher.open(lane, organization, settings).await?;
            self.open.insert(lane.to_owned());
        }
        Ok(())
    }

    async fn forget(&self, taken: &[[u8; 16]]) -> Result<()> {
        if taken.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        for uid in taken {
            with!(tx.on(), c => sqlx::query("UPDATE messages SET content = NULL WHERE uid = $1").bind(&uid[..]).execute(c).await.map(drop))?;
        }
        tx.commit().await
    }
}

#[cfg(test)]
mod resume;
#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicU32, Ordering},
    };

    use chassis::{
        lane,
        secret::{Keyring, KeyringSettings, generate_master_key},
        store,
        tasks::Tasks,
        testing::on_each_engine,
    };

    use super::*;
    use crate::{
        MIGRATIONS,
        collapse::Said,
        kept::Kept,
        notification::{Beside, NewMessage, NewNotification, Recorded, Route, message_uid, record},
    };

    /// Counts what it is given.
    struct Counting {
        carried: AtomicU32,
        ended: Notify,
    }

    impl Courier for Counting {
        async fn attempt(&self, delivery: Arc<Delivery>) -> Attempted {
            assert_eq!(&delivery.content[..], b"a letter");
            self.carried.fetch_add(1, Ordering::SeqCst);
            self.ended.notify_one();
            ended(Outcome::Delivered, "delivered", "")
        }

        async fn closed(&self, _: &str, _: &str) {}
    }

    async fn recorded(store: &Store, keys: &DataKeys, event: &str) -> [u8; 16] {
        let organization = OrganizationId::parse("o").unwrap();
        let new = NewNotification {
            organization: organization.clone(),
            workflow: "w".to_owned(),
            event_id: event.to_owned(),
            event_uid: event.to_owned(),
            priority: 3,
            collapse_key: String::new(),
            request: Vec::new(),
            override_by: String::new(),
            override_reason: String::new(),
            confirms: None,
        };
        let uid = message_uid(&organization, event, "w", "r", "email");
        let message = NewMessage {
            uid,
            recipient: "r".to_owned(),
            channel: "email".to_owned(),
            route: Route::Lane,
            reason: "because".to_owned(),
            content: Bytes::from_static(b"a letter"),
            trail: Vec::new(),
            address: None,
            hold: None,
            carried_by: None,
        };
        let said = Said { organization: &organization, workflow: "w", key: "", is_change: false };
        let (kept, beliefs) = (Kept::default(), HashMap::new());
        let beside = Beside {
            said: &said,
            told_by: None,
            kept: &kept,
            fact: None,
            beliefs: &beliefs,
            urgent: false,
            asks: None,
            escalates: None,
        };
        let recorded = record(store, keys, &new, &[message], &beside, Clock::System.now()).await.unwrap();
        assert!(matches!(recorded, Recorded::New(..)), "the first of its event");
        uid
    }

    #[tokio::test]
    async fn a_message_that_cant_be_read_holds_up_no_other() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let settings = KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] };
            let keys = DataKeys::new(store.clone(), Keyring::new(&settings).unwrap(), Clock::System);
            let broken = recorded(&store, &keys, "e1").await;
            with!(store.writer(), c => sqlx::query("UPDATE messages SET content = $1").bind(&b"another key's"[..]).execute(c).await.map(drop)).unwrap();
            recorded(&store, &keys, "e2").await;
            let tasks = Tasks::default();
            let courier = Arc::new(Counting { carried: AtomicU32::new(0), ended: Notify::new() });
            let dispatcher =
                Dispatcher::start(store.clone(), keys.clone(), Arc::clone(&courier), Default::default(), Clock::System, &tasks).await.unwrap();
            let mut outbox = Outbox::new(store.clone(), keys, dispatcher, Arc::default());
            assert_eq!(outbox.pass().await.unwrap(), 2);
            courier.ended.notified().await;
            assert_eq!(outbox.pass().await.unwrap(), 0, "it is given up");
            let ended: String = with!(store.reader(), c => sqlx::query_scalar("SELECT ended FROM messages WHERE uid = $1 AND content IS NOT NULL")
                .bind(&broken[..]).fetch_one(c).await).unwrap();
            assert!(ended.contains("can't be read"), "{ended}");
            assert!(tasks.stop(Duration::from_secs(5)).await);
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_recorded_before_a_crash_is_sent_after_it_and_once() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let settings = KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] };
            let keys = DataKeys::new(store.clone(), Keyring::new(&settings).unwrap(), Clock::System);
            // Recorded; then a crash, before any lane heard of it.
            let uid = recorded(&store, &keys, "e1").await;
            let tasks = Tasks::default();
            let courier = Arc::new(Counting { carried: AtomicU32::new(0), ended: Notify::new() });
            let dispatcher =
                Dispatcher::start(store.clone(), keys.clone(), Arc::clone(&courier), Default::default(), Clock::System, &tasks).await.unwrap();
            let mut outbox = Outbox::new(store.clone(), keys.clone(), dispatcher, Arc::default());
            outbox.reopen().await.unwrap();
            assert_eq!(outbox.pass().await.unwrap(), 1);
            courier.ended.notified().await;
            assert_eq!(outbox.pass().await.unwrap(), 0);

            // A crash between the lane's commit and the outbox's: the message is still there, and is not sent again.
            let sealed = keys.of(&OrganizationId::parse("o").unwrap()).await.unwrap().seal(&content_place(&uid), b"a letter");
            with!(store.writer(), c => sqlx::query("UPDATE messages SET content = $1").bind(&sealed).execute(c).await.map(drop)).unwrap();
            assert_eq!(outbox.pass().await.unwrap(), 1);
            recorded(&store, &keys, "e2").await;
            assert_eq!(outbox.pass().await.unwrap(), 1);
            courier.ended.notified().await;
            assert_eq!(courier.carried.load(Ordering::SeqCst), 2, "one for each event");
            assert!(tasks.stop(Duration::from_secs(5)).await);
        })
        .await;
    }
}
