//! The whole engine against a real HTTP peer on loopback: how it authenticates, what it makes of answers, how it walks
//! lists, and that it keeps to quotas when many call at once.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router as Http, body::Body, extract::State as Shared, http::Request as HttpRequest, response::Response};
use bytes::Bytes;
use chassis::{
    config::Secret, id::OrganizationId, outbound::OutboundSettings, secret::DataKeys, service::Chassis, store::Store,
    tasks::Tasks, testing::on_each_engine,
};
use http::HeaderMap;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::{
    connector::{Class, IncrementalKind},
    credential::{Connections, Kept},
    integration::{Kind, tests::settings as settings_of},
    record::RecordKind,
};

/// What arrived.
#[derive(Clone, Debug)]
struct Arrived {
    target: String,
    headers: HeaderMap,
    body: Bytes,
    at: Instant,
}

/// Status, headers, body.
type Said = (u16, Vec<(&'static str, String)>, String);
type Script = dyn Fn(&Arrived) -> Said + Send + Sync;

#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    script: Arc<Script>,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    under_way: Arc<AtomicUsize>,
    most_under_way: Arc<AtomicUsize>,
}

impl Peer {
    async fn start(script: impl Fn(&Arrived) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = Self {
            address: listener.local_addr().expect("bound"),
            script: Arc::new(script),
            arrived: Arc::default(),
            under_way: Arc::default(),
            most_under_way: Arc::default(),
        };
        let app = Http::new().fallback(answer).with_state(peer.clone());
        Tasks::default().spawn("peer", async move { axum::serve(listener, app).await.expect("it serves") });
        peer
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().expect("no panic").clone()
    }

    fn last(&self) -> Arrived {
        self.arrived().pop().expect("something arrived")
    }
}

async fn answer(Shared(peer): Shared<Peer>, request: HttpRequest<Body>) -> Response<Body> {
    let under_way = peer.under_way.fetch_add(1, Ordering::SeqCst) + 1;
    peer.most_under_way.fetch_max(under_way, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("it is short");
    let arrived = Arrived { target: parts.uri.to_string(), headers: parts.headers, body, at: Instant::now() };
    let (status, headers, body) = (peer.script)(&arrived);
    peer.arrived.lock().expect("no panic").push(arrived);
    // Long enough that calls at the same time meet here.
    tokio::time::sleep(Duration::from_millis(5)).await;
    peer.under_way.fetch_sub(1, Ordering::SeqCst);
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body)).expect("well-formed")
}

fn said(status: u16, body: &str) -> Said {
    (status, Vec::new(), body.to_owned())
}

fn loopback() -> OutboundSettings {
    OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true }
}

/// A caller over a store, with an organization's connector.
struct World {
    caller: Caller,
    catalogue: Catalogue,
    connections: Connections,
    integrations: Integrations,
}

impl World {
    fn open(store: &Store) -> Self {
        Self::with(store, &loopback(), &Chassis::for_test())
    }

    fn with(store: &Store, settings: &OutboundSettings, chassis: &Chassis) -> Self {
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("keys"), Clock::System);
        let integrations = Integrations::new(store.clone(), keys.clone(), Clock::System);
        let connections = Connections::new(store.clone(), keys, Clock::System);
        let catalogue = Catalogue::new(store.clone(), Clock::System);
        let caller = Caller::new(
            catalogue.clone(),
            Credentials::new(connections.clone()),
            integrations.clone(),
            Outbound::new(settings).expect("a client"),
            Limits::new(store.clone(), Clock::System),
            Clock::System,
        );
        Self { caller, catalogue, connections, integrations }
    }

    /// An account of a new connector.
    async fn account(&self, organization: &str, source: &str, kept: &Kept) -> Integration {
        let organization = OrganizationId::parse(organization).expect("an organization");
        if let Err(refused) = self.catalogue.put(&organization, source, 0).await {
            assert!(format!("{refused:?}").contains("Aborted"), "{refused:?}");
        }
        let settings = crate::integration::Settings {
            connector: "test".to_owned(),
            vendor: "test".to_owned(),
            ..settings_of(Kind::Connector)
        };
        let secret = WebhookSecret::generate().expose().to_owned();
        let integration =
            self.integrations.create(organization, settings, &Secret::from(secret)).await.expect("created");
        self.connections.connect(&integration, kept, &BTreeMap::new(), None).await.expect("connected");
        integration
    }
}

async fn on_each_store<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, test).await;
}

