//! What parses and what doesn't, and what requests and answers of the built-in pilots look like.

use chassis::{config::Secret, outbound::Answer, testing::noon};
use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The whole one of the documentation.
pub(super) fn example() -> &'static str {
    let docs = include_str!("../../../docs/connectors.md");
    let whole = docs.split("## A whole one\n```toml\n").nth(1).expect("it is there");
    whole.split("```").next().expect("it ends")
}

pub(super) fn parsed(source: &str) -> Connector {
    Connector::parse(source).unwrap_or_else(|faults| panic!("{}", shown(&faults)))
}

fn shown(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

fn built_in(name: &str) -> Connector {
    parsed(catalogue::built_in_text(name).expect("it is built in"))
}

pub(super) fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).expect("a status"),
        headers: HeaderMap::new(),
        body: body.to_owned().into(),
        complete: true,
        duration: Duration::ZERO,
    }
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn key() -> Credential {
    Credential::Key(Secret::from("k3y".to_owned()))
}

fn account<'a>(settings: &'a BTreeMap<String, String>, credential: &'a Credential) -> Account<'a> {
    Account { integration_id: "i1", settings, credential, secrets: &[] }
}

fn wedding() -> Json {
    json!({
        "record": {
            "id": "w/1", "bride_name": "Ada", "groom_name": "Grace", "wedding_date": "2026-06-20", "guest_count": 90,
            "special_requests": "quiet", "venue_notes": "by the lake", "budget": 12000,
        },
        "link": {"external_id": "j 7"},
        "event": {"id": "e1", "delivery_id": "msg_1", "type": "wedding_details.update", "time": "2026-05-01T12:00:00Z"},
    })
}

fn body_of(request: &chassis::outbound::Request) -> Json {
    serde_json::from_slice(&request.body).expect("JSON")
}

#[test]
fn every_built_in_connector_parses_and_is_called_what_its_file_is() {
    for (name, text) in built_in::BUILT_IN {
        let connector = Connector::parse(text).unwrap_or_else(|faults| panic!("{name}: {}", shown(&faults)));
        assert_eq!(connector.name(), *name);
    }
    parsed(example());
}

#[test]
fn all_faults_are_told_at_once_with_their_places() {
    let source = r#"
        name = "Not This"
        kind = "crm"
        colour = "blue"
        base_url = "https://{settings.dc"
        [operations.send]
        method = "SEND"
        path = "/x/{record.id}"
        [operations.send.body]
        name = "record.name +"
        deep = [{ a = "nobody.knows" }]
        [records.wedding]
        create = "missing"
        [records.pet]
        [[auth]]
        kind = "api_key"
        [inbound]
        [[inbound.verify]]
        kind = "hmac"
        optional = true
    "#;
    let faults = Connector::parse(source).expect_err("it is all wrong");
    let places: BTreeSet<&str> = faults.iter().map(|fault| fault.at.as_str()).collect();
    for place in [
        "name",
        "title",
        "colour",
        "base_url",
        "operations.send.method",
        "operations.send.body.$.name",
        "operations.send.body.$.deep[0].a",
        "records.wedding.create",
        "records",
        "auth[0].name",
        "inbound.verify",
        "inbound.verify[0].header",
    ] {
        assert!(places.contains(place), "{place} is missing in:\n{}", shown(&faults));
    }
    assert!(shown(&faults).contains("operations.send.body.$.name: line 1: "), "{}", shown(&faults));
}

#[test]
fn a_text_that_is_no_toml_is_told_with_its_line() {
    let faults = Connector::parse("name = \"a\"\ntitle = \n").expect_err("it breaks off");
    assert!(faults[0].reason.starts_with("line 2: is not TOML"), "{}", faults[0]);
    assert!(Connector::parse(&"#".repeat(parse::SOURCE_BYTES + 1)).is_err());
}

#[test]
fn at_most_twenty_faults_are_told() {
    let source: String = (0..100).map(|n| format!("strange_{n} = 1\n")).collect();
    assert_eq!(Connector::parse(&source).expect_err("strange").len(), 20);
}

