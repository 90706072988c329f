//! Addresses that are not used any more.

use std::time::Duration;

use proto::notifier::v1::{
    CreateSuppressionRequest, DeleteSuppressionRequest, ListSuppressionsRequest, MessageState, Suppression,
    SuppressionReason,
};
use tonic::Code;

use crate::{
    smtp::Mood,
    world::{Client, in_each_world, poll},
};

async fn suppress(client: &Client, address: &str) {
    let suppression = Suppression {
        channel: "email".to_owned(),
        address: address.to_owned(),
        reason: SuppressionReason::Bounced.into(),
        ..Default::default()
    };
    let request = CreateSuppressionRequest { suppression: Some(suppression) };
    client.suppressions().create_suppression(request).await.unwrap();
}

#[tokio::test]
async fn the_list_is_asked_when_a_message_is_resolved_and_again_before_it_is_sent() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        for id in ["known", "late"] {
            client.supplier(id, "").await;
        }
        suppress(&client, "Known@Example.org").await;
        client.tell("k1", "known", &["email"], "Gate B").await;
        let skipped = client.until("k1", "known", "email", MessageState::Skipped).await;
        assert!(skipped.reason.contains("suppression list: bounced"), "{}", skipped.reason);

        world.smtp.next([Mood::Recipient(450)]);
        client.tell("k2", "late", &["email"], "Gate B").await;
        poll("tried", async || client.message("k2", "late", "email").await.unwrap().attempts > 0).await;
        suppress(&client, "late@example.org").await;
        world.time.advance(Duration::from_secs(2));
        let failed = client.until("k2", "late", "email", MessageState::Failed).await;
        assert!(failed.reason.contains("suppression list"), "{}", failed.reason);
        assert!(world.smtp.kept().is_empty());

        let list = ListSuppressionsRequest { page_size: 1, ..Default::default() };
        let first = client.suppressions().list_suppressions(list.clone()).await.unwrap().into_inner();
        let rest = ListSuppressionsRequest { page_token: first.next_page_token.clone(), ..list.clone() };
        let rest = client.suppressions().list_suppressions(rest).await.unwrap().into_inner();
        let mut addresses = [first.suppressions[0].address.clone(), rest.suppressions[0].address.clone()];
        addresses.sort();
        assert_eq!(addresses, ["Known@Example.org", "late@example.org"]);
        assert_eq!(rest.next_page_token, "");
        let foreign = world.client("wsk_b").await;
        assert!(foreign.suppressions().list_suppressions(list).await.unwrap().into_inner().suppressions.is_empty());

        let delete = DeleteSuppressionRequest { channel: "email".to_owned(), address: "known@example.org".to_owned() };
        client.suppressions().delete_suppression(delete.clone()).await.unwrap();
        assert_eq!(client.suppressions().delete_suppression(delete).await.unwrap_err().code(), Code::NotFound);
        client.tell("k3", "known", &["email"], "Gate B").await;
        client.until("k3", "known", "email", MessageState::Sent).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_that_isnt_there_is_not_written_to_again_and_a_bare_refusal_says_nothing_of_it() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        for (id, mood, state) in
            [("gone", Mood::Nobody, MessageState::Skipped), ("unliked", Mood::Recipient(550), MessageState::Sent)]
        {
            client.supplier(id, "").await;
            world.smtp.next([mood]);
            client.tell(&format!("{id}1"), id, &["email"], "Gate B").await;
            client.until(&format!("{id}1"), id, "email", MessageState::Failed).await;
            client.tell(&format!("{id}2"), id, &["email"], "Gate C").await;
            client.until(&format!("{id}2"), id, "email", state).await;
        }
        assert!(world.chassis.drain().await);
    })
    .await;
}
