//! Connections on each engine, against a vendor that really listens: keys, their rotation, and who is told what.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router as Http, extract::State as Shared, http::HeaderMap as Headers, routing};
use chassis::{
    clock::ManualClock,
    config::Secret,
    error::{Error, Result},
    id::OrganizationId,
    lane::{self, Dispatcher, Slots},
    outbound::{Outbound, OutboundSettings, Request},
    secret::{DataKeys, place},
    service::Chassis,
    store::Store,
    tasks::Tasks,
    testing::{manual_clock, on_each_engine},
    with,
};
use futures_util::future::{self, BoxFuture, FutureExt as _};
use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};
use prost::Message as _;
use proto::router::v1 as wire;
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
};
use url::Url;

use super::{
    App, Connections, Credential, CredentialError, Credentials, Kept, Providers, State, Tokens,
    connect::{Begun, Connecting, Given, Probe, Refusal},
};
use crate::{
    MIGRATIONS,
    endpoint::book::Book,
    health::{Healths, view::View},
    integration::{Integration, Integrations, Kind, tests::settings},
    oauth::{Client, Provider, authorize::Authorizations, grant::tests::provider},
    outbox::Outbox,
    webhook::Webhooks,
};

pub(crate) const OUR_CLIENT: &str = "wedsync";
/// A connector that an organization made, of whose name we have a client too.
const THEIR_OWN: &str = "their-own";

/// A vendor as a connector would declare it: its token grants, and `GET me` as its probe.
pub(crate) struct Vendor {
    pub(crate) provider: Option<Provider>,
    pub(crate) me: String,
    outbound: Outbound,
}

impl Vendor {
    pub(crate) fn new(provider: Option<Provider>, me: &str) -> Self {
        Self { provider, me: me.to_owned(), outbound: outbound() }
    }

    pub(crate) fn without_oauth(me: &str) -> Self {
        Self::new(None, me)
    }

    async fn ask(&self, credential: &Credential) -> Result<BTreeMap<String, String>, Refusal> {
        let shown = match credential {
            Credential::Key(secret) | Credential::Token { token: secret, .. } => format!("Bearer {}", secret.expose()),
            _ => "Bearer none".to_owned(),
        };
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(shown).expect("a header"))]);
        let answer = get(&self.outbound, &self.me, headers).await;
        let answer = answer.map_err(|failure| Refusal::Unavailable(failure.to_string()))?;
        match answer.status.as_u16() {
            200 => {
                let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let dc = body["dc"].as_str().map(|dc| ("dc".to_owned(), dc.to_owned()));
                Ok(dc.into_iter().collect())
            }
            401 => Err(Refusal::Credential("the vendor answered 401".to_owned())),
            other => Err(Refusal::Unavailable(format!("the vendor answered {other}"))),
        }
    }
}

impl Providers for Vendor {
    fn provider<'a>(&'a self, _: &'a Integration) -> BoxFuture<'a, Result<Option<Provider>>> {
        future::ready(Ok(self.provider.clone())).boxed()
    }
}

impl Probe for Vendor {
    fn probe<'a>(
        &'a self,
        _: &'a Integration,
        credential: &'a Credential,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Refusal>> {
        self.ask(credential).boxed()
    }
}

pub(crate) fn outbound() -> Outbound {
    let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    Outbound::new(&loopback).expect("a client")
}

pub(crate) async fn get(
    outbound: &Outbound,
    url: &str,
    headers: HeaderMap,
) -> Result<chassis::outbound::Answer, chassis::outbound::Failure> {
    let timeout = Duration::from_secs(10);
    outbound.send(Request { method: Method::GET, url: url.to_owned(), headers, body: "".into(), timeout }).await
}

/// Everything that connects, without a router and without connectors.
pub(crate) struct World {
    pub(crate) connecting: Connecting,
    pub(crate) credentials: Credentials,
    pub(crate) outbox: Outbox,
    pub(crate) healths: Healths,
    pub(crate) view: View,
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) vendor: Arc<Vendor>,
}

