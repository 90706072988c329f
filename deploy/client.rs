//! How commands talk to a system that runs: addresses and a key, from the command line, the environment, or the data folder
//! of a system on this machine.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use chassis::grpc::is_loopback;
use clap::Args;
use proto::router::v1::{
    CreateApiKeyRequest, CreateOrganizationRequest, GetHeadRequest, Organization, Scope,
    event_service_client::EventServiceClient, organization_service_client::OrganizationServiceClient,
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use crate::serve::{Running, at};

const NO_KEY: &str = "give --key or set WEDSYNC_API_KEY: without a key a command is the organization `dev`, which there is in \
                      development mode on this machine alone";

/// Where a system is.
#[derive(Args, Clone)]
struct Place {
    /// The data folder of a system on this machine, which tells where it listens and holds its keys.
    #[arg(long = "system", value_name = "DIR", default_value = "./data")]
    folder: PathBuf,
    /// The router elsewhere: `https://router.example.com`.
    #[arg(long, value_name = "URL", env = "WEDSYNC_ROUTER_URL")]
    router: Option<String>,
    /// Whether an address beyond this machine may be without TLS, where a mesh encrypts.
    #[arg(long)]
    allow_plaintext: bool,
}

/// Which system, and as whom.
#[derive(Args, Clone)]
pub(crate) struct System {
    #[command(flatten)]
    place: Place,
    /// vendor-sync elsewhere: `https://vendor-sync.example.com`.
    #[arg(long, value_name = "URL", env = "WEDSYNC_VENDOR_SYNC_URL")]
    vendor_sync: Option<String>,
    /// An API key; without one, that of the organization `dev`, which is made at the first use in development mode.
    #[arg(long, value_name = "KEY", env = "WEDSYNC_API_KEY", hide_env_values = true)]
    key: Option<String>,
}

/// Which system, as its operator.
#[derive(Args, Clone)]
pub(crate) struct Operated {
    #[command(flatten)]
    place: Place,
    /// The operator's key, no organization's; without one, that in the system's data folder.
    #[arg(long, value_name = "KEY", env = "WEDSYNC_OPERATOR_KEY", hide_env_values = true)]
    key: Option<String>,
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
        let (url, key) = (self.place.router()?, self.key().await?);
        self.place.authorized(&url, &key).await
    }

    /// vendor-sync, as the key's organization.
    pub(crate) async fn vendor_sync(&self) -> Result<Authorized> {
        let url = match &self.vendor_sync {
            Some(url) => url.clone(),
            None => at(self.place.running("--vendor-sync URL")?.addresses.vendor_sync),
        };
        let key = self.key().await?;
        self.place.authorized(&url, &key).await
    }

    async fn key(&self) -> Result<String> {
        match &self.key {
            Some(key) => Ok(key.clone()),
            None if self.place.router.is_some() || self.vendor_sync.is_some() => bail!(NO_KEY),
            None => self.place.dev_key().await,
        }
    }
}

impl Operated {
    /// The router.
    pub(crate) async fn router(&self) -> Result<Authorized> {
        let key = match &self.key {
            Some(key) => key.clone(),
            None if self.place.router.is_some() => bail!("give the operator's key: --key or WEDSYNC_OPERATOR_KEY"),
            None => self.place.operator()?,
        };
        self.place.authorized(&self.place.router()?, &key).await
    }
}

impl Place {
    fn router(&self) -> Result<String> {
        match &self.router {
            Some(url) => Ok(url.clone()),
            None => Ok(at(self.running("--router URL")?.addresses.router)),
        }
    }

