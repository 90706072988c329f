//! `GET /realtime/v1/websocket`: from a request to a socket, or a refusal that its client can read.

use axum::{
    Json,
    extract::{
        Query, State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Full, Realtime, frame::Encoding, socket::Socket, token::TokenError};
use crate::Gateway;

/// Bytes of one message of a client: a broadcast's 1 MiB and what it is wrapped in.
const MESSAGE_BYTES: usize = (1 << 20) + (64 << 10);
/// A socket's read buffer; the default costs 128 KiB each.
const READ_BUFFER: usize = 4 << 10;

/// What a client says of itself in the address.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    apikey: Option<String>,
    vsn: Option<String>,
}

/// Why there is no socket.
enum Refusal {
    Version,
    NoKey,
    BadKey(TokenError),
    Full(Full),
}

/// Takes a socket.
pub(crate) async fn websocket(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let realtime = gateway.realtime;
    let (encoding, key) = match admit(&realtime, &headers, asked).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refusal.into_response(),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    let connected = match realtime.connect() {
        Ok(connected) => connected,
        Err(full) => return Refusal::Full(full).into_response(),
    };
    let upgrade = upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(0);
    upgrade.max_message_size(MESSAGE_BYTES).max_frame_size(MESSAGE_BYTES).on_upgrade(async move |socket| {
        let tasks = realtime.chassis.tasks.clone();
        // Boxed, since each layer around a task holds what it wraps twice.
        tasks.spawn("realtime.socket", Box::pin(Socket::new(socket, realtime, encoding, key, connected).run()));
    })
}

async fn admit(realtime: &Realtime, headers: &HeaderMap, asked: Asked) -> Result<(Encoding, String), Refusal> {
    let encoding = Encoding::of_version(asked.vsn.as_deref()).ok_or(Refusal::Version)?;
    let header = || headers.get("x-api-key")?.to_str().ok().map(str::to_owned);
    let key = asked.apikey.filter(|key| !key.is_empty()).or_else(header).ok_or(Refusal::NoKey)?;
    match realtime.authenticate(&key).await {
        // A key that all of an installation's clients share names no organization: each channel brings its own token.
        Ok(_) | Err(TokenError::MissingClaim("organization_id")) => Ok((encoding, key)),
        Err(error) => Err(Refusal::BadKey(error)),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Version => (StatusCode::BAD_REQUEST, "vsn must be 1.0.0 or 2.0.0".to_owned()),
            Self::NoKey => (StatusCode::UNAUTHORIZED, "MissingAPIKey: give apikey, a token".to_owned()),
            Self::BadKey(error) => (StatusCode::UNAUTHORIZED, format!("InvalidJWTToken: {error}")),
            Self::Full(Full::Pace) => (StatusCode::TOO_MANY_REQUESTS, "too many connections per second".to_owned()),
            Self::Full(Full::Connections) => {
                (StatusCode::TOO_MANY_REQUESTS, "ConnectionRateLimitReached: too many connected clients".to_owned())
            }
        };
        metrics::counter!("realtime_refused_total", "code" => status.as_str().to_owned()).increment(1);
        (status, Json(json!({ "error": error }))).into_response()
    }
}
