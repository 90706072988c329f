//! A running `wedsync`: started on a store of its own, asked whether it is ready, killed, stopped and started again.
//!
//! Each one has its own folder, ports and (on PostgreSQL) schemas, so that tests run side by side. The folder holds
//! what the process logged; a process that doesn't come up fails the test with it.

mod postgres;
mod receiver;
mod source;
mod stored;
mod token;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use proto::router::v1::{
    CreateApiKeyRequest, CreateOrganizationRequest, GetOrganizationRequest, Organization, Scope,
    organization_service_client::OrganizationServiceClient,
};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

pub(crate) use self::{
    postgres::{Postgres, free_port},
    receiver::Receiver,
    source::Source,
    token::signed,
};

/// How long anything may take before a test gives up on it: generous, since builds may share the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a process reads where it lies in its folder: whatever the environment has no names for.
const SETTINGS: &str = "wedsync.toml";
const SECTIONS: [&str; 4] = ["ROUTER", "VENDOR_SYNC", "NOTIFIER", "GATEWAY"];
const STORES: [&str; 3] = ["ROUTER", "VENDOR_SYNC", "NOTIFIER"];

/// The binary under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wedsync"))
}

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the machine's clock says.
pub(crate) fn now() -> jiff::Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the system under test goes by the machine's clock")]
    jiff::Timestamp::now()
}

/// A variable of the environment.
pub(crate) fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests take what the harness provides from the environment")]
    std::env::var(name).ok()
}

/// A variable that `make test` sets; without it the caller skips what needs it, and this says so.
pub(crate) fn provided(name: &str) -> Option<String> {
    let value = variable(name);
    if value.is_none() {
        println!("skipped: {name} is not set (`make test` sets it)");
    }
    value
}

/// Where the services keep their data.
#[derive(Debug, Clone)]
pub(crate) enum Engine {
    /// Files in the process's own folder: the default.
    Sqlite,
    /// Schemas of their own on this server.
    Postgres(String),
}

impl Engine {
    /// Every engine that is there.
    pub(crate) fn all() -> Vec<Self> {
        let postgres = provided("WEDSYNC_TEST_POSTGRES").map(Self::Postgres);
        [Some(Self::Sqlite), postgres].into_iter().flatten().collect()
    }

    /// Where the three services that have a store keep it.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Self::Postgres(url) = self else { return Vec::new() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let of = |section: &&str| {
            let schema = format!("s{}_{number}_{}", std::process::id(), section.to_lowercase());
            [
                (format!("WEDSYNC_{section}__STORE__URL"), url.clone()),
                (format!("WEDSYNC_{section}__STORE__SCHEMA"), schema),
            ]
        };
        STORES.iter().flat_map(of).collect()
    }
}

/// Where the parts of a process listen, as it says itself.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) router: SocketAddr,
    pub(crate) vendor_sync: SocketAddr,
    pub(crate) notifier: SocketAddr,
    pub(crate) gateway: SocketAddr,
}

impl Addresses {
    fn settings(&self) -> Vec<(String, String)> {
        let all = [self.router, self.vendor_sync, self.notifier, self.gateway];
        SECTIONS.iter().zip(all).map(|(section, address)| listen(section, address)).collect()
    }
}

fn listen(section: &str, address: SocketAddr) -> (String, String) {
    (format!("WEDSYNC_{section}__LISTEN"), address.to_string())
}

/// One `wedsync` process and what outlives it: its folder, its settings and its addresses.
pub(crate) struct Wedsync {
    folder: PathBuf,
    settings: Vec<(String, String)>,
    child: Child,
    pub(crate) addresses: Addresses,
    /// The folder once more, where it is to be removed at the end.
    temporary: Option<TempDir>,
}

impl Wedsync {
    /// Starts one on SQLite, in development mode, and waits until it is ready.
    pub(crate) async fn start() -> Self {
        Self::start_on(&Engine::Sqlite, &[]).await
    }

    /// Starts one on `engine` with further settings (`WEDSYNC_ROUTER__...`), and waits until it is ready.
    pub(crate) async fn start_on(engine: &Engine, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut started = Self::start_in(folder.path(), engine, settings).await;
        started.temporary = Some(folder);
        started
    }

