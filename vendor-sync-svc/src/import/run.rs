//! Who works at which import when: who waits longest first, at most [`AT_ONCE`] together and [`PER_ORGANIZATION`] of one
//! organization. A turn is some pages long: one list of many slow ones holds nobody else up, nor does a vendor that is
//! down, for what can't go on now rests.
//!
//! What runs is in the store: a process that starts finds there what the one before it was at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use jiff::{SignedDuration, Timestamp};

use super::{
    Import, Phase, Refusal, State,
    columns::HEADING,
    work::{Pages, Step, Worker},
};

const AT_ONCE: usize = 4;
const PER_ORGANIZATION: usize = 2;
/// A look without being woken.
const IDLE_WAIT: Duration = Duration::from_secs(30);
/// Waits of an import that can't go on now: they double up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Turns that are remembered, for their order.
const REMEMBERED: u64 = 1_000;
/// An upload that nobody receives is over then: whoever began it has had the time to.
const BEGIN_WITHIN: SignedDuration = SignedDuration::from_mins(2);
const REASON_CHARS: usize = 1_000;
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
    /// Turns so far; and the number of the last one of each import and of each organization, by their ids.
    turns: u64,
    last: BTreeMap<String, u64>,
}

/// How an import stands when its turn is over.
#[derive(Debug)]
pub(super) enum Came {
    /// It has ended, or asks.
    Ended,
    /// It goes on when it has another turn.
    HasMore,
    /// It can't go on now.
    Waits(Error),
}

/// One import's; dropped, it is somebody else's.
struct Turn(Turns, String);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().active.remove(&self.1);
    }
}

impl Turns {
    fn is_full(&self) -> bool {
        self.lock().active.len() >= AT_ONCE
    }

    /// Puts the organizations first whose last turn is longest ago, and of each its import of which that is so.
    fn order(&self, running: &mut [(OrganizationId, String)]) {
        let held = self.lock();
        let last = |id: &str| held.last.get(id).copied().unwrap_or(0);
        running.sort_by_key(|(organization, id)| (last(organization.as_str()), last(id)));
    }

