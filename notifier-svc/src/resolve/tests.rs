//! Tables and properties of resolution.

use proptest::prelude::*;

use super::*;
use crate::{
    preference::{Preference, Rule},
    recipient::{Relation, tests::supplier},
    suppression::Reason,
    workflow::{all, find},
};

pub(super) fn person(id: &str, relation: Relation) -> Person {
    Person { id: id.to_owned(), relation, recipient: Some(supplier(id)), vendor_types: Vec::new() }
}

pub(super) fn of_wedding() -> Relation {
    Relation { wedding: true, ..Relation::default() }
}

pub(super) fn question<'a>(
    workflow: &'a Workflow,
    offered: &'a [String],
    people: &'a [Person],
    known: &'a HashMap<String, Circumstances>,
) -> Question<'a> {
    Question {
        workflow,
        asked: workflow.name,
        category: crate::category::of(workflow.name),
        offered,
        people,
        chosen: false,
        told_by: None,
        now: Timestamp::UNIX_EPOCH,
        urgency: Urgency::Ordinary,
        wedding_day: false,
        stage: Stage::First { settles: None },
        known,
        advertises: true,
        news: None,
        room: None,
    }
}

pub(super) fn named(names: &[&str]) -> Vec<String> {
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
    let known = HashMap::new();
    let question = question(find(workflow), &offered, people, &known);
    let planned = plan(&question, &Channels::for_test());
    let fate = |fate| match fate {
        Fate::Send(reason) => (true, reason),
        Fate::Skip(reason) | Fate::InRoom(reason) | Fate::Hold { reason, .. } => (false, reason),
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
    assert_eq!(sent(&["email"], &people), [("a".to_owned(), "email".to_owned()), ("c".to_owned(), "email".to_owned())]);
}

#[test]
fn an_emergency_goes_everywhere_whatever_they_chose_and_turned_off() {
    let mut vendor = person("v", of_wedding());
    vendor.recipient.as_mut().unwrap().channels = named(&["in_app"]);
    let off = Rule { off: true, ..Rule::default() };
    let preference = Preference { rules: vec![off], ..Preference::default() };
    let known = HashMap::from([("v".to_owned(), Circumstances { preference, ..Circumstances::default() })]);
    let (people, offered) = ([vendor], named(&["in_app"]));
    let sent = |urgency: Urgency| {
        let mut question = question(find("emergency"), &offered, &people, &known);
        question.urgency = urgency;
        let planned = plan(&question, &Channels::for_test());
        let sent = planned.into_iter().filter(|planned| matches!(planned.fate, Fate::Send(_)));
        sent.map(|planned| planned.channel).collect::<Vec<_>>()
    };
    assert_eq!(sent(Urgency::Emergency), ["in_app", "email"]);
    assert_eq!(sent(Urgency::Urgent), ["in_app"]);
    assert!(sent(Urgency::Ordinary).is_empty());
}

#[test]
fn on_the_weddings_day_its_people_are_told_at_once_and_nobody_else() {
    let mut people = [person("v", of_wedding()), person("s", Relation { supplier: true, ..Relation::default() })];
    people[1].recipient.as_mut().unwrap().kind = Kind::Supplier;
    let told = vec![Timestamp::UNIX_EPOCH; 10];
    let known = |id: &str| (id.to_owned(), Circumstances { told: told.clone(), ..Circumstances::default() });
    let known = HashMap::from([known("v"), known("s")]);
    let offered = named(&["email"]);
    let mut question = question(find("client_profile_updated"), &offered, &people, &known);
    question.wedding_day = true;
    let planned = plan(&question, &Channels::for_test());
    assert!(matches!(planned[0].fate, Fate::Send(_)) && planned[0].person.id == "v");
    assert!(matches!(planned[1].fate, Fate::Hold { how: How::Overflow, .. }), "{planned:?}");
}

#[test]
fn a_suppressed_address_leaves_the_other_channels_and_only_an_emergency_passes_an_unsubscription() {
    let people = [person("v", of_wedding())];
    let offered = named(&["email", "in_app"]);
    let sent = |reason: Reason, urgency: Urgency| {
        let suppressed = HashMap::from([("email".to_owned(), reason)]);
        let known = HashMap::from([("v".to_owned(), Circumstances { suppressed, ..Circumstances::default() })]);
        let mut question = question(find("emergency"), &offered, &people, &known);
        question.urgency = urgency;
        let planned = plan(&question, &Channels::for_test());
        planned.into_iter().filter(|planned| matches!(planned.fate, Fate::Send(_))).count()
    };
    assert_eq!(sent(Reason::Bounced, Urgency::Ordinary), 1);
    assert_eq!(sent(Reason::Stopped, Urgency::Emergency), 1);
    assert_eq!(sent(Reason::Unsubscribed, Urgency::Urgent), 1);
    assert_eq!(sent(Reason::Unsubscribed, Urgency::Emergency), 2);
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
    let person = one.prop_map(|(id, (is_supplier, couple, wedding, operator), known, kind, channels, has_email)| {
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
        let known = HashMap::new();
        let question = question(workflow, &offered, &people, &known);
        let planned = plan(&question, &Channels::for_test());
        let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
        for message in &planned {
            *seen.entry((&message.person.id, &message.channel)).or_default() += 1;
            let (Fate::Send(reason) | Fate::Skip(reason) | Fate::InRoom(reason) | Fate::Hold { reason, .. }) = &message.fate;
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
        let known = HashMap::new();
        let question = question(find("wedding_date_change"), &offered, &people, &known);
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
