//! What an earlier attempt may have brought to its provider, on each engine: resumed by that provider, and by no other; after a
//! day it stays unknown.

use chassis::{
    clock::ManualClock,
    lane,
    secret::{Keyring, KeyringSettings, generate_master_key},
    store,
    testing::on_each_engine,
};

use super::*;
use crate::{
    MIGRATIONS,
    channel::peer::{Peer, Script, delivery, way_out},
    config::Config,
};

/// Mail by Resend, and by a server that nobody listens at.
fn post(store: &Store, peer: &Peer, clock: Clock) -> Post {
    let mut config = Config::default();
    (config.resend.api_key, config.resend.from) = ("re_1".to_owned().into(), "us@example.org".to_owned());
    (config.resend.base_url, config.resend.per_second) = (peer.base(), 0);
    (config.smtp.host, config.smtp.port, config.smtp.from) = ("127.0.0.1".to_owned(), 1, "us@example.org".to_owned());
    let channels = Channels::new(&config, &way_out(), &clock, None).expect("settings that hold");
    let settings = KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] };
    let keys = DataKeys::new(store.clone(), Keyring::new(&settings).unwrap(), Clock::System);
    Post { store: store.clone(), keys, clock, channels: Arc::new(channels), later: Arc::default() }
}

fn letter(attempts: u32) -> Arc<Delivery> {
    let content = serde_json::json!({"to": "ada@example.org", "text": "hi", "api": {"subject": "hi"}}).to_string();
    Arc::new(Delivery { lane_id: "email:o".into(), ..delivery(content.into(), attempts) })
}

async fn attempted(store: &Store, number: i64, outcome: &str, at: Timestamp) {
    with!(store.writer(), c => sqlx::query(
        "INSERT INTO attempts (delivery, number, lane, started_at, duration, outcome, error) VALUES (1, $1, 1, $2, 0, $3, '')",
    ).bind(number).bind(at.as_microsecond()).bind(outcome).execute(c).await.map(drop))
    .unwrap();
}

#[tokio::test]
async fn what_resend_may_have_goes_by_resend_alone_and_within_a_day() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let now = Clock::System.now();
        let time = ManualClock::at(now);
        let busy = || Script::status(429);
        let peer = Peer::start([busy(), busy(), busy()]).await;
        let post = post(&store, &peer, Clock::Manual(time.clone()));
        assert!(post.attempt(letter(0)).await.error.contains("the mail server"), "Resend has nothing: the second way");
        attempted(&store, 1, "throttled", now).await;
        assert!(post.attempt(letter(1)).await.error.contains("the mail server"), "it still has nothing");
        attempted(&store, 2, "unsettled", now).await;
        attempted(&store, 3, "throttled", now).await;
        let resumed = post.attempt(letter(3)).await;
        assert_eq!((resumed.class, peer.asked().len()), ("unsettled", 3), "{resumed:?}");
        time.advance(Duration::from_secs(23 * 3_600));
        let ended = post.attempt(letter(3)).await;
        assert_eq!((ended.outcome, peer.asked().len()), (Outcome::Unknown, 3), "the key may not hold any more");
    })
    .await;
}
