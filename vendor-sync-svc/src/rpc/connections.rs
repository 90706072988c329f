//! `ConnectionService`, and the connections' part of `IntegrationService`: parsed, handed to `credential/connect.rs`,
//! printed.

use chassis::{auth, error::Result};
use proto::vendorsync::v1::{
    self as wire, connection_service_server::ConnectionService, given_credential::Credential as Shown,
};
use tonic::{Request, Response, Status};

use super::wire::{duration, print_timestamp};
use crate::{
    credential::{
        App,
        connect::{Begun, Completed, Connecting, Given},
    },
    integration::{DEFAULT_OVERLAP, Integration},
};

/// What the gateway asks.
pub(crate) struct Service(pub(crate) Connecting);

#[tonic::async_trait]
impl ConnectionService for Service {
    async fn open_connection(
        &self,
        request: Request<wire::OpenConnectionRequest>,
    ) -> Result<Response<wire::OpenConnectionResponse>, Status> {
        let request = request.into_inner();
        let location = self.0.open(&request.ticket, &request.browser).await?;
        Ok(Response::new(wire::OpenConnectionResponse { location: location.into() }))
    }

    async fn complete_connection(
        &self,
        request: Request<wire::CompleteConnectionRequest>,
    ) -> Result<Response<wire::CompleteConnectionResponse>, Status> {
        let request = request.into_inner();
        let completed = self.0.complete(&request.state, &request.code, &request.browser).await?;
        let (result, integration_id) = match completed {
            Completed::Connected { integration_id } => (wire::ConnectionResult::Connected, integration_id),
            Completed::Denied => (wire::ConnectionResult::Denied, String::new()),
            Completed::Unknown => (wire::ConnectionResult::Unknown, String::new()),
            Completed::Failed => (wire::ConnectionResult::Failed, String::new()),
        };
        Ok(Response::new(wire::CompleteConnectionResponse { result: result.into(), integration_id }))
    }
}

/// The caller's own integration.
pub(super) async fn integration<T>(connecting: &Connecting, request: &Request<T>, id: &str) -> Result<Integration> {
    let organization = auth::caller(request)?.organization("")?;
    connecting.integrations.get(&organization, id).await
}

pub(super) async fn connect(
    connecting: &Connecting,
    request: Request<wire::ConnectIntegrationRequest>,
) -> Result<wire::ConnectIntegrationResponse> {
    let integration = integration(connecting, &request, &request.get_ref().id).await?;
    Ok(match connecting.connect(&integration, given(request.into_inner().credential)).await? {
        Begun::Connected => wire::ConnectIntegrationResponse::default(),
        Begun::Open { url, expires_at } => {
            wire::ConnectIntegrationResponse { authorization_url: url, expires_at: Some(print_timestamp(expires_at)) }
        }
    })
}

pub(super) async fn disconnect(
    connecting: &Connecting,
    request: Request<wire::DisconnectIntegrationRequest>,
) -> Result<wire::DisconnectIntegrationResponse> {
    let integration = integration(connecting, &request, &request.get_ref().id).await?;
    let untold = connecting.credentials.disconnect(&integration).await?.unwrap_or_default();
    Ok(wire::DisconnectIntegrationResponse { untold })
}

pub(super) async fn test(
    connecting: &Connecting,
    request: Request<wire::TestIntegrationRequest>,
) -> Result<wire::TestIntegrationResponse> {
    let integration = integration(connecting, &request, &request.get_ref().id).await?;
    Ok(match connecting.test(&integration).await {
        Ok(()) => wire::TestIntegrationResponse { works: true, ..Default::default() },
        Err(refusal) => wire::TestIntegrationResponse {
            works: false,
            reason: refusal.reason().to_owned(),
            next_step: refusal.next_step().to_owned(),
        },
    })
}

pub(super) async fn rotate(
    connecting: &Connecting,
    request: Request<wire::RotateIntegrationCredentialRequest>,
) -> Result<wire::RotateIntegrationCredentialResponse> {
    let integration = integration(connecting, &request, &request.get_ref().id).await?;
    let request = request.into_inner();
    let overlap = duration("overlap", request.overlap, DEFAULT_OVERLAP)?;
    let until = connecting.rotate(&integration, given(request.credential), overlap).await?;
    Ok(wire::RotateIntegrationCredentialResponse { old_expires_at: Some(print_timestamp(until)) })
}

fn given(credential: Option<wire::GivenCredential>) -> Given {
    match credential.and_then(|given| given.credential) {
        None => Given::Nothing,
        Some(Shown::ApiKey(key)) => Given::Key(key.into()),
        Some(Shown::Password(wire::Password { user, password })) => Given::Basic { user, password: password.into() },
        Some(Shown::Oauth(wire::OAuthClient { client_id, client_secret })) => {
            let own = !client_id.is_empty();
            Given::OAuth(own.then(|| App { id: client_id, secret: client_secret.into() }))
        }
    }
}
