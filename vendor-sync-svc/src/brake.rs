//! The brake: whether a mass change may go on, or a person is asked first. Pure.
//!
//! An import or a comparison counts before it applies anything. What would change or delete more than a stated share of
//! what is linked stops there; so does an empty list where there were links, the sign of a revoked right or a broken
//! filter. Whatever happens between counting and applying, no more is applied than a [`Budget`] that follows from what was
//! counted, or from what a person agreed to: applying counts too, and stops again at its budget.
//!
//! New records don't count: a first import is all of them.

/// How much may change unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Brake {
    /// Percent of what is linked.
    pub(crate) percent: u64,
    /// As many always may.
    pub(crate) records: u64,
}

impl Default for Brake {
    fn default() -> Self {
        Self { percent: 20, records: 50 }
    }
}

/// What would be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Records of the vendor that are linked now.
    pub(crate) linked: u64,
    /// Of these, how many would change.
    pub(crate) changes: u64,
    /// Of these, how many the list no longer has, where it is the whole.
    pub(crate) vanished: u64,
    /// What the list has.
    pub(crate) listed: u64,
    /// Whether the list claims to be the whole.
    pub(crate) whole: bool,
}

/// What may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget(pub(crate) u64);

/// What the brake says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GoOn(Budget),
    Ask { reason: String },
}

impl Brake {
    /// Before anything is applied; `agreed`: to how many a person has said yes.
    pub(crate) fn judge(self, planned: Planned, agreed: Option<u64>) -> Verdict {
        let allowed = self.allowed(planned.linked);
        let touched = planned.changes + planned.vanished;
        // Some may have changed since the person looked; more than may unasked is another question.
        if let Some(agreed) = agreed
            && touched <= agreed.saturating_add(allowed)
        {
            return Verdict::GoOn(Budget(agreed.saturating_add(allowed)));
        }
        if planned.whole && planned.listed == 0 && planned.linked > 0 {
            return Verdict::Ask { reason: format!("the list is empty, and {} records are linked", planned.linked) };
        }
        if touched > allowed {
            let Planned { linked, changes, vanished, .. } = planned;
            return Verdict::Ask {
                reason: format!(
                    "{changes} of {linked} linked records would change and {vanished} have vanished: more than {} % and {}",
                    self.percent, self.records
                ),
            };
        }
        Verdict::GoOn(Budget(allowed))
    }

    /// The greater of the share and the number that always may.
    fn allowed(self, linked: u64) -> u64 {
        (linked.saturating_mul(self.percent) / 100).max(self.records)
    }
}

impl Budget {
    /// Whether `changed` and the next `more` still are within it.
    pub(crate) fn has_room(self, changed: u64, more: u64) -> bool {
        changed.saturating_add(more) <= self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(linked: u64, changes: u64, vanished: u64) -> Planned {
        Planned { linked, changes, vanished, listed: linked - vanished, whole: true }
    }

    fn asks(planned: Planned) -> bool {
        matches!(Brake::default().judge(planned, None), Verdict::Ask { .. })
    }

    #[test]
    fn it_takes_both_the_share_and_the_number_to_stop() {
        assert!(!asks(planned(60, 50, 0)), "fifty always may, however few there are");
        assert!(asks(planned(60, 51, 0)));
        assert!(!asks(planned(1_000, 200, 0)), "a fifth may");
        assert!(asks(planned(1_000, 201, 0)) && asks(planned(1_000, 101, 100)));
    }

    #[test]
    fn a_first_import_is_not_stopped_and_an_empty_list_is() {
        assert!(!asks(Planned { listed: 100_000, whole: true, ..Planned::default() }));
        assert!(asks(planned(1, 0, 1)), "even where one record is linked");
        assert!(!asks(Planned::default()), "nothing there, nothing linked");
        assert!(!asks(Planned { linked: 1, ..Planned::default() }), "a file of some rows says nothing of others");
    }

    #[test]
    fn what_a_person_agreed_to_may_be_applied_and_not_much_more() {
        let judge = |changes| Brake::default().judge(planned(1_000, changes, 0), Some(500));
        let Verdict::GoOn(budget) = judge(600) else { panic!("agreed") };
        assert!(budget.has_room(0, 700) && budget.has_room(600, 100) && !budget.has_room(600, 101));
        assert!(matches!(judge(701), Verdict::Ask { .. }), "that is another question");
    }

    proptest! {
        #[test]
        fn no_verdict_lets_more_through_unasked_than_is_stated(linked in 0u64..5_000, changes in 0u64..5_000, gone in 0u64..5_000) {
            let (changes, gone) = (changes.min(linked), gone.min(linked));
            if let Verdict::GoOn(Budget(budget)) = Brake::default().judge(planned(linked, changes, gone), None) {
                prop_assert!(changes + gone <= budget && budget <= (linked / 5).max(50));
            }
        }
    }
}
