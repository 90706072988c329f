//! The stage of vendors' stories: WedSync's own database, captured and written back to, with a wedding and its couple in it;
//! vendors on loopback with accounts at them; and somebody who looks on over a WebSocket.

use std::time::Instant;

use proto::vendorsync::v1::{
    ConnectIntegrationRequest, Delivery, GivenCredential, Integration, IntegrationKind, ListDeliveriesRequest,
    PutConnectorRequest, connector_service_client::ConnectorServiceClient, given_credential::Credential,
};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::time::timeout;
use vendor_sync_svc::testing::vendor::{
    Server, Vendor,
    profile::{Profile, Receiver},
};

use super::{
    inbound::{Sender, create_integration},
    provider::Providers,
    story::{Story, Tenant, eventually},
    wire::{Socket, token},
};
use crate::harness::{Engine, PATIENCE, Source, client, organization};

pub(super) const TABLES: [&str; 2] = ["wedding_details", "core_fields"];
const SETUP: [&str; 4] = [
    "CREATE TABLE wedding_details (id text PRIMARY KEY, organization_id text, couple_id text, bride_name text,
     groom_name text, wedding_date date, ceremony_time time, setup_time time, reception_time time, time_zone text,
     venue_id text, venue_name text, guest_count int, dietary_requirements text, special_requests text,
     venue_notes text, vendor_ids text[], updated_at timestamptz)",
    "ALTER TABLE wedding_details REPLICA IDENTITY FULL",
    "CREATE TABLE core_fields (couple_id text PRIMARY KEY, wedding_id text, organization_id text, first_name text,
     last_name text, email text, phone text, preferences text, dietary_requirements text, updated_at timestamptz)",
    "ALTER TABLE core_fields REPLICA IDENTITY FULL",
];
/// What accounts show their vendors.
pub(super) const KEY: &str = "a-key-of-ours-1";

/// Everything that a vendor's story happens on.
pub(super) struct Linked {
    pub(super) story: Story,
    pub(super) source: Source,
    pub(super) organization: String,
    pub(super) providers: Providers,
}

/// Tells a story on each engine, where there is a PostgreSQL for WedSync's own database. Its wedding `w1`, of couple `c1`,
/// has the suppliers `ada` and `bo` (photographers), `hall` (venue) and `chef` (caterer).
pub(super) async fn on_each_engine_linked(tell: impl AsyncFn(&mut Linked)) {
    for engine in Engine::all() {
        let Some(source) = Source::create(&SETUP).await else { return };
        println!("on {engine:?}");
        let providers = Providers::start().await.expect("a port");
        let settings = providers.settings();
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let system = source.captured_among(&engine, &TABLES, "", &settings).await;
        let acme = Tenant::of(&system, "Acme").await;
        let organization = organization(acme.addresses.router, &acme.key).await;
        source.streams().await;
        let mut linked = Linked { story: Story { system, acme }, source, organization, providers };
        linked.furnish().await;
        Box::pin(tell(&mut linked)).await;
        let Linked { mut story, source, .. } = linked;
        story.system.stop().await;
        source.remove().await;
    }
}

impl Linked {
    async fn furnish(&self) {
        let wedding = format!(
            "INSERT INTO wedding_details VALUES ('w1', '{}', 'c1', 'Rosa', 'Otto', '2027-06-12', '15:00', '10:00', '18:00',
             'Europe/London', 'v1', 'Oak Hall', 120, 'two vegans', 'no flash', 'gate B', '{{ada,bo,hall,chef}}', now())",
            self.organization
        );
        let couple = format!(
            "INSERT INTO core_fields VALUES ('c1', 'w1', '{}', 'Rosa', 'Oak', 'rosa@example.com', '+447700900000',
             'no flash', 'none', now())",
            self.organization
        );
        self.source.run(&wedding).await;
        self.source.run(&couple).await;
        self.source.caught_up().await;
    }

    /// Changes columns of the wedding as the application does; when it was committed.
    pub(super) async fn wedding_is(&self, columns: &str) -> Instant {
        self.source.run(&format!("UPDATE wedding_details SET {columns}, updated_at = now() WHERE id = 'w1'")).await;
        Instant::now()
    }

    /// One column of the only row of a table, as text.
    pub(super) async fn column(&self, table: &str, column: &str) -> String {
        let query = format!("SELECT COALESCE({column}::text, '') FROM {table}");
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.source.pool).await.expect("the database answers")
    }

    /// Waits until a column says this; how long that took.
    pub(super) async fn comes_to_say(&self, table: &str, column: &str, text: &str) {
        eventually(&format!("{table}.{column} is {text}"), async || {
            let now = self.column(table, column).await;
            if now == text { Ok(()) } else { Err(format!("{now}; {:?}", self.all_deliveries().await)) }
        })
        .await;
    }

    /// An account of `supplier` at a vendor, connected with `key`.
    pub(super) async fn link(&self, connector: &str, supplier: &str, url: &str, key: &str) -> Sender {
        self.link_with(connector, supplier, &[("url", url)], key).await
    }

    /// The same with what its connector asks for.
    pub(super) async fn link_with(
        &self,
        connector: &str,
        supplier: &str,
        parameters: &[(&str, &str)],
        key: &str,
    ) -> Sender {
        link(&self.story.acme, connector, supplier, parameters, key).await
    }

    /// WedSync's own database as one of the linked systems.
    pub(super) async fn link_database(&self) -> Sender {
        let url = format!("{}?sslmode=disable", self.source.url);
        link(&self.story.acme, "database", "", &[], &url).await
    }

    /// A receiver of a generic profile, with an account there.
    pub(super) async fn profiled(&self, connector: &str, profile: Profile, supplier: &str) -> Profiled {
        let made_up = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let server = Server::start(Receiver::new(profile, KEY, made_up)).await;
        let sender = self.link(connector, supplier, server.base(), KEY).await;
        *server.vendor() = Receiver::new(profile, KEY, &sender.secret);
        Profiled { sender, server }
    }

    /// A connector of the organization's own: a built-in one whose vendor is at `base`.
    pub(super) async fn moved(&self, connector: &str, base: &str) -> String {
        moved(&self.story.acme, connector, "here", base).await
    }

    /// What was sent to an account, newest first.
    pub(super) async fn deliveries(&self, to: &Sender) -> Vec<Delivery> {
        deliveries(&self.story.acme, to).await
    }

    /// The newest deliveries to anybody.
    async fn all_deliveries(&self) -> Vec<Delivery> {
        let request = ListDeliveriesRequest { page_size: 10, ..ListDeliveriesRequest::default() };
        self.story.acme.deliveries().list_deliveries(request).await.expect("a page").into_inner().deliveries
    }

    /// Somebody of the organization with these claims, on a channel.
    pub(super) async fn viewer(&self, channel: &str, mut claims: Value) -> Viewer {
        claims["organization_id"] = json!(self.organization);
        let mut socket = Socket::open(&self.story.system, &token(&self.story.system, claims)).await;
        let topic = format!("realtime:{channel}");
        let changes = json!([{ "event": "UPDATE", "schema": "public", "table": "wedding_details" }]);
        let reply = socket.join("1", &topic, json!({ "config": { "postgres_changes": changes } })).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        socket.event(&topic, "system").await;
        Viewer { socket, topic }
    }
}

