//! `IntegrationService`: parsed, handed to `integration.rs`, printed.

use std::future::ready;

use chassis::{
    auth,
    error::{Error, Result},
};
use proto::vendorsync::v1::{self as wire, integration_service_server::IntegrationService};
use tonic::{Request, Response, Status};

use super::{
    connections,
    wire::{duration, page_size, print_timestamp},
};
use crate::{
    connector::Inbound,
    credential::connect::Connecting,
    integration::{self, DEFAULT_OVERLAP, Integration, Integrations, Kind, Settings},
    sync::account::Accounts,
};

/// Integrations over gRPC.
#[derive(Clone)]
pub(crate) struct Service {
    integrations: Integrations,
    connecting: Connecting,
    accounts: Accounts,
}

impl Service {
    pub(crate) fn new(connecting: Connecting, accounts: Accounts) -> Self {
        Self { integrations: connecting.integrations.clone(), connecting, accounts }
    }

    /// Sees a change through, in the store and in force, even if its caller leaves half way: no setting that was kept waits
    /// for the next start to count.
    async fn see_through<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let changed = self.connecting.credentials.tasks.through("integration.change", change).await;
        changed.unwrap_or_else(|| Err(Error::internal(anyhow::anyhow!("a change of an integration broke off"))))
    }
}

