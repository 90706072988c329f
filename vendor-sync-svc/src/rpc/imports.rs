//! `ImportService`: parsed, handed to `import`, printed; and the streams that follow one.

use std::time::Duration;

use chassis::{
    auth::{self, Caller},
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use proto::vendorsync::v1::{self as wire, import_request::Message, import_service_server::ImportService};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    streams::{Place, Streams},
    wire::{page_size, print_timestamp},
};
use crate::{
    configuration::rows::{Row, Rows},
    import::{Import, Order, Origin, Phase, State, Work, columns::Options, spool::Upload, store::Imports},
    integration::{Integrations, Kind},
    record::RecordKind,
};

/// Streams that may be open at once, of all organizations and of one.
const STREAMS: usize = 256;
const SHARE: usize = 32;
/// How long an upload may say nothing.
const IDLE: Duration = Duration::from_secs(60);
/// Progress is told no more often, and looked at as often at least.
const TELL_EVERY: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_secs(10);
const COLUMNS: usize = 256;
const OPTION_BYTES: usize = 16 << 10;

type Stream<T> = futures_util::stream::BoxStream<'static, Result<T, Status>>;

/// Imports over gRPC.
#[derive(Clone)]
pub(crate) struct Service {
    imports: Imports,
    integrations: Integrations,
    rows: Rows,
    tasks: Tasks,
    streams: Streams,
}

impl Service {
    pub(crate) fn new(imports: Imports, integrations: Integrations, rows: Rows, tasks: Tasks) -> Self {
        Self { imports, integrations, rows, tasks, streams: Streams::new(STREAMS, SHARE) }
    }

    async fn begin(&self, caller: &Caller, start: wire::StartImport) -> Result<Import> {
        let organization = caller.organization("")?;
        let order = order(organization, start)?;
        self.check(&order).await?;
        self.imports.begin(order).await
    }

    async fn check(&self, order: &Order) -> Result<()> {
        let integration = self.integrations.get(&order.organization, &order.integration_id).await?;
        if integration.settings.disabled {
            return Err(Error::FailedPrecondition("the integration is disabled".to_owned()));
        }
        if order.origin == Origin::Vendor && integration.settings.kind != Kind::Connector {
            let reason = "the integration has no connector, and so no list: import a file";
            return Err(Error::FailedPrecondition(reason.to_owned()));
        }
        Ok(())
    }

    /// Tells how an import is until it has ended or asks, or nobody listens any more.
    fn follow<T: Send + 'static>(&self, import: Import, place: Place, print: fn(Import) -> T) -> Stream<T> {
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        self.tasks.spawn("import.follow", async move {
            service.tell(import, &sender).await;
            drop(place);
        });
        Box::pin(ReceiverStream::new(receiver).map(move |told| told.map(print)))
    }

    async fn tell(&self, import: Import, sender: &mpsc::Sender<Result<Import, Status>>) {
        let (stopping, mut changes) = (self.tasks.stopping(), self.imports.changes());
        let (organization, id) = (import.order.organization.clone(), import.id.clone());
        let mut told = None;
        loop {
            changes.mark_unchanged();
            let now = match self.imports.get(&organization, &id).await {
                Ok(now) => now,
                Err(error) => return drop(sender.send(Err(error.into())).await),
            };
            let has_stopped = now.state.has_ended() || now.state == State::Asked;
            let seen = (now.updated_at, now.state);
            if told != Some(seen) && sender.send(Ok(now)).await.is_err() {
                return;
            }
            told = Some(seen);
            if has_stopped {
                return;
            }
            let wait = async {
                tokio::time::sleep(TELL_EVERY).await;
                // A change that is missed is seen a little later.
                let _ = timeout(LOOK_EVERY, changes.changed()).await;
            };
            tokio::select! {
                () = wait => {}
                () = sender.closed() => return,
                () = stopping.cancelled() => return drop(sender.send(Err(Error::Unavailable("the server stops: the import goes on when it is back".into()).into())).await),
            }
        }
    }

    /// Takes a file in; then tells how its import goes on.
    async fn receive(
        self,
        mut upload: Upload,
        mut messages: Streaming<wire::ImportRequest>,
        sender: mpsc::Sender<Result<Import, Status>>,
    ) {
        let stopping = self.tasks.stopping();
        let received = stopping.run_until_cancelled(whole(&mut upload, &mut messages)).await;
        match received {
            Some(Ok(import)) => {
                // From here on the file is the import's own.
                drop(upload);
                self.tell(import, &sender).await;
            }
            Some(Err(error)) => {
                upload.fail(&error).await;
                drop(sender.send(Err(error.into())).await);
            }
            // The next start finds it cut off.
            None => {
                let stops = Error::Unavailable("the server stops: start the import again".into());
                drop(sender.send(Err(stops.into())).await);
            }
        }
    }
}

