//! `wedsync conflicts`: where systems disagree about a record, and who decides.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use proto::vendorsync::v1::{
    Conflict, ConflictReason, ConflictState, FieldChange, FieldValue, ListConflictsRequest, RecordKind, Resolution,
    ResolveConflictRequest, record_service_client::RecordServiceClient,
};

use crate::{
    client::System,
    command::time,
    pages::{at_least_one, list},
    table::{say, show},
};

/// List where systems disagree about a record, or decide it.
#[derive(Args)]
#[command(after_help = "Examples:
  wedsync conflicts                                  (what waits for somebody's word)
  wedsync conflicts --all --record w-1
  wedsync conflicts resolve 0190... take             (what lost is right)
  wedsync conflicts resolve 0190... value '\"2026-06-20\"'")]
pub(crate) struct Conflicts {
    #[command(flatten)]
    system: System,
    /// Those too that a rule, or a person, has decided.
    #[arg(long)]
    all: bool,
    /// Only of this record, by its id.
    #[arg(long, value_name = "ID", default_value = "")]
    record: String,
    /// How many, oldest first.
    #[arg(long, default_value_t = 50, value_parser = at_least_one())]
    limit: u32,
    #[command(subcommand)]
    action: Option<ConflictAction>,
}

#[derive(Subcommand)]
enum ConflictAction {
    /// Say what is right. Every linked system is told.
    Resolve {
        /// The conflict's id.
        conflict: String,
        #[command(subcommand)]
        decision: Decision,
    },
}

#[derive(Subcommand)]
enum Decision {
    /// What stands is right; of a deletion: the record stays.
    Keep,
    /// What lost is right; of a deletion: the record goes.
    Take,
    /// Neither is: this is. Not for deletions.
    Value {
        /// JSON: a text stands in quotes.
        json: String,
    },
}

impl Conflicts {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut records = RecordServiceClient::new(self.system.vendor_sync().await?);
        if let Some(ConflictAction::Resolve { conflict, decision }) = self.action {
            let request = request(conflict, decision);
            let changes = records.resolve_conflict(request).await?.into_inner().changes;
            say(if changes.is_empty() { "it is resolved: nothing changes" } else { "it is resolved" });
            if !changes.is_empty() {
                show(&["field", "was", "is"], changes.into_iter().map(change_row));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let state = if self.all { ConflictState::Unspecified } else { ConflictState::Open };
        let listed = list(self.limit, async |page_size, page_token| {
            let (state, record_id) = (state.into(), self.record.clone());
            let request = ListConflictsRequest { state, record_id, page_size, page_token, ..Default::default() };
            let page = records.list_conflicts(request).await?.into_inner();
            Ok((page.conflicts, page.next_page_token))
        })
        .await?;
        let heading = ["conflict", "record", "field", "stands", "lost", "why", "state", "found"];
        listed.show(&heading, row);
        Ok(ExitCode::SUCCESS)
    }
}

fn request(id: String, decision: Decision) -> ResolveConflictRequest {
    let (resolution, value) = match decision {
        Decision::Keep => (Resolution::Keep, String::new()),
        Decision::Take => (Resolution::Take, String::new()),
        Decision::Value { json } => (Resolution::Value, json),
    };
    ResolveConflictRequest { id, resolution: resolution.into(), value, ..Default::default() }
}

fn row(conflict: Conflict) -> Vec<String> {
    let (state, why) = (state(conflict.state()), reason(conflict.reason()));
    let kind = match conflict.kind() {
        RecordKind::Unspecified => "?",
        RecordKind::Client => "client",
        RecordKind::Wedding => "wedding",
        RecordKind::Booking => "booking",
    };
    vec![
        conflict.id,
        format!("{kind} {}", conflict.record_id),
        if conflict.field.is_empty() { "(the whole record)".to_owned() } else { conflict.field },
        said(conflict.kept),
        said(conflict.losing),
        why.to_owned(),
        state.to_owned(),
        time(conflict.found_at),
    ]
}

/// A value with whose it is.
fn said(value: Option<FieldValue>) -> String {
    value.map(|said| format!("{} ({})", said.value, said.source)).unwrap_or_default()
}

fn change_row(change: FieldChange) -> Vec<String> {
    vec![change.field, change.old_value, change.new_value]
}

fn reason(reason: ConflictReason) -> &'static str {
    match reason {
        ConflictReason::Unspecified => "?",
        ConflictReason::Older => "it is older",
        ConflictReason::Tie => "of the same time",
        ConflictReason::Pinned => "pinned to another source",
        ConflictReason::DeletedAndEdited => "one deleted it, another edited it",
    }
}

fn state(state: ConflictState) -> &'static str {
    match state {
        ConflictState::Unspecified => "?",
        ConflictState::Open => "open",
        ConflictState::Settled => "settled",
        ConflictState::Resolved => "resolved",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_carries_a_value_only_where_it_names_one() {
        let value = request("c".to_owned(), Decision::Value { json: "90".to_owned() });
        assert_eq!((value.resolution(), value.value.as_str()), (Resolution::Value, "90"));
        let take = request("c".to_owned(), Decision::Take);
        assert_eq!((take.resolution(), take.value.as_str()), (Resolution::Take, ""));
    }

    #[test]
    fn a_row_says_whose_each_value_is_and_that_a_deletion_is_about_the_whole_record() {
        let source = |value: &str, source: &str| {
            Some(FieldValue { value: value.to_owned(), source: source.to_owned(), ..Default::default() })
        };
        let conflict = Conflict {
            kind: RecordKind::Wedding.into(),
            record_id: "w1".to_owned(),
            kept: source("90", "wedsync"),
            losing: source("null", "i1"),
            reason: ConflictReason::DeletedAndEdited.into(),
            state: ConflictState::Open.into(),
            ..Default::default()
        };
        let row = row(conflict);
        assert_eq!(row[1..5], ["wedding w1", "(the whole record)", "90 (wedsync)", "null (i1)"]);
        assert_eq!(row[5..7], ["one deleted it, another edited it", "open"]);
    }
}
