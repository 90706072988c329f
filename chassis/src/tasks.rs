//! Every background task of the process: named, counted, told to stop together and waited for.
//!
//! It is the only place that spawns. A task sees `stopping()` and ends by itself; what is left at the deadline is named.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{sync::oneshot, task::AbortHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::trace;

/// The tasks of one process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    failed: CancellationToken,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Tasks {
    /// Runs `future` beside everything else, in the caller's trace. A panic in it is logged and counted, and ends it alone.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let counted = Counted::new(name, Arc::clone(&self.running));
        // One type for all: what follows and the runtime's part of a task would be compiled for each, a megabyte of it.
        let future = future.boxed();
        let guarded = async move {
            let _counted = counted;
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                metrics::counter!("task_panics_total", "task" => name).increment(1);
                tracing::error!(task = name, reason = panic_text(&*panic), "task panicked");
            }
        };
        let traced = trace::carry(guarded).in_current_span();
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        tokio::spawn(self.tracker.track_future(traced)).abort_handle()
    }

    /// Runs `future` to its end, whether or not its caller waits for it; what comes of it, or none if it panicked.
    pub fn through<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send {
        let (sender, receiver) = oneshot::channel();
        // Who has left isn't told.
        self.spawn(name, async move { drop(sender.send(future.await)) });
        async move { receiver.await.ok() }
    }

    /// What every long-lived task waits for beside its work.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Something that nothing here can mend: the process stops in order, and ends as failed.
    pub fn fail(&self, reason: &str) {
        tracing::error!(reason, "this process can't go on");
        self.failed.cancel();
    }

    /// Cancelled when the process can't go on.
    pub(crate) fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Tells all tasks to stop and waits for them; false if some still ran after `deadline`, which are logged by name.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        let ended = timeout(deadline, self.tracker.wait()).await.is_ok();
        if !ended {
            tracing::warn!(tasks = ?self.running(), "still running at the deadline");
        }
        ended
    }

    /// How many tasks of each name run now.
    #[must_use]
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts a task for as long as it lives, aborted or not.
struct Counted {
    name: &'static str,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Counted {
    fn new(name: &'static str, running: Arc<Mutex<BTreeMap<&'static str, usize>>>) -> Self {
        *running.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, running }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// What a panic said, if it said it in words.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_runs_through_ends_without_its_caller_and_tells_one_who_waits() {
        let tasks = Tasks::default();
        let (sender, receiver) = oneshot::channel();
        drop(tasks.through("left", async move { sender.send(1) }));
        assert_eq!(receiver.await, Ok(1));
        assert_eq!(tasks.through("awaited", async { 2 }).await, Some(2));
        assert_eq!(tasks.through("broken", async { panic!("no answer") }).await, None::<u8>);
    }

    #[tokio::test]
    async fn a_stop_waits_for_tasks_that_end_by_themselves() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping();
        tasks.spawn("patient", async move { stopping.cancelled().await });
        assert_eq!(tasks.running(), BTreeMap::from([("patient", 1)]));
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(tasks.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_at_its_deadline_and_names_what_still_runs() {
        let tasks = Tasks::default();
        tasks.spawn("stubborn", std::future::pending());
        assert!(!tasks.stop(Duration::from_secs(15)).await);
        assert_eq!(tasks.running(), BTreeMap::from([("stubborn", 1)]));
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_task_alone() {
        let tasks = Tasks::default();
        tasks.spawn("clumsy", async { panic!("on purpose") });
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn an_aborted_task_is_no_longer_counted() {
        let tasks = Tasks::default();
        tasks.spawn("short", std::future::pending()).abort();
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(tasks.running().is_empty());
    }
}
