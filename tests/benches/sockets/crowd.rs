//! Thousands of browsers on one thread, each with a socket as the public client library keeps one: it joins one channel,
//! beats every 25 s, comes back by the library's own waits when it is cut off or refused, and then resumes. They read no
//! more of a frame than what is counted, so that they cost little beside what they measure.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Interval, interval_at, sleep, timeout},
};

use super::TABLE;

pub(super) const CHANNEL: &str = "bench";
/// What stands before an event's name in every frame of the channel.
const TOPIC: &str = "\"realtime:bench\",\"";
/// What stands before a number.
const NUMBER: &str = "\"n\":";
/// Each row is for one part of all.
pub(super) const PARTS: usize = 100;
/// How many open at a time.
const OPENING: usize = 64;
const HEARTBEAT: Duration = Duration::from_secs(25);
/// As the library waits before it tries again, the last one for ever; and how long it waits for an answer.
const WAITS: [u64; 4] = [1, 2, 5, 10];
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What the whole crowd is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The first so many open a socket.
    Open(usize),
    /// The first so many are cut off.
    Cut(usize),
    Leave,
}

/// All of them.
pub(super) struct Crowd {
    address: SocketAddr,
    /// None: nothing is spoken, bare frames come.
    token: Option<String>,
    order: watch::Sender<Order>,
    doors: Semaphore,
    joined: AtomicUsize,
    rows: AtomicUsize,
    broadcasts: Mutex<Vec<(usize, Instant)>>,
}

/// One of them.
struct Browser {
    number: usize,
    crowd: Arc<Crowd>,
    order: watch::Receiver<Order>,
    /// The numbers of its rows, as they came.
    rows: Vec<usize>,
    /// The position that it has been told last, and that up to which it has everything.
    next: Value,
    resume: Value,
    joined: bool,
    /// When it asks again to join.
    rejoin: Option<Duration>,
    refused: usize,
}

impl Crowd {
    pub(super) fn new(address: SocketAddr, token: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            address,
            token,
            order: watch::Sender::new(Order::Open(0)),
            doors: Semaphore::new(OPENING),
            joined: AtomicUsize::new(0),
            rows: AtomicUsize::new(0),
            broadcasts: Mutex::default(),
        })
    }

    /// Lives until it is told to leave; which rows came to each.
    pub(super) async fn live(self: Arc<Self>, size: usize) -> Vec<(usize, Vec<usize>)> {
        let mut all = JoinSet::new();
        for number in 0..size {
            all.spawn(Browser::new(number, self.clone()).live());
        }
        all.join_all().await
    }

    pub(super) fn order(&self, order: Order) {
        self.order.send_replace(order);
    }

    /// How many are joined and have all that was before.
    pub(super) fn joined(&self) -> usize {
        self.joined.load(Relaxed)
    }

    /// How many rows came, to all together.
    pub(super) fn rows(&self) -> usize {
        self.rows.load(Relaxed)
    }

    /// How many broadcasts came.
    pub(super) fn heard(&self) -> usize {
        self.broadcasts.lock().expect("no panic").len()
    }

    /// Which broadcasts came, and when, to anybody.
    pub(super) fn broadcasts(&self) -> Vec<(usize, Instant)> {
        std::mem::take(&mut self.broadcasts.lock().expect("no panic"))
    }
}

impl Browser {
    fn new(number: usize, crowd: Arc<Crowd>) -> Self {
        let order = crowd.order.subscribe();
        let resume = Value::Bool(true);
        let next = Value::Null;
        Self { number, crowd, order, rows: Vec::new(), next, resume, joined: false, rejoin: None, refused: 0 }
    }

    async fn live(mut self) -> (usize, Vec<usize>) {
        let number = self.number;
        let opens = |order: &Order| matches!(*order, Order::Open(first) if number < first) || *order == Order::Leave;
        self.order.wait_for(opens).await.expect("the crowd lives");
        let mut tries = 0;
        while *self.order.borrow_and_update() != Order::Leave {
            tries = match self.open().await {
                Ok(stream) => {
                    // However it ends, it was there.
                    drop(self.listen(stream).await);
                    0
                }
                Err(_) => tries + 1,
            };
            self.left();
            self.wait(wait(tries)).await;
        }
        (number, self.rows)
    }

    /// Waits, but not if it is to leave.
    async fn wait(&mut self, time: Duration) {
        let leaves = |order: &Order| *order == Order::Leave;
        drop(timeout(time, self.order.wait_for(leaves)).await);
    }

    async fn open(&mut self) -> io::Result<TcpStream> {
        let crowd = self.crowd.clone();
        // Only at first: those who were cut off know nothing of each other.
        let _door = if self.resume == true { crowd.doors.acquire().await.ok() } else { None };
        timeout(ANSWER_WITHIN, self.connect(&crowd)).await?
    }

