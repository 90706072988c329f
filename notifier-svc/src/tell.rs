//! Telling people, in seven steps: known, collapsed, who, decide, render, record, wake.
//!
//! Guarantee: what is told of an event is decided once and durable when this returns; sending comes after, and survives
//! a crash. An event that comes again finds what was decided and changes nothing. What is put off is decided anew at its
//! time ([`hold`](crate::hold)), by the same rules.

use std::{hash::BuildHasher as _, sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys},
    store::Store,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::{
    category::MARKETING,
    channel::{Carriage, Channels, Message},
    circumstance::Known,
    collapse::Said,
    config::{Escalation, Failover},
    confirm::Due,
    escalation::{self, UNCONFIRMED},
    fact::{self, Fact},
    inbox::Inbox,
    kept::Kept,
    notification::{self, Beside, NewMessage, NewNotification, Recorded, Route, message_uid},
    policy::{Stage, Urgency},
    preference::Preferences,
    recipient::{Directory, Person},
    resolve::{Fate, Planned, plan},
    room,
    suppression::{Suppressions, hash},
    template::{Templates, Texts, Wording, Wordings},
    token::{self, Purpose},
    variable::{Variables, for_recipient, since},
    workflow::{VendorInstructions, Workflow},
};

/// How often it is decided anew when what was to be withdrawn is being sent meanwhile.
const TRIES: usize = 5;
/// Organizations share so many turns.
const TURNS: usize = 64;

/// What people are to be told.
pub(crate) struct Telling {
    pub(crate) notification: NewNotification,
    pub(crate) workflow: &'static Workflow,
    pub(crate) kept: Kept,
    /// It comes from a table change, not from a domain event.
    pub(crate) is_change: bool,
    /// The step of an escalation that it is, and when the next is.
    pub(crate) escalates: Option<(Due, Timestamp)>,
}

impl Telling {
    /// An RPC asks, not an event: its mistakes are the caller's to see.
    fn is_asked(&self) -> bool {
        !self.notification.request.is_empty()
    }
}

/// A notification that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) id: String,
    /// It stood before.
    pub(crate) duplicate: bool,
}

/// One decides at a time for an organization: what it sees of a person's history holds until it has added to it.
pub(crate) struct Turns {
    turns: Vec<Mutex<()>>,
    hasher: std::hash::RandomState,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turns: (0..TURNS).map(|_| Mutex::default()).collect(), hasher: std::hash::RandomState::new() }
    }
}

impl Turns {
    pub(crate) async fn of(&self, organization: &OrganizationId) -> MutexGuard<'_, ()> {
        let number = self.hasher.hash_one(organization) % TURNS as u64;
        self.turns[usize::try_from(number).unwrap_or(0)].lock().await
    }
}

/// Tells people.
pub(crate) struct Notifier {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
    pub(crate) directory: Directory,
    pub(crate) preferences: Preferences,
    pub(crate) suppressions: Suppressions,
    pub(crate) channels: Arc<Channels>,
    pub(crate) templates: Arc<Templates>,
    pub(crate) wordings: Wordings,
    pub(crate) inbox: Inbox,
    pub(crate) instructions: VendorInstructions,
    pub(crate) public_name: String,
    /// Of an SMS.
    pub(crate) max_segments: usize,
    /// How long a date may still change before people are told.
    pub(crate) settle: Duration,
    /// How long confirmations are waited for.
    pub(crate) escalation: Escalation,
    /// How long a provider may leave a message before another channel has it.
    pub(crate) failover: Failover,
    /// Where people reach the gateway; empty: there are no links.
    pub(crate) public_url: String,
    /// The sender's, for commercial mail.
    pub(crate) postal_address: String,
    pub(crate) turns: Turns,
    /// The outbox waits for it.
    pub(crate) wake: Arc<Notify>,
    /// What waits for a time waits for it too.
    pub(crate) later: Arc<Notify>,
}

impl Notifier {
    /// Tells everybody whom it concerns, or finds that they were told. Durable when it returns.
    ///
    /// # Errors
    /// `Error::AlreadyExists` for another request under the same key; `Error::NotFound` for a person or a wedding that an
    /// RPC names and nobody knows; `Error::Invalid` for variables that the templates can't use; those of the store.
    pub(crate) async fn tell(&self, telling: &Telling) -> Result<Told> {
        if let Some(told) = self.known(telling).await? {
            return Ok(told);
        }
        let _turn = self.turns.of(&telling.notification.organization).await;
        for _ in 0..TRIES {
            match self.resolve(telling).await? {
                Recorded::New(id, changed) => {
                    changed.iter().for_each(|changed| self.inbox.publish(changed));
                    self.wake.notify_one();
                    self.later.notify_one();
                    return Ok(Told { id, duplicate: false });
                }
                Recorded::Known => break,
                Recorded::Moved => {}
            }
        }
        // Another call was faster by a moment, or messages left as fast as we looked.
        let told = self.known(telling).await?;
        told.ok_or_else(|| Error::Unavailable("the notification was not recorded; try again".into()))
    }

