//! Time as a parameter: the system's clock in production, a manual one in tests.
//!
//! Wall time goes into stores, signatures and tokens. Waiting inside the process is relative, so that a step of the
//! system's clock neither wakes sleepers early nor holds them back.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Where a component learns the time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
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
            Clock::Manual(manual) => manual.now(),
        }
    }

    /// The time now in microseconds since the Unix epoch, as the stores hold it.
    #[must_use]
    pub fn now_micros(&self) -> i64 {
        self.now().as_microsecond()
    }

    /// Returns once `duration` has passed on this clock.
    pub async fn sleep(&self, duration: Duration) {
        match self {
            Clock::System => tokio::time::sleep(duration).await,
            Clock::Manual(manual) => {
                let until = manual.now() + SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
                manual.reach(until).await;
            }
        }
    }

    /// Returns once the clock shows `until`; at once if it does already.
    pub async fn sleep_until(&self, until: Timestamp) {
        match self {
            Clock::System => {
                let left = until.duration_since(self.now());
                if let Ok(left) = Duration::try_from(left) {
                    tokio::time::sleep(left).await;
                }
            }
            Clock::Manual(manual) => manual.reach(until).await,
        }
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

/// The time that a store's column holds as microseconds since the Unix epoch; out of range becomes the nearest that exists.
#[must_use]
pub fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

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