#[tonic::async_trait]
impl IntegrationService for Service {
    async fn create_integration(
        &self,
        request: Request<wire::CreateIntegrationRequest>,
    ) -> Result<Response<wire::CreateIntegrationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let integration = request.integration.unwrap_or_default();
        let organization = caller.organization(&integration.organization_id)?;
        let settings = settings(integration)?;
        let secret = integration::secret_or_new(&request.secret)?;
        self.accounts.check(&organization, &settings).await.map_err(|error| error.within("integration"))?;
        let (integrations, accounts, own) = (self.integrations.clone(), self.accounts.clone(), secret.clone());
        let create = async move {
            let created = integrations.create(organization, settings, &own).await?;
            let (organization, id) = (created.organization.clone(), created.id.clone());
            accounts.change(&organization, &id, ready(Ok(created))).await
        };
        let created = self.see_through(create).await?;
        let secret = secret.expose().to_owned();
        Ok(Response::new(wire::CreateIntegrationResponse { integration: Some(print(created)), secret }))
    }

    async fn get_integration(
        &self,
        request: Request<wire::GetIntegrationRequest>,
    ) -> Result<Response<wire::GetIntegrationResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let integration = self.integrations.get(&organization, &request.get_ref().id).await?;
        Ok(Response::new(wire::GetIntegrationResponse { integration: Some(print(integration)) }))
    }

    async fn list_integrations(
        &self,
        request: Request<wire::ListIntegrationsRequest>,
    ) -> Result<Response<wire::ListIntegrationsResponse>, Status> {
        let organization = auth::caller(&request)?.organization(&request.get_ref().organization_id)?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        check_page_token(&request.page_token)?;
        let mut page = self.integrations.list(&organization, &request.page_token, i64::from(size) + 1).await?;
        let more = page.len() > size as usize;
        if more {
            page.pop();
        }
        let next_page_token = page.last().filter(|_| more).map(|last| last.id.clone()).unwrap_or_default();
        let integrations = page.into_iter().map(print).collect();
        Ok(Response::new(wire::ListIntegrationsResponse { integrations, next_page_token }))
    }

    async fn update_integration(
        &self,
        request: Request<wire::UpdateIntegrationRequest>,
    ) -> Result<Response<wire::UpdateIntegrationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let integration = request.into_inner().integration.unwrap_or_default();
        let organization = caller.organization(&integration.organization_id)?;
        let (id, version) = (integration.id.clone(), integration.version);
        let settings = settings(integration)?;
        self.accounts.check(&organization, &settings).await.map_err(|error| error.within("integration"))?;
        let (integrations, accounts) = (self.integrations.clone(), self.accounts.clone());
        let update = async move {
            let update = integrations.update(&organization, &id, version, &settings);
            accounts.change(&organization, &id, update).await
        };
        let updated = self.see_through(update).await.map_err(|error| error.within("integration"))?;
        Ok(Response::new(wire::UpdateIntegrationResponse { integration: Some(print(updated)) }))
    }

    async fn rotate_integration_secret(
        &self,
        request: Request<wire::RotateIntegrationSecretRequest>,
    ) -> Result<Response<wire::RotateIntegrationSecretResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let overlap = integration::check_overlap(duration("overlap", request.overlap, DEFAULT_OVERLAP)?)?;
        let secret = integration::secret_or_new(&request.secret)?;
        let expires_at = self.integrations.rotate(&organization, &request.id, &secret, overlap).await?;
        let (secret, old_expires_at) = (secret.expose().to_owned(), Some(print_timestamp(expires_at)));
        Ok(Response::new(wire::RotateIntegrationSecretResponse { secret, old_expires_at }))
    }

    async fn set_signing_secret(
        &self,
        request: Request<wire::SetSigningSecretRequest>,
    ) -> Result<Response<wire::SetSigningSecretResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let wire::SetSigningSecretRequest { id, secret } = request.into_inner();
        let secret = if secret.is_empty() { None } else { Some(integration::check_signing_secret(&secret)?) };
        self.integrations.get(&organization, &id).await?;
        let account = self.accounts.get(&id);
        let inbound = account.as_ref().and_then(|account| account.connector.inbound());
        if !inbound.is_some_and(Inbound::is_signed_by_vendor) {
            return Err(Error::FailedPrecondition("its vendor has no signing secret of its own".to_owned()).into());
        }
        self.integrations.set_signing(&organization, &id, secret.as_ref()).await?;
        Ok(Response::new(wire::SetSigningSecretResponse {}))
    }

    async fn delete_integration(
        &self,
        request: Request<wire::DeleteIntegrationRequest>,
    ) -> Result<Response<wire::DeleteIntegrationResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let id = request.into_inner().id;
        let (integrations, accounts) = (self.integrations.clone(), self.accounts.clone());
        let credentials = self.connecting.credentials.clone();
        let delete = async move {
            let delete = async {
                credentials.let_go(&integrations.get(&organization, &id).await?).await?;
                integrations.delete(&organization, &id).await
            };
            accounts.change(&organization, &id, delete).await
        };
        self.see_through(delete).await?;
        Ok(Response::new(wire::DeleteIntegrationResponse {}))
    }

    async fn connect_integration(
        &self,
        request: Request<wire::ConnectIntegrationRequest>,
    ) -> Result<Response<wire::ConnectIntegrationResponse>, Status> {
        Ok(Response::new(connections::connect(&self.connecting, request).await?))
    }

    async fn disconnect_integration(
        &self,
        request: Request<wire::DisconnectIntegrationRequest>,
    ) -> Result<Response<wire::DisconnectIntegrationResponse>, Status> {
        Ok(Response::new(connections::disconnect(&self.connecting, request).await?))
    }

    async fn test_integration(
        &self,
        request: Request<wire::TestIntegrationRequest>,
    ) -> Result<Response<wire::TestIntegrationResponse>, Status> {
        Ok(Response::new(connections::test(&self.connecting, request).await?))
    }

    async fn rotate_integration_credential(
        &self,
        request: Request<wire::RotateIntegrationCredentialRequest>,
    ) -> Result<Response<wire::RotateIntegrationCredentialResponse>, Status> {
        Ok(Response::new(connections::rotate(&self.connecting, request).await?))
    }
}

fn settings(integration: wire::Integration) -> Result<Settings> {
    let kind = kind(integration.kind())?;
    let settings = Settings {
        kind,
        vendor: integration.vendor,
        description: integration.description,
        supplier_id: integration.supplier_id,
        rate_limit_per_hour: integration.rate_limit_per_hour,
        event_type: integration.event_type,
        transformation: integration.transformation,
        secret_header: integration.secret_header,
        disabled: integration.disabled,
        connector: integration.connector,
        parameters: integration.parameters.into_iter().collect(),
        paused: integration.paused,
    };
    settings.check().map_err(|error| error.within("integration"))
}

fn kind(kind: wire::IntegrationKind) -> Result<Kind> {
    match kind {
        wire::IntegrationKind::ClientSync => Ok(Kind::ClientSync),
        wire::IntegrationKind::ChannelEvents => Ok(Kind::ChannelEvents),
        wire::IntegrationKind::Supabase => Ok(Kind::Supabase),
        wire::IntegrationKind::SignedWebhook => Ok(Kind::SignedWebhook),
        wire::IntegrationKind::Connector => Ok(Kind::Connector),
        wire::IntegrationKind::Unspecified => Err(Error::invalid("integration.kind", "must be one of the kinds")),
    }
}

