//! Each line of the table of answers, and what vendor-sync gets to see.

use chassis::auth::Role;
use proto::vendorsync::v1::{ReceiveWebhookResponse, WebhookResult};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tonic::Status;

use crate::world::{World, problem};

const ID: &str = "0198c5a2-7f3e-7000-8000-000000000001";
const PATH: &str = "/webhooks/honeybook/0198c5a2-7f3e-7000-8000-000000000001";
const OWN: [&str; 3] = ["client-sync", "channel-events", "supabase"];

fn result(result: WebhookResult) -> ReceiveWebhookResponse {
    ReceiveWebhookResponse { result: result.into(), ..Default::default() }
}

impl World {
    async fn receives(&self, answer: ReceiveWebhookResponse) -> reqwest::Response {
        self.peers.vendor_sync.receive.answers(Ok(answer));
        self.post(PATH).body("{}").send().await.expect("an answer")
    }
}

#[tokio::test]
async fn what_is_durable_is_answered_with_success() {
    let world = World::start().await;
    let answer = world.receives(result(WebhookResult::Accepted)).await;
    assert_eq!((answer.status().as_u16(), answer.json::<Value>().await.unwrap()), (200, json!({ "success": true })));
    let answer = world.receives(result(WebhookResult::Duplicate)).await;
    let duplicate = json!({ "success": true, "duplicate": true });
    assert_eq!((answer.status().as_u16(), answer.json::<Value>().await.unwrap()), (200, duplicate));
}

#[tokio::test]
async fn each_refusal_has_its_answer() {
    let world = World::start().await;
    let unknown = ReceiveWebhookResponse { detail: "of another tenant".into(), ..result(WebhookResult::Unknown) };
    let unknown = problem(world.receives(unknown).await, 404).await;
    assert_eq!(unknown, json!({ "type": "about:blank", "title": "Not Found", "status": 404, "error": "Not found" }));

    let answer = world.receives(result(WebhookResult::Unverified)).await;
    assert!(answer.headers().contains_key("www-authenticate"));
    assert_eq!(problem(answer, 401).await["error"], "Invalid signature");

    let invalid = result(WebhookResult::Invalid);
    let invalid = ReceiveWebhookResponse { field: "data.clientId".into(), detail: "must be a UUID".into(), ..invalid };
    let invalid = problem(world.receives(invalid).await, 400).await;
    assert_eq!((&invalid["field"], &invalid["detail"]), (&json!("data.clientId"), &json!("must be a UUID")));

    let wait = prost_types::Duration { seconds: 41, nanos: 1 };
    for (kind, status) in [(WebhookResult::Limited, 429), (WebhookResult::Unavailable, 503)] {
        let answer = ReceiveWebhookResponse { retry_after: Some(wait), ..result(kind) };
        let answer = world.receives(answer).await;
        assert_eq!(answer.headers()["retry-after"], "42");
        problem(answer, status).await;
        assert_eq!(world.receives(result(kind)).await.headers()["retry-after"], "1", "always there");
    }

    problem(world.receives(result(WebhookResult::Conflict)).await, 409).await;
    problem(world.receives(result(WebhookResult::Unspecified)).await, 500).await;
}

#[tokio::test]
async fn a_call_that_fails_is_never_a_success_and_tells_nothing() {
    let world = World::start().await;
    let cases = [
        (Status::unavailable("store at /var/lib/secret.db is locked"), 503),
        (Status::deadline_exceeded("secret"), 503),
        (Status::unauthenticated("secret"), 503),
        (Status::permission_denied("secret"), 503),
        (Status::resource_exhausted("secret"), 503),
        (Status::internal("secret"), 500),
    ];
    for (status, expected) in cases {
        world.peers.vendor_sync.receive.answers(Err(status));
        let answer = world.post(PATH).body("{}").send().await.expect("an answer");
        assert_eq!(answer.headers().contains_key("retry-after"), expected == 503);
        let problem = problem(answer, expected).await;
        assert!(!problem.to_string().contains("secret"), "{problem}");
    }
}

#[tokio::test]
async fn a_peer_that_is_away_is_a_503_with_retry_after() {
    let world = World::start().await;
    assert!(world.peers.chassis.drain().await);
    let answer = world.post(PATH).body("{}").send().await.expect("an answer");
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
}

#[tokio::test]
async fn a_peer_that_hangs_is_a_503_at_the_deadline() {
    let world = World::with(|config| (config.request_timeout_ms, config.body_timeout_ms) = (50, 50)).await;
    world.peers.vendor_sync.receive.hangs();
    let answer = world.post(PATH).body("{}").send().await.expect("an answer");
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
}

