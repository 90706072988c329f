//! What changes in WedSync's own database is in the systems of those concerned at once, in their own words, and nothing of it
//! comes back.

use proto::vendorsync::v1::{ConflictState, ListConflictsRequest, record_service_client::RecordServiceClient};
use serde_json::json;
use vendor_sync_svc::testing::vendor::{Server, profile::Profile, vsco::Vsco};

use super::{
    linked::{KEY, Linked, on_each_engine_linked, taken},
    story::now,
};
use crate::harness::client;

/// Conflicts that wait for a person.
pub(super) async fn open_conflicts(linked: &Linked) -> usize {
    let acme = &linked.story.acme;
    let mut records = RecordServiceClient::new(client(acme.addresses.vendor_sync, &acme.key));
    let request = ListConflictsRequest { state: ConflictState::Open.into(), ..ListConflictsRequest::default() };
    records.list_conflicts(request).await.expect("a page").into_inner().conflicts.len()
}

#[tokio::test]
async fn a_ceremony_that_moves_is_in_the_photographers_systems_and_nothing_comes_back() {
    on_each_engine_linked(async |linked| {
        let studio = Server::start(Vsco::new(KEY, 1_000)).await;
        let connector = linked.moved("vsco-events", studio.base()).await;
        let ada = linked.link_with(&connector, "ada", &[("event_type_id", "wedding-day")], KEY).await;
        let bo = linked.profiled("crm", Profile::Crm, "bo").await;
        let database = linked.link_database().await;

        linked.wedding_is("wedding_date = '2027-06-19'").await;
        let id = taken(&studio, "the day's event", |studio| {
            studio.of("event").into_keys().next().ok_or_else(|| "none".to_owned())
        })
        .await;
        bo.took(1).await;
        let by_hand = json!({ "descriptionHtml": "<p>two cameras</p>", "endTime": "22:00:00" });
        studio.vendor().edit("event", &id, &by_hand, now() + jiff::SignedDuration::from_secs(1));
        let asked_before = studio.asked().len();

        let committed = linked.wedding_is("ceremony_time = '16:00'").await;
        let sent = bo.took(2).await.remove(1);
        println!("a ceremony's time: from the commit to the CRM {} ms", committed.elapsed().as_millis());
        let event = taken(&studio, "the event moves", |studio| {
            let event = studio.of("event").remove(&id).expect("it is there");
            if event["startTime"] == "16:00:00" { Ok(event) } else { Err(event.to_string()) }
        })
        .await;
        println!("a ceremony's time: from the commit to the studio {} ms", committed.elapsed().as_millis());

        // Read, then replaced as a whole: what the photographer wrote stands.
        let asked: Vec<_> = studio.asked().split_off(asked_before).into_iter().map(|asked| asked.method).collect();
        assert_eq!((asked.first().map(String::as_str), asked.last().map(String::as_str)), (Some("GET"), Some("PUT")));
        assert_eq!(asked.iter().filter(|method| *method != "GET").count(), 1, "{asked:?}");
        assert_eq!((&event["descriptionHtml"], &event["endTime"]), (&by_hand["descriptionHtml"], &by_hand["endTime"]));
        assert_eq!((&event["startDate"], &event["typeId"]), (&json!("2027-06-19"), &json!("wedding-day")));
        assert_eq!(event["externalMappings"][0]["id"], "w1");
        assert!(sent["updated_at"].is_string(), "{sent}");
        let expected = json!({
            "event_type": "wedding_update", "wedding_id": "w1", "client_name": "Rosa & Otto", "wedding_date": "2027-06-19",
            "ceremony_time": "16:00", "venue_name": "Oak Hall", "guest_count": 120, "photographer_notes": "no flash",
            "updated_at": sent["updated_at"],
        });
        assert_eq!(sent, expected);

        // The next change is the next thing that anybody is told.
        linked.wedding_is("ceremony_time = '16:30'").await;
        assert_eq!(bo.took(3).await.len(), 3);
        taken(&studio, "the event moves again", |studio| {
            let event = studio.of("event").remove(&id).expect("it is there");
            if event["startTime"] == "16:30:00" { Ok(()) } else { Err(event.to_string()) }
        })
        .await;
        let logged = linked.story.acme.logged(&[]).await;
        let sources: Vec<_> = logged.iter().filter_map(|it| it.event.as_ref()).map(|it| it.source.as_str()).collect();
        assert!(sources.iter().all(|source| *source == "postgres:planner"), "{sources:?}");
        assert_eq!(linked.deliveries(&database).await, [], "a row isn't written where it comes from");
        assert_eq!(linked.deliveries(&ada).await.len(), 3);
        assert_eq!(open_conflicts(linked).await, 0);
    })
    .await;
}
