//! The notifier: everything towards people. It takes events from the router, decides who is told, where and why, and
//! tells them on the channels that reach them.
//!
//! ```text
//! consume -> handle -> recipient (learn) -> tell: collapse, resolve, render, record -> outbox -> last look -> lanes -> channel
//!                                                 ^-- hold: due again <--/      \-> inbox -> WatchInbox
//! ```
//!
//! Guarantee: an event is acknowledged once what it comes to is recorded, a row per person and channel; nobody is told
//! twice of one event, however often it comes; whoever isn't told has a stated reason.

mod audit;
mod behind;
mod calendar;
mod callback;
mod category;
mod channel;
mod circumstance;
mod collapse;
mod config;
mod confirm;
mod digest;
mod effect;
mod escalate;
mod escalation;
mod event;
mod fact;
mod failover;
mod handle;
mod hold;
mod inbox;
mod informed;
mod kept;
mod last_look;
mod limit;
mod notification;
mod outbox;
mod person;
mod policy;
mod preference;
mod receipt;
mod recipient;
mod resolve;
mod retention;
mod room;
mod rpc;
mod settings;
mod suppression;
mod tell;
mod template;
mod token;
mod variable;
mod wedding;
mod when;
mod window;
mod workflow;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use chassis::{
    auth::RouterAuthenticator,
    consume,
    grpc::{MESSAGE_LIMIT, Peer, Server},
    lane::{self, Dispatcher, Slots},
    outbound::Outbound,
    purge,
    secret::DataKeys,
    service::Chassis,
    store::{self, Migrations, Store},
};
use jiff::SignedDuration;
use proto::notifier::v1::{
    audit_service_server::AuditServiceServer, callback_service_server::CallbackServiceServer,
    confirmation_service_server::ConfirmationServiceServer, inbox_service_server::InboxServiceServer,
    notification_service_server::NotificationServiceServer, person_service_server::PersonServiceServer,
    preference_service_server::PreferenceServiceServer, recipient_service_server::RecipientServiceServer,
    room_service_server::RoomServiceServer, settings_service_server::SettingsServiceServer,
    suppression_service_server::SuppressionServiceServer, template_service_server::TemplateServiceServer,
};
use tokio::sync::Notify;

pub use self::config::{Config, Escalation, Failover, Fcm, Resend, Slack, Smtp, Teams, Tls, Twilio, WebPush, Whatsapp};
use self::{
    channel::{Channels, Rooms},
    handle::Handler,
    inbox::Inbox,
    outbox::{Outbox, Post},
    preference::Preferences,
    receipt::Receipts,
    recipient::Directory,
    retention::Retention,
    rpc::{
        callbacks::Callbacks, confirmations::Confirmations, inbox::Inboxes, notifications::Notifications,
        persons::Persons, preferences::Wishes, recipients::Recipients, settings::OfOrganizations, suppressions::Lists,
        templates::Words,
    },
    suppression::Suppressions,
    tell::{Notifier, Turns},
    template::{Templates, Wordings},
    workflow::VendorInstructions,
};

/// The notifier's own tables.
pub static MIGRATIONS: Migrations =
    Migrations { sqlite: sqlx::migrate!("./migrations/sqlite"), postgres: sqlx::migrate!("./migrations/postgres") };

/// The consumer group that the router keeps for it.
const GROUP: &str = "notifier";

/// How many messages may be under way: what a crash interrupts stays unknown, so they are few. Lanes are one for each
/// organization and channel.
const SLOTS: Slots = Slots { lane: 8, organization: 32, all: 64 };

/// The running service.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
}

