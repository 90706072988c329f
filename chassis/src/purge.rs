//! The pace of a purge: what is old goes in small steps, with pauses that are much longer, so that nobody waits long behind one;
//! and each hour it is looked whether anything became old. What goes, and what must not, is the purge's own.
//!
//! Guarantee: a clock that is set forward by mistake, and back within the hour, makes nothing old.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, error::Result};

/// How often it is looked; the first time after so long, too.
const LOOK: Duration = Duration::from_secs(3_600);
/// By so much the clock may have gone on between two looks; what goes beyond is believed at the next one.
const BELIEVED: SignedDuration = SignedDuration::from_hours(2);
/// After a step it rests for so many times as long as that took, within these bounds; fewer times once it has been at it for
/// longer than from one look to the next: more becomes old than goes.
const RESTS: u32 = 19;
const RESTS_BEHIND: u32 = 4;
const REST_MIN: Duration = Duration::from_millis(5);
const REST_MAX: Duration = Duration::from_secs(1);

/// The fewest days that something is kept, if not for ever: vendors send a webhook again for days, and so do we; that it was
/// taken must be known for longer.
pub const DAYS_MIN: u32 = 7;

/// Whether a setting may keep something for so many days; 0: for ever.
#[must_use]
pub fn may_keep(days: u32) -> bool {
    days == 0 || days >= DAYS_MIN
}

/// How long such a setting keeps it; none: for ever.
#[must_use]
pub fn period(days: u32) -> Option<SignedDuration> {
    (days > 0).then(|| SignedDuration::from_hours(24 * i64::from(days)))
}

/// Something of which the old goes.
pub trait Purge: Send {
    /// Takes a little of what is old at `now`. False when there is nothing left to do.
    ///
    /// # Errors
    /// Those of the store: the next look goes on.
    fn step(&mut self, now: Timestamp) -> impl Future<Output = Result<bool>> + Send;
}

/// Purges until told to stop.
pub async fn run(mut purge: impl Purge, clock: Clock, stopping: CancellationToken) {
    let mut looked = clock.now();
    while stopping.run_until_cancelled(clock.sleep(LOOK)).await.is_some() {
        let now = believed(&mut looked, clock.now());
        let done = stopping.run_until_cancelled(until_nothing_is_old(&mut purge, now)).await;
        if let Some(Err(error)) = done {
            tracing::warn!(%error, "what is old can't be purged; trying again in an hour");
        }
    }
}

/// What the clock says now, as far as it has gone on since it was looked at last.
fn believed(looked: &mut Timestamp, now: Timestamp) -> Timestamp {
    let before = std::mem::replace(looked, now);
    now.min(before + BELIEVED)
}

async fn until_nothing_is_old(purge: &mut impl Purge, now: Timestamp) -> Result<()> {
    let at_it = Instant::now();
    loop {
        let began = Instant::now();
        if !purge.step(now).await? {
            return Ok(());
        }
        tokio::time::sleep(rest(began.elapsed(), at_it.elapsed())).await;
    }
}

/// After a step that took so long, of a purge that has been at it for so long.
fn rest(step: Duration, at_it: Duration) -> Duration {
    let rests = if at_it < LOOK { RESTS } else { RESTS_BEHIND };
    (step * rests).clamp(REST_MIN, REST_MAX)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        error::Error,
        testing::{manual_clock, noon},
    };

    fn hours(hours: i64) -> Timestamp {
        noon() + SignedDuration::from_hours(hours)
    }

    #[test]
    fn a_clock_that_was_set_forward_is_believed_at_the_second_look() {
        let mut looked = noon();
        for (shown, taken) in [(1, 1), (2_000, 3), (3, 3), (4, 4), (2_000, 6), (2_001, 2_001)] {
            assert_eq!(believed(&mut looked, hours(shown)), hours(taken), "{shown}");
        }
    }

    #[test]
    fn it_rests_longer_than_it_works_and_less_when_it_is_behind() {
        let (millis, hours) = (Duration::from_millis, |hours: u64| Duration::from_secs(3_600 * hours));
        assert_eq!(rest(millis(2), hours(0)), millis(38));
        assert_eq!(rest(millis(2), hours(1)), millis(8));
        assert_eq!((rest(millis(0), hours(0)), rest(millis(500), hours(0))), (REST_MIN, REST_MAX));
    }

    /// Tells when it is asked; every third time there is nothing left to do.
    struct Old {
        asked: mpsc::UnboundedSender<Timestamp>,
        steps: usize,
    }

    impl Purge for Old {
        async fn step(&mut self, now: Timestamp) -> Result<bool> {
            self.asked.send(now).expect("somebody listens");
            self.steps += 1;
            if self.steps == 5 {
                return Err(Error::Unavailable("the store is away".into()));
            }
            Ok(!self.steps.is_multiple_of(3))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_hour_it_is_purged_until_nothing_is_old_or_the_store_is_away() {
        let (time, clock) = manual_clock();
        let (asked, mut when) = mpsc::unbounded_channel();
        let stopping = CancellationToken::new();
        let purge = run(Old { asked, steps: 0 }, clock, stopping.clone());
        let test = async {
            for (hour, steps) in [(1, 3), (2, 2), (3, 1), (4, 3)] {
                time.set(hours(hour));
                for _ in 0..steps {
                    assert_eq!(when.recv().await, Some(hours(hour)));
                }
            }
            stopping.cancel();
        };
        tokio::join!(purge, test);
    }
}