impl World {
    pub(crate) async fn open(store: &Store, chassis: &Chassis, vendor: Vendor) -> Self {
        let (clock, tasks) = (chassis.clock.clone(), chassis.tasks.clone());
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), clock.clone());
        let (closing, _) = mpsc::channel(1);
        let courier = Arc::new(Webhooks::new(Book::default(), outbound(), clock.clone(), closing));
        let dispatcher =
            Dispatcher::start(store.clone(), keys.clone(), courier, Slots::default(), clock.clone(), &tasks).await;
        let dispatcher = dispatcher.expect("it starts");
        let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher.clone(), clock.clone());
        let changed = broadcast::Sender::new(16);
        let connections = Connections::new(store.clone(), keys.clone(), outbox.clone(), clock.clone(), changed.clone());
        let healths = Healths::new(store.clone(), keys.clone(), outbox.clone(), clock.clone(), changed.clone());
        let vendor = Arc::new(vendor);
        let app = App { id: OUR_CLIENT.to_owned(), secret: Secret::from("our secret: &%".to_owned()) };
        let apps = BTreeMap::from([(settings(Kind::Connector).connector, app.clone()), (THEIR_OWN.to_owned(), app)]);
        let oauth = Client::new(outbound(), clock.clone());
        let credentials = Credentials::new(connections, vendor.clone(), apps, oauth, tasks, clock.clone());
        let connecting = Connecting {
            credentials: credentials.clone(),
            integrations: Integrations::new(store.clone(), keys.clone(), clock.clone()),
            authorizations: Authorizations::new(store.clone(), keys.clone(), clock),
            probe: vendor.clone(),
            public_url: Some(Url::parse("https://sync.example.com/").expect("a URL")),
        };
        let view = View {
            store: store.clone(),
            dispatcher,
            integrations: connecting.integrations.clone(),
            connections: credentials.connections.clone(),
            healths: healths.clone(),
            changed,
            clock: chassis.clock.clone(),
        };
        Self { connecting, credentials, outbox, healths, view, store: store.clone(), keys, vendor }
    }

    pub(crate) async fn integration(&self, organization: &str) -> Integration {
        let organization = OrganizationId::parse(organization).expect("well-formed");
        let secret = Secret::from("a secret of its webhooks, unused".to_owned());
        let created = self.connecting.integrations.create(organization, settings(Kind::Connector), &secret).await;
        created.expect("it is created")
    }

    pub(crate) async fn state(&self, integration: &Integration) -> State {
        self.connection(integration).await.state
    }

    pub(crate) async fn connection(&self, integration: &Integration) -> super::Connection {
        self.credentials.connections.get(integration).await.expect("it is read").expect("there is one")
    }

    /// Types of the events that wait to be published, in their order.
    pub(crate) async fn told(&self) -> Vec<String> {
        self.events().await.into_iter().map(|event| event.r#type).collect()
    }

    /// Events that wait to be published, in their order.
    pub(crate) async fn events(&self) -> Vec<wire::Event> {
        let rows: Vec<(String, String, Vec<u8>)> = with!(self.store.reader(), c => {
            sqlx::query_as("SELECT organization_id, event_id, event FROM outbox ORDER BY sequence").fetch_all(c).await
        })
        .expect("they are read");
        let mut events = Vec::new();
        for (organization, id, sealed) in rows {
            let key = self.keys.of(&OrganizationId::parse(&organization).expect("one")).await.expect("a key");
            let plain = key.open(&place("outbox", "event", &id), &sealed).expect("it opens");
            events.push(wire::Event::decode(&*plain).expect("an event"));
        }
        events
    }

    /// What an event says.
    pub(crate) fn content(event: &wire::Event) -> serde_json::Value {
        let Some(wire::event::Payload::Content(content)) = &event.payload else { panic!("no content") };
        serde_json::from_slice(&content.data).expect("JSON")
    }
}

/// Runs `test` on each engine, on a clock that stands still.
pub(crate) async fn on_each<F: Future<Output = ()>>(test: impl Fn(Store, Chassis, ManualClock) -> F) {
    on_each_engine(&[&chassis::store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], |store| {
        let (manual, clock) = manual_clock();
        let mut chassis = Chassis::for_test();
        chassis.clock = clock;
        test(store, chassis, manual)
    })
    .await;
}

/// A vendor that knows a set of keys.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<BTreeSet<String>>>);

