//! The links of messages: a page that asks, and what is done once its button is pressed, or its one click posted (RFC 8058).
//!
//! Programs that look for harm follow links before people do: a GET shows a page and does nothing. What a link stands for is
//! in its token, which the notifier judges; whatever is wrong with one, the answer is the same. Pages hold no script, and
//! nothing that anybody wrote.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use chassis::error::{Error, RETRY_AFTER};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER as RETRY_AFTER_HEADER},
};
use proto::notifier::v1::{
    AcknowledgeRequest, UnsubscribeRequest, confirmation_service_client::ConfirmationServiceClient,
    preference_service_client::PreferenceServiceClient,
};
use tonic::Status;

use crate::{Gateway, body::Raw, problem::Problem};

const TOKEN_BYTES: usize = 128;
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

type Token = Result<Path<String>, PathRejection>;

/// `GET /acknowledge/{token}`
pub(crate) async fn ask_to_acknowledge(token: Token) -> Result<Response, Problem> {
    checked(token)?;
    Ok(ask("Do you know about it?", "Please confirm that you have read the message.", "I have read it"))
}

/// `POST /acknowledge/{token}`
pub(crate) async fn acknowledge(
    State(gateway): State<Gateway>,
    token: Token,
    Raw(_): Raw,
) -> Result<Response, Problem> {
    let request = AcknowledgeRequest { token: checked(token)?, ..Default::default() };
    let mut client = ConfirmationServiceClient::new(gateway.peers.notifier.channel());
    Ok(match client.acknowledge(request).await {
        Ok(_) => say(StatusCode::OK, "Thank you", "It is on record that you know. You can close this page."),
        Err(status) => unserved(status),
    })
}

/// `GET /unsubscribe/{token}`
pub(crate) async fn ask_to_unsubscribe(token: Token) -> Result<Response, Problem> {
    checked(token)?;
    Ok(ask("Unsubscribe?", "You won't get any more messages of this kind.", "Unsubscribe"))
}

/// `POST /unsubscribe/{token}`: by the page, or by a mail program's own button.
pub(crate) async fn unsubscribe(
    State(gateway): State<Gateway>,
    token: Token,
    Raw(_): Raw,
) -> Result<Response, Problem> {
    let request = UnsubscribeRequest { token: checked(token)?, ..Default::default() };
    let mut client = PreferenceServiceClient::new(gateway.peers.notifier.channel());
    Ok(match client.unsubscribe(request).await {
        Ok(_) => say(StatusCode::OK, "Done", "You won't get any more messages of this kind."),
        Err(status) => unserved(status),
    })
}

/// What can't be a token is no path of ours.
fn checked(token: Token) -> Result<String, Problem> {
    let Path(token) = token.map_err(|_| Problem::not_found())?;
    let is_one = token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if (1..=TOKEN_BYTES).contains(&token.len()) && is_one { Ok(token) } else { Err(Problem::not_found()) }
}

fn unserved(status: Status) -> Response {
    match status.into() {
        Error::NotFound(_) | Error::Invalid { .. } => {
            say(StatusCode::NOT_FOUND, "This link is not good", "It may be too old. The message itself still holds.")
        }
        error => {
            tracing::warn!(error = error.to_string().as_str(), "a link can't be followed");
            let mut answer =
                say(StatusCode::SERVICE_UNAVAILABLE, "Not now", "Please try again in a moment: nothing was done.");
            answer.headers_mut().insert(RETRY_AFTER_HEADER, HeaderValue::from(RETRY_AFTER.as_secs().max(1)));
            answer
        }
    }
}

fn ask(title: &str, text: &str, button: &str) -> Response {
    let form = format!("<form method=\"post\"><button>{button}</button></form>");
    page(StatusCode::OK, title, text, &form)
}

/// A page that only says something.
pub(crate) fn say(status: StatusCode, title: &str, text: &str) -> Response {
    page(status, title, text, "")
}

/// Whatever stands on a page is written in this file.
fn page(status: StatusCode, title: &str, text: &str, form: &str) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
    ];
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"robots\" content=\"noindex\"><title>{title}</title></head>\n\
         <body style=\"font-family: sans-serif; line-height: 1.5; max-width: 30em; margin: 4em auto; padding: 0 1em\">\n\
         <h1>{title}</h1>\n<p>{text}</p>\n{form}\n</body>\n</html>\n"
    );
    (status, headers, html).into_response()
}
