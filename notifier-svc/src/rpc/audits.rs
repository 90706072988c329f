//! `AuditService`: who did what, over gRPC.

use std::sync::Arc;

use chassis::auth::caller;
use proto::notifier::v1::{self as wire, ListAuditsRequest, ListAuditsResponse, audit_service_server::AuditService};
use tonic::{Request, Response, Status};

use super::{cut, page_size, timestamp};
use crate::{
    audit::{self, Audited},
    tell::Notifier,
};

/// The service.
pub(crate) struct Audits(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl AuditService for Audits {
    async fn list_audits(&self, request: Request<ListAuditsRequest>) -> Result<Response<ListAuditsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (subject, before, now) = (&request.subject, &request.page_token, self.0.clock.now());
        let limit = i64::from(size) + 1;
        let mut audits = audit::list(&self.0.store, &organization, subject, before, limit, now).await?;
        let next_page_token = cut(&mut audits, size, |audit| &audit.id);
        Ok(Response::new(ListAuditsResponse { audits: audits.into_iter().map(print).collect(), next_page_token }))
    }
}

fn print(audited: Audited) -> wire::Audit {
    let created_at = Some(timestamp(audited.created_at()));
    let Audited { id, action, by_key: by, subject, detail, .. } = audited;
    wire::Audit { id, action, by, subject, detail, created_at }
}