    /// Decides, renders and records.
    pub(crate) async fn resolve(&self, telling: &Telling) -> Result<Recorded> {
        let (new, kept) = (&telling.notification, &telling.kept);
        let now = self.clock.now();
        let said = Said {
            organization: &new.organization,
            workflow: &new.workflow,
            key: &new.collapse_key,
            is_change: telling.is_change,
        };
        let told_by = said.told_by(&self.store, now.as_microsecond()).await?;
        let mut people = self.directory.people(&new.organization, kept.named()).await?;
        let fact = fact::of(telling.workflow.name, &kept.variables);
        let known = self.known_of(&new.organization, &people, fact.as_ref(), None).await?;
        known.localize(&mut people);
        let settles = fact.as_ref().and_then(|_| SignedDuration::try_from(self.settle).ok());
        let stage = Stage::First { settles: settles.filter(|wait| wait.is_positive()).map(|wait| now + wait) };
        let wedding_day = self.wedding_day(&new.organization, kept).await?;
        let subject = Subject { asked: &new.workflow, workflow: telling.workflow, priority: new.priority, kept };
        let mut question = subject.question(&people, &known, now, stage, wedding_day);
        question.advertises = !self.postal_address.is_empty();
        (question.told_by, question.news) = (told_by.as_deref(), fact.as_ref().map(|fact| &*fact.new));
        let room = self.room_of(&new.organization, kept, &known.wording.settings).await?;
        question.room = room.as_ref();
        let planned = plan(&question, &self.channels);
        if telling.is_asked() {
            refuse_strangers(&planned)?;
        }
        let key = self.keys.of(&new.organization).await?;
        let message = |planned| self.message(telling, planned, &known, fact.as_ref(), &key, now);
        let messages = planned.iter().map(message).collect::<Result<Vec<_>>>()?;
        let beside = Beside {
            said: &said,
            told_by: told_by.as_deref(),
            kept,
            fact: fact.as_ref(),
            beliefs: &known.beliefs,
            urgent: question.urgency != Urgency::Ordinary,
            asks: escalation::asks(&new.workflow)
                .then(|| escalation::wait(question.urgency, wedding_day, &self.escalation)),
            escalates: telling.escalates.as_ref().map(|(due, next)| (due, *next)),
        };
        notification::record(&self.store, &self.keys, new, &messages, &beside, now).await
    }

    async fn known(&self, telling: &Telling) -> Result<Option<Told>> {
        let new = &telling.notification;
        // An idempotency key stands for one request, whatever workflow that names.
        let workflow = if telling.is_asked() { "" } else { &new.workflow };
        let known = notification::known(&self.store, &new.organization, &new.event_uid, workflow).await?;
        match known {
            Some(known) if known.request != new.request || telling.is_asked() && known.workflow != new.workflow => {
                Err(Error::AlreadyExists("this idempotency key stands for another request".into()))
            }
            Some(known) => Ok(Some(Told { id: known.id, duplicate: true })),
            None => Ok(None),
        }
    }

    fn message(
        &self,
        telling: &Telling,
        planned: &Planned<'_>,
        known: &Known,
        fact: Option<&Fact>,
        key: &DataKey,
        now: Timestamp,
    ) -> Result<NewMessage> {
        let new = &telling.notification;
        let (person, channel) = (planned.person, &planned.channel);
        let uid = message_uid(&new.organization, &new.event_uid, &new.workflow, &person.id, channel);
        let (mut hold, mut carried_by) = (None, None);
        let (route, reason, content) = match &planned.fate {
            Fate::Skip(reason) => (Route::Skipped, reason.clone(), Bytes::new()),
            Fate::InRoom(reason) => {
                let room = room::id_of(telling.kept.wedding.as_deref().unwrap_or_default());
                carried_by = Some(message_uid(&new.organization, &new.event_uid, &new.workflow, &room, channel));
                (Route::Carried, reason.clone(), Bytes::new())
            }
            Fate::Hold { until, how, reason } => {
                hold = Some((*until, *how));
                (Route::Held, reason.clone(), Bytes::new())
            }
            Fate::Send(reason) => {
                let variables = known.variables(&telling.kept.variables, person, channel, fact);
                let text = Text {
                    workflow: telling.workflow,
                    wording: &known.wording,
                    asked: &new.workflow,
                    category: telling.kept.category(&new.workflow),
                    variables: &variables,
                    person,
                    channel,
                    uid,
                };
                match self.render(&text, key, now) {
                    Ok((route, content)) => (route, reason.clone(), content),
                    Err(error) if telling.is_asked() => return Err(Error::invalid("variables", error)),
                    Err(error) => {
                        tracing::error!(
                            workflow = new.workflow,
                            channel,
                            error,
                            "a text can't be made; nobody is told by it"
                        );
                        (Route::Skipped, format!("{reason}, but the text can't be made: {error}"), Bytes::new())
                    }
                }
            }
        };
        count(channel, route);
        let address = self.address(&new.organization, person, channel);
        let (recipient, channel, trail) = (person.id.clone(), channel.clone(), planned.trail.clone());
        Ok(NewMessage { uid, recipient, channel, route, reason, content, trail, address, hold, carried_by })
    }