fn source(peer: &Peer, rest: &str) -> String {
    format!("name = 'test'\ntitle = 'Test'\nkind = 'photography_crm'\nbase_url = 'http://{}/v1'\n{rest}", peer.address)
}

fn key() -> Kept {
    Kept::Key(Secret::from("k 3y&".to_owned()))
}

const SEND: &str = "[operations.send]\nmethod = 'POST'\npath = '/things'\nbody = { name = 'given.name' }\n";

fn given() -> Json {
    json!({"given": {"name": "Ada"}})
}

#[tokio::test]
async fn each_kind_of_credential_arrives_where_it_is_declared() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, "{}")).await;
        let basic = Kept::Basic { user: "ada".to_owned(), password: Secret::from("w0rd".to_owned()) };
        let tokens = crate::credential::Tokens {
            access: Secret::from("t0ken".to_owned()),
            refresh: Secret::from(String::new()),
            expires_at: None,
        };
        let oauth = "kind = 'oauth2'\nauthorize_url = 'https://a'\ntoken_url = 'https://t'";
        for (index, (declared, kept, expected)) in [
            ("kind = 'api_key'\nname = 'X-Api-Key'\nprefix = 'Key '", key(), "x-api-key: Key k 3y&"),
            ("kind = 'api_key'\nin = 'query'\nname = 'api key'", key(), "/v1/things?api+key=k+3y%26"),
            ("kind = 'api_key'\nin = 'body'\nname = 'SecretKey'", key(), r#"{"SecretKey":"k 3y&","name":"Ada"}"#),
            ("kind = 'bearer'", key(), "authorization: Bearer k 3y&"),
            ("kind = 'basic'", basic, "authorization: Basic YWRhOncwcmQ="),
            ("kind = 'basic'\nuser = 'any'", key(), "authorization: Basic YW55OmsgM3km"),
            (oauth, Kept::Tokens { tokens, app: None }, "authorization: Bearer t0ken"),
        ]
        .into_iter()
        .enumerate()
        {
            let world = World::open(&store);
            let source = source(&peer, &format!("{SEND}[[auth]]\n{declared}\n"));
            let integration = world.account(&format!("auth{index}"), &source, &kept).await;
            world.caller.call(&integration, "send", &given()).await.expect(declared);
            let arrived = peer.last();
            let headers =
                arrived.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("ASCII")));
            let body = String::from_utf8_lossy(&arrived.body).into_owned();
            let seen: Vec<String> = headers.chain([arrived.target.clone(), body]).collect();
            assert!(seen.iter().any(|part| part == expected), "{declared}: {seen:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_credential_of_another_kind_is_never_sent() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, "{}")).await;
        let world = World::open(&store);
        let source = source(&peer, &format!("{SEND}[[auth]]\nkind = 'basic'\n"));
        let integration = world.account("acme", &source, &key()).await;
        let refused = world.caller.call(&integration, "send", &given()).await.expect_err("a key is no password");
        assert_eq!((refused.class, peer.arrived().len()), (Class::Unauthorized, 0));
    })
    .await;
}

