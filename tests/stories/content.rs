//! What an endpoint is told: the columns that leave, its own condition and transformation, its supplier's events alone.

use proto::vendorsync::v1::{DeliveryState, Endpoint};
use serde_json::{Value, json};

use super::story::{PLAIN, of_supplier, on_each_engine, told, updated};

fn row(guests: u32, time: &str) -> Value {
    json!({
        "id": "w1", "bride_name": "Ada", "contact_email": "ada@example.org", "venue_notes": "the back door",
        "guest_count": guests, "ceremony_time": time,
    })
}

#[tokio::test]
async fn personal_columns_leave_neither_record_unless_they_are_granted() {
    on_each_engine(async |story| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let settings = [
            (Endpoint::default(), vec!["ceremony_time", "guest_count", "id"]),
            (
                Endpoint { granted_fields: names(&["bride_name"]), ..Endpoint::default() },
                vec!["bride_name", "ceremony_time", "guest_count", "id"],
            ),
            // To be allowed isn't to be granted.
            (
                Endpoint { allowed_fields: names(&["guest_count", "contact_email"]), ..Endpoint::default() },
                vec!["guest_count"],
            ),
            (
                Endpoint {
                    allowed_fields: names(&["id"]),
                    granted_fields: names(&["venueNotes"]),
                    ..Endpoint::default()
                },
                vec!["id", "venue_notes"],
            ),
        ];
        let mut subscribers = Vec::new();
        for (settings, columns) in settings {
            subscribers.push((story.acme.subscribe_with(settings).await, columns));
        }
        story.acme.publish(updated("moved", &row(80, "15:00"), &row(90, "16:00"))).await;
        for (subscriber, columns) in &mut subscribers {
            let body = subscriber.receiver.next().await.json();
            for record in ["oldRecord", "newRecord"] {
                let left: Vec<_> = body[record].as_object().expect("a record").keys().cloned().collect();
                assert_eq!(left, *columns, "{record}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn personal_members_leave_no_domain_event_either() {
    on_each_engine(async |story| {
        let mut plain = story.acme.subscribe().await;
        let granted = Endpoint { granted_fields: vec!["email".to_owned()], ..Endpoint::default() };
        let mut granted = story.acme.subscribe_with(granted).await;
        let data = r#"{"bookingId":7,"client":{"id":1,"email":"ada@example.org","phone":"1"}}"#;
        story.acme.publish(told("booked", "booking.updated", data)).await;
        let left = async |it: &mut super::story::Subscriber| it.receiver.next().await.json()["data"].take();
        assert_eq!(left(&mut plain).await, json!({ "bookingId": 7, "client": { "id": 1 } }));
        let client = json!({ "id": 1, "email": "ada@example.org" });
        assert_eq!(left(&mut granted).await, json!({ "bookingId": 7, "client": client }));
    })
    .await;
}

#[tokio::test]
async fn a_change_arrives_as_documented() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        story.acme.publish(updated("moved", &row(80, "15:00"), &row(80, "16:00"))).await;
        let received = subscriber.receiver.next().await;
        let body = received.json();
        assert_eq!((&body["table"], &body["eventType"]), (&json!("wedding_details"), &json!("UPDATE")));
        assert_eq!(body["oldRecord"], json!({ "id": "w1", "guest_count": 80, "ceremony_time": "15:00" }));
        assert_eq!(body["newRecord"], json!({ "id": "w1", "guest_count": 80, "ceremony_time": "16:00" }));
        assert_eq!(body["metadata"]["weddingId"], "w1");
        let header = |name| received.header(name);
        assert_eq!(header("x-wedsync-event"), "wedding_details.update");
        assert_eq!((header("x-wedsync-source"), header("content-type")), ("realtime", "application/json"));
        assert_eq!(header("x-wedsync-timestamp"), body["timestamp"].as_str().expect("a time"));
        let uid = body["metadata"]["eventUid"].as_str().expect("a uid");
        assert_eq!(received.webhook_id(), format!("msg_{uid}"));
    })
    .await;
}

#[tokio::test]
async fn a_condition_chooses_events_and_a_transformation_writes_the_body() {
    on_each_engine(async |story| {
        let transformation = json!({
            "wedding": "new.id", "what": "event.type",
            "guests": { "now": "new.guest_count", "before": "old.guest_count" },
        });
        let settings = Endpoint {
            condition: "new.guest_count != old.guest_count and new.guest_count > 100".to_owned(),
            transformation: transformation.to_string(),
            ..Endpoint::default()
        };
        let mut choosy = story.acme.subscribe_with(settings).await;
        let witness = story.acme.subscribe().await;
        for (id, before, after) in [("same", 120, 120), ("few", 80, 90), ("many", 100, 120)] {
            story.acme.publish(updated(id, &row(before, "15:00"), &row(after, "16:00"))).await;
        }
        witness.settled(3, DeliveryState::Delivered).await;
        let received = choosy.receiver.next().await;
        let guests = json!({ "now": 120, "before": 100 });
        assert_eq!(received.json(), json!({ "wedding": "w1", "guests": guests, "what": "wedding_details.update" }));
        assert!(received.verifies_with(&choosy.secret));
        assert_eq!(choosy.settled(1, DeliveryState::Delivered).await[0].event_id, "many");
        choosy.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn a_transformation_sees_no_more_than_may_leave() {
    on_each_engine(async |story| {
        let transformation = json!({ "bride": "new.bride_name", "guests": "new.guest_count" }).to_string();
        let curious = Endpoint { transformation: transformation.clone(), ..Endpoint::default() };
        let mut curious = story.acme.subscribe_with(curious).await;
        let granted = vec!["bride_name".to_owned()];
        let trusted = Endpoint { transformation, granted_fields: granted, ..Endpoint::default() };
        let mut trusted = story.acme.subscribe_with(trusted).await;
        story.acme.publish(updated("moved", &row(80, "15:00"), &row(90, "16:00"))).await;
        assert_eq!(trusted.receiver.next().await.json(), json!({ "bride": "Ada", "guests": 90 }));
        assert_eq!(curious.receiver.next().await.json(), json!({ "bride": null, "guests": 90 }));
    })
    .await;
}

#[tokio::test]
async fn what_a_transformation_can_not_say_is_a_dead_letter_with_a_reason() {
    on_each_engine(async |story| {
        let transformation = json!({ "twice": "mul(new.ceremony_time, 2)" }).to_string();
        let mut subscriber = story.acme.subscribe_with(Endpoint { transformation, ..Endpoint::default() }).await;
        story.acme.publish(updated("moved", &row(80, "15:00"), &row(90, "16:00"))).await;
        let dead = subscriber.settled(1, DeliveryState::Dead).await.remove(0);
        let attempt = subscriber.attempts(&dead).await.remove(0);
        assert_eq!((attempt.outcome.as_str(), attempt.status_code), ("body", 0));
        assert!(attempt.error.contains("the transformation failed: $.twice: line 1: "), "{}", attempt.error);
        assert!(!attempt.error.contains("16:00"), "a reason holds no data: {}", attempt.error);
        subscriber.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn a_suppliers_endpoint_sees_its_own_events_alone() {
    on_each_engine(async |story| {
        let scoped = |supplier: &str| Endpoint { supplier_id: supplier.to_owned(), ..Endpoint::default() };
        let mut one = story.acme.subscribe_with(scoped("s1")).await;
        let mut two = story.acme.subscribe_with(scoped("s2")).await;
        let all = story.acme.subscribe().await;
        for (id, supplier) in [("of-1", "s1"), ("of-2", "s2"), ("of-none", ""), ("also-of-1", "s1")] {
            story.acme.publish(of_supplier(supplier, told(id, PLAIN, "{}"))).await;
        }
        let mut seen: Vec<_> = one.receiver.several(2).await.iter().map(|it| it.event_id()).collect();
        seen.sort();
        assert_eq!(seen, ["also-of-1", "of-1"]);
        assert_eq!(two.receiver.next().await.event_id(), "of-2");
        all.settled(4, DeliveryState::Delivered).await;
        one.settled(2, DeliveryState::Delivered).await;
        two.settled(1, DeliveryState::Delivered).await;
        one.receiver.has_nothing_more();
        two.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn types_are_matched_exactly_by_table_or_all() {
    on_each_engine(async |story| {
        let of = |type_: &str| Endpoint { event_types: vec![type_.to_owned()], ..Endpoint::default() };
        let mut exact = story.acme.subscribe_with(of("booking.updated")).await;
        let mut table = story.acme.subscribe_with(of("wedding_details.*")).await;
        let all = story.acme.subscribe().await;
        story.acme.publish(told("1", "booking.updated", "{}")).await;
        story.acme.publish(updated("2", &row(80, "15:00"), &row(90, "15:00"))).await;
        story.acme.publish(told("3", "client.created", "{}")).await;
        assert_eq!(
            (exact.receiver.next().await.event_id(), table.receiver.next().await.event_id()),
            ("1".into(), "2".into())
        );
        all.settled(3, DeliveryState::Delivered).await;
        exact.settled(1, DeliveryState::Delivered).await;
        table.settled(1, DeliveryState::Delivered).await;
    })
    .await;
}
