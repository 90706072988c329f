//! Telling people, in seven steps: known, collapsed, who, decide, render, record, wake.
//!
//! Guarantee: what is told of an event is decided once and durable when this returns; sending comes after, and survives
//! a crash. An event that comes again finds what was decided and changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use chassis::{
    clock::Clock,
    error::{Error, Result},
    secret::DataKeys,
    store::Store,
};
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::{
    channel::{Carriage, Channels, Message},
    collapse::Said,
    inbox::Inbox,
    notification::{self, NewMessage, NewNotification, Route, message_uid},
    recipient::{Directory, Named},
    resolve::{Fate, Planned, Question, plan},
    variable::{Variables, for_recipient},
    workflow::{VendorInstructions, Workflow},
};

/// What people are to be told.
pub(crate) struct Telling<'a> {
    pub(crate) notification: NewNotification,
    pub(crate) workflow: &'static Workflow,
    pub(crate) variables: Variables,
    /// Channels that are offered; empty: the person chooses.
    pub(crate) offered: &'a [String],
    pub(crate) named: Named<'a>,
    /// It comes from a table change, not from a domain event.
    pub(crate) is_change: bool,
}

impl Telling<'_> {
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

/// Tells people.
pub(crate) struct Notifier {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
    pub(crate) directory: Directory,
    pub(crate) channels: Arc<Channels>,
    pub(crate) inbox: Inbox,
    pub(crate) instructions: VendorInstructions,
    pub(crate) public_name: String,
    /// The outbox waits for it.
    pub(crate) wake: Arc<Notify>,
}

impl Notifier {
    /// Tells everybody whom it concerns, or finds that they were told. Durable when it returns.
    ///
    /// # Errors
    /// `Error::AlreadyExists` for another request under the same key; `Error::NotFound` for a person or a wedding that an
    /// RPC names and nobody knows; `Error::Invalid` for variables that the templates can't use; those of the store.
    pub(crate) async fn tell(&self, telling: &Telling<'_>) -> Result<Told> {
        if let Some(told) = self.known(telling).await? {
            return Ok(told);
        }
        let new = &telling.notification;
        let now = self.clock.now();
        let said = Said {
            organization: &new.organization,
            workflow: &new.workflow,
            key: &new.collapse_key,
            is_change: telling.is_change,
        };
        let told_by = said.told_by(&self.store, now.as_microsecond()).await?;
        let people = self.directory.people(&new.organization, telling.named).await?;
        let question = Question {
            workflow: telling.workflow,
            offered: telling.offered,
            people: &people,
            chosen: !telling.named.chosen.is_empty(),
            told_by: told_by.as_deref(),
        };
        let planned = plan(&question, &self.channels);
        if telling.is_asked() {
            refuse_strangers(&planned)?;
        }
        let messages = planned.iter().map(|planned| self.message(telling, planned, now)).collect::<Result<Vec<_>>>()?;
        let recorded =
            notification::record(&self.store, &self.keys, new, &messages, told_by.as_deref(), &said, now).await?;
        let Some((id, changed)) = recorded else {
            // Another call was faster by a moment.
            let told = self.known(telling).await?;
            return told.ok_or_else(|| Error::Unavailable("the notification was not recorded; try again".into()));
        };
        changed.iter().for_each(|changed| self.inbox.publish(changed));
        self.wake.notify_one();
        Ok(Told { id, duplicate: false })
    }

    async fn known(&self, telling: &Telling<'_>) -> Result<Option<Told>> {
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

    fn message(&self, telling: &Telling<'_>, planned: &Planned<'_>, now: Timestamp) -> Result<NewMessage> {
        let new = &telling.notification;
        let uid = message_uid(&new.organization, &new.event_uid, &new.workflow, &planned.person.id, &planned.channel);
        let (route, reason, content) = match &planned.fate {
            Fate::Skip(reason) => (Route::Skipped, reason.clone(), Bytes::new()),
            Fate::Send(reason) => match self.render(telling, planned, uid, now) {
                Ok((route, content)) => (route, reason.clone(), content),
                Err(error) if telling.is_asked() => return Err(Error::invalid("variables", error)),
                Err(error) => {
                    tracing::error!(
                        workflow = new.workflow,
                        channel = planned.channel,
                        error,
                        "a text can't be made; nobody is told by it"
                    );
                    (Route::Skipped, format!("{reason}, but the text can't be made: {error}"), Bytes::new())
                }
            },
        };
        let fate = if route == Route::Skipped { "skipped" } else { "told" };
        metrics::counter!("notifier_messages_total", "channel" => planned.channel.clone(), "fate" => fate).increment(1);
        Ok(NewMessage {
            uid,
            recipient: planned.person.id.clone(),
            channel: planned.channel.clone(),
            route,
            reason,
            content,
        })
    }

    fn render(
        &self,
        telling: &Telling<'_>,
        planned: &Planned<'_>,
        uid: [u8; 16],
        now: Timestamp,
    ) -> Result<(Route, Bytes), String> {
        let channel = self.channels.get(&planned.channel).ok_or("the channel is not set up here")?;
        let recipient = planned.person.recipient.as_ref().ok_or("not in the directory")?;
        let vendor_types = &planned.person.vendor_types;
        let variables =
            for_recipient(&telling.variables, recipient, vendor_types, &self.instructions, &self.public_name);
        let message = Message { uid, workflow: telling.workflow, variables: &variables, recipient, at: now };
        let content = channel.render(&message).map_err(|error| error.to_string())?;
        let route = match channel.carriage() {
            Carriage::Record => Route::Record,
            Carriage::Carry(_) => Route::Lane,
        };
        Ok((route, content))
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
