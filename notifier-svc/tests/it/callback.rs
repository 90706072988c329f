//! What providers report has its effects: addresses that are not used any more, confirmations, states.

use std::time::Duration;

use chassis::testing::{engines, manual_clock};
use proto::{
    common::v1::Priority,
    notifier::v1::{
        CreateSuppressionRequest, ErasePersonRequest, ExplainNotificationRequest, ListInformedRequest, MessageState,
        Recipient, RecipientKind, SendRequest, Suppression, UpsertRecipientRequest,
    },
    router::v1::{Operation, Plan},
};
use serde_json::{Value, json};

use crate::{
    provider::{Mood, Providers},
    world::{Client, World, change, moved, poll, tells},
};

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World, Providers) -> F) {
    let (_folder, engines) = engines();
    for store in engines {
        let (time, clock) = manual_clock();
        let (world, providers) = World::start_with_providers(store, time, clock).await;
        test(world, providers).await;
    }
}

/// A supplier who is reached by everything that the providers bring.
async fn vendor(client: &Client, id: &str, phone: &str, slack: &str) {
    let recipient = Recipient {
        id: id.to_owned(),
        kind: RecipientKind::Supplier.into(),
        name: format!("Name of {id}"),
        email: format!("{id}@example.org"),
        phone: phone.to_owned(),
        slack_user_id: slack.to_owned(),
        ..Recipient::default()
    };
    client.recipients().upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await.unwrap();
}

async fn reaches(client: &Client, key: &str, recipient: &str, channel: &str) -> Result<String, String> {
    client.tell(key, recipient, &[channel], "Gate B").await;
    let message = client.settled(key, recipient, channel).await;
    if message.state() == MessageState::Sent { Ok(message.id) } else { Err(message.reason) }
}

