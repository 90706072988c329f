//! Connections in the store. A change of state and the event that tells of it are written together.
//!
//! Invariant: a credential replaces only the version that its writer began with, so that nobody's late answer undoes what
//! somebody else did meanwhile.

use std::collections::BTreeMap;

use chassis::{
    clock::{Clock, from_micros},
    config::Secret,
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::{App, Changed, Kept, State, Tokens};
use crate::{
    health::behind::{self, Outcome},
    integration::Integration,
    notice,
    outbox::Outbox,
};

const TABLE: &str = "connections";
/// Weddings that are told to be over in one step.
const GIVEN_UP: i64 = 100;

/// How one integration is connected.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) state: State,
    /// Why it isn't connected, for people.
    pub(crate) reason: String,
    pub(crate) since: Timestamp,
    /// Raised by each new credential.
    pub(crate) version: u64,
    pub(crate) kept: Option<Kept>,
    /// What was in force before the last rotation, while the overlap lasts.
    pub(crate) old: Option<(Kept, Timestamp)>,
    /// When the vendor last refused the new one and took the old.
    pub(crate) old_used_at: Option<Timestamp>,
    /// Settings that the vendor gave when it was connected.
    pub(crate) yielded: BTreeMap<String, String>,
    pub(crate) refresh_at: Option<Timestamp>,
    /// Of refreshing, in a row.
    pub(crate) failures: u32,
    pub(crate) lease_epoch: i64,
    /// Until then somebody refreshes; in the past: they never came to an end.
    pub(crate) lease_until: Option<Timestamp>,
}

/// All connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connections {
    pub(super) store: Store,
    pub(super) keys: DataKeys,
    outbox: Outbox,
    pub(super) clock: Clock,
    changed: broadcast::Sender<Changed>,
}

#[derive(sqlx::FromRow)]
struct Row {
    state: String,
    reason: String,
    since: i64,
    version: i64,
    credential: Option<Vec<u8>>,
    old_credential: Option<Vec<u8>>,
    old_expires_at: Option<i64>,
    old_used_at: Option<i64>,
    yielded: String,
    refresh_at: Option<i64>,
    failures: i64,
    lease_epoch: i64,
    lease_until: Option<i64>,
}

/// A credential as it is sealed; [`Secret`] itself doesn't print.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    None,
    Key(String),
    Basic { user: String, password: String },
    Tokens { access: String, refresh: String, expires_at: Option<Timestamp>, app: Option<(String, String)> },
}

impl Written {
    fn of(kept: &Kept) -> Self {
        let text = |secret: &Secret| secret.expose().to_owned();
        match kept {
            Kept::None => Self::None,
            Kept::Key(key) => Self::Key(text(key)),
            Kept::Basic { user, password } => Self::Basic { user: user.clone(), password: text(password) },
            Kept::Tokens { tokens: Tokens { access, refresh, expires_at }, app } => Self::Tokens {
                access: text(access),
                refresh: text(refresh),
                expires_at: *expires_at,
                app: app.as_ref().map(|app| (app.id.clone(), text(&app.secret))),
            },
        }
    }

    fn kept(self) -> Kept {
        match self {
            Self::None => Kept::None,
            Self::Key(key) => Kept::Key(key.into()),
            Self::Basic { user, password } => Kept::Basic { user, password: password.into() },
            Self::Tokens { access, refresh, expires_at, app } => Kept::Tokens {
                tokens: Tokens { access: access.into(), refresh: refresh.into(), expires_at },
                app: app.map(|(id, secret)| App { id, secret: secret.into() }),
            },
        }
    }
}

impl Connections {
    /// Over the tables of `store`; each change of state is told to `changed` too.
    pub(crate) fn new(
        store: Store,
        keys: DataKeys,
        outbox: Outbox,
        clock: Clock,
        changed: broadcast::Sender<Changed>,
    ) -> Self {
        Self { store, keys, outbox, clock, changed }
    }

