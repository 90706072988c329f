//! The rules of a group, held against random logs, members, credits and losses.

use std::collections::{BTreeMap, HashMap, HashSet};

use chassis::id::OrganizationId;
use proptest::prelude::*;

use super::*;

fn entry(sequence: u64, priority: i64, key: u8) -> Arc<Entry> {
    Arc::new(Entry {
        sequence,
        organization: OrganizationId::parse("o").expect("an id"),
        priority,
        type_: "a.b".into(),
        ordering_key: format!("k{key}").into(),
        logged: Box::default(),
        bytes: 100,
    })
}

/// A group on a log that lies in memory, with what a checker must remember.
struct Group {
    state: State,
    log: Vec<Arc<Entry>>,
    page: usize,
    members: Vec<u64>,
    next_member: u64,
    outstanding: BTreeMap<u64, (u64, u64)>,
    done: HashSet<u64>,
    order: HashMap<String, u64>,
}

impl Group {
    fn new(log: Vec<Arc<Entry>>, page: usize) -> Self {
        let state = State::new([0; 4], 0);
        Self {
            state,
            log,
            page,
            members: Vec::new(),
            next_member: 0,
            outstanding: BTreeMap::new(),
            done: HashSet::new(),
            order: HashMap::new(),
        }
    }

    fn join(&mut self) {
        self.next_member += 1;
        self.members.push(self.next_member);
        self.state.join(self.next_member);
        self.state.credit(self.next_member, 5, CREDIT_BYTES_MAX);
    }

    fn leave(&mut self, index: usize) {
        let member = self.members.remove(index % self.members.len());
        self.state.leave(member);
        self.outstanding.retain(|_, (holder, _)| *holder != member);
        // What comes back may be handed out again: its key's order begins there anew.
        self.order.clear();
    }

    fn fill(&mut self) {
        for index in 0..4 {
            if let Some(since) = self.state.wants(index) {
                let of_queue = self.log.iter().filter(|entry| queue_of(entry) == index && entry.sequence > since);
                let entries: Vec<_> = of_queue.take(self.page).cloned().collect();
                let until = if entries.len() == self.page {
                    entries.last().map_or(since, |last| last.sequence)
                } else {
                    self.log.len() as u64
                };
                self.state.fill(index, entries, until);
            }
        }
    }

    /// Hands out what may go, and checks each against the rules.
    fn serve(&mut self) {
        self.fill();
        loop {
            match self.state.next() {
                Next::Hand(handed) => {
                    self.state.sent(&handed);
                    self.check(&handed);
                }
                Next::Look { entry, since } => {
                    let before = self.log.iter().filter(|other| {
                        other.ordering_key == entry.ordering_key
                            && other.sequence > since
                            && other.sequence < entry.sequence
                    });
                    let found: Vec<_> = before.take(self.page).map(|entry| (queue_of(entry), entry.clone())).collect();
                    let until = if found.len() < self.page {
                        entry.sequence
                    } else {
                        found.last().map_or(since, |(_, last)| last.sequence)
                    };
                    self.state.predecessors(entry.sequence, found, until);
                }
                Next::Idle => return,
            }
        }
    }

    fn check(&mut self, handed: &Handed) {
        let (sequence, key) = (handed.entry.sequence, handed.entry.ordering_key.to_string());
        assert!(self.members.contains(&handed.member), "{sequence} went to nobody");
        assert!(!self.done.contains(&sequence), "{sequence} was acknowledged and came again");
        assert!(!self.outstanding.contains_key(&sequence), "{sequence} is out twice");
        let others = self.outstanding.values().filter(|(_, of_key)| *of_key == key_of(&handed.entry));
        for (holder, _) in others {
            assert_eq!(*holder, handed.member, "key {key} is with two members");
        }
        let before = self.order.insert(key.clone(), sequence).unwrap_or(0);
        assert!(before < sequence, "{sequence} of {key} came after {before}");
        let skipped = self.log.iter().find(|other| {
            *other.ordering_key == *key
                && other.sequence < sequence
                && !self.done.contains(&other.sequence)
                && !self.outstanding.contains_key(&other.sequence)
        });
        assert!(skipped.is_none(), "{sequence} overtook {} of its key", skipped.map_or(0, |other| other.sequence));
        self.outstanding.insert(sequence, (handed.member, key_of(&handed.entry)));
    }

    fn acknowledge(&mut self, index: usize) {
        let Some((sequence, (member, _))) =
            self.outstanding.iter().nth(index % self.outstanding.len().max(1)).map(|(s, o)| (*s, *o))
        else {
            return;
        };
        assert!(self.state.acknowledge(member, sequence));
        self.outstanding.remove(&sequence);
        self.done.insert(sequence);
        self.state.credit(member, 1, 100);
    }

