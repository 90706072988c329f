//! What the tests of the dispatcher share: a courier that follows a script and remembers every call, and a process that
//! can stop in order or die.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::oracle::Breakers;
use crate::{
    clock::{Clock, ManualClock},
    config::{Secret, StoreSettings},
    error::Result,
    id::OrganizationId,
    lane::{
        Attempted, Blame, Courier, Delivery, Dispatcher, Durable, Offer, Outcome, Schedule, Settings, Slots, State,
        dispatcher::Request,
        limit,
        rows::{self, Filter, Record},
    },
    secret::{DataKeys, Keyring, KeyringSettings},
    store::{Migrations, Store},
    tasks::Tasks,
    testing, with,
};

pub(super) static MIGRATIONS: &[&Migrations] = &[&crate::store::MIGRATIONS, &crate::lane::MIGRATIONS];

/// Longer than anything here takes; what is still not so by then never will be.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const DESTINATION_FAILED: Outcome = Outcome::Retry { after: None, blame: Blame::Destination };
pub(super) const MESSAGE_REFUSED: Outcome = Outcome::Retry { after: None, blame: Blame::Message };

/// One attempt as the courier saw it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) lane: Arc<str>,
    pub(super) event: u32,
    pub(super) key: String,
    pub(super) attempt: u32,
    pub(super) content: Bytes,
    pub(super) at: Timestamp,
    /// The same by a clock that never stepped back.
    pub(super) truly_at: Timestamp,
    /// Crashes before it.
    pub(super) life: u32,
    /// None while it is under way, and for ever if a crash took it.
    pub(super) outcome: Option<Outcome>,
}

#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    inside: HashSet<(Arc<str>, u32)>,
    most_inside: HashMap<Arc<str>, usize>,
    /// Deliveries that were attempted twice at once.
    doubled: Vec<(Arc<str>, u32)>,
    /// Lanes that are held, and how many attempts may end all the same.
    held: HashMap<String, u32>,
    of_event: HashMap<u32, VecDeque<Outcome>>,
    of_lane: HashMap<String, Outcome>,
    closed: Vec<String>,
    life: u32,
    breakers: Breakers,
    /// By how much the clock was set back, altogether.
    set_back: SignedDuration,
}

/// A courier that follows a script: delivers, unless told otherwise.
pub(super) struct Peer<const REPEATABLE: bool> {
    clock: Clock,
    script: Mutex<Script>,
    changed: watch::Sender<()>,
}

/// The courier of one process: what it has under way dies with it.
struct Post<const REPEATABLE: bool> {
    peer: Arc<Peer<REPEATABLE>>,
    dead: CancellationToken,
}

