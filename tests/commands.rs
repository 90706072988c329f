//! What a developer types: the commands of the binary, against a system that runs.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::harness::{Engine, PATIENCE, Source, Wedsync, binary};

/// Runs a command to its end; gives what it printed, and whether it went well.
async fn run(system: &Wedsync, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(binary());
    // A command's own arguments come before those of what it does.
    let (name, further) = arguments.split_first().expect("a command");
    command.arg(name).arg("--system").arg(system.data()).args(further);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

#[tokio::test]
async fn a_developer_publishes_listens_and_looks_at_what_became_of_it() {
    let system = Wedsync::start().await;
    let mut listener = Command::new(binary());
    listener.arg("listen").arg("--system").arg(system.data()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut listener = listener.spawn().expect("it starts");
    let mut lines = BufReader::new(listener.stdout.take().expect("it is piped")).lines();
    let first = timeout(PATIENCE, lines.next_line()).await.expect("it says where it listens").expect("text");
    assert!(first.is_some_and(|line| line.starts_with("listening on http://127.0.0.1:")));

    let publish = [
        "publish",
        "--type",
        "wedding.date_changed",
        "--wedding",
        "w1",
        "--id",
        "command-1",
        "--data",
        r#"{"old_date":"2026-06-20"}"#,
    ];
    let (said, well) = run(&system, &publish).await;
    assert!(well && said.starts_with("event command-1 is durable at position"), "{said}");
    let received =
        timeout(PATIENCE, lines.next_line()).await.expect("a webhook arrives").expect("text").unwrap_or_default();
    assert!(received.starts_with("wedding.date_changed  msg_") && received.ends_with("verified"), "{received}");

    let (said, well) = run(&system, &publish).await;
    assert!(well && said.contains("a duplicate"), "{said}");
    let (said, well) = run(&system, &["endpoints"]).await;
    assert!(well && said.contains("active"), "{said}");
    let (said, well) = run(&system, &["deliveries", "--event", "command-1"]).await;
    assert!(well && said.contains("wedding.date_changed"), "{said}");
}

#[tokio::test]
async fn a_refusal_says_what_is_wrong_and_ends_with_an_error() {
    let system = Wedsync::start().await;
    let (said, well) = run(&system, &["publish", "--type", "Not A Type"]).await;
    assert!(!well && said.contains("event.type: must be dotted segments"), "{said}");
    let (said, well) = run(&system, &["publish", "--type", "a.b", "--data", "{"]).await;
    assert!(!well && said.contains("event.content.data: must be JSON"), "{said}");
}

#[tokio::test]
async fn an_operator_sees_how_far_captured_databases_are_and_what_was_refused() {
    let setup = ["CREATE TABLE orders (id int PRIMARY KEY, organization_id text)"];
    let Some(source) = Source::create(&setup).await else { return };
    let mut system = source.captured(&Engine::Sqlite, &["orders"]).await;
    source.streams().await;
    source.run("INSERT INTO orders VALUES (1, NULL), (2, NULL)").await;
    source.caught_up().await;
    let (said, well) = run(&system, &["captures"]).await;
    assert!(well && said.contains("planner") && said.contains("streaming"), "{said}");
    let (said, well) = run(&system, &["captures", "refusals"]).await;
    assert!(well && said.contains("id=1") && said.contains("id=2"), "{said}");
    let (said, well) = run(&system, &["captures", "dismiss", "planner", "--through", "1"]).await;
    assert!(well && said.starts_with("1 refusal"), "{said}");
    let (said, _) = run(&system, &["captures", "refusals", "--capture", "planner"]).await;
    assert!(!said.contains("id=1") && said.contains("id=2"), "{said}");
    system.stop().await;
    source.remove().await;
}

#[tokio::test]
async fn every_command_has_its_help() {
    for command in ["serve", "demo", "publish", "listen", "endpoints", "deliveries", "captures", "spooled"] {
        let output = Command::new(binary()).args([command, "--help"]).output().await.expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Usage: wedsync"), "{command}: {text}");
    }
}
