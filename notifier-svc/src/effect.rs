//! What a report does beside what it says of its message: an address isn't used any more, or is again; somebody confirmed.
//!
//! Whom it concerns is found out before the report's transaction, and written in it. A report that names no message (STOP, a
//! reply) says only from where it came: it concerns every organization that wrote to that address on that channel, since they
//! share the number that was answered. What is confirmed by a reply is what was asked there last, and nothing else.

use chassis::{
    clock::Clock,
    error::Result,
    id::OrganizationId,
    secret::DataKeys,
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    callback::{Meaning, Report},
    confirm::{self, Confirms},
    suppression::{self, Listed, Reason, hash},
    token, window,
};

/// Addresses that are looked up at once.
const AT_ONCE: usize = 8;
/// How long after it was asked a reply still confirms.
const ASKED: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Whole replies that confirm, whatever stands after them but letters.
const YES: &[&str] = &["OK", "OKAY", "YES", "CONFIRM", "CONFIRMED"];

/// What is to be written.
pub(crate) enum Effect {
    Nothing,
    /// These aren't to be used any more.
    Suppress(Vec<Listed>, Reason),
    /// Who had said STOP there wants to be written to again.
    Admit(Vec<Listed>),
    /// They wrote something that changes no opt-out; and maybe confirms.
    Hear(Vec<Listed>, Option<Confirms>),
    Confirm(Confirms),
}

/// Finds out what reports do. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Effects {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
}

#[derive(sqlx::FromRow)]
struct Reached {
    organization_id: String,
    address: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct Asked {
    uid: Vec<u8>,
    handed_at: i64,
}

impl Effects {
    /// What a report of this provider's does.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn of(&self, provider: &str, report: &Report) -> Result<Effect> {
        let suppress = |at, reason| Effect::Suppress(at, reason);
        Ok(match &report.meaning {
            Meaning::Bounced { address, for_good: true } => {
                suppress(self.whose(provider, address, report).await?, Reason::Bounced)
            }
            Meaning::Complained { address } => {
                suppress(self.whose(provider, address, report).await?, Reason::Complained)
            }
            Meaning::OptedOut { address } => suppress(self.whose(provider, address, report).await?, Reason::Stopped),
            Meaning::OptedIn { address } => Effect::Admit(self.whose(provider, address, report).await?),
            Meaning::Replied { from, text } => self.replied(provider, from, &word(text)).await?,
            Meaning::Acknowledged { .. } => match report.message {
                Some(uid) => self.asked_by(&uid, "button").await?.map_or(Effect::Nothing, Effect::Confirm),
                None => Effect::Nothing,
            },
            _ => Effect::Nothing,
        })
    }

    /// A reply confirms what was asked last. A YES where nothing was asked ends a STOP, as Twilio takes it; nothing else does.
    async fn replied(&self, provider: &str, from: &str, word: &str) -> Result<Effect> {
        let (channel, address) = place(provider, from);
        let confirms = YES.contains(&word);
        if !confirms && channel != "whatsapp" {
            return Ok(Effect::Nothing);
        }
        let at = self.reached(channel, address).await?;
        let asked = if confirms { self.asked_last(channel, &at).await? } else { None };
        let begins_again = provider == "twilio" && word == "YES" && asked.is_none();
        Ok(if begins_again { Effect::Admit(at) } else { Effect::Hear(at, asked) })
    }

