//! Tokens against npm's `oauth2-mock-server`, taught to rotate refresh tokens (`tests/oauth/peer.mjs`), on each engine.
//! Without Node's packages these tests say so and pass; with `CI=true` they must be there.

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use chassis::{
    config::Secret,
    outbound::{Outbound, Request},
    store::Store,
};
use futures_util::{FutureExt as _, future};
use http::{HeaderMap, Method, header};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};
use url::Url;

use super::Provider;
use crate::{
    credential::{
        Credential, CredentialError, Kept, State,
        connect::{Begun, Completed, Given},
        tests::{OUR_CLIENT, Vendor, World, get, on_each, outbound},
    },
    integration::Integration,
};

/// Something is broken, and not slow.
const LONG: Duration = Duration::from_secs(120);
const BROWSER: &str = "the-browsers-own-secret-of-its-cookie";

/// The vendor, while it runs.
pub(super) struct Peer {
    at: Addresses,
    outbound: Outbound,
    /// None: somebody else's.
    _process: Option<Child>,
}

#[derive(Deserialize, Serialize)]
struct Addresses {
    oauth: String,
    api: String,
}

#[derive(Deserialize)]
pub(super) struct Seen {
    grants: Vec<String>,
    verifiers: usize,
    basic: usize,
    revoked: Vec<String>,
}

impl Seen {
    pub(super) fn refreshes(&self) -> usize {
        self.grants.iter().filter(|grant| *grant == "refresh_token").count()
    }
}

impl Peer {
    pub(super) async fn start() -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "tests find npm's packages by the environment")]
        let (modules, ci) = (std::env::var("WEDSYNC_TEST_NODE_MODULES"), std::env::var("CI"));
        if modules.is_err() {
            assert!(ci.as_deref() != Ok("true"), "WEDSYNC_TEST_NODE_MODULES is not set");
            println!("WEDSYNC_TEST_NODE_MODULES is not set: no OAuth server to test against");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oauth/peer.mjs");
        let mut node = Command::new("node");
        node.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = node.spawn().expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let line = timeout(Duration::from_secs(60), lines.next_line()).await.expect("it starts in time");
        let at = serde_json::from_str(&line.expect("it is read").expect("a line")).expect("its addresses");
        Some(Self { at, outbound: outbound(), _process: Some(process) })
    }

    fn provider(&self, more: &str) -> Provider {
        let oauth = &self.at.oauth;
        let authorize = if more.contains("client_credentials") {
            String::new()
        } else {
            format!("authorize_url = '{oauth}/authorize'")
        };
        super::grant::tests::provider(&format!(
            "{authorize}\ntoken_url = '{oauth}/token'\nrevoke_url = '{oauth}/revoke'\n\
             scopes = ['contact_data']\n{more}"
        ))
    }

    /// One that another process has started.
    #[cfg(feature = "fail-points")]
    pub(super) fn at(addresses: &serde_json::Value) -> Self {
        let at = serde_json::from_value(addresses.clone()).expect("its addresses");
        Self { at, outbound: outbound(), _process: None }
    }

    #[cfg(feature = "fail-points")]
    pub(super) fn addresses(&self) -> serde_json::Value {
        serde_json::to_value(&self.at).expect("two texts")
    }

    /// One whose person must agree.
    pub(super) fn asks(&self) -> Vendor {
        self.vendor(self.provider("grant = 'authorization_code'"))
    }

    fn vendor(&self, provider: Provider) -> Vendor {
        Vendor::new(Some(provider), &format!("{}/me", self.at.api))
    }

    pub(super) async fn grants(&self, mode: serde_json::Value) {
        let request = Request {
            method: Method::POST,
            url: format!("{}/mode", self.at.api),
            headers: HeaderMap::new(),
            body: mode.to_string().into(),
            timeout: Duration::from_secs(10),
        };
        self.outbound.send(request).await.expect("it listens");
    }

    pub(super) async fn seen(&self) -> Seen {
        let answer = get(&self.outbound, &format!("{}/seen", self.at.api), HeaderMap::new()).await;
        serde_json::from_slice(&answer.expect("it listens").body).expect("what it saw")
    }

    /// A person agrees: the code and the state that the browser is sent back with.
    async fn consent(&self, location: &Url) -> (String, String) {
        let answer = get(&self.outbound, location.as_str(), HeaderMap::new()).await.expect("the vendor's page");
        let back = Url::parse(answer.headers[header::LOCATION].to_str().expect("a URL")).expect("a URL");
        assert!(back.as_str().starts_with("https://sync.example.com/oauth/callback?"), "{back}");
        let of =
            |wanted: &str| back.query_pairs().find(|(name, _)| name == wanted).expect("it is there").1.into_owned();
        (of("code"), of("state"))
    }
}

