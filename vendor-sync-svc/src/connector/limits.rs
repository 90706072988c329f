//! Keeps to the quotas: who may begin a request now, who waits, who is parked. Effects around the pure `quota.rs`.
//!
//! Windows are kept in memory and begin empty with the process; days are kept in the store, written before the request
//! that they count is sent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    store::Store,
    with,
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    CallError, Connector, Park,
    quota::{Day, Period, Quota, Scope, Window},
};

/// How long a call waits for its turn before it is told to come again.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pools and accounts in memory, beyond which idle ones are looked for.
const MANY: usize = 4_096;
/// Accounts of one pool whose use of a day is read.
const MOST_ACCOUNTS: i64 = 100_000;

/// All limits of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    store: Store,
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    windows: HashMap<String, (Window, Duration)>,
    days: HashMap<String, Day>,
    parked: HashMap<String, Timestamp>,
    slots: HashMap<String, Arc<Semaphore>>,
}

/// Whose requests are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    /// The integration's id.
    pub(crate) account: &'a str,
    /// What a shared quota is shared by: the connector, with its organization where it is its own, and the OAuth client.
    pub(crate) application: &'a str,
}

impl Asker<'_> {
    fn pool(&self, scope: Scope, index: usize) -> String {
        match scope {
            Scope::Account => format!("{}#{index}", self.account),
            Scope::Application => format!("{}#{index}", self.application),
        }
    }
}

/// The right to send one request; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _slot: OwnedSemaphorePermit,
}

