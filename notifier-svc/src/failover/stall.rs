//! Whether a message that its provider hasn't taken goes on to another channel. Pure.
//!
//! What is urgent goes wherever its person is reached. Everything else keeps to what they wish and to the limit, waits for
//! the end of their quiet hours, and stays where it is if another channel has it already: it comes late, but it comes.

use jiff::{SignedDuration, Timestamp};

use crate::{
    category::MARKETING,
    config::Failover,
    escalation::{Left, first_open},
    policy::{LIMIT, Urgency, WINDOW},
    preference::Preference,
};

/// A message that its provider hasn't taken.
#[derive(Debug, Clone)]
pub(super) struct Stall {
    pub(super) urgency: Urgency,
    /// Since when its lane has it.
    pub(super) since: Timestamp,
    pub(super) left: Left,
    /// Channels whose providers fail as well.
    pub(super) failing: Vec<String>,
    pub(super) wishes: Wishes,
    pub(super) quiet_until: Option<Timestamp>,
    /// When its person was told of anything within the last window, earliest first.
    pub(super) told: Vec<Timestamp>,
    /// Another channel that rings has it, or may have it.
    pub(super) elsewhere: bool,
}

/// By which channels somebody wants such a thing, where it isn't urgent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wishes {
    Any,
    These(Vec<String>),
    /// Not at all, or not by another way than the one they agreed to.
    None,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Channel(&'static str),
    /// It is looked at again then.
    Later(Timestamp),
    /// It stays where it is.
    Never,
}

pub(super) fn wishes(preference: &Preference, workflow: &str, category: &str, directory: &[String]) -> Wishes {
    let rule = preference.rule(workflow, category);
    if category == MARKETING || rule.is_some_and(|rule| rule.off) {
        return Wishes::None;
    }
    let chosen = rule.map(|rule| &rule.channels[..]).filter(|channels| !channels.is_empty()).unwrap_or(directory);
    let also = rule.map_or(&[][..], |rule| &rule.also);
    if chosen.is_empty() { Wishes::Any } else { Wishes::These(chosen.iter().chain(also).cloned().collect()) }
}

pub(super) fn decide(stall: &Stall, settings: &Failover, now: Timestamp) -> Next {
    let Some(wait) = settings.wait(stall.urgency) else { return Next::Never };
    let due = after(stall.since, wait);
    if due > now {
        return Next::Later(due);
    }
    let mut left = stall.left.clone();
    if stall.urgency == Urgency::Ordinary {
        match &stall.wishes {
            Wishes::None => return Next::Never,
            _ if stall.elsewhere => return Next::Never,
            Wishes::Any => {}
            Wishes::These(names) => left.reachable.retain(|name| names.contains(name)),
        }
        if let Some(at) = stall.quiet_until.max(room(stall, now)).filter(|at| *at > now) {
            return Next::Later(at);
        }
    }
    let is_open = first_open(&left).is_some();
    left.reachable.retain(|name| !stall.failing.contains(name));
    match first_open(&left) {
        Some(channel) => Next::Channel(channel),
        // Whichever provider is back first has it.
        None if is_open => Next::Later(after(now, wait)),
        None => Next::Never,
    }
}

/// When there is room in the limit for what was counted too long ago to be counted still.
fn room(stall: &Stall, now: Timestamp) -> Option<Timestamp> {
    let is_counted = stall.since > now - WINDOW;
    let others = stall.told.len().saturating_sub(usize::from(is_counted));
    let last = others.checked_sub(LIMIT).and_then(|over| stall.told.get(over));
    last.filter(|_| !is_counted).map(|told| *told + WINDOW)
}