    /// Its turn, if there is room for it, nobody has it, and it has rested.
    fn take(&self, organization: &OrganizationId, id: &str, now: Timestamp) -> Option<Turn> {
        let mut held = self.lock();
        let own = held.active.values().filter(|other| *other == organization).count();
        let rests = held.resting.get(id).is_some_and(|(until, _)| *until > now);
        if held.active.len() >= AT_ONCE || own >= PER_ORGANIZATION || held.active.contains_key(id) || rests {
            return None;
        }
        held.turns += 1;
        let number = held.turns;
        held.last.extend([(organization.to_string(), number), (id.to_owned(), number)]);
        held.last.retain(|_, last| *last + REMEMBERED > number);
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
        // However many rest, they are looked at together.
        wait.unwrap_or(IDLE_WAIT).clamp(FIRST_WAIT, IDLE_WAIT)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Works at what there is and what comes, until the process stops.
    pub(crate) async fn run(self, tasks: Tasks) {
        let (stopping, turns, mut purged) = (tasks.stopping(), Turns::default(), Timestamp::MIN);
        // Rests are no longer where the machine's clock steps back.
        let steady = self.imports.clock.steady();
        // Nobody received anything before.
        let mut cut_off = self.imports.clock.now();
        loop {
            if let Err(error) = self.imports.fail_cut_off(cut_off).await {
                tracing::warn!(%error, "uploads that were cut off are still noted as under way");
            }
            cut_off = self.imports.clock.now() - BEGIN_WITHIN;
            if let Err(error) = self.look(&tasks, &turns, &steady, &mut purged).await {
                tracing::warn!(%error, "imports wait for the store");
            }
            let wait = turns.next(steady.now());
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

    async fn look(&self, tasks: &Tasks, turns: &Turns, steady: &Clock, purged: &mut Timestamp) -> Result<()> {
        if !turns.is_full() {
            self.give_turns(tasks, turns, steady).await?;
        }
        let now = steady.now();
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

    async fn give_turns(&self, tasks: &Tasks, turns: &Turns, steady: &Clock) -> Result<()> {
        let mut running = self.imports.running().await?;
        turns.keep(&running.iter().map(|(_, id)| id.as_str()).collect());
        turns.order(&mut running);
        for (organization, id) in running {
            let Some(turn) = turns.take(&organization, &id, steady.now()) else { continue };
            let (worker, stopping, steady) = (self.clone(), tasks.stopping(), steady.clone());
            tasks.spawn("import", async move {
                stopping.run_until_cancelled(worker.take_turn(&organization, &turn, &steady)).await;
                drop(turn);
                worker.imports.wake();
            });
        }
        Ok(())
    }

    async fn take_turn(&self, organization: &OrganizationId, Turn(turns, id): &Turn, steady: &Clock) {
        match self.attend(organization, id).await {
            Came::HasMore => {}
            Came::Waits(error) => {
                let wait_ms = turns.rest(id, &error, steady.now()).as_millis();
                if error.is_retryable() {
                    tracing::info!(%error, import.id = id, wait_ms, "an import waits");
                } else {
                    tracing::warn!(error = ?error, import.id = id, wait_ms, "an import can't be worked at, nor given up");
                }
            }
            Came::Ended => {
                if let Err(error) = self.imports.forget_spools().await {
                    tracing::warn!(%error, "what was spooled for imports that have ended is forgotten within the hour");
                }
            }
        }
    }

    /// Stays with one import for a turn.
    pub(super) async fn attend(&self, organization: &OrganizationId, id: &str) -> Came {
        let mut import = match self.imports.get(organization, id).await {
            Ok(import) if import.state != State::Running => return Came::Ended,
            Ok(import) => import,
            Err(error) => return Came::Waits(error),
        };
        match Box::pin(self.work(&mut import, &mut Pages::of_a_turn())).await {
            Ok(Step::Ended) => Came::Ended,
            Ok(_) => Came::HasMore,
            Err(error) if error.is_retryable() => Came::Waits(error),
            Err(error) => self.give_up(import, &error).await,
        }
    }

    async fn give_up(&self, mut import: Import, error: &Error) -> Came {
        match error {
            // What another one says may quote the file.
            Error::Internal(_) => tracing::warn!(error = ?error, import.id = import.id, "an import failed"),
            _ => tracing::warn!(kind = ?error.code(), import.id = import.id, "an import failed"),
        }
        import.state = State::Failed;
        import.reason = Import::explained(error).chars().take(REASON_CHARS).collect();
        if let Error::Invalid { field, reason } = error {
            // Read again it is the same.
            import.phase = Phase::Receiving;
            if field == HEADING {
                import.keep_refusals(&[Refusal { line: 1, external_id: String::new(), reason: reason.clone() }]);
            }
        }
        match self.imports.save(State::Running, &import).await {
            // Cancelled meanwhile.
            Ok(()) | Err(Error::Aborted(_)) => Came::Ended,
            Err(error) => Came::Waits(error),
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
    fn whoever_had_no_turn_for_longest_has_the_next() {
        let turns = Turns::default();
        let mut had = Vec::new();
        for _ in 0..6 {
            let mut running: Vec<_> = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")]
                .map(|(name, id)| (organization(name), id.to_owned()))
                .into();
            turns.order(&mut running);
            let (name, id) = &running[0];
            had.push(turns.take(name, id, noon()).expect("there is room").1.clone());
        }
        assert_eq!(had, ["1", "4", "2", "4", "3", "4"], "organizations in turn, and the imports of each");
    }

    #[test]
    fn what_is_remembered_of_turns_is_bounded() {
        let turns = Turns::default();
        for number in 0..3_000 {
            drop(turns.take(&organization("a"), &number.to_string(), noon()));
        }
        assert!(turns.lock().last.len() <= 1_001);
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
