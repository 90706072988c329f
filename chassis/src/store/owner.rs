//! Who owns a store: one process at a time, by a lock that ends with it.
//!
//! On SQLite a locked file beside the database: only the process's end releases it. On PostgreSQL an advisory lock of one
//! connection's session. That session can end under a living process (the server restarted, the network cut it), and
//! another process may take the store over meanwhile; so the lock is looked at before any new connection is used, taken
//! again where nobody else had it, and given up for good where somebody did: then this process ends. Other sessions of
//! who had the store before may outlive the one with the lock, with a commit under way; whoever takes it over ends them.
//! What waits for the lock is called otherwise: the server may still be ending sessions for a process that was killed at that.
//!
//! Invariant: a process that lost its store to another never gets a new connection to it, even after the other has gone:
//! what it remembers of the store is out of date. Each taking over raises the epoch, which tells it so.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::sync::Mutex;

use crate::tasks::Tasks;

/// How long the server may take to notice that the process before us is gone: a kill closes its connection, but what
/// holds the lock there ends a moment later.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often the lock is looked at while no connection is made.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the server may take to say that it still holds the lock.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// How long it may take to give the lock again, to a new session.
const OWNED_WITHIN: Duration = Duration::from_secs(10);

/// What keeps a second process out.
#[derive(Debug)]
pub(super) enum Owner {
    File(#[expect(dead_code, reason = "held, not read: closing it releases the lock")] File),
    Schema(Arc<Lock>),
}

/// Locks a database file.
pub(super) fn lock_file(database: &Path) -> Result<Owner> {
    let path = database.with_extension("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("{} is in use by another process: stop it, or set another [store] url", database.display());
    }
    Ok(Owner::File(file))
}

/// The lock on a schema.
#[derive(Debug)]
pub(super) struct Lock {
    schema: String,
    options: PgConnectOptions,
    /// As this process raised it.
    epoch: i64,
    /// Whose session holds the lock.
    connection: Mutex<PgConnection>,
    /// Another process has taken the store over.
    lost: AtomicBool,
}

/// As the sessions of a schema's owner are called that do its work.
pub(super) fn session_name(schema: &str) -> String {
    format!("wedsync {schema}")
}

/// Makes the schema where there is none, locks it, and ends what sessions are left of whoever had it before: those that are
/// called [`session_name`].
pub(super) async fn lock_schema(options: &PgConnectOptions, schema: &str) -> Result<Arc<Lock>> {
    let options = options.clone().application_name(&format!("wedsync lock of {schema}"));
    let mut connection = options.connect().await.context("connect to the store")?;
    // `schema` matches [a-z0-9_]+, so it can stand in the statement.
    let create = AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {schema}"));
    sqlx::query(create).execute(&mut connection).await.context("create schema")?;
    let began = tokio::time::Instant::now();
    while !try_lock(&mut connection, schema).await? {
        let waiting = began.elapsed() < GONE_WITHIN;
        ensure!(waiting, "schema {schema} is in use by another process: stop it, or set another schema");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    end_sessions(&mut connection, schema).await?;
    let epoch = raise_epoch(&mut connection).await.context("take the schema over")?;
    Ok(Arc::new(Lock {
        schema: schema.to_owned(),
        options,
        epoch,
        connection: Mutex::new(connection),
        lost: AtomicBool::new(false),
    }))
}

impl Lock {
    /// Makes sure that the schema is still ours.
    ///
    /// # Errors
    /// It isn't, or nobody can tell now.
    pub(super) async fn hold(&self) -> sqlx::Result<()> {
        let mut connection = self.connection.lock().await;
        self.refuse_if_lost()?;
        if tokio::time::timeout(ANSWERED_WITHIN, connection.ping()).await.is_ok_and(|answer| answer.is_ok()) {
            return Ok(());
        }
        match tokio::time::timeout(OWNED_WITHIN, self.take_again()).await {
            Ok(again) => *connection = again?,
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        }
        tracing::warn!(schema = self.schema, "the connection that owned the store was cut; it is owned again");
        Ok(())
    }

    /// Another session that holds the lock, where nobody else had it.
    async fn take_again(&self) -> sqlx::Result<PgConnection> {
        let mut again = self.options.connect().await?;
        let locked = try_lock(&mut again, &self.schema).await?;
        // Looked at under the lock, nobody can raise it. Without: the session that is gone for us may linger on the server.
        let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM store_owner").fetch_one(&mut again).await?;
        if epoch != self.epoch {
            self.lost.store(true, Ordering::Relaxed);
            tracing::error!(schema = self.schema, "another process has taken this store over");
        }
        self.refuse_if_lost()?;
        if !locked {
            return Err(sqlx::Error::Protocol(format!("schema {} is not ours yet again", self.schema)));
        }
        Ok(again)
    }

    fn refuse_if_lost(&self) -> sqlx::Result<()> {
        match self.lost.load(Ordering::Relaxed) {
            true => Err(sqlx::Error::Protocol(format!("schema {} is another process's now", self.schema))),
            false => Ok(()),
        }
    }

    /// Looks at the lock from time to time; the pool's connections outlive a session that was cut alone.
    pub(super) fn watch(self: &Arc<Self>, pool: &PgPool, tasks: &Tasks) {
        let (lock, pool, stopping, process) = (self.clone(), pool.clone(), tasks.stopping(), tasks.clone());
        tasks.spawn("store.owner", async move {
            while stopping.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
                // A server that is away is met again by whoever needs it.
                let _ = lock.hold().await;
                if lock.lost.load(Ordering::Relaxed) {
                    process.fail("another process has taken its store over");
                    return pool.close().await;
                }
            }
        });
    }
}

/// Ends the sessions that whoever had the schema before has left there, and waits until they are gone.
async fn end_sessions(connection: &mut PgConnection, schema: &str) -> Result<()> {
    let began = tokio::time::Instant::now();
    loop {
        let left: i64 = sqlx::query_scalar(
            "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = LEFT($1, 63)",
        )
        .bind(session_name(schema))
        .fetch_one(&mut *connection)
        .await
        .context("end the sessions of the process before")?;
        if left == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < GONE_WITHIN, "{left} sessions of the process before are still in schema {schema}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn try_lock(connection: &mut PgConnection, schema: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('wedsync:' || current_database() || ':' || $1))")
        .bind(schema)
        .fetch_one(connection)
        .await
}

/// The table can't wait for the migrations, which write.
async fn raise_epoch(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query("CREATE TABLE IF NOT EXISTS store_owner (id BIGINT PRIMARY KEY CHECK (id = 1), epoch BIGINT NOT NULL)")
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar(
        "INSERT INTO store_owner (id, epoch) VALUES (1, 1)
         ON CONFLICT (id) DO UPDATE SET epoch = store_owner.epoch + 1 RETURNING epoch",
    )
    .fetch_one(connection)
    .await
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::str::FromStr as _;

    use super::*;
    use crate::testing;

    /// A schema of this test's own, where there is a server.
    fn schema(name: &str) -> Option<(PgConnectOptions, String)> {
        let options = PgConnectOptions::from_str(&testing::postgres_url()?).expect("the harness gives a URL");
        let schema = format!("owner{}_{name}", std::process::id());
        Some((options.options([("search_path", &schema)]).application_name(&session_name(&schema)), schema))
    }

    /// The server ends the session that holds the lock, as a restart does.
    async fn cut(lock: &Lock) {
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut *lock.connection.lock().await)
            .await
            .expect("the session is there");
        let mut other = lock.options.connect().await.expect("the server is there");
        let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1, 5000)")
            .bind(pid)
            .fetch_one(&mut other)
            .await
            .expect("tests may end sessions");
        assert!(ended);
    }

    #[tokio::test]
    async fn a_store_whose_session_was_cut_is_owned_again_where_nobody_else_came() {
        let Some((options, schema)) = schema("cut") else { return };
        let lock = lock_schema(&options, &schema).await.expect("it is free");
        cut(&lock).await;
        lock.hold().await.expect("it is free again");
        let mut other = options.connect().await.expect("the server is there");
        assert!(!try_lock(&mut other, &schema).await.expect("an answer"), "it keeps others out");
    }

    #[tokio::test]
    async fn what_the_process_before_had_under_way_never_commits_once_its_store_is_taken_over() {
        let Some((options, schema)) = schema("under_way") else { return };
        let lock = lock_schema(&options, &schema).await.expect("it is free");
        let mut session = options.connect().await.expect("the server is there");
        let mut under_way = session.begin().await.expect("it is ours");
        sqlx::query("CREATE TABLE late ()").execute(&mut *under_way).await.expect("there is room");
        cut(&lock).await;
        let other = lock_schema(&options, &schema).await.expect("it is free again");
        under_way.commit().await.expect_err("the store is the other's");
        let tables: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'late'")
                .bind(&schema)
                .fetch_one(&mut *other.connection.lock().await)
                .await
                .expect("an answer");
        assert_eq!(tables, 0);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_store_is_not_ended_with_the_sessions_of_the_process_before() {
        let Some((options, schema)) = schema("waiting") else { return };
        let lock = lock_schema(&options, &schema).await.expect("it is free");
        let mut other = options.clone().application_name("test").connect().await.expect("the server is there");
        let locks = "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'wedsync lock of ' || $1";
        let before = async {
            while 2 > sqlx::query_scalar::<_, i64>(locks).bind(&schema).fetch_one(&mut other).await.expect("an answer")
            {
            }
            end_sessions(&mut *lock.connection.lock().await, &schema).await.expect("there are none");
            cut(&lock).await;
        };
        let (waited, ()) = tokio::join!(lock_schema(&options, &schema), before);
        waited.expect("it has waited for this");
    }

    #[tokio::test]
    async fn a_store_that_another_process_took_over_is_never_had_again() {
        let Some((options, schema)) = schema("taken") else { return };
        let lock = lock_schema(&options, &schema).await.expect("it is free");
        cut(&lock).await;
        let other = lock_schema(&options, &schema).await.expect("it is free again");
        lock.hold().await.expect_err("it is the other's");
        cut(&other).await;
        lock.hold().await.expect_err("what is remembered of it is out of date");
    }
}