    /// The same in a folder of the caller's.
    pub(crate) async fn start_in(folder: &Path, engine: &Engine, settings: &[(&str, &str)]) -> Self {
        let mut started = Self::spawn_in(folder, engine, settings, &[]);
        started.is_ready().await;
        started
    }

    /// As [`Wedsync::start_on`] with settings for the first life alone, and doesn't wait: that life may end early.
    pub(crate) fn spawn_on(engine: &Engine, first_life: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut spawned = Self::spawn_in(folder.path(), engine, &[], first_life);
        spawned.temporary = Some(folder);
        spawned
    }

    fn spawn_in(folder: &Path, engine: &Engine, settings: &[(&str, &str)], first_life: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut all: Vec<_> = SECTIONS.iter().map(|section| listen(section, anywhere)).collect();
        all.extend(engine.settings());
        all.extend(settings.iter().map(owned));
        let first: Vec<_> = all.iter().cloned().chain(first_life.iter().map(owned)).collect();
        let addresses = Addresses { router: anywhere, vendor_sync: anywhere, notifier: anywhere, gateway: anywhere };
        let child = spawn(folder, &first);
        Self { folder: folder.to_owned(), settings: all, child, addresses, temporary: None }
    }

    /// Starts it again on the same store and the same addresses; it must have ended.
    pub(crate) async fn restart(&mut self) {
        self.spawn_again();
        self.is_ready().await;
    }

    /// As [`Wedsync::restart`], but doesn't wait until it is ready.
    pub(crate) fn spawn_again(&mut self) {
        self.spawn_with(&[]);
    }

    /// As [`Wedsync::spawn_again`], with settings for this life alone.
    pub(crate) fn spawn_with(&mut self, settings: &[(&str, &str)]) {
        let further = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.child = spawn(&self.folder, &self.settings.iter().cloned().chain(further).collect::<Vec<_>>());
    }

    /// Waits until it calls itself ready, and learns where it listens from now on.
    pub(crate) async fn is_ready(&mut self) {
        self.addresses = ready(&self.folder, &mut self.child).await;
        self.settings.extend(self.addresses.settings());
    }

    /// A second process on the same data and stores, with ports of its own; it isn't waited for.
    pub(crate) fn beside(&self) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut settings = self.settings.clone();
        settings.extend(SECTIONS.iter().map(|section| listen(section, any_port)));
        let child = spawn(&self.folder, &settings);
        Self { folder: self.folder.clone(), settings, child, addresses: self.addresses, temporary: None }
    }

    /// Waits for an end that nobody here brought about; none within `bound` gives none.
    pub(crate) async fn ended(&mut self, bound: Duration) -> Option<ExitStatus> {
        timeout(bound, self.child.wait()).await.ok().map(|ended| ended.expect("a child of ours"))
    }

    /// Leaves its folder, with its log and its SQLite stores, to whoever looks into what went wrong.
    pub(crate) fn keep(&mut self) {
        if let Some(folder) = self.temporary.take() {
            eprintln!("kept: {}", folder.keep().display());
        }
    }

    /// `kill -9`: it ends without a last word.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("it was running");
    }

    /// SIGTERM, and waits for the orderly end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM").await;
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("it doesn't stop:\n{}", self.log())).expect("it was running")
    }

    /// SIGSTOP: it stands still, with all that it holds open.
    pub(crate) async fn freeze(&self) {
        self.signal("STOP").await;
    }

    /// SIGCONT: it goes on after [`Wedsync::freeze`].
    pub(crate) async fn thaw(&self) {
        self.signal("CONT").await;
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it is running").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await.expect("kill is there");
        assert!(sent.success(), "the signal was not sent");
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it is running")
    }

    /// Where all that is its own lies.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its data folder, by which commands find it.
    pub(crate) fn data(&self) -> PathBuf {
        data(&self.folder)
    }

    /// What it has logged so far, over all its lives.
    pub(crate) fn log(&self) -> String {
        log(&self.folder)
    }

    /// The last of it, for a report.
    pub(crate) fn log_end(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(8_000);
        let start = (start..log.len()).find(|start| log.is_char_boundary(*start)).unwrap_or(0);
        log[start..].to_owned()
    }

    /// The operator's key.
    pub(crate) fn operator(&self) -> Key {
        operator(&self.data())
    }

    /// A new organization, and a key of it that may do everything within it.
    pub(crate) async fn tenant(&self, name: &str) -> Key {
        tenant(self.addresses.router, &self.operator(), name).await
    }
}

