//! An integration that is behind: its supplier hears of it once, with an entry for the calendar, and that it is over.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use proto::notifier::v1::{ListNoticesRequest, MessageState, Notice, WatchInboxRequest};
use serde_json::{Value, json};

use crate::{
    smtp::Mood,
    world::{Client, World, content, in_each_world, tells},
};

fn behind(date: &str) -> Value {
    json!({
        "integration_id": "i1", "vendor": "Studio Manager", "supplier_id": "ph", "wedding_id": "w1",
        "summary": "The wedding moves, and starts at four.", "since": "2026-05-01T10:00:00Z",
        "fields": {
            "wedding_date": date, "ceremony_time": "16:00", "time_zone": "Europe/Berlin", "venue_name": "The Barn, York",
            "bride_name": "Mia", "groom_name": "Tom",
        },
        "changed": ["wedding_date", "ceremony_time"],
    })
}

async fn happens(world: &World, id: &str, name: &str, workflow: &str, channels: &[&str], seconds: i64, data: Value) {
    let mut event = content(id, name, data);
    event.metadata.as_mut().unwrap().supplier_id = "ph".to_owned();
    event.time = Some(prost_types::Timestamp { seconds, nanos: 0 });
    world.event(event, tells(workflow, channels, "")).await;
}

async fn notices(client: &Client, recipient: &str) -> Vec<Notice> {
    let request = ListNoticesRequest { recipient_id: recipient.to_owned(), ..Default::default() };
    client.inbox().list_notices(request).await.unwrap().into_inner().notices
}

/// The attached entry, unfolded.
fn entry(mail: &str) -> String {
    let (_, attached) = mail.split_once("text/calendar; method=PUBLISH; charset=utf-8").expect("an entry is attached");
    let (head, body) = attached.split_once("\r\n\r\n").unwrap();
    let body = body.split("\r\n--").next().unwrap();
    let plain = match head.to_lowercase().contains("base64") {
        true => String::from_utf8(BASE64_STANDARD.decode(body.replace("\r\n", "")).unwrap()).unwrap(),
        false => body.replace("=\r\n", "").replace("=3D", "="),
    };
    plain.replace("\r\n ", "")
}

fn line<'e>(entry: &'e str, name: &str) -> &'e str {
    entry.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {entry}"))
}

#[tokio::test]
async fn a_supplier_hears_that_a_system_is_behind_with_an_entry_that_a_later_one_replaces() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        client.supplier("ph", "photographer").await;
        client.supplier("other", "florist").await;
        for (id, date, seconds) in [("b1", "2026-06-20", 1_780_000_000), ("b2", "2026-06-27", 1_780_000_060)] {
            happens(&world, id, "integration.behind", "vendor_behind", &["email", "in_app"], seconds, behind(date))
                .await;
            client.until(id, "ph", "email", MessageState::Sent).await;
        }
        let kept = world.smtp.kept();
        assert_eq!(kept.len(), 2, "nobody else is told");
        assert!(kept[0].text.contains("Subject: Studio Manager is behind with the wedding of Mia & Tom"));
        let (first, second) = (entry(&kept[0].text), entry(&kept[1].text));
        assert_eq!(line(&first, "DTSTART:"), "20260620T140000Z");
        assert_eq!(line(&second, "DTSTART:"), "20260627T140000Z");
        assert_eq!(line(&first, "UID:"), line(&second, "UID:"));
        assert!(line(&first, "SEQUENCE:").parse::<u32>().unwrap() < line(&second, "SEQUENCE:").parse().unwrap());
        assert_eq!((line(&first, "SUMMARY:"), line(&first, "LOCATION:")), ("Wedding of Mia & Tom", "The Barn\\, York"));
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_caught_up_is_resolved_in_the_inbox_and_told_to_nobody() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        client.supplier("ph", "photographer").await;
        let tell = |id: &'static str, data: Value| {
            happens(&world, id, "integration.behind", "vendor_behind", &["in_app"], 1, data)
        };
        tell("b1", behind("2026-06-20")).await;
        let mut elsewhere = behind("2026-06-20");
        elsewhere["integration_id"] = "i2".into();
        tell("b2", elsewhere).await;
        let watch = WatchInboxRequest { recipient_id: "ph".to_owned() };
        let mut watching = client.inbox().watch_inbox(watch).await.unwrap().into_inner();
        for _ in 0..2 {
            watching.message().await.unwrap().unwrap();
        }
        let over = json!({"integration_id": "i1", "supplier_id": "ph", "wedding_id": "w1"});
        happens(&world, "c1", "integration.caught_up", "vendor_caught_up", &["in_app"], 2, over).await;
        let shown = watching.message().await.unwrap().unwrap();
        assert!(shown.notice.unwrap().resolved_at.is_some(), "whoever looks sees it");
        let notices = notices(&client, "ph").await;
        let mut resolved: Vec<_> = notices
            .iter()
            .map(|notice| (&*notice.event_uid, notice.resolved_at.is_some(), notice.read_at.is_some()))
            .collect();
        resolved.sort_unstable();
        assert_eq!(resolved, [("uid-of-b1", true, true), ("uid-of-b2", false, false)]);
        assert!(client.of_event("c1").await.is_empty() && world.smtp.kept().is_empty());
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_caught_up_is_not_mailed_once_the_mail_server_is_back() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        client.supplier("ph", "photographer").await;
        world.smtp.next([Mood::Recipient(450)]);
        happens(&world, "b1", "integration.behind", "vendor_behind", &["email"], 1, behind("2026-06-20")).await;
        while client.message("b1", "ph", "email").await.is_none_or(|mail| mail.attempts == 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let over = json!({"integration_id": "i1", "supplier_id": "ph", "wedding_id": "w1", "outcome": "given_up"});
        happens(&world, "c1", "integration.caught_up", "vendor_caught_up", &["in_app"], 2, over).await;
        let mail = client.until("b1", "ph", "email", MessageState::Cancelled).await;
        assert!(mail.reason.contains("given up"), "{}", mail.reason);
        // Its lane comes to it in its time.
        world.time.advance(Duration::from_secs(3_600));
        client.tell("k1", "ph", &["email"], "Gate B").await;
        client.until("k1", "ph", "email", MessageState::Sent).await;
        assert_eq!(world.smtp.kept().len(), 1);
        assert!(world.chassis.drain().await);
    })
    .await;
}
