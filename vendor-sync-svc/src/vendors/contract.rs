//! What connectors say to their vendors, held against vendors that have state, find and refuse (`testing/vendor`). Every
//! connector is called by nothing but its declaration.

use chassis::{outbound::Answer, testing::noon};
use serde_json::{Value as Json, json};

use super::rig::{KEY, Rig, SECRET, client, wedding};
use crate::{
    connector::{CallError, Class, Judgement},
    record::RecordKind,
    testing::vendor::{
        Said, Server,
        lead::{LightBlue, ShootQ, Tave},
        postgrest::Postgrest,
        profile::{Profile, Receiver},
        rental::{RentalSoftware, Rentman},
        vsco::Vsco,
        wedme::WedMe,
    },
};

pub(super) fn linked(mut given: Json, id: &str) -> Json {
    given["link"] = json!({"external_id": id});
    given
}

pub(super) fn about(mut given: Json, name: &str, value: Json) -> Json {
    given["record"][name] = value;
    given
}

/// What an answer of this kind is taken as, by the connector's own rules.
fn class_of(rig: &Rig, operation: &str, status: u16, headers: &[(&str, &str)], body: &str) -> Option<CallError> {
    let headers = headers.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
    let answer = Answer {
        status: http::StatusCode::from_u16(status).expect("a status"),
        headers: http::HeaderMap::from_iter(headers),
        body: body.to_owned().into(),
        complete: true,
        duration: std::time::Duration::ZERO,
    };
    match rig.connector.judge(operation, &answer, noon()) {
        Judgement::Done(_) => None,
        Judgement::Failed(error) => Some(error),
    }
}

pub(super) fn classes(rig: &Rig, operation: &str, cases: &[(u16, &str, Option<Class>)]) {
    for (status, body, class) in cases {
        let error = class_of(rig, operation, *status, &[], body);
        assert_eq!(error.as_ref().map(|error| error.class), *class, "{operation}: {status} {body}: {error:?}");
    }
}

#[tokio::test]
async fn vsco_workspace_finds_what_it_made_and_keeps_what_is_the_studios() {
    let server = Server::start(Vsco::new(KEY, 1_000)).await;
    let rig = Rig::at("vsco-workspace", server.base());
    assert_eq!(rig.call("find_job", &wedding()).await.expect("an answer").external_id, "", "nothing is there yet");
    let made = rig.call("create_job", &wedding()).await.expect("made");
    let found = rig.call("find_job", &wedding()).await.expect("found");
    assert_eq!((&found.external_id, &found.external_version), (&made.external_id, &made.external_version));

    server.vendor().edit_job(&made.external_id, &json!({"leadRating": 5, "stage": "booked"}), noon());
    let mut moved = linked(about(wedding(), "wedding_date", "2026-06-27".into()), &made.external_id);
    moved["current"] = rig.call("read_job", &moved).await.expect("read").resource;
    rig.call("update_job", &moved).await.expect("replaced");
    let job = server.vendor().jobs()[&made.external_id].clone();
    assert_eq!(
        (&job["eventDate"], &job["leadRating"], &job["stage"]),
        (&json!("2026-06-27"), &json!(5), &json!("booked"))
    );
    assert_eq!(job["externalMappings"][0]["id"], "w1", "written once, and still there");
    let item = rig.connector.record(RecordKind::Wedding).expect("weddings").item(&job, &rig.settings).expect("an item");
    assert_eq!(item.fields["wedding_date"], "2026-06-27");

    for number in 0..230 {
        server.vendor().make_job(&json!({"name": format!("Job {number}")}), noon());
    }
    assert_eq!(rig.list("list_jobs", &Json::Null).await.len(), 231, "three pages");
    let person = rig.call("create_person", &client()).await.expect("made");
    assert_eq!(rig.call("find_person", &client()).await.expect("found").external_id, person.external_id);
    let stranger = about(client(), "email", Json::Null);
    assert_eq!(
        rig.call("find_person", &stranger).await.expect("an answer").external_id,
        "",
        "nobody is taken for another"
    );
}

