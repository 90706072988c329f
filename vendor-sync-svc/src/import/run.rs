//! Who works at which import when: oldest first, at most [`AT_ONCE`] together and [`PER_ORGANIZATION`] of one organization.
//! One that can't go on now gives its turn back and rests: a vendor that is down holds nobody else up.
//!
//! What runs is in the store: a process that starts finds there what the one before it was at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// Who has a turn, and who rests.
#[derive(Clone, Debug, Default)]
struct Turns(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// Imports that are worked at, and whose they are.
    active: BTreeMap<String, OrganizationId>,
    /// Imports that can't go on before then, and how long the wait was.
    resting: BTreeMap<String, (Timestamp, Duration)>,
}

/// One import's; dropped, it is somebody else's.
struct Turn(Turns, String);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().active.remove(&self.1);
    }
}

impl Turns {
    /// Its turn, if there is room for it, nobody has it, and it has rested.
    fn take(&self, organization: &OrganizationId, id: &str, now: Timestamp) -> Option<Turn> {
        let mut held = self.lock();
        let own = held.active.values().filter(|other| *other == organization).count();
        let rests = held.resting.get(id).is_some_and(|(until, _)| *until > now);
        if held.active.len() >= AT_ONCE || own >= PER_ORGANIZATION || held.active.contains_key(id) || rests {
            return None;
        }
        held.active.insert(id.to_owned(), organization.clone());
        Some(Turn(self.clone(), id.to_owned()))
    }

    /// It can't go on now, for this reason; how long it rests.
    fn rest(&self, id: &str, error: &Error, now: Timestamp) -> Duration {
        let mut held = self.lock();
        let wait = held.resting.get(id).map_or(FIRST_WAIT, |(_, wait)| (*wait * 2).min(LONGEST_WAIT));
        let pause = match error {
            Error::Exhausted { retry_after, .. } => (*retry_after).max(wait),
            _ => wait,
        };
        let until = now + SignedDuration::try_from(pause).unwrap_or(SignedDuration::ZERO);
        held.resting.insert(id.to_owned(), (until, wait));
        pause
    }

    /// Forgets the rests of all but those that run.
    fn keep(&self, running: &BTreeSet<&str>) {
        self.lock().resting.retain(|id, _| running.contains(id.as_str()));
    }

    /// How long until the first of them has rested.
    fn next(&self, now: Timestamp) -> Duration {
        let held = self.lock();
        let ends = held.resting.values().map(|(until, _)| *until).filter(|until| *until > now);
        let wait = ends.min().and_then(|until| Duration::try_from(until.duration_since(now)).ok());
        wait.unwrap_or(IDLE_WAIT).min(IDLE_WAIT)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Works at what there is and what comes, until the process stops.
    pub(crate) async fn run(self, tasks: Tasks) {
        let (stopping, turns, mut purged) = (tasks.stopping(), Turns::default(), Timestamp::MIN);
        if let Err(error) = self.imports.fail_cut_off().await {
            tracing::warn!(%error, "uploads that were cut off are still noted as under way");
        }
        loop {
            if let Err(error) = self.look(&tasks, &turns, &mut purged).await {
                tracing::warn!(%error, "imports wait for the store");
            }
            let wait = turns.next(self.imports.clock.now());
            let rest = async {
                tokio::select! {
                    () = self.imports.clock.sleep(wait) => {}
                    () = self.imports.woken() => {}
                }
            };
            if stopping.run_until_cancelled(rest).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self, tasks: &Tasks, turns: &Turns, purged: &mut Timestamp) -> Result<()> {
        let (running, now) = (self.imports.running().await?, self.imports.clock.now());
        turns.keep(&running.iter().map(|(_, id)| id.as_str()).collect());
        for (organization, id) in running {
            let Some(turn) = turns.take(&organization, &id, now) else { continue };
            let (worker, stopping) = (self.clone(), tasks.stopping());
            tasks.spawn("import", async move {
                stopping.run_until_cancelled(worker.take_turn(&organization, &turn)).await;
                drop(turn);
                worker.imports.wake();
            });
        }
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

    async fn take_turn(&self, organization: &OrganizationId, Turn(turns, id): &Turn) {
        if let Some(error) = self.attend(organization, id).await {
            let pause = turns.rest(id, &error, self.imports.clock.now());
            tracing::info!(%error, import.id = id, wait_ms = pause.as_millis(), "an import waits");
        } else if let Err(error) = self.imports.forget_spools().await {
            tracing::warn!(%error, "what was spooled for imports that have ended is forgotten within the hour");
        }
    }

    /// Stays with one import until it has ended or asks; else gives why it can't go on now.
    pub(super) async fn attend(&self, organization: &OrganizationId, id: &str) -> Option<Error> {
        let mut reached = None;
        let error = self.attempt(organization, id, &mut reached).await.err()?;
        if error.is_retryable() {
            return Some(error);
        }
        if let Some(import) = reached {
            self.give_up(import, &error).await;
        }
        None
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
    use chassis::testing::noon;

    use super::*;

    fn organization(name: &str) -> OrganizationId {
        OrganizationId::parse(name).expect("well-formed")
    }

    #[test]
    fn an_organization_never_has_all_turns_and_gets_them_back() {
        let turns = Turns::default();
        let take = |name: &str, id: &str| turns.take(&organization(name), id, noon());
        let (one, two) = (take("a", "1"), take("a", "2"));
        assert!(one.is_some() && two.is_some() && take("a", "3").is_none());
        assert!(take("b", "1").is_none(), "somebody is at it");
        let (three, four) = (take("b", "3"), take("c", "4"));
        assert!(three.is_some() && four.is_some() && take("d", "5").is_none());
        drop(one);
        assert!(take("a", "6").is_some());
    }

    #[test]
    fn imports_that_cannot_go_on_leave_their_turns_to_others_and_come_back_when_they_have_rested() {
        let (turns, now) = (Turns::default(), noon());
        for (number, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let turn = turns.take(&organization(name), &number.to_string(), now).expect("there is room");
            let away = Error::Exhausted { reason: "later".to_owned(), retry_after: Duration::from_secs(90_000) };
            assert_eq!(turns.rest(&turn.1, &away, now), Duration::from_secs(90_000));
        }
        assert!(turns.take(&organization("a"), "0", now).is_none(), "it rests");
        let other = turns.take(&organization("e"), "4", now).expect("nobody is at anything");
        let pauses: Vec<Duration> =
            (0..9).map(|_| turns.rest(&other.1, &Error::Unavailable(String::new()), now)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[8]), (FIRST_WAIT, FIRST_WAIT * 2, LONGEST_WAIT));
        assert_eq!(turns.next(now), LONGEST_WAIT, "the first of them");
        assert!(turns.take(&organization("a"), "0", now + SignedDuration::from_hours(25)).is_some());
        turns.keep(&BTreeSet::new());
        assert_eq!(turns.next(now), IDLE_WAIT, "what runs no longer is forgotten");
    }
}
