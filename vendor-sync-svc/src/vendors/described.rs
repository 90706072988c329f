//! What connectors say to their vendors, held against the vendors' own descriptions, and WedMe's, which is ours (Prism).

use serde_json::{Value as Json, json};

use super::{
    contract::{about, linked},
    prism,
    rig::{Rig, client, wedding},
};
use crate::{connector::Position, testing::vendor::mailchimp::hash_of};

/// Sends one to Prism, which must find nothing wrong with the request.
async fn described(rig: &Rig, operation: &str, given: &Json) {
    let (url, answer) = rig.send(operation, given, &Position::default()).await;
    let violations = answer.headers.get("sl-violations").and_then(|it| it.to_str().ok()).unwrap_or("[]");
    let violations: Json = serde_json::from_str(violations).expect("JSON");
    let of_request = |it: &&Json| it["location"][0] == "request";
    let wrong: Vec<&Json> = violations.as_array().expect("a list").iter().filter(of_request).collect();
    assert!(wrong.is_empty() && answer.status.is_success(), "{operation} {url}: {} {wrong:#?}", answer.status);
}

#[tokio::test]
async fn what_goes_to_vsco_workspace_is_as_its_description_says() {
    let Some(base) = prism::serve("vsco-workspace/workspace-v2.openapi.json") else { return };
    let rig = Rig::at("vsco-workspace", &base);
    let id = "01h35ccwymj5ctckp8px1azhg6";
    for operation in ["find_job", "create_job", "list_jobs"] {
        described(&rig, operation, &wedding()).await;
    }
    for operation in ["read_job", "update_job"] {
        described(&rig, operation, &linked(wedding(), id)).await;
    }
    for operation in ["find_person", "create_person", "list_people"] {
        described(&rig, operation, &client()).await;
    }
    let mut changed = linked(client(), id);
    changed["current"] = json!({"kind": "person"});
    for operation in ["read_person", "update_person"] {
        described(&rig, operation, &changed).await;
    }
    described(&rig, "studio", &Json::Null).await;
}

#[tokio::test]
async fn what_goes_to_mailchimp_is_as_its_description_says() {
    let Some(base) = prism::serve("mailchimp/marketing-3.0-audience.openapi.json") else { return };
    let rig = Rig::at("mailchimp", &base).with("list_id", "a1b2c3");
    let given =
        json!({"milestone_name": "Menu chosen", "email": "ada@example.org", "url": "https://hooks.example/w?secret=s"});
    let mut about = linked(client(), &hash_of("ada@example.org"));
    about["given"] = given;
    about["since"] = "2026-05-01T12:00:00Z".into();
    about["given"]["segment"] = "wedding-2026-07".into();
    for operation in rig.connector.operations().filter(|name| !CAMPAIGNS.contains(name)) {
        described(&rig, operation, &about).await;
    }
}

/// What the description at hand leaves out, and ours has.
const CAMPAIGNS: [&str; 5] = ["create_campaign", "fill_campaign", "read_campaign", "read_template", "report_campaign"];

#[tokio::test]
async fn campaigns_at_mailchimp_are_as_described() {
    let Some(base) = prism::serve_file(std::path::Path::new("tests/described/mailchimp-campaigns.openapi.json")) else {
        return;
    };
    let rig = Rig::at("mailchimp", &base).with("list_id", "a1b2c3");
    let given = json!({
        "id": "42694e9e57", "name": "July couples", "subject": "Your day is near", "preview": "", "from_name": "Ada",
        "from_email": "ada@example.org", "html": "<p>x</p>", "template_id": "", "segment_id": "",
    });
    let mut to_some = given.clone();
    (to_some["segment_id"], to_some["template_id"], to_some["preview"]) = ("17".into(), "7".into(), "Soon".into());
    for given in [given, to_some.clone()] {
        described(&rig, "create_campaign", &json!({ "given": given })).await;
    }
    for operation in CAMPAIGNS {
        described(&rig, operation, &json!({ "given": to_some })).await;
    }
}

#[tokio::test]
async fn what_goes_to_the_three_lead_forms_is_as_described() {
    if let Some(base) = prism::serve("lead-capture/tave-new-lead.openapi.json") {
        let rig = Rig::at("tave-lead", &format!("{base}/webservice")).with("studio_id", "s1");
        described(&rig, "send_lead", &client()).await;
    }
    if let Some(base) = prism::serve("lead-capture/shootq.openapi.json") {
        let rig = Rig::at("shootq", &base).with("brand", "b1");
        described(&rig, "send_lead", &client()).await;
        described(&rig, "send_lead", &about(about(client(), "phone", Json::Null), "wedding_date", Json::Null)).await;
    }
    if let Some(base) = prism::serve("lead-capture/light-blue.openapi.json") {
        let rig = Rig::at("light-blue", &base);
        described(&rig, "hand_over_client", &client()).await;
        described(&rig, "hand_over_wedding", &wedding()).await;
    }
}

#[tokio::test]
async fn what_goes_to_wedme_is_as_our_published_contract_says() {
    let Some(base) = prism::serve_file(std::path::Path::new("../docs/wedme.openapi.json")) else { return };
    let rig = Rig::at("wedme", &base);
    let mut changed = client();
    changed["link"] = json!({"external_id": "c1", "external_version": "7"});
    for given in [client(), changed.clone()] {
        described(&rig, "send_client", &given).await;
    }
    described(&rig, "read_client", &changed).await;
    changed["since"] = "2026-05-01T12:00:00Z".into();
    described(&rig, "list_clients", &changed).await;
    described(&rig, "list_one", &Json::Null).await;
}