    /// The hash of where a message goes.
    pub(crate) fn address(&self, organization: &OrganizationId, person: &Person, channel: &str) -> Option<Vec<u8>> {
        let address = self.channels.address(channel, person.recipient.as_ref()?).ok()?;
        Some(hash(organization, &address))
    }

    /// A message as it is carried, and how.
    pub(crate) fn render(&self, text: &Text<'_>, key: &DataKey, now: Timestamp) -> Result<(Route, Bytes), String> {
        let channel = self.channels.get(text.channel).ok_or("the channel is not set up here")?;
        let recipient = text.person.recipient.as_ref().ok_or("not in the directory")?;
        let mut variables = self.own(text.variables, text.person);
        self.links(&mut variables, text, key, now);
        let texts = Texts::new(&self.templates, text.wording, text.workflow, &recipient.locale);
        let message = Message {
            uid: text.uid,
            workflow: text.workflow,
            texts: &texts,
            variables: &variables,
            recipient,
            at: now,
        };
        let content = channel.render(&message).map_err(|error| error.to_string())?;
        let route = match channel.carriage() {
            Carriage::Record => Route::Record,
            Carriage::Carry(_) => Route::Lane,
        };
        Ok((route, content))
    }

    /// The links of a message that its reader may follow, where the gateway's address is known.
    fn links(&self, variables: &mut Variables, text: &Text<'_>, key: &DataKey, now: Timestamp) {
        let link = |purpose: Purpose, path: &str| {
            let token = token::sign(key, purpose, &text.uid, now);
            format!("{}/{path}/{token}", self.public_url.trim_end_matches('/'))
        };
        // Only ours: what an event calls by these names isn't a link.
        variables.extend(["acknowledge_url", "unsubscribe_url"].map(|name| (name.to_owned(), Value::Null)));
        let has_links = !self.public_url.is_empty();
        if has_links && (escalation::asks(text.asked) || text.asked == UNCONFIRMED) {
            variables.insert("acknowledge_url".to_owned(), link(Purpose::Acknowledge, "acknowledge").into());
        }
        if text.category == MARKETING {
            variables.insert("postal_address".to_owned(), self.postal_address.clone().into());
        }
        if has_links && text.category == MARKETING {
            variables.insert("unsubscribe_url".to_owned(), link(Purpose::Unsubscribe, "unsubscribe").into());
        }
    }

    /// The variables as one person reads them.
    pub(crate) fn own(&self, variables: &Variables, person: &Person) -> Variables {
        let Some(recipient) = &person.recipient else { return variables.clone() };
        for_recipient(variables, recipient, &person.vendor_types, &self.instructions, &self.public_name)
    }
}

pub(crate) fn count(channel: &str, route: Route) {
    let fate = match route {
        Route::Skipped => "skipped",
        Route::Held => "held",
        Route::Carried => "gathered",
        Route::Lane | Route::Record => "told",
    };
    metrics::counter!("notifier_messages_total", "channel" => channel.to_owned(), "fate" => fate).increment(1);
}

/// A message that is to be rendered.
pub(crate) struct Text<'a> {
    pub(crate) workflow: &'a Workflow,
    pub(crate) wording: &'a Wording,
    /// The name that was asked for, and its category.
    pub(crate) asked: &'a str,
    pub(crate) category: &'a str,
    pub(crate) variables: &'a Variables,
    pub(crate) person: &'a Person,
    pub(crate) channel: &'a str,
    pub(crate) uid: [u8; 16],
}

/// What it is about, of the things that are asked of `resolve`.
pub(crate) struct Subject<'a> {
    /// The name that was asked for.
    pub(crate) asked: &'a str,
    pub(crate) workflow: &'a Workflow,
    pub(crate) priority: i64,
    pub(crate) kept: &'a Kept,
}

impl Known {
    /// The variables as they are told to one person on one channel: a fact changes from what they know.
    pub(crate) fn variables(
        &self,
        variables: &Variables,
        person: &Person,
        channel: &str,
        fact: Option<&Fact>,
    ) -> Variables {
        let belief = fact.and_then(|_| self.beliefs.get(&person.id)?.get(channel)?.value.as_deref());
        belief.map_or_else(|| variables.clone(), |value| since(variables, value))
    }
}

/// An RPC that names somebody who isn't there, or a wedding without people, has told nobody and should hear so.
fn refuse_strangers(planned: &[Planned<'_>]) -> Result<()> {
    // A wedding may list vendors that the directory doesn't know yet: they must not keep the others from being told.
    let stranger = planned.iter().find(|planned| planned.person.relation.chosen && planned.person.recipient.is_none());
    match stranger {
        Some(planned) => Err(Error::NotFound(format!("recipient {}", planned.person.id).into())),
        None if planned.is_empty() => Err(Error::NotFound("a recipient of the wedding".into())),
        None => Ok(()),
    }
}
