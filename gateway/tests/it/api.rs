//! What an organization asks for with its API key: the key is handed on, and the services decide.

use chassis::auth::Role;
use proto::{
    common::v1::Priority,
    router::v1::{ChannelConfiguration, ConfigureChannelResponse},
    vendorsync::v1::{
        BreakerState, ConnectionState, Delivery, DeliveryState, Endpoint, EndpointState, GetEndpointStatisticsResponse,
        IntegrationHealth, ListDeliveriesResponse, ListEndpointsResponse, ListIntegrationHealthResponse,
    },
};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tonic::Status;

use crate::world::{World, problem};

async fn answered(request: RequestBuilder) -> Value {
    let answer = request.bearer_auth("wsk_manager").send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    answer.json().await.expect("JSON")
}

#[tokio::test]
async fn without_a_known_key_that_may_nothing_is_told() {
    let world = World::start().await;
    let paths = ["/webhooks/delivery-status", "/integrations/health", "/api/integrations/health"];
    for request in paths
        .map(|path| world.get(path))
        .into_iter()
        .chain([world.post("/integrations/channel-config").body(r#"{"pattern":"a:*","destinations":[]}"#)])
    {
        let again = || request.try_clone().expect("a body in memory");
        let twice = again().bearer_auth("wsk_manager").bearer_auth("wsk_manager");
        for unknown in [again(), again().bearer_auth("wsk_nobody"), again().basic_auth("wsk_manager", Some("")), twice]
        {
            let answer = unknown.send().await.expect("an answer");
            assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"wedsync\"");
            let problem = problem(answer, 401).await;
            assert!(!problem.to_string().contains("10.0.0.7"), "{problem}");
        }
        let weak = again().bearer_auth("wsk_publisher").send().await.expect("an answer");
        assert_eq!(problem(weak, 403).await["detail"], "this key lacks the scope Manage");
    }
    assert!(world.peers.vendor_sync.list_deliveries.asked().is_empty());
    assert!(world.peers.vendor_sync.list_endpoints.asked().is_empty());
    assert!(world.peers.router.configure_channel.asked().is_empty());
}

#[tokio::test]
async fn deliveries_are_listed_in_the_callers_own_name() {
    let world = World::start().await;
    let delivery = Delivery {
        id: "d1".into(),
        state: DeliveryState::Dead.into(),
        priority: Priority::High.into(),
        attempts: 3,
        last_status_code: 500,
        created_at: Some(prost_types::Timestamp { seconds: 1_777_636_800, nanos: 0 }),
        ..Default::default()
    };
    let page = ListDeliveriesResponse { deliveries: vec![delivery], next_page_token: "next".into() };
    world.peers.vendor_sync.list_deliveries.answers(Ok(page));
    let query = "?state=dead&state=waiting&endpoint_id=e1&event_id=ev%3A1&page_size=7&page_token=here";
    let page = answered(world.get(&format!("/api/webhooks/delivery-status{query}"))).await;
    assert_eq!(page["next_page_token"], "next");
    let delivery = &page["deliveries"][0];
    assert_eq!(
        (&delivery["id"], &delivery["state"], &delivery["priority"]),
        (&json!("d1"), &json!("dead"), &json!("high"))
    );
    assert_eq!(delivery["created_at"], "2026-05-01T12:00:00Z");
    assert_eq!((&delivery["finished_at"], &delivery["last_status_code"]), (&Value::Null, &json!(500)));
    let asked = world.peers.vendor_sync.list_deliveries.only();
    assert_eq!((asked.caller.role, asked.caller.name.as_str()), (Role::Member, "wsk_manager"));
    let request = asked.request;
    assert_eq!((request.endpoint_id.as_str(), request.event_id.as_str()), ("e1", "ev:1"));
    assert_eq!((request.states, request.page_size, request.page_token.as_str()), (vec![4, 1], 7, "here"));
    assert_eq!(request.organization_id, "");
}

#[tokio::test]
async fn a_query_that_means_nothing_is_refused_by_its_name() {
    let world = World::start().await;
    for (query, field) in [("state=gone", "state"), ("page_size=many", "page_size"), ("tenant=other", "tenant")] {
        let request = world.get(&format!("/webhooks/delivery-status?{query}")).bearer_auth("wsk_manager");
        assert_eq!(problem(request.send().await.expect("an answer"), 400).await["field"], field);
    }
    let request = world.get("/integrations/health?since=now").bearer_auth("wsk_manager");
    assert_eq!(problem(request.send().await.expect("an answer"), 400).await["field"], "since");
}

#[tokio::test]
async fn a_channel_is_configured_in_the_callers_own_name() {
    let world = World::start().await;
    let body = json!({ "pattern": "form:response:*", "destinations": [{ "integration": { "kind": "venue" } }] });
    let send = || world.post("/api/integrations/channel-config").body(body.to_string());
    let configuration = ChannelConfiguration { pattern: "form:response:*".into(), ..Default::default() };
    let answer = ConfigureChannelResponse { configuration: Some(configuration) };
    world.peers.router.configure_channel.answers(Ok(answer));
    assert_eq!(answered(send()).await, json!({ "pattern": "form:response:*", "destinations": [], "built_in": false }));
    let asked = world.peers.router.configure_channel.only();
    assert_eq!((asked.caller.name.as_str(), asked.request.pattern.as_str()), ("wsk_manager", "form:response:*"));
    assert_eq!(asked.request.destinations.len(), 1);

    let invalid = chassis::error::Error::invalid("pattern", "must be a channel pattern");
    world.peers.router.configure_channel.answers(Err(invalid.into()));
    let answer = send().bearer_auth("wsk_manager").send().await.expect("an answer");
    assert_eq!(problem(answer, 400).await["field"], "pattern");
    world.peers.router.configure_channel.answers(Err(Status::unavailable("store at 10.0.0.7")));
    let answer = send().bearer_auth("wsk_manager").send().await.expect("an answer");
    assert_eq!(answer.headers()["retry-after"], "1");
    assert!(!problem(answer, 503).await.to_string().contains("10.0.0.7"));
    let answer = world.post("/integrations/channel-config").bearer_auth("wsk_manager").body("{").send().await;
    assert_eq!(problem(answer.expect("an answer"), 400).await["field"], "body");
}

#[tokio::test]
async fn health_shows_services_and_endpoints_without_their_urls() {
    let world = World::start().await;
    world.until_ready(200).await;
    let endpoint = Endpoint {
        id: "e1".into(),
        url: "https://example.com/hook?token=secret".into(),
        state: EndpointState::Active.into(),
        breaker: BreakerState::Open.into(),
        ..Default::default()
    };
    let page = ListEndpointsResponse { endpoints: vec![endpoint], next_page_token: String::new() };
    world.peers.vendor_sync.list_endpoints.answers(Ok(page));
    let statistics = GetEndpointStatisticsResponse {
        attempts: 200,
        failed_attempts: 50,
        waiting: 9,
        latency_p50: Some(prost_types::Duration { seconds: 0, nanos: 1_500_000 }),
        last_success_at: Some(prost_types::Timestamp { seconds: 1_777_636_800, nanos: 0 }),
        ..Default::default()
    };
    world.peers.vendor_sync.statistics.answers(Ok(statistics));
    let report = answered(world.get("/integrations/health")).await;
    let services = ["router", "vendor-sync", "notifier"].map(|name| json!({ "name": name, "serving": true }));
    assert_eq!(report["services"], json!(services));
    assert_eq!(
        (&report["status"], &report["error_rate"], &report["backlog"]),
        (&json!("degraded"), &json!(0.25), &json!(9))
    );
    let endpoint = &report["endpoints"][0];
    assert_eq!(
        (&endpoint["id"], &endpoint["state"], &endpoint["breaker"]),
        (&json!("e1"), &json!("active"), &json!("open"))
    );
    assert_eq!((&endpoint["latency_p50_ms"], &endpoint["latency_p99_ms"]), (&json!(1.5), &Value::Null));
    assert_eq!(endpoint["last_success_at"], "2026-05-01T12:00:00Z");
    assert!(!report.to_string().contains("secret"));
    assert_eq!(world.peers.vendor_sync.statistics.only().caller.role, Role::Member);

    world.peers.vendor_sync.statistics.answers(Err(Status::not_found("endpoint not found")));
    let report = answered(world.get("/api/integrations/health")).await;
    assert_eq!(
        (&report["endpoints"], &report["status"]),
        (&json!([]), &json!("healthy")),
        "deleted since it was listed"
    );
}

#[tokio::test]
async fn health_shows_integrations_with_why_they_need_somebody() {
    let world = World::start().await;
    world.until_ready(200).await;
    let broken = IntegrationHealth {
        id: "i1".into(),
        vendor: "mailchimp".into(),
        connection: ConnectionState::NeedsReconnect.into(),
        connection_reason: "the vendor said invalid_grant".into(),
        attempts: 4,
        failed_attempts: 1,
        ..Default::default()
    };
    let page = ListIntegrationHealthResponse { health: vec![broken], next_page_token: "next".into() };
    world.peers.vendor_sync.list_health.answers(Ok(page));
    let report = answered(world.get("/integrations/health?page_size=7&integration_page_token=here")).await;
    assert_eq!((&report["status"], &report["next_integration_page_token"]), (&json!("degraded"), &json!("next")));
    let integration = &report["integrations"][0];
    assert_eq!(
        (&integration["connection"], &integration["connection_reason"], &integration["error_rate"]),
        (&json!("needs_reconnect"), &json!("the vendor said invalid_grant"), &json!(0.25))
    );
    let asked = world.peers.vendor_sync.list_health.only();
    assert_eq!((asked.request.page_size, asked.request.page_token.as_str()), (7, "here"));
    assert_eq!(asked.caller.role, Role::Member);
}

#[tokio::test]
async fn the_document_that_is_served_is_openapi_3_1() {
    let world = World::start().await;
    let document: Value = world.get("/openapi.json").send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    for path in ["/healthz", "/metrics"] {
        assert!(document["paths"][path]["get"].is_object());
        assert_eq!(world.get(path).send().await.expect("an answer").status(), 200, "{path}");
    }
}