impl<const REPEATABLE: bool> Peer<REPEATABLE> {
    fn new(clock: Clock) -> Self {
        Self { clock, script: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next attempts of an event come to, in turn; further ones are as the lane says.
    pub(super) fn event(&self, event: u32, outcomes: impl IntoIterator<Item = Outcome>) {
        self.script().of_event.insert(event, outcomes.into_iter().collect());
    }

    /// What every attempt in a lane comes to.
    pub(super) fn lane(&self, lane: &str, outcome: Outcome) {
        self.script().of_lane.insert(lane.to_owned(), outcome);
    }

    /// What the breakers are expected to do.
    pub(super) fn breakers<T>(&self, ask: impl FnOnce(&mut Breakers) -> T) -> T {
        ask(&mut self.script().breakers)
    }

    /// Attempts in this lane don't end before it is let go.
    pub(super) fn hold(&self, lane: &str) {
        self.script().held.insert(lane.to_owned(), 0);
    }

    pub(super) fn let_go(&self, lane: &str) {
        self.script().held.remove(lane);
        self.changed.send_replace(());
    }

    /// One attempt of a lane that is held may end.
    pub(super) fn let_one_go(&self, lane: &str) {
        *self.script().held.get_mut(lane).expect("it is held") += 1;
        self.changed.send_replace(());
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.script().calls.clone()
    }

    /// Events attempted in a lane, in order, repeats included.
    pub(super) fn events(&self, lane: &str) -> Vec<u32> {
        self.script().calls.iter().filter(|call| &*call.lane == lane).map(|call| call.event).collect()
    }

    pub(super) fn inside(&self) -> usize {
        self.script().inside.len()
    }

    /// The most attempts of a lane that were under way at once.
    pub(super) fn most_inside(&self, lane: &str) -> usize {
        self.script().most_inside.get(lane).copied().unwrap_or(0)
    }

    /// Lanes that were said to be closed.
    pub(super) fn closed_lanes(&self) -> Vec<String> {
        self.script().closed.clone()
    }

    /// Returns once the calls are so.
    pub(super) async fn until(&self, what: &str, so: impl Fn(&[Call]) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !so(&self.calls()) {
                changed.changed().await.expect("the peer lives");
            }
        };
        let met = tokio::time::timeout(PATIENCE, wait).await;
        assert!(
            met.is_ok(),
            "{what} never came; the last calls: {:?}",
            self.calls().iter().rev().take(5).collect::<Vec<_>>()
        );
    }

    fn begin(&self, delivery: &Delivery) -> usize {
        let mut script = self.script();
        let event = number(delivery.event);
        if !script.inside.insert((delivery.lane_id.clone(), event)) {
            script.doubled.push((delivery.lane_id.clone(), event));
        }
        let inside = script.inside.iter().filter(|(lane, _)| *lane == delivery.lane_id).count();
        let most = script.most_inside.entry(delivery.lane_id.clone()).or_default();
        *most = inside.max(*most);
        let call = Call {
            lane: delivery.lane_id.clone(),
            event,
            key: delivery.ordering_key.clone(),
            attempt: delivery.attempts + 1,
            content: delivery.content.clone(),
            at: self.clock.now(),
            truly_at: self.clock.now() + script.set_back,
            life: script.life,
            outcome: None,
        };
        script.breakers.begin(&call);
        script.calls.push(call);
        drop(script);
        self.changed.send_replace(());
        self.script().calls.len() - 1
    }

    fn may_end(&self, lane: &str) -> bool {
        match self.script().held.get_mut(lane) {
            None => true,
            Some(0) => false,
            Some(ends) => {
                *ends -= 1;
                true
            }
        }
    }

    async fn wait(&self, lane: &str) {
        let mut changed = self.changed.subscribe();
        while !self.may_end(lane) && changed.changed().await.is_ok() {}
    }

    fn end(&self, delivery: &Delivery, call: usize) -> Outcome {
        let mut script = self.script();
        let event = number(delivery.event);
        let scripted = script.of_event.get_mut(&event).and_then(VecDeque::pop_front);
        let outcome =
            scripted.or_else(|| script.of_lane.get(&*delivery.lane_id).copied()).unwrap_or(Outcome::Delivered);
        script.calls[call].outcome = Some(outcome);
        let (call, now) = (script.calls[call].clone(), self.clock.now() + script.set_back);
        script.breakers.end(&call, now);
        script.inside.remove(&(delivery.lane_id.clone(), event));
        drop(script);
        self.changed.send_replace(());
        outcome
    }

    /// How often its process died.
    pub(super) fn deaths(&self) -> u32 {
        self.script().life
    }

    /// Its process died, and every attempt under way with it.
    fn die(&self) {
        let mut script = self.script();
        script.inside.clear();
        script.life += 1;
    }
}

impl<const R: bool> Courier for Post<R> {
    async fn attempt(&self, delivery: Arc<Delivery>) -> Attempted {
        if self.dead.is_cancelled() {
            return attempted(Outcome::Unknown);
        }
        let call = self.peer.begin(&delivery);
        if self.dead.run_until_cancelled(self.peer.wait(&delivery.lane_id)).await.is_none() {
            return attempted(Outcome::Unknown);
        }
        let outcome = self.peer.end(&delivery, call);
        assert!(delivery.event_type != "panics", "on purpose");
        attempted(outcome)
    }

    async fn closed(&self, lane_id: &str, _: &str) {
        self.peer.script().closed.push(lane_id.to_owned());
    }
}

fn attempted(outcome: Outcome) -> Attempted {
    let delivered = outcome == Outcome::Delivered;
    Attempted {
        outcome,
        status_code: Some(if delivered { 200 } else { 500 }),
        class: if delivered { "delivered" } else { "status" },
        error: if delivered { String::new() } else { "answered 500".to_owned() },
        response: Bytes::from_static(b"its answer"),
    }
}

fn number(event: [u8; 16]) -> u32 {
    u32::try_from(u128::from_be_bytes(event)).expect("made by `uid`")
}

pub(super) fn uid(event: u32) -> [u8; 16] {
    u128::from(event).to_be_bytes()
}

/// A process with its dispatcher. Lanes are named `organization/lane`.
pub(super) struct World<const REPEATABLE: bool = true> {
    pub(super) store: Store,
    pub(super) courier: Arc<Peer<REPEATABLE>>,
    pub(super) manual: ManualClock,
    pub(super) dispatcher: Dispatcher,
    pub(super) tasks: Tasks,
    keys: DataKeys,
    clock: Clock,
    slots: Slots,
    dead: CancellationToken,
}

/// Runs a test on each engine, each with a fresh store.
pub(super) async fn on_each_engine<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    testing::on_each_engine(MIGRATIONS, test).await;
}

