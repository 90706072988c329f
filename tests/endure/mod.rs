//! From a commit to its subscribers while everything between them breaks, one thing after the other and then all of it:
//! is each committed change told to each subscriber once, in the order of the commits, as it was committed?
//!
//! `writer` commits and keeps the books, `subscriber` listens in three ways and comes back with its position, `proxy` can
//! cut it off at any byte, `system` are the processes between. What breaks is told here.

pub(crate) mod change;
pub(crate) mod heard;
mod proxy;
mod subscriber;
mod system;
mod writer;

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

pub(crate) use self::system::Layout;
use self::{
    heard::Outcome,
    subscriber::{Subscriber, Way},
    system::System,
    writer::{Ledger, Writer},
};
use crate::{
    crash::{Chance, kill::millis},
    harness::{Engine, PATIENCE, Postgres, Source, organization, signed, tenant},
};

/// How long a server may take to end in order: what reads its log must not hold it.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Longest time that something stays away, in milliseconds.
const AWAY_MS: u64 = 1_500;
/// A cut comes within so many bytes, or after this long if nothing flows.
const CUT_WITHIN: u64 = 3_000;
const CUT_AFTER: Duration = Duration::from_secs(1);

/// How much, how hard and when.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Decides every change and every moment.
    pub(crate) seed: u64,
    /// Changes altogether.
    pub(crate) changes: usize,
    /// Of them, those that are committed while the router is away.
    pub(crate) held: usize,
    /// Changes a second, otherwise.
    pub(crate) rate: u32,
    /// How often each process and server is ended.
    pub(crate) times: u32,
    /// How often connections of subscribers are cut.
    pub(crate) cuts: u32,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// kill -9 of this process.
    Kill(usize),
    /// The captured database's server, in order.
    Restart,
    /// The same while nobody writes: then nothing but the stream itself could hold the server.
    RestartIdle,
    /// The same with every connection cut, nothing finished, and recovery at the next start.
    Crash,
    Cut,
    /// The router is away for long.
    HoldBack,
    /// Any of them, with no time to recover.
    All,
}

/// What one kind of fault came to.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) fault: String,
    /// Where the router keeps its log: files, or the server whose database is captured.
    pub(crate) store: &'static str,
    pub(crate) ok: bool,
    pub(crate) tried: u32,
    /// Committed meanwhile.
    pub(crate) changes: usize,
    /// Subscribers that had to be told each.
    pub(crate) subscribers: usize,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    /// The longest time from a fault's end until every subscriber had all that was committed by then.
    pub(crate) recovery_ms: u64,
    /// The longest time that the database's server took to end in order, where it was told to.
    pub(crate) longest_stop_ms: u64,
    /// Promises that were broken, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) broken: Vec<String>,
}

/// Breaks everything, on a server of its own; `told` hears of each kind. Whether every promise was kept.
pub(crate) async fn run(layout: Layout, in_files: bool, plan: &Plan, mut told: impl FnMut(&Line)) -> bool {
    let mut stage = Stage::start(layout, in_files, plan).await;
    let kills: &[Fault] = if layout == Layout::Apart { &[Fault::Kill(0), Fault::Kill(1)] } else { &[Fault::Kill(0)] };
    let others = [Fault::Restart, Fault::RestartIdle, Fault::Crash, Fault::Cut, Fault::HoldBack, Fault::All];
    let faults: Vec<Fault> = kills.iter().chain(&others).copied().collect();
    let share = (plan.changes - plan.held) / (faults.len() - 2);
    let mut good = true;
    for fault in faults {
        let line = stage.phase(fault, plan, share).await;
        good &= line.ok;
        told(&line);
        if !line.ok {
            eprintln!("{}:\n{}", line.fault, stage.world.system.log_end());
        }
    }
    stage.world.system.end().await;
    good
}

/// All that takes part.
struct Stage {
    world: World,
    writer: Writer,
    store: &'static str,
}

/// What is broken, and who listens meanwhile.
struct World {
    system: System,
    server: Postgres,
    subscribers: [Subscriber; 3],
    chance: Chance,
    ledger: Ledger,
    broken: Vec<String>,
    longest_stop: Duration,
    _folder: TempDir,
}

