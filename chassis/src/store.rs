//! The durable store: SQLite (embedded, the default) or PostgreSQL, behind one enum and one small macro.
//!
//! Query texts are shared and stand in the function that needs them, with `$1` parameters that both engines take.
//! Columns are 64-bit integers, text, bytes and booleans only; times are microseconds since the Unix epoch.
//!
//! Invariant: what a transaction committed survives a power cut. At opening, SQLite runs in WAL mode with
//! `synchronous=FULL` on a library without the WAL-reset race (3.51.3, sqlite.org/wal.html#walresetbug), and PostgreSQL
//! must have `fsync`, `full_page_writes` and `synchronous_commit` on. One process owns a store at a time.

mod answer;
mod checkpoint;
mod health;
mod kept;
mod owner;
mod statistics;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod writer;

use std::{str::FromStr as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{BoxFuture, FutureExt as _};
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, SqliteConnection, SqlitePool, Transaction,
    migrate::{Migration, Migrator},
    pool::PoolConnectionMetadata,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use self::{answer::answered, kept::Kept, writer::Writer};
use self::{
    owner::{Lock, Owner, lock_file, lock_schema, session_name},
    writer::Held,
};
use crate::{config::StoreSettings, error::Error, fail, tasks::Tasks};

/// A pair of migration folders with the same numbers and the same columns, one per engine.
#[derive(Debug)]
pub struct Migrations {
    /// For SQLite.
    pub sqlite: Migrator,
    /// For PostgreSQL.
    pub postgres: Migrator,
}

/// The chassis' table of data keys; [`crate::lane::MIGRATIONS`] has the lanes'. Services number theirs from 0100.
pub static MIGRATIONS: Migrations =
    Migrations { sqlite: sqlx::migrate!("./migrations/sqlite"), postgres: sqlx::migrate!("./migrations/postgres") };

/// One of two, by engine. [`with!`](crate::with) runs the same expression on either.
#[derive(Debug, Clone)]
pub enum Engine<S, P> {
    /// Embedded.
    Sqlite(S),
    /// A server.
    Postgres(P),
}

impl<S, P> Engine<S, P> {
    /// The condition `column {…}` of being any of these numbers, and the text to bind for them: they are one parameter, so that
    /// one statement stays prepared however many there are.
    pub fn any_of(&self, parameter: &str, numbers: impl IntoIterator<Item = i64>) -> (String, String) {
        let numbers = numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(",");
        match self {
            Self::Sqlite(_) => (format!("IN (SELECT value FROM json_each({parameter}))"), format!("[{numbers}]")),
            Self::Postgres(_) => (format!("IN (SELECT UNNEST({parameter}::bigint[]))"), format!("{{{numbers}}}")),
        }
    }
}

/// Runs one sqlx expression on whichever engine is there: `with!(store.reader(), c => sqlx::query("…").fetch_all(c).await)`.
#[macro_export]
macro_rules! with {
    ($on:expr, $connection:ident => $body:expr) => {
        match $on {
            // Boxed: a query's future takes 4 KiB, and whatever may come to ask the store would be as large.
            $crate::store::Engine::Sqlite($connection) => Box::pin(async { $body }).await,
            $crate::store::Engine::Postgres($connection) => $crate::store::answered(Box::pin(async { $body })).await,
        }
    };
}

/// A service's own database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pools: Engine<SqlitePools, PgPool>,
    owner: Arc<Owner>,
}

#[derive(Debug, Clone)]
struct SqlitePools {
    write: Writer,
    read: SqlitePool,
}

/// SQLite's page cache, in KiB as SQLite says it, of the connection that writes (the inner pages of every index of a log of
/// a million rows, and the last page of each of a thousand ordering keys), and of each that reads: what neither holds, the
/// system's own cache does.
const WRITER_CACHE: &str = "-6144";
const READER_CACHE: &str = "-512";

/// How long one waits for a connection; then the store counts as away.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to PostgreSQL that was in use so lately is there still; if not, one statement fails and may be tried again.
const RECENTLY: Duration = Duration::from_secs(1);

/// A transaction; dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub struct Tx(Engine<Held, Transaction<'static, Postgres>>);

impl Store {
    /// Opens the store, makes it this process's own, checks that commits are durable and brings the schema up to date.
    ///
    /// # Errors
    /// An unreadable URL, a store that another process owns, unsafe durability settings, a failed migration.
    pub async fn open(settings: &StoreSettings, migrations: &[&Migrations]) -> Result<Self> {
        let url = settings.url.expose();
        if url.starts_with("sqlite:") {
            Self::open_sqlite(url, settings, migrations).await
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Self::open_postgres(url, settings, migrations).await
        } else {
            bail!("store url must begin with sqlite: or postgres:")
        }
    }

