//! Events that come again, and those that nothing can be made of: nobody misses a change, and nothing stands still.

use proto::router::v1 as wire;
use serde_json::{Map, json};

use super::*;
use crate::{rpc::wire::event as read, sync::letter::Letter};

/// As the router hands it out to all that want it.
fn consumed(event: wire::Event) -> wire::ConsumedEvent {
    consumed_by(event, &["photography_crm", "database", "configuration"])
}

fn consumed_by(event: wire::Event, kinds: &[&str]) -> wire::ConsumedEvent {
    let destinations = kinds.iter().map(|kind| {
        let kind = wire::destination::Kind::Integration(wire::Integration { kind: (*kind).to_owned() });
        wire::Destination { kind: Some(kind), ..wire::Destination::default() }
    });
    let plan = wire::Plan { destinations: destinations.collect(), priority: 3, ..wire::Plan::default() };
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

/// The first row of a table, as the router hands it out.
fn inserted(number: u64, table: &str, row: &Value, suppliers: &[&str]) -> wire::Event {
    let mut event = changed(number, "w1", (json!({}), json!({})), suppliers);
    let Some(wire::event::Payload::Change(change)) = &mut event.payload else { panic!("a change") };
    change.set_operation(wire::Operation::Insert);
    (change.table, change.old_record, change.new_record) = (table.to_owned(), Bytes::new(), row.to_string().into());
    event.r#type = format!("{table}.insert");
    event
}

#[tokio::test]
async fn a_row_is_known_from_its_first_insert_on_and_nobody_is_told() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let wedding = json!({"id": "w1", "couple_id": "c1", "guest_count": 90});
        let couple = json!({"couple_id": "c1", "wedding_id": "w1", "email": "Rosa@example.com"});
        for (number, table, row) in [(1, "wedding_details", wedding), (2, "core_fields", couple)] {
            world.takes(consumed_by(inserted(number, table, &row, &[]), &["record"])).await;
        }
        assert_eq!((world.deliveries(&integration).await.len(), peer.asked().len()), (0, 0));
        let resolver = &world.engine.resolver;
        for (kind, id, field, value) in [
            (RecordKind::Wedding, "w1", "guest_count", json!(90)),
            (RecordKind::Client, "c1", "email", json!("rosa@example.com")),
        ] {
            let key = RecordKey::new(acme(), kind, id).expect("well-formed");
            let record = resolver.records.get(&key).await.expect("it is read").expect("it is known");
            assert_eq!(record.values()[field], value);
        }
        // A vendor that calls it so means it.
        let said = json!({"id": "w1", "version": "1", "guests": 120, "date": null});
        assert!(matches!(world.says(&integration, &said).await, Answer::Accepted { .. }));
        let records = resolver.records.list(&acme(), RecordKind::Wedding, "", 10).await.expect("listed");
        assert_eq!((records.len(), &records[0].values()["guest_count"]), (1, &json!(120)));
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_called_by_a_rows_id_before_it_was_known_is_the_rows_unless_it_isnt_theirs() {
    in_a_world(async |world: World| {
        let (one, two) = (Peer::start().await, Peer::start().await);
        let (own, foreign) = (world.account(&one, "").await, world.account(&two, "s2").await);
        for (integration, guests) in [(&own, 120), (&foreign, 130)] {
            let said = json!({"id": "w1", "version": "1", "guests": guests, "date": "2026-06-20"});
            assert!(matches!(world.says(integration, &said).await, Answer::Accepted { .. }));
        }
        let row = json!({"id": "w1", "guest_count": 90, "venue_name": "Barn", "updated_at": "2026-01-01T00:00:00Z"});
        let insert = inserted(1, "wedding_details", &row, &["s1"]);
        for redelivered in [false, true] {
            world.takes(wire::ConsumedEvent { redelivered, ..consumed_by(insert.clone(), &["record"]) }).await;
        }
        let resolver = &world.engine.resolver;
        let records = resolver.records.list(&acme(), RecordKind::Wedding, "", 10).await.expect("listed");
        let values: Vec<_> = records.iter().map(|record| record.values()["guest_count"].clone()).collect();
        assert_eq!(values.len(), 2, "the row's, and the other supplier's: {records:?}");
        let known = records.iter().find(|record| record.key.id == "w1").expect("the row's").values();
        assert_eq!((&known["guest_count"], &known["venue_name"]), (&json!(120), &json!("Barn")));
        assert_eq!(world.link(&own, "w1").await.external_id, "w1");
        let said = json!({"id": "w1", "version": "2", "guests": 140, "date": "2026-06-20"});
        assert!(matches!(world.says(&own, &said).await, Answer::Accepted { .. }));
        let key = RecordKey::new(acme(), RecordKind::Wedding, "w1").expect("well-formed");
        let record = resolver.records.get(&key).await.expect("it is read").expect("it is known");
        assert_eq!(record.values()["guest_count"], json!(140));
    })
    .await;
}
