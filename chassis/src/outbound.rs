//! The guarded way out: the one HTTP client for everything that is not ours.
//!
//! [`address`] holds the policy over URLs and addresses; this file resolves, pins, sends and bounds. Deciding what a
//! status means, retrying and recording belong to the callers.
//!
//! Guarantees: a connection is only ever opened to an address and port that were vetted for it, a name with one
//! forbidden address is refused whole, redirects and ambient proxies are not followed, one deadline spans resolution,
//! connection, headers and body, and no response takes more than a bounded amount of memory.

mod address;

use std::{
    collections::BTreeSet,
    error::Error as StdError,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};
use moka::sync::Cache;
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

pub use self::address::AddressError;
use self::address::{Network, Policy};
use crate::error::{Error, Result};

/// The longest that any exchange may take, whatever its caller asks for.
pub const LONGEST: Duration = Duration::from_secs(30);

const RESOLVE_WITHIN: Duration = Duration::from_secs(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 64 * 1024;
const MOST_KEPT_BYTES: usize = 4 * 1024 * 1024;
const KEEP_BYTES: usize = 16 * 1024;
const HEADER_COUNT: usize = 64;
const HEADER_LIST_BYTES: u32 = 16 * 1024;
const CLIENTS: u64 = 64;
const IDLE_PER_HOST: usize = 512;

/// The `[outbound]` section.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundSettings {
    /// Networks in CIDR notation that requests may go to although they are not public. Default: none.
    pub allow_networks: Vec<String>,
    /// Whether endpoints may use plain http. Default: no.
    pub allow_http: bool,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// How.
    pub method: Method,
    /// Where to: as a user wrote it, or as [`Outbound::vet`] gave it.
    pub url: String,
    /// Which headers, without those that belong to the connection.
    pub headers: HeaderMap,
    /// What; empty for none.
    pub body: Bytes,
    /// The deadline of the whole exchange; at most [`LONGEST`].
    pub timeout: Duration,
}

/// What came back; any status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status line's code.
    pub status: StatusCode,
    /// At most 64 headers.
    pub headers: HeaderMap,
    /// The first 16 KiB of the body, or as much as [`Outbound::fetch`] was told to keep.
    pub body: Bytes,
    /// Whether [`Answer::body`] is all of it: it was short enough, and it ended in time.
    pub complete: bool,
    /// From the start until the body's end, bound or deadline.
    pub duration: Duration,
}

impl Answer {
    /// How long the receiver asks to be left alone, by `Retry-After` in seconds or as a date; a past date is zero.
    #[must_use]
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        let until = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO))
    }
}

/// Which part of the way failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The deadline passed before the headers were complete: the request may have arrived.
    Timeout,
    /// Nobody accepts connections there, or not in time.
    Connect,
    /// The name has no address.
    Dns,
    /// No secure connection: certificate, version, protocol.
    Tls,
    /// The guard refused the URL or one of its addresses.
    Address,
    /// It answered something that is not HTTP, broke off, or the request can't be sent as it is.
    Protocol,
}

impl FailureClass {
    /// As logs, metrics and attempts name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Address => "address",
            Self::Protocol => "protocol",
        }
    }
}

/// No status came back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {reason}", class.as_str())]
pub struct Failure {
    /// Which part failed.
    pub class: FailureClass,
    /// For the owner of the endpoint; holds no header or body of the request.
    pub reason: String,
    /// From the start until it was known.
    pub duration: Duration,
}

/// How names become addresses.
type Lookup = dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;

/// The guarded client. Cheap to clone; connections are shared and reused per host.
#[derive(Clone)]
pub struct Outbound {
    guard: Arc<Guard>,
    /// One per port: a resolver is told a name alone, and the guard judges address and port together.
    clients: Cache<u16, Client>,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("policy", &self.guard.policy).finish_non_exhaustive()
    }
}

struct Guard {
    policy: Policy,
    own: RwLock<BTreeSet<SocketAddr>>,
    lookup: Box<Lookup>,
}

impl Outbound {
    /// Builds the client.
    ///
    /// # Errors
    /// `Error::Invalid` for a malformed network; `Error::Internal` if the machine's root certificates can't be read.
    pub fn new(settings: &OutboundSettings) -> Result<Self> {
        Self::with_lookup(settings, Box::new(|name| Box::pin(system_lookup(name))))
    }

