//! Hints: a vendor said that something of its changed, and it is read before anything is believed.
//!
//! A hint waits in the store, one per thing however often it is hinted at, and goes once what was read is resolved. Its
//! thing's id may be somebody's address: it is found by its keyed hash, and sealed. What
//! can't be read now is tried again with growing pauses, for a day; what is gone by then is found by reconciliation.

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKeys, place},
    store::{Store, Tx},
    tasks::Tasks,
    with,
};
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::sync::Notify;

use super::{
    account::{Account, Accounts},
    poll::Polls,
};
use crate::{
    connector::{Class, call::Caller},
    integration::Integration,
    record::{RecordKind, external_hash},
    resolve::{Incoming, Origin, Resolver},
};

/// Hints of one look, and of one integration in it: the others' come first then.
const PAGE: i64 = 100;
const PER_INTEGRATION: i64 = 8;
/// What is read at once.
const AT_ONCE: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(2);
const MOST_ATTEMPTS: i64 = 20;

/// Hints that wait. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rereads {
    store: Store,
    keys: DataKeys,
    clock: Clock,
    filled: Arc<Notify>,
}

/// What reads them.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) rereads: Rereads,
    pub(crate) accounts: Accounts,
    pub(crate) caller: Caller,
    pub(crate) resolver: Resolver,
    pub(crate) polls: Polls,
}

#[derive(sqlx::FromRow)]
struct Row {
    integration_id: String,
    kind: String,
    organization_id: String,
    external_hash: Vec<u8>,
    external_id: Vec<u8>,
    asked_at: i64,
    attempts: i64,
}

impl Rereads {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock, filled: Arc::default() }
    }

    /// Adds a hint to a transaction. One that waits already begins anew.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn put_in(
        &self,
        tx: &mut Tx,
        integration: &Integration,
        kind: RecordKind,
        external_id: &str,
        now: Timestamp,
    ) -> Result<()> {
        let key = self.keys.of(&integration.organization).await?;
        let hash = external_hash(&key, external_id);
        let sealed = key.seal(&place_of(&integration.id, kind.as_str(), &hash), external_id.as_bytes());
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO rereads (integration_id, kind, external_hash, external_id, organization_id, asked_at, attempts, next_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, 0, $6) ON CONFLICT (integration_id, kind, external_hash) \
                 DO UPDATE SET asked_at = excluded.asked_at, attempts = 0, next_at = excluded.next_at",
            )
            .bind(&integration.id)
            .bind(kind.as_str())
            .bind(hash)
            .bind(sealed)
            .bind(integration.organization.as_str())
            .bind(now.as_microsecond())
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Tells the reader that there is something to read.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    async fn due(&self) -> Result<Vec<Row>> {
        Ok(with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT integration_id, kind, organization_id, external_hash, external_id, asked_at, attempts FROM (SELECT *, \
                 ROW_NUMBER() OVER (PARTITION BY integration_id ORDER BY next_at) AS place FROM rereads WHERE next_at <= $1) AS due \
                 WHERE place <= $3 ORDER BY next_at LIMIT $2",
            )
            .bind(self.clock.now_micros())
            .bind(PAGE)
            .bind(PER_INTEGRATION)
            .fetch_all(c)
            .await
        })?)
    }

    async fn external_id(&self, row: &Row) -> Result<String> {
        let key = self.keys.of(&OrganizationId::parse(&row.organization_id)?).await?;
        let plain = key.open(&place_of(&row.integration_id, &row.kind, &row.external_hash), &row.external_id)?;
        String::from_utf8(plain).map_err(Error::internal)
    }

    /// Unless it was hinted at again meanwhile.
    async fn end(&self, row: &Row) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM rereads WHERE integration_id = $1 AND kind = $2 AND external_hash = $3 AND asked_at = $4")
                .bind(&row.integration_id)
                .bind(&row.kind)
                .bind(&row.external_hash)
                .bind(row.asked_at)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    async fn put_off(&self, row: &Row) -> Result<()> {
        let doubled = i32::try_from(row.attempts.min(11)).unwrap_or_default();
        let at = self.clock.now() + FIRST_PAUSE * 2_i32.pow(doubled.unsigned_abs());
        with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE rereads SET attempts = attempts + 1, next_at = $5 WHERE integration_id = $1 AND kind = $2 AND external_hash = $3 \
                 AND asked_at = $4",
            )
            .bind(&row.integration_id)
            .bind(&row.kind)
            .bind(&row.external_hash)
            .bind(row.asked_at)
            .bind(at.as_microsecond())
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }
}