#[tokio::test]
async fn every_refusal_of_vsco_workspace_means_what_it_says() {
    let server = Server::start(Vsco::new(KEY, 1)).await;
    let rig = Rig::at("vsco-workspace", server.base());
    rig.call("studio", &Json::Null).await.expect("it works");
    let refused = rig.call("studio", &Json::Null).await.expect_err("one a minute");
    assert_eq!(refused.class, Class::Throttled);
    assert!(refused.retry_after.is_some_and(|after| (1..=60).contains(&after.as_secs())), "{refused:?}");
    let cases = [
        (400, r#"{"type":"validation-error","title":"Validation Error","status":400}"#, Some(Class::Permanent)),
        (401, r#"{"type":"unknown"}"#, Some(Class::Unauthorized)),
        (404, "{}", Some(Class::Gone)),
        (429, r#"{"type":"quota-limit"}"#, Some(Class::Throttled)),
        (503, "", Some(Class::Retry)),
    ];
    classes(&rig, "update_job", &cases);
}

#[tokio::test]
async fn tave_takes_a_lead_only_if_its_body_says_so() {
    let server = Server::start(Tave::new("s1", KEY)).await;
    let rig = Rig::at("tave-lead", &format!("{}/webservice", server.base())).with("studio_id", "s1");
    assert_eq!(rig.call("send_lead", &client()).await.expect("taken").external_id, "1234567");
    let nameless = about(client(), "first_name", Json::Null);
    let refused = rig.call("send_lead", &nameless).await.expect_err("needs a name");
    assert_eq!(refused.class, Class::Permanent);
    assert!(refused.reason.contains("FirstName"), "{}", refused.reason);
    assert!(!rig.connector.is_repeatable(), "a repeat would be a second lead");
    let cases = [
        (200, "", Some(Class::Permanent)),
        (200, "<html>", Some(Class::Permanent)),
        (404, "", Some(Class::Gone)),
        (429, "", Some(Class::Throttled)),
        (502, "", Some(Class::Retry)),
    ];
    classes(&rig, "send_lead", &cases);
}

#[tokio::test]
async fn shootq_takes_a_lead_by_200_alone_and_once() {
    let server = Server::start(ShootQ::new("b1", KEY)).await;
    let rig = Rig::at("shootq", &format!("{}/api", server.base())).with("brand", "b1");
    rig.call("send_lead", &client()).await.expect("taken");
    assert!(!rig.connector.is_repeatable(), "a repeat would be a second lead");
    assert_eq!(server.vendor().leads[0]["event"]["date"], "06/20/2026");
    let cases = [
        (201, "{}", Some(Class::Permanent)),
        (204, "", Some(Class::Permanent)),
        (302, "", Some(Class::Permanent)),
        (400, "{}", Some(Class::Permanent)),
        (401, "{}", Some(Class::Unauthorized)),
        (503, "", Some(Class::Retry)),
    ];
    classes(&rig, "send_lead", &cases);
}

#[tokio::test]
async fn light_blues_inbox_takes_each_once_and_says_so_in_its_first_line() {
    let server = Server::start(LightBlue::new(KEY)).await;
    let rig = Rig::at("light-blue", server.base());
    let handed = rig.call("hand_over_client", &client()).await.expect("handed over");
    assert!(handed.handed_over, "a person must accept it");
    rig.call("hand_over_client", &client()).await.expect("a repeat is no failure");
    assert_eq!(server.vendor().inbox.len(), 1);
    let cases = [
        (200, "0\rOK", None),
        (200, "-4\rDuplicate", None),
        (200, "-3\rNo valid parameters", Some(Class::Permanent)),
        (200, "-20\rNot HTTPS", Some(Class::Permanent)),
        (200, "-1\rUnknown key", Some(Class::Permanent)),
        (200, "", Some(Class::Permanent)),
        (500, "", Some(Class::Retry)),
    ];
    classes(&rig, "hand_over_client", &cases);
}

#[tokio::test]
async fn the_generic_profiles_hold_to_the_letter_and_verify_with_the_public_library() {
    let crm = Server::start(Receiver::new(Profile::Crm, KEY, SECRET)).await;
    for name in ["crm", "honeybook", "studio-cloud", "iris-works"] {
        let rig = Rig::at(name, crm.base());
        rig.call("send_wedding", &wedding())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error} {:?}", crm.vendor().refused));
        rig.call("send_timeline", &wedding())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error} {:?}", crm.vendor().refused));
        rig.call("send_client", &client())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error} {:?}", crm.vendor().refused));
    }
    assert_eq!(crm.vendor().taken.len(), 1, "one event is taken once, whoever repeats it");
    assert_eq!(crm.vendor().taken[0]["client_name"], "Ada & Grace");
    let venue = Server::start(Receiver::new(Profile::Venue, KEY, SECRET)).await;
    for name in ["venue", "venuemaster", "party-rental", "eventplanning"] {
        let rig = Rig::at(name, venue.base());
        rig.call("send_wedding", &wedding())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error} {:?}", venue.vendor().refused));
    }
    assert_eq!(venue.vendor().taken[0]["party_size"], 90);
    let empty = json!({"record": {"id": "w1"}, "event": {"id": "e2", "delivery_id": "msg_2", "type": "wedding_details.update", "time": "2026-05-01T12:00:00Z"}});
    Rig::at("crm", crm.base()).call("send_wedding", &empty).await.expect("what is unknown is null, and there");
    Rig::at("venue", venue.base()).call("send_wedding", &empty).await.expect("what is unknown is null, and there");
}

