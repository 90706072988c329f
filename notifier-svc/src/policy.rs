//! When a message goes out, and what keeps it back: opt-outs, suppression, what is known already, the hourly limit,
//! digests, quiet hours. Pure; time, wishes and history are given.
//!
//! The inbox rings nobody: quiet hours and digests don't hold it back, the limit does.
//!
//! Invariant: what isn't urgent never makes it more than ten notifications to a person in any 60 minutes; nothing that is
//! over it is dropped; what is urgent leaves at once.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::{
    category::MARKETING,
    channel::Channels,
    preference::Preference,
    recipient::{Person, Recipient},
    resolve::{Fate, How, Question},
    suppression::Reason,
};

/// Notifications to one person in any window.
pub(crate) const LIMIT: usize = 10;
pub(crate) const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// How much a message is kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// By everything.
    Ordinary,
    /// By opt-outs and suppression alone.
    Urgent,
    /// Likewise, and it goes everywhere.
    Emergency,
}

impl Urgency {
    /// Marketing is never urgent.
    pub(crate) fn of(workflow: &str, category: &str, priority: i64, overridden: bool) -> Self {
        match (category, workflow, priority) {
            (MARKETING, ..) => Self::Ordinary,
            (_, "emergency", _) => Self::Emergency,
            (_, _, 1) => Self::Urgent,
            _ if overridden => Self::Urgent,
            _ => Self::Ordinary,
        }
    }
}

/// When it is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// As it comes; a fact may still change until the given time.
    First { settles: Option<Timestamp> },
    /// At the end of a wait: wishes and lists may be others by now.
    Released,
}

/// What is known of a person when it is decided.
#[derive(Debug, Clone, Default)]
pub(crate) struct Circumstances {
    pub(crate) preference: Preference,
    /// By channel, why its address must not be used.
    pub(crate) suppressed: HashMap<String, Reason>,
    /// When they were told of anything within the last window, earliest first.
    pub(crate) told: Vec<Timestamp>,
    /// When what waits for the limit comes.
    pub(crate) waits: Option<Timestamp>,
    /// By channel, what they were last told of the fact.
    pub(crate) knows: HashMap<String, String>,
}

/// Why a person wants nothing of it at all; none if they do.
pub(crate) fn unwanted(question: &Question<'_>, known: &Circumstances) -> Option<String> {
    let off = known.preference.rule(question.asked, question.category).is_some_and(|rule| rule.off);
    let is_marketing = question.category == MARKETING;
    match question.urgency {
        _ if is_marketing && !question.advertises => {
            Some("commercial mail needs the sender's postal address: set postal_address".to_owned())
        }
        _ if is_marketing && known.preference.consent.is_none() => {
            Some("they haven't agreed to commercial mail".to_owned())
        }
        _ if is_marketing && off => Some("they turned marketing off".to_owned()),
        Urgency::Ordinary if off => Some(format!("they turned {} off", question.category)),
        _ => None,
    }
}

/// Whether a channel reaches a person, and may.
pub(crate) fn reaches(
    question: &Question<'_>,
    recipient: &Recipient,
    known: &Circumstances,
    channel: &str,
    channels: &Channels,
) -> Result<(), String> {
    channels.address(channel, recipient)?;
    match known.suppressed.get(channel) {
        Some(reason) if !(reason.yields_to_emergency() && question.urgency == Urgency::Emergency) => {
            Err(format!("the address is on the suppression list: {}", reason.as_str()))
        }
        _ => Ok(()),
    }
}

/// What holds for all channels of one person at one time.
pub(crate) struct Schedule {
    /// Why nothing is kept back; none if it is.
    passes: Option<&'static str>,
    zone: TimeZone,
    /// When there is room in the limit, if there is none now.
    room: Option<Timestamp>,
    said: String,
}