    fn check_watermarks(&self) {
        for index in 0..4 {
            let watermark = self.state.watermark(index);
            let open = self.log.iter().find(|entry| {
                queue_of(entry) == index && entry.sequence <= watermark && !self.done.contains(&entry.sequence)
            });
            assert!(open.is_none(), "watermark {watermark} passed an event that isn't done");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever joins, leaves and acknowledges, in whatever order: each event is handed out until it is acknowledged,
    /// and never after; a key is with one member and in log order; no cursor passes an event that isn't done.
    #[test]
    fn every_event_is_done_once_and_in_its_keys_order(
        events in prop::collection::vec((1i64..=4, 0u8..6), 1..120),
        page in 1usize..20,
        steps in prop::collection::vec((0u8..10, any::<usize>()), 0..200),
    ) {
        let log: Vec<_> = events.iter().enumerate().map(|(index, (priority, key))| entry(index as u64 + 1, *priority, *key)).collect();
        let mut group = Group::new(log, page);
        group.join();
        for (step, index) in steps {
            match step {
                0 if group.members.len() < 4 => group.join(),
                1 if group.members.len() > 1 => group.leave(index),
                2..=5 => group.acknowledge(index),
                _ => group.serve(),
            }
            group.check_watermarks();
        }
        for _ in 0..=group.log.len() * 3 {
            group.serve();
            group.acknowledge(0);
        }
        prop_assert_eq!(group.done.len(), group.log.len());
        group.check_watermarks();
    }
}

#[test]
fn critical_overtakes_a_backlog_and_low_keeps_its_share() {
    let mut log: Vec<_> = (1..=400).map(|sequence| entry(sequence, 4, (sequence % 100) as u8)).collect();
    log.extend((401..=440).map(|sequence| entry(sequence, 1, (sequence % 100) as u8 + 100)));
    let mut group = Group::new(log, 500);
    group.join();
    group.state.credit(1, 10_000, CREDIT_BYTES_MAX);
    group.fill();
    let mut first = Vec::new();
    while first.len() < 18 {
        match group.state.next() {
            Next::Hand(handed) => {
                group.state.sent(&handed);
                first.push(handed.entry.priority);
            }
            Next::Look { entry, .. } => group.state.predecessors(entry.sequence, Vec::new(), entry.sequence),
            Next::Idle => panic!("there is more to hand out"),
        }
    }
    assert_eq!(first.iter().filter(|priority| **priority == 1).count(), 16, "{first:?}");
    assert_eq!(first[0], 1);
}

#[test]
fn what_a_lost_member_held_comes_again_marked_as_redelivered() {
    let mut state = State::new([0; 4], 0);
    state.join(1);
    state.credit(1, 10, 1_000);
    state.fill(2, [entry(1, 3, 0)], 1);
    let Next::Hand(first) = state.next() else { panic!("nothing came") };
    assert!(!first.redelivered);
    state.sent(&first);
    state.join(2);
    state.credit(2, 10, 1_000);
    state.leave(1);
    assert!(matches!(state.next(), Next::Hand(Handed { member: 2, redelivered: true, .. })));
    assert_eq!(state.watermark(2), 0);
}

#[test]
fn an_event_larger_than_any_credit_goes_alone() {
    let mut state = State::new([0; 4], 0);
    state.join(1);
    state.credit(1, 10, 50);
    state.fill(2, [entry(1, 3, 0), entry(2, 3, 1)], 2);
    [0, 1, 3].into_iter().for_each(|other| state.fill(other, [], 2));
    let Next::Hand(first) = state.next() else { panic!("nothing came") };
    state.sent(&first);
    assert!(matches!(state.next(), Next::Idle), "a second one went without credit");
    assert!(state.acknowledge(1, 1));
    assert!(matches!(state.next(), Next::Hand(_)));
}

fn sized(sequence: u64, priority: i64, bytes: usize) -> Arc<Entry> {
    Arc::new(Entry { bytes, ..Arc::into_inner(entry(sequence, priority, sequence as u8)).expect("nobody else has it") })
}

/// A group that has read as much of every queue.
fn read(state: &mut State, entries: impl IntoIterator<Item = Arc<Entry>>, until: u64) {
    let entries: Vec<_> = entries.into_iter().collect();
    for index in 0..4 {
        state.fill(index, entries.iter().filter(|entry| queue_of(entry) == index).cloned(), until);
    }
}

fn hand(state: &mut State) -> Option<Handed> {
    match state.next() {
        Next::Hand(handed) => {
            state.sent(&handed);
            Some(handed)
        }
        Next::Look { .. } => panic!("all is read"),
        Next::Idle => None,
    }
}

#[test]
fn nothing_is_read_nor_looked_for_while_nobody_has_credit() {
    let mut state = State::new([0; 4], 0);
    state.join(1);
    assert!((0..QUEUES).all(|index| state.wants(index).is_none()));
    // What lies before it in the three other queues was never read.
    state.fill(1, [entry(9, 2, 0)], 9);
    assert!(matches!(state.next(), Next::Idle));
    state.credit(1, 1, 1_000);
    assert_eq!(state.wants(3), Some(0));
    assert!(matches!(state.next(), Next::Look { .. }));
}

#[test]
fn what_is_large_and_urgent_does_not_wait_for_all_that_is_small() {
    let mut state = State::new([0; 4], 0);
    state.join(1);
    state.credit(1, 1_000, 1_000);
    read(&mut state, (1..=100).map(|sequence| sized(sequence, 4, 100)), 100);
    let mut out: Vec<u64> = std::iter::from_fn(|| hand(&mut state)).map(|handed| handed.entry.sequence).collect();
    assert_eq!(out.len(), 10);
    read(&mut state, [sized(101, 1, 900)], 101);
    for sequence in out.drain(..9) {
        assert!(hand(&mut state).is_none(), "{sequence}: it goes before the rest");
        assert!(state.acknowledge(1, sequence));
        state.credit(1, 1, 100);
    }
    assert_eq!(hand(&mut state).map(|handed| handed.entry.sequence), Some(101));
}

#[test]
fn a_member_without_credit_keeps_no_other_waiting() {
    let mut state = State::new([0; 4], 0);
    state.join(1);
    state.join(2);
    state.credit(2, 1_000, CREDIT_BYTES_MAX);
    read(&mut state, (1..=200).map(|sequence| sized(sequence, 3, 100)), 200);
    let handed: Vec<_> = std::iter::from_fn(|| hand(&mut state)).collect();
    assert_eq!(handed.len(), 200);
    assert!(handed.iter().all(|handed| handed.member == 2));
}
