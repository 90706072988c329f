//! Imports in the store: every query but the worker's own look for work is scoped by the organization.
//!
//! Who works at an import saves its progress only while it still runs: one that was cancelled meanwhile is let go, and a
//! page that was being applied is undone with it. What they hold beside their rows, and for how long, is [`super::hold`]'s.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::{self, OrganizationId},
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Notify, watch};

use super::{Counts, Example, Import, KEPT, Next, Order, Origin, Phase, Refusal, State, Work, text::Encoding};
use crate::record::RecordKind;

const TABLE: &str = "imports";
/// One look for what runs.
const LOOK: i64 = 1_000;

/// All imports. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Imports {
    pub(super) store: Store,
    pub(super) keys: DataKeys,
    pub(super) clock: Clock,
    changed: Arc<watch::Sender<()>>,
    wake: Arc<Notify>,
    /// Those whose files this process receives.
    pub(super) arriving: Arc<Mutex<HashSet<String>>>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    integration_id: String,
    work: String,
    source: String,
    record_kind: String,
    options: String,
    dry_run: i64,
    state: String,
    phase: String,
    reason: String,
    agreed: Option<i64>,
    encoding: String,
    total: i64,
    next: String,
    counts: String,
    refusals: Vec<u8>,
    examples: Vec<u8>,
    created_at: i64,
    updated_at: i64,
    finished_at: Option<i64>,
}

impl Imports {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self {
            store,
            keys,
            clock,
            changed: Arc::new(watch::Sender::new(())),
            wake: Arc::default(),
            arriving: Arc::default(),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Tells of every change of any import.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// There may be something to work at.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Returns once there may be.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Begins one: a file's is received first, a vendor's list is read at once.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` while another one of the integration is open.
    pub(crate) async fn begin(&self, order: Order) -> Result<Import> {
        let now = self.clock.now();
        let (state, phase) = match order.origin {
            Origin::Vendor => (State::Running, Phase::Listing),
            Origin::Csv | Origin::Ics => (State::Receiving, Phase::Receiving),
        };
        let import = Import {
            id: id::uuid(now),
            order,
            state,
            phase,
            reason: String::new(),
            agreed: None,
            encoding: Encoding::Utf8,
            total: 0,
            next: Next::default(),
            counts: Counts::default(),
            refusals: Vec::new(),
            examples: Vec::new(),
            created_at: now,
            updated_at: now,
            finished_at: None,
        };
        match self.insert(&import).await {
            Err(error @ Error::AlreadyExists(_)) => Err(self.open_already(&import.order, error).await),
            inserted => inserted.map(|()| import),
        }
    }

