//! What a developer types: the commands of the binary, against a system that runs.

use std::process::Stdio;

use proto::vendorsync::v1::{PutConnectorRequest, connector_service_client::ConnectorServiceClient};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    task::JoinSet,
    time::timeout,
};

use vendor_sync_svc::testing::vendor::{
    Server,
    profile::{Profile, Receiver},
};

use crate::harness::{Engine, Key, PATIENCE, Source, Wedsync, binary, client, text};

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
    let (said, well) = run(&system, &["deliveries", "--limit", "1"]).await;
    assert!(well && !said.contains("there are more"), "{said}");

    // A terminal that is closed ends it in order too.
    let pid = listener.id().expect("it is running").to_string();
    Command::new("kill").args(["-s", "HUP", &pid]).status().await.expect("it is running");
    assert!(timeout(PATIENCE, listener.wait()).await.expect("it ends").expect("a child").success());
    let (said, _) = run(&system, &["endpoints"]).await;
    assert!(said.contains("nothing to show"), "its endpoint went with it: {said}");
}

#[tokio::test]
async fn a_key_that_was_kept_for_data_that_are_gone_is_made_anew() {
    let system = Wedsync::start().await;
    std::fs::write(system.data().join("dev-key"), "of another life\n").expect("written");
    let (said, well) = run(&system, &["endpoints"]).await;
    assert!(well && said.contains("nothing to show"), "{said}");
}

#[tokio::test]
async fn a_listener_takes_away_what_an_earlier_one_left_on_its_address() {
    let system = Wedsync::start().await;
    let address = format!("127.0.0.1:{}", crate::harness::free_port().await);
    for _ in 0..2 {
        let mut listener = Command::new(binary());
        listener.args(["listen", "--listen", &address, "--system"]).arg(system.data());
        let mut listener = listener.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
        let mut lines = BufReader::new(listener.stdout.take().expect("it is piped")).lines();
        timeout(PATIENCE, lines.next_line()).await.expect("it says where it listens").expect("text");
        listener.kill().await.expect("it is running");
    }
    let (said, _) = run(&system, &["endpoints"]).await;
    assert_eq!(said.matches(&address).count(), 1, "{said}");
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
    // A shell has an organization's key at hand for the other commands.
    let mut captures = Command::new(binary());
    captures.args(["captures", "--system"]).arg(system.data()).env("WEDSYNC_API_KEY", "an organization's");
    assert!(captures.output().await.expect("it starts").status.success());
    let (said, well) = run(&system, &["captures", "refusals"]).await;
    assert!(well && said.contains("id=1") && said.contains("id=2"), "{said}");
    let (said, well) = run(&system, &["captures", "dismiss", "planner", "--through", "1"]).await;
    assert!(well && said.starts_with("1 refusal"), "{said}");
    let (said, _) = run(&system, &["captures", "refusals", "--capture", "planner"]).await;
    assert!(!said.contains("id=1") && said.contains("id=2"), "{said}");
    system.stop().await;
    source.remove().await;
}

/// The word behind another in what a command printed.
fn after<'t>(said: &'t str, word: &str) -> &'t str {
    let mut words = said.split_whitespace().skip_while(|it| *it != word).skip(1);
    words.next().unwrap_or_else(|| panic!("no {word} in {said}"))
}

