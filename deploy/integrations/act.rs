//! What somebody does with an integration: make it, connect it, try it, hold it, end its access.
//!
//! Keys and passwords are read from a file or from standard input, never from the command line: that is in the shell's
//! history, and every process of the machine can read it.

use std::{collections::HashMap, io::Read as _, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use jiff::{Timestamp, tz::TimeZone};
use proto::vendorsync::v1::{
    ConnectIntegrationRequest, ConnectionState, Connector, CreateIntegrationRequest, DisconnectIntegrationRequest,
    GetConnectorRequest, GetIntegrationRequest, GivenCredential, Integration, IntegrationHealth, IntegrationKind,
    ListConnectorsRequest, OAuthClient, Password, TestIntegrationRequest, UpdateIntegrationRequest,
    WatchIntegrationHealthRequest, connector_service_client::ConnectorServiceClient, given_credential::Credential,
    integration_health_service_client::IntegrationHealthServiceClient,
    integration_service_client::IntegrationServiceClient,
};
use tokio::time::timeout;

use crate::{
    client::Authorized,
    table::{say, show},
};

/// Of a key or a password, with what an editor puts behind it.
const SECRET_BYTES: u64 = 16 << 10;

#[derive(Subcommand)]
pub(super) enum Action {
    /// What integrations can be made with; with a name, what that one asks for.
    Connectors {
        /// Its name.
        name: Option<String>,
    },
    /// Make an integration. Its secret, which signs its webhooks, is shown this once.
    Add(Add),
    /// Connect one with its vendor: by a key, or in a browser where the vendor has people sign in.
    Connect(Connect),
    /// Ask its vendor whether it works; fails where it doesn't.
    Test {
        /// Its id.
        integration: String,
    },
    /// Keep changes for it back until it is resumed. Nothing is lost.
    Pause(One),
    /// Have what was kept back go out.
    Resume(One),
    /// End its access at the vendor, and forget what it authenticated with. It stays, and can be connected again.
    Disconnect(One),
}

#[derive(Args)]
pub(super) struct One {
    /// Its id.
    integration: String,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(super) struct Add {
    /// Name of its connector (`wedsync integrations connectors` lists them).
    connector: String,
    /// What the connector asks for, as NAME=VALUE; may be given several times.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
    /// Whose account it is; without one it is the organization's own.
    #[arg(long, value_name = "ID", default_value = "")]
    supplier: String,
    /// For people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Say what would be made, and make nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(super) struct Connect {
    /// Its id.
    integration: String,
    /// A file with the API key, or with --user the password; - reads standard input.
    #[arg(long, value_name = "FILE")]
    key_from: Option<String>,
    /// The user, for a vendor that wants user and password.
    #[arg(long, value_name = "NAME", requires = "key_from")]
    user: Option<String>,
    /// Your own OAuth client at the vendor, with its secret from --key-from. Without it: this installation's.
    #[arg(long, value_name = "ID", conflicts_with = "user")]
    client_id: Option<String>,
    /// Say how it would be connected, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn run(channel: Authorized, action: Action) -> Result<ExitCode> {
    match action {
        Action::Connectors { name: None } => connectors(channel).await?,
        Action::Connectors { name: Some(name) } => describe(&connector(channel, &name).await?),
        Action::Add(add) => add.run(channel).await?,
        Action::Connect(connect) => return connect.run(channel).await,
        Action::Test { integration } => return test(channel, integration).await,
        Action::Pause(one) => hold(channel, one, true).await?,
        Action::Resume(one) => hold(channel, one, false).await?,
        Action::Disconnect(one) => disconnect(channel, one).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn connectors(channel: Authorized) -> Result<()> {
    let mut service = ConnectorServiceClient::new(channel);
    let listed = service.list_connectors(ListConnectorsRequest::default()).await?.into_inner().connectors;
    let rows = listed.into_iter().map(|it| vec![it.name, it.title, it.kind, it.auth.join(" or ")]);
    show(&["connector", "system", "kind", "connected by"], rows);
    Ok(())
}

async fn connector(channel: Authorized, name: &str) -> Result<Connector> {
    let request = GetConnectorRequest { name: name.to_owned() };
    let found = ConnectorServiceClient::new(channel).get_connector(request).await;
    let found = found.map_err(|status| match status.code() {
        tonic::Code::NotFound => {
            anyhow::anyhow!("there is no connector {name}: `wedsync integrations connectors` lists them")
        }
        _ => status.into(),
    })?;
    found.into_inner().connector.context("the answer names no connector")
}

fn describe(connector: &Connector) {
    say(&format!("{} ({}), connected by {}", connector.title, connector.kind, ways(connector)));
    for (heading, sentences) in [("can:", &connector.can), ("can't:", &connector.cannot)] {
        say(&sentences.iter().fold(heading.to_owned(), |text, sentence| format!("{text}\n  - {sentence}")));
    }
    let rows = connector.settings.iter().map(|setting| {
        let needed = if setting.required { "yes" } else { "" };
        vec![setting.name.clone(), needed.to_owned(), setting.default_value.clone(), setting.description.clone()]
    });
    show(&["setting", "needed", "default", ""], rows);
}

fn ways(connector: &Connector) -> String {
    if connector.auth.is_empty() { "nothing".to_owned() } else { connector.auth.join(" or ") }
}

impl Add {
    async fn run(self, channel: Authorized) -> Result<()> {
        let connector = connector(channel.clone(), &self.connector).await?;
        let parameters = HashMap::from_iter(self.settings);
        check(&connector, &parameters)?;
        if self.dry_run {
            say(&format!("would make an integration with {} ({})", connector.title, connector.name));
            return Ok(());
        }
        let integration = Integration {
            kind: IntegrationKind::Connector.into(),
            connector: self.connector,
            supplier_id: self.supplier,
            description: self.description,
            parameters,
            ..Integration::default()
        };
        let request = CreateIntegrationRequest { integration: Some(integration), secret: String::new() };
        let made = IntegrationServiceClient::new(channel).create_integration(request).await?.into_inner();
        let integration = made.integration.context("the answer names no integration")?;
        say(&format!("integration {}\nsecret      {}", integration.id, made.secret));
        if connector.inbound {
            say(&format!("webhooks    {}", integration.path));
        }
        say(&format!("connect it: wedsync integrations connect {}", integration.id));
        Ok(())
    }
}

/// What can be said before anything is made.
fn check(connector: &Connector, given: &HashMap<String, String>) -> Result<()> {
    let name = &connector.name;
    let known = |given: &str| connector.settings.iter().any(|setting| setting.name == given);
    if let Some(strange) = given.keys().find(|given| !known(given)) {
        bail!("{name} has no setting {strange}: `wedsync integrations connectors {name}` lists them");
    }
    let is_missing = |name: &str| given.get(name).is_none_or(String::is_empty);
    let mut required = connector.settings.iter().filter(|setting| setting.required && setting.default_value.is_empty());
    if let Some(missing) = required.find(|setting| is_missing(&setting.name)) {
        bail!("{name} needs --set {}=...: {}", missing.name, missing.description);
    }
    Ok(())
}

impl Connect {
    async fn run(self, channel: Authorized) -> Result<ExitCode> {
        let integration = get(channel.clone(), &self.integration).await?;
        connectable(&integration)?;
        let connector = connector(channel.clone(), &integration.connector).await?;
        let way = self.way(&connector)?;
        if self.dry_run {
            say(&format!("would connect it with {} by {way}", connector.title));
            return Ok(ExitCode::SUCCESS);
        }
        let before = watched(channel.clone(), &self.integration).await?.connection_since;
        let credential = self.credential(way)?;
        let request = ConnectIntegrationRequest { id: self.integration.clone(), credential };
        let begun = IntegrationServiceClient::new(channel.clone()).connect_integration(request).await?.into_inner();
        if begun.authorization_url.is_empty() {
            say(&format!("connected with {}", connector.title));
            return Ok(ExitCode::SUCCESS);
        }
        say(&format!("open this in your browser, and sign in at {}:\n{}", connector.title, begun.authorization_url));
        self.wait(channel, before, begun.expires_at).await
    }

    /// How, as its connector allows.
    fn way(&self, connector: &Connector) -> Result<&'static str> {
        let takes = |way: &str| connector.auth.iter().any(|known| known == way);
        let id = &self.integration;
        match (&self.key_from, &self.client_id) {
            (_, Some(_)) if !takes("oauth2") => bail!("{} has no sign-in: leave --client-id out", connector.title),
            (_, Some(_)) => Ok("oauth2"),
            (Some(_), None) if takes("api_key") || takes("basic") || takes("bearer") => {
                Ok(if self.user.is_some() { "password" } else { "key" })
            }
            (Some(_), None) => bail!("{} takes no key: leave --key-from out", connector.title),
            (None, None) if takes("oauth2") => Ok("oauth2"),
            (None, None) if connector.auth.is_empty() || takes("none") => Ok("nothing"),
            (None, None) => bail!(
                "{} wants a key: wedsync integrations connect {id} --key-from FILE (- reads standard input)",
                connector.title
            ),
        }
    }

    fn credential(&self, way: &str) -> Result<Option<GivenCredential>> {
        let secret = self.key_from.as_deref().map_or_else(|| Ok(String::new()), secret_from)?;
        let credential = match way {
            "oauth2" => {
                let client_id = self.client_id.clone().unwrap_or_default();
                Credential::Oauth(OAuthClient { client_id, client_secret: secret })
            }
            "password" => {
                Credential::Password(Password { user: self.user.clone().unwrap_or_default(), password: secret })
            }
            "key" => Credential::ApiKey(secret),
            _ => return Ok(None),
        };
        Ok(Some(GivenCredential { credential: Some(credential) }))
    }

    /// Until somebody has signed in, or the address is of no use any more.
    async fn wait(
        &self,
        channel: Authorized,
        before: Option<prost_types::Timestamp>,
        until: Option<prost_types::Timestamp>,
    ) -> Result<ExitCode> {
        let until = until.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()).unwrap_or_default();
        #[expect(clippy::disallowed_methods, reason = "a person waits at this machine")]
        let left = std::time::Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
        say(&format!("waiting until {} (Ctrl-C leaves; the address stays good)", time(until, TimeZone::system())));
        let connected = async {
            let request = WatchIntegrationHealthRequest { id: self.integration.clone() };
            let mut told =
                IntegrationHealthServiceClient::new(channel).watch_integration_health(request).await?.into_inner();
            while let Some(told) = told.message().await? {
                let health = told.health.unwrap_or_default();
                if health.connection() == ConnectionState::Connected && health.connection_since != before {
                    return Ok(());
                }
            }
            bail!("the system stopped: `wedsync integrations` shows later whether it is connected")
        };
        tokio::select! {
            connected = timeout(left, connected) => match connected {
                Ok(connected) => connected?,
                Err(_) => bail!("nobody signed in: begin again with wedsync integrations connect {}", self.integration),
            },
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::FAILURE),
        }
        say("connected");
        Ok(ExitCode::SUCCESS)
    }
}

/// Kinds without a connector have nobody to ask.
fn connectable(integration: &Integration) -> Result<()> {
    if integration.connector.is_empty() {
        bail!("{} isn't connected: an integration of its kind only receives webhooks", integration.id);
    }
    Ok(())
}

/// A time of day for whoever waits here, and in which zone that is.
fn time(at: Timestamp, zone: TimeZone) -> String {
    at.to_zoned(zone).strftime("%H:%M %Z").to_string()
}

fn secret_from(file: &str) -> Result<String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().take(SECRET_BYTES).read_to_string(&mut text),
        file => std::fs::File::open(file).and_then(|file| file.take(SECRET_BYTES).read_to_string(&mut text)),
    };
    read.with_context(|| format!("read the key from {file}"))?;
    let secret = text.trim();
    if secret.is_empty() { bail!("{file} holds no key") } else { Ok(secret.to_owned()) }
}

