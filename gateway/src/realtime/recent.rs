//! The latest events of an organization, as its hub handed them out: whoever was away for a moment gets what it missed
//! from here, so that thousands who come back at once cost the router nothing. Bounded in number, bytes and age. Pure: the
//! time is given.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use prost::Message as _;
use proto::router::v1::Event;

use super::notice::{Notice, Rows};

const EVENTS: usize = 2_000;
/// Of all events, encoded; read, they take about three times as much.
const BYTES: usize = 1 << 20;
/// Clients come back within seconds. What is older is in the log.
const AGE: Duration = Duration::from_secs(60);

/// One hub's.
#[derive(Default)]
pub(crate) struct Recent {
    events: VecDeque<Kept>,
    bytes: usize,
    /// Every event after this sequence that was handed out is here.
    after: u64,
}

struct Kept {
    event: Event,
    rows: Rows,
    sequence: u64,
    bytes: usize,
    since: Instant,
}

impl Recent {
    /// Nothing up to `sequence` is here.
    pub(crate) fn restart(&mut self, sequence: u64) {
        *self = Self { after: sequence, ..Self::default() };
    }

    /// Adds the next event.
    pub(crate) fn add(&mut self, event: Event, rows: Rows, now: Instant) {
        let sequence = event.position.as_ref().map_or(0, |position| position.sequence);
        let bytes = event.encoded_len();
        self.bytes += bytes;
        self.events.push_back(Kept { event, rows, sequence, bytes, since: now });
        self.trim(now);
    }

    /// Forgets what is too much or too old.
    pub(crate) fn trim(&mut self, now: Instant) {
        let too_old = |kept: &Kept| now.saturating_duration_since(kept.since) > AGE;
        while self.events.len() > EVENTS || self.bytes > BYTES || self.events.front().is_some_and(too_old) {
            let Some(kept) = self.events.pop_front() else { return };
            self.bytes -= kept.bytes;
            self.after = kept.sequence;
        }
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }

    /// All events after `sequence`, in their order; none where some of them aren't here any more.
    pub(crate) fn after(&self, sequence: u64) -> Option<impl Iterator<Item = Notice<'_>>> {
        let first = self.events.partition_point(|kept| kept.sequence <= sequence);
        let all = self.events.range(first..).map(|kept| Notice::again(&kept.event, kept.rows.clone()));
        (sequence >= self.after).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::common::v1::Position;

    use super::*;
    use crate::realtime::notice::tests::content;

    fn event(sequence: u64, bytes: usize) -> Event {
        let position = Position { log_id: "log".to_owned(), sequence };
        Event { position: Some(position), ..content("a.b", &"x".repeat(bytes)) }
    }

    fn sequences(recent: &Recent, after: u64) -> Option<Vec<u64>> {
        recent.after(after).map(|all| all.map(|notice| notice.sequence).collect())
    }

    #[test]
    fn what_is_old_is_forgotten_and_said_to_be_gone() {
        let (mut recent, began) = (Recent::default(), Instant::now());
        recent.restart(4);
        recent.add(event(7, 10), Rows::default(), began);
        recent.add(event(9, 10), Rows::default(), began + AGE / 2);
        assert_eq!((sequences(&recent, 3), sequences(&recent, 4)), (None, Some(vec![7, 9])));
        recent.trim(began + AGE + Duration::from_secs(1));
        assert_eq!((sequences(&recent, 6), sequences(&recent, 7)), (None, Some(vec![9])));
        recent.trim(began + AGE * 2);
        assert_eq!((sequences(&recent, 8), sequences(&recent, 9), recent.bytes), (None, Some(vec![]), 0));
    }

    proptest! {
        /// Whoever asks gets every event after its place, or is told that it can't.
        #[test]
        fn nothing_is_passed_over_and_the_bounds_hold(
            steps in prop::collection::vec((1u64..4, 0usize..200_000), 1..60), asked in 0u64..200,
        ) {
            let (mut recent, mut all, mut sequence) = (Recent::default(), Vec::new(), 0);
            for (step, bytes) in steps {
                sequence += step;
                all.push(sequence);
                recent.add(event(sequence, bytes), Rows::default(), Instant::now());
                prop_assert!(recent.bytes <= BYTES && recent.events.len() <= EVENTS);
            }
            if let Some(found) = sequences(&recent, asked) {
                all.retain(|sequence| *sequence > asked);
                prop_assert_eq!(found, all);
            }
        }
    }
}