fn print_kind(kind: Kind) -> wire::IntegrationKind {
    match kind {
        Kind::ClientSync => wire::IntegrationKind::ClientSync,
        Kind::ChannelEvents => wire::IntegrationKind::ChannelEvents,
        Kind::Supabase => wire::IntegrationKind::Supabase,
        Kind::SignedWebhook => wire::IntegrationKind::SignedWebhook,
        Kind::Connector => wire::IntegrationKind::Connector,
    }
}

fn print(integration: Integration) -> wire::Integration {
    let path = integration.path();
    let Integration { id, organization, settings, version, created_at, updated_at, last_received_at } = integration;
    wire::Integration {
        id,
        organization_id: organization.to_string(),
        kind: print_kind(settings.kind).into(),
        vendor: settings.vendor,
        description: settings.description,
        supplier_id: settings.supplier_id,
        rate_limit_per_hour: settings.rate_limit_per_hour,
        event_type: settings.event_type,
        transformation: settings.transformation,
        secret_header: settings.secret_header,
        disabled: settings.disabled,
        connector: settings.connector,
        parameters: settings.parameters.into_iter().collect(),
        paused: settings.paused,
        version,
        created_at: Some(print_timestamp(created_at)),
        updated_at: Some(print_timestamp(updated_at)),
        path,
        last_received_at: last_received_at.map(print_timestamp),
    }
}

/// The last id of the page before.
pub(super) fn check_page_token(token: &str) -> Result<()> {
    let known = token.is_empty() || chassis::id::parse_uuid(token).is_some();
    if known { Ok(()) } else { Err(Error::invalid("page_token", "must be from the previous answer")) }
}

#[cfg(test)]
mod tests {
    use chassis::{
        auth::{Caller, Role, Scopes},
        id::OrganizationId,
        service::Chassis,
        testing::on_each_engine,
    };
    use tonic::Code;

    use super::*;
    use crate::credential::tests::{Vendor, World};

    fn as_member<T>(organization: &str, message: T) -> Request<T> {
        let organization = Some(OrganizationId::parse(organization).expect("an organization"));
        let caller = Caller { organization, role: Role::Member, scopes: Scopes::all(), name: "key".to_owned() };
        let mut request = Request::new(message);
        request.extensions_mut().insert(caller);
        request
    }

    async fn in_each_service<F: Future<Output = ()>>(test: impl Fn(Service) -> F) {
        let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
        on_each_engine(migrations, |store| {
            let test = &test;
            async move {
                let vendor = Vendor::without_oauth("http://127.0.0.1:9/me");
                let world = World::open(&store, &Chassis::for_test(), vendor).await;
                let accounts = crate::sync::tests::alone(&store).await.accounts;
                test(Service::new(world.connecting.clone(), accounts)).await;
            }
        })
        .await;
    }

    async fn create(service: &Service, vendor: &str) -> Result<wire::CreateIntegrationResponse, Status> {
        let kind = wire::IntegrationKind::SignedWebhook.into();
        let integration = wire::Integration { kind, vendor: vendor.to_owned(), ..wire::Integration::default() };
        let request = wire::CreateIntegrationRequest { integration: Some(integration), secret: String::new() };
        Ok(service.create_integration(as_member("acme", request)).await?.into_inner())
    }

    #[tokio::test]
    async fn a_secret_is_shown_when_it_is_made_and_never_again() {
        in_each_service(async |service| {
            let created = create(&service, "tave").await.expect("created");
            let integration = created.integration.expect("an integration");
            assert!(created.secret.starts_with("whsec_"));
            assert_eq!(integration.path, format!("/webhooks/tave/{}", integration.id));
            let request = wire::GetIntegrationRequest { id: integration.id.clone() };
            let got = service.get_integration(as_member("acme", request)).await.expect("its own").into_inner();
            assert!(!format!("{got:?}").contains(&created.secret));
            let request = wire::RotateIntegrationSecretRequest { id: integration.id, ..Default::default() };
            let rotated =
                service.rotate_integration_secret(as_member("acme", request)).await.expect("rotated").into_inner();
            assert!(rotated.secret.starts_with("whsec_") && rotated.secret != created.secret);
        })
        .await;
    }

