//! What becomes of mail: sent, put off, refused, lost, cancelled, taken up again.

use std::time::Duration;

use proto::notifier::v1::{DeleteRecipientRequest, MessageState, SendRequest};

use crate::{
    smtp::Mood,
    world::{Client, in_each_world, poll},
};

async fn send(client: &Client, key: &str, recipient: &str) {
    client.supplier(recipient, "").await;
    let request = SendRequest {
        idempotency_key: key.to_owned(),
        workflow: "notice_to_all".to_owned(),
        recipient_ids: vec![recipient.to_owned()],
        channels: vec!["email".to_owned()],
        variables: br#"{"headline":"Gate B is closed"}"#.to_vec().into(),
        ..Default::default()
    };
    client.notifications().send(request).await.unwrap();
}

#[tokio::test]
async fn mail_arrives_whole_with_an_id_that_its_message_gives_it() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        send(&client, "k1", "s1").await;
        let message = client.until("k1", "s1", "email", MessageState::Sent).await;
        assert_eq!((message.attempts, message.reason.as_str()), (1, "named by the sender"));
        assert!(message.sent_at.is_some());
        let [mail] = &world.smtp.kept()[..] else { panic!("one mail") };
        assert_eq!(
            (mail.from.as_str(), mail.to.as_slice()),
            ("notices@wedsync.example", &["s1@example.org".to_owned()][..])
        );
        assert!(mail.text.contains(&format!("Message-ID: <{}@wedsync.example>\r\n", message.id)), "{}", mail.text);
        assert!(
            mail.text.contains("Date: Fri, 01 May 2026 12:00:00 +0000\r\n")
                && mail.text.contains("Subject: Gate B is closed\r\n")
        );
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_a_server_puts_off_is_tried_again_and_what_it_refuses_is_not() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        for (key, mood) in
            [("rcpt", Mood::Recipient(450)), ("data", Mood::Message(451)), ("hang-up", Mood::HangUpBeforeData)]
        {
            world.smtp.next([mood]);
            send(&client, key, key).await;
            poll("tried", async || client.message(key, key, "email").await.unwrap().attempts > 0).await;
            assert!(!world.smtp.kept().iter().any(|mail| mail.to == [format!("{key}@example.org")]));
            world.time.advance(Duration::from_secs(2));
            let message = client.until(key, key, "email", MessageState::Sent).await;
            assert_eq!(message.attempts, 2);
        }
        for (key, mood) in [("no-such-user", Mood::Recipient(550)), ("spam", Mood::Message(554))] {
            world.smtp.next([mood]);
            send(&client, key, key).await;
            let message = client.until(key, key, "email", MessageState::Failed).await;
            assert!(message.reason.contains("refused") && !message.reason.contains('@'), "{}", message.reason);
        }
        world.time.advance(Duration::from_secs(3_600));
        send(&client, "later", "later").await;
        client.until("later", "later", "email", MessageState::Sent).await;
        assert_eq!(world.smtp.kept().len(), 4, "the three that were put off, and the last");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn mail_whose_fate_nobody_knows_is_shown_so_and_never_sent_again() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        world.smtp.next([Mood::HangUpAfterMessage]);
        send(&client, "k1", "s1").await;
        let message = client.until("k1", "s1", "email", MessageState::Unknown).await;
        assert!(message.reason.contains("may have been taken"), "{}", message.reason);
        world.time.advance(Duration::from_secs(100_000));
        let world = world.restart().await;
        let client = world.client("wsk_a").await;
        send(&client, "k2", "s2").await;
        client.until("k2", "s2", "email", MessageState::Sent).await;
        client.until("k1", "s1", "email", MessageState::Unknown).await;
        assert_eq!(world.smtp.kept().len(), 1, "the second's alone: the first server kept the other");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn waiting_mail_is_sent_after_a_restart_and_cancelled_with_its_recipient() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        world.smtp.next([Mood::Recipient(450), Mood::Recipient(450)]);
        for id in ["stays", "leaves"] {
            send(&client, id, id).await;
            poll("tried", async || client.message(id, id, "email").await.unwrap().attempts > 0).await;
        }
        client.recipients().delete_recipient(DeleteRecipientRequest { id: "leaves".to_owned() }).await.unwrap();
        let cancelled = client.until("leaves", "leaves", "email", MessageState::Cancelled).await;
        assert!(cancelled.reason.contains("removed"), "{}", cancelled.reason);
        let world = world.restart().await;
        world.time.advance(Duration::from_secs(2));
        let client = world.client("wsk_a").await;
        client.until("stays", "stays", "email", MessageState::Sent).await;
        client.until("leaves", "leaves", "email", MessageState::Cancelled).await;
        let to: Vec<_> = world.smtp.kept().into_iter().flat_map(|mail| mail.to).collect();
        assert_eq!(to, ["stays@example.org"]);
        assert!(world.chassis.drain().await);
    })
    .await;
}
