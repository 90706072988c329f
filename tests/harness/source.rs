//! A planner's database whose changes a `wedsync` captures: one of its own on the server that the harness provides.

use std::{
    fs,
    str::FromStr as _,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use chassis::{clock::Clock, secret};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::sleep;

use super::{Engine, PATIENCE, SETTINGS, Wedsync, provided};

/// Connections that changes are written over.
const CONNECTIONS: u32 = 4;

/// The database, and how it is captured.
pub(crate) struct Source {
    server: String,
    /// The database's, and its slot's.
    name: String,
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

impl Source {
    /// Makes one by these statements; none where there is no server.
    pub(crate) async fn create(setup: &[&str]) -> Option<Self> {
        Some(Self::create_on(&provided("WEDSYNC_TEST_POSTGRES")?, setup).await)
    }

    /// The same on a server of the caller's.
    pub(crate) async fn create_on(server: &str, setup: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("planner{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        on_server(server, &format!("CREATE DATABASE {name}")).await.expect("a database");
        let url = format!("{}/{name}", server.rsplit_once('/').expect("the URL names a database").0);
        let options = PgConnectOptions::from_str(&url).expect("the harness's URL");
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .expect("it answers");
        let source = Self { server: server.to_owned(), name, url, pool };
        for statement in setup {
            source.run(statement).await;
        }
        source
    }

    /// Starts a `wedsync` that captures these tables, whose column `organization_id` says whose a row is. A settings file
    /// ends development mode, so it holds what that would add.
    pub(crate) async fn captured(&self, engine: &Engine, tables: &[&str]) -> Wedsync {
        self.captured_with(engine, tables, "").await
    }

    /// The same with further lines for its section.
    pub(crate) async fn captured_with(&self, engine: &Engine, tables: &[&str], further: &str) -> Wedsync {
        self.captured_among(engine, tables, further, &[]).await
    }

    /// The same with settings of other sections (`WEDSYNC_...`).
    pub(crate) async fn captured_among(
        &self,
        engine: &Engine,
        tables: &[&str],
        further: &str,
        others: &[(&str, &str)],
    ) -> Wedsync {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let jwt_secret = hex::encode(secret::random::<32>());
        let settings = format!("{}{further}", self.settings(tables, &jwt_secret));
        fs::write(folder.path().join(SETTINGS), settings).expect("the folder is writable");
        let data = super::data(folder.path());
        fs::create_dir(&data).expect("the folder is new");
        fs::write(data.join("jwt-secret"), jwt_secret).expect("where development mode keeps it");
        let mut system = Wedsync::start_in(folder.path(), engine, others).await;
        system.temporary = Some(folder);
        system
    }

    /// The settings of one that captures it, with the secret of its browsers' tokens.
    pub(crate) fn settings(&self, tables: &[&str], jwt_secret: &str) -> String {
        let master_key = secret::generate_master_key(&Clock::System);
        let owner = |table: &&str| format!("tables.{table}.column = 'organization_id'\n");
        let owners: String = tables.iter().map(owner).collect();
        format!(
            "secrets.master_keys = ['{}']
            auth.service_secret = '{}'
            outbound = {{ allow_networks = ['127.0.0.0/8'], allow_http = true }}
            gateway.realtime.jwt_secret = '{jwt_secret}'
            [router.capture.planner]
            url = '{}'
            slot = '{}'
            {owners}",
            master_key.expose(),
            hex::encode(secret::random::<32>()),
            self.url,
            self.name,
        )
    }

    /// Its replication slot.
    pub(crate) fn slot(&self) -> &str {
        &self.name
    }

    /// Runs a statement, in a transaction of its own.
    pub(crate) async fn run(&self, statement: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&self.pool).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// Waits until the slot is read: what is written from here on is captured.
    pub(crate) async fn streams(&self) {
        self.slot_is("pid IS NOT NULL AND state IN ('catchup', 'streaming')").await;
    }

    /// Waits until all that was written so far is durable in the router's log.
    pub(crate) async fn caught_up(&self) {
        let place = sqlx::query_scalar::<_, String>("SELECT pg_current_wal_insert_lsn()::text");
        let place = place.fetch_one(&self.pool).await.expect("the server answers");
        // The slot moves beyond that place with what comes after it.
        self.run("SELECT pg_logical_emit_message(true, 'test', '')").await;
        self.slot_is(&format!("confirmed_flush_lsn >= '{place}'")).await;
    }

    async fn slot_is(&self, condition: &str) {
        let query = format!(
            "SELECT COUNT(*) FROM pg_replication_slots LEFT JOIN pg_stat_replication ON pid = active_pid
             WHERE slot_name = '{}' AND {condition}",
            self.name
        );
        let began = Instant::now();
        let count = async || sqlx::query_scalar::<_, i64>(AssertSqlSafe(query.clone())).fetch_one(&self.pool).await;
        while count().await.expect("the server answers") == 0 {
            assert!(began.elapsed() < PATIENCE, "the slot {} isn't yet: {condition}", self.name);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes it, once whoever captured it has gone: a slot that nobody reads would hold the server's log back.
    pub(crate) async fn remove(self) {
        self.pool.close().await;
        let slot = &self.name;
        let drop_slot =
            format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let began = Instant::now();
        while let Err(error) = on_server(&self.server, &drop_slot).await {
            assert!(began.elapsed() < PATIENCE, "the slot is still read: {error}");
            sleep(Duration::from_millis(50)).await;
        }
        on_server(&self.server, &format!("DROP DATABASE {slot} WITH (FORCE)")).await.expect("nobody needs it");
    }
}

async fn on_server(server: &str, statement: &str) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).connect(server).await?;
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&pool).await;
    pool.close().await;
    done.map(drop)
}
