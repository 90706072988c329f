//! `SubscriptionService`: live changes.

use std::pin::Pin;

use chassis::{auth::caller, error::Result};
use futures_util::{Stream, StreamExt as _};
use proto::router::v1::{SubscribeRequest, SubscribeResponse, subscription_service_server::SubscriptionService};
use tonic::{Request, Response, Status};

use crate::{
    live::{Filter, subscribe},
    log::Log,
};

pub(crate) struct SubscriptionRpc {
    pub(crate) log: Log,
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
        let changes = subscribe(self.log.clone(), filter, since).map(|change| change.map_err(Status::from));
        Ok(Response::new(Box::pin(changes)))
    }
}
