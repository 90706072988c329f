//! What holds for every path: methods, unknown paths, bounds, the limit of an address, readiness.

use std::time::Duration;

use chassis::{service::Chassis, testing::manual_clock};
use reqwest::Method;

use crate::world::{World, problem};

const PATH: &str = "/webhooks/honeybook/0198c5a2-7f3e-7000-8000-000000000001";

#[tokio::test]
async fn unknown_paths_are_problems_for_every_method() {
    let world = World::start().await;
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
        for path in ["/", "/nowhere", "/api", "/api/openapi.json", "/webhooks", "/webhooks/client-sync/", "//healthz"] {
            problem(world.request(method.clone(), path).send().await.expect("an answer"), 404).await;
        }
    }
    let asterisk = world.raw(b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(asterisk.starts_with("HTTP/1.1 404 "), "{asterisk}");
}

#[tokio::test]
async fn another_method_is_a_405_that_names_those_there_are() {
    let world = World::start().await;
    let posts =
        ["/webhooks/supabase", "/api/webhooks/client-sync", "/webhooks/channel-events", "/integrations/channel-config"];
    for path in posts {
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
            let answer = world.request(method, path).send().await.expect("an answer");
            assert_eq!(answer.headers()["allow"], "POST");
            problem(answer, 405).await;
        }
        assert_eq!(world.request(Method::HEAD, path).send().await.expect("an answer").status(), 405);
    }
    for path in ["/webhooks/delivery-status", "/integrations/health", "/openapi.json"] {
        for method in [Method::POST, Method::OPTIONS] {
            let answer = world.request(method, path).send().await.expect("an answer");
            assert_eq!(answer.headers()["allow"], "GET,HEAD");
            problem(answer, 405).await;
        }
    }
    assert!(world.peers.vendor_sync.receive.asked().is_empty());
}

#[tokio::test]
async fn head_answers_as_get_without_a_body() {
    let world = World::start().await;
    let answer = world.request(Method::HEAD, "/openapi.json").send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/json".parse().unwrap())
    );
    assert!(answer.bytes().await.expect("a body").is_empty());
    let answer = world.request(Method::HEAD, "/integrations/health").send().await.expect("an answer");
    assert_eq!(answer.status(), 401);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let world = World::start().await;
    let long = format!("/webhooks/delivery-status?event_id={}", "a".repeat(8 * 1024));
    problem(world.get(&long).send().await.expect("an answer"), 414).await;
    let wide = (0..80).fold(world.get("/openapi.json"), |request, n| request.header(format!("x-{n}"), "v".repeat(512)));
    problem(wide.send().await.expect("an answer"), 431).await;
}