async fn get(channel: Authorized, id: &str) -> Result<Integration> {
    let request = GetIntegrationRequest { id: id.to_owned() };
    let found = IntegrationServiceClient::new(channel).get_integration(request).await;
    let found = found.map_err(|status| match status.code() {
        tonic::Code::NotFound => anyhow::anyhow!("there is no integration {id}: `wedsync integrations` lists them"),
        _ => status.into(),
    })?;
    found.into_inner().integration.context("the answer names no integration")
}

/// How it stands at the moment.
async fn watched(channel: Authorized, id: &str) -> Result<IntegrationHealth> {
    let request = proto::vendorsync::v1::GetIntegrationHealthRequest { id: id.to_owned() };
    let got = IntegrationHealthServiceClient::new(channel).get_integration_health(request).await?;
    Ok(got.into_inner().health.unwrap_or_default())
}

async fn test(channel: Authorized, id: String) -> Result<ExitCode> {
    get(channel.clone(), &id).await?;
    let tested =
        IntegrationServiceClient::new(channel).test_integration(TestIntegrationRequest { id }).await?.into_inner();
    if tested.works {
        say("it works");
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("it doesn't work: {}\n{}", tested.reason, tested.next_step));
    Ok(ExitCode::FAILURE)
}

async fn hold(channel: Authorized, one: One, paused: bool) -> Result<()> {
    let integration = get(channel.clone(), &one.integration).await?;
    let (word, done) = if paused { ("pause", "paused: changes for it wait") } else { ("resume", "resumed") };
    if integration.paused == paused {
        say(if paused { "it is paused already" } else { "it isn't paused" });
        return Ok(());
    }
    if one.dry_run {
        say(&format!("would {word} {}", integration.vendor));
        return Ok(());
    }
    let changed = Integration { paused, ..integration };
    IntegrationServiceClient::new(channel)
        .update_integration(UpdateIntegrationRequest { integration: Some(changed) })
        .await?;
    say(done);
    Ok(())
}

