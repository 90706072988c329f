//! The bounds of live subscriptions: who is one too many is refused in the protocol's words and let in again, an
//! organization that nobody listens to is no longer followed, and tokens are believed by the keys that are published now.

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::{
    live_wire::{TOPIC, reason, start_with},
    story::{Story, eventually},
    web,
    wire::{Socket, encoded},
};
use crate::harness::now;

#[tokio::test]
async fn who_joins_too_fast_is_refused_and_let_in_a_moment_later() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__JOINS_PER_SECOND", "2")]).await;
    let mut socket = Socket::open(&story.system, &story.supplier("s1").await).await;
    let mut joined = Vec::new();
    for number in 0..6 {
        joined.push(socket.join(&number.to_string(), &format!("realtime:room-{number}"), json!({})).await);
    }
    let refused = joined.iter().find(|reply| reply["status"] == "error").expect("six at once are too many");
    assert!(reason(refused).starts_with("ClientJoinRateLimitReached: "), "{refused}");
    eventually("it is let in", async || {
        let reply = socket.join("9", TOPIC, json!({})).await;
        if reply["status"] == "ok" { Ok(()) } else { Err(reply.to_string()) }
    })
    .await;
    story.pay(1).await;
    assert_eq!(socket.event(TOPIC, "broadcast").await["payload"]["n"], 1);
}

#[tokio::test]
async fn a_socket_beyond_the_limit_is_refused_until_another_one_leaves() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__MAX_CONNECTIONS", "2")]).await;
    let key = story.supplier("s1").await;
    let (first, _second) = (Socket::open(&story.system, &key).await, Socket::open(&story.system, &key).await);
    let (status, body) = Socket::ask(&story.system, &key).await.err().expect("it is one too many");
    assert!(status == 429 && body.contains("ConnectionRateLimitReached: "), "{status} {body}");
    drop(first);
    let mut third = eventually("there is room", async || {
        Socket::ask(&story.system, &key).await.map_err(|refused| format!("{refused:?}"))
    })
    .await;
    assert_eq!(third.join("1", TOPIC, json!({})).await["status"], "ok");
}

#[tokio::test]
async fn an_organization_beyond_its_connections_is_refused_alone() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__CONNECTIONS_PER_ORGANIZATION", "1")]).await;
    let (key, other) = (story.supplier("s1").await, story.tenant("Other").await);
    let mut first = Socket::open(&story.system, &key).await;
    assert_eq!(first.join("1", TOPIC, json!({})).await["status"], "ok");
    let mut second = Socket::open(&story.system, &key).await;
    let refused = second.join("1", TOPIC, json!({})).await;
    assert!(reason(&refused).starts_with("ConnectionRateLimitReached: "), "{refused}");
    let mut foreign = Socket::open(&story.system, &story.supplier_of(&other, "s1").await).await;
    assert_eq!(foreign.join("1", TOPIC, json!({})).await["status"], "ok", "another organization has its own");
    drop(first);
    eventually("there is room", async || {
        let reply = second.join("2", TOPIC, json!({})).await;
        if reply["status"] == "ok" { Ok(()) } else { Err(reply.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn an_organization_that_nobody_listens_to_is_no_longer_followed_and_the_next_one_to_come_hears_all() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__LINGER_MS", "200")]).await;
    let key = story.supplier("s1").await;
    for number in 1..=2 {
        let mut socket = Socket::open(&story.system, &key).await;
        assert_eq!(socket.join("1", TOPIC, json!({})).await["status"], "ok");
        socket.event(TOPIC, "system").await;
        assert_eq!(hubs(&story).await, "1");
        story.pay(number).await;
        assert_eq!(socket.event(TOPIC, "broadcast").await["payload"]["n"], number);
        drop(socket);
        eventually("its hub ends", async || match hubs(&story).await {
            none if none == "0" => Ok(()),
            some => Err(format!("{some} hubs")),
        })
        .await;
    }
}

/// How many organizations are followed.
async fn hubs(story: &Story) -> String {
    let metrics = web::get(story.system.addresses.gateway, "/metrics", &[]).await.body;
    metrics.lines().find_map(|line| line.strip_prefix("realtime_hubs ")).unwrap_or("none").to_owned()
}

/// An issuer's key.
struct Key {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn make(id: &'static str) -> Self {
        let (made_by, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(made_by, &random).expect("a key");
        Self { id, pair: EcdsaKeyPair::from_pkcs8(made_by, document.as_ref(), &random).expect("it is one") }
    }

    /// As it is published (RFC 7518, section 6.2).
    fn published(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "kid": self.id, "x": encoded(x), "y": encoded(y) })
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": self.id }).to_string();
        let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.to_string().as_bytes()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("it signs");
        format!("{signed}.{}", encoded(signature.as_ref()))
    }
}

/// A key that nobody has seen is looked for at most every 30 s, so this test takes as long.
#[tokio::test]
async fn an_issuer_that_changes_its_key_is_believed_by_the_new_one_alone() {
    let (old, new) = (Key::make("old"), Key::make("new"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("jwks.json");
    let publish = |key: &Key| std::fs::write(&file, json!({ "keys": [key.published()] }).to_string()).expect("written");
    publish(&old);
    let path = file.to_str().expect("a plain path");
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__JWKS_FILE", path)]).await;
    let organization = super::live::organization(&story.acme).await;
    let claims = json!({
        "organization_id": organization, "supplier_id": "s1", "app_role": "supplier", "exp": now().as_second() + 3600,
    });
    let mut socket = Socket::open(&story.system, &old.token(&claims)).await;
    assert_eq!(socket.join("1", TOPIC, json!({})).await["status"], "ok");
    publish(&new);
    let mut renewed = eventually("the new key is found", async || {
        Socket::ask(&story.system, &new.token(&claims)).await.map_err(|refused| format!("{refused:?}"))
    })
    .await;
    assert_eq!(renewed.join("1", TOPIC, json!({})).await["status"], "ok");
    let (status, body) = Socket::ask(&story.system, &old.token(&claims)).await.err().expect("it was withdrawn");
    assert!(status == 401 && body.contains("InvalidJWTToken: "), "{status} {body}");
    // Who has a socket keeps it, and goes on under a token of the new key.
    let refused = socket.join("2", "realtime:room", json!({ "access_token": old.token(&claims) })).await;
    assert!(reason(&refused).starts_with("InvalidJWTToken: "), "{refused}");
    socket.send(json!(["1", "3", TOPIC, "access_token", { "access_token": new.token(&claims) }])).await;
    story.pay(1).await;
    for socket in [&mut socket, &mut renewed] {
        assert_eq!(socket.event(TOPIC, "broadcast").await["payload"]["n"], 1);
    }
}
