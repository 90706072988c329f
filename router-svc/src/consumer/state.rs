//! Which event goes to which member next: the rules of a consumer group. Pure; the log and the streams are elsewhere.
//!
//! - Each priority has a cursor of its own, so that CRITICAL overtakes a million LOW; while all wait, they are served 8:4:2:1.
//! - Events of one (organization, ordering key) go out in log order, to one member at a time. An event that is taken early
//!   first pulls forward its predecessors of that key.
//! - Nothing goes to a member without credit, and what a lost member had not acknowledged goes to another. A key of which
//!   nothing is out goes to its member by hash, or else to another that has the credit for it.
//! - Who has the credit for events but not the bytes for the first of a queue gets nothing that comes behind it until it
//!   has: what is large doesn't wait for all that is small.
//! - Nothing is read while nobody has credit: what is buffered is what was asked for, and a page more of each queue.
//!
//! Invariant: an event that matches the group is buffered, outstanding, done early, or beyond `read`; everything else up
//! to `read` is done. The watermark is one below the first that is buffered or outstanding.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use crate::log::Entry;

/// The four priorities and, behind them, events that are offered again on purpose.
pub(crate) const QUEUES: usize = 5;
/// The queue of replayed events.
pub(crate) const REPLAY: usize = 4;
/// Turns of each queue while all wait.
const SHARES: [u32; QUEUES] = [8, 4, 2, 1, 1];
/// A queue that holds this many isn't filled further.
pub(crate) const BUFFER_MAX: usize = 512;
/// A queue that holds this many bytes isn't filled further.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// Credit that may stand at a time.
pub(crate) const CREDIT_EVENTS_MAX: u64 = 100_000;
/// Credit that may stand at a time.
pub(crate) const CREDIT_BYTES_MAX: u64 = 4 << 20;
/// Whoever holds this many bytes without acknowledging them gets no more, whatever credit it gives.
const OUT_BYTES_MAX: u64 = 4 * CREDIT_BYTES_MAX;

type Key = u64;
type Member = u64;

/// A consumer group's state.
#[derive(Debug)]
pub(crate) struct State {
    queues: [Queue; QUEUES],
    members: BTreeMap<Member, Credit>,
    /// Keys with events outstanding: who has them, and how many.
    held: HashMap<Key, (Member, usize)>,
    /// Buffered sequences of each key, over the four priorities.
    waiting: HashMap<Key, BTreeSet<(u64, usize)>>,
    turns: [u32; QUEUES],
    /// Events up to here may have been handed out before.
    redelivery_mark: u64,
    handed_out: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Everything up to here was read from the log into this queue.
    read: u64,
    buffered: BTreeMap<u64, Item>,
    /// Bytes of what is buffered.
    bytes: usize,
    outstanding: BTreeMap<u64, Outstanding>,
    /// Acknowledged before `read` came by.
    done_early: BTreeSet<u64>,
}

#[derive(Debug)]
struct Item {
    entry: Arc<Entry>,
    /// It went out before and came back.
    returned: bool,
    /// Its predecessors up to here are buffered or done.
    checked: u64,
}

#[derive(Debug)]
struct Outstanding {
    entry: Arc<Entry>,
    member: Member,
}

#[derive(Clone, Copy, Debug, Default)]
struct Credit {
    events: u64,
    bytes: u64,
    /// Bytes that are out: an event larger than any credit may still go alone.
    out: u64,
}

impl Credit {
    fn fits(self, bytes: u64) -> bool {
        (self.bytes >= bytes && self.out < OUT_BYTES_MAX) || self.out == 0
    }
}

/// An event on its way to a member.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) member: Member,
    pub(crate) entry: Arc<Entry>,
    pub(crate) redelivered: bool,
    pub(crate) replayed: bool,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    Hand(Handed),
    /// Before this event may go, the log must say what of its key lies before it: answer with [`State::predecessors`].
    Look {
        entry: Arc<Entry>,
        since: u64,
    },
    /// Nothing to hand out, or nobody with credit.
    Idle,
}

impl State {
    /// A group whose cursors stand at these sequences, by priority; everything up to `redelivery_mark` may be a repeat.
    pub(crate) fn new(cursors: [u64; 4], redelivery_mark: u64) -> Self {
        let mut queues: [Queue; QUEUES] = Default::default();
        for (queue, cursor) in queues.iter_mut().zip(cursors) {
            queue.read = cursor;
        }
        Self {
            queues,
            members: BTreeMap::new(),
            held: HashMap::new(),
            waiting: HashMap::new(),
            turns: SHARES,
            redelivery_mark,
            handed_out: redelivery_mark,
        }
    }

    pub(crate) fn join(&mut self, member: Member) {
        self.members.insert(member, Credit::default());
    }

