//! The calling side: one transport for each peer, which shows who calls and which trace it belongs to.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{ClientTlsConfig, Endpoint},
};

use super::{
    connection::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
    local::Transport,
};
use crate::{
    auth::ServiceTokens,
    error::Error,
    service::Chassis,
    trace::{self, TraceContext},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// What generated clients are made over: `EventServiceClient::new(peer.channel())`.
pub type Connection = InterceptedService<Transport, Credentials>;

/// Another service: called as it is where this process serves it; else connected to at the first call, and again whenever
/// the connection is lost. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    endpoint: Endpoint,
    transport: Transport,
    credentials: Credentials,
}

impl Peer {
    /// The service at `uri` (`http://127.0.0.1:7410`, `https://router.internal:7410`), called by service `caller`.
    ///
    /// # Errors
    /// An unreadable URI; plaintext beyond loopback without `[server] allow_plaintext`.
    pub fn new(caller: &'static str, uri: &str, chassis: &Chassis) -> Result<Self> {
        let settings = &chassis.shared.server;
        let mut endpoint = Endpoint::from_shared(uri.to_owned())
            .with_context(|| format!("address {uri}"))?
            .connect_timeout(CONNECT_WITHIN)
            .timeout(settings.request_deadline())
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots())?;
        } else {
            ensure!(
                settings.allow_plaintext || is_loopback(endpoint.uri().host().unwrap_or_default()),
                "{uri} is beyond loopback and not encrypted: use https, or set [server] allow_plaintext if a mesh encrypts"
            );
        }
        let transport = Transport::new(endpoint.uri(), chassis.local().clone(), endpoint.connect_lazy());
        Ok(Self { endpoint, transport, credentials: Credentials::Own { caller, tokens: chassis.tokens.clone() } })
    }

    /// The transport, for a generated client. All that share a connection share the server's limit of concurrent streams.
    #[must_use]
    pub fn channel(&self) -> Connection {
        InterceptedService::new(self.transport.clone(), self.credentials.clone())
    }

    /// The same transport for calls in the name of whoever holds `secret`, an API key: the peer decides what it lets
    /// them do, as if they had called it themselves.
    ///
    /// # Errors
    /// `Error::Unauthenticated` for what can't be sent in a header, and so is nobody's key.
    pub fn with_bearer(&self, secret: &str) -> Result<Self, Error> {
        let mut bearer = MetadataValue::try_from(format!("Bearer {secret}"))
            .map_err(|_| Error::Unauthenticated("these credentials can't be an API key".into()))?;
        bearer.set_sensitive(true);
        Ok(Self { credentials: Credentials::Lent(bearer), ..self.clone() })
    }

    /// The same peer over a connection of its own: for long streams, which would use up the other one's limit.
    #[must_use]
    pub fn separate(&self) -> Self {
        Self { transport: self.transport.over(self.endpoint.connect_lazy()), ..self.clone() }
    }
}

/// Whether a URI's host is this machine, so that what goes there needs no encryption.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Adds the caller's credentials and the trace to every call.
#[derive(Clone)]
pub enum Credentials {
    /// A token of the calling service, made for each call.
    #[non_exhaustive]
    Own {
        /// The calling service.
        caller: &'static str,
        /// What its tokens are made with.
        tokens: ServiceTokens,
    },
    /// Somebody else's, as they were shown to us.
    Lent(MetadataValue<Ascii>),
}

impl Credentials {
    fn bearer(&self) -> MetadataValue<Ascii> {
        match self {
            Self::Lent(bearer) => bearer.clone(),
            Self::Own { caller, tokens } => {
                let mut bearer = MetadataValue::try_from(format!("Bearer {}", tokens.issue(caller)))
                    .expect("a token is base64 and dots");
                bearer.set_sensitive(true);
                bearer
            }
        }
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.bearer());
        let context = trace::current().map_or_else(TraceContext::new_root, |context| context.new_child());
        context.inject(request.metadata_mut());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lent_key_takes_the_place_of_our_own_token_and_is_never_shown() {
        let peer = Peer::new("gateway", "http://127.0.0.1:1", &Chassis::for_test()).expect("a loopback address");
        let lent = peer.with_bearer("wsk_key").expect("it fits in a header");
        let bearer = lent.credentials.bearer();
        assert_eq!(bearer.to_str().expect("ASCII"), "Bearer wsk_key");
        assert!(!format!("{bearer:?}{:?}", peer.credentials.bearer()).contains("Bearer"));
        assert!(peer.credentials.bearer() != bearer, "the peer it came from keeps its own");
        assert!(matches!(peer.with_bearer("a\nb"), Err(Error::Unauthenticated(_))));
    }
}
