//! The directory over gRPC and from change events.

use proto::{
    notifier::v1::{
        DeleteRecipientRequest, GetRecipientRequest, ListRecipientsRequest, MessageState, Recipient, RecipientKind,
        SetWeddingRecipientsRequest, UpsertRecipientRequest,
    },
    router::v1::{Operation, Plan},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::world::{Client, change, in_each_world, moved, tells, two_vendors};

async fn of_wedding(client: &Client, wedding: &str) -> Vec<String> {
    let request = ListRecipientsRequest { wedding_id: wedding.to_owned(), ..Default::default() };
    let listed = client.recipients().list_recipients(request).await.unwrap().into_inner().recipients;
    listed.into_iter().map(|recipient| recipient.id).collect()
}

#[tokio::test]
async fn recipients_are_kept_listed_by_pages_and_removed() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        for id in ["s1", "s2", "s3"] {
            client.supplier(id, "florist").await;
        }
        let got = client
            .recipients()
            .get_recipient(GetRecipientRequest { id: "s2".to_owned() })
            .await
            .unwrap()
            .into_inner()
            .recipient
            .unwrap();
        assert_eq!(
            (got.name.as_str(), got.email.as_str(), got.organization_id.as_str()),
            ("Name of s2", "s2@example.org", "a")
        );
        let first = client
            .recipients()
            .list_recipients(ListRecipientsRequest { page_size: 2, ..Default::default() })
            .await
            .unwrap()
            .into_inner();
        let rest = ListRecipientsRequest { page_token: first.next_page_token.clone(), ..Default::default() };
        let rest = client.recipients().list_recipients(rest).await.unwrap().into_inner();
        assert_eq!((first.recipients.len(), rest.recipients.len(), rest.next_page_token.as_str()), (2, 1, ""));

        let foreign = world.client("wsk_b").await;
        let get = GetRecipientRequest { id: "s1".to_owned() };
        assert_eq!(foreign.recipients().get_recipient(get.clone()).await.unwrap_err().code(), Code::NotFound);
        let delete = DeleteRecipientRequest { id: "s1".to_owned() };
        assert_eq!(foreign.recipients().delete_recipient(delete.clone()).await.unwrap_err().code(), Code::NotFound);
        let members = SetWeddingRecipientsRequest { wedding_id: "w".to_owned(), recipient_ids: vec!["s1".to_owned()] };
        assert_eq!(foreign.recipients().set_wedding_recipients(members).await.unwrap_err().code(), Code::NotFound);
        let named = Recipient {
            organization_id: "a".to_owned(),
            id: "x".to_owned(),
            kind: RecipientKind::Planner.into(),
            ..Default::default()
        };
        let upsert = UpsertRecipientRequest { recipient: Some(named) };
        assert_eq!(foreign.recipients().upsert_recipient(upsert).await.unwrap_err().code(), Code::NotFound);

        client.recipients().delete_recipient(delete).await.unwrap();
        assert_eq!(client.recipients().get_recipient(get).await.unwrap_err().code(), Code::NotFound);
        let unnamed =
            UpsertRecipientRequest { recipient: Some(Recipient { id: "x".to_owned(), ..Default::default() }) };
        let refused = client.recipients().upsert_recipient(unnamed).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "recipient.kind: must be given"));
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn change_events_keep_the_directory_and_an_old_one_that_comes_again_changes_nothing() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        assert_eq!(of_wedding(&client, "w1").await, ["fl", "ph"]);
        let renamed = json!({"id": "fl", "business_name": "Stem & Petal"});
        let first = world
            .event(change("r1", "suppliers", Operation::Update, json!({"id": "fl"}), renamed), Plan::default())
            .await;
        let renamed = json!({"id": "fl", "business_name": "Bloom"});
        world.event(change("r2", "suppliers", Operation::Update, json!({"id": "fl"}), renamed), Plan::default()).await;
        world.router.again(first);
        world.acknowledged(first).await;
        let got = client
            .recipients()
            .get_recipient(GetRecipientRequest { id: "fl".to_owned() })
            .await
            .unwrap()
            .into_inner()
            .recipient
            .unwrap();
        assert_eq!((got.name.as_str(), got.email.as_str()), ("Bloom", "eve@petal.example"));

        let left = json!({"wedding_id": "w1", "vendor_id": "v2", "supplier_id": "fl"});
        world.event(change("r3", "wedding_vendors", Operation::Delete, left, Value::Null), Plan::default()).await;
        assert_eq!(of_wedding(&client, "w1").await, ["ph"]);
        world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["in_app"], "")).await;
        assert!(client.message("e1", "fl", "in_app").await.is_none());
        client.until("e1", "ph", "in_app", MessageState::Sent).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_row_with_a_text_that_no_store_takes_holds_up_nobody() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        let nul = "\u{0}";
        for (id, table, row) in [
            ("n1", "suppliers", json!({"id": "s1", "time_zone": nul, "locale": nul, "vendor_type": nul, "email": nul})),
            ("n2", "wedding_vendors", json!({"wedding_id": "w1", "vendor_id": "s1", "vendor_type": nul})),
            ("n3", "wedding_details", json!({"id": "w1", "time_zone": nul, "wedding_date": nul, "vendor_ids": ["s1"]})),
        ] {
            world.event(change(id, table, Operation::Insert, Value::Null, row), Plan::default()).await;
        }
        world.event(moved("n4", "2026-06-20", nul), tells("wedding_date_change", &["in_app"], "")).await;
        assert_eq!(of_wedding(&client, "w1").await, ["s1"], "what can be taken is");
        world.event(moved("n5", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["in_app"], "")).await;
        client.until("n5", "s1", "in_app", MessageState::Sent).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}
