//! What waits survives kill -9: the notifier runs as a process of its own, is killed again and again while it releases what
//! is due, and in the end everything was told, and nothing twice.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Lines},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use chassis::{
    clock::{Clock, ManualClock},
    config::{Secret, StoreSettings},
    service::Chassis,
    testing::{engines, manual_clock, seeds},
};
use jiff::Timestamp;
use notifier_svc::{Config, Smtp as SmtpSettings, Tls};
use proto::notifier::v1::{DigestFrequency, MessageState, Preference, QuietHours};
use serde_json::{Value, json};

use crate::{
    router::Router,
    smtp::Smtp,
    world::{Client, client_at},
};

const VARIABLE: &str = "WEDSYNC_TEST_NOTIFIER";
const KILLS: u32 = 6;
/// What the notifier has under way at once for one organization and channel (its `SLOTS`).
const UNDER_WAY: u32 = 8;

/// Not a test: what the test starts as a process. It runs until it is killed.
#[tokio::test]
#[ignore = "started by the test below"]
async fn process() {
    #[expect(clippy::disallowed_methods, reason = "how the test tells it what to do")]
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let told: Value = serde_json::from_str(&told).unwrap();
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    let mut shared = (*Chassis::for_test().shared).clone();
    shared.secrets.master_keys = vec![Secret::from(text("master_key"))];
    shared.outbound.allow_networks = vec!["127.0.0.0/8".to_owned()];
    shared.outbound.allow_http = true;
    let now = Timestamp::from_second(told["now"].as_i64().unwrap()).unwrap();
    let chassis = Chassis::new(shared, Clock::Manual(ManualClock::at(now))).unwrap();
    let mut config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        router: text("router"),
        store: StoreSettings { url: text("url").into(), schema: text("schema"), ..StoreSettings::default() },
        smtp: SmtpSettings {
            host: "127.0.0.1".to_owned(),
            port: u16::try_from(told["smtp"].as_u64().unwrap()).unwrap(),
            tls: Tls::None,
            from: "notices@wedsync.example".to_owned(),
            ..SmtpSettings::default()
        },
        ..Config::default()
    };
    if let Some(base) = told["slack"].as_str() {
        (config.slack.bot_token, config.slack.base_url) = ("xoxb-1".to_owned().into(), base.to_owned());
        config.slack.per_second = 0;
    }
    let service = notifier_svc::start(config, &chassis).await.unwrap();
    println!("\nlistening {}", service.address);
    std::future::pending().await
}

/// A notifier's process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    address: SocketAddr,
    /// Kept open: what runs a test says so when it takes long.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Process {
    pub(crate) fn start(told: &Value) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::process", "--ignored", "--nocapture"])
            .env(VARIABLE, told.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = output.by_ref().map_while(Result::ok);
        let address = said.filter_map(|line| line.strip_prefix("listening ")?.parse().ok()).next();
        Self { child, address: address.expect("it says where it listens"), _output: output }
    }

    pub(crate) async fn client(&self) -> Client {
        client_at(self.address, "wsk_a").await
    }
}

/// Who there is, what they wish, and how much each is told.
fn people() -> impl Iterator<Item = (String, Preference, u32)> {
    let quiet = QuietHours { from: "11:00".to_owned(), until: "14:00".to_owned() };
    let quiet = Preference { quiet_hours: Some(quiet), ..Default::default() };
    let digest = Preference { digest: DigestFrequency::Hourly.into(), ..Default::default() };
    let kinds = [("quiet", quiet, 3), ("digest", digest, 4), ("busy", Preference::default(), 13)];
    kinds.into_iter().flat_map(|(kind, wish, messages)| {
        (0..3).map(move |number| (format!("{kind}{number}"), wish.clone(), messages))
    })
}

fn word(id: &str, number: u32) -> String {
    format!("word-{id}-{number}-end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deferred_and_gathered_survives_kills_and_nothing_comes_twice() {
    let (_folder, engines) = engines();
    for store in engines {
        let (time, clock) = manual_clock();
        let shared = (*Chassis::for_test().shared).clone();
        let chassis = Chassis::new(shared, clock).unwrap();
        let (_router, router) = Router::start(&chassis).await;
        let (smtp, mail) = Smtp::start(&chassis.tasks).await;
        let told = |time: &ManualClock| {
            json!({
                "url": store.url.expose(),
                "schema": store.schema,
                "router": format!("http://{router}"),
                "smtp": mail.port(),
                "master_key": chassis.shared.secrets.master_keys[0].expose(),
                "now": Clock::Manual(time.clone()).now().as_second(),
            })
        };
        {
            let process = Process::start(&told(&time));
            let client = process.client().await;
            for (id, wish, messages) in people() {
                client.supplier(&id, "").await;
                client.wish(&id, wish).await;
                for number in 0..messages {
                    client.tell(&format!("{id}-{number}"), &id, &["email"], &word(&id, number)).await;
                }
            }
        }
        time.advance(Duration::from_secs(2 * 3_600));
        let seed = seeds(1).start;
        println!("seed {seed}");
        for kill in 0..KILLS {
            let process = Process::start(&told(&time));
            let wait_ms = (seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(kill) * 7_919)) % 150;
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            drop(process);
        }
        let process = Process::start(&told(&time));
        verify(&process.client().await, &smtp).await;
        drop(process);
        assert!(chassis.drain().await);
    }
}

/// Everything ends as sent, once, or as unknown where it was cut off while it was being sent: at each kill, and when the
/// first process ended, that is at most what was under way.
async fn verify(client: &Client, smtp: &Smtp) {
    let mut unknown: u32 = 0;
    let mut states = HashMap::new();
    for (id, _, messages) in people() {
        for number in 0..messages {
            let message = client.settled(&format!("{id}-{number}"), &id, "email").await;
            unknown += u32::from(message.state() == MessageState::Unknown);
            states.insert(word(&id, number), message.state());
        }
    }
    let mails: Vec<String> = smtp.kept().iter().map(|mail| mail.text.replace("=\r\n", "")).collect();
    for (word, state) in &states {
        // A mail says it in its subject, and in its text and HTML parts; another mail must not.
        let times = mails.iter().filter(|mail| mail.contains(word)).count();
        match state {
            MessageState::Sent => assert_eq!(times, 1, "{word}"),
            MessageState::Unknown => assert!(times <= 1, "{word}"),
            other => panic!("{word} is {other:?}"),
        }
    }
    assert!(unknown <= (KILLS + 1) * UNDER_WAY, "{unknown} of {} are unknown", states.len());
}
