//! One process: what all its parts share, and its life from the command line to the orderly stop.
//!
//! The stop, within `[server] stop_deadline_ms`: nothing serves by its health, the listeners close and connections get
//! GOAWAY, calls finish (for at most two thirds of the time), then the tasks are told to stop. What still runs at the
//! deadline is named and cut off.

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::ServiceTokens,
    clock::Clock,
    config::{self, Shared},
    descriptors,
    grpc::Local,
    health::Health,
    secret::Keyring,
    tasks::Tasks,
    telemetry,
};

/// What the parts of a process share. Cheap to clone.
#[derive(Clone)]
pub struct Chassis {
    /// The time.
    pub clock: Clock,
    /// Everything that runs in the background.
    pub tasks: Tasks,
    /// The shared settings.
    pub shared: Arc<Shared>,
    /// How services know each other.
    pub tokens: ServiceTokens,
    draining: CancellationToken,
    servers: TaskTracker,
    local: Local,
    healths: Arc<Mutex<Vec<Health>>>,
}

impl Chassis {
    /// Checks the shared settings and sets up what they describe.
    ///
    /// # Errors
    /// Settings that can't hold.
    pub fn new(shared: Shared, clock: Clock) -> Result<Self> {
        shared.check()?;
        telemetry::recorder();
        let tokens = ServiceTokens::new(&shared.auth.service_secret, clock.clone());
        Ok(Self {
            clock,
            tasks: Tasks::default(),
            shared: Arc::new(shared),
            tokens,
            draining: CancellationToken::new(),
            servers: TaskTracker::new(),
            local: Local::default(),
            healths: Arc::default(),
        })
    }

    /// A chassis with secrets of its own on the system's clock, which stops within 5 s.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn for_test() -> Self {
        let mut shared = Shared::default();
        shared.secrets.master_keys = vec![crate::secret::generate_master_key(&Clock::System)];
        shared.auth.service_secret = "a secret that only tests may share".to_owned().into();
        shared.server.stop_deadline_ms = 5_000;
        Self::new(shared, Clock::System).expect("test settings hold")
    }

    /// The keys that seal what is stored, for the services that store secrets.
    ///
    /// # Errors
    /// `[secrets] master_keys` is empty or malformed.
    pub fn keyring(&self) -> Result<Keyring> {
        Keyring::new(&self.shared.secrets).context("[secrets] master_keys")
    }

    /// Cancelled when the stop begins. Streams end by themselves within half a second, or are cut then.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    pub(crate) fn servers(&self) -> &TaskTracker {
        &self.servers
    }

    pub(crate) fn local(&self) -> &Local {
        &self.local
    }

    /// The health of one more server.
    pub(crate) fn health(&self) -> Health {
        let health = Health::default();
        self.healths.lock().unwrap_or_else(PoisonError::into_inner).push(health.clone());
        health
    }

    /// A part can't do its work any more and nothing in this process can mend that: nothing serves from here on, and
    /// [`Chassis::run`] stops in order.
    pub fn give_up(&self, reason: &str) {
        self.stop_serving();
        self.tasks.fail(reason);
    }

    fn stop_serving(&self) {
        for health in self.healths.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            health.drain();
        }
    }

    /// Runs until SIGTERM, SIGINT, or a part that gives up, then stops; false if a part gave up or something was cut off,
    /// by the deadline or a second signal.
    ///
    /// # Errors
    /// Signals can't be listened for.
    pub async fn run(&self) -> Result<bool> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        self.tasks.spawn("metrics", keep_up(self.clone()));
        let failed = self.tasks.failed();
        tokio::select! {
            () = either(&mut terminate, &mut interrupt) => {}
            () = failed.cancelled() => {}
        }
        tokio::select! {
            ended = self.drain() => Ok(ended && !failed.is_cancelled()),
            () = either(&mut terminate, &mut interrupt) => Ok(false),
        }
    }

    /// Stops everything in order, within the deadline; false if something still ran then.
    pub async fn drain(&self) -> bool {
        let (began, deadline) = (Instant::now(), self.shared.server.stop_deadline());
        tracing::info!(deadline_ms = deadline.as_millis(), "stopping");
        self.stop_serving();
        self.draining.cancel();
        self.servers.close();
        if timeout(deadline * 2 / 3, self.servers.wait()).await.is_err() {
            tracing::warn!("calls still run: they are left behind");
        }
        let ended = self.tasks.stop(deadline.saturating_sub(began.elapsed())).await;
        tracing::info!(took_ms = began.elapsed().as_millis(), clean = ended, "stopped");
        ended
    }
}

