//! What people wish, and that it is kept to.

use std::time::Duration;

use proto::{
    notifier::v1::{
        GetPreferenceRequest, MessageState, Preference, PreferenceRule, QuietHours, SendRequest, UnsubscribeRequest,
        UpdatePreferenceRequest,
    },
    router::v1::{Operation, Plan},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    smtp::Mood,
    world::{change, content, in_each_world, poll, tells, two_vendors},
};

fn rule(subject: &str) -> PreferenceRule {
    PreferenceRule { subject: subject.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_preference_is_kept_and_chooses_adds_and_turns_off() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "").await;
        let wished = Preference {
            rules: vec![
                PreferenceRule {
                    channels: vec!["in_app".to_owned()],
                    also: vec!["email".to_owned()],
                    ..rule("general")
                },
                PreferenceRule { off: true, ..rule("payments") },
            ],
            time_zone: "Europe/Berlin".to_owned(),
            daily_at: "07:30".to_owned(),
            ..Default::default()
        };
        client.wish("s1", wished.clone()).await;
        let get = GetPreferenceRequest { recipient_id: "s1".to_owned() };
        let kept = client.preferences().get_preference(get.clone()).await.unwrap().into_inner().preference.unwrap();
        assert_eq!((kept.rules.len(), kept.daily_at.as_str(), kept.time_zone.as_str()), (2, "07:30", "Europe/Berlin"));
        client.tell("k1", "s1", &["in_app", "slack"], "Gate B").await;
        client.until("k1", "s1", "in_app", MessageState::Sent).await;
        client.until("k1", "s1", "email", MessageState::Sent).await;
        client.until("k1", "s1", "slack", MessageState::Skipped).await;

        let paid = SendRequest {
            idempotency_key: "k2".to_owned(),
            workflow: "payment_received".to_owned(),
            recipient_ids: vec!["s1".to_owned()],
            ..Default::default()
        };
        client.notifications().send(paid).await.unwrap();
        let off = client.until("k2", "s1", "email", MessageState::Skipped).await;
        assert!(off.reason.contains("they turned payments off"), "{}", off.reason);

        let foreign = world.client("wsk_b").await;
        assert_eq!(foreign.preferences().get_preference(get).await.unwrap_err().code(), Code::NotFound);
        let bad =
            Preference { quiet_hours: Some(QuietHours { from: "25:00".to_owned(), until: String::new() }), ..wished };
        let bad = UpdatePreferenceRequest { recipient_id: "s1".to_owned(), preference: Some(bad) };
        let refused = client.preferences().update_preference(bad).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "preference.quiet_hours.from: must be HH:MM")
        );
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn marketing_goes_to_those_alone_who_agreed_and_an_opt_out_holds() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "").await;
        let offer = |key: &str| SendRequest {
            idempotency_key: key.to_owned(),
            workflow: "spring_offer".to_owned(),
            category: "marketing".to_owned(),
            recipient_ids: vec!["s1".to_owned()],
            ..Default::default()
        };
        client.notifications().send(offer("k1")).await.unwrap();
        let skipped = client.until("k1", "s1", "email", MessageState::Skipped).await;
        assert!(skipped.reason.contains("haven't agreed"), "{}", skipped.reason);
        let agreed = Preference {
            consent_at: Some(prost_types::Timestamp { seconds: 1_777_000_000, nanos: 0 }),
            consent_source: "sign-up form".to_owned(),
            ..Default::default()
        };
        client.wish("s1", agreed).await;
        client.notifications().send(offer("k2")).await.unwrap();
        client.until("k2", "s1", "email", MessageState::Sent).await;
        let [mail] = &world.smtp.kept()[..] else { panic!("one mail") };
        let mail = mail.text.replace("=\r\n", "").replace("=3D", "=");
        assert!(mail.contains("1 Garden Lane, York"), "{mail}");
        let (_, link) = mail.split_once("https://gate.example/unsubscribe/").expect("a link");
        let token = link.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        let unsubscribe = UnsubscribeRequest { token, ..Default::default() };
        let done = client.preferences().unsubscribe(unsubscribe).await.unwrap();
        assert_eq!(done.into_inner().category, "marketing");
        client.notifications().send(offer("k3")).await.unwrap();
        client.until("k3", "s1", "email", MessageState::Skipped).await;
        let urgent = SendRequest { override_reason: "sale ends".to_owned(), ..offer("k4") };
        assert_eq!(client.notifications().send(urgent).await.unwrap_err().code(), Code::InvalidArgument);
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn quiet_hours_defer_and_what_is_deferred_is_decided_anew_across_a_restart() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        // It is 14:00 in Berlin.
        let quiet = Preference {
            quiet_hours: Some(QuietHours { from: "13:00".to_owned(), until: "15:00".to_owned() }),
            time_zone: "Europe/Berlin".to_owned(),
            ..Default::default()
        };
        for id in ["stays", "leaves"] {
            client.supplier(id, "").await;
            client.wish(id, quiet.clone()).await;
            client.tell(id, id, &["email", "in_app"], "Gate B").await;
            client.until(id, id, "in_app", MessageState::Sent).await;
            let waiting = client.until(id, id, "email", MessageState::Waiting).await;
            assert_eq!(waiting.due_at.unwrap().seconds, 1_777_636_800 + 3_600, "{waiting:?}");
        }
        let off = Preference { rules: vec![PreferenceRule { off: true, ..rule("") }], ..quiet };
        client.wish("leaves", off).await;
        let world = world.restart().await;
        world.time.advance(Duration::from_secs(3_599));
        let client = world.client("wsk_a").await;
        assert_eq!(client.message("stays", "stays", "email").await.unwrap().state(), MessageState::Waiting);
        world.time.advance(Duration::from_secs(1));
        client.until("stays", "stays", "email", MessageState::Sent).await;
        let dropped = client.until("leaves", "leaves", "email", MessageState::Skipped).await;
        assert!(dropped.reason.contains("turned general off"), "{}", dropped.reason);
        assert_eq!(world.smtp.kept().len(), 1);
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn on_a_weddings_day_quiet_hours_dont_hold_back_what_is_tried_again() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let quiet_hours = QuietHours { from: "11:00".to_owned(), until: "14:00".to_owned() };
        client.wish("ph", Preference { quiet_hours: Some(quiet_hours), ..Default::default() }).await;
        let day = json!({"id": "w1", "wedding_date": "2026-05-01", "time_zone": "Europe/London"});
        world.event(change("day", "wedding_details", Operation::Update, Value::Null, day), Plan::default()).await;
        world.smtp.next([Mood::Message(451), Mood::Message(451)]);
        let said = json!({"wedding_id": "w1", "guest_count": 80});
        world.event(content("e1", "guest_count.changed", said), tells("guest_count_changed", &["email"], "")).await;
        poll("tried", async || client.message("e1", "ph", "email").await.is_some_and(|mail| mail.attempts == 1)).await;
        world.time.advance(Duration::from_secs(6 * 60));
        client.until("e1", "ph", "email", MessageState::Sent).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}
