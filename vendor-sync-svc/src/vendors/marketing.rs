//! Contacts of e-mail marketing: who consented and nobody else, one application's limits, pages, and what refusals mean.

use chassis::testing::noon;
use serde_json::{Value as Json, json};

use super::{
    contract::{about, classes, linked},
    rig::{KEY, Rig, client},
};
use crate::{
    connector::{Class, Park},
    record::RecordKind,
    testing::vendor::{
        Server,
        constant_contact::{ConstantContact, modified_at_once},
        mailchimp::{Mailchimp, hash_of, turned_away},
    },
};

const LIST: &str = "6d9f1a0e-0000-4000-8000-000000000001";
const FIELD: &str = "6d9f1a0e-0000-4000-8000-000000000002";
const MILESTONES: &str = "6d9f1a0e-0000-4000-8000-000000000003";

#[tokio::test]
async fn mailchimp_gains_members_who_consented_and_never_resubscribes_anybody() {
    let server = Server::start(Mailchimp::new(KEY, "a1b2c3")).await;
    let rig = Rig::at("mailchimp", server.base()).with("list_id", "a1b2c3");
    rig.call("ping", &Json::Null).await.expect("it works");
    let spec = rig.connector.record(RecordKind::Client).expect("clients");
    let no = about(client(), "consent_marketing", false.into());
    assert_eq!(spec.may_go_out(&client(), &rig.settings), Ok(true));
    assert_eq!(spec.may_go_out(&no, &rig.settings), Ok(false));
    assert_eq!(
        spec.may_go_out(&about(client(), "consent_marketing", Json::Null), &rig.settings),
        Ok(false),
        "recorded consent"
    );

    let member = rig.call("upsert_member", &client()).await.expect("added");
    rig.call("upsert_member", &client()).await.expect("the same again");
    assert_eq!(member.external_id, hash_of("ada@example.org"));
    rig.call("tag_wedding", &client()).await.expect("tagged");
    let mut reached = client();
    reached["given"] = json!({"milestone_name": "Menu chosen"});
    rig.call("tag_milestone", &reached).await.expect("tagged");
    rig.call("record_milestone", &reached).await.expect("recorded");
    let mut moved = about(client(), "wedding_date", "2026-07-04".into());
    moved["old"] = json!({"wedding_date": "2026-06-20"});
    rig.call("tag_wedding", &moved).await.expect("tagged anew");
    {
        let mut vendor = server.vendor();
        let audience = vendor.audience("a1b2c3");
        let tags: Vec<&str> = audience.tags[&member.external_id].iter().map(String::as_str).collect();
        assert_eq!(tags, ["milestone-menu chosen", "wedding-2026-07"]);
        assert_eq!(audience.events[&member.external_id][0]["properties"]["milestone"], "Menu chosen");
        assert_eq!(audience.members.len(), 1);
    }
    let unsubscribed = json!({"given": {"email": "Ada@example.org"}, "event": {"id": "e2"}});
    rig.call("unsubscribe_member", &unsubscribed).await.expect("unsubscribed");
    rig.call("upsert_member", &client()).await.expect("changed");
    assert_eq!(server.vendor().audience("a1b2c3").members[&member.external_id]["status"], "unsubscribed");
    let listed = rig.list("list_members", &json!({"since": "2026-01-01T00:00:00Z"})).await;
    let item = spec.item(&listed[0], &rig.settings).expect("an item");
    assert_eq!(item.fields["consent_marketing"], false, "what a webhook missed is found by asking");

    let renamed = linked(about(client(), "email", "new@example.org".into()), &member.external_id);
    let renamed = rig.call("upsert_member", &renamed).await.expect("moved");
    assert_eq!(renamed.external_id, hash_of("new@example.org"));
    assert_eq!(server.vendor().audience("a1b2c3").members.len(), 1, "the same member under its new address");
}

#[test]
fn milestones_and_dates_reach_marketing_only_with_a_recorded_consent() {
    for (name, setting) in
        [("mailchimp", ("milestones", "Menu chosen")), ("constant-contact", ("milestone_list", MILESTONES))]
    {
        let rig = Rig::built_in(name).with(setting.0, setting.1);
        let settings = rig.connector.filled(&rig.settings);
        let count = |event_type: &str, given: &Json| {
            rig.connector.events(event_type).filter(|rule| rule.holds(given, &settings) == Ok(true)).count()
        };
        let mut reached = client();
        reached["given"] = json!({"milestone_name": "Menu chosen"});
        assert!(count("journey.milestone_completed", &reached) > 0, "{name}");
        for consent in [json!(false), Json::Null] {
            let without = about(reached.clone(), "consent_marketing", consent);
            assert_eq!(count("journey.milestone_completed", &without), 0, "{name}");
            assert_eq!(count("client.created", &without), 0, "{name}");
        }
        if name == "mailchimp" {
            reached["given"] = json!({"milestone_name": "Something else"});
            assert_eq!(count("journey.milestone_completed", &reached), 0, "only those that the account wants");
        }
    }
}

