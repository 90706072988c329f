//! The people's half of a date change: ten vendors are told over six channels, each once; they confirm in every way that there
//! is, and one who doesn't is told on another channel.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use chassis::{
    clock::Clock,
    outbound::{Outbound, OutboundSettings, Request},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::SignedDuration;
use proto::{
    notifier::v1::{
        AcknowledgeRequest, ExplainNotificationRequest, ListInformedRequest, Preference, PreferenceRule, Recipient,
        RecipientKind, SetWeddingRecipientsRequest, UpdatePreferenceRequest, UpsertRecipientRequest,
        confirmation_service_client::ConfirmationServiceClient, preference_service_client::PreferenceServiceClient,
        recipient_service_client::RecipientServiceClient,
    },
    router::v1::event_service_client::EventServiceClient,
};
use serde_json::json;

use super::{
    AFTERMATH, PATIENCE,
    cast::watch_inbox,
    mail::MailServer,
    provider::{self, Providers, Report},
    publish,
    tally::{Tally, Via},
    vendors::CATERER,
};
use crate::{
    client::Authorized,
    table::{say, show},
};

const WEDDING: &str = "wedding-mia-tom";
/// How long a confirmation is waited for: a day in earnest.
pub(super) const WAIT: Duration = Duration::from_secs(4);
/// Where people are told that the gateway is.
pub(super) const PUBLIC_URL: &str = "https://rose-and-oak.example";

/// How somebody confirms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Button,
    Link,
    Reply,
    /// Somebody of the organization says it for them, having heard it on the telephone.
    Call,
    NotAtFirst,
}

struct Vendor {
    id: &'static str,
    name: &'static str,
    kind: &'static str,
    via: Via,
    address: &'static str,
    how: How,
}

const fn vendor(
    id: &'static str,
    name: &'static str,
    kind: &'static str,
    (via, address): (Via, &'static str),
    how: How,
) -> Vendor {
    Vendor { id, name, kind, via, address, how }
}

const FLORIST_PHONE: &str = "+447700900103";
static VENDORS: [Vendor; 10] = [
    vendor("nia", "Nia, photographer", "photographer", (Via::Slack, "U0NIA"), How::Button),
    vendor("mill", "The Mill, venue", "venue", (Via::Email, "mill@example.com"), How::Link),
    vendor("rosa", "Rosa, florist", "florist", (Via::Email, "rosa@example.com"), How::NotAtFirst),
    vendor("brass", "Brass & Co, band", "band", (Via::Sms, "+447700900104"), How::Reply),
    vendor("chef", "Chef Lu, caterer", "caterer", (Via::Whatsapp, "+447700900105"), How::Reply),
    vendor("deejay", "DJ Kit", "dj", (Via::Teams, "kit"), How::Call),
    vendor("hugo", "Hugo, hair", "hair", (Via::InApp, ""), How::Call),
    vendor("lux", "Lux, lights", "lighting", (Via::Slack, "U0LUX"), How::Button),
    vendor("cake", "Cake by Jo", "cake", (Via::Whatsapp, "+447700900109"), How::Reply),
    vendor("cars", "Old Cars", "transport", (Via::Sms, "+447700900110"), How::Reply),
];

/// The services, as the story needs them.
pub(super) struct Stage<'a> {
    pub(super) router: &'a Authorized,
    pub(super) notifier: &'a Authorized,
    pub(super) gateway: SocketAddr,
}

/// Notes what the providers take, by whom it is for.
pub(super) fn collect(mut providers: Providers, tally: &Tally) {
    let arrivals = tally.arrivals();
    #[expect(clippy::disallowed_methods, reason = "a reader of the demo, which no chassis drains")]
    tokio::spawn(async move {
        while let Some(taken) = providers.taken.recv().await {
            let via = match taken.channel {
                "slack" => Via::Slack,
                "sms" => Via::Sms,
                "whatsapp" => Via::Whatsapp,
                _ => Via::Teams,
            };
            let is_at = |vendor: &&Vendor| vendor.via == via && vendor.address == taken.to;
            let florist = || Some("Rosa, florist").filter(|_| taken.to == FLORIST_PHONE);
            let caterer = || Some(CATERER.0).filter(|_| taken.to == CATERER.1);
            let who = VENDORS.iter().find(is_at).map(|vendor| vendor.name).or_else(florist).or_else(caterer);
            arrivals.note_message(who.unwrap_or("somebody unknown"), via, short(&taken.text), taken.button);
        }
    });
}

