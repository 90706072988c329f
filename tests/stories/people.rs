//! A wedding's date changes, and its ten vendors learn of it: over six channels, each once. They confirm by a button, a link,
//! a reply or a call, all of it through the gateway; who doesn't is told by SMS. And mail that was ended stays so.

use std::collections::BTreeMap;

use jiff::ToSpan as _;
use proto::notifier::v1::{
    AcknowledgeRequest, ExplainNotificationRequest, ListInformedRequest, ListNoticesRequest, MessageState, Preference,
    PreferenceRule, Recipient, RecipientKind, SendRequest, SetWeddingRecipientsRequest, UpdatePreferenceRequest,
    UpsertRecipientRequest, confirmation_service_client::ConfirmationServiceClient,
    inbox_service_client::InboxServiceClient, notification_service_client::NotificationServiceClient,
    preference_service_client::PreferenceServiceClient, recipient_service_client::RecipientServiceClient,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    mail::{Mail, MailServer},
    provider::{self, Providers, Report, Taken},
    story::{Service, Story, Tenant, now, updated},
    web,
};
use crate::harness::{Engine, PATIENCE, Wedsync, client};

const GATE: &str = "https://gate.example";
const FACT: &str = "wedding_date:w1";
/// Who is reached how.
const VENDORS: [(&str, &str, &str); 10] = [
    ("nia", "slack", "U0NIA"),
    ("mill", "email", "mill@example.com"),
    ("rosa", "email", "rosa@example.com"),
    ("brass", "sms", "+447700900104"),
    ("chef", "whatsapp", "+447700900105"),
    ("kit", "teams", "kit"),
    ("hugo", "in_app", ""),
    ("lux", "slack", "U0LUX"),
    ("cake", "whatsapp", "+447700900109"),
    ("cars", "sms", "+447700900110"),
];
const ROSAS_PHONE: &str = "+447700900103";

/// A system among providers, and one organization in it.
struct Scene {
    story: Story,
    mail: MailServer,
    providers: Providers,
    notifier: Service,
}

async fn on_each_engine(tell: impl AsyncFn(Scene)) {
    for engine in Engine::all() {
        println!("on {engine:?}");
        let providers = Providers::start().await.expect("a port");
        let mail = MailServer::start().await.expect("a port");
        for (id, _, address) in VENDORS.iter().filter(|(_, channel, _)| *channel == "email") {
            mail.know(address, id);
        }
        let port = mail.address.port().to_string();
        let mut settings = providers.settings();
        let more = [
            ("PUBLIC_URL", GATE),
            ("POSTAL_ADDRESS", "1 Garden Lane, York"),
            ("ESCALATION__OTHERWISE_MS", "10000"),
            ("SMTP__HOST", "127.0.0.1"),
            ("SMTP__PORT", &*port),
            ("SMTP__TLS", "none"),
            ("SMTP__FROM", "us@example.org"),
        ];
        settings.extend(more.map(|(name, value)| (format!("WEDSYNC_NOTIFIER__{name}"), value.to_owned())));
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let system = Wedsync::start_on(&engine, &settings).await;
        let acme = Tenant::of(&system, "Acme").await;
        let notifier = client(acme.addresses.notifier, &acme.key);
        Box::pin(tell(Scene { story: Story { system, acme }, mail, providers, notifier })).await;
    }
}

impl Scene {
    async fn vendor(&self, id: &str, channel: &str, address: &str, workflow: &str) {
        let at = |name: &str| if channel == name { address.to_owned() } else { String::new() };
        let recipient = Recipient {
            id: id.to_owned(),
            kind: RecipientKind::Supplier.into(),
            name: format!("Name of {id}"),
            email: at("email"),
            phone: if id == "rosa" { ROSAS_PHONE.to_owned() } else { at("sms") },
            whatsapp: at("whatsapp"),
            slack_user_id: at("slack"),
            teams_webhook: Some(workflow.to_owned()).filter(|_| channel == "teams"),
            channels: vec![channel.to_owned()],
            ..Recipient::default()
        };
        let request = UpsertRecipientRequest { recipient: Some(recipient) };
        RecipientServiceClient::new(self.notifier.clone()).upsert_recipient(request).await.expect("they are known");
    }

    async fn wish(&self, id: &str, preference: Preference) {
        let request = UpdatePreferenceRequest { recipient_id: id.to_owned(), preference: Some(preference) };
        PreferenceServiceClient::new(self.notifier.clone()).update_preference(request).await.expect("it is their wish");
    }

