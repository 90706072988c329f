//! A notifier between a router, a mail server and a client, on a clock that the test moves.

use std::{net::SocketAddr, time::Duration};

use chassis::{
    clock::{Clock, ManualClock},
    config::StoreSettings,
    lane,
    service::Chassis,
    store::{self, Store},
    tasks::Tasks,
    testing::{engines, manual_clock},
    with,
};
use notifier_svc::{Config, Smtp as SmtpSettings, Tls};
use proto::{
    common::v1::Priority,
    notifier::v1::{
        self as wire, Message, MessageState, Notification, Recipient, RecipientKind,
        confirmation_service_client::ConfirmationServiceClient, inbox_service_client::InboxServiceClient,
        notification_service_client::NotificationServiceClient, person_service_client::PersonServiceClient,
        preference_service_client::PreferenceServiceClient, recipient_service_client::RecipientServiceClient,
        room_service_client::RoomServiceClient, settings_service_client::SettingsServiceClient,
        suppression_service_client::SuppressionServiceClient, template_service_client::TemplateServiceClient,
    },
    router::v1 as router,
};
use serde_json::{Value, json};
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{provider::Providers, router::Router, slack::Workspace, smtp::Smtp};

/// How long anything may take, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something is so.
pub(crate) async fn poll(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("not {what} within {} s", PATIENCE.as_secs()));
}

