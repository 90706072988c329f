//! Events that come again, and those that nothing can be made of: nobody misses a change, and nothing stands still.

use proto::router::v1 as wire;
use serde_json::{Map, json};

use super::*;
use crate::{rpc::wire::event as read, sync::letter::Letter};

/// As the router hands it out to all that want it.
fn consumed(event: wire::Event) -> wire::ConsumedEvent {
    let kinds = ["photography_crm", "database", "configuration"];
    let destinations = kinds.map(|kind| {
        let kind = wire::destination::Kind::Integration(wire::Integration { kind: kind.to_owned() });
        wire::Destination { kind: Some(kind), ..wire::Destination::default() }
    });
    let plan = wire::Plan { destinations: destinations.to_vec(), priority: 3, ..wire::Plan::default() };
    wire::ConsumedEvent { event: Some(event), plan: Some(plan), ..wire::ConsumedEvent::default() }
}

impl World {
    async fn takes(&self, consumed: wire::ConsumedEvent) {
        self.deliver.take(consumed).await.expect("it is taken").await.expect("it is durable");
    }

    /// An integration that writes to WedSync's own database, waiting to be connected.
    async fn database(&self) -> Integration {
        let settings = Settings {
            connector: "database".to_owned(),
            vendor: "database".to_owned(),
            parameters: BTreeMap::new(),
            ..settings(Kind::Connector)
        };
        let integrations = &self.engine.accounts.integrations;
        let integration = integrations.create(acme(), settings, &Secret::from(SECRET.to_owned())).await.expect("made");
        self.engine.accounts.refresh(&acme(), &integration.id).await.expect("known");
        integration
    }
}

#[tokio::test]
async fn a_change_that_was_merged_before_the_process_died_is_offered_when_it_comes_again() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        world.database().await;
        let change = changed(1, "w1", guests(80, 90), &[]);
        let kinds = [("photography_crm".to_owned(), crate::event::Priority::Normal)].into();
        let event = read(change.clone()).expect("an event");
        let lost = world.engine.offers.of(&event, &kinds, "realtime", false).await.expect("they are made");
        assert_eq!(lost.len(), 1, "the process dies with them");
        world.takes(wire::ConsumedEvent { redelivered: true, ..consumed(change.clone()) }).await;
        world.settled(&integration, 1).await;
        assert_eq!(peer.asked().len(), 1);
        // A replay is offered too, and ends where the vendor has it.
        world.takes(wire::ConsumedEvent { replayed: true, ..consumed(change) }).await;
        let records = world.settled(&integration, 1).await;
        assert_eq!((records[0].state, peer.asked().len()), (Stage::Delivered as i64, 1));
    })
    .await;
}

#[tokio::test]
async fn an_event_that_no_record_has_room_for_holds_nobody_back() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let huge = (json!({"venue_name": "Barn"}), json!({"venue_name": "B".repeat(70 << 10)}));
        world.takes(consumed(changed(1, "w1", huge, &[]))).await;
        let wide = (0..200).map(|number| (format!("field_{number}"), json!(1))).collect();
        for (number, half) in [(2, "a"), (3, "b")] {
            let named: serde_json::Map<String, Value> = Map::clone(&wide)
                .into_iter()
                .take(100)
                .map(|(name, value)| (format!("{half}_{name}"), value))
                .collect();
            world.takes(consumed(changed(number, "w2", (json!({}), Value::Object(named)), &[]))).await;
        }
        world.takes(consumed(changed(4, "w3", guests(80, 90), &[]))).await;
        world.settled(&integration, 4).await;
        assert!(peer.asked().iter().any(|(_, body)| body["reference"] == json!("w3")));
        let key = RecordKey::new(acme(), RecordKind::Wedding, "w1").expect("well-formed");
        assert!(world.engine.resolver.records.get(&key).await.expect("it is read").is_none());
    })
    .await;
}

#[tokio::test]
async fn a_configuration_row_that_no_store_takes_holds_nobody_back() {
    in_a_world(async |world: World| {
        let row = json!({"id": "\u{0}", "provider": "shop\u{0}", "is_active": true}).to_string();
        let mut event = changed(1, "w1", guests(80, 90), &[]);
        let Some(wire::event::Payload::Change(change)) = &mut event.payload else { panic!("a change") };
        (change.table, change.new_record) = ("supplier_integrations".to_owned(), Bytes::from(row));
        event.r#type = "supplier_integrations.update".to_owned();
        world.takes(consumed(event)).await;
    })
    .await;
}

#[tokio::test]
async fn what_one_suppliers_vendor_changes_reaches_the_others_and_takes_nobodys_sight() {
    in_a_world(async |world: World| {
        let (one, two, other) = (Peer::start().await, Peer::start().await, Peer::start().await);
        let (a, b) = (world.account(&one, "s1").await, world.account(&two, "s2").await);
        let foreign = world.account(&other, "s3").await;
        world.handle(changed(1, "w1", guests(80, 90), &["s1", "s2"])).await;
        world.settled(&a, 1).await;
        world.settled(&b, 1).await;
        for (number, guests) in [(2, 120), (3, 130)] {
            let said = json!({"id": "job-1", "version": number.to_string() + "0", "guests": guests, "date": null});
            assert!(matches!(world.says(&a, &said).await, Answer::Accepted { .. }));
            assert_eq!(world.pass_on().await, 1);
            world.settled(&b, number).await;
            assert_eq!(two.asked().last().expect("asked").1["guests"], json!(guests));
        }
        assert_eq!((one.asked().len(), world.deliveries(&foreign).await.len()), (1, 0));
        // Who left the wedding hears no more of it.
        world.handle(changed(4, "w1", guests(130, 140), &["s1"])).await;
        world.settled(&a, 2).await;
        assert_eq!(world.deliveries(&b).await.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_letter_that_waits_when_the_process_stops_is_carried_by_the_next() {
    in_a_world(async |world: World| {
        let (peer, chassis) = (Peer::start().await, Chassis::for_test());
        let integration = world.account(&peer, "").await;
        let (resolver, fields) = (&world.engine.resolver, json!({"guest_count": 90}).to_string());
        let letter = Letter {
            event_id: "correction:1".to_owned(),
            event_type: "wedding.corrected".to_owned(),
            kind: "wedding".to_owned(),
            record_id: "w1".to_owned(),
            fields,
            ..Letter::default()
        };
        let key = resolver.keys.of(&acme()).await.expect("a key");
        let mut tx = world.store.begin().await.expect("it begins");
        resolver.outbox.put_letter_in(&mut tx, &key, &integration, &letter).await.expect("it is put");
        tx.commit().await.expect("it is committed");
        let (_, to_router) = inbound::tests::Router::serve(&chassis).await;
        let next = with_keys(&world.store, &world.engine.resolver.keys).await;
        next.start(broadcast::Sender::new(1).subscribe(), crate::router::Router::new(&to_router), &chassis.tasks);
        let records = world.settled(&integration, 1).await;
        assert_eq!((records[0].state, peer.asked().len()), (Stage::Delivered as i64, 1));
    })
    .await;
}
