//! The listening side of connections: HTTP/1 and HTTP/2 on one port, with limits, upgrades and an orderly end.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, extract::ConnectInfo};
use http::Request;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::local::Serving;
use crate::service::Chassis;

/// A peer that doesn't answer a ping for this long, asked after every [`KEEPALIVE_INTERVAL`], is gone.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a new connection may take until it is clear which HTTP it speaks, and a request's headers take.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// What HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often more of it is looked for where it came in part.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long to wait when the machine has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes connections, and this process's own calls, until the chassis drains; the drain waits for those that are open.
pub(super) fn accept(listener: TcpListener, local: Serving, app: Router, chassis: &Chassis) {
    local.send_replace(Some(app.clone()));
    let (tasks, draining) = (chassis.tasks.clone(), chassis.draining());
    let builder = builder(chassis.shared.server.max_concurrent_streams);
    let serving = async move {
        let connections = TaskTracker::new();
        while let Some((stream, peer)) = next(&listener, &draining).await {
            let connection = connection(stream, peer, builder.clone(), app.clone(), draining.clone());
            tasks.spawn("connection", connections.track_future(connection));
        }
        local.send_replace(None);
        drop((listener, local));
        connections.close();
        connections.wait().await;
    };
    chassis.tasks.spawn("server", chassis.servers().track_future(serving));
}

async fn next(listener: &TcpListener, draining: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match draining.run_until_cancelled(listener.accept()).await? {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn builder(max_concurrent_streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(max_concurrent_streams);
    builder
}

/// Whether a connection says in time which HTTP it speaks: what serves it would wait for the rest of the preface for ever.
async fn begins(stream: &TcpStream) -> bool {
    let mut first = [0; PREFACE.len()];
    let reading = async {
        loop {
            let come = stream.peek(&mut first).await?;
            if come == 0 || come == PREFACE.len() || first[..come] != PREFACE[..come] {
                return std::io::Result::Ok(come > 0);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    matches!(timeout(HEADERS_WITHIN, reading).await, Ok(Ok(true)))
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    builder: Builder<TokioExecutor>,
    app: Router,
    draining: CancellationToken,
) {
    // With Nagle's algorithm a small answer waits 40 ms for the peer's delayed acknowledgement.
    if stream.set_nodelay(true).is_err() || !begins(&stream).await {
        return;
    }
    let app = app.map_request(move |mut request: Request<_>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut serving = Box::pin(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = draining.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error, "connection failed");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.expect("it listens"), theirs.expect("it connects").0)
    }

    #[tokio::test]
    async fn a_connection_that_says_a_part_of_the_preface_and_no_more_is_not_served() {
        for part in 0..PREFACE.len() {
            let (mut peer, stream) = pair().await;
            peer.write_all(&PREFACE[..part]).await.expect("it is open");
            tokio::time::pause();
            assert!(!begins(&stream).await, "{part} bytes");
            tokio::time::resume();
        }
    }

    #[tokio::test]
    async fn a_connection_that_says_what_it_speaks_is_served_at_once_and_in_pieces_too() {
        for first in [&PREFACE[..], b"GET / HTTP/1.1", b"POST / HTTP/1.1", b"x"] {
            let (mut peer, stream) = pair().await;
            peer.write_all(first).await.expect("it is open");
            assert!(begins(&stream).await);
        }
        let (mut peer, stream) = pair().await;
        peer.write_all(b"PRI").await.expect("it is open");
        let rest = async {
            tokio::time::sleep(LOOK_AGAIN).await;
            peer.write_all(&PREFACE[3..]).await.expect("it is open");
        };
        assert!(tokio::join!(begins(&stream), rest).0);
        let (peer, stream) = pair().await;
        drop(peer);
        assert!(!begins(&stream).await, "it says nothing and leaves");
    }
}