/// Shows an API key.
#[derive(Clone)]
pub(crate) struct Key(&'static str);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.0)).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}

/// A client with one organization's key.
#[derive(Clone)]
pub(crate) struct Client(InterceptedService<Channel, Key>);

impl Client {
    pub(crate) fn recipients(&self) -> RecipientServiceClient<InterceptedService<Channel, Key>> {
        RecipientServiceClient::new(self.0.clone())
    }

    pub(crate) fn notifications(&self) -> NotificationServiceClient<InterceptedService<Channel, Key>> {
        NotificationServiceClient::new(self.0.clone())
    }

    pub(crate) fn inbox(&self) -> InboxServiceClient<InterceptedService<Channel, Key>> {
        InboxServiceClient::new(self.0.clone())
    }

    pub(crate) fn preferences(&self) -> PreferenceServiceClient<InterceptedService<Channel, Key>> {
        PreferenceServiceClient::new(self.0.clone())
    }

    pub(crate) fn suppressions(&self) -> SuppressionServiceClient<InterceptedService<Channel, Key>> {
        SuppressionServiceClient::new(self.0.clone())
    }

    pub(crate) fn confirmations(&self) -> ConfirmationServiceClient<InterceptedService<Channel, Key>> {
        ConfirmationServiceClient::new(self.0.clone())
    }

    pub(crate) fn persons(&self) -> PersonServiceClient<InterceptedService<Channel, Key>> {
        PersonServiceClient::new(self.0.clone())
    }

    pub(crate) fn slack_rooms(&self) -> RoomServiceClient<InterceptedService<Channel, Key>> {
        RoomServiceClient::new(self.0.clone())
    }

    pub(crate) fn audits(&self) -> wire::audit_service_client::AuditServiceClient<InterceptedService<Channel, Key>> {
        wire::audit_service_client::AuditServiceClient::new(self.0.clone())
    }

    pub(crate) fn templates(&self) -> TemplateServiceClient<InterceptedService<Channel, Key>> {
        TemplateServiceClient::new(self.0.clone())
    }

    pub(crate) fn settings(&self) -> SettingsServiceClient<InterceptedService<Channel, Key>> {
        SettingsServiceClient::new(self.0.clone())
    }

    /// Replaces what somebody wishes.
    pub(crate) async fn wish(&self, recipient: &str, preference: wire::Preference) {
        let request =
            wire::UpdatePreferenceRequest { recipient_id: recipient.to_owned(), preference: Some(preference) };
        self.preferences().update_preference(request).await.unwrap();
    }

    /// Tells one person something on these channels.
    pub(crate) async fn tell(&self, key: &str, recipient: &str, channels: &[&str], headline: &str) {
        let request = wire::SendRequest {
            idempotency_key: key.to_owned(),
            workflow: "notice_to_all".to_owned(),
            recipient_ids: vec![recipient.to_owned()],
            channels: channels.iter().map(|name| (*name).to_owned()).collect(),
            variables: json!({ "headline": headline }).to_string().into_bytes().into(),
            ..Default::default()
        };
        self.notifications().send(request).await.unwrap();
    }

    /// Puts a supplier with an address into the directory.
    pub(crate) async fn supplier(&self, id: &str, vendor_type: &str) {
        let recipient = Recipient {
            id: id.to_owned(),
            kind: RecipientKind::Supplier.into(),
            name: format!("Name of {id}"),
            email: format!("{id}@example.org"),
            vendor_type: vendor_type.to_owned(),
            ..Recipient::default()
        };
        self.recipients().upsert_recipient(wire::UpsertRecipientRequest { recipient: Some(recipient) }).await.unwrap();
    }

    /// The notifications of one event.
    pub(crate) async fn of_event(&self, event: &str) -> Vec<Notification> {
        let request = wire::ListNotificationsRequest { event_id: event.to_owned(), ..Default::default() };
        self.notifications().list_notifications(request).await.unwrap().into_inner().notifications
    }

    /// The one message of an event to a person on a channel.
    pub(crate) async fn message(&self, event: &str, recipient: &str, channel: &str) -> Option<Message> {
        let messages = self.of_event(event).await.into_iter().flat_map(|notification| notification.messages);
        let mut found = messages.filter(|message| message.recipient_id == recipient && message.channel == channel);
        let message = found.next();
        assert!(found.next().is_none(), "two messages on one channel");
        message
    }

    /// Waits until a message neither waits nor is being sent.
    pub(crate) async fn settled(&self, event: &str, recipient: &str, channel: &str) -> Message {
        let mut last = None;
        poll(&format!("settled: {event}"), async || {
            let message = self.message(event, recipient, channel).await.expect("it was recorded");
            let is_settled = !matches!(message.state(), MessageState::Waiting | MessageState::Sending);
            last = Some(message);
            is_settled
        })
        .await;
        last.expect("it was looked at")
    }

    /// Waits until a message stands like this.
    pub(crate) async fn until(&self, event: &str, recipient: &str, channel: &str, state: MessageState) -> Message {
        let mut last = None;
        poll(&format!("{state:?}: {event}"), async || {
            last = self.message(event, recipient, channel).await;
            last.as_ref().is_some_and(|message| message.state() == state)
        })
        .await;
        last.expect("it is there")
    }
}

/// Everything around a notifier.
pub(crate) struct World {
    pub(crate) chassis: Chassis,
    pub(crate) time: ManualClock,
    pub(crate) router: Router,
    pub(crate) smtp: Smtp,
    pub(crate) config: Box<Config>,
    pub(crate) address: SocketAddr,
}

impl World {
    pub(crate) async fn start(store: StoreSettings) -> Self {
        let (time, clock) = manual_clock();
        Self::start_at(store, time, clock).await
    }

    /// On a clock that may have moved before.
    pub(crate) async fn start_at(store: StoreSettings, time: ManualClock, clock: Clock) -> Self {
        let shared = (*Chassis::for_test().shared).clone();
        Self::start_with(store, time, Chassis::new(shared, clock).unwrap(), |_| ()).await
    }

    /// With providers of everything but mail.
    pub(crate) async fn start_with_providers(
        store: StoreSettings,
        time: ManualClock,
        clock: Clock,
    ) -> (Self, Providers) {
        let chassis = beside_loopback(clock);
        let providers = Providers::start(&chassis.tasks).await;
        let world = Self::start_with(store, time, chassis, |config| providers.configure(config)).await;
        (world, providers)
    }

    /// With a Slack workspace that has these members.
    pub(crate) async fn start_with_slack(
        store: StoreSettings,
        time: ManualClock,
        clock: Clock,
        users: &[&str],
    ) -> (Self, Workspace) {
        let chassis = beside_loopback(clock);
        let now = chassis.clock.now().as_second();
        let workspace = Workspace::start(&Tasks::default(), users, now).await;
        let world = Self::start_with(store, time, chassis, |config| workspace.configure(config)).await;
        (world, workspace)
    }

    async fn start_with(
        store: StoreSettings,
        time: ManualClock,
        chassis: Chassis,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (router, at) = Router::start(&chassis).await;
        let (smtp, mail) = Smtp::start(&chassis.tasks).await;
        let mut config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            router: format!("http://{at}"),
            store,
            public_url: "https://gate.example/".to_owned(),
            postal_address: "1 Garden Lane, York".to_owned(),
            smtp: SmtpSettings {
                host: "127.0.0.1".to_owned(),
                port: mail.port(),
                tls: Tls::None,
                from: "notices@wedsync.example".to_owned(),
                ..SmtpSettings::default()
            },
            ..Config::default()
        };
        change(&mut config);
        let service = notifier_svc::start(config.clone(), &chassis).await.unwrap();
        Self { chassis, time, router, smtp, config: Box::new(config), address: service.address }
    }

    /// Stops it in order and starts it anew on the same store, with the same keys.
    pub(crate) async fn restart(self) -> Self {
        assert!(self.chassis.drain().await);
        self.again().await
    }

    /// The same, with statements in between.
    pub(crate) async fn restart_after(self, statements: &[&'static str]) -> Self {
        assert!(self.chassis.drain().await);
        let migrations = [&store::MIGRATIONS, &lane::MIGRATIONS, &notifier_svc::MIGRATIONS];
        let store = Store::open(&self.config.store, &migrations).await.unwrap();
        for statement in statements {
            with!(store.writer(), c => sqlx::query(*statement).execute(c).await.map(drop)).unwrap();
        }
        store.close().await;
        // It is this one's until it is gone.
        drop(store);
        self.again().await
    }

    async fn again(self) -> Self {
        let chassis = Chassis::new((*self.chassis.shared).clone(), Clock::Manual(self.time.clone())).unwrap();
        let config = self.config.clone();
        let again = |fresh: &mut Config| {
            (fresh.twilio, fresh.slack, fresh.resend) = (config.twilio, config.slack, config.resend)
        };
        Self::start_with(self.config.store.clone(), self.time.clone(), chassis, again).await
    }

    pub(crate) async fn client(&self, key: &'static str) -> Client {
        client_at(self.address, key).await
    }

    /// Hands an event of organization `a` to the notifier and waits for its acknowledgement.
    pub(crate) async fn event(&self, event: router::Event, plan: router::Plan) -> u64 {
        let sequence = self.router.append(event, plan);
        self.acknowledged(sequence).await;
        sequence
    }

    pub(crate) async fn acknowledged(&self, sequence: u64) {
        poll("acknowledged", async || self.router.is_acknowledged(sequence)).await;
    }
}

/// One that may send to providers on loopback.
fn beside_loopback(clock: Clock) -> Chassis {
    let mut shared = (*Chassis::for_test().shared).clone();
    shared.outbound.allow_networks = vec!["127.0.0.0/8".to_owned()];
    shared.outbound.allow_http = true;
    Chassis::new(shared, clock).unwrap()
}

/// A client of a notifier that listens there.
pub(crate) async fn client_at(address: SocketAddr, key: &'static str) -> Client {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Client(InterceptedService::new(channel, Key(key)))
}

/// Runs `test` in a fresh world on each engine.
pub(crate) async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let (_folder, engines) = engines();
    for store in engines {
        test(World::start(store).await).await;
    }
}

