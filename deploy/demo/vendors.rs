//! A third wedding, whose vendors' own systems are linked: what changes in one of them is in all others, in their own words,
//! and nothing comes back.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use chassis::{
    clock::Clock,
    signature::{WebhookSecret, sign},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proto::{
    notifier::v1::{
        Recipient, RecipientKind, SetWeddingRecipientsRequest, UpsertRecipientRequest,
        recipient_service_client::RecipientServiceClient,
    },
    router::v1::{
        SubscribeRequest, event::Payload, subscribe_response::Message,
        subscription_service_client::SubscriptionServiceClient,
    },
    vendorsync::v1::{
        ConnectIntegrationRequest, CreateIntegrationRequest, GetIntegrationHealthRequest, GivenCredential, Integration,
        IntegrationKind, given_credential::Credential,
        integration_health_service_client::IntegrationHealthServiceClient,
        integration_service_client::IntegrationServiceClient,
    },
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{
    AFTERMATH, PATIENCE,
    people::{Stage, ask},
    system::{Changed, Database, KEY, WedMe},
    tally::{Tally, Via},
};
use crate::{client::Authorized, listen::Receiver, table::say};

const WEDDING: &str = "wedding-ines-paul";
const COUPLE: &str = "couple-ines-paul";
/// The caterer, as Slack knows her.
pub(super) const CATERER: (&str, &str) = ("Basil, caterer", "U0BASIL");
const PHOTOGRAPHER: &str = "Nia, photographer";
const VENUE: &str = "The Mill, venue";
const OWN: &str = "WedSync's database";
const PAGE: &str = "Ines and Paul's page";
const DASHBOARD: &str = "Basil's dashboard";

/// An account at somebody's system.
struct Account {
    path: String,
    id: String,
    secret: String,
}

/// All that is linked.
struct House<'a> {
    stage: &'a Stage<'a>,
    database: Database,
    wedme: WedMe,
    /// Supabase tells of each change of a row.
    rows: Account,
    crm: Account,
    /// Whether Nia's CRM is down.
    crm_away: watch::Sender<bool>,
    venue: Account,
    couple: Account,
}

/// Tells the stories; true if everybody was told what they should be, once.
pub(super) async fn are_linked(stage: &Stage<'_>, vendor_sync: &Authorized, tally: &mut Tally) -> Result<bool> {
    say("\nA third wedding, Ines and Paul's: its vendors work in systems of their own, which are linked.");
    let house = House::build(stage, vendor_sync, tally).await?;
    house.learns(tally).await?;

    tally.begin("The couple moves the ceremony from 3 pm to 4 pm");
    tally.expect(&[PHOTOGRAPHER, VENUE], Via::System);
    house.row("wedding_details", &json!({ "ceremony_time": "16:00" })).await?;
    let mut passed = tally.finish(PATIENCE, AFTERMATH).await;

    tally.begin("The Mill's own system says that the gallery is closed");
    tally.expect(&[PAGE], Via::Live);
    tally.expect(&[CATERER.0], Via::Slack);
    let data = json!({ "booking_id": WEDDING, "capacity": 80, "party_size": 90, "message": "The gallery is closed" });
    house.says(&house.venue, "capacity.alert", data).await?;
    passed &= tally.finish(PATIENCE, AFTERMATH).await;

    tally.begin("Nia moves the date in her CRM: nobody retypes it");
    tally.expect(&[OWN], Via::Database);
    tally.expect(&[VENUE], Via::System);
    tally.expect(&[PAGE, DASHBOARD], Via::Live);
    house
        .says(&house.crm, "wedding.date_changed", json!({ "wedding_id": WEDDING, "wedding_date": "2027-07-03" }))
        .await?;
    passed &= tally.finish(PATIENCE, AFTERMATH).await;

    tally.begin("The couple tells WedMe that they eat no nuts");
    tally.expect(&[CATERER.0], Via::System);
    tally.expect(&[DASHBOARD], Via::Live);
    tally.expect(&[OWN], Via::Database);
    house.couple_eats("vegan, no nuts").await?;
    passed &= tally.finish(PATIENCE, AFTERMATH).await;

    tally.begin("Five guests more, while Nia's CRM is down: nobody else waits, and she has it when it is back");
    house.crm_away.send_replace(true);
    tally.expect(&[VENUE, CATERER.0], Via::System);
    house.row("wedding_details", &json!({ "guest_count": 95 })).await?;
    tally.wait(PATIENCE).await;
    say(&waits(vendor_sync, &house.crm.id).await?);
    tally.expect(&[PHOTOGRAPHER], Via::System);
    house.crm_away.send_replace(false);
    passed &= tally.finish(PATIENCE, AFTERMATH).await;
    Ok(passed)
}

