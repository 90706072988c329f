//! Back: what a vendor says changes the record once, and is told the others but not its sender.

use bytes::Bytes;
use chassis::lane::State as Stage;
use serde_json::json;

use super::{World, acme, changed, guests, in_a_world, peer::Peer};
use crate::inbound::{self, Answer, Headers};

#[tokio::test]
async fn what_one_vendor_changes_reaches_the_other_and_its_echo_is_told_nobody() {
    in_a_world(async |world: World| {
        let (one, two) = (Peer::start().await, Peer::start().await);
        let (a, b) = (world.account(&one, "").await, world.account(&two, "").await);
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&a, 1).await;
        world.settled(&b, 1).await;
        let said = json!({"id": "job-1", "version": "7", "guests": 120, "date": null});
        let (first, second) = tokio::join!(world.says(&a, &said), world.says(&a, &said));
        assert!(matches!(first, Answer::Accepted { .. }) || matches!(second, Answer::Accepted { .. }), "{first:?}");
        assert_eq!(world.pass_on().await, 1);
        world.settled(&b, 2).await;
        assert_eq!(two.asked().last().expect("asked").1["guests"], json!(120));
        assert_eq!((one.asked().len(), world.deliveries(&a).await.len()), (1, 1), "whose word it was is told nothing");
        let echo = json!({"id": "job-1", "version": "2", "guests": 120, "date": null});
        assert!(matches!(world.says(&b, &echo).await, Answer::Accepted { .. }));
        let other = json!({"id": "job-1", "version": "9", "guests": 120, "date": null});
        assert!(matches!(world.says(&b, &other).await, Answer::Accepted { .. }));
        assert_eq!(world.pass_on().await, 0);
        assert_eq!((one.asked().len(), two.asked().len()), (1, 2));
    })
    .await;
}

#[tokio::test]
async fn fifty_copies_of_one_webhook_have_one_effect_and_a_forged_one_none() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "s1").await;
        let said = json!({"id": "x9", "guests": 50, "date": "2026-06-20"});
        let answers = futures_util::future::join_all((0..50).map(|_| world.says(&integration, &said))).await;
        let accepted = answers.iter().filter(|answer| matches!(answer, Answer::Accepted { .. })).count();
        let duplicate = answers.iter().filter(|answer| matches!(answer, Answer::Duplicate { .. })).count();
        assert_eq!((accepted, duplicate), (1, 49));
        assert_eq!(world.engine.resolver.outbox.look(&acme()).await.0.len(), 1);
        let forged = inbound::Request {
            vendor: "shop".to_owned(),
            integration_id: integration.id.clone(),
            headers: Headers(vec![("x-shop-signature".to_owned(), Bytes::from("00".repeat(32)))]),
            body: Bytes::from(r#"{"event":"job.updated","job":{"id":"x9","guests":1}}"#),
            method: "POST".to_owned(),
            target: String::new(),
        };
        assert_eq!(world.inbound.receive(&forged).await, Answer::Unverified);
    })
    .await;
}

#[tokio::test]
async fn what_changed_there_meanwhile_is_merged_and_then_written() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&integration, 1).await;
        {
            let mut shop = peer.shop();
            let job = shop.jobs.get_mut("job-1").expect("made");
            (job.version, job.body["place"]) = (5, json!("Castle"));
        }
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        let records = world.settled(&integration, 2).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
        let job = peer.shop().jobs["job-1"].clone();
        assert_eq!((job.version, &job.body["guests"], &job.body["place"]), (6, &json!(95), &json!("Castle")));
        let (events, _) = world.engine.resolver.outbox.look(&acme()).await;
        assert_eq!(events.iter().map(|event| event.r#type.as_str()).collect::<Vec<_>>(), ["timeline.updated"]);
    })
    .await;
}