impl Keys {
    async fn start(keys: &[&str]) -> (Self, Vendor) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let me = format!("http://{}/me", listener.local_addr().expect("bound"));
        let known = Self::default();
        known.set(keys);
        let app = Http::new().route("/me", routing::get(Self::me)).with_state(known.clone());
        Tasks::default().spawn("vendor", async move { axum::serve(listener, app).await.expect("it serves") });
        (known, Vendor::without_oauth(&me))
    }

    fn set(&self, keys: &[&str]) {
        *self.0.lock().expect("no panic") = keys.iter().map(|key| format!("Bearer {key}")).collect();
    }

    async fn me(Shared(known): Shared<Self>, headers: Headers) -> http::StatusCode {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_known = known.0.lock().expect("no panic").contains(shown);
        if is_known { http::StatusCode::OK } else { http::StatusCode::UNAUTHORIZED }
    }
}

fn key(text: &str) -> Given {
    Given::Key(Secret::from(text.to_owned()))
}

fn shown(text: &str) -> Credential {
    Credential::Key(Secret::from(text.to_owned()))
}

#[tokio::test]
async fn only_a_key_that_the_vendor_takes_connects_and_it_is_not_legible_in_the_store() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = Keys::start(&["right-key"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = world.integration("acme").await;
        let refused = world.connecting.connect(&integration, key("wrong-key")).await.expect_err("it is refused");
        assert!(matches!(refused, Error::FailedPrecondition(_)), "{refused:?}");
        assert!(world.credentials.of(&integration).await.is_err(), "nothing was put in force");
        let begun = world.connecting.connect(&integration, key("right-key")).await.expect("it is taken");
        assert!(matches!(begun, Begun::Connected));
        assert_eq!(world.credentials.of(&integration).await, Ok(shown("right-key")));
        let sealed: Vec<u8> =
            with!(store.reader(), c => sqlx::query_scalar("SELECT credential FROM connections").fetch_one(c).await)
                .expect("the row");
        assert!(!String::from_utf8_lossy(&sealed).contains("right-key"));
        assert!(!format!("{:?}", world.connection(&integration).await).contains("right-key"));
        assert!(world.told().await.is_empty(), "a first connection is no recovery");
    })
    .await;
}

#[tokio::test]
async fn an_old_key_is_tried_once_where_the_new_one_is_refused_until_the_overlap_ends() {
    on_each(async |store, chassis, clock| {
        let (keys, vendor) = Keys::start(&["old", "new"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = world.integration("acme").await;
        world.connecting.connect(&integration, key("old")).await.expect("it is taken");
        let overlap = Duration::from_secs(3_600);
        world.connecting.rotate(&integration, key("bad"), overlap).await.expect_err("the vendor refuses it");
        assert_eq!(world.credentials.of(&integration).await, Ok(shown("old")));
        world.connecting.rotate(&integration, key("new"), overlap).await.expect("it is taken");
        assert_eq!(world.credentials.of(&integration).await, Ok(shown("new")));

        // The vendor goes back to the old one.
        keys.set(&["old"]);
        assert_eq!(world.credentials.refused(&integration, &[shown("new")]).await, Ok(shown("old")));
        assert!(world.connection(&integration).await.old_used_at.is_some(), "it is visible");
        assert_eq!(world.connecting.test(&integration).await, Ok(()));
        clock.advance(overlap);
        world.credentials.forget(&integration);
        assert!(matches!(
            world.credentials.refused(&integration, &[shown("new")]).await,
            Err(CredentialError::NeedsReconnect(_))
        ));
        assert_eq!(world.state(&integration).await, State::NeedsReconnect);
    })
    .await;
}

#[tokio::test]
async fn both_keys_refused_is_told_once_and_so_is_the_recovery() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = Keys::start(&["right"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = world.integration("acme").await;
        world.connecting.connect(&integration, key("right")).await.expect("it is taken");
        let wrong = [shown("right")];
        let callers = (0..20).map(|_| world.credentials.refused(&integration, &wrong));
        let answers = future::join_all(callers).await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(CredentialError::NeedsReconnect(_)))), "{answers:?}");
        assert!(matches!(world.credentials.of(&integration).await, Err(CredentialError::NeedsReconnect(_))));
        for _ in 0..2 {
            world.connecting.connect(&integration, key("right")).await.expect("it is taken");
        }
        assert_eq!(world.told().await, ["integration.needs_reconnect", "integration.recovered"]);
        world.credentials.disconnect(&integration).await.expect("it is forgotten");
        assert_eq!(world.state(&integration).await, State::Disconnected);
        assert!(world.connection(&integration).await.kept.is_none());
        assert_eq!(world.told().await.len(), 2, "what somebody asked for is no news");
    })
    .await;
}

