//! Who is told of an event, and how often.

use proto::notifier::v1::{
    GetNotificationRequest, GetUnreadCountRequest, MessageState, SendRequest, SendWeddingDateChangeRequest,
    SetWeddingRecipientsRequest,
};
use serde_json::json;
use tonic::Code;

use crate::world::{content, in_each_world, moved, tells, two_vendors};

const OFFERED: &[&str] = &["email", "slack", "in_app"];

#[tokio::test]
async fn a_new_date_reaches_every_vendor_once_with_the_instructions_of_their_trade() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let sequence =
            world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", OFFERED, "")).await;
        for id in ["ph", "fl"] {
            client.until("e1", id, "email", MessageState::Sent).await;
            client.until("e1", id, "in_app", MessageState::Sent).await;
            let slack = client.until("e1", id, "slack", MessageState::Skipped).await;
            assert!(slack.reason.contains("no Slack member"), "{}", slack.reason);
        }
        let stranger = client.until("e1", "nobody", "email", MessageState::Skipped).await;
        assert!(stranger.reason.contains("not in the directory"), "{}", stranger.reason);
        let mails = world.smtp.kept();
        let mail = |to: &str| mails.iter().find(|mail| mail.to == [to]).unwrap().text.replace("=\r\n", "");
        assert_eq!(mails.len(), 2);
        assert!(mail("eve@petal.example").contains("flowers") && mail("ada@lens.example").contains("second shooter"));
        assert!(mail("ada@lens.example").contains("ACTION REQUIRED: update your calendar."));
        // A hostile name is text.
        assert!(mail("ada@lens.example").contains("Ada &lt;b&gt;Lens&lt;&#x2f;b&gt;"), "{}", mail("ada@lens.example"));

        world.router.again(sequence);
        world.acknowledged(sequence).await;
        assert_eq!(client.of_event("uid-of-e1").await.len(), 1);
        let unread =
            client.inbox().get_unread_count(GetUnreadCountRequest { recipient_id: "ph".to_owned() }).await.unwrap();
        assert_eq!((unread.into_inner().unread, world.smtp.kept().len()), (1, 2));
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn the_row_and_the_domain_event_tell_once_and_a_date_moved_back_and_forth_each_time() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let told = async |id: &str| client.message(id, "ph", "in_app").await.unwrap().state() == MessageState::Sent;
        let to = |date: &str| tells("wedding_date_change", &["in_app"], &format!("wedding_date_change:w1:{date}"));
        world.event(moved("row1", "2026-06-20", "2026-06-27"), to("27")).await;
        let said = json!({"wedding_id": "w1", "old_date": "2026-06-20", "new_date": "2026-06-27"});
        world.event(content("said1", "wedding.date_changed", said), to("27")).await;
        assert!(told("row1").await && !told("said1").await);
        let collapsed = client.message("said1", "ph", "in_app").await.unwrap();
        assert!(collapsed.reason.contains("told already: event row1"), "{}", collapsed.reason);
        world.event(moved("row2", "2026-06-27", "2026-06-20"), to("20")).await;
        world.event(moved("row3", "2026-06-20", "2026-06-27"), to("27")).await;
        assert!(told("row2").await && told("row3").await);
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn domain_events_that_lag_behind_two_changes_tell_nothing_anew() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let to = |date: &str| tells("wedding_date_change", &["in_app"], &format!("wedding_date_change:w1:{date}"));
        let said = |old: &str, new: &str| json!({"wedding_id": "w1", "old_date": old, "new_date": new});
        world.event(moved("row1", "2026-06-20", "2026-06-27"), to("27")).await;
        world.event(moved("row2", "2026-06-27", "2026-07-04"), to("04")).await;
        let lag =
            [("said1", said("2026-06-20", "2026-06-27"), "27"), ("said2", said("2026-06-27", "2026-07-04"), "04")];
        for (id, data, day) in lag {
            world.event(content(id, "wedding.date_changed", data), to(day)).await;
            let collapsed = client.until(id, "ph", "in_app", MessageState::Skipped).await;
            assert!(collapsed.reason.contains("told already: event row"), "{}", collapsed.reason);
        }
        // The pairs are done with: the same change once more is told.
        world.event(moved("row3", "2026-07-04", "2026-06-27"), to("27")).await;
        client.until("row3", "ph", "in_app", MessageState::Sent).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_key_stands_for_one_request_and_people_are_named_or_refused() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "").await;
        let request = |workflow: &str, recipient: &str| SendRequest {
            idempotency_key: "k1".to_owned(),
            workflow: workflow.to_owned(),
            recipient_ids: vec![recipient.to_owned()],
            channels: vec!["in_app".to_owned()],
            ..Default::default()
        };
        let refused = client.notifications().send(request("hello", "stranger")).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let first = client.notifications().send(request("hello", "s1")).await.unwrap().into_inner();
        let second = client.notifications().send(request("hello", "s1")).await.unwrap().into_inner();
        assert!(!first.duplicate && second.duplicate);
        assert_eq!(first.notification, second.notification);
        let other = client.notifications().send(request("goodbye", "s1")).await.unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists);
        let unusable = SendRequest {
            variables: br#"{"headline":["a list"]}"#.to_vec().into(),
            idempotency_key: "k2".to_owned(),
            ..request("hello", "s1")
        };
        assert_eq!(client.notifications().send(unusable).await.unwrap_err().code(), Code::InvalidArgument);
        assert!(client.of_event("k2").await.is_empty(), "what is refused leaves nothing behind");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_weddings_vendors_are_told_over_grpc_and_no_other_organization_sees_it() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("fl", "florist").await;
        let members = SetWeddingRecipientsRequest { wedding_id: "w".to_owned(), recipient_ids: vec!["fl".to_owned()] };
        client.recipients().set_wedding_recipients(members).await.unwrap();
        let request = SendWeddingDateChangeRequest {
            idempotency_key: "k1".to_owned(),
            wedding_id: "w".to_owned(),
            old_date: "2026-06-20".to_owned(),
            new_date: "2026-06-27".to_owned(),
            recipient_ids: Vec::new(),
        };
        let notification = client
            .notifications()
            .send_wedding_date_change(request.clone())
            .await
            .unwrap()
            .into_inner()
            .notification
            .unwrap();
        assert_eq!(notification.messages.len(), 2);
        client.until("k1", "fl", "email", MessageState::Sent).await;

        let foreign = world.client("wsk_b").await;
        let id = notification.id.clone();
        assert_eq!(
            foreign.notifications().get_notification(GetNotificationRequest { id }).await.unwrap_err().code(),
            Code::NotFound
        );
        assert_eq!(
            foreign.notifications().send_wedding_date_change(request.clone()).await.unwrap_err().code(),
            Code::NotFound
        );
        assert!(foreign.of_event("k1").await.is_empty());
        // A wedding that lists somebody unknown still tells the others.
        two_vendors(&world).await;
        let listed = SendWeddingDateChangeRequest {
            idempotency_key: "k2".to_owned(),
            wedding_id: "w1".to_owned(),
            ..request.clone()
        };
        client.notifications().send_wedding_date_change(listed).await.unwrap();
        client.until("k2", "ph", "email", MessageState::Sent).await;
        client.until("k2", "nobody", "email", MessageState::Skipped).await;
        let malformed = SendWeddingDateChangeRequest { new_date: "27.6.2026".to_owned(), ..request };
        assert_eq!(
            client.notifications().send_wedding_date_change(malformed).await.unwrap_err().code(),
            Code::InvalidArgument
        );
        assert!(world.chassis.drain().await);
    })
    .await;
}