/// Starts the notifier; it runs until the chassis drains.
///
/// # Errors
/// Settings that can't hold, a port or a store that is in use.
pub async fn start(config: Config, chassis: &Chassis) -> Result<Service> {
    config.check()?;
    let server = Server::bind("notifier", config.listen, chassis).await?;
    let (tasks, clock) = (&chassis.tasks, &chassis.clock);

    // What it keeps.
    let store = Store::open(&config.store, &[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS]).await?;
    store.maintain(tasks);
    store.report(server.health(), clock, tasks);
    let keys = DataKeys::new(store.clone(), chassis.keyring()?, clock.clone());
    let directory = Directory::new(store.clone(), keys.clone(), clock.clone());
    let inbox = Inbox::new(store.clone(), keys.clone(), clock.clone());
    let preferences = Preferences::new(store.clone(), clock.clone());
    let suppressions = Suppressions::new(store.clone(), keys.clone(), clock.clone());

    let keep = SignedDuration::from_hours(24 * i64::from(config.keep_days));
    let retention = Retention { store: store.clone(), keep };
    tasks.spawn("notifier.retention", purge::run(retention, clock.clone(), tasks.stopping()));

    // The way out.
    let outbound = Outbound::new(&chassis.shared.outbound)?;
    outbound.refuse_own(server.address());
    let templates = Arc::new(Templates::load()?);
    let channels = Arc::new(Channels::new(&config, &outbound, clock, Some(directory.clone()))?);
    let later = Arc::new(Notify::new());
    let post = Arc::new(Post {
        store: store.clone(),
        keys: keys.clone(),
        clock: clock.clone(),
        channels: Arc::clone(&channels),
        later: Arc::clone(&later),
    });
    let dispatcher = Dispatcher::start(store.clone(), keys.clone(), post, SLOTS, clock.clone(), tasks).await?;
    let wake = Arc::new(Notify::new());
    let mut outbox = Outbox::new(store.clone(), keys.clone(), dispatcher, Arc::clone(&wake));
    outbox.reopen().await?;
    tasks.spawn("notifier.outbox", outbox.run(tasks.stopping()));

    if !config.slack.bot_token.is_empty() {
        let keeper = room::Keeper {
            store: store.clone(),
            clock: clock.clone(),
            directory: directory.clone(),
            rooms: Rooms::new(&config.slack, outbound.clone(), clock.clone()),
            public_name: config.public_name.clone(),
        };
        tasks.spawn("notifier.rooms", room::run(Arc::new(keeper), tasks.stopping()));
    }

    // The way in: events, reports, then calls.
    let receipts = Receipts::new(&config, store.clone(), keys.clone(), clock.clone(), Arc::clone(&later))?;
    let (instructions, public_name) = (VendorInstructions::load(), config.public_name);
    let settle = Duration::from_millis(config.settle_ms);
    let wordings = Wordings::new(store.clone(), clock.clone());
    let notifier = Arc::new(Notifier {
        store,
        keys,
        // What is due goes by the clock that it sleeps on.
        clock: clock.steady(),
        directory: directory.clone(),
        preferences: preferences.clone(),
        suppressions: suppressions.clone(),
        channels,
        templates,
        wordings,
        inbox: inbox.clone(),
        instructions,
        public_name,
        max_segments: config.twilio.max_segments as usize,
        settle,
        escalation: config.escalation,
        failover: config.failover,
        public_url: config.public_url,
        postal_address: config.postal_address,
        turns: Turns::default(),
        wake,
        later,
    });
    tasks.spawn("notifier.hold", hold::run(Arc::clone(&notifier), tasks.stopping()));
    tasks.spawn("notifier.failover", failover::run(Arc::clone(&notifier), tasks.stopping()));
    let router = Peer::new("notifier", &config.router, chassis)?;
    let handler = Handler(Arc::clone(&notifier));
    tasks.spawn("notifier.consume", consume::run(router.separate(), GROUP, handler, tasks.stopping()));
    let wishes = Wishes { preferences, directory: directory.clone(), notifier: Arc::clone(&notifier) };
    let inboxes = Inboxes { inbox, directory: directory.clone(), tasks: tasks.clone() };
    let running = server
        .authenticator(Arc::new(RouterAuthenticator::new(&router, clock.clone())))
        .access(rpc::ACCESS)
        .add(RecipientServiceServer::new(Recipients(directory)).max_decoding_message_size(MESSAGE_LIMIT))
        .add(
            ConfirmationServiceServer::new(Confirmations(Arc::clone(&notifier)))
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add(PersonServiceServer::new(Persons(Arc::clone(&notifier))).max_encoding_message_size(MESSAGE_LIMIT))
        .add(AuditServiceServer::new(rpc::audits::Audits(Arc::clone(&notifier))))
        .add(RoomServiceServer::new(rpc::rooms::Rooms(Arc::clone(&notifier))))
        .add(SettingsServiceServer::new(OfOrganizations(Arc::clone(&notifier))))
        .add(TemplateServiceServer::new(Words(Arc::clone(&notifier))).max_encoding_message_size(MESSAGE_LIMIT))
        .add(NotificationServiceServer::new(Notifications(notifier)).max_encoding_message_size(MESSAGE_LIMIT))
        .add(InboxServiceServer::new(inboxes))
        .add(PreferenceServiceServer::new(wishes))
        .add(SuppressionServiceServer::new(Lists(suppressions)))
        .add(CallbackServiceServer::new(Callbacks(receipts)).max_decoding_message_size(MESSAGE_LIMIT))
        .serve();
    Ok(Service { address: running.address })
}