#[test]
fn what_extends_another_has_its_members_and_its_own_over_them() {
    let source =
        "name = 'barn'\ntitle = 'Barn'\nextends = 'venue'\nconcurrency = 1\n[records.wedding.out]\nparty_size = '1'\n";
    let barn = parsed(source);
    assert_eq!((barn.name(), barn.kind(), barn.concurrency()), ("barn", "venue", 1));
    assert!(barn.is_signed() && barn.inbound().is_some());
    let nobody = Connector::parse("name = 'barn'\ntitle = 'Barn'\nextends = 'nobody'").expect_err("no such base");
    assert_eq!(nobody[0].at, "extends");
    let own = Connector::parse_over("extends = 'x'", &|_| Some("extends = 'x'")).expect_err("it goes in circles");
    assert_eq!(own[0].at, "extends");
}

#[test]
fn a_request_shows_no_field_that_the_allow_list_does_not_name() {
    let source = example().replace("guests = \"record.guest_count\"", "guests = \"record.budget\"");
    let (settings, key) = (BTreeMap::new(), key());
    let request = parsed(&source).request("create_job", &account(&settings, &key), &wedding(), noon()).expect("built");
    let expected = json!({"title": "Ada & Grace", "date": "2026-06-20", "reference": "w/1"});
    assert_eq!(body_of(&request), expected);
}

#[test]
fn an_expression_can_not_leave_its_segment_of_the_path() {
    let (settings, key) = (BTreeMap::new(), key());
    let connector = parsed(example());
    let url = |external_id: &str| {
        let given = json!({"record": {"id": "w"}, "link": {"external_id": external_id}});
        connector.request("read_job", &account(&settings, &key), &given, noon()).map(|request| request.url)
    };
    assert_eq!(url("a/../b?c#d"), Ok("https://api.example.com/v1/jobs/a%2F..%2Fb%3Fc%23d".to_owned()));
    for nothing in ["", ".", ".."] {
        assert_eq!(url(nothing).expect_err(nothing).class, Class::Permanent, "{nothing:?}");
    }
}

#[test]
fn a_base_url_chooses_another_host_only_where_all_of_it_is_the_accounts() {
    let source = example().replace("https://api.example.com/v1", "https://{settings.dc}.example.com");
    let source = format!("{source}\n[settings.dc]\ndescription = 'x'\n");
    let (connector, key) = (parsed(&source), key());
    let url = |dc: &str| {
        let settings = settings(&[("dc", dc)]);
        connector.request("me", &account(&settings, &key), &json!({}), noon()).map(|request| request.url)
    };
    assert_eq!(url("us1"), Ok("https://us1.example.com/me".to_owned()));
    for dc in ["evil.test/", "evil.test#", "a@evil.test/", "evil.test?", "evil.test:443/"] {
        assert!(url(dc).is_err(), "{dc}");
    }
}

#[test]
fn a_wedding_goes_to_a_venue_signed_and_in_the_shape_of_the_profile() {
    let (venue, settings, key) = (built_in("venue"), settings(&[("url", "https://venue.example/in")]), key());
    let secrets = [WebhookSecret::generate()];
    let account = Account { secrets: &secrets, ..account(&settings, &key) };
    let request = venue.request("send_wedding", &account, &wedding(), noon()).expect("built");
    assert_eq!(request.url, "https://venue.example/in");
    assert_eq!(request.headers["x-venue-api-key"], "k3y");
    assert_eq!(request.headers["x-realtime-event"], "wedding-update");
    assert_eq!(request.headers["x-wedsync-event"], "wedding_details.update");
    assert!(chassis::signature::hex_verify(
        secrets[0].expose().as_bytes(),
        &request.body,
        request.headers["x-wedsync-signature"].to_str().expect("ASCII"),
    ));
    let expected = json!({
        "booking_id": "w/1", "event_date": "2026-06-20", "party_size": 90, "setup_time": null, "ceremony_start": null,
        "reception_start": null, "special_requirements": null, "coordinator_notes": "by the lake",
        "last_updated": "2026-05-01T12:00:00Z",
    });
    assert_eq!(body_of(&request), expected);
    let unsigned = venue.request("send_wedding", &Account { secrets: &[], ..account }, &wedding(), noon());
    assert!(unsigned.expect_err("it can't be signed").reason.contains("no secret to sign with"));
}

