//! How it authenticates, what it makes of answers, and what it never reaches.

use std::collections::BTreeSet;

use super::*;
use crate::{connector::IncrementalKind, record::RecordKind};

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
        let world = World::open(&store).await;
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
        let world = World::open(&store).await;
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
        let world = World::open(&store).await;
        let integration = world.account("acme", &source(&peer, declared), &Kept::None).await;
        for (path, expected) in [
            ("200", None),
            ("400", Some(Class::Permanent)),
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
            // Last: it needs to be connected again then.
            ("401", Some(Class::Unauthorized)),
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
        let world = World::open(&store).await;
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
        let world = World::with(&store, &OutboundSettings::default(), &Chassis::for_test()).await;
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
        let world = World::open(&store).await;
        let integration = world.account("acme", &source(&peer, declared), &Kept::None).await;
        let short = world.caller.call(&integration, "short", &json!({})).await.expect_err("too long");
        assert_eq!((short.class, short.reason.as_str()), (Class::Permanent, "the answer is longer than 1 KiB"));
        let long = world.caller.call(&integration, "long", &json!({})).await.expect("it fits");
        assert_eq!(long.body["text"].as_str().map(str::len), Some(900 * 1024));
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
        let world = World::open(&store).await;
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
