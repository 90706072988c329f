//! A PostgreSQL server of a test's own, to be frozen, killed, cut off and started again.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{PATIENCE, root, run, text};

/// Durable as in production.
const SETTINGS: [&str; 6] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
];

/// A PostgreSQL server of a test's own, with everything durable as in production.
pub(crate) struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    port: u16,
    settings: Vec<String>,
    child: Child,
    /// Its folder, where that is to be removed at the end.
    _temporary: Option<TempDir>,
}

impl Postgres {
    /// Starts one in a temporary folder.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self::start_in(folder.path(), &[]).await;
        server._temporary = Some(folder);
        server
    }

    /// Starts one in a folder of the caller's, with further settings.
    pub(crate) async fn start_in(folder: &Path, further: &[&str]) -> Self {
        let (programs, port) = (programs().await, free_port().await);
        if is_root() {
            run("chown", &["postgres", text(folder)]).await.expect("the package made the user");
        }
        let data = folder.join("data");
        let settings: Vec<String> = SETTINGS.iter().chain(further).map(|setting| (*setting).to_owned()).collect();
        let mut initdb = as_postgres(&programs.join("initdb"));
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]);
        let made = initdb.current_dir("/").output().await.expect("initdb is there");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let child = spawn(&programs, &data, port, &settings);
        let server = Self { programs, data, port, settings, child, _temporary: None };
        server.answers().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it again, after it has ended.
    pub(crate) async fn run(&mut self) {
        // Of the process that was cut off.
        let _ = fs::remove_file(self.data.join("postmaster.pid"));
        self.child = spawn(&self.programs, &self.data, self.port, &self.settings);
        self.answers().await;
    }

    async fn answers(&self) {
        let began = Instant::now();
        let (program, port) = (self.programs.join("pg_isready"), self.port.to_string());
        while let Err(why) = run(text(&program), &["-q", "-h", "127.0.0.1", "-p", &port]).await {
            let log = || fs::read_to_string(self.log()).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "PostgreSQL doesn't answer: {why}\n{}", log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> PathBuf {
        log(&self.data)
    }

    /// SIGSTOP. The server first: it can then start no others.
    pub(crate) async fn freeze(&self) {
        let pid = self.child.id().expect("it is running");
        run("kill", &["-s", "STOP", &pid.to_string()]).await.expect("it is running");
        for child in children(pid) {
            // One that has just ended needs no stop.
            let _ = run("kill", &["-s", "STOP", &child.to_string()]).await;
        }
    }

    /// `pg_ctl stop -m immediate`: every connection is cut, nothing is finished, and the next start recovers.
    pub(crate) async fn stop_immediately(&mut self) {
        let pid = self.child.id().expect("it is running").to_string();
        run("kill", &["-s", "QUIT", &pid]).await.expect("it is running");
        timeout(PATIENCE, self.child.wait()).await.expect("it ends at once").expect("a child of ours");
    }

    /// `pg_ctl stop -m fast`: it ends in order, once whoever reads its log has all of it. Whether that was within `bound`.
    pub(crate) async fn stop_in_order(&mut self, bound: Duration) -> bool {
        let pid = self.child.id().expect("it is running").to_string();
        run("kill", &["-s", "INT", &pid]).await.expect("it is running");
        if let Ok(ended) = timeout(bound, self.child.wait()).await {
            ended.expect("a child of ours");
            return true;
        }
        self.stop_immediately().await;
        false
    }

    /// Whether it has ended by itself, or does within a second.
    pub(crate) async fn has_ended(&mut self) -> bool {
        timeout(Duration::from_secs(1), self.child.wait()).await.is_ok()
    }

    pub(crate) async fn kill(&mut self) {
        let pid = self.child.id().expect("it is running");
        let children = children(pid);
        self.child.kill().await.expect("it was running");
        for child in children {
            let _ = run("kill", &["-s", "KILL", &child.to_string()]).await;
        }
    }
}

fn log(data: &Path) -> PathBuf {
    data.with_file_name("log")
}

fn spawn(programs: &Path, data: &Path, port: u16, settings: &[String]) -> Child {
    let file = fs::File::options().create(true).append(true).open(log(data)).expect("a log file");
    let mut command = as_postgres(&programs.join("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string()]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    command.current_dir("/").stdout(Stdio::null()).stderr(file).kill_on_drop(true);
    command.spawn().expect("the server's program is there")
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

async fn programs() -> PathBuf {
    let output = Command::new(root().join("tests/harness/tools.sh")).arg("postgres").output().await.expect("a script");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// A port that nobody listens on, and that the system gives to nobody while its owner is away: connections out, and whoever
/// doesn't care which, get those from 32,768 on.
pub(crate) async fn free_port() -> u16 {
    for _ in 0..100 {
        let port = 10_000 + u16::from_le_bytes(chassis::secret::random()) % 10_000;
        if tokio::net::TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
    panic!("a hundred ports are taken")
}

/// Processes that `parent` started.
fn children(parent: u32) -> Vec<u32> {
    let of = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name in parentheses: state, then the parent.
        let its_parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (its_parent == parent).then_some(pid)
    };
    fs::read_dir("/proc").expect("Linux").filter_map(|entry| of(entry.ok()?)).collect()
}
