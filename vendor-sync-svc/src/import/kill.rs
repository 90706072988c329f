//! An import survives an end without a word: it is worked at by a process of its own, which ends itself so three times in
//! the middle of its work, and in the end every row was taken once, told once, and counted once, in memory that stays flat.
//!
//! `WEDSYNC_TEST_IMPORT_ROWS=100000` with `--nocapture` prints what a large one costs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Instant,
};

use chassis::{
    clock::Clock,
    config::{Secret, StoreSettings},
    secret::generate_master_key,
    service::Chassis,
    store::Store,
    testing::engines,
};
use serde_json::{Value, json};

use super::{
    Import, Origin, State,
    tests::{MIGRATIONS, World, table},
};
use crate::record::RecordKind;

const VARIABLE: &str = "WEDSYNC_TEST_IMPORT";
const KILLS: u64 = 3;

/// Not a test: what the test starts as a process. It works until it has seen so many or there is nothing left to do.
#[tokio::test]
#[ignore = "started by the test below"]
async fn process() {
    #[expect(clippy::disallowed_methods, reason = "how the test tells it what to do")]
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let text = |name: &str| told[name].as_str().expect("a text").to_owned();
    let world = World::open(&settings(&told), chassis(&text("master_key"))).await;
    let imports = world.worker.imports.clone();
    let mut changes = imports.changes();
    world.chassis.tasks.spawn("imports", world.worker.clone().run(world.chassis.tasks.clone()));
    loop {
        let import = imports.list(&super::tests::organization("acme"), "", "", 1).await.expect("the store").remove(0);
        println!("\nseen {} {} {}", import.counts.seen, import.state.as_str(), memory_kib());
        if import.state.has_ended() {
            return;
        }
        if import.counts.seen >= told["until"].as_u64().expect("a number") {
            // As it is, whatever else it does just now: nothing is undone, nobody told.
            std::process::abort();
        }
        changes.changed().await.expect("it goes on");
    }
}

fn settings(told: &Value) -> StoreSettings {
    let text = |name: &str| told[name].as_str().expect("a text").to_owned();
    StoreSettings { url: Secret::from(text("url")), schema: text("schema"), ..StoreSettings::default() }
}

fn chassis(master_key: &str) -> Chassis {
    let mut shared = (*Chassis::for_test().shared).clone();
    shared.secrets.master_keys = vec![Secret::from(master_key.to_owned())];
    Chassis::new(shared, Clock::System).expect("settings that hold")
}

/// The most that this process had resident.
fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn start(told: &Value, until: u64) -> Child {
    let mut told = told.clone();
    told["until"] = until.into();
    let program = std::env::current_exe().expect("a test is a program");
    Command::new(program)
        .args(["--exact", "import::kill::process", "--ignored", "--nocapture"])
        .env(VARIABLE, told.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// Works until it has seen `until` records, is cut off then, and tells whether it was at the end, and its memory.
fn work_until(told: &Value, until: u64) -> (bool, u64) {
    let mut child = start(told, until);
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let (mut ended, mut memory) = (false, 0);
    for line in output.lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let ["seen", _, state, kib] = words[..] else { continue };
        memory = kib.parse().expect("a number");
        ended = State::parse(state).is_some_and(State::has_ended);
    }
    child.wait().expect("it ends");
    (ended, memory)
}

#[tokio::test]
async fn an_import_that_is_killed_three_times_takes_every_row_once() {
    #[expect(clippy::disallowed_methods, reason = "how a person asks for more")]
    let rows = std::env::var("WEDSYNC_TEST_IMPORT_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(4_000_usize);
    let (_folder, engines) = engines();
    for store in engines {
        let master_key = generate_master_key(&Clock::System).expose().to_owned();
        let told = json!({"master_key": master_key, "url": store.url.expose(), "schema": store.schema});
        let import = prepare(&store, &master_key, rows).await;
        let (began, mut memory) = (Instant::now(), Vec::new());
        for kill in 1..=KILLS {
            let (ended, kib) = work_until(&told, rows as u64 * kill / (KILLS + 1));
            assert!(!ended, "it was to be cut off");
            memory.push(kib);
        }
        let (ended, kib) = work_until(&told, u64::MAX);
        memory.push(kib);
        println!("{rows} rows in {:?}, resident at most {memory:?} KiB", began.elapsed());
        assert!(ended);
        let world = World::open(&store, chassis(&master_key)).await;
        let done = world.get(&import).await;
        assert_eq!((done.state, done.counts.created, done.counts.seen), (State::Done, rows as u64, rows as u64));
        assert_eq!((done.counts.changed, done.counts.unchanged), (0, 0), "{}", done.reason);
        assert_eq!(world.told().await, i64::try_from(rows).expect("few"), "each is told once");
        world.store.close().await;
    }
}

/// A store in which an import waits for somebody to work at it.
async fn prepare(store: &StoreSettings, master_key: &str, rows: usize) -> Import {
    let store = Store::open(store, MIGRATIONS).await.expect("a fresh store");
    let world = World::over(store, chassis(master_key)).await;
    let import = world.upload(world.order(Origin::Csv, RecordKind::Client), table(rows, |row| row).as_bytes()).await;
    // Whoever holds the store, even in the background, keeps another process out.
    assert!(world.chassis.drain().await, "it stops in time");
    world.store.close().await;
    import
}
