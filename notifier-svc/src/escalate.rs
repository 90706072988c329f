//! What is done when somebody doesn't confirm: the next step, taken in the transaction that notes it.
//!
//! Whoever stands in is told by the same rules as everybody: their wishes, the lists, the limit. What isn't urgent waits
//! for the end of the quiet hours of whom it is for.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use chassis::{
    error::Result,
    id::{OrganizationId, uuid_text},
    store::Tx,
    with,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    circumstance::Known,
    confirm::{self, Due},
    escalation::{LADDER, Left, Step, UNCONFIRMED, next},
    fact::{self, Change, Fact},
    failover,
    kept::{self, Kept, Waiting},
    limit,
    notification::{
        NewMessage, NewNotification, Recorded, Route, content_place, digest, insert_or_revive, message_uid, notice,
    },
    policy::{Urgency, room_at},
    recipient::{Kind, Person},
    suppression::Reason,
    tell::{Notifier, Telling, Text, count},
    template::Texts,
    variable::{complete, since},
    workflow::find,
};

/// Confirmations in one pass.
const PAGE: i64 = 100;
/// The priority that makes anything urgent.
const CRITICAL: i64 = 1;

impl Notifier {
    /// Takes the next step wherever one is due; gives when the next one is.
    ///
    /// # Errors
    /// Those of the store; one person's failure holds up nobody else.
    pub(crate) async fn escalate(&self) -> Result<Option<Timestamp>> {
        loop {
            let due = confirm::due(&self.store, self.clock.now(), PAGE).await?;
            if due.is_empty() {
                return confirm::next_due(&self.store).await;
            }
            let mut failed = None;
            for due in &due {
                failed = self.step(due).await.err().or(failed);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    async fn step(&self, due: &Due) -> Result<()> {
        let organization = OrganizationId::parse(&due.organization_id)?;
        let _turn = self.turns.of(&organization).await;
        let now = self.clock.now();
        let waiting = kept::read(&self.store, &self.keys, &due.notification_id).await?;
        let people = self.directory.people(&organization, waiting.kept.named()).await?;
        let urgency = waiting.kept.urgency(&waiting.asked, waiting.priority);
        let Some(person) = people.iter().find(|person| person.id == due.recipient_id && person.recipient.is_some())
        else {
            return self.end(due, "they left").await;
        };
        if let Some(until) = confirm::news_waits(&self.store, due).await?.filter(|until| *until > now) {
            return confirm::put_off(&self.store, due, until).await;
        }
        if urgency == Urgency::Ordinary
            && let Some(until) = self.quiet_until(&organization, person, now).await?
        {
            return confirm::put_off(&self.store, due, until).await;
        }
        let left = self.left(&waiting, person, &people, urgency).await?;
        match next(&person.id, &left) {
            Step::Channel(channel) => {
                let told = limit::told(&self.store, &organization, &person.id, now).await?;
                if let Some(room) = room_at(&told, now).filter(|_| urgency == Urgency::Ordinary) {
                    return confirm::put_off(&self.store, due, room).await;
                }
                self.by_channel(&Because::Unconfirmed(due), &waiting, person, &channel, now).await
            }
            Step::Person(id) => self.by_person(due, &waiting, person, &id, urgency, now).await,
            Step::End => self.end(due, "nobody is left to tell").await,
        }
    }

    async fn end(&self, due: &Due, why: &str) -> Result<()> {
        let mut tx = self.store.begin().await?;
        confirm::advance(&mut tx, due, None, why).await?;
        tracing::warn!(
            notification.id = due.notification_id,
            why,
            "a message is not confirmed, and nobody else is told"
        );
        tx.commit().await
    }

    pub(crate) async fn quiet_until(
        &self,
        organization: &OrganizationId,
        person: &Person,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let preference = self.preferences.get(organization, &person.id).await?;
        let directory = person.recipient.as_ref().map_or("", |recipient| &recipient.time_zone);
        let wording = self.wordings.of(organization).await?;
        let zone = preference.zone(directory, &wording.settings.time_zone);
        Ok(preference.quiet.and_then(|quiet| quiet.ends(now, &zone)))
    }

    /// What can still be done for a person.
    pub(crate) async fn left(
        &self,
        waiting: &Waiting,
        person: &Person,
        people: &[Person],
        urgency: Urgency,
    ) -> Result<Left> {
        let organization = &waiting.organization;
        let used: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT channel FROM messages WHERE notification_id = $1 AND recipient_id = $2 AND fate <> 2 ORDER BY channel",
        ).bind(&waiting.id).bind(&person.id).fetch_all(c).await)?;
        let asked: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT DISTINCT m.recipient_id FROM messages AS m JOIN notifications AS n ON n.id = m.notification_id
             WHERE n.confirms_id = $1 AND n.confirms_recipient = $2",
        ).bind(&waiting.id).bind(&person.id).fetch_all(c).await)?;
        let addresses = self.addresses(person, &HashSet::new());
        let suppressed = self.suppressions.among(organization, &addresses).await?;
        let open = |channel: &str| match suppressed.get(channel) {
            Some(reason) => Reason::yields_to_emergency(*reason) && urgency == Urgency::Emergency,
            None => channel == "in_app" || addresses.contains_key(channel),
        };
        let kind = |person: &&Person| person.recipient.as_ref().is_some_and(|known| known.kind == Kind::Planner);
        let mut planners: Vec<String> = people.iter().filter(kind).map(|person| person.id.clone()).collect();
        if planners.is_empty()
            && let Some(wedding) = waiting.kept.wedding.as_deref()
        {
            planners = self.planners(organization, wedding).await?;
        }
        Ok(Left {
            urgency: Some(urgency),
            reachable: LADDER.iter().filter(|name| open(name)).map(|name| (*name).to_owned()).collect(),
            used,
            contacts: self.preferences.get(organization, &person.id).await?.contacts,
            planners,
            asked,
        })
    }

    async fn planners(&self, organization: &OrganizationId, wedding: &str) -> Result<Vec<String>> {
        let ids = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT DISTINCT r.id FROM recipients AS r JOIN wedding_recipients AS w
                 ON w.organization_id = r.organization_id AND w.recipient_id = r.id
             WHERE r.organization_id = $1 AND w.wedding_id = $2 AND r.kind = $3 ORDER BY r.id LIMIT 20",
        ).bind(organization.as_str()).bind(wedding).bind(Kind::Planner as i64).fetch_all(c).await)?;
        Ok(ids)
    }

    /// From what a fact changes for somebody on another channel: what they know there, else what they knew on the one that
    /// told them, else as it was said.
    async fn before(
        &self,
        known: &Known,
        waiting: &Waiting,
        person: &Person,
        channel: &str,
        fact: &Fact,
    ) -> Result<Option<String>> {
        let belief = known.beliefs.get(&person.id).and_then(|beliefs| beliefs.get(channel)?.value.clone());
        if let Some(value) = belief.filter(|value| *value != fact.new) {
            return Ok(Some(value));
        }
        let told = fact::before(&self.store, &waiting.id, &person.id, &fact.key).await?;
        Ok(told.or_else(|| fact.old.clone()))
    }

    /// Tells the same person on another channel.
    pub(crate) async fn by_channel(
        &self,
        because: &Because<'_>,
        waiting: &Waiting,
        person: &Person,
        channel: &str,
        now: Timestamp,
    ) -> Result<()> {
        let organization = &waiting.organization;
        let uid = message_uid(organization, &waiting.event_uid, &waiting.asked, &person.id, channel);
        let fact = fact::of(waiting.workflow.name, &waiting.kept.variables);
        let people = std::slice::from_ref(person);
        let known = self.known_of(organization, people, fact.as_ref(), None).await?;
        let mut people = [person.clone()];
        known.localize(&mut people);
        let [person] = &people;
        let before = match &fact {
            Some(fact) => self.before(&known, waiting, person, channel, fact).await?,
            None => None,
        };
        let variables = before
            .as_deref()
            .map_or_else(|| waiting.kept.variables.clone(), |before| since(&waiting.kept.variables, before));
        let key = self.keys.of(organization).await?;
        let text = Text {
            workflow: waiting.workflow,
            wording: &known.wording,
            asked: &waiting.asked,
            category: waiting.kept.category(&waiting.asked),
            variables: &variables,
            person,
            channel,
            uid,
        };
        let (route, reason, content) = match self.render(&text, &key, now) {
            Ok((route, content)) => (route, because.words(), content),
            Err(error) => {
                (Route::Skipped, format!("{}, but the text can't be made: {error}", because.words()), Bytes::new())
            }
        };
        if route == Route::Skipped
            && let Because::Stalled { uid, .. } = because
        {
            // Late is better than not at all.
            return failover::look_again(&self.store, uid, Timestamp::MAX).await;
        }
        count(channel, route);
        let message = NewMessage {
            uid,
            recipient: person.id.clone(),
            channel: channel.to_owned(),
            route,
            trail: vec![reason.clone()],
            reason,
            content,
            address: self.address(organization, person, channel),
            hold: None,
            carried_by: None,
        };
        let sealed = (route == Route::Lane).then(|| key.seal(&content_place(&uid), &message.content));
        let new = as_new(waiting);
        let mut tx = self.store.begin().await?;
        if !because.settle(&mut tx, now).await? {
            return Ok(());
        }
        insert_or_revive(&mut tx, &waiting.id, &new, &message, sealed, now).await?;
        if let Some(fact) = &fact {
            // Where it moves on before this is sent, this is withdrawn.
            let change = Change { uid: &uid, fact, before: before.as_deref() };
            fact::note(&mut tx, organization, &person.id, channel, &change, now.as_microsecond()).await?;
        }
        let notice = match route {
            Route::Record => Some(notice(&mut tx, &key, &new, &message, now).await?),
            _ => None,
        };
        limit::note(&mut tx, organization, &person.id, &waiting.id, now).await?;
        tx.commit().await?;
        notice.iter().for_each(|changed| self.inbox.publish(changed));
        self.wake.notify_one();
        Ok(())
    }

    /// Tells somebody else that it isn't confirmed.
    async fn by_person(
        &self,
        due: &Due,
        waiting: &Waiting,
        person: &Person,
        other: &str,
        urgency: Urgency,
        now: Timestamp,
    ) -> Result<()> {
        let own = self.own(&waiting.kept.variables, person);
        let wording = self.wordings.of(&waiting.organization).await?;
        let texts = Texts::new(&self.templates, &wording, waiting.workflow, "");
        let line = |part: &str| texts.line(part, &own).unwrap_or_default();
        let name = person.recipient.as_ref().map_or(&*person.id, |recipient| &recipient.name);
        let variables = json!({
            "headline": format!("{name} has not confirmed"),
            "wedding_id": waiting.kept.wedding,
            "details": [{ "name": line("in_app.title"), "value": line("in_app.body") }],
        });
        let workflow = find(UNCONFIRMED);
        let uid = uuid_text(digest(&[UNCONFIRMED, &waiting.id, &person.id, other]));
        let telling = Telling {
            notification: NewNotification {
                workflow: UNCONFIRMED.to_owned(),
                event_id: waiting.event_id.clone(),
                event_uid: uid,
                confirms: Some((waiting.id.clone(), person.id.clone())),
                // The lane, the last look and the failover see by it that it is urgent.
                priority: if urgency == Urgency::Ordinary { waiting.priority } else { CRITICAL },
                ..as_new(waiting)
            },
            workflow,
            kept: Kept {
                variables: complete(workflow, UNCONFIRMED, variables.as_object().cloned().unwrap_or_default()),
                chosen: vec![other.to_owned()],
                category: waiting.kept.category(&waiting.asked).to_owned(),
                ..Kept::default()
            },
            is_change: false,
            escalates: Some((due.clone(), after(now, due))),
        };
        match self.resolve(&telling).await? {
            Recorded::New(_, changed) => {
                changed.iter().for_each(|changed| self.inbox.publish(changed));
                self.wake.notify_one();
                self.later.notify_one();
                Ok(())
            }
            // Confirmed meanwhile.
            Recorded::Moved => Ok(()),
            Recorded::Known => self.end(due, "who comes next was told before").await,
        }
    }
}