/// The operator's key, which the first start left in a file that only its owner may read.
pub(crate) fn operator(data: &Path) -> Key {
    let text = fs::read_to_string(data.join("bootstrap-key")).expect("the bootstrap key");
    Key(text.trim().to_owned())
}

/// A new organization, and a key of it that may do everything within it.
pub(crate) async fn tenant(router: SocketAddr, operator: &Key, name: &str) -> Key {
    let mut client = OrganizationServiceClient::new(client(router, operator));
    let organization = Organization { name: name.to_owned(), ..Organization::default() };
    let request = CreateOrganizationRequest { organization: Some(organization) };
    let created = client.create_organization(request).await.expect("an organization").into_inner();
    let id = created.organization.expect("the answer holds it").id;
    let request = CreateApiKeyRequest {
        organization_id: id,
        description: format!("the key of {name}"),
        scopes: vec![Scope::Admin.into()],
        expires_at: None,
    };
    let key = client.create_api_key(request).await.expect("a key").into_inner().secret;
    Key(key)
}

/// The organization whose key this is.
pub(crate) async fn organization(router: SocketAddr, key: &Key) -> String {
    let mut organizations = OrganizationServiceClient::new(client(router, key));
    let found = organizations.get_organization(GetOrganizationRequest::default()).await.expect("its own");
    found.into_inner().organization.expect("the answer holds it").id
}

/// A credential; as an interceptor it adds itself to each request.
#[derive(Debug, Clone)]
pub(crate) struct Key(pub(crate) String);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0).parse().expect("a key is plain ASCII");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A connection that opens itself when it is first used, and again after a restart.
pub(crate) fn client(address: SocketAddr, key: &Key) -> InterceptedService<Channel, Key> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a valid address");
    InterceptedService::new(endpoint.tcp_nodelay(true).connect_lazy(), key.clone())
}

/// Status and body of a plain `GET`.
pub(crate) async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    status.map(|status| (status, body.to_owned())).ok_or_else(|| ErrorKind::InvalidData.into())
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}

fn spawn(folder: &Path, settings: &[(String, String)]) -> Child {
    // What an earlier life said would be believed too soon.
    let _ = fs::remove_file(data(folder).join("addresses.json"));
    let log = File::options().create(true).append(true).open(folder.join("log")).expect("a log file");
    let file = Some(folder.join(SETTINGS)).filter(|file| file.exists());
    Command::new(binary())
        .arg("--data")
        .arg(data(folder))
        .args(file.map(|file| [OsString::from("--config"), file.into()]).into_iter().flatten())
        .current_dir(folder)
        .envs(settings.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the same file"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the binary was built")
}

/// Waits until the process has said where it listens and calls itself ready.
async fn ready(folder: &Path, child: &mut Child) -> Addresses {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            panic!("it ended by itself, {status}:\n{}", log(folder));
        }
        if let Some(addresses) = addresses(folder)
            && matches!(get(addresses.gateway, "/readyz").await, Ok((200, _)))
        {
            return addresses;
        }
        assert!(began.elapsed() < PATIENCE, "it doesn't become ready:\n{}", log(folder));
        sleep(Duration::from_millis(20)).await;
    }
}

/// What it said, once it is there in full.
fn addresses(folder: &Path) -> Option<Addresses> {
    let text = fs::read_to_string(data(folder).join("addresses.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Runs a program to its end; what it complained of is the error.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ended = timeout(PATIENCE, Command::new(program).args(arguments).kill_on_drop(true).output()).await;
    let ended = ended.map_err(|_| format!("{program} doesn't end"))?;
    let output = ended.map_err(|error| format!("{program}: {error}"))?;
    let why = || format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(why()) }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("paths of ours are plain")
}
