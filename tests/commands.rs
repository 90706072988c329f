//! What a developer types: the commands of the binary, against a system that runs.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::harness::{PATIENCE, Wedsync, binary};

/// Runs a command to its end; gives what it printed, and whether it went well.
async fn run(system: &Wedsync, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--system").arg(system.data());
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
async fn every_command_has_its_help() {
    for command in ["serve", "demo", "publish", "listen", "endpoints", "deliveries"] {
        let output = Command::new(binary()).args([command, "--help"]).output().await.expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Usage: wedsync"), "{command}: {text}");
    }
}
