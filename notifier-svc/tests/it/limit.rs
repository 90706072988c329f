//! Ten notifications an hour, and what is urgent.

use std::time::Duration;

use proto::{
    common::v1::Priority,
    notifier::v1::{MessageState, SendRequest},
};
use tonic::Code;

use crate::{
    smtp::Mood,
    world::{Client, in_each_world},
};

async fn sent(client: &Client, keys: std::ops::Range<u32>) -> usize {
    let mut sent = 0;
    for key in keys {
        let message = client.message(&format!("k{key}"), "s1", "email").await.unwrap();
        sent += usize::from(message.state() != MessageState::Waiting);
    }
    sent
}

#[tokio::test]
async fn the_eleventh_in_an_hour_goes_into_a_digest_and_nothing_is_lost_over_a_restart() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "").await;
        for key in 0..13 {
            client.tell(&format!("k{key}"), "s1", &["email"], &format!("Notice number {key}")).await;
            world.time.advance(Duration::from_secs(60));
        }
        assert_eq!(sent(&client, 0..13).await, 10);
        let waiting = client.message("k12", "s1", "email").await.unwrap();
        assert!(waiting.reason.contains("over the limit"), "{}", waiting.reason);
        for key in 0..10 {
            client.until(&format!("k{key}"), "s1", "email", MessageState::Sent).await;
        }
        let world = world.restart().await;
        let client = world.client("wsk_a").await;
        world.time.advance(Duration::from_secs(3_600 - 13 * 60 - 1));
        assert_eq!(sent(&client, 0..13).await, 10);
        world.time.advance(Duration::from_secs(1));
        for key in 10..13 {
            client.until(&format!("k{key}"), "s1", "email", MessageState::Sent).await;
        }
        let [digest] = &world.smtp.kept()[..] else { panic!("one digest") };
        let text = digest.text.replace("=\r\n", "");
        assert!(text.contains("Subject: 3 messages for you"), "{text}");
        assert!((10..13).all(|key| text.contains(&format!("Notice number {key}"))), "{text}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_is_urgent_passes_over_the_limit_with_a_reason_on_record() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "").await;
        for key in 0..11 {
            client.tell(&format!("k{key}"), "s1", &["in_app"], "Notice").await;
        }
        let urgent = SendRequest {
            idempotency_key: "urgent".to_owned(),
            workflow: "notice_to_all".to_owned(),
            recipient_ids: vec!["s1".to_owned()],
            channels: vec!["email".to_owned()],
            priority: Priority::Critical.into(),
            ..Default::default()
        };
        let refused = client.notifications().send(urgent.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "no reason was given");
        let urgent = SendRequest { override_reason: "the venue floods".to_owned(), ..urgent };
        client.notifications().send(urgent.clone()).await.unwrap();
        client.until("urgent", "s1", "email", MessageState::Sent).await;
        client.until("k10", "s1", "in_app", MessageState::Waiting).await;

        world.smtp.next([Mood::Recipient(550)]);
        client.notifications().send(SendRequest { idempotency_key: "refused".to_owned(), ..urgent }).await.unwrap();
        client.until("refused", "s1", "email", MessageState::Failed).await;
        let went_on = client.until("refused", "s1", "in_app", MessageState::Sent).await;
        assert!(went_on.reason.contains("email failed"), "{}", went_on.reason);
        assert!(world.chassis.drain().await);
    })
    .await;
}
