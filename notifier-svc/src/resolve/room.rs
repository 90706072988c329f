//! What is told in a wedding's room, once, instead of to each of its members by Slack. Pure.
//!
//! A room hears only what concerns everybody in it, and nothing that is for somebody by name: what is urgent, asks for a
//! confirmation, is commercial, or was sent to chosen people. It rings nobody, so that quiet hours, digests and the limit hold
//! nothing back there. Other channels, and whoever isn't in, are as they would be without it.

use std::collections::BTreeSet;

use super::{Fate, Planned, Question, concerns};
use crate::{category::MARKETING, channel::Channels, escalation, policy::Urgency, recipient::Person};

const SLACK: &str = "slack";

/// A wedding's room that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    /// As a recipient of its own.
    pub(crate) person: Person,
    /// Who is in, by Slack's ids.
    pub(crate) members: BTreeSet<String>,
}

/// Gives whoever is in the room its message, where it may hear this.
pub(super) fn tell_in<'a>(
    room: &'a Room,
    question: &Question<'a>,
    mut planned: Vec<Planned<'a>>,
    channels: &Channels,
) -> Vec<Planned<'a>> {
    let reached = room.person.recipient.as_ref().is_some_and(|known| channels.address(SLACK, known).is_ok());
    if !reached || is_by_name(question) || !concerns_all(room, question) {
        return planned;
    }
    let mut told = 0_usize;
    for message in planned.iter_mut().filter(|message| is_theirs(room, message)) {
        let because = message.trail.first().cloned().unwrap_or_default();
        message.trail.push("they are in the wedding's room, which hears it once for all".to_owned());
        message.fate = Fate::InRoom(format!("{because}; told in the wedding's room"));
        told += 1;
    }
    if told > 0 {
        let reason = format!("the wedding's room, for {told} who are in it");
        let (person, channel, trail) = (&room.person, SLACK.to_owned(), vec![reason.clone()]);
        planned.push(Planned { person, channel, fate: Fate::Send(reason), trail });
    }
    planned
}

/// Whether it has to reach each by name.
fn is_by_name(question: &Question<'_>) -> bool {
    question.chosen
        || question.urgency != Urgency::Ordinary
        || question.category == MARKETING
        || escalation::asks(question.asked)
}

/// Nobody hears in a room what they wouldn't be told.
fn concerns_all(room: &Room, question: &Question<'_>) -> bool {
    let is_concerned = |member: &String| {
        question.people.iter().any(|person| slack_id(person) == Some(member) && concerns(question, person).is_some())
    };
    let is_somebody = question.people.iter().any(|person| person.id == room.person.id);
    !is_somebody && room.members.iter().all(is_concerned)
}

/// A message that a member of the room would get by Slack, now or later.
fn is_theirs(room: &Room, message: &Planned<'_>) -> bool {
    let comes = matches!(message.fate, Fate::Send(_) | Fate::Hold { .. });
    comes && message.channel == SLACK && slack_id(message.person).is_some_and(|id| room.members.contains(id))
}

