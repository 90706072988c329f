//! Calls between services of one process: gRPC as ever, but handed over as they are, with no HTTP/2 between and no task that
//! carries it. Whoever waits for an answer does the work of it: a stream that its caller doesn't read stands still, and a stop
//! of the process doesn't wait for it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};

use axum::Router;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response, Uri};
use tonic::{
    body::Body,
    transport::{Channel, Error},
};
use tower::{Service, ServiceExt as _};

/// What this process serves itself, by address. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Local(Arc<RwLock<HashMap<SocketAddr, Router>>>);

impl Local {
    /// Calls to `address` from this process are `app`'s, as long as what this gives lives.
    pub(super) fn serves(&self, address: SocketAddr, app: Router) -> Serving {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(address, app);
        Serving(self.clone(), address)
    }

    fn server(&self, address: SocketAddr) -> Option<Router> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }
}

/// That this process serves an address.
#[must_use]
pub(super) struct Serving(Local, SocketAddr);

impl Drop for Serving {
    fn drop(&mut self) {
        let Self(Local(servers), address) = self;
        servers.write().unwrap_or_else(PoisonError::into_inner).remove(address);
    }
}

/// The transport to a peer: in this process while that is where it is served, else a connection.
#[derive(Clone, Debug)]
pub struct Transport {
    /// None for a name, which isn't looked up here.
    address: Option<SocketAddr>,
    local: Local,
    channel: Channel,
}

impl Transport {
    pub(super) fn new(uri: &Uri, local: Local, channel: Channel) -> Self {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let plain = uri.scheme_str() == Some("http");
        let ip = host.parse().ok().filter(|_| plain);
        Self { address: ip.map(|ip| SocketAddr::new(ip, uri.port_u16().unwrap_or(80))), local, channel }
    }

    /// The same over another connection, where it takes one.
    pub(super) fn over(&self, channel: Channel) -> Self {
        Self { channel, ..self.clone() }
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response<Body>, Error>>;

    /// Where there is no room, the call waits.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.address.and_then(|address| self.local.server(address)) {
            Some(app) => async move {
                let Ok(response) = app.oneshot(request).await;
                Ok(response.map(Body::new))
            }
            .boxed(),
            None => self.channel.clone().oneshot(request).boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test]
    async fn what_this_process_serves_is_called_as_long_as_it_is_and_anything_else_connected_to() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let uri: Uri = format!("http://{address}").parse().expect("a URI");
        let (local, other) = (Local::default(), Local::default());
        let transport = |local: &Local| Transport::new(&uri, local.clone(), Endpoint::from(uri.clone()).connect_lazy());
        let ask = async |local: &Local| {
            transport(local).call(Request::new(Body::empty())).await.map(|answer| answer.status())
        };
        let serving = local.serves(address, Router::new());
        assert_eq!(ask(&local).await.expect("it is served"), http::StatusCode::NOT_FOUND);
        ask(&other).await.expect_err("another process's addresses are none of ours");
        drop(serving);
        ask(&local).await.expect_err("nobody serves it any more");
    }
}
