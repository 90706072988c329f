//! A process that dies anywhere between an event, a vendor and the router, for real: this test starts itself again as a
//! child, which a fail point ends, and once more without one. Vendors and the router outlive it. Needs the feature
//! `fail-points`.
//!
//! A change goes out to two vendors, one of them changes it, and that goes out to the other. Whoever gets no answer asks
//! again, as a router and a vendor do. In the end each vendor has one job with the last word, and the log has each event once.

use std::process::{Output, Stdio};

use chassis::{
    clock::Clock,
    config::{Secret, Shared, StoreSettings},
    grpc::Peer as Way,
    id,
    lane::State as Stage,
    secret::generate_master_key,
    service::Chassis,
    store::Store,
    testing::engines,
};
use prost::Message as _;
use proto::router::v1 as wire;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{World, acme, changed, guests, peer::Peer};
use crate::{
    inbound::{Answer, tests::Router as Log},
    integration::Integration,
    outbox::Held,
    record::RecordKind,
    router::Router,
};

const CHILD: &str = "sync::tests::kill::a_child_does_one_thing";
const VARIABLE: &str = "WEDSYNC_TEST_CHILD";
/// What a child says once the router, or the vendor, has its answer; and once all that follows is done.
const ANSWERED: &str = "ANSWERED ";
const DONE: &str = "DONE ";
/// Each point, and how often a life ends there: `sync.answered` is passed on the way to a new job and to a changed one.
const POINTS: [(&str, usize); 6] = [
    ("sync.observed", 2),
    ("sync.answered", 2),
    ("resolve.commit", 1),
    ("resolve.committed", 1),
    ("outbox.publish", 1),
    ("outbox.published", 1),
];

/// What outlives the processes.
struct Lives<'a> {
    store: &'a StoreSettings,
    key: &'a Secret,
    router: String,
    point: &'a str,
    deaths: usize,
}

impl Lives<'_> {
    async fn life(&self, what: &str, given: &Value, fail: &str) -> Output {
        let task = json!({
            "what": what,
            "given": given,
            "url": self.store.url.expose(),
            "schema": self.store.schema,
            "key": self.key.expose(),
            "router": self.router,
        });
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", CHILD, "--ignored", "--nocapture"]).env(VARIABLE, task.to_string());
        child.env("WEDSYNC_FAIL", fail).stdin(Stdio::null()).kill_on_drop(true);
        child.output().await.expect("it runs")
    }

    /// Has it done, by a second process if the first one dies. Whoever was not answered asks again.
    async fn does(&mut self, what: &str, given: &Value) -> String {
        let fail = if self.point.is_empty() { String::new() } else { format!("{}=kill", self.point) };
        let first = self.life(what, given, &fail).await;
        if let Some(done) = said(&first, DONE) {
            return done;
        }
        assert!(!first.status.success(), "{}", String::from_utf8_lossy(&first.stdout));
        self.deaths += 1;
        let mut given = given.clone();
        given["answered"] = json!(said(&first, ANSWERED).is_some());
        given["redelivered"] = json!(true);
        let second = self.life(what, &given, "").await;
        let errors = String::from_utf8_lossy(&second.stderr).into_owned();
        said(&second, DONE).unwrap_or_else(|| panic!("after {}: {errors}", self.point))
    }
}

fn said(output: &Output, word: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(|line| Some(line.split_once(word)?.1.to_owned()))
}

fn print(event: &wire::Event) -> String {
    hex::encode(event.encode_to_vec())
}

#[tokio::test]
#[ignore = "is started by the test below"]
async fn a_child_does_one_thing() {
    #[expect(clippy::disallowed_methods, reason = "how a test tells its child what to do")]
    let Ok(task) = std::env::var(VARIABLE) else { return };
    let task: Value = serde_json::from_str(&task).expect("a task");
    let (world, router) = open(&task).await;
    let given = &task["given"];
    let done = match task["what"].as_str().expect("a text") {
        "prepare" => prepare(&world, given).await,
        "handle" => handle(&world, given).await,
        "webhook" => webhook(&world, given).await,
        _ => {
            let outbox = &world.engine.resolver.outbox;
            while outbox.turn(&router, &mut Held::default()).await.expect("the router is there") {}
            String::new()
        }
    };
    println!("\n{DONE}{done}");
}

async fn open(task: &Value) -> (World, Router) {
    let text = |name: &str| task[name].as_str().expect("a text").to_owned();
    let settings = StoreSettings { url: text("url").into(), schema: text("schema"), ..StoreSettings::default() };
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    let store = Store::open(&settings, migrations).await.expect("nobody else has it");
    let mut shared: Shared = (*Chassis::for_test().shared).clone();
    shared.secrets.master_keys = vec![text("key").into()];
    let chassis = Chassis::new(shared, Clock::System).expect("settings that hold");
    let way = Way::new("vendor-sync", &text("router"), &chassis).expect("an address");
    (World::over(store, &chassis, &way).await, Router::new(&way))
}

