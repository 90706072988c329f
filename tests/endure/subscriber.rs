//! Three ways to listen to the same changes, each by a client that remembers its last position and comes back with it,
//! however often its connection is cut: a browser's WebSocket, Server-Sent Events, and gRPC.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use proto::{
    common::v1::Position,
    router::v1::{
        Operation, SubscribeRequest, event::Payload, subscribe_response::Message as Told,
        subscription_service_client::SubscriptionServiceClient,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use super::{change::TABLE, heard::Heard, proxy::Proxy};
use crate::harness::{Key, client};

/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);
/// How long a connection may take to stand.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
const HEARTBEAT_EVERY: Duration = Duration::from_secs(20);
const TOPIC: &str = "realtime:endure";

/// Why a connection ended: any reason is good enough to come back.
type Ended = Box<dyn std::error::Error + Send + Sync>;

/// One that listens until it is dropped.
pub(crate) struct Subscriber {
    pub(crate) heard: Heard,
    pub(crate) proxy: Proxy,
    _listening: JoinSet<()>,
}

/// How it listens.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// With a browser's token.
    WebSocket(String),
    Events(String),
    Grpc(Key),
}

impl Subscriber {
    pub(crate) async fn start(way: Way, target: SocketAddr, organization: &str) -> Self {
        let name = match way {
            Way::WebSocket(_) => "websocket",
            Way::Events(_) => "sse",
            Way::Grpc(_) => "grpc",
        };
        let (heard, proxy, mut listening) =
            (Heard::new(name, organization), Proxy::start(target).await, JoinSet::new());
        listening.spawn(listen(way, proxy.address, heard.clone()));
        Self { heard, proxy, _listening: listening }
    }
}

async fn listen(way: Way, at: SocketAddr, heard: Heard) {
    loop {
        heard.joins();
        let _ended = match &way {
            Way::WebSocket(token) => web_socket(at, token, &heard).await,
            Way::Events(token) => events(at, token, &heard).await,
            Way::Grpc(key) => grpc(at, key, &heard).await,
        };
        sleep(RETRY).await;
    }
}

/// As `docs/realtime.md` has it for the public library: the position comes before the change.
async fn web_socket(at: SocketAddr, token: &str, heard: &Heard) -> Result<(), Ended> {
    let url = format!("ws://{at}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let (mut socket, _) = timeout(OPEN_WITHIN, connect_async(url)).await??;
    let position = heard.position().map(|position| json!({ "epoch": position.log_id, "seq": position.sequence }));
    let changes = json!([{ "event": "*", "schema": "public", "table": TABLE }]);
    let payload = json!({ "config": { "postgres_changes": changes }, "resume": position.unwrap_or(json!(true)) });
    let join = json!(["1", "1", TOPIC, "phx_join", payload]);
    socket.send(Message::text(join.to_string())).await?;
    let (mut next, mut beat) = (None, interval(HEARTBEAT_EVERY));
    loop {
        let message = tokio::select! {
            message = socket.next() => message.ok_or("it ended")??,
            _ = beat.tick() => {
                let heartbeat = json!([null, "2", "phoenix", "heartbeat", {}]);
                socket.send(Message::text(heartbeat.to_string())).await?;
                continue;
            }
        };
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text)?;
        frame_of(&frame, &mut next, heard)?;
    }
}

fn frame_of(frame: &Value, next: &mut Option<Position>, heard: &Heard) -> Result<(), Ended> {
    let payload = &frame[4];
    match frame[3].as_str().unwrap_or_default() {
        "phx_reply" if payload["status"] != "ok" => return Err(payload.to_string().into()),
        "phx_close" | "phx_error" => return Err("the channel ended".into()),
        "system" if payload["resync"] == true => heard.complain("the socket was told to read everything again"),
        "system" if payload["status"] != "ok" => return Err(payload.to_string().into()),
        "system" if payload["next"].is_object() => *next = position(&payload["next"]),
        "system" => position(payload).into_iter().for_each(|position| heard.reaches(position)),
        "postgres_changes" => match next.take() {
            Some(position) => {
                let data = &payload["data"];
                let kind = data["type"].as_str().unwrap_or_default();
                heard.takes(position, kind, &data["old_record"], &data["record"]);
            }
            None => heard.complain("a change came without its position"),
        },
        _ => {}
    }
    Ok(())
}

