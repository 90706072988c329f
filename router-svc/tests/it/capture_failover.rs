//! A standby takes a planner's database over: what it has is told once, and what it lacks is told as a loss.
//!
//! A server of the test's own becomes its own standby: stopped, started as one, promoted. What it had before is kept
//! aside where the standby is to lack something.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use chassis::testing::postgres_url;
use proto::router::v1::event::Payload;
use tempfile::TempDir;

use crate::{
    capture::{Database, capturing, change, events},
    world::on_each,
};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY)";

/// A PostgreSQL server that ends with the test.
struct Server {
    programs: PathBuf,
    folder: TempDir,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/harness/tools.sh");
        let found = Command::new(tools).arg("postgres").output().unwrap();
        let programs = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { programs, folder, port };
        run(server.program("initdb").args(["-U", "postgres", "-A", "trust", "--no-sync"]));
        server.control(&["start"]);
        server
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn slot(&self, database: &Database) -> PathBuf {
        self.data().join("pg_replslot").join(&database.name).join("state")
    }

    /// PostgreSQL refuses to run as root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = Command::new(if is_root() { "setpriv" } else { "env" });
        if is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.arg(program).arg("-D").arg(self.data()).current_dir("/");
        command
    }

    fn control(&self, what: &[&str]) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c wal_level=logical -c autovacuum=off -c fsync=off",
            self.port
        );
        let log = self.folder.path().join("log");
        run(self.program("pg_ctl").arg("-w").arg("-s").arg("-l").arg(log).arg("-o").arg(options).args(what));
    }

    fn promote(&self) {
        fs::write(self.data().join("standby.signal"), "").unwrap();
        self.control(&["start"]);
        self.control(&["promote"]);
    }

    fn keep(&self, from: &str, to: &str) {
        let path = |name| self.folder.path().join(name);
        let _ = fs::remove_dir_all(path(to));
        run(Command::new("cp").arg("-a").arg(path(from)).arg(path(to)));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.program("pg_ctl").args(["-m", "immediate", "-s", "stop"]).status();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn run(command: &mut Command) {
    let output = command.stdout(std::process::Stdio::null()).status().unwrap();
    assert!(output.success(), "{command:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promoted_standby_tells_again_is_known_already() {
    if postgres_url().is_none() {
        println!("skipped: there is no PostgreSQL");
        return;
    }
    on_each(|world| async move {
        world.organization("a").await;
        let server = Server::start();
        let database = Database::create(&server.url(), &[("t", "a")], &[TABLE]).await;
        let (world, _) = capturing(world, &database).await;
        let slot = fs::read(server.slot(&database)).unwrap();
        database.run("INSERT INTO t VALUES (1), (2)").await;
        database.caught_up().await;
        assert!(world.chassis.drain().await);
        server.control(&["-m", "immediate", "stop"]);
        // A slot that was copied to a standby lags behind the one that was read.
        fs::write(server.slot(&database), slot).unwrap();
        server.promote();
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (3)").await;
        let events = events(&a, 3).await;
        let rows: Vec<_> = events.iter().map(|event| change(event).2).collect();
        assert_eq!(rows, [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#]);
        let timeline = |id: &str| id.split(':').nth(2).map(ToOwned::to_owned);
        assert_eq!(timeline(&events[1].id).as_deref(), Some("1"));
        assert_eq!(timeline(&events[2].id).as_deref(), Some("2"));
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_that_lacks_what_was_acknowledged_is_told_as_a_loss() {
    if postgres_url().is_none() {
        println!("skipped: there is no PostgreSQL");
        return;
    }
    on_each(|world| async move {
        world.organization("a").await;
        let server = Server::start();
        let database = Database::create(&server.url(), &[("t", "a")], &[TABLE]).await;
        let (world, _) = capturing(world, &database).await;
        assert!(world.chassis.drain().await);
        server.control(&["-m", "fast", "stop"]);
        server.keep("data", "standby");
        server.control(&["start"]);
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t SELECT id FROM generate_series(1, 100) id").await;
        database.caught_up().await;
        events(&a, 100).await;
        assert!(world.chassis.drain().await);
        server.control(&["-m", "fast", "stop"]);
        server.keep("standby", "data");
        server.promote();
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (1)").await;
        let events = events(&a, 102).await;
        let Some(Payload::Content(content)) = &events[100].payload else { panic!("no notice: {:?}", events[100]) };
        let reason = String::from_utf8_lossy(&content.data);
        assert!(events[100].r#type == "capture.resync" && reason.contains("may lack its last changes"), "{reason}");
        assert_eq!(change(&events[101]).2, r#"{"id":1}"#);
        assert!(world.chassis.drain().await);
    })
    .await;
}
