//! Whose turn it is: lanes that have something to send, served organization by organization, and within one lane by lane.
//! Pure. However many lanes one organization queues, every other gets every second turn, third turn and so on.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::id::OrganizationId;

/// Queued lanes, each at most once.
#[derive(Debug, Default)]
pub(super) struct Turns {
    organizations: VecDeque<OrganizationId>,
    lanes: HashMap<OrganizationId, VecDeque<i64>>,
    queued: HashSet<i64>,
}

impl Turns {
    /// Queues a lane behind the others of its organization; one that is queued keeps its place.
    pub(super) fn push(&mut self, organization: &OrganizationId, lane: i64) {
        if !self.queued.insert(lane) {
            return;
        }
        let lanes = self.lanes.entry(organization.clone()).or_default();
        if lanes.is_empty() {
            self.organizations.push_back(organization.clone());
        }
        lanes.push_back(lane);
    }

    /// The lane whose turn it is among the organizations that `may` go; its organization goes to the back.
    pub(super) fn pop(&mut self, may: impl Fn(&OrganizationId) -> bool) -> Option<i64> {
        let next = self.organizations.iter().position(may)?;
        let organization = self.organizations.remove(next)?;
        let lanes = self.lanes.get_mut(&organization)?;
        let lane = lanes.pop_front()?;
        if lanes.is_empty() {
            self.lanes.remove(&organization);
        } else {
            self.organizations.push_back(organization);
        }
        self.queued.remove(&lane);
        Some(lane)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queued.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_lane_comes_once_and_a_quiet_organization_never_waits_behind_a_loud_one(loud in 1i64..200, quiet in 1i64..20) {
            let (a, b) = (OrganizationId::parse("loud").expect("an id"), OrganizationId::parse("quiet").expect("an id"));
            let mut turns = Turns::default();
            (0..loud).for_each(|lane| turns.push(&a, lane));
            (1_000..1_000 + quiet).for_each(|lane| { turns.push(&b, lane); turns.push(&b, lane) });
            prop_assert_eq!(turns.len() as i64, loud + quiet);
            let order: Vec<i64> = std::iter::from_fn(|| turns.pop(|_| true)).collect();
            prop_assert_eq!(order.len() as i64, loud + quiet);
            for (turn, lane) in order.iter().enumerate() {
                if *lane >= 1_000 {
                    prop_assert!(turn as i64 <= 2 * (lane - 1_000) + 1, "lane {lane} had turn {turn}");
                }
            }
        }
    }

    #[test]
    fn an_organization_that_may_not_go_keeps_its_place() {
        let (a, b) = (OrganizationId::parse("a").expect("an id"), OrganizationId::parse("b").expect("an id"));
        let mut turns = Turns::default();
        turns.push(&a, 1);
        turns.push(&b, 2);
        assert_eq!(turns.pop(|organization| *organization != a), Some(2));
        assert_eq!(turns.pop(|organization| *organization != a), None);
        turns.push(&b, 3);
        assert_eq!(turns.pop(|_| true), Some(1));
    }
}
