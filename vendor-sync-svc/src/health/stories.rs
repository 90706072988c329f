//! Health on each engine: probes of a vendor that comes and goes, who watches, and what is told of changes that wait.

use std::{sync::Arc, time::Duration};

use axum::{Router as Http, extract::State as Shared, routing};
use chassis::{config::Secret, lane, secret::DataKeys, service::Chassis, tasks::Tasks, with};
use http::StatusCode;
use jiff::SignedDuration;
use serde_json::json;
use std::sync::atomic::{AtomicU16, Ordering};
use tokio::{net::TcpListener, time::timeout};

use super::{
    Standing,
    behind::Behind,
    prober::{Prober, Round},
};
use crate::{
    credential::{
        State,
        connect::Given,
        tests::{Vendor, World, on_each},
    },
    integration::Integration,
    sync::letter::Letter,
};

/// Something is broken, and not slow.
const LONG: Duration = Duration::from_secs(120);

/// A vendor that answers with the status that it was told.
async fn vendor() -> (Arc<AtomicU16>, Vendor) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let me = format!("http://{}/me", listener.local_addr().expect("bound"));
    let status = Arc::new(AtomicU16::new(200));
    let answer = async |Shared(status): Shared<Arc<AtomicU16>>| {
        StatusCode::from_u16(status.load(Ordering::SeqCst)).expect("a status")
    };
    let app = Http::new().route("/me", routing::get(answer)).with_state(status.clone());
    Tasks::default().spawn("vendor", async move { axum::serve(listener, app).await.expect("it serves") });
    (status, Vendor::without_oauth(&me))
}

async fn connected(world: &World) -> Integration {
    let integration = world.integration("acme").await;
    let key = Given::Key(Secret::from("key".to_owned()));
    world.connecting.connect(&integration, key).await.expect("it is taken");
    integration
}

fn prober(world: &World, chassis: &Chassis) -> Prober {
    Prober {
        healths: world.healths.clone(),
        credentials: world.credentials.clone(),
        integrations: world.connecting.integrations.clone(),
        probe: world.vendor.clone(),
        clock: chassis.clock.clone(),
    }
}

#[tokio::test]
async fn a_vendor_that_fails_and_recovers_is_told_once_each_and_its_standing_outlives_the_process() {
    on_each(async |store, chassis, clock| {
        let (status, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = connected(&world).await;
        let (prober, mut round) = (prober(&world, &chassis), Round::default());
        let mut minutes = async |count: u64| {
            for _ in 0..count {
                prober.look(&mut round).await;
                clock.advance(Duration::from_secs(61));
                prober.look(&mut round).await;
            }
        };
        minutes(2).await;
        assert!(world.told().await.is_empty());
        status.store(503, Ordering::SeqCst);
        minutes(2).await;
        assert!(world.told().await.is_empty(), "two bad signs are none yet");
        minutes(5).await;
        assert_eq!(world.told().await, ["integration.failing"]);
        let shown = world.view.of(integration.clone()).await.expect("it is shown");
        assert!(
            matches!(shown.standing, Some((Standing::Failing, _))) && shown.probe_error.contains("503"),
            "{shown:?}"
        );
        let again = World::open(&store, &chassis, Vendor::without_oauth("http://127.0.0.1:9/")).await;
        let known = again.healths.of(&integration).await.expect("it is read").expect("it is known");
        assert_eq!((known.health.standing, known.health.changes), (Standing::Failing, 1));
        status.store(200, Ordering::SeqCst);
        minutes(5).await;
        assert_eq!(world.told().await, ["integration.failing", "integration.recovered"]);
    })
    .await;
}

#[tokio::test]
async fn a_refused_credential_is_no_failure_of_the_vendor_and_is_not_probed_on() {
    on_each(async |store, chassis, clock| {
        let (status, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = connected(&world).await;
        let (prober, mut round) = (prober(&world, &chassis), Round::default());
        status.store(401, Ordering::SeqCst);
        for _ in 0..6 {
            prober.look(&mut round).await;
            clock.advance(Duration::from_secs(61));
        }
        assert_eq!(world.state(&integration).await, State::NeedsReconnect);
        assert_eq!(world.told().await, ["integration.needs_reconnect"]);
    })
    .await;
}

#[tokio::test]
async fn whoever_watches_sees_how_each_stands_at_once_and_then_each_change_of_their_own() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let (mine, theirs) = (world.integration("acme").await, world.integration("other").await);
        let (mut shown, work) = world.view.clone().watch(mine.organization.clone(), String::new());
        let watching = Tasks::default();
        watching.spawn("watch", work);
        let mut next = async || {
            let next = timeout(LONG, shown.recv()).await.expect("in time");
            next.expect("it goes on").expect("it is shown")
        };
        let first = next().await;
        assert_eq!((first.integration.id.as_str(), first.connection), (mine.id.as_str(), State::Disconnected));
        for integration in [&theirs, &mine] {
            let key = Given::Key(Secret::from("key".to_owned()));
            world.connecting.connect(integration, key).await.expect("it is taken");
        }
        let second = next().await;
        assert_eq!((second.integration.id.as_str(), second.connection), (mine.id.as_str(), State::Connected));
        for _ in 0..3 {
            world.healths.sign(&mine, "it is away").await.expect("it is kept");
        }
        assert!(matches!(next().await.standing, Some((Standing::Failing, _))));
        drop(shown);
        assert!(watching.stop(LONG).await, "who is gone is watched for no longer");
    })
    .await;
}

