//! Errors as problem details (RFC 9457, `application/problem+json`) with a member `error`, the few words that the
//! original API had. They say what the caller may know and no more: what a peer reports about itself stays here.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use chassis::error::{Error, RETRY_AFTER};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER as RETRY_AFTER_HEADER, WWW_AUTHENTICATE},
};
use serde::Serialize;

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// How a caller of the API shows who it is (RFC 6750).
const BEARER: &str = "Bearer realm=\"wedsync\"";
/// How a sender of webhooks does, in the form of RFC 9110, section 11.6.1; the scheme is the header's name.
const SIGNATURE: &str = "X-WedSync-Signature realm=\"webhooks\"";

/// One error answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    error: Cow<'static, str>,
    detail: Option<String>,
    field: Option<String>,
    retry_after: Option<Duration>,
    challenge: Option<&'static str>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl Problem {
    fn new(status: StatusCode, error: &'static str) -> Self {
        Self { status, error: error.into(), detail: None, field: None, retry_after: None, challenge: None }
    }

    fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()).filter(|detail| !detail.is_empty()), ..self }
    }

    /// No such path, integration or thing; no detail.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not found")
    }

    /// The path is there for other methods, which the router names in `Allow`.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
    }

    /// `field` isn't what it must be.
    pub(crate) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let field = Some(field.into()).filter(|field| !field.is_empty());
        Self { field, ..Self::new(StatusCode::BAD_REQUEST, "Invalid request") }.because(detail)
    }

    /// No API key, or none that anybody holds.
    pub(crate) fn unauthenticated() -> Self {
        let detail = "send `Authorization: Bearer <API key>`, once";
        Self { challenge: Some(BEARER), ..Self::new(StatusCode::UNAUTHORIZED, "Invalid credentials") }.because(detail)
    }

    /// A webhook that its sender didn't sign, or not lately.
    pub(crate) fn unverified() -> Self {
        Self { challenge: Some(SIGNATURE), ..Self::new(StatusCode::UNAUTHORIZED, "Invalid signature") }
    }

    /// Whoever asks isn't who they should be, and no credentials of this request would help.
    pub(crate) fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden")
    }

    /// The id is known, with other content; or the state of things doesn't allow it.
    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict").because(detail)
    }

    /// The body is larger than `limit` bytes.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large").because(format!("at most {limit} bytes"))
    }

    /// The headers are more than we take.
    pub(crate) fn headers_too_large() -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Headers too large")
    }

    /// The path and query are longer than we take.
    pub(crate) fn uri_too_long() -> Self {
        Self::new(StatusCode::URI_TOO_LONG, "URI too long")
    }

    /// The body didn't arrive in time.
    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "Request timeout").because("the body didn't arrive in time")
    }

    /// Over a limit.
    pub(crate) fn limited(retry_after: Duration, detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded").because(detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// Nothing is wrong with the request; the same one may succeed after `retry_after`.
    pub(crate) fn unavailable(retry_after: Duration) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable");
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// Ours; what it was stands in the log.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
    }
}

/// A refusal by the service that was asked in the caller's name. What isn't about the request is logged, not told.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { field, reason } => Self::invalid(field, reason),
            Error::NotFound(_) => Self::not_found(),
            Error::AlreadyExists(reason) | Error::Aborted(reason) | Error::FailedPrecondition(reason) => {
                Self::conflict(reason)
            }
            Error::Unauthenticated(_) => Self::unauthenticated(),
            Error::PermissionDenied(reason) => Self::new(StatusCode::FORBIDDEN, "Forbidden").because(reason),
            Error::Exhausted { reason, retry_after } => Self::limited(retry_after, reason),
            Error::OutOfRange { reason, .. } => Self::invalid("", reason),
            Error::Unavailable(reason) => {
                tracing::warn!(reason = reason.as_str(), "a peer is away");
                Self::unavailable(RETRY_AFTER)
            }
            Error::Internal(cause) => {
                tracing::error!(error = format!("{cause:#}").as_str(), "internal error");
                Self::internal()
            }
        }
    }
}

/// What a peer answered instead of a response.
impl From<tonic::Status> for Problem {
    fn from(status: tonic::Status) -> Self {
        Error::from(status).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            // "about:blank" says that the status says it all; the title is then the status' own (section 4.2.1).
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            error: &self.error,
            detail: self.detail.as_deref(),
            field: self.field.as_deref(),
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, MEDIA_TYPE);
        if let Some(retry_after) = self.retry_after {
            headers.insert(RETRY_AFTER_HEADER, HeaderValue::from(whole_seconds(retry_after)));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Rounded up, and at least one: nobody is told to come back at once.
fn whole_seconds(duration: Duration) -> u64 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    seconds.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_999, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn what_a_peer_says_about_itself_is_not_told() {
        for error in [
            Error::Unavailable("connect to 10.0.0.7:7420: refused".to_owned()),
            Error::internal(anyhow::anyhow!("column secret is missing")),
        ] {
            let problem = Problem::from(error);
            assert_eq!((problem.detail, problem.field), (None, None));
        }
    }

    #[test]
    fn each_kind_of_refusal_has_its_status() {
        let cases = [
            (Error::invalid("pattern", "must not be empty"), 400),
            (Error::Unauthenticated("unknown".into()), 401),
            (Error::PermissionDenied("lacks a scope".to_owned()), 403),
            (Error::NotFound("organization".into()), 404),
            (Error::AlreadyExists("taken".to_owned()), 409),
            (Error::Aborted("changed".to_owned()), 409),
            (Error::FailedPrecondition("paused".to_owned()), 409),
            (Error::Exhausted { reason: "loud".to_owned(), retry_after: Duration::from_secs(3) }, 429),
            (Error::internal(anyhow::anyhow!("ours")), 500),
            (Error::Unavailable("away".to_owned()), 503),
        ];
        for (error, status) in cases {
            assert_eq!(Problem::from(error).into_response().status().as_u16(), status);
        }
    }
}
