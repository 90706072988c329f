//! Has endpoints and integrations follow the rows of the configuration tables, one row at a time.
//!
//! Guarantee: a row that comes again changes nothing; what it became has an id that follows from the row, so that being
//! stopped half way leaves nothing twice. A row that can't be followed is listed with the reason, and what it was before
//! stays in force.

use std::sync::Arc;

use chassis::{
    config::Secret,
    error::{Error, Result},
    id::{self, OrganizationId},
    sealed_row,
    secret::DataKeys,
    signature::WebhookSecret,
};
use jiff::SignedDuration;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::{
    Becomes, Tables, Wanted,
    rows::{Noted, Row, Rows},
};
use crate::{
    connector::{Auth, Connector, catalogue::Catalogue},
    credential::{Credentials, Kept, State},
    endpoint::{DISABLE_AFTER, RATE_LIMIT, Settings as EndpointSettings, Since, TIMEOUT},
    event::{Event, Payload},
    integration::{self, DEFAULT_OVERLAP, Integration, Integrations, Kind, Settings},
    manage::Endpoints,
    sync::{Engine, account::Accounts},
};

/// Settings of connectors that say where the account is.
const URLS: [&str; 4] = ["base_url", "api_url", "url", "host"];
const REASON_CHARS: usize = 300;

/// Follows rows. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) tables: Arc<Tables>,
    pub(crate) rows: Rows,
    pub(crate) keys: DataKeys,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) integrations: Integrations,
    pub(crate) credentials: Credentials,
    pub(crate) catalogue: Catalogue,
    pub(crate) accounts: Accounts,
    pub(crate) clock: chassis::clock::Clock,
    /// One row at a time.
    pub(super) turn: Arc<Mutex<()>>,
}

/// A row that is being followed.
pub(super) struct Case<'a> {
    pub(super) organization: &'a OrganizationId,
    pub(super) table: &'a str,
    pub(super) id: String,
    pub(super) before: Option<Row>,
    pub(super) since: Since,
}

impl Keeper {
    /// With the parts of the engine.
    pub(crate) fn new(endpoints: Arc<Endpoints>, tables: Tables, engine: &Engine) -> Self {
        let resolver = &engine.resolver;
        Self {
            tables: Arc::new(tables),
            rows: Rows::new(resolver.store.clone(), resolver.clock.clone()),
            keys: resolver.keys.clone(),
            endpoints,
            integrations: engine.accounts.integrations.clone(),
            credentials: engine.credentials.clone(),
            catalogue: Catalogue::new(resolver.store.clone(), resolver.clock.clone()),
            accounts: engine.accounts.clone(),
            clock: resolver.clock.clone(),
            turn: Arc::default(),
        }
    }

