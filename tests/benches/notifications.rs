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
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    figure::{Figure, percentile},
    machine,
    path::{Wanted, blocking},
    publisher::paced_events,
};
use crate::{
    crash::name,
    harness::{Engine, Key, PATIENCE, Wedsync, client},
};

const NAMES: [&str; 5] =
    ["notifications_p99", "notifications_rate", "notifications_memory", "notifications_lost", "notifications_repeated"];
const PEOPLE: usize = 1_000;
/// Ten for each: as many as the hourly limit lets through.
const NOTIFICATIONS: usize = 10 * PEOPLE;
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
/// When it is killed, in parts of the notifications that have arrived.
const KILLS: [usize; 3] = [NOTIFICATIONS / 10, NOTIFICATIONS / 3, NOTIFICATIONS / 2];

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !NAMES.iter().any(|name| wanted.wants(name)) {
        return;
    }
    let store = name(engine);
    let provider = Provider::start().await;
    let settings = provider.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut system = Wedsync::start_on(engine, &settings).await;
    if wanted.wants(NAMES[0]) {
        let key = people(&system, "Steady").await;
        let mut taken = steady(&system, &provider, key).await;
        taken.sort_by(f64::total_cmp);
        told(Figure::at_most(NAMES[0], store, percentile(&taken, 99.0), "ms", MOST_MS));
    }
    if wanted.wants(NAMES[1]) || wanted.wants(NAMES[2]) {
        let key = people(&system, "Burst").await;
        let per_second = burst(&system, &provider, key).await;
        told(Figure::at_least(NAMES[1], store, per_second, "notifications/s", LEAST_PER_SECOND));
        told(Figure::at_most(NAMES[2], store, machine::resident_mib(system.pid()).1, "MiB", MOST_MIB));
    }
    if wanted.wants(NAMES[3]) || wanted.wants(NAMES[4]) {
        let key = people(&system, "Killed").await;
        let lost = killed(&mut system, &provider, key).await;
        told(Figure::at_most(NAMES[3], store, lost as f64, "notifications", 0.0));
        told(Figure::at_most(NAMES[4], store, provider.repeated() as f64, "messages", 0.0));
    }
}

/// An organization with its people.
async fn people(system: &Wedsync, organization: &str) -> Key {
    let key = system.tenant(organization).await;
    let mut recipients = RecipientServiceClient::new(client(system.addresses.notifier, &key));
    for number in 0..PEOPLE {
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

/// What one person is told as number `number` of a run.
fn event(run: &str, number: usize) -> Event {
    let data = json!({ "form_name": form(run, number), "client_name": "Mia", "response_count": 12 }).to_string();
    Event {
        id: form(run, number),
        r#type: "form.response_received".to_owned(),
        source: "bench".to_owned(),
        metadata: Some(Metadata { supplier_id: format!("s{}", number % PEOPLE), ..Metadata::default() }),
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
    let published = blocking(move || paced_events(router, &key, RATE, 0..all, |number| event("steady", number))).await;
    provider.has("steady", all).await;
    let counted = published.iter().filter(|published| published.number >= WARM);
    let taken =
        |due: Instant, number| provider.at("steady", number).expect("it arrived").saturating_duration_since(due);
    counted.map(|published| taken(published.due, published.number).as_secs_f64() * 1e3).collect()
}

/// How many a second reach the provider when all come at once.
async fn burst(system: &Wedsync, provider: &Provider, key: Key) -> f64 {
    let (router, began) = (system.addresses.router, Instant::now());
    blocking(move || paced_events(router, &key, OFFERED, 0..NOTIFICATIONS, |number| event("burst", number))).await;
    provider.has("burst", NOTIFICATIONS).await;
    NOTIFICATIONS as f64 / began.elapsed().as_secs_f64()
}

/// How many neither reached the provider nor are shown as unknown, after several kills on the way.
async fn killed(system: &mut Wedsync, provider: &Provider, key: Key) -> usize {
    let (router, notifier, publisher) = (system.addresses.router, system.addresses.notifier, key.clone());
    let publishing = blocking(move || {
        paced_events(router, &publisher, OFFERED / 5, 0..NOTIFICATIONS, |number| event("killed", number))
    });
    let killing = async {
        for arrived in KILLS {
            provider.has("killed", arrived).await;
            system.kill().await;
            system.restart().await;
        }
    };
    tokio::join!(publishing, killing);
    let mut notifications = NotificationServiceClient::new(client(notifier, &key));
    let mut lost = 0;
    for number in 0..NOTIFICATIONS {
        let began = Instant::now();
        while provider.at("killed", number).is_none() && !is_unknown(&mut notifications, number).await {
            if began.elapsed() > PATIENCE {
                lost += 1;
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    lost
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

    /// Waits until so many of a run have arrived, or nothing comes any more.
    async fn has(&self, run: &str, count: usize) {
        let arrived = || {
            let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.keys().filter(|form| form.starts_with(run)).count()
        };
        let (mut last, mut since) = (0, Instant::now());
        while last < count && since.elapsed() < PATIENCE {
            sleep(Duration::from_millis(20)).await;
            let now = arrived();
            if now > last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    /// Mails that came more often than once.
    fn repeated(&self) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.values().map(|times| times.len() - 1).sum()
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
