//! `WeddingService`: what the router must know of a wedding.

use chassis::{
    auth::caller,
    clock::Clock,
    error::{Error, Result},
};
use proto::router::v1::{
    GetWeddingRequest, GetWeddingResponse, UpsertWeddingRequest, UpsertWeddingResponse,
    wedding_service_server::WeddingService,
};
use tonic::{Request, Response, Status};

use super::{
    given, text,
    wire::{print_wedding, wedding},
};
use crate::{organizations::Organizations, weddings::Weddings};

pub(crate) struct WeddingRpc {
    pub(crate) weddings: Weddings,
    pub(crate) organizations: Organizations,
    pub(crate) clock: Clock,
}

#[tonic::async_trait]
impl WeddingService for WeddingRpc {
    async fn upsert_wedding(
        &self,
        request: Request<UpsertWeddingRequest>,
    ) -> Result<Response<UpsertWeddingResponse>, Status> {
        let caller = caller(&request)?;
        let asked = given("wedding", request.into_inner().wedding)?;
        let organization = caller.organization(&asked.organization_id)?;
        let zone = self.organizations.zone(&organization).await?;
        let known = wedding(&asked, &zone).map_err(|error| error.within("wedding"))?;
        self.weddings.upsert(&organization, known.clone(), self.clock.now_micros()).await?;
        Ok(Response::new(UpsertWeddingResponse { wedding: Some(print_wedding(&known, &organization)) }))
    }

    async fn get_wedding(&self, request: Request<GetWeddingRequest>) -> Result<Response<GetWeddingResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let known = self
            .weddings
            .find(&organization, text("id", &request.id)?)
            .await?
            .ok_or_else(|| Error::NotFound("wedding".into()))?;
        Ok(Response::new(GetWeddingResponse { wedding: Some(print_wedding(&known, &organization)) }))
    }
}
