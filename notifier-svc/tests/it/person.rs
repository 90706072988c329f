//! A person's own data: handed out, and erased.

use proto::notifier::v1::{
    CreateSuppressionRequest, ErasePersonRequest, ExportPersonRequest, ListSuppressionsRequest, MessageState,
    Preference, QuietHours, Suppression,
};
use serde_json::Value;
use tonic::Code;

use crate::world::in_each_world;

#[tokio::test]
async fn an_export_holds_what_is_kept_and_an_erasure_leaves_the_opt_out_and_no_address() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "").await;
        let quiet = Some(QuietHours { from: "11:00".to_owned(), until: "14:00".to_owned() });
        client.wish("s1", Preference { quiet_hours: quiet, ..Default::default() }).await;
        let suppression =
            Suppression { channel: "email".to_owned(), address: "s1@example.org".to_owned(), ..Default::default() };
        client.tell("k1", "s1", &["email", "in_app"], "Gate B").await;
        let add = CreateSuppressionRequest { suppression: Some(suppression) };
        client.suppressions().create_suppression(add).await.unwrap();
        let export = ExportPersonRequest { recipient_id: "s1".to_owned() };
        let exported = client.persons().export_person(export.clone()).await.unwrap().into_inner();
        let data: Value = serde_json::from_slice(&exported.data).unwrap();
        assert_eq!(data["recipient"]["contact"]["email"], "s1@example.org");
        assert_eq!(data["notices"][0]["title"], "Gate B");
        assert_eq!(data["suppressions"][0]["reason"], "manual");
        assert_eq!(data["notifications"][0]["messages"].as_array().unwrap().len(), 2);

        let foreign = world.client("wsk_b").await;
        let erase = ErasePersonRequest { recipient_id: "s1".to_owned() };
        assert_eq!(foreign.persons().erase_person(erase.clone()).await.unwrap_err().code(), Code::NotFound);
        client.persons().erase_person(erase).await.unwrap();
        assert_eq!(client.persons().export_person(export).await.unwrap_err().code(), Code::NotFound);
        let ended = client.until("k1", "s1", "email", MessageState::Cancelled).await;
        assert!(ended.reason.contains("they were erased"), "{}", ended.reason);
        let list = client.suppressions().list_suppressions(ListSuppressionsRequest::default()).await.unwrap();
        let [left] = &list.into_inner().suppressions[..] else { panic!("one opt-out") };
        assert_eq!(left.address, "");
        // Somebody with that address comes back: the opt-out holds.
        client.supplier("s1", "").await;
        client.tell("k2", "s1", &["email"], "Gate B").await;
        client.until("k2", "s1", "email", MessageState::Skipped).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}
