//! Rounds: whoever has something waiting in the store takes a turn, a page each, so that a full one doesn't hold the others
//! up. What waits, and what becomes of it, is left to those who call.
//!
//! One that is over its limit, or fails for reasons of its own, is left out for a while; while the router or the store is
//! away all rest, with pauses that grow.

use std::{collections::HashMap, time::Duration};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    tasks::Tasks,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

/// Pauses while the router is away: they double up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A look without being woken, should a wake-up be missed by a failed turn.
const IDLE_WAIT: Duration = Duration::from_secs(30);

/// What waits, and for whom.
pub(crate) trait Waiting: Sync {
    /// Its name in logs.
    const WHAT: &'static str;

    /// Who comes after this one, of those for whom something waits, in the order of their ids.
    fn next(&self, after: &str) -> impl Future<Output = Result<Option<String>>> + Send;

    /// Takes one page of theirs; false if there was nothing.
    fn page(&self, whose: &str) -> impl Future<Output = Result<bool>> + Send;
}

/// Goes round until the process stops, and looks at once when it is told that there is more.
pub(crate) async fn run<W: Waiting>(waiting: W, filled: &Notify, clock: &Clock, tasks: &Tasks) {
    let stopping = tasks.stopping();
    let (mut held, mut wait) = (Held::default(), FIRST_WAIT);
    loop {
        let Some(turn) = stopping.run_until_cancelled(turn(&waiting, &mut held, clock)).await else { return };
        let (pause, may_wake) = match turn {
            Ok(true) => {
                wait = FIRST_WAIT;
                continue;
            }
            Ok(false) => {
                wait = FIRST_WAIT;
                (held.next(clock.now()).min(IDLE_WAIT), true)
            }
            // While the router is away, more to publish is no reason to hurry.
            Err(error) => {
                tracing::warn!(%error, wait_ms = wait.as_millis(), "{} wait for the router or the store", W::WHAT);
                let pause = wait;
                wait = (wait * 2).min(LONGEST_WAIT);
                (pause, false)
            }
        };
        let rest = async {
            tokio::select! {
                () = clock.sleep(pause) => {}
                () = filled.notified(), if may_wake => {}
            }
        };
        if stopping.run_until_cancelled(rest).await.is_none() {
            return;
        }
    }
}

/// One page of everybody who isn't held; true if there was anything to do.
///
/// # Errors
/// `Error::Unavailable` while the router or the store is away.
pub(crate) async fn turn<W: Waiting>(waiting: &W, held: &mut Held, clock: &Clock) -> Result<bool> {
    let (mut whose, mut busy) = (String::new(), false);
    while let Some(next) = waiting.next(&whose).await? {
        whose = next;
        if held.holds(&whose, clock.now()) {
            continue;
        }
        match waiting.page(&whose).await {
            Ok(taken) => busy |= taken,
            Err(Error::Unavailable(reason)) => return Err(Error::Unavailable(reason)),
            Err(error) => {
                tracing::warn!(%error, whose, "{} of one wait", W::WHAT);
                held.hold(&whose, &error, clock.now());
            }
        }
    }
    Ok(busy)
}

/// Those who are left out for a while: over a limit, or failing for reasons of their own.
#[derive(Debug, Default)]
pub(crate) struct Held(HashMap<String, Timestamp>);

impl Held {
    fn holds(&mut self, whose: &str, now: Timestamp) -> bool {
        self.0.retain(|_, until| *until > now);
        self.0.contains_key(whose)
    }

    fn hold(&mut self, whose: &str, error: &Error, now: Timestamp) {
        let pause = match error {
            Error::Exhausted { retry_after, .. } => (*retry_after).clamp(FIRST_WAIT, LONGEST_WAIT),
            _ => LONGEST_WAIT,
        };
        self.0.insert(whose.to_owned(), now + SignedDuration::try_from(pause).unwrap_or(SignedDuration::ZERO));
    }

    /// How long until the first of them is let in again.
    fn next(&self, now: Timestamp) -> Duration {
        let waits =
            self.0.values().map(|until| Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO));
        waits.min().unwrap_or(IDLE_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use chassis::testing::manual_clock;

    use super::*;

    /// Whose pages can't be asked for, and why.
    type Failing = (&'static str, fn() -> Error);

    /// Pages that are left of some, and what asking for one's gives.
    #[derive(Default)]
    struct Pages {
        left: Mutex<std::collections::BTreeMap<String, usize>>,
        taken: Mutex<Vec<String>>,
        fails: Option<Failing>,
    }

    impl Waiting for Pages {
        const WHAT: &'static str = "pages";

        async fn next(&self, after: &str) -> Result<Option<String>> {
            let left = self.left.lock().unwrap();
            Ok(left.iter().find(|(whose, pages)| whose.as_str() > after && **pages > 0).map(|(whose, _)| whose.clone()))
        }

        async fn page(&self, whose: &str) -> Result<bool> {
            if let Some((_, error)) = self.fails.filter(|(failing, _)| *failing == whose) {
                return Err(error());
            }
            *self.left.lock().unwrap().get_mut(whose).unwrap() -= 1;
            self.taken.lock().unwrap().push(whose.to_owned());
            Ok(true)
        }
    }

    fn pages(of: &[(&str, usize)]) -> Pages {
        let left = of.iter().map(|(whose, pages)| ((*whose).to_owned(), *pages)).collect();
        Pages { left: Mutex::new(left), ..Pages::default() }
    }

    #[tokio::test]
    async fn everybody_takes_a_turn_a_page_each() {
        let (_, clock) = manual_clock();
        let (pages, mut held) = (pages(&[("full", 3), ("small", 1)]), Held::default());
        while turn(&pages, &mut held, &clock).await.expect("nothing fails") {}
        assert_eq!(*pages.taken.lock().unwrap(), ["full", "small", "full", "full"]);
    }

    #[tokio::test]
    async fn one_that_fails_is_left_out_for_a_while_and_holds_nobody_up() {
        let (time, clock) = manual_clock();
        let over = || Error::Exhausted { reason: "over the limit".to_owned(), retry_after: Duration::from_secs(2) };
        let (pages, mut held) = (Pages { fails: Some(("a", over)), ..pages(&[("a", 1), ("b", 1)]) }, Held::default());
        assert!(turn(&pages, &mut held, &clock).await.expect("the others go on"));
        assert_eq!(*pages.taken.lock().unwrap(), ["b"]);
        let pages = Pages { fails: None, ..pages };
        assert!(!turn(&pages, &mut held, &clock).await.expect("nothing fails"), "it is held");
        assert_eq!(held.next(clock.now()), Duration::from_secs(2));
        time.advance(Duration::from_secs(2));
        assert!(turn(&pages, &mut held, &clock).await.expect("nothing fails"), "it is let in again");
    }

    #[tokio::test]
    async fn a_router_that_is_away_ends_the_turn_for_everybody() {
        let (_, clock) = manual_clock();
        let away = || Error::Unavailable("away".to_owned());
        let (pages, mut held) = (Pages { fails: Some(("a", away)), ..pages(&[("a", 1), ("b", 1)]) }, Held::default());
        assert!(matches!(turn(&pages, &mut held, &clock).await, Err(Error::Unavailable(_))));
        assert!(pages.taken.lock().unwrap().is_empty());
    }
}