    async fn taken(&mut self) -> Taken {
        timeout(PATIENCE, self.providers.taken.recv()).await.expect("in time").expect("they serve")
    }

    async fn letter(&mut self) -> Mail {
        timeout(PATIENCE, self.mail.received.recv()).await.expect("in time").expect("it serves")
    }

    async fn report(&self, report: Report) -> u16 {
        let headers: Vec<_> = report.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // The content's type is the caller's to say; who reports is known by what is signed.
        let signed: Vec<_> = headers.into_iter().filter(|(name, _)| *name != "content-type").collect();
        web::post(self.story.acme.addresses.gateway, report.path, &signed, report.body.as_bytes()).await.status
    }

    /// Status and page of a link that is only followed.
    async fn follow(&self, link: &str) -> (u16, String) {
        let answer = web::get(self.story.acme.addresses.gateway, link, &[]).await;
        (answer.status, answer.body)
    }

    async fn press(&self, link: &str, body: &str) -> u16 {
        web::post(self.story.acme.addresses.gateway, link, &[], body.as_bytes()).await.status
    }

    async fn knows(&self) -> Vec<String> {
        let mut confirmations = ConfirmationServiceClient::new(self.notifier.clone());
        let informed = confirmations.list_informed(ListInformedRequest { fact: FACT.to_owned() }).await;
        let informed = informed.expect("it can be read").into_inner().informed;
        let mut knows: Vec<_> = informed
            .into_iter()
            .filter(|known| known.acknowledged_at.is_some())
            .map(|known| known.recipient_id)
            .collect();
        knows.dedup();
        knows
    }
}

/// The path of a link in a mail.
fn link(mail: &str, purpose: &str) -> String {
    let (_, rest) = mail.split_once(&format!("{GATE}/{purpose}/")).unwrap_or_else(|| panic!("no {purpose} in {mail}"));
    let token: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    format!("/{purpose}/{token}")
}

fn row(days: i64) -> Value {
    let day = now().to_zoned(jiff::tz::TimeZone::UTC).checked_add(days.days()).expect("a day").date();
    json!({ "id": "w1", "bride_name": "Mia", "groom_name": "Tom", "wedding_date": day.to_string(), "time_zone": "Europe/London" })
}

