//! `WebhookService`: what the gateway calls for every inbound webhook. The answer says what HTTP answer is due. Beside it, what
//! people call for those that were set aside.

use std::{borrow::Cow, time::Duration};

use chassis::{
    auth,
    error::{Error, Result},
    id,
};
use proto::vendorsync::v1::{self as wire, WebhookResult, webhook_service_server::WebhookService};
use tonic::{Request, Response, Status};

use super::wire::{page_size, print_timestamp};
use crate::inbound::{self, Answer, Headers, Inbound, SetAside};

/// Webhooks over gRPC.
#[derive(Clone)]
pub(crate) struct Service {
    inbound: Inbound,
}

impl Service {
    pub(crate) fn new(inbound: Inbound) -> Self {
        Self { inbound }
    }
}

#[tonic::async_trait]
impl WebhookService for Service {
    async fn receive_webhook(
        &self,
        request: Request<wire::ReceiveWebhookRequest>,
    ) -> Result<Response<wire::ReceiveWebhookResponse>, Status> {
        let request = request.into_inner();
        let headers = request.headers.into_iter().map(|header| (header.name.to_ascii_lowercase(), header.value));
        let request = inbound::Request {
            vendor: request.vendor,
            integration_id: request.integration_id,
            headers: Headers(headers.collect()),
            body: request.body,
            method: if request.method.is_empty() { "POST".to_owned() } else { request.method },
            target: request.target,
        };
        Ok(Response::new(print(self.inbound.receive(&request).await)))
    }

    async fn list_spooled_webhooks(
        &self,
        request: Request<wire::ListSpooledWebhooksRequest>,
    ) -> Result<Response<wire::ListSpooledWebhooksResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (of, after) = (integration(&request.integration_id)?, after(&request.page_token)?);
        let mut page = self.inbound.set_aside(&organization, &of, after, i64::from(size) + 1).await?;
        let more = page.len() > size as usize;
        page.truncate(size as usize);
        let next_page_token = page.last().filter(|_| more).map(|last| last.sequence.to_string()).unwrap_or_default();
        let webhooks = page.into_iter().map(print_set_aside).collect();
        Ok(Response::new(wire::ListSpooledWebhooksResponse { webhooks, next_page_token }))
    }

    async fn get_spooled_webhook(
        &self,
        request: Request<wire::GetSpooledWebhookRequest>,
    ) -> Result<Response<wire::GetSpooledWebhookResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let (webhook, body) = self.inbound.set_aside_with_body(&organization, sequence(&request.get_ref().id)?).await?;
        Ok(Response::new(wire::GetSpooledWebhookResponse { webhook: Some(print_set_aside(webhook)), body }))
    }

    async fn retry_spooled_webhook(
        &self,
        request: Request<wire::RetrySpooledWebhookRequest>,
    ) -> Result<Response<wire::RetrySpooledWebhookResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let reason = self.inbound.try_again(&organization, sequence(&request.get_ref().id)?).await?;
        let taken = reason.is_none();
        Ok(Response::new(wire::RetrySpooledWebhookResponse { taken, reason: reason.unwrap_or_default() }))
    }
}

/// What isn't a number is nobody's.
fn sequence(id: &str) -> Result<i64> {
    id.parse().map_err(|_| Error::NotFound("webhook".into()))
}

fn after(page_token: &str) -> Result<i64> {
    if page_token.is_empty() {
        return Ok(0);
    }
    page_token.parse().map_err(|_| Error::invalid("page_token", "must be from the previous answer"))
}

/// Empty: all of them.
fn integration(given: &str) -> Result<String> {
    if given.is_empty() {
        return Ok(String::new());
    }
    let parsed =
        id::parse_uuid(given).ok_or_else(|| Error::invalid("integration_id", "must be an integration's id"))?;
    Ok(id::uuid_text(parsed))
}

fn print_set_aside(webhook: SetAside) -> wire::SpooledWebhook {
    wire::SpooledWebhook {
        id: webhook.sequence.to_string(),
        received_at: Some(print_timestamp(webhook.received_at())),
        integration_id: webhook.integration_id,
        reason: webhook.reason,
    }
}

fn print(answer: Answer) -> wire::ReceiveWebhookResponse {
    let mut response = wire::ReceiveWebhookResponse::default();
    let (result, detail): (_, Cow<'static, str>) = match answer {
        Answer::Accepted { event_id } => {
            response.event_ids = vec![event_id];
            (WebhookResult::Accepted, "".into())
        }
        Answer::Duplicate { event_id } => {
            response.event_ids = vec![event_id];
            (WebhookResult::Duplicate, "Duplicate".into())
        }
        Answer::Echo { status, body } => {
            (response.echo_status, response.echo) = (status.into(), body);
            (WebhookResult::Echo, "".into())
        }
        Answer::Unknown => (WebhookResult::Unknown, "".into()),
        Answer::Unverified => (WebhookResult::Unverified, "Invalid signature".into()),
        Answer::Invalid { field, reason } => {
            response.field = field.into_owned();
            (WebhookResult::Invalid, reason.into())
        }
        Answer::Limited { retry_after } => {
            response.retry_after = Some(print_duration(retry_after));
            (WebhookResult::Limited, "Rate limit exceeded".into())
        }
        Answer::Unavailable { retry_after } => {
            response.retry_after = Some(print_duration(retry_after));
            (WebhookResult::Unavailable, "Try again later".into())
        }
        Answer::Conflict => (WebhookResult::Conflict, "This id came with another body before".into()),
    };
    response.set_result(result);
    response.detail = detail.into_owned();
    response
}

/// Whole seconds, rounded up: what the header `Retry-After` can say.
fn print_duration(duration: Duration) -> prost_types::Duration {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    prost_types::Duration { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_own_result_and_says_no_more_than_the_sender_may_know() {
        let second = Duration::from_millis(500);
        let event_id = || "e1".to_owned();
        let cases = [
            (Answer::Accepted { event_id: event_id() }, WebhookResult::Accepted, ""),
            (Answer::Duplicate { event_id: event_id() }, WebhookResult::Duplicate, "Duplicate"),
            (Answer::Echo { status: 200, body: "x".to_owned() }, WebhookResult::Echo, ""),
            (Answer::Unknown, WebhookResult::Unknown, ""),
            (Answer::Unverified, WebhookResult::Unverified, "Invalid signature"),
            (
                Answer::Invalid { field: "event".into(), reason: "must be there".into() },
                WebhookResult::Invalid,
                "must be there",
            ),
            (Answer::Limited { retry_after: second }, WebhookResult::Limited, "Rate limit exceeded"),
            (Answer::Unavailable { retry_after: second }, WebhookResult::Unavailable, "Try again later"),
            (Answer::Conflict, WebhookResult::Conflict, "This id came with another body before"),
        ];
        for (answer, result, detail) in cases {
            let printed = print(answer.clone());
            assert_eq!((printed.result(), printed.detail.as_str()), (result, detail));
            assert_eq!(
                printed.retry_after.is_some(),
                matches!(result, WebhookResult::Limited | WebhookResult::Unavailable)
            );
            assert!(printed.retry_after.is_none_or(|wait| wait.seconds == 1), "rounded up");
            assert_eq!(!printed.field.is_empty(), result == WebhookResult::Invalid);
        }
    }
}
