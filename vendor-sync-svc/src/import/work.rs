//! Works at imports: rehearses them for the brake, then applies them, a page a transaction.
//!
//! Invariant: how far an import is and what it counts is committed in the transaction that applies the page, so that a
//! process that is killed has applied what it has counted, and nothing else.
//!
//! A rehearsal takes each page in a transaction that is undone: it counts what applying would do, by doing it. An
//! organization that has no records yet has nothing to lose, and needs none.

use chassis::error::{Error, Result};
use chassis::fail;

use super::{
    Counts, Example, Import, KEPT, PAGE, Phase, Refusal, State, Work,
    columns::HEADING,
    read::{Page, Reader},
    store::Imports,
};
use crate::{
    brake::{Brake, Budget, Planned, Verdict},
    integration::{Integration, Integrations},
    reconcile::Reconcile,
    record::RecordKind,
    resolve::{Incoming, Resolved, Resolver, Taking},
    sync::Engine,
};

const REASON_CHARS: usize = 300;

/// What works at imports. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) imports: Imports,
    pub(crate) integrations: Integrations,
    pub(crate) resolver: Resolver,
    pub(crate) reconcile: Reconcile,
    pub(crate) brake: Brake,
}

/// What a phase came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The import has entered its next phase.
    Phase,
    /// Others have their turn: it goes on here when it has another.
    Over,
    Ended,
}

/// Pages of one turn.
const TURN: usize = 8;

/// What is left of a turn.
#[derive(Debug)]
pub(crate) struct Pages(pub(crate) usize);

impl Pages {
    pub(crate) fn of_a_turn() -> Self {
        Self(TURN)
    }