#[test]
fn an_update_that_replaces_a_job_keeps_what_it_read_and_never_its_mappings() {
    let (vsco, settings, key) = (built_in("vsco-workspace"), BTreeMap::new(), key());
    let mut given = wedding();
    given["current"] = json!({
        "id": "7", "name": "Old", "eventDate": "2026-01-01", "leadRating": 4, "externalMappings": [{"id": "w/1"}], "modified": "x",
    });
    let request = vsco.request("update_job", &account(&settings, &key), &given, noon()).expect("built");
    assert_eq!(request.url, "https://workspace.vsco.co/api/v2/job/j%207");
    let expected = json!({"name": "Ada & Grace", "eventDate": "2026-06-20", "guestCount": 90, "leadNotes": "quiet", "leadRating": 4});
    assert_eq!(body_of(&request), expected);
}

#[test]
fn light_blue_says_in_its_first_line_what_became_of_an_entry() {
    let light_blue = built_in("light-blue");
    let judge = |body: &str| light_blue.judge("hand_over_wedding", &answer(200, body), noon());
    let Judgement::Done(reply) = judge("0\rOK") else { panic!("handed over") };
    assert!(reply.handed_over);
    assert!(matches!(judge("-4\rDuplicate"), Judgement::Done(_)), "it is there already");
    let Judgement::Failed(error) = judge("-3\rBad type") else { panic!("refused") };
    assert_eq!(
        (error.class, error.reason.as_str()),
        (Class::Permanent, "Light Blue could not use the entry: Bad type")
    );
    let (settings, key) = (BTreeMap::new(), key());
    let request =
        light_blue.request("hand_over_wedding", &account(&settings, &key), &wedding(), noon()).expect("built");
    let body = String::from_utf8(request.body.to_vec()).expect("a form");
    assert!(
        body.contains("Key=k3y") && body.contains("ShootDate=20%2F06%2F2026") && body.contains("Type=contact+form"),
        "{body}"
    );
}

#[test]
fn statuses_have_their_classes_where_no_rule_says_otherwise() {
    let connector = parsed(example());
    for (status, class) in [
        (400, Class::Permanent),
        (401, Class::Unauthorized),
        (403, Class::Permanent),
        (404, Class::Gone),
        (408, Class::Throttled),
        (409, Class::Conflict),
        (410, Class::Gone),
        (412, Class::Conflict),
        (425, Class::Throttled),
        (429, Class::Throttled),
        (500, Class::Retry),
        (503, Class::Retry),
        (302, Class::Permanent),
    ] {
        let Judgement::Failed(error) = connector.judge("update_job", &answer(status, "{}"), noon()) else {
            panic!("{status}")
        };
        assert_eq!(error.class, class, "{status}");
    }
    let Judgement::Done(reply) = connector.judge("find_job", &answer(404, "{}"), noon()) else {
        panic!("nothing found")
    };
    assert_eq!(reply.external_id, "");
    let mut throttled = answer(429, "");
    throttled.headers.insert("retry-after", HeaderValue::from_static("7"));
    let Judgement::Failed(error) = connector.judge("me", &throttled, noon()) else { panic!("refused") };
    assert_eq!((error.retry_after, error.park), (Some(Duration::from_secs(7)), Some(Park::Account)));
}

