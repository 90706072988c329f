//! `WeddingService`: what the router must know of a wedding.

use std::sync::Arc;

use chassis::{
    auth::caller,
    clock::Clock,
    error::{Error, Result},
    tasks::Tasks,
};
use proto::router::v1::{
    GetWeddingRequest, GetWeddingResponse, UpsertWeddingRequest, UpsertWeddingResponse,
    wedding_service_server::WeddingService,
};
use tonic::{Request, Response, Status};

use super::{
    given, see_through, text,
    wire::{print_wedding, wedding},
};
use crate::{limit::Limits, organizations::Organizations, weddings::Weddings};

pub(crate) struct WeddingRpc {
    pub(crate) weddings: Weddings,
    pub(crate) organizations: Organizations,
    /// A wedding's commit is a commit as an event's is.
    pub(crate) limits: Arc<Limits>,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
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
        self.limits.admit(&organization, self.clock.now())?;
        let zone = self.organizations.zone(&organization).await?;
        let known = wedding(&asked, &zone).map_err(|error| error.within("wedding"))?;
        let (weddings, now) = (self.weddings.clone(), self.clock.now_micros());
        let stored = (organization.clone(), known.clone());
        see_through(&self.tasks, async move { weddings.upsert(stored.0, stored.1, now).await }).await?;
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
