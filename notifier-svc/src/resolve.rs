//! Who is told, on which channel, and why: the pure heart of the notifier.
//!
//! Invariant: everybody for whom the workflow is gets a message or a stated reason for each channel that was offered to
//! them; nobody gets two messages on one channel, nor one address the same message twice.

use std::collections::HashSet;

use crate::{
    channel::Channels,
    recipient::{Kind, Person, Recipient},
    workflow::{Audience, Workflow, normal},
};

/// Where neither the route nor the person names a channel.
pub(crate) const DEFAULT_CHANNELS: &[&str] = &["email", "in_app"];

/// What is asked.
pub(crate) struct Question<'a> {
    pub(crate) workflow: &'a Workflow,
    /// What the route offers; empty: the person chooses.
    pub(crate) offered: &'a [String],
    pub(crate) people: &'a [Person],
    /// Whoever asked has named the people: the workflow's audience is not looked at.
    pub(crate) chosen: bool,
    /// The id of an event that said the same, after which everybody was told.
    pub(crate) told_by: Option<&'a str>,
}

/// One message that is to be sent, or not; with the reason, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned<'a> {
    pub(crate) person: &'a Person,
    pub(crate) channel: String,
    pub(crate) fate: Fate,
}

/// What happens to a planned message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Send(String),
    Skip(String),
}

/// Decides for everybody. Messages come in the order of the people, then of the channels.
pub(crate) fn plan<'a>(question: &Question<'a>, channels: &Channels) -> Vec<Planned<'a>> {
    let mut planned = Vec::new();
    let mut people = HashSet::new();
    let mut addresses = HashSet::new();
    for person in question.people {
        let Some(because) = concerns(question, person) else { continue };
        if !people.insert(&person.id) {
            continue;
        }
        for (channel, fate) in fates(question, person, because, channels) {
            let fate = once_per_address(person, &channel, fate, channels, &mut addresses);
            planned.push(Planned { person, channel, fate });
        }
    }
    planned
}

