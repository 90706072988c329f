//! Out: what happens is brought to a vendor, once and in order.

use chassis::lane::State as Stage;
use serde_json::json;

use super::{
    World, changed, guests, in_a_world,
    peer::{Job, Peer},
};

#[tokio::test]
async fn a_change_reaches_the_vendor_once_and_its_link_knows_what_it_has() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &["s1"])).await;
        world.settled(&integration, 1).await;
        world.handle(changed(2, "w1", guests(80, 90), &["s1"])).await;
        world.settled(&integration, 2).await;
        world.handle(changed(3, "w1", guests(90, 95), &["s1"])).await;
        let records = world.settled(&integration, 3).await;
        assert!(records.iter().all(|record| record.state == Stage::Delivered as i64), "{records:?}");
        assert_eq!(records[1].reason, "the vendor has it already");
        let asked = peer.asked();
        let said: Vec<_> = asked.iter().map(|(method, body)| (method.as_str(), body["guests"].clone())).collect();
        assert_eq!(said, [("POST", json!(90)), ("PUT", json!(95))]);
        assert_eq!(asked[0].1["reference"], json!("w1"));
        let link = world.link(&integration, "w1").await;
        assert_eq!((link.external_id.as_str(), link.external_version.as_str()), ("job-1", "2"));
        assert_eq!((&link.synced["guest_count"], &link.synced["venue_name"]), (&json!(95), &json!("Barn")));
    })
    .await;
}

#[tokio::test]
async fn while_a_vendor_is_down_its_changes_wait_in_order_and_others_are_not_delayed() {
    in_a_world(async |world: World| {
        let (down, up) = (Peer::start().await, Peer::start().await);
        let (a, b) = (world.account(&down, "").await, world.account(&up, "").await);
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&a, 1).await;
        down.refuse(Some(503));
        for number in 2..5_u32 {
            world.handle(changed(number.into(), "w1", guests(80 + number, 90 + number), &[])).await;
        }
        world.settled(&b, 4).await;
        assert!(
            world.deliveries(&a).await.iter().filter(|record| record.state == Stage::Delivered as i64).count() == 1
        );
        down.refuse(None);
        world.settled(&a, 4).await;
        let said: Vec<_> = down.asked().into_iter().map(|(_, body)| body["guests"].clone()).collect();
        let mut applied = said.clone();
        applied.dedup();
        assert_eq!(applied, [json!(90), json!(92), json!(93), json!(94)], "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn what_was_made_before_a_crash_is_found_and_not_made_again() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let body = json!({"reference": "w1", "guests": 90, "date": null, "place": "Barn"});
        peer.shop().jobs.insert("job-1".to_owned(), Job { version: 1, body });
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        let records = world.settled(&integration, 1).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
        assert!(peer.asked().is_empty());
        assert_eq!(world.link(&integration, "w1").await.external_id, "job-1");
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_a_dead_letter_with_its_reason_and_releases_the_next() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        peer.refuse(Some(422));
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        let records = world.settled(&integration, 1).await;
        assert_eq!((records[0].state, records[0].reason.is_empty()), (Stage::Dead as i64, false));
        peer.refuse(None);
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        let records = world.settled(&integration, 2).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
    })
    .await;
}

#[tokio::test]
async fn a_suppliers_integration_is_told_of_its_own_weddings_alone() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let (mine, foreign) = (world.account(&peer, "s1").await, world.account(&peer, "s2").await);
        world.handle(changed(1, "w1", guests(80, 90), &["s1"])).await;
        world.settled(&mine, 1).await;
        assert!(world.deliveries(&foreign).await.is_empty());
    })
    .await;
}
