//! Digests, as people wish them.

use std::time::Duration;

use proto::notifier::v1::{DigestFrequency, MessageState, Preference};
use serde_json::json;

use crate::world::{content, in_each_world, tells, two_vendors};

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
