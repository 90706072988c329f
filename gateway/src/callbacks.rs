//! What the providers of channels report: raw body, headers and query go to the notifier, whose result becomes the HTTP
//! answer. Nothing is decided here; a 2xx is only given for what the notifier calls durable.

use axum::{
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use chassis::{error::RETRY_AFTER, grpc::Connection};
use http::{HeaderMap, header::CONTENT_TYPE};
use proto::notifier::v1::{
    CallbackHeader, CallbackResult, ReceiveCallbackRequest, ReceiveCallbackResponse,
    callback_service_client::CallbackServiceClient,
};

use crate::{Gateway, body::Raw, problem::Problem, wire};

/// Where they go.
pub(crate) type Callbacks = CallbackServiceClient<Connection>;

const PROVIDERS: [&str; 4] = ["resend", "twilio", "whatsapp", "slack"];

type Named = Result<Path<String>, PathRejection>;

/// `POST /callbacks/{provider}`
pub(crate) async fn report(
    State(gateway): State<Gateway>,
    provider: Named,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Problem> {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| CallbackHeader {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let headers = headers.iter().map(header).collect();
    let query = query.unwrap_or_default();
    let request = ReceiveCallbackRequest { provider: named(provider)?, query, handshake: false, headers, body };
    receive(gateway, request).await
}

/// `GET /callbacks/{provider}`: a provider tries the address out.
pub(crate) async fn handshake(
    State(gateway): State<Gateway>,
    provider: Named,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = query.unwrap_or_default();
    let request = ReceiveCallbackRequest { provider: named(provider)?, query, handshake: true, ..Default::default() };
    receive(gateway, request).await
}

/// What can't be a provider is unknown, and isn't asked for.
fn named(provider: Named) -> Result<String, Problem> {
    let Path(provider) = provider.map_err(|_| Problem::not_found())?;
    if PROVIDERS.contains(&provider.as_str()) { Ok(provider) } else { Err(Problem::not_found()) }
}

async fn receive(mut gateway: Gateway, request: ReceiveCallbackRequest) -> Result<Response, Problem> {
    let received = gateway.callbacks.receive_callback(request).await.map_err(|status| {
        tracing::warn!(error = status.message(), "the notifier took no report");
        Problem::unavailable(RETRY_AFTER)
    })?;
    let received = received.into_inner();
    metrics::counter!("callbacks_received_total", "result" => wire::name(received.result().as_str_name(), "CALLBACK_RESULT_"))
        .increment(1);
    answer(received)
}

fn answer(received: ReceiveCallbackResponse) -> Result<Response, Problem> {
    match received.result() {
        CallbackResult::Taken => Ok(([(CONTENT_TYPE, received.content_type)], received.answer).into_response()),
        CallbackResult::Unknown => Err(Problem::not_found()),
        CallbackResult::Unverified => Err(Problem::unverified()),
        CallbackResult::Forbidden => Err(Problem::forbidden()),
        CallbackResult::Invalid => Err(Problem::invalid("", "the report can't be read")),
        CallbackResult::Unspecified => {
            tracing::error!("the notifier gave no result");
            Err(Problem::internal())
        }
    }
}
