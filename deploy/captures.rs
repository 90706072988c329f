//! `wedsync captures`: how far captured databases are, and changes that the log didn't take.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use proto::router::v1::{
    Capture, CaptureRefusal, CaptureState, DismissRefusalsRequest, ListCapturesRequest, ListRefusalsRequest,
    capture_service_client::CaptureServiceClient,
};

use crate::{
    client::Operated,
    command::time,
    pages::{at_least_one, list},
    table::{say, show},
};

/// List captured databases, or changes that the log didn't take.
#[derive(Args)]
pub(crate) struct Captures {
    #[command(flatten)]
    system: Operated,
    #[command(subcommand)]
    action: Option<CaptureAction>,
}

#[derive(Subcommand)]
enum CaptureAction {
    /// Changes that the log didn't take, newest first.
    Refusals {
        /// Only of this one.
        #[arg(long, default_value = "")]
        capture: String,
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = at_least_one())]
        limit: u32,
    },
    /// Forget refusals that you have seen to.
    Dismiss {
        /// Whose.
        capture: String,
        /// The last number.
        #[arg(long)]
        through: i64,
        /// The first one; without it, the oldest.
        #[arg(long, default_value_t = 0)]
        from: i64,
    },
}

impl Captures {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut captures = CaptureServiceClient::new(self.system.router().await?);
        match self.action {
            None => {
                let listed = captures.list_captures(ListCapturesRequest {}).await?.into_inner().captures;
                let heading =
                    ["capture", "state", "generation", "acknowledged", "lag bytes", "lag", "refusals", "lost"];
                show(&heading, listed.into_iter().map(row));
            }
            Some(CaptureAction::Refusals { capture, limit }) => {
                let listed = list(limit, async |page_size, page_token| {
                    let request = ListRefusalsRequest { page_size, page_token, capture: capture.clone() };
                    let page = captures.list_refusals(request).await?.into_inner();
                    Ok((page.refusals, page.next_page_token))
                })
                .await?;
                let heading = ["number", "capture", "table", "operation", "key", "at", "why", "event"];
                listed.show(&heading, refusal_row);
            }
            Some(CaptureAction::Dismiss { capture, through, from }) => {
                let request = DismissRefusalsRequest { capture, from, through };
                let dismissed = captures.dismiss_refusals(request).await?.into_inner().dismissed;
                say(&format!("{dismissed} refusals are forgotten"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(capture: Capture) -> Vec<String> {
    let state = match capture.state() {
        CaptureState::Unspecified => "?",
        CaptureState::Away => "away",
        CaptureState::Preparing => "preparing",
        CaptureState::Streaming => "streaming",
    };
    let lag = capture.lag.map(|lag| format!("{:.3} s", lag.seconds as f64 + f64::from(lag.nanos) / 1e9));
    vec![
        capture.name,
        state.to_owned(),
        capture.generation.to_string(),
        capture.acknowledged,
        capture.lag_bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
        lag.unwrap_or_default(),
        capture.refusals.to_string(),
        capture.lost,
    ]
}

fn refusal_row(refusal: CaptureRefusal) -> Vec<String> {
    vec![
        refusal.number.to_string(),
        refusal.capture,
        refusal.table,
        refusal.operation,
        refusal.key,
        time(refusal.refused_at),
        refusal.reason,
        refusal.event_id,
    ]
}
