//! `EventService`: events in, and read back.

use std::{pin::Pin, sync::Arc};

use chassis::{
    auth::{Access, Caller, Role, Scope, caller},
    error::{Error, Result},
    id::OrganizationId,
};
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use jiff::Timestamp;
use proto::{
    common::v1::Position,
    router::v1::{
        self as wire, GetEventRequest, GetEventResponse, GetHeadRequest, GetHeadResponse, ListEventsRequest,
        ListEventsResponse, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResponse, PublishResult,
        PublishStreamRequest, PublishStreamResponse, Receipt, Refusal, ReplayEventsRequest, ReplayEventsResponse,
        event_service_server::EventService, publish_result,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::{given, page_size, text, wire as parse};
use crate::{
    consumer::Consumers,
    event_type::{EventType, TypePattern},
    limit::Limits,
    log::Log,
    publish::{By, Publisher},
};

/// Events in one batch.
const BATCH_MAX: usize = 1_000;
/// Types that a list is asked for.
const TYPES_MAX: usize = 256;
/// Bytes of events in one listed page, unless one event is larger.
const PAGE_BYTES: usize = 3 << 20;
/// Events of one stream that may wait for their commit.
const STREAM_WINDOW: usize = 1_024;

type Promise = BoxFuture<'static, Result<Receipt>>;

pub(crate) struct EventRpc {
    pub(crate) publisher: Publisher,
    pub(crate) limits: Arc<Limits>,
    pub(crate) log: Log,
    pub(crate) consumers: Consumers,
}

#[tonic::async_trait]
impl EventService for EventRpc {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let caller = caller(&request)?;
        let receipt = take(&self.publisher, &self.limits, &caller, request.into_inner().event).await?.await?;
        Ok(Response::new(PublishResponse { receipt: Some(receipt) }))
    }

    async fn publish_batch(
        &self,
        request: Request<PublishBatchRequest>,
    ) -> Result<Response<PublishBatchResponse>, Status> {
        let caller = caller(&request)?;
        let events = request.into_inner().events;
        if events.len() > BATCH_MAX {
            return Err(Error::invalid("events", format!("must be at most {BATCH_MAX}")).into());
        }
        let mut promises = Vec::with_capacity(events.len());
        for event in events {
            promises.push(take(&self.publisher, &self.limits, &caller, Some(event)).await);
        }
        let mut results = Vec::with_capacity(promises.len());
        for promise in promises {
            results.push(kept(promise).await);
        }
        Ok(Response::new(PublishBatchResponse { results }))
    }

    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

    /// Events are taken one after the other, so that the log has them in the stream's order; their commits are waited for together.
    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let caller = caller(&request)?;
        let (publisher, limits) = (self.publisher.clone(), self.limits.clone());
        let taken = request.into_inner().then(move |request| {
            let (publisher, limits, caller) = (publisher.clone(), limits.clone(), caller.clone());
            async move {
                let request = request?;
                Ok::<_, Status>((request.correlation_id, take(&publisher, &limits, &caller, request.event).await))
            }
        });
        let answers = taken.map(|taken| async move {
            let (correlation_id, promise) = taken?;
            Ok(PublishStreamResponse { correlation_id, result: Some(kept(promise).await) })
        });
        Ok(Response::new(Box::pin(answers.buffered(STREAM_WINDOW))))
    }

    async fn get_event(&self, request: Request<GetEventRequest>) -> Result<Response<GetEventResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let entry = self.log.find(&organization, text("id", &request.id)?).await?;
        Ok(Response::new(GetEventResponse { event: Some((*entry.logged).clone()) }))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let since = match (&request.since, request.page_token.parse()) {
            (_, Ok(sequence)) => Some(sequence),
            (Some(since), Err(_)) if request.page_token.is_empty() => Some(self.log.since(since)?),
            (None, Err(_)) if request.page_token.is_empty() => None,
            _ => return Err(Error::invalid("page_token", "is not one of this list").into()),
        };
        Ok(Response::new(self.list(&organization, &request, since).await?))
    }

    async fn replay_events(
        &self,
        request: Request<ReplayEventsRequest>,
    ) -> Result<Response<ReplayEventsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        text("group", &request.group)?;
        let since = self.log.since(&given("since", request.since)?)?;
        let until = match &request.until {
            Some(until) => self.log.since(until)?,
            None => self.log.head(),
        };
        let events = self.log.count_of(&organization, since, until).await?;
        if !request.dry_run {
            self.consumers.replay(&organization, &request.group, since, until).await?;
        }
        Ok(Response::new(ReplayEventsResponse { events }))
    }

    async fn get_head(&self, _: Request<GetHeadRequest>) -> Result<Response<GetHeadResponse>, Status> {
        let position = |sequence| -> Position { self.log.position(sequence) };
        Ok(Response::new(GetHeadResponse {
            head: Some(position(self.log.head())),
            oldest: Some(position(self.log.oldest())),
        }))
    }
}

