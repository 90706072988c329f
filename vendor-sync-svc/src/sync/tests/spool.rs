//! A vendor that sends each webhook once: nothing that it is believed for is refused, whatever we can make of it.

use chassis::{clock::Clock, store::Store, with};
use serde_json::json;

use super::{World, acme, connector, in_a_world, peer::Peer, webhook};
use crate::{connector::catalogue::Catalogue, inbound::Answer};

/// The shop, which never tries again.
async fn never_again(world: &World) -> crate::integration::Integration {
    let text = connector().replace("[inbound]\n", "[inbound]\nspool = true\n");
    let catalogue = Catalogue::new(world.store.clone(), Clock::System);
    assert!(catalogue.put(&acme(), &text, 1).await.is_ok(), "it parses");
    world.account(&Peer::start().await, "").await
}

/// Why each was kept, and its body as it is stored.
async fn kept(store: &Store) -> Vec<(String, Vec<u8>)> {
    with!(store.reader(), c => {
        sqlx::query_as("SELECT refused, body FROM inbound_spool ORDER BY sequence").fetch_all(c).await
    })
    .expect("they are read")
}

#[tokio::test]
async fn a_webhook_that_comes_once_is_kept_sealed_for_people_if_it_cant_be_read() {
    in_a_world(async |world: World| {
        let integration = never_again(&world).await;
        let body = r#"{"event":"job.updated","job":{"name":"Ana and Ben"}}"#;
        let accepted = world.sends(&integration, body).await;
        assert!(matches!(accepted, Answer::Accepted { .. }), "{accepted:?}");
        assert!(matches!(world.sends(&integration, body).await, Answer::Duplicate { .. }));
        assert!(matches!(world.sends(&integration, "no JSON").await, Answer::Accepted { .. }));
        let kept = kept(&world.store).await;
        assert_eq!(kept.len(), 2, "once each");
        assert!(kept.iter().all(|(reason, body)| !reason.is_empty() && !body.windows(3).any(|part| part == b"Ana")));
        // Who isn't believed is refused all the same.
        let mut forged = webhook(&integration, body);
        forged.body = "another".into();
        assert_eq!(world.inbound.receive(&forged).await, Answer::Unverified);
    })
    .await;
}

#[tokio::test]
async fn a_webhook_that_comes_once_is_taken_however_many_come_or_wait_for_the_router() {
    in_a_world(async |world: World| {
        let integration = never_again(&world).await;
        world.says(&integration, &json!({"id": "x1", "guests": 1, "version": "1"})).await;
        // As if very many waited.
        for overriding in ["", "OVERRIDING SYSTEM VALUE"] {
            let text = format!(
                "WITH RECURSIVE more(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM more WHERE i <= 50000) \
                 INSERT INTO outbox (sequence, organization_id, lane_id, event_id, ordering_key, created_at, event, refused) {overriding} \
                 SELECT sequence + 300000 + i, organization_id, lane_id, event_id || CAST(i AS TEXT), ordering_key, created_at, event, refused \
                 FROM outbox CROSS JOIN more",
            );
            // Each engine knows one of them.
            let _known = with!(world.store.writer(), c => {
                sqlx::query(sqlx::AssertSqlSafe(text.as_str())).execute(c).await.map(drop)
            });
        }
        assert!(world.engine.resolver.outbox.check(&acme()).await.is_err(), "others are held back");
        let answer = world.says(&integration, &json!({"id": "x1", "guests": 2, "version": "2"})).await;
        assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
        assert!(kept(&world.store).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_answered_as_taken() {
    in_a_world(async |world: World| {
        let integration = never_again(&world).await;
        let (readable, not) = (webhook(&integration, r#"{"event":"job.updated","job":{"id":"x1"}}"#), "no JSON");
        let not = webhook(&integration, not);
        with!(world.store.writer(), c => sqlx::query("DROP TABLE inbound_spool").execute(c).await.map(drop))
            .expect("gone");
        assert!(matches!(world.inbound.receive(&readable).await, Answer::Accepted { .. }));
        assert!(matches!(world.inbound.receive(&not).await, Answer::Unavailable { .. }));
    })
    .await;
}
