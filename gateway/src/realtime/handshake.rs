//! From an HTTP request to a WebSocket (RFC 6455, section 4.2), kept small: while nothing happens a socket holds a read
//! buffer of 1 KiB and at most 4 KiB of what it wrote last.

use axum::extract::Request;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

/// Bytes of one message of a client: a broadcast's 1 MiB and what it is wrapped in.
const MESSAGE_BYTES: usize = (1 << 20) + (64 << 10);
/// A socket's read buffer, which is always there; the default costs 128 KiB each.
const READ_BUFFER: usize = 1 << 10;
/// Frames wait for each other up to so many bytes, and larger messages are written in fragments of as many: what a socket
/// wrote is copied, and the room for it kept.
pub(super) const WRITE_BUFFER: usize = 2 << 10;

/// A socket.
pub(super) type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// A request that asks for a WebSocket as it must.
pub(super) struct Handshake {
    accept: HeaderValue,
    upgrade: OnUpgrade,
}

impl Handshake {
    /// None for a request that asks for something else.
    pub(super) fn read(request: &mut Request) -> Option<Self> {
        let headers = request.headers();
        let asks = request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && names(headers, &CONNECTION, "upgrade")
            && names(headers, &UPGRADE, "websocket")
            && headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| asks)?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()?;
        Some(Self { accept, upgrade: hyper::upgrade::on(request) })
    }

    /// The answer, and the socket that there is once it was sent.
    pub(super) fn accept<B: Default>(self) -> (Response<B>, impl Future<Output = Option<WebSocket>> + Send) {
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        let socket = async move {
            let upgraded = TokioIo::new(self.upgrade.await.ok()?);
            Some(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config())).await)
        };
        (response, socket)
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(MESSAGE_BYTES))
        .max_frame_size(Some(MESSAGE_BYTES))
}

/// Whether a list in a header names this.
fn names(headers: &HeaderMap, header: &HeaderName, wanted: &str) -> bool {
    let lists = headers.get_all(header).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|name| name.trim().eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn asked(change: impl FnOnce(&mut Request)) -> Option<Handshake> {
        let mut request = Request::new(Body::empty());
        let headers = [
            (CONNECTION, "keep-alive, Upgrade"),
            (UPGRADE, "WebSocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            // RFC 6455, section 1.3.
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        request.headers_mut().extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
        change(&mut request);
        Handshake::read(&mut request)
    }

    #[test]
    fn the_standards_example_is_answered_as_it_says() {
        let (response, _) = asked(|_| {}).expect("it asks for one").accept::<Body>();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_request_for_anything_else_is_no_handshake() {
        for header in [CONNECTION, UPGRADE, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_KEY] {
            assert!(asked(|request| drop(request.headers_mut().remove(&header))).is_none(), "{header}");
        }
        let old = HeaderValue::from_static("8");
        assert!(asked(|request| drop(request.headers_mut().insert(SEC_WEBSOCKET_VERSION, old))).is_none());
        assert!(asked(|request| *request.method_mut() = Method::POST).is_none());
        assert!(asked(|request| *request.version_mut() = Version::HTTP_10).is_none());
    }
}