    async fn insert(&self, import: &Import) -> Result<()> {
        let key = self.keys.of(&import.order.organization).await?;
        let (refusals, examples) = sealed(&key, import)?;
        let order = &import.order;
        let (options, next, counts) = (print(&order.options)?, print(&import.next)?, print(&import.counts)?);
        let inserted = with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO imports (id, organization_id, integration_id, work, source, record_kind, options, dry_run, state, phase,
                 reason, encoding, total, next, counts, refusals, examples, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, '', $11, 0, $12, $13, $14, $15, $16, $16)
             ON CONFLICT DO NOTHING",
        )
        .bind(&import.id)
        .bind(order.organization.as_str())
        .bind(&order.integration_id)
        .bind(order.work.as_str())
        .bind(order.origin.as_str())
        .bind(order.kind.as_str())
        .bind(options)
        .bind(i64::from(order.dry_run))
        .bind(import.state.as_str())
        .bind(import.phase.as_str())
        .bind(import.encoding.as_str())
        .bind(next)
        .bind(counts)
        .bind(refusals)
        .bind(examples)
        .bind(import.created_at.as_microsecond())
        .execute(c).await.map(|done| done.rows_affected()))?;
        self.tell();
        self.wake();
        if inserted == 1 { Ok(()) } else { Err(Error::AlreadyExists("an open import".to_owned())) }
    }

    /// Why none can be opened beside the one that is; else `error`.
    async fn open_already(&self, order: &Order, error: Error) -> Error {
        let open: Result<Option<String>, sqlx::Error> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM imports WHERE integration_id = $1 AND organization_id = $2 AND state IN ('receiving', 'running', 'asked')",
        ).bind(&order.integration_id).bind(order.organization.as_str()).fetch_optional(c).await);
        match open {
            Ok(Some(id)) => Error::FailedPrecondition(format!(
                "import {id} of this integration is open: wait for it, resume it or cancel it"
            )),
            // It has ended meanwhile.
            Ok(None) if matches!(error, Error::AlreadyExists(_)) => {
                Error::Unavailable("another import has just ended".to_owned())
            }
            _ => error,
        }
    }

    /// One of the organization's own.
    ///
    /// # Errors
    /// `Error::NotFound` also for another organization's.
    pub(crate) async fn get(&self, organization: &OrganizationId, id: &str) -> Result<Import> {
        let row: Option<Row> = with!(self.store.reader(), c => {
            sqlx::query_as("SELECT * FROM imports WHERE organization_id = $1 AND id = $2")
                .bind(organization.as_str())
                .bind(id)
                .fetch_optional(c)
                .await
        })?;
        self.open(row.ok_or_else(|| Error::NotFound("import".into()))?).await
    }

    /// At most `limit`, newest first, before the one with the id `before`; only an integration's if one is named.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        integration: &str,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Import>> {
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT * FROM imports WHERE organization_id = $1 AND ($2 = '' OR integration_id = $2) AND ($3 = '' OR id < $3)
             ORDER BY id DESC LIMIT $4",
        ).bind(organization.as_str()).bind(integration).bind(before).bind(limit).fetch_all(c).await)?;
        let mut imports = Vec::with_capacity(rows.len());
        for row in rows {
            imports.push(self.open(row).await?);
        }
        Ok(imports)
    }

    /// Those that are to be worked at, of all organizations, oldest first. An integration has one at most.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn running(&self) -> Result<Vec<(OrganizationId, String)>> {
        let (mut running, mut after) = (Vec::new(), String::new());
        loop {
            let rows: Vec<(String, String)> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT organization_id, id FROM imports WHERE state = 'running' AND id > $1 ORDER BY id LIMIT $2",
            ).bind(&after).bind(LOOK).fetch_all(c).await)?;
            let is_last = rows.len() < LOOK.unsigned_abs() as usize;
            for (organization, id) in rows {
                after.clone_from(&id);
                running.push((OrganizationId::parse(&organization)?, id));
            }
            if is_last {
                return Ok(running);
            }
        }
    }

    /// Saves where an import is, while it is still `from`.
    ///
    /// # Errors
    /// `Error::Aborted` if it was cancelled, or ended, meanwhile.
    pub(crate) async fn save_in(&self, tx: &mut Tx, from: State, import: &Import) -> Result<()> {
        let key = self.keys.of(&import.order.organization).await?;
        let (refusals, examples) = sealed(&key, import)?;
        let (next, counts) = (print(&import.next)?, print(&import.counts)?);
        let saved = with!(tx.on(), c => sqlx::query(
            "UPDATE imports SET state = $4, phase = $5, reason = $6, agreed = $7, encoding = $8, total = $9, next = $10, counts = $11,
                 refusals = $12, examples = $13, updated_at = $14, finished_at = $15
             WHERE id = $1 AND organization_id = $2 AND state = $3",
        )
        .bind(&import.id)
        .bind(import.order.organization.as_str())
        .bind(from.as_str())
        .bind(import.state.as_str())
        .bind(import.phase.as_str())
        .bind(&import.reason)
        .bind(import.agreed.map(number))
        .bind(import.encoding.as_str())
        .bind(number(import.total))
        .bind(next)
        .bind(counts)
        .bind(refusals)
        .bind(examples)
        .bind(self.clock.now_micros())
        .bind(import.state.has_ended().then(|| self.clock.now_micros()))
        .execute(c).await.map(|done| done.rows_affected()))?;
        if saved == 0 {
            return Err(Error::Aborted(format!("import {} is no longer {}", import.id, from.as_str())));
        }
        Ok(())
    }

    /// As [`Imports::save_in`], in a transaction of its own.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn save(&self, from: State, import: &Import) -> Result<()> {
        let mut tx = self.store.begin().await?;
        self.save_in(&mut tx, from, import).await?;
        tx.commit().await?;
        self.tell();
        if from != State::Running {
            self.wake();
        }
        Ok(())
    }

    /// Something was committed that watchers want to see.
    pub(crate) fn tell(&self) {
        self.changed.send_replace(());
    }

    /// Stops one where it is.
    ///
    /// # Errors
    /// `Error::NotFound`; `Error::FailedPrecondition` for one that has ended.
    pub(crate) async fn cancel(&self, organization: &OrganizationId, id: &str) -> Result<Import> {
        let row: Option<Row> = with!(self.store.writer(), c => sqlx::query_as(
            "UPDATE imports SET state = 'cancelled', updated_at = $3, finished_at = $3
             WHERE id = $1 AND organization_id = $2 AND state NOT IN ('done', 'cancelled') RETURNING *",
        ).bind(id).bind(organization.as_str()).bind(self.clock.now_micros()).fetch_optional(c).await)?;
        let Some(row) = row else {
            let state = self.get(organization, id).await?.state.as_str();
            return Err(Error::FailedPrecondition(format!("import {id} is {state} already")));
        };
        self.tell();
        self.open(row).await
    }

    /// Has one that failed go on where it was, and answers the brake of one that asks with yes.
    ///
    /// # Errors
    /// `Error::NotFound`; `Error::FailedPrecondition` for one that does neither, or while another one is open.
    pub(crate) async fn resume(&self, organization: &OrganizationId, id: &str) -> Result<Import> {
        let mut import = self.get(organization, id).await?;
        let from = import.state;
        match from {
            State::Failed if import.phase == Phase::Receiving => {
                return Err(Error::FailedPrecondition(format!(
                    "import {id} has nothing to go on with: start it again"
                )));
            }
            // What the vendor had against its list is to be found out anew.
            State::Failed => {
                import.refusals.retain(|refusal| refusal.line > 0 || !refusal.external_id.is_empty());
            }
            // What was listed may be old by now.
            State::Asked => {
                import.agreed = Some(import.counts.planned + import.counts.vanished);
                let phase = if import.order.origin == Origin::Vendor { Phase::Listing } else { Phase::Counting };
                import.enter(phase);
            }
            _ => return Err(Error::FailedPrecondition(format!("import {id} neither failed nor asks"))),
        }
        (import.state, import.reason) = (State::Running, String::new());
        match self.reopen(from, &import).await {
            Err(error @ Error::Internal(_)) if from == State::Failed => {
                Err(self.open_already(&import.order, error).await)
            }
            reopened => reopened.map(|()| import),
        }
    }

    async fn reopen(&self, from: State, import: &Import) -> Result<()> {
        let mut tx = self.store.begin().await?;
        self.save_in(&mut tx, from, import).await?;
        // What one that failed took in is forgotten once there is another: see `forget_spools`.
        let later: Option<String> = with!(tx.on(), c => sqlx::query_scalar(
            "SELECT id FROM imports WHERE integration_id = $1 AND work = $2 AND created_at > $3 LIMIT 1",
        )
        .bind(&import.order.integration_id)
        .bind(import.order.work.as_str())
        .bind(import.created_at.as_microsecond())
        .fetch_optional(c).await)?;
        if let Some(later) = later.filter(|_| from == State::Failed) {
            return Err(Error::FailedPrecondition(format!("import {later} has come since: start it again")));
        }
        tx.commit().await?;
        self.tell();
        self.wake();
        Ok(())
    }

    async fn open(&self, row: Row) -> Result<Import> {
        let organization = OrganizationId::parse(&row.organization_id)?;
        let key = self.keys.of(&organization).await?;
        let odd = || Error::internal(anyhow::anyhow!("import {} is stored with a word that nobody knows", row.id));
        let order = Order {
            organization,
            integration_id: row.integration_id.clone(),
            work: Work::parse(&row.work).ok_or_else(odd)?,
            origin: Origin::parse(&row.source).ok_or_else(odd)?,
            kind: RecordKind::parse(&row.record_kind).ok_or_else(odd)?,
            options: read(row.options.as_bytes())?,
            dry_run: row.dry_run != 0,
        };
        Ok(Import {
            order,
            state: State::parse(&row.state).ok_or_else(odd)?,
            phase: Phase::parse(&row.phase).ok_or_else(odd)?,
            encoding: Encoding::parse(&row.encoding).ok_or_else(odd)?,
            reason: row.reason,
            agreed: row.agreed.map(i64::unsigned_abs),
            total: row.total.unsigned_abs(),
            next: read(row.next.as_bytes())?,
            counts: read(row.counts.as_bytes())?,
            refusals: read(&key.open(&place(TABLE, "refusals", &row.id), &row.refusals)?)?,
            examples: read(&key.open(&place(TABLE, "examples", &row.id), &row.examples)?)?,
            created_at: from_micros(row.created_at),
            updated_at: from_micros(row.updated_at),
            finished_at: row.finished_at.map(from_micros),
            id: row.id,
        })
    }
}