    /// One more is done; whether the turn is over.
    pub(crate) fn spend(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

impl Worker {
    /// With the parts of the engine.
    pub(crate) fn new(imports: Imports, integrations: Integrations, engine: &Engine) -> Self {
        let resolver = engine.resolver.clone();
        let reconcile = Reconcile {
            store: resolver.store.clone(),
            keys: resolver.keys.clone(),
            links: resolver.links.clone(),
            imports: imports.clone(),
            accounts: engine.accounts.clone(),
            caller: engine.caller.clone(),
            resolver: resolver.clone(),
        };
        Self { imports, integrations, resolver, reconcile, brake: Brake::default() }
    }

    /// What compares, for whoever begins comparisons.
    pub(crate) fn reconcile(&self) -> Reconcile {
        self.reconcile.clone()
    }

    /// Goes on with one import until it has ended or asks, or its turn is over.
    ///
    /// # Errors
    /// Why it can't go on now, or ever.
    pub(crate) async fn work(&self, import: &mut Import, turn: &mut Pages) -> Result<Step> {
        let order = &import.order;
        let integration = self.integrations.get(&order.organization, &order.integration_id).await?;
        loop {
            let step = match import.phase {
                Phase::Receiving => return Ok(Step::Ended),
                Phase::Listing => self.reconcile.list(import, turn).await?,
                Phase::Counting if self.needs_no_rehearsal(import).await? => self.judge(import, turn).await?,
                Phase::Counting | Phase::Applying => self.pages(&integration, import, turn).await?,
            };
            if step != Step::Phase {
                return Ok(step);
            }
        }
    }

    /// Every page of a phase, and its end.
    async fn pages(&self, integration: &Integration, import: &mut Import, turn: &mut Pages) -> Result<Step> {
        let mut reader = Reader::open(&self.imports, import).await?;
        loop {
            let page = reader.page(import, PAGE).await?;
            let is_last = page.is_last;
            let mut next = import.clone();
            (next.next.position, next.next.line) = (page.position, page.line);
            next.note(&page);
            let went_on = match import.phase {
                Phase::Counting => self.rehearse(integration, &mut next, &page).await?,
                _ => self.apply(integration, &mut next, &page).await?,
            };
            *import = next;
            if !went_on {
                return Ok(Step::Ended);
            }
            if is_last {
                let is_counted = import.phase == Phase::Counting;
                return if is_counted { self.judge(import, turn).await } else { self.finish(import, turn).await };
            }
            if turn.spend() {
                return Ok(Step::Over);
            }
        }
    }

    /// Counts what the page would do.
    async fn rehearse(&self, integration: &Integration, import: &mut Import, page: &Page) -> Result<bool> {
        let mut taking = self.resolver.begin(&integration.organization).await?;
        let resolved = taking.take(integration, &page.incoming).await?;
        drop(taking);
        import.tally(&page.incoming, &resolved);
        import.counts.planned = import.counts.changed;
        self.imports.save(State::Running, import).await?;
        Ok(true)
    }

    /// Does what the page says, within the budget; false if it would be more.
    async fn apply(&self, integration: &Integration, import: &mut Import, page: &Page) -> Result<bool> {
        let mut taking = self.resolver.begin(&integration.organization).await?;
        let resolved = taking.take(integration, &page.incoming).await?;
        let before = import.counts;
        import.tally(&page.incoming, &resolved);
        let budget = Budget(import.next.budget.unwrap_or(0));
        if !budget.has_room(before.changed, import.counts.changed - before.changed) {
            drop(taking);
            let reason = format!("more has changed since it was counted: {} records by now", import.counts.changed);
            import.counts = Counts { planned: import.counts.changed, ..before };
            return self.ask(import, reason).await.map(|()| false);
        }
        self.commit(taking, import).await.map(|()| true)
    }

    async fn commit(&self, mut taking: Taking, import: &Import) -> Result<()> {
        self.imports.save_in(&mut taking.tx, State::Running, import).await?;
        fail::point("import.commit");
        taking.commit().await?;
        fail::point("import.committed");
        self.imports.tell();
        Ok(())
    }

    /// Whether the brake lets what was counted through.
    async fn judge(&self, import: &mut Import, turn: &mut Pages) -> Result<Step> {
        if import.order.work == Work::Reconcile
            && !(self.reconcile.find_vanished(import, turn).await?
                && (!import.order.dry_run || self.reconcile.mend(import, turn).await?))
        {
            return Ok(Step::Over);
        }
        let counts = &mut import.counts;
        let integration = (&import.order.organization, import.order.integration_id.as_str());
        let links = self.reconcile.linked(integration.0, integration.1).await?;
        // What matches a record that isn't linked yet changes it all the same.
        counts.linked = links.max(counts.changed + counts.unchanged);
        let whole = import.order.work == Work::Reconcile;
        let planned = Planned {
            linked: counts.linked,
            changes: counts.planned,
            vanished: counts.vanished,
            listed: counts.seen,
            whole,
        };
        match self.brake.judge(planned, import.agreed) {
            _ if import.order.dry_run => self.end(import, State::Done).await.map(|()| Step::Ended),
            Verdict::Ask { reason } => self.ask(import, reason).await.map(|()| Step::Ended),
            Verdict::GoOn(Budget(budget)) => {
                import.next.budget = Some(budget);
                import.enter(Phase::Applying);
                self.imports.save(State::Running, import).await.map(|()| Step::Phase)
            }
        }
    }

    /// Stops, and has a person told, once.
    async fn ask(&self, import: &mut Import, reason: String) -> Result<()> {
        (import.state, import.reason) = (State::Asked, reason);
        let key = self.imports.keys.of(&import.order.organization).await?;
        let mut tx = self.imports.store.begin().await?;
        self.imports.save_in(&mut tx, State::Running, import).await?;
        let event = super::tell::asked(import, self.imports.clock.now());
        self.resolver.outbox.put_in(&mut tx, &key, &event).await?;
        tx.commit().await?;
        self.resolver.outbox.wake();
        self.imports.tell();
        Ok(())
    }

    async fn finish(&self, import: &mut Import, turn: &mut Pages) -> Result<Step> {
        if import.order.work == Work::Reconcile && !self.reconcile.mend(import, turn).await? {
            return Ok(Step::Over);
        }
        self.end(import, State::Done).await.map(|()| Step::Ended)
    }

    pub(super) async fn end(&self, import: &mut Import, state: State) -> Result<()> {
        import.state = state;
        self.imports.save(State::Running, import).await
    }

    /// An organization without any record has none that could be changed.
    async fn needs_no_rehearsal(&self, import: &Import) -> Result<bool> {
        if import.order.dry_run || import.order.work == Work::Reconcile || import.next.position > 0 {
            return Ok(false);
        }
        for kind in RecordKind::ALL {
            if !self.resolver.records.list(&import.order.organization, kind, "", 1).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Import {
    /// What was read of a page.
    fn note(&mut self, page: &Page) {
        self.counts.seen += page.len() as u64;
        self.counts.refused += page.refusals.len() as u64;
        self.keep_refusals(&page.refusals);
    }

    /// What came, or would come, of it.
    pub(super) fn tally(&mut self, incoming: &[Incoming], resolved: &[Resolved]) {
        for (incoming, resolved) in incoming.iter().zip(resolved) {
            let (difference, record_id, fields) = match resolved {
                Resolved::Unchanged | Resolved::Echo | Resolved::Conflicted { .. } => {
                    self.counts.unchanged += 1;
                    continue;
                }
                Resolved::Refused { reason } => {
                    self.refuse_resolved(&incoming.external_id, reason);
                    continue;
                }
                Resolved::Created { record_id } => {
                    self.counts.created += 1;
                    ("new", record_id, Vec::new())
                }
                Resolved::Changed { record_id, changes } => {
                    self.counts.changed += 1;
                    ("missed", record_id, changes.iter().map(|change| change.field.clone()).collect())
                }
                Resolved::Asked { record_id } => {
                    self.counts.changed += 1;
                    ("missed", record_id, Vec::new())
                }
            };
            // Those of the rehearsal stay: applying finds the same.
            if self.phase == Phase::Counting || self.counts.planned == 0 {
                self.give_example(&incoming.external_id, record_id, difference, fields);
            }
        }
    }

    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        (self.counts.seen, self.counts.refused) = (self.counts.seen + 1, self.counts.refused + 1);
        self.keep_refusals(&[refusal]);
    }

    /// What was read, and seen, but breaks a limit: found anew when it is resolved anew.
    fn refuse_resolved(&mut self, external_id: &str, reason: &str) {
        let (external_id, reason) = (external_id.to_owned(), reason.to_owned());
        self.counts.refused += 1;
        self.keep_refusals(&[Refusal { line: 0, external_id, reason }]);
    }

    pub(crate) fn keep_refusals(&mut self, refusals: &[Refusal]) {
        let room = KEPT.saturating_sub(self.refusals.len());
        self.refusals.extend(
            refusals.iter().take(room).map(|refusal| Refusal {
                reason: refusal.reason.chars().take(REASON_CHARS).collect(),
                ..refusal.clone()
            }),
        );
    }

    pub(crate) fn give_example(&mut self, external_id: &str, record_id: &str, difference: &str, fields: Vec<String>) {
        if self.examples.len() < KEPT {
            let (external_id, record_id) = (external_id.to_owned(), record_id.to_owned());
            self.examples.push(Example { external_id, record_id, difference: difference.to_owned(), fields });
        }
    }

    /// Why it can't go on, as people read it.
    pub(crate) fn explained(error: &Error) -> String {
        match error {
            Error::Internal(_) => "an internal error: see the log".to_owned(),
            Error::Invalid { field, reason } if field == "content" => format!("the file {reason}"),
            Error::Invalid { field, .. } if field == HEADING => {
                "a column is not in the heading: see what was refused".to_owned()
            }
            Error::Invalid { field, reason } if field == "list" => format!("the list {reason}"),
            other => other.to_string(),
        }
    }
}
