//! A browser tab: the public client of Supabase in a Node process, driven line by line (`tests/foreign/realtime.mjs`).

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::harness::{PATIENCE, Wedsync, provided, root};

/// Which of the public clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    /// `@supabase/supabase-js`, serializer 2.0.0.
    Newest,
    /// `@supabase/realtime-js` of before, serializer 1.0.0.
    Older,
}

/// A tab that is open.
pub(super) struct Tab {
    _child: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    /// What was said and not asked for yet.
    unheard: Vec<Value>,
}

impl Tab {
    /// Opens one whose token has these claims; none where there is no Node.
    pub(super) async fn open(library: Library, system: &Wedsync, claims: Value) -> Option<Self> {
        provided("WEDSYNC_TEST_NODE_MODULES")?;
        let secret = std::fs::read_to_string(system.data().join("jwt-secret")).expect("development mode makes one");
        let library = if library == Library::Newest { "newest" } else { "older" };
        let mut command = Command::new("node");
        command.arg(root().join("tests/foreign/realtime.mjs"));
        command.args([library, &format!("http://{}", system.addresses.gateway), secret.trim()]);
        let mut tab = Self::driven(&mut command);
        tab.order("connect", json!({ "claims": claims })).await;
        Some(tab)
    }

    /// A program that takes orders as `realtime.mjs` does.
    pub(super) fn driven(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the program is there");
        let orders = child.stdin.take().expect("it was asked for");
        let said = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        Self { _child: child, orders, said, unheard: Vec::new() }
    }

    /// Gives an order and waits until it is done; what came of it.
    pub(super) async fn order(&mut self, order: &str, mut given: Value) -> Value {
        given["order"] = order.into();
        self.orders.write_all(format!("{given}\n").as_bytes()).await.expect("it listens");
        self.hear(|said| said["what"] == "done" && said["order"] == order).await
    }

    /// Joins a channel and waits until it is subscribed.
    pub(super) async fn join(&mut self, channel: &str, given: Value) {
        let mut order = given;
        order["channel"] = channel.into();
        self.order("join", order).await;
        self.is_subscribed(channel).await;
    }

    pub(super) async fn is_subscribed(&mut self, channel: &str) {
        self.hear(|said| said["channel"] == channel && said["status"] == "SUBSCRIBED").await;
        self.hear(|said| {
            let message = said["payload"]["message"].as_str().unwrap_or_default();
            said["channel"] == channel && message.starts_with("Subscribed")
        })
        .await;
    }

    /// The next change that the application on `channel` is told of.
    pub(super) async fn change(&mut self, channel: &str) -> Value {
        self.hear(|said| said["channel"] == channel && said["what"] == "change").await["change"].take()
    }

    /// The next broadcast.
    pub(super) async fn broadcast(&mut self, channel: &str) -> Value {
        self.hear(|said| said["channel"] == channel && said["what"] == "broadcast").await
    }

    /// The next thing said that is meant; what else was said stays for later.
    pub(super) async fn hear(&mut self, is_meant: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.unheard.iter().position(&is_meant) {
            return self.unheard.remove(at);
        }
        loop {
            let line = timeout(PATIENCE, self.said.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("it wasn't said in time; but {:?}", self.unheard));
            let line = line.expect("a pipe").unwrap_or_else(|| panic!("the tab ended after {:?}", self.unheard));
            let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if is_meant(&said) {
                return said;
            }
            self.unheard.push(said);
        }
    }

    /// Nothing of this kind was said up to now: `order` is done in between, so all before it has come.
    pub(super) fn heard_nothing(&self, is_meant: impl Fn(&Value) -> bool) {
        let heard: Vec<_> = self.unheard.iter().filter(|said| is_meant(said)).collect();
        assert!(heard.is_empty(), "{heard:?}");
    }
}