fn after(at: Timestamp, wait: SignedDuration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{escalation::LADDER, preference::Rule};

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    fn now() -> Timestamp {
        "2026-05-01T12:00:00Z".parse().unwrap()
    }

    fn stall(minutes: i64, urgency: Urgency) -> Stall {
        let left = Left { reachable: names(LADDER), used: names(&["email"]), ..Left::default() };
        let since = now() - SignedDuration::from_mins(minutes);
        let (failing, wishes) = (names(&["email"]), Wishes::Any);
        Stall { urgency, since, left, failing, wishes, quiet_until: None, told: Vec::new(), elsewhere: false }
    }

    fn at(stall: &Stall) -> Next {
        decide(stall, &Failover::default(), now())
    }

    #[test]
    fn ten_minutes_are_too_long_and_one_is_for_what_is_urgent_and_a_wait_of_nothing_means_never() {
        let due = now() + SignedDuration::from_mins(1);
        assert_eq!(at(&stall(9, Urgency::Ordinary)), Next::Later(due));
        assert_eq!(at(&stall(10, Urgency::Ordinary)), Next::Channel("push"));
        assert_eq!(at(&stall(0, Urgency::Urgent)), Next::Later(due));
        assert_eq!(at(&stall(1, Urgency::Emergency)), Next::Channel("push"));
        let never = Failover { urgent_ms: 0, otherwise_ms: 0 };
        for urgency in [Urgency::Ordinary, Urgency::Urgent] {
            assert_eq!(decide(&stall(1_000, urgency), &never, now()), Next::Never);
        }
    }

    #[test]
    fn where_every_other_provider_fails_too_it_is_looked_at_again_and_where_nothing_is_left_it_stays() {
        let all = Stall { failing: names(LADDER), ..stall(10, Urgency::Ordinary) };
        assert_eq!(at(&all), Next::Later(now() + SignedDuration::from_mins(10)));
        let mut used = stall(10, Urgency::Ordinary);
        used.left.used = names(LADDER);
        assert_eq!(at(&used), Next::Never);
    }

    #[test]
    fn a_full_hour_puts_off_what_it_doesnt_hold_already() {
        let told: Vec<_> = (0..10).map(|n| now() - SignedDuration::from_mins(50 - n)).collect();
        let counted = Stall { told: told.clone(), ..stall(20, Urgency::Ordinary) };
        assert_eq!(at(&counted), Next::Channel("push"), "it is one of the ten");
        let room = told[0] + WINDOW;
        assert_eq!(at(&Stall { told, ..stall(90, Urgency::Ordinary) }), Next::Later(room));
    }

    #[test]
    fn a_rule_the_directory_and_an_opt_out_are_kept_to() {
        let rule = |channels: &[&str], also: &[&str], off| Preference {
            rules: vec![Rule { channels: names(channels), also: names(also), off, ..Rule::default() }],
            ..Preference::default()
        };
        let of = |preference: &Preference, category: &str| wishes(preference, "w", category, &names(&["email"]));
        assert_eq!(of(&Preference::default(), "weddings"), Wishes::These(names(&["email"])));
        assert_eq!(of(&rule(&["sms"], &["push"], false), "weddings"), Wishes::These(names(&["sms", "push"])));
        assert_eq!(of(&rule(&["sms"], &[], true), "weddings"), Wishes::None);
        assert_eq!(of(&rule(&["sms"], &[], false), MARKETING), Wishes::None, "they agreed to one way");
        assert_eq!(wishes(&Preference::default(), "w", "weddings", &[]), Wishes::Any);
    }

    proptest! {
        #[test]
        fn nothing_goes_on_early_against_a_wish_in_quiet_hours_or_where_it_was_told(
            minutes in 0i64..200,
            urgency in prop_oneof![Just(Urgency::Ordinary), Just(Urgency::Urgent), Just(Urgency::Emergency)],
            reachable in proptest::sample::subsequence(LADDER.to_vec(), 0..=7),
            used in proptest::sample::subsequence(LADDER.to_vec(), 0..=7),
            failing in proptest::sample::subsequence(LADDER.to_vec(), 0..=7),
            wished in proptest::option::of(proptest::sample::subsequence(LADDER.to_vec(), 0..=7)),
            quiet in proptest::option::of(1i64..600),
            told in proptest::collection::vec(0i64..60, 0..12),
            elsewhere in any::<bool>(),
        ) {
            let mut told: Vec<_> = told.into_iter().map(|ago| now() - SignedDuration::from_mins(ago)).collect();
            told.sort_unstable();
            let since = now() - SignedDuration::from_mins(minutes);
            if minutes < 60 && !told.contains(&since) {
                told.push(since);
                told.sort_unstable();
            }
            let stall = Stall {
                urgency,
                since,
                left: Left { reachable: names(&reachable), used: names(&used), ..Left::default() },
                failing: names(&failing),
                wishes: wished.as_ref().map_or(Wishes::Any, |wished| Wishes::These(names(wished))),
                quiet_until: quiet.map(|quiet| now() + SignedDuration::from_mins(quiet)),
                told,
                elsewhere,
            };
            let ordinary = urgency == Urgency::Ordinary;
            match at(&stall) {
                Next::Channel(channel) => {
                    let wait = if ordinary { 10 } else { 1 };
                    prop_assert!(minutes >= wait);
                    prop_assert!(reachable.contains(&channel) && !used.contains(&channel) && !failing.contains(&channel));
                    if ordinary {
                        prop_assert!(quiet.is_none() && !elsewhere);
                        prop_assert!(wished.is_none_or(|wished| wished.contains(&channel)));
                        prop_assert!(minutes < 60 || stall.told.len() < LIMIT);
                    }
                }
                Next::Later(at) => prop_assert!(at > now()),
                Next::Never => {
                    let open = |name: &&str| !used.contains(name) && (!ordinary || wished.as_ref().is_none_or(|wished| wished.contains(name)));
                    prop_assert!(ordinary && elsewhere || !reachable.iter().any(open));
                }
            }
        }
    }
}
