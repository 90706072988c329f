//! A process that dies between a vendor's answer and our commit, for real: this test starts itself again as a child, which
//! a fail point ends. Needs the feature `fail-points`.

use std::process::{Output, Stdio};

use chassis::{
    clock::{Clock, ManualClock},
    config::{Secret, Shared, StoreSettings},
    lane,
    secret::generate_master_key,
    service::Chassis,
    store::Store,
    testing::{engines, noon},
};
use jiff::SignedDuration;
use serde_json::json;
use tokio::process::Command;

use super::tests::Peer;
use crate::{
    MIGRATIONS,
    credential::{CredentialError, tests::World},
    integration::Integration,
};

const CHILD: &str = "oauth::kill::a_child_does_one_thing";
const RESULT: &str = "RESULT ";

/// What a child is to do: on which store, with which key, against which vendor, at how many seconds past noon.
struct Life<'a> {
    store: &'a StoreSettings,
    key: &'a Secret,
    peer: &'a Peer,
}

impl Life<'_> {
    async fn lives(&self, what: &str, at: i64, fail: &str) -> Output {
        let task = json!({
            "what": what,
            "at": at,
            "url": self.store.url.expose(),
            "schema": self.store.schema,
            "key": self.key.expose(),
            "peer": self.peer.addresses(),
        });
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", CHILD, "--ignored", "--nocapture"]).env("WEDSYNC_TEST_CHILD", task.to_string());
        child.env("WEDSYNC_FAIL", fail).stdin(Stdio::null()).kill_on_drop(true);
        child.output().await.expect("it runs")
    }

    /// What the child said.
    async fn does(&self, what: &str, at: i64) -> String {
        let output = self.lives(what, at, "").await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find_map(|line| Some(line.split_once(RESULT)?.1.to_owned()));
        line.unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
    }
}

#[tokio::test]
#[ignore = "is started by the test below"]
async fn a_child_does_one_thing() {
    #[expect(clippy::disallowed_methods, reason = "how a test tells its child what to do")]
    let Ok(task) = std::env::var("WEDSYNC_TEST_CHILD") else { return };
    let task: serde_json::Value = serde_json::from_str(&task).expect("a task");
    let text = |name: &str| task[name].as_str().expect("a text").to_owned();
    let settings = StoreSettings { url: text("url").into(), schema: text("schema"), ..StoreSettings::default() };
    let migrations = &[&chassis::store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS];
    let store = Store::open(&settings, migrations).await.expect("nobody else has it");
    let mut shared = Shared::default();
    shared.secrets.master_keys = vec![text("key").into()];
    shared.auth.service_secret = "a secret that only tests may share".to_owned().into();
    let now = noon() + SignedDuration::from_secs(task["at"].as_i64().expect("a number"));
    let chassis = Chassis::new(shared, Clock::Manual(ManualClock::at(now))).expect("settings that hold");
    let peer = Peer::at(&task["peer"]);
    let world = World::open(&store, &chassis, peer.asks()).await;
    let said = match text("what").as_str() {
        "connect" => {
            let integration = world.integration("acme").await;
            world.connect_in_browser(&peer, &integration).await;
            "connected".to_owned()
        }
        _ => refresh(&world).await,
    };
    println!("{RESULT}{said}");
}

async fn refresh(world: &World) -> String {
    let organization = chassis::id::OrganizationId::parse("acme").expect("well-formed");
    let all: Vec<Integration> =
        world.connecting.integrations.list(&organization, "", 1).await.expect("they are listed");
    match world.credentials.of(&all[0]).await {
        Ok(_) => "a token".to_owned(),
        Err(CredentialError::Unavailable(reason)) => format!("later: {reason}"),
        Err(CredentialError::NeedsReconnect(reason)) => format!("never: {reason}"),
    }
}

#[tokio::test]
async fn a_kill_between_the_vendors_answer_and_our_commit_is_survived_or_said() {
    let Some(peer) = Peer::start().await else { return };
    let (_folder, engines) = engines();
    let key = generate_master_key(&Clock::System);
    for store in &engines {
        for forgives in [true, false] {
            // A schema or file of its own for each life.
            let mut store = store.clone();
            store.schema = format!("{}_{forgives}", store.schema);
            if store.url.expose().starts_with("sqlite:") {
                store.url = format!("{}.{forgives}.db", store.url.expose()).into();
            }
            let life = Life { store: &store, key: &key, peer: &peer };
            peer.grants(json!({ "forgives": forgives })).await;
            assert_eq!(life.does("connect", 0).await, "connected");
            let before = peer.seen().await.refreshes();
            let killed = life.lives("refresh", 3_601, "credential.granted=kill").await;
            assert!(!killed.status.success(), "{}", String::from_utf8_lossy(&killed.stdout));
            assert_eq!(peer.seen().await.refreshes() - before, 1, "the vendor has answered");
            let waits = life.does("refresh", 3_602).await;
            assert!(waits.starts_with("later: "), "whoever died may still live: {waits}");
            assert_eq!(peer.seen().await.refreshes() - before, 1, "nobody else refreshes meanwhile");
            let then = life.does("refresh", 3_625).await;
            match forgives {
                true => assert_eq!(then, "a token"),
                false => assert!(then.starts_with("never: ") && then.contains("cut off"), "{then}"),
            }
        }
    }
}
