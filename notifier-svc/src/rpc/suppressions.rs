//! `SuppressionService`: addresses that are not used any more, over gRPC.

use chassis::{
    auth::caller,
    error::{Error, Result},
};
use proto::notifier::v1::{
    self as wire, CreateSuppressionRequest, CreateSuppressionResponse, DeleteSuppressionRequest,
    DeleteSuppressionResponse, ListSuppressionsRequest, ListSuppressionsResponse, SuppressionReason,
    suppression_service_server::SuppressionService,
};
use tonic::{Request, Response, Status};

use super::{cut, page_size, timestamp};
use crate::suppression::{Reason, Suppression, Suppressions};

/// The service.
pub(crate) struct Lists(pub(crate) Suppressions);

#[tonic::async_trait]
impl SuppressionService for Lists {
    async fn list_suppressions(
        &self,
        request: Request<ListSuppressionsRequest>,
    ) -> Result<Response<ListSuppressionsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let mut listed = self.0.list(&organization, &request.channel, &request.page_token, size + 1).await?;
        let next_page_token = cut(&mut listed, size, |suppression| &suppression.cursor);
        Ok(Response::new(ListSuppressionsResponse {
            suppressions: listed.into_iter().map(print).collect(),
            next_page_token,
        }))
    }

    async fn create_suppression(
        &self,
        request: Request<CreateSuppressionRequest>,
    ) -> Result<Response<CreateSuppressionResponse>, Status> {
        let caller = caller(&request)?;
        let organization = caller.organization("")?;
        let given = request.into_inner().suppression.ok_or_else(|| Error::invalid("suppression", "must be given"))?;
        let reason = match given.reason() {
            SuppressionReason::Bounced => Reason::Bounced,
            SuppressionReason::Complained => Reason::Complained,
            SuppressionReason::Stopped => Reason::Stopped,
            SuppressionReason::Unsubscribed => Reason::Unsubscribed,
            SuppressionReason::Manual | SuppressionReason::Unspecified => Reason::Manual,
        };
        let source = if given.source.is_empty() { &caller.name } else { &given.source };
        let (channel, address) = (&given.channel, &given.address);
        let added = self.0.add(&organization, channel, address, reason, source, &caller.name).await;
        added.map_err(|error| error.within("suppression"))?;
        Ok(Response::new(CreateSuppressionResponse {}))
    }

    async fn delete_suppression(
        &self,
        request: Request<DeleteSuppressionRequest>,
    ) -> Result<Response<DeleteSuppressionResponse>, Status> {
        let caller = caller(&request)?;
        let (organization, request) = (caller.organization("")?, request.into_inner());
        self.0.remove(&organization, &request.channel, &request.address, &caller.name).await?;
        Ok(Response::new(DeleteSuppressionResponse {}))
    }
}

fn print(suppression: Suppression) -> wire::Suppression {
    let reason = match suppression.reason {
        Reason::Bounced => SuppressionReason::Bounced,
        Reason::Complained => SuppressionReason::Complained,
        Reason::Stopped => SuppressionReason::Stopped,
        Reason::Unsubscribed => SuppressionReason::Unsubscribed,
        Reason::Manual => SuppressionReason::Manual,
    };
    wire::Suppression {
        channel: suppression.channel,
        address: suppression.address.unwrap_or_default(),
        reason: reason.into(),
        source: suppression.source,
        created_at: Some(timestamp(suppression.created_at)),
    }
}
