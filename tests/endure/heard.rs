//! What one subscriber was told, held against what was committed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use proto::common::v1::Position;
use serde::Serialize;
use serde_json::Value;

use super::change::Change;

/// Complaints that are kept for a report.
const KEPT: usize = 5;

/// One subscriber's memory: what it needs to go on after a cut, and what it is asked at the end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Heard {
    pub(crate) name: &'static str,
    organization: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    position: Option<Position>,
    /// In the order of their arrival, each position once.
    all: Vec<Change>,
    known: HashSet<Change>,
    at: HashMap<u64, Change>,
    repeated: u64,
    altered: u64,
    complaints: Vec<String>,
    joins: u64,
}

/// What must not be, and what may.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// Committed, and not told.
    pub(crate) missed: usize,
    /// Told at two positions.
    pub(crate) doubled: usize,
    /// Told, and not committed.
    pub(crate) strange: usize,
    /// Told, and not as it was committed.
    pub(crate) altered: u64,
    /// Told in another order than that of the commits, or told that it can't be.
    pub(crate) disordered: u64,
    /// What is wrong, for people.
    #[serde(skip)]
    pub(crate) complaints: Vec<String>,
    /// Told again at its position, after a cut.
    pub(crate) repeated: u64,
    /// Times that a subscriber came back.
    pub(crate) joins: u64,
}

impl Outcome {
    pub(crate) fn is_good(&self) -> bool {
        let Self { missed, doubled, strange, altered, disordered, .. } = self;
        missed + doubled + strange == 0 && altered + disordered == 0
    }

    /// All subscribers' together.
    pub(crate) fn add(&mut self, other: &Self) {
        self.missed += other.missed;
        self.doubled += other.doubled;
        self.strange += other.strange;
        self.altered += other.altered;
        self.disordered += other.disordered;
        self.repeated += other.repeated;
        self.joins += other.joins;
    }
}

impl Heard {
    pub(crate) fn new(name: &'static str, organization: &str) -> Self {
        Self { name, organization: organization.to_owned(), state: Arc::default() }
    }

    /// Where it goes on; none before it has been anywhere.
    pub(crate) fn position(&self) -> Option<Position> {
        self.state().position.clone()
    }

    /// It comes, for the first time or again.
    pub(crate) fn joins(&self) {
        self.state().joins += 1;
    }

    /// It has everything up to here.
    pub(crate) fn reaches(&self, position: Position) {
        let mut state = self.state();
        let moves = state.position.as_ref().is_none_or(|known| known.sequence < position.sequence);
        if moves {
            state.position = Some(position);
        }
    }

    /// It is told of a change at a position.
    pub(crate) fn takes(&self, position: Position, kind: &str, old: &Value, new: &Value) {
        let read = Change::read(kind, old, new, &self.organization);
        let mut state = self.state();
        let change = match read {
            Ok(change) => change,
            Err(why) => {
                state.altered += 1;
                return state.complain(why);
            }
        };
        let before = state.position.clone();
        if before.as_ref().is_some_and(|before| position.sequence <= before.sequence) {
            state.repeated += 1;
            if state.at.get(&position.sequence) != Some(&change) {
                state.altered += 1;
                state.complain(format!("{change:?} came at {}, where another was", position.sequence));
            }
            return;
        }
        if before.is_some_and(|before| before.log_id != position.log_id) {
            state.complain(format!("the log became another one: {position:?}"));
        }
        state.at.insert(position.sequence, change);
        state.all.push(change);
        state.known.insert(change);
        state.position = Some(position);
    }

    /// Something came that must not.
    pub(crate) fn complain(&self, what: impl Into<String>) {
        self.state().complain(what.into());
    }

    pub(crate) fn len(&self) -> usize {
        self.state().all.len()
    }

    pub(crate) fn has(&self, change: Change) -> bool {
        self.state().known.contains(&change)
    }

    /// Holds what came since the `start`th against what was committed; what is counted begins anew.
    pub(crate) fn held_against(&self, start: usize, committed: &[Change]) -> Outcome {
        let mut state = self.state();
        let complaints = std::mem::take(&mut state.complaints);
        let told = &state.all[start..];
        let (unique, expected): (HashSet<_>, HashSet<_>) = (told.iter().collect(), committed.iter().collect());
        let missed = expected.difference(&unique).count();
        let is_disordered = missed == 0 && unique.len() == told.len() && told != committed;
        let outcome = Outcome {
            missed,
            doubled: told.len() - unique.len(),
            strange: unique.difference(&expected).count(),
            altered: state.altered,
            disordered: u64::from(is_disordered) + u64::from(!complaints.is_empty()),
            complaints,
            repeated: state.repeated,
            joins: state.joins,
        };
        (state.altered, state.repeated, state.joins) = (0, 0, 0);
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    fn complain(&mut self, what: String) {
        if self.complaints.len() < KEPT {
            self.complaints.push(what);
        }
    }
}
