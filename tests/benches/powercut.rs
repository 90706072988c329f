//! `powercut`: what is on the disk at one instant, and whether a system that starts from just that has all that was
//! acknowledged before it.
//!
//! The data lies on an ext4 file system in an image file. Everything that runs is stopped, the image is copied, and the
//! copy takes the original's place: what was written but not flushed is missing from it, as after a power cut. A control
//! run with `unsafe_durability` must lose something, else the harness proves nothing. It runs in a mount namespace of
//! its own, so that nothing stays mounted however it ends.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    crash::{Chance, Outcome, World, kill::millis, name},
    harness::{Engine, PATIENCE, Wedsync, root},
    report::{Stores, print},
};

/// Set in the process that has the mount namespace.
const INSIDE: &str = "--inside";
const IMAGE_BYTES: u64 = 1 << 30;
/// A control run may be lucky; so often it is tried.
const CONTROLS: u32 = 5;
const UNSAFE: [(&str, &str); 3] = [
    ("WEDSYNC_ROUTER__STORE__UNSAFE_DURABILITY", "true"),
    ("WEDSYNC_VENDOR_SYNC__STORE__UNSAFE_DURABILITY", "true"),
    ("WEDSYNC_NOTIFIER__STORE__UNSAFE_DURABILITY", "true"),
];

/// Durable as in production; and nothing is flushed by the way, only by commits that wait for it.
const SETTINGS: [&str; 7] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "wal_writer_delay=10s",
];

#[derive(Debug, Args)]
pub(crate) struct Powercut {
    /// How often the power is cut, on each store.
    #[arg(long, default_value_t = 5)]
    cycles: u32,
    #[arg(long, value_enum, default_value = "both")]
    store: Stores,
    /// Decides the moments; without one, another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Events published a second, altogether.
    #[arg(long, default_value_t = 600)]
    rate: u32,
    #[arg(long, hide = true)]
    inside: bool,
}

/// One cut.
#[derive(Debug, Serialize)]
struct Cut {
    store: &'static str,
    seed: u64,
    /// Whether durability was switched off to prove the harness.
    control: bool,
    cut_after_ms: u64,
    /// Events acknowledged before the cut.
    acknowledged: usize,
    /// Of those, missing from the log afterwards.
    lost: usize,
    /// From the start on the copy until it was ready.
    ready_ms: u64,
    /// Everything, after recovery; not asked of a control run.
    outcome: Option<Outcome>,
}

impl Powercut {
    pub(crate) async fn run(self) -> bool {
        if !self.inside {
            return again_inside().await;
        }
        if let Err(why) = Disk::make().await {
            println!("skipped: {why}");
            return true;
        }
        let mut good = true;
        let seed = self.seed.unwrap_or_else(Chance::seed);
        eprintln!("powercut: --seed {seed}");
        for (postgres, chosen) in [(false, self.store.sqlite()), (true, self.store.postgres())] {
            if chosen {
                good &= self.safe(postgres, seed).await;
                good &= self.control(postgres, seed).await;
            }
        }
        good
    }

    /// Nothing that was acknowledged may be lost.
    async fn safe(&self, postgres: bool, seed: u64) -> bool {
        let mut good = true;
        for cycle in 0..u64::from(self.cycles) {
            let cut = self.cut(postgres, seed.wrapping_add(cycle), false).await;
            good &= cut.lost == 0 && cut.outcome.as_ref().is_some_and(Outcome::is_good);
            print(&cut);
        }
        good
    }

    /// Something must be lost.
    async fn control(&self, postgres: bool, seed: u64) -> bool {
        for cycle in 0..u64::from(CONTROLS) {
            let cut = self.cut(postgres, seed.wrapping_add(cycle), true).await;
            print(&cut);
            if cut.lost > 0 {
                return true;
            }
        }
        println!("the harness proves nothing: {CONTROLS} cuts without durability lost nothing");
        false
    }

    async fn cut(&self, postgres: bool, seed: u64, control: bool) -> Cut {
        let disk = Disk::make().await.expect("it could be made before");
        let mut server = if postgres { Some(Server::start(&disk).await) } else { None };
        let engine = server.as_ref().map_or(Engine::Sqlite, |server| Engine::Postgres(server.url()));
        let settings = if control { &UNSAFE[..] } else { &[] };
        let system = Wedsync::start_in(&disk.folder("wedsync"), &engine, settings).await;
        let mut world = World::start(system, self.rate).await;
        let cut_after_ms = Chance::new(seed).within(300..3_000);
        sleep(Duration::from_millis(cut_after_ms)).await;

        let before = cut_power(&mut world, &disk, server.as_mut()).await;
        let started = Instant::now();
        world.system.restart().await;
        let ready_ms = millis(started.elapsed());
        let logged = world.logged().await;
        let lost = before.iter().filter(|item| !logged.contains(item)).count();
        let outcome = if control { None } else { Some(world.settle().await) };
        world.system.kill().await;
        Cut { store: name(&engine), seed, control, cut_after_ms, acknowledged: before.len(), lost, ready_ms, outcome }
    }
}

