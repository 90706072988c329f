//! Nothing forged comes in by the front door: every connector that takes webhooks, and every kind of integration of our own,
//! each in two organizations, and thousands of requests at the gateway that aren't what they say.
//!
//! `forgery` makes them. `WEDSYNC_TEST_SEED` gives the same ones again, `WEDSYNC_TEST_SEEDS` says how many of each scheme.

use std::{collections::BTreeMap, fs, time::Instant};

use proto::vendorsync::v1::{
    Integration, IntegrationKind, ListConnectorsRequest, connector_service_client::ConnectorServiceClient,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    forgery::{Door, Due, Forgery, HUGE, Message, Scheme},
    inbound::{CLIENT, Sender, create_integration},
    story::{Story, Tenant, eventually, now, on_each_engine_with},
    web::{Answer, announce, post},
};
use crate::{
    crash::chance::Chance,
    harness::{client, root, variable},
};

/// Of each scheme.
const FORGERIES: u64 = 2_000;
const COPIES: usize = 50;
/// Of one integration in an hour: far fewer than it is sent, and enough for what is genuine.
const RATE: u32 = 100;
/// Repeats that a shared secret can't tell from a message count like one.
const MOST_REPEATS: usize = 20;
const AT_ONCE: usize = 16;
const SETTINGS: [(&str, &str); 2] =
    [("WEDSYNC_GATEWAY__REQUESTS_PER_MINUTE", "1000000"), ("WEDSYNC_GATEWAY__REQUEST_BURST", "100000")];
/// What a webhook may leave behind, in vendor-sync's store.
const TABLES: [&str; 5] = ["records", "record_links", "record_conflicts", "outbox", "inbound_spool"];

/// What there is of an organization: types in its log, and rows.
#[derive(Debug, PartialEq, Eq)]
struct Effects {
    logged: Vec<String>,
    rows: BTreeMap<&'static str, i64>,
}

/// One door in each of two organizations, and what was taken by it.
struct Pair {
    ours: Door,
    theirs: Door,
    taken: Message,
    /// What it says is that something changed, which is read from the vendor: from none that isn't connected.
    is_hint: bool,
}

impl Pair {
    async fn of(tenants: [&Tenant; 2], door: (&str, Scheme, &str), settings: Integration) -> Self {
        let settings = Integration { rate_limit_per_hour: RATE, ..settings };
        let [ours, theirs] = tenants;
        let (ours, theirs) = (open(ours, door, &settings).await, open(theirs, door, &settings).await);
        let taken = ours.message("msg_the-one", now());
        Self { ours, theirs, taken, is_hint: false }
    }
}

#[tokio::test]
async fn nothing_forged_comes_in_by_any_door_and_fifty_copies_are_one() {
    let seed = number("WEDSYNC_TEST_SEED").unwrap_or_else(Chance::seed);
    println!("WEDSYNC_TEST_SEED={seed}");
    on_each_engine_with(&SETTINGS, async |story| {
        let rival = story.tenant("Rival").await;
        let mut pairs = doors(&story, &rival).await;
        for pair in pairs.iter_mut().filter(|pair| pair.ours.knows_repeats()) {
            copies_are_one(&story, &rival, pair).await;
        }
        let before = [effects(&story, &story.acme).await, effects(&story, &rival).await];
        let mut chance = Chance::new(seed);
        for scheme in Scheme::ALL {
            let pairs: Vec<&Pair> = pairs.iter().filter(|pair| pair.ours.scheme == scheme).collect();
            assert!(!pairs.is_empty(), "{scheme:?} has a door");
            flood(&mut chance, scheme, &pairs).await;
        }
        let after = [effects(&story, &story.acme).await, effects(&story, &rival).await];
        assert_eq!(before, after, "something came of it");
        for pair in &pairs {
            let genuine = send(&pair.ours, &pair.ours.message("msg_another", now())).await;
            let said = (genuine.status, genuine.json());
            assert_eq!(said, (200, json!({ "success": true })), "{}: what is genuine is taken", pair.ours.name);
        }
    })
    .await;
}

/// Fifty at once do to one organization what a single one does to the other.
async fn copies_are_one(story: &Story, rival: &Tenant, pair: &mut Pair) {
    let (ours, theirs) = (&pair.ours, &pair.theirs);
    let before = effects(story, rival).await;
    let once = send(theirs, &theirs.message("msg_the-one", now())).await;
    assert_eq!(once.status, 200, "{}: {once:?}", theirs.name);
    let expected = effects(story, rival).await;
    assert!(pair.is_hint || before != expected, "{}: it has an effect", theirs.name);
    pair.taken = ours.message("msg_the-one", now());
    let mut copies = JoinSet::new();
    for _ in 0..COPIES {
        let (door, message) = (ours.clone(), pair.taken.clone());
        copies.spawn(async move { send(&door, &message).await });
    }
    let answers = copies.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{}: {answers:?}", ours.name);
    let new = answers.iter().filter(|answer| answer.json()["duplicate"] != true).count();
    assert!(new == 1 || !ours.scheme.signs(), "{}: {new} answers say that it is new", ours.name);
    assert_eq!(effects(story, &story.acme).await, expected, "{}", ours.name);
}