    async fn open_sqlite(url: &str, settings: &StoreSettings, migrations: &[&Migrations]) -> Result<Self> {
        let options = SqliteConnectOptions::from_str(url).context("store url")?;
        let path = options.get_filename().to_owned();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let owner = lock_file(&path)?;
        let synchronous = if settings.unsafe_durability { SqliteSynchronous::Normal } else { SqliteSynchronous::Full };
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(200);
        let writer = options.clone().pragma("wal_autocheckpoint", checkpoint::BOUND).pragma("cache_size", WRITER_CACHE);
        let first = SqlitePoolOptions::new().max_connections(1).connect_with(writer.clone()).await?;
        assert_sqlite_version(&first).await?;
        fail::point("store.migrate.begin");
        migrator(migrations, |pair| &pair.sqlite).run(&first).await.context("migrate")?;
        fail::point("store.migrate.done");
        let readers = settings.max_connections.max(1);
        let read = forever(SqlitePoolOptions::new().max_connections(readers))
            .connect_with(options.pragma("query_only", "on").pragma("cache_size", READER_CACHE))
            .await?;
        let write = Writer::new(writer, first.acquire().await?.detach());
        Ok(Self { pools: Engine::Sqlite(SqlitePools { write, read }), owner: Arc::new(owner) })
    }

    async fn open_postgres(url: &str, settings: &StoreSettings, migrations: &[&Migrations]) -> Result<Self> {
        let schema = settings.schema.as_str();
        let plain =
            !schema.is_empty() && schema.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        ensure!(plain, "store schema must match [a-z0-9_]+");
        let mut options = PgConnectOptions::from_str(url)
            .context("store url")?
            .application_name(&session_name(schema))
            .statement_cache_capacity(200)
            .options([("search_path", schema), ("lock_timeout", "5s"), ("statement_timeout", "30s")]);
        if settings.unsafe_durability {
            options = options.options([("synchronous_commit", "off")]);
        }
        let lock = lock_schema(&options, schema).await?;
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections.max(2))
            .acquire_timeout(PATIENCE)
            .after_connect(still_ours(lock.clone()))
            .test_before_acquire(false)
            .before_acquire(pooled_is_there)
            .connect_with(options)
            .await?;
        if !settings.unsafe_durability {
            assert_durable(&pool).await?;
        }
        fail::point("store.migrate.begin");
        migrator(migrations, |pair| &pair.postgres).run(&pool).await.context("migrate")?;
        fail::point("store.migrate.done");
        Ok(Self { pools: Engine::Postgres(pool), owner: Arc::new(Owner::Schema(lock)) })
    }

    /// Where to read. No statement stays open across a network await: read a bounded page, then let go.
    #[must_use]
    pub fn reader(&self) -> Engine<&SqlitePool, &PgPool> {
        match &self.pools {
            Engine::Sqlite(pools) => Engine::Sqlite(&pools.read),
            Engine::Postgres(pool) => Engine::Postgres(pool),
        }
    }

    /// Where to write a single statement that is a transaction of its own.
    #[must_use]
    pub fn writer(&self) -> Engine<&Writer, &PgPool> {
        match &self.pools {
            Engine::Sqlite(pools) => Engine::Sqlite(&pools.write),
            Engine::Postgres(pool) => Engine::Postgres(pool),
        }
    }

    /// Where one task writes again and again.
    #[must_use]
    pub fn keep(&self) -> Engine<Writer, Kept> {
        match &self.pools {
            Engine::Sqlite(pools) => Engine::Sqlite(pools.write.clone()),
            Engine::Postgres(pool) => Engine::Postgres(Kept::new(pool.clone())),
        }
    }

    /// Begins a transaction that writes.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is locked or away.
    pub async fn begin(&self) -> Result<Tx, Error> {
        Ok(Tx(match &self.pools {
            Engine::Sqlite(pools) => Engine::Sqlite(pools.write.begin().await?),
            Engine::Postgres(pool) => Engine::Postgres(answered(begin_whole(pool.clone())).await?),
        }))
    }

    /// Whether the store answers a read.
    ///
    /// # Errors
    /// `Error::Unavailable` while it doesn't.
    pub async fn ping(&self) -> Result<(), Error> {
        with!(self.reader(), c => sqlx::query("SELECT 1").execute(c).await.map(drop))?;
        Ok(())
    }

    /// Looks after what the engine needs beside the work: SQLite's log is moved into its database, so that no commit
    /// waits for it; PostgreSQL is asked whether the store is still ours, and to learn of tables that fill.
    pub fn maintain(&self, tasks: &Tasks) {
        match (&self.pools, &*self.owner) {
            (Engine::Sqlite(pools), _) => checkpoint::watch(pools, tasks),
            (Engine::Postgres(pool), Owner::Schema(lock)) => {
                lock.watch(pool, tasks);
                statistics::watch(pool, tasks);
            }
            (Engine::Postgres(_), Owner::File(_)) => {}
        }
    }

    /// Closes every connection; a clean SQLite store then holds everything in its one file.
    pub async fn close(&self) {
        match &self.pools {
            Engine::Sqlite(pools) => {
                pools.read.close().await;
                if let Err(error) = pools.write.close().await {
                    tracing::warn!(%error, "SQLite was not closed in order; its log is read at the next start");
                }
            }
            Engine::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    /// The connection to run statements on.
    pub fn on(&mut self) -> Engine<&mut SqliteConnection, &mut PgConnection> {
        match &mut self.0 {
            Engine::Sqlite(tx) => Engine::Sqlite(tx.on()),
            Engine::Postgres(tx) => Engine::Postgres(&mut **tx),
        }
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// Any failure of the store; nothing was written then, unless the connection broke: read again to know.
    pub async fn commit(self) -> Result<(), Error> {
        with!(self.0, tx => tx.commit().await)?;
        Ok(())
    }
}

/// Begins a transaction on PostgreSQL, to its end even where nobody waits for it any more: dropped half way, sqlx doesn't know
/// of a transaction that the server has begun, and a statement that runs on that connection next is answered and not committed.
#[expect(
    clippy::disallowed_methods,
    reason = "it outlives whoever asks by one answer of the server, and does nothing then"
)]
async fn begin_whole(pool: PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let begun = tokio::spawn(async move { pool.begin().await });
    begun.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed))
}

