//! Webhooks in over plain HTTP: what is accepted is in the log and goes on to endpoints.

use std::net::SocketAddr;

use chassis::signature::{WebhookSecret, hex_sign, sign};
use proto::{
    router::v1::event::Payload,
    vendorsync::v1::{
        CreateIntegrationRequest, DeliveryState, Endpoint, Integration, IntegrationKind, RotateIntegrationSecretRequest,
    },
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Status;

use super::{
    story::{Tenant, eventually, now, on_each_engine},
    web::{Answer, post},
};

/// The client of all bodies here.
pub(super) const CLIENT: &str = "0198c5a2-7f3e-7000-8000-000000000001";

/// A system that sends us webhooks.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) integration: Integration,
    pub(super) secret: String,
    pub(super) gateway: SocketAddr,
}

pub(super) async fn create_integration(
    tenant: &Tenant,
    integration: Integration,
    secret: &str,
) -> Result<(Integration, String), Status> {
    let request = CreateIntegrationRequest { integration: Some(integration), secret: secret.to_owned() };
    let created = tenant.integrations().create_integration(request).await?.into_inner();
    Ok((created.integration.expect("the answer holds it"), created.secret))
}

impl Sender {
    pub(super) async fn of(tenant: &Tenant, kind: IntegrationKind) -> Self {
        Self::with(tenant, kind, Integration::default()).await
    }

    /// With further settings.
    pub(super) async fn with(tenant: &Tenant, kind: IntegrationKind, settings: Integration) -> Self {
        let vendor = if kind == IntegrationKind::SignedWebhook { "hub".to_owned() } else { String::new() };
        let integration = Integration { kind: kind.into(), vendor, ..settings };
        let (integration, secret) = create_integration(tenant, integration, "").await.expect("an integration");
        Self { integration, secret, gateway: tenant.addresses.gateway }
    }

    /// Sends a body to its own path, naming itself where the path doesn't.
    pub(super) async fn send(&self, headers: &[(&str, &str)], body: &str) -> Answer {
        let named = [headers, &[("x-wedsync-integration", self.integration.id.as_str())]].concat();
        let headers = if self.integration.kind() == IntegrationKind::SignedWebhook { headers } else { &named };
        post(self.gateway, &self.integration.path, headers, body.as_bytes()).await
    }

    /// Sends it as `X-WedSync-Signature` wants it.
    pub(super) async fn send_in_hex(&self, body: &str) -> Answer {
        let signature = hex_sign(self.secret.as_bytes(), body.as_bytes());
        self.send(&[("x-wedsync-signature", &signature)], body).await
    }

    /// Sends it by Standard Webhooks, signed `ago` seconds ago.
    pub(super) async fn send_standard(&self, id: &str, ago: i64, body: &str) -> Answer {
        let secret = WebhookSecret::parse(&self.secret).expect("a secret as it is shown");
        let at = now().as_second() - ago;
        let signature = sign(id, at, body.as_bytes(), &[secret]);
        let at = at.to_string();
        self.send(&[("webhook-id", id), ("webhook-timestamp", &at), ("webhook-signature", &signature)], body).await
    }

    /// Sends it with the secret itself in a header: Supabase can do no more.
    pub(super) async fn send_with_secret(&self, body: &str) -> Answer {
        self.send(&[("x-wedsync-secret", &self.secret)], body).await
    }
}

pub(super) fn client_updated(guests: u32, ago_seconds: i64) -> String {
    let at = now() - jiff::SignedDuration::from_secs(ago_seconds);
    let data = json!({ "clientId": CLIENT, "changes": { "guestCount": guests } });
    json!({ "event": "client.updated", "data": data, "timestamp": at.to_string() }).to_string()
}

pub(super) fn assert_taken(answer: &Answer, duplicate: bool) {
    let expected = if duplicate { json!({ "success": true, "duplicate": true }) } else { json!({ "success": true }) };
    assert_eq!((answer.status, answer.json()), (200, expected));
}

