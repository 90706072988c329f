//! What browsers see, live: the public clients of Supabase, unmodified, newest and older, against the real binary.

use std::time::Duration;

use proto::router::v1::{
    BroadcastRequest, Content, GetOrganizationRequest, Operation,
    organization_service_client::OrganizationServiceClient, subscription_service_client::SubscriptionServiceClient,
};
use serde_json::{Value, json};

use super::{
    story::{Story, Tenant, change, inserted, told},
    tab::{Library, Tab},
};
use crate::harness::{Wedsync, client};

const BOTH: [Library; 2] = [Library::Newest, Library::Older];

pub(super) async fn start() -> Story {
    let system = Wedsync::start().await;
    let acme = Tenant::of(&system, "Acme").await;
    Story { system, acme }
}

pub(super) async fn organization(tenant: &Tenant) -> String {
    let mut organizations = OrganizationServiceClient::new(client(tenant.addresses.router, &tenant.key));
    let found = organizations.get_organization(GetOrganizationRequest::default()).await.expect("its own");
    found.into_inner().organization.expect("the answer holds it").id
}

pub(super) async fn supplier(tenant: &Tenant, id: &str) -> Value {
    json!({ "organization_id": organization(tenant).await, "supplier_id": id, "role": "authenticated", "app_role": "supplier" })
}

#[tokio::test]
async fn a_change_reaches_the_tabs_whose_filter_and_supplier_it_matches() {
    let story = start().await;
    for library in BOTH {
        let claims = supplier(&story.acme, "s1").await;
        let Some(mut tab) = Tab::open(library, &story.system, claims).await else { return };
        let changes = json!([
            { "event": "*", "schema": "public", "table": "orders", "filter": "supplier_id=eq.s1" },
            { "event": "DELETE", "schema": "public", "table": "orders" },
        ]);
        tab.join("client-list-s1", json!({ "changes": changes })).await;
        let row = |id: u32, supplier: &str, total: f64| json!({ "id": id, "supplier_id": supplier, "total": total });
        let publish = async |event| story.acme.publish(event).await;
        publish(inserted("orders", row(1, "s2", 1.0))).await;
        publish(inserted("orders", row(2, "s1", 12.5))).await;
        publish(change("orders", Operation::Update, row(2, "s1", 12.5), row(2, "s1", 13.5))).await;
        publish(change("orders", Operation::Delete, row(1, "s2", 1.0), Value::Null)).await;
        publish(change("orders", Operation::Delete, row(2, "s1", 13.5), Value::Null)).await;
        let told = tab.change("client-list-s1").await;
        assert_eq!((&told["eventType"], &told["new"]), (&json!("INSERT"), &row(2, "s1", 12.5)), "{library:?}");
        let told = tab.change("client-list-s1").await;
        assert_eq!((&told["new"]["total"], &told["old"]["total"]), (&json!(13.5), &json!(12.5)));
        for _ in 0..2 {
            let told = tab.change("client-list-s1").await;
            assert_eq!((&told["eventType"], &told["old"]), (&json!("DELETE"), &row(2, "s1", 13.5)), "by both");
        }
        tab.heard_nothing(|said| said["what"] == "change");
    }
}