impl Limits {
    /// Over the tables of `store`.
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, state: Arc::default() }
    }

    /// Waits a little for the turn of `asker`.
    ///
    /// # Errors
    /// `Class::Throttled` with when to come again; `Class::Retry` while the store is away.
    pub(crate) async fn enter(&self, connector: &Connector, asker: Asker<'_>) -> Result<Permit, CallError> {
        let slot = self.slot(connector, asker.account).await?;
        let patience = self.clock.now() + SignedDuration::try_from(PATIENCE).expect("seconds");
        loop {
            let now = self.clock.now();
            self.read_days(connector.quotas(), asker, now).await.map_err(away)?;
            let Err(wait) = self.begin(connector.quotas(), asker, now) else { break };
            let wait_until = now + SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            if wait_until > patience {
                return Err(CallError::throttled(wait, "the vendor's quota is used up for now"));
            }
            self.clock.sleep(wait).await;
        }
        self.write_days(connector.quotas(), asker).await.map_err(away)?;
        Ok(Permit { _slot: slot })
    }

    /// Nobody of this account, or of its application, asks again before then.
    pub(crate) fn park(&self, asker: Asker<'_>, park: Park, wait: Duration) {
        let name = match park {
            Park::Account => asker.account,
            Park::Application => asker.application,
        };
        let until = self.clock.now() + SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
        let mut state = self.state();
        let parked = state.parked.entry(name.to_owned()).or_insert(until);
        *parked = until.max(*parked);
    }

    async fn slot(&self, connector: &Connector, account: &str) -> Result<OwnedSemaphorePermit, CallError> {
        let slots = {
            let mut state = self.state();
            state.tidy(self.clock.now());
            let slots = || Arc::new(Semaphore::new(usize::try_from(connector.concurrency()).expect("at most 64")));
            state.slots.entry(account.to_owned()).or_insert_with(slots).clone()
        };
        let slot = tokio::time::timeout(PATIENCE, slots.acquire_owned()).await;
        let busy =
            || CallError::throttled(Duration::from_secs(1), "as many requests of this account are under way as may be");
        slot.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// All quotas or none: what was counted before another refused is taken back.
    fn begin(&self, quotas: &[Quota], asker: Asker<'_>, now: Timestamp) -> Result<(), Duration> {
        let mut state = self.state();
        let parked = [asker.account, asker.application].into_iter().filter_map(|name| state.parked.get(name));
        if let Some(until) = parked.max().filter(|until| **until > now) {
            return Err(Duration::try_from(until.duration_since(now)).unwrap_or(PATIENCE));
        }
        for (index, quota) in quotas.iter().enumerate() {
            if let Err(wait) = state.begin(index, quota, asker, now) {
                quotas[..index].iter().enumerate().for_each(|(index, quota)| state.take_back(index, quota, asker));
                return Err(wait);
            }
        }
        Ok(())
    }

    /// Reads what was used of a day that isn't in memory.
    async fn read_days(&self, quotas: &[Quota], asker: Asker<'_>, now: Timestamp) -> Result<()> {
        for (pool, zone) in days(quotas, asker) {
            let mut day = Day::of(now, zone);
            if self.state().days.get(&pool).is_some_and(|known| known.date == day.date) {
                continue;
            }
            let rows = with!(self.store.reader(), c => {
                sqlx::query_as::<_, (String, i64)>("SELECT account, used FROM connector_days WHERE pool = $1 AND day = $2 LIMIT $3")
                    .bind(&pool)
                    .bind(day.date.to_string())
                    .bind(MOST_ACCOUNTS)
                    .fetch_all(c)
                    .await
            })?;
            day.used = rows.into_iter().map(|(account, used)| (account.into(), used.unsigned_abs())).collect();
            self.forget_days(&pool, &day).await?;
            let mut state = self.state();
            // Another call may have read it meanwhile, and counted on.
            if state.days.get(&pool).is_none_or(|known| known.date != day.date) {
                state.days.insert(pool, day);
            }
        }
        Ok(())
    }

    async fn forget_days(&self, pool: &str, today: &Day) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM connector_days WHERE pool = $1 AND day < $2")
                .bind(pool)
                .bind(today.date.to_string())
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    async fn write_days(&self, quotas: &[Quota], asker: Asker<'_>) -> Result<()> {
        for (pool, _) in days(quotas, asker) {
            let Some(day) = self.state().days.get(&pool).map(|day| day.date.to_string()) else { continue };
            with!(self.store.writer(), c => {
                sqlx::query(
                    "INSERT INTO connector_days (pool, day, account, used) VALUES ($1, $2, $3, 1) \
                     ON CONFLICT (pool, day, account) DO UPDATE SET used = connector_days.used + 1",
                )
                .bind(&pool)
                .bind(&day)
                .bind(asker.account)
                .execute(c)
                .await
                .map(drop)
            })?;
        }
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, index: usize, quota: &Quota, asker: Asker<'_>, now: Timestamp) -> Result<(), Duration> {
        let pool = asker.pool(quota.scope, index);
        match &quota.period {
            Period::Window(length) => {
                let (window, _) = self.windows.entry(pool).or_insert_with(|| (Window::default(), *length));
                window.begin(asker.account, quota.requests, *length, now)
            }
            Period::Day(zone) => {
                let day = self.days.entry(pool).or_insert_with(|| Day::of(now, zone));
                day.begin(asker.account, quota.requests, quota.scope == Scope::Application, now, zone)
            }
        }
    }

    fn take_back(&mut self, index: usize, quota: &Quota, asker: Asker<'_>) {
        let pool = asker.pool(quota.scope, index);
        match &quota.period {
            Period::Window(_) => drop(self.windows.get_mut(&pool).map(|(window, _)| window.take_back(asker.account))),
            Period::Day(_) => drop(self.days.get_mut(&pool).map(|day| day.take_back(asker.account))),
        }
    }

    /// Forgets what is idle once there is much.
    fn tidy(&mut self, now: Timestamp) {
        if self.windows.len() > MANY {
            self.windows.retain(|_, (window, length)| !window.is_idle(*length, now));
        }
        if self.parked.len() > MANY {
            self.parked.retain(|_, until| *until > now);
        }
        if self.slots.len() > MANY {
            self.slots.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        if self.days.len() > MANY {
            // What was used is in the store.
            self.days.clear();
        }
    }
}

fn days<'q>(quotas: &'q [Quota], asker: Asker<'_>) -> Vec<(String, &'q TimeZone)> {
    let day = |(index, quota): (usize, &'q Quota)| match &quota.period {
        Period::Day(zone) => Some((asker.pool(quota.scope, index), zone)),
        Period::Window(_) => None,
    };
    quotas.iter().enumerate().filter_map(day).collect::<BTreeMap<_, _>>().into_iter().collect()
}

fn away(error: Error) -> CallError {
    CallError::retry(format!("the store that counts a day's quota is away: {error}"))
}
