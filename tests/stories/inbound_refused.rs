//! Webhooks in that are not taken: the table of answers in docs/webhooks.md, row by row, and that nothing came of them.

use chassis::signature::{WebhookSecret, hex_sign, sign};
use proto::vendorsync::v1::{Integration, IntegrationKind, UpdateIntegrationRequest};
use serde_json::json;

use super::{
    inbound::{CLIENT, Sender, assert_taken, client_updated},
    story::{Tenant, now, on_each_engine},
    web::{Answer, announce, get, post},
};

/// A problem as RFC 9457 has it, with the original API's `error`.
fn assert_problem(answer: &Answer, status: u16, error: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.headers.get("content-type").map(String::as_str), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!((&problem["status"], &problem["error"]), (&json!(status), &json!(error)));
    assert!(problem["title"].is_string() && problem["type"].is_string(), "{problem}");
}

async fn assert_nothing_came_of_it(tenant: &Tenant) {
    let logged = tenant.logged(&[]).await;
    assert!(logged.is_empty(), "{logged:?}");
}

#[tokio::test]
async fn what_is_forged_is_not_believed() {
    on_each_engine(async |story| {
        let sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let stranger = Sender { secret: WebhookSecret::generate().expose().to_owned(), ..sender.clone() };
        let body = client_updated(120, 0);
        let signature = hex_sign(sender.secret.as_bytes(), body.as_bytes());
        let altered = body.replace("120", "121");
        let twice = [("x-wedsync-signature", signature.as_str()), ("x-wedsync-signature", signature.as_str())];
        let answers = [
            ("unsigned", sender.send(&[], &body).await),
            ("a stranger's", stranger.send_in_hex(&body).await),
            ("a stranger's, standard", stranger.send_standard("msg_1", 0, &body).await),
            ("altered", sender.send(&[("x-wedsync-signature", &signature)], &altered).await),
            ("cut", sender.send(&[("x-wedsync-signature", &signature[..62])], &body).await),
            ("empty", sender.send(&[("x-wedsync-signature", "")], &body).await),
            ("twice", sender.send(&twice, &body).await),
            ("no id", sender.send(&[("webhook-signature", "v1,AAAA")], &body).await),
        ];
        for (what, answer) in answers {
            println!("{what}");
            assert_problem(&answer, 401, "Invalid signature");
            assert!(!answer.body.contains(&sender.secret) && !answer.body.contains("whsec"), "{answer:?}");
        }
        let supabase = Sender::of(&story.acme, IntegrationKind::Supabase).await;
        let body =
            json!({ "type": "DELETE", "table": "t", "schema": "public", "record": null, "old_record": {} }).to_string();
        let stranger = Sender { secret: stranger.secret, ..supabase.clone() };
        for answer in [supabase.send(&[], &body).await, stranger.send_with_secret(&body).await] {
            assert_problem(&answer, 401, "Invalid signature");
        }
        assert_nothing_came_of_it(&story.acme).await;
    })
    .await;
}

#[tokio::test]
async fn what_was_signed_more_than_five_minutes_ago_is_not_believed() {
    on_each_engine(async |story| {
        let sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        for ago in [310, -310] {
            assert_problem(&sender.send_in_hex(&client_updated(1, ago)).await, 401, "Invalid signature");
            assert_problem(&sender.send_standard("msg_1", ago, &client_updated(1, 0)).await, 401, "Invalid signature");
        }
        assert_nothing_came_of_it(&story.acme).await;
        assert_taken(&sender.send_in_hex(&client_updated(1, 290)).await, false);
    })
    .await;
}