fn position(meta: &Value) -> Option<Position> {
    Some(Position { log_id: meta["epoch"].as_str()?.to_owned(), sequence: meta["seq"].as_u64()? })
}

/// An event counts once its empty line has come: what was cut before is no event.
async fn events(at: SocketAddr, token: &str, heard: &Heard) -> Result<(), Ended> {
    let mut stream = timeout(OPEN_WITHIN, TcpStream::connect(at)).await??;
    let position = heard.position().map(|position| format!("{}:{}", position.log_id, position.sequence));
    let last = position.unwrap_or_default();
    let request = format!(
        "GET /realtime/v1/sse?table={TABLE} HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {token}\r\nlast-event-id: {last}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    let first = timeout(OPEN_WITHIN, lines.next_line()).await??.unwrap_or_default();
    if !first.starts_with("HTTP/1.1 200") {
        return Err(first.into());
    }
    let (mut id, mut name, mut data) = (None, String::new(), String::new());
    loop {
        let line = lines.next_line().await?.ok_or("it ended")?;
        match line.split_once(": ") {
            Some(("id", text)) => id = stream_position(text),
            Some(("event", text)) => text.clone_into(&mut name),
            Some(("data", text)) => text.clone_into(&mut data),
            None if line.is_empty() => {
                event_of(&std::mem::take(&mut name), &std::mem::take(&mut data), id.take(), heard)?;
            }
            // HTTP's own: headers, and the lengths of chunks.
            _ => {}
        }
    }
}

fn event_of(name: &str, data: &str, id: Option<Position>, heard: &Heard) -> Result<(), Ended> {
    match (name, id) {
        ("postgres_changes", Some(position)) => {
            let data = serde_json::from_str::<Value>(data)?["data"].take();
            let kind = data["type"].as_str().unwrap_or_default();
            heard.takes(position, kind, &data["old_record"], &data["record"]);
        }
        ("", Some(position)) => heard.reaches(position),
        ("", None) => {}
        (other, _) => heard.complain(format!("the event stream said {other:?}")),
    }
    Ok(())
}

fn stream_position(id: &str) -> Option<Position> {
    let (log_id, sequence) = id.rsplit_once(':')?;
    Some(Position { log_id: log_id.to_owned(), sequence: sequence.parse().ok()? })
}

async fn grpc(at: SocketAddr, key: &Key, heard: &Heard) -> Result<(), Ended> {
    let mut subscriptions = SubscriptionServiceClient::new(client(at, key));
    let types = vec![format!("{TABLE}.*")];
    let request = SubscribeRequest { types, since: heard.position(), ..SubscribeRequest::default() };
    let mut stream = match timeout(OPEN_WITHIN, subscriptions.subscribe(request)).await? {
        Err(status) if status.code() == tonic::Code::OutOfRange => {
            heard.complain(format!("the log no longer has its position: {status}"));
            return Err(status.into());
        }
        answered => answered?.into_inner(),
    };
    while let Some(answer) = stream.message().await? {
        match answer.message {
            Some(Told::Progress(progress)) => {
                progress.position.into_iter().for_each(|position| heard.reaches(position));
            }
            Some(Told::Event(event)) => {
                let (Some(Payload::Change(change)), Some(position)) = (&event.payload, event.position.clone()) else {
                    heard.complain(format!("no change: {}", event.r#type));
                    continue;
                };
                let row = |bytes: &[u8]| if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(bytes) };
                let kind = match change.operation() {
                    Operation::Insert => "INSERT",
                    Operation::Update => "UPDATE",
                    Operation::Delete => "DELETE",
                    Operation::Unspecified => "",
                };
                heard.takes(position, kind, &row(&change.old_record)?, &row(&change.new_record)?);
            }
            _ => {}
        }
    }
    Ok(())
}
