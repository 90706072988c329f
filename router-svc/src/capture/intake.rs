//! Hands changes to the publisher, one after the other, and follows them until they are durable. Many are under way at
//! once; what ends is reported in the order in which it came.
//!
//! A change that the router refuses for good is kept as a refusal, and counts as done once that is stored. One that it
//! can't take now ends the session: nothing after it gets into the log, and the source is read again from before it.

use std::sync::{Mutex, PoisonError};

use chassis::error::Error;
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesOrdered,
};
use jiff::Timestamp;

use super::{
    CaptureError,
    pgoutput::Relation,
    position::Lsn,
    row::{Fault, Owned},
    state::{Refusal, State},
};
use crate::{
    event::{Change, Event, Metadata, Origin, Payload},
    event_type::EventType,
    log::Order,
    publish::{By, Publisher},
};

/// Changes that may be under way.
pub(super) const WINDOW: usize = 1_024;
/// Times that a change may fail by an error of ours before it is refused: a store that is broken mends, a change that
/// breaks the store doesn't.
const FAILURES_MAX: u32 = 10;

/// What has become of what was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Change,
    /// Everything up to here is durable; `committed_at` tells how late that is.
    Through {
        end: Lsn,
        committed_at: Option<Timestamp>,
    },
}

/// A change with what its event is called.
pub(super) struct Captured<'a> {
    pub(super) id: String,
    pub(super) at: Timestamp,
    pub(super) origin: Origin,
    pub(super) relation: &'a Relation,
    pub(super) operation: &'static str,
    pub(super) key: String,
    pub(super) owned: std::result::Result<Vec<Owned>, Fault>,
}

/// The change that failed last by an error of ours, and how often; outlives a session.
pub(super) type Failing = Mutex<Option<(String, u32)>>;

/// How a change that was handed in ended, before its refusal is stored.
pub(super) enum Outcome {
    Done(Done),
    Refused(Box<Refusal>, Error),
}

pub(super) struct Intake<'s> {
    label: String,
    publisher: &'s Publisher,
    state: &'s State,
    failing: &'s Failing,
    order: Order,
    /// Waits for the log alone: nothing in here may hold what others need while nobody polls it.
    under_way: FuturesOrdered<BoxFuture<'static, Outcome>>,
}

impl<'s> Intake<'s> {
    pub(super) fn new(label: String, publisher: &'s Publisher, state: &'s State, failing: &'s Failing) -> Self {
        Self { label, publisher, state, failing, order: Order::default(), under_way: FuturesOrdered::new() }
    }

    pub(super) fn has_room(&self) -> bool {
        self.under_way.len() < WINDOW
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The next thing that ended, in order; none while nothing is under way. May be given up and called again.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        self.under_way.next().await
    }

    /// What that means, once a refusal is stored.
    pub(super) async fn settle(&mut self, outcome: Outcome) -> Result<Done, CaptureError> {
        match outcome {
            Outcome::Done(done) => Ok(done),
            Outcome::Refused(refusal, error) if self.gives_up(&refusal, &error) => {
                self.state.refuse(&refusal, &error.to_string()).await?;
                Ok(Done::Change)
            }
            Outcome::Refused(_, error) => Err(error.into()),
        }
    }

    /// Waits until everything is durable, or until there is room again.
    pub(super) async fn drain(&mut self, to: usize) -> Result<(), CaptureError> {
        while self.under_way.len() > to
            && let Some(outcome) = self.next().await
        {
            self.settle(outcome).await?;
        }
        Ok(())
    }

    /// Everything before is durable once this is reported.
    pub(super) fn mark(&mut self, end: Lsn, committed_at: Option<Timestamp>) {
        let through = Outcome::Done(Done::Through { end, committed_at });
        self.under_way.push_back(std::future::ready(through).boxed());
    }

    /// Takes a change in.
    pub(super) async fn change(&mut self, captured: Captured<'_>) -> Result<(), CaptureError> {
        let Captured { id, at, origin, relation, operation, key, owned } = captured;
        let refusal =
            Refusal { event_id: id.clone(), table: format!("{}.{}", relation.schema, relation.table), operation, key };
        let owned = match owned {
            Ok(owned) => owned,
            Err(fault) => {
                return self.refuse(refusal, &fault.to_string()).await;
            }
        };
        for Owned { organization, operation, old, new } in owned {
            let (schema, table) = (relation.schema.clone(), relation.table.clone());
            let event = Event {
                organization,
                id: id.clone(),
                type_: EventType::of_change(&table, operation.as_str()),
                payload: Payload::Change(Change { schema, table, operation, old, new }),
                ..self.blank(at, origin)
            };
            self.publish(event, refusal.clone()).await?;
        }
        Ok(())
    }

    /// An event of this source that says nothing yet.
    pub(super) fn blank(&self, time: Timestamp, origin: Origin) -> Event {
        Event {
            organization: chassis::id::OrganizationId::parse("nobody").expect("it is well formed"),
            id: String::new(),
            uid: String::new(),
            type_: EventType::of_change("capture", "event"),
            source: self.label.clone(),
            subject: String::new(),
            time,
            ordering_key: String::new(),
            channels: Vec::new(),
            payload: Payload::Content { content_type: String::new(), data: bytes::Bytes::new() },
            metadata: Metadata { origin, ..Metadata::default() },
            lowered: false,
        }
    }

    /// Publishes one event behind the others.
    pub(super) async fn publish(&mut self, event: Event, refusal: Refusal) -> Result<(), CaptureError> {
        if failed_for_good(self.failing, &refusal.event_id) {
            return self.refuse(refusal, "the router failed on it again and again").await;
        }
        let taken = match event.check() {
            Ok(event) => self.publisher.publish_in(event, By::Manager, Some(&self.order)).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(promise) => {
                let counter = metrics::counter!("capture_events_total", "source" => self.state.source.clone());
                let ended = promise.map(move |ended| match ended {
                    Ok(_) => {
                        counter.increment(1);
                        Outcome::Done(Done::Change)
                    }
                    Err(error) => Outcome::Refused(refusal.into(), error),
                });
                self.under_way.push_back(ended.boxed());
                Ok(())
            }
            Err(error) if self.gives_up(&refusal, &error) => self.refuse(refusal, &error.to_string()).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a change that can't become an event.
    pub(super) async fn refuse(&mut self, refusal: Refusal, reason: &str) -> Result<(), CaptureError> {
        Ok(self.state.refuse(&refusal, reason).await?)
    }

    /// Whether a change that wasn't taken never will be. An error of ours is counted: it may pass.
    fn gives_up(&self, refusal: &Refusal, error: &Error) -> bool {
        if matches!(error, Error::Internal(_)) {
            fails_again(self.failing, &refusal.event_id);
            return false;
        }
        !error.is_retryable()
    }
}

fn fails_again(failing: &Failing, id: &str) {
    let mut failing = failing.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *failing {
        Some((failed, times)) if failed == id => *times += 1,
        other => *other = Some((id.to_owned(), 1)),
    }
}

fn failed_for_good(failing: &Failing, id: &str) -> bool {
    let failing = failing.lock().unwrap_or_else(PoisonError::into_inner);
    failing.as_ref().is_some_and(|(failed, times)| failed == id && *times >= FAILURES_MAX)
}
