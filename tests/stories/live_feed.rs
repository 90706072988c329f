//! A gateway whose router goes away and comes back: its sockets stay, miss nothing, and hear nothing twice. Both run here
//! in the test's own process, so that one can stop without the other.

use std::{net::SocketAddr, path::Path};

use chassis::{
    clock::Clock,
    config::{Secret, Shared, StoreSettings},
    secret::generate_master_key,
    service::Chassis,
};
use proto::router::v1::{
    CreateOrganizationRequest, Event, Organization, PublishRequest, event_service_client::EventServiceClient,
    organization_service_client::OrganizationServiceClient,
};
use serde_json::{Value, json};

use super::{
    story::{eventually, told},
    wire::Socket,
};
use crate::harness::{Key, client, signed};

const SECRET: &str = "what only this test and its gateway know";
const ORGANIZATION: &str = "acme";
const TOPIC: &str = "realtime:supplier_s1";

/// A chassis as its own process would have it.
fn chassis(shared: &Shared) -> Chassis {
    Chassis::new(shared.clone(), Clock::System).expect("test settings hold")
}

fn shared() -> Shared {
    let mut shared = Shared::default();
    shared.secrets.master_keys = vec![generate_master_key(&Clock::System)];
    shared.auth.service_secret = Secret::from("a secret that only tests may share".to_owned());
    shared.server.stop_deadline_ms = 5_000;
    shared
}

async fn start_router(folder: &Path, listen: SocketAddr, chassis: &Chassis) -> SocketAddr {
    let url = Secret::from(format!("sqlite:{}", folder.join("router.db").display()));
    let config = router_svc::Config {
        listen,
        bootstrap_key_file: folder.join("key"),
        store: StoreSettings { url, ..router_svc::Config::default().store },
        ..router_svc::Config::default()
    };
    router_svc::start(config, chassis).await.expect("it starts").address
}

async fn start_gateway(router: SocketAddr, chassis: &Chassis) -> SocketAddr {
    let mut config = gateway::Config { listen: anywhere(), router: format!("http://{router}"), ..Default::default() };
    config.realtime.jwt_secret = Secret::from(SECRET.to_owned());
    gateway::start(config, chassis).await.expect("it starts").address
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn paid(number: u64) -> Event {
    let data = json!({ "supplier_id": "s1", "n": number }).to_string();
    Event { organization_id: ORGANIZATION.to_owned(), ..told(&format!("p{number}"), "payment.received", &data) }
}

/// Publishes it once the router takes it.
async fn publish(router: SocketAddr, operator: &Key, event: Event) {
    eventually("it is published", async || {
        let mut events = EventServiceClient::new(client(router, operator));
        let published = events.publish(PublishRequest { event: Some(event.clone()) }).await;
        published.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test]
async fn sockets_outlive_their_router_and_a_join_waits_until_changes_come() {
    let (folder, shared) = (tempfile::tempdir().expect("a temporary folder"), shared());
    let first = chassis(&shared);
    let router = start_router(folder.path(), anywhere(), &first).await;
    let operator = Key(std::fs::read_to_string(folder.path().join("key")).expect("a key").trim().to_owned());
    let mut organizations = OrganizationServiceClient::new(client(router, &operator));
    let organization = Organization { id: ORGANIZATION.to_owned(), name: "Acme".to_owned(), ..Default::default() };
    let request = CreateOrganizationRequest { organization: Some(organization) };
    organizations.create_organization(request).await.expect("an organization");
    let gateway_chassis = chassis(&shared);
    let gateway = start_gateway(router, &gateway_chassis).await;
    let claims = json!({ "organization_id": ORGANIZATION, "supplier_id": "s1", "app_role": "supplier" });
    let token = signed(SECRET, claims);
    let mut stays = Socket::open_at(gateway, &token).await;
    assert_eq!(stays.join("1", TOPIC, json!({})).await["status"], "ok");
    for number in 1..=20 {
        publish(router, &operator, paid(number)).await;
    }
    assert!(first.drain().await, "the router stops");

    let mut waits = Socket::open_at(gateway, &token).await;
    waits.send(json!(["1", "1", TOPIC, "phx_join", {}])).await;
    let second = chassis(&shared);
    start_router(folder.path(), router, &second).await;
    assert_eq!(waits.event(TOPIC, "phx_reply").await["status"], "ok");
    let start = waits.event(TOPIC, "system").await;
    for number in 21..=40 {
        publish(router, &operator, paid(number)).await;
    }
    let number = |told: &Value| told["payload"]["n"].as_u64().expect("a number");
    for expected in 1..=40 {
        assert_eq!(number(&stays.event(TOPIC, "broadcast").await), expected);
    }
    assert_eq!(number(&waits.event(TOPIC, "broadcast").await), 21, "from where it was told that it is: {start}");
    assert!(gateway_chassis.drain().await && second.drain().await, "both stop");
}
