//! Who is told, on which channel, when, and why: the pure heart of the notifier.
//!
//! Here stands who is told and where; [`policy`] says when. Time, preferences and history are given.
//!
//! Invariant: everybody for whom the workflow is gets a message, now or at a stated time, or a stated reason for each
//! channel that was offered to them; nobody gets two messages on one channel, nor one address the same message twice. Whoever
//! is told in the wedding's room ([`room`]) has that one message, and no other by Slack.

mod room;

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use jiff::Timestamp;

pub(crate) use self::room::Room;
use crate::{
    category::MARKETING,
    channel::Channels,
    policy::{self, Circumstances, Stage, Urgency},
    recipient::{Kind, Person, Recipient},
    workflow::{Audience, Workflow, normal},
};

/// Where neither the route nor the person names a channel.
pub(crate) const DEFAULT_CHANNELS: &[&str] = &["email", "in_app"];
/// What reaches a person soonest: added to what is urgent, where there is an address.
const SOONEST: &[&str] = &["sms", "whatsapp", "push"];
/// All there are: an emergency goes to them at once, where there is an address.
const EVERYWHERE: &[&str] = &["sms", "whatsapp", "push", "email", "slack", "teams", "in_app"];

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) workflow: &'a Workflow,
    /// The name that was asked for, and its category.
    pub(crate) asked: &'a str,
    pub(crate) category: &'a str,
    /// What the route offers; empty: the person chooses.
    pub(crate) offered: &'a [String],
    pub(crate) people: &'a [Person],
    /// Whoever asked has named the people: the workflow's audience is not looked at.
    pub(crate) chosen: bool,
    /// The id of an event that said the same, after which everybody was told.
    pub(crate) told_by: Option<&'a str>,
    pub(crate) now: Timestamp,
    pub(crate) urgency: Urgency,
    /// It is the day of the wedding that this is about.
    pub(crate) wedding_day: bool,
    pub(crate) stage: Stage,
    /// What is known of each person; of those who aren't there, nothing.
    pub(crate) known: &'a HashMap<String, Circumstances>,
    /// Commercial mail may be sent from here: the sender's postal address is known.
    pub(crate) advertises: bool,
    /// The new value of the fact that is told, where it is one.
    pub(crate) news: Option<&'a str>,
    /// The wedding's room, where the organization tells in it.
    pub(crate) room: Option<&'a Room>,
}

/// One message that is to be sent, put off, or not sent; with the reason, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned<'a> {
    pub(crate) person: &'a Person,
    pub(crate) channel: String,
    pub(crate) fate: Fate,
    /// Each thing that was looked at, in order.
    pub(crate) trail: Vec<String>,
}

/// What happens to a planned message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Send(String),
    /// At `until` it is decided anew.
    Hold {
        until: Timestamp,
        how: How,
        reason: String,
    },
    Skip(String),
    /// The message to the wedding's room is theirs.
    InRoom(String),
}

/// Why a message waits. The numbers are those of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum How {
    /// It goes out by itself when the quiet hours end, or the time to settle.
    Deferred = 1,
    /// It goes into a digest, as the person wishes.
    Digest = 2,
    /// It goes into a digest, being over the limit.
    Overflow = 3,
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
        for (channel, fate, trail) in fates(question, person, because, channels) {
            let fate = once_per_address(person, &channel, fate, channels, &mut addresses);
            planned.push(Planned { person, channel, fate, trail });
        }
    }
    match question.room {
        Some(room) => room::tell_in(room, question, planned, channels),
        None => planned,
    }
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

/// Channel, fate, and what was looked at.
type Decided = (String, Fate, Vec<String>);

