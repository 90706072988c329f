//! The way between a subscriber and what it talks to, which can be cut at any byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// No cut is wanted.
const NONE: i64 = i64::MAX;

/// Passes bytes on until it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cuts: Cuts,
    _accepting: JoinSet<()>,
}

#[derive(Clone)]
struct Cuts {
    /// Bytes towards the subscriber until the next cut.
    left: Arc<AtomicI64>,
    /// How often all connections were cut.
    made: watch::Sender<u64>,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let cuts = Cuts { left: Arc::new(AtomicI64::new(NONE)), made: watch::Sender::new(0) };
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, target, cuts.clone()));
        Self { address, cuts, _accepting: accepting }
    }

    /// Cuts the connections once so many more bytes went to the subscriber.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.cuts.left.store(i64::try_from(bytes).unwrap_or(NONE), Ordering::Relaxed);
    }

    /// Cuts them now.
    pub(crate) fn cut(&self) {
        self.cuts.cut();
    }

    /// How often they were cut.
    pub(crate) fn cuts(&self) -> u64 {
        *self.cuts.made.borrow()
    }
}

impl Cuts {
    fn cut(&self) {
        self.left.store(NONE, Ordering::Relaxed);
        self.made.send_modify(|made| *made += 1);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, cuts: Cuts) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (near, _) = accepted.expect("it listens");
                open.spawn(pass(near, target, cuts.clone()));
            }
            Some(_) = open.join_next() => {}
        }
    }
}

/// One connection; it ends when either end does, or with a cut.
async fn pass(near: TcpStream, target: SocketAddr, cuts: Cuts) {
    let mut made = cuts.made.subscribe();
    let Ok(far) = TcpStream::connect(target).await else { return };
    let ((mut from_near, to_near), (from_far, mut to_far)) = (near.into_split(), far.into_split());
    tokio::select! {
        _ = copy(&mut from_near, &mut to_far) => {}
        _ = back(from_far, to_near, &cuts) => {}
        _ = made.changed() => {}
    }
}

async fn back(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, cuts: &Cuts) -> std::io::Result<()> {
    let mut buffer = vec![0; 4_096];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let left = usize::try_from(cuts.left.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        to.write_all(&buffer[..count.min(left)]).await?;
        if left <= count {
            cuts.cut();
            return Ok(());
        }
        if left < usize::MAX / 2 {
            cuts.left.fetch_sub(i64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
        }
    }
}
