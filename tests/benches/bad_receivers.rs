//! Receivers that would hold us or fill our memory: each attempt at them ends in time, and what they send is not kept.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use proto::vendorsync::v1::{
    DeliveryState, Endpoint, ListAttemptsRequest, ListDeliveriesRequest, delivery_service_client::DeliveryServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use super::{
    figure::Figure,
    machine,
    path::{Wanted, blocking, fresh},
    publisher::{self, TO_WEBHOOKS},
    sink::on_one_thread,
};
use crate::{
    crash::{create, endpoint, name},
    harness::{Engine, Key, Wedsync, client},
};

const MEMORY: &str = "bad_receivers_memory";
/// Events to each of them.
const EVENTS: usize = 20;
/// How long they are watched, so that the breaker lets some be tried again; then until no attempt is under way.
const WATCHED: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
/// The default timeout of 10 s, and what a machine needs to notice.
const LONGEST_S: f64 = 10.5;
/// What an attempt may leave behind, and what the system takes for itself while it works.
const MIB_PER_ATTEMPT: f64 = 64.0 / 1024.0;
const MIB_OF_ITS_OWN: f64 = 20.0;

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    let mut figures = manners().into_iter().map(|manner| figure_of(manner.name)).chain([MEMORY.to_owned()]);
    if !figures.any(|name| wanted.wants(&name)) {
        return;
    }
    let system = Wedsync::start_on(engine, &[]).await;
    let key = system.tenant("Bad receivers").await;
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for manner in manners() {
        names.push(manner.name);
        let url = format!("http://{}/webhook", manner.start());
        let retry_schedule = vec![prost_types::Duration { seconds: 1, nanos: 0 }];
        let endpoint = Endpoint { url, retry_schedule, ..endpoint("client_list_cache.*", false) };
        ids.push(create(&system, &key, endpoint).await.0);
    }
    let before = machine::resident_mib(system.pid()).0;
    let (router, publisher) = (system.addresses.router, key.clone());
    blocking(move || publisher::stream(router, &publisher, fresh(TO_WEBHOOKS, "bad"), 0..EVENTS)).await;
    let seen = settle(&system, &key, &ids).await;
    let grown = seen.most_mib - before;
    let (store, attempts) = (name(engine), seen.attempts.iter().map(Vec::len).sum::<usize>() as f64);
    for (manner, attempts) in names.into_iter().zip(&seen.attempts) {
        let longest = attempts.iter().max().expect("each was tried").as_secs_f64();
        told(Figure::at_most(&figure_of(manner), store, longest, "s", LONGEST_S));
    }
    told(Figure::at_most(MEMORY, store, grown, "MiB", MIB_PER_ATTEMPT * attempts + MIB_OF_ITS_OWN));
}

/// Each manner has a figure of its own, which names it.
fn figure_of(manner: &str) -> String {
    format!("bad_receivers_{manner}")
}

/// What the system did about them.
struct Seen {
    /// How long each took, by endpoint.
    attempts: Vec<Vec<Duration>>,
    /// The most memory it had.
    most_mib: f64,
}

/// Watches for a while, and then until no attempt is under way.
async fn settle(system: &Wedsync, key: &Key, endpoints: &[String]) -> Seen {
    let (began, mut most_mib, mut asked) = (Instant::now(), 0.0f64, Instant::now());
    loop {
        most_mib = most_mib.max(machine::resident_mib(system.pid()).0);
        sleep(Duration::from_millis(20)).await;
        if began.elapsed() < WATCHED || asked.elapsed() < Duration::from_millis(500) {
            continue;
        }
        asked = Instant::now();
        if let Some(attempts) = attempts(system, key, endpoints).await {
            return Seen { attempts, most_mib };
        }
        assert!(began.elapsed() < PATIENCE, "an attempt is under way, or an endpoint untried, after {PATIENCE:?}");
    }
}

/// How long each attempt took, by endpoint; none while one is under way, or an endpoint hasn't been tried.
async fn attempts(system: &Wedsync, key: &Key, endpoints: &[String]) -> Option<Vec<Vec<Duration>>> {
    let mut client = DeliveryServiceClient::new(client(system.addresses.vendor_sync, key));
    let mut all = Vec::new();
    for id in endpoints {
        let request = ListDeliveriesRequest { endpoint_id: id.clone(), page_size: 500, ..Default::default() };
        let deliveries = client.list_deliveries(request).await.expect("a page").into_inner().deliveries;
        let is_sending = deliveries.iter().any(|it| it.state() == DeliveryState::Sending);
        if is_sending || deliveries.iter().all(|it| it.attempts == 0) {
            return None;
        }
        let mut taken = Vec::new();
        for delivery in deliveries {
            let request = ListAttemptsRequest { delivery_id: delivery.id };
            let attempts = client.list_attempts(request).await.expect("its attempts").into_inner().attempts;
            taken.extend(attempts.iter().filter_map(|attempt| Duration::try_from(attempt.duration?).ok()));
        }
        all.push(taken);
    }
    Some(all)
}

/// How a receiver answers: with `head`, and then with `piece` again and again. Without a head it resets the connection.
struct Manner {
    name: &'static str,
    head: Vec<u8>,
    piece: Vec<u8>,
    pause: Duration,
}

fn manners() -> Vec<Manner> {
    let (second, at_once) = (Duration::from_secs(1), Duration::ZERO);
    let answer =
        |name, head: &str, piece: &[u8], pause| Manner { name, head: head.into(), piece: piece.to_vec(), pause };
    let much = [b'x'; 16 * 1024];
    vec![
        answer("drip", "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"x", second),
        answer("endless", "HTTP/1.1 200 OK\r\n\r\n", &much, at_once),
        answer("huge_header", "HTTP/1.1 200 OK\r\nx-huge: ", &much, at_once),
        answer("slow_headers", "HTTP/1.1 200 OK\r\nx-slow: ", b"x", second),
        bomb(),
        answer("reset", "", b"", at_once),
    ]
}

/// Gzip (RFC 1952, 1951) whose every 13 bytes become 2 KiB of zeros: one fixed block, the literal 0, and then without end
/// "the last byte again, 258 times", whose code has 13 bits.
fn bomb() -> Manner {
    let (begin, repeat) = (
        "010" /* not the last block, fixed codes */
            .to_owned()
            + "00110000",
        "1100010100000",
    );
    let mut head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n".to_vec();
    head.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    head.extend(packed(&(begin + repeat)));
    Manner { name: "bomb", head, piece: packed(&repeat.repeat(8)).repeat(1_000), pause: Duration::ZERO }
}

/// Bits as deflate packs them: each byte from its lowest bit on.
fn packed(bits: &str) -> Vec<u8> {
    let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
    bits.as_bytes().chunks(8).map(byte).collect()
}

impl Manner {
    /// Listens on a thread of its own, which ends with the process.
    fn start(self) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || on_one_thread(self.serve(listener)));
        address
    }

    async fn serve(self, listener: std::net::TcpListener) {
        let listener = TcpListener::from_std(listener).expect("a socket of this runtime");
        let manner = std::sync::Arc::new(self);
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let manner = manner.clone();
            // The other side hangs up, and that ends it.
            connections.spawn(async move { drop(manner.answer(stream).await) });
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        // A request is longer than this, and what is left of it doesn't matter.
        stream.read_exact(&mut [0; 1024]).await?;
        if self.head.is_empty() {
            return stream.set_zero_linger();
        }
        stream.write_all(&self.head).await?;
        loop {
            stream.write_all(&self.piece).await?;
            sleep(self.pause).await;
        }
    }
}