    /// A member is lost: what it held waits again, as a repeat.
    pub(crate) fn leave(&mut self, member: Member) {
        self.members.remove(&member);
        for index in 0..QUEUES {
            let lost: Vec<u64> = self.queues[index]
                .outstanding
                .iter()
                .filter(|(_, out)| out.member == member)
                .map(|(sequence, _)| *sequence)
                .collect();
            for sequence in lost {
                if let Some(out) = self.queues[index].outstanding.remove(&sequence) {
                    self.let_go(&out);
                    self.buffer(index, out.entry, true);
                }
            }
        }
        self.redelivery_mark = self.handed_out;
    }

    /// Allows a member this much more.
    pub(crate) fn credit(&mut self, member: Member, events: u64, bytes: u64) {
        if let Some(credit) = self.members.get_mut(&member) {
            credit.events = credit.events.saturating_add(events).min(CREDIT_EVENTS_MAX);
            credit.bytes = credit.bytes.saturating_add(bytes).min(CREDIT_BYTES_MAX);
        }
    }

    /// How far a queue was read, if it wants more.
    pub(crate) fn wants(&self, index: usize) -> Option<u64> {
        let queue = &self.queues[index];
        let has_room = queue.buffered.len() < BUFFER_MAX && queue.bytes < BUFFER_BYTES_MAX;
        let is_asked = || self.members.values().any(|credit| credit.events > 0);
        (has_room && is_asked()).then_some(queue.read)
    }

    /// How far a queue was read.
    pub(crate) fn read(&self, index: usize) -> u64 {
        self.queues[index].read
    }

    /// Takes what the log holds for a queue after what was read, up to and with `until`. Those left out don't match.
    pub(crate) fn fill(&mut self, index: usize, entries: impl IntoIterator<Item = Arc<Entry>>, until: u64) {
        for entry in entries {
            let queue = &mut self.queues[index];
            let taken = queue.buffered.contains_key(&entry.sequence)
                || queue.outstanding.contains_key(&entry.sequence)
                || queue.done_early.remove(&entry.sequence);
            if !taken {
                self.buffer(index, entry, false);
            }
        }
        let queue = &mut self.queues[index];
        queue.read = queue.read.max(until);
        queue.done_early = queue.done_early.split_off(&(queue.read + 1));
    }

    /// Starts the replay queue at `since`.
    pub(crate) fn replay_from(&mut self, since: u64) {
        self.queues[REPLAY].read = since;
    }

    /// Whether everything that was read for replay is acknowledged.
    pub(crate) fn replay_is_done(&self) -> bool {
        self.queues[REPLAY].buffered.is_empty() && self.queues[REPLAY].outstanding.is_empty()
    }

    /// Answers [`Next::Look`]: what the log holds of the event's key after `since` and before it, oldest first, with each
    /// one's queue, and how far that reaches: to the event itself, unless there were more than could be read at once.
    pub(crate) fn predecessors(&mut self, sequence: u64, found: Vec<(usize, Arc<Entry>)>, until: u64) {
        for (index, entry) in found {
            let sequence = entry.sequence;
            let queue = &self.queues[index];
            let known = entry.sequence <= queue.read
                || queue.buffered.contains_key(&entry.sequence)
                || queue.outstanding.contains_key(&entry.sequence)
                || queue.done_early.contains(&entry.sequence);
            if !known {
                self.buffer(index, entry, false);
            }
            // All of the key before it was found with it, or earlier.
            if let Some(item) = self.queues[index].buffered.get_mut(&sequence) {
                item.checked = item.checked.max(sequence);
            }
        }
        for queue in &mut self.queues[..REPLAY] {
            if let Some(item) = queue.buffered.get_mut(&sequence) {
                item.checked = item.checked.max(until);
            }
        }
    }

    /// Takes an event off for good. False when the member doesn't hold it.
    pub(crate) fn acknowledge(&mut self, member: Member, sequence: u64) -> bool {
        for queue in &mut self.queues {
            if queue.outstanding.get(&sequence).is_some_and(|out| out.member == member)
                && let Some(out) = queue.outstanding.remove(&sequence)
            {
                if sequence > queue.read {
                    queue.done_early.insert(sequence);
                }
                self.let_go(&out);
                return true;
            }
        }
        false
    }

    /// The sequence up to which everything of a priority is done.
    pub(crate) fn watermark(&self, index: usize) -> u64 {
        let queue = &self.queues[index];
        let first = [queue.buffered.keys().next(), queue.outstanding.keys().next()].into_iter().flatten().min();
        first.map_or(queue.read, |first| (*first - 1).min(queue.read))
    }

    /// The event that goes out next, or what is needed to know.
    pub(crate) fn next(&mut self) -> Next {
        for _ in 0..2 {
            let mut short = BTreeSet::new();
            for index in 0..QUEUES {
                if self.turns[index] == 0 {
                    continue;
                }
                match self.pick(index, &mut short) {
                    Next::Idle => {}
                    found => {
                        self.turns[index] -= u32::from(matches!(found, Next::Hand(_)));
                        return found;
                    }
                }
            }
            // Nobody with turns left has anything to hand out: a new round for all.
            self.turns = SHARES;
        }
        Next::Idle
    }

