//! Vendors' systems: what mapping a record to a vendor's request costs, how long a connector's webhook takes until it is a
//! record's new state and answered, and how fast, in how much memory, an import of a hundred thousand records goes.

use std::time::Instant;

use proto::vendorsync::v1::{
    ConnectIntegrationRequest, CreateIntegrationRequest, GivenCredential, Import, ImportRequest, ImportSource,
    ImportState, Integration, IntegrationKind, PreviewMappingRequest, RequestSample, StartImport,
    connector_service_client::ConnectorServiceClient, given_credential::Credential, import_request::Message,
    import_service_client::ImportServiceClient, integration_service_client::IntegrationServiceClient,
    preview_mapping_request::Sample, preview_mapping_response::Result as Preview,
};
use serde_json::json;
use vendor_sync_svc::testing::vendor::{
    Server,
    profile::{Profile, Receiver},
};

use super::{
    figure::{Figure, percentile},
    inbound::{MORE_MS, RATE_LIMIT_PER_HOUR, UNLIMITED, Vendor, timestamp},
    machine,
    path::{Wanted, blocking},
    sink::on_one_thread,
};
use crate::{
    crash::name,
    harness::{Engine, Key, Wedsync, client},
};

const NAMES: [&str; 6] = [
    "vendors_mapping_p99",
    "vendors_inbound_p50",
    "vendors_inbound_p99",
    "vendors_import_rate",
    "vendors_import_memory",
    "vendors_import_again",
];
const MAPPINGS: usize = 2_000;
const MOST_MAPPING_MS: f64 = 1.0;
/// Records that webhooks change in turn.
const RECORDS: usize = 50;
const ROWS: usize = 100_000;
/// What may change or be made, the second time.
const AGAIN: f64 = 0.0;
const LEAST_ROWS_PER_SECOND: f64 = 1_000.0;
/// More memory while the second half is taken in than while the first is, in which every cache has filled.
const MORE_MEMORY: f64 = 1.1;
/// Bytes of a file in one message.
const CHUNK: usize = 1 << 20;
const ACCOUNT_KEY: &str = "a-key-of-the-bench";
const VENDOR_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !NAMES.iter().any(|name| wanted.wants(name)) {
        return;
    }
    let (store, system) = (name(engine), Wedsync::start_on(engine, &UNLIMITED).await);
    let key = system.tenant("Vendors").await;
    if wanted.wants(NAMES[0]) {
        let taken = mappings(&system, &key).await;
        told(Figure::at_most(NAMES[0], store, percentile(&taken, 99.0), "ms", MOST_MAPPING_MS));
    }
    let server = Server::start(Receiver::new(Profile::Crm, ACCOUNT_KEY, VENDOR_SECRET)).await;
    let account = Account::of(&system, key, server.base()).await;
    if wanted.wants(NAMES[1]) || wanted.wants(NAMES[2]) {
        let folder = system.folder().to_owned();
        let (fsync_p50, fsync_p99) = blocking(move || machine::fsync_ms(&folder)).await;
        let vendor = account.vendor(&system);
        let mut taken = blocking(move || on_one_thread(vendor.post_all())).await;
        taken.sort_by(f64::total_cmp);
        told(Figure::above(NAMES[1], store, percentile(&taken, 50.0), "ms", fsync_p50, MORE_MS));
        told(Figure::above(NAMES[2], store, percentile(&taken, 99.0), "ms", fsync_p99, MORE_MS));
    }
    if NAMES[3..].iter().any(|name| wanted.wants(name)) {
        imports(&system, &account, wanted.rows.min(ROWS), store, told).await;
    }
}

/// An account at a photographer's CRM.
struct Account {
    id: String,
    path: String,
    secret: String,
    key: Key,
}

impl Account {
    async fn of(system: &Wedsync, key: Key, url: &str) -> Self {
        let mut integrations = IntegrationServiceClient::new(client(system.addresses.vendor_sync, &key));
        let integration = Integration {
            kind: IntegrationKind::Connector.into(),
            connector: "crm".to_owned(),
            rate_limit_per_hour: RATE_LIMIT_PER_HOUR,
            parameters: [("url".to_owned(), url.to_owned())].into(),
            ..Integration::default()
        };
        let request = CreateIntegrationRequest { integration: Some(integration), secret: String::new() };
        let created = integrations.create_integration(request).await.expect("an integration").into_inner();
        let Integration { id, path, .. } = created.integration.expect("the answer holds it");
        let credential = Some(GivenCredential { credential: Some(Credential::ApiKey(ACCOUNT_KEY.to_owned())) });
        let request = ConnectIntegrationRequest { id: id.clone(), credential };
        integrations.connect_integration(request).await.expect("it connects");
        Self { id, path, secret: created.secret, key }
    }