/// A file as a whole: its import, which runs.
async fn whole(upload: &mut Upload, messages: &mut Streaming<wire::ImportRequest>) -> Result<Import> {
    loop {
        let message = timeout(IDLE, messages.message()).await;
        let message =
            message.map_err(|_| Error::invalid("content", "stopped coming for 60 s: start the import again"))?;
        match message.ok().flatten().and_then(|message| message.message) {
            Some(Message::Content(bytes)) => upload.push(&bytes).await?,
            Some(Message::Complete(true)) => return upload.complete().await,
            Some(_) => return Err(Error::invalid("message", "must be `content` or `complete` after the first")),
            None => return Err(Error::invalid("content", "was cut off before `complete`: start the import again")),
        }
    }
}

#[tonic::async_trait]
impl ImportService for Service {
    type ImportStream = Stream<wire::ImportResponse>;
    type WatchImportStream = Stream<wire::WatchImportResponse>;
    type ReconcileStream = Stream<wire::ReconcileResponse>;

    async fn import(
        &self,
        request: Request<Streaming<wire::ImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let caller = auth::caller(&request)?.clone();
        let (place, mut messages) = (self.streams.place(&caller.organization("")?)?, request.into_inner());
        let first =
            timeout(IDLE, messages.message()).await.map_err(|_| Error::invalid("start", "must come within 60 s"))?;
        let Some(Message::Start(start)) = first?.and_then(|first| first.message) else {
            return Err(Error::invalid("start", "must be the first message").into());
        };
        let import = self.begin(&caller, start).await?;
        let print = |import| wire::ImportResponse { import: Some(print(import)) };
        if import.order.origin == Origin::Vendor {
            return Ok(Response::new(self.follow(import, place, print)));
        }
        let (sender, receiver) = mpsc::channel(4);
        let (service, upload) = (self.clone(), Upload::new(self.imports.clone(), import.clone()));
        self.tasks.spawn("import.receive", async move {
            let _ = sender.send(Ok(import)).await;
            service.receive(upload, messages, sender).await;
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(move |told| told.map(print)))))
    }

    async fn watch_import(
        &self,
        request: Request<wire::WatchImportRequest>,
    ) -> Result<Response<Self::WatchImportStream>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let import = self.imports.get(&organization, &request.get_ref().id).await?;
        let print = |import| wire::WatchImportResponse { import: Some(print(import)) };
        Ok(Response::new(self.follow(import, self.streams.place(&organization)?, print)))
    }

    async fn get_import(
        &self,
        request: Request<wire::GetImportRequest>,
    ) -> Result<Response<wire::GetImportResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let import = self.imports.get(&organization, &request.get_ref().id).await?;
        Ok(Response::new(wire::GetImportResponse { import: Some(print(import)) }))
    }

    async fn list_imports(
        &self,
        request: Request<wire::ListImportsRequest>,
    ) -> Result<Response<wire::ListImportsResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)? as usize;
        let (integration, token) = (&request.integration_id, &request.page_token);
        if !token.is_empty() && chassis::id::parse_uuid(token).is_none() {
            return Err(Error::invalid("page_token", "must be from the previous answer").into());
        }
        let mut page = self.imports.list(&organization, integration, token, size as i64 + 1).await?;
        let more = page.len() > size;
        page.truncate(size);
        let next_page_token = page.last().filter(|_| more).map(|last| last.id.clone()).unwrap_or_default();
        let short = |import| wire::Import { refusals: Vec::new(), examples: Vec::new(), ..print(import) };
        let imports = page.into_iter().map(short).collect();
        Ok(Response::new(wire::ListImportsResponse { imports, next_page_token }))
    }

    async fn cancel_import(
        &self,
        request: Request<wire::CancelImportRequest>,
    ) -> Result<Response<wire::CancelImportResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let import = self.imports.cancel(&organization, &request.get_ref().id).await?;
        Ok(Response::new(wire::CancelImportResponse { import: Some(print(import)) }))
    }

    async fn resume_import(
        &self,
        request: Request<wire::ResumeImportRequest>,
    ) -> Result<Response<wire::ResumeImportResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let import = self.imports.resume(&organization, &request.get_ref().id).await?;
        Ok(Response::new(wire::ResumeImportResponse { import: Some(print(import)) }))
    }

    async fn list_configured_rows(
        &self,
        request: Request<wire::ListConfiguredRowsRequest>,
    ) -> Result<Response<wire::ListConfiguredRowsResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)? as usize;
        let after = request.page_token.split_once('/').unwrap_or_default();
        let mut page = self.rows.list(&organization, after, size as i64 + 1).await?;
        let more = page.len() > size;
        page.truncate(size);
        let last = page.last().filter(|_| more);
        let next_page_token = last.map(|last| format!("{}/{}", last.table, last.id)).unwrap_or_default();
        let rows = page.into_iter().map(print_row).collect();
        Ok(Response::new(wire::ListConfiguredRowsResponse { rows, next_page_token }))
    }

    async fn reconcile(
        &self,
        request: Request<wire::ReconcileRequest>,
    ) -> Result<Response<Self::ReconcileStream>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let wire::ReconcileRequest { integration_id, dry_run } = request.into_inner();
        let order = Order::reconcile(organization, integration_id, dry_run);
        self.check(&order).await?;
        let place = self.streams.place(&order.organization)?;
        let import = self.imports.begin(order).await?;
        let print = |import| wire::ReconcileResponse { import: Some(print(import)) };
        Ok(Response::new(self.follow(import, place, print)))
    }
}