#[tokio::test]
async fn every_refusal_has_its_class_and_a_word_in_the_body_can_be_one() {
    on_each_store(async |store| {
        let peer = Peer::start(|arrived| match &arrived.target["/v1/".len()..] {
            "throttled" => (429, vec![("retry-after", "0".to_owned())], String::new()),
            "bare" => said(403, "<html>busy</html>"),
            "body" => said(200, r#"{"Status":"failed","why":"no date"}"#),
            "again" => said(400, r#"{"code":"duplicate"}"#),
            "there" => said(400, r#"{"code":"there"}"#),
            target => said(target.parse().expect("a status"), "{}"),
        })
        .await;
        let declared = "
            [[errors]]
            when = \"status == 403 and not is_json\"
            class = 'throttled'
            [[errors]]
            when = \"is_json and body.Status == 'failed'\"
            class = 'permanent'
            reason = 'body.why'
            [[errors]]
            when = \"is_json and body.code == 'duplicate'\"
            class = 'duplicate'
            [[errors]]
            when = \"is_json and body.code == 'there'\"
            class = 'done'
            [operations.get]
            method = 'GET'
            path = '/{given.path}'
            success = \"status == 200 and body.Status != 'failed'\"
        ";
        let world = World::open(&store);
        let integration = world.account("acme", &source(&peer, declared), &Kept::None).await;
        for (path, expected) in [
            ("200", None),
            ("400", Some(Class::Permanent)),
            ("401", Some(Class::Unauthorized)),
            ("403", Some(Class::Permanent)),
            ("404", Some(Class::Gone)),
            ("409", Some(Class::Conflict)),
            ("500", Some(Class::Retry)),
            ("301", Some(Class::Permanent)),
            ("body", Some(Class::Permanent)),
            ("again", Some(Class::Duplicate)),
            ("there", None),
            ("throttled", Some(Class::Throttled)),
            ("bare", Some(Class::Throttled)),
        ] {
            let called = world.caller.call(&integration, "get", &json!({"given": {"path": path}})).await;
            assert_eq!(called.as_ref().err().map(|error| error.class), expected, "{path}: {called:?}");
            if path == "body" {
                assert_eq!(called.expect_err("refused").reason, "no date");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_there_is_tried_again_and_an_answer_that_never_comes_is_unknown_where_a_repeat_does_harm() {
    on_each_store(async |store| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let silent = listener.local_addr().expect("bound");
        let peer = Peer::start(|_| said(200, "{}")).await;
        let declared = format!(
            "{SEND}timeout_seconds = 1\nbase_url = 'http://{silent}'\n[operations.put]\nmethod = 'PUT'\npath = '/x'\ntimeout_seconds = 1\n\
             base_url = 'http://{silent}'\n[operations.away]\nmethod = 'POST'\npath = '/x'\nbase_url = 'http://127.0.0.1:9'\n"
        );
        let world = World::open(&store);
        let integration = world.account("acme", &source(&peer, &declared), &Kept::None).await;
        for (operation, class) in [("send", Class::Unknown), ("put", Class::Retry), ("away", Class::Retry)] {
            let failed = world.caller.call(&integration, operation, &given()).await.expect_err(operation);
            assert_eq!(failed.class, class, "{operation}: {failed}");
        }
        drop(listener);
    })
    .await;
}

#[tokio::test]
async fn a_connector_reaches_nothing_that_the_guard_refuses() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, "{}")).await;
        let world = World::with(&store, &OutboundSettings::default(), &Chassis::for_test());
        let integration = world.account("acme", &source(&peer, SEND), &Kept::None).await;
        let refused = world.caller.call(&integration, "send", &given()).await.expect_err("loopback");
        assert!(refused.reason.starts_with("address: "), "{refused}");
        assert!(peer.arrived().is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_answer_beyond_its_bound_is_an_error_and_one_within_is_read_whole() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, &format!("{{\"text\":\"{}\"}}", "x".repeat(900 * 1024)))).await;
        let declared = "[operations.short]\nmethod = 'GET'\npath = '/x'\nanswer_kib = 1\n\
            [operations.long]\nmethod = 'GET'\npath = '/x'\nanswer_kib = 1024\n";
        let world = World::open(&store);
        let integration = world.account("acme", &source(&peer, declared), &Kept::None).await;
        let short = world.caller.call(&integration, "short", &json!({})).await.expect_err("too long");
        assert_eq!((short.class, short.reason.as_str()), (Class::Permanent, "the answer is longer than 1 KiB"));
        let long = world.caller.call(&integration, "long", &json!({})).await.expect("it fits");
        assert_eq!(long.body["text"].as_str().map(str::len), Some(900 * 1024));
    })
    .await;
}

/// Seven items in pages of three, in every style.
fn list(arrived: &Arrived) -> Said {
    let url = url::Url::parse(&format!("http://x{}", arrived.target)).expect("a URL");
    let query = |name: &str| url.query_pairs().find(|(other, _)| other == name).map(|(_, value)| value.into_owned());
    let from = match url.path() {
        "/v1/page" => (query("page").and_then(|page| page.parse().ok()).unwrap_or(1) - 1) * 3,
        _ => query("offset").or_else(|| query("cursor")).and_then(|from| from.parse().ok()).unwrap_or(0),
    };
    let items: Vec<usize> = (from..7).take(3).collect();
    let next = (from + 3 < 7).then_some(from + 3);
    match url.path() {
        "/v1/link" => {
            let link = next.map(|next| format!("<http://{}/v1/link?offset={next}>; rel=\"next\"", host(arrived)));
            let first = "</v1/link>; rel=\"first\"".to_owned();
            (
                200,
                vec![("link", link.map_or_else(|| first.clone(), |link| format!("{first}, {link}")))],
                json!({"items": items}).to_string(),
            )
        }
        "/v1/next" => {
            said(200, &json!({"items": items, "next": next.map(|next| format!("/v1/next?offset={next}"))}).to_string())
        }
        "/v1/away" => said(200, r#"{"items":[1],"next":"https://elsewhere.example/x"}"#),
        "/v1/same" => said(200, r#"{"items":[1],"next":"/v1/same?offset=1"}"#),
        _ => said(200, &json!({"items": items, "cursor": next.map(|next| next.to_string())}).to_string()),
    }
}

fn host(arrived: &Arrived) -> String {
    arrived.headers["host"].to_str().expect("ASCII").to_owned()
}

async fn walk(world: &World, integration: &Integration, operation: &str) -> Result<Vec<Json>, CallError> {
    let (mut all, mut position) = (Vec::new(), Position::default());
    for _ in 0..10 {
        let page = world.caller.page(integration, operation, &json!({}), &position).await?;
        all.extend(page.items);
        // As it is kept between two processes.
        let Some(next) = page.next else { return Ok(all) };
        position = Position::parse(&next.print());
    }
    panic!("{operation} never ends");
}

#[tokio::test]
async fn every_kind_of_list_is_walked_to_its_end_and_never_to_another_host() {
    on_each_store(async |store| {
        let peer = Peer::start(list).await;
        let pages = [
            ("page", "kind = 'page'\nparameter = 'page'"),
            ("offset", "kind = 'offset'\nparameter = 'offset'"),
            ("cursor", "kind = 'cursor'\nparameter = 'cursor'\ncursor = 'body.cursor'"),
            ("link", "kind = 'link'"),
            ("next", "kind = 'next'\nnext = 'body.next'"),
            ("away", "kind = 'next'\nnext = 'body.next'"),
            ("same", "kind = 'next'\nnext = 'body.next'"),
            ("few", "kind = 'offset'\nparameter = 'offset'\nmost = 2"),
        ];
        let declared: String = pages
            .iter()
            .map(|(name, pages)| {
                format!(
                    "[operations.{name}]\nmethod = 'GET'\npath = '/{name}'\n[operations.{name}.pages]\nitems = 'body.items'\n\
                     size = 3\nsize_parameter = 'per_page'\n{pages}\n"
                )
            })
            .collect();
        let world = World::open(&store);
        let integration = world.account("acme", &source(&peer, &declared), &Kept::None).await;
        for kind in ["page", "offset", "cursor", "link", "next"] {
            let items = walk(&world, &integration, kind).await.expect(kind);
            assert_eq!(Json::from(items), json!([0, 1, 2, 3, 4, 5, 6]), "{kind}");
        }
        for (kind, says) in [("away", "another host"), ("same", "names itself"), ("few", "more than 2 pages")] {
            let error = walk(&world, &integration, kind).await.expect_err(kind);
            assert!(error.class == Class::Permanent && error.reason.contains(says), "{kind}: {error}");
        }
    })
    .await;
}

#[tokio::test]
async fn no_window_holds_more_than_its_quota_and_no_account_more_than_its_calls_at_once() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, "{}")).await;
        let declared = format!("concurrency = 3\n{SEND}[[quotas]]\nrequests = 5\nwindow_seconds = 1\n");
        let world = World::open(&store);
        let integration = world.account("acme", &source(&peer, &declared), &Kept::None).await;
        let (given, started) = (given(), Instant::now());
        let calls = (0..12).map(|_| world.caller.call(&integration, "send", &given));
        let results = futures_util::future::join_all(calls).await;
        assert!(results.iter().all(|result| result.as_ref().err().is_none_or(|error| error.class == Class::Throttled)));
        let mut arrived: Vec<Duration> = peer.arrived().into_iter().map(|arrived| arrived.at - started).collect();
        arrived.sort();
        assert!(arrived.len() >= 10, "{} of 12 within three seconds", arrived.len());
        for (index, at) in arrived.iter().enumerate() {
            let windows = u64::try_from(index).expect("few") / 5;
            assert!(at.as_millis() + 50 >= u128::from(windows) * 1_000, "number {index} came after {at:?}");
        }
        assert!(peer.most_under_way.load(Ordering::SeqCst) <= 3);
    })
    .await;
}

