//! A date that moves more than once.

use std::time::Duration;

use proto::notifier::v1::{
    Confirmation, ExplainNotificationRequest, ListInformedRequest, ListNoticesRequest, MessageState, Preference,
    QuietHours,
};

use crate::{
    smtp::Mood,
    world::{Client, in_each_world, moved, poll, tells, two_vendors},
};

fn quiet() -> Preference {
    let quiet_hours = QuietHours { from: "11:00".to_owned(), until: "14:00".to_owned() };
    Preference { quiet_hours: Some(quiet_hours), ..Default::default() }
}

/// What an event asks somebody to confirm.
async fn confirmation(client: &Client, event: &str, recipient: &str) -> Confirmation {
    let id = client.of_event(event).await[0].id.clone();
    let explain = ExplainNotificationRequest { id, recipient_id: recipient.to_owned() };
    let explained = client.confirmations().explain_notification(explain).await.unwrap().into_inner();
    explained.confirmations[0].clone()
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

#[tokio::test]
async fn a_date_that_comes_back_while_mail_is_down_is_not_to_be_confirmed() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        world.smtp.next([Mood::Message(451), Mood::Message(451)]);
        let plan = |day: &str| tells("wedding_date_change", &["email"], &format!("wedding_date_change:w1:{day}"));
        world.event(moved("e1", "2026-06-20", "2026-06-27"), plan("27")).await;
        for id in ["ph", "fl"] {
            poll("tried", async || client.until("e1", id, "email", MessageState::Waiting).await.attempts == 1).await;
            assert!(confirmation(&client, "e1", id).await.next_at.is_some());
        }
        world.event(moved("e2", "2026-06-27", "2026-06-20"), plan("20")).await;
        for id in ["ph", "fl"] {
            client.until("e1", id, "email", MessageState::Cancelled).await;
            client.until("e2", id, "email", MessageState::Skipped).await;
            let moot = confirmation(&client, "e1", id).await;
            assert!(moot.next_at.is_none() && moot.how == "it changed again", "{moot:?}");
        }
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn another_channel_tells_the_same_change_and_what_they_were_told_there_is_noted() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        client.wish("ph", quiet()).await;
        let plan = |day: &str| tells("wedding_date_change", &["email"], &format!("wedding_date_change:w1:{day}"));
        world.event(moved("e1", "2026-06-20", "2026-06-27"), plan("27")).await;
        world.event(moved("e2", "2026-06-27", "2026-07-04"), plan("04")).await;
        client.until("e1", "ph", "email", MessageState::Cancelled).await;
        world.time.advance(Duration::from_secs(2 * 3_600));
        client.until("e2", "ph", "email", MessageState::Sent).await;
        // A day later it isn't confirmed; it is quiet, and not for long.
        world.time.advance(Duration::from_secs(24 * 3_600));
        client.until("e2", "ph", "in_app", MessageState::Sent).await;
        let list = ListNoticesRequest { recipient_id: "ph".to_owned(), ..Default::default() };
        let notices = client.inbox().list_notices(list).await.unwrap().into_inner().notices;
        let [notice] = &notices[..] else { panic!("one notice") };
        assert!(notice.body.contains("20 June 2026 becomes Saturday 4 July 2026"), "{}", notice.body);
        let informed = ListInformedRequest { fact: "wedding_date:w1".to_owned() };
        let informed = client.confirmations().list_informed(informed).await.unwrap().into_inner().informed;
        assert!(informed.iter().any(|known| known.recipient_id == "ph" && known.channel == "in_app"), "{informed:?}");
        assert!(world.chassis.drain().await);
    })
    .await;
}
