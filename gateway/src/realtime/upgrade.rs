//! `GET /realtime/v1/websocket`: from a request to a socket, or a refusal that its client can read.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Full, Realtime, frame::Encoding, handshake::Handshake, socket::Socket, token::TokenError};
use crate::Gateway;

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
    NoWebSocket,
    Full(Full),
}

/// Takes a socket.
pub(crate) async fn websocket(
    State(gateway): State<Gateway>,
    Query(asked): Query<Asked>,
    request: Request,
) -> Response {
    match open(gateway.realtime, asked, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn open(realtime: Arc<Realtime>, asked: Asked, mut request: Request) -> Result<Response, Refusal> {
    let (encoding, key) = admit(&realtime, request.headers(), asked).await?;
    let handshake = Handshake::read(&mut request).ok_or(Refusal::NoWebSocket)?;
    let connected = realtime.connect().map_err(Refusal::Full)?;
    let (response, socket) = handshake.accept();
    let tasks = realtime.chassis.tasks.clone();
    // Boxed, since each layer around a task holds what it wraps twice.
    let serving = Box::pin(async move {
        if let Some(socket) = socket.await {
            Box::pin(Socket::new(socket, realtime, encoding, key, connected).run()).await;
        }
    });
    tasks.spawn("realtime.socket", serving);
    Ok(response)
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
            Self::NoWebSocket => {
                (StatusCode::UPGRADE_REQUIRED, "this is for WebSockets alone (RFC 6455, version 13)".to_owned())
            }
            Self::Full(Full::Pace) => (StatusCode::TOO_MANY_REQUESTS, "too many connections per second".to_owned()),
            Self::Full(Full::Connections) => {
                (StatusCode::TOO_MANY_REQUESTS, "ConnectionRateLimitReached: too many connected clients".to_owned())
            }
        };
        metrics::counter!("realtime_refused_total", "code" => status.as_str().to_owned()).increment(1);
        (status, Json(json!({ "error": error }))).into_response()
    }
}