#[tokio::test]
async fn broadcasts_reach_each_other_from_sockets_http_and_grpc_and_by_either_name() {
    let story = start().await;
    let claims = supplier(&story.acme, "s1").await;
    let Some(mut newest) = Tab::open(Library::Newest, &story.system, claims.clone()).await else { return };
    let Some(mut older) = Tab::open(Library::Older, &story.system, claims).await else { return };
    newest.join("supplier:dashboard:s1", json!({ "config": { "broadcast": { "self": true, "ack": true } } })).await;
    older.join("supplier_s1", json!({ "config": { "broadcast": { "ack": true } } })).await;
    newest
        .order("send", json!({ "channel": "supplier:dashboard:s1", "event": "cursor", "payload": { "x": 10 } }))
        .await;
    assert_eq!(newest.hear(|said| said["what"] == "sent").await["result"], "ok");
    for (tab, channel) in [(&mut newest, "supplier:dashboard:s1"), (&mut older, "supplier_s1")] {
        let told = tab.broadcast(channel).await;
        assert_eq!((&told["event"], &told["payload"]), (&json!("cursor"), &json!({ "x": 10 })));
    }
    older.order("send", json!({ "channel": "supplier_s1", "event": "answer", "payload": { "y": 1 } })).await;
    assert_eq!(older.hear(|said| said["what"] == "sent").await["result"], "ok");
    assert_eq!(newest.broadcast("supplier:dashboard:s1").await["event"], "answer");
    newest.order("send", json!({ "channel": "supplier:dashboard:s1", "event": "raw", "bytes": [1, 2, 3] })).await;
    assert_eq!(newest.broadcast("supplier:dashboard:s1").await["payload"], json!([1, 2, 3]), "bytes stay bytes");
    older.order("post", json!({ "channel": "supplier:dashboard:s1", "event": "posted", "payload": { "z": 1 } })).await;
    assert_eq!(older.hear(|said| said["what"] == "sent").await["result"], "ok");
    let mut subscriptions = SubscriptionServiceClient::new(client(story.acme.addresses.router, &story.acme.key));
    let content = Content { content_type: String::new(), data: r#"{"g":1}"#.into() };
    let request = BroadcastRequest {
        channel: "supplier_s1".to_owned(),
        event: "called".to_owned(),
        content: Some(content),
        ..BroadcastRequest::default()
    };
    subscriptions.broadcast(request).await.expect("it is taken");
    for (tab, channel) in [(&mut newest, "supplier:dashboard:s1"), (&mut older, "supplier_s1")] {
        assert_eq!(tab.broadcast(channel).await["event"], "posted");
        assert_eq!(tab.broadcast(channel).await["payload"], json!({ "g": 1 }));
    }
    older.heard_nothing(|said| said["what"] == "broadcast");
}

#[tokio::test]
async fn logged_events_come_as_broadcasts_under_the_names_that_clients_know() {
    let story = start().await;
    for library in BOTH {
        let claims = supplier(&story.acme, "s1").await;
        let Some(mut tab) = Tab::open(library, &story.system, claims).await else { return };
        tab.join("supplier_s1", json!({})).await;
        tab.join("client-list-s1", json!({})).await;
        story.acme.publish(inserted("supplier_kpis", json!({ "supplier_id": "s1", "bookings": 7 }))).await;
        let told = tab.broadcast("supplier_s1").await;
        assert_eq!((&told["event"], &told["payload"]["record"]["bookings"]), (&json!("kpi_update"), &json!(7)));
        assert!(told["meta"]["seq"].as_u64().is_some_and(|seq| seq > 0), "{told}");
        let row = |stage: &str| json!({ "client_id": "c1", "supplier_id": "s1", "stage": stage });
        story.acme.publish(change("client_list_cache", Operation::Update, row("a"), row("b"))).await;
        let told = tab.broadcast("client-list-s1").await;
        assert_eq!((&told["event"], &told["payload"]["clientId"]), (&json!("client-updated"), &json!("c1")));
        assert_eq!(told["payload"]["changes"], json!({ "stage": "b" }));
    }
}

#[tokio::test]
async fn those_present_see_each_other_come_and_go() {
    let story = start().await;
    let claims = supplier(&story.acme, "s1").await;
    let Some(mut alice) = Tab::open(Library::Newest, &story.system, claims.clone()).await else { return };
    let Some(mut bob) = Tab::open(Library::Older, &story.system, claims).await else { return };
    let users = |said: &Value| said["state"].as_object().map(|all| all.keys().cloned().collect::<Vec<_>>());
    let sees = async |tab: &mut Tab, all: &[&str]| {
        let all: Vec<_> = all.iter().map(|user| (*user).to_owned()).collect();
        tab.hear(|said| said["what"] == "presence" && users(said).as_ref() == Some(&all)).await
    };
    alice.join("room", json!({ "config": { "presence": { "key": "alice" } } })).await;
    bob.join("room", json!({ "config": { "presence": { "key": "bob" } } })).await;
    alice.order("track", json!({ "channel": "room", "payload": { "mood": "fine" } })).await;
    assert_eq!(alice.hear(|said| said["what"] == "tracked").await["result"], "ok");
    bob.order("track", json!({ "channel": "room", "payload": {} })).await;
    for tab in [&mut alice, &mut bob] {
        let seen = sees(tab, &["alice", "bob"]).await;
        assert_eq!(seen["state"]["alice"][0]["mood"], "fine");
    }
    alice.order("untrack", json!({ "channel": "room" })).await;
    sees(&mut bob, &["bob"]).await;
    drop(bob);
    sees(&mut alice, &[]).await;
}

#[tokio::test]
async fn a_tab_that_was_cut_off_gets_what_it_missed_in_order_and_once() {
    let story = start().await;
    for library in BOTH {
        let claims = supplier(&story.acme, "s1").await;
        let Some(mut tab) = Tab::open(library, &story.system, claims).await else { return };
        let binding =
            json!([{ "event": "INSERT", "schema": "public", "table": "orders", "filter": "supplier_id=eq.s1" }]);
        tab.join("supplier_s1", json!({ "changes": binding, "resume": true })).await;
        let mut published = 0;
        for round in 0..3 {
            for _ in 0..20 {
                published += 1;
                story
                    .acme
                    .publish(told("", "payment.received", &json!({ "supplier_id": "s1", "n": published }).to_string()))
                    .await;
                story.acme.publish(inserted("orders", json!({ "id": published, "supplier_id": "s1" }))).await;
            }
            if round == 0 {
                hear_all(&mut tab, 1..=20).await;
            }
            tab.order("cut", json!({})).await;
        }
        let told = tab.hear(|said| said["payload"]["recovered"].is_boolean()).await;
        assert_eq!(told["payload"]["recovered"], true, "{library:?}");
        hear_all(&mut tab, 21..=published).await;
        tab.order("send", json!({ "channel": "supplier_s1", "event": "end", "payload": {} })).await;
        tab.heard_nothing(|said| said["what"] == "broadcast");
    }
}

/// Each of them once as a broadcast and once as a change.
async fn hear_all(tab: &mut Tab, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(tab.broadcast("supplier_s1").await["payload"]["n"], number);
        assert_eq!(tab.change("supplier_s1").await["new"]["id"], number);
    }
}

