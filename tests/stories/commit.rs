//! From a database's commit to everybody who is to know: the change is made in PostgreSQL with plain SQL, captured by the
//! real binary, and reaches browsers, a gRPC subscriber and a webhook endpoint.

use proto::{
    router::v1::{
        SubscribeRequest, SubscribeResponse, event::Payload, subscribe_response::Message,
        subscription_service_client::SubscriptionServiceClient,
    },
    vendorsync::v1::DeliveryState,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Streaming;

use super::{
    story::{Story, Subscriber, Tenant},
    tab::{Library, Tab},
};
use crate::harness::{Engine, PATIENCE, Source, client, organization};

const TABLES: [&str; 4] = ["wedding_details", "supplier_kpis", "client_list_cache", "core_fields"];
const SETUP: [&str; 8] = [
    "CREATE TABLE wedding_details (id text PRIMARY KEY, organization_id text, vendor_ids text[], wedding_date date)",
    "ALTER TABLE wedding_details REPLICA IDENTITY FULL",
    "CREATE TABLE supplier_kpis (supplier_id text PRIMARY KEY, organization_id text, bookings int)",
    "ALTER TABLE supplier_kpis REPLICA IDENTITY FULL",
    "CREATE TABLE client_list_cache (client_id text PRIMARY KEY, supplier_id text, organization_id text, wedding_date date)",
    "ALTER TABLE client_list_cache REPLICA IDENTITY FULL",
    "CREATE TABLE core_fields (couple_id text PRIMARY KEY, wedding_id text, organization_id text, dietary_requirements text)",
    "ALTER TABLE core_fields REPLICA IDENTITY FULL",
];

/// Tells a story on every engine, with a database that is captured and holds a wedding of `s1`'s, its couple, and what the
/// supplier has of it.
pub(super) async fn on_each_engine_with_source(story: impl AsyncFn(&Story, &Source, &str)) {
    for engine in Engine::all() {
        let Some(source) = Source::create(&SETUP).await else { return };
        let system = source.captured(&engine, &TABLES).await;
        let acme = Tenant::of(&system, "Acme").await;
        let organization = organization(acme.addresses.router, &acme.key).await;
        source.streams().await;
        source
            .run(&format!("INSERT INTO wedding_details VALUES ('w1', '{organization}', '{{s1}}', '2027-06-19')"))
            .await;
        source.run(&format!("INSERT INTO supplier_kpis VALUES ('s1', '{organization}', 6)")).await;
        source.run(&format!("INSERT INTO client_list_cache VALUES ('c1', 's1', '{organization}', '2027-06-19')")).await;
        source.run(&format!("INSERT INTO core_fields VALUES ('c1', 'w1', '{organization}', 'none')")).await;
        let mut stage = Story { system, acme };
        // Who comes later is told of what happens later.
        source.caught_up().await;
        Box::pin(story(&stage, &source, &organization)).await;
        stage.system.stop().await;
        source.remove().await;
    }
}

/// A supplier's tab, and one of the planner who sees the whole organization.
async fn tabs(story: &Story, organization: &str) -> Option<[Tab; 2]> {
    let supplier = json!({ "organization_id": organization, "app_role": "supplier", "supplier_id": "s1" });
    let planner = json!({ "organization_id": organization, "app_role": "owner" });
    let supplier = Tab::open(Library::Newest, &story.system, supplier).await?;
    Some([supplier, Tab::open(Library::Newest, &story.system, planner).await?])
}

/// A subscription to the wedding's channel that has caught up.
pub(super) async fn subscribe(tenant: &Tenant) -> Streaming<SubscribeResponse> {
    let mut subscriptions = SubscriptionServiceClient::new(client(tenant.addresses.router, &tenant.key));
    let request = SubscribeRequest { channels: vec!["wedding:w1".to_owned()], ..SubscribeRequest::default() };
    let mut stream = subscriptions.subscribe(request).await.expect("a subscription").into_inner();
    let first = timeout(PATIENCE, stream.message()).await.expect("in time").expect("the stream goes on");
    assert!(matches!(first.and_then(|first| first.message), Some(Message::Progress(_))), "it has caught up");
    stream
}

/// Old and new date of the next change that a subscriber is told of.
async fn moved(stream: &mut Streaming<SubscribeResponse>) -> [Value; 2] {
    loop {
        let told = timeout(PATIENCE, stream.message()).await.expect("a change in time").expect("the stream goes on");
        let Some(Message::Event(event)) = told.expect("it doesn't end").message else { continue };
        assert_eq!((event.r#type.as_str(), event.source.as_str()), ("wedding_details.update", "postgres:planner"));
        let Some(Payload::Change(change)) = event.payload else { panic!("no change: {:?}", event.payload) };
        let date = |record: &[u8]| serde_json::from_slice::<Value>(record).expect("JSON")["wedding_date"].take();
        return [date(&change.old_record), date(&change.new_record)];
    }
}

/// The same of a signed webhook.
async fn posted(webhooks: &mut Subscriber) -> [Value; 2] {
    let received = webhooks.receiver.next().await;
    assert!(received.verifies_with(&webhooks.secret) && received.is_hex_signed_with(&webhooks.secret));
    let mut body = received.json();
    [body["oldRecord"]["wedding_date"].take(), body["newRecord"]["wedding_date"].take()]
}

#[tokio::test]
async fn a_wedding_date_that_is_changed_in_the_database_reaches_everybody_once() {
    on_each_engine_with_source(async |story, source, organization| {
        let Some(mut tabs) = tabs(story, organization).await else { return };
        let changes =
            json!([{ "event": "UPDATE", "schema": "public", "table": "wedding_details", "filter": "id=eq.w1" }]);
        for tab in &mut tabs {
            tab.join("room", json!({ "changes": changes })).await;
        }
        let mut stream = subscribe(&story.acme).await;
        let mut webhooks = story.acme.subscribe().await;
        // Whoever is told of the first one twice isn't told of the second one second.
        let dates = [["2027-06-19", "2027-07-03"], ["2027-07-03", "2027-07-10"]];
        for [_, date] in dates {
            source.run(&format!("UPDATE wedding_details SET wedding_date = '{date}' WHERE id = 'w1'")).await;
        }
        for dates in dates {
            for tab in &mut tabs {
                let told = tab.change("room").await;
                assert_eq!([&told["old"]["wedding_date"], &told["new"]["wedding_date"]], dates, "{told}");
            }
            assert_eq!(moved(&mut stream).await, dates);
        }
        // Webhooks keep no order that their endpoint didn't ask for.
        let mut all_posted = [posted(&mut webhooks).await, posted(&mut webhooks).await];
        all_posted.sort_by_key(|dates| dates[0].to_string());
        assert_eq!(all_posted, dates);
        webhooks.settled(2, DeliveryState::Delivered).await;
        webhooks.receiver.has_nothing_more();
        tabs.iter().for_each(|tab| tab.heard_nothing(|said| said["what"] == "change"));
    })
    .await;
}

#[tokio::test]
async fn a_suppliers_figures_reach_its_dashboard_under_either_name() {
    on_each_engine_with_source(async |story, source, organization| {
        let Some(mut tabs) = tabs(story, organization).await else { return };
        let channels = ["supplier:dashboard:s1", "supplier_s1"];
        for (tab, channel) in tabs.iter_mut().zip(channels) {
            tab.join(channel, json!({})).await;
        }
        for bookings in [7, 8] {
            source.run(&format!("UPDATE supplier_kpis SET bookings = {bookings} WHERE supplier_id = 's1'")).await;
        }
        for bookings in [7, 8] {
            for (tab, channel) in tabs.iter_mut().zip(channels) {
                let told = tab.broadcast(channel).await;
                let record = &told["payload"]["record"];
                assert_eq!((&told["event"], &record["bookings"]), (&json!("kpi_update"), &json!(bookings)), "{told}");
            }
        }
    })
    .await;
}
