//! The processes between the database and its subscribers: all in one, or the router and the gateway each by itself, on
//! fixed ports, so that each can be killed alone. One that can't start yet is started again, as a supervisor would.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::change::TABLE;
use crate::harness::{Engine, Key, PATIENCE, Source, binary, free_port, get, operator, run, text};

/// Which processes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Together,
    Apart,
}

pub(crate) struct System {
    parts: Vec<Part>,
    pub(crate) router: SocketAddr,
    pub(crate) gateway: SocketAddr,
    /// What browsers' tokens are signed with.
    pub(crate) secret: String,
    folder: TempDir,
}

/// One process.
struct Part {
    program: PathBuf,
    folder: PathBuf,
    settings: Vec<(String, String)>,
    address: SocketAddr,
    child: Child,
}

impl Layout {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Together => &["wedsync"],
            Self::Apart => &["router-svc", "gateway"],
        }
    }

    /// Whether all of its programs were built.
    pub(crate) fn is_there(self) -> bool {
        let missing: Vec<_> = self.programs().iter().filter(|name| !program(name).exists()).collect();
        if !missing.is_empty() {
            println!("skipped: {missing:?} aren't built (`cargo build -p router-svc -p gateway`)");
        }
        missing.is_empty()
    }
}

/// A program beside the one under test.
fn program(name: &str) -> PathBuf {
    binary().with_file_name(name)
}

impl System {
    /// Starts all of it, capturing this database.
    pub(crate) async fn start(layout: Layout, engine: &Engine, source: &Source) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("data")).expect("it is ours");
        let secret = hex::encode(chassis::secret::random::<32>());
        fs::write(folder.path().join("wedsync.toml"), source.settings(&[TABLE], &secret)).expect("it is ours");
        let mut addresses = Vec::new();
        for _ in 0..4 {
            addresses.push(SocketAddr::from(([127, 0, 0, 1], free_port().await)));
        }
        let (router, gateway) = (addresses[0], addresses[1]);
        let mut settings = engine.settings();
        for (section, address) in ["ROUTER", "GATEWAY", "VENDOR_SYNC", "NOTIFIER"].iter().zip(&addresses) {
            settings.push((format!("WEDSYNC_{section}__LISTEN"), address.to_string()));
        }
        settings.push(("WEDSYNC_GATEWAY__ROUTER".to_owned(), format!("http://{router}")));
        let mut parts = Vec::new();
        for name in layout.programs() {
            // All in one starts the gateway last.
            let address = if *name == "router-svc" { router } else { gateway };
            parts.push(Part::start(program(name), folder.path(), settings.clone(), address).await);
        }
        Self { parts, router, gateway, secret, folder }
    }

    pub(crate) fn operator(&self) -> Key {
        operator(&self.folder.path().join("data"))
    }

    /// How many processes there are.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    pub(crate) fn name(&self, part: usize) -> &str {
        self.parts[part].name()
    }

    /// All of them.
    pub(crate) fn names(&self) -> String {
        self.parts.iter().map(Part::name).collect::<Vec<_>>().join("+")
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self, part: usize) {
        self.parts[part].child.kill().await.expect("a child of ours");
    }

    /// SIGTERM, and waits for the orderly end; whether it was one.
    pub(crate) async fn stop(&mut self, part: usize) -> bool {
        let child = &mut self.parts[part].child;
        let Some(pid) = child.id() else { return false };
        let told = run("kill", &["-s", "TERM", &pid.to_string()]).await.is_ok();
        told && matches!(timeout(PATIENCE, child.wait()).await, Ok(Ok(status)) if status.success())
    }

    /// Starts it again and waits until it answers.
    pub(crate) async fn start_again(&mut self, part: usize) {
        self.parts[part].spawn();
        self.parts[part].answers().await;
    }

    /// Parts that ended though nobody ended them.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        let ended = |part: &mut Part| part.child.try_wait().ok()?.map(|status| format!("{}: {status}", part.name()));
        self.parts.iter_mut().filter_map(ended).collect()
    }

    /// The last that it logged.
    pub(crate) fn log_end(&self) -> String {
        let log = self.parts.first().map(Part::log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Ends all in order.
    pub(crate) async fn end(mut self) {
        for part in (0..self.parts.len()).rev() {
            self.stop(part).await;
        }
    }
}

impl Part {
    async fn start(program: PathBuf, folder: &Path, settings: Vec<(String, String)>, address: SocketAddr) -> Self {
        let child = spawn(&program, folder, &settings);
        let mut part = Self { program, folder: folder.to_owned(), settings, address, child };
        part.answers().await;
        part
    }

    fn spawn(&mut self) {
        self.child = spawn(&self.program, &self.folder, &self.settings);
    }

    async fn answers(&mut self) {
        let began = Instant::now();
        while !matches!(get(self.address, "/healthz").await, Ok((200, _))) {
            assert!(began.elapsed() < PATIENCE, "{} doesn't answer:\n{}", self.name(), self.log());
            sleep(Duration::from_millis(20)).await;
            if self.child.try_wait().expect("a child of ours").is_some() {
                sleep(Duration::from_millis(200)).await;
                self.spawn();
            }
        }
    }

    fn name(&self) -> &str {
        text(&self.program).rsplit('/').next().unwrap_or_default()
    }

    fn log(&self) -> String {
        fs::read_to_string(log(&self.program, &self.folder)).unwrap_or_default()
    }
}

fn log(program: &Path, folder: &Path) -> PathBuf {
    folder.join(program.file_name().unwrap_or_default()).with_extension("log")
}

fn spawn(program: &Path, folder: &Path, settings: &[(String, String)]) -> Child {
    let log = File::options().create(true).append(true).open(log(program, folder)).expect("a log file");
    Command::new(program)
        .args(["--config", "wedsync.toml"])
        .current_dir(folder)
        .envs(settings.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the same file"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the program was built")
}