/// Why a person is to be told; none if they aren't.
fn concerns(question: &Question<'_>, person: &Person) -> Option<&'static str> {
    let relation = person.relation;
    if question.chosen {
        return relation.chosen.then_some("named by the sender");
    }
    let kind = person.recipient.as_ref().map(|recipient| recipient.kind);
    let named = relation.supplier.then_some("it is about their client");
    let vendor = (relation.wedding && kind != Some(Kind::Couple) && kind != Some(Kind::Operator))
        .then_some("vendor of the wedding");
    let planner = (relation.wedding && kind == Some(Kind::Planner)).then_some("planner of the wedding");
    let couple = (relation.couple || relation.wedding && kind == Some(Kind::Couple)).then_some("it is their wedding");
    let operator = relation.operator.then_some("operator");
    let caters = || {
        person.vendor_types.iter().any(|vendor_type| ["caterer", "catering"].contains(&normal(vendor_type).as_str()))
    };
    let caterer = (relation.wedding && caters()).then_some("caterer of the wedding");
    let somebody_is_named = || question.people.iter().any(|person| person.relation.supplier);
    match question.workflow.audience {
        Audience::Supplier => named,
        Audience::Wedding => planner.or(vendor),
        Audience::SuppliersOfCouple => named.or(vendor),
        Audience::SupplierAndPlanner => named.or(planner),
        Audience::CoupleAndCaterer => couple.or(caterer),
        Audience::Everybody => planner.or(vendor).or(named).or(operator),
        Audience::Owner => named.or(operator),
        Audience::Named if somebody_is_named() => named,
        Audience::Named => planner.or(vendor),
    }
}

/// What happens on each channel that was offered to a person or that they chose.
fn fates(question: &Question<'_>, person: &Person, because: &str, channels: &Channels) -> Vec<(String, Fate)> {
    let offered = offered(question.offered);
    let skip_all =
        |names: Vec<String>, reason: String| names.into_iter().map(|name| (name, Fate::Skip(reason.clone()))).collect();
    let Some(recipient) = &person.recipient else {
        return skip_all(
            offered,
            format!("{because}, but not in the directory: add them, or their row in `suppliers`"),
        );
    };
    let chosen = chosen(question.offered, &offered, recipient);
    if let Some(event) = question.told_by {
        return skip_all(chosen, format!("told already: event {event} said the same"));
    }
    let reaches = |name: &String| channels.address(name, recipient);
    let fallback = chosen.iter().all(|name| reaches(name).is_err());
    let names = chosen.iter().chain(offered.iter().filter(|name| !chosen.contains(name)));
    let fate = |name: &String| match (reaches(name), chosen.contains(name)) {
        (Ok(_), true) => Fate::Send(because.to_owned()),
        // Better told on another channel than not at all.
        (Ok(_), false) if fallback => Fate::Send(format!("{because}; no channel that they chose reaches them")),
        (Ok(_), false) => Fate::Skip(format!("{because}, but not a channel that they chose")),
        (Err(obstacle), _) => Fate::Skip(format!("{because}, but {obstacle}")),
    };
    names.map(|name| (name.clone(), fate(name))).collect()
}

fn offered(named: &[String]) -> Vec<String> {
    let mut offered: Vec<String> = Vec::new();
    for name in named {
        if !offered.contains(name) {
            offered.push(name.clone());
        }
    }
    if offered.is_empty() { DEFAULT_CHANNELS.iter().map(|name| (*name).to_owned()).collect() } else { offered }
}

/// A preference chooses among what is offered; where it names nothing of that, it adds what it names.
fn chosen(named: &[String], offered: &[String], recipient: &Recipient) -> Vec<String> {
    let preferred = |name: &&String| recipient.channels.contains(name);
    let mut preferences: Vec<String> = Vec::new();
    for name in &recipient.channels {
        if !preferences.contains(name) {
            preferences.push(name.clone());
        }
    }
    let both: Vec<String> = offered.iter().filter(preferred).cloned().collect();
    match (preferences.is_empty(), named.is_empty(), both.is_empty()) {
        (true, ..) => offered.to_vec(),
        (false, true, _) | (false, false, true) => preferences,
        (false, false, false) => both,
    }
}

/// Two entries of the directory may be one person: the same words don't go to one address twice.
fn once_per_address(
    person: &Person,
    channel: &str,
    fate: Fate,
    channels: &Channels,
    addresses: &mut HashSet<(String, String, Vec<String>)>,
) -> Fate {
    let (Fate::Send(_), Some(recipient)) = (&fate, &person.recipient) else { return fate };
    let Ok(address) = channels.address(channel, recipient) else { return fate };
    // What a vendor reads depends on what they do there.
    if addresses.insert((channel.to_owned(), address, person.vendor_types.clone())) {
        fate
    } else {
        Fate::Skip("another entry of the directory with this address is told".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        recipient::{Relation, tests::supplier},
        workflow::{all, find},
    };

    fn person(id: &str, relation: Relation) -> Person {
        Person { id: id.to_owned(), relation, recipient: Some(supplier(id)), vendor_types: Vec::new() }
    }

    fn of_wedding() -> Relation {
        Relation { wedding: true, ..Relation::default() }
    }

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn sent(offered: &[&str], people: &[Person]) -> Vec<(String, String)> {
        told("wedding_date_change", offered, people)
            .into_iter()
            .filter(|(.., sends, _)| *sends)
            .map(|(id, channel, ..)| (id, channel))
            .collect()
    }

    fn told(workflow: &str, offered: &[&str], people: &[Person]) -> Vec<(String, String, bool, String)> {
        let offered = named(offered);
        let question = Question { workflow: find(workflow), offered: &offered, people, chosen: false, told_by: None };
        let planned = plan(&question, &Channels::for_test());
        let fate = |fate| match fate {
            Fate::Send(reason) => (true, reason),
            Fate::Skip(reason) => (false, reason),
        };
        planned
            .into_iter()
            .map(|message| {
                let (sends, reason) = fate(message.fate);
                (message.person.id.clone(), message.channel, sends, reason)
            })
            .collect()
    }

    #[test]
    fn a_wedding_date_reaches_vendors_and_planner_but_not_the_couple() {
        let mut people: Vec<Person> = ["couple", "planner", "vendor"].map(|id| person(id, of_wedding())).into();
        people[0].recipient.as_mut().unwrap().kind = Kind::Couple;
        people[1].recipient.as_mut().unwrap().kind = Kind::Planner;
        people.push(person("stranger", Relation::default()));
        let sent = sent(&["email"], &people);
        assert_eq!(sent, [("planner".to_owned(), "email".to_owned()), ("vendor".to_owned(), "email".to_owned())]);
    }

    #[test]
    fn a_preference_chooses_among_what_is_offered() {
        let mut vendor = person("v", of_wedding());
        vendor.recipient.as_mut().unwrap().channels = named(&["in_app", "sms"]);
        let told = told("wedding_date_change", &["email", "in_app"], &[vendor]);
        assert_eq!(told[0].1, "in_app");
        assert!(told[0].2 && !told[1].2, "{told:?}");
        assert!(told[1].3.contains("not a channel that they chose"), "{told:?}");
    }

    #[test]
    fn who_chose_a_channel_that_does_not_reach_them_is_told_on_another() {
        let mut vendor = person("v", of_wedding());
        vendor.recipient.as_mut().unwrap().channels = named(&["sms"]);
        let told = told("wedding_date_change", &["email"], &[vendor]);
        assert_eq!((told[0].1.as_str(), told[0].2), ("sms", false));
        assert!(told[1].2 && told[1].3.contains("no channel that they chose"), "{told:?}");
    }

    #[test]
    fn a_missing_address_and_a_missing_channel_are_said() {
        let mut vendor = person("v", of_wedding());
        vendor.recipient.as_mut().unwrap().contact.email.clear();
        let told = told("wedding_date_change", &["email", "slack"], &[vendor]);
        assert!(told.iter().all(|(_, _, sends, _)| !sends));
        assert!(told[0].3.contains("no e-mail address") && told[1].3.contains("slack"), "{told:?}");
    }

    #[test]
    fn one_address_reads_the_same_words_once_and_other_instructions_too() {
        let mut people: Vec<Person> = ["a", "b", "c"].map(|id| person(id, of_wedding())).into();
        for person in &mut people {
            person.recipient.as_mut().unwrap().contact.email = "Shared@example.org".to_owned();
        }
        people[2].vendor_types = named(&["florist"]);
        assert_eq!(
            sent(&["email"], &people),
            [("a".to_owned(), "email".to_owned()), ("c".to_owned(), "email".to_owned())]
        );
    }

    fn people() -> impl Strategy<Value = Vec<Person>> {
        let one = (
            0..6u8,
            any::<(bool, bool, bool, bool)>(),
            any::<bool>(),
            1..5i64,
            proptest::sample::subsequence(vec!["email", "in_app", "sms"], 0..=3),
            any::<bool>(),
        );
        let person =
            one.prop_map(|(id, (is_supplier, couple, wedding, operator), known, kind, channels, has_email)| {
                let id = format!("p{id}");
                let mut recipient = supplier(&id);
                recipient.kind = [Kind::Supplier, Kind::Couple, Kind::Planner, Kind::Operator][kind as usize - 1];
                recipient.channels = named(&channels);
                if !has_email {
                    recipient.contact.email.clear();
                }
                let relation = Relation { supplier: is_supplier, couple, wedding, operator, chosen: false };
                Person { id, relation, recipient: known.then_some(recipient), vendor_types: Vec::new() }
            });
        proptest::collection::vec(person, 0..8)
    }

    proptest! {
        #[test]
        fn nobody_is_told_twice_on_a_channel_and_nobody_entitled_is_left_without_an_answer(
            people in people(),
            offered in proptest::sample::subsequence(vec!["email", "in_app", "slack", "sms"], 0..=4),
            workflow in 0..13usize,
        ) {
            let workflow = all().nth(workflow).unwrap();
            let offered = named(&offered);
            let question = Question { workflow, offered: &offered, people: &people, chosen: false, told_by: None };
            let planned = plan(&question, &Channels::for_test());
            let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
            for message in &planned {
                *seen.entry((&message.person.id, &message.channel)).or_default() += 1;
                let (Fate::Send(reason) | Fate::Skip(reason)) = &message.fate;
                prop_assert!(!reason.is_empty());
            }
            prop_assert!(seen.values().all(|times| *times == 1), "{seen:?}");
            for person in people.iter().filter(|person| concerns(&question, person).is_some()) {
                let told = |name: &str| planned.iter().any(|message| message.person.id == person.id && message.channel == name);
                prop_assert!(planned.iter().any(|message| message.person.id == person.id));
                // The first entry of an id counts.
                let first = people.iter().find(|first| first.id == person.id && concerns(&question, first).is_some()).unwrap();
                let defaults = offered.is_empty() && first.recipient.is_some();
                prop_assert!(defaults || offered.iter().all(|name| told(name)), "{planned:?}");
            }
        }

        #[test]
        fn a_reachable_person_is_reached(people in people(), offered in proptest::sample::subsequence(vec!["email", "in_app"], 1..=2)) {
            let offered = named(&offered);
            let question = Question { workflow: find("wedding_date_change"), offered: &offered, people: &people, chosen: false, told_by: None };
            let planned = plan(&question, &Channels::for_test());
            let mut seen = HashSet::new();
            for person in people.iter().filter(|person| concerns(&question, person).is_some()) {
                let first = seen.insert(&person.id);
                let Some(recipient) = person.recipient.as_ref().filter(|_| first) else { continue };
                let reachable = offered.iter().any(|name| name == "in_app" || !recipient.contact.email.is_empty());
                let sends = planned.iter().any(|message| message.person.id == person.id && matches!(message.fate, Fate::Send(_)));
                prop_assert!(!reachable || sends, "{planned:?}");
            }
        }
    }
}
