//! How commands talk to a system that runs: its addresses and a key, from its data folder or from the command line.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use proto::router::v1::{
    CreateApiKeyRequest, CreateOrganizationRequest, Organization, Scope,
    organization_service_client::OrganizationServiceClient,
};
use serde::Deserialize;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Which system, and as whom.
#[derive(Args, Clone)]
pub(crate) struct System {
    /// The data folder of a system on this machine, which tells where it listens and holds its keys.
    #[arg(long = "system", value_name = "DIR", default_value = "./data")]
    folder: PathBuf,
    /// An API key; without one, that of the organization `dev`, which is made at the first use in development mode.
    #[arg(long, value_name = "KEY", env = "WEDSYNC_API_KEY", hide_env_values = true)]
    key: Option<String>,
}

#[derive(Deserialize)]
struct Addresses {
    router: SocketAddr,
    vendor_sync: SocketAddr,
}

/// A channel that shows an API key with every call.
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// Shows an API key.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl System {
    /// The router, as the key's organization.
    pub(crate) async fn router(&self) -> Result<Authorized> {
        authorized(self.addresses()?.router, &self.key().await?).await
    }

    /// The router, as the operator, unless a key is given.
    pub(crate) async fn router_as_operator(&self) -> Result<Authorized> {
        let key = self.key.clone().map_or_else(|| self.operator(), Ok)?;
        authorized(self.addresses()?.router, &key).await
    }

    /// vendor-sync, as the key's organization.
    pub(crate) async fn vendor_sync(&self) -> Result<Authorized> {
        authorized(self.addresses()?.vendor_sync, &self.key().await?).await
    }

    fn addresses(&self) -> Result<Addresses> {
        let file = self.folder.join("addresses.json");
        let text = fs::read_to_string(&file).with_context(|| {
            format!(
                "read {}: is `wedsync` running with --data {}, or give --system?",
                file.display(),
                self.folder.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }

    async fn key(&self) -> Result<String> {
        if let Some(key) = &self.key {
            return Ok(key.clone());
        }
        let file = self.folder.join("dev-key");
        if let Ok(key) = fs::read_to_string(&file) {
            return Ok(key.trim().to_owned());
        }
        let key = register(self.addresses()?.router, &self.operator()?, "dev").await?;
        chassis::secret::write_file(&file, &key)?;
        Ok(key)
    }

    fn operator(&self) -> Result<String> {
        let file = self.folder.join("bootstrap-key");
        let key = fs::read_to_string(&file).with_context(|| format!("read {}: give --key instead", file.display()))?;
        Ok(key.trim().to_owned())
    }
}

/// Connects with a key.
pub(crate) async fn authorized(address: SocketAddr, key: &str) -> Result<Authorized> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let channel = endpoint.connect().await.with_context(|| format!("connect to {address}: is `wedsync` running?"))?;
    Ok(InterceptedService::new(channel, Bearer(format!("Bearer {key}").parse()?)))
}

/// Registers an organization, if it isn't there, and gives a key of it that may do everything.
pub(crate) async fn register(router: SocketAddr, operator_key: &str, id: &str) -> Result<String> {
    let mut organizations = OrganizationServiceClient::new(authorized(router, operator_key).await?);
    let organization = Organization { id: id.into(), name: id.into(), ..Default::default() };
    let created =
        organizations.create_organization(CreateOrganizationRequest { organization: Some(organization) }).await;
    if let Err(status) = created
        && status.code() != tonic::Code::AlreadyExists
    {
        return Err(status.into());
    }
    let request =
        CreateApiKeyRequest { organization_id: id.into(), scopes: vec![Scope::Admin.into()], ..Default::default() };
    Ok(organizations.create_api_key(request).await?.into_inner().secret)
}
