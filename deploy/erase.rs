//! `wedsync erase` and `erasures`: what is kept of a client, a wedding or a booking, for good; and that it was done.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use proto::vendorsync::v1::{
    EraseRecordRequest, EraseRecordResponse, Erasure, ListErasuresRequest, RecordKind,
    record_service_client::RecordServiceClient,
};

use crate::{
    client::System,
    command::time,
    table::{say, show},
};

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Client,
    Wedding,
    Booking,
}

/// Erase what is kept of a client, a wedding or a booking, for good.
///
/// Erase them first where they come from: in your own database and at the vendors that it lists, else what those say later
/// brings them back as somebody new. There is no way back.
#[derive(Args)]
#[command(after_help = "Examples:
  wedsync erase client c1 --dry-run      (what would go, and who else may have them)
  wedsync erase client c1
  wedsync erasures                       (what was erased, and by whom)")]
pub(crate) struct Erase {
    #[command(flatten)]
    system: System,
    /// What it is.
    kind: Kind,
    /// WedSync's own id of it.
    id: String,
    /// Say what would go, and erase nothing.
    #[arg(long)]
    dry_run: bool,
}

/// List what was erased, and by whom.
#[derive(Args)]
pub(crate) struct Erasures {
    #[command(flatten)]
    system: System,
}

impl Erase {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let kind = match self.kind {
            Kind::Client => RecordKind::Client,
            Kind::Wedding => RecordKind::Wedding,
            Kind::Booking => RecordKind::Booking,
        };
        let mut records = RecordServiceClient::new(self.system.vendor_sync().await?);
        let request =
            EraseRecordRequest { kind: kind.into(), id: self.id, dry_run: self.dry_run, ..Default::default() };
        let taken = records.erase_record(request).await?.into_inner();
        say(if self.dry_run { "would be erased, with:" } else { "erased, with:" });
        show(&["what", ""], figures(&taken).into_iter().map(|(name, count)| vec![name.to_owned(), count.to_string()]));
        if !taken.links.is_empty() {
            say("these systems may still have it: erase it there too");
            show(
                &["integration", "called there"],
                taken.links.into_iter().map(|it| vec![it.integration_id, it.external_id]),
            );
        }
        if !taken.related.is_empty() {
            say(&format!("it named these, which may name the person too: {}", taken.related.join(", ")));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn figures(taken: &EraseRecordResponse) -> [(&'static str, u64); 5] {
    [
        ("names in other systems", taken.links.len() as u64),
        ("letters to integrations", taken.letters),
        ("events on their way", taken.events),
        ("webhooks", taken.webhooks),
        ("lines of imports", taken.lines),
    ]
}

impl Erasures {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut records = RecordServiceClient::new(self.system.vendor_sync().await?);
        let (mut token, mut rows) = (String::new(), Vec::new());
        loop {
            let request = ListErasuresRequest { page_size: 500, page_token: token, ..Default::default() };
            let page = records.list_erasures(request).await?.into_inner();
            rows.extend(page.erasures.into_iter().map(row));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        show(&["record", "erased", "by"], rows);
        Ok(ExitCode::SUCCESS)
    }
}

fn row(erasure: Erasure) -> Vec<String> {
    let kind = match erasure.kind() {
        RecordKind::Unspecified => "?",
        RecordKind::Client => "client",
        RecordKind::Wedding => "wedding",
        RecordKind::Booking => "booking",
    };
    vec![format!("{kind} {}", erasure.id), time(erasure.erased_at), erasure.erased_by]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_once_when_it_was_erased() {
        let erased_at = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        let erasure = Erasure { id: "c1".to_owned(), erased_by: "ada".to_owned(), erased_at, ..Erasure::default() };
        assert_eq!(row(erasure), ["? c1", "1970-01-01 00:00:00.000Z", "ada"]);
    }
}
