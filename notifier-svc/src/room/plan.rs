//! What a room is called, whether one is ours, who is to come and who to go, and when it ends. Pure.

use std::collections::BTreeSet;

use chassis::id::OrganizationId;
use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};

use super::row::{Member, Standing};
use crate::{channel::FoundRoom, notification::digest};

/// A name may have 80 characters; the rest is for what tells two apart.
const SLUG: usize = 60;
/// How many names are tried.
pub(super) const NAMES: i64 = 5;
/// Slack's clock may be behind ours, in seconds.
const SKEW: i64 = 60;

/// The name that is tried after `taken` others: lower case, digits and hyphens, at most 80.
pub(super) fn name(organization: &OrganizationId, wedding: &str, taken: i64) -> String {
    let mut slug = String::new();
    for c in wedding.to_lowercase().chars().take(SLUG) {
        match c {
            c if c.is_ascii_alphanumeric() => slug.push(c),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    let slug = slug.trim_end_matches('-');
    let own = &hex::encode(digest(&["room", organization.as_str(), wedding]))[..8];
    match (slug, taken) {
        ("", 0) => format!("wedding-{own}"),
        (slug, 0) => format!("wedding-{slug}"),
        ("", taken) => format!("wedding-{own}-{taken}"),
        (slug, 1) => format!("wedding-{slug}-{own}"),
        (slug, taken) => format!("wedding-{slug}-{own}-{taken}"),
    }
}

/// What stands in a room's purpose, and is in no other's.
pub(super) fn purpose(organization: &OrganizationId, wedding: &str, public_name: &str) -> String {
    let public_name: String = public_name.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("The vendors of one wedding, by {public_name}. {}", mark(organization, wedding))
}

fn mark(organization: &OrganizationId, wedding: &str) -> String {
    format!("[wedsync {}]", hex::encode(digest(&["room", organization.as_str(), wedding])))
}

/// Whether the room under a name that we asked for at `asked_at` is this wedding's.
pub(super) fn is_ours(
    found: &FoundRoom,
    organization: &OrganizationId,
    wedding: &str,
    bot: &str,
    asked_at: Timestamp,
) -> bool {
    let is_unmarked = found.purpose.is_empty() && found.creator == bot && !bot.is_empty();
    found.purpose.contains(&mark(organization, wedding)) || is_unmarked && found.created >= asked_at.as_second() - SKEW
}

/// Who is to come in, and who to go out: those wanted, against those that we have to do with.
pub(super) fn moves(wanted: &BTreeSet<String>, members: &[Member]) -> (Vec<String>, Vec<String>) {
    let known = |standing: &[Standing], id: &str| {
        members.iter().any(|member| member.user == id && standing.contains(&member.standing))
    };
    let come = wanted.iter().filter(|id| !known(&[Standing::In, Standing::Skipped], id)).cloned().collect();
    let go = members.iter().filter(|member| !wanted.contains(&member.user)).map(|member| member.user.clone()).collect();
    (come, go)
}

/// When a room ends: so many days after its wedding, by the wedding's clock; never while the day isn't known.
pub(super) fn ends(day: &str, zone: &str, days: i64) -> Option<Timestamp> {
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let day = day.parse::<Date>().ok()?.checked_add((days + 1).days()).ok()?;
    Some(day.to_zoned(zone).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn organization(id: &str) -> OrganizationId {
        OrganizationId::parse(id).unwrap()
    }

    fn found(purpose: &str, creator: &str, created: i64) -> FoundRoom {
        FoundRoom { id: "G1".to_owned(), purpose: purpose.to_owned(), creator: creator.to_owned(), created }
    }

    proptest! {
        #[test]
        fn every_name_is_one_that_slack_takes_and_no_two_tries_are_alike(wedding in ".{1,128}") {
            let names: Vec<_> = (0..NAMES).map(|taken| name(&organization("o"), &wedding, taken)).collect();
            for name in &names {
                prop_assert!(name.len() <= 80 && !name.ends_with('-'), "{name}");
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
            }
            prop_assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        }
    }

    #[test]
    fn a_room_is_ours_by_its_mark_or_unmarked_by_our_bot_since_we_asked() {
        let (a, b) = (organization("a"), organization("b"));
        let asked = Timestamp::from_second(1_000).unwrap();
        let ours = |found: &FoundRoom| is_ours(found, &a, "w1", "UB", asked);
        assert!(ours(&found(&purpose(&a, "w1", "WedSync"), "UX", 0)));
        assert!(!ours(&found(&purpose(&b, "w1", "WedSync"), "UB", 1_000)), "another organization's");
        assert!(!ours(&found(&purpose(&a, "w2", "WedSync"), "UB", 1_000)), "another wedding's");
        assert!(ours(&found("", "UB", 1_000)));
        assert!(!ours(&found("", "UX", 1_000)) && !ours(&found("", "UB", 900)));
        assert!(purpose(&a, "w1", &"x".repeat(500)).chars().count() <= 250);
    }

    #[test]
    fn whoever_is_wanted_comes_once_and_whoever_we_brought_goes() {
        let member = |user: &str, standing| Member { user: user.to_owned(), standing, said: String::new() };
        let members = [
            member("in", Standing::In),
            member("left", Standing::In),
            member("asked", Standing::Asked),
            member("unknown", Standing::Skipped),
            member("going", Standing::Leaving),
        ];
        let wanted = ["in", "asked", "unknown", "new"].map(str::to_owned).into();
        assert_eq!(
            moves(&wanted, &members),
            (vec!["asked".to_owned(), "new".to_owned()], vec!["left".to_owned(), "going".to_owned()])
        );
    }

    #[test]
    fn a_room_ends_after_its_days_on_the_weddings_clock() {
        let at = ends("2026-06-20", "Europe/Berlin", 14).unwrap();
        assert_eq!(at.to_string(), "2026-07-04T22:00:00Z");
        assert_eq!(ends("", "UTC", 14), None);
    }
}