#[tokio::test]
async fn a_bounce_and_a_complaint_end_mail_to_an_address_at_once() {
    in_each_world(async |world, _| {
        let client = world.client("wsk_a").await;
        for (id, kind, state, reason) in [
            ("gone", "email.bounced", MessageState::Bounced, "bounced"),
            ("angry", "email.complained", MessageState::Read, "complained"),
        ] {
            vendor(&client, id, "", "").await;
            let message = reaches(&client, &format!("{id}1"), id, "email").await.unwrap();
            world.resend_reports("late", "email.delivered", &message).await;
            world.resend_reports(&format!("msg_{id}"), kind, &message).await;
            assert_eq!(client.message(&format!("{id}1"), id, "email").await.unwrap().state(), state);
            let refused = reaches(&client, &format!("{id}2"), id, "email").await.unwrap_err();
            assert!(refused.contains(&format!("suppression list: {reason}")), "{refused}");
        }
        // Somebody else's organization knows nothing of it.
        let other = world.client("wsk_b").await;
        vendor(&other, "gone", "", "").await;
        reaches(&other, "k", "gone", "email").await.expect("its own list is empty");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_stop_ends_texts_of_everybody_who_wrote_there_until_a_start_and_counts_once() {
    in_each_world(async |world, providers| {
        let number = "+15005550009";
        let (a, b) = (world.client("wsk_a").await, world.client("wsk_b").await);
        for client in [&a, &b] {
            vendor(client, "s1", number, "").await;
            reaches(client, "k1", "s1", "sms").await.unwrap();
        }
        let stop = [("MessageSid", "SM10"), ("From", number), ("Body", "Stop")];
        world.twilio_reports("", &stop).await;
        for client in [&a, &b] {
            let refused = reaches(client, "k2", "s1", "sms").await.unwrap_err();
            assert!(refused.contains("suppression list: stopped"), "{refused}");
        }
        world.twilio_reports("", &[("MessageSid", "SM11"), ("From", number), ("Body", "START")]).await;
        world.twilio_reports("", &stop).await;
        reaches(&a, "k3", "s1", "sms").await.expect("what came again was taken in before");
        assert_eq!(providers.told(number).len(), 3);
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn an_answer_ends_no_stop_and_a_start_nothing_that_the_organization_listed() {
    in_each_world(async |world, _| {
        let (client, number) = (world.client("wsk_a").await, "+15005550009");
        vendor(&client, "s1", number, "").await;
        reaches(&client, "k1", "s1", "sms").await.unwrap();
        let write = async |sid: &str, text: &str| {
            world.twilio_reports("", &[("MessageSid", sid), ("From", number), ("Body", text)]).await;
        };
        write("SM10", "STOP").await;
        for (sid, text) in [("SM11", "ok"), ("SM12", "Okay!"), ("SM13", "confirmed")] {
            write(sid, text).await;
            let refused = reaches(&client, sid, "s1", "sms").await.unwrap_err();
            assert!(refused.contains("suppression list: stopped"), "{text}: {refused}");
        }
        write("SM14", "YES").await;
        reaches(&client, "k2", "s1", "sms").await.expect("to Twilio it begins again, where nothing was asked");

        let listed = Suppression { channel: "sms".to_owned(), address: number.to_owned(), ..Default::default() };
        let create = CreateSuppressionRequest { suppression: Some(listed) };
        client.suppressions().create_suppression(create).await.unwrap();
        write("SM15", "STOP").await;
        write("SM16", "START").await;
        let refused = reaches(&client, "k3", "s1", "sms").await.unwrap_err();
        assert!(refused.contains("suppression list: manual"), "{refused}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_number_that_a_row_writes_for_people_is_stopped_as_its_owner_writes_from_it() {
    in_each_world(async |world, providers| {
        let client = world.client("wsk_a").await;
        let row = json!({"id": "s1", "business_name": "Ada", "phone": "+49 (0)30 123-4567"});
        world.event(change("d1", "suppliers", Operation::Insert, Value::Null, row), Plan::default()).await;
        reaches(&client, "k1", "s1", "sms").await.unwrap();
        assert_eq!(providers.told("+49301234567").len(), 1);
        world.twilio_reports("", &[("MessageSid", "SM10"), ("From", "+49301234567"), ("Body", "STOP")]).await;
        let refused = reaches(&client, "k2", "s1", "sms").await.unwrap_err();
        assert!(refused.contains("suppression list: stopped"), "{refused}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_complaint_that_comes_after_its_sender_was_erased_still_holds() {
    in_each_world(async |world, _| {
        let client = world.client("wsk_a").await;
        vendor(&client, "somebody", "", "").await;
        let message = reaches(&client, "k1", "somebody", "email").await.unwrap();
        let erase = ErasePersonRequest { recipient_id: "somebody".to_owned() };
        client.persons().erase_person(erase).await.unwrap();
        world.resend_reports("late", "email.complained", &message).await;
        vendor(&client, "somebody", "", "").await;
        let refused = reaches(&client, "k2", "somebody", "email").await.unwrap_err();
        assert!(refused.contains("suppression list: complained"), "{refused}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_number_that_its_provider_calls_dead_is_not_used_again() {
    in_each_world(async |world, providers| {
        let client = world.client("wsk_a").await;
        for (id, number, code, reason) in
            [("none", "+15005550001", 21614, "bounced"), ("stops", "+15005550002", 21610, "stopped")]
        {
            vendor(&client, id, number, "").await;
            providers.twilio_is(Mood::Refuses(code));
            let refused = reaches(&client, &format!("{id}1"), id, "sms").await.unwrap_err();
            assert!(refused.contains(&code.to_string()), "{refused}");
            providers.twilio_is(Mood::Takes);
            let skipped = reaches(&client, &format!("{id}2"), id, "sms").await.unwrap_err();
            assert!(skipped.contains(&format!("suppression list: {reason}")), "{skipped}");
        }
        world.twilio_reports("", &[("MessageSid", "SM10"), ("From", "+15005550002"), ("Body", "START")]).await;
        reaches(&client, "stops3", "stops", "sms").await.expect("its owner takes it back");
        vendor(&client, "land", "+15005550003", "").await;
        let message = reaches(&client, "land1", "land", "sms").await.unwrap();
        let report =
            [("MessageSid", "SM1"), ("MessageStatus", "undelivered"), ("ErrorCode", "30006"), ("To", "+15005550003")];
        world.twilio_reports(&message, &report).await;
        let skipped = reaches(&client, "land2", "land", "sms").await.unwrap_err();
        assert!(skipped.contains("suppression list: bounced"), "{skipped}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_button_and_a_reply_confirm_and_end_what_is_pending() {
    in_each_world(async |world, providers| {
        let client = world.client("wsk_a").await;
        vendor(&client, "ph", "", "U1").await;
        vendor(&client, "fl", "+15005550010", "").await;
        let row = json!({"id": "w1", "vendor_ids": ["ph", "fl"]});
        let insert = Operation::Insert;
        world.event(change("d1", "wedding_details", insert, Value::Null, row), Plan::default()).await;
        world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["slack", "sms"], "")).await;
        let button = client.until("e1", "ph", "slack", MessageState::Sent).await;
        client.until("e1", "fl", "sms", MessageState::Sent).await;

        let from = ("From", "+15005550010");
        world.twilio_reports("", &[("MessageSid", "SM20"), from, ("Body", "ok, but who pays?")]).await;
        assert_eq!(confirmed(&client).await, [], "that is no confirmation");
        world.slack_button("U1", &button.id).await;
        world.slack_button("U1", &button.id).await;
        world.twilio_reports("", &[("MessageSid", "SM21"), from, ("Body", "YES")]).await;
        assert_eq!(
            confirmed(&client).await,
            [("fl".to_owned(), "reply".to_owned()), ("ph".to_owned(), "button".to_owned())]
        );
        assert_eq!(client.message("e1", "ph", "slack").await.unwrap().state(), MessageState::Read);

        // A day later nothing is left to be escalated.
        world.time.advance(Duration::from_secs(24 * 3_600));
        client.tell("later", "fl", &["in_app"], "Gate B").await;
        client.until("later", "fl", "in_app", MessageState::Sent).await;
        for id in ["ph", "fl"] {
            assert!(client.message("e1", id, "email").await.is_none_or(|mail| mail.state() == MessageState::Skipped));
        }
        assert_eq!((providers.told("U1").len(), providers.told("+15005550010").len()), (1, 1));
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_is_urgent_and_fails_later_goes_on_to_the_next_channel_once() {
    in_each_world(async |world, _| {
        let client = world.client("wsk_a").await;
        vendor(&client, "s1", "+15005550010", "U1").await;
        let urgent = SendRequest {
            idempotency_key: "k1".to_owned(),
            workflow: "notice_to_all".to_owned(),
            recipient_ids: vec!["s1".to_owned()],
            channels: vec!["email".to_owned()],
            variables: br#"{"headline":"The venue floods"}"#.to_vec().into(),
            priority: Priority::Critical.into(),
            override_reason: "the venue floods".to_owned(),
            ..SendRequest::default()
        };
        client.notifications().send(urgent).await.unwrap();
        let text = client.until("k1", "s1", "sms", MessageState::Sent).await;
        let mail = client.until("k1", "s1", "email", MessageState::Sent).await;
        assert!(client.message("k1", "s1", "slack").await.is_none());

        let failed = [("MessageSid", "SM1"), ("MessageStatus", "undelivered"), ("ErrorCode", "30003")];
        for _ in 0..2 {
            world.twilio_reports(&text.id, &failed).await;
        }
        let shown = client.until("k1", "s1", "sms", MessageState::Failed).await;
        assert!(shown.reason.contains("reported 30003"), "{}", shown.reason);
        let next = client.until("k1", "s1", "slack", MessageState::Sent).await;
        assert!(next.reason.contains("sms failed"), "{}", next.reason);
        // What is reported of it afterwards counts less, and what was delivered is left alone.
        world.twilio_reports(&text.id, &[("MessageSid", "SM1"), ("MessageStatus", "sent")]).await;
        world.resend_reports("msg_1", "email.delivered", &mail.id).await;
        client.until("k1", "s1", "email", MessageState::Delivered).await;
        assert_eq!(client.message("k1", "s1", "sms").await.unwrap().state(), MessageState::Failed);
        assert!(client.message("k1", "s1", "in_app").await.is_none(), "one channel for one failure");
        assert!(world.chassis.drain().await);
    })
    .await;
}

/// Lets time go by until a message stands like this; gives the minutes that it took.
async fn minutes_until(world: &World, client: &Client, event: &str, channel: &str, state: MessageState) -> u64 {
    for step in 0..400 {
        if client.message(event, "s1", channel).await.is_some_and(|message| message.state() == state) {
            return step / 4;
        }
        world.time.advance(Duration::from_secs(15));
        // Ten minutes take two seconds: longer than a slow machine needs to notice a minute.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{event} is not {state:?} by {channel}: {:?}", client.of_event(event).await);
}

#[tokio::test]
async fn what_a_provider_doesnt_take_goes_on_after_its_time_and_never_comes_late() {
    in_each_world(async |world, providers| {
        let client = world.client("wsk_a").await;
        vendor(&client, "s1", "+15005550010", "U1").await;
        providers.twilio_is(Mood::Away);
        client.tell("k1", "s1", &["sms"], "Gate B").await;
        let minutes = minutes_until(&world, &client, "k1", "slack", MessageState::Sent).await;
        assert!(minutes >= 9, "after {minutes} minutes");
        let next = client.message("k1", "s1", "slack").await.unwrap();
        assert!(next.reason.contains("sms can't be reached"), "{}", next.reason);
        let first = client.message("k1", "s1", "sms").await.unwrap();
        assert_eq!(first.state(), MessageState::Cancelled);
        assert!(first.reason.contains("another channel went on with it"), "{}", first.reason);

        // It is back: what was withdrawn isn't sent, what comes now is.
        providers.twilio_is(Mood::Takes);
        client.tell("k2", "s1", &["sms"], "Gate C").await;
        minutes_until(&world, &client, "k2", "sms", MessageState::Sent).await;
        minutes_until(&world, &client, "k1", "sms", MessageState::Cancelled).await;
        let texts = providers.told("+15005550010");
        assert!(texts.len() == 1 && texts[0].contains("Gate C"), "{texts:?}");
        assert!(client.message("k2", "s1", "slack").await.is_none());
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_may_have_arrived_never_goes_on() {
    in_each_world(async |world, providers| {
        let client = world.client("wsk_a").await;
        vendor(&client, "s1", "+15005550010", "U1").await;
        providers.twilio_is(Mood::Cuts);
        client.tell("k1", "s1", &["sms"], "Gate B").await;
        // Twilio doesn't say what it has: whether it has this is found out later.
        let tried = async || client.message("k1", "s1", "sms").await.unwrap().attempts > 0;
        poll("tried", tried).await;
        providers.twilio_is(Mood::Away);
        client.tell("k2", "s1", &["sms"], "Gate C").await;
        minutes_until(&world, &client, "k2", "slack", MessageState::Sent).await;
        let open = client.message("k1", "s1", "sms").await.unwrap();
        assert!(matches!(open.state(), MessageState::Waiting | MessageState::Sending), "{open:?}");
        assert!(open.reason.contains("it may have been taken"), "{}", open.reason);
        assert!(client.message("k1", "s1", "slack").await.is_none());
        assert_eq!((providers.told("U1").len(), providers.told("+15005550010").len()), (1, 1));
        assert!(world.chassis.drain().await);
    })
    .await;
}

/// Who confirmed the wedding's date, and how.
async fn confirmed(client: &Client) -> Vec<(String, String)> {
    let request = ListInformedRequest { fact: "wedding_date:w1".to_owned() };
    let informed = client.confirmations().list_informed(request).await.unwrap().into_inner().informed;
    let known = informed.into_iter().filter(|known| known.acknowledged_at.is_some()).map(|known| known.recipient_id);
    let mut known: Vec<_> = known.collect();
    known.dedup();
    let [notification] = &client.of_event("e1").await[..] else { panic!("one notification") };
    let explain = ExplainNotificationRequest { id: notification.id.clone(), ..Default::default() };
    let explained = client.confirmations().explain_notification(explain).await.unwrap().into_inner().confirmations;
    let how = |id: &String| explained.iter().find(|one| one.recipient_id == *id).map(|one| one.how.clone());
    known.into_iter().map(|id| (id.clone(), how(&id).unwrap_or_default())).collect()
}

#[tokio::test]
async fn who_wrote_by_whatsapp_is_answered_in_free_text_for_a_day() {
    in_each_world(async |world, providers| {
        let client = world.client("wsk_a").await;
        let recipient = Recipient {
            id: "chat".to_owned(),
            kind: RecipientKind::Supplier.into(),
            name: "Chat".to_owned(),
            whatsapp: "+15005550010".to_owned(),
            ..Recipient::default()
        };
        client.recipients().upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await.unwrap();
        reaches(&client, "k1", "chat", "whatsapp").await.unwrap();
        let wrote = [("MessageSid", "SM2"), ("From", "whatsapp:+15005550010"), ("Body", "See you at four")];
        world.twilio_reports("", &wrote).await;
        reaches(&client, "k2", "chat", "whatsapp").await.unwrap();
        world.time.advance(Duration::from_secs(86_400 + 1));
        reaches(&client, "k3", "chat", "whatsapp").await.unwrap();
        let named = client.message("k2", "chat", "whatsapp").await.unwrap();
        assert_eq!(named.provider_id, "SM1", "as Twilio calls it");
        let told = providers.told("whatsapp:+15005550010");
        let free: Vec<bool> = told.iter().map(|text| !text.starts_with("template ")).collect();
        assert_eq!(free, [false, true, false], "{told:?}");
        assert!(world.chassis.drain().await);
    })
    .await;
}
