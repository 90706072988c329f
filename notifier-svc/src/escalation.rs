//! Who is told next when somebody doesn't confirm, and after how long. Pure.
//!
//! The next channel, then the next contact, then the planner. An emergency went to every channel at once: it goes on with
//! the contacts.

use std::time::Duration;

use crate::{config::Escalation, policy::Urgency};

/// In which order channels are tried, the one that is noticed soonest first.
pub(crate) const LADDER: &[&str] = &["push", "sms", "whatsapp", "slack", "teams", "email", "in_app"];

/// What it is called when somebody else is told.
pub(crate) const UNCONFIRMED: &str = "unconfirmed";

/// Whether a workflow asks for a confirmation.
pub(crate) fn asks(workflow: &str) -> bool {
    matches!(workflow, "wedding_date_change" | "emergency")
}

/// How long a confirmation is waited for.
pub(crate) fn wait(urgency: Urgency, wedding_day: bool, settings: &Escalation) -> Duration {
    let wait_ms = match urgency {
        Urgency::Emergency if wedding_day => settings.wedding_day_ms,
        Urgency::Emergency | Urgency::Urgent => settings.urgent_ms,
        Urgency::Ordinary => settings.otherwise_ms,
    };
    Duration::from_millis(wait_ms)
}

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The same message, on another channel.
    Channel(String),
    /// Somebody else is told that it isn't confirmed.
    Person(String),
    /// Nobody is left.
    End,
}

/// What can still be done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left {
    pub(crate) urgency: Option<Urgency>,
    /// Channels that reach the person, in any order; and those by which they were told.
    pub(crate) reachable: Vec<String>,
    pub(crate) used: Vec<String>,
    /// Who stands in for them, then who plans the wedding; and those who were told.
    pub(crate) contacts: Vec<String>,
    pub(crate) planners: Vec<String>,
    pub(crate) asked: Vec<String>,
}

/// The first channel that reaches them and wasn't used.
pub(crate) fn first_open(left: &Left) -> Option<&'static str> {
    let is_open = |name: &&&str| {
        left.reachable.iter().any(|reached| reached == **name) && !left.used.iter().any(|used| used == **name)
    };
    LADDER.iter().find(is_open).copied()
}

/// What is done next for `person`.
pub(crate) fn next(person: &str, left: &Left) -> Step {
    if left.urgency != Some(Urgency::Emergency)
        && let Some(name) = first_open(left)
    {
        return Step::Channel(name.to_owned());
    }
    let others = left.contacts.iter().chain(&left.planners);
    let next = others.into_iter().find(|id| *id != person && !left.asked.contains(id));
    next.map_or(Step::End, |id| Step::Person(id.clone()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_emergency_waits_a_minute_on_the_wedding_day_and_longer_otherwise() {
        let settings = Escalation::default();
        assert_eq!(wait(Urgency::Emergency, true, &settings), Duration::from_secs(60));
        assert!(wait(Urgency::Emergency, false, &settings) > Duration::from_secs(60));
        assert!(wait(Urgency::Ordinary, true, &settings) > wait(Urgency::Urgent, true, &settings));
    }

    proptest! {
        #[test]
        fn every_way_is_gone_once_channels_before_contacts_before_planners(
            reachable in proptest::sample::subsequence(LADDER.to_vec(), 0..=7),
            used in proptest::sample::subsequence(LADDER.to_vec(), 0..=7),
            contacts in proptest::sample::subsequence(vec!["a", "b", "me"], 0..=3),
            planners in proptest::sample::subsequence(vec!["p", "q", "me", "a"], 0..=4),
            emergency in any::<bool>(),
        ) {
            let urgency = if emergency { Urgency::Emergency } else { Urgency::Ordinary };
            let mut left = Left {
                urgency: Some(urgency), reachable: named(&reachable), used: named(&used),
                contacts: named(&contacts), planners: named(&planners), asked: Vec::new(),
            };
            let (mut channels, mut people) = (Vec::new(), Vec::new());
            for _ in 0..20 {
                match next("me", &left) {
                    Step::Channel(name) => {
                        prop_assert!(people.is_empty() && !emergency);
                        left.used.push(name.clone());
                        channels.push(name);
                    }
                    Step::Person(id) => {
                        left.asked.push(id.clone());
                        people.push(id);
                    }
                    Step::End => break,
                }
            }
            prop_assert_eq!(next("me", &left), Step::End);
            let open: Vec<_> = LADDER.iter().filter(|name| !emergency && reachable.contains(name) && !used.contains(name)).collect();
            prop_assert!(channels.iter().eq(open));
            let mut others: Vec<&str> = Vec::new();
            for id in contacts.iter().chain(&planners) {
                if *id != "me" && !others.contains(id) {
                    others.push(id);
                }
            }
            prop_assert_eq!(people, others);
        }
    }
}