/// A change of a wedding that waits for the vendor.
async fn wait(world: &World, integration: &Integration, event_id: &str, before: &str, after: &str) {
    offer(world, integration, letter(event_id, before, after)).await;
}

fn letter(event_id: &str, before: &str, after: &str) -> Letter {
    Letter {
        event_id: event_id.to_owned(),
        event_type: "wedding.date_changed".to_owned(),
        wedding_id: "w1".to_owned(),
        supplier_id: "s1".to_owned(),
        kind: "wedding".to_owned(),
        record_id: "w1".to_owned(),
        fields: json!({ "wedding_date": after, "venue_name": "Barn", "dietary_requirements": "nuts" }).to_string(),
        old: json!({ "wedding_date": before }).to_string(),
        changed: vec!["wedding_date".to_owned()],
        ..Letter::default()
    }
}

async fn offer(world: &World, integration: &Integration, letter: Letter) {
    let settings = lane::Settings { ordered: true, paused: true, ..lane::Settings::default() };
    world.view.dispatcher.open(&integration.id, &integration.organization, settings).await.expect("it is open");
    let offer = letter.offer(&integration.id, 3, "realtime");
    world.view.dispatcher.offer(vec![offer], false).await.expect("taken").wait().await.expect("durable");
}

fn behind(world: &World, chassis: &Chassis) -> Behind {
    Behind {
        store: world.store.clone(),
        keys: world.keys.clone(),
        outbox: world.outbox.clone(),
        connections: world.credentials.connections.clone(),
        integrations: world.connecting.integrations.clone(),
        after: SignedDuration::from_mins(30),
        clock: chassis.clock.clone(),
    }
}

async fn change(world: &World, text: &'static str) {
    with!(world.store.writer(), c => sqlx::query(text).execute(c).await.map(drop)).expect("it is changed");
}

async fn count(world: &World, text: &'static str) -> i64 {
    with!(world.store.reader(), c => sqlx::query_scalar(text).fetch_one(c).await).expect("a number")
}

