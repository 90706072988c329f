//! Who commits the changes, one transaction after the other, and knows of each whether it was committed: also of the one
//! whose answer was lost with the server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{sleep, sleep_until};

use super::change::{Change, Kind};
use crate::{crash::Chance, harness::PATIENCE};

/// Between two tries while the server is away.
const RETRY: Duration = Duration::from_millis(50);

/// Everything that was committed, in its order. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Change>>>);

impl Ledger {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().expect("no holder panics").len()
    }

    /// Those from this one on.
    pub(crate) fn since(&self, start: usize) -> Vec<Change> {
        self.0.lock().expect("no holder panics")[start..].to_vec()
    }

    fn add(&self, changes: &[Change]) {
        self.0.lock().expect("no holder panics").extend(changes);
    }
}

pub(crate) struct Writer {
    url: String,
    organization: String,
    chance: Chance,
    connection: Option<PgConnection>,
    /// Each row's version.
    rows: BTreeMap<i64, i32>,
    next: i64,
    transactions: i64,
    pub(crate) ledger: Ledger,
}

impl Writer {
    pub(crate) fn new(url: String, organization: String, seed: u64) -> Self {
        Self {
            url,
            organization,
            chance: Chance::new(seed),
            connection: None,
            rows: BTreeMap::new(),
            next: 1,
            transactions: 0,
            ledger: Ledger::default(),
        }
    }

    /// Commits at least this many changes, at this many a second at most where that is given, and goes on while `busy`.
    pub(crate) async fn write(&mut self, count: usize, rate: Option<u32>, busy: impl Fn() -> bool) {
        let (start, mut due) = (self.ledger.len(), tokio::time::Instant::now());
        while self.ledger.len() - start < count || busy() {
            sleep_until(due).await;
            let before = self.ledger.len();
            self.transaction().await;
            let seconds = rate.map_or(0.0, |rate| (self.ledger.len() - before) as f64 / f64::from(rate));
            // What was away is no reason to hurry.
            due = due.max(tokio::time::Instant::now()) + Duration::from_secs_f64(seconds);
        }
    }

    async fn transaction(&mut self) {
        let mut rows = self.rows.clone();
        let changes = self.changes(&mut rows);
        let number = self.transactions + 1;
        let statements: Vec<String> = changes.iter().map(|change| change.statement(&self.organization)).collect();
        let text = format!("BEGIN; {}; UPDATE progress SET transactions = {number}; COMMIT", statements.join("; "));
        let began = Instant::now();
        while let Err(error) = self.commit(&text, number, changes.len()).await {
            assert!(began.elapsed() < PATIENCE, "the planner's database takes nothing: {error}");
            self.connection = None;
            sleep(RETRY).await;
        }
        (self.rows, self.transactions) = (rows, number);
        self.ledger.add(&changes);
    }

    /// Commits it, unless an earlier try did.
    async fn commit(&mut self, text: &str, number: i64, changes: usize) -> Result<(), sqlx::Error> {
        let connection = match &mut self.connection {
            Some(open) => open,
            none => {
                let mut connection = PgConnection::connect(&self.url).await?;
                let committed: i64 =
                    sqlx::query_scalar("SELECT transactions FROM progress").fetch_one(&mut connection).await?;
                let connection = none.insert(connection);
                if committed == number {
                    return Ok(());
                }
                connection
            }
        };
        let done = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(connection).await?;
        assert_eq!(done.rows_affected(), changes as u64 + 1, "each statement is one change: {text}");
        Ok(())
    }

    /// Most transactions are one change, some are many, a row's own among them.
    fn changes(&mut self, rows: &mut BTreeMap<i64, i32>) -> Vec<Change> {
        let count = match self.chance.within(0..20) {
            0 => self.chance.within(10..60),
            1..6 => self.chance.within(2..8),
            _ => 1,
        };
        (0..count).map(|_| self.change(rows)).collect()
    }

    fn change(&mut self, rows: &mut BTreeMap<i64, i32>) -> Change {
        let choice = self.chance.within(0..10);
        let Some(id) = self.any(rows).filter(|_| choice > 2) else {
            let id = self.next;
            self.next += 1;
            rows.insert(id, 1);
            return Change { kind: Kind::Insert, id, version: 1 };
        };
        let version = rows.get_mut(&id).expect("it is there");
        if choice == 9 {
            let version = *version;
            rows.remove(&id);
            return Change { kind: Kind::Delete, id, version };
        }
        *version += 1;
        Change { kind: Kind::Update, id, version: *version }
    }

    fn any(&mut self, rows: &BTreeMap<i64, i32>) -> Option<i64> {
        let count = u64::try_from(rows.len()).ok().filter(|count| *count > 0)?;
        let place = usize::try_from(self.chance.within(0..count)).ok()?;
        rows.keys().nth(place).copied()
    }
}
