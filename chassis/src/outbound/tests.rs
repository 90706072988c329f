use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

const SHORT: Duration = Duration::from_millis(300);

/// What a scripted receiver does after it has read a request.
#[derive(Clone)]
enum Script {
    /// Writes this and closes.
    Say(&'static str),
    /// Writes this and then nothing more.
    Stall(&'static str),
    /// Writes this and then repeats a kilobyte for ever.
    Flood(&'static str),
}

struct Receiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Receiver {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, connections) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&connections);
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                spawn(serve(stream, script.clone()));
            }
        });
        Self { address, connections }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[expect(clippy::disallowed_methods, reason = "a receiver of a test ends with its runtime")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn serve(mut stream: TcpStream, script: Script) {
    let mut request = [0; 4096];
    while let Ok(1..) = stream.read(&mut request).await {
        match script {
            Script::Say(text) => {
                if stream.write_all(text.as_bytes()).await.is_err() || text.contains("close") {
                    return;
                }
            }
            Script::Stall(text) => {
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Script::Flood(text) => {
                let mut written = stream.write_all(text.as_bytes()).await;
                while written.is_ok() {
                    written = stream.write_all(&[b'x'; 1024]).await;
                }
                return;
            }
        }
    }
}

fn open() -> OutboundSettings {
    OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true }
}

fn outbound() -> Outbound {
    Outbound::new(&open()).expect("a client")
}

/// A client whose every name has these addresses, in turn from one question to the next.
fn resolving(settings: &OutboundSettings, answers: &[&[&str]]) -> (Outbound, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let answers: Vec<Vec<IpAddr>> =
        answers.iter().map(|ips| ips.iter().map(|ip| ip.parse().expect("an address")).collect()).collect();
    let lookup = move |_| -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let turn = counter.fetch_add(1, Ordering::SeqCst);
        let answer = answers[turn.min(answers.len() - 1)].clone();
        Box::pin(async move { Ok(answer) })
    };
    (Outbound::with_lookup(settings, Box::new(lookup)).expect("a client"), asked)
}

fn post(url: &str) -> Request {
    let body = Bytes::from_static(b"{}");
    Request { method: Method::POST, url: url.to_owned(), headers: HeaderMap::new(), body, timeout: SHORT }
}