#[tokio::test]
async fn every_signed_connector_verifies_with_the_public_library() {
    let server = Server::start(Receiver::new(Profile::Any, KEY, SECRET)).await;
    let names = [
        "custom-planner",
        "caterer",
        "project-management",
        "timeline-coordination",
        "client-communications",
        "photo-gallery",
    ];
    for name in names {
        let rig = Rig::at(name, server.base());
        for (operation, given) in [("send_wedding", wedding()), ("send_client", client())] {
            let sent = rig.call(operation, &given).await;
            sent.unwrap_or_else(|error| panic!("{name}: {error} {:?}", server.vendor().refused));
        }
    }
    let mut reached = wedding();
    reached["given"] = json!({"milestone_name": "Menu chosen"});
    reached["event"]["delivery_id"] = "msg_3".into();
    Rig::at("project-management", server.base()).call("send_milestone", &reached).await.expect("taken");
    assert_eq!(server.vendor().taken.last().expect("one")["task"], "Menu chosen");
}

#[tokio::test]
async fn wedme_keeps_its_newer_field_and_tells_of_it() {
    let server = Server::start(WedMe::new(KEY, SECRET)).await;
    let rig = Rig::at("wedme", server.base());
    let first = rig.call("send_client", &client()).await.expect("taken");
    rig.call("send_client", &client()).await.expect("a repeat is the same");
    assert_eq!(server.vendor().clients["c1"]["version"], 1);

    server.vendor().prefer("c1", "dietary_requirements", &json!("gluten free"), noon());
    let mut changed = client();
    changed["link"] = json!({"external_id": "c1", "external_version": first.external_version});
    changed["event"]["delivery_id"] = "msg_2".into();
    rig.call("send_client", &changed).await.expect("the e-mail is taken");
    let fields = server.vendor().clients["c1"]["fields"].clone();
    assert_eq!(fields["dietary_requirements"]["value"], "gluten free", "theirs is newer");
    assert_eq!(fields["email"]["value"], "Ada@Example.org");
    changed["changed"] = json!(["dietary_requirements"]);
    changed["event"]["delivery_id"] = "msg_3".into();
    assert_eq!(rig.call("send_client", &changed).await.expect_err("all are newer").class, Class::Conflict);

    let read = rig.call("read_client", &changed).await.expect("read").resource;
    let item = rig.connector.record(RecordKind::Client).expect("clients").item(&read, &rig.settings).expect("an item");
    assert_eq!(item.fields["dietary_requirements"], "gluten free");
    assert_eq!(rig.list("list_clients", &Json::Null).await.len(), 1);
}