    #[tokio::test]
    async fn another_organizations_integration_is_not_found_by_any_method() {
        in_each_service(async |service| {
            let integration = create(&service, "tave").await.expect("created").integration.expect("an integration");
            let id = || integration.id.clone();
            let got = service.get_integration(as_member("other", wire::GetIntegrationRequest { id: id() })).await;
            let deleted =
                service.delete_integration(as_member("other", wire::DeleteIntegrationRequest { id: id() })).await;
            let rotate = wire::RotateIntegrationSecretRequest { id: id(), ..Default::default() };
            let rotated = service.rotate_integration_secret(as_member("other", rotate)).await;
            let foreign = wire::Integration { organization_id: String::new(), ..integration.clone() };
            let update = wire::UpdateIntegrationRequest { integration: Some(foreign) };
            let updated = service.update_integration(as_member("other", update)).await;
            let connect = wire::ConnectIntegrationRequest { id: id(), credential: None };
            let connected = service.connect_integration(as_member("other", connect)).await;
            let disconnect = wire::DisconnectIntegrationRequest { id: id() };
            let disconnected = service.disconnect_integration(as_member("other", disconnect)).await;
            let tested = service.test_integration(as_member("other", wire::TestIntegrationRequest { id: id() })).await;
            let rotate = wire::RotateIntegrationCredentialRequest { id: id(), ..Default::default() };
            let key_rotated = service.rotate_integration_credential(as_member("other", rotate)).await;
            let errors = [
                got.err(),
                deleted.err(),
                rotated.err(),
                updated.err(),
                connected.err(),
                disconnected.err(),
                tested.err(),
                key_rotated.err(),
            ];
            assert_eq!(errors.map(|error| error.map(|error| error.code())), [Some(Code::NotFound); 8]);
        })
        .await;
    }

    #[tokio::test]
    async fn pages_hold_every_integration_once() {
        in_each_service(async |service| {
            for vendor in ["a", "b", "c"] {
                create(&service, vendor).await.expect("created");
            }
            let (mut token, mut vendors) = (String::new(), Vec::new());
            for size in [2, 1] {
                let request =
                    wire::ListIntegrationsRequest { page_size: size, page_token: token, ..Default::default() };
                let page = service.list_integrations(as_member("acme", request)).await.expect("a page").into_inner();
                vendors.extend(page.integrations.into_iter().map(|integration| integration.vendor));
                token = page.next_page_token;
            }
            vendors.sort();
            assert_eq!((vendors.concat().as_str(), token.as_str()), ("abc", ""));
            let refused = create(&service, "supabase").await.expect_err("a kind's own name");
            assert_eq!(refused.message(), "integration.vendor: is the name of a kind of its own: choose another");
        })
        .await;
    }

    #[tokio::test]
    async fn a_caller_who_leaves_half_way_leaves_no_setting_that_is_not_in_force() {
        in_each_service(async |service| {
            let parameters = [("url".to_owned(), "http://127.0.0.1:9/in".to_owned())].into();
            let kind = wire::IntegrationKind::Connector.into();
            let venue = wire::Integration { kind, connector: "venue".to_owned(), parameters, ..Default::default() };
            let request = wire::CreateIntegrationRequest { integration: Some(venue), secret: String::new() };
            let created = service.create_integration(as_member("acme", request)).await.expect("created").into_inner();
            let created = created.integration.expect("an integration");
            let id = created.id.clone();
            let request =
                wire::UpdateIntegrationRequest { integration: Some(wire::Integration { paused: true, ..created }) };
            let mut update = service.update_integration(as_member("acme", request));
            // Until its own work has begun, and no longer.
            while !service.connecting.credentials.tasks.running().contains_key("integration.change") {
                assert!(futures_util::poll!(&mut update).is_pending());
                tokio::task::yield_now().await;
            }
            drop(update);
            let is_paused = || service.accounts.get(&id).is_some_and(|account| account.integration.settings.paused);
            let in_force = async {
                while !is_paused() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(120), in_force).await.expect("it is in force");
        })
        .await;
    }
}