impl Reader {
    /// Reads what is hinted at, until the process stops.
    pub(crate) async fn run(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            let turn = stopping.run_until_cancelled(self.turn()).await;
            let Some(turn) = turn else { return };
            if let Err(error) = &turn {
                tracing::warn!(%error, "hints of vendors wait for the store");
            }
            if matches!(turn, Ok(true)) {
                continue;
            }
            let rest = async {
                tokio::select! {
                    () = self.rereads.clock.sleep(LOOK_EVERY) => {}
                    () = self.rereads.filled.notified() => {}
                }
            };
            if stopping.run_until_cancelled(rest).await.is_none() {
                return;
            }
        }
    }

    /// Whether there was anything.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn turn(&self) -> Result<bool> {
        let rows = self.rereads.due().await?;
        let any = !rows.is_empty();
        let read = stream::iter(rows).map(|row| self.settle(row)).buffer_unordered(AT_ONCE);
        let ended: Vec<Result<()>> = read.collect().await;
        ended.into_iter().collect::<Result<()>>()?;
        Ok(any)
    }

    async fn settle(&self, row: Row) -> Result<()> {
        let account = self.accounts.get(&row.integration_id).filter(|account| account.is_told());
        let (Some(account), Some(kind)) = (account, RecordKind::parse(&row.kind)) else {
            return self.rereads.end(&row).await;
        };
        let read = async { self.read(&account, kind, &self.rereads.external_id(&row).await?).await };
        match read.await {
            Ok(()) => self.rereads.end(&row).await,
            Err(error) if row.attempts + 1 >= MOST_ATTEMPTS => {
                tracing::error!(%error, integration.id = row.integration_id, "what a vendor hinted at can't be read; given up");
                self.rereads.end(&row).await
            }
            Err(error) => {
                tracing::debug!(%error, integration.id = row.integration_id, "what a vendor hinted at can't be read yet");
                self.rereads.put_off(&row).await
            }
        }
    }

    async fn read(&self, account: &Account, kind: RecordKind, external_id: &str) -> Result<()> {
        let (integration, connector) = (&account.integration, &account.connector);
        let Some(spec) = connector.record(kind) else { return Ok(()) };
        // Where it can't be read by its id, what changed is found as a poll finds it.
        let Some(read) = spec.read.as_ref().filter(|_| !external_id.is_empty()) else {
            return self.polls.poll(account, kind).await.map(drop);
        };
        let scope = json!({"link": {"external_id": external_id}});
        let settings = connector.filled(&integration.settings.parameters);
        let now = self.rereads.clock.now();
        let incoming = match self.caller.call(integration, read, &scope).await {
            Ok(reply) => {
                let item = spec.item(&reply.resource, &settings);
                let item =
                    item.map_err(|reason| Error::Unavailable(format!("its resource can't be read: {reason}")))?;
                Incoming {
                    kind,
                    external_id: item.external_id,
                    external_version: item.external_version,
                    at: item.at.unwrap_or(now),
                    fields: item.fields,
                    deleted: item.deleted,
                    priority_low: false,
                    origin: Origin::Poll,
                }
            }
            Err(error) if error.class == Class::Gone => Incoming {
                kind,
                external_id: external_id.to_owned(),
                external_version: String::new(),
                at: now,
                fields: Default::default(),
                deleted: true,
                priority_low: false,
                origin: Origin::Poll,
            },
            Err(error) => return Err(Error::Unavailable(error.to_string())),
        };
        self.resolver.take(integration, vec![incoming]).await.map(drop)
    }
}

fn place_of(integration_id: &str, kind: &str, hash: &[u8]) -> Vec<u8> {
    place("rereads", "external_id", &format!("{integration_id}/{kind}/{}", hex::encode(hash)))
}

#[cfg(test)]
mod tests {
    use chassis::{config::Secret, service::Chassis, testing::on_each_engine};

    use super::*;
    use crate::integration::{Integrations, Kind, tests::settings};

    #[tokio::test]
    async fn a_vendor_with_many_hints_leaves_room_for_others_in_each_look() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], async |store| {
            let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("a key"), Clock::System);
            let rereads = Rereads::new(store.clone(), keys, Clock::System);
            for number in 0..120_i64 {
                let integration = if number < 119 { "many" } else { "other" };
                with!(store.writer(), c => {
                    let text = "INSERT INTO rereads (integration_id, kind, external_hash, external_id, organization_id, asked_at, attempts, next_at) \
                                VALUES ($1, 'client', $2, $2, 'acme', 0, 0, $3)";
                    sqlx::query(text).bind(integration).bind(vec![number as u8]).bind(number).execute(c).await.map(drop)
                })
                .expect("a hint");
            }
            let due = rereads.due().await.expect("they are read");
            assert_eq!((due.len(), due[8].integration_id.as_str()), (9, "other"));
        })
        .await;
    }

    #[tokio::test]
    async fn what_a_hint_is_about_is_not_legible_in_the_store_and_waits_once() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], async |store| {
            let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("a key"), Clock::System);
            let integrations = Integrations::new(store.clone(), keys.clone(), Clock::System);
            let (acme, secret) = (OrganizationId::parse("acme").expect("one"), Secret::from("s".repeat(24)));
            let integration = integrations.create(acme, settings(Kind::Connector), &secret).await.expect("created");
            let rereads = Rereads::new(store.clone(), keys, Clock::System);
            for _ in 0..2 {
                let mut tx = store.begin().await.expect("it begins");
                let (kind, now) = (RecordKind::Client, Clock::System.now());
                rereads.put_in(&mut tx, &integration, kind, "anna@example.com", now).await.expect("it is kept");
                tx.commit().await.expect("it is durable");
            }
            let due = rereads.due().await.expect("they are read");
            assert_eq!(due.len(), 1);
            for kept in [&due[0].external_hash, &due[0].external_id] {
                assert!(!String::from_utf8_lossy(kept).contains("anna"));
            }
            assert_eq!(rereads.external_id(&due[0]).await.expect("it opens"), "anna@example.com");
            rereads.end(&due[0]).await.expect("it is read");
            assert!(rereads.due().await.expect("they are read").is_empty());
        })
        .await;
    }
}
