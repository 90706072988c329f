//! `CaptureService`: how far captured databases are, and what became of changes that the log didn't take.

use chassis::error::{Error, Result};
use proto::router::v1::{
    Capture as WireCapture, CaptureRefusal, CaptureState, DismissRefusalsRequest, DismissRefusalsResponse,
    ListCapturesRequest, ListCapturesResponse, ListRefusalsRequest, ListRefusalsResponse,
    capture_service_server::CaptureService,
};
use tonic::{Request, Response, Status};

use super::{page_size, text, wire::print_timestamp};
use crate::capture::{Capture, Captures, Kept, Standing};

pub(crate) struct CaptureRpc {
    pub(crate) captures: Captures,
}

#[tonic::async_trait]
impl CaptureService for CaptureRpc {
    async fn list_captures(&self, _: Request<ListCapturesRequest>) -> Result<Response<ListCapturesResponse>, Status> {
        let captures = self.captures.list().await?;
        Ok(Response::new(ListCapturesResponse { captures: captures.into_iter().map(print).collect() }))
    }

    async fn list_refusals(
        &self,
        request: Request<ListRefusalsRequest>,
    ) -> Result<Response<ListRefusalsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let before = before(&request.page_token)?;
        let page = self.captures.refusals(text("capture", &request.capture)?, before, size).await?;
        let is_full = page.len() == size as usize;
        let next_page_token = page.last().filter(|_| is_full).map(|last| last.number.to_string()).unwrap_or_default();
        Ok(Response::new(ListRefusalsResponse {
            refusals: page.into_iter().map(print_refusal).collect(),
            next_page_token,
        }))
    }

    async fn dismiss_refusals(
        &self,
        request: Request<DismissRefusalsRequest>,
    ) -> Result<Response<DismissRefusalsResponse>, Status> {
        let DismissRefusalsRequest { capture, from, through } = request.into_inner();
        if capture.is_empty() {
            return Err(Error::invalid("capture", "must be given").into());
        }
        if from < 0 || through < from.max(1) {
            return Err(Error::invalid("through", "must be a number, and not before `from`").into());
        }
        let dismissed = self.captures.dismiss(text("capture", &capture)?, from, through).await?;
        tracing::info!(source = capture, from, through, dismissed, "refusals were dismissed");
        Ok(Response::new(DismissRefusalsResponse { dismissed: i64::try_from(dismissed).unwrap_or(i64::MAX) }))
    }
}

/// The number that a page ends before.
fn before(page_token: &str) -> Result<i64> {
    if page_token.is_empty() {
        return Ok(i64::MAX);
    }
    page_token.parse().map_err(|_| Error::invalid("page_token", "must be from the previous answer"))
}

fn print(capture: Capture) -> WireCapture {
    let state = match capture.standing {
        Standing::Away => CaptureState::Away,
        Standing::Preparing => CaptureState::Preparing,
        Standing::Streaming => CaptureState::Streaming,
    };
    WireCapture {
        name: capture.name,
        state: state.into(),
        generation: capture.generation,
        lost: capture.lost,
        acknowledged: capture.acknowledged,
        lag_bytes: capture.lag_bytes.map(|bytes| bytes as i64),
        lag: capture.lag_seconds.map(duration),
        refusals: capture.refusals,
    }
}

fn duration(seconds: f64) -> prost_types::Duration {
    let whole = seconds.max(0.0).floor();
    prost_types::Duration { seconds: whole as i64, nanos: ((seconds.max(0.0) - whole) * 1e9) as i32 }
}

fn print_refusal(kept: Kept) -> CaptureRefusal {
    CaptureRefusal {
        number: kept.number,
        capture: kept.source,
        event_id: kept.event_id,
        table: kept.table,
        operation: kept.operation,
        key: kept.key,
        reason: kept.reason,
        refused_at: Some(print_timestamp(kept.refused_at)),
    }
}