fn ticket(begun: Begun) -> String {
    let Begun::Open { url, .. } = begun else { panic!("a person must agree") };
    url.strip_prefix("https://sync.example.com/oauth/start/").expect("our gateway's").to_owned()
}

impl World {
    /// Begins a connection in a browser: where it is sent.
    async fn begin(&self, integration: &Integration, browser: &str) -> Url {
        let begun = self.connecting.connect(integration, Given::OAuth(None)).await.expect("it begins");
        self.connecting.open(&ticket(begun), browser).await.expect("the browser is the first")
    }

    pub(super) async fn connect_in_browser(&self, peer: &Peer, integration: &Integration) {
        let (code, state) = peer.consent(&self.begin(integration, BROWSER).await).await;
        let completed = self.connecting.complete(&state, &code, BROWSER).await.expect("an answer");
        assert_eq!(completed, Completed::Connected { integration_id: integration.id.clone() });
    }

    async fn refresh_token(&self, integration: &Integration) -> String {
        let Some(Kept::Tokens { tokens, .. }) = self.connection(integration).await.kept else { panic!("no tokens") };
        tokens.refresh.expose().to_owned()
    }
}

#[tokio::test]
async fn consent_gives_tokens_with_pkce_and_without_and_the_probes_settings() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, _| {
        for (pkce, client_auth) in [(true, "basic"), (false, "body")] {
            let before = peer.seen().await;
            let lines = format!("grant = 'authorization_code'\npkce = {pkce}\nclient_auth = '{client_auth}'");
            let provider = peer.provider(&lines);
            let world = World::open(&store, &chassis, peer.vendor(provider)).await;
            let integration = world.integration("acme").await;
            world.connect_in_browser(&peer, &integration).await;
            let Ok(Credential::Token { .. }) = world.credentials.of(&integration).await else { panic!("no token") };
            assert_eq!(world.credentials.yielded(&integration).await.expect("settings")["dc"], "us7");
            assert_eq!(world.connecting.test(&integration).await, Ok(()));
            let after = peer.seen().await;
            assert_eq!(after.verifiers - before.verifiers, usize::from(pkce));
            assert_eq!(after.basic - before.basic, usize::from(client_auth == "basic"));
        }
    })
    .await;
}

#[tokio::test]
async fn client_credentials_give_a_token_and_a_new_one_when_it_expires() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, peer.vendor(peer.provider("grant = 'client_credentials'"))).await;
        let integration = world.integration("acme").await;
        let begun = world.connecting.connect(&integration, Given::OAuth(None)).await.expect("no person is asked");
        assert!(matches!(begun, Begun::Connected));
        let first = world.credentials.of(&integration).await.expect("a token");
        clock.advance(Duration::from_secs(3_600));
        let second = world.credentials.of(&integration).await.expect("another");
        assert_ne!(first, second);
    })
    .await;
}

#[tokio::test]
async fn many_callers_of_an_expired_token_share_one_refresh_and_rotated_tokens_follow_each_other() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        world.connect_in_browser(&peer, &integration).await;
        let before = peer.seen().await.refreshes();
        let mut refresh_tokens = BTreeSet::from([world.refresh_token(&integration).await]);
        for round in 1..=3 {
            clock.advance(Duration::from_secs(3_600));
            let answers = future::join_all((0..20).map(|_| world.credentials.of(&integration))).await;
            let first = answers[0].clone().expect("a fresh token");
            assert!(answers.iter().all(|answer| answer.as_ref() == Ok(&first)), "{answers:?}");
            assert_eq!(peer.seen().await.refreshes() - before, round, "one refresh for all");
            refresh_tokens.insert(world.refresh_token(&integration).await);
        }
        assert_eq!(refresh_tokens.len(), 4, "the vendor gave a new one each time");
        assert!(world.told().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn two_processes_never_refresh_the_same_token() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let open = async || World::open(&store, &chassis, peer.asks()).await;
        let (one, other) = (open().await, open().await);
        let integration = one.integration("acme").await;
        one.connect_in_browser(&peer, &integration).await;
        let before = peer.seen().await.refreshes();
        clock.advance(Duration::from_secs(3_600));
        // Neither knows of the other but by the store.
        let (left, right) = tokio::join!(one.credentials.of(&integration), other.credentials.of(&integration));
        assert_eq!(peer.seen().await.refreshes() - before, 1);
        assert!(left.is_ok() || right.is_ok(), "{left:?} {right:?}");
        for answer in [left, right] {
            assert!(!matches!(answer, Err(CredentialError::NeedsReconnect(_))), "whoever is late may ask again");
        }
        assert_eq!(one.state(&integration).await, State::Connected);
    })
    .await;
}

