//! People: how long it takes from a publish until a provider is handed the message, how many are told a second, in how much
//! memory, and what a kill -9 in the middle costs. E-mail by Resend's API and a notice in the inbox for each notification; the
//! provider stands on this machine and takes whatever comes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, body::Bytes, extract::State, routing::post};
use proto::{
    notifier::v1::{
        ListNotificationsRequest, MessageState, Recipient, RecipientKind, UpsertRecipientRequest,
        notification_service_client::NotificationServiceClient, recipient_service_client::RecipientServiceClient,
    },
    router::v1::{Content, Event, Metadata, event::Payload},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    figure::{Figure, percentile},
    machine,
    path::{Wanted, blocking},
    publisher::paced_events,
    report::print,
};
use crate::{
    crash::name,
    harness::{Engine, Key, PATIENCE, Wedsync, client},
};

const NAMES: [&str; 5] =
    ["notifications_p99", "notifications_rate", "notifications_memory", "notifications_lost", "notifications_repeated"];
/// As many as the hourly limit lets through.
const EACH: usize = 10;
const RATE: u32 = 100;
const MEASURED: usize = 10 * RATE as usize;
/// Those before them that aren't counted.
const WARM: usize = 200;
/// How fast the many are offered: more than are told.
const OFFERED: u32 = 5_000;
const MOST_MS: f64 = 20.0;
const MOST_MIB: f64 = 300.0;
/// What a provider on loopback and one disk should allow for at least.
const LEAST_PER_SECOND: f64 = 200.0;
/// How long nothing may come before what hasn't come is asked about.
const QUIET: Duration = Duration::from_secs(2);
/// When it is killed: once this part of the notifications has arrived.
const KILLS: [usize; 3] = [10, 3, 2];

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !NAMES.iter().any(|name| wanted.wants(name)) {
        return;
    }
    let (store, notifications) = (name(engine), wanted.notifications);
    let provider = Provider::start().await;
    let settings = provider.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut system = Wedsync::start_on(engine, &settings).await;
    if wanted.wants(NAMES[0]) {
        let key = people(&system, "Steady", MEASURED + WARM).await;
        let mut taken = steady(&system, &provider, key).await;
        taken.sort_by(f64::total_cmp);
        told(Figure::at_most(NAMES[0], store, percentile(&taken, 99.0), "ms", MOST_MS));
    }
    if wanted.wants(NAMES[1]) || wanted.wants(NAMES[2]) {
        let key = people(&system, "Burst", notifications).await;
        let per_second = burst(&system, &provider, key, notifications).await;
        told(Figure::at_least(NAMES[1], store, per_second, "notifications/s", LEAST_PER_SECOND));
        told(Figure::at_most(NAMES[2], store, machine::resident_mib(system.pid()).1, "MiB", MOST_MIB));
    }
    if wanted.wants(NAMES[3]) || wanted.wants(NAMES[4]) {
        let key = people(&system, "Killed", notifications).await;
        let killed = killed(&mut system, &provider, key, notifications, store).await;
        print(&killed);
        told(Figure::at_most(NAMES[3], store, killed.lost as f64, "notifications", 0.0));
        told(Figure::at_most(NAMES[4], store, killed.told_twice as f64, "messages", 0.0));
    }
}

/// An organization with people for so many notifications.
async fn people(system: &Wedsync, organization: &str, notifications: usize) -> Key {
    let key = system.tenant(organization).await;
    let mut recipients = RecipientServiceClient::new(client(system.addresses.notifier, &key));
    for number in 0..notifications.div_ceil(EACH) {
        let recipient = Recipient {
            id: format!("s{number}"),
            kind: RecipientKind::Supplier.into(),
            name: format!("Supplier {number}"),
            email: format!("s{number}@example.org"),
            ..Recipient::default()
        };
        let request = UpsertRecipientRequest { recipient: Some(recipient) };
        recipients.upsert_recipient(request).await.expect("they are known");
    }
    key
}

/// What one person is told as number `number` of so many in a run.
fn event(run: &str, number: usize, notifications: usize) -> Event {
    let data = json!({ "form_name": form(run, number), "client_name": "Mia", "response_count": 12 }).to_string();
    Event {
        id: form(run, number),
        r#type: "form.response_received".to_owned(),
        source: "bench".to_owned(),
        metadata: Some(Metadata {
            supplier_id: format!("s{}", number % notifications.div_ceil(EACH)),
            ..Metadata::default()
        }),
        payload: Some(Payload::Content(Content { content_type: String::new(), data: data.into_bytes().into() })),
        ..Event::default()
    }
}

fn form(run: &str, number: usize) -> String {
    format!("{run}-{number}-")
}

/// From when each was due to be published until the provider had it, in ms.
async fn steady(system: &Wedsync, provider: &Provider, key: Key) -> Vec<f64> {
    let (router, all) = (system.addresses.router, MEASURED + WARM);
    let published =
        blocking(move || paced_events(router, &key, RATE, 0..all, |number| event("steady", number, all))).await;
    provider.has("steady", all, PATIENCE).await;
    let counted = published.iter().filter(|published| published.number >= WARM);
    let taken =
        |due: Instant, number| provider.at("steady", number).expect("it arrived").saturating_duration_since(due);
    counted.map(|published| taken(published.due, published.number).as_secs_f64() * 1e3).collect()
}

/// How many a second reach the provider when all come at once.
async fn burst(system: &Wedsync, provider: &Provider, key: Key, count: usize) -> f64 {
    let (router, began) = (system.addresses.router, Instant::now());
    blocking(move || paced_events(router, &key, OFFERED, 0..count, |number| event("burst", number, count))).await;
    provider.has("burst", count, PATIENCE).await;
    count as f64 / began.elapsed().as_secs_f64()
}