impl EventRpc {
    /// A page of events of the types asked for, after `since` or from the oldest on: reads on until it is full, in number or
    /// bytes, or for a bounded number of pages.
    async fn list(
        &self,
        organization: &OrganizationId,
        request: &ListEventsRequest,
        since: Option<u64>,
    ) -> Result<ListEventsResponse> {
        let size = page_size(request.page_size)? as usize;
        if request.types.len() > TYPES_MAX {
            return Err(Error::invalid("types", format!("must be at most {TYPES_MAX}")));
        }
        let types = request.types.iter().map(|text| TypePattern::parse(text)).collect::<Result<Vec<_>>>()?;
        let matches = |type_: &str| {
            types.is_empty()
                || EventType::parse(type_).is_ok_and(|type_| types.iter().any(|pattern| pattern.matches(&type_)))
        };
        let head = self.log.head();
        let mut after = since.unwrap_or_else(|| self.log.oldest() - 1);
        let (mut events, mut bytes, mut last) = (Vec::new(), 0, after);
        for _ in 0..PAGES_READ_MAX {
            let page = match self.log.read_of(organization, after, head, size).await {
                // What was the oldest has just gone.
                Err(Error::OutOfRange { .. }) if since.is_none() => {
                    after = self.log.oldest() - 1;
                    continue;
                }
                read => read?,
            };
            after = page.until;
            for entry in page.entries.iter().filter(|entry| matches(&entry.type_)) {
                bytes += entry.bytes;
                if events.len() == size || (bytes > PAGE_BYTES && !events.is_empty()) {
                    return Ok(ListEventsResponse { events, next_page_token: last.to_string() });
                }
                events.push((*entry.logged).clone());
                last = entry.sequence;
            }
            if after >= head {
                return Ok(ListEventsResponse { events, next_page_token: String::new() });
            }
        }
        Ok(ListEventsResponse { events, next_page_token: after.to_string() })
    }
}

/// Pages of the log that one call reads while it looks for a rare type; it then answers with what it has and a token.
const PAGES_READ_MAX: usize = 20;

/// Holds an event to its organization's limit, before anything of it is read, parses it and hands it to the publisher.
async fn take(publisher: &Publisher, limits: &Limits, caller: &Caller, event: Option<wire::Event>) -> Result<Promise> {
    let event = given("event", event)?;
    let organization = caller.organization(&event.organization_id)?;
    if !is_our_own(caller, &event) {
        let admitted = limits.admit(&organization, now(publisher));
        admitted.inspect_err(|_| metrics::counter!("publish_refused_total").increment(1))?;
    }
    let event = parse::event(event, organization, now(publisher)).map_err(|error| error.within("event"))?;
    let by = if caller.may(Access::Scope(Scope::Manage)) { By::Manager } else { By::Publisher };
    publisher.publish(event, by).await
}

/// What our services say of an endpoint or an integration, once per change of its state: no limit keeps that from its owner.
fn is_our_own(caller: &Caller, event: &wire::Event) -> bool {
    let of_a_state = |type_: &str| type_.starts_with("endpoint.") || type_.starts_with("integration.");
    caller.role == Role::Service && of_a_state(&event.r#type)
}

fn now(publisher: &Publisher) -> Timestamp {
    publisher.clock.now()
}

async fn kept(promise: Result<Promise>) -> PublishResult {
    let receipt = match promise {
        Ok(promise) => promise.await,
        Err(error) => Err(error),
    };
    let result = match receipt {
        Ok(receipt) => publish_result::Result::Receipt(receipt),
        Err(error) => publish_result::Result::Refusal(refusal(&error)),
    };
    PublishResult { result: Some(result) }
}

fn refusal(error: &Error) -> Refusal {
    let field = match error {
        Error::Invalid { field, .. } => field.to_string(),
        _ => String::new(),
    };
    Refusal { code: error.code() as i32, message: error.to_string(), field, retryable: error.is_retryable() }
}
