//! Who works at which import when: oldest first, at most [`AT_ONCE`] together and [`PER_ORGANIZATION`] of one organization.
//!
//! What runs is in the store: a process that starts finds there what the one before it was at.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use jiff::{SignedDuration, Timestamp};

use super::{Import, State, work::Worker};

const AT_ONCE: usize = 4;
const PER_ORGANIZATION: usize = 2;
/// A look without being woken.
const IDLE_WAIT: Duration = Duration::from_secs(30);
/// Waits of an import that can't go on now: they double up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const PURGE_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// Imports that are worked at, and whose they are.
#[derive(Clone, Debug, Default)]
struct Active(Arc<Mutex<BTreeMap<String, OrganizationId>>>);

/// One of them; dropped, it is no longer.
struct Turn(Active, String);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Active {
    /// Its turn, if there is room for it and nobody has it.
    fn take(&self, organization: &OrganizationId, id: &str) -> Option<Turn> {
        let mut active = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = active.values().filter(|other| *other == organization).count();
        if active.len() >= AT_ONCE || own >= PER_ORGANIZATION || active.contains_key(id) {
            return None;
        }
        active.insert(id.to_owned(), organization.clone());
        Some(Turn(self.clone(), id.to_owned()))
    }
}

impl Worker {
    /// Works at what there is and what comes, until the process stops.
    pub(crate) async fn run(self, tasks: Tasks) {
        let (stopping, active, mut purged) = (tasks.stopping(), Active::default(), Timestamp::MIN);
        if let Err(error) = self.imports.fail_cut_off().await {
            tracing::warn!(%error, "uploads that were cut off are still noted as under way");
        }
        loop {
            if let Err(error) = self.look(&tasks, &active, &mut purged).await {
                tracing::warn!(%error, "imports wait for the store");
            }
            let rest = async {
                tokio::select! {
                    () = self.imports.clock.sleep(IDLE_WAIT) => {}
                    () = self.imports.woken() => {}
                }
            };
            if stopping.run_until_cancelled(rest).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self, tasks: &Tasks, active: &Active, purged: &mut Timestamp) -> Result<()> {
        for (organization, id) in self.imports.running().await? {
            let Some(turn) = active.take(&organization, &id) else { continue };
            let (worker, stopping) = (self.clone(), tasks.stopping());
            tasks.spawn("import", async move {
                let attended = async {
                    worker.attend(&organization, &id).await;
                    worker.imports.forget_spools().await
                };
                if let Some(Err(error)) = stopping.run_until_cancelled(attended).await {
                    tracing::warn!(%error, "what was spooled for imports that have ended is forgotten within the hour");
                }
                drop(turn);
                worker.imports.wake();
            });
        }
        let now = self.imports.clock.now();
        if *purged < now - PURGE_EVERY {
            *purged = now;
            let (imports, stopping) = (self.imports.clone(), tasks.stopping());
            tasks.spawn("import.purge", async move {
                if let Some(Err(error)) = stopping.run_until_cancelled(imports.purge()).await {
                    tracing::warn!(%error, "old imports are forgotten within the hour");
                }
            });
        }
        Ok(())
    }

    /// Stays with one import until it has ended or asks; what can't be now is tried again.
    pub(super) async fn attend(&self, organization: &OrganizationId, id: &str) {
        let mut wait = FIRST_WAIT;
        loop {
            let mut reached = None;
            let error = match self.attempt(organization, id, &mut reached).await {
                Ok(()) => return,
                Err(error) => error,
            };
            if !error.is_retryable() {
                if let Some(import) = reached {
                    self.give_up(import, &error).await;
                }
                return;
            }
            let pause = match &error {
                Error::Exhausted { retry_after, .. } => (*retry_after).max(wait),
                _ => wait,
            };
            tracing::info!(%error, import.id = id, wait_ms = pause.as_millis(), "an import waits");
            self.imports.clock.sleep(pause).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn attempt(&self, organization: &OrganizationId, id: &str, reached: &mut Option<Import>) -> Result<()> {
        let import = self.imports.get(organization, id).await?;
        if import.state != State::Running {
            return Ok(());
        }
        let import = reached.insert(import);
        Box::pin(self.work(import)).await
    }

    async fn give_up(&self, mut import: Import, error: &Error) {
        tracing::warn!(error = ?error, import.id = import.id, "an import failed");
        (import.state, import.reason) = (State::Failed, Import::explained(error));
        if let Err(error) = self.imports.save(State::Running, &import).await {
            tracing::warn!(%error, import.id = import.id, "that an import failed was not noted: it is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_never_has_all_turns_and_gets_them_back() {
        let (active, organization) =
            (Active::default(), |name: &str| OrganizationId::parse(name).expect("well-formed"));
        let (one, two) = (active.take(&organization("a"), "1"), active.take(&organization("a"), "2"));
        assert!(one.is_some() && two.is_some() && active.take(&organization("a"), "3").is_none());
        assert!(active.take(&organization("b"), "1").is_none(), "somebody is at it");
        let (three, four) = (active.take(&organization("b"), "3"), active.take(&organization("c"), "4"));
        assert!(three.is_some() && four.is_some() && active.take(&organization("d"), "5").is_none());
        drop(one);
        assert!(active.take(&organization("a"), "6").is_some());
    }
}
