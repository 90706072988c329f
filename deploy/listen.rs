//! A receiver of webhooks: what the demo's vendors and `wedsync listen` are made of. It verifies with the public
//! `standardwebhooks` library, not with our own code.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result, bail};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use clap::Args;
use proto::vendorsync::v1::{
    CreateEndpointRequest, DeleteEndpointRequest, Endpoint, ListEndpointsRequest,
    endpoint_service_client::EndpointServiceClient,
};
use standardwebhooks::Webhook;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    client::{Authorized, System},
    pages::list,
    table::say,
};

/// A webhook as it came, and whether the library verified it.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) body: Bytes,
    pub(crate) verified: Result<(), String>,
}

/// A receiver on loopback.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    /// Told once the endpoint is made: until then nothing can verify.
    pub(crate) secret: watch::Sender<String>,
    /// While it is so, everything is answered 503, and nothing taken.
    pub(crate) away: watch::Sender<bool>,
    pub(crate) received: mpsc::Receiver<Received>,
}

#[derive(Clone)]
struct Inbox {
    secret: watch::Receiver<String>,
    away: watch::Receiver<bool>,
    received: mpsc::Sender<Received>,
}

/// Endpoints among which one of an earlier run is looked for.
const ENDPOINTS_MAX: u32 = 10_000;
/// What endpoints of ours are known by.
const DESCRIPTION: &str = "wedsync listen";
/// Webhooks that wait to be read; the sender is answered 503 at the bound, and tries again.
const WAITING_MAX: usize = 1_000;

impl Receiver {
    /// Listens on `address`; port 0 picks one.
    pub(crate) async fn start(address: SocketAddr) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let address = listener.local_addr()?;
        let (sender, received) = mpsc::channel(WAITING_MAX);
        let (secret, away) = (watch::Sender::new(String::new()), watch::Sender::new(false));
        let inbox = Inbox { secret: secret.subscribe(), away: away.subscribe(), received: sender };
        let app = Router::new().fallback(post(receive)).with_state(Arc::new(inbox));
        #[expect(clippy::disallowed_methods, reason = "a receiver of the command line, which no chassis drains")]
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, secret, away, received })
    }
}

async fn receive(State(inbox): State<Arc<Inbox>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if *inbox.away.borrow() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let verified = verify(&inbox.secret.borrow(), &headers, &body);
    let answer = if verified.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::UNAUTHORIZED };
    let received = Received { id: text("webhook-id"), event: text("x-wedsync-event"), body, verified };
    match inbox.received.try_send(received) {
        Ok(()) => answer,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let webhook = Webhook::new(secret).map_err(|error| error.to_string())?;
    webhook.verify(body, headers).map_err(|error| error.to_string())
}

/// Receive webhooks here, verify and print them.
#[derive(Args)]
pub(crate) struct Listen {
    #[command(flatten)]
    system: System,
    /// Where to listen; port 0 picks one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Exact, `table.*`, or `*`; may be given several times.
    #[arg(long = "type", default_value = "*")]
    types: Vec<String>,
}

impl Listen {
    /// Makes an endpoint for as long as it listens.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut receiver = Receiver::start(self.listen).await?;
        let mut endpoints = EndpointServiceClient::new(self.system.vendor_sync().await?);
        let url = format!("http://{}/", receiver.address);
        let ends = told_to_end()?;
        tokio::pin!(ends);
        remove_left(&mut endpoints, &url).await?;
        let endpoint = Endpoint { url, event_types: self.types, description: DESCRIPTION.into(), ..Default::default() };
        let made = endpoints.create_endpoint(CreateEndpointRequest { endpoint: Some(endpoint) }).await?.into_inner();
        let id = made.endpoint.unwrap_or_default().id;
        receiver.secret.send_replace(made.secret);
        say(&format!("listening on http://{} as endpoint {id}; Ctrl-C ends and removes it", receiver.address));
        loop {
            tokio::select! {
                Some(received) = receiver.received.recv() => say(&line(&received)),
                () = &mut ends => break,
            }
        }
        if let Err(status) = endpoints.delete_endpoint(DeleteEndpointRequest { id: id.clone() }).await {
            bail!(
                "endpoint {id} isn't removed, and what comes for it waits ({}): `wedsync listen --listen {}` removes it later",
                status.message(),
                receiver.address
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Resolves at Ctrl-C, at SIGTERM, and when the terminal is closed. What comes from here on is heard, polled or not.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Removes what an earlier one left that was killed: nobody but us listens on our address.
async fn remove_left(endpoints: &mut EndpointServiceClient<Authorized>, url: &str) -> Result<()> {
    let there = list(ENDPOINTS_MAX, async |page_size, page_token| {
        let request = ListEndpointsRequest { page_size, page_token, ..Default::default() };
        let page = endpoints.list_endpoints(request).await?.into_inner();
        Ok((page.endpoints, page.next_page_token))
    })
    .await?;
    for left in there.rows.into_iter().filter(|it| it.description == DESCRIPTION && it.url == url) {
        endpoints.delete_endpoint(DeleteEndpointRequest { id: left.id }).await?;
    }
    Ok(())
}

fn line(received: &Received) -> String {
    let verdict = match &received.verified {
        Ok(()) => "verified".to_owned(),
        Err(reason) => format!("NOT VERIFIED: {reason}"),
    };
    format!(
        "{}  {}  {verdict}\n  {}",
        received.event,
        received.id,
        String::from_utf8_lossy(&received.body).escape_debug().to_string().replace("\\\"", "\"")
    )
}
