//! `wedsync import`, `imports` and `reconcile`: start one, follow it, and answer what it asks.
//!
//! The import itself runs in the system: whoever follows it may go, and come back.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use proto::vendorsync::v1::{
    CancelImportRequest, GetImportRequest, Import, ImportRequest, ImportSource, ImportState, ImportWork,
    ListImportsRequest, ReconcileRequest, ResumeImportRequest, StartImport, WatchImportRequest,
    import_request::Message, import_service_client::ImportServiceClient,
};
use tokio::{fs::File, io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    client::{Authorized, System},
    command::time,
    pages::{at_least_one, list},
    progress::Progress,
    table::{say, show},
};

/// Bytes of a file in one message.
const PIECE: usize = 256 << 10;

/// Take in everything that a vendor, a table or a calendar has.
///
/// Without a file, the vendor's own list is read through the integration's connector. With one, its rows are: a table
/// (.csv) of clients, weddings or bookings whose first line is a heading, or a calendar (.ics). Columns are known by their
/// names (`E-mail`, `First name`, `Wedding date`, ...); say what others are with --map. Run it twice and nothing is there
/// twice; what would change more than a fifth of what is linked asks first.
#[derive(Args)]
#[command(after_help = "Examples:
  wedsync import --integration 0190... --file clients.csv --dry-run
  wedsync import --integration 0190... --file clients.csv --map 'Bride=first_name' --date-format %d/%m/%Y
  wedsync import --integration 0190... --file bookings.ics
  wedsync imports                      (what there is, and what asks)
  wedsync imports watch 0190...        (follow one again)")]
pub(crate) struct ImportCommand {
    #[command(flatten)]
    system: System,
    /// The integration whose records they are (`wedsync integrations` lists them).
    #[arg(long, value_name = "ID")]
    integration: String,
    /// A table (.csv, .tsv, .txt) or a calendar (.ics), at most 100 MiB.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the rows are: client (a table's default), wedding or booking (a calendar's default).
    #[arg(long, value_name = "KIND", default_value = "")]
    kind: String,
    /// What a column is, as COLUMN=FIELD; COLUMN= leaves it out. May be given several times.
    #[arg(long, value_name = "COLUMN=FIELD", value_parser = parse_map)]
    map: Vec<(String, String)>,
    /// The column that holds a row's id. Default: `external_id`, `id` or `uid`, else what makes a row itself.
    #[arg(long, value_name = "COLUMN", default_value = "")]
    id_column: String,
    /// How dates are written: %d day, %m month, %Y year. Default: %Y-%m-%d.
    #[arg(long, value_name = "FORMAT", default_value = "")]
    date_format: String,
    /// Count what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// List imports, follow one, or answer what it asks.
#[derive(Args)]
pub(crate) struct ImportsCommand {
    #[command(flatten)]
    system: System,
    /// How many, newest first.
    #[arg(long, default_value_t = 50, value_parser = at_least_one())]
    limit: u32,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// One import: its figures, what was refused and what differed.
    Show {
        /// Its id.
        import: String,
    },
    /// Follow one until it has ended or asks.
    Watch {
        /// Its id.
        import: String,
    },
    /// Say yes to one that asks, or have one that failed go on where it was.
    Resume {
        /// Its id.
        import: String,
    },
    /// Stop one where it is; what was applied stays.
    Cancel {
        /// Its id.
        import: String,
    },
}

/// Compare a vendor's list with what is linked, and mend what differs.
///
/// What the vendor changed and we never heard of is taken in, what it lacks is sent, and what has vanished there is told.
#[derive(Args)]
pub(crate) struct ReconcileCommand {
    #[command(flatten)]
    system: System,
    /// The integration.
    #[arg(long, value_name = "ID")]
    integration: String,
    /// Say what differs, and mend nothing.
    #[arg(long)]
    dry_run: bool,
}

fn parse_map(text: &str) -> Result<(String, String), String> {
    let (column, field) = text.split_once('=').ok_or("must be COLUMN=FIELD")?;
    Ok((column.to_owned(), field.to_owned()))
}

impl ImportCommand {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let source = self.file.as_deref().map_or(Ok(ImportSource::Vendor), source)?;
        let file = match &self.file {
            Some(path) => Some(File::open(path).await.with_context(|| format!("open {}", path.display()))?),
            None => None,
        };
        let start = StartImport {
            integration_id: self.integration,
            source: source.into(),
            record_kind: self.kind,
            columns: HashMap::from_iter(self.map),
            id_column: self.id_column,
            date_format: self.date_format,
            dry_run: self.dry_run,
        };
        let mut imports = ImportServiceClient::new(self.system.vendor_sync().await?);
        let (sender, receiver) = mpsc::channel(2);
        let upload = upload(sender, start, file);
        let followed = async {
            let told = imports.import(ReceiverStream::new(receiver)).await?.into_inner();
            follow(told.map(|told| told.map(|told| told.import))).await
        };
        tokio::select! {
            followed = followed => followed,
            // A file that is sent has nothing more to say.
            Err(error) = upload => Err(error),
        }
    }
}