impl Stage {
    async fn start(layout: Layout, in_files: bool, plan: &Plan) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = Postgres::start_in(folder.path(), &["wal_level=logical"]).await;
        let source = Source::create_on(&server.url(), &change::SETUP).await;
        let engine = if in_files { Engine::Sqlite } else { Engine::Postgres(server.url()) };
        let system = System::start(layout, &engine, &source).await;
        let key = tenant(system.router, &system.operator(), "Endure").await;
        let organization = organization(system.router, &key).await;
        let token = signed(&system.secret, json!({ "organization_id": organization, "app_role": "owner" }));
        source.streams().await;
        let start = async |way, target| Subscriber::start(way, target, &organization).await;
        let subscribers = [
            start(Way::WebSocket(token.clone()), system.gateway).await,
            start(Way::Events(token), system.gateway).await,
            start(Way::Grpc(key), system.router).await,
        ];
        for Subscriber { heard, .. } in &subscribers {
            until(&format!("{} has a position", heard.name), || heard.position().is_some()).await;
        }
        let writer = Writer::new(source.url.clone(), organization, plan.seed);
        let (chance, ledger) = (Chance::new(!plan.seed), writer.ledger.clone());
        let (broken, longest_stop) = (Vec::new(), Duration::ZERO);
        let world = World { system, server, subscribers, chance, ledger, broken, longest_stop, _folder: folder };
        Self { world, writer, store: if in_files { "sqlite" } else { "postgres" } }
    }

    /// One kind of fault, with changes before, while and after; then everything must have arrived.
    async fn phase(&mut self, fault: Fault, plan: &Plan, share: usize) -> Line {
        let Self { world, writer, store } = self;
        let (start, starts) = (world.ledger.len(), world.subscribers.each_ref().map(|one| one.heard.len()));
        let (tried, recovery_ms) = match fault {
            Fault::HoldBack => (1, world.hold_back(writer, plan.held).await),
            Fault::RestartIdle => (1, world.restart_idle(writer).await),
            _ => {
                let times = match fault {
                    Fault::Cut => plan.cuts,
                    Fault::All => plan.times * 4,
                    _ => plan.times,
                };
                let busy = Cell::new(true);
                let writing = writer.write(share, Some(plan.rate), || busy.get());
                let breaking = async {
                    let longest = world.strikes(fault, times, share).await;
                    busy.set(false);
                    longest
                };
                let ((), longest) = tokio::join!(writing, breaking);
                (times, longest)
            }
        };
        let rest = world.arrives(world.ledger.len(), Instant::now()).await;
        let recovery_ms = if fault == Fault::All { rest } else { recovery_ms };
        let committed = world.ledger.since(start);
        let mut outcome = Outcome::default();
        for (Subscriber { heard, .. }, start) in world.subscribers.iter().zip(starts) {
            let its = heard.held_against(start, &committed);
            if !its.is_good() {
                let (name, complaints) = (heard.name, its.complaints.join("; "));
                let Outcome { missed, doubled, strange, altered, .. } = its;
                let counts = format!("{missed} missed, {doubled} doubled, {strange} strange, {altered} altered");
                world.broken.push(format!("{name}: {counts}; {complaints}"));
            }
            outcome.add(&its);
        }
        world.broken.extend(world.system.ended().into_iter().map(|ended| format!("it ended by itself: {ended}")));
        let broken = std::mem::take(&mut world.broken);
        Line {
            fault: fault.name(&world.system),
            store,
            ok: outcome.is_good() && broken.is_empty(),
            tried,
            changes: committed.len(),
            subscribers: world.subscribers.len(),
            outcome,
            recovery_ms,
            longest_stop_ms: millis(std::mem::take(&mut world.longest_stop)),
            broken,
        }
    }
}

impl World {
    /// Brings a fault about, so often, spread over `share` changes; the longest recovery.
    async fn strikes(&mut self, fault: Fault, times: u32, share: usize) -> u64 {
        let start = self.ledger.len();
        let part = share / times.max(1) as usize;
        let mut longest = 0;
        for number in 0..times as usize {
            let within = usize::try_from(self.chance.within(0..part.max(1) as u64)).unwrap_or_default();
            let ledger = self.ledger.clone();
            until("changes are committed", || ledger.len() >= start + number * part + within).await;
            let ended = self.strike(fault).await;
            if fault != Fault::All {
                longest = longest.max(self.arrives(self.ledger.len(), ended).await);
            }
        }
        longest
    }

