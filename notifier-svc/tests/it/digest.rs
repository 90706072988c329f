//! Digests, as people wish them.

use std::time::Duration;

use proto::{
    notifier::v1::{DigestFrequency, MessageState, Preference, PreferenceRule, QuietHours, SendRequest},
    router::v1::Operation,
};
use serde_json::json;

use crate::{
    smtp::Mail,
    world::{World, change, content, in_each_world, moved, poll, tells, two_vendors},
};

/// What the photographer got by mail.
fn mails(world: &World) -> Vec<String> {
    let text = |mail: &Mail| mail.text.replace("=\r\n", "").replace("=3D", "=");
    world.smtp.kept().iter().filter(|mail| mail.to == ["ada@lens.example"]).map(text).collect()
}

#[tokio::test]
async fn an_hourly_digest_is_one_message_a_channel_with_the_latest_of_each_thing() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        client.wish("ph", Preference { digest: DigestFrequency::Hourly.into(), ..Default::default() }).await;
        world.time.advance(Duration::from_secs(600));
        for (id, guests) in [("e1", 80), ("e2", 90)] {
            let said = json!({"wedding_id": "w1", "guest_count": guests});
            let plan = tells("guest_count_changed", &["email", "in_app"], &format!("guest_count_changed:w1:{guests}"));
            world.event(content(id, "guest_count.changed", said), plan).await;
            world.time.advance(Duration::from_secs(1));
        }
        client.tell("k1", "ph", &["email"], "Gate B is closed").await;
        client.until("e1", "ph", "in_app", MessageState::Sent).await;
        let waiting = client.until("e1", "ph", "email", MessageState::Waiting).await;
        assert_eq!(waiting.due_at.unwrap().seconds, 1_777_636_800 + 3_600);
        client.until("e2", "fl", "email", MessageState::Sent).await;
        let world = world.restart().await;
        let client = world.client("wsk_a").await;
        world.time.advance(Duration::from_secs(3_600));
        client.until("e2", "ph", "email", MessageState::Sent).await;
        client.until("k1", "ph", "email", MessageState::Sent).await;
        let stale = client.until("e1", "ph", "email", MessageState::Skipped).await;
        assert!(stale.reason.contains("a later message about the same"), "{}", stale.reason);
        let [digest] = &world.smtp.kept()[..] else { panic!("one digest") };
        let text = digest.text.replace("=\r\n", "");
        assert!(text.contains("Subject: 2 messages for you") && text.contains("Gate B is closed"), "{text}");
        assert!(text.contains("90") && !text.contains("80"), "{text}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_digest_holds_every_change_that_no_later_one_repeats() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        client.wish("ph", Preference { digest: DigestFrequency::Hourly.into(), ..Default::default() }).await;
        let changes = [("e1", "ceremony_time", "15:00", "16:00"), ("e2", "venue_name", "The Hall", "The Barn")];
        for (id, column, old, new) in changes {
            let row = |value: &str| json!({"id": "w1", column: value});
            let moves = change(id, "wedding_details", Operation::Update, row(old), row(new));
            world.event(moves, tells("timeline_changed", &["email"], &format!("timeline_changed:w1:{id}"))).await;
        }
        world.time.advance(Duration::from_secs(3_600));
        for (id, ..) in changes {
            client.until(id, "ph", "email", MessageState::Sent).await;
        }
        let [digest] = &mails(&world)[..] else { panic!("one digest") };
        assert!(digest.contains("16:00") && digest.contains("The Barn"), "{digest}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_is_to_be_confirmed_and_commercial_mail_go_out_by_themselves_with_their_links() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let wishes = Preference {
            digest: DigestFrequency::Hourly.into(),
            consent_at: Some(prost_types::Timestamp { seconds: 1_777_000_000, nanos: 0 }),
            consent_source: "sign-up form".to_owned(),
            ..Default::default()
        };
        client.wish("ph", wishes).await;
        world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["email"], "")).await;
        for key in ["k1", "k2"] {
            let offer = SendRequest {
                idempotency_key: key.to_owned(),
                workflow: "spring_offer".to_owned(),
                category: "marketing".to_owned(),
                recipient_ids: vec!["ph".to_owned()],
                channels: vec!["email".to_owned()],
                ..Default::default()
            };
            client.notifications().send(offer).await.unwrap();
            client.tell(&format!("{key}-plain"), "ph", &["email"], &format!("Gate {key} is closed")).await;
        }
        let waiting = client.until("k1", "ph", "email", MessageState::Waiting).await;
        assert_eq!(waiting.due_at.unwrap().seconds, 1_777_636_800 + 3_600);
        world.time.advance(Duration::from_secs(3_600));
        for id in ["e1", "k1", "k2", "k1-plain", "k2-plain"] {
            client.until(id, "ph", "email", MessageState::Sent).await;
        }
        let mails = mails(&world);
        let with = |part: &str| mails.iter().filter(|mail| mail.contains(part)).count();
        assert_eq!((mails.len(), with("https://gate.example/acknowledge/")), (4, 1), "{mails:?}");
        assert_eq!((with("1 Garden Lane, York"), with("\nList-Unsubscribe:")), (2, 2), "{mails:?}");
        assert_eq!(with("Gate k1 is closed"), 1);
        assert_eq!(mails.iter().filter(|mail| mail.contains("Gate k1") && mail.contains("Gate k2")).count(), 1);
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_goes_out_by_itself_leaves_a_digest_no_room_in_the_limit() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let hourly = PreferenceRule {
            subject: "weddings".to_owned(),
            digest: DigestFrequency::Hourly.into(),
            ..Default::default()
        };
        // It is noon, and the digest of one o'clock waits for two.
        let quiet = QuietHours { from: "11:00".to_owned(), until: "14:00".to_owned() };
        let wishes = Preference { rules: vec![hourly], quiet_hours: Some(quiet), ..Default::default() };
        client.wish("ph", wishes).await;
        for id in ["e1", "e2"] {
            let said = json!({"wedding_id": "w1", "guest_count": 80});
            world.event(content(id, "guest_count.changed", said), tells("guest_count_changed", &["email"], "")).await;
        }
        for key in 0..10 {
            client.tell(&format!("k{key}"), "ph", &["email"], "Gate B is closed").await;
        }
        let due = async |id: &str| client.message(id, "ph", "email").await.unwrap().due_at.map(|at| at.seconds);
        assert_eq!((due("e1").await, due("k9").await), (Some(1_777_636_800 + 7_200), Some(1_777_636_800 + 7_200)));
        world.time.advance(Duration::from_secs(7_200));
        for key in 0..10 {
            client.until(&format!("k{key}"), "ph", "email", MessageState::Sent).await;
        }
        poll("put off", async || due("e1").await == Some(1_777_636_800 + 7_200 + 3_600)).await;
        assert_eq!(client.message("e2", "ph", "email").await.unwrap().state(), MessageState::Waiting);
        world.time.advance(Duration::from_secs(3_600));
        client.until("e2", "ph", "email", MessageState::Sent).await;
        assert_eq!(mails(&world).len(), 11);
        assert!(world.chassis.drain().await);
    })
    .await;
}
