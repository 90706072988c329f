//! A date that moves more than once.

use std::time::Duration;

use proto::notifier::v1::{MessageState, Preference, QuietHours};

use crate::world::{in_each_world, moved, tells, two_vendors};

fn quiet() -> Preference {
    let quiet_hours = QuietHours { from: "11:00".to_owned(), until: "14:00".to_owned() };
    Preference { quiet_hours: Some(quiet_hours), ..Default::default() }
}

#[tokio::test]
async fn a_date_that_moves_twice_is_told_once_from_what_each_was_last_told() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        client.wish("ph", quiet()).await;
        let plan = |day: &str| tells("wedding_date_change", &["email"], &format!("wedding_date_change:w1:{day}"));
        world.event(moved("e1", "2026-06-20", "2026-06-27"), plan("27")).await;
        client.until("e1", "ph", "email", MessageState::Waiting).await;
        client.until("e1", "fl", "email", MessageState::Sent).await;
        world.event(moved("e2", "2026-06-27", "2026-07-04"), plan("04")).await;
        let withdrawn = client.until("e1", "ph", "email", MessageState::Cancelled).await;
        assert!(withdrawn.reason.contains("withdrawn: it became 2026-07-04"), "{}", withdrawn.reason);
        client.until("e2", "fl", "email", MessageState::Sent).await;
        world.time.advance(Duration::from_secs(2 * 3_600));
        client.until("e2", "ph", "email", MessageState::Sent).await;
        let mails = world.smtp.kept();
        let to = |address: &str| -> Vec<String> {
            let mails = mails.iter().filter(|mail| mail.to == [address]);
            mails.map(|mail| mail.text.replace("=\r\n", "")).collect()
        };
        let [only] = &to("ada@lens.example")[..] else { panic!("the photographer is told once") };
        assert!(
            only.contains("Old date: Saturday 20 June 2026") && only.contains("New date: Saturday 4 July 2026"),
            "{only}"
        );
        let [_, second] = &to("eve@petal.example")[..] else { panic!("the florist is told of each") };
        assert!(second.contains("Old date: Saturday 27 June 2026"), "{second}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_date_that_comes_back_before_anybody_heard_of_it_is_not_told() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        client.wish("ph", quiet()).await;
        let plan =
            |day: &str| tells("wedding_date_change", &["email", "in_app"], &format!("wedding_date_change:w1:{day}"));
        world.event(moved("e1", "2026-06-20", "2026-06-27"), plan("27")).await;
        world.event(moved("e2", "2026-06-27", "2026-06-20"), plan("20")).await;
        client.until("e1", "ph", "email", MessageState::Cancelled).await;
        let skipped = client.until("e2", "ph", "email", MessageState::Skipped).await;
        assert!(skipped.reason.contains("2026-06-20 is what they know"), "{}", skipped.reason);
        // The inbox had it, and hears that it is back.
        client.until("e2", "ph", "in_app", MessageState::Sent).await;
        world.time.advance(Duration::from_secs(2 * 3_600));
        let world = world.restart().await;
        assert!(world.smtp.kept().is_empty());
        assert!(world.chassis.drain().await);
    })
    .await;
}
