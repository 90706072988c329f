//! Quotas when many call at once, and across a restart.

use chassis::{clock::ManualClock, testing::manual_clock};

use super::*;

/// Something is broken, and not slow.
const LONG: Duration = Duration::from_secs(120);

/// A chassis on a clock that the test moves.
fn stopped() -> (ManualClock, Chassis) {
    let (manual, clock) = manual_clock();
    let mut chassis = Chassis::for_test();
    chassis.clock = clock;
    (manual, chassis)
}

/// Moves the clock on by a second whenever `requests` more have arrived, for ever. What is left when nothing more comes gets
/// its next second all the same.
async fn pass(manual: &ManualClock, peer: &Peer, requests: usize) {
    loop {
        let enough = peer.arrived().len() + requests;
        let arrive = async {
            while peer.arrived().len() < enough {
                tokio::task::yield_now().await;
            }
        };
        drop(tokio::time::timeout(Duration::from_secs(5), arrive).await);
        manual.advance(Duration::from_millis(1_001));
    }
}

#[tokio::test]
async fn no_window_holds_more_than_its_quota_and_no_account_more_than_its_calls_at_once() {
    on_each_store(async |store| {
        let peer = Peer::start(|_| said(200, "{}")).await;
        let declared = format!("concurrency = 3\n{SEND}[[quotas]]\nrequests = 5\nwindow_seconds = 1\n");
        let (manual, chassis) = stopped();
        let world = World::with(&store, &loopback(), &chassis).await;
        let integration = world.account("acme", &source(&peer, &declared), &Kept::None).await;
        let given = given();
        let calls = futures_util::future::join_all((0..12).map(|_| world.caller.call(&integration, "send", &given)));
        let windows = async {
            for most in [5, 10, 12] {
                while peer.arrived().len() < most {
                    tokio::task::yield_now().await;
                }
                // Those that the window has no room for have come as far as they can.
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(peer.arrived().len(), most);
                manual.advance(Duration::from_millis(1_001));
            }
        };
        let both = futures_util::future::join(calls, windows);
        let (results, ()) = tokio::time::timeout(LONG, both).await.expect("each comes in its turn");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
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
        let (manual, chassis) = stopped();
        let world = World::with(&store, &loopback(), &chassis).await;
        let source = source(&peer, &declared);
        let (loud, quiet) = (world.account("acme", &source, &Kept::None).await, world.account("acme", &source, &Kept::None).await);
        let say = async |from: &Integration, who: &str, times: usize| {
            let given = json!({"given": {"name": "Ada", "who": who}});
            let calls = (0..times).map(|_| async { world.caller.call(from, "send", &given).await.is_ok() });
            futures_util::future::join_all(calls).await.into_iter().filter(|done| *done).count()
        };
        let both = futures_util::future::join(say(&loud, "loud", 40), say(&quiet, "quiet", 4));
        let (loud, quiet) = tokio::select! {
            both = both => both,
            () = pass(&manual, &peer, 4) => unreachable!("it goes on for ever"),
        };
        assert_eq!(quiet, 4, "its share of three windows is six; the loud one had {loud}");
        assert!(loud >= 4, "{loud}");
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
        let (_, chassis) = stopped();
        let world = World::with(&store, &loopback(), &chassis).await;
        let again = World::with(&store, &loopback(), &chassis).await;
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

/// An account of a built-in connector, connected in the name of `client`, as it would be called, but at the peer.
async fn tenant(world: &World, organization: &str, client: &str, connector: &Arc<Connector>) -> Called {
    let settings = crate::integration::Settings {
        connector: "constant-contact".to_owned(),
        vendor: "constant-contact".to_owned(),
        ..settings_of(Kind::Connector)
    };
    let organization = OrganizationId::parse(organization).expect("an organization");
    let secret = Secret::from(WebhookSecret::generate().expose().to_owned());
    let integration = world.integrations.create(organization, settings, &secret).await.expect("created");
    let tokens = Tokens { access: Secret::from("t".to_owned()), refresh: Secret::default(), expires_at: None };
    let app = (!client.is_empty()).then(|| App { id: client.to_owned(), secret: Secret::default() });
    world
        .connections
        .connect(&integration, &Kept::Tokens { tokens, app }, &BTreeMap::new(), None)
        .await
        .expect("connected");
    let called = world.caller.called(&integration).await.expect("it can be called");
    Called { connector: connector.clone(), ..called }
}

#[tokio::test]
async fn an_oauth_applications_quota_is_shared_by_its_organizations_and_by_no_other_application() {
    on_each_store(async |store| {
        let peer = Peer::start(|arrived| match arrived.target.as_str() {
            "/v1/full" => said(429, ""),
            _ => said(200, "{}"),
        })
        .await;
        let declared = "[[auth]]\nkind = 'oauth2'\ngrant = 'authorization_code'\nauthorize_url = 'https://a.example/a'\n\
            token_url = 'https://a.example/t'\n[[quotas]]\nscope = 'application'\nrequests = 2\nwindow_seconds = 3600\n\
            [operations.get]\nmethod = 'GET'\npath = '/ok'\n[operations.full]\nmethod = 'GET'\npath = '/full'\n\
            [[errors]]\nwhen = 'status == 429'\nclass = 'throttled'\npark = 'application'\nretry_after_seconds = '600'\n";
        let connector = Arc::new(Connector::parse(&source(&peer, declared)).expect("it is well-formed"));
        let world = World::open(&store).await;
        let ask = async |called: &Called, operation| world.caller.call_as(called, operation, &json!({})).await;
        let class = |asked: Result<Reply, CallError>| asked.expect_err("refused").class;
        let (one, two) = (tenant(&world, "acme", "app-1", &connector).await, tenant(&world, "other", "app-1", &connector).await);
        ask(&one, "get").await.expect("there is room");
        ask(&two, "get").await.expect("there is room");
        assert_eq!(class(ask(&one, "get").await), Class::Throttled, "both together have used it up");
        assert_eq!(class(ask(&two, "get").await), Class::Throttled, "both together have used it up");
        let apart = tenant(&world, "other", "app-2", &connector).await;
        assert_eq!(class(ask(&apart, "full").await), Class::Throttled, "its vendor says so");
        assert_eq!(class(ask(&apart, "get").await), Class::Throttled, "it is parked");
        let ours = tenant(&world, "acme", "", &connector).await;
        ask(&ours, "get").await.expect("neither what another application used nor that one is parked concerns it");
        assert_eq!(peer.arrived().len(), 4);
    })
    .await;
}