    async fn authorized(&self, url: &str, key: &str) -> Result<Authorized> {
        let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("address {url}"))?;
        let is_plain = endpoint.uri().scheme_str() != Some("https");
        ensure!(
            !is_plain || self.allow_plaintext || is_loopback(endpoint.uri().host().unwrap_or_default()),
            "{url} is beyond this machine and not encrypted: use https, or --allow-plaintext if a mesh encrypts"
        );
        authorized(url, key).await
    }

    /// What a system on this machine said of itself; `otherwise` is how to name one elsewhere.
    fn running(&self, otherwise: &str) -> Result<Running> {
        let file = self.folder.join("addresses.json");
        let folder = self.folder.display();
        let text = fs::read_to_string(&file).with_context(|| {
            format!(
                "read {}: is `wedsync` running with --data {folder}? Else give --system or {otherwise}",
                file.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }

    /// The key of `dev`, made anew where the system doesn't know the one that was kept: its data may be others by now.
    async fn dev_key(&self) -> Result<String> {
        ensure!(self.running("--router URL")?.development, NO_KEY);
        let (router, file) = (self.router()?, self.folder.join("dev-key"));
        if let Ok(key) = fs::read_to_string(&file) {
            let key = key.trim().to_owned();
            let mut events = EventServiceClient::new(authorized(&router, &key).await?);
            let known = events.get_head(GetHeadRequest::default()).await;
            if !known.is_err_and(|status| status.code() == Code::Unauthenticated) {
                return Ok(key);
            }
        }
        let key = register(&router, &self.operator()?, "dev").await?;
        chassis::secret::write_file(&file, &key)?;
        Ok(key)
    }

    fn operator(&self) -> Result<String> {
        let file = self.folder.join("bootstrap-key");
        let key = fs::read_to_string(&file).with_context(|| format!("read {}: give --key instead", file.display()))?;
        Ok(key.trim().to_owned())
    }
}

/// Connects with a key, by TLS where the address says `https`: the server's certificate must be one that everybody trusts.
pub(crate) async fn authorized(url: &str, key: &str) -> Result<Authorized> {
    let mut endpoint =
        Endpoint::from_shared(url.to_owned()).with_context(|| format!("address {url}"))?.tcp_nodelay(true);
    if endpoint.uri().scheme_str() == Some("https") {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots())?;
    }
    let channel = endpoint.connect().await.with_context(|| format!("connect to {url}: is `wedsync` running?"))?;
    Ok(InterceptedService::new(channel, Bearer(format!("Bearer {key}").parse()?)))
}

/// Registers an organization, if it isn't there, and gives a key of it that may do everything.
pub(crate) async fn register(router: &str, operator_key: &str, id: &str) -> Result<String> {
    let mut organizations = OrganizationServiceClient::new(authorized(router, operator_key).await?);
    let organization = Organization { id: id.into(), name: id.into(), ..Default::default() };
    let created =
        organizations.create_organization(CreateOrganizationRequest { organization: Some(organization) }).await;
    if let Err(status) = created
        && status.code() != Code::AlreadyExists
    {
        return Err(status.into());
    }
    let request =
        CreateApiKeyRequest { organization_id: id.into(), scopes: vec![Scope::Admin.into()], ..Default::default() };
    Ok(organizations.create_api_key(request).await?.into_inner().secret)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        system: System,
    }

    /// What a command is told that can't begin; `development` is what the system in the folder says of itself.
    async fn refusal(folder: &Path, development: bool, further: &[&str]) -> String {
        let here = "127.0.0.1:9";
        let addresses = format!(
            "{{\"router\":\"{here}\",\"vendor_sync\":\"{here}\",\"notifier\":\"{here}\",\"gateway\":\"{here}\",\"development\":{development}}}"
        );
        fs::write(folder.join("addresses.json"), addresses).expect("written");
        fs::write(folder.join("bootstrap-key"), "the operator's").expect("written");
        let arguments = ["wedsync", "--system", folder.to_str().expect("plain")];
        let system = Cli::parse_from(arguments.iter().chain(further)).system;
        let refused = system.vendor_sync().await.map(drop).expect_err("nobody listens there");
        assert!(!folder.join("dev-key").exists(), "nothing is made");
        format!("{refused:#}")
    }

    #[tokio::test]
    async fn a_command_without_a_key_makes_one_in_development_mode_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = refusal(folder.path(), false, &[]).await;
        assert!(refused.contains("--key") && refused.contains("development mode"), "{refused}");
        let refused = refusal(folder.path(), true, &[]).await;
        assert!(refused.contains("connect to http://127.0.0.1:9"), "it is tried: {refused}");
        let refused = refusal(folder.path(), true, &["--vendor-sync", "http://127.0.0.1:9"]).await;
        assert!(refused.contains("--key"), "a system elsewhere has no `dev`: {refused}");
    }

    #[tokio::test]
    async fn a_system_elsewhere_is_reached_by_its_address_and_no_key_goes_there_in_the_clear() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = async |address: &str, further: &[&str]| {
            let arguments = [&["--key", "k", "--vendor-sync", address], further].concat();
            refusal(folder.path(), false, &arguments).await
        };
        let plain = "http://192.0.2.1.invalid:9";
        assert!(refused(plain, &[]).await.contains("not encrypted"));
        for tried in [refused(plain, &["--allow-plaintext"]).await, refused("https://localhost:9", &[]).await] {
            assert!(tried.contains("connect to http"), "{tried}");
        }
        fs::remove_file(folder.path().join("addresses.json")).expect("it was written");
        let system = ["wedsync", "--key", "k", "--system", folder.path().to_str().expect("plain")];
        let refused = Cli::parse_from(system).system.vendor_sync().await.map(drop).expect_err("nothing is known");
        assert!(format!("{refused:#}").contains("--vendor-sync URL"), "{refused:#}");
    }
}