#[tokio::test]
async fn a_refused_refresh_needs_a_person_and_is_told_once() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        world.connect_in_browser(&peer, &integration).await;
        clock.advance(Duration::from_secs(3_600));
        peer.grants(json!({ "error": "invalid_grant", "status": 400 })).await;
        for _ in 0..3 {
            let refused = world.credentials.of(&integration).await;
            let Err(CredentialError::NeedsReconnect(reason)) = refused else { panic!("{refused:?}") };
            assert!(reason.contains("invalid_grant"), "{reason}");
        }
        assert_eq!(world.told().await, ["integration.needs_reconnect"]);
        peer.grants(json!({ "error": "" })).await;
        world.connect_in_browser(&peer, &integration).await;
        assert_eq!(world.told().await, ["integration.needs_reconnect", "integration.recovered"]);
    })
    .await;
}

#[tokio::test]
async fn while_a_vendor_is_away_the_old_token_is_used_until_it_expires_and_refreshing_goes_on() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        world.connect_in_browser(&peer, &integration).await;
        let first = world.credentials.of(&integration).await.expect("a token");
        let before = peer.seen().await.refreshes();
        // An error of our client's own settings is no reason to bother a person.
        peer.grants(json!({ "error": "invalid_client", "status": 401 })).await;
        clock.advance(Duration::from_secs(3_590));
        assert_eq!(world.credentials.of(&integration).await.as_ref(), Ok(&first), "it is good for 10 s more");
        assert_eq!(world.credentials.of(&integration).await.as_ref(), Ok(&first));
        assert_eq!(peer.seen().await.refreshes() - before, 1, "the next try has a time of its own");
        clock.advance(Duration::from_secs(60));
        let answer = world.credentials.of(&integration).await;
        assert!(matches!(answer, Err(CredentialError::Unavailable(_))), "{answer:?}");
        peer.grants(json!({ "error": "" })).await;
        clock.advance(Duration::from_secs(60));
        assert_ne!(world.credentials.of(&integration).await.expect("a fresh one"), first);
        assert!(world.told().await.is_empty());
        assert_eq!(world.connection(&integration).await.reason, "", "yesterday's failure is over");
    })
    .await;
}

#[tokio::test]
async fn the_worker_refreshes_before_a_token_expires() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        world.connect_in_browser(&peer, &integration).await;
        let before = world.connection(&integration).await;
        let due = before.refresh_at.expect("it expires");
        let left = due.duration_since(chassis.clock.now());
        assert!((2_700..=3_060).contains(&left.as_secs()), "{left:?}");
        clock.set(due + SignedDuration::from_secs(1));
        let worker = world.credentials.clone().run(world.connecting.integrations.clone());
        chassis.tasks.spawn("worker", worker);
        let renewed = async {
            while world.connection(&integration).await.version == before.version {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, renewed).await.expect("it refreshes by itself");
        assert!(chassis.tasks.stop(LONG).await);
    })
    .await;
}

#[tokio::test]
async fn a_refused_token_is_refreshed_once_and_then_a_person_is_needed() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, _| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        world.connect_in_browser(&peer, &integration).await;
        let first = world.credentials.of(&integration).await.expect("a token");
        let second = world.credentials.refused(&integration, std::slice::from_ref(&first)).await.expect("a fresh one");
        assert_ne!(first, second);
        assert_eq!(
            world.credentials.refused(&integration, std::slice::from_ref(&first)).await.as_ref(),
            Ok(&second),
            "late news of the old"
        );
        let third = world.credentials.refused(&integration, std::slice::from_ref(&second)).await;
        assert!(matches!(third, Err(CredentialError::NeedsReconnect(_))), "{third:?}");
    })
    .await;
}