    fn with_lookup(settings: &OutboundSettings, lookup: Box<Lookup>) -> Result<Self> {
        let parse = |text: &String| {
            let reason = || format!("{text:?} must be a network like 10.1.0.0/16");
            Network::parse(text).ok_or_else(|| Error::invalid("outbound.allow_networks", reason()))
        };
        let allow_networks = settings.allow_networks.iter().map(parse).collect::<Result<_>>()?;
        let policy = Policy { allow_networks, allow_http: settings.allow_http };
        let guard = Guard { policy, own: RwLock::default(), lookup };
        let outbound = Self { guard: Arc::new(guard), clients: Cache::new(CLIENTS) };
        // Another part of the process may have installed the same provider before; then there is nothing to do.
        drop(rustls::crypto::ring::default_provider().install_default());
        outbound.client(443).map_err(|error| Error::internal(anyhow::anyhow!("outbound TLS: {error:#}")))?;
        Ok(outbound)
    }

    /// Refuses `address` as a target from here on: it is our own listener. Called after binding, when it is known.
    pub fn refuse_own(&self, address: SocketAddr) {
        self.guard.own.write().unwrap_or_else(PoisonError::into_inner).insert(address);
    }

    /// Whether what is sent may be read on its way: plain http, and other protocols without TLS.
    #[must_use]
    pub fn allows_plain(&self) -> bool {
        self.guard.policy.allow_http
    }

    /// Judges a URL by its form and by an address in it, without resolving. What it gives is the one form to store.
    ///
    /// # Errors
    /// Why it is not a target.
    pub fn vet(&self, url: &str) -> Result<Url, AddressError> {
        self.guard.policy.vet(url, &self.guard.own())
    }

    /// Judges a URL with every address that its name has now; each request judges them again.
    ///
    /// # Errors
    /// Why it is not a target; `AddressError::Unresolved` if the name has no address or none was found in 3 s.
    pub async fn vet_resolved(&self, url: &str) -> Result<Url, AddressError> {
        let url = self.vet(url)?;
        if let Some(Host::Domain(name)) = url.host() {
            self.guard.resolve(name, port_of(&url)).await?;
        }
        Ok(url)
    }

