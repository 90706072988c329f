//! Imports in the store: every query but the worker's own look for work is scoped by the organization.
//!
//! Who works at an import saves its progress only while it still runs: one that was cancelled meanwhile is let go, and a
//! page that was being applied is undone with it.

use std::sync::Arc;

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

use super::{Counts, Import, KEPT, Next, Order, Origin, Phase, State, Work, spool, text::Encoding};
use crate::record::RecordKind;

const TABLE: &str = "imports";
const KEEP: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

/// All imports. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Imports {
    pub(super) store: Store,
    pub(super) keys: DataKeys,
    pub(super) clock: Clock,
    changed: Arc<watch::Sender<()>>,
    wake: Arc<Notify>,
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
        Self { store, keys, clock, changed: Arc::new(watch::Sender::new(())), wake: Arc::default() }
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
            Err(Error::AlreadyExists(_)) => Err(self.open_already(&import.order).await),
            inserted => inserted.map(|()| import),
        }
    }

    async fn insert(&self, import: &Import) -> Result<()> {
        let key = self.keys.of(&import.order.organization).await?;
        let (refusals, examples) = (seal(&key, "refusals", import)?, seal(&key, "examples", import)?);
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

    async fn open_already(&self, order: &Order) -> Error {
        let open: Result<Option<String>, sqlx::Error> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM imports WHERE integration_id = $1 AND organization_id = $2 AND state IN ('receiving', 'running', 'asked')",
        ).bind(&order.integration_id).bind(order.organization.as_str()).fetch_optional(c).await);
        let id = open.ok().flatten().unwrap_or_default();
        Error::FailedPrecondition(format!(
            "import {id} of this integration is open: wait for it, resume it or cancel it"
        ))
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

    /// Those that are to be worked at, of all organizations, oldest first; at most 1,000.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn running(&self) -> Result<Vec<(OrganizationId, String)>> {
        let rows: Vec<(String, String)> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT organization_id, id FROM imports WHERE state = 'running' ORDER BY id LIMIT 1000",
        ).fetch_all(c).await)?;
        rows.into_iter().map(|(organization, id)| Ok((OrganizationId::parse(&organization)?, id))).collect()
    }

    /// Saves where an import is, while it is still `from`.
    ///
    /// # Errors
    /// `Error::Aborted` if it was cancelled, or ended, meanwhile.
    pub(crate) async fn save_in(&self, tx: &mut Tx, from: State, import: &Import) -> Result<()> {
        let key = self.keys.of(&import.order.organization).await?;
        let (refusals, examples) = (seal(&key, "refusals", import)?, seal(&key, "examples", import)?);
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
        let mut import = self.get(organization, id).await?;
        if import.state.has_ended() && import.state != State::Failed {
            return Err(Error::FailedPrecondition(format!("import {id} is {} already", import.state.as_str())));
        }
        let from = std::mem::replace(&mut import.state, State::Cancelled);
        self.save(from, &import).await?;
        self.get(organization, id).await
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
                return Err(Error::FailedPrecondition(format!("import {id} has no whole file: start it again")));
            }
            // What the vendor had against its list is to be found out anew.
            State::Failed => import.refusals.retain(|refusal| refusal.line > 0),
            // What was listed may be old by now.
            State::Asked => {
                import.agreed = Some(import.counts.planned + import.counts.vanished);
                let phase = if import.order.origin == Origin::Vendor { Phase::Listing } else { Phase::Counting };
                import.enter(phase);
            }
            _ => return Err(Error::FailedPrecondition(format!("import {id} neither failed nor asks"))),
        }
        (import.state, import.reason) = (State::Running, String::new());
        match self.save(from, &import).await {
            Err(Error::Internal(_)) if from == State::Failed => Err(self.open_already(&import.order).await),
            saved => saved.map(|()| import),
        }
    }

    /// What was being received when the process ended can't be whole.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn fail_cut_off(&self) -> Result<()> {
        with!(self.store.writer(), c => sqlx::query(
            "UPDATE imports SET state = 'failed', reason = 'the upload was cut off: start it again', updated_at = $1, finished_at = $1
             WHERE state = 'receiving'",
        ).bind(self.clock.now_micros()).execute(c).await.map(drop))?;
        Ok(())
    }

    /// Forgets imports that ended 30 days ago, with what is left of their spools; at most 100 at a time.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn purge(&self) -> Result<()> {
        let old: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM imports WHERE finished_at < $1 ORDER BY finished_at LIMIT 100",
        ).bind((self.clock.now() - KEEP).as_microsecond()).fetch_all(c).await)?;
        for id in old {
            spool::forget(&self.store, &id).await?;
            with!(self.store.writer(), c => {
                sqlx::query("DELETE FROM imports WHERE id = $1").bind(&id).execute(c).await.map(drop)
            })?;
        }
        self.forget_spools().await
    }

    /// Forgets what was spooled for imports that have ended, at most 100 at a time. One that failed can be resumed: it keeps
    /// what it took in, while its integration is there.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn forget_spools(&self) -> Result<()> {
        let over: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM imports AS i WHERE finished_at IS NOT NULL AND (state <> 'failed'
                 OR NOT EXISTS (SELECT 1 FROM integrations WHERE id = i.integration_id))
             AND (EXISTS (SELECT 1 FROM import_chunks WHERE import_id = i.id)
                 OR EXISTS (SELECT 1 FROM import_items WHERE import_id = i.id)) LIMIT 100",
        ).fetch_all(c).await)?;
        for id in over {
            spool::forget(&self.store, &id).await?;
        }
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
        let (start, counts) = match phase {
            Phase::Applying => (
                Next { budget: self.next.budget, ..Next::default() },
                Counts { linked, planned, vanished, ..Counts::default() },
            ),
            _ => (Next::default(), Counts::default()),
        };
        let refused = self.counts.refused;
        (self.phase, self.next, self.counts) = (phase, start, counts);
        // What a file refuses is found anew by each reading; what a list refuses isn't spooled.
        if phase == Phase::Listing || self.order.origin != Origin::Vendor {
            self.refusals.clear();
        } else {
            self.counts.refused = refused;
        }
        if phase != Phase::Applying {
            self.examples.clear();
        }
    }
}

fn seal(key: &DataKey, column: &'static str, import: &Import) -> Result<Vec<u8>> {
    debug_assert!(import.refusals.len() <= KEPT && import.examples.len() <= KEPT, "they are kept to a bound");
    let plain = match column {
        "refusals" => serde_json::to_vec(&import.refusals),
        _ => serde_json::to_vec(&import.examples),
    };
    Ok(key.seal(&place(TABLE, column, &import.id), &plain.map_err(Error::internal)?))
}

fn print(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}

fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(Error::internal)
}

fn number(unsigned: u64) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}
