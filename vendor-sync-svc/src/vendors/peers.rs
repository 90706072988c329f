//! That the servers on loopback take and refuse what the vendors' own descriptions do: the same requests to both.

use bytes::Bytes;
use chassis::{
    outbound::{Answer, Outbound, OutboundSettings, Request},
    testing::noon,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::prism;
use crate::testing::vendor::{
    Server,
    constant_contact::ConstantContact,
    lead::{LightBlue, ShootQ, Tave},
    mailchimp::{Mailchimp, hash_of},
    vsco::Vsco,
};

/// A way out that loopback is open to.
pub(super) fn way_out() -> Outbound {
    let settings = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    Outbound::new(&settings).expect("settings that hold")
}

/// Sends one request; `headers` are `name: value`.
pub(super) async fn send(method: &str, url: &str, headers: &[&str], body: impl Into<Bytes>) -> Answer {
    let pairs = headers.iter().map(|line| line.split_once(": ").expect("a header"));
    let pairs = pairs.map(|(name, value)| {
        (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
    });
    let request = Request {
        method: method.parse::<Method>().expect("a method"),
        url: url.to_owned(),
        headers: HeaderMap::from_iter(pairs),
        body: body.into(),
        timeout: std::time::Duration::from_secs(20),
    };
    way_out().send(request).await.expect("an answer")
}

const JSON: &str = "content-type: application/json";

/// Asks both; the vendor's description and our server agree on whether it is in order.
async fn agree(bases: [&str; 2], method: &str, path: &str, headers: &[&str], body: &Value) -> [u16; 2] {
    let sent = if body.is_null() { String::new() } else { body.to_string() };
    let described = send(method, &format!("{}{path}", bases[0]), headers, sent.clone()).await;
    let ours = send(method, &format!("{}{path}", bases[1]), headers, sent.clone()).await;
    let violations = described.headers.get("sl-violations");
    let [described, ours] = [described.status, ours.status];
    let agrees = described.is_success() == ours.is_success();
    assert!(agrees, "{method} {path} {sent}: described {described} {violations:?}, ours {ours}");
    [described.as_u16(), ours.as_u16()]
}

#[tokio::test]
async fn our_studio_takes_and_refuses_what_the_description_does() {
    let Some(prism) = prism::serve("vsco-workspace/workspace-v2.openapi.json") else { return };
    let server = Server::start(Vsco::new("key", 1_000)).await;
    let id = server.vendor().make_job(&json!({"name": "Ada & Grace"}), noon());
    let both = [prism.as_str(), server.base()];
    let key: &[&str] = &["x-api-key: key", JSON];
    let mapping = json!([{"id": "w1", "url": "https://wedsync.example/w/w1"}]);
    let job = json!({"name": "Ada", "eventDate": "2026-06-20", "guestCount": 90, "externalMappings": mapping});
    agree(both, "POST", "/job", key, &job).await;
    agree(both, "GET", "/job?sortBy=modified%20desc&pageSize=10&includeClosed=true", key, &Value::Null).await;
    agree(both, "GET", "/job?externalMappingId=w1", key, &Value::Null).await;
    agree(both, "PUT", &format!("/job/{id}"), key, &job).await;
    let hook = json!({"event": "job.created", "url": "https://hooks.wedsync.example/x"});
    agree(both, "POST", "/rest-hook", key, &hook).await;
    for fault in [
        json!({"guestCount": "ninety"}),
        json!({"externalMappings": [{"id": "", "url": "https://wedsync.example/w"}]}),
        json!({"externalMappings": [{"id": "w"}]}),
    ] {
        agree(both, "POST", "/job", key, &fault).await;
    }
    agree(both, "GET", "/job?pageSize=7", key, &Value::Null).await;
    agree(both, "GET", "/job", &[], &Value::Null).await;
}

#[tokio::test]
async fn our_audience_takes_and_refuses_what_the_description_does() {
    let Some(prism) = prism::serve("mailchimp/marketing-3.0-audience.openapi.json") else { return };
    let server = Server::start(Mailchimp::new("key-us1", "a")).await;
    let both = [prism.as_str(), server.base()];
    let key: &[&str] = &["authorization: Basic YW55c3RyaW5nOmtleS11czE=", JSON];
    let path = format!("/lists/a/members/{}", hash_of("Ada@Example.org"));
    let member =
        json!({"email_address": "Ada@Example.org", "status_if_new": "subscribed", "merge_fields": {"FNAME": "Ada"}});
    agree(both, "PUT", &path, key, &member).await;
    agree(both, "GET", &path, key, &Value::Null).await;
    agree(
        both,
        "GET",
        "/lists/a/members?count=100&offset=0&since_last_changed=2026-01-01T00:00:00Z",
        key,
        &Value::Null,
    )
    .await;
    let tags = json!({"tags": [{"name": "wedding-2026-06", "status": "active"}], "is_syncing": false});
    agree(both, "POST", &format!("{path}/tags"), key, &tags).await;
    agree(both, "POST", &format!("{path}/tags"), key, &json!({"tags": [{"name": "x", "status": "on"}]})).await;
    let happened = json!({"name": "milestone_reached", "properties": {"milestone": "menu"}});
    agree(both, "POST", &format!("{path}/events"), key, &happened).await;
    agree(both, "POST", &format!("{path}/events"), key, &json!({"properties": {}})).await;
    agree(both, "GET", "/ping", key, &Value::Null).await;
    agree(both, "GET", "/ping", &[], &Value::Null).await;
    let batch =
        json!({"members": [{"email_address": "b@example.org", "status": "subscribed"}], "update_existing": true});
    agree(both, "POST", "/lists/a", key, &batch).await;
}

#[tokio::test]
async fn our_three_inboxes_take_and_refuse_what_the_descriptions_do() {
    if let Some(prism) = prism::serve("lead-capture/tave-new-lead.openapi.json") {
        let server = Server::start(Tave::new("s1", "secret")).await;
        let lead = json!({"SecretKey": "secret", "FirstName": "Ada", "JobType": "Wedding", "EventDate": "2026-06-20"});
        agree([&prism, server.base()], "POST", "/webservice/create-lead/s1", &[JSON], &lead).await;
        assert_eq!(server.vendor().leads.len(), 1);
    }
    if let Some(prism) = prism::serve("lead-capture/shootq.openapi.json") {
        let server = Server::start(ShootQ::new("b1", "key")).await;
        let mut lead = json!({
            "api_key": "key",
            "contact": {"first_name": "Ada", "last_name": "L", "emails": [{"type": "Main", "email": "ada@example.org"}]},
            "event": {"type": "Wedding", "date": "06/20/2026"},
        });
        let both = [prism.clone(), format!("{}/api", server.base())];
        let both = [both[0].as_str(), both[1].as_str()];
        agree(both, "POST", "/b1/leads", &[JSON], &lead).await;
        lead["event"]["date"] = "2026-06-20".into();
        agree(both, "POST", "/b1/leads", &[JSON], &lead).await;
        lead["event"] = json!({"type": "Wedding"});
        lead["contact"]["emails"] = json!([]);
        agree(both, "POST", "/b1/leads", &[JSON], &lead).await;
    }
    if let Some(prism) = prism::serve("lead-capture/light-blue.openapi.json") {
        let server = Server::start(LightBlue::new("key")).await;
        let form = "Key=key&Type=contact+form&Source=WedSync&ID=w1&ContactNameFirst=Ada";
        for base in [&prism, server.base()] {
            let form_type = ["content-type: application/x-www-form-urlencoded"];
            let answer = send("POST", &format!("{base}/api.php"), &form_type, form).await;
            assert_eq!(&answer.body[..2], b"0\r", "{base}");
        }
    }
}

#[tokio::test]
async fn the_peers_keep_the_vendors_own_rules() {
    let server = Server::start(Vsco::new("key", 4)).await;
    let id =
        server.vendor().make_job(&json!({"externalMappings": [{"id": "w1", "url": "https://a.example/w1"}]}), noon());
    let job = format!("{}/job/{id}", server.base());
    let other = json!({"externalMappings": [{"id": "w2", "url": "https://a.example/w2"}]}).to_string();
    assert_eq!(send("PUT", &job, &["x-api-key: key", JSON], other).await.status, 400, "mappings are written once");
    let date = r#"{"eventDate":"20/06/2026"}"#;
    assert_eq!(send("PUT", &job, &["x-api-key: key", JSON], date).await.status, 400, "dates are ISO's");
    let replaced = send("PUT", &job, &["x-api-key: key", JSON], r#"{"name":"A"}"#).await;
    assert_eq!(replaced.status, 200);
    assert_eq!(send("GET", &job, &["x-api-key: key"], "").await.status, 200);
    let over = send("GET", &job, &["x-api-key: key"], "").await;
    assert_eq!(over.status, 429);
    assert!(over.headers.contains_key("retry-after"));

    let (manual, clock) = chassis::testing::manual_clock();
    let server = Server::start_at(ConstantContact::new("token"), clock).await;
    let url = format!("{}/v3/contacts", server.base());
    let mut keys = Vec::new();
    server.vendor().daily = 6;
    for number in 0..8 {
        if number == 5 {
            manual.advance(std::time::Duration::from_secs(2));
        }
        let answer = send("GET", &url, &["authorization: Bearer token"], "").await;
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        keys.push(body[0]["error_key"].as_str().unwrap_or("ok").to_owned());
    }
    assert_eq!(keys, ["ok", "ok", "ok", "ok", "throttled", "ok", "quota_exceeded", "quota_exceeded"]);
    manual.advance(std::time::Duration::from_secs(24 * 3600));
    assert_eq!(send("GET", &url, &["authorization: Bearer token"], "").await.status, 200, "a new day");
}