fn short(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

/// Tells the story; true if everybody was told once, and knows.
pub(super) async fn date_moves(
    stage: &Stage<'_>,
    systems: &[&'static str],
    workflow: &str,
    tally: &mut Tally,
) -> Result<bool> {
    introduce(stage.notifier, workflow, tally).await?;
    say("\nAnother wedding, Mia and Tom's, has ten vendors, who are reached over six channels.");
    tally.begin("It moves by a week: each vendor is told once, and asked to confirm");
    for vendor in &VENDORS {
        tally.expect(&[vendor.name], vendor.via);
    }
    tally.expect(systems, Via::Webhook);
    let day = |days: i64| Clock::System.now() + SignedDuration::from_hours(24 * days);
    let row = |days: i64| {
        let date = day(days).strftime("%Y-%m-%d").to_string();
        json!({ "id": WEDDING, "bride_name": "Mia", "groom_name": "Tom", "wedding_date": date, "time_zone": "Europe/London" })
            .to_string()
            .into_bytes()
    };
    let mut events = EventServiceClient::new(stage.router.clone());
    publish(&mut events, "demo-date", row(90), row(97)).await?;
    let mut passed = tally.finish(PATIENCE, AFTERMATH).await;

    let notification = notification(stage).await?;
    let told: Vec<_> = VENDORS.iter().map(|vendor| (vendor, tally.body(vendor.name, vendor.via))).collect();
    tally.begin("Nine confirm: two by Slack's button, one by the link, four by a reply, two by call. Rosa is told again, by SMS");
    tally.expect(&["Rosa, florist"], Via::Sms);
    for (vendor, told) in told {
        confirm(stage, vendor, &notification, &told).await.with_context(|| format!("{} confirms", vendor.name))?;
    }
    passed &= tally.finish(PATIENCE, AFTERMATH).await;
    post(stage.gateway, provider::text_reply(FLORIST_PHONE, "OK")).await?;
    Ok(passed & everybody_knows(stage, &notification).await?)
}

async fn introduce(notifier: &Authorized, workflow: &str, tally: &Tally) -> Result<()> {
    let mut recipients = RecipientServiceClient::new(notifier.clone());
    for vendor in &VENDORS {
        let at = |via: Via| if vendor.via == via { vendor.address.to_owned() } else { String::new() };
        let mut recipient = Recipient {
            id: vendor.id.into(),
            kind: RecipientKind::Supplier.into(),
            name: vendor.name.into(),
            vendor_type: vendor.kind.into(),
            email: at(Via::Email),
            phone: at(Via::Sms),
            whatsapp: at(Via::Whatsapp),
            slack_user_id: at(Via::Slack),
            teams_webhook: Some(workflow.to_owned()).filter(|_| vendor.via == Via::Teams),
            channels: vec![name(vendor.via).into()],
            ..Default::default()
        };
        if vendor.how == How::NotAtFirst {
            recipient.phone = FLORIST_PHONE.into();
        }
        recipients.upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await?;
        if vendor.via == Via::InApp {
            watch_inbox(notifier, vendor.id, vendor.name, tally).await?;
        }
    }
    // The route doesn't offer Teams: who wants it says so.
    let rule = PreferenceRule { subject: "weddings".into(), also: vec!["teams".into()], ..Default::default() };
    let preference = Preference { rules: vec![rule], ..Default::default() };
    let request = UpdatePreferenceRequest { recipient_id: "deejay".into(), preference: Some(preference) };
    PreferenceServiceClient::new(notifier.clone()).update_preference(request).await?;
    let recipient_ids = VENDORS.iter().map(|vendor| vendor.id.to_owned()).collect();
    let request = SetWeddingRecipientsRequest { wedding_id: WEDDING.into(), recipient_ids };
    recipients.set_wedding_recipients(request).await?;
    Ok(())
}

fn name(via: Via) -> &'static str {
    match via {
        Via::Webhook => "webhook",
        Via::Email => "email",
        Via::InApp => "in_app",
        Via::Slack => "slack",
        Via::Sms => "sms",
        Via::Teams => "teams",
        Via::Whatsapp => "whatsapp",
        Via::System | Via::Database | Via::Live => "none of a person's",
    }
}

/// Whose mail addresses are whose.
pub(super) fn know(mail: &MailServer) {
    for vendor in VENDORS.iter().filter(|vendor| vendor.via == Via::Email) {
        mail.know(vendor.address, vendor.name);
    }
}

async fn confirm(stage: &Stage<'_>, vendor: &Vendor, notification: &str, told: &str) -> Result<()> {
    match vendor.how {
        How::Button => post(stage.gateway, provider::button(vendor.address, told, now())).await,
        How::Link => follow(stage.gateway, told).await,
        How::Reply if vendor.via == Via::Sms => post(stage.gateway, provider::text_reply(vendor.address, "OK")).await,
        How::Reply => post(stage.gateway, provider::chat_reply(vendor.address, "Yes!")).await,
        How::Call => {
            let request = AcknowledgeRequest {
                notification_id: notification.into(),
                recipient_id: vendor.id.into(),
                ..Default::default()
            };
            ConfirmationServiceClient::new(stage.notifier.clone()).acknowledge(request).await?;
            Ok(())
        }
        How::NotAtFirst => Ok(()),
    }
}

fn now() -> i64 {
    Clock::System.now().as_second()
}

/// Opens the link of a mail, and presses the button of its page.
async fn follow(gateway: SocketAddr, mail: &str) -> Result<()> {
    let (_, rest) = mail.split_once(&format!("{PUBLIC_URL}/acknowledge/")).context("a mail with a link")?;
    let token: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    let path = format!("/acknowledge/{token}");
    let page = ask(gateway, Method::GET, &path, HeaderMap::new(), String::new()).await?;
    ensure!(page.contains("<form method=\"post\">"), "the page has no button: {page}");
    ask(gateway, Method::POST, &path, HeaderMap::new(), String::new()).await.map(drop)
}

async fn post(gateway: SocketAddr, report: Report) -> Result<()> {
    let mut headers = HeaderMap::new();
    for (name, value) in report.headers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(&value)?);
    }
    ask(gateway, Method::POST, report.path, headers, report.body).await.map(drop)
}