    /// Its webhooks, each of which changes a client.
    fn vendor(&self, system: &Wedsync) -> Vendor {
        Vendor::new(format!("http://{}{}", system.addresses.gateway, self.path), &self.secret, |number| {
            let (client, note) = (number % RECORDS, "x".repeat(500));
            let data = json!({ "client_id": format!("c{client}"), "first_name": "Ada", "last_name": format!("Oak {client}"),
                "email": format!("c{client}@example.org"), "phone": format!("+4477{number:08}"), "note": note });
            json!({ "type": "client.updated", "timestamp": timestamp().to_string(), "data": data }).to_string()
        })
    }
}

/// From asking what a vendor would be sent of a wedding to the answer, the call included, in ms.
async fn mappings(system: &Wedsync, key: &Key) -> Vec<f64> {
    let mut connectors = ConnectorServiceClient::new(client(system.addresses.vendor_sync, key));
    let record = json!({ "bride_name": "Rosa", "groom_name": "Otto", "wedding_date": "2027-06-19", "guest_count": 120,
        "ceremony_time": "15:00", "setup_time": "10:00", "venue_name": "Oak Hall", "special_requests": "x".repeat(500) });
    let given = json!({ "record": record, "record_id": "w1", "event": { "type": "wedding.date_changed" } }).to_string();
    let sample = Some(Sample::Request(RequestSample { operation: "send_wedding".to_owned(), given }));
    let settings = [("url".to_owned(), "https://venue.example".to_owned())].into();
    let request = PreviewMappingRequest { name: "venue".to_owned(), settings, sample, ..Default::default() };
    let mut taken = Vec::with_capacity(MAPPINGS);
    for _ in 0..MAPPINGS {
        let began = Instant::now();
        let answer = connectors.preview_mapping(request.clone()).await.expect("it is mapped").into_inner();
        taken.push(began.elapsed().as_secs_f64() * 1e3);
        assert!(matches!(answer.result, Some(Preview::Request(_))), "{answer:?}");
    }
    taken.sort_by(f64::total_cmp);
    taken
}

/// A table of clients, taken in twice.
async fn imports(system: &Wedsync, account: &Account, rows: usize, store: &'static str, told: &mut impl FnMut(Figure)) {
    let (began, mut most) = (Instant::now(), [0.0_f64; 2]);
    let first = import(system, account, rows, |import| {
        let half = usize::from(import.created > rows as u64 / 2);
        most[half] = most[half].max(machine::resident_mib(system.pid()).0);
    })
    .await;
    let rate = first.created as f64 / began.elapsed().as_secs_f64();
    let again = import(system, account, rows, |_| {}).await;
    told(Figure::at_least(NAMES[3], store, rate, "records/s", LEAST_ROWS_PER_SECOND));
    let [early, late] = most;
    let how = "1.1 of the most while the first half is taken in";
    told(Figure::compared(NAMES[4], store, late, "MiB", early, MORE_MEMORY * early, how));
    let differs = (again.created + again.changed + again.refused).max(rows as u64 - again.unchanged);
    told(Figure::at_most(NAMES[5], store, differs as f64, "records", AGAIN));
}

/// Takes the table in; `look` sees each word about how far it is.
async fn import(system: &Wedsync, account: &Account, rows: usize, mut look: impl FnMut(&Import)) -> Import {
    let mut imports = ImportServiceClient::new(client(system.addresses.vendor_sync, &account.key));
    let start = StartImport {
        integration_id: account.id.clone(),
        source: ImportSource::Csv.into(),
        record_kind: "client".to_owned(),
        ..StartImport::default()
    };
    let table = table(rows);
    let chunks = table.chunks(CHUNK).map(|chunk| Message::Content(chunk.to_vec().into()));
    let messages: Vec<ImportRequest> = std::iter::once(Message::Start(start))
        .chain(chunks)
        .chain([Message::Complete(true)])
        .map(|message| ImportRequest { message: Some(message) })
        .collect();
    let mut answers = imports.import(tokio_stream::iter(messages)).await.expect("it starts").into_inner();
    let mut last = Import::default();
    while let Some(answer) = answers.message().await.expect("it goes on") {
        last = answer.import.expect("how far it is");
        look(&last);
    }
    assert_eq!(last.state(), ImportState::Done, "{last:?}");
    last
}

fn table(rows: usize) -> Vec<u8> {
    let row = |number: usize| format!("c{number},Ada,Oak {number},c{number}@example.com,+4477{number:08}\n");
    let rows: String = (0..rows).map(row).collect();
    format!("external_id,first_name,last_name,email,phone\n{rows}").into_bytes()
}