#[tokio::test]
async fn ten_vendors_learn_of_a_new_date_once_each_and_who_does_not_confirm_is_told_by_sms() {
    on_each_engine(async |mut scene| {
        let workflow = scene.providers.workflow("kit");
        for (id, channel, address) in VENDORS {
            scene.vendor(id, channel, address, &workflow).await;
        }
        let rule = PreferenceRule { also: vec!["teams".to_owned()], ..PreferenceRule::default() };
        scene.wish("kit", Preference { rules: vec![rule], ..Preference::default() }).await;
        let recipient_ids = VENDORS.iter().map(|(id, ..)| (*id).to_owned()).collect();
        let request = SetWeddingRecipientsRequest { wedding_id: "w1".to_owned(), recipient_ids };
        RecipientServiceClient::new(scene.notifier.clone()).set_wedding_recipients(request).await.expect("its people");
        scene.story.acme.publish(updated("moved", &row(90), &row(97))).await;

        // By providers seven, by mail two, in the inbox one.
        let mut taken = BTreeMap::new();
        for _ in 0..7 {
            let message = scene.taken().await;
            assert!(taken.insert((message.channel, message.to.clone()), message).is_none(), "told twice");
        }
        let mut letters = [scene.letter().await, scene.letter().await];
        letters.sort_by_key(|letter| letter.who);
        for (id, channel, address) in VENDORS {
            match channel {
                "in_app" => {
                    let request = ListNoticesRequest { recipient_id: id.to_owned(), ..ListNoticesRequest::default() };
                    let notices = InboxServiceClient::new(scene.notifier.clone()).list_notices(request).await;
                    assert_eq!(notices.expect("their inbox").into_inner().notices.len(), 1);
                }
                "email" => assert!(letters.iter().any(|letter| letter.who == id), "{id}"),
                _ => assert!(taken.contains_key(&(channel, address.to_owned())), "{id}: {taken:?}"),
            }
        }

        for member in ["U0NIA", "U0LUX"] {
            let button = taken[&("slack", member.to_owned())].button.clone();
            let mut forged = provider::button(member, &button, now().as_second());
            forged.body.push('x');
            assert_eq!(scene.report(forged).await, 401);
            assert_eq!(scene.report(provider::button(member, &button, now().as_second())).await, 200);
        }
        let link = link(&letters[0].text, "acknowledge");
        let (status, page) = scene.follow(&link).await;
        assert!(status == 200 && page.contains("<form method=\"post\">"), "{page}");
        assert_eq!(scene.knows().await, ["lux", "nia"], "a link that is followed confirms nothing");
        assert_eq!(scene.press(&link, "").await, 200);
        for number in ["+447700900104", "+447700900110"] {
            assert_eq!(scene.report(provider::text_reply(number, "OK")).await, 200);
        }
        for number in ["+447700900105", "+447700900109"] {
            assert_eq!(scene.report(provider::chat_reply(number, "Yes!")).await, 200);
        }
        let mut confirmations = ConfirmationServiceClient::new(scene.notifier.clone());
        let informed = confirmations.list_informed(ListInformedRequest { fact: FACT.to_owned() }).await;
        let notification_id = informed.expect("it can be read").into_inner().informed[0].notification_id.clone();
        for id in ["kit", "hugo"] {
            let (notification_id, recipient_id) = (notification_id.clone(), id.to_owned());
            let request = AcknowledgeRequest { notification_id, recipient_id, ..AcknowledgeRequest::default() };
            confirmations.acknowledge(request).await.expect("somebody says it for them");
        }
        assert_eq!(scene.knows().await, ["brass", "cake", "cars", "chef", "hugo", "kit", "lux", "mill", "nia"]);

        let last = scene.taken().await;
        assert_eq!((last.channel, last.to.as_str()), ("sms", ROSAS_PHONE), "and nobody else");
        assert_eq!(scene.report(provider::text_reply(ROSAS_PHONE, "ok")).await, 200);
        let request = ExplainNotificationRequest { id: notification_id, ..ExplainNotificationRequest::default() };
        let explained = confirmations.explain_notification(request).await.expect("it is explained").into_inner();
        let mut how = BTreeMap::<_, u32>::new();
        for confirmation in explained.confirmations {
            assert!(confirmation.acknowledged_at.is_some() && confirmation.next_at.is_none(), "{confirmation:?}");
            *how.entry(confirmation.how).or_default() += 1;
        }
        let expected = [("button", 2), ("call", 2), ("link", 1), ("reply", 5)];
        assert_eq!(how, expected.map(|(how, count)| (how.to_owned(), count)).into());
        assert!(scene.providers.taken.try_recv().is_err() && scene.mail.received.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn one_click_ends_commercial_mail_and_a_link_that_is_only_followed_does_not() {
    on_each_engine(async |mut scene| {
        scene.vendor("rosa", "email", "rosa@example.com", "").await;
        let agreed = Preference {
            consent_at: Some(prost_types::Timestamp { seconds: now().as_second(), nanos: 0 }),
            consent_source: "the sign-up form".to_owned(),
            ..Preference::default()
        };
        scene.wish("rosa", agreed).await;
        let offer = |key: &str| SendRequest {
            idempotency_key: key.to_owned(),
            workflow: "marketing".to_owned(),
            recipient_ids: vec!["rosa".to_owned()],
            channels: vec!["email".to_owned()],
            variables: json!({ "headline": "Summer fair" }).to_string().into_bytes().into(),
            ..SendRequest::default()
        };
        let mut notifications = NotificationServiceClient::new(scene.notifier.clone());
        notifications.send(offer("first")).await.expect("it is taken");
        let letter = scene.letter().await;
        let link = link(&letter.text, "unsubscribe");
        let head: String = letter.text.split("\n\n").next().unwrap_or_default().replace("\n ", " ");
        assert!(head.contains(&format!("List-Unsubscribe: <{GATE}{link}>")), "{head}");
        assert!(head.contains("List-Unsubscribe-Post: List-Unsubscribe=One-Click"), "{head}");

        assert_eq!(scene.follow(&link).await.0, 200);
        notifications.send(offer("second")).await.expect("it is taken");
        scene.letter().await;
        assert_eq!(scene.press(&link, "List-Unsubscribe=One-Click").await, 200);
        let sent = notifications.send(offer("third")).await.expect("it is taken").into_inner();
        let message = &sent.notification.expect("the answer holds it").messages[0];
        assert_eq!(message.state(), MessageState::Skipped);
        assert!(
            message.reason.contains("agreed") || message.reason.contains("turned marketing off"),
            "{}",
            message.reason
        );
        let forged = format!("/unsubscribe/{}", "A".repeat(75));
        assert_eq!(scene.press(&forged, "").await, 404);
        assert!(scene.mail.received.try_recv().is_err());
    })
    .await;
}
