//! What every crate's tests share: a fresh store on each engine, and a clock that stands still.
//!
//! PostgreSQL's address comes from `WEDSYNC_TEST_POSTGRES` (set by `make test`, which starts a server); without it the
//! tests run on SQLite alone and say so.

use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use jiff::Timestamp;

use crate::{
    clock::{Clock, ManualClock},
    config::{Secret, StoreSettings},
    store::{Migrations, Store},
};

/// Midday on 2026-05-01, UTC: where manual clocks begin.
#[must_use]
pub fn noon() -> Timestamp {
    Timestamp::from_second(1_777_636_800).expect("a time in range")
}

/// A manual clock that shows [`noon`], and the clock to hand out.
#[must_use]
pub fn manual_clock() -> (ManualClock, Clock) {
    let manual = ManualClock::at(noon());
    (manual.clone(), Clock::Manual(manual))
}

/// The seeds of a random test: the one that `WEDSYNC_TEST_SEED` names, or as many as `WEDSYNC_TEST_SEEDS` says, or `few`,
/// from one that nobody chose.
///
/// # Panics
/// If either isn't a number.
#[must_use]
pub fn seeds(few: u64) -> Range<u64> {
    let number = |name| variable(name).map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}: {text}")));
    match number("WEDSYNC_TEST_SEED") {
        Some(seed) => seed..seed.saturating_add(1),
        None => {
            let first = u64::from(u32::from_le_bytes(crate::secret::random()));
            first..first.saturating_add(number("WEDSYNC_TEST_SEEDS").unwrap_or(few))
        }
    }
}

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests take their server and their seeds from the environment")]
    std::env::var(name).ok()
}

/// The address of the PostgreSQL server for tests, where there is one.
#[must_use]
pub fn postgres_url() -> Option<String> {
    let url = variable("WEDSYNC_TEST_POSTGRES");
    if url.is_none() {
        tracing::warn!("WEDSYNC_TEST_POSTGRES is not set: testing on SQLite alone");
    }
    url
}

/// Settings of a fresh store on each engine that is there, with the folder that holds the SQLite files.
#[must_use]
pub fn engines() -> (tempfile::TempDir, Vec<StoreSettings>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite:{}", folder.path().join("test.db").display());
    let mut all = vec![StoreSettings { url: Secret::from(url), ..StoreSettings::default() }];
    if let Some(url) = postgres_url() {
        let schema = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        all.push(StoreSettings { url: Secret::from(url), schema, ..StoreSettings::default() });
    }
    (folder, all)
}

/// Runs `test` once per engine, on a fresh store with these migrations.
pub async fn on_each_engine<F: Future<Output = ()>>(migrations: &[&Migrations], test: impl Fn(Store) -> F) {
    let (_folder, engines) = engines();
    for settings in engines {
        let store = Store::open(&settings, migrations).await.expect("a fresh store opens");
        test(store.clone()).await;
        store.close().await;
    }
}