async fn keep_up(chassis: Chassis) {
    let stopping = chassis.tasks.stopping();
    while stopping.run_until_cancelled(tokio::time::sleep(telemetry::UPKEEP)).await.is_some() {
        telemetry::recorder().run_upkeep();
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// The life of a service that runs by itself: `fn main() -> ExitCode { chassis::service::main("router", router_svc::start) }`.
///
/// `T` is the service's own section, named as the service with `_` for `-`; what `start` returns is kept until the end.
/// Exit codes: 2 for a command line or settings that can't hold, 1 for a failure or a stop that cut something off.
pub fn main<T, R>(name: &'static str, start: impl AsyncFnOnce(T, &Chassis) -> Result<R>) -> ExitCode
where
    T: Serialize + DeserializeOwned + Default,
{
    let (shared, section) = match command(name, std::env::args().skip(1)) {
        Ok(Command::Serve(shared, section)) => (shared, section),
        Ok(Command::Say(text)) => return say(&mut io::stdout(), &text, ExitCode::SUCCESS),
        Err(error) => return say(&mut io::stderr(), &format!("{name}: {error:#}\n"), ExitCode::from(2)),
    };
    match serve(shared, section, start) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => say(&mut io::stderr(), &format!("{name}: {error:#}\n"), ExitCode::FAILURE),
    }
}

enum Command<T> {
    Serve(Shared, T),
    Say(String),
}

fn command<T>(name: &str, arguments: impl Iterator<Item = String>) -> Result<Command<T>>
where
    T: Serialize + DeserializeOwned + Default,
{
    let (mut arguments, mut file, mut print) = (arguments, None, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--config" => file = Some(PathBuf::from(arguments.next().context("--config needs a file")?)),
            "--print-config" => print = true,
            "--help" | "-h" => return Ok(Command::Say(usage(name))),
            other => bail!("unknown argument {other}\n{}", usage(name)),
        }
    }
    let section = name.replace('-', "_");
    let (shared, own) = config::load_section(&section, file.as_deref(), config::environment())?;
    if print {
        return Ok(Command::Say(config::print_section(&shared, &section, &own)));
    }
    shared.check()?;
    Ok(Command::Serve(shared, own))
}

fn usage(name: &str) -> String {
    let variable = name.replace('-', "_").to_uppercase();
    format!(
        "Usage: {name} [--config FILE] [--print-config]\n\n\
         --config FILE    settings in TOML; WEDSYNC_{variable}__LISTEN in the environment overrides [{}] listen\n\
         --print-config   print the settings in force, without secrets, and end\n",
        variable.to_lowercase()
    )
}

fn serve<T, R>(shared: Shared, section: T, start: impl AsyncFnOnce(T, &Chassis) -> Result<R>) -> Result<bool> {
    telemetry::init(&shared.telemetry)?;
    descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let chassis = Chassis::new(shared, Clock::System)?;
        let _service = start(section, &chassis).await?;
        chassis.run().await
    });
    // What blocks a thread beyond the deadline must not hold the process.
    runtime.shutdown_timeout(Duration::ZERO);
    ended
}

fn say(stream: &mut impl io::Write, text: &str, code: ExitCode) -> ExitCode {
    // Nobody may be reading: a closed pipe is no failure.
    let _ = stream.write_all(text.as_bytes());
    code
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Own {
        limit: u32,
    }

    fn said(arguments: &[&str]) -> Result<String, String> {
        match command::<Own>("vendor-sync", arguments.iter().map(|argument| (*argument).to_owned())) {
            Ok(Command::Say(text)) => Ok(text),
            Ok(Command::Serve(..)) => Err("serves".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn the_command_line_is_checked_before_anything_starts() {
        assert!(said(&["--help"]).expect("a text").contains("WEDSYNC_VENDOR_SYNC__LISTEN"));
        assert!(said(&["--print-config"]).expect("a text").contains("[vendor_sync]\nlimit = 0"));
        assert!(said(&["--verbose"]).expect_err("misuse").starts_with("unknown argument --verbose"));
        assert!(said(&["--config"]).expect_err("misuse").contains("needs a file"));
        assert!(said(&["--config", "/nowhere.toml"]).expect_err("misuse").contains("/nowhere.toml"));
        assert!(said(&[]).expect_err("no secret").contains("[auth] service_secret"));
    }

    #[test]
    fn a_failed_start_is_reported() {
        async fn start(own: Own, _: &Chassis) -> Result<()> {
            bail!("limit {} is no limit", own.limit)
        }
        let shared = (*Chassis::for_test().shared).clone();
        let error = serve(shared, Own { limit: 3 }, start).expect_err("it doesn't start");
        assert_eq!(error.to_string(), "limit 3 is no limit");
    }

    #[tokio::test]
    async fn a_process_that_can_not_go_on_stops_in_order_and_ends_as_failed() {
        let chassis = Chassis::for_test();
        let (draining, stopping) = (chassis.draining(), chassis.tasks.stopping());
        chassis.tasks.spawn("patient", async move { stopping.cancelled().await });
        chassis.tasks.fail("its store is another's");
        assert!(!chassis.run().await.expect("signals work"));
        assert!(draining.is_cancelled() && chassis.tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_signal_begins_the_stop_and_tasks_are_waited_for() {
        let chassis = Chassis::for_test();
        let draining = chassis.draining();
        let stopping = chassis.tasks.stopping();
        chassis.tasks.spawn("patient", async move { stopping.cancelled().await });
        let killed = async {
            assert!(!draining.is_cancelled());
            let pid = std::process::id().to_string();
            std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill is there")
        };
        let (clean, _) = tokio::join!(chassis.run(), killed);
        assert!(clean.expect("signals work"));
        assert!(draining.is_cancelled() && chassis.tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_part_that_gives_up_stops_the_process_in_order() {
        let chassis = Chassis::for_test();
        let (health, stopping) = (chassis.health(), chassis.tasks.stopping());
        chassis.tasks.spawn("patient", async move { stopping.cancelled().await });
        assert_eq!(health.ready(), Ok(()));
        chassis.give_up("on purpose");
        assert_eq!(health.ready(), Err(vec!["draining".to_owned()]), "at once");
        assert!(!chassis.run().await.expect("signals work"), "that is a failure");
        assert!(chassis.draining().is_cancelled() && chassis.tasks.running().is_empty());
    }
}