/// A fresh SQLite store, for tests that try many scripts.
pub(super) async fn sqlite() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = Secret::from(format!("sqlite:{}", folder.path().join("test.db").display()));
    let settings = StoreSettings { url, unsafe_durability: true, ..StoreSettings::default() };
    let store = Store::open(&settings, MIGRATIONS).await.expect("a fresh store opens");
    (folder, store)
}

pub(super) fn organization(lane: &str) -> OrganizationId {
    let (organization, _) = lane.split_once('/').expect("organization/lane");
    OrganizationId::parse(organization).expect("an id")
}

/// A lane that retries after so many seconds each.
pub(super) fn retries(seconds: &[u64]) -> Settings {
    let delays = seconds.iter().map(|seconds| Duration::from_secs(*seconds)).collect();
    Settings { schedule: Schedule::new(delays), ..Settings::default() }
}

pub(super) fn ordered() -> Settings {
    Settings { ordered: true, ..retries(&[1; 20]) }
}

pub(super) fn offer(lane: &str, event: u32) -> Offer {
    Offer {
        lane_id: lane.into(),
        event: uid(event),
        event_id: format!("event-{event}"),
        event_type: "wedding.updated".to_owned(),
        ordering_key: format!("key-{event}"),
        priority: 3,
        origin: "realtime".to_owned(),
        content: Bytes::from(format!("content of {event}")),
    }
}

impl<const REPEATABLE: bool> World<REPEATABLE> {
    pub(super) async fn new(store: Store) -> Self {
        Self::with_slots(store, Slots::default()).await
    }