#[tokio::test]
async fn what_a_vendor_will_never_have_is_told_to_be_over() {
    on_each(async |store, chassis, clock| {
        let (_, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = connected(&world).await;
        let behind = behind(&world, &chassis);
        wait(&world, &integration, "e1", "2026-06-20", "2026-06-21").await;
        clock.advance(Duration::from_secs(3_600));
        behind.look().await.expect("it is looked at");
        change(&world, "UPDATE deliveries SET state = 4").await;
        behind.look().await.expect("it is looked at");
        assert_eq!(world.told().await, ["integration.behind", "integration.caught_up"]);
        assert_eq!(World::content(&world.events().await[1])["outcome"], "given_up");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_weddings_is_looked_at_once_and_told_to_nobody() {
    on_each(async |store, chassis, clock| {
        let (_, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = connected(&world).await;
        let behind = behind(&world, &chassis);
        let client = Letter {
            wedding_id: String::new(),
            record_id: "c1".to_owned(),
            kind: "client".to_owned(),
            ..letter("e1", "", "")
        };
        offer(&world, &integration, client).await;
        clock.advance(Duration::from_secs(3_600));
        behind.look().await.expect("it is looked at");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM integration_behind WHERE told = 0").await, 1, "it is noted");
        change(&world, "UPDATE deliveries SET state = 3").await;
        behind.look().await.expect("it is looked at");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM integration_behind").await, 0);
        assert!(world.told().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_organization_whose_key_does_not_open_keeps_nobody_else_from_being_told() {
    on_each(async |store, chassis, clock| {
        let (_, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let mut both = [connected(&world).await, world.integration("other").await];
        world.connecting.connect(&both[1], Given::Key(Secret::from("key".to_owned()))).await.expect("it is taken");
        for integration in &both {
            wait(&world, integration, &format!("e-{}", integration.id), "2026-06-20", "2026-06-21").await;
        }
        clock.advance(Duration::from_secs(3_600));
        both.sort_by(|one, other| one.id.cmp(&other.id));
        let broken = both[0].organization.as_str();
        with!(store.writer(), c => sqlx::query("UPDATE data_keys SET wrapped = substr(wrapped, 1, 5) WHERE organization_id = $1")
            .bind(broken).execute(c).await.map(drop))
        .expect("it is changed");
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), chassis.clock.clone());
        let behind = Behind { keys, ..behind(&world, &chassis) };
        behind.look().await.expect_err("what went wrong is said");
        let told: Vec<String> = world.events().await.into_iter().map(|event| event.organization_id).collect();
        assert_eq!(told, [both[1].organization.as_str()]);
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_does_not_take_in_time_is_told_once_and_again_when_it_has_it() {
    on_each(async |store, chassis, clock| {
        let (_, vendor) = vendor().await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = connected(&world).await;
        let behind = behind(&world, &chassis);
        let told = async |minutes: u64| {
            clock.advance(Duration::from_secs(60 * minutes));
            for _ in 0..2 {
                behind.look().await.expect("it is looked at");
            }
            world.told().await.len()
        };
        wait(&world, &integration, "e1", "2026-06-20", "2026-06-21").await;
        assert_eq!(told(29).await, 0);
        assert_eq!(told(2).await, 1);
        let event = world.events().await.pop().expect("one");
        assert_eq!(event.r#type, "integration.behind");
        let metadata = event.metadata.clone().expect("there is some");
        assert_eq!((metadata.wedding_id.as_str(), metadata.supplier_id.as_str()), ("w1", "s1"));
        let content = World::content(&event);
        assert_eq!(
            content["fields"],
            json!({ "venue_name": "Barn", "wedding_date": "2026-06-21" }),
            "nothing of guests"
        );
        assert_eq!(
            (&content["wedding_id"], &content["changed"], &content["old"]["wedding_date"]),
            (&json!("w1"), &json!(["wedding_date"]), &json!("2026-06-20"))
        );
        assert!(content["summary"].as_str().expect("a text").contains("2026-06-20 -> 2026-06-21"), "{content}");
        // It moves again: told when that has waited as long, with what the vendor has.
        wait(&world, &integration, "e2", "2026-06-21", "2026-06-22").await;
        assert_eq!(told(29).await, 1);
        assert_eq!(told(2).await, 2);
        let content = World::content(&world.events().await.pop().expect("one"));
        assert_eq!(content["fields"]["wedding_date"], "2026-06-22");
        assert_eq!(content["old"]["wedding_date"], "2026-06-20");
        assert_eq!(told(600).await, 2, "never again for the same");
        // The vendor is back.
        with!(store.writer(), c => sqlx::query("UPDATE deliveries SET state = 3").execute(c).await.map(drop))
            .expect("done");
        assert_eq!(told(1).await, 3);
        assert_eq!(world.told().await.last().map(String::as_str), Some("integration.caught_up"));
        assert_eq!(told(60).await, 3);
    })
    .await;
}
