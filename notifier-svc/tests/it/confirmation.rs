//! Confirmations, what becomes of those that don't come, who knows what, and why.

use std::time::Duration;

use proto::{
    common::v1::Priority,
    notifier::v1::{
        AcknowledgeRequest, ExplainNotificationRequest, ListInformedRequest, MessageState, Preference, Recipient,
        RecipientKind, UpsertRecipientRequest,
    },
    router::v1::{Operation, Plan},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    smtp::Mail,
    world::{Client, World, change, content, in_each_world, moved, poll, tells, two_vendors},
};

fn text(mail: &Mail) -> String {
    mail.text.replace("=\r\n", "").replace("=3D", "=")
}

/// The token of the link in somebody's mail.
fn token(world: &World, to: &str) -> String {
    let mails = world.smtp.kept();
    let mail = text(mails.iter().rfind(|mail| mail.to == [to]).unwrap());
    let (_, rest) = mail.split_once("https://gate.example/acknowledge/").expect("a link");
    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect()
}

async fn planner(world: &World, client: &Client, id: &str) {
    let recipient = Recipient {
        id: id.to_owned(),
        kind: RecipientKind::Planner.into(),
        name: format!("Name of {id}"),
        email: format!("{id}@example.org"),
        ..Recipient::default()
    };
    client.recipients().upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await.unwrap();
    let row = json!({"wedding_id": "w1", "vendor_id": id, "supplier_id": id});
    let joined = change(&format!("joined-{id}"), "wedding_vendors", Operation::Insert, Value::Null, row);
    world.event(joined, Plan::default()).await;
}

async fn acknowledge(client: &Client, token: &str) -> Result<(String, String), Code> {
    let request = AcknowledgeRequest { token: token.to_owned(), ..Default::default() };
    let response = client.confirmations().acknowledge(request).await.map_err(|status| status.code())?.into_inner();
    Ok((response.notification_id, response.recipient_id))
}

