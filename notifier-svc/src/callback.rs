//! What providers report back: whether a report is theirs, over its raw bytes, and what it means. Pure.
//!
//! Each provider has its file: [`resend`], [`twilio`], [`meta`], [`slack`]. A report says which of our messages it is about
//! by the message's own name, which went out with it, so that one that comes before the provider's answer was recorded is
//! understood too. [`Stage`] is how they add up.

pub(crate) mod meta;
pub(crate) mod resend;
pub(crate) mod slack;
pub(crate) mod twilio;

use chassis::id::parse_uuid;

/// How many reports one request may hold; what is beyond isn't read, and providers send far fewer.
const REPORTS: usize = 1_000;
/// The longest text of a person that is passed on, in characters.
const TEXT: usize = 4_096;

/// One thing that a provider reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// Names it: a report that comes again has the same.
    pub(crate) id: String,
    /// Which of our messages it is about, where it says so.
    pub(crate) message: Option<[u8; 16]>,
    pub(crate) meaning: Meaning,
}

/// What a report means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// On its way from the provider on.
    Sent,
    Delivered,
    Read,
    /// The receiving system sent it back; whether it would send back the next as well.
    Bounced {
        address: String,
        for_good: bool,
    },
    /// Somebody called it spam.
    Complained {
        address: String,
    },
    /// It will not be delivered; the provider's code.
    Failed {
        code: String,
    },
    /// Nothing more is wanted there.
    OptedOut {
        address: String,
    },
    /// It is wanted again.
    OptedIn {
        address: String,
    },
    /// Somebody confirmed that they know.
    Acknowledged {
        by: String,
    },
    /// Somebody wrote back.
    Replied {
        from: String,
        text: String,
    },
}

impl Meaning {
    /// As metrics name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Bounced { .. } => "bounced",
            Self::Complained { .. } => "complained",
            Self::Failed { .. } => "failed",
            Self::OptedOut { .. } => "opted_out",
            Self::OptedIn { .. } => "opted_in",
            Self::Acknowledged { .. } => "acknowledged",
            Self::Replied { .. } => "replied",
        }
    }
}

/// Why a request is not believed, or not understood. The sender learns no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It isn't signed with our secret.
    #[error("the signature doesn't hold")]
    Signature,
    /// A handshake with another token than ours.
    #[error("the token isn't ours")]
    Token,
    /// Signed too long ago, or in the future.
    #[error("the time is outside the tolerance")]
    Stale,
    /// Theirs, and yet not as it is described.
    #[error("the report can't be read")]
    Malformed,
}

/// How far a message has come, by what was reported of it. The order is that of what counts more: a report can only raise
/// it, so that early, repeated and reordered ones end alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(i64)]
pub(crate) enum Stage {
    /// Nothing was reported.
    #[default]
    Unreported = 0,
    Sent = 1,
    Delivered = 2,
    /// After a delivery too: some systems accept first, and send back later.
    Failed = 3,
    Bounced = 4,
    /// Whoever has read it has it, whatever else was said.
    Read = 5,
    Complained = 6,
    Acknowledged = 7,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Unreported,
        Self::Sent,
        Self::Delivered,
        Self::Failed,
        Self::Bounced,
        Self::Read,
        Self::Complained,
        Self::Acknowledged,
    ];

    /// The stage that the store has under this number; what it doesn't know, nobody reported.
    pub(crate) fn from_number(number: i64) -> Self {
        Self::ALL.into_iter().find(|stage| *stage as i64 == number).unwrap_or_default()
    }

    /// The stage after one more report.
    pub(crate) fn after(self, meaning: &Meaning) -> Self {
        let reported = match meaning {
            Meaning::Sent => Self::Sent,
            Meaning::Delivered => Self::Delivered,
            Meaning::Read => Self::Read,
            Meaning::Bounced { .. } => Self::Bounced,
            Meaning::Complained { .. } => Self::Complained,
            Meaning::Failed { .. } => Self::Failed,
            Meaning::Acknowledged { .. } => Self::Acknowledged,
            Meaning::OptedOut { .. } | Meaning::OptedIn { .. } | Meaning::Replied { .. } => Self::Unreported,
        };
        self.max(reported)
    }
}

/// A message's name as it comes back; anything else is none of ours.
fn message(text: &str) -> Option<[u8; 16]> {
    parse_uuid(text)
}

/// Whole messages that end what we may send to a number, and those that begin it again: Twilio obeys them itself, with Meta
/// nobody but us does. To Twilio YES is one of them too: it is an answer first.
const STOP: &[&str] = &["STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"];
const START: &[&str] = &["START", "UNSTOP"];

/// What somebody wrote to a number of ours means: a word that has a meaning of its own, or a reply.
fn written(from: String, said: &str) -> Meaning {
    match &*said.trim().to_uppercase() {
        word if STOP.contains(&word) => Meaning::OptedOut { address: from },
        word if START.contains(&word) => Meaning::OptedIn { address: from },
        _ => Meaning::Replied { from, text: text(said) },
    }
}

fn text(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// Seconds since the epoch that are at most five minutes from now, either way.
fn is_fresh(seconds: i64, now_seconds: i64) -> bool {
    seconds.abs_diff(now_seconds) <= chassis::signature::TOLERANCE.as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The published examples of each scheme.
    pub(super) fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("callback/vectors.json")).expect("JSON")
    }

    pub(super) fn of(vectors: &serde_json::Value, pointer: &str) -> String {
        vectors.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_else(|| panic!("{pointer}")).to_owned()
    }

    fn meanings() -> Vec<Meaning> {
        let address = "a".to_owned();
        vec![
            Meaning::Sent,
            Meaning::Delivered,
            Meaning::Read,
            Meaning::Bounced { address: address.clone(), for_good: true },
            Meaning::Complained { address: address.clone() },
            Meaning::Failed { code: "30003".to_owned() },
            Meaning::OptedOut { address: address.clone() },
            Meaning::Acknowledged { by: address },
        ]
    }

    fn end(meanings: &[Meaning]) -> Stage {
        meanings.iter().fold(Stage::default(), Stage::after)
    }

    #[test]
    fn reports_add_up_as_people_would_say() {
        let of = |numbers: &[usize]| end(&numbers.iter().map(|n| meanings()[*n].clone()).collect::<Vec<_>>());
        assert_eq!(of(&[]), Stage::Unreported);
        assert_eq!(of(&[0, 1]), Stage::Delivered);
        assert_eq!(of(&[5, 0]), Stage::Failed, "sent is said late");
        assert_eq!(of(&[1, 3]), Stage::Bounced, "accepted, then sent back");
        assert_eq!(of(&[2, 1, 4]), Stage::Complained);
        assert_eq!(of(&[6]), Stage::Unreported, "an address, not a message");
    }

    proptest! {
        #[test]
        fn in_whatever_order_and_however_often_reports_come_they_end_alike(
            order in proptest::collection::vec(0..8usize, 0..12), seed in any::<u64>(),
        ) {
            let all: Vec<Meaning> = order.iter().map(|number| meanings()[*number].clone()).collect();
            let mut other = all.clone();
            let repeats: Vec<Meaning> = all.iter().step_by(2).cloned().collect();
            other.extend(repeats);
            let length = other.len().max(1) as u64;
            for place in 0..other.len() {
                let to = usize::try_from(seed.wrapping_mul(place as u64 + 7) % length).unwrap();
                other.swap(place, to);
            }
            prop_assert_eq!(end(&all), end(&other));
        }
    }
}