#[test]
fn the_first_rule_that_holds_decides_over_body_and_absence_of_one() {
    let rules = r#"
        [[errors]]
        when = "status == 403 and not is_json"
        class = "throttled"
        [[errors]]
        when = "status == 429 and (body | first).error_key == 'quota_exceeded'"
        class = "throttled"
        park = "application"
        until = "midnight"
    "#;
    let (head, rest) = example().split_once("[[errors]]").expect("it has a rule");
    let connector = parsed(&format!("{head}{rules}[[errors]]{rest}"));
    let judge = |status, body: &str| match connector.judge("create_job", &answer(status, body), noon()) {
        Judgement::Failed(error) => error,
        Judgement::Done(reply) => panic!("{reply:?}"),
    };
    assert_eq!(judge(403, "<html>").class, Class::Throttled);
    assert_eq!(judge(403, "{}").class, Class::Permanent);
    let parked = judge(429, r#"[{"error_key": "quota_exceeded"}]"#);
    assert_eq!((parked.park, parked.retry_after), (Some(Park::Application), Some(Duration::from_secs(12 * 3600))));
    assert_eq!(judge(400, r#"{"code": "duplicate", "message": "again"}"#).class, Class::Duplicate);
}

#[test]
fn an_answer_that_broke_off_is_unknown_where_a_repeat_does_harm() {
    let source = example().replace("idempotency = \"look_up\"", "idempotency = \"none\"");
    let connector = parsed(&source);
    let cut = Answer { complete: false, ..answer(200, "{") };
    let class = |operation| match connector.judge(operation, &cut, noon()) {
        Judgement::Failed(error) => error.class,
        Judgement::Done(reply) => panic!("{reply:?}"),
    };
    assert_eq!((class("create_job"), class("update_job")), (Class::Unknown, Class::Retry));
    assert!(!connector.is_repeatable() && parsed(example()).is_repeatable());
}

#[test]
fn settings_are_held_to_what_is_declared() {
    let vsco = built_in("vsco-workspace");
    assert!(vsco.check_settings(&settings(&[("job_type_id", "42")])).is_ok());
    assert_eq!(vsco.check_settings(&settings(&[("job_type_id", "4/2")])).expect_err("a slash").0, "job_type_id");
    assert_eq!(vsco.check_settings(&settings(&[("colour", "blue")])).expect_err("no such").0, "colour");
    assert_eq!(built_in("venue").check_settings(&BTreeMap::new()).expect_err("required").0, "url");
    assert_eq!(vsco.filled(&BTreeMap::new())["reference_url"], "https://app.wedsync.com/weddings");
}

#[test]
fn what_a_vendor_has_comes_in_as_canonical_fields_of_the_allow_list() {
    let connector = parsed(
        &example().replace("guest_count = \"item.guests\"", "guest_count = \"item.guests\", price = \"item.price\""),
    );
    let item = json!({"id": 7, "modified": "2026-05-01T10:00:00Z", "date": "2026-06-20", "guests": 80, "price": 3});
    let spec = connector.record(RecordKind::Wedding).expect("declared");
    let item = spec.item(&item, &BTreeMap::new()).expect("it can be read");
    assert_eq!((item.external_id.as_str(), item.deleted), ("7", false));
    assert_eq!(item.at, "2026-05-01T10:00:00Z".parse().ok());
    assert_eq!(item.fields.keys().collect::<Vec<_>>(), ["guest_count", "wedding_date"]);
}

proptest! {
    #[test]
    fn no_text_makes_parsing_panic(text in any::<String>()) {
        drop(Connector::parse(&text));
    }

    #[test]
    fn no_change_of_a_whole_one_makes_parsing_panic(at in 0_usize..4_000, cut in 0_usize..40, put in "[\\PC]{0,8}") {
        let source = example();
        let at = (at..source.len()).find(|at| source.is_char_boundary(*at)).unwrap_or(0);
        let end = (at + cut..=source.len()).find(|end| source.is_char_boundary(*end)).unwrap_or(source.len());
        let faults = Connector::parse(&format!("{}{put}{}", &source[..at], &source[end..])).err().unwrap_or_default();
        prop_assert!(faults.len() <= read::MOST_FAULTS);
    }

    #[test]
    fn any_answer_is_judged(status in 100_u16..600, body in any::<String>()) {
        drop(parsed(example()).judge("create_job", &answer(status, &body), noon()));
    }
}