#[tokio::test]
async fn disconnecting_revokes_at_the_vendor_and_forgets() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, _| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        world.connect_in_browser(&peer, &integration).await;
        let token = world.refresh_token(&integration).await;
        assert_eq!(world.credentials.disconnect(&integration).await.expect("it is forgotten"), None);
        assert!(peer.seen().await.revoked.contains(&token));
        assert!(world.connection(&integration).await.kept.is_none());
        assert!(world.credentials.of(&integration).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_state_completes_nothing_twice_late_elsewhere_or_for_somebody_else() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, clock| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let (mine, theirs) = (world.integration("acme").await, world.integration("other").await);
        let complete = async |state: &str, code: &str, browser: &str| {
            world.connecting.complete(state, code, browser).await.expect("an answer")
        };
        // Another session's browser, and one without a cookie: nothing is used up by them.
        let (code, state) = peer.consent(&world.begin(&mine, BROWSER).await).await;
        for thief in ["another-browser", "", "no\u{0}cookie"] {
            assert_eq!(complete(&state, &code, thief).await, Completed::Unknown, "{thief:?}");
        }
        // Another organization's flow, in another browser.
        let (their_code, their_state) = peer.consent(&world.begin(&theirs, "their-browser").await).await;
        assert_eq!(complete(&state, &their_code, "their-browser").await, Completed::Unknown);
        assert_eq!(complete(&their_state, &code, BROWSER).await, Completed::Unknown);
        // The rightful one, once.
        assert_eq!(complete(&state, &code, BROWSER).await, Completed::Connected { integration_id: mine.id.clone() });
        assert_eq!(complete(&state, &code, BROWSER).await, Completed::Unknown, "replayed");
        // Expired.
        clock.advance(Duration::from_secs(601));
        assert_eq!(complete(&their_state, &their_code, "their-browser").await, Completed::Unknown);
        assert!(world.credentials.of(&theirs).await.is_err(), "nothing was connected for them");
        for nonsense in ["", "x", &"a".repeat(129), "a b", "\u{0}"] {
            assert_eq!(complete(nonsense, "code", BROWSER).await, Completed::Unknown);
        }
    })
    .await;
}

#[tokio::test]
async fn a_ticket_is_the_first_browsers_alone_and_a_no_uses_the_state_up() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, _| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        let begun = world.connecting.connect(&integration, Given::OAuth(None)).await.expect("it begins");
        let ticket = ticket(begun);
        let location = world.connecting.open(&ticket, BROWSER).await.expect("the first");
        for browser in ["another-browser", BROWSER] {
            assert!(world.connecting.open(&ticket, browser).await.is_err(), "{browser}");
        }
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        assert_eq!(world.connecting.complete(&state, "", BROWSER).await.expect("an answer"), Completed::Denied);
        assert_eq!(world.connecting.complete(&state, "code", BROWSER).await.expect("an answer"), Completed::Unknown);
    })
    .await;
}

#[tokio::test]
async fn a_browser_that_leaves_while_a_code_is_exchanged_is_connected_all_the_same() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, _| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        let (code, state) = peer.consent(&world.begin(&integration, BROWSER).await).await;
        assert!(world.connecting.complete(&state, &code, BROWSER).now_or_never().is_none(), "it is on its way");
        let connected = async {
            while world.credentials.connections.get(&integration).await.expect("the store").is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, connected).await.expect("it is seen through");
        assert_eq!(world.state(&integration).await, State::Connected);
    })
    .await;
}

#[tokio::test]
async fn a_ticket_outlives_a_moment_in_which_its_vendor_is_not_known() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store, chassis, _| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        let ticket = ticket(world.connecting.connect(&integration, Given::OAuth(None)).await.expect("it begins"));
        let unknown = World::open(&store, &chassis, Vendor::without_oauth("http://127.0.0.1:9/me")).await;
        unknown.connecting.open(&ticket, BROWSER).await.expect_err("nobody knows where to");
        world.connecting.open(&ticket, BROWSER).await.expect("the ticket is good");
    })
    .await;
}

#[tokio::test]
async fn an_organizations_own_client_is_used_and_sealed() {
    let Some(peer) = Peer::start().await else { return };
    on_each(async |store: Store, chassis, _| {
        let world = World::open(&store, &chassis, peer.asks()).await;
        let integration = world.integration("acme").await;
        let own = crate::credential::App { id: "their-client".to_owned(), secret: Secret::from("theirs".to_owned()) };
        let begun = world.connecting.connect(&integration, Given::OAuth(Some(own))).await.expect("it begins");
        let location = world.connecting.open(&ticket(begun), BROWSER).await.expect("the first");
        assert!(location.as_str().contains("client_id=their-client"), "{location}");
        let ours = world.begin(&integration, BROWSER).await;
        assert!(ours.as_str().contains(&format!("client_id={OUR_CLIENT}")), "{ours}");
    })
    .await;
}
