//! The gateway's live paths, frame by frame: a plain WebSocket, a plain event stream, and tokens made here.

use std::net::SocketAddr;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message},
};

use crate::harness::{PATIENCE, Wedsync, signed};

/// A token of this system with these claims, good for an hour unless they say otherwise.
pub(super) fn token(system: &Wedsync, claims: Value) -> String {
    let secret = std::fs::read_to_string(system.data().join("jwt-secret")).expect("development mode makes one");
    signed(secret.trim(), claims)
}

/// In base64url, as tokens are written.
pub(super) fn encoded(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A WebSocket of serializer 2.0.0.
pub(super) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(super) async fn open(system: &Wedsync, key: &str) -> Self {
        Self::open_at(system.addresses.gateway, key).await
    }

    pub(super) async fn open_at(gateway: SocketAddr, key: &str) -> Self {
        let url = format!("ws://{gateway}/realtime/v1/websocket?apikey={key}&vsn=2.0.0");
        Self(connect_async(url).await.expect("a socket").0)
    }

    /// Asks for one; or the status and the body of the refusal.
    pub(super) async fn ask(system: &Wedsync, key: &str) -> Result<Self, (u16, String)> {
        let url = format!("ws://{}/realtime/v1/websocket?apikey={key}&vsn=2.0.0", system.addresses.gateway);
        match connect_async(url).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(refusal)) => {
                let body = refusal.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                Err((refusal.status().as_u16(), body.into_owned()))
            }
            Err(error) => panic!("neither a socket nor a refusal: {error}"),
        }
    }

    pub(super) async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.expect("it is open");
    }

    /// Sends whatever it is, even if the other side has closed meanwhile.
    pub(super) async fn throw(&mut self, message: Message) {
        drop(self.0.send(message).await);
    }

    /// Waits for its end; the code that it was closed with.
    pub(super) async fn ended(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    /// The next frame; or the code that it was closed with.
    pub(super) async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(1005, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    /// The next frame of this event on a topic.
    pub(super) async fn event(&mut self, topic: &str, event: &str) -> Value {
        loop {
            let mut frame = self.next().await.expect("it stays open");
            if frame[2] == topic && frame[3] == event {
                return frame[4].take();
            }
        }
    }

    /// Joins, and gives the reply.
    pub(super) async fn join(&mut self, reference: &str, topic: &str, payload: Value) -> Value {
        self.send(json!([reference, reference, topic, "phx_join", payload])).await;
        self.event(topic, "phx_reply").await
    }
}

/// An event stream.
pub(super) struct Events(Lines<BufReader<TcpStream>>);

/// One event of it.
#[derive(Debug, Default)]
pub(super) struct ServerEvent {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) data: Value,
}

impl Events {
    /// Opens one; `last` is the id of the last event that was seen.
    pub(super) async fn open(system: &Wedsync, query: &str, token: &str, last: &str) -> Self {
        Self::try_open(system, query, token, last).await.unwrap_or_else(|status| panic!("{query}: {status}"))
    }

    /// The same; what is answered where there is none.
    pub(super) async fn try_open(system: &Wedsync, query: &str, token: &str, last: &str) -> Result<Self, String> {
        let address = system.addresses.gateway;
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!(
            "GET /realtime/v1/sse?{query} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nlast-event-id: {last}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut events = Self(BufReader::new(stream).lines());
        let status = events.line().await;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(status);
        }
        events.until("retry: ").await;
        Ok(events)
    }

    /// The next event, or an id by itself.
    pub(super) async fn next(&mut self) -> ServerEvent {
        let mut event = ServerEvent::default();
        loop {
            let line = self.line().await;
            match line.split_once(": ") {
                Some(("id", id)) => id.clone_into(&mut event.id),
                Some(("event", name)) => name.clone_into(&mut event.name),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                _ if line.is_empty() && !(event.id.is_empty() && event.name.is_empty()) => return event,
                _ => {}
            }
        }
    }

    async fn until(&mut self, start: &str) {
        while !self.line().await.starts_with(start) {}
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.0.next_line()).await.expect("a line in time");
        line.expect("a stream").expect("it goes on")
    }
}