fn slack_id(person: &Person) -> Option<&String> {
    person.recipient.as_ref().map(|known| &known.contact.slack_user_id).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::LazyLock};

    use jiff::civil::time;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        policy::Circumstances,
        preference::{Preference, Rule},
        recipient::Kind,
        resolve::{
            plan,
            tests::{named, of_wedding, person, question},
        },
        room::as_person,
        settings::Settings,
        when::Quiet,
        workflow::find,
    };

    /// Somebody of the wedding, and how they stand.
    #[derive(Debug, Clone)]
    struct Somebody {
        has_slack: bool,
        is_in: bool,
        is_couple: bool,
        is_of_wedding: bool,
        off: bool,
        quiet: bool,
        also: bool,
    }

    fn somebody() -> impl Strategy<Value = Somebody> {
        let likely = || prop::bool::weighted(0.9);
        let rarely = || prop::bool::weighted(0.1);
        (likely(), likely(), rarely(), likely(), rarely(), any::<bool>(), any::<bool>()).prop_map(
            |(has_slack, is_in, is_couple, is_of_wedding, off, quiet, also)| Somebody {
                has_slack,
                is_in,
                is_couple,
                is_of_wedding,
                off,
                quiet,
                also,
            },
        )
    }

    fn people(all: &[Somebody]) -> (Vec<Person>, HashMap<String, Circumstances>, Room) {
        let (mut people, mut known, mut members) = (Vec::new(), HashMap::new(), BTreeSet::new());
        for (number, somebody) in all.iter().enumerate() {
            let id = format!("p{number}");
            let relation = if somebody.is_of_wedding { of_wedding() } else { Default::default() };
            let mut person = person(&id, relation);
            let recipient = person.recipient.as_mut().unwrap();
            recipient.contact.email = format!("{id}@example.org");
            recipient.channels = named(if somebody.also { &["slack", "email"] } else { &["slack"] });
            if somebody.is_couple {
                recipient.kind = Kind::Couple;
            }
            if somebody.has_slack {
                recipient.contact.slack_user_id = format!("U{number}");
                if somebody.is_in {
                    members.insert(format!("U{number}"));
                }
            }
            let quiet = Quiet { from: time(22, 0, 0, 0), until: time(7, 0, 0, 0) };
            let preference = Preference {
                quiet: somebody.quiet.then_some(quiet),
                rules: if somebody.off { vec![Rule { off: true, ..Rule::default() }] } else { Vec::new() },
                ..Preference::default()
            };
            known.insert(id, Circumstances { preference, ..Circumstances::default() });
            people.push(person);
        }
        (people, known, Room { person: as_person("w1", "G1", &Settings::default()), members })
    }

    /// By person and channel, what comes of it.
    fn fates(question: &Question<'_>) -> Vec<(String, String, Fate)> {
        static CHANNELS: LazyLock<Channels> = LazyLock::new(Channels::with_slack);
        let planned = plan(question, &CHANNELS);
        planned.into_iter().map(|planned| (planned.person.id.clone(), planned.channel, planned.fate)).collect()
    }

    #[test]
    fn whoever_is_in_is_told_there_once_and_the_others_as_ever() {
        let all = Somebody {
            has_slack: true,
            is_in: true,
            is_couple: false,
            is_of_wedding: true,
            off: false,
            quiet: true,
            also: true,
        };
        let out = Somebody { is_in: false, ..all.clone() };
        let (people, known, room) = people(&[all.clone(), all, out]);
        let offered = named(&["slack", "email"]);
        let mut question = question(find("timeline_changed"), &offered, &people, &known);
        question.room = Some(&room);
        let fates = fates(&question);
        let told: Vec<_> = fates.iter().filter(|(.., fate)| matches!(fate, Fate::InRoom(_))).collect();
        assert_eq!(told.len(), 2, "{fates:?}");
        let Fate::InRoom(reason) = &told[0].2 else { panic!("in the room") };
        assert_eq!(reason, "vendor of the wedding; told in the wedding's room");
        let of = |id: &str, channel: &str| fates.iter().filter(|(i, c, _)| i == id && c == channel).count();
        assert_eq!((of("room:w1", "slack"), of("p2", "slack"), of("p0", "email")), (1, 1, 1));
        assert!(matches!(fates.last().unwrap().2, Fate::Send(_)), "quiet hours don't hold the room back");
    }

    proptest! {
        #[test]
        fn nobody_entitled_is_dropped_nobody_is_told_twice_and_nobody_else_hears(
            all in prop::collection::vec(somebody(), 0..8),
            workflow in prop::sample::select(vec![
                "timeline_changed", "wedding_date_change", "emergency", "form_response_received", "journey_milestone_completed",
            ]),
            urgent in prop::bool::weighted(0.2),
            chosen in prop::bool::weighted(0.2),
        ) {
            let (people, known, room) = people(&all);
            let offered = named(&["slack", "email"]);
            let mut question = question(find(workflow), &offered, &people, &known);
            question.urgency = Urgency::of(workflow, question.category, if urgent { 1 } else { 3 }, false);
            question.chosen = chosen;
            let without = fates(&question);
            question.room = Some(&room);
            let with = fates(&question);
            let posts = with.iter().filter(|(id, ..)| id == "room:w1").count();
            prop_assert!(posts <= 1);
            let (told, _) = with.split_at(with.len() - posts);
            prop_assert_eq!(told.len(), without.len());
            let mut moved = 0;
            for ((id, channel, before), (same, also, after)) in without.iter().zip(told) {
                prop_assert_eq!((id, channel), (same, also));
                if let Fate::InRoom(_) = after {
                    moved += 1;
                    prop_assert!(channel == "slack" && matches!(before, Fate::Send(_) | Fate::Hold { .. }), "{:?}", before);
                    prop_assert!(room.members.contains(&id.replace('p', "U")));
                } else {
                    prop_assert_eq!(before, after, "nothing else changes");
                    let comes = matches!(after, Fate::Send(_) | Fate::Hold { .. });
                    let is_in = channel == "slack" && room.members.contains(&id.replace('p', "U"));
                    prop_assert!(posts == 0 || !(comes && is_in), "told twice: {}", id);
                }
            }
            prop_assert_eq!(posts == 1, moved > 0);
            if posts == 1 {
                prop_assert!(!chosen && question.urgency == Urgency::Ordinary && !escalation::asks(workflow));
                for member in &room.members {
                    let somebody = &people[member[1..].parse::<usize>().unwrap()];
                    prop_assert!(concerns(&question, somebody).is_some(), "{} hears what isn't for them", member);
                }
            }
        }
    }
}