    async fn connect(&mut self, crowd: &Crowd) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(crowd.address).await?;
        stream.set_nodelay(true)?;
        let Some(token) = &crowd.token else {
            self.arrived();
            return Ok(stream);
        };
        upgrade(&mut stream, crowd.address, token).await?;
        self.join(&mut stream).await?;
        Ok(stream)
    }

    async fn join(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let filter = format!("part=eq.{}", self.number % PARTS);
        let changes = json!([{ "event": "INSERT", "schema": "public", "table": TABLE, "filter": filter }]);
        let config = json!({ "postgres_changes": changes, "presence": { "enabled": false } });
        let payload = json!({ "config": config, "resume": self.resume });
        send(stream, &json!(["1", "1", format!("realtime:{CHANNEL}"), "phx_join", payload])).await
    }

    /// Listens until it is told to go (all is well) or the socket ends.
    async fn listen(&mut self, mut stream: TcpStream) -> io::Result<()> {
        let mut rest = Vec::new();
        let mut beats = self.beats();
        loop {
            let rejoin = self.rejoin;
            tokio::select! {
                readable = stream.readable() => {
                    readable?;
                    self.read(&stream, &mut rest)?;
                }
                _ = self.order.changed() => {
                    let order = *self.order.borrow_and_update();
                    if order == Order::Leave || matches!(order, Order::Cut(first) if self.number < first) {
                        return Ok(());
                    }
                }
                _ = beats.tick(), if self.crowd.token.is_some() => {
                    send(&mut stream, &json!([null, "2", "phoenix", "heartbeat", {}])).await?;
                }
                () = sleep(rejoin.unwrap_or_default()), if rejoin.is_some() => {
                    self.rejoin = None;
                    self.join(&mut stream).await?;
                }
            }
        }
    }

    /// Its own, each at another time.
    fn beats(&self) -> Interval {
        let first = HEARTBEAT.mul_f64((self.number % 997) as f64 / 997.0);
        interval_at(tokio::time::Instant::now() + first, HEARTBEAT)
    }

    /// Takes in what has come; `rest` is what a frame's end is missing of.
    fn read(&mut self, stream: &TcpStream, rest: &mut Vec<u8>) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        let count = match stream.try_read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if rest.is_empty() {
            let used = self.frames(&bytes[..count])?;
            rest.extend_from_slice(&bytes[used..count]);
        } else {
            rest.extend_from_slice(&bytes[..count]);
            let used = self.frames(rest)?;
            rest.drain(..used);
        }
        if rest.is_empty() {
            *rest = Vec::new();
        }
        Ok(())
    }

    /// Reads whole frames (RFC 6455, section 5.2); how many bytes they were.
    fn frames(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while let Some((kind, payload, length)) = frame(&bytes[used..]) {
            match kind {
                0x1 => self.told(std::str::from_utf8(payload).map_err(io::Error::other)?),
                // It is closed.
                0x8 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
            used += length;
        }
        Ok(used)
    }

    fn told(&mut self, text: &str) {
        let Some((_, rest)) = text.split_once(TOPIC) else { return };
        let Some((event, payload)) = rest.split_once("\",") else { return };
        match event {
            "broadcast" => {
                let heard = (number(payload), Instant::now());
                self.crowd.broadcasts.lock().expect("no panic").push(heard);
            }
            "postgres_changes" => {
                self.rows.push(number(payload));
                self.crowd.rows.fetch_add(1, Relaxed);
                self.resume = self.next.take();
            }
            "system" => self.system(payload),
            "phx_reply" if payload.contains("\"error\"") => {
                self.refused += 1;
                self.rejoin = Some(wait(self.refused));
            }
            _ => {}
        }
    }

    fn system(&mut self, payload: &str) {
        let mut said: Value = serde_json::from_str(payload.trim_end_matches(']')).expect("JSON");
        assert_ne!(said["resync"], true, "the log has it all");
        match said["next"].take() {
            // It has everything up to here.
            Value::Null if said["seq"].is_u64() => {
                self.resume = json!({ "epoch": said["epoch"], "seq": said["seq"] });
                self.arrived();
            }
            next => self.next = next,
        }
    }

    fn arrived(&mut self) {
        self.refused = 0;
        if !std::mem::replace(&mut self.joined, true) {
            self.crowd.joined.fetch_add(1, Relaxed);
        }
    }

    fn left(&mut self) {
        self.rejoin = None;
        if std::mem::replace(&mut self.joined, false) {
            self.crowd.joined.fetch_sub(1, Relaxed);
        }
    }
}

/// Before the next try, after so many that failed.
fn wait(failed: usize) -> Duration {
    Duration::from_secs(WAITS[failed.min(WAITS.len() - 1)])
}

async fn upgrade(stream: &mut TcpStream, address: SocketAddr, token: &str) -> io::Result<()> {
    let request = format!(
        "GET /realtime/v1/websocket?apikey={token}&vsn=2.0.0 HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    // Nothing comes behind it before something is asked for.
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head.len() > 12 && !head.starts_with(b"HTTP/1.1 101") {
            return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
        }
    }
    Ok(())
}

/// Sends one text frame; its mask is of zeros.
async fn send(stream: &mut TcpStream, frame: &Value) -> io::Result<()> {
    let text = frame.to_string();
    let length = u16::try_from(text.len()).expect("a short frame");
    let mut bytes = vec![0x81, 0x80 | 126];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    stream.write_all(&bytes).await
}

/// The first frame of `bytes`, if all of it is there: its kind, its payload and its length.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (head, short) = (*bytes.first()?, *bytes.get(1)?);
    let (start, length) = match short {
        126 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?),
        length => (2, usize::from(length)),
    };
    Some((head & 0xf, bytes.get(start..start + length)?, start + length))
}

fn number(payload: &str) -> usize {
    let digits = payload.split_once(NUMBER).map_or("", |(_, digits)| digits).bytes();
    digits.take_while(u8::is_ascii_digit).fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}