async fn disconnect(channel: Authorized, one: One) -> Result<()> {
    let integration = get(channel.clone(), &one.integration).await?;
    if one.dry_run {
        say(&format!("would end the access to {}, and forget its credential", integration.vendor));
        return Ok(());
    }
    let request = DisconnectIntegrationRequest { id: one.integration };
    let untold = IntegrationServiceClient::new(channel).disconnect_integration(request).await?.into_inner().untold;
    say("disconnected: nothing more is sent to it");
    if !untold.is_empty() {
        say(&format!("the vendor wasn't told ({untold}): end the access there too"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::vendorsync::v1::ConnectorSetting;

    use super::*;

    fn connector(auth: &[&str]) -> Connector {
        let setting = ConnectorSetting { name: "list_id".to_owned(), required: true, ..Default::default() };
        let auth = auth.iter().map(|way| (*way).to_owned()).collect();
        Connector {
            name: "mail".to_owned(),
            title: "Mail".to_owned(),
            auth,
            settings: vec![setting],
            ..Default::default()
        }
    }

    fn connect(key: Option<&str>, client: Option<&str>) -> Connect {
        Connect {
            integration: "i1".to_owned(),
            key_from: key.map(str::to_owned),
            user: None,
            client_id: client.map(str::to_owned),
            dry_run: false,
        }
    }

    #[test]
    fn a_time_is_said_in_the_zone_of_whoever_waits() {
        let at: Timestamp = "2026-06-20T12:32:00Z".parse().expect("a time");
        assert_eq!(time(at, TimeZone::get("Europe/Berlin").expect("it is bundled")), "14:32 CEST");
        assert_eq!(time(at, TimeZone::UTC), "12:32 UTC");
    }

    #[test]
    fn what_only_receives_is_not_connected() {
        let integration = Integration { id: "i1".to_owned(), ..Integration::default() };
        let refused = connectable(&integration).expect_err("it has no connector").to_string();
        assert!(refused.contains("i1") && refused.contains("only receives webhooks"), "{refused}");
        assert!(connectable(&Integration { connector: "mail".to_owned(), ..integration }).is_ok());
    }

    #[test]
    fn what_is_missing_or_strange_is_named_with_the_next_step() {
        let said = |given: &[(&str, &str)]| {
            let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            check(&connector(&[]), &given).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(said(&[]).contains("--set list_id="), "{}", said(&[]));
        assert!(said(&[("list_id", "")]).contains("--set list_id="));
        assert!(said(&[("list_id", "1"), ("dc", "2")]).contains("integrations connectors mail"));
        assert_eq!(said(&[("list_id", "1")]), "");
    }

    #[test]
    fn a_vendor_is_connected_as_its_connector_allows_and_else_the_person_is_told_how() {
        let way = |connect: Connect, auth: &[&str]| connect.way(&connector(auth)).map_err(|error| error.to_string());
        assert_eq!(way(connect(None, None), &["oauth2"]), Ok("oauth2"));
        assert_eq!(way(connect(Some("-"), None), &["api_key"]), Ok("key"));
        assert_eq!(way(connect(Some("-"), Some("app")), &["oauth2"]), Ok("oauth2"));
        assert_eq!(way(connect(None, None), &[]), Ok("nothing"));
        assert!(way(connect(None, None), &["api_key"]).is_err_and(|said| said.contains("--key-from FILE")));
        assert!(way(connect(Some("-"), None), &["oauth2"]).is_err_and(|said| said.contains("leave --key-from out")));
        assert!(
            way(connect(None, Some("app")), &["api_key"]).is_err_and(|said| said.contains("leave --client-id out"))
        );
    }
}
