//! From an event whose plan asks for webhooks or integrations to deliveries: match, write the letters, offer them to their
//! lanes.
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
    configuration::{self, keep::Keeper},
    endpoint::{Endpoint, book::Book},
    event::{Event, Priority},
    rpc::wire,
    sync::offer::{Kinds, Offers},
};

/// Takes events in from the router's group `vendor-sync`.
pub(crate) struct Deliver {
    pub(crate) book: Book,
    pub(crate) renderer: Renderer,
    pub(crate) offers: Offers,
    pub(crate) configuration: Keeper,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) store: Store,
}

impl Handler for Deliver {
    async fn take(&self, consumed: ConsumedEvent) -> Result<BoxFuture<'static, Result<()>>> {
        chassis::fail::point("vendor_sync.event.taken");
        self.handle(consumed).await
    }
}

impl Deliver {
    async fn handle(&self, consumed: ConsumedEvent) -> Result<BoxFuture<'static, Result<()>>> {
        let done = future::ready(Ok(())).boxed();
        let Wanted { webhooks, kinds } = wanted(&consumed);
        if webhooks.is_none() && kinds.is_empty() {
            return Ok(done);
        }
        let (redelivered, replayed) = (consumed.redelivered, consumed.replayed);
        let event = match consumed.event.ok_or_else(|| Error::NotFound("event".into())).and_then(wire::event) {
            Ok(event) => event,
            Err(error) => {
                // It would come again for ever, and hold back what follows.
                tracing::error!(%error, "an event of the log can't be read; it goes to no endpoint");
                return Ok(done);
            }
        };
        if kinds.contains_key(configuration::KIND) {
            Box::pin(self.follow(&event)).await?;
        }
        let mut endpoints = if webhooks.is_some() { self.book.find(&event) } else { Vec::new() };
        let again = redelivered || replayed;
        let mut told = Box::pin(self.offers.of(&event, &kinds, way(&event, replayed), again)).await?;
        if replayed {
            let known = self.known(&event).await?;
            self.reopen(&event, &endpoints, &told, &known).await?;
            endpoints.retain(|endpoint| !known.contains_key(&*endpoint.id));
            told.retain(|offer| !known.contains_key(&*offer.lane_id));
        }
        let priority = webhooks.unwrap_or(Priority::Normal);
        let mut offers: Vec<Offer> =
            endpoints.iter().map(|endpoint| self.offer(endpoint, &event, priority, replayed)).collect();
        offers.extend(told);
        let durable = self.dispatcher.offer(offers, redelivered && !replayed).await?;
        Ok(durable.wait().boxed())
    }

    /// A row that can't be followed keeps nobody from hearing of it.
    async fn follow(&self, event: &Event) -> Result<()> {
        match self.configuration.take(event).await {
            Err(error) if !error.is_retryable() => {
                tracing::error!(error = format!("{error:?}"), "a configuration row can't be followed");
                Ok(())
            }
            other => other,
        }
    }
}

/// What the plan wants of us.
struct Wanted {
    /// At which priority, if at all.
    webhooks: Option<Priority>,
    kinds: Kinds,
}

fn wanted(consumed: &ConsumedEvent) -> Wanted {
    let mut wanted = Wanted { webhooks: None, kinds: Kinds::new() };
    let Some(plan) = &consumed.plan else { return wanted };
    for destination in &plan.destinations {
        let number = if destination.priority == 0 { plan.priority } else { destination.priority };
        let priority = Priority::from_number(number.into());
        match &destination.kind {
            Some(Kind::Webhooks(_)) => wanted.webhooks = Some(priority),
            Some(Kind::Integration(integration)) => {
                // The more urgent of two.
                let known = wanted.kinds.entry(integration.kind.clone()).or_insert(priority);
                *known = priority.min(*known);
            }
            _ => {}
        }
    }
    wanted
}

/// By which way an event is sent.
fn way(event: &Event, replayed: bool) -> &str {
    if replayed { "replay" } else { event.metadata.origin.as_str() }
}

impl Deliver {
    fn offer(&self, endpoint: &Endpoint, event: &Event, priority: Priority, replayed: bool) -> Offer {
        let origin = way(event, replayed);
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

    /// Opens the deliveries that have come to their end again, as the settings are now.
    async fn reopen(
        &self,
        event: &Event,
        endpoints: &[std::sync::Arc<Endpoint>],
        told: &[Offer],
        known: &HashMap<String, Record>,
    ) -> Result<()> {
        let webhooks = endpoints.iter().map(|endpoint| (&*endpoint.id, self.letter(endpoint, event)));
        let letters = told.iter().map(|offer| (&*offer.lane_id, offer.content.clone()));
        for (lane, content) in webhooks.chain(letters) {
            let is_final = |record: &&Record| State::from_number(record.state).is_some_and(State::is_final);
            let Some(record) = known.get(lane).filter(is_final) else { continue };
            match self.dispatcher.reopen(&event.organization, record, &content).await {
                // Somebody else opened it meanwhile.
                Ok(()) | Err(Error::FailedPrecondition(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