/// A row of a configuration table, and what became of it.
fn print_row(row: Row) -> wire::ConfiguredRow {
    wire::ConfiguredRow {
        table: row.table,
        id: row.id,
        became: row.became,
        target_id: row.target_id,
        refused: row.refused,
        updated_at: Some(print_timestamp(row.updated_at)),
    }
}

fn order(organization: OrganizationId, start: wire::StartImport) -> Result<Order> {
    let (origin, usual) = match start.source() {
        wire::ImportSource::Vendor => (Origin::Vendor, RecordKind::Client),
        wire::ImportSource::Csv => (Origin::Csv, RecordKind::Client),
        wire::ImportSource::Icalendar => (Origin::Ics, RecordKind::Booking),
        wire::ImportSource::Unspecified => return Err(Error::invalid("start.source", "must be one of the sources")),
    };
    let kind = match start.record_kind.as_str() {
        "" => usual,
        kind => RecordKind::parse(kind)
            .ok_or_else(|| Error::invalid("start.record_kind", "must be client, wedding or booking"))?,
    };
    if origin == Origin::Ics && kind == RecordKind::Client {
        return Err(Error::invalid("start.record_kind", "must be wedding or booking: a calendar holds no clients"));
    }
    let options = Options {
        map: start.columns.into_iter().collect(),
        id_column: start.id_column,
        date_format: start.date_format,
    };
    let texts = options
        .map
        .iter()
        .flat_map(|(column, field)| [column, field])
        .chain([&options.id_column, &options.date_format]);
    if options.map.len() > COLUMNS || texts.map(|text| text.len()).sum::<usize>() > OPTION_BYTES {
        return Err(Error::invalid("start.columns", "must be at most 256, of 16 KiB in all"));
    }
    if origin != Origin::Csv && options != Options::default() {
        return Err(Error::invalid("start.columns", "is for tables alone"));
    }
    Ok(Order {
        organization,
        integration_id: start.integration_id,
        work: Work::Import,
        origin,
        kind,
        options,
        dry_run: start.dry_run,
    })
}

fn print(import: Import) -> wire::Import {
    let counts = import.counts;
    wire::Import {
        organization_id: import.order.organization.to_string(),
        integration_id: import.order.integration_id,
        work: match import.order.work {
            Work::Import => wire::ImportWork::Import,
            Work::Reconcile => wire::ImportWork::Reconcile,
        }
        .into(),
        source: match import.order.origin {
            Origin::Vendor => wire::ImportSource::Vendor,
            Origin::Csv => wire::ImportSource::Csv,
            Origin::Ics => wire::ImportSource::Icalendar,
        }
        .into(),
        state: print_state(import.state).into(),
        phase: print_phase(import.phase).into(),
        id: import.id,
        reason: import.reason,
        dry_run: import.order.dry_run,
        total: import.total,
        position: import.next.position,
        seen: counts.seen,
        created: counts.created,
        changed: counts.changed,
        unchanged: counts.unchanged,
        refused: counts.refused,
        vanished: counts.vanished,
        sent: counts.sent,
        linked: counts.linked,
        planned: counts.planned,
        refusals: import
            .refusals
            .into_iter()
            .map(|refusal| wire::ImportRefusal {
                line: refusal.line,
                external_id: refusal.external_id,
                reason: refusal.reason,
            })
            .collect(),
        examples: import
            .examples
            .into_iter()
            .map(|example| wire::ImportExample {
                external_id: example.external_id,
                record_id: example.record_id,
                difference: example.difference,
                fields: example.fields,
            })
            .collect(),
        created_at: Some(print_timestamp(import.created_at)),
        updated_at: Some(print_timestamp(import.updated_at)),
        finished_at: import.finished_at.map(print_timestamp),
    }
}

fn print_state(state: State) -> wire::ImportState {
    match state {
        State::Receiving => wire::ImportState::Receiving,
        State::Running => wire::ImportState::Running,
        State::Asked => wire::ImportState::Asked,
        State::Done => wire::ImportState::Done,
        State::Failed => wire::ImportState::Failed,
        State::Cancelled => wire::ImportState::Cancelled,
    }
}

fn print_phase(phase: Phase) -> wire::ImportPhase {
    match phase {
        Phase::Receiving => wire::ImportPhase::Receiving,
        Phase::Listing => wire::ImportPhase::Listing,
        Phase::Counting => wire::ImportPhase::Counting,
        Phase::Applying => wire::ImportPhase::Applying,
    }
}
