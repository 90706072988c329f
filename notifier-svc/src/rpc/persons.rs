//! `PersonService`: a person's own data over gRPC.

use std::sync::Arc;

use chassis::auth::caller;
use proto::notifier::v1::{
    ErasePersonRequest, ErasePersonResponse, ExportPersonRequest, ExportPersonResponse,
    person_service_server::PersonService,
};
use tonic::{Request, Response, Status};

use crate::tell::Notifier;

/// The service.
pub(crate) struct Persons(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl PersonService for Persons {
    async fn export_person(
        &self,
        request: Request<ExportPersonRequest>,
    ) -> Result<Response<ExportPersonResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let (data, truncated) = self.0.export(&organization, &request.get_ref().recipient_id).await?;
        Ok(Response::new(ExportPersonResponse { data: data.into(), truncated }))
    }

    async fn erase_person(
        &self,
        request: Request<ErasePersonRequest>,
    ) -> Result<Response<ErasePersonResponse>, Status> {
        let caller = caller(&request)?;
        let organization = caller.organization("")?;
        let recipient = &request.get_ref().recipient_id;
        self.0.erase(&organization, recipient, &caller.name).await?;
        tracing::info!(recipient.id = recipient, by = caller.name, "a person was erased");
        Ok(Response::new(ErasePersonResponse {}))
    }
}
