//! A browser on its way to a vendor's page of consent and back. vendor-sync decides; here the browser gets the secret by
//! which it is known again.
//!
//! The secret is in a `__Host-` cookie: no other host, subdomain or plain connection can set one, and no script reads it. A
//! browser that has one keeps it, so that two connections at a time don't end each other. What a vendor sends along is never
//! shown, and a browser is only ever sent on to the vendor or to the configured dashboard.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::{
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chassis::{
    error::{Error, RETRY_AFTER},
    secret,
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri,
    header::{COOKIE, LOCATION, REFERRER_POLICY, RETRY_AFTER as RETRY_AFTER_HEADER, SET_COOKIE},
};
use proto::vendorsync::v1::{
    CompleteConnectionRequest, CompleteConnectionResponse, ConnectionResult, OpenConnectionRequest,
    connection_service_client::ConnectionServiceClient,
};
use tonic::Status;

use crate::{Gateway, links::say, problem::Problem};

/// Where vendors send browsers back to.
pub(crate) const CALLBACK: &str = "/oauth/callback";
/// As long as that may take at least: vendor-sync asks the vendor for tokens, and then whether they work, 10 s each.
pub(crate) const COMPLETED_WITHIN: Duration = Duration::from_secs(25);
const COOKIE_NAME: &str = "__Host-wedsync-oauth";
/// As long as a state is good.
const COOKIE_SECONDS: u32 = 600;
const TEXT_BYTES: usize = 128;
const CODE_BYTES: usize = 4 * 1024;

/// Where a browser is sent once an account was connected.
#[derive(Debug, Clone)]
pub(crate) struct Dashboard(String);

impl Dashboard {
    /// None for an empty setting.
    ///
    /// # Errors
    /// A text that is no URL of a page.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let url: Uri = text.parse().context("[gateway] dashboard_url")?;
        let fits = matches!(url.scheme_str(), Some("https" | "http")) && url.host().is_some() && !text.contains('#');
        ensure!(fits, "[gateway] dashboard_url must be like https://app.example.com/integrations");
        Ok(Some(Self(text.to_owned())))
    }

    fn with(&self, integration: &str, result: &str) -> String {
        let sign = if self.0.contains('?') { '&' } else { '?' };
        let integration = if is_ours(integration) { integration } else { "" };
        format!("{}{sign}integration={integration}&result={result}", self.0)
    }
}

/// `GET /oauth/start/{ticket}`
pub(crate) async fn start(
    State(gateway): State<Gateway>,
    method: Method,
    ticket: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(ticket) = ticket.map_err(|_| Problem::not_found())?;
    if !is_ours(&ticket) {
        return Err(Problem::not_found());
    }
    // What only looks ahead must not use the ticket up.
    if method == Method::HEAD || headers.contains_key("sec-purpose") {
        return Ok(not_now("Please open the link itself."));
    }
    let browser = known(&headers).unwrap_or_else(|| URL_SAFE_NO_PAD.encode(secret::random::<32>()));
    let mut client = ConnectionServiceClient::new(gateway.peers.vendor_sync.channel());
    let opened = client.open_connection(OpenConnectionRequest { ticket, browser: browser.clone() }).await;
    Ok(match opened {
        Ok(opened) => {
            let mut response = redirect(&opened.into_inner().location);
            let cookie =
                format!("{COOKIE_NAME}={browser}; Path=/; Max-Age={COOKIE_SECONDS}; Secure; HttpOnly; SameSite=Lax");
            response.headers_mut().insert(SET_COOKIE, HeaderValue::try_from(cookie).expect("base64 in plain ASCII"));
            response
        }
        Err(status) => unserved(status),
    })
}

/// `GET /oauth/callback`
pub(crate) async fn callback(
    State(gateway): State<Gateway>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let query = query.map(|Query(query)| query).unwrap_or_default();
    // What stands there twice was tampered with.
    let only = |wanted: &str| {
        let mut values = query.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none()).unwrap_or_default()
    };
    let (state, code) = (only("state"), only("code"));
    let (Some(browser), true) = (known(&headers), is_ours(state) && code.len() <= CODE_BYTES) else {
        return ended(
            &gateway,
            &CompleteConnectionResponse { result: ConnectionResult::Unknown.into(), ..Default::default() },
        );
    };
    // An error's own words stay with the vendor.
    let code = if only("error").is_empty() { code.to_owned() } else { String::new() };
    let request = CompleteConnectionRequest { state: state.to_owned(), code, browser };
    let mut client = ConnectionServiceClient::new(gateway.peers.vendor_sync.channel());
    match client.complete_connection(request).await {
        Ok(completed) => ended(&gateway, completed.get_ref()),
        Err(status) => unserved(status),
    }
}

