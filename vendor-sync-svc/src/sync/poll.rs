//! Vendors that don't tell what changes are asked: each list operation at its interval, spread in time, one walk of a
//! (integration, kind) at a time, also among processes.
//!
//! A walk's pages are resolved as they come, and where it is is committed with the rows of each: one that breaks off, or
//! has been at it for long enough, goes on there at its next turn. What it finds a second time changes nothing.

use std::{collections::HashSet, time::Duration};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    store::{Store, Tx},
    tasks::Tasks,
    with,
};
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::account::{Account, Accounts};
use crate::{
    connector::{CallError, Class, IncrementalKind, Position, RecordSpec, call::Caller},
    integration::Integration,
    record::RecordKind,
    resolve::{Incoming, MOST_ITEMS, Origin, Resolved, Resolver, TRIES, Taking},
};

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Walks at once, of one look, and of one organization in it: the others' come first then.
const AT_ONCE: usize = 32;
const PAGE: i64 = 64;
const PER_ORGANIZATION: i64 = 8;
/// As long as a walk is believed to be under way.
const LEASE: SignedDuration = SignedDuration::from_mins(15);
/// How often one that is paused is looked at again.
const PAUSED_LOOK: SignedDuration = SignedDuration::from_secs(30);
/// A walk leaves its turn to others after so many pages, or so much time; the next turn goes on.
const MOST_PAGES: usize = 50;
const TURN: SignedDuration = SignedDuration::from_secs(30);
const REASON_CHARS: usize = 256;

/// Asks for changes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Polls {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) accounts: Accounts,
    pub(crate) caller: Caller,
    pub(crate) resolver: Resolver,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) items: u64,
    pub(crate) changed: u64,
}

#[derive(sqlx::FromRow)]
struct Row {
    integration_id: String,
    kind: String,
    next_at: i64,
}

/// One walk.
struct Walk<'a> {
    account: &'a Account,
    kind: RecordKind,
    spec: &'a RecordSpec,
    list: &'a str,
    /// Changes from then on are wanted; none: all.
    since: Option<Timestamp>,
    began: Timestamp,
}

/// How far an integration was asked.
#[derive(Default, sqlx::FromRow)]
struct Reached {
    since: Option<i64>,
    began: Option<i64>,
    position: String,
}

