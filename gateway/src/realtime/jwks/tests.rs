//! Key sets that are read, refused and rotated: from a real server through the guarded client, and from a file.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, routing::get};
use chassis::{clock::ManualClock, outbound::OutboundSettings, testing::manual_clock};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::realtime::token::tests::{ec_jwk, es256, good, rs256, rsa_jwk};

fn verifier() -> Verifier {
    Verifier::new(&chassis::config::Secret::default(), "", "").expect("settings that hold")
}

/// A server of one key set that can be changed, and that counts how often it is asked.
#[derive(Clone, Default)]
struct Issuer {
    set: Arc<std::sync::Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    fn publish(&self, keys: &[Value]) {
        *self.set.lock().expect("no holder panics") = json!({ "keys": keys }).to_string();
    }

    async fn start(&self, tasks: &Tasks) -> Source {
        let (set, asked) = (Arc::clone(&self.set), Arc::clone(&self.asked));
        let answer = async move || {
            asked.fetch_add(1, Ordering::Relaxed);
            set.lock().expect("no holder panics").clone()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
        tasks.spawn("issuer", async move {
            drop(axum::serve(listener, Router::new().route("/jwks.json", get(answer))).await);
        });
        let settings = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
        Source::Url(url, Outbound::new(&settings).expect("settings that hold"))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn tokens(issuer: &Issuer) -> (Arc<Tokens>, ManualClock) {
    let ((time, clock), tasks) = (manual_clock(), Tasks::default());
    let source = issuer.start(&tasks).await;
    (Tokens::start(verifier(), source, clock, &tasks).await.expect("it starts"), time)
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_but_not_for_every_such_token() {
    let issuer = Issuer::default();
    issuer.publish(&[rsa_jwk("old")]);
    let (tokens, time) = tokens(&issuer).await;
    assert!(tokens.verify(&rs256("old", &good())).await.is_ok());
    issuer.publish(&[rsa_jwk("old"), ec_jwk("new")]);
    assert_eq!(tokens.verify(&es256(Some("new"), &good())).await, Err(TokenError::UnknownKey), "asked a moment ago");
    time.advance(Duration::from_secs(30));
    assert!(tokens.verify(&es256(Some("new"), &good())).await.is_ok());
    for number in 0..10 {
        assert!(tokens.verify(&es256(Some(&format!("made up {number}")), &good())).await.is_err());
    }
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn keys_outlive_an_issuer_that_is_away_and_are_forgotten_when_it_withdraws_them() {
    let issuer = Issuer::default();
    issuer.publish(&[rsa_jwk("old")]);
    let (tokens, _) = tokens(&issuer).await;
    *issuer.set.lock().expect("no holder panics") = "<html>we will be back soon</html>".to_owned();
    assert!(tokens.read().await.is_err());
    assert!(tokens.verify(&rs256("old", &good())).await.is_ok());
    issuer.publish(&[ec_jwk("new")]);
    tokens.read().await.expect("it is back");
    assert_eq!(tokens.verify(&rs256("old", &good())).await, Err(TokenError::UnknownKey));
}

#[tokio::test]
async fn keys_are_read_again_every_five_minutes() {
    let issuer = Issuer::default();
    issuer.publish(&[rsa_jwk("old")]);
    let (_tokens, time) = tokens(&issuer).await;
    for _ in 0..500 {
        time.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(10)).await;
        if issuer.asked() > 1 {
            return;
        }
    }
    panic!("it was asked once only");
}

#[tokio::test]
async fn a_file_must_hold_a_key_set() {
    let (folder, tasks) = (tempfile::tempdir().expect("a temporary folder"), Tasks::default());
    let path = folder.path().join("jwks.json");
    let start = async || Tokens::start(verifier(), Source::File(path.clone()), manual_clock().1, &tasks).await;
    assert!(start().await.is_err(), "there is none");
    std::fs::write(&path, json!({ "keys": [rsa_jwk("k")] }).to_string()).expect("written");
    assert!(start().await.expect("it starts").verify(&rs256("k", &good())).await.is_ok());
    std::fs::write(&path, json!({ "keys": [rsa_jwk(&"k".repeat(20_000))] }).to_string()).expect("written");
    assert!(start().await.is_err(), "it is too large");
}

#[test]
fn keys_that_can_not_be_used_are_passed_over() {
    let with = |mut jwk: Value, name: &str, value: &str| {
        jwk[name] = value.into();
        jwk
    };
    let unusable = [
        with(rsa_jwk("k"), "use", "enc"),
        with(rsa_jwk("k"), "alg", "RS512"),
        with(rsa_jwk("k"), "n", "not base64!"),
        with(ec_jwk("k"), "crv", "P-384"),
        with(ec_jwk("k"), "x", "AAAA"),
        with(ec_jwk("k"), "alg", "RS256"),
        json!({ "kty": "oct", "kid": "k", "k": "AAAA" }),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" }),
        json!("no key"),
    ];
    for key in &unusable {
        assert!(KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).is_err(), "{key}");
    }
    let mut all = unusable.to_vec();
    all.push(rsa_jwk("k"));
    assert_eq!(KeySet::parse(json!({ "keys": all }).to_string().as_bytes()).expect("one is fine").0.len(), 1);
    assert!(KeySet::parse(json!({ "keys": vec![rsa_jwk("k"); 33] }).to_string().as_bytes()).is_err());
    assert!(KeySet::parse(b"").is_err() && KeySet::parse(b"{}").is_err());
}
