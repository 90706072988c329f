//! Reports on a real store: in every order, and from everybody who isn't the provider.

use chassis::{
    secret::{Keyring, KeyringSettings, generate_master_key},
    signature::{WebhookSecret, sign},
    store as stores,
    testing::on_each_engine,
};
use serde_json::json;

use super::*;
use crate::MIGRATIONS;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn receipts(store: &Store) -> Receipts {
    let mut config = Config::default();
    config.resend.webhook_secret = SECRET.to_owned().into();
    config.whatsapp.verify_token = "ours".to_owned().into();
    config.twilio.auth_token = "12345".to_owned().into();
    config.twilio.callback_url = "https://example.org/callbacks/twilio".to_owned();
    let settings = KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] };
    let keys = DataKeys::new(store.clone(), Keyring::new(&settings).unwrap(), Clock::System);
    Receipts::new(&config, store.clone(), keys, Clock::System, Arc::default()).unwrap()
}

async fn message(store: &Store, uid: [u8; 16]) {
    let notification = format!("n{}", uid[0]);
    let mut tx = store.begin().await.unwrap();
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at)
         VALUES ($1, 'o', 'w', $1, $1, 2, '', $2, 0)",
    ).bind(&notification).bind(&b""[..]).execute(c).await.map(drop)).unwrap();
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority, created_at)
         VALUES ($1, $2, 'o', 'r', 'email', 0, 0, '', 2, 0)",
    ).bind(&uid[..]).bind(&notification).execute(c).await.map(drop)).unwrap();
    tx.commit().await.unwrap();
}

async fn stage(store: &Store, uid: [u8; 16]) -> Option<i64> {
    with!(store.reader(), c => sqlx::query_scalar("SELECT stage FROM receipts WHERE uid = $1")
        .bind(&uid[..]).fetch_optional(c).await)
    .unwrap()
}

/// A report of Resend's as it signs it.
fn report(kind: &str, uid: [u8; 16]) -> Request {
    let data = json!({"email_id": "1", "to": ["ada@example.org"], "tags": {"message": chassis::id::uuid_text(uid)}, "bounce": {"type": "Permanent"}});
    let body = json!({"type": kind, "created_at": "2026-05-01T12:00:00Z", "data": data}).to_string();
    let now = Clock::System.now().as_second();
    let signature = sign("msg_1", now, body.as_bytes(), &[WebhookSecret::parse(SECRET).unwrap()]);
    let headers = [("svix-id", "msg_1".to_owned()), ("svix-timestamp", now.to_string()), ("svix-signature", signature)];
    Request {
        provider: "resend".to_owned(),
        query: String::new(),
        handshake: false,
        headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
        body: body.into(),
    }
}

fn orders(kinds: &[&'static str]) -> Vec<Vec<&'static str>> {
    if kinds.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (place, first) in kinds.iter().enumerate() {
        let rest = [&kinds[..place], &kinds[place + 1..]].concat();
        all.extend(orders(&rest).into_iter().map(|rest| [&[*first][..], &rest].concat()));
    }
    all
}

#[tokio::test]
async fn in_every_order_and_twice_reports_end_in_the_same_stage() {
    on_each_engine(&[&stores::MIGRATIONS, &chassis::lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let receipts = receipts(&store);
        let orders = orders(&["email.sent", "email.delivered", "email.bounced", "email.opened"]);
        assert_eq!(orders.len(), 24);
        for (number, order) in orders.into_iter().enumerate() {
            let uid = [u8::try_from(number).unwrap(); 16];
            message(&store, uid).await;
            for kind in order.iter().chain(&order) {
                assert!(matches!(receipts.receive(&report(kind, uid)).await.unwrap(), Answer::Taken { .. }));
            }
            assert_eq!(stage(&store, uid).await, Some(Stage::Read as i64), "{order:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn only_a_provider_that_is_set_up_and_signs_is_believed() {
    on_each_engine(&[&stores::MIGRATIONS, &chassis::lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let receipts = receipts(&store);
        message(&store, [7; 16]).await;
        let mut forged = report("email.delivered", [7; 16]);
        forged.body = report("email.bounced", [7; 16]).body;
        assert_eq!(receipts.receive(&forged).await.unwrap(), Answer::Refused(Refused::Signature));
        for provider in ["slack", "telegram", ""] {
            let request = Request { provider: provider.to_owned(), ..report("email.delivered", [7; 16]) };
            assert_eq!(receipts.receive(&request).await.unwrap(), Answer::Unknown, "{provider}");
        }
        assert_eq!(stage(&store, [7; 16]).await, None);
        // Of somebody else's message there is nothing to say, and nothing to find out.
        let foreign = receipts.receive(&report("email.delivered", [8; 16])).await.unwrap();
        assert!(matches!(foreign, Answer::Taken { .. }));
        assert_eq!(stage(&store, [8; 16]).await, None);
    })
    .await;
}

#[tokio::test]
async fn each_provider_is_answered_as_it_expects() {
    on_each_engine(&[&stores::MIGRATIONS, &chassis::lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let receipts = receipts(&store);
        let handshake = |token: &str| Request {
            provider: "whatsapp".to_owned(),
            query: format!("hub.mode=subscribe&hub.verify_token={token}&hub.challenge=1158201444"),
            handshake: true,
            headers: HashMap::new(),
            body: bytes::Bytes::new(),
        };
        let challenge = Answer::Taken { content_type: "text/plain", text: "1158201444".to_owned() };
        assert_eq!(receipts.receive(&handshake("ours")).await.unwrap(), challenge);
        assert_eq!(receipts.receive(&handshake("theirs")).await.unwrap(), Answer::Refused(Refused::Token));

        message(&store, [9; 16]).await;
        let query = format!("message={}", chassis::id::uuid_text([9; 16]));
        let signed = format!("https://example.org/callbacks/twilio?{query}MessageSidSM1MessageStatusdelivered");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345");
        let signature =
            base64::Engine::encode(&base64::prelude::BASE64_STANDARD, ring::hmac::sign(&key, signed.as_bytes()));
        let request = Request {
            provider: "twilio".to_owned(),
            query,
            handshake: false,
            headers: [("x-twilio-signature".to_owned(), signature)].into(),
            body: "MessageSid=SM1&MessageStatus=delivered".into(),
        };
        let silence = Answer::Taken { content_type: "text/xml", text: "<Response/>".to_owned() };
        assert_eq!(receipts.receive(&request).await.unwrap(), silence);
        assert_eq!(stage(&store, [9; 16]).await, Some(Stage::Delivered as i64));
    })
    .await;
}