#[tokio::test]
async fn wedsyncs_own_tables_are_patched_by_their_key_alone() {
    let mut tables = Postgrest::new(KEY);
    let rows = ["w1", "w2"].map(
        |id| json!({"id": id, "wedding_date": "2026-06-13", "guest_count": 80, "updated_at": "2026-05-01T00:00:00Z"}),
    );
    tables.tables.insert("wedding_details".to_owned(), rows.to_vec());
    let columns = ["id", "wedding_date", "guest_count", "updated_at"].map(str::to_owned);
    tables.columns.insert("wedding_details".to_owned(), columns.into());
    let server = Server::start(tables).await;
    let rig = Rig::at("wedsync-postgrest", server.base());
    assert_eq!(rig.call("find_wedding", &wedding()).await.expect("found").external_id, "w1");
    assert_eq!(
        rig.call("find_wedding", &about(wedding(), "id", "w9".into())).await.expect("an answer").external_id,
        ""
    );
    rig.call("update_wedding", &linked(wedding(), "w1")).await.expect("written");
    let rows = server.vendor().tables["wedding_details"].clone();
    assert_eq!(
        (&rows[0]["wedding_date"], &rows[0]["guest_count"]),
        (&json!("2026-06-20"), &json!(80)),
        "what changed alone"
    );
    assert_eq!(rows[1]["wedding_date"], "2026-06-13");
    assert_eq!(rig.call("update_wedding", &linked(wedding(), "w9")).await.expect_err("no row").class, Class::Gone);
    let mut strange = linked(wedding(), "w1");
    strange["changed"] = json!(["venue_name"]);
    let refused = rig.call("update_wedding", &strange).await.expect_err("no such column");
    assert_eq!(refused.class, Class::Permanent);
    assert!(refused.reason.contains("venue_name"), "{}", refused.reason);
    let stranger =
        Rig { credential: crate::credential::Credential::None, ..Rig::at("wedsync-postgrest", server.base()) };
    assert!(stranger.request("find_wedding", &wedding()).is_err(), "it needs a key");
}

