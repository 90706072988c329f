//! Time as a parameter: the system's clock in production, a manual one in tests.
//!
//! Wall time goes into stores, signatures and tokens. Waiting inside the process is relative, so that a step of the
//! system's clock neither wakes sleepers early nor holds them back; what waits for a time that is written down goes by
//! [`Clock::steady`], since after a step back the system's clock would come to that time much later.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Where a component learns the time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// The machine's clock, which never goes back.
    Steady(SteadyClock),
    /// Moves only when told to.
    Manual(ManualClock),
}

impl Clock {
    /// The time now, in microseconds' resolution (what the stores hold).
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
            Clock::System => from_micros(Timestamp::now().as_microsecond()),
            Clock::Steady(steady) => steady.now(Clock::System.now(), Instant::now()),
            Clock::Manual(manual) => manual.now(),
        }
    }

    /// The time now in microseconds since the Unix epoch, as the stores hold it.
    #[must_use]
    pub fn now_micros(&self) -> i64 {
        self.now().as_microsecond()
    }

    /// The same time on a clock of its own that never goes back: when the machine's clock steps back this one runs on from
    /// where it was, until the process ends or the other has caught up. It follows a step forward.
    #[must_use]
    pub fn steady(&self) -> Self {
        match self {
            Clock::System => Clock::Steady(SteadyClock::from(self.now(), Instant::now())),
            other => other.clone(),
        }
    }

    /// Returns once `duration` has passed on this clock.
    pub async fn sleep(&self, duration: Duration) {
        match self {
            Clock::System | Clock::Steady(_) => tokio::time::sleep(duration).await,
            Clock::Manual(manual) => {
                let until = manual.now() + SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
                manual.reach(until).await;
            }
        }
    }

    /// Returns once the clock shows `until`; at once if it does already.
    pub async fn sleep_until(&self, until: Timestamp) {
        match self {
            Clock::System | Clock::Steady(_) => {
                let left = until.duration_since(self.now());
                if let Ok(left) = Duration::try_from(left) {
                    tokio::time::sleep(left).await;
                }
            }
            Clock::Manual(manual) => manual.reach(until).await,
        }
    }
}

/// What [`Clock::steady`] gives.
#[derive(Clone, Debug)]
pub struct SteadyClock(Arc<Mutex<(Timestamp, Instant)>>);

impl SteadyClock {
    fn from(wall: Timestamp, monotonic: Instant) -> Self {
        Self(Arc::new(Mutex::new((wall, monotonic))))
    }

    /// The later of what the machine's clock shows and what has passed since this was last asked.
    fn now(&self, wall: Timestamp, monotonic: Instant) -> Timestamp {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(monotonic.saturating_duration_since(last.1));
        let ran_on = last.0.checked_add(passed.unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX);
        *last = (wall.max(from_micros(ran_on.as_microsecond())), monotonic.max(last.1));
        last.0
    }
}

/// A clock that a test moves by hand; sleepers wake as it passes them.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: Arc<Mutex<Timestamp>>,
    moved: Arc<watch::Sender<()>>,
}

impl ManualClock {
    /// Starts at `now` and stays there.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { now: Arc::new(Mutex::new(now)), moved: Arc::new(watch::Sender::new(())) }
    }

    /// Moves on by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.set(self.now() + SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX));
    }

    /// Shows `now` from here on, be it earlier or later.
    pub fn set(&self, now: Timestamp) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.moved.send_replace(());
    }

    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reach(&self, until: Timestamp) {
        let mut moved = self.moved.subscribe();
        while self.now() < until {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }
}

/// `now` less `by`, or the earliest time that there is.
#[must_use]
pub fn earlier(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// The time that a store's column holds as microseconds since the Unix epoch; out of range becomes the nearest that exists.
#[must_use]
pub fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_clock_runs_on_when_the_machines_steps_back_and_follows_it_forward() {
        let (wall, began) = (Timestamp::UNIX_EPOCH + SignedDuration::from_hours(9), Instant::now());
        let steady = SteadyClock::from(wall, began);
        let shows = |wall_s: i64, passed_s: u64| {
            let now = steady.now(wall + SignedDuration::from_secs(wall_s), began + Duration::from_secs(passed_s));
            now.duration_since(wall).as_secs()
        };
        assert_eq!(shows(10, 10), 10);
        assert_eq!(shows(-3_590, 10), 10, "an hour back");
        assert_eq!(shows(-3_585, 15), 15, "it runs on");
        assert_eq!(shows(16, 16), 16, "put right again");
        assert_eq!(shows(3_617, 17), 3_617, "an hour forward");
    }

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_manual_clock_passes_it() {
        let manual = ManualClock::at(Timestamp::UNIX_EPOCH);
        let clock = Clock::Manual(manual.clone());
        let sleeper = crate::tasks::Tasks::default();
        let (woke, waking) = tokio::sync::oneshot::channel();
        sleeper.spawn("sleeper", async move {
            clock.sleep(Duration::from_secs(60)).await;
            let _ = woke.send(clock.now());
        });
        tokio::task::yield_now().await;
        manual.advance(Duration::from_secs(59));
        tokio::task::yield_now().await;
        assert!(waking.is_empty(), "woke a second early");
        manual.advance(Duration::from_secs(1));
        assert_eq!(waking.await.expect("the sleeper wakes"), Timestamp::UNIX_EPOCH + SignedDuration::from_secs(60));
    }
}