/// A change of a row of organization `a`.
pub(crate) fn change(id: &str, table: &str, operation: router::Operation, old: Value, new: Value) -> router::Event {
    let bytes = |record: Value| if record.is_null() { Vec::new() } else { record.to_string().into_bytes() };
    let wedding = [&new, &old]
        .iter()
        .find_map(|row| row[if table == "wedding_details" { "id" } else { "wedding_id" }].as_str())
        .unwrap_or_default()
        .to_owned();
    let change = router::Change {
        schema: "public".to_owned(),
        table: table.to_owned(),
        operation: operation.into(),
        old_record: bytes(old).into(),
        new_record: bytes(new).into(),
    };
    let name = operation.as_str_name().trim_start_matches("OPERATION_").to_lowercase();
    event(id, &format!("{table}.{name}"), &wedding, router::event::Payload::Change(change))
}

/// A domain event of organization `a`.
pub(crate) fn content(id: &str, name: &str, data: Value) -> router::Event {
    let wedding = data["wedding_id"].as_str().unwrap_or_default().to_owned();
    let content = router::Content { content_type: String::new(), data: data.to_string().into() };
    event(id, name, &wedding, router::event::Payload::Content(content))
}

fn event(id: &str, name: &str, wedding: &str, payload: router::event::Payload) -> router::Event {
    router::Event {
        id: id.to_owned(),
        uid: format!("uid-of-{id}"),
        organization_id: "a".to_owned(),
        r#type: name.to_owned(),
        payload: Some(payload),
        metadata: Some(router::Metadata { wedding_id: wedding.to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

/// A plan that tells people by this workflow.
pub(crate) fn tells(workflow: &str, channels: &[&str], collapse_key: &str) -> router::Plan {
    let channels = channels.iter().map(|name| (*name).to_owned()).collect();
    let notification = router::Notification { workflow: workflow.to_owned(), channels };
    let destination = router::Destination {
        kind: Some(router::destination::Kind::Notification(notification)),
        collapse_key: collapse_key.to_owned(),
        priority: Priority::High.into(),
    };
    let webhooks = router::Destination {
        kind: Some(router::destination::Kind::Webhooks(router::Webhooks {})),
        ..Default::default()
    };
    router::Plan { destinations: vec![webhooks, destination], priority: Priority::High.into(), ..Default::default() }
}

/// The directory's rows: a photographer `ph` and a florist `fl`, both of wedding `w1`.
pub(crate) async fn two_vendors(world: &World) {
    use router::Operation::Insert;
    let rows = [
        (
            "suppliers",
            json!({"id": "ph", "business_name": "Ada <b>Lens</b>", "email": "ada@lens.example", "vendor_type": "photographer"}),
        ),
        ("suppliers", json!({"id": "fl", "business_name": "Petal & Stem", "email": "eve@petal.example"})),
        ("wedding_vendors", json!({"wedding_id": "w1", "vendor_id": "v1", "supplier_id": "ph"})),
        (
            "wedding_vendors",
            json!({"wedding_id": "w1", "vendor_id": "v2", "supplier_id": "fl", "vendor_type": "florist"}),
        ),
        ("wedding_details", json!({"id": "w1", "vendor_ids": ["ph", "nobody"]})),
    ];
    for (number, (table, row)) in rows.into_iter().enumerate() {
        world.event(change(&format!("d{number}"), table, Insert, Value::Null, row), router::Plan::default()).await;
    }
}

/// The wedding `w1` moves.
pub(crate) fn moved(id: &str, old: &str, new: &str) -> router::Event {
    let row = |date: &str| json!({"id": "w1", "wedding_date": date, "bride_name": "Mia", "groom_name": "Tom"});
    change(id, "wedding_details", router::Operation::Update, row(old), row(new))
}