#[tokio::test]
async fn a_link_confirms_once_ends_what_is_pending_and_shows_who_knows() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["email"], "")).await;
        client.until("e1", "ph", "email", MessageState::Sent).await;
        client.until("e1", "fl", "email", MessageState::Sent).await;
        let token = token(&world, "ada@lens.example");
        let foreign = world.client("wsk_b").await;
        assert_eq!(acknowledge(&foreign, &token).await, Err(Code::NotFound));
        let mut forged = token.clone().into_bytes();
        forged[30] = if forged[30] == b'A' { b'B' } else { b'A' };
        assert_eq!(acknowledge(&client, &String::from_utf8(forged).unwrap()).await, Err(Code::NotFound));
        let (notification, recipient) = acknowledge(&client, &token).await.unwrap();
        assert_eq!(recipient, "ph");
        acknowledge(&client, &token).await.expect("it may come again");

        let informed = client
            .confirmations()
            .list_informed(ListInformedRequest { fact: "wedding_date:w1".to_owned() })
            .await
            .unwrap()
            .into_inner()
            .informed;
        let shown: Vec<_> = informed
            .iter()
            .map(|known| (known.recipient_id.as_str(), known.value.as_str(), known.acknowledged_at.is_some()))
            .collect();
        assert_eq!(shown, [("fl", "2026-06-27", false), ("ph", "2026-06-27", true)]);

        // A day later the florist hears of it in the inbox; the photographer doesn't.
        world.time.advance(Duration::from_secs(24 * 3_600));
        client.until("e1", "fl", "in_app", MessageState::Sent).await;
        assert!(client.message("e1", "ph", "in_app").await.is_none());
        let explain = ExplainNotificationRequest { id: notification, recipient_id: "fl".to_owned() };
        let explained = client.confirmations().explain_notification(explain.clone()).await.unwrap().into_inner();
        let mail = explained.explanations.iter().find(|one| one.message.as_ref().unwrap().channel == "email").unwrap();
        let steps: Vec<_> = mail.steps.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(steps[0], "vendor of the wedding");
        assert!(steps.iter().any(|step| step.contains("of 10 notifications in the last hour")), "{steps:?}");
        assert_eq!((explained.confirmations.len(), explained.confirmations[0].escalations), (1, 1));
        assert_eq!(foreign.confirmations().explain_notification(explain).await.unwrap_err().code(), Code::NotFound);
        world.time.advance(Duration::from_secs(40 * 24 * 3_600));
        assert_eq!(acknowledge(&client, &token).await, Err(Code::NotFound), "the link has ended");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn an_unconfirmed_emergency_on_the_day_goes_to_contact_then_planner_each_minute_until_confirmed() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let day = json!({"id": "w1", "wedding_date": "2026-05-01", "time_zone": "Europe/London"});
        world.event(change("day", "wedding_details", Operation::Update, Value::Null, day), Plan::default()).await;
        planner(&world, &client, "pl").await;
        client.supplier("deputy", "").await;
        client.wish("fl", Preference { contact_ids: vec!["deputy".to_owned()], ..Default::default() }).await;
        let raised = content("e1", "emergency.raised", json!({"wedding_id": "w1", "what": "The marquee floods"}));
        world.event(raised, tells("emergency", &["email"], "")).await;
        for id in ["ph", "fl", "pl"] {
            client.until("e1", id, "email", MessageState::Sent).await;
            client.until("e1", id, "in_app", MessageState::Sent).await;
        }
        acknowledge(&client, &token(&world, "ada@lens.example")).await.unwrap();
        world.time.advance(Duration::from_secs(60));
        let told = client.until("e1", "deputy", "email", MessageState::Sent).await;
        assert_eq!(told.reason, "named by the sender");
        let of_event = client.of_event("e1").await;
        let stands_in = of_event.iter().find(|notification| notification.workflow == "unconfirmed").unwrap();
        assert_eq!(stands_in.priority(), Priority::Critical, "as urgent as what isn't confirmed");
        let mails = world.smtp.kept();
        let to_deputy = text(mails.iter().find(|mail| mail.to == ["deputy@example.org"]).unwrap());
        assert!(to_deputy.contains("Petal & Stem has not confirmed"), "{to_deputy}");
        // The deputy confirms for the florist: the planner is not bothered.
        let (_, recipient) = acknowledge(&client, &token(&world, "deputy@example.org")).await.unwrap();
        assert_eq!(recipient, "fl");
        world.time.advance(Duration::from_secs(600));
        let world = world.restart().await;
        let client = world.client("wsk_a").await;
        client.tell("later", "ph", &["email"], "Later").await;
        client.until("later", "ph", "email", MessageState::Sent).await;
        assert_eq!(client.of_event("e1").await.len(), 2, "the emergency, and what the deputy was told");

        let again = content("e2", "emergency.raised", json!({"wedding_id": "w1", "what": "No power"}));
        world.event(again, tells("emergency", &["email"], "")).await;
        client.until("e2", "fl", "email", MessageState::Sent).await;
        for (seconds, other) in [(60, "deputy"), (60, "pl")] {
            world.time.advance(Duration::from_secs(seconds));
            poll(other, async || {
                client.of_event("e2").await.iter().any(|notification| {
                    notification.workflow == "unconfirmed"
                        && notification.messages.iter().any(|message| message.recipient_id == other)
                })
            })
            .await;
        }
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn the_next_channel_waits_for_room_in_the_limit() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["email"], "")).await;
        client.until("e1", "ph", "email", MessageState::Sent).await;
        world.time.advance(Duration::from_secs(24 * 3_600 - 60));
        for key in 0..10 {
            client.tell(&format!("k{key}"), "ph", &["in_app"], "Gate B is closed").await;
        }
        world.time.advance(Duration::from_secs(60));
        client.until("e1", "fl", "in_app", MessageState::Sent).await;
        let id = client.of_event("e1").await[0].id.clone();
        let explain = ExplainNotificationRequest { id, recipient_id: "ph".to_owned() };
        let due = async || {
            let explained = client.confirmations().explain_notification(explain.clone()).await.unwrap().into_inner();
            explained.confirmations[0].next_at.map(|at| at.seconds)
        };
        poll("put off", async || due().await == Some(1_777_636_800 + 24 * 3_600 - 60 + 3_600)).await;
        assert!(client.message("e1", "ph", "in_app").await.is_none());
        world.time.advance(Duration::from_secs(3_540));
        client.until("e1", "ph", "in_app", MessageState::Sent).await;
        assert!(world.chassis.drain().await);
    })
    .await;
}