    /// Every address of a host that another protocol than HTTP is spoken with, each of them vetted, so that the caller can
    /// connect to what was judged. The port isn't: those that are closed are closed to what a crafted HTTP request could do.
    ///
    /// # Errors
    /// Why it is not a target.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, AddressError> {
        let host = if host.contains(':') { format!("[{}]", host.trim_matches(['[', ']'])) } else { host.to_owned() };
        let url = self.vet(&format!("https://{host}/"))?;
        match url.host() {
            Some(Host::Ipv4(ip)) => Ok(vec![ip.into()]),
            Some(Host::Ipv6(ip)) => Ok(vec![ip.into()]),
            Some(Host::Domain(name)) => {
                let addresses = self.guard.resolve(name, port_of(&url)).await?;
                Ok(addresses.into_iter().map(|address| address.ip()).collect())
            }
            None => Err(AddressError::Url("has no host")),
        }
    }

    /// Sends one request and gives what came back. A status counts once its headers are complete, even if the body
    /// then stalls or breaks off.
    ///
    /// # Errors
    /// A [`Failure`] when there is no status.
    pub async fn send(&self, request: Request) -> Result<Answer, Failure> {
        self.fetch(request, KEEP_BYTES).await
    }

    /// As [`Outbound::send`], keeping up to `keep` bytes of the body, at most 4 MiB.
    ///
    /// # Errors
    /// Likewise.
    pub async fn fetch(&self, request: Request, keep: usize) -> Result<Answer, Failure> {
        let started = Instant::now();
        let deadline = started + request.timeout.min(LONGEST);
        let fail = |(class, reason)| Failure { class, reason, duration: started.elapsed() };
        let headers = timeout_at(deadline, self.exchange(request)).await;
        let mut response = headers.unwrap_or_else(|_| Err(timed_out())).map_err(fail)?;
        let (body, complete) = read_body(&mut response, keep.min(MOST_KEPT_BYTES), deadline).await;
        let headers = std::mem::take(response.headers_mut());
        Ok(Answer { status: response.status(), headers, body, complete, duration: started.elapsed() })
    }

    /// Until the headers are complete.
    async fn exchange(&self, request: Request) -> Result<reqwest::Response, (FailureClass, String)> {
        let Request { method, url, headers, body, .. } = request;
        let url = self.vet(&url).map_err(refused)?;
        if let Some(name) = headers.keys().find(|name| !may_set(name)) {
            return Err((
                FailureClass::Protocol,
                format!("the header {name} belongs to the connection and can't be set"),
            ));
        }
        let client = self.client(port_of(&url)).map_err(|error| classify(&error))?;
        let mut request = client.request(method, url).headers(headers);
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.send().await.map_err(|error| classify(&error))?;
        // The connection was pinned to a vetted address; this is the belt to those braces.
        let remote =
            response.remote_addr().ok_or_else(|| (FailureClass::Protocol, "the peer is unknown".to_owned()))?;
        self.guard.policy.vet_address(remote, &self.guard.own()).map_err(refused)?;
        Ok(response)
    }

    fn client(&self, port: u16) -> Result<Client, Arc<reqwest::Error>> {
        self.clients.try_get_with(port, || build(Pinned { guard: Arc::clone(&self.guard), port }))
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that builds a client")]
fn build(resolver: Pinned) -> reqwest::Result<Client> {
    Client::builder()
        .user_agent(concat!("WedSync/", env!("CARGO_PKG_VERSION")))
        .https_only(!resolver.guard.policy.allow_http)
        .dns_resolver(resolver)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .connect_timeout(CONNECT_WITHIN)
        .pool_idle_timeout(Duration::from_secs(20))
        // As many as one organization ever has under way: one that is closed for want of room is opened again at once.
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .tcp_nodelay(true)
        .http1_max_headers(HEADER_COUNT)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_initial_stream_window_size(64 * 1024)
        .build()
}

/// Gives a connection the vetted addresses of its name and no others.
struct Pinned {
    guard: Arc<Guard>,
    port: u16,
}

impl Resolve for Pinned {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, port) = (Arc::clone(&self.guard), self.port);
        Box::pin(async move {
            let addresses = guard.resolve(name.as_str(), port).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

impl Guard {
    fn own(&self) -> Vec<SocketAddr> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Every address of a name, all of them vetted for this port.
    async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, AddressError> {
        // A name of the internet is absolute, so that no search domain of ours is tried; one of an opened network needn't be.
        let absolute = self.policy.allow_networks.is_empty() && !name.ends_with('.');
        let asked = if absolute { format!("{name}.") } else { name.to_owned() };
        let unresolved = || AddressError::Unresolved(name.to_owned());
        let answer = tokio::time::timeout(RESOLVE_WITHIN, (self.lookup)(asked)).await.map_err(|_| unresolved())?;
        let addresses = answer.map_err(|_| unresolved())?;
        if addresses.is_empty() {
            return Err(unresolved());
        }
        let own = self.own();
        let vet = |ip| {
            let address = SocketAddr::new(ip, port);
            self.policy.vet_address(address, &own).map(|()| address)
        };
        addresses.into_iter().map(vet).collect()
    }
}

async fn system_lookup(name: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
}

fn port_of(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or(0)
}

/// The connection's own headers are set by the client alone (RFC 9110, section 7.6.1; RFC 9112, section 6).
#[must_use]
pub fn may_set(name: &HeaderName) -> bool {
    const CONNECTION: [HeaderName; 8] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    !CONNECTION.contains(name)
        && !matches!(name.as_str(), "keep-alive" | "proxy-connection" | "expect" | "accept-encoding")
}

/// Reads until the body ends, the bound is reached or the deadline passes; keeps the beginning.
async fn read_body(response: &mut reqwest::Response, keep: usize, deadline: Instant) -> (Bytes, bool) {
    let (mut kept, mut read) = (BytesMut::new(), 0);
    // A little more is read than is kept: a body that ends soon leaves its connection to the next request.
    while read < READ_BYTES.max(keep + 1) {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                let room = keep - kept.len();
                kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
                read += chunk.len();
            }
            Ok(Ok(None)) => return (kept.freeze(), read <= keep),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    (kept.freeze(), false)
}

fn timed_out() -> (FailureClass, String) {
    (FailureClass::Timeout, "no complete answer before the deadline".to_owned())
}

fn refused(error: AddressError) -> (FailureClass, String) {
    let class = if matches!(error, AddressError::Unresolved(_)) { FailureClass::Dns } else { FailureClass::Address };
    (class, error.to_string())
}

/// Finds the cause below the client's own layers. The client's text holds the URL and is not passed on.
fn classify(error: &reqwest::Error) -> (FailureClass, String) {
    let causes = || std::iter::successors(error.source(), |cause| (*cause).source());
    if let Some(refusal) = causes().find_map(|cause| cause.downcast_ref::<AddressError>()) {
        return refused(refusal.clone());
    }
    if let Some(tls) = causes().find_map(tls_cause) {
        return (FailureClass::Tls, tls.to_string());
    }
    // One that never came about is known not to have carried anything.
    if error.is_timeout() && !error.is_connect() {
        return timed_out();
    }
    let class = if error.is_connect() { FailureClass::Connect } else { FailureClass::Protocol };
    let root = causes().last().map_or_else(|| "the request can't be sent".to_owned(), ToString::to_string);
    (class, root)
}

/// rustls' errors come inside one or more I/O errors, whose `source` skips what they hold.
fn tls_cause<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let inner = || tls_cause(cause.downcast_ref::<io::Error>()?.get_ref()?);
    cause.downcast_ref().or_else(inner)
}

#[cfg(test)]
mod tests;
