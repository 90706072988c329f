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
use tokio::sync::watch;
use tonic::{
    body::Body,
    transport::{Channel, Error},
};
use tower::{Service, ServiceExt as _};

/// What this process serves itself, or is about to, by address. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Local(Arc<RwLock<HashMap<SocketAddr, watch::Receiver<Option<Router>>>>>);

/// Where an address's server is put once it serves, and taken away when it no longer does.
pub(super) type Serving = watch::Sender<Option<Router>>;

impl Local {
    /// Calls to `address` from this process wait for what is put here; once there is nothing here any more and this is gone,
    /// they go elsewhere.
    pub(super) fn serves(&self, address: SocketAddr) -> Serving {
        let (sender, receiver) = watch::channel(None);
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(address, receiver);
        sender
    }

    async fn server(self, address: SocketAddr) -> Option<Router> {
        let mut server = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()?;
        server.wait_for(Option::is_some).await.ok()?.clone()
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
        let Self { address, local, channel } = self.clone();
        async move {
            let server = match address {
                Some(address) => local.server(address).await,
                None => None,
            };
            let Some(server) = server else { return channel.oneshot(request).await };
            let Ok(response) = server.oneshot(request).await;
            Ok(response.map(Body::new))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

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
        let serving = local.serves(address);
        let mut early = pin!(ask(&local));
        assert!(early.as_mut().now_or_never().is_none(), "it is soon served");
        serving.send_replace(Some(Router::new()));
        for answer in [early.await, ask(&local).await] {
            assert_eq!(answer.expect("it is served"), http::StatusCode::NOT_FOUND);
        }
        ask(&other).await.expect_err("another process's addresses are none of ours");
        serving.send_replace(None);
        drop(serving);
        ask(&local).await.expect_err("nobody serves it any more");
    }
}