    /// How `integration` is connected; none: it never was.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn get(&self, integration: &Integration) -> Result<Option<Connection>> {
        let row = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM connections WHERE organization_id = $1 AND integration_id = $2")
                .bind(integration.organization.as_str())
                .bind(&integration.id)
                .fetch_optional(c)
                .await
        })?;
        match row {
            Some(row) => Ok(Some(self.open(integration, row).await?)),
            None => Ok(None),
        }
    }

    async fn open(&self, integration: &Integration, row: Row) -> Result<Connection> {
        let state = State::parse(&row.state)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("connection of {} has no known state", integration.id)))?;
        let kept = self.unseal(integration, "credential", row.credential).await?;
        let old = match row.old_expires_at.map(from_micros) {
            Some(until) if until > self.clock.now() => {
                self.unseal(integration, "old_credential", row.old_credential).await?.map(|old| (old, until))
            }
            _ => None,
        };
        Ok(Connection {
            state,
            reason: row.reason,
            since: from_micros(row.since),
            version: row.version.unsigned_abs(),
            kept,
            old,
            old_used_at: row.old_used_at.map(from_micros),
            yielded: serde_json::from_str(&row.yielded).map_err(Error::internal)?,
            refresh_at: row.refresh_at.map(from_micros),
            failures: u32::try_from(row.failures).unwrap_or(u32::MAX),
            lease_epoch: row.lease_epoch,
            lease_until: row.lease_until.map(from_micros),
        })
    }

    /// Puts `kept` in force, whatever was before: somebody connected it.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn connect(
        &self,
        integration: &Integration,
        kept: &Kept,
        yielded: &BTreeMap<String, String>,
        refresh_at: Option<Timestamp>,
    ) -> Result<()> {
        let sealed = self.seal(integration, "credential", kept).await?;
        let yielded = serde_json::to_string(yielded).map_err(Error::internal)?;
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let before = state_in(&mut tx, integration).await?;
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO connections (integration_id, organization_id, state, reason, since, changes, version, credential, \
                 yielded, expires_at, refresh_at, failures, lease_epoch) \
                 VALUES ($1, $2, 'connected', '', $3, 1, 1, $4, $5, $6, $7, 0, 0) \
                 ON CONFLICT (integration_id) DO UPDATE SET reason = '', version = connections.version + 1, credential = $4, \
                 since = CASE WHEN connections.state = 'connected' THEN connections.since ELSE $3 END, \
                 changes = connections.changes + CASE WHEN connections.state = 'connected' THEN 0 ELSE 1 END, \
                 state = 'connected', old_credential = NULL, old_expires_at = NULL, old_used_at = NULL, yielded = $5, \
                 expires_at = $6, refresh_at = $7, failures = 0, lease_until = NULL",
            )
            .bind(&integration.id)
            .bind(integration.organization.as_str())
            .bind(now.as_microsecond())
            .bind(&sealed)
            .bind(&yielded)
            .bind(expires_at(kept))
            .bind(refresh_at.map(Timestamp::as_microsecond))
            .execute(c)
            .await
            .map(drop)
        })?;
        self.tell(&mut tx, integration, before, State::Connected, "", now).await?;
        self.commit(tx, integration).await
    }

    /// Puts `kept` in force in place of `version`: what was in force is tried too until `until`.
    ///
    /// # Errors
    /// `Error::Aborted` if it is another version by now; `Error::Unavailable` while the store is away.
    pub(crate) async fn rotate(
        &self,
        integration: &Integration,
        version: u64,
        (new, old): (&Kept, &Kept),
        until: Timestamp,
    ) -> Result<()> {
        let new = self.seal(integration, "credential", new).await?;
        let old = self.seal(integration, "old_credential", old).await?;
        let changed = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE connections SET version = version + 1, credential = $4, old_credential = $5, old_expires_at = $6, \
                 old_used_at = NULL WHERE organization_id = $1 AND integration_id = $2 AND version = $3 AND state = 'connected'",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(version.cast_signed())
            .bind(&new)
            .bind(&old)
            .bind(until.as_microsecond())
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if changed == 0 {
            return Err(Error::Aborted("its credential was changed meanwhile: read it again".to_owned()));
        }
        Ok(())
    }

    /// Notes that the new credential was refused and the old one was needed.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn old_was_needed(&self, integration: &Integration) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query("UPDATE connections SET old_used_at = $3 WHERE organization_id = $1 AND integration_id = $2")
                .bind(integration.organization.as_str())
                .bind(&integration.id)
                .bind(self.clock.now_micros())
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    /// The vendor takes `version` no more; nothing happens if another is in force by now. Whether it did.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn refuse(&self, integration: &Integration, version: u64, reason: &str) -> Result<bool> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let changed = with!(tx.on(), c => {
            sqlx::query(
                "UPDATE connections SET state = 'needs_reconnect', reason = $4, since = $5, changes = changes + 1, \
                 refresh_at = NULL, lease_until = NULL \
                 WHERE organization_id = $1 AND integration_id = $2 AND version = $3 AND state = 'connected'",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(version.cast_signed())
            .bind(reason)
            .bind(now.as_microsecond())
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if changed == 1 {
            let before = Some(State::Connected);
            self.tell(&mut tx, integration, before, State::NeedsReconnect, reason, now).await?;
        }
        self.commit(tx, integration).await?;
        Ok(changed == 1)
    }

    /// Forgets every credential, if `version` is still in force; whether it is.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn disconnect(&self, integration: &Integration, version: u64) -> Result<bool> {
        let changed = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE connections SET state = 'disconnected', reason = '', since = $3, changes = changes + 1, \
                 version = version + 1, credential = NULL, old_credential = NULL, old_expires_at = NULL, old_used_at = NULL, \
                 yielded = '{}', expires_at = NULL, refresh_at = NULL, failures = 0, lease_until = NULL \
                 WHERE organization_id = $1 AND integration_id = $2 AND version = $4 AND state <> 'disconnected'",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(self.clock.now_micros())
            .bind(version.cast_signed())
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        self.show(integration);
        Ok(changed == 1)
    }

    /// Leaves nothing of an integration that is deleted; what is told to be behind there is told to be over.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn remove(&self, integration: &Integration) -> Result<()> {
        while self.give_up(integration).await? {}
        let mut tx = self.store.begin().await?;
        for statement in [
            "DELETE FROM connections WHERE organization_id = $1 AND integration_id = $2",
            "DELETE FROM authorizations WHERE organization_id = $1 AND integration_id = $2",
            "DELETE FROM integration_health WHERE organization_id = $1 AND integration_id = $2",
            "DELETE FROM integration_behind WHERE organization_id = $1 AND integration_id = $2",
        ] {
            with!(tx.on(), c => {
                let organization = integration.organization.as_str();
                sqlx::query(statement).bind(organization).bind(&integration.id).execute(c).await.map(drop)
            })?;
        }
        tx.commit().await
    }

    /// A step of it; whether there may be more.
    async fn give_up(&self, integration: &Integration) -> Result<bool> {
        let mut tx = self.store.begin().await?;
        let told: Vec<(String, i64, i64)> = with!(tx.on(), c => {
            sqlx::query_as(
                "DELETE FROM integration_behind WHERE integration_id = $1 AND wedding_id IN (SELECT wedding_id \
                 FROM integration_behind WHERE integration_id = $1 ORDER BY wedding_id LIMIT $2) \
                 RETURNING wedding_id, delivery, told",
            )
            .bind(&integration.id)
            .bind(GIVEN_UP)
            .fetch_all(c)
            .await
        })?;
        let (key, now) = (self.keys.of(&integration.organization).await?, self.clock.now());
        for (wedding, delivery, _) in told.iter().filter(|(.., told)| *told == 1) {
            let event = behind::over(integration, wedding, *delivery, Outcome::GivenUp, now);
            self.outbox.put_in(&mut tx, &key, &event).await?;
        }
        tx.commit().await?;
        self.outbox.wake();
        Ok(told.len() as i64 == GIVEN_UP)
    }

    async fn tell(
        &self,
        tx: &mut Tx,
        integration: &Integration,
        before: Option<State>,
        after: State,
        reason: &str,
        now: Timestamp,
    ) -> Result<()> {
        let event = match (before, after) {
            (Some(State::Connected), State::NeedsReconnect) => "integration.needs_reconnect",
            (Some(State::NeedsReconnect), State::Connected) => "integration.recovered",
            _ => return Ok(()),
        };
        let changes: i64 = with!(tx.on(), c => {
            sqlx::query_scalar("SELECT changes FROM connections WHERE integration_id = $1")
                .bind(&integration.id)
                .fetch_one(c)
                .await
        })?;
        let next_step = if after == State::NeedsReconnect { "connect it again" } else { "" };
        let more = serde_json::json!({ "reason": reason, "since": now.to_string(), "next_step": next_step });
        let content = notice::content(integration, more);
        let event = notice::event(integration, event, &format!("connection.{changes}"), now, &content);
        let key = self.keys.of(&integration.organization).await?;
        self.outbox.put_in(tx, &key, &event).await
    }

    async fn commit(&self, tx: Tx, integration: &Integration) -> Result<()> {
        tx.commit().await?;
        self.outbox.wake();
        self.show(integration);
        Ok(())
    }

    fn show(&self, integration: &Integration) {
        self.tell_of(Changed::of(integration));
    }

    /// Tells those who watch of a change. Nobody may listen.
    pub(crate) fn tell_of(&self, changed: Changed) {
        drop(self.changed.send(changed));
    }

    /// Those that are connected or in the state `or`, of all organizations, after the id `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn list(&self, or: State, after: &str, limit: i64) -> Result<Vec<(OrganizationId, String)>> {
        let page: Vec<(String, String)> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT organization_id, integration_id FROM connections WHERE state IN ('connected', $3) AND integration_id > $1 \
                 ORDER BY integration_id LIMIT $2",
            )
            .bind(after)
            .bind(limit)
            .bind(or.as_str())
            .fetch_all(c)
            .await
        })?;
        page.into_iter().map(|(organization, id)| Ok((OrganizationId::parse(&organization)?, id))).collect()
    }

    pub(super) async fn seal(&self, integration: &Integration, column: &'static str, kept: &Kept) -> Result<Vec<u8>> {
        let plain = serde_json::to_vec(&Written::of(kept)).map_err(Error::internal)?;
        let key = self.keys.of(&integration.organization).await?;
        Ok(key.seal(&place(TABLE, column, &integration.id), &plain))
    }

    async fn unseal(
        &self,
        integration: &Integration,
        column: &'static str,
        sealed: Option<Vec<u8>>,
    ) -> Result<Option<Kept>> {
        let Some(sealed) = sealed else { return Ok(None) };
        let key = self.keys.of(&integration.organization).await?;
        let plain = key.open(&place(TABLE, column, &integration.id), &sealed)?;
        let written: Written = serde_json::from_slice(&plain).map_err(Error::internal)?;
        Ok(Some(written.kept()))
    }
}

async fn state_in(tx: &mut Tx, integration: &Integration) -> Result<Option<State>> {
    let state: Option<String> = with!(tx.on(), c => {
        sqlx::query_scalar("SELECT state FROM connections WHERE integration_id = $1")
            .bind(&integration.id)
            .fetch_optional(c)
            .await
    })?;
    Ok(state.and_then(|state| State::parse(&state)))
}

pub(super) fn expires_at(kept: &Kept) -> Option<i64> {
    match kept {
        Kept::Tokens { tokens, .. } => tokens.expires_at.map(Timestamp::as_microsecond),
        _ => None,
    }
}
