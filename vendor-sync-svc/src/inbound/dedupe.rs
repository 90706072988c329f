//! Whether a request was processed before, and the one id that its event gets however often it comes.
//!
//! A receipt is written only once the router has confirmed the event: after a crash in between, the sender's retry is
//! published again under the same id, and the router keeps one. Receipts outlive the replay window and the retries of
//! senders that give up after three days; what comes later still is stopped by the router as long as it keeps the event.

use chassis::{
    error::Result,
    id,
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{Answer, verify::Proof};
use crate::integration::Integration;

const KEEP: SignedDuration = SignedDuration::from_hours(4 * 24);
const PURGE_STEP: i64 = 500;
const EVENT_ID_BYTES: usize = 128;

/// What a request is recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Of its event; begins with the integration's id.
    pub(super) event_id: String,
    body_hash: [u8; 32],
    /// The body stands for the message; else the sender's id does, and two messages may have one body.
    by_body: bool,
}

impl Key {
    fn new(integration: &str, proof: Proof, body: &[u8], now: Timestamp) -> Self {
        let of_body = || Sha256::digest(body).into();
        match proof {
            Proof::Id(id) => Self { event_id: named(integration, &id), body_hash: of_body(), by_body: false },
            Proof::Body => Self::by_hash(integration, of_body()),
            Proof::Members(hash) => Self::by_hash(integration, hash),
            Proof::Sender => Self { event_id: id::uuid(now), body_hash: of_body(), by_body: false },
        }
    }

    /// Of a message whose event has this id.
    pub(super) fn of_event(event_id: &str) -> Self {
        Self { event_id: event_id.to_owned(), body_hash: [0; 32], by_body: false }
    }

    fn by_hash(integration: &str, body_hash: [u8; 32]) -> Self {
        Self { event_id: format!("{integration}:sha256:{}", hex::encode(body_hash)), body_hash, by_body: true }
    }
}

/// The sender's id where an event's id can hold it, else its hash: cutting it would make two ids one.
fn named(integration: &str, id: &str) -> String {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_:.-".contains(&b);
    let fits = integration.len() + 1 + id.len() <= EVENT_ID_BYTES && id.bytes().all(allowed);
    if fits {
        format!("{integration}:{id}")
    } else {
        format!("{integration}:id-sha256:{}", hex::encode(Sha256::digest(id)))
    }
}

/// The requests that were processed. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Receipts {
    store: Store,
}

