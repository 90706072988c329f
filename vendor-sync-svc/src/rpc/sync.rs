//! `SyncService`: parsed, handed to `sync`, printed.

use chassis::{
    auth,
    error::{Error, Result},
};
use proto::vendorsync::v1::{self as wire, SyncOutcome, sync_service_server::SyncService};
use tonic::{Request, Response, Status};

use super::wire::page_size;
use crate::{
    record::RecordKind,
    sync::{
        Engine,
        bulk::{MOST, Outcome, Synced, Wanted},
    },
};

/// Syncing over gRPC.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) engine: Engine,
}

#[tonic::async_trait]
impl SyncService for Service {
    async fn sync_now(
        &self,
        request: Request<wire::SyncNowRequest>,
    ) -> Result<Response<wire::SyncNowResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let account = self.engine.accounts.of(&organization, &request.get_ref().integration_id)?;
        if !account.is_asked() {
            let reason = "the integration is disabled, paused or not connected";
            return Err(Error::FailedPrecondition(reason.to_owned()).into());
        }
        let hastened = self.engine.dispatcher.hasten(&account.integration.id, &organization).await?;
        let mut polled = Vec::new();
        for kind in account.connector.records() {
            if account.connector.record(kind).is_some_and(|spec| spec.list.is_some()) {
                polled.push(print_polled(kind, self.engine.polls.poll(&account, kind).await));
            }
        }
        Ok(Response::new(wire::SyncNowResponse { hastened, polled }))
    }

    async fn sync_client_profiles(
        &self,
        request: Request<wire::SyncClientProfilesRequest>,
    ) -> Result<Response<wire::SyncClientProfilesResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let wanted = Wanted {
            organization,
            kind: RecordKind::Client,
            ids: request.client_ids,
            supplier_id: request.supplier_id,
            integration_id: request.integration_id,
            after: token(request.page_token)?,
            limit: page_size(request.page_size)? as usize,
        };
        let (results, next_page_token) = self.bulk(wanted).await?;
        Ok(Response::new(wire::SyncClientProfilesResponse { results, next_page_token }))
    }

    async fn sync_event_details(
        &self,
        request: Request<wire::SyncEventDetailsRequest>,
    ) -> Result<Response<wire::SyncEventDetailsResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let wanted = Wanted {
            organization,
            kind: RecordKind::Wedding,
            ids: request.wedding_ids,
            supplier_id: request.supplier_id,
            integration_id: request.integration_id,
            after: token(request.page_token)?,
            limit: page_size(request.page_size)? as usize,
        };
        let (results, next_page_token) = self.bulk(wanted).await?;
        Ok(Response::new(wire::SyncEventDetailsResponse { results, next_page_token }))
    }
}

impl Service {
    async fn bulk(&self, wanted: Wanted) -> Result<(Vec<wire::SyncResult>, String)> {
        let wanted = Wanted { limit: wanted.limit.min(MOST), ..wanted };
        let (results, next) = self.engine.bulk(&wanted).await?;
        Ok((results.into_iter().map(print).collect(), next))
    }
}

/// The last id of the page before. PostgreSQL takes no NUL.
fn token(token: String) -> Result<String> {
    let fits = token.len() <= 256 && !token.chars().any(char::is_control);
    if fits { Ok(token) } else { Err(Error::invalid("page_token", "must be from the previous answer")) }
}

fn print(synced: Synced) -> wire::SyncResult {
    let (outcome, reason) = match synced.outcome {
        Outcome::Sent => (SyncOutcome::Sent, String::new()),
        Outcome::Unchanged => (SyncOutcome::Unchanged, String::new()),
        Outcome::Refused(reason) => (SyncOutcome::Refused, reason),
    };
    wire::SyncResult {
        record_id: synced.record_id,
        integration_id: synced.integration_id,
        outcome: outcome.into(),
        reason,
    }
}

fn print_polled(kind: RecordKind, found: Result<crate::sync::poll::Found>) -> wire::Polled {
    let (found, failure) = match found {
        Ok(found) => (found, String::new()),
        Err(error) => (Default::default(), error.to_string()),
    };
    wire::Polled { kind: kind.as_str().to_owned(), items: found.items, changed: found.changed, failure }
}