#[tokio::test]
async fn a_loud_tenant_leaves_a_quiet_one_its_share_of_the_applications_quota() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, "{}")).await;
        let declared =
            format!("concurrency = 64\nheaders = {{ 'X-Who' = '{{given.who}}' }}\n{SEND}[[quotas]]\nscope = 'application'\nrequests = 4\nwindow_seconds = 1\n");
        let world = World::open(&store);
        let source = source(&peer, &declared);
        let (loud, quiet) = (world.account("acme", &source, &Kept::None).await, world.account("acme", &source, &Kept::None).await);
        let say = |who: &str| json!({"given": {"name": "Ada", "who": who}});
        let shout = async {
            let calls = (0..40).map(|_| async { world.caller.call(&loud, "send", &say("loud")).await.is_ok() });
            futures_util::future::join_all(calls).await.into_iter().filter(|done| *done).count()
        };
        let whisper = async {
            let calls = (0..4).map(|_| async { world.caller.call(&quiet, "send", &say("quiet")).await.is_ok() });
            futures_util::future::join_all(calls).await.into_iter().filter(|done| *done).count()
        };
        let (loud, quiet) = tokio::join!(shout, whisper);
        assert_eq!(quiet, 4, "its share of three windows is six; the loud one had {loud}");
        assert!(loud >= 8, "{loud}");
    })
    .await;
}