/// Sends forgeries to the doors of one scheme, in turn.
async fn flood(chance: &mut Chance, scheme: Scheme, pairs: &[&Pair]) {
    let (began, count) = (Instant::now(), number("WEDSYNC_TEST_SEEDS").unwrap_or(FORGERIES));
    let fitting: Vec<Forgery> = Forgery::ALL.into_iter().filter(|forgery| forgery.fits(scheme)).collect();
    let (mut sent, mut repeats) = (BTreeMap::<Forgery, u64>::new(), BTreeMap::<&str, usize>::new());
    let mut under_way = JoinSet::new();
    for (number, pair) in (0..count).zip(pairs.iter().cycle()) {
        let drawn = usize::try_from(chance.within(0..fitting.len() as u64)).expect("small");
        let mut forgery = fitting[(usize::try_from(number).expect("small") / pairs.len() + drawn) % fitting.len()];
        let repeated = repeats.entry(&pair.ours.name).or_default();
        if forgery == Forgery::Again && (*repeated == MOST_REPEATS || !pair.ours.knows_repeats()) {
            forgery = Forgery::Bare;
        }
        *repeated += usize::from(forgery == Forgery::Again);
        *sent.entry(forgery).or_default() += 1;
        let message = forgery.make(chance, &pair.ours, &pair.theirs, &pair.taken, now());
        let door = pair.ours.clone();
        if under_way.len() == AT_ONCE {
            under_way.join_next().await.expect("one is under way").expect("it was answered as it must be");
        }
        under_way.spawn(async move {
            let answer = if forgery == Forgery::Huge {
                announce(door.sender.gateway, &message.target(), &headers(&message), HUGE).await
            } else {
                send(&door, &message).await
            };
            let shown = (&message.headers, String::from_utf8_lossy(&message.body));
            assert!(is_due(forgery, &door, &answer), "{}: {forgery:?}: {shown:?}: {answer:?}", door.name);
        });
    }
    while let Some(answered) = under_way.join_next().await {
        answered.expect("it was answered as it must be");
    }
    println!("{scheme:?}: {count} at {} doors in {} ms: {sent:?}", pairs.len(), began.elapsed().as_millis());
    assert!(count < FORGERIES || sent.len() == fitting.len(), "each kind was tried");
    assert!(count / (pairs.len() as u64) > RATE.into() || count < FORGERIES, "more than a door may be sent in an hour");
}

fn is_due(forgery: Forgery, door: &Door, answer: &Answer) -> bool {
    match forgery.due() {
        Due::Refused(status) => answer.status == status,
        // What repeats is stale one day, on a machine that is slow enough.
        Due::Repeat if door.scheme.signs() => {
            answer.status == 401 || (answer.status == 200 && answer.json()["duplicate"] == true)
        }
        Due::Repeat => answer.status == 200,
    }
}

async fn send(door: &Door, message: &Message) -> Answer {
    post(door.sender.gateway, &message.target(), &headers(message), &message.body).await
}