async fn prepare(world: &World, given: &Value) -> String {
    world.declare().await;
    let mut ids = Vec::new();
    for address in given["peers"].as_array().expect("a list") {
        let address = address.as_str().expect("a text").parse().expect("an address");
        ids.push(world.account(&Peer { address, shop: Default::default() }, "").await.id);
    }
    ids.join(",")
}

async fn integration(world: &World, id: &Value) -> Integration {
    let integrations = &world.engine.accounts.integrations;
    integrations.get(&acme(), id.as_str().expect("a text")).await.expect("it is there")
}

/// Handles an event, unless that was acknowledged, and waits until each has got what is its.
async fn handle(world: &World, given: &Value) -> String {
    let event = hex::decode(given["event"].as_str().expect("a text")).expect("hex");
    let event = wire::Event::decode(event.as_slice()).expect("an event");
    if given["redelivered"] == json!(true) {
        // After a crash a poll may be the first to meet what was made before it.
        for id in given["settled"].as_object().expect("an object").keys() {
            let account = world.engine.accounts.get(id).expect("known");
            drop(world.engine.polls.poll(&account, RecordKind::Wedding).await);
        }
    }
    if given["answered"] != json!(true) {
        world.consume(event, given["redelivered"] == json!(true)).await;
        println!("\n{ANSWERED}");
    }
    for (id, count) in given["settled"].as_object().expect("an object") {
        let count = usize::try_from(count.as_u64().expect("a number")).expect("few");
        let records = world.settled(&integration(world, &json!(id)).await, count).await;
        assert!(records.iter().all(|record| record.state == Stage::Delivered as i64), "{records:?}");
    }
    String::new()
}

async fn webhook(world: &World, given: &Value) -> String {
    let integration = integration(world, &given["integration"]).await;
    match world.says(&integration, &given["job"]).await {
        Answer::Accepted { .. } => "accepted".to_owned(),
        Answer::Duplicate { .. } => "duplicate".to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wherever_a_process_dies_each_vendor_gets_each_change_once_and_the_log_each_event() {
    let (_folder, engines) = engines();
    let key = generate_master_key(&Clock::System);
    for store in &engines {
        for (point, deaths) in POINTS {
            // A schema or file of its own for each.
            let mut store = store.clone();
            let name = point.replace('.', "_");
            store.schema = format!("{}_{name}", store.schema);
            if store.url.expose().starts_with("sqlite:") {
                store.url = format!("{}.{name}.db", store.url.expose()).into();
            }
            survives(&store, &key, point, deaths).await;
        }
    }
}

async fn survives(store: &StoreSettings, key: &Secret, point: &str, deaths: usize) {
    let chassis = Chassis::for_test();
    let (log, router) = Log::listen(&chassis).await;
    let (one, two) = (Peer::start().await, Peer::start().await);
    let mut lives = Lives { store, key, router, point: "", deaths: 0 };
    let prepared = lives.does("prepare", &json!({"peers": [one.address.to_string(), two.address.to_string()]})).await;
    let (a, b) = prepared.split_once(',').expect("two");
    lives.point = point;

    let event = print(&changed(1, "w1", guests(80, 90), &[]));
    lives.does("handle", &json!({"event": event, "settled": {a: 1, b: 1}})).await;
    for peer in [&one, &two] {
        let asked = peer.asked();
        assert_eq!(asked.len(), 1, "{point}: found before it is made again: {asked:?}");
        assert_eq!((asked[0].0.as_str(), &asked[0].1["guests"]), ("POST", &json!(90)), "{point}");
    }

    let job = json!({"id": "job-1", "version": "7", "guests": 120, "date": null});
    let answer = lives.does("webhook", &json!({"integration": a, "job": job})).await;
    let was_kept = point == "resolve.committed";
    assert_eq!(answer, if was_kept { "duplicate" } else { "accepted" }, "{point}");
    lives.does("publish", &json!({})).await;
    let mut events = log.events();
    assert_eq!((events.len(), log.tries()), (1, 1 + usize::from(point == "outbox.published")), "{point}");
    let mut event = events.remove(0);
    event.uid = id::uuid(Clock::System.now());

    lives.does("handle", &json!({"event": print(&event), "settled": {a: 1, b: 2}})).await;
    let jobs = two.shop().jobs.clone();
    let job = &jobs["job-1"];
    assert_eq!((jobs.len(), job.version, &job.body["guests"]), (1, 2, &json!(120)), "{point}");
    assert_eq!(one.asked().len(), 1, "{point}: whose word it was is told nothing");
    lives.does("publish", &json!({})).await;
    assert_eq!(log.events().len(), 1, "{point}");
    assert_eq!(lives.deaths, deaths, "{point}: that many lives ended there");
}