/// The browser's own secret, if it has shown exactly one.
fn known(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut shown = pairs.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value);
    let (Some(value), None) = (shown.next(), shown.next()) else { return None };
    is_ours(value).then(|| value.to_owned())
}

fn is_ours(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=TEXT_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn ended(gateway: &Gateway, completed: &CompleteConnectionResponse) -> Response {
    let (status, result, title, text) = match completed.result() {
        ConnectionResult::Connected => {
            (StatusCode::OK, "connected", "Connected", "The account is connected. You can close this page.")
        }
        ConnectionResult::Denied => {
            (StatusCode::BAD_REQUEST, "denied", "Not connected", "The other side said no. Nothing was changed.")
        }
        ConnectionResult::Failed => (
            StatusCode::BAD_REQUEST,
            "failed",
            "Not connected",
            "The other side's answer could not be used. Please begin again where you came from.",
        ),
        // Whoever comes with a state that isn't theirs isn't sent on.
        ConnectionResult::Unknown | ConnectionResult::Unspecified => {
            let text = "It may be too old, used already, or opened in another browser. Please begin again.";
            return say(StatusCode::NOT_FOUND, "This link is not good", text);
        }
    };
    match &gateway.dashboard {
        Some(dashboard) => redirect(&dashboard.with(&completed.integration_id, result)),
        None => say(status, title, text),
    }
}

/// The next page must not learn of this one's address: it holds a ticket, or a code.
fn redirect(location: &str) -> Response {
    match HeaderValue::try_from(location) {
        Ok(location) => {
            (StatusCode::SEE_OTHER, [(LOCATION, location), (REFERRER_POLICY, HeaderValue::from_static("no-referrer"))])
                .into_response()
        }
        Err(_) => Problem::internal().into_response(),
    }
}

fn unserved(status: Status) -> Response {
    match status.into() {
        Error::NotFound(_) | Error::Invalid { .. } => {
            let text = "It may be too old, or opened already. Please begin again where you came from.";
            say(StatusCode::NOT_FOUND, "This link is not good", text)
        }
        error => {
            tracing::warn!(error = error.to_string().as_str(), "a connection can't be made");
            not_now("Please begin again in a moment.")
        }
    }
}

fn not_now(text: &str) -> Response {
    let mut answer = say(StatusCode::SERVICE_UNAVAILABLE, "Not now", text);
    answer.headers_mut().insert(RETRY_AFTER_HEADER, HeaderValue::from(RETRY_AFTER.as_secs().max(1)));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_known_by_one_cookie_of_ours_alone() {
        let shown = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, line.parse().expect("a header"));
            }
            known(&headers)
        };
        assert_eq!(shown(&["a=b; __Host-wedsync-oauth=AZ-_09; c=d"]).as_deref(), Some("AZ-_09"));
        for bad in [
            &["wedsync-oauth=a"][..],
            &["__Host-wedsync-oauth="],
            &["__Host-wedsync-oauth=a b"],
            &["__Host-wedsync-oauth=a; __Host-wedsync-oauth=b"],
            &["__Host-wedsync-oauth=a", "__Host-wedsync-oauth=a"],
            &[],
        ] {
            assert_eq!(shown(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_a_page_of_the_web_is_a_dashboard_and_it_gets_two_plain_words() {
        let to = |text: &str| Dashboard::parse(text).expect("a page").expect("one").with("0198-a", "connected");
        assert_eq!(to("https://app.example/x"), "https://app.example/x?integration=0198-a&result=connected");
        assert_eq!(to("https://app.example/?a=b"), "https://app.example/?a=b&integration=0198-a&result=connected");
        for bad in ["javascript:alert(1)", "//app.example", "https:///x", "ftp://a.example/", "https://a.example/#x"] {
            assert!(Dashboard::parse(bad).is_err(), "{bad}");
        }
        assert!(Dashboard::parse("").expect("none").is_none());
        let evil = Dashboard("https://app.example/".to_owned()).with("a&result=b", "denied");
        assert_eq!(evil, "https://app.example/?integration=&result=denied");
    }
}
