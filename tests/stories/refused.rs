//! Endpoints that nobody may have: addresses of the inside in every notation, and settings that don't hold.

use std::collections::HashMap;

use proto::vendorsync::v1::{Endpoint, IntegrationKind, UpdateEndpointRequest};
use tonic::Code;

use super::{
    inbound::create_integration,
    story::{millis, on_each_engine, on_each_engine_with, refused},
};

/// Not let through even in development mode.
const INSIDE: [&str; 31] = [
    "http://10.0.0.1/hook",
    "http://10.1/hook",
    "http://0x0a000001/hook",
    "http://0x0a.0.0.1/hook",
    "http://012.0.0.1/hook",
    "http://167772161/hook",
    "http://[::ffff:10.0.0.1]/hook",
    "http://[::ffff:a00:1]/hook",
    "http://[::10.0.0.1]/hook",
    "http://[64:ff9b::a00:1]/hook",
    "http://[2002:a00:1::]/hook",
    "http://[::ffff:127.0.0.1]/hook",
    "http://[::]/hook",
    "http://0.0.0.0/hook",
    "http://0/hook",
    "http://172.16.0.1/hook",
    "http://192.168.1.1/hook",
    "http://100.64.0.1/hook",
    "http://[fd00::1]/hook",
    "http://[fe80::1]/hook",
    "http://[fec0::1]/hook",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xA9FEA9FE/latest/meta-data/",
    "http://169.254.43518/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://168.63.129.16/metadata",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://１０.0.0.1/hook",
    "http://224.0.0.1/hook",
];

/// Loopback, in the same disguises.
const LOOPBACK: [&str; 8] = [
    "http://127.0.0.1:9/hook",
    "http://127.1:9/hook",
    "http://0x7f000001:9/hook",
    "http://2130706433:9/hook",
    "http://0177.0.0.1:9/hook",
    "http://[::1]:9/hook",
    "http://localhost:9/hook",
    "http://127.255.255.254:9/hook",
];

const MALFORMED: [&str; 14] = [
    "",
    "example.org/hook",
    "//example.org/hook",
    "ftp://example.org/hook",
    "file:///etc/passwd",
    "gopher://example.org/",
    "https:///hook",
    "https://user@example.org/hook",
    "https://user:secret@example.org/hook",
    "https://example.org\\@10.0.0.1/hook",
    "https://example.org/ho ok",
    "https://example.org/hook\r\nx: y",
    "https://example.org/hook#fragment",
    "https://ex%61mple.org/hook",
];

fn at(url: &str) -> Endpoint {
    Endpoint { url: url.to_owned(), event_types: vec!["*".to_owned()], ..Endpoint::default() }
}

