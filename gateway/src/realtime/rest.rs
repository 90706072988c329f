//! Broadcasts over HTTP, as Supabase's clients send them where no socket is open: `POST /realtime/v1/api/broadcast` with
//! several, `.../{topic}/events/{event}` with one, whose body is its payload. Browsers ask first whether they may (CORS);
//! that any page may read an answer is said in `edge.rs`.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use chassis::error::Error;
use http::{
    HeaderMap, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, CONTENT_TYPE,
    },
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::time::{Instant, timeout_at};

use super::{
    Realtime,
    claims::Claims,
    frame::{Content, Push},
    notice::is_json,
    topic::Topic,
};
use crate::{Gateway, body::Raw};

/// Broadcasts in one request.
const MESSAGES_MAX: usize = 100;
/// How long they may take together: less than a request has, so that the answer says how far it came.
const SEVERAL_WITHIN: Duration = Duration::from_secs(5);
/// What clients send besides what every page may.
const HEADERS: &str = "authorization, x-client-info, apikey, content-type, last-event-id";

/// Parameters of any request, as its client wrote them.
pub(crate) type Parameters = Query<Vec<(String, String)>>;

#[derive(Deserialize)]
struct Messages<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    topic: String,
    event: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// An answer that isn't 202.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    reason: String,
    /// Of several broadcasts, how many were sent before the one that this is about.
    sent: Option<usize>,
}

type Answer = Result<StatusCode, Refused>;

/// `OPTIONS`: any page may ask.
pub(crate) async fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// `POST /realtime/v1/api/broadcast`
pub(crate) async fn several(
    State(gateway): State<Gateway>,
    Query(parameters): Parameters,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Response {
    send_several(&gateway.realtime, &parameters, &headers, &body).await.into_response()
}

/// `POST /realtime/v1/api/broadcast/{topic}/events/{event}`
pub(crate) async fn one(
    State(gateway): State<Gateway>,
    Path((topic, event)): Path<(String, String)>,
    Query(parameters): Parameters,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Response {
    send_one(&gateway.realtime, &parameters, &headers, (topic, event), body).await.into_response()
}

async fn send_several(
    realtime: &Realtime,
    parameters: &[(String, String)],
    headers: &HeaderMap,
    body: &[u8],
) -> Answer {
    let claims = claims(realtime, parameters, headers).await?;
    let unreadable = |error: String| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error);
    let Messages { messages } = serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
    if messages.len() > MESSAGES_MAX {
        return Err(unreadable(format!("at most {MESSAGES_MAX} messages")));
    }
    let mut pushes = Vec::with_capacity(messages.len());
    for Message { topic, event, payload } in messages {
        let json = payload.map_or("{}", RawValue::get).to_owned();
        pushes.push((joined(&claims, &topic)?, Push { event, content: Content::Json(json.into()) }));
    }
    let organization = &claims.organization;
    in_order(pushes, |(topic, push)| async move {
        realtime.send(organization, topic.channel(), push, String::new(), false).await
    })
    .await
}

/// Sends all of them, up to the first that isn't taken.
///
/// # Errors
/// Of that one; it says how many were sent, so that whoever sends again doesn't say those twice.
async fn in_order<T, F: Future<Output = Result<(), Error>>>(all: Vec<T>, send: impl Fn(T) -> F) -> Answer {
    let until = Instant::now() + SEVERAL_WITHIN;
    for (sent, one) in all.into_iter().enumerate() {
        let late = Err(Error::Unavailable("the router is slow".to_owned()));
        let taken = timeout_at(until, send(one)).await.unwrap_or(late);
        taken.map_err(|error| Refused { sent: Some(sent), ..error.into() })?;
    }
    Ok(StatusCode::ACCEPTED)
}

async fn send_one(
    realtime: &Realtime,
    parameters: &[(String, String)],
    headers: &HeaderMap,
    (topic, event): (String, String),
    body: Bytes,
) -> Answer {
    let claims = claims(realtime, parameters, headers).await?;
    let topic = joined(&claims, &topic)?;
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content = match content_type {
        "application/octet-stream" => Content::Raw(body),
        json if is_json(json) => Content::Json(body),
        _ => {
            let reason = "must be application/json or application/octet-stream".to_owned();
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
        }
    };
    let durable = parameters.iter().any(|(name, value)| match name.as_str() {
        "persist" => value == "true",
        name => name.starts_with("persist["),
    });
    let push = Push { event, content };
    realtime.send(&claims.organization, topic.channel(), push, String::new(), durable).await?;
    Ok(StatusCode::ACCEPTED)
}

fn joined(claims: &Claims, name: &str) -> Result<Topic, Refused> {
    let topic = Topic::of_name(name);
    let topic = topic.ok_or_else(|| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "topic is no channel"))?;
    if claims.may_join(topic.channel()) {
        Ok(topic)
    } else {
        Err(Refused::new(StatusCode::FORBIDDEN, "this token doesn't give you that channel"))
    }
}

/// Who asks: by the bearer's token, else the key in the header or the address.
///
/// # Errors
/// 401, without saying of which of them.
pub(crate) async fn claims(
    realtime: &Realtime,
    parameters: &[(String, String)],
    headers: &HeaderMap,
) -> Result<Claims, Refused> {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let bearer = header(AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let parameter = |wanted: &str| {
        parameters.iter().find(|(name, value)| name == wanted && !value.is_empty()).map(|(_, value)| value.as_str())
    };
    let shown =
        bearer.or_else(|| parameter("access_token")).or_else(|| header("apikey")).or_else(|| parameter("apikey"));
    let unauthorized = |reason: String| Refused::new(StatusCode::UNAUTHORIZED, reason);
    let token = shown.ok_or_else(|| unauthorized("send a token as a bearer's or as apikey".to_owned()))?;
    realtime.authenticate(token).await.map_err(|error| unauthorized(format!("InvalidJWTToken: {error}")))
}

impl Refused {
    pub(crate) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), sent: None }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Error::Exhausted { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::NotFound(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let reason = if status.is_server_error() { "try again".to_owned() } else { error.to_string() };
        Self::new(status, reason)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self { status, reason, sent } = self;
        let mut body = json!({ "error": reason, "message": reason });
        if let Some(sent) = sent {
            body["sent"] = sent.into();
        }
        (status, Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::ready};

    use super::*;

    #[tokio::test]
    async fn of_several_it_is_said_how_many_were_sent_before_one_that_was_not() {
        let tried = Cell::new(0);
        let send = |one: u32| {
            tried.set(tried.get() + 1);
            ready(if one == 2 { Err(Error::Unavailable("away".to_owned())) } else { Ok(()) })
        };
        let refused = in_order((0..5).collect(), send).await.expect_err("the third isn't taken");
        assert_eq!((refused.status.as_u16(), refused.sent, tried.get()), (503, Some(2), 3));
        assert_eq!(in_order(vec![0, 1], send).await.ok(), Some(StatusCode::ACCEPTED));
    }

    #[tokio::test(start_paused = true)]
    async fn several_that_take_too_long_together_are_refused_with_how_many_were_sent() {
        let send = async |_: u32| {
            tokio::time::sleep(SEVERAL_WITHIN / 5 * 2).await;
            Ok(())
        };
        let refused = in_order((0..5).collect(), send).await.expect_err("it is too slow");
        assert_eq!((refused.status.as_u16(), refused.sent), (503, Some(2)));
    }
}