impl Receipts {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }

    /// The key of a request that wasn't processed yet.
    ///
    /// # Errors
    /// `Answer::Duplicate`, or `Answer::Conflict` if its id came with another body.
    pub(super) async fn dedupe(
        &self,
        integration: &Integration,
        proof: Proof,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Key, Answer> {
        if proof == Proof::Sender {
            return Ok(Key::new(&integration.id, proof, body, now));
        }
        let key = Key::new(&integration.id, proof, body, now);
        match self.find(&integration.id, &key).await? {
            None => Ok(key),
            Some((event_id, body_hash)) if body_hash == key.body_hash => Err(Answer::Duplicate { event_id }),
            Some(_) => Err(Answer::Conflict),
        }
    }

    /// By its body a request is found also where it came with an id before: leaving the id out makes no new message.
    async fn find(&self, integration: &str, key: &Key) -> Result<Option<(String, Vec<u8>)>> {
        let found = if key.by_body {
            with!(self.store.reader(), c => {
                sqlx::query_as("SELECT event_id, body_hash FROM inbound_receipts WHERE integration_id = $1 AND body_hash = $2 LIMIT 1")
                    .bind(integration)
                    .bind(&key.body_hash[..])
                    .fetch_optional(c)
                    .await
            })?
        } else {
            with!(self.store.reader(), c => {
                sqlx::query_as("SELECT event_id, body_hash FROM inbound_receipts WHERE event_id = $1")
                    .bind(&key.event_id)
                    .fetch_optional(c)
                    .await
            })?
        };
        Ok(found)
    }

    /// Remembers a request that the router has confirmed.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn record(&self, integration: &Integration, key: &Key, at: Timestamp) -> Result<()> {
        let mut tx = self.store.begin().await?;
        self.record_in(&mut tx, integration, key, at).await?;
        tx.commit().await
    }

    /// The same in a transaction; false if it was recorded before.
    ///
    /// # Errors
    /// Likewise.
    pub(super) async fn record_in(
        &self,
        tx: &mut Tx,
        integration: &Integration,
        key: &Key,
        at: Timestamp,
    ) -> Result<bool> {
        let new = with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO inbound_receipts (event_id, integration_id, body_hash, received_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(&key.event_id)
            .bind(&integration.id)
            .bind(&key.body_hash[..])
            .bind(at.as_microsecond())
            .execute(c)
            .await
            .map(|done| done.rows_affected() > 0)
        })?;
        with!(tx.on(), c => {
            sqlx::query("UPDATE integrations SET last_received_at = $2 WHERE id = $1")
                .bind(&integration.id)
                .bind(at.as_microsecond())
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(new)
    }

    /// Forgets what is older than four days, in small steps.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn purge(&self, now: Timestamp) -> Result<()> {
        let before = (now - KEEP).as_microsecond();
        loop {
            let purged = with!(self.store.writer(), c => {
                sqlx::query(
                    "DELETE FROM inbound_receipts WHERE event_id IN \
                     (SELECT event_id FROM inbound_receipts WHERE received_at < $1 ORDER BY received_at LIMIT $2)",
                )
                .bind(before)
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

#[cfg(test)]
mod tests {
    use chassis::testing::{noon, on_each_engine};
    use proptest::prelude::*;

    use super::*;
    use crate::inbound::tests::{MIGRATIONS, integration};
    use crate::integration::Kind;

    #[tokio::test]
    async fn a_receipt_makes_a_repeat_a_duplicate_and_another_body_a_conflict() {
        on_each_engine(MIGRATIONS, async |store| {
            let (receipts, integration) = (Receipts::new(store), integration(Kind::SignedWebhook));
            let dedupe = async |proof: Proof, body: &[u8]| receipts.dedupe(&integration, proof, body, noon()).await;
            let id = || Proof::Id("msg_1".to_owned());
            let key = dedupe(id(), b"{}").await.expect("new");
            assert_eq!(dedupe(id(), b"{}").await, Ok(key.clone()), "nothing is recorded before the router's answer");
            receipts.record(&integration, &key, noon()).await.expect("recorded");
            let duplicate = Err(Answer::Duplicate { event_id: key.event_id.clone() });
            assert_eq!(dedupe(id(), b"{}").await, duplicate);
            assert_eq!(dedupe(id(), b"{ }").await, Err(Answer::Conflict));
            assert_eq!(dedupe(Proof::Body, b"{}").await, duplicate, "stripped of its id");
            assert!(
                dedupe(Proof::Id("msg_2".to_owned()), b"{}").await.is_ok(),
                "the same body again, as another message"
            );
            let other = Integration { id: "01990000-0000-7000-8000-000000000002".to_owned(), ..integration.clone() };
            assert!(receipts.dedupe(&other, Proof::Body, b"{}", noon()).await.is_ok(), "another integration's");
        })
        .await;
    }

    #[tokio::test]
    async fn receipts_outlive_three_days_of_retries_and_then_go() {
        on_each_engine(MIGRATIONS, async |store| {
            let (receipts, integration) = (Receipts::new(store), integration(Kind::SignedWebhook));
            for n in 0..1_100 {
                let key = Key::new(&integration.id, Proof::Id(format!("m{n}")), b"{}", noon());
                receipts.record(&integration, &key, noon()).await.expect("recorded");
            }
            let is_known =
                async || receipts.dedupe(&integration, Proof::Id("m7".to_owned()), b"{}", noon()).await.is_err();
            receipts.purge(noon() + SignedDuration::from_hours(73)).await.expect("purged");
            assert!(is_known().await);
            receipts.purge(noon() + SignedDuration::from_hours(97)).await.expect("purged");
            assert!(!is_known().await);
        })
        .await;
    }

    proptest! {
        #[test]
        fn event_ids_are_well_formed_and_differ_where_the_senders_do(one in "\\PC{1,256}", two in "[a-z/._-]{1,100}") {
            let integration = "01990000-0000-7000-8000-000000000001";
            let (first, second) = (named(integration, &one), named(integration, &two));
            for id in [&first, &second] {
                prop_assert!(id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:.-".contains(&b)), "{id}");
            }
            prop_assert_eq!(first == second, one == two);
        }
    }
}