    /// The first of a queue that may go. With it may come an earlier one of its key, out of another queue. Members that are
    /// `short` of bytes for one before it get none.
    fn pick(&self, index: usize, short: &mut BTreeSet<Member>) -> Next {
        let mut full = BTreeSet::new();
        for (sequence, item) in &self.queues[index].buffered {
            if !self.members.iter().any(|(member, credit)| credit.events > 0 && !short.contains(member)) {
                return Next::Idle;
            }
            let key = key_of(&item.entry);
            if full.contains(&key) {
                continue;
            }
            let (first, queue) = match index {
                REPLAY => (*sequence, REPLAY),
                _ => self.waiting.get(&key).and_then(|waiting| waiting.first().copied()).unwrap_or((*sequence, index)),
            };
            let Some(first) = self.queues[queue].buffered.get(&first) else { continue };
            let Some(member) = self.member_for(key, first.entry.bytes, short) else {
                full.insert(key);
                continue;
            };
            if queue != REPLAY
                && let Some(unread) = self.unread_before(first.entry.sequence)
                && first.checked + 1 < first.entry.sequence
            {
                return Next::Look { entry: first.entry.clone(), since: unread.max(first.checked) };
            }
            return self.handed(member, queue, first);
        }
        Next::Idle
    }

    fn handed(&self, member: Member, queue: usize, item: &Item) -> Next {
        Next::Hand(Handed {
            member,
            entry: item.entry.clone(),
            redelivered: item.returned || item.entry.sequence <= self.redelivery_mark,
            replayed: queue == REPLAY,
        })
    }

    /// Notes that an event went out.
    pub(crate) fn sent(&mut self, handed: &Handed) {
        let sequence = handed.entry.sequence;
        let index = if handed.replayed { REPLAY } else { queue_of(&handed.entry) };
        let Some(item) = self.queues[index].buffered.remove(&sequence) else { return };
        self.queues[index].bytes -= item.entry.bytes;
        let key = key_of(&item.entry);
        if index != REPLAY
            && let Some(waiting) = self.waiting.get_mut(&key)
        {
            waiting.remove(&(sequence, index));
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
        }
        if let Some(credit) = self.members.get_mut(&handed.member) {
            let bytes = item.entry.bytes as u64;
            credit.events = credit.events.saturating_sub(1);
            credit.bytes = credit.bytes.saturating_sub(bytes);
            credit.out += bytes;
        }
        self.held.entry(key).or_insert((handed.member, 0)).1 += 1;
        self.handed_out = self.handed_out.max(sequence);
        self.queues[index].outstanding.insert(sequence, Outstanding { entry: item.entry, member: handed.member });
    }

    /// From where the log must be asked about what lies before `sequence`; none when every queue has read that far.
    fn unread_before(&self, sequence: u64) -> Option<u64> {
        self.queues[..REPLAY].iter().map(|queue| queue.read).filter(|read| *read + 1 < sequence).min()
    }

    /// Who gets events of a key: whoever holds some, else the first with credit from the place of the key's hash on. Those
    /// who have credit for events, but not for these bytes, are `short` of them.
    fn member_for(&self, key: Key, bytes: usize, short: &mut BTreeSet<Member>) -> Option<Member> {
        let asking = |member: &Member| {
            let credit = self.members.get(member).filter(|credit| credit.events > 0 && !short.contains(member))?;
            Some((*member, credit.fits(bytes as u64)))
        };
        let asking: Vec<(Member, bool)> = match self.held.get(&key) {
            Some((holder, _)) => asking(holder).into_iter().collect(),
            None => {
                let place = usize::try_from(key % (self.members.len().max(1) as u64)).unwrap_or(0);
                let (after, from) = (self.members.keys().take(place), self.members.keys().skip(place));
                from.chain(after).filter_map(asking).collect()
            }
        };
        let fitting = asking.iter().find(|(_, fits)| *fits).map(|(member, _)| *member);
        if fitting.is_none() {
            short.extend(asking.iter().map(|(member, _)| *member));
        }
        fitting
    }

    fn buffer(&mut self, index: usize, entry: Arc<Entry>, returned: bool) {
        if index != REPLAY {
            self.waiting.entry(key_of(&entry)).or_default().insert((entry.sequence, index));
        }
        self.queues[index].bytes += entry.bytes;
        let checked = if returned { entry.sequence } else { 0 };
        self.queues[index].buffered.insert(entry.sequence, Item { entry, returned, checked });
    }

    fn let_go(&mut self, out: &Outstanding) {
        let key = key_of(&out.entry);
        if let Some((_, count)) = self.held.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&key);
            }
        }
        if let Some(credit) = self.members.get_mut(&out.member) {
            credit.out = credit.out.saturating_sub(out.entry.bytes as u64);
        }
    }
}

/// The queue of an event's priority.
pub(crate) fn queue_of(entry: &Entry) -> usize {
    usize::try_from(entry.priority - 1).unwrap_or(3).min(3)
}

fn key_of(entry: &Entry) -> Key {
    let mut hasher = DefaultHasher::new();
    (&entry.organization, &entry.ordering_key).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