impl ImportsCommand {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut imports = ImportServiceClient::new(self.system.vendor_sync().await?);
        match self.action {
            None => {
                let listed = list(self.limit, async |page_size, page_token| {
                    let request = ListImportsRequest { page_size, page_token, ..Default::default() };
                    let page = imports.list_imports(request).await?.into_inner();
                    Ok((page.imports, page.next_page_token))
                })
                .await?;
                let heading =
                    ["import", "integration", "what", "state", "seen", "new", "changed", "refused", "began", "why"];
                listed.show(&heading, row);
            }
            Some(Action::Show { import }) => {
                let got = imports.get_import(GetImportRequest { id: import }).await?.into_inner().import;
                print(&got.unwrap_or_default());
            }
            Some(Action::Watch { import }) => return watch(&mut imports, import).await,
            Some(Action::Resume { import }) => {
                imports.resume_import(ResumeImportRequest { id: import.clone() }).await?;
                return watch(&mut imports, import).await;
            }
            Some(Action::Cancel { import }) => {
                let cancelled = imports.cancel_import(CancelImportRequest { id: import }).await?.into_inner().import;
                print(&cancelled.unwrap_or_default());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ReconcileCommand {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut imports = ImportServiceClient::new(self.system.vendor_sync().await?);
        let request = ReconcileRequest { integration_id: self.integration, dry_run: self.dry_run };
        let told = imports.reconcile(request).await?.into_inner();
        follow(told.map(|told| told.map(|told| told.import))).await
    }
}

fn source(file: &Path) -> Result<ImportSource> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "csv" | "tsv" | "txt" => Ok(ImportSource::Csv),
        "ics" | "ical" | "ifb" => Ok(ImportSource::Icalendar),
        _ => bail!("{}: must end in .csv, .tsv, .txt or .ics", file.display()),
    }
}

/// The first message, and the file a piece at a time, for as long as somebody takes them: who doesn't says why in the answer.
async fn upload(sender: mpsc::Sender<ImportRequest>, start: StartImport, file: Option<File>) -> Result<()> {
    let send = async |message| sender.send(ImportRequest { message: Some(message) }).await.is_ok();
    let mut is_taken = send(Message::Start(start)).await;
    let Some(mut file) = file else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    while is_taken {
        let read = file.read(&mut piece).await?;
        if read == 0 {
            send(Message::Complete(true)).await;
            break;
        }
        is_taken = send(Message::Content(piece[..read].to_vec().into())).await;
    }
    Ok(())
}

async fn watch(imports: &mut ImportServiceClient<Authorized>, id: String) -> Result<ExitCode> {
    let told = imports.watch_import(WatchImportRequest { id }).await?.into_inner();
    follow(told.map(|told| told.map(|told| told.import))).await
}