/// Rows in one statement on SQLite.
const PART_ROWS: usize = 64;

/// Cuts rows into parts for statements that take many at once on SQLite, where each statement is a trip to another thread.
/// Sizes are powers of two, so that the few texts there are stay prepared.
pub fn parts<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = PART_ROWS.min(1 << rows.len().checked_ilog2()?);
        let (part, rest) = rows.split_at(size);
        rows = rest;
        Some(part)
    })
}

/// What a pool asks before it uses a new connection.
fn still_ours(
    lock: Arc<Lock>,
) -> impl for<'c> Fn(&'c mut PgConnection, PoolConnectionMetadata) -> BoxFuture<'c, sqlx::Result<()>> + Send + Sync {
    move |_, _| {
        let lock = lock.clone();
        async move { lock.hold().await }.boxed()
    }
}

/// What a pool asks before it gives out a connection.
fn pooled_is_there(connection: &mut PgConnection, used: PoolConnectionMetadata) -> BoxFuture<'_, sqlx::Result<bool>> {
    is_there(connection, used.idle_for).map(Ok).boxed()
}

/// Asks a connection that wasn't in use for a while whether it is there. One that was is believed: it answered then, and to
/// ask again is a trip to the server for every statement.
async fn is_there(connection: &mut PgConnection, idle_for: Duration) -> bool {
    idle_for < RECENTLY || connection.ping().await.is_ok()
}

/// A pool whose connections are kept: each holds a cache of prepared statements. None is asked whether it is there, which
/// would be a trip to its thread for every statement.
fn forever(options: SqlitePoolOptions) -> SqlitePoolOptions {
    options.idle_timeout(None).max_lifetime(None).acquire_timeout(PATIENCE).test_before_acquire(false)
}

fn migrator(migrations: &[&Migrations], of: impl Fn(&Migrations) -> &Migrator) -> Migrator {
    let all: Vec<Migration> = migrations.iter().flat_map(|pair| of(pair).iter().cloned()).collect();
    Migrator::with_migrations(all)
}

async fn assert_sqlite_version(pool: &SqlitePool) -> Result<()> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(pool).await?;
    let parts: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    ensure!(parts.as_slice() >= &[3, 51, 3][..], "SQLite {version} can corrupt its WAL; 3.51.3 or newer is needed");
    Ok(())
}

async fn assert_durable(pool: &PgPool) -> Result<()> {
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(pool).await?;
        ensure!(
            value != "off",
            "PostgreSQL runs with {setting}=off: a power cut would lose accepted events; turn it on, or set unsafe_durability"
        );
    }
    Ok(())
}