    /// Follows the row that `event` changed, if its table is one of ours. What it says is in force when this returns.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away: the event must come again.
    pub(crate) async fn take(&self, event: &Event) -> Result<()> {
        let Payload::Change { table, old, new, .. } = &event.payload else { return Ok(()) };
        let (old, new) = (self.row(event, old.as_deref())?, self.row(event, new.as_deref())?);
        let id = |row: &Option<Map<String, Value>>| row.as_ref().and_then(|row| self.tables.id(table, row));
        let (was, is) = (id(&old), id(&new));
        if was.is_none() && is.is_none() {
            return Ok(());
        }
        if self.is_a_suppliers(event).await? {
            tracing::warn!(table, "a supplier's own database can't configure its organization; not followed");
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        // One whose own id was changed is another row.
        if let Some(gone) = was.filter(|was| is.as_ref() != Some(was)) {
            self.forget(&self.case(event, table, gone).await?).await?;
        }
        match (new, is) {
            (Some(row), Some(id)) => self.follow(&self.case(event, table, id).await?, &row).await,
            _ => Ok(()),
        }
    }

    async fn case<'a>(&self, event: &'a Event, table: &'a str, id: String) -> Result<Case<'a>> {
        let before = self.rows.get(&event.organization, table, &id).await?;
        let since = Since { log_id: event.log_id.clone(), sequence: event.sequence };
        Ok(Case { organization: &event.organization, table, id, before, since })
    }

    /// Whether it came by an integration that speaks for one supplier, or did: it may be gone by now.
    async fn is_a_suppliers(&self, event: &Event) -> Result<bool> {
        let Some(id) = event.source.strip_prefix("integration:") else { return Ok(false) };
        match self.integrations.get(&event.organization, id).await {
            Ok(sender) => Ok(!sender.settings.supplier_id.is_empty()),
            Err(Error::NotFound(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// A row as the database has it: the router seals what it hands on.
    fn row(&self, event: &Event, row: Option<&[u8]>) -> Result<Option<Map<String, Value>>> {
        let Some(row) = row else { return Ok(None) };
        let opened = sealed_row::open(self.keys.keyring(), &event.organization, row)?;
        Ok(serde_json::from_slice(opened.as_deref().unwrap_or(row)).ok())
    }

    pub(super) async fn follow(&self, case: &Case<'_>, row: &Map<String, Value>) -> Result<()> {
        let key = self.keys.of(case.organization).await?;
        let hash = key.mac("configured row", json!(row).to_string().as_bytes()).to_vec();
        let before = case.before.as_ref();
        // What it was refused for may be over.
        if before.is_some_and(|before| before.hash == hash && before.refused.is_empty()) {
            return Ok(());
        }
        let target = match self.tables.read(case.table, row) {
            Ok(wanted) => self.apply(case, &wanted).await,
            Err(reason) => Err(Error::invalid("row", reason)),
        };
        match target {
            Ok((became, target_id)) => self.note(case, (became, &target_id), &hash, "", None).await,
            Err(error) if error.is_retryable() || matches!(error, Error::Internal(_)) => Err(error),
            Err(error) => {
                let reason = reason(&error);
                if before.is_some_and(|before| before.hash == hash && before.refused == reason) {
                    return Ok(());
                }
                tracing::warn!(reason, table = case.table, row.id = case.id, "a configuration row is refused");
                let became = before.map(|row| (&*row.became, &*row.target_id)).unwrap_or_default();
                self.note(case, became, &hash, &reason, Some(self.seal(case, row).await?)).await
            }
        }
    }

    async fn note(
        &self,
        case: &Case<'_>,
        (became, target_id): (&str, &str),
        hash: &[u8],
        refused: &str,
        kept: Option<Vec<u8>>,
    ) -> Result<()> {
        let row = Noted { table: case.table, id: &case.id, became, target_id, hash, refused, kept };
        self.rows.put(case.organization, &row).await
    }

    async fn apply(&self, case: &Case<'_>, wanted: &Wanted) -> Result<(&'static str, String)> {
        match wanted.becomes {
            Becomes::Endpoint => Ok(("endpoint", self.endpoint(case, wanted).await?)),
            Becomes::Integration => Ok(("integration", self.integration(case, wanted).await?)),
        }
    }

    async fn endpoint(&self, case: &Case<'_>, wanted: &Wanted) -> Result<String> {
        let (id, organization) = (case.target(""), case.organization);
        let secret = wanted.secret.as_ref().map(|secret| WebhookSecret::parse(secret.expose())).transpose();
        let secret = secret.map_err(|_| Error::invalid("secret", "is no Standard Webhooks secret (whsec_...)"))?;
        let settings = endpoint_settings(self.endpoints.vet(&wanted.url).await?, wanted);
        match self.endpoints.book.of(organization, &id) {
            Ok(endpoint) => {
                self.endpoints.update(organization, &id, endpoint.version, settings).await?;
                let newest = endpoint.secrets.first().map(|kept| kept.secret.expose());
                if let Some(secret) = secret.filter(|secret| newest != Some(secret.expose())) {
                    self.endpoints.rotate_to(organization, &id, secret, DEFAULT_OVERLAP).await?;
                }
            }
            Err(_) => self
                .endpoints
                .create_as(&id, organization.clone(), settings, case.since.clone(), secret)
                .await
                .map(drop)?,
        }
        if wanted.is_active {
            self.endpoints.resume(organization, &id).await?;
        } else {
            self.endpoints.pause(organization, &id).await?;
        }
        Ok(id)
    }

    async fn integration(&self, case: &Case<'_>, wanted: &Wanted) -> Result<String> {
        let connector = self.catalogue.get(case.organization, &wanted.connector).await;
        let unknown = |_| Error::invalid("connector", format!("no connector is named {}", wanted.connector));
        let connector = connector
            .map_err(|error| if matches!(error, Error::NotFound(_)) { unknown(error) } else { error })?
            .connector;
        let settings = integration_settings(&connector, wanted).check()?;
        self.accounts.check(case.organization, &settings).await?;
        let id = case.target(connector.name());
        let secret = wanted.secret.as_ref().map_or("", Secret::expose);
        let integration = match self.integrations.get(case.organization, &id).await {
            Ok(integration) => {
                self.integrations.update(case.organization, &id, integration.version, &settings).await?;
                self.rotate_secret(&integration, secret).await?;
                integration
            }
            Err(Error::NotFound(_)) => {
                let secret = integration::secret_or_new(secret)?;
                self.integrations.create_as(id.clone(), case.organization.clone(), settings, &secret).await?
            }
            Err(error) => return Err(error),
        };
        self.connect(&integration, &connector, wanted).await?;
        self.accounts.refresh(case.organization, &id).await?;
        self.remove_other(case, &id).await?;
        Ok(id)
    }

    /// A new secret of the vendor's is in force beside the one before, for a day.
    async fn rotate_secret(&self, integration: &Integration, secret: &str) -> Result<()> {
        // A disabled one verifies nothing, and says no secrets: its newest is put in force again.
        let known = self.integrations.find(&integration.id).await?;
        if secret.is_empty() || known.is_some_and(|(_, known)| known.newest.expose() == secret) {
            return Ok(());
        }
        let secret = integration::secret_or_new(secret)?;
        self.integrations.rotate(&integration.organization, &integration.id, &secret, DEFAULT_OVERLAP).await.map(drop)
    }

    /// Keeps the key sealed; one that takes another's place is used beside it for a day.
    async fn connect(&self, integration: &Integration, connector: &Connector, wanted: &Wanted) -> Result<()> {
        let Some(kept) = kept(connector, wanted)? else { return Ok(()) };
        let connections = &self.credentials.connections;
        let connection = connections.get(integration).await?.filter(|now| now.state == State::Connected);
        let Some((version, before)) = connection.and_then(|now| Some((now.version, now.kept?))) else {
            connections.connect(integration, &kept, &Default::default(), None).await?;
            self.credentials.forget(integration);
            return Ok(());
        };
        if before.credential() == kept.credential() {
            return Ok(());
        }
        let until = self.clock.now() + SignedDuration::try_from(DEFAULT_OVERLAP).unwrap_or(SignedDuration::ZERO);
        connections.rotate(integration, version, (&kept, &before), until).await?;
        self.credentials.forget(integration);
        Ok(())
    }

    /// A row that names another connector than before is another integration.
    async fn remove_other(&self, case: &Case<'_>, id: &str) -> Result<()> {
        match &case.before {
            Some(before) if !before.target_id.is_empty() && before.target_id != id => self.remove(case, before).await,
            _ => Ok(()),
        }
    }

    async fn forget(&self, case: &Case<'_>) -> Result<()> {
        let Some(before) = &case.before else { return Ok(()) };
        self.remove(case, before).await?;
        self.rows.delete(case.organization, case.table, &case.id).await
    }

    async fn remove(&self, case: &Case<'_>, row: &Row) -> Result<()> {
        let removed = match row.became.as_str() {
            "endpoint" => self.endpoints.delete(case.organization, &row.target_id).await.map(drop),
            "integration" => self.delete(case.organization, &row.target_id).await,
            _ => return Ok(()),
        };
        match removed {
            // Somebody deleted it by hand.
            Ok(()) | Err(Error::NotFound(_)) => self.accounts.refresh(case.organization, &row.target_id).await,
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        let integration = self.integrations.get(organization, id).await?;
        self.credentials.let_go(&integration).await?;
        self.integrations.delete(organization, id).await
    }
}

impl Case<'_> {
    /// The id of what the row becomes: a UUID that follows from the row, and from the connector.
    fn target(&self, connector: &str) -> String {
        let row = [self.organization.as_str(), self.table, &self.id, connector].join("\0");
        let hash = Sha256::digest(row);
        let mut bytes: [u8; 16] = std::array::from_fn(|index| hash[index]);
        // RFC 9562, version 8: made by rules of our own.
        bytes[6] = 0x80 | bytes[6] & 0x0F;
        bytes[8] = 0x80 | bytes[8] & 0x3F;
        id::uuid_text(bytes)
    }
}

/// Names the column, not what it holds.
fn reason(error: &Error) -> String {
    let text = match error {
        Error::Invalid { field, reason } if field == "row" => reason.clone(),
        other => other.to_string(),
    };
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect()
}

fn endpoint_settings(url: String, wanted: &Wanted) -> EndpointSettings {
    let all = || vec!["*".to_owned()];
    EndpointSettings {
        supplier_id: wanted.supplier_id.clone(),
        url,
        event_types: if wanted.events.is_empty() { all() } else { wanted.events.clone() },
        condition: String::new(),
        transformation: String::new(),
        headers: Default::default(),
        description: wanted.description.clone(),
        rate_limit: RATE_LIMIT,
        ordered: false,
        timeout: TIMEOUT,
        schedule: Vec::new(),
        granted_fields: Default::default(),
        allowed_fields: Default::default(),
        disable_after: DISABLE_AFTER,
    }
}

fn integration_settings(connector: &Connector, wanted: &Wanted) -> Settings {
    let mut parameters = wanted.parameters.clone();
    parameters.retain(|name, _| connector.settings().contains_key(name));
    let url = URLS.into_iter().find(|name| connector.settings().contains_key(*name));
    if let (Some(url), false) = (url, wanted.url.is_empty()) {
        parameters.insert(url.to_owned(), wanted.url.clone());
    }
    Settings {
        kind: Kind::Connector,
        vendor: String::new(),
        description: wanted.description.clone(),
        supplier_id: wanted.supplier_id.clone(),
        rate_limit_per_hour: 0,
        event_type: String::new(),
        transformation: String::new(),
        secret_header: String::new(),
        disabled: !wanted.is_active,
        connector: connector.name().to_owned(),
        parameters,
        paused: false,
    }
}

/// The credential that the row gives, in the form that the connector takes; none: somebody must connect it.
fn kept(connector: &Connector, wanted: &Wanted) -> Result<Option<Kept>> {
    let auth = connector.auth();
    let takes = |is: fn(&Auth) -> bool| auth.iter().any(is);
    match &wanted.key {
        None if auth.is_empty() || takes(|auth| matches!(auth, Auth::None)) => Ok(Some(Kept::None)),
        None => Ok(None),
        Some(key) if takes(|auth| matches!(auth, Auth::Basic { user: None })) => {
            Ok(Some(Kept::Basic { user: wanted.user.clone(), password: key.clone() }))
        }
        Some(key) => Ok(Some(Kept::Key(key.clone()))),
    }
}