#[tokio::test]
async fn no_url_of_the_inside_becomes_an_endpoint_in_any_notation() {
    on_each_engine(async |story| {
        let long = format!("https://example.org/{}", "a".repeat(2048));
        for url in INSIDE.into_iter().chain(MALFORMED).chain([long.as_str()]) {
            let refusal = story.acme.create(at(url)).await.expect_err(url);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{url}: {refusal:?}");
            assert!(refusal.message().starts_with("endpoint.url: "), "{url}: {}", refusal.message());
        }
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_can_not_be_moved_to_the_inside_either() {
    on_each_engine(async |story| {
        let subscriber = story.acme.subscribe().await;
        let before = subscriber.endpoint().await;
        for url in ["http://10.0.0.1/hook", "http://169.254.169.254/", "ftp://example.org/"] {
            let moved = Endpoint { url: url.to_owned(), ..before.clone() };
            let request = UpdateEndpointRequest { endpoint: Some(moved) };
            let refusal = refused(story.acme.endpoints().update_endpoint(request).await);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{url}: {refusal:?}");
        }
        assert_eq!(subscriber.endpoint().await, before);
    })
    .await;
}

#[tokio::test]
async fn our_own_ports_are_nobodys_endpoint() {
    on_each_engine(async |story| {
        let all = story.system.addresses;
        for address in [all.router, all.vendor_sync, all.notifier, all.gateway] {
            let port = address.port();
            for host in ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "127.9.9.9"] {
                let url = format!("http://{host}:{port}/webhooks/client-sync");
                let refusal = story.acme.create(at(&url)).await.expect_err(&url);
                assert_eq!(refusal.code(), Code::InvalidArgument, "{url}: {refusal:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn where_loopback_is_not_let_through_no_name_of_it_is() {
    // Some network must be open, else development mode opens loopback.
    let elsewhere = [("WEDSYNC_OUTBOUND__ALLOW_NETWORKS", "192.0.2.1/32"), ("WEDSYNC_OUTBOUND__ALLOW_HTTP", "true")];
    on_each_engine_with(&elsewhere, async |story| {
        for url in LOOPBACK.into_iter().chain(INSIDE) {
            let refusal = story.acme.create(at(url)).await.expect_err(url);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{url}: {refusal:?}");
        }
        story.acme.create(at("http://192.0.2.1/hook")).await.expect("this one network is open");
        let refusal = story.acme.create(at("http://192.0.2.2/hook")).await.expect_err("its neighbour isn't");
        assert_eq!(refusal.code(), Code::InvalidArgument);
    })
    .await;
}

#[tokio::test]
async fn plain_http_is_refused_where_it_is_not_let_through() {
    let strict = [("WEDSYNC_OUTBOUND__ALLOW_NETWORKS", "192.0.2.1/32")];
    on_each_engine_with(&strict, async |story| {
        let refusal = story.acme.create(at("http://192.0.2.1/hook")).await.expect_err("it isn't encrypted");
        assert!(refusal.message().contains("https"), "{}", refusal.message());
        story.acme.create(at("https://192.0.2.1/hook")).await.expect("it is encrypted");
    })
    .await;
}

#[tokio::test]
async fn a_setting_that_does_not_hold_is_refused_by_its_name() {
    on_each_engine(async |story| {
        let base = || at("http://127.0.0.1:9/hook");
        let header = |name: &str, value: &str| HashMap::from([(name.to_owned(), value.to_owned())]);
        let text = |text: &str| text.to_owned();
        let cases = [
            ("event_types", Endpoint { event_types: vec![], ..base() }),
            ("event_types", Endpoint { event_types: vec![text("a*")], ..base() }),
            ("supplier_id", Endpoint { supplier_id: text("a b"), ..base() }),
            ("rate_limit_per_minute", Endpoint { rate_limit_per_minute: 1_000_001, ..base() }),
            ("timeout", Endpoint { timeout: Some(millis(999)), ..base() }),
            ("timeout", Endpoint { timeout: Some(millis(30_001)), ..base() }),
            ("retry_schedule", Endpoint { retry_schedule: vec![millis(1); 65], ..base() }),
            ("disable_after", Endpoint { disable_after: Some(millis(1)), ..base() }),
            ("headers", Endpoint { headers: header("host", "example.org"), ..base() }),
            ("headers", Endpoint { headers: header("webhook-id", "mine"), ..base() }),
            ("headers", Endpoint { headers: header("X-WedSync-Source", "realtime"), ..base() }),
            ("headers", Endpoint { headers: header("x-fine", "a\r\nb: c"), ..base() }),
            ("transformation", Endpoint { transformation: text("{"), ..base() }),
            ("transformation", Endpoint { transformation: text(r#"{"a":"new.("}"#), ..base() }),
            ("condition", Endpoint { condition: text("new.("), ..base() }),
            ("condition", Endpoint { condition: text("secrets.key"), ..base() }),
            ("condition", Endpoint { condition: "a".repeat(17 * 1024), ..base() }),
        ];
        for (field, endpoint) in cases {
            let refusal = story.acme.create(endpoint).await.expect_err(field);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{field}: {refusal:?}");
            assert!(refusal.message().starts_with(&format!("endpoint.{field}: ")), "{field}: {}", refusal.message());
        }
    })
    .await;
}

#[tokio::test]
async fn an_expression_that_does_not_compile_is_refused_with_its_line() {
    on_each_engine(async |story| {
        let condition = "new.guest_count > 100\n  and new.venue_id ==".to_owned();
        let refusal = story.acme.create(Endpoint { condition, ..at("http://127.0.0.1:9/hook") }).await;
        let refusal = refusal.expect_err("it doesn't compile");
        assert!(refusal.message().starts_with("endpoint.condition: line 2: "), "{}", refusal.message());
        let transformation = "{\"fine\": \"new.id\",\n \"guests\": {\"now\": \"new.(\"}}".to_owned();
        let refusal = story.acme.create(Endpoint { transformation, ..at("http://127.0.0.1:9/hook") }).await;
        let refusal = refusal.expect_err("it doesn't compile");
        assert!(refusal.message().contains("$.guests.now") && refusal.message().contains("line "), "{refusal:?}");
    })
    .await;
}

#[tokio::test]
async fn an_integration_that_does_not_hold_is_refused_by_its_name() {
    use proto::vendorsync::v1::Integration;
    on_each_engine(async |story| {
        let signed = || Integration {
            kind: IntegrationKind::SignedWebhook.into(),
            vendor: "hub".to_owned(),
            ..Integration::default()
        };
        let cases = [
            ("kind", Integration::default(), ""),
            ("vendor", Integration { vendor: "Hub Spot".to_owned(), ..signed() }, ""),
            ("vendor", Integration { vendor: "supabase".to_owned(), ..signed() }, ""),
            ("rate_limit_per_hour", Integration { rate_limit_per_hour: 100_001, ..signed() }, ""),
            ("event_type", Integration { event_type: "body.(".to_owned(), ..signed() }, ""),
            ("transformation", Integration { transformation: "{".to_owned(), ..signed() }, ""),
            ("secret_header", Integration { secret_header: "x-mine".to_owned(), ..signed() }, ""),
            ("secret", signed(), "too-short"),
        ];
        for (field, integration, secret) in cases {
            let refusal = create_integration(&story.acme, integration, secret).await.expect_err(field);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{field}: {refusal:?}");
            assert!(refusal.message().contains(&format!("{field}: ")), "{field}: {}", refusal.message());
        }
    })
    .await;
}