impl Polls {
    /// Polls at each one's time, until the process stops.
    pub(crate) async fn run(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        while stopping.run_until_cancelled(self.clock.sleep(LOOK_EVERY)).await.is_some() {
            match stopping.run_until_cancelled(self.turn()).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(%error, "vendors are not asked for changes while the store is away"),
                None => return,
            }
        }
    }

    /// All walks that are due.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn turn(&self) -> Result<()> {
        self.schedule().await?;
        let due: Vec<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT integration_id, kind, next_at FROM (SELECT integration_id, kind, next_at, \
                 ROW_NUMBER() OVER (PARTITION BY organization_id ORDER BY next_at) AS place FROM polls WHERE next_at <= $1) AS due \
                 WHERE place <= $3 ORDER BY next_at LIMIT $2",
            )
            .bind(self.clock.now_micros())
            .bind(PAGE)
            .bind(PER_ORGANIZATION)
            .fetch_all(c)
            .await
        })?;
        let walks = stream::iter(due).map(|row| self.due(row)).buffer_unordered(AT_ONCE);
        walks.collect::<Vec<_>>().await.into_iter().collect()
    }

    /// A row for everything that is to be asked; what is new is asked soon, not all at once.
    async fn schedule(&self) -> Result<()> {
        let known: Vec<(String, String)> = with!(self.store.reader(), c => {
            sqlx::query_as("SELECT integration_id, kind FROM polls").fetch_all(c).await
        })?;
        let known: HashSet<(String, String)> = known.into_iter().collect();
        for account in self.accounts.all() {
            for kind in account.connector.records() {
                let id = &account.integration.id;
                let listed = account.connector.record(kind).is_some_and(|spec| spec.list.is_some());
                if listed && !known.contains(&(id.clone(), kind.as_str().to_owned())) {
                    let at = self.clock.now() + jitter(id, SignedDuration::from_secs(30));
                    self.insert(&account, kind, at).await?;
                }
            }
        }
        Ok(())
    }

    async fn insert(&self, account: &Account, kind: RecordKind, at: Timestamp) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO polls (integration_id, kind, organization_id, next_at, failure) VALUES ($1, $2, $3, $4, '') ON CONFLICT DO NOTHING",
            )
            .bind(&account.integration.id)
            .bind(kind.as_str())
            .bind(account.integration.organization.as_str())
            .bind(at.as_microsecond())
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    async fn due(&self, row: Row) -> Result<()> {
        let account = self.accounts.get(&row.integration_id);
        let (Some(account), Some(kind)) = (account, RecordKind::parse(&row.kind)) else {
            return self.forget(&row).await;
        };
        // One that is paused would be first in line for ever.
        let until = self.clock.now() + if account.is_asked() { LEASE } else { PAUSED_LOOK };
        if !self.claim(&row, until).await? || !account.is_asked() {
            return Ok(());
        }
        // How it went is in its row.
        match self.walk(&account, kind).await {
            Ok(_) => Ok(()),
            Err(error) => self.failed(&account, kind, &error).await,
        }
    }

    /// Asks for what changed, now. What it gives is resolved when this returns; what is left after a turn follows by itself.
    ///
    /// # Errors
    /// What the vendor, or our own store, had against it.
    pub(crate) async fn poll(&self, account: &Account, kind: RecordKind) -> Result<Found> {
        self.insert(account, kind, self.clock.now()).await?;
        self.walk(account, kind).await
    }

    /// Whoever moves its time on may walk.
    async fn claim(&self, row: &Row, until: Timestamp) -> Result<bool> {
        let claimed = with!(self.store.writer(), c => {
            sqlx::query("UPDATE polls SET next_at = $4 WHERE integration_id = $1 AND kind = $2 AND next_at = $3")
                .bind(&row.integration_id)
                .bind(&row.kind)
                .bind(row.next_at)
                .bind(until.as_microsecond())
                .execute(c)
                .await
                .map(|done| done.rows_affected())
        })?;
        Ok(claimed == 1)
    }

    async fn walk(&self, account: &Account, kind: RecordKind) -> Result<Found> {
        let spec = account.connector.record(kind);
        let Some((spec, list)) = spec.and_then(|spec| Some((spec, spec.list.as_deref()?))) else {
            return Ok(Found::default());
        };
        let overlap = SignedDuration::try_from(spec.incremental.overlap).unwrap_or(SignedDuration::ZERO);
        let (reached, now) = (self.reached(account, kind).await?, self.clock.now());
        let since = reached.since.map(|since| from_micros(since) - overlap);
        let began = reached.began.map_or(now, from_micros);
        let walk = Walk { account, kind, spec, list, since, began };
        let (mut found, mut position, mut pages) = (Found::default(), Position::parse(&reached.position), 0);
        while pages < MOST_PAGES && self.clock.now() < now + TURN {
            let (items, next) = self.next(&walk, &position).await?;
            self.take(&walk, items, next.as_ref(), &mut found).await?;
            pages += 1;
            match next {
                Some(next) => position = next,
                None => return Ok(found),
            }
        }
        self.note(&walk, Some(&position), self.clock.now()).await?;
        Ok(found)
    }

    /// What is at `position`, and where the walk goes on; none: this is its end.
    async fn next(&self, walk: &Walk<'_>, position: &Position) -> Result<(Vec<Incoming>, Option<Position>)> {
        let (items, next) = match self.page(walk, position).await {
            Ok(page) => page,
            Err(error) => {
                // Where it was may be no place any more.
                if is_final(error.class) {
                    self.note(walk, None, self.clock.now()).await?;
                }
                return Err(theirs(error));
            }
        };
        let is_old = |incoming: &Incoming| walk.since.is_some_and(|since| incoming.at < since);
        let ends = walk.spec.incremental.kind == IncrementalKind::NewestFirst && items.iter().any(is_old);
        Ok((items, next.filter(|_| !ends)))
    }

    async fn reached(&self, account: &Account, kind: RecordKind) -> Result<Reached> {
        let reached: Option<Reached> = with!(self.store.reader(), c => {
            sqlx::query_as("SELECT since, began, position FROM polls WHERE integration_id = $1 AND kind = $2")
                .bind(&account.integration.id)
                .bind(kind.as_str())
                .fetch_optional(c)
                .await
        })?;
        Ok(reached.unwrap_or_default())
    }

    async fn page(&self, walk: &Walk<'_>, position: &Position) -> Result<(Vec<Incoming>, Option<Position>), CallError> {
        let (integration, connector) = (&walk.account.integration, &walk.account.connector);
        let scope = json!({"since": walk.since.map(|since| since.to_string())});
        let page = self.caller.page(integration, walk.list, &scope, position).await?;
        let settings = connector.filled(&integration.settings.parameters);
        let mut items = Vec::with_capacity(page.items.len());
        for item in &page.items {
            match incoming(walk, item, &settings, self.clock.now()) {
                Ok(incoming) => items.push(incoming),
                // It would hold back all others, for ever.
                Err(reason) => tracing::warn!(integration.id, reason, "an item of a vendor's list can't be read"),
            }
        }
        Ok((items, page.next))
    }

    async fn take(
        &self,
        walk: &Walk<'_>,
        items: Vec<Incoming>,
        next: Option<&Position>,
        found: &mut Found,
    ) -> Result<()> {
        let integration = &walk.account.integration;
        let parts = items.len().div_ceil(MOST_ITEMS).max(1);
        for part in 0..parts {
            let items = &items[(part * MOST_ITEMS).min(items.len())..((part + 1) * MOST_ITEMS).min(items.len())];
            let (mut taking, resolved) = self.taken(integration, items).await?;
            match next {
                _ if part + 1 < parts => {}
                Some(next) => note_in(&mut taking.tx, walk, Some(next), self.clock.now() + LEASE).await?,
                None => self.advance_in(&mut taking.tx, walk).await?,
            }
            taking.commit().await?;
            let is_change = |resolved: &&Resolved| {
                !matches!(resolved, Resolved::Unchanged | Resolved::Echo | Resolved::Refused { .. })
            };
            found.items += resolved.len() as u64;
            found.changed += resolved.iter().filter(is_change).count() as u64;
        }
        Ok(())
    }

    /// Taken, and to be committed. What may be what is being made there waits for it, a few times.
    async fn taken(&self, integration: &Integration, items: &[Incoming]) -> Result<(Taking, Vec<Resolved>)> {
        let mut tries = 1;
        loop {
            let mut taking = self.resolver.begin(&integration.organization).await?;
            match taking.take(integration, items).await {
                Ok(resolved) => return Ok((taking, resolved)),
                Err(Error::Aborted(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
            drop(taking);
            self.resolver.making.ended(&integration.id).await;
        }
    }

    async fn advance_in(&self, tx: &mut Tx, walk: &Walk<'_>) -> Result<()> {
        let interval = SignedDuration::try_from(walk.spec.incremental.interval).unwrap_or(SignedDuration::from_mins(5));
        let next = self.clock.now() + interval + jitter(&walk.account.integration.id, interval / 10);
        with!(tx.on(), c => {
            sqlx::query("UPDATE polls SET since = $3, began = NULL, position = '', next_at = $4, failure = '' WHERE integration_id = $1 AND kind = $2")
                .bind(&walk.account.integration.id)
                .bind(walk.kind.as_str())
                .bind(walk.began.as_microsecond())
                .bind(next.as_microsecond())
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    /// Where a walk goes on, and when; none: at its beginning.
    async fn note(&self, walk: &Walk<'_>, position: Option<&Position>, at: Timestamp) -> Result<()> {
        let mut tx = self.store.begin().await?;
        note_in(&mut tx, walk, position, at).await?;
        tx.commit().await
    }

    async fn failed(&self, account: &Account, kind: RecordKind, error: &Error) -> Result<()> {
        tracing::warn!(%error, integration.id = account.integration.id, "a vendor could not be asked for changes");
        let reason: String = error.to_string().chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect();
        let asked = match error {
            Error::Exhausted { retry_after, .. } => SignedDuration::try_from(*retry_after).ok(),
            _ => None,
        };
        let pause = asked.unwrap_or(SignedDuration::from_mins(5)).max(SignedDuration::from_secs(30));
        let next = self.clock.now() + pause + jitter(&account.integration.id, pause / 10);
        with!(self.store.writer(), c => {
            sqlx::query("UPDATE polls SET next_at = $3, failure = $4 WHERE integration_id = $1 AND kind = $2")
                .bind(&account.integration.id)
                .bind(kind.as_str())
                .bind(next.as_microsecond())
                .bind(&reason)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    async fn forget(&self, row: &Row) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM polls WHERE integration_id = $1 AND kind = $2")
                .bind(&row.integration_id)
                .bind(&row.kind)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }
}

async fn note_in(tx: &mut Tx, walk: &Walk<'_>, position: Option<&Position>, at: Timestamp) -> Result<()> {
    with!(tx.on(), c => {
        sqlx::query("UPDATE polls SET began = $3, position = $4, next_at = $5 WHERE integration_id = $1 AND kind = $2")
            .bind(&walk.account.integration.id)
            .bind(walk.kind.as_str())
            .bind(position.map(|_| walk.began.as_microsecond()))
            .bind(position.map(Position::print).unwrap_or_default())
            .bind(at.as_microsecond())
            .execute(c)
            .await
            .map(drop)
    })?;
    Ok(())
}

/// Whether asking the same again gives nothing else.
fn is_final(class: Class) -> bool {
    matches!(class, Class::Permanent | Class::Gone | Class::Duplicate | Class::Conflict)
}

fn incoming(
    walk: &Walk<'_>,
    item: &Value,
    settings: &std::collections::BTreeMap<String, String>,
    now: Timestamp,
) -> Result<Incoming, String> {
    let item = walk.spec.item(item, settings)?;
    Ok(Incoming {
        kind: walk.kind,
        external_id: item.external_id,
        external_version: item.external_version,
        at: item.at.unwrap_or(now),
        fields: item.fields,
        deleted: item.deleted,
        // The first time it is all that there is.
        priority_low: walk.since.is_none(),
        origin: Origin::Poll,
    })
}

/// What a vendor has against being asked, as our own callers see it: without its own words, which may name people.
pub(crate) fn theirs(error: CallError) -> Error {
    match error.retry_after {
        Some(retry_after) => Error::Exhausted { reason: error.to_string(), retry_after },
        None => Error::Unavailable(error.to_string()),
    }
}

/// Up to `most`, the same for the same integration: a thousand of them are not asked at once.
fn jitter(id: &str, most: SignedDuration) -> SignedDuration {
    let sum = id.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    most.mul_f64(f64::from(sum % 1_000) / 1_000.0)
}

#[cfg(test)]
mod tests;