    /// The address that a report is about, in each organization that it concerns: its message's alone, if it names one.
    async fn whose(&self, provider: &str, address: &str, report: &Report) -> Result<Vec<Listed>> {
        let (channel, address) = place(provider, address);
        let Some(uid) = report.message else { return self.reached(channel, address).await };
        let known: Option<(String, String, Option<Vec<u8>>)> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT organization_id, channel, address FROM messages WHERE uid = $1",
        ).bind(&uid[..]).fetch_optional(c).await)?;
        let Some((organization, channel, known)) = known else { return Ok(Vec::new()) };
        let organization = OrganizationId::parse(&organization)?;
        // Once its reader was erased, the report alone says where it went.
        let hash = known.unwrap_or_else(|| hash(&organization, address));
        Ok(vec![self.listed(organization, &channel, hash, address).await?])
    }

    /// The address in each organization that wrote to it on this channel.
    async fn reached(&self, channel: &str, address: &str) -> Result<Vec<Listed>> {
        let organizations: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT organization_id FROM lanes WHERE id = $1 || ':' || organization_id",
        ).bind(channel).fetch_all(c).await)?;
        let hashes: Vec<Vec<u8>> = organizations
            .iter()
            .map(|id| OrganizationId::parse(id).map(|organization| hash(&organization, address)))
            .collect::<Result<_>>()?;
        let mut listed = Vec::new();
        for some in hashes.chunks(AT_ONCE) {
            let hash = |number: usize| some.get(number).cloned().unwrap_or_default();
            let reached: Vec<Reached> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT DISTINCT organization_id, address FROM messages
                 WHERE address IN ($1, $2, $3, $4, $5, $6, $7, $8) AND channel = $9",
            )
            .bind(hash(0)).bind(hash(1)).bind(hash(2)).bind(hash(3)).bind(hash(4)).bind(hash(5)).bind(hash(6)).bind(hash(7))
            .bind(channel)
            .fetch_all(c).await)?;
            for Reached { organization_id, address: hash } in reached {
                let organization = OrganizationId::parse(&organization_id)?;
                listed.push(self.listed(organization, channel, hash, address).await?);
            }
        }
        Ok(listed)
    }

    async fn listed(
        &self,
        organization: OrganizationId,
        channel: &str,
        hash: Vec<u8>,
        address: &str,
    ) -> Result<Listed> {
        let sealed = suppression::seal(&*self.keys.of(&organization).await?, channel, &hash, address);
        Ok(Listed { organization, channel: channel.to_owned(), hash, sealed })
    }

    /// What was asked last at any of these addresses.
    async fn asked_last(&self, channel: &str, at: &[Listed]) -> Result<Option<Confirms>> {
        let since = (self.clock.now() - ASKED).as_microsecond();
        let mut last: Option<Asked> = None;
        for Listed { hash, .. } in at {
            let asked: Option<Asked> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT m.uid, m.handed_at FROM messages AS m JOIN notifications AS n ON n.id = m.notification_id
                 WHERE m.address = $1 AND m.channel = $2 AND m.handed_at > $3 AND m.cancelled = 0 AND EXISTS
                     (SELECT 1 FROM confirmations AS c WHERE c.notification_id = n.id AND c.recipient_id = m.recipient_id
                         OR c.notification_id = n.confirms_id AND c.recipient_id = n.confirms_recipient)
                 ORDER BY m.handed_at DESC LIMIT 1",
            ).bind(hash).bind(channel).bind(since).fetch_optional(c).await)?;
            let later = |asked: &Asked| last.as_ref().is_none_or(|last| last.handed_at < asked.handed_at);
            last = asked.filter(later).or(last);
        }
        match last.and_then(|asked| asked.uid.try_into().ok()) {
            Some(uid) => self.asked_by(&uid, "reply").await,
            None => Ok(None),
        }
    }

    /// What a message asks its reader to confirm; none if nobody knows the message.
    async fn asked_by(&self, uid: &[u8; 16], how: &'static str) -> Result<Option<Confirms>> {
        match token::owner(&self.store, uid).await {
            Ok((organization, owner)) => Ok(Some(Confirms::of(organization, owner, how))),
            Err(chassis::error::Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Effect {
    /// Writes it.
    pub(crate) async fn write(&self, tx: &mut Tx, provider: &str, now: Timestamp) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Suppress(at, reason) => {
                for listed in at {
                    suppression::list_in(tx, listed, *reason, provider, now).await?;
                }
                Ok(())
            }
            Self::Admit(at) => {
                for listed in at {
                    suppression::admit_in(tx, listed).await?;
                }
                hear(tx, at, now).await
            }
            Self::Hear(at, asked) => {
                hear(tx, at, now).await?;
                confirm_in(tx, asked.as_ref(), now).await
            }
            Self::Confirm(asked) => confirm_in(tx, Some(asked), now).await,
        }
    }
}

/// Whoever wrote by WhatsApp is reached by free text for a while.
async fn hear(tx: &mut Tx, at: &[Listed], now: Timestamp) -> Result<()> {
    for listed in at.iter().filter(|listed| listed.channel == "whatsapp") {
        window::open(tx, &listed.organization, &listed.hash, now).await?;
    }
    Ok(())
}

async fn confirm_in(tx: &mut Tx, asked: Option<&Confirms>, now: Timestamp) -> Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    confirm::acknowledge_in(tx, asked, now).await.map(drop)
}

/// The channel that a provider's report is about, and the address as that channel writes it.
fn place<'a>(provider: &str, address: &'a str) -> (&'static str, &'a str) {
    match (provider, address.strip_prefix("whatsapp:")) {
        ("resend", _) => ("email", address),
        ("slack", _) => ("slack", address),
        ("twilio", None) => ("sms", address),
        (_, Some(number)) => ("whatsapp", number),
        _ => ("whatsapp", address),
    }
}

/// A reply without what stands after its last letter.
fn word(text: &str) -> String {
    text.trim().trim_end_matches(|c: char| !c.is_alphanumeric()).to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_confirms_by_one_word_alone() {
        for yes in ["OK", " ok ", "Yes!", "okay.", "confirmed", "ok 👍"] {
            assert!(YES.contains(&&*word(yes)), "{yes}");
        }
        for no in ["", "not ok", "ok, but who pays?", "no", "👍", "okra"] {
            assert!(!YES.contains(&&*word(no)), "{no}");
        }
    }

    #[test]
    fn a_number_is_reached_by_the_channel_that_it_wrote_on() {
        assert_eq!(place("twilio", "+15005550009"), ("sms", "+15005550009"));
        assert_eq!(place("twilio", "whatsapp:+15005550009"), ("whatsapp", "+15005550009"));
        assert_eq!(place("whatsapp", "+15005550009"), ("whatsapp", "+15005550009"));
        assert_eq!(place("resend", "ada@example.org"), ("email", "ada@example.org"));
        assert_eq!(place("slack", "U1"), ("slack", "U1"));
    }
}