#[tokio::test]
async fn an_answer_has_its_status_headers_and_body() {
    let receiver =
        Receiver::start(Script::Say("HTTP/1.1 429 Slow Down\r\nretry-after: 7\r\ncontent-length: 5\r\n\r\nlater"))
            .await;
    let outbound = outbound();
    for _ in 0..3 {
        let answer = outbound.send(post(&receiver.url())).await.expect("an answer");
        assert_eq!((answer.status.as_u16(), &answer.body[..], answer.complete), (429, &b"later"[..], true));
        assert_eq!(answer.retry_after(Timestamp::UNIX_EPOCH), Some(Duration::from_secs(7)));
    }
    assert_eq!(receiver.connections(), 1, "the connection is reused");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let target = Receiver::start(Script::Say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")).await;
    let location = format!("HTTP/1.1 307 Go\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", target.url());
    let receiver = Receiver::start(Script::Say(location.leak())).await;
    let answer = outbound().send(post(&receiver.url())).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn a_receiver_that_never_answers_costs_the_timeout_and_no_more() {
    for script in [Script::Stall(""), Script::Stall("HTTP/1.1 200 OK\r\nx-slow: ")] {
        let receiver = Receiver::start(script).await;
        let failure = outbound().send(post(&receiver.url())).await.expect_err("no answer");
        assert_eq!(failure.class, FailureClass::Timeout);
        assert!((SHORT..SHORT * 5).contains(&failure.duration), "{:?}", failure.duration);
    }
}

#[tokio::test]
async fn a_status_counts_although_its_body_stalls() {
    let receiver = Receiver::start(Script::Stall("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")).await;
    let answer = outbound().send(post(&receiver.url())).await.expect("the status is known");
    assert_eq!((answer.status.as_u16(), &answer.body[..], answer.complete), (200, &b"half"[..], false));
    assert!(answer.duration < SHORT * 5, "{:?}", answer.duration);
}

#[tokio::test]
async fn an_endless_body_ends_at_the_bound() {
    let receiver = Receiver::start(Script::Flood("HTTP/1.1 200 OK\r\n\r\n")).await;
    let request = Request { timeout: LONGEST, ..post(&receiver.url()) };
    let answer = outbound().send(request).await.expect("the status is known");
    assert_eq!((answer.body.len(), answer.complete), (KEEP_BYTES, false));
    assert!(answer.duration < LONGEST / 2, "read on to the deadline: {:?}", answer.duration);
}

#[tokio::test]
async fn endless_headers_are_a_protocol_failure() {
    let receiver = Receiver::start(Script::Flood("HTTP/1.1 200 OK\r\nx-flood: ")).await;
    let failure = outbound().send(Request { timeout: LONGEST, ..post(&receiver.url()) }).await.expect_err("no headers");
    assert_eq!(failure.class, FailureClass::Protocol, "{failure}");
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-many: 1\r\n".repeat(HEADER_COUNT + 1));
    let receiver = Receiver::start(Script::Say(many.leak())).await;
    let failure = outbound().send(post(&receiver.url())).await.expect_err("too many headers");
    assert_eq!(failure.class, FailureClass::Protocol, "{failure}");
}

#[tokio::test]
async fn each_way_of_failing_has_its_class() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let failure = outbound().send(post(&format!("http://{closed}/"))).await.expect_err("nobody listens");
    assert_eq!(failure.class, FailureClass::Connect, "{failure}");
    let garbage = Receiver::start(Script::Say("SSH-2.0-OpenSSH_9.2 close\r\n")).await;
    let failure = outbound().send(post(&garbage.url())).await.expect_err("not HTTP");
    assert_eq!(failure.class, FailureClass::Protocol, "{failure}");
    let secure = garbage.url().replace("http://", "https://");
    let failure = outbound().send(post(&secure)).await.expect_err("not TLS");
    assert_eq!(failure.class, FailureClass::Tls, "{failure}");
    let (nowhere, _) = resolving(&open(), &[&[]]);
    let failure = nowhere.send(post("http://example.com/")).await.expect_err("no address");
    assert_eq!(failure.class, FailureClass::Dns, "{failure}");
    let failure = outbound().send(post("http://10.0.0.1/")).await.expect_err("forbidden");
    assert_eq!(failure.class, FailureClass::Address, "{failure}");
}

#[tokio::test]
async fn nothing_is_connected_to_by_default() {
    let receiver = Receiver::start(Script::Say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")).await;
    let settings = OutboundSettings { allow_http: true, ..OutboundSettings::default() };
    let port = receiver.address.port();
    let (rebound, _) = resolving(&settings, &[&["127.0.0.1"]]);
    for host in
        ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost", "0", "rebound.example.com"]
    {
        let failure = rebound.send(post(&format!("http://{host}:{port}/"))).await.expect_err(host);
        assert_eq!(failure.class, FailureClass::Address, "{host}: {failure}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn one_forbidden_address_among_good_ones_refuses_the_name() {
    let (outbound, _) = resolving(&OutboundSettings::default(), &[&["8.8.8.8", "169.254.169.254"]]);
    let refused = outbound.vet_resolved("https://hooks.example.com/").await;
    assert!(matches!(refused, Err(AddressError::Forbidden(_))), "{refused:?}");
    let (outbound, _) = resolving(&OutboundSettings::default(), &[&["8.8.8.8", "2606:4700::1111"]]);
    assert!(outbound.vet_resolved("https://hooks.example.com/").await.is_ok());
}

#[tokio::test]
async fn a_host_of_another_protocol_is_judged_like_one_of_a_url_and_every_address_of_it_is_given() {
    let (outbound, _) = resolving(&OutboundSettings::default(), &[&["8.8.8.8", "2606:4700::1111"]]);
    let addresses = outbound.resolve("db.example.com").await.expect("public").into_iter().map(|ip| ip.to_string());
    assert_eq!(addresses.collect::<Vec<_>>(), ["8.8.8.8", "2606:4700::1111"]);
    assert_eq!(outbound.resolve("[2606:4700::1111]").await.expect("public").len(), 1);
    for host in ["127.1", "::1", "localhost", "db.internal", "%2ftmp", "", "a@b"] {
        assert!(outbound.resolve(host).await.is_err(), "{host}");
    }
    let (outbound, _) = resolving(&OutboundSettings::default(), &[&["8.8.8.8", "10.0.0.1"]]);
    assert!(outbound.resolve("db.example.com").await.is_err(), "one of them is closed");
}

#[tokio::test]
async fn a_name_that_is_rebound_after_it_was_vetted_is_refused_at_the_connection() {
    let receiver = Receiver::start(Script::Say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")).await;
    let settings = OutboundSettings { allow_http: true, ..OutboundSettings::default() };
    let (outbound, asked) = resolving(&settings, &[&["8.8.8.8"], &["127.0.0.1"]]);
    let url = format!("http://hooks.example.com:{}/", receiver.address.port());
    outbound.vet_resolved(&url).await.expect("public at first");
    let failure = outbound.send(post(&url)).await.expect_err("rebound");
    assert_eq!((failure.class, receiver.connections()), (FailureClass::Address, 0));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn our_own_listener_is_refused_by_address_and_by_name() {
    let (own, other) = (
        Receiver::start(Script::Say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")).await,
        Receiver::start(Script::Say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")).await,
    );
    let (outbound, _) = resolving(&open(), &[&["127.0.0.1"]]);
    outbound.refuse_own(own.address);
    for host in ["127.0.0.1", "hooks.example.com"] {
        let failure = outbound.send(post(&format!("http://{host}:{}/", own.address.port()))).await.expect_err(host);
        assert_eq!(failure.class, FailureClass::Address, "{failure}");
        outbound.send(post(&format!("http://{host}:{}/", other.address.port()))).await.expect("not ours");
    }
    assert_eq!(own.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_hangs_costs_three_seconds() {
    let outbound = Outbound::with_lookup(&OutboundSettings::default(), Box::new(|_| Box::pin(std::future::pending())));
    let outbound = outbound.expect("a client");
    let started = Instant::now();
    let refused = outbound.vet_resolved("https://hooks.example.com/").await;
    assert_eq!(
        (refused.err(), started.elapsed()),
        (Some(AddressError::Unresolved("hooks.example.com".to_owned())), RESOLVE_WITHIN)
    );
}

#[tokio::test]
async fn the_connections_own_headers_cant_be_set() {
    let receiver = Receiver::start(Script::Say("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")).await;
    for name in
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive", "accept-encoding"]
    {
        let mut request = post(&receiver.url());
        request.headers.insert(HeaderName::from_static(name), "x".parse().expect("a value"));
        let failure = outbound().send(request).await.expect_err(name);
        assert_eq!(failure.class, FailureClass::Protocol, "{failure}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = Timestamp::from_second(1_445_412_420).expect("2015-10-21T07:27:00Z");
    let of = |text: &str| {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().expect("a value"))]);
        let answer =
            Answer { status: StatusCode::OK, headers, body: Bytes::new(), complete: true, duration: Duration::ZERO };
        answer.retry_after(now)
    };
    assert_eq!(of("120"), Some(Duration::from_secs(120)));
    assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
    assert_eq!(of("Wed, 21 Oct 2015 07:26:00 GMT"), Some(Duration::ZERO));
    assert_eq!(of("99999999999999999999999"), Some(Duration::MAX - Duration::from_nanos(999_999_999)));
    for odd in ["", "soon", "-1", "1.5"] {
        assert_eq!(of(odd), None, "{odd}");
    }
}

#[test]
fn malformed_networks_in_the_settings_are_named() {
    let settings = OutboundSettings { allow_networks: vec!["10.0.0.0/99".to_owned()], ..OutboundSettings::default() };
    let error = Outbound::new(&settings).expect_err("malformed").to_string();
    assert!(error.contains("outbound.allow_networks") && error.contains("10.0.0.0/99"), "{error}");
}
