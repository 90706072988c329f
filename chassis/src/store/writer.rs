//! SQLite's one connection that writes: whoever writes waits for its turn, and has it alone meanwhile.
//!
//! A pool of one asks its connection whether it is there whenever it is given back: two wake-ups of its thread more for each
//! commit, and whoever comes next waits for them. Here a connection that was left with a transaction open, by an error or
//! by somebody who didn't wait for its end, is rolled back by the next; one that can't be is replaced.

use std::sync::Arc;

use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _, TryStreamExt as _},
};
use sqlx::{
    ConnectOptions as _, Connection as _, Describe, Either, Error, Execute, Executor, QueryBuilder, SqlStr, Sqlite,
    SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteQueryResult, SqliteRow, SqliteStatement, SqliteTypeInfo},
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::timeout,
};

use super::PATIENCE;

/// The connection, for statements that are each a transaction of their own. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    options: Arc<SqliteConnectOptions>,
    slot: Arc<Mutex<Slot>>,
}

#[derive(Debug)]
struct Slot {
    /// None where it was lost, and after the end.
    connection: Option<SqliteConnection>,
    /// A transaction was begun on it, or nearly so, and not ended yet.
    in_transaction: bool,
    closed: bool,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, connection: SqliteConnection) -> Self {
        let slot = Slot { connection: Some(connection), in_transaction: false, closed: false };
        Self { options: Arc::new(options), slot: Arc::new(Mutex::new(slot)) }
    }

    /// How a connection like it is made.
    #[must_use]
    pub fn connect_options(&self) -> &SqliteConnectOptions {
        &self.options
    }

    /// Runs statements that begin and commit a transaction of their own, in one trip to SQLite's thread. If one fails, what
    /// they did is undone, and likewise if nobody waits for them to end. Gives the rows that they return: SQLite's count of
    /// changes is that of the last statement that changed any, once more for each that changes none.
    ///
    /// # Errors
    /// Of the statement that failed; nothing was written then, unless the connection broke.
    pub async fn run_whole(&self, mut statements: QueryBuilder<Sqlite>) -> Result<Vec<SqliteRow>, Error> {
        let mut transaction = self.hold().await?;
        transaction.0.in_transaction = true;
        let rows = statements.build().fetch_all(transaction.on()).await?;
        transaction.0.in_transaction = false;
        Ok(rows)
    }

    /// Begins a transaction; one that isn't committed is rolled back before the next.
    pub(super) async fn begin(&self) -> Result<Held, Error> {
        let mut transaction = self.hold().await?;
        transaction.0.in_transaction = true;
        // A deferred transaction that writes later fails at once when another wrote meanwhile; this one waits its turn.
        sqlx::query("BEGIN IMMEDIATE").execute(transaction.on()).await?;
        Ok(transaction)
    }

    pub(super) async fn close(&self) -> Result<(), Error> {
        let mut slot = self.slot.lock().await;
        slot.closed = true;
        match slot.connection.take() {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }

    async fn hold(&self) -> Result<Held, Error> {
        let mut slot = timeout(PATIENCE, self.slot.clone().lock_owned()).await.map_err(|_| Error::PoolTimedOut)?;
        if slot.closed {
            return Err(Error::PoolClosed);
        }
        if slot.in_transaction
            && let Some(mut connection) = slot.connection.take()
        {
            // SQLite may have ended it by itself, as on a full disk, and whatever else went wrong goes with the connection.
            if sqlx::query("ROLLBACK").execute(&mut connection).await.is_ok() {
                slot.connection = Some(connection);
            }
        }
        if slot.connection.is_none() {
            slot.connection = Some(self.options.connect().await?);
        }
        slot.in_transaction = false;
        Ok(Held(slot))
    }
}

/// The connection, for as long as it is one's own.
#[derive(Debug)]
pub(super) struct Held(OwnedMutexGuard<Slot>);

impl Held {
    pub(super) fn on(&mut self) -> &mut SqliteConnection {
        self.0.connection.as_mut().expect("nobody else takes it")
    }

    pub(super) async fn commit(mut self) -> Result<(), Error> {
        sqlx::query("COMMIT").execute(self.on()).await?;
        self.0.in_transaction = false;
        Ok(())
    }
}

impl<'w> Executor<'w> for &'w Writer {
    type Database = Sqlite;

    /// The rows come together: somebody who reads them slowly would hold up everybody who writes.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<SqliteQueryResult, SqliteRow>, Error>>
    where
        'w: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        let all = async move {
            let mut held = self.hold().await?;
            let steps: Vec<_> = held.on().fetch_many(query).try_collect().await?;
            Ok::<_, Error>(stream::iter(steps.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<SqliteRow>, Error>>
    where
        'w: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        async move { self.hold().await?.on().fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, Result<SqliteStatement, Error>>
    where
        'w: 'e,
    {
        async move { self.hold().await?.on().prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Sqlite>, Error>>
    where
        'w: 'e,
    {
        async move { self.hold().await?.on().describe(sql).await }.boxed()
    }
}
