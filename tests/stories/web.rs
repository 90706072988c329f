//! Plain HTTP/1.1, byte by byte, so that a test may send what no client library would.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::harness::PATIENCE;

/// What was answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("the answer is no JSON: {self:?}"))
    }
}

/// `GET`s a path.
pub(super) async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    exchange(address, "GET", path, headers, b"").await
}

/// `POST`s a body.
pub(super) async fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let length = body.len().to_string();
    let headers = [headers, &[("content-length", length.as_str()), ("content-type", "application/json")]].concat();
    exchange(address, "POST", path, &headers, body).await
}

/// `POST`s nothing but the announcement of a body of `bytes`.
pub(super) async fn announce(address: SocketAddr, path: &str, headers: &[(&str, &str)], bytes: usize) -> Answer {
    let length = bytes.to_string();
    exchange(address, "POST", path, &[headers, &[("content-length", length.as_str())]].concat(), b"").await
}

async fn exchange(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    request.push_str("\r\n");
    let answer = timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&[request.as_bytes(), body].concat()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    });
    let answer = answer.await.expect("an answer in time").expect("the connection holds");
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("the answer has no end: {answer}"));
    let (status, headers) = head.split_once("\r\n").expect("an answer has headers");
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").expect("a header has a name and a value");
        (name.to_ascii_lowercase(), value.to_owned())
    };
    Answer {
        status: status.get(9..12).and_then(|status| status.parse().ok()).expect("an answer has a status"),
        headers: headers.split("\r\n").map(header).collect(),
        body: body.to_owned(),
    }
}