#[tokio::test]
async fn a_position_that_the_log_does_not_have_is_a_resync_and_the_tab_goes_on() {
    let story = start().await;
    let claims = supplier(&story.acme, "s1").await;
    let Some(mut tab) = Tab::open(Library::Newest, &story.system, claims).await else { return };
    tab.order("join", json!({ "channel": "supplier_s1", "resume": { "epoch": "another-log", "seq": 7 } })).await;
    let told = tab.hear(|said| said["payload"]["resync"] == true).await;
    assert_eq!(told["payload"]["recovered"], false);
    story.acme.publish(inserted("supplier_kpis", json!({ "supplier_id": "s1" }))).await;
    assert_eq!(tab.broadcast("supplier_s1").await["event"], "kpi_update");
}

#[tokio::test]
async fn another_suppliers_or_organizations_token_sees_nothing() {
    let story = start().await;
    let rival = story.tenant("Rival").await;
    let ours = supplier(&story.acme, "s1").await;
    let Some(mut own) = Tab::open(Library::Newest, &story.system, ours).await else { return };
    let changes = json!([{ "event": "*", "schema": "*", "table": "*" }]);
    own.join("room", json!({ "changes": changes, "config": { "broadcast": { "self": true } } })).await;
    for claims in [supplier(&rival, "s1").await, supplier(&story.acme, "s2").await] {
        let foreign = claims["organization_id"] != supplier(&story.acme, "s1").await["organization_id"];
        let mut tab = Tab::open(Library::Newest, &story.system, claims).await.expect("node is there");
        tab.join("room", json!({ "changes": changes })).await;
        if !foreign {
            tab.order("join", json!({ "channel": "supplier_s1" })).await;
            let refused = tab.hear(|said| said["status"] == "CHANNEL_ERROR").await;
            assert!(refused["error"].as_str().expect("a reason").contains("Unauthorized"), "{refused}");
        }
        story.acme.publish(inserted("orders", json!({ "id": 1, "supplier_id": "s1" }))).await;
        own.change("room").await;
        own.order("send", json!({ "channel": "room", "event": "end", "payload": {} })).await;
        own.broadcast("room").await;
        if foreign {
            // Its own organization's come; so ours would have.
            rival.publish(inserted("orders", json!({ "id": 2, "supplier_id": "s1" }))).await;
            assert_eq!(tab.change("room").await["new"]["id"], 2);
        } else {
            assert_eq!(tab.broadcast("room").await["event"], "end", "a room is the organization's");
        }
        tab.heard_nothing(|said| said["what"] == "change" || said["what"] == "broadcast");
    }
}

#[tokio::test]
async fn a_token_that_ends_is_said_beforehand_and_a_newer_one_keeps_the_channel() {
    let story = start().await;
    let claims = supplier(&story.acme, "s1").await;
    let ends = |seconds: i64| {
        let mut claims = claims.clone();
        claims["exp"] = (super::story::now().as_second() + seconds).into();
        claims
    };
    let Some(mut tab) = Tab::open(Library::Newest, &story.system, ends(50)).await else { return };
    tab.join("supplier_s1", json!({})).await;
    tab.hear(|said| said["payload"]["expires_at"].is_i64()).await;
    tab.order("token", json!({ "claims": ends(-25) })).await;
    let ended = tab.hear(|said| said["status"] == "CHANNEL_ERROR").await;
    tab.order("token", json!({ "claims": ends(3600) })).await;
    tab.hear(|said| said["status"] == "SUBSCRIBED").await;
    story.acme.publish(inserted("supplier_kpis", json!({ "supplier_id": "s1" }))).await;
    assert_eq!(tab.broadcast("supplier_s1").await["event"], "kpi_update", "after {ended}");
    tokio::time::timeout(Duration::from_secs(60), tab.order("leave", json!({ "channel": "supplier_s1" })))
        .await
        .expect("in time");
}
