//! Calls between services of one process: gRPC as ever, over memory, so that no byte of it passes the kernel.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::DuplexStream,
    net::TcpStream,
    sync::mpsc::{self, Receiver, Sender},
};
use tokio_util::either::Either;

/// Bytes on their way in each direction.
const BUFFER: usize = 64 << 10;
/// Connections that a server hasn't taken yet.
const WAITING: usize = 16;

/// One end of a connection to or from another process, or this one.
pub(super) type Stream = Either<TcpStream, DuplexStream>;

/// Which addresses this process serves itself. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Local(Arc<Mutex<HashMap<SocketAddr, Sender<DuplexStream>>>>);

impl Local {
    /// Connections to `address` from this process come by what this gives, as long as that lives.
    pub(super) fn serves(&self, address: SocketAddr) -> Receiver<DuplexStream> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address, sender);
        receiver
    }

    /// Connects to what `uri` names, here or over TCP.
    pub(super) async fn connect(self, uri: Uri) -> io::Result<TokioIo<Stream>> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(80);
        let sender = host.parse().ok().and_then(|ip| self.server(SocketAddr::new(ip, port)));
        if let Some(sender) = sender {
            let (ours, theirs) = tokio::io::duplex(BUFFER);
            if sender.send(theirs).await.is_ok() {
                return Ok(TokioIo::new(Either::Right(ours)));
            }
        }
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(TokioIo::new(Either::Left(stream)))
    }

    fn server(&self, address: SocketAddr) -> Option<Sender<DuplexStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_this_process_serves_is_reached_over_memory_and_anything_else_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let uri: Uri = format!("http://{address}").parse().expect("a URI");
        let (local, other) = (Local::default(), Local::default());
        let mut connections = local.serves(address);

        let ours = local.clone().connect(uri.clone()).await.expect("it is served").into_inner();
        assert!(matches!(ours, Either::Right(_)) && connections.try_recv().is_ok());
        let theirs = other.connect(uri.clone()).await.expect("it listens").into_inner();
        assert!(matches!(theirs, Either::Left(_)), "another process's addresses are none of ours");
        drop(connections);
        let ours = local.connect(uri).await.expect("it listens").into_inner();
        assert!(matches!(ours, Either::Left(_)), "whoever stopped serving here may be served from elsewhere");
    }
}