/// Stops everything, puts the copy in the disk's place, and gives what was acknowledged before.
async fn cut_power(world: &mut World, disk: &Disk, mut server: Option<&mut Server>) -> BTreeSet<crate::crash::Item> {
    world.system.freeze().await;
    if let Some(server) = &server {
        server.freeze().await;
    }
    // Answers that were sent before the stop are still on their way to the publishers.
    sleep(Duration::from_millis(200)).await;
    let acknowledged = world.load.acknowledged();
    disk.copy().await;
    world.system.kill().await;
    if let Some(server) = &mut server {
        server.kill().await;
    }
    disk.put_copy_in_place().await;
    if let Some(server) = server {
        server.run().await;
    }
    acknowledged
}

/// The same program once more, in a mount namespace of its own.
async fn again_inside() -> bool {
    let program = std::env::current_exe().expect("this program");
    let given = std::env::args_os().skip(1);
    let allowed = Command::new("unshare").args(["--mount", "--", "true"]).stderr(Stdio::null()).status().await;
    if !allowed.is_ok_and(|status| status.success()) {
        println!("skipped: a mount namespace is not allowed here (it takes root, and `unshare`)");
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(program).args(given).arg(INSIDE);
    command.status().await.expect("unshare is there").success()
}

/// An ext4 file system in an image file, mounted.
struct Disk {
    folder: TempDir,
}

impl Disk {
    async fn make() -> Result<Self, String> {
        // In memory where possible: what is flushed to it is there at once.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let disk = Self { folder: folder.map_err(|error| error.to_string())? };
        let image = fs::File::create(disk.image()).and_then(|image| image.set_len(IMAGE_BYTES));
        image.map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&disk.image())]).await?;
        fs::create_dir(disk.place()).map_err(|error| error.to_string())?;
        disk.mount(&disk.image()).await?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// The image as it was at the cut.
    fn cut(&self) -> PathBuf {
        self.folder.path().join("cut")
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// A folder on it, made if need be.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.place().join(name);
        fs::create_dir_all(&folder).expect("the disk is writable");
        folder
    }

    /// The journal is written seldom, so that nothing becomes durable by the way.
    async fn mount(&self, image: &Path) -> Result<(), String> {
        run("mount", &["-o", "loop,commit=300", text(image), text(&self.place())]).await
    }

    async fn copy(&self) {
        run("cp", &["--sparse=always", text(&self.image()), text(&self.cut())]).await.expect("there is room");
    }

    async fn put_copy_in_place(&self) {
        self.unmount().await;
        self.mount(&self.cut()).await.expect("the journal recovers the copy");
    }

    async fn unmount(&self) {
        let began = Instant::now();
        while let Err(why) = run("umount", &[text(&self.place())]).await {
            assert!(began.elapsed() < Duration::from_secs(10), "the disk stays in use: {why}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The namespace would end it too; this frees the memory before the next.
        let place = self.place();
        let _ = std::process::Command::new("umount").arg("--lazy").arg(place).stderr(Stdio::null()).status();
    }
}

/// A PostgreSQL server with everything durable, whose data lies on the disk.
struct Server {
    programs: PathBuf,
    data: PathBuf,
    port: u16,
    child: Child,
}

impl Server {
    async fn start(disk: &Disk) -> Self {
        let programs = programs().await;
        let (parent, port) = (disk.folder("postgres"), free_port().await);
        run("chown", &["postgres", text(&parent)]).await.expect("the package made the user");
        let data = parent.join("data");
        let mut initdb = as_postgres(&programs.join("initdb"));
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]);
        let made = initdb.current_dir("/").output().await.expect("initdb is there");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let child = spawn(&programs, &data, port);
        let server = Self { programs, data, port, child };
        server.answers().await;
        server
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it again, after [`Server::kill`].
    async fn run(&mut self) {
        // Of the process that was cut off.
        let _ = fs::remove_file(self.data.join("postmaster.pid"));
        self.child = spawn(&self.programs, &self.data, self.port);
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

    /// The server first: it can then start no others.
    async fn freeze(&self) {
        let pid = self.child.id().expect("it is running");
        run("kill", &["-s", "STOP", &pid.to_string()]).await.expect("it is running");
        for child in children(pid) {
            // One that has just ended needs no stop.
            let _ = run("kill", &["-s", "STOP", &child.to_string()]).await;
        }
    }

    async fn kill(&mut self) {
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

fn spawn(programs: &Path, data: &Path, port: u16) -> Child {
    let file = fs::File::options().create(true).append(true).open(log(data)).expect("a log file");
    let mut command = as_postgres(&programs.join("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string()]);
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    command.current_dir("/").stdout(Stdio::null()).stderr(file).kill_on_drop(true);
    command.spawn().expect("the server's program is there")
}

/// PostgreSQL refuses to run as root, which mounting takes.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

async fn programs() -> PathBuf {
    let output = Command::new(root().join("tests/harness/tools.sh")).arg("postgres").output().await.expect("a script");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

async fn free_port() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound").port()
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

async fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ended = timeout(PATIENCE, Command::new(program).args(arguments).kill_on_drop(true).output()).await;
    let ended = ended.map_err(|_| format!("{program} doesn't end"))?;
    let output = ended.map_err(|error| format!("{program}: {error}"))?;
    let why = || format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(why()) }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of ours are plain")
}