#[tokio::test]
async fn a_client_sync_is_an_event_and_a_webhook() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        let sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        assert_taken(&sender.send_in_hex(&client_updated(120, 0)).await, false);
        let data = json!({ "clientId": CLIENT, "changes": { "guestCount": 120 } });
        let received = subscriber.receiver.next().await;
        assert_eq!((received.header("x-wedsync-event"), &received.json()["data"]), ("client.updated", &data));
        assert_eq!(logged(&story.acme, "client.updated").await, data);
    })
    .await;
}

#[tokio::test]
async fn a_channel_event_is_an_event_on_that_channel_and_a_webhook() {
    on_each_engine(async |story| {
        let scoped = Endpoint { supplier_id: "s1".to_owned(), ..Endpoint::default() };
        let mut subscriber = story.acme.subscribe_with(scoped).await;
        let sender = Sender::of(&story.acme, IntegrationKind::ChannelEvents).await;
        let body = json!({
            "channelName": "supplier:dashboard:s1", "eventType": "availability.changed", "payload": { "free": false },
            "timestamp": now().to_string(),
        });
        assert_taken(&sender.send_in_hex(&body.to_string()).await, false);
        let received = subscriber.receiver.next().await;
        assert_eq!(
            (received.header("x-wedsync-event"), &received.json()["data"]),
            ("availability.changed", &body["payload"])
        );
        let logged = story.acme.logged(&["availability.changed"]).await.remove(0).event.expect("an event");
        assert!(logged.channels.contains(&"supplier:dashboard:s1".to_owned()), "{:?}", logged.channels);
    })
    .await;
}

#[tokio::test]
async fn a_supabase_webhook_is_a_change_and_a_webhook() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        let sender = Sender::of(&story.acme, IntegrationKind::Supabase).await;
        let (old, new) =
            (json!({ "id": "w1", "ceremony_time": "15:00" }), json!({ "id": "w1", "ceremony_time": "16:00" }));
        let body = json!({
            "type": "UPDATE", "table": "wedding_details", "schema": "public", "record": new, "old_record": old,
        });
        assert_taken(&sender.send_with_secret(&body.to_string()).await, false);
        let received = subscriber.receiver.next().await;
        let told = received.json();
        assert_eq!(
            (received.header("x-wedsync-event"), &told["eventType"]),
            ("wedding_details.update", &json!("UPDATE"))
        );
        assert_eq!((&told["oldRecord"], &told["newRecord"]), (&old, &new));
        assert_eq!(story.acme.logged(&["wedding_details.update"]).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_signed_webhook_is_what_its_integration_reads_in_it_and_a_webhook() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        let plain = Sender::of(&story.acme, IntegrationKind::SignedWebhook).await;
        let body = json!({ "type": "booking.updated", "data": { "bookingId": 7, "total": 1.50 } }).to_string();
        assert_taken(&plain.send_standard("msg_1", 0, &body).await, false);
        let received = subscriber.receiver.next().await;
        let booking = json!({ "bookingId": 7, "total": 1.5 });
        assert_eq!((received.header("x-wedsync-event"), &received.json()["data"]), ("booking.updated", &booking));
        let settings = Integration {
            event_type: "concat('payment.', body.what)".to_owned(),
            transformation: r#"{"amount":"body.cents","by":"headers['x-teller']"}"#.to_owned(),
            ..Integration::default()
        };
        let reading = Sender::with(&story.acme, IntegrationKind::SignedWebhook, settings).await;
        let body = json!({ "what": "received", "cents": 990, "timestamp": now().to_string() }).to_string();
        let signature = hex_sign(reading.secret.as_bytes(), body.as_bytes());
        let answer = reading.send(&[("x-wedsync-signature", &signature), ("x-teller", "hub")], &body).await;
        assert_taken(&answer, false);
        let received = subscriber.receiver.next().await;
        let payment = json!({ "amount": 990, "by": "hub" });
        assert_eq!((received.header("x-wedsync-event"), &received.json()["data"]), ("payment.received", &payment));
    })
    .await;
}