/// Shows how an import is until it has stopped, or somebody presses Ctrl-C.
async fn follow(told: impl Stream<Item = Result<Option<Import>, Status>>) -> Result<ExitCode> {
    let (mut told, mut progress, mut last) = (std::pin::pin!(told), Progress::default(), None);
    loop {
        let next = tokio::select! {
            next = told.next() => next,
            _ = tokio::signal::ctrl_c() => return Ok(leave(&mut progress, last.as_ref())),
        };
        match next {
            Some(Ok(import)) => {
                let import = import.unwrap_or_default();
                progress.tell(&import);
                last = Some(import);
            }
            Some(Err(status)) => {
                progress.end();
                return Err(status.into());
            }
            None => break,
        }
    }
    progress.end();
    let Some(import) = last else { bail!("the answer names no import") };
    print(&import);
    Ok(if import.state() == ImportState::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn leave(progress: &mut Progress, import: Option<&Import>) -> ExitCode {
    progress.end();
    match import {
        Some(import) if import.state() == ImportState::Receiving => {
            say("the file had not arrived as a whole: this import fails; start it again");
        }
        Some(import) => say(&format!("the import goes on; follow it again with: wedsync imports watch {}", import.id)),
        None => say("the import had not begun"),
    }
    ExitCode::FAILURE
}

fn print(import: &Import) {
    let dry = if import.dry_run { " (a dry run: nothing was changed)" } else { "" };
    say(&format!("import {}: {}{dry}", import.id, state(import.state())));
    if !import.reason.is_empty() {
        say(&format!("  {}", import.reason));
    }
    if import.state() == ImportState::Asked {
        let (id, linked, planned) = (&import.id, import.linked, import.planned);
        say(&format!("  {planned} of {linked} linked records would change, {} have vanished", import.vanished));
        say(&format!("  go on: wedsync imports resume {id}    leave it: wedsync imports cancel {id}"));
    }
    let figures = figures(import);
    if !figures.is_empty() {
        show(&["records", ""], figures.into_iter().map(|(name, count)| vec![name.to_owned(), count.to_string()]));
    }
    if !import.refusals.is_empty() {
        let rows = import.refusals.iter().map(|refusal| vec![line(refusal.line), refusal.reason.clone()]);
        show(&["line", "refused because it"], rows);
    }
    if import.work() == ImportWork::Reconcile && !import.examples.is_empty() {
        let rows = import.examples.iter().map(|example| {
            vec![
                example.difference.clone(),
                example.external_id.clone(),
                example.record_id.clone(),
                example.fields.join(", "),
            ]
        });
        show(&["difference", "there", "here", "fields"], rows);
    }
}

/// What there is to count: only a comparison finds what has vanished, and sends; what failed before it saw anything has none.
fn figures(import: &Import) -> Vec<(&'static str, u64)> {
    if import.state() == ImportState::Failed && import.seen == 0 {
        return Vec::new();
    }
    let mut figures = vec![
        ("seen", import.seen),
        ("new", import.created),
        ("changed", import.changed),
        ("unchanged", import.unchanged),
        ("refused", import.refused),
    ];
    if import.work() == ImportWork::Reconcile {
        figures.extend([("vanished", import.vanished), ("sent", import.sent)]);
    }
    figures
}

/// Line 0: the list as a whole.
fn line(number: u64) -> String {
    if number == 0 { "all".to_owned() } else { number.to_string() }
}

fn row(import: Import) -> Vec<String> {
    let what = match (import.work(), import.source()) {
        (ImportWork::Reconcile, _) => "comparison",
        (_, ImportSource::Csv) => "table",
        (_, ImportSource::Icalendar) => "calendar",
        _ => "vendor's list",
    };
    vec![
        import.id.clone(),
        import.integration_id.clone(),
        if import.dry_run { format!("{what}, dry run") } else { what.to_owned() },
        state(import.state()).to_owned(),
        import.seen.to_string(),
        import.created.to_string(),
        import.changed.to_string(),
        import.refused.to_string(),
        time(import.created_at),
        import.reason,
    ]
}

fn state(state: ImportState) -> &'static str {
    match state {
        ImportState::Unspecified => "?",
        ImportState::Receiving => "receiving",
        ImportState::Running => "running",
        ImportState::Asked => "asking",
        ImportState::Done => "done",
        ImportState::Failed => "failed",
        ImportState::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_ending_says_what_it_is() {
        assert_eq!(source(Path::new("a/B.CSV")).expect("a table"), ImportSource::Csv);
        assert_eq!(source(Path::new("a.ics")).expect("a calendar"), ImportSource::Icalendar);
        assert!(source(Path::new("a.xlsx")).is_err() && source(Path::new("a")).is_err());
    }

    #[test]
    fn only_what_was_counted_is_shown() {
        let failed = Import { state: ImportState::Failed.into(), ..Default::default() };
        assert!(figures(&failed).is_empty());
        assert_eq!(figures(&Import { seen: 2, ..failed }).len(), 5);
        let comparison = Import { work: ImportWork::Reconcile.into(), ..Default::default() };
        assert_eq!(figures(&comparison).last(), Some(&("sent", 0)));
    }

    #[tokio::test]
    async fn an_upload_that_nobody_takes_any_more_leaves_the_reason_to_the_answer() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let file = File::open("Cargo.toml").await.expect("a file");
        upload(sender, StartImport::default(), Some(file)).await.expect("it is no error of its own");
    }

    #[test]
    fn a_column_may_be_left_out_and_an_equals_sign_is_needed() {
        assert_eq!(parse_map("Bride=first_name"), Ok(("Bride".to_owned(), "first_name".to_owned())));
        assert_eq!(parse_map("Notes="), Ok(("Notes".to_owned(), String::new())));
        assert!(parse_map("Bride").is_err());
    }
}
