//! Live subscriptions for browsers: Supabase Realtime's protocol over WebSockets, its broadcasts over HTTP, and
//! Server-Sent Events for everything else.
//!
//! A request shows a token (`token.rs`), whose claims say what it may see (`claims.rs`). One hub per organization
//! (`hub.rs`) is fed by one `Subscribe` of the router (`feed.rs`) and finds by an index (`index.rs`) whom an event
//! concerns; each connection has a bounded queue (`outbox.rs`), and where that was full, or a client resumes, it reads
//! on from the log (`catch_up.rs`). Presence is known within one gateway process.

mod catch_up;
mod claims;
mod config;
mod feed;
mod filter;
mod frame;
mod group;
mod handshake;
mod hub;
mod hubs;
mod index;
pub(crate) mod inspector;
mod join;
mod jwks;
mod member;
mod notice;
mod number;
mod outbox;
mod pace;
mod presence;
mod recent;
pub(crate) mod rest;
mod row;
mod serializer_v1;
mod serializer_v2;
mod session;
mod socket;
pub(crate) mod sse;
mod token;
mod topic;
pub(crate) mod upgrade;
mod whose;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use chassis::{descriptors, error::Error, grpc::Peer, id::OrganizationId, service::Chassis};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use proto::{
    common::v1::Position,
    router::v1::{self as router, BroadcastRequest, subscription_service_client::SubscriptionServiceClient},
};
use tokio::{sync::oneshot, time::timeout};
use tonic::Status;

pub use self::config::RealtimeConfig;
use self::{
    catch_up::Page,
    claims::Claims,
    frame::{Content, Push},
    hub::Hub,
    hubs::Hubs,
    jwks::Tokens,
    pace::{Pace, Rate},
    token::{TokenError, Verifier},
};

/// How long the router may take to take a broadcast.
const SENT_WITHIN: Duration = Duration::from_secs(2);
/// What a stop leaves to whatever else must end.
const DRAIN_SHARE: u32 = 2;

/// What all connections share.
pub(crate) struct Realtime {
    config: RealtimeConfig,
    tokens: Arc<Tokens>,
    hubs: Hubs,
    router: Peer,
    /// The same over another connection, for what is read on from its log.
    pages: Peer,
    chassis: Chassis,
    connections: AtomicU32,
    connected: AtomicU64,
    connects: Pace,
}

/// One connection that counts, as long as it is kept.
struct Connected {
    realtime: Arc<Realtime>,
    /// Of all that there were.
    number: u64,
}

/// Why one more connection isn't taken.
enum Full {
    /// There are as many as there may be.
    Connections,
    /// They come too fast.
    Pace,
}

impl Realtime {
    /// Reads the keys that tokens are believed by, and keeps them fresh.
    ///
    /// # Errors
    /// Settings that can't hold, or a file of keys that can't be read.
    pub(crate) async fn start(config: &RealtimeConfig, router: &Peer, chassis: &Chassis) -> Result<Arc<Self>> {
        config.check()?;
        if !config.has_keys() {
            tracing::warn!("[gateway.realtime] has no key: no browser's token is believed");
        }
        warn_of_descriptors(config.max_connections);
        let verifier = Verifier::new(&config.jwt_secret, &config.audience, &config.issuer);
        let verifier = verifier.context("[gateway.realtime]")?;
        let tokens = Tokens::start(verifier, config.keys(chassis)?, chassis.clock.clone(), &chassis.tasks).await?;
        Ok(Arc::new(Self {
            tokens,
            hubs: Hubs::new(config, router.clone(), chassis),
            router: router.separate(),
            pages: router.separate(),
            chassis: chassis.clone(),
            connections: AtomicU32::new(0),
            connected: AtomicU64::new(0),
            connects: Pace::default(),
            config: config.clone(),
        }))
    }

    /// What a token says of its holder.
    async fn authenticate(&self, token: &str) -> Result<Claims, TokenError> {
        self.tokens.verify(token).await
    }

    /// Counts one more connection.
    fn connect(self: &Arc<Self>) -> Result<Connected, Full> {
        let rate = Rate::new(self.config.connects_per_second, 1);
        if !self.connects.take(rate, self.chassis.clock.now()) {
            return Err(Full::Pace);
        }
        let free = |open: u32| (open < self.config.max_connections).then_some(open + 1);
        let taken = self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        taken.map_err(|_| Full::Connections)?;
        metrics::gauge!("realtime_connections").increment(1.0);
        Ok(Connected { realtime: self.clone(), number: self.connected.fetch_add(1, Ordering::Relaxed) })
    }

    /// Sends a broadcast to everybody who listens.
    async fn send(
        &self,
        organization: &OrganizationId,
        channel: &str,
        push: Push,
        sender: String,
        durable: bool,
    ) -> Result<(), Error> {
        let (content_type, data) = match push.content {
            Content::Json(data) => ("application/json", data),
            Content::Raw(data) => ("application/octet-stream", data),
        };
        let request = BroadcastRequest {
            channel: channel.to_owned(),
            event: push.event,
            content: Some(router::Content { content_type: content_type.to_owned(), data }),
            durable,
            sender_id: sender,
            organization_id: organization.to_string(),
        };
        let mut client = SubscriptionServiceClient::new(self.router.channel());
        let sent = timeout(SENT_WITHIN, client.broadcast(request)).await;
        sent.map_err(|_elapsed| Error::Unavailable("the router doesn't answer".to_owned()))??;
        metrics::counter!("realtime_broadcasts_total").increment(1);
        Ok(())
    }

    /// Reads on in an organization's log, to the answer's end, however rarely whoever asks looks after it: what isn't taken
    /// from the connection would hold up everybody's, and a turn that isn't given back its organization's.
    fn read(&self, hub: &Arc<Hub>, since: Position) -> BoxFuture<'static, Result<Page, Status>> {
        let (pages, hub) = (self.pages.channel(), hub.clone());
        let (mut sender, receiver) = oneshot::channel();
        let page = async move {
            let _turn = hub.turn().await;
            catch_up::page(pages, hub.organization.to_string(), since).await
        };
        self.chassis.tasks.spawn("realtime.page", async move {
            tokio::select! {
                page = page => drop(sender.send(page)),
                () = sender.closed() => {}
            }
        });
        async { receiver.await.unwrap_or_else(|_| Err(Status::internal("reading broke off"))) }.boxed()
    }

    /// When a connection is closed if this process stops now: each at its own time, since clients come back after
    /// exactly a second.
    fn leaves(&self, number: u64) -> Timestamp {
        let stop = self.chassis.shared.server.stop_deadline() / DRAIN_SHARE;
        let spread = Duration::from_millis(self.config.drain_ms).min(stop).as_millis().max(1);
        // Fibonacci hashing: neighbours end up far from each other.
        let place = (u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) * spread) >> 32;
        self.chassis.clock.now() + SignedDuration::from_millis(place as i64)
    }
}

/// What a process holds open besides browsers' connections.
const OTHER_DESCRIPTORS: u64 = 1_000;

fn warn_of_descriptors(max_connections: u32) {
    let needed = u64::from(max_connections) + OTHER_DESCRIPTORS;
    if let Some(limit) = descriptors::limit().filter(|limit| *limit < needed) {
        tracing::warn!(limit, needed, "[gateway.realtime] max_connections is more than this process may hold open");
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.realtime.connections.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("realtime_connections").decrement(1.0);
    }
}