#[tokio::test]
async fn an_address_over_its_limit_is_told_when_to_come_back() {
    let (time, clock) = manual_clock();
    let mut chassis = Chassis::for_test();
    chassis.clock = clock;
    let world = World::on(chassis, |config| (config.requests_per_minute, config.request_burst) = (30, 3)).await;
    // Unknown paths, refusals and forged addresses count like anything else.
    for path in ["/nowhere", "/integrations/health", PATH] {
        let answer = world.post(path).header("x-forwarded-for", "192.0.2.1").send().await.expect("an answer");
        assert_ne!(answer.status(), 429);
    }
    let answer = world.post(PATH).header("x-forwarded-for", "192.0.2.2").send().await.expect("an answer");
    assert_eq!(answer.headers()["retry-after"], "2");
    problem(answer, 429).await;
    assert_eq!(world.get("/healthz").send().await.expect("an answer").status(), 200, "probes are never limited");
    time.advance(Duration::from_secs(2));
    assert_ne!(world.post(PATH).send().await.expect("an answer").status(), 429);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_sender_has_a_limit_of_its_own() {
    let (_, clock) = manual_clock();
    let mut chassis = Chassis::for_test();
    chassis.clock = clock;
    let world = World::on(chassis, |config| {
        config.trusted_proxies = vec!["127.0.0.0/8".to_owned()];
        config.request_burst = 1;
    })
    .await;
    let from = async |sender: &str| {
        let answer = world.post(PATH).header("x-forwarded-for", sender).send().await.expect("an answer");
        answer.status() != 429
    };
    assert!(from("192.0.2.1").await && from("192.0.2.2").await);
    assert!(!from("192.0.2.1").await);
    assert!(!from("198.51.100.9, 192.0.2.1").await, "what the sender itself wrote is not believed");
    assert!(from("2001:db8::1").await && !from("2001:db8::2").await);
    let seen: Vec<_> = world.peers.vendor_sync.receive.asked();
    let seen: Vec<_> = seen.iter().map(|asked| asked.request.remote_address.as_str()).collect();
    assert_eq!(seen, ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
}

#[tokio::test]
async fn more_than_fits_at_once_is_shed() {
    let world = World::with(|config| config.max_requests_in_flight = 1).await;
    world.peers.vendor_sync.receive.hangs();
    let hanging = world.post(PATH).body("{}").send();
    let shed = async {
        while world.peers.vendor_sync.receive.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        world.post(PATH).body("{}").send().await.expect("an answer")
    };
    let answer = tokio::select! {
        answer = shed => answer,
        answer = hanging => panic!("it hangs, but answered {answer:?}"),
    };
    assert!(answer.headers().contains_key("retry-after"));
    problem(answer, 503).await;
}

#[tokio::test]
async fn one_address_leaves_room_for_others_whatever_it_has_under_way() {
    let world = World::with(|config| {
        config.trusted_proxies = vec!["127.0.0.0/8".to_owned()];
        config.max_requests_in_flight = 8;
    })
    .await;
    world.peers.vendor_sync.receive.hangs();
    let from = |sender: &str| world.post(PATH).header("x-forwarded-for", sender).body("{}").send();
    let hanging = from("192.0.2.1");
    let meanwhile = async {
        while world.peers.vendor_sync.receive.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        let own = from("192.0.2.1").await.expect("an answer");
        let other = world.get("/openapi.json").header("x-forwarded-for", "192.0.2.2").send().await.expect("an answer");
        (own, other.status().as_u16())
    };
    let (own, other) = tokio::select! {
        answers = meanwhile => answers,
        answer = hanging => panic!("it hangs, but answered {answer:?}"),
    };
    assert!(own.headers().contains_key("retry-after"));
    problem(own, 429).await;
    assert_eq!(other, 200);
}

#[tokio::test]
async fn any_page_reads_why_it_was_refused_below_realtime_and_nowhere_else() {
    let (_, clock) = manual_clock();
    let mut chassis = Chassis::for_test();
    chassis.clock = clock;
    let world = World::on(chassis, |config| config.request_burst = 4).await;
    let origin = async |path: &str| {
        let answer = world.post(path).body("{").send().await.expect("an answer");
        (answer.status().as_u16(), answer.headers().get("access-control-allow-origin").is_some())
    };
    let broadcast = "/realtime/v1/api/broadcast";
    assert_eq!(origin(broadcast).await, (401, true));
    assert_eq!(origin("/realtime/v1/sse").await, (405, true));
    assert_eq!(origin(&format!("{broadcast}/a/events/%ff")).await, (400, true), "the path can't be read");
    assert_eq!(origin("/realtime/inspector").await, (405, false));
    assert_eq!(origin(broadcast).await, (429, true));
    assert_eq!(origin("/webhooks/supabase").await, (429, false));
}

#[tokio::test]
async fn it_is_ready_while_every_peer_serves() {
    let (time, clock) = manual_clock();
    let mut chassis = Chassis::for_test();
    chassis.clock = clock;
    let world = World::on(chassis, |_| {}).await;
    world.until_ready(200).await;
    world.peers.notifier.health.set_serving("store", false);
    time.advance(Duration::from_secs(2));
    assert_eq!(world.until_ready(503).await, "notifier is not serving\n");
    world.peers.notifier.health.set_serving("store", true);
    time.advance(Duration::from_secs(2));
    world.until_ready(200).await;
    assert_eq!(world.get("/healthz").send().await.expect("an answer").status(), 200);
    assert!(world.get("/metrics").send().await.expect("an answer").text().await.expect("text").contains("http_"));
}

#[tokio::test]
async fn settings_that_cannot_hold_are_refused_by_name() {
    let refused = async |change: fn(&mut gateway::Config)| {
        let mut config = gateway::Config { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
        change(&mut config);
        format!("{:#}", gateway::start(config, &Chassis::for_test()).await.expect_err("it doesn't start"))
    };
    assert!(refused(|config| config.trusted_proxies = vec!["proxy".to_owned()]).await.contains("trusted_proxies"));
    assert!(refused(|config| config.request_burst = 0).await.contains("request_burst"));
    assert!(refused(|config| config.requests_per_minute = u32::MAX).await.contains("requests_per_minute"));
    assert!(refused(|config| config.realtime.linger_ms = 0).await.contains("linger_ms"));
    assert!(refused(|config| config.realtime.idle_timeout_ms = u64::MAX).await.contains("idle_timeout_ms"));
    assert!(refused(|config| config.body_timeout_ms = 20_000).await.contains("body_timeout_ms"));
    assert!(refused(|config| config.vendor_sync = "http://vendor-sync:7420".to_owned()).await.contains("vendor_sync"));
}
