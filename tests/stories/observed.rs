//! What an operator and an owner can see: metrics, health, and where deliveries stand.

use proto::vendorsync::v1::DeliveryState;
use serde_json::json;

use super::{
    story::{eventually, on_each_engine},
    web::get,
};

#[tokio::test]
async fn metrics_count_the_events_of_the_log_and_name_nobody() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        story.acme.publish_all(&["1", "2", "3"]).await;
        subscriber.receiver.several(3).await;
        subscriber.settled(3, DeliveryState::Delivered).await;
        let all = story.system.addresses;
        for address in [all.router, all.vendor_sync, all.notifier, all.gateway] {
            eventually("the events are counted", async || {
                let metrics = get(address, "/metrics", &[]).await;
                let counted =
                    metrics.body.lines().find_map(|line| line.strip_prefix("log_events_total ")?.parse().ok());
                let delivered = metrics.body.contains("lane_attempts_total{outcome=\"delivered\"} 3");
                let done = counted == Some(3.0) && delivered && metrics.status == 200;
                if done { Ok(()) } else { Err(metrics.body) }
            })
            .await;
        }
        // This one is measured; what every port has beside its service isn't.
        assert_eq!(get(all.gateway, "/openapi.json", &[]).await.status, 200);
        let metrics = get(all.gateway, "/metrics", &[]).await.body;
        for secret in [&subscriber.id, &subscriber.secret, &subscriber.receiver.url(), &story.acme.key.0] {
            assert!(!metrics.contains(secret.as_str()), "{secret} has no place in metrics");
        }
        for metric in ["rpc_duration_seconds", "http_request_duration_seconds"] {
            assert!(metrics.contains(metric), "{metric} is missing:\n{metrics}");
        }
    })
    .await;
}

#[tokio::test]
async fn every_port_says_that_it_lives_and_is_ready() {
    on_each_engine(async |story| {
        let all = story.system.addresses;
        for address in [all.router, all.vendor_sync, all.notifier, all.gateway] {
            for path in ["/healthz", "/readyz"] {
                let answer = get(address, path, &[]).await;
                assert_eq!(answer.status, 200, "{address}{path}: {answer:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_owner_sees_the_health_of_their_own_endpoints_and_nobody_elses() {
    on_each_engine(async |story| {
        let bearer = format!("Bearer {}", story.acme.key.0);
        let mut well = story.acme.subscribe().await;
        let mut ill = story.acme.subscribe().await;
        story.tenant("Rival").await.subscribe().await;
        ill.receiver.answer(&[], 410);
        story.acme.publish_all(&["1"]).await;
        well.receiver.next().await;
        ill.receiver.next().await;
        well.settled(2, DeliveryState::Delivered).await;
        ill.settled(1, DeliveryState::Dead).await;
        for path in ["/integrations/health", "/api/integrations/health"] {
            let answer = get(story.system.addresses.gateway, path, &[("authorization", &bearer)]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let report = answer.json();
            assert_eq!(report["status"], "degraded", "one of them failed: {report}");
            let services = report["services"].as_array().expect("a list");
            assert!(services.len() == 3 && services.iter().all(|it| it["serving"] == true), "{report}");
            let of =
                |id: &str| report["endpoints"].as_array().expect("a list").iter().find(|it| it["id"] == id).cloned();
            let (well, ill) = (of(&well.id).expect("it is ours"), of(&ill.id).expect("it is ours"));
            assert_eq!((&well["status"], &well["state"]), (&json!("healthy"), &json!("active")), "{report}");
            assert_eq!((&ill["status"], &ill["state"]), (&json!("degraded"), &json!("disabled")), "{report}");
            assert_eq!((&ill["dead"], &ill["failed_attempts"]), (&json!(1), &json!(1)), "{report}");
            assert_eq!(report["endpoints"].as_array().map(Vec::len), Some(2), "{report}");
            assert!(!answer.body.contains("/webhook"), "no URL is shown: {report}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_owner_sees_where_their_deliveries_stand() {
    on_each_engine(async |story| {
        let gateway = story.system.addresses.gateway;
        let bearer = format!("Bearer {}", story.acme.key.0);
        let see = async |query: &str| {
            let path = format!("/webhooks/delivery-status{query}");
            get(gateway, &path, &[("authorization", &bearer)]).await
        };
        let (mut ours, mut theirs) = (story.acme.subscribe().await, story.tenant("Rival").await.subscribe().await);
        story.acme.publish_all(&["1", "2", "3"]).await;
        theirs.tenant.publish_all(&["theirs"]).await;
        ours.receiver.several(3).await;
        theirs.receiver.next().await;
        let deliveries = ours.settled(3, DeliveryState::Delivered).await;
        let answer = see("").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let ids = |body: &serde_json::Value| -> Vec<String> {
            let listed = body["deliveries"].as_array().expect("a list");
            listed.iter().map(|it| it["id"].as_str().expect("an id").to_owned()).collect()
        };
        let expected: Vec<_> = deliveries.iter().map(|it| it.id.clone()).collect();
        assert_eq!(ids(&answer.json()), expected);
        let newest = &answer.json()["deliveries"][0];
        assert_eq!(
            (&newest["state"], &newest["attempts"], &newest["event_id"]),
            (&json!("delivered"), &json!(1), &json!("3"))
        );
        assert_eq!(ids(&see("?state=dead").await.json()), [""; 0]);
        assert_eq!(ids(&see("?event_id=2").await.json()).len(), 1);
        let first = see("?page_size=2").await.json();
        let token = first["next_page_token"].as_str().expect("there is more");
        let second = see(&format!("?page_size=2&page_token={token}")).await.json();
        assert_eq!([ids(&first), ids(&second)].concat(), expected);
        assert_eq!(see("?colour=red").await.status, 400);
    })
    .await;
}

#[tokio::test]
async fn nobody_sees_anything_without_a_key() {
    on_each_engine(async |story| {
        let gateway = story.system.addresses.gateway;
        for path in ["/integrations/health", "/webhooks/delivery-status"] {
            for headers in [&[][..], &[("authorization", "Bearer wsk_made-up")], &[("authorization", "Basic YTpi")]] {
                let answer = get(gateway, path, headers).await;
                assert_eq!(
                    (answer.status, &answer.json()["error"]),
                    (401, &json!("Invalid credentials")),
                    "{path} {headers:?}"
                );
                assert!(answer.headers.contains_key("www-authenticate"), "{answer:?}");
            }
        }
    })
    .await;
}