#[tokio::test]
async fn what_is_sent_again_is_a_duplicate_and_under_the_same_id_with_another_body_a_conflict() {
    on_each_engine(async |story| {
        let sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let (body, other) = (client_updated(1, 0), client_updated(2, 0));
        assert_taken(&sender.send_standard("msg_1", 0, &body).await, false);
        assert_taken(&sender.send_standard("msg_1", 0, &body).await, true);
        assert_taken(&sender.send_standard("msg_1", 7, &body).await, true);
        // Without its id it is still the same message.
        assert_taken(&sender.send_in_hex(&body).await, true);
        assert_problem(&sender.send_standard("msg_1", 0, &other).await, 409, "Conflict");
        assert_eq!(story.acme.logged(&[]).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn what_is_larger_than_a_mebibyte_is_refused_before_it_is_read() {
    on_each_engine(async |story| {
        let sender = Sender::of(&story.acme, IntegrationKind::SignedWebhook).await;
        let answer = announce(sender.gateway, &sender.integration.path, &[], (1 << 20) + 1).await;
        assert_problem(&answer, 413, "Payload too large");
        let envelope = r#"{"type":"booking.updated","data":""}"#.len();
        let body = json!({ "type": "booking.updated", "data": "a".repeat((1 << 20) - envelope) }).to_string();
        assert_eq!(body.len(), 1 << 20);
        assert_taken(&sender.send_standard("msg_1", 0, &body).await, false);
    })
    .await;
}

#[tokio::test]
async fn an_integration_that_there_is_not_is_not_found_whatever_is_missing() {
    on_each_engine(async |story| {
        let signed = Sender::of(&story.acme, IntegrationKind::SignedWebhook).await;
        let synced = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let (gateway, id) = (signed.gateway, &signed.integration.id);
        let body = client_updated(1, 0);
        let paths = [
            format!("/webhooks/hub/{}", "01890a5d-ac96-774b-bcce-b302099a8057"),
            format!("/webhooks/other/{id}"),
            format!("/webhooks/client-sync/{id}"),
            // Whoever is of one kind is not found on another's path.
            format!("/webhooks/hub/{}", synced.integration.id),
            "/webhooks/hub/..%2f..%2fsecret".to_owned(),
            "/webhooks/hub".to_owned(),
            "/webhooks/client-sync".to_owned(),
        ];
        for path in &paths {
            let answer = post(gateway, path, &[], body.as_bytes()).await;
            assert_problem(&answer, 404, "Not found");
            assert_eq!(answer.json().get("detail"), None, "{path}");
        }
        for path in ["/webhooks/client-sync", "/webhooks/channel-events", "/webhooks/supabase"] {
            let named = [("x-wedsync-integration", id.as_str())];
            assert_problem(&post(gateway, path, &named, body.as_bytes()).await, 404, "Not found");
        }
        assert_eq!(get(gateway, "/webhooks/client-sync", &[]).await.status, 405);
        let disabled = Integration { disabled: true, ..synced.integration.clone() };
        let request = UpdateIntegrationRequest { integration: Some(disabled) };
        story.acme.integrations().update_integration(request).await.expect("it is disabled");
        assert_problem(&synced.send_in_hex(&body).await, 404, "Not found");
        assert_nothing_came_of_it(&story.acme).await;
    })
    .await;
}

#[tokio::test]
async fn a_signed_body_that_is_not_what_it_must_be_is_refused_by_the_fields_name() {
    on_each_engine(async |story| {
        let sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let at = now().to_string();
        let data = json!({ "clientId": CLIENT, "changes": {} });
        let client = |id: &str| json!({ "clientId": id, "changes": {} });
        let cases = [
            ("body", "not json".to_owned()),
            ("body", "[1]".to_owned()),
            ("body", format!("{}1{}", "[".repeat(65), "]".repeat(65))),
            ("event", json!({ "data": data, "timestamp": at }).to_string()),
            ("event", json!({ "event": "client.exploded", "data": data, "timestamp": at }).to_string()),
            ("timestamp", json!({ "event": "client.updated", "data": data }).to_string()),
            ("timestamp", json!({ "event": "client.updated", "data": data, "timestamp": "yesterday" }).to_string()),
            ("data", json!({ "event": "client.updated", "timestamp": at }).to_string()),
            ("data.clientId", json!({ "event": "client.updated", "data": {}, "timestamp": at }).to_string()),
            (
                "data.clientId",
                json!({ "event": "client.updated", "data": client("1 OR 1=1"), "timestamp": at }).to_string(),
            ),
            (
                "data.changes",
                json!({ "event": "client.updated", "data": { "clientId": CLIENT, "changes": 1 }, "timestamp": at })
                    .to_string(),
            ),
        ];
        for (number, (field, body)) in cases.iter().enumerate() {
            let answer = sender.send_standard(&format!("msg_{number}"), 0, body).await;
            assert_problem(&answer, 400, "Invalid request");
            assert_eq!(answer.json()["field"], *field, "{body}: {answer:?}");
        }
        let supabase = Sender::of(&story.acme, IntegrationKind::Supabase).await;
        let body = json!({ "type": "TRUNCATE", "table": "t", "schema": "public" }).to_string();
        let answer = supabase.send_with_secret(&body).await;
        assert_problem(&answer, 400, "Invalid request");
        assert_eq!(answer.json()["field"], "type");
        assert_nothing_came_of_it(&story.acme).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_over_the_hourly_limit_is_told_when_to_come_again() {
    on_each_engine(async |mut story| {
        let limited = Integration { rate_limit_per_hour: 2, ..Integration::default() };
        let sender = Sender::with(&story.acme, IntegrationKind::ClientSync, limited).await;
        let unlimited = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let stranger = Sender { secret: WebhookSecret::generate().expose().to_owned(), ..sender.clone() };
        for guests in 0..5 {
            assert_eq!(stranger.send_in_hex(&client_updated(guests, 0)).await.status, 401);
        }
        let first = client_updated(1, 0);
        assert_taken(&sender.send_in_hex(&first).await, false);
        assert_taken(&sender.send_in_hex(&first).await, true);
        assert_taken(&sender.send_in_hex(&client_updated(2, 0)).await, false);
        let limited = async || {
            let answer = sender.send_in_hex(&client_updated(3, 0)).await;
            assert_problem(&answer, 429, "Rate limit exceeded");
            let wait: u32 = answer.headers["retry-after"].parse().expect("seconds");
            assert!((3_500..=3_600).contains(&wait), "{wait}");
        };
        limited().await;
        assert_taken(&unlimited.send_in_hex(&client_updated(3, 0)).await, false);
        assert!(story.system.stop().await.success(), "{}", story.system.log());
        story.system.restart().await;
        limited().await;
        assert_eq!(story.acme.logged(&[]).await.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_signature_for_one_integration_means_nothing_to_another() {
    on_each_engine(async |story| {
        let one = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let rival = story.tenant("Rival").await;
        let two = Sender::of(&rival, IntegrationKind::ClientSync).await;
        let body = client_updated(1, 0);
        let secret = WebhookSecret::parse(&one.secret).expect("a secret as it is shown");
        let at = now().as_second();
        let signature = sign("msg_1", at, body.as_bytes(), &[secret]);
        let at = at.to_string();
        let headers = [("webhook-id", "msg_1"), ("webhook-timestamp", &at), ("webhook-signature", &signature)];
        assert_problem(&two.send(&headers, &body).await, 401, "Invalid signature");
        assert_taken(&one.send(&headers, &body).await, false);
        assert_nothing_came_of_it(&rival).await;
    })
    .await;
}
