//! For tests: a provider on loopback that keeps what it is asked and answers by its script, and the vendors' own
//! descriptions, which requests are held against.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    id::OrganizationId,
    lane::Delivery,
    outbound::{Outbound, OutboundSettings},
    tasks::Tasks,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::provider::Provider;

/// How it treats one request.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// Status, header lines and body.
    Answer(u16, Vec<String>, String),
    /// Takes the request whole and hangs up.
    HangUp,
    /// Answers something that isn't HTTP.
    Garbage,
}

impl Script {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    pub(crate) fn json(status: u16, body: Value) -> Self {
        Self::Answer(status, vec!["Content-Type: application/json".to_owned()], body.to_string())
    }

    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self::Answer(status, Vec::new(), body.to_owned())
    }

    pub(crate) fn header(mut self, line: &str) -> Self {
        if let Self::Answer(_, lines, _) = &mut self {
            lines.push(line.to_owned());
        }
        self
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// A form as an object; a name that stands twice is a failure.
    pub(crate) fn form(&self) -> Value {
        let mut form = serde_json::Map::new();
        for (name, value) in url::form_urlencoded::parse(&self.body) {
            assert!(form.insert(name.to_string(), value.into()).is_none(), "{name} stands twice");
        }
        form.into()
    }
}

/// The provider.
#[derive(Clone)]
pub(crate) struct Peer {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Script>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Peer {
    /// Answers by the script, one entry a request; after it, 599.
    pub(crate) async fn start(script: impl IntoIterator<Item = Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let peer = Self { address, script: Arc::new(Mutex::new(script.into_iter().collect())), asked: Arc::default() };
        let serving = peer.clone();
        Tasks::default().spawn("test.peer", async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One at a time: the script is in the order of the requests.
                let _ = serving.serve(stream).await;
            }
        });
        peer
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base())
    }

    pub(crate) fn then(&self, script: impl IntoIterator<Item = Script>) {
        self.script.lock().expect("no panic").extend(script);
    }

    /// What it was asked, oldest first.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let asked = read(&mut stream).await?;
        self.asked.lock().expect("no panic").push(asked);
        let next = self.script.lock().expect("no panic").pop_front().unwrap_or_else(|| Script::status(599));
        match next {
            Script::HangUp => Ok(()),
            Script::Garbage => stream.write_all(b"what?\r\n\r\n").await,
            Script::Answer(status, lines, body) => {
                let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
                let head = format!(
                    "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n{lines}\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
                stream.shutdown().await
            }
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Asked { method, target, headers, body: body.into() })
}

/// A way out that loopback is open to.
pub(crate) fn way_out() -> Outbound {
    let settings = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    Outbound::new(&settings).expect("settings that hold")
}

pub(super) fn provider(name: &'static str) -> Provider {
    Provider::new(name, way_out(), Clock::System, 0)
}

/// A delivery of this content, after so many attempts.
pub(crate) fn delivery(content: Bytes, attempts: u32) -> Delivery {
    Delivery {
        id: 1,
        lane: 1,
        lane_id: "x:o".into(),
        organization: OrganizationId::parse("o").expect("an id"),
        event: [7; 16],
        event_id: "e".to_owned(),
        event_type: "w".to_owned(),
        ordering_key: "r".to_owned(),
        priority: 2,
        origin: "realtime".to_owned(),
        attempts,
        reopened_after: 0,
        created_at: Clock::System.now().as_microsecond(),
        content,
    }
}

/// A vendor's own description, from the folder that `WEDSYNC_VENDOR_SPECS` names. None, and a word about it, where it
/// isn't there, which is a failure in CI.
pub(crate) fn vendor_description(file: &str) -> Option<Value> {
    #[expect(clippy::disallowed_methods, reason = "tests find the vendors' descriptions by the environment")]
    let variable = |name: &str| std::env::var(name).ok();
    let folder =
        variable("WEDSYNC_VENDOR_SPECS").map_or_else(|| PathBuf::from("../../shared/vendor-specs"), PathBuf::from);
    match std::fs::read(folder.join(file)) {
        Ok(text) => Some(serde_json::from_slice(&text).expect("the description is JSON")),
        Err(error) if variable("CI").as_deref() == Some("true") => panic!("{file}: {error}"),
        Err(error) => {
            println!("skipped: {file} is not there: {error}");
            None
        }
    }
}

/// Holds `value` against the schema at `pointer` of a description.
pub(crate) fn assert_described(description: &Value, pointer: &str, value: &Value) {
    assert_valid(&schema(description, pointer), value);
}

/// The schema at `pointer` of a description, whose references go to its components.
pub(crate) fn schema(description: &Value, pointer: &str) -> jsonschema::Validator {
    let mut schema = description.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone();
    for part in ["components", "definitions"] {
        if let (Some(known), Some(root)) = (description.get(part), schema.as_object_mut()) {
            root.insert(part.to_owned(), known.clone());
        }
    }
    jsonschema::draft7::new(&schema).unwrap_or_else(|_| panic!("{pointer} is no schema"))
}

pub(crate) fn assert_valid(schema: &jsonschema::Validator, value: &Value) {
    let faults: Vec<String> =
        schema.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:#?}\n{value:#}");
}

/// Waits between look-ups as tests have it.
pub(crate) const AT_ONCE: &[Duration] = &[Duration::ZERO, Duration::ZERO];
