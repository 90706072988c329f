//! Whose turn it is: lanes that have something to send, served organization by organization, and within one lane by lane,
//! those with something CRITICAL before the others. Pure. However many lanes one organization queues, every other gets
//! every second turn, third turn and so on.

use std::collections::{HashMap, VecDeque};

use crate::id::OrganizationId;

/// Queued lanes, each at most once.
#[derive(Debug, Default)]
pub(super) struct Turns {
    organizations: VecDeque<OrganizationId>,
    lanes: HashMap<OrganizationId, Lanes>,
    /// Whether they are queued as critical.
    queued: HashMap<i64, bool>,
}

/// Of one organization.
#[derive(Debug, Default)]
struct Lanes {
    critical: VecDeque<i64>,
    others: VecDeque<i64>,
}

impl Turns {
    /// Queues a lane behind its equals of its organization; one that is queued keeps its place, unless it became critical.
    pub(super) fn push(&mut self, organization: &OrganizationId, lane: i64, critical: bool) {
        let queued_as = self.queued.get(&lane).copied();
        if queued_as.is_some_and(|queued_as| queued_as || !critical) {
            return;
        }
        if !self.lanes.contains_key(organization) {
            self.organizations.push_back(organization.clone());
        }
        let lanes = self.lanes.entry(organization.clone()).or_default();
        if queued_as.is_some() {
            lanes.others.retain(|other| *other != lane);
        }
        if critical {
            lanes.critical.push_back(lane)
        } else {
            lanes.others.push_back(lane)
        }
        self.queued.insert(lane, critical);
    }

    /// The lane whose turn it is among the organizations that `may` go; its organization goes to the back.
    pub(super) fn pop(&mut self, may: impl Fn(&OrganizationId) -> bool) -> Option<i64> {
        let next = self.organizations.iter().position(may)?;
        let organization = self.organizations.remove(next)?;
        let lanes = self.lanes.get_mut(&organization)?;
        let lane = lanes.critical.pop_front().or_else(|| lanes.others.pop_front())?;
        self.queued.remove(&lane);
        if lanes.critical.is_empty() && lanes.others.is_empty() {
            self.lanes.remove(&organization);
        } else {
            self.organizations.push_back(organization);
        }
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
            (0..loud).for_each(|lane| turns.push(&a, lane, lane % 3 == 0));
            (1_000..1_000 + quiet).for_each(|lane| { turns.push(&b, lane, false); turns.push(&b, lane, false) });
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
    fn a_lane_with_something_critical_goes_first_even_if_it_was_queued_before() {
        let a = OrganizationId::parse("a").expect("an id");
        let mut turns = Turns::default();
        (0..5).for_each(|lane| turns.push(&a, lane, false));
        turns.push(&a, 3, true);
        turns.push(&a, 9, true);
        turns.push(&a, 3, false);
        let order: Vec<i64> = std::iter::from_fn(|| turns.pop(|_| true)).collect();
        assert_eq!(order, [3, 9, 0, 1, 2, 4]);
    }

    #[test]
    fn an_organization_that_may_not_go_keeps_its_place() {
        let (a, b) = (OrganizationId::parse("a").expect("an id"), OrganizationId::parse("b").expect("an id"));
        let mut turns = Turns::default();
        turns.push(&a, 1, false);
        turns.push(&b, 2, false);
        assert_eq!(turns.pop(|organization| *organization != a), Some(2));
        assert_eq!(turns.pop(|organization| *organization != a), None);
        turns.push(&b, 3, false);
        assert_eq!(turns.pop(|_| true), Some(1));
    }
}
