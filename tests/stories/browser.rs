//! A real browser: two tabs with the public client of Supabase see one change, and so does the inspector, whose broadcast
//! they hear. Chromium comes from `tests/harness/tools.sh`; without it the test says that it is skipped.

use proto::router::v1::Operation;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    live::{organization, start, supplier},
    story::{Story, change, inserted, now},
    tab::Tab,
};
use crate::harness::{Wedsync, provided, root};

pub(super) async fn browser(system: &Wedsync) -> Option<Tab> {
    let (chromium, _) = (provided("WEDSYNC_TEST_CHROMIUM")?, provided("WEDSYNC_TEST_NODE_MODULES")?);
    let secret = std::fs::read_to_string(system.data().join("jwt-secret")).expect("development mode makes one");
    let mut command = Command::new("node");
    command.arg(root().join("tests/foreign/browser.mjs"));
    command.args([&format!("http://{}", system.addresses.gateway), secret.trim(), &chromium]);
    Some(Tab::driven(&mut command))
}

#[tokio::test]
async fn two_tabs_and_the_inspector_see_one_change_and_the_tabs_hear_the_inspector() {
    let story = start().await;
    let Some(mut browser) = browser(&story.system).await else { return };
    let (claims, id) = (supplier(&story.acme, "s1").await, organization(&story.acme).await);
    let changes = json!([{ "event": "*", "schema": "public", "table": "orders" }]);
    let tab = json!({ "claims": claims, "channels": [{ "channel": "supplier_s1", "changes": changes }] });
    browser.order("open", json!({ "all": [tab, tab] })).await;
    let joined = browser.order("inspect", json!({ "organization": id, "channel": "supplier:dashboard:s1" })).await;
    assert_eq!(joined["state"], "on supplier:dashboard:s1");

    let row = |date: &str| json!({ "id": 7, "supplier_id": "s1", "wedding_date": date });
    let receipt = story.acme.publish(change("orders", Operation::Update, row("2027-05-01"), row("2027-06-12"))).await;
    let stored = now();
    let heard = browser.order("hear", json!({ "what": "change", "text": "2027-06-12" })).await;
    for tab in heard["tabs"].as_array().expect("two tabs") {
        assert_eq!((&tab["told"]["new"], &tab["told"]["old"]), (&row("2027-06-12"), &row("2027-05-01")));
        let after = tab["at"].as_i64().expect("a time") - stored.as_millisecond();
        println!("a tab was told {after} ms after the publisher");
    }
    let entry = &heard["inspector"];
    let position = receipt.position.expect("it is stored").sequence.to_string();
    assert_eq!((&entry["kind"], &entry["position"]), (&json!("UPDATE"), &json!(position)), "{entry}");
    assert!(entry["time"].as_str().is_some_and(|time| time.len() == "15:00:00.000".len()), "{entry}");
    assert!(entry["detail"].as_str().is_some_and(|detail| detail.contains("2027-05-01")), "the old row too: {entry}");

    browser.order("send", json!({ "event": "greeting", "payload": { "text": "from the inspector" } })).await;
    let heard = browser.order("hear", json!({ "what": "broadcast", "text": "from the inspector" })).await;
    let all = heard["tabs"].as_array().expect("two tabs");
    assert!(all.len() == 2 && all.iter().all(|tab| tab["told"]["event"] == "greeting"), "{heard}");
    browser.order("reply", json!({ "event": "answer", "payload": { "text": "from a tab" } })).await;
    assert_eq!(shown(&mut browser, "from a tab").await["kind"], "broadcast");
    browser.order("present", json!({})).await;
}

/// What the inspector shows of a broadcast that only the tab that didn't send it, and the inspector, hear.
async fn shown(browser: &mut Tab, text: &str) -> Value {
    browser.order("shown", json!({ "text": text })).await["inspector"].take()
}

#[tokio::test]
async fn the_inspector_shows_foreign_text_as_text_and_can_be_paused_searched_and_cleared() {
    let story = start().await;
    let Some(mut browser) = browser(&story.system).await else { return };
    let id = organization(&story.acme).await;
    browser.order("inspect", json!({ "organization": id, "channel": "room" })).await;
    browser.order("press", json!({ "button": "Clear" })).await;
    let evil = "<img src=x onerror=\"window.injected=1\"><script>window.injected=1</script>";
    let publish = async |name: &str| {
        story.acme.publish(inserted("orders", json!({ "id": 1, "supplier_id": "s1", "name": name }))).await;
    };
    publish(evil).await;
    publish("plain").await;
    browser.order("count", json!({ "entries": 2 })).await;
    assert!(
        shown(&mut browser, "onerror").await["detail"].as_str().is_some_and(|detail| detail.contains("<img src=x"))
    );
    browser.order("search", json!({ "text": "PLAIN" })).await;
    browser.order("count", json!({ "entries": 1 })).await;
    browser.order("search", json!({ "text": "" })).await;
    browser.order("press", json!({ "button": "Pause" })).await;
    publish("while it stood still").await;
    browser.order("waiting", json!({ "button": "Go on (1)" })).await;
    browser.order("count", json!({ "entries": 2 })).await;
    browser.order("press", json!({ "button": "Go on" })).await;
    browser.order("count", json!({ "entries": 3 })).await;
    browser.order("press", json!({ "button": "Clear" })).await;
    let end = browser.order("count", json!({ "entries": 0 })).await;
    assert_eq!((&end["complaints"], &end["injected"]), (&json!([]), &Value::Null), "no script ran, no rule was broken");
}

#[tokio::test]
async fn the_inspector_comes_back_after_a_cut_by_itself_and_shows_what_happened_meanwhile_once() {
    let mut story = start().await;
    let Some(mut browser) = browser(&story.system).await else { return };
    let id = organization(&story.acme).await;
    browser.order("inspect", json!({ "organization": id, "channel": "room" })).await;
    let publish = async |story: &Story, name: &str| {
        story.acme.publish(inserted("orders", json!({ "id": 1, "supplier_id": "s1", "name": name }))).await;
    };
    publish(&story, "before the cut").await;
    shown(&mut browser, "before the cut").await;
    story.system.kill().await;
    browser.order("lost", json!({})).await;
    story.system.restart().await;
    // Most often before the page is back; it must be shown in either case.
    publish(&story, "while nobody was there").await;
    assert_eq!(shown(&mut browser, "while nobody was there").await["kind"], "INSERT");
    assert_eq!(browser.order("joined", json!({})).await["state"], "on room");
    publish(&story, "afterwards").await;
    shown(&mut browser, "afterwards").await;
    browser.order("search", json!({ "text": "before the cut" })).await;
    browser.order("count", json!({ "entries": 1 })).await;
    browser.order("search", json!({ "text": "while nobody was there" })).await;
    browser.order("count", json!({ "entries": 1 })).await;
}