#[tokio::test]
async fn a_days_quota_is_remembered_across_a_restart_and_a_parked_application_is_left_alone() {
    on_each_store(async |store| {
        let peer = Peer::start(|arrived| match arrived.target.as_str() {
            "/v1/full" => said(429, r#"{"error_key":"quota_exceeded"}"#),
            _ => said(200, "{}"),
        })
        .await;
        let declared = "[[quotas]]\nrequests = 2\ndaily = true\n[operations.get]\nmethod = 'GET'\npath = '/ok'\n\
            [operations.full]\nmethod = 'GET'\npath = '/full'\n[[errors]]\n\
            when = \"status == 429 and body.error_key == 'quota_exceeded'\"\nclass = 'throttled'\npark = 'application'\nuntil = 'midnight'\n";
        let source = source(&peer, declared);
        let chassis = Chassis::for_test();
        let [world, again] = [(); 2].map(|()| World::with(&store, &loopback(), &chassis));
        let integration = world.account("acme", &source, &Kept::None).await;
        for _ in 0..2 {
            world.caller.call(&integration, "get", &json!({})).await.expect("there is room");
        }
        for world in [&world, &again] {
            let refused = world.caller.call(&integration, "get", &json!({})).await.expect_err("used up");
            assert_eq!(refused.class, Class::Throttled, "{refused:?}");
            assert!(refused.retry_after > Some(Duration::ZERO), "{refused:?}");
        }
        assert_eq!(peer.arrived().len(), 2);
        let (first, second) = (again.account("other", &source, &Kept::None).await, again.account("other", &source, &Kept::None).await);
        again.caller.call(&first, "full", &json!({})).await.expect_err("the day is full");
        let parked = again.caller.call(&second, "get", &json!({})).await.expect_err("of the same application");
        assert_eq!((parked.class, peer.arrived().len()), (Class::Throttled, 3));
        let apart = again.account("third", &source, &Kept::None).await;
        again.caller.call(&apart, "get", &json!({})).await.expect("another organization's application");
    })
    .await;
}

#[tokio::test]
async fn a_made_up_vendor_takes_one_text_and_no_code() {
    on_each_store(async |store| {
        let peer = Peer::start(|arrived| match arrived.target.as_str() {
            "/v1/jobs?reference=w1" => said(200, r#"{"items":[]}"#),
            "/v1/jobs" => said(201, r#"{"id":7,"modified":"2026-05-01T10:00:00Z"}"#),
            _ => said(404, "{}"),
        })
        .await;
        let example = crate::connector::tests::example();
        let example = example
            .replace("https://api.example.com", &format!("http://{}", peer.address))
            .replace("example-crm", "test");
        let world = World::open(&store);
        let integration = world.account("acme", &example, &key()).await;
        let connector = world.caller.called(&integration).await.expect("it is there").connector;
        let spec = connector.record(RecordKind::Wedding).expect("declared");
        assert_eq!(spec.incremental.kind, IncrementalKind::Since);
        let record = json!({"record": {"id": "w1", "bride_name": "Ada", "groom_name": "Grace", "budget": 1}});
        let find = spec.find.as_deref().expect("declared");
        assert_eq!(world.caller.call(&integration, find, &record).await.expect("asked").external_id, "");
        let create = spec.create.as_deref().expect("declared");
        let made = world.caller.call(&integration, create, &record).await.expect("made");
        assert_eq!((made.external_id.as_str(), made.external_version.as_str()), ("7", "2026-05-01T10:00:00Z"));
        let sent: Json = serde_json::from_slice(&peer.last().body).expect("JSON");
        assert_eq!(sent, json!({"title": "Ada & Grace", "reference": "w1"}));
        let keys: BTreeSet<_> = peer.arrived().iter().map(|arrived| arrived.headers["x-api-key"].clone()).collect();
        assert_eq!(keys.len(), 1);
    })
    .await;
}
