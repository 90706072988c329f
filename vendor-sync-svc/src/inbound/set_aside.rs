//! What was set aside: webhooks that nobody sends again and that couldn't be taken. People see them, mend what was wrong
//! (a mapping, a limit, a connector's text), and have one tried again.
//!
//! One that is tried again goes the way that it would have gone, as of the time when it came, under the id that its event
//! would have had: tried twice at once it has one effect. What still can't be taken stays, with the new reason.

use bytes::Bytes;
use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
};
use jiff::Timestamp;
use prost::Message as _;
use proto::vendorsync::v1 as wire;

use super::{
    Answer, Headers, Inbound, Request,
    spool::{Row, can_wait},
};
use crate::integration::{Integration, Kind};

/// One of them, without what it says.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct SetAside {
    /// Grows with each.
    pub(crate) sequence: i64,
    pub(crate) integration_id: String,
    received_at: i64,
    /// Why it couldn't be taken.
    #[sqlx(rename = "refused")]
    pub(crate) reason: String,
}

impl SetAside {
    pub(crate) fn received_at(&self) -> Timestamp {
        from_micros(self.received_at)
    }
}

impl Inbound {
    /// At most `limit` of an organization's, oldest first, after the one numbered `after`; of one integration, or of all.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn set_aside(
        &self,
        organization: &OrganizationId,
        integration: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<SetAside>> {
        self.spool.set_aside(organization, integration, after, limit).await
    }

    /// One of them, with the body as it came.
    ///
    /// # Errors
    /// `Error::NotFound` also for another organization's.
    pub(crate) async fn set_aside_with_body(
        &self,
        organization: &OrganizationId,
        sequence: i64,
    ) -> Result<(SetAside, Bytes)> {
        let row = self.spool.row(organization, sequence).await?;
        let plain = self.spool.open(organization, &row).await?;
        let body = if row.has_request != 0 { read(&plain)?.body } else { plain.into() };
        let Row { sequence, integration_id, received_at, refused: reason, .. } = row;
        Ok((SetAside { sequence, integration_id, received_at, reason }, body))
    }

    /// Tries one again, now. None: it was taken; else why it still can't be.
    ///
    /// # Errors
    /// `Error::NotFound` also for another organization's; `Error::FailedPrecondition` if its integration is gone; what would
    /// have made it wait, with which it stays as it was.
    pub(crate) async fn try_again(&self, organization: &OrganizationId, sequence: i64) -> Result<Option<String>> {
        let row = self.spool.row(organization, sequence).await?;
        let integration =
            self.integrations.get(organization, &row.integration_id).await.map_err(|error| match error {
                Error::NotFound(_) => Error::FailedPrecondition("its integration is gone".to_owned()),
                other => other,
            })?;
        let taken = if integration.settings.kind == Kind::Connector {
            self.take_again(&integration, &row).await
        } else {
            self.spool.publish_again(&row, &self.publisher).await
        };
        match taken {
            Ok(()) => {
                tracing::info!(integration.id, event.id = row.event_id, "a webhook that was set aside is taken");
                Ok(None)
            }
            Err(error) if can_wait(&error) => Err(error),
            Err(error) => self.spool.set_aside_anew(&row, &error).await.map(Some),
        }
    }

    async fn take_again(&self, integration: &Integration, row: &Row) -> Result<()> {
        let request = read(&self.spool.open(&integration.organization, row).await?)?;
        let vendors = self.vendors.as_ref().ok_or_else(|| Error::Unavailable("no connectors here".to_owned()))?;
        match Box::pin(vendors.take_again(self, integration, &request, row)).await {
            // Somebody else tried it at the same time.
            Ok(Answer::Accepted { .. } | Answer::Duplicate { .. }) => Ok(()),
            Ok(answer) | Err(answer) => Err(refused(answer)),
        }
    }
}

/// As it is kept.
pub(super) fn written(request: &Request) -> Vec<u8> {
    let header = |(name, value): &(String, Bytes)| wire::Header { name: name.clone(), value: value.clone() };
    wire::ReceiveWebhookRequest {
        vendor: request.vendor.clone(),
        integration_id: request.integration_id.clone(),
        headers: request.headers.0.iter().map(header).collect(),
        body: request.body.clone(),
        method: request.method.clone(),
        target: request.target.clone(),
        ..wire::ReceiveWebhookRequest::default()
    }
    .encode_to_vec()
}

fn read(kept: &[u8]) -> Result<Request> {
    let kept = wire::ReceiveWebhookRequest::decode(kept).map_err(|error| Error::internal(anyhow::Error::new(error)))?;
    Ok(Request {
        vendor: kept.vendor,
        integration_id: kept.integration_id,
        headers: Headers(kept.headers.into_iter().map(|header| (header.name, header.value)).collect()),
        body: kept.body,
        method: kept.method,
        target: kept.target,
    })
}

fn refused(answer: Answer) -> Error {
    match answer {
        Answer::Invalid { field, reason } => Error::Invalid { field, reason },
        Answer::Limited { retry_after } => Error::Exhausted { reason: "over the limit".to_owned(), retry_after },
        Answer::Unavailable { .. } => Error::Unavailable("the store or the router is away".to_owned()),
        other => Error::FailedPrecondition(other.name().to_owned()),
    }
}