/// What happens on each channel that was offered to a person, that they chose, or that urgency adds.
fn fates(question: &Question<'_>, person: &Person, because: &str, channels: &Channels) -> Vec<Decided> {
    static NOTHING: LazyLock<Circumstances> = LazyLock::new(Circumstances::default);
    let known = question.known.get(&person.id).unwrap_or(&NOTHING);
    let offered = offered(question.offered);
    let skip_all = |names: Vec<String>, step: String| -> Vec<Decided> {
        let reason = format!("{because}, but {step}");
        names
            .into_iter()
            .map(|name| (name, Fate::Skip(reason.clone()), vec![because.to_owned(), step.clone()]))
            .collect()
    };
    let Some(recipient) = &person.recipient else {
        return skip_all(offered, "not in the directory: add them, or their row in `suppliers`".to_owned());
    };
    let (chosen, wish) = chosen(question, &offered, recipient, known);
    if let Some(event) = question.told_by {
        return skip_all(chosen, format!("told already: event {event} said the same"));
    }
    if let Some(obstacle) = policy::unwanted(question, known) {
        return skip_all(chosen, obstacle);
    }
    let reaches = |name: &String| policy::reaches(question, recipient, known, name, channels);
    let fallback = chosen.iter().all(|name| reaches(name).is_err());
    let added = added(question, &chosen, &offered, &reaches);
    let schedule = policy::Schedule::of(question, person, known);
    let decide = |name: &String, wanted: bool| {
        let mut trail = vec![because.to_owned(), wish.clone()];
        let fate = match (reaches(name), wanted) {
            (Ok(()), true) => schedule.decide(question, known, name, because.to_owned(), &mut trail),
            // Better told on another channel than not at all.
            (Ok(()), false) if fallback => {
                let because = format!("{because}; no channel that they chose reaches them");
                schedule.decide(question, known, name, because, &mut trail)
            }
            (Ok(()), false) => Fate::Skip(format!("{because}, but not a channel that they chose")),
            (Err(obstacle), _) => {
                trail.push(obstacle.clone());
                Fate::Skip(format!("{because}, but {obstacle}"))
            }
        };
        (name.clone(), fate, trail)
    };
    let left = offered.iter().filter(|name| !chosen.contains(name) && !added.contains(name));
    let wanted = chosen.iter().chain(&added).map(|name| decide(name, true));
    wanted.chain(left.map(|name| decide(name, false))).collect()
}

fn offered(named: &[String]) -> Vec<String> {
    let offered = once(named.iter());
    if offered.is_empty() { DEFAULT_CHANNELS.iter().map(|name| (*name).to_owned()).collect() } else { offered }
}

fn once<'n>(names: impl Iterator<Item = &'n String>) -> Vec<String> {
    let mut each: Vec<String> = Vec::new();
    for name in names {
        if !each.contains(name) {
            each.push(name.clone());
        }
    }
    each
}

/// A preference chooses among what is offered; where it names nothing of that, it adds what it names. Says so too.
fn chosen(
    question: &Question<'_>,
    offered: &[String],
    recipient: &Recipient,
    known: &Circumstances,
) -> (Vec<String>, String) {
    let rule = known.preference.rule(question.asked, question.category);
    let (names, whose) = match rule {
        Some(rule) if !rule.channels.is_empty() => {
            (&rule.channels, format!("their rule for {}", subject(&rule.subject)))
        }
        _ => (&recipient.channels, "the directory".to_owned()),
    };
    let preferences = once(names.iter());
    let both: Vec<String> = offered.iter().filter(|name| preferences.contains(name)).cloned().collect();
    let (chosen, mut wish) = match (preferences.is_empty(), question.offered.is_empty(), both.is_empty()) {
        (true, ..) => (offered.to_vec(), "they named no channels: those of the route count".to_owned()),
        (false, true, _) | (false, false, true) => {
            let wish = format!("{whose} names {}, none of which the route limits", preferences.join(", "));
            (preferences, wish)
        }
        (false, false, false) => {
            let wish = format!("{whose} chooses {} of the route's", both.join(", "));
            (both, wish)
        }
    };
    let also = rule.map_or(&[][..], |rule| &rule.also);
    if !also.is_empty() {
        wish = format!("{wish}, and adds {}", also.join(", "));
    }
    (once(chosen.iter().chain(also)), wish)
}

fn subject(name: &str) -> &str {
    if name.is_empty() { "everything" } else { name }
}

/// What urgency adds, where it reaches them.
fn added(
    question: &Question<'_>,
    chosen: &[String],
    offered: &[String],
    reaches: &impl Fn(&String) -> Result<(), String>,
) -> Vec<String> {
    let names = match question.urgency {
        Urgency::Ordinary => return Vec::new(),
        _ if question.category == MARKETING => return Vec::new(),
        Urgency::Urgent => SOONEST,
        Urgency::Emergency => EVERYWHERE,
    };
    // In an emergency no choice keeps a channel back that was offered.
    let names = names
        .iter()
        .map(|name| (*name).to_owned())
        .chain(offered.iter().filter(|_| question.urgency == Urgency::Emergency).cloned());
    let names: Vec<String> = names.filter(|name| !chosen.contains(name) && reaches(name).is_ok()).collect();
    once(names.iter())
}

/// Two entries of the directory may be one person: the same words don't go to one address twice.
fn once_per_address(
    person: &Person,
    channel: &str,
    fate: Fate,
    channels: &Channels,
    addresses: &mut HashSet<(String, String, Vec<String>)>,
) -> Fate {
    let (Fate::Send(_) | Fate::Hold { .. }, Some(recipient)) = (&fate, &person.recipient) else { return fate };
    let Ok(address) = channels.address(channel, recipient) else { return fate };
    // What a vendor reads depends on what they do there.
    if addresses.insert((channel.to_owned(), address, person.vendor_types.clone())) {
        fate
    } else {
        Fate::Skip("another entry of the directory with this address is told".to_owned())
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
