//! Webhooks in: raw body and headers go to vendor-sync, whose result becomes the HTTP answer. Nothing is decided here;
//! a 2xx is only given for what vendor-sync calls durable.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Request, State, rejection::PathRejection},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use chassis::{
    error::{Error, RETRY_AFTER},
    grpc::Connection,
};
use http::{
    HeaderMap, Method, StatusCode,
    header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use proto::vendorsync::v1::{
    Header, ReceiveWebhookRequest, ReceiveWebhookResponse, WebhookResult, webhook_service_client::WebhookServiceClient,
};
use serde::Serialize;

use crate::{Gateway, body::Raw, edge::Sender, problem::Problem, wire};

/// Where they go.
pub(crate) type Webhooks = WebhookServiceClient<Connection>;

const INTEGRATION: &str = "x-wedsync-integration";
const NAME_CHARACTERS: usize = 64;

/// A webhook that was taken.
#[derive(Debug, Serialize)]
pub(crate) struct Taken {
    success: bool,
    /// It was processed before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

type Answer = Result<Response, Problem>;

/// `POST /webhooks/{vendor}/{integration_id}`
pub(crate) async fn by_path(State(gateway): State<Gateway>, to: InPath, webhook: Webhook) -> Answer {
    receive(gateway, to.vendor, to.integration_id, webhook).await
}

/// `GET /webhooks/{vendor}/{integration_id}`: a vendor tries the address out.
pub(crate) async fn handshake(State(gateway): State<Gateway>, to: InPath, webhook: Webhook) -> Answer {
    receive(gateway, to.vendor, to.integration_id, webhook).await
}

/// `POST /webhooks/client-sync`
pub(crate) async fn client_sync(State(gateway): State<Gateway>, InHeader(id): InHeader, webhook: Webhook) -> Answer {
    receive(gateway, "client-sync".to_owned(), id, webhook).await
}

/// `POST /webhooks/channel-events`
pub(crate) async fn channel_events(State(gateway): State<Gateway>, InHeader(id): InHeader, webhook: Webhook) -> Answer {
    receive(gateway, "channel-events".to_owned(), id, webhook).await
}

/// `POST /webhooks/supabase`
pub(crate) async fn supabase(State(gateway): State<Gateway>, InHeader(id): InHeader, webhook: Webhook) -> Answer {
    receive(gateway, "supabase".to_owned(), id, webhook).await
}

async fn receive(mut gateway: Gateway, vendor: String, integration_id: String, webhook: Webhook) -> Answer {
    let request = ReceiveWebhookRequest {
        vendor,
        integration_id,
        headers: webhook.headers.iter().map(header).collect(),
        body: webhook.body,
        remote_address: webhook.sender.to_string(),
        method: webhook.method.to_string(),
        target: webhook.target,
    };
    let received = gateway.webhooks.receive_webhook(request).await.map_err(|status| unserved(status.into()))?;
    let received = received.into_inner();
    metrics::counter!("webhooks_received_total", "result" => wire::name(received.result().as_str_name(), "WEBHOOK_RESULT_"))
        .increment(1);
    answer(received)
}

fn header((name, value): (&http::HeaderName, &http::HeaderValue)) -> Header {
    Header { name: name.as_str().to_owned(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

/// What a failed call means for the sender: it isn't about the request, whatever it is.
fn unserved(error: Error) -> Problem {
    metrics::counter!("webhooks_unserved_total").increment(1);
    match error {
        Error::Internal(_) => error.into(),
        error => {
            tracing::warn!(error = error.to_string().as_str(), "vendor-sync took no webhook");
            Problem::unavailable(RETRY_AFTER)
        }
    }
}

fn answer(received: ReceiveWebhookResponse) -> Answer {
    let retry_after = received.retry_after.and_then(|wait| wait.try_into().ok()).unwrap_or(RETRY_AFTER);
    match received.result() {
        WebhookResult::Accepted => Ok(Json(Taken { success: true, duplicate: false }).into_response()),
        WebhookResult::Duplicate => Ok(Json(Taken { success: true, duplicate: true }).into_response()),
        WebhookResult::Echo => Ok(echo(received)),
        WebhookResult::Unknown => Err(Problem::not_found()),
        WebhookResult::Unverified => Err(Problem::unverified()),
        WebhookResult::Invalid => Err(Problem::invalid(received.field, received.detail)),
        WebhookResult::Limited => Err(Problem::limited(retry_after, received.detail)),
        WebhookResult::Unavailable => Err(Problem::unavailable(retry_after)),
        WebhookResult::Conflict => Err(Problem::conflict(received.detail)),
        WebhookResult::Unspecified => {
            tracing::error!("vendor-sync gave no result");
            Err(Problem::internal())
        }
    }
}

/// Plain text, whatever it says: nothing of it is ever read as a page.
fn echo(received: ReceiveWebhookResponse) -> Response {
    let status = u16::try_from(received.echo_status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let plain = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status.unwrap_or(StatusCode::OK), plain, received.echo).into_response()
}

/// Which integration a path names. What can't be one is unknown, and isn't asked for.
pub(crate) struct InPath {
    vendor: String,
    integration_id: String,
}

impl FromRequestParts<Gateway> for InPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let path: Result<Path<(String, String)>, PathRejection> = Path::from_request_parts(parts, gateway).await;
        let Path((vendor, integration_id)) = path.map_err(|_| Problem::not_found())?;
        if is_name(&vendor) && is_name(&integration_id) {
            Ok(Self { vendor, integration_id })
        } else {
            Err(Problem::not_found())
        }
    }
}

/// Which integration `X-WedSync-Integration` names, given once.
pub(crate) struct InHeader(String);

impl FromRequestParts<Gateway> for InHeader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all(INTEGRATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Err(Problem::not_found()) };
        let id = value.to_str().ok().filter(|id| is_name(id));
        id.map(|id| Self(id.to_owned())).ok_or_else(Problem::not_found)
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=NAME_CHARACTERS).contains(&text.len()) && text.bytes().all(allowed)
}

/// What vendor-sync gets to see.
pub(crate) struct Webhook {
    headers: HeaderMap,
    body: Bytes,
    sender: IpAddr,
    method: Method,
    /// Path and query.
    target: String,
}

/// Path and query.
fn asked_for(request: &Request) -> String {
    request.uri().path_and_query().map(ToString::to_string).unwrap_or_default()
}

impl FromRequest<Gateway> for Webhook {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        let (headers, method) = (request.headers().clone(), request.method().clone());
        let target = asked_for(&request);
        let Sender(sender) = *request.extensions().get().expect("the edge says who sends");
        let Raw(body) = Raw::from_request(request, gateway).await?;
        Ok(Self { headers, body, sender, method, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_nothing_that_means_something_elsewhere() {
        for good in ["client-sync", "0198c5a2-7f3e-7000-8000-000000000001", "Hub_Spot"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "a/b", "..", "a\nb", "é", &"a".repeat(65)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
