//! Where a change stands in its source, and so what its event is called. Pure.

use std::fmt;

use jiff::Timestamp;

use super::pgoutput::Begin;

/// From 1970 to 2000, where PostgreSQL's time begins, in microseconds.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A place in the write-ahead log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Lsn(pub(super) u64);

impl Lsn {
    /// Takes PostgreSQL's own form: two halves in hex, `16/B374D848`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        let half = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        Some(Self((half(high)? << 32) | half(low)?))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & u64::from(u32::MAX))
    }
}

/// A timeline that ended because a standby was promoted: its log goes on as another's from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fork {
    pub(super) timeline: u32,
    pub(super) at: Lsn,
}

impl Fork {
    /// Those that a timeline's history file lists, oldest first: `1<tab>0/5000000<tab>why` on each line.
    pub(super) fn parse_all(history: &str) -> Vec<Self> {
        let fork = |line: &str| {
            let mut parts = line.split_whitespace();
            Some(Self { timeline: parts.next()?.parse().ok()?, at: Lsn::parse(parts.next()?)? })
        };
        history.lines().filter_map(fork).collect()
    }
}

/// Which write-ahead log, and which of our slots on it. A place means something together with these alone: after a
/// restore or a failover places come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) system: String,
    pub(super) timeline: u32,
    /// What the timeline came from.
    pub(super) forks: Vec<Fork>,
    pub(super) generation: i64,
}

impl Origin {
    /// The id of a transaction's change number `ordinal`: the same whenever the same log is read again, also from a server
    /// that was promoted since.
    pub(super) fn of_change(&self, begin: Begin, ordinal: u64) -> String {
        let Self { system, generation, .. } = self;
        let timeline =
            self.forks.iter().find(|fork| begin.commit < fork.at).map_or(self.timeline, |fork| fork.timeline);
        format!("pg:{system}:{timeline}:{generation}:{:016X}:{ordinal}", begin.commit.0)
    }

    /// How far this log is the same as another timeline's of its system; none where it is that timeline's own.
    pub(super) fn shares(&self, timeline: u32) -> Option<Lsn> {
        let fork = self.forks.iter().find(|fork| fork.timeline == timeline);
        (timeline != self.timeline).then(|| fork.map_or(Lsn(0), |fork| fork.at))
    }

    /// The id of row number `number` of a table's snapshot, whose slot began at `start`.
    pub(super) fn of_row(&self, start: Lsn, table: usize, number: u64) -> String {
        format!("pg:{self}:{:016X}:snapshot:{table}:{number}", start.0)
    }

    /// The id of the notice that this generation began.
    pub(super) fn of_notice(&self) -> String {
        format!("pg:{self}:resync")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.system, self.timeline, self.generation)
    }
}

/// When a transaction was committed; a time out of range is the beginning of PostgreSQL's.
pub(super) fn time(begin: Begin) -> Timestamp {
    let micros = begin.committed_at.saturating_add(PG_EPOCH_MICROS);
    Timestamp::from_microsecond(micros).unwrap_or_else(|_| chassis::clock::from_micros(PG_EPOCH_MICROS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_prints_as_postgresql_prints_it(place in any::<u64>()) {
            prop_assert_eq!(Lsn::parse(&Lsn(place).to_string()), Some(Lsn(place)));
        }

        #[test]
        fn ids_fit_and_differ(timeline in any::<u32>(), generation in 0..i64::MAX, commit in any::<u64>(), ordinal in any::<u64>(), committed_at in any::<i64>()) {
            let origin = Origin { system: u64::MAX.to_string(), timeline, forks: Vec::new(), generation };
            let begin = Begin { commit: Lsn(commit), committed_at, xid: 0 };
            let ids = [origin.of_change(begin, ordinal), origin.of_row(Lsn(commit), 999, ordinal), origin.of_notice()];
            let fits = |id: &String| id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b':');
            prop_assert!(ids.iter().all(fits), "{:?}", ids);
            prop_assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != origin.of_change(begin, ordinal ^ 1));
            time(begin);
        }
    }

    #[test]
    fn a_change_is_called_by_the_timeline_that_it_was_committed_on() {
        let forks = Fork::parse_all("1\t0/100\tno recovery target specified\n\n2\t0/200\twhy\n# 3\t0/300\n");
        assert_eq!(forks, [Fork { timeline: 1, at: Lsn(0x100) }, Fork { timeline: 2, at: Lsn(0x200) }]);
        let origin = Origin { system: "7".to_owned(), timeline: 3, forks, generation: 1 };
        let id = |commit| origin.of_change(Begin { commit: Lsn(commit), committed_at: 0, xid: 0 }, 0);
        for (commit, timeline) in [(0xFF, 1), (0x100, 2), (0x1FF, 2), (0x200, 3)] {
            assert_eq!(id(commit), format!("pg:7:{timeline}:1:{commit:016X}:0"));
        }
        assert_eq!((origin.shares(3), origin.shares(1), origin.shares(4)), (None, Some(Lsn(0x100)), Some(Lsn(0))));
    }

    #[test]
    fn time_begins_in_2000() {
        let at = |committed_at| time(Begin { commit: Lsn(0), committed_at, xid: 0 }).to_string();
        assert_eq!(at(1_500_000), "2000-01-01T00:00:01.5Z");
        assert_eq!(at(i64::MAX), "2000-01-01T00:00:00Z");
    }
}
