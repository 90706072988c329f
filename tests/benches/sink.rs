//! A receiver that costs next to nothing: bare hyper on a thread of its own. It answers 200 and notes when each numbered
//! event first came, and how often one came again.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

/// What stands before an event's number in every body, ours and those of the limit's run.
pub(crate) const NUMBER: &[u8] = b"\"data\":{\"n\":";

/// The receiver; its thread ends with the process.
#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    noted: Arc<Noted>,
}

struct Noted {
    began: Instant,
    /// By (path, number): nanoseconds since `began`; 0 for what hasn't come.
    at: Vec<AtomicU64>,
    numbers: usize,
    arrived: AtomicU64,
    repeated: AtomicU64,
}

impl Sink {
    /// Listens for numbers below `numbers` on the paths `/0` to `/{paths - 1}`.
    pub(crate) fn start(paths: usize, numbers: usize) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let at = std::iter::repeat_with(AtomicU64::default).take(paths * numbers).collect();
        let noted =
            Noted { began: Instant::now(), at, numbers, arrived: AtomicU64::new(0), repeated: AtomicU64::new(0) };
        let sink = Self { address, noted: Arc::new(noted) };
        let noted = sink.noted.clone();
        std::thread::spawn(move || on_one_thread(serve(listener, noted)));
        sink
    }

    pub(crate) fn url(&self, path: usize) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// How many came that had not come before.
    pub(crate) fn arrived(&self) -> u64 {
        self.noted.arrived.load(Relaxed)
    }

    pub(crate) fn repeated(&self) -> u64 {
        self.noted.repeated.load(Relaxed)
    }

    /// When a number came on a path.
    pub(crate) fn at(&self, path: usize, number: usize) -> Option<Instant> {
        let nanos = self.noted.at[path * self.noted.numbers + number].load(Relaxed);
        (nanos > 0).then(|| self.noted.began + Duration::from_nanos(nanos))
    }

    /// Waits until `count` have come, as long as any come.
    pub(crate) async fn wait(&self, count: u64) -> bool {
        let (mut seen, mut since) = (self.arrived(), Instant::now());
        while seen < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = self.arrived();
            if now > seen {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(20) {
                return false;
            }
        }
        true
    }
}

/// Runs `future` to its end on a runtime of the calling thread's own.
pub(crate) fn on_one_thread<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

async fn serve(listener: std::net::TcpListener, noted: Arc<Noted>) {
    let listener = TcpListener::from_std(listener).expect("a socket of this runtime");
    while let Ok((stream, _)) = listener.accept().await {
        let noted = noted.clone();
        let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
            let noted = noted.clone();
            async move { Ok::<_, Infallible>(noted.take(request).await) }
        });
        // Nagle's algorithm would hold answers back.
        let _ = stream.set_nodelay(true);
        #[expect(clippy::disallowed_methods, reason = "a bench's own receiver ends with its process")]
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            let builder = Builder::new(TokioExecutor::new()).http1_only();
            // A client that goes away ends its connection.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Noted {
    async fn take(&self, request: Request<hyper::body::Incoming>) -> Response<Empty<Bytes>> {
        let path = request.uri().path()[1..].parse::<usize>().ok();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        if let (Some(path), Some(number)) = (path, number(&body)) {
            self.note(path, number);
        }
        Response::new(Empty::new())
    }

    fn note(&self, path: usize, number: usize) {
        let Some(at) = self.at.get(path * self.numbers + number) else { return };
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match at.compare_exchange(0, nanos, Relaxed, Relaxed) {
            Ok(_) => self.arrived.fetch_add(1, Relaxed),
            Err(_) => self.repeated.fetch_add(1, Relaxed),
        };
    }
}

fn number(body: &[u8]) -> Option<usize> {
    let start = body.windows(NUMBER.len()).position(|window| window == NUMBER)? + NUMBER.len();
    let digits = body[start..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}
