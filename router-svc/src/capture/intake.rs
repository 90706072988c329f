//! Hands changes to the publisher, one after the other, and follows them until they are durable. Many are under way at
//! once; what ends is reported in the order in which it came.
//!
//! A change that the router refuses for good is kept as a refusal, and counts as done once that is stored. One that it
//! can't take now ends the session: nothing after it gets into the log, and the source is read again from before it.

use std::sync::Mutex;

use chassis::error::{Error, Result};
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
    publish::Publisher,
};

/// Changes that may be under way.
const WINDOW: usize = 1_024;
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

pub(super) struct Intake<'s> {
    label: String,
    publisher: &'s Publisher,
    state: &'s State,
    failing: &'s Failing,
    order: Order,
    under_way: FuturesOrdered<BoxFuture<'s, Result<Done>>>,
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

    /// The next thing that is done, in order; none while nothing is under way.
    pub(super) async fn done(&mut self) -> Result<Option<Done>, CaptureError> {
        Ok(self.under_way.next().await.transpose()?)
    }

    /// Waits until everything is durable.
    pub(super) async fn finish(&mut self) -> Result<(), CaptureError> {
        while self.done().await?.is_some() {}
        Ok(())
    }

    /// Everything before is durable once this is reported.
    pub(super) fn mark(&mut self, end: Lsn, committed_at: Option<Timestamp>) {
        self.under_way.push_back(std::future::ready(Ok(Done::Through { end, committed_at })).boxed());
    }

    /// Takes a change in.
    pub(super) async fn change(&mut self, captured: Captured<'_>) -> Result<(), CaptureError> {
        let Captured { id, at, origin, relation, operation, key, owned } = captured;
        let refusal =
            Refusal { event_id: id.clone(), table: format!("{}.{}", relation.schema, relation.table), operation, key };
        let owned = match owned {
            Ok(owned) => owned,
            Err(fault) => {
                self.refuse(refusal, fault.to_string());
                return Ok(());
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
        let taken = match event.check() {
            Ok(event) => self.publisher.publish_in(event, Some(&self.order)).await,
            Err(error) => Err(error),
        };
        let (state, failing) = (self.state, self.failing);
        match taken {
            Ok(promise) => {
                let settled = async move {
                    match promise.await {
                        Ok(_) => {
                            metrics::counter!("capture_events_total", "source" => state.source.clone()).increment(1);
                            Ok(Done::Change)
                        }
                        Err(error) => settle(state, failing, refusal, error).await,
                    }
                };
                self.under_way.push_back(settled.boxed());
            }
            Err(error) => {
                if !is_final(&error) {
                    self.order.break_off();
                }
                self.under_way.push_back(settle(state, failing, refusal, error).boxed());
            }
        }
        Ok(())
    }

    /// Keeps a change that can't become an event.
    pub(super) fn refuse(&mut self, refusal: Refusal, reason: String) {
        let state = self.state;
        let kept = async move { state.refuse(&refusal, &reason).await.map(|()| Done::Change) };
        self.under_way.push_back(kept.boxed());
    }
}

/// What becomes of a change that wasn't taken.
async fn settle(state: &State, failing: &Failing, refusal: Refusal, error: Error) -> Result<Done> {
    let gives_up = match &error {
        Error::Internal(_) => fails_again(failing, &refusal.event_id) >= FAILURES_MAX,
        error => is_final(error),
    };
    if !gives_up {
        return Err(error);
    }
    state.refuse(&refusal, &error.to_string()).await.map(|()| Done::Change)
}

/// Whether the same change would be refused again.
fn is_final(error: &Error) -> bool {
    !error.is_retryable() && !matches!(error, Error::Internal(_))
}

fn fails_again(failing: &Failing, id: &str) -> u32 {
    let mut failing = failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match &mut *failing {
        Some((failed, times)) if failed == id => {
            *times += 1;
            *times
        }
        other => {
            *other = Some((id.to_owned(), 1));
            1
        }
    }
}