    pub(super) async fn with_slots(store: Store, slots: Slots) -> Self {
        let (manual, clock) = testing::manual_clock();
        let master_keys = vec![Secret::from("test:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned())];
        let keyring = Keyring::new(&KeyringSettings { master_keys }).expect("a well-formed key");
        let keys = DataKeys::new(store.clone(), keyring, clock.clone());
        let courier = Arc::new(Peer::new(clock.clone()));
        let (tasks, dead) = (Tasks::default(), CancellationToken::new());
        let post = Arc::new(Post { peer: courier.clone(), dead: dead.clone() });
        let dispatcher = Dispatcher::start(store.clone(), keys.clone(), post, slots, clock.clone(), &tasks)
            .await
            .expect("it starts");
        Self { store, courier, manual, dispatcher, tasks, keys, clock, slots, dead }
    }

    async fn start(&mut self) {
        (self.tasks, self.dead) = (Tasks::default(), CancellationToken::new());
        let post = Arc::new(Post { peer: self.courier.clone(), dead: self.dead.clone() });
        let (store, keys, clock) = (self.store.clone(), self.keys.clone(), self.clock.clone());
        self.dispatcher =
            Dispatcher::start(store, keys, post, self.slots, clock, &self.tasks).await.expect("it starts");
    }

    /// Stops in order and starts again; lanes must then be opened. What is held never ends: let it go before.
    pub(super) async fn restart(&mut self) {
        assert!(self.tasks.running().contains_key("lane.dispatcher"), "the dispatcher ended by itself");
        let stopped = self.tasks.stop(PATIENCE).await;
        assert!(stopped, "it didn't stop: {:?}, inside {}", self.tasks.running(), self.courier.inside());
        self.start().await;
    }

    /// Dies without a word and starts again; lanes must then be opened.
    pub(super) async fn crash(&mut self) {
        self.dispatcher.mortal.iter().for_each(tokio::task::AbortHandle::abort);
        self.dead.cancel();
        self.courier.die();
        assert!(self.tasks.stop(PATIENCE).await, "it didn't die: {:?}", self.tasks.running());
        self.start().await;
    }

    pub(super) async fn open(&self, lane: &str, settings: Settings) {
        let settings = Settings { repeatable: REPEATABLE, ..settings };
        self.dispatcher.open(lane, &organization(lane), settings).await.expect("it opens");
    }

    pub(super) async fn offer(&self, offer: Offer) -> Durable {
        self.dispatcher.offer(vec![offer], false).await.expect("it is taken")
    }

    /// Offers and waits until it is durable.
    pub(super) async fn give(&self, offer: Offer) {
        let durable = self.offer(offer).await;
        within("durable", durable.wait()).await.expect("durable");
    }

    /// Returns once nothing happens any more but the attempts that are held.
    pub(super) async fn quiet(&self) {
        let mut last = None;
        let quiet = async {
            loop {
                let (answer, look) = oneshot::channel();
                self.dispatcher.requests.send(Request::Look { answer }).await.expect("it runs");
                let (idle, running) = look.await.expect("it runs");
                last = Some((idle, running, self.courier.inside(), self.tasks.running()));
                if idle && running == self.courier.inside() && !self.tasks.running().contains_key("lane.close") {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let met = tokio::time::timeout(PATIENCE, quiet).await;
        assert!(met.is_ok(), "never quiet; (idle, running, inside, tasks): {last:?}");
    }

    /// Returns once every attempt that was decided on has begun and the dispatcher has heard of each that ended: then
    /// time may pass, and what comes after it was decided after it.
    pub(super) async fn abreast(&self) {
        let look = || {
            let running = self.tasks.running().get("lane.attempt").copied().unwrap_or(0);
            (running, self.courier.inside(), self.courier.calls().len())
        };
        let abreast = async {
            let mut last = look();
            loop {
                tokio::task::yield_now().await;
                let now = look();
                if now == last && now.0 == now.1 {
                    return;
                }
                last = now;
            }
        };
        within("abreast", abreast).await;
    }

    /// Sets the clock back; in truth no time passes.
    pub(super) fn set_back(&self, time: Duration) {
        let time = SignedDuration::try_from(time).expect("short");
        self.courier.script().set_back += time;
        self.manual.set(self.clock.now() - time);
    }

    /// Lets time pass and everything that is due then happen.
    pub(super) async fn pass(&self, time: Duration) {
        self.manual.advance(time);
        self.quiet().await;
    }

    /// Lets time pass second by second.
    pub(super) async fn pass_seconds(&self, seconds: u32) {
        for _ in 0..seconds {
            self.pass(Duration::from_secs(1)).await;
        }
    }

    pub(super) async fn record(&self, lane: &str, event: u32) -> Record {
        let filter = Filter { lane_id: Some(lane.to_owned()), event: Some(uid(event)), ..Filter::default() };
        let mut found = rows::list(&self.store, &organization(lane), &filter, 10).await.expect("it is listed");
        assert_eq!(found.len(), 1, "rows of event {event} in {lane}");
        found.remove(0)
    }

    pub(super) async fn state(&self, lane: &str, event: u32) -> State {
        State::from_number(self.record(lane, event).await.state).expect("a state")
    }

    /// How many deliveries of a lane are in each state.
    pub(super) async fn states(&self, lane: &str) -> HashMap<State, usize> {
        let filter = Filter { lane_id: Some(lane.to_owned()), ..Filter::default() };
        let found = rows::list(&self.store, &organization(lane), &filter, 100_000).await.expect("they are listed");
        let mut states = HashMap::new();
        for record in found {
            *states.entry(State::from_number(record.state).expect("a state")).or_default() += 1;
        }
        states
    }

    pub(super) async fn attempts(&self, lane: &str, event: u32) -> Vec<rows::AttemptRecord> {
        let record = self.record(lane, event).await;
        rows::attempts(&self.store, &self.keys, &organization(lane), record.id).await.expect("they are listed")
    }

    pub(super) async fn count(&self, sql: &'static str) -> i64 {
        with!(self.store.reader(), c => sqlx::query_scalar(sql).fetch_one(c).await).expect("a count")
    }

    /// What must hold of every script: no delivery was ever attempted twice at once.
    pub(super) fn assert_never_doubled(&self) {
        assert_eq!(self.courier.script().doubled, []);
    }

    /// No 60 s of a lane, in truth, hold more attempts than its limit.
    pub(super) fn assert_limit(&self, lane: &str, most: u32) {
        let calls = self.courier.calls().into_iter().filter(|call| &*call.lane == lane);
        let mut times: Vec<_> = calls.map(|call| call.truly_at).collect();
        times.sort_unstable();
        for (first, over) in times.iter().zip(times.iter().skip(most as usize)) {
            assert!(
                over.duration_since(*first) >= limit::WINDOW,
                "{lane}: over {most} in the minute from {first}: {times:?}"
            );
        }
    }
}

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("never {what}"),
    }
}

/// A promise that was kept.
pub(super) async fn kept(durable: Durable) -> Result<()> {
    within("durable", durable.wait()).await
}