#[tokio::test]
async fn a_credential_is_held_in_memory_and_never_after_it_was_changed() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = Keys::start(&["one", "two"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = world.integration("acme").await;
        for text in ["one", "two", "one"] {
            world.connecting.connect(&integration, key(text)).await.expect("it is taken");
            assert_eq!(world.credentials.of(&integration).await, Ok(shown(text)));
        }
        with!(store.writer(), c => sqlx::query("DELETE FROM connections").execute(c).await.map(drop)).expect("deleted");
        assert_eq!(world.credentials.of(&integration).await, Ok(shown("one")), "from memory");
        world.credentials.forget(&integration);
        assert!(world.credentials.of(&integration).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn what_a_credential_is_sealed_for_opens_in_no_other_row() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = Keys::start(&["one", "two"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let (mine, other) = (world.integration("acme").await, world.integration("acme").await);
        world.connecting.connect(&mine, key("one")).await.expect("it is taken");
        world.connecting.connect(&other, key("two")).await.expect("it is taken");
        let swap = "UPDATE connections SET credential = (SELECT credential FROM connections WHERE integration_id = $1) \
                    WHERE integration_id = $2";
        with!(store.writer(), c => sqlx::query(swap).bind(&other.id).bind(&mine.id).execute(c).await.map(drop))
            .expect("swapped");
        assert!(world.credentials.connections.get(&mine).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_deleted_integration_leaves_nothing_that_it_authenticated_with() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = Keys::start(&["one"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let (gone, kept) = (world.integration("acme").await, world.integration("acme").await);
        for integration in [&gone, &kept] {
            world.connecting.connect(integration, key("one")).await.expect("it is taken");
        }
        world.credentials.let_go(&gone).await.expect("it is removed");
        assert!(world.credentials.of(&gone).await.is_err());
        let left: Vec<String> =
            with!(store.reader(), c => sqlx::query_scalar("SELECT integration_id FROM connections").fetch_all(c).await)
                .expect("they are read");
        assert_eq!(left, [kept.id]);
    })
    .await;
}

#[tokio::test]
async fn an_organizations_own_connector_never_gets_our_client() {
    on_each(async |store, chassis, _| {
        let provider = provider("grant = 'client_credentials'\ntoken_url = 'https://v.example/t'");
        let world = World::open(&store, &chassis, Vendor::new(Some(provider), "https://v.example/me")).await;
        let mut integration = world.integration("acme").await;
        let (_, ours) = world.credentials.provider(&integration, None).await.expect("a built-in one has it");
        assert_eq!(ours.id, OUR_CLIENT);
        THEIR_OWN.clone_into(&mut integration.settings.connector);
        let refused = world.credentials.provider(&integration, None).await.expect_err("its token URL may be anybody's");
        assert!(matches!(refused, CredentialError::Unavailable(_)), "{refused}");
        let own = App { id: "theirs".to_owned(), secret: Secret::default() };
        assert!(world.credentials.provider(&integration, Some(&own)).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn connections_that_cannot_be_refreshed_are_not_first_in_line_for_ever() {
    on_each(async |store, chassis, clock| {
        // Their vendor grants no tokens any more.
        let world = World::open(&store, &chassis, Vendor::without_oauth("https://v.example/me")).await;
        let (mut broken, now) = (Vec::new(), chassis.clock.now());
        for _ in 0..3 {
            let integration = world.integration("acme").await;
            let tokens = Tokens { access: "a".to_owned().into(), refresh: "r".to_owned().into(), expires_at: None };
            let kept = Kept::Tokens { tokens, app: None };
            let connections = &world.credentials.connections;
            connections.connect(&integration, &kept, &BTreeMap::new(), Some(now)).await.expect("connected");
            broken.push(integration);
        }
        let garbled = "UPDATE connections SET credential = NULL, yielded = 'no JSON' WHERE integration_id = $1";
        with!(store.writer(), c => sqlx::query(garbled).bind(&broken[0].id).execute(c).await.map(drop))
            .expect("broken");
        world.credentials.turn(&world.connecting.integrations).await.expect("the store is there");
        assert!(world.credentials.connections.due(64).await.expect("read").is_empty(), "others are next");
        let shown = world.connection(&broken[1]).await;
        assert!(shown.failures == 1 && shown.reason.contains("grants no tokens"), "{}", shown.reason);
        for _ in 0..4 {
            clock.advance(Duration::from_secs(30));
            world.credentials.turn(&world.connecting.integrations).await.expect("the store is there");
        }
        clock.advance(Duration::from_secs(30));
        assert_eq!(world.credentials.connections.due(64).await.expect("read").len(), 1, "each failure waits longer");
    })
    .await;
}

#[tokio::test]
async fn late_news_of_the_key_before_a_rotation_does_not_end_the_one_in_force() {
    on_each(async |store, chassis, _| {
        let (keys, vendor) = Keys::start(&["old", "new"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = world.integration("acme").await;
        world.connecting.connect(&integration, key("old")).await.expect("it is taken");
        world.connecting.rotate(&integration, key("new"), Duration::from_secs(3_600)).await.expect("it is taken");
        // The vendor ends a key as another is made, and a call was under way with the first.
        keys.set(&["new"]);
        assert_eq!(world.credentials.refused(&integration, &[shown("old")]).await, Ok(shown("new")));
        assert_eq!(world.state(&integration).await, State::Connected);
        let both = world.credentials.refused(&integration, &[shown("old"), shown("new")]).await;
        assert!(matches!(both, Err(CredentialError::NeedsReconnect(_))), "{both:?}");
    })
    .await;
}

#[tokio::test]
async fn only_the_credential_that_somebody_saw_is_disconnected() {
    on_each(async |store, chassis, _| {
        let (_, vendor) = Keys::start(&["one", "two"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integration = world.integration("acme").await;
        world.connecting.connect(&integration, key("one")).await.expect("it is taken");
        let seen = world.connection(&integration).await.version;
        world.connecting.connect(&integration, key("two")).await.expect("it is taken");
        let connections = &world.credentials.connections;
        assert!(!connections.disconnect(&integration, seen).await.expect("the store"), "another is in force");
        assert_eq!(world.credentials.of(&integration).await, Ok(shown("two")));
        assert_eq!(world.credentials.disconnect(&integration).await.expect("it is forgotten"), None);
        assert_eq!(world.state(&integration).await, State::Disconnected);
    })
    .await;
}

#[tokio::test]
async fn one_that_is_made_anew_under_its_id_tells_of_itself_anew() {
    on_each(async |store, chassis, clock| {
        let (_, vendor) = Keys::start(&["right"]).await;
        let world = World::open(&store, &chassis, vendor).await;
        let integrations = &world.connecting.integrations;
        let mut integration = world.integration("acme").await;
        for _ in 0..2 {
            world.connecting.connect(&integration, key("right")).await.expect("it is taken");
            let refused = world.credentials.refused(&integration, &[shown("right")]).await;
            assert!(matches!(refused, Err(CredentialError::NeedsReconnect(_))), "{refused:?}");
            world.credentials.let_go(&integration).await.expect("it is forgotten");
            integrations.delete(&integration.organization, &integration.id).await.expect("it is deleted");
            clock.advance(Duration::from_secs(1));
            let (id, organization) = (integration.id.clone(), integration.organization.clone());
            let secret = Secret::from("a secret of its webhooks, unused".to_owned());
            let again = integrations.create_as(id, organization, settings(Kind::Connector), &secret).await;
            integration = again.expect("it is created");
        }
        let ids: BTreeSet<String> = world.events().await.into_iter().map(|event| event.id).collect();
        assert_eq!(ids.len(), 2, "{ids:?}");
    })
    .await;
}

#[tokio::test]
async fn a_lease_from_before_the_clock_stepped_back_holds_nobody_up() {
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, Vendor::without_oauth("http://127.0.0.1:9/me")).await;
        let integration = world.integration("acme").await;
        let (connections, now) = (&world.credentials.connections, chassis.clock.now());
        let secret = |text: &str| Secret::from(text.to_owned());
        let tokens = Tokens { access: secret("a"), refresh: secret("r"), expires_at: None };
        let kept = Kept::Tokens { tokens, app: None };
        let due = now - jiff::SignedDuration::from_hours(2);
        connections.connect(&integration, &kept, &BTreeMap::new(), Some(due)).await.expect("it is kept");
        let lease = async || {
            let connection = world.connection(&integration).await;
            connections.lease(&integration, &connection).await.expect("the store")
        };
        assert!(lease().await.is_some() && lease().await.is_none(), "one at a time");
        clock.set(now - jiff::SignedDuration::from_hours(1));
        assert_eq!(connections.due(9).await.expect("the store").len(), 1);
        assert!(lease().await.is_some());
    })
    .await;
}