#[tokio::test]
async fn every_refusal_of_mailchimp_means_what_it_says() {
    let server = Server::start(Mailchimp::new(KEY, "a1b2c3")).await;
    let rig = Rig::at("mailchimp", server.base()).with("list_id", "a1b2c3");
    server.next([turned_away()]);
    assert_eq!(rig.call("upsert_member", &client()).await.expect_err("turned away").class, Class::Throttled);
    server.vendor().refused.insert("ada@example.org".to_owned(), "Member In Compliance State");
    let refused = rig.call("upsert_member", &client()).await.expect_err("refused");
    assert_eq!(refused.class, Class::Permanent);
    assert!(refused.reason.contains("Compliance"), "it is for people: {}", refused.reason);
    let problem = |title: &str| json!({"title": title, "detail": title, "status": 0}).to_string();
    let forbidden = problem("User Action Not Permitted");
    let cases = [
        (400, "{\"title\":\"Member Exists\",\"detail\":\"x\"}", Some(Class::Permanent)),
        (403, forbidden.as_str(), Some(Class::Permanent)),
        (422, "{\"title\":\"x\",\"detail\":\"x\"}", Some(Class::Permanent)),
        (500, "", Some(Class::Retry)),
        (403, "<html>", Some(Class::Throttled)),
        (429, "", Some(Class::Throttled)),
    ];
    classes(&rig, "upsert_member", &cases);
    // With a problem's body the status still says what kind it is.
    for (status, class) in
        [(401, Class::Unauthorized), (404, Class::Gone), (429, Class::Throttled), (500, Class::Retry)]
    {
        classes(&rig, "read_member", &[(status, &problem("x"), Some(class))]);
    }
    classes(&rig, "archive_member", &[(404, "{}", None), (405, "{}", None)]);
}

#[tokio::test]
async fn constant_contact_shares_one_applications_limits() {
    let (manual, clock) = chassis::testing::manual_clock();
    let server = Server::start_at(ConstantContact::new("t0ken"), clock).await;
    let rig = Rig::at("constant-contact", server.base()).token("t0ken");
    let rig = rig.with("list_id", LIST).with("wedding_date_field", FIELD).with("milestone_list", MILESTONES);
    let made = rig.call("upsert_contact", &client()).await.expect("added");
    let again = rig.call("upsert_contact", &client()).await.expect("the same again");
    assert_eq!(made.external_id, again.external_id);
    rig.call("join_milestone_list", &client()).await.expect("joined");
    rig.call("account", &Json::Null).await.expect("it works");
    let refused = rig.call("account", &Json::Null).await.expect_err("five in a second");
    assert_eq!((refused.class, refused.park), (Class::Throttled, Some(Park::Application)));
    assert!(refused.retry_after.is_some_and(|after| after.as_secs() <= 1), "{refused:?}");

    manual.advance(std::time::Duration::from_secs(2));
    server.vendor().daily = 0;
    let refused = rig.call("account", &Json::Null).await.expect_err("the day's are used up");
    assert_eq!((refused.class, refused.park), (Class::Throttled, Some(Park::Application)));
    assert!(refused.retry_after.is_some_and(|after| after.as_secs() > 1), "until midnight: {refused:?}");
    server.vendor().daily = 10_000;

    server.next([modified_at_once()]);
    assert_eq!(rig.call("upsert_contact", &client()).await.expect_err("at once").class, Class::Conflict);
    let contact = server.vendor().contacts[&made.external_id].clone();
    assert_eq!(contact["custom_fields"][0]["value"], "06/20/2026");
    assert_eq!(contact["list_memberships"], json!([LIST, MILESTONES]));
    let opted_out = json!({"email_address": {"address": "Ada@Example.org", "permission_to_send": "unsubscribed", "opt_out_date": "2026-05-01T12:00:00Z"}});
    server.vendor().edit(&made.external_id, &opted_out, noon());
    let listed = rig.list("list_contacts", &json!({"since": "2026-01-01T00:00:00Z"})).await;
    let spec = rig.connector.record(RecordKind::Client).expect("clients");
    assert_eq!(spec.item(&listed[0], &rig.settings).expect("an item").fields["consent_marketing"], false);
}

#[tokio::test]
async fn constant_contacts_pages_are_followed_to_their_end() {
    let (manual, clock) = chassis::testing::manual_clock();
    let server = Server::start_at(ConstantContact::new("t0ken"), clock).await;
    {
        let mut vendor = server.vendor();
        for number in 0..1_203 {
            let id = format!("{number:08}-0000-4000-8000-000000000000");
            let address = json!({"address": format!("p{number}@example.org"), "permission_to_send": "implicit"});
            let contact = json!({"contact_id": id, "email_address": address, "updated_at": noon().to_string()});
            vendor.contacts.insert(id, contact);
        }
    }
    // Its next pages are paths under the API's own.
    let rig = Rig::at("constant-contact", &format!("{}/v3", server.base())).token("t0ken").with("list_id", LIST);
    assert_eq!(rig.list("list_contacts", &Json::Null).await.len(), 1_203);
    manual.advance(std::time::Duration::from_secs(1));
    let cases = [
        (400, r#"[{"error_key":"contacts.api.validation.error","error_message":"x"}]"#, Some(Class::Permanent)),
        (401, r#"{"error_key":"unauthorized","error_message":"x"}"#, Some(Class::Unauthorized)),
        (403, r#"{"error_key":"forbidden","error_message":"x"}"#, Some(Class::Permanent)),
        (404, "[]", Some(Class::Gone)),
        (409, "[]", Some(Class::Conflict)),
        (415, "[]", Some(Class::Permanent)),
        (500, "", Some(Class::Retry)),
        (503, "", Some(Class::Retry)),
    ];
    classes(&rig, "upsert_contact", &cases);
}