/// Why another channel is used.
pub(crate) enum Because<'a> {
    Unconfirmed(&'a Due),
    /// The message of this uid, on this channel, was refused for good.
    Failed {
        uid: &'a [u8; 16],
        channel: &'a str,
    },
    /// The message of this uid, on this channel, has waited too long for its provider: it is withdrawn.
    Stalled {
        uid: &'a [u8; 16],
        channel: &'a str,
    },
}

impl Because<'_> {
    fn words(&self) -> String {
        match self {
            Self::Unconfirmed(_) => "not confirmed: the next channel".to_owned(),
            Self::Failed { channel, .. } => format!("{channel} failed: the next channel"),
            Self::Stalled { channel, .. } => format!("{channel} can't be reached: the next channel"),
        }
    }

    /// Notes that it is done; false if it was done, or is moot, already.
    async fn settle(&self, tx: &mut Tx, now: Timestamp) -> Result<bool> {
        match self {
            Self::Unconfirmed(due) => confirm::advance(tx, due, Some(after(now, due)), "").await,
            Self::Failed { uid, .. } => {
                let settled = with!(tx.on(), c => sqlx::query(
                    "UPDATE messages SET failed_at = NULL WHERE uid = $1 AND failed_at IS NOT NULL",
                ).bind(&uid[..]).execute(c).await.map(|done| done.rows_affected()))?;
                Ok(settled > 0)
            }
            Self::Stalled { uid, .. } => failover::withdraw(tx, uid).await,
        }
    }
}

fn after(now: Timestamp, due: &Due) -> Timestamp {
    let wait = Duration::from_micros(u64::try_from(due.wait).unwrap_or(0)).max(Duration::from_secs(1));
    now.checked_add(SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX)
}

pub(crate) fn as_new(waiting: &Waiting) -> NewNotification {
    NewNotification {
        organization: waiting.organization.clone(),
        workflow: waiting.asked.clone(),
        event_id: waiting.event_id.clone(),
        event_uid: waiting.event_uid.clone(),
        priority: waiting.priority,
        collapse_key: String::new(),
        request: Vec::new(),
        override_by: String::new(),
        override_reason: String::new(),
        confirms: None,
    }
}