    /// Brings it about once; when it ended.
    async fn strike(&mut self, fault: Fault) -> Instant {
        let away = Duration::from_millis(self.chance.within(0..AWAY_MS));
        match fault {
            Fault::Kill(part) => {
                self.system.kill(part).await;
                sleep(away).await;
                let started = Instant::now();
                self.system.start_again(part).await;
                started
            }
            Fault::Restart | Fault::Crash => {
                if fault == Fault::Crash {
                    self.server.stop_immediately().await;
                } else {
                    self.stop_in_order().await;
                }
                sleep(away).await;
                self.server.run().await;
                Instant::now()
            }
            Fault::Cut => self.cut().await,
            Fault::HoldBack | Fault::RestartIdle | Fault::All => {
                let parts = self.system.parts();
                let fault = match usize::try_from(self.chance.within(0..8)).unwrap_or_default() {
                    0 => Fault::Restart,
                    1 => Fault::Crash,
                    2 | 3 => Fault::Cut,
                    other => Fault::Kill(other % parts),
                };
                Box::pin(self.strike(fault)).await
            }
        }
    }

    async fn stop_in_order(&mut self) {
        let began = Instant::now();
        if !self.server.stop_in_order(ENDS_WITHIN).await {
            self.broken.push(format!("the server didn't end in order within {ENDS_WITHIN:?}"));
        }
        self.longest_stop = self.longest_stop.max(began.elapsed());
    }

    /// Cuts one subscriber off, in the middle of whatever it is told.
    async fn cut(&mut self) -> Instant {
        let which = usize::try_from(self.chance.within(0..3)).unwrap_or_default();
        let bytes = self.chance.within(1..CUT_WITHIN);
        let proxy = &self.subscribers[which].proxy;
        let before = proxy.cuts();
        proxy.cut_after(bytes);
        let cut = async {
            while proxy.cuts() == before {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(CUT_AFTER, cut).await.is_err() {
            proxy.cut();
        }
        Instant::now()
    }

    /// The server is restarted while nobody writes, then somebody does.
    async fn restart_idle(&mut self, writer: &mut Writer) -> u64 {
        let ended = self.strike(Fault::Restart).await;
        writer.write(1, None, || false).await;
        self.arrives(self.ledger.len(), ended).await
    }

    /// The router is away while much is committed; how long until all of it has arrived.
    async fn hold_back(&mut self, writer: &mut Writer, count: usize) -> u64 {
        if !self.system.stop(0).await {
            self.broken.push("the router didn't end in order".to_owned());
        }
        writer.write(count, None, || false).await;
        let started = Instant::now();
        self.system.start_again(0).await;
        self.arrives(self.ledger.len(), started).await
    }

    /// Waits until every subscriber has the first `count` changes; how long after `since` that is.
    async fn arrives(&mut self, count: usize, since: Instant) -> u64 {
        let Some(last) = count.checked_sub(1).map(|last| self.ledger.since(last)[0]) else { return 0 };
        let mut all = 0;
        let mut progress = Instant::now();
        while !self.subscribers.iter().all(|one| one.heard.has(last)) {
            let now = self.subscribers.iter().map(|one| one.heard.len()).sum();
            if now > all {
                (all, progress) = (now, Instant::now());
            }
            if progress.elapsed() > PATIENCE {
                let lengths = self.subscribers.each_ref().map(|one| (one.heard.name, one.heard.len()));
                self.broken.push(format!("of {count} changes the last didn't arrive: {lengths:?}"));
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        millis(since.elapsed())
    }
}

impl Fault {
    fn name(self, system: &System) -> String {
        match self {
            Self::Kill(part) => format!("kill:{}", system.name(part)),
            Self::Restart => "database-restart:fast".to_owned(),
            Self::RestartIdle => "database-restart:idle".to_owned(),
            Self::Crash => "database-restart:immediate".to_owned(),
            Self::Cut => "subscriber-cut".to_owned(),
            Self::HoldBack => format!("held-back:{}", system.name(0)),
            Self::All => format!("everything:{}", system.names()),
        }
    }
}

/// Waits for something that comes.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not yet: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