/// What the health page says of an account, once something waits for it.
async fn waits(vendor_sync: &Authorized, id: &str) -> Result<String> {
    let mut healths = IntegrationHealthServiceClient::new(vendor_sync.clone());
    let failed = async {
        loop {
            let request = GetIntegrationHealthRequest { id: id.into() };
            let health = healths.get_integration_health(request).await?.into_inner().health.unwrap_or_default();
            if health.backlog > 0 && health.failed_attempts > 0 {
                return anyhow::Ok(health);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let health =
        tokio::time::timeout(PATIENCE, failed).await.context("the CRM's health shows nothing that waits")??;
    Ok(format!(
        "  its health meanwhile: {} waiting, {} of {} attempts failed",
        health.backlog, health.failed_attempts, health.attempts
    ))
}

fn wedding() -> Value {
    json!({
        "id": WEDDING, "couple_id": COUPLE, "bride_name": "Ines", "groom_name": "Paul", "wedding_date": "2027-06-26",
        "ceremony_time": "15:00", "time_zone": "Europe/London", "venue_name": "The Mill", "guest_count": 80,
        "vendor_ids": ["nia-studio", "the-mill", "basil"],
    })
}

fn couple() -> Value {
    json!({ "couple_id": COUPLE, "wedding_id": WEDDING, "first_name": "Ines", "dietary_requirements": "vegan" })
}

impl<'a> House<'a> {
    async fn build(stage: &'a Stage<'a>, vendor_sync: &Authorized, tally: &Tally) -> Result<Self> {
        let rows = [("wedding_details", ("id", wedding())), ("core_fields", ("couple_id", couple()))];
        let rows: HashMap<_, _> = rows.map(|(table, row)| (table.to_owned(), row)).into();
        let (database_at, database, changes) = Database::start(rows).await?;
        let (wedme_at, wedme) = WedMe::start(COUPLE).await?;
        let link = async |connector: &str, supplier: &str, at: SocketAddr| {
            link(vendor_sync, connector, supplier, format!("http://{at}")).await
        };
        let received = async |who: &'static str, connector: &str, supplier: &str| {
            let receiver = Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
            let account = link(connector, supplier, receiver.address).await?;
            receiver.secret.send_replace(account.secret.clone());
            let away = receiver.away.clone();
            collect(who, receiver, tally);
            anyhow::Ok((account, away))
        };
        let (crm, crm_away) = received(PHOTOGRAPHER, "crm", "nia-studio").await?;
        let (venue, _) = received(VENUE, "venue", "the-mill").await?;
        received(CATERER.0, "caterer", "basil").await?;
        link("wedsync-postgrest", "", database_at).await?;
        let couple = link("wedme", "", wedme_at).await?;
        let supabase = Integration { kind: IntegrationKind::Supabase.into(), ..Default::default() };
        let rows = create(vendor_sync, supabase).await?;
        written(&rows, stage.gateway, changes, tally);
        introduce_caterer(stage.notifier).await?;
        watch(stage.router, &format!("wedding:{WEDDING}"), PAGE, tally).await?;
        watch(stage.router, "supplier:dashboard:basil", DASHBOARD, tally).await?;
        Ok(Self { stage, database, wedme, rows, crm, crm_away, venue, couple })
    }

    /// What WedSync knows is where the others' knowledge begins.
    async fn learns(&self, tally: &mut Tally) -> Result<()> {
        tally.begin("They learn what WedSync knows of the wedding and its couple");
        tally.expect(&[PHOTOGRAPHER, VENUE, CATERER.0], Via::System);
        self.row("wedding_details", &json!({ "guest_count": 90 })).await?;
        tally.wait(PATIENCE).await;
        tally.forget();
        tally.expect(&[PHOTOGRAPHER, CATERER.0], Via::System);
        self.row("core_fields", &json!({ "last_name": "Field" })).await?;
        tally.wait(PATIENCE).await;
        Ok(())
    }

    /// The application changes a row, of which its database tells.
    async fn row(&self, table: &str, columns: &Value) -> Result<()> {
        let changed = self.database.set(table, columns).context("a row of the demo")?;
        tell_row(&self.rows, self.stage.gateway, &changed).await
    }

    /// Somebody's system posts a signed webhook.
    async fn says(&self, account: &Account, type_: &str, data: Value) -> Result<()> {
        let body = json!({ "type": type_, "timestamp": Clock::System.now().to_string(), "data": data });
        post_signed(self.stage.gateway, account, &type_.replace('.', "-"), body.to_string()).await
    }

    /// The couple changes its profile; WedMe says that it is another, not how.
    async fn couple_eats(&self, what: &str) -> Result<()> {
        let now = Clock::System.now().to_string();
        let version = self.wedme.set(&Map::from_iter([("dietary_requirements".to_owned(), json!(what))]), &now);
        let body = json!({ "type": "preference.updated", "time": now, "client_id": COUPLE, "version": version });
        post_signed(self.stage.gateway, &self.couple, "wedme-1", body.to_string()).await
    }
}

async fn link(vendor_sync: &Authorized, connector: &str, supplier: &str, url: String) -> Result<Account> {
    let integration = Integration {
        kind: IntegrationKind::Connector.into(),
        connector: connector.into(),
        supplier_id: supplier.into(),
        parameters: HashMap::from([("url".into(), url)]),
        ..Default::default()
    };
    let account = create(vendor_sync, integration).await?;
    let credential = Some(GivenCredential { credential: Some(Credential::ApiKey(KEY.into())) });
    let request = ConnectIntegrationRequest { id: account.id.clone(), credential };
    let connected = IntegrationServiceClient::new(vendor_sync.clone()).connect_integration(request).await;
    connected.with_context(|| format!("connect {connector}"))?;
    Ok(account)
}

async fn create(vendor_sync: &Authorized, integration: Integration) -> Result<Account> {
    let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
    let made = IntegrationServiceClient::new(vendor_sync.clone()).create_integration(request).await?.into_inner();
    let integration = made.integration.context("an integration")?;
    Ok(Account { path: integration.path, id: integration.id, secret: made.secret })
}

/// Notes what comes to somebody's system.
fn collect(who: &'static str, mut receiver: Receiver, tally: &Tally) {
    let arrivals = tally.arrivals();
    #[expect(clippy::disallowed_methods, reason = "a reader of the demo, which no chassis drains")]
    tokio::spawn(async move {
        while let Some(received) = receiver.received.recv().await {
            let body: Value = serde_json::from_slice(&received.body).unwrap_or_default();
            arrivals.note(who, Via::System, short(&body), received.verified);
        }
    });
}

/// What a body says that the stories are about.
fn short(body: &Value) -> String {
    let members = [
        "/wedding_date",
        "/event_date",
        "/ceremony_time",
        "/ceremony_start",
        "/party_size",
        "/client_id",
        "/data/guest_count",
        "/data/dietary_requirements",
    ];
    let said = members.iter().filter_map(|member| {
        let name = member.rsplit('/').next().unwrap_or_default();
        let value = body.pointer(member).filter(|value| !value.is_null())?;
        Some(format!("{name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
    });
    said.collect::<Vec<_>>().join(", ")
}

/// Notes what linked systems have written to the rows, of which the database tells as of any other change.
fn written(rows: &Account, gateway: SocketAddr, mut changes: tokio::sync::mpsc::Receiver<Changed>, tally: &Tally) {
    let (arrivals, rows) =
        (tally.arrivals(), Account { path: rows.path.clone(), id: rows.id.clone(), secret: rows.secret.clone() });
    #[expect(clippy::disallowed_methods, reason = "as above")]
    tokio::spawn(async move {
        while let Some(changed) = changes.recv().await {
            let columns = changed.new.as_object().into_iter().flatten();
            let new: Vec<_> = columns.filter(|(name, value)| changed.old[*name] != **value).collect();
            let said: Vec<_> = new.iter().map(|(name, value)| format!("{name} {value}")).collect();
            let told = tell_row(&rows, gateway, &changed).await.map_err(|error| error.to_string());
            arrivals.note(OWN, Via::Database, said.join(", "), told);
        }
    });
}

/// A Supabase Database Webhook.
async fn tell_row(rows: &Account, gateway: SocketAddr, changed: &Changed) -> Result<()> {
    let body = json!({
        "type": "UPDATE", "table": changed.table, "schema": "public", "record": changed.new, "old_record": changed.old,
    });
    let headers = [("x-wedsync-integration", rows.id.clone()), ("x-wedsync-secret", rows.secret.clone())];
    post(gateway, &rows.path, &headers, body.to_string()).await
}

async fn post_signed(gateway: SocketAddr, account: &Account, id: &str, body: String) -> Result<()> {
    let secret = WebhookSecret::parse(&account.secret).map_err(|error| anyhow::anyhow!("{error}"))?;
    let at = Clock::System.now().as_second();
    let signature = sign(id, at, body.as_bytes(), &[secret]);
    let headers =
        [("webhook-id", id.to_owned()), ("webhook-timestamp", at.to_string()), ("webhook-signature", signature)];
    post(gateway, &account.path, &headers, body).await
}

async fn post(gateway: SocketAddr, path: &str, headers: &[(&'static str, String)], body: String) -> Result<()> {
    let mut all = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    for (name, value) in headers {
        all.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
    }
    ask(gateway, Method::POST, path, all, body).await.map(drop)
}

async fn introduce_caterer(notifier: &Authorized) -> Result<()> {
    let recipient = Recipient {
        id: "basil".into(),
        kind: RecipientKind::Supplier.into(),
        name: CATERER.0.into(),
        vendor_type: "caterer".into(),
        slack_user_id: CATERER.1.into(),
        channels: vec!["slack".into()],
        ..Default::default()
    };
    let mut recipients = RecipientServiceClient::new(notifier.clone());
    recipients.upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await?;
    let request = SetWeddingRecipientsRequest { wedding_id: WEDDING.into(), recipient_ids: vec!["basil".into()] };
    recipients.set_wedding_recipients(request).await?;
    Ok(())
}

/// Notes the domain events that come on a channel.
async fn watch(router: &Authorized, channel: &str, who: &'static str, tally: &Tally) -> Result<()> {
    let request = SubscribeRequest { channels: vec![channel.into()], ..Default::default() };
    let mut stream = SubscriptionServiceClient::new(router.clone()).subscribe(request).await?.into_inner();
    let arrivals = tally.arrivals();
    #[expect(clippy::disallowed_methods, reason = "as above")]
    tokio::spawn(async move {
        while let Ok(Some(told)) = stream.message().await {
            let Some(Message::Event(event)) = told.message else { continue };
            if matches!(event.payload, Some(Payload::Content(_))) {
                arrivals.note(who, Via::Live, event.r#type, Ok(()));
            }
        }
    });
    Ok(())
}