impl Import {
    /// Begins a phase from its start. What was counted for the brake stays known while it is applied.
    pub(crate) fn enter(&mut self, phase: Phase) {
        let Counts { linked, planned, vanished, .. } = self.counts;
        // What a list refuses isn't read again; what a file, or a record, refuses is found anew by each reading.
        let unlisted = match self.phase {
            _ if self.order.origin != Origin::Vendor || phase == Phase::Listing => 0,
            Phase::Listing => self.counts.refused,
            _ => self.next.unlisted,
        };
        let (start, counts) = match phase {
            Phase::Applying => (
                Next { budget: self.next.budget, unlisted, ..Next::default() },
                Counts { linked, planned, vanished, refused: unlisted, ..Counts::default() },
            ),
            _ => (Next { unlisted, ..Next::default() }, Counts { refused: unlisted, ..Counts::default() }),
        };
        (self.phase, self.next, self.counts) = (phase, start, counts);
        self.refusals.retain(|refusal| unlisted > 0 && refusal.line > 0);
        if phase != Phase::Applying {
            self.examples.clear();
        }
    }
}

/// Refusals and examples.
fn sealed(key: &DataKey, import: &Import) -> Result<(Vec<u8>, Vec<u8>)> {
    let Import { id, refusals, examples, .. } = import;
    debug_assert!(refusals.len() <= KEPT && examples.len() <= KEPT, "they are kept to a bound");
    Ok((seal::<Refusal>(key, "refusals", id, refusals)?, seal::<Example>(key, "examples", id, examples)?))
}

fn seal<T: Serialize>(key: &DataKey, column: &'static str, id: &str, value: &[T]) -> Result<Vec<u8>> {
    Ok(key.seal(&place(TABLE, column, id), &serde_json::to_vec(value).map_err(Error::internal)?))
}

fn print(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}

fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(Error::internal)
}

pub(super) fn number(unsigned: u64) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}