#[tokio::test]
async fn every_path_has_its_original_name_too_and_a_signature_may_stand_in_the_body() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        let mut sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        sender.integration.path = format!("/api{}", sender.integration.path);
        let (at, data) = (now().to_string(), json!({ "clientId": CLIENT, "changes": {} }).to_string());
        let signature = hex_sign(sender.secret.as_bytes(), format!("{at}.{data}").as_bytes());
        let body =
            format!(r#"{{"event":"client.created","data":{data},"timestamp":"{at}","signature":"{signature}"}}"#);
        assert_taken(&sender.send(&[], &body).await, false);
        assert_eq!(subscriber.receiver.next().await.header("x-wedsync-event"), "client.created");
    })
    .await;
}

#[tokio::test]
async fn fifty_copies_of_one_webhook_at_once_are_one_event_and_one_webhook() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        for kind in [IntegrationKind::ClientSync, IntegrationKind::SignedWebhook] {
            let sender = Sender::of(&story.acme, kind).await;
            let body = match kind {
                IntegrationKind::ClientSync => client_updated(120, 0),
                _ => json!({ "type": "booking.updated", "data": {} }).to_string(),
            };
            let mut copies = JoinSet::new();
            for _ in 0..50 {
                let (sender, body) = (sender.clone(), body.clone());
                copies.spawn(async move { sender.send_standard("msg_the-one", 0, &body).await });
            }
            let answers = copies.join_all().await;
            assert!(answers.iter().all(|it| it.status == 200 && it.json()["success"] == true), "{answers:?}");
            let first = answers.iter().filter(|it| it.json()["duplicate"] != true).count();
            assert_eq!(first, 1, "one answer says that it is new");
            subscriber.receiver.next().await;
        }
        assert_eq!(story.acme.logged(&[]).await.len(), 2);
        subscriber.settled(2, DeliveryState::Delivered).await;
        subscriber.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn what_was_accepted_is_a_duplicate_after_a_restart_too() {
    on_each_engine(async |mut story| {
        let sender = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let body = client_updated(120, 0);
        assert_taken(&sender.send_in_hex(&body).await, false);
        assert_taken(&sender.send_in_hex(&body).await, true);
        story.system.kill().await;
        story.system.restart().await;
        assert_taken(&sender.send_in_hex(&body).await, true);
        assert_eq!(story.acme.logged(&["client.*"]).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn while_a_secret_is_rotated_either_one_is_believed_and_no_other() {
    on_each_engine(async |story| {
        let old = Sender::of(&story.acme, IntegrationKind::ClientSync).await;
        let rotate = async |overlap| {
            let id = old.integration.id.clone();
            let request = RotateIntegrationSecretRequest { id, overlap, secret: String::new() };
            let rotated = story.acme.integrations().rotate_integration_secret(request).await.expect("a new secret");
            Sender { secret: rotated.into_inner().secret, ..old.clone() }
        };
        let new = rotate(None).await;
        assert_taken(&old.send_in_hex(&client_updated(1, 0)).await, false);
        assert_taken(&new.send_in_hex(&client_updated(2, 0)).await, false);
        let newest = rotate(Some(prost_types::Duration::default())).await;
        assert_taken(&newest.send_in_hex(&client_updated(3, 0)).await, false);
        assert_eq!(new.send_in_hex(&client_updated(4, 0)).await.status, 401, "its overlap was none");
    })
    .await;
}

/// The content of the one event of this type.
async fn logged(tenant: &Tenant, type_: &str) -> Value {
    let event = eventually("it is in the log", async || {
        let mut logged = tenant.logged(&[type_]).await;
        if logged.len() == 1 { Ok(logged.remove(0).event.expect("an event")) } else { Err(format!("{logged:?}")) }
    })
    .await;
    let Some(Payload::Content(content)) = event.payload else { panic!("a domain event") };
    serde_json::from_slice(&content.data).expect("JSON")
}
