//! A connection to PostgreSQL that one task keeps for what it writes again and again. A pool asks its connections whether
//! they are there whenever they are given back: for each statement another trip to the server, and a task.

use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, timeout};

use super::{PATIENCE, is_there};

/// At most one connection, beside the pool's.
#[derive(Debug)]
pub struct Kept {
    pool: PgPool,
    idle: Option<(PgConnection, Instant)>,
}

impl Kept {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, idle: None }
    }

    /// The connection, or a new one if it is gone. It is put back after a statement that was done or refused; dropped after
    /// any other, since it may be lost.
    ///
    /// # Errors
    /// The server gives none in time.
    pub async fn take(&mut self) -> Result<PgConnection, sqlx::Error> {
        if let Some((mut connection, used)) = self.idle.take()
            && timeout(PATIENCE, is_there(&mut connection, used.elapsed())).await.unwrap_or(false)
        {
            return Ok(connection);
        }
        Ok(self.pool.acquire().await?.detach())
    }

    /// Keeps the connection for the next time.
    pub fn put_back(&mut self, connection: PgConnection) {
        self.idle = Some((connection, Instant::now()));
    }
}