pub(super) async fn ask(
    gateway: SocketAddr,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: String,
) -> Result<String> {
    let settings = OutboundSettings { allow_networks: vec!["127.0.0.0/8".into()], allow_http: true };
    let url = format!("http://{gateway}{path}");
    let request = Request { method, url, headers, body: body.into(), timeout: Duration::from_secs(10) };
    let answer = Outbound::new(&settings)?.fetch(request, 64 * 1024).await;
    let answer = answer.map_err(|failure| anyhow::anyhow!("ask the gateway: {failure:?}"))?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status.is_success(), "the gateway answered {} to {path}: {text}", answer.status);
    Ok(text)
}

/// The notification by which they were told.
async fn notification(stage: &Stage<'_>) -> Result<String> {
    let request = ListInformedRequest { fact: format!("wedding_date:{WEDDING}") };
    let told = ConfirmationServiceClient::new(stage.notifier.clone()).list_informed(request).await?.into_inner();
    told.informed.into_iter().next().map(|told| told.notification_id).context("nobody was told")
}

/// Shows who knows, and how we know that they do.
async fn everybody_knows(stage: &Stage<'_>, notification: &str) -> Result<bool> {
    let request = ExplainNotificationRequest { id: notification.into(), ..Default::default() };
    let mut client = ConfirmationServiceClient::new(stage.notifier.clone());
    let confirmations = client.explain_notification(request).await?.into_inner().confirmations;
    let how = |vendor: &Vendor| {
        let own = confirmations.iter().find(|confirmation| confirmation.recipient_id == vendor.id);
        own.filter(|own| own.acknowledged_at.is_some()).map_or("NOT CONFIRMED", |own| own.how.as_str()).to_owned()
    };
    say("\nWho knows of the new date");
    let rows: Vec<Vec<String>> = VENDORS.iter().map(|vendor| vec![vendor.name.to_owned(), how(vendor)]).collect();
    let all = rows.iter().all(|row| row[1] != "NOT CONFIRMED");
    show(&["who", "confirmed by"], rows);
    Ok(all)
}