/// What became of the notifications of a run with kills.
#[derive(Debug, Serialize)]
struct Killed {
    store: &'static str,
    kills: usize,
    /// Events whose publish was answered.
    acknowledged: usize,
    /// Of those, mails that the provider has.
    sent: usize,
    /// Those that it doesn't have, and that are shown as unknown.
    unknown: usize,
    /// Neither.
    lost: usize,
    /// Mails that came more often than once.
    told_twice: usize,
    seconds: u64,
}

/// Kills it on the way, several times, and looks for every notification that was acknowledged.
async fn killed(system: &mut Wedsync, provider: &Provider, key: Key, count: usize, store: &'static str) -> Killed {
    let (router, publisher, began) = (system.addresses.router, key.clone(), Instant::now());
    let publishing = blocking(move || {
        paced_events(router, &publisher, OFFERED / 5, 0..count, |number| event("killed", number, count))
    });
    let killing = async {
        for part in KILLS {
            provider.has("killed", count / part, PATIENCE).await;
            system.kill().await;
            system.restart().await;
        }
    };
    let (published, ()) = tokio::join!(publishing, killing);
    let acknowledged: Vec<usize> = published.iter().map(|published| published.number).collect();
    let notifications = NotificationServiceClient::new(client(system.addresses.notifier, &key));
    let (unknown, lost) = settled(provider, notifications, acknowledged.clone()).await;
    Killed {
        store,
        kills: KILLS.len(),
        acknowledged: acknowledged.len(),
        sent: acknowledged.len() - unknown - lost,
        unknown,
        lost,
        told_twice: provider.repeated("killed"),
        seconds: began.elapsed().as_secs(),
    }
}

/// Waits until each of these has reached the provider or is shown as unknown, as long as there is any progress at all; gives
/// the number of those that are unknown, and of those that are neither.
///
/// One wait for all of them: to wait for each by itself, as long as for anything, never ends on a slow machine.
async fn settled(provider: &Provider, mut notifications: Notifications, mut open: Vec<usize>) -> (usize, usize) {
    let (all, mut unknown, mut since) = (open.len(), 0, Instant::now());
    while !open.is_empty() && since.elapsed() < PATIENCE {
        provider.has("killed", all, QUIET).await;
        let before = open.len();
        open.retain(|number| provider.at("killed", *number).is_none());
        let mut left = Vec::new();
        for number in open {
            if is_unknown(&mut notifications, number).await { unknown += 1 } else { left.push(number) }
        }
        open = left;
        if open.len() < before {
            since = Instant::now();
        }
    }
    (unknown, open.len())
}

type Notifications =
    NotificationServiceClient<tonic::service::interceptor::InterceptedService<tonic::transport::Channel, Key>>;

async fn is_unknown(notifications: &mut Notifications, number: usize) -> bool {
    let request = ListNotificationsRequest { event_id: form("killed", number), ..ListNotificationsRequest::default() };
    let Ok(listed) = notifications.list_notifications(request).await else { return false };
    let mut messages = listed.into_inner().notifications.into_iter().flat_map(|notification| notification.messages);
    messages.any(|message| message.channel == "email" && message.state() == MessageState::Unknown)
}

/// Resend on loopback: takes every mail, and remembers when.
#[derive(Clone)]
struct Provider {
    address: SocketAddr,
    taken: Arc<Mutex<HashMap<String, Vec<Instant>>>>,
}

impl Provider {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let provider = Self { address: listener.local_addr().expect("bound"), taken: Arc::default() };
        let app = Router::new().route("/emails", post(take)).with_state(provider.clone());
        std::thread::spawn(move || {
            super::sink::on_one_thread(async move { axum::serve(listener, app).await.expect("it serves") });
        });
        provider
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0".to_owned()),
            ("WEDSYNC_NOTIFIER__RESEND__API_KEY", "re_bench".to_owned()),
            ("WEDSYNC_NOTIFIER__RESEND__FROM", "us@example.org".to_owned()),
            ("WEDSYNC_NOTIFIER__RESEND__PER_SECOND", "0".to_owned()),
            ("WEDSYNC_NOTIFIER__RESEND__BASE_URL", format!("http://{}", self.address)),
        ]
    }

    fn at(&self, run: &str, number: usize) -> Option<Instant> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(&form(run, number))?.first().copied()
    }

    /// Waits until so many of a run have arrived, or nothing has come for so long.
    async fn has(&self, run: &str, count: usize, patience: Duration) {
        let arrived = || {
            let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.keys().filter(|form| form.starts_with(run)).count()
        };
        let (mut last, mut since) = (0, Instant::now());
        while last < count && since.elapsed() < patience {
            sleep(Duration::from_millis(20)).await;
            let now = arrived();
            if now > last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    /// Mails of a run that came more often than once.
    fn repeated(&self, run: &str) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().filter(|(form, _)| form.starts_with(run)).map(|(_, times)| times.len() - 1).sum()
    }
}

async fn take(State(provider): State<Provider>, body: Bytes) -> Json<Value> {
    let at = Instant::now();
    let text = serde_json::from_slice::<Value>(&body).expect("JSON")["text"].as_str().unwrap_or_default().to_owned();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let form = words.into_iter().find(|word| word.ends_with('-') && word.matches('-').count() == 2);
    let mut taken = provider.taken.lock().unwrap_or_else(PoisonError::into_inner);
    taken.entry(form.expect("which it is").to_owned()).or_default().push(at);
    Json(json!({ "id": "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794" }))
}