#[tokio::test]
async fn rentman_has_one_request_for_a_wedding() {
    let server = Server::start(Rentman::new(KEY)).await;
    let rig = Rig::at("rentman", server.base());
    rig.call("account", &Json::Null).await.expect("it works");
    assert_eq!(rig.call("find_request", &wedding()).await.expect("an answer").external_id, "");
    let made = rig.call("create_request", &wedding()).await.expect("made");
    assert!(made.handed_over, "the company turns it into a project");
    assert_eq!(rig.call("find_request", &wedding()).await.expect("found").external_id, made.external_id);
    rig.call("update_request", &linked(about(wedding(), "wedding_date", "2026-06-27".into()), "1"))
        .await
        .expect("changed");
    assert_eq!(server.vendor().requests[&1]["usageperiod_start"], "2026-06-27T09:30:00");
    for number in 0..700 {
        let request =
            json!({"id": 100 + number, "name": "x", "external_reference": "o", "modified": noon().to_string()});
        server.vendor().requests.insert(100 + number, request);
    }
    assert_eq!(rig.list("list_requests", &Json::Null).await.len(), 701);
    let cases = [
        (400, r#"{"message":"x"}"#, Some(Class::Permanent)),
        (502, "", Some(Class::Retry)),
        (429, "", Some(Class::Throttled)),
    ];
    classes(&rig, "create_request", &cases);
    for (status, class) in [(401, Class::Unauthorized), (404, Class::Gone), (500, Class::Retry)] {
        classes(&rig, "update_request", &[(status, r#"{"message":"x"}"#, Some(class))]);
    }
}

#[tokio::test]
async fn rental_software_is_asked_within_its_limit() {
    let server = Server::start(RentalSoftware::new(KEY)).await;
    let rig = Rig::at("rental-software", &format!("{}/api6", server.base()));
    rig.call("leads", &Json::Null).await.expect("it works");
    let made = rig.call("create_lead", &wedding()).await.expect("made");
    rig.call("update_lead", &linked(about(wedding(), "guest_count", 95.into()), &made.external_id))
        .await
        .expect("changed");
    assert_eq!(server.vendor().leads[&1]["guestcount"], 95);
    server.next([Said::json(429, &json!({"error": "rate limit"}))]);
    assert_eq!(rig.call("leads", &Json::Null).await.expect_err("too many").class, Class::Throttled);
    for (status, class) in [(401, Class::Unauthorized), (404, Class::Gone), (500, Class::Retry)] {
        classes(&rig, "update_lead", &[(status, r#"{"error":"x"}"#, Some(class))]);
    }
    classes(&rig, "create_lead", &[(400, r#"{"error":"x"}"#, Some(Class::Permanent))]);
}

/// Nobody wrote code for it.
#[tokio::test]
async fn a_made_up_vendor_takes_one_text_and_no_code() {
    let server = Server::start(Rentman::new("t")).await;
    let text = format!(
        r#"
        name = "marquees-r-us"
        title = "Marquees R Us"
        kind = "rental"
        base_url = "{}"
        [[auth]]
        kind = "bearer"
        [operations.find]
        method = "GET"
        path = "/projectrequests"
        query = {{ external_reference = "{{record.id}}" }}
        reply = {{ external_id = "(body.data | first).id | string if body.data else none" }}
        [operations.make]
        method = "POST"
        path = "/projectrequests"
        idempotency = "look_up"
        body = {{ name = "concat('Marquee for ', record.guest_count)", external_reference = "record.id" }}
        reply = {{ external_id = "body.data.id | string" }}
        [records.wedding]
        fields = ["guest_count"]
        find = "find"
        create = "make"
        [inbound]
        [[inbound.verify]]
        kind = "hmac"
        header = "x-marquee-signature"
        [[inbound.events]]
        when = "body.kind == 'set-up'"
        type = "setup.requirements"
        fields = {{ wedding_id = "body.wedding", setup_time = "body.at" }}
        "#,
        server.base()
    );
    let mut rig = Rig::parsed(&text);
    rig.credential = crate::credential::Credential::Key(chassis::config::Secret::from("t".to_owned()));
    assert_eq!(rig.call("find", &wedding()).await.expect("an answer").external_id, "");
    let made = rig.call("make", &wedding()).await.expect("made");
    assert_eq!(rig.call("find", &wedding()).await.expect("found").external_id, made.external_id);
    assert_eq!(server.vendor().requests[&1]["name"], "Marquee for 90");
    let body = br#"{"kind":"set-up","wedding":"w1","at":"08:00"}"#;
    let signature = chassis::signature::hex_sign(SECRET.as_bytes(), body);
    let headers = [("x-marquee-signature".to_owned(), bytes::Bytes::from(signature))];
    let webhook =
        crate::connector::Webhook { method: "POST", url: "", query: "", headers: &headers, body, integration_id: "i1" };
    let inbound = rig.connector.inbound().expect("it takes webhooks");
    inbound.verify(&webhook, &[SECRET], noon()).expect("signed");
    let items = inbound.events(&webhook, &rig.settings).expect("items");
    assert_eq!((items[0].event_type.as_str(), &items[0].fields["setup_time"]), ("setup.requirements", &json!("08:00")));
}