impl Schedule {
    pub(crate) fn of(question: &Question<'_>, person: &Person, known: &Circumstances) -> Self {
        let passes = match question.urgency {
            Urgency::Emergency => Some("an emergency"),
            Urgency::Urgent => Some("it is urgent"),
            Urgency::Ordinary if question.wedding_day && person.relation.wedding && question.category != MARKETING => {
                Some("it is the wedding's day")
            }
            Urgency::Ordinary => None,
        };
        let recent = recent(&known.told, question.now);
        let joins = known.waits.filter(|_| question.stage != Stage::Released).map(|at| at.max(question.now));
        let room = room(recent);
        let room = if passes.is_some() { None } else { room.or(joins) };
        let said = match (room, joins) {
            (None, _) => format!("{} of {LIMIT} notifications in the last hour", recent.len()),
            (Some(at), None) => {
                format!("{} of {LIMIT} notifications in the last hour: there is room at {at}", recent.len())
            }
            (Some(at), Some(_)) => format!("what came before it waits for the limit until {at}"),
        };
        // Where the directory has none, this is their organization's already.
        let directory = person.recipient.as_ref().map_or("", |recipient| &recipient.time_zone);
        Self { passes, zone: known.preference.zone(directory, ""), room, said }
    }

    /// Sends, or holds back, a message that is wanted and reaches its person.
    pub(crate) fn decide(
        &self,
        question: &Question<'_>,
        known: &Circumstances,
        channel: &str,
        because: String,
        trail: &mut Vec<String>,
    ) -> Fate {
        if let Some(news) = question.news.filter(|news| known.knows.get(channel).is_some_and(|knows| knows == news)) {
            trail.push(format!("what they were last told on this channel is {news} already"));
            return Fate::Skip(format!("{because}, but {news} is what they know"));
        }
        if let Some(passes) = self.passes {
            trail.push(format!("{passes}: neither limit nor digest nor quiet hours hold it back"));
            return Fate::Send(because);
        }
        trail.push(self.said.clone());
        if let Some(room) = self.room {
            return self.hold(
                room,
                How::Overflow,
                "over the limit: it goes into the next digest",
                known,
                because,
                trail,
            );
        }
        let Some((until, how, why)) = self.wait(question, known, channel) else {
            trail.push("no quiet hours or digest hold it back".to_owned());
            return Fate::Send(because);
        };
        self.hold(until, how, why, known, because, trail)
    }

    /// What the person wishes to wait for; the inbox waits for nothing but a fact to settle.
    fn wait(
        &self,
        question: &Question<'_>,
        known: &Circumstances,
        channel: &str,
    ) -> Option<(Timestamp, How, &'static str)> {
        let (now, preference) = (question.now, &known.preference);
        let is_first = question.stage != Stage::Released;
        let rings = channel != "in_app";
        let rule = preference.rule(question.asked, question.category);
        let digest = preference.digest_due(rule, now, &self.zone).filter(|_| rings && is_first);
        let quiet = preference.quiet.and_then(|quiet| quiet.ends(now, &self.zone)).filter(|_| rings);
        let settles = match question.stage {
            Stage::First { settles } => settles.filter(|at| *at > now),
            Stage::Released => None,
        };
        digest
            .map(|at| (at, How::Digest, "gathered for their digest"))
            .or_else(|| quiet.map(|at| (at, How::Deferred, "their quiet hours")))
            .or_else(|| settles.map(|at| (at, How::Deferred, "it may still change")))
    }

    fn hold(
        &self,
        until: Timestamp,
        how: How,
        why: &str,
        known: &Circumstances,
        because: String,
        trail: &mut Vec<String>,
    ) -> Fate {
        let quiet = known.preference.quiet.and_then(|quiet| quiet.ends(until, &self.zone));
        let until = quiet.unwrap_or(until);
        trail.push(format!("{why}: until {until}"));
        Fate::Hold { until, how, reason: format!("{because}; {why}") }
    }
}

/// Those of the times, earliest first, that lie in the window that ends now.
fn recent(told: &[Timestamp], now: Timestamp) -> &[Timestamp] {
    let begins = now - WINDOW;
    &told[told.partition_point(|at| *at <= begins)..]
}

/// When there is room for what isn't urgent; none if now.
pub(crate) fn room_at(told: &[Timestamp], now: Timestamp) -> Option<Timestamp> {
    room(recent(told, now))
}

/// When one more may be told; none if now.
fn room(recent: &[Timestamp]) -> Option<Timestamp> {
    let earlier = recent.len().checked_sub(LIMIT)?;
    Some(recent[earlier] + WINDOW)
}
