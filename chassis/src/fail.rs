//! Fail points: places on an event's way where a test can have the process die, panic or stand still.
//!
//! They exist with the feature `fail-points` alone; without it [`point`] is an empty function, and nothing reads the
//! variable. `WEDSYNC_FAIL=router.append.committed=kill@17` ends the process at the seventeenth passing of that point,
//! with no last word; `panic@3` panics at the third, `sleep:500@3` holds its thread for half a second. Several are
//! separated by `;`.
//!
//! The crate `fail` does more than this and not what is needed: it can't end the process or count passings by itself,
//! and its registry must be set up and torn down by the program.

/// Every point, in the order in which an event meets it; those of a start come last.
pub const POINTS: [&str; 18] = [
    "router.publish.received",
    "router.append.commit",
    "router.append.committed",
    "router.consumer.handed",
    "vendor_sync.event.taken",
    "lane.attempt.begin",
    "lane.attempt.sent",
    "lane.record.commit",
    "lane.record.committed",
    "consume.acknowledge",
    "router.consumer.acknowledged",
    "router.cursor.commit",
    "lane.retry.scheduled",
    "lane.breaker.commit",
    "lane.due.loaded",
    "store.migrate.begin",
    "store.migrate.done",
    "lane.take_over.commit",
];

/// Likewise, of what goes to vendors and comes from them.
pub const SYNC_POINTS: [&str; 9] = [
    "sync.observed",
    "sync.answered",
    "resolve.commit",
    "resolve.committed",
    "outbox.publish",
    "outbox.published",
    "credential.granted",
    "import.commit",
    "import.committed",
];

/// Nothing: this build has no fail points.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub const fn point(_name: &str) {}

#[cfg(feature = "fail-points")]
pub use self::armed::point;

#[cfg(feature = "fail-points")]
mod armed {
    use std::{
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use super::{POINTS, SYNC_POINTS};

    const VARIABLE: &str = "WEDSYNC_FAIL";

    #[derive(Debug, PartialEq, Eq)]
    enum Action {
        Kill,
        Panic,
        Sleep(Duration),
    }

    #[derive(Debug)]
    struct Fault {
        point: String,
        action: Action,
        /// At which passing, counted from 1.
        at: u64,
        passed: AtomicU64,
    }

    static FAULTS: LazyLock<Vec<Fault>> = LazyLock::new(|| {
        let given = crate::config::environment().into_iter().find(|(name, _)| name == VARIABLE);
        let (_, text) = given.unwrap_or_default();
        text.split(';').filter(|fault| !fault.is_empty()).map(parsed).collect()
    });

    /// The process passes this point; what the environment asks for happens here.
    pub fn point(name: &'static str) {
        debug_assert!(is_known(name), "{name} is not on the list of points");
        for fault in FAULTS.iter().filter(|fault| fault.point == name) {
            if fault.passed.fetch_add(1, Ordering::Relaxed) + 1 == fault.at {
                act(name, &fault.action);
            }
        }
    }

    fn is_known(name: &str) -> bool {
        POINTS.contains(&name) || SYNC_POINTS.contains(&name)
    }

    fn act(name: &str, action: &Action) {
        match action {
            // As kill -9: nothing is unwound, flushed or said, and it happens here, not a signal's delivery later.
            Action::Kill => std::process::abort(),
            Action::Panic => panic!("fail point {name}"),
            Action::Sleep(time) => std::thread::sleep(*time),
        }
    }

    fn parsed(text: &str) -> Fault {
        let fault = || {
            let (point, what) = text.split_once('=')?;
            let (action, at) = what.split_once('@').unwrap_or((what, "1"));
            let action = match action.split_once(':') {
                None if action == "kill" => Action::Kill,
                None if action == "panic" => Action::Panic,
                Some(("sleep", ms)) => Action::Sleep(Duration::from_millis(ms.parse().ok()?)),
                _ => return None,
            };
            is_known(point).then_some(Fault {
                point: point.to_owned(),
                action,
                at: at.parse().ok()?,
                passed: AtomicU64::new(0),
            })
        };
        // A test that asks for something else than it means would pass for nothing.
        fault().unwrap_or_else(|| panic!("{VARIABLE}: `{text}` is not POINT=kill|panic|sleep:MS@N with a known POINT"))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_a_point_an_action_and_a_passing() {
            let fault = parsed("router.append.committed=kill@17");
            assert_eq!((fault.point.as_str(), fault.action, fault.at), ("router.append.committed", Action::Kill, 17));
            let fault = parsed("lane.attempt.sent=sleep:250");
            assert_eq!((fault.action, fault.at), (Action::Sleep(Duration::from_millis(250)), 1));
        }

        #[test]
        fn what_names_no_point_or_no_action_is_refused() {
            for text in ["router.append.comitted=kill@1", "lane.attempt.sent=explode@1", "lane.attempt.sent=kill@x"] {
                assert!(std::panic::catch_unwind(|| parsed(text)).is_err(), "{text}");
            }
        }
    }
}
