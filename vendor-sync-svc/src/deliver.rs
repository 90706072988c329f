//! From an event whose plan asks for webhooks to deliveries: match, write the letters, offer them to their lanes.
//!
//! Guarantee: the event is acknowledged once every delivery is durable. An event that is redelivered keeps the set of
//! endpoints that its first handling fixed; one that is replayed opens its deliveries again.

use std::collections::HashMap;

use bytes::Bytes;
use chassis::{
    consume::Handler,
    error::{Error, Result},
    lane::{Dispatcher, Offer, State, rows::Record},
    store::Store,
    with,
};
use futures_util::future::{self, BoxFuture, FutureExt as _};
use proto::router::v1::{ConsumedEvent, destination::Kind};

use crate::{
    body::Renderer,
    endpoint::{Endpoint, book::Book},
    event::{Event, Priority},
    rpc::wire,
};

/// Takes events in from the router's group `vendor-sync`.
pub(crate) struct Deliver {
    pub(crate) book: Book,
    pub(crate) renderer: Renderer,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) store: Store,
}

impl Handler for Deliver {
    async fn take(&self, consumed: ConsumedEvent) -> Result<BoxFuture<'static, Result<()>>> {
        chassis::fail::point("vendor_sync.event.taken");
        let done = future::ready(Ok(())).boxed();
        let Some(priority) = wanted(&consumed) else { return Ok(done) };
        let (redelivered, replayed) = (consumed.redelivered, consumed.replayed);
        let event = match consumed.event.ok_or_else(|| Error::NotFound("event".into())).and_then(wire::event) {
            Ok(event) => event,
            Err(error) => {
                // It would come again for ever, and hold back what follows.
                tracing::error!(%error, "an event of the log can't be read; it goes to no endpoint");
                return Ok(done);
            }
        };
        let mut endpoints = self.book.find(&event);
        if replayed {
            let known = self.known(&event).await?;
            self.reopen(&event, &endpoints, &known).await?;
            endpoints.retain(|endpoint| !known.contains_key(&*endpoint.id));
        }
        let offers = endpoints.iter().map(|endpoint| self.offer(endpoint, &event, priority, replayed)).collect();
        let durable = self.dispatcher.offer(offers, redelivered && !replayed).await?;
        Ok(durable.wait().boxed())
    }
}

/// The priority at which the plan wants webhooks, if it does.
fn wanted(consumed: &ConsumedEvent) -> Option<Priority> {
    let plan = consumed.plan.as_ref()?;
    let webhooks = plan.destinations.iter().find(|destination| matches!(destination.kind, Some(Kind::Webhooks(_))))?;
    let number = if webhooks.priority == 0 { plan.priority } else { webhooks.priority };
    Some(Priority::from_number(number.into()))
}

impl Deliver {
    fn offer(&self, endpoint: &Endpoint, event: &Event, priority: Priority, replayed: bool) -> Offer {
        let origin = if replayed { "replay" } else { event.metadata.origin.as_str() };
        Offer {
            lane_id: endpoint.id.clone(),
            event: event.uid,
            event_id: event.id.clone(),
            event_type: event.type_.clone(),
            ordering_key: event.ordering_key.clone(),
            priority: priority as i64,
            origin: origin.to_owned(),
            content: self.letter(endpoint, event),
        }
    }

    fn letter(&self, endpoint: &Endpoint, event: &Event) -> Bytes {
        self.renderer.letter(endpoint, event).seal()
    }

    /// The deliveries that an event has already, by endpoint.
    async fn known(&self, event: &Event) -> Result<HashMap<String, Record>> {
        let records: Vec<Record> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT d.id, l.id AS lane_id, event, event_id, event_type, ordering_key, priority, state, attempts, next_at, created_at,
                 finished_at, status_code, reason
             FROM deliveries AS d JOIN lanes AS l ON l.number = d.lane WHERE d.event = $1 AND d.organization_id = $2",
        ).bind(&event.uid[..]).bind(event.organization.as_str()).fetch_all(c).await)?;
        Ok(records.into_iter().map(|record| (record.lane_id.clone(), record)).collect())
    }

    /// Opens the deliveries that have come to their end again, as the endpoints' settings are now.
    async fn reopen(
        &self,
        event: &Event,
        endpoints: &[std::sync::Arc<Endpoint>],
        known: &HashMap<String, Record>,
    ) -> Result<()> {
        for endpoint in endpoints {
            let Some(record) =
                known.get(&*endpoint.id).filter(|record| State::from_number(record.state).is_some_and(State::is_final))
            else {
                continue;
            };
            match self.dispatcher.reopen(&event.organization, record, &self.letter(endpoint, event)).await {
                // Somebody else opened it meanwhile.
                Ok(()) | Err(Error::FailedPrecondition(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