fn headers(message: &Message) -> Vec<(&str, &str)> {
    message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// What there is of an organization, once nothing waits to be published.
async fn effects(story: &Story, tenant: &Tenant) -> Effects {
    let organization = crate::harness::organization(tenant.addresses.router, &tenant.key).await;
    eventually("all is published", async || {
        let waiting = story.system.stored("outbox", "refused = ''").await
            + story.system.stored("inbound_spool", "refused = ''").await;
        if waiting == 0 { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
    let mut logged: Vec<String> =
        tenant.logged(&[]).await.into_iter().map(|logged| logged.event.expect("an event").r#type).collect();
    logged.sort();
    let mut rows = BTreeMap::new();
    for table in TABLES {
        rows.insert(table, story.system.stored(table, &format!("organization_id = '{organization}'")).await);
    }
    Effects { logged, rows }
}

/// Every door that there is, in both organizations.
async fn doors(story: &Story, rival: &Tenant) -> Vec<Pair> {
    let (acme, scout) = (&story.acme, story.tenant("Scout").await);
    let mut connectors = ConnectorServiceClient::new(client(acme.addresses.vendor_sync, &acme.key));
    let listed = connectors.list_connectors(ListConnectorsRequest::default()).await.expect("the catalogue");
    let mut pairs = Vec::new();
    for connector in listed.into_inner().connectors.into_iter().filter(|connector| connector.inbound) {
        let settings = Integration {
            kind: IntegrationKind::Connector.into(),
            parameters: connector
                .settings
                .iter()
                .filter(|setting| setting.required)
                .map(|setting| (setting.name.clone(), parameter(&setting.name).to_owned()))
                .collect(),
            connector: connector.name.clone(),
            ..Integration::default()
        };
        let (body, is_hint) = golden(&connector.name);
        let scheme = scheme_of(&scout, &settings, &body).await;
        let pair = Pair::of([acme, rival], (&connector.name, scheme, &body), settings).await;
        pairs.push(Pair { is_hint, ..pair });
    }
    assert!(pairs.len() >= 18, "{} connectors take webhooks", pairs.len());
    for (kind, scheme, body) in of_our_own() {
        let vendor = if kind == IntegrationKind::SignedWebhook { "hub".to_owned() } else { String::new() };
        let settings = Integration { kind: kind.into(), vendor, ..Integration::default() };
        let name = format!("{} {scheme:?}", kind.as_str_name());
        pairs.push(Pair::of([acme, rival], (&name, scheme, &body), settings).await);
    }
    pairs
}

async fn open(tenant: &Tenant, (name, scheme, body): (&str, Scheme, &str), settings: &Integration) -> Door {
    let sender = sender(tenant, settings.clone()).await;
    Door { name: name.to_owned(), scheme, sender, body: body.to_owned() }
}

async fn sender(tenant: &Tenant, settings: Integration) -> Sender {
    let (integration, secret) = create_integration(tenant, settings, "").await.expect("an integration");
    Sender { integration, secret, gateway: tenant.addresses.gateway }
}

/// Kinds of integrations without a connector, in each manner that they take.
fn of_our_own() -> Vec<(IntegrationKind, Scheme, String)> {
    let client = format!(
        r#"{{"event":"client.updated","data":{{"clientId":"{CLIENT}","changes":{{"guestCount":7}}}},"timestamp":"{{at}}"}}"#
    );
    let channel = r#"{"channelName":"supplier:dashboard:s1","eventType":"availability.changed","payload":{"free":false},"timestamp":"{at}"}"#;
    let signed = r#"{"type":"booking.updated","data":{"total":9},"timestamp":"{at}"}"#;
    let supabase = r#"{"type":"UPDATE","table":"wedding_details","schema":"public","record":{"id":"w9"},"old_record":{"id":"w9"}}"#;
    let member = |body: &str| format!(r#"{},"signature":"{{signature}}"}}"#, &body[..body.len() - 1]);
    vec![
        (IntegrationKind::ClientSync, Scheme::Hex, client.clone()),
        (IntegrationKind::ClientSync, Scheme::Member, member(&client)),
        (IntegrationKind::ChannelEvents, Scheme::Hex, channel.to_owned()),
        (IntegrationKind::ChannelEvents, Scheme::Member, member(channel)),
        (IntegrationKind::SignedWebhook, Scheme::Hex, signed.to_owned()),
        (IntegrationKind::SignedWebhook, Scheme::Standard, signed.to_owned()),
        (IntegrationKind::Supabase, Scheme::SecretInHeader, supabase.to_owned()),
    ]
}

/// The one that a connector believes, tried at accounts of a third organization.
async fn scheme_of(scout: &Tenant, settings: &Integration, body: &str) -> Scheme {
    let mut believed = Vec::new();
    for scheme in Scheme::OF_CONNECTORS {
        let sender = sender(scout, settings.clone()).await;
        let door = Door { name: settings.connector.clone(), scheme, sender, body: body.to_owned() };
        if send(&door, &door.message("msg_1", now())).await.status == 200 {
            believed.push(scheme);
        }
    }
    assert_eq!(believed.len(), 1, "{}: {believed:?}: how does its sender show itself?", settings.connector);
    believed[0]
}

/// What an account gives that its connector can't do without.
fn parameter(name: &str) -> &'static str {
    match name {
        "list_id" => "a1b2c3",
        _ => "https://vendor.example",
    }
}

/// A webhook of a connector that means something, of its golden pairs the first; and whether it is a hint alone.
fn golden(connector: &str) -> (String, bool) {
    let folder = root().join("vendor-sync-svc/tests/golden").join(connector);
    let files = fs::read_dir(&folder).unwrap_or_else(|_| panic!("{connector} has golden pairs"));
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    let pair = |path| serde_json::from_slice::<Value>(&fs::read(path).expect("readable")).expect("JSON");
    let meant =
        |pair: &Value| !pair["webhook"].is_null() && pair["becomes"].as_array().is_some_and(|it| !it.is_empty());
    let found = files.iter().map(pair).find(meant).unwrap_or_else(|| panic!("{connector} has a golden webhook"));
    let text = found["webhook"]["text"].as_str().map(ToOwned::to_owned);
    let is_hint = found["becomes"].as_array().is_some_and(|items| items.iter().all(|item| item["read_first"] == true));
    (text.unwrap_or_else(|| found["webhook"]["json"].to_string()), is_hint)
}

fn number(name: &str) -> Option<u64> {
    variable(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}