#[tokio::test]
async fn vendor_sync_sees_the_raw_request_from_the_gateway() {
    let world = World::start().await;
    world.peers.vendor_sync.receive.answers(Ok(result(WebhookResult::Accepted)));
    let body: Vec<u8> = (0..=255).collect();
    let opaque = HeaderValue::from_bytes(b"caf\xe9").unwrap();
    let request = world.post(PATH).header("X-Vendor-Signature", "a").header("X-Vendor-Signature", "b");
    let request = request.header("X-Opaque", opaque).body(body.clone());
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    let asked = world.peers.vendor_sync.receive.only();
    assert_eq!((asked.caller.role, asked.caller.name.as_str()), (Role::Service, "gateway"));
    let request = asked.request;
    assert_eq!((request.vendor.as_str(), request.integration_id.as_str()), ("honeybook", ID));
    assert_eq!((request.body.to_vec(), request.remote_address.as_str()), (body, "127.0.0.1"));
    let values = |name: &str| -> Vec<_> {
        request.headers.iter().filter(|header| header.name == name).map(|header| header.value.to_vec()).collect()
    };
    assert_eq!(values("x-vendor-signature"), [b"a", b"b"], "in order, repeats kept");
    assert_eq!(values("x-opaque"), [b"caf\xe9".to_vec()]);
}

#[tokio::test]
async fn our_own_formats_name_their_integration_in_a_header() {
    let world = World::start().await;
    world.peers.vendor_sync.receive.answers(Ok(result(WebhookResult::Accepted)));
    for (vendor, prefix) in OWN.into_iter().flat_map(|vendor| [(vendor, ""), (vendor, "/api")]) {
        let request = world.post(&format!("{prefix}/webhooks/{vendor}")).header("X-WedSync-Integration", ID);
        assert_eq!(request.body("{}").send().await.expect("an answer").status(), 200, "{prefix} {vendor}");
        let asked = world.peers.vendor_sync.receive.asked().pop().expect("asked").request;
        assert_eq!((asked.vendor.as_str(), asked.integration_id.as_str()), (vendor, ID));
    }
    let vendor = world.post(&format!("/api{PATH}")).body("{}").send().await.expect("an answer");
    assert_eq!(vendor.status(), 200);
}

#[tokio::test]
async fn what_names_no_integration_is_unknown_and_asks_nobody() {
    let world = World::start().await;
    for vendor in OWN {
        let path = format!("/webhooks/{vendor}");
        let twice = world.post(&path).header("X-WedSync-Integration", ID).header("X-WedSync-Integration", ID);
        let wrong = world.post(&path).header("X-WedSync-Integration", "' OR 1=1");
        for request in [world.post(&path), twice, wrong] {
            problem(request.body("{}").send().await.expect("an answer"), 404).await;
        }
    }
    for path in ["/webhooks/a/b%0Ac", "/webhooks/a%2Fb/c", "/webhooks/a/%FF", "/webhooks/a/b/c", "/webhooks/a/"] {
        problem(world.post(path).body("{}").send().await.expect("an answer"), 404).await;
    }
    let long = format!("/webhooks/honeybook/{}", "a".repeat(65));
    problem(world.post(&long).body("{}").send().await.expect("an answer"), 404).await;
    assert!(world.peers.vendor_sync.receive.asked().is_empty());
}

#[tokio::test]
async fn the_senders_trace_is_carried_on_and_else_one_begins() {
    let world = World::start().await;
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for traceparent in [sent, "00-not-a-trace"] {
        world.post(PATH).header("traceparent", traceparent).body("{}").send().await.expect("an answer");
    }
    let [carried, begun] = world.peers.vendor_sync.receive.asked().try_into().expect("asked twice");
    assert_eq!(carried.trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_ne!(carried.trace.to_string(), sent, "a step of its own");
    assert_ne!(begun.trace.trace_id(), carried.trace.trace_id());
}

#[tokio::test]
async fn a_mebibyte_is_taken_and_a_byte_more_is_not() {
    let world = World::start().await;
    world.peers.vendor_sync.receive.answers(Ok(result(WebhookResult::Accepted)));
    let answer = world.post(PATH).body(vec![b' '; 1 << 20]).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);

    let announced =
        format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n", (1 << 20) + 1);
    let answer = world.raw(announced.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("application/problem+json"), "{answer}");

    let mut chunked =
        format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n100001\r\n").into_bytes();
    chunked.resize(chunked.len() + (1 << 20) + 1, b' ');
    let answer = world.raw(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    let usual = world.post(PATH).body(vec![b' '; 8 << 20]).send().await.expect("an answer, though it isn't read");
    problem(usual, 413).await;
    assert_eq!(world.peers.vendor_sync.receive.asked().len(), 1, "only what was small enough");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_ends_in_a_408() {
    let world = World::with(|config| config.body_timeout_ms = 50).await;
    let slow = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf");
    let answer = world.raw(slow.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(world.peers.vendor_sync.receive.asked().is_empty());
}