#[tokio::test]
async fn a_person_makes_connects_tests_pauses_and_disconnects_an_integration_at_the_terminal() {
    let system = Wedsync::start().await;
    let vendor =
        Server::start(Receiver::new(Profile::Crm, "k3y-of-ours", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).await;
    let url = format!("url={}", vendor.base());
    let (said, well) = run(&system, &["integrations", "connectors"]).await;
    assert!(well && said.contains("mailchimp") && said.contains("api_key"), "{said}");
    let (said, well) = run(&system, &["integrations", "connectors", "crm"]).await;
    assert!(well && said.contains("url") && said.contains("can't:"), "{said}");

    let (said, well) = run(&system, &["integrations", "add", "none-such"]).await;
    assert!(!well && said.contains("`wedsync integrations connectors` lists them"), "{said}");
    let (said, well) = run(&system, &["integrations", "add", "mailchimp"]).await;
    assert!(!well && said.contains("--set list_id="), "{said}");
    let (said, well) = run(&system, &["integrations", "add", "crm", "--set", &url, "--dry-run"]).await;
    assert!(well && said.starts_with("would make"), "{said}");
    let (said, _) = run(&system, &["integrations"]).await;
    assert!(said.contains("nothing to show"), "a dry run makes nothing: {said}");
    let (said, well) =
        run(&system, &["integrations", "add", "crm", "--set", &url, "--description", "Ada's studio"]).await;
    assert!(well && said.contains("/webhooks/crm/") && said.contains("integrations connect"), "{said}");
    let id = after(&said, "integration").to_owned();

    let (said, well) = run(&system, &["integrations", "test", &id]).await;
    assert!(!well && said.contains("doesn't work") && said.contains("connect"), "{said}");
    let (said, well) = run(&system, &["integrations", "connect", &id]).await;
    assert!(!well && said.contains("--key-from FILE"), "{said}");
    let key = system.folder().join("key.txt");
    std::fs::write(&key, "k3y-of-ours\n").expect("written");
    let connect = ["integrations", "connect", &id, "--key-from", text(&key)];
    let (said, well) = run(&system, &[&connect[..], &["--dry-run"]].concat()).await;
    assert!(well && said.contains("by key"), "{said}");
    let (said, well) = run(&system, &connect).await;
    assert!(well && said.starts_with("connected with"), "{said}");
    let (said, well) = run(&system, &["integrations", "test", &id]).await;
    assert!(well && said.contains("it works"), "{said}");

    for (command, expected, shown) in [("pause", "paused", "paused"), ("resume", "resumed", "active")] {
        let (said, well) = run(&system, &["integrations", command, &id, "--dry-run"]).await;
        assert!(well && said.starts_with(&format!("would {command}")), "{said}");
        let (said, well) = run(&system, &["integrations", command, &id]).await;
        assert!(well && said.contains(expected), "{said}");
        let (said, _) = run(&system, &["integrations"]).await;
        assert!(said.contains(shown), "{said}");
    }
    let (said, well) = run(&system, &["integrations", "disconnect", &id]).await;
    assert!(well && said.contains("disconnected"), "{said}");
    let (said, _) = run(&system, &["integrations"]).await;
    assert!(said.contains("not connected"), "{said}");
    let (said, well) = run(&system, &["integrations", "pause", "0190b6f0-0000-7000-8000-000000000001"]).await;
    assert!(!well && said.contains("`wedsync integrations` lists them"), "{said}");
}

#[tokio::test]
async fn where_people_sign_in_the_command_gives_an_address_and_waits_until_somebody_has() {
    let granted = axum::Router::new().fallback(async || {
        axum::Json(json!({ "access_token": "t0ken", "refresh_token": "r3fresh", "expires_in": 3_600 }))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let vendor = format!("http://{}", listener.local_addr().expect("bound"));
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, granted).await });
    let settings = [("WEDSYNC_VENDOR_SYNC__PUBLIC_URL", "https://sync.example.com")];
    let system = Wedsync::start_on(&Engine::Sqlite, &settings).await;
    // The commands' own organization is made by the first of them.
    let (said, well) = run(&system, &["integrations"]).await;
    assert!(well, "{said}");
    let key = Key(std::fs::read_to_string(system.data().join("dev-key")).expect("it is kept").trim().to_owned());
    let source = format!(
        "name = 'sign-in'\ntitle = 'Sign In'\nkind = 'photography_crm'\nbase_url = '{vendor}'\n[[auth]]\nkind = 'oauth2'\n\
         grant = 'authorization_code'\nauthorize_url = '{vendor}/authorize'\ntoken_url = '{vendor}/token'\n\
         [operations.me]\nmethod = 'GET'\npath = '/me'\n[probe]\noperation = 'me'\n"
    );
    let mut connectors = ConnectorServiceClient::new(client(system.addresses.vendor_sync, &key));
    connectors.put_connector(PutConnectorRequest { source, version: 0 }).await.expect("it is well-formed");
    let (said, _) = run(&system, &["integrations", "add", "sign-in"]).await;
    let id = after(&said, "integration").to_owned();

    let secret = system.folder().join("app.txt");
    std::fs::write(&secret, "app-secret").expect("written");
    let mut command = Command::new(binary());
    command.arg("integrations").arg("--system").arg(system.data()).args(["connect", &id, "--client-id", "app"]);
    command.arg("--key-from").arg(&secret).stdout(Stdio::piped()).kill_on_drop(true);
    let mut command = command.spawn().expect("it starts");
    let mut lines = BufReader::new(command.stdout.take().expect("it is piped")).lines();
    let mut line =
        async || timeout(PATIENCE, lines.next_line()).await.expect("a line").expect("text").expect("not its end");
    assert!(line().await.contains("open this in your browser"));
    let address = line().await;
    let path = address.strip_prefix("https://sync.example.com").expect("the gateway's own").to_owned();
    assert!(line().await.starts_with("waiting until"));

    // One may be there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "a browser is a bare client")]
    let browser =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().expect("a client");
    let gateway = format!("http://{}", system.addresses.gateway);
    let opened = browser.get(format!("{gateway}{path}")).send().await.expect("an answer");
    let header = |name: &str| opened.headers()[name].to_str().expect("plain text").to_owned();
    let (location, cookie) = (header("location"), header("set-cookie"));
    let (_, state) = location.split_once("state=").expect("a state");
    let state = state.split('&').next().expect("its value");
    let cookie = cookie.split(';').next().expect("its value");
    let back = format!("{gateway}/oauth/callback?code=c0de&state={state}");
    let answer = browser.get(back).header("cookie", cookie).send().await.expect("an answer");
    assert!(answer.status().is_success() || answer.status().is_redirection(), "{}", answer.status());
    assert_eq!(line().await, "connected");
    assert!(timeout(PATIENCE, command.wait()).await.expect("it ends").expect("a child of ours").success());
    let (said, well) = run(&system, &["integrations", "test", &id]).await;
    assert!(well, "{said}");
}

#[tokio::test]
async fn what_nobody_knows_cant_be_erased_and_nothing_was() {
    let system = Wedsync::start().await;
    let (said, well) = run(&system, &["erase", "client", "c1"]).await;
    assert!(!well && said.contains("record not found"), "{said}");
    let (said, well) = run(&system, &["erasures"]).await;
    assert!(well && said.contains("nothing to show"), "{said}");
}

#[tokio::test]
async fn every_command_has_its_help() {
    for command in [
        "serve",
        "demo",
        "publish",
        "listen",
        "endpoints",
        "deliveries",
        "captures",
        "spooled",
        "integrations",
        "erase",
        "erasures",
    ] {
        let output = Command::new(binary()).args([command, "--help"]).output().await.expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Usage: wedsync"), "{command}: {text}");
    }
}
