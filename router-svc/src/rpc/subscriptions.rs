//! `SubscriptionService`: live changes, and messages to whoever listens.

use std::{pin::Pin, sync::Arc};

use chassis::{
    auth::caller,
    error::{Error, Result},
    id::OrganizationId,
};
use futures_util::{Stream, StreamExt as _};
use proto::router::v1::{
    BroadcastRequest, BroadcastResponse, SubscribeRequest, SubscribeResponse,
    subscription_service_server::SubscriptionService,
};
use tonic::{Request, Response, Status};

use super::wire as parse;
use crate::{
    broadcast::Broadcasts,
    limit::Limits,
    live::{Filter, subscribe},
    log::Log,
    publish::{By, Publisher},
};

pub(crate) struct SubscriptionRpc {
    pub(crate) log: Log,
    pub(crate) broadcasts: Broadcasts,
    pub(crate) publisher: Publisher,
    pub(crate) limits: Arc<Limits>,
}

#[tonic::async_trait]
impl SubscriptionService for SubscriptionRpc {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let filter = Filter::parse(organization, &request.channels, &request.types)?;
        let since = match &request.since {
            Some(since) => self.log.since(since)?,
            None => self.log.head(),
        };
        let broadcasts = self.broadcasts.listen(filter.organization());
        let changes = subscribe(self.log.clone(), broadcasts, filter, since);
        Ok(Response::new(Box::pin(changes.map(|change| change.map_err(Status::from)))))
    }

    async fn broadcast(&self, request: Request<BroadcastRequest>) -> Result<Response<BroadcastResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let admitted = self.limits.admit(&organization, self.publisher.clock.now());
        admitted.inspect_err(|_| metrics::counter!("publish_refused_total").increment(1))?;
        Ok(Response::new(self.send(organization, request).await?))
    }
}

impl SubscriptionRpc {
    async fn send(&self, organization: OrganizationId, request: BroadcastRequest) -> Result<BroadcastResponse> {
        if !request.durable {
            self.broadcasts.send(&organization, parse::broadcast(request)?);
            return Ok(BroadcastResponse::default());
        }
        if !request.sender_id.is_empty() {
            return Err(Error::invalid("sender_id", "must be empty: a durable one is for everybody"));
        }
        let event = parse::durable(request, organization, self.publisher.clock.now())?;
        let receipt = self.publisher.publish(event, By::Publisher).await?.await?;
        Ok(BroadcastResponse { position: receipt.position })
    }
}