/// A connector of the organization's own: a built-in one whose vendor is at `base`.
pub(super) async fn moved(tenant: &Tenant, connector: &str, place: &str, base: &str) -> String {
    let name = format!("{connector}-{place}");
    let source = format!("name = '{name}'\ntitle = '{place}'\nextends = '{connector}'\nbase_url = '{base}'\n");
    let mut connectors = ConnectorServiceClient::new(client(tenant.addresses.vendor_sync, &tenant.key));
    connectors.put_connector(PutConnectorRequest { source, version: 0 }).await.expect("it holds");
    name
}

/// An account of `supplier` at a vendor, connected with `key`.
pub(super) async fn link(
    tenant: &Tenant,
    connector: &str,
    supplier: &str,
    parameters: &[(&str, &str)],
    key: &str,
) -> Sender {
    let integration = Integration {
        kind: IntegrationKind::Connector.into(),
        connector: connector.to_owned(),
        supplier_id: supplier.to_owned(),
        parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Integration::default()
    };
    let (integration, secret) = create_integration(tenant, integration, "").await.expect("an integration");
    let credential = Some(GivenCredential { credential: Some(Credential::ApiKey(key.to_owned())) });
    let request = ConnectIntegrationRequest { id: integration.id.clone(), credential };
    tenant.integrations().connect_integration(request).await.expect("it connects");
    Sender { integration, secret, gateway: tenant.addresses.gateway }
}

pub(super) async fn deliveries(tenant: &Tenant, to: &Sender) -> Vec<Delivery> {
    let request = ListDeliveriesRequest {
        endpoint_id: to.integration.id.clone(),
        page_size: 500,
        ..ListDeliveriesRequest::default()
    };
    tenant.deliveries().list_deliveries(request).await.expect("a page").into_inner().deliveries
}

/// A vendor's receiver and the account there.
pub(super) struct Profiled {
    pub(super) sender: Sender,
    pub(super) server: Server<Receiver>,
}

impl Profiled {
    /// What it took, once that is so much; and it refused nothing.
    pub(super) async fn took(&self, count: usize) -> Vec<Value> {
        taken(&self.server, "bodies", |receiver| {
            assert!(receiver.refused.is_empty(), "{:?}", receiver.refused);
            if receiver.taken.len() >= count {
                Ok(receiver.taken.clone())
            } else {
                Err(format!("{:?}", receiver.taken))
            }
        })
        .await
    }
}

/// Looks at a vendor until there is what was hoped for.
pub(super) async fn taken<V: Vendor, T>(
    server: &Server<V>,
    what: &str,
    mut look: impl FnMut(&V) -> Result<T, String>,
) -> T {
    eventually(what, async || look(&server.vendor())).await
}

/// Somebody who looks on.
pub(super) struct Viewer {
    socket: Socket,
    topic: String,
}

impl Viewer {
    /// The next thing that they are told: its name, and what it says. A change of a row is `UPDATE`, with the new record.
    pub(super) async fn told(&mut self) -> (String, Value) {
        loop {
            let mut frame = timeout(PATIENCE, self.socket.next()).await.expect("in time").expect("it stays open");
            if frame[2] != self.topic.as_str() {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            match text(&frame[3]).as_str() {
                "broadcast" => return (text(&frame[4]["event"]), frame[4]["payload"].take()),
                "postgres_changes" => {
                    return (text(&frame[4]["data"]["type"]), frame[4]["data"]["record"].take());
                }
                _ => {}
            }
        }
    }

    /// All that they are told up to something: its name, and what it says of `member`.
    pub(super) async fn told_until(&mut self, last: impl Fn(&str, &Value) -> bool) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        loop {
            let (name, said) = self.told().await;
            let is_last = last(&name, &said);
            all.push((name, said));
            if is_last {
                return all;
            }
        }
    }
}
