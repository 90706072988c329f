//! Moves SQLite's write-ahead log into its database: seldom, since commits are slower meanwhile, before the log is long, and
//! to its end, so that the log's file is written over from its start. Where it grows, a commit takes a third longer.

use std::{path::Path, time::Duration};

use sqlx::{AssertSqlSafe, SqliteExecutor};

use super::SqlitePools;
use crate::tasks::Tasks;

/// How often the log is looked at; how many pages (of 4 KiB) it may hold before they are moved, and for how long.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const PAGES_MAX: i64 = 32_768;
const WITHIN: Duration = Duration::from_secs(10);
/// Where the disk has less room than this, in bytes, the log may hold so many pages, and its file is cut: pages that took
/// the last room could be moved into more room only, and making a little of it would not help.
const ROOM_MIN: u64 = 1 << 30;
const PAGES_MAX_SHORT: i64 = 1_024;
/// How many pages are moved at last while whoever writes waits.
const REST: i64 = 256;
/// The bound at which the writer moves the log itself, should all this fall behind.
pub(super) const BOUND: &str = "65536";

/// Looks after the log until the process stops.
pub(super) fn watch(pools: &SqlitePools, tasks: &Tasks) {
    let (pools, stopping) = (pools.clone(), tasks.stopping());
    tasks.spawn("store.checkpoint", async move {
        let options = pools.read.connect_options();
        let mut since = Duration::ZERO;
        while stopping.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            since += LOOK_EVERY;
            match checkpoint(&pools, since, room(options.get_filename())).await {
                Ok(true) => since = Duration::ZERO,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "checkpoint failed; trying again"),
            }
        }
    });
}

/// Bytes that the disk of this file has left; where it doesn't say, there is room.
fn room(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Moves the log if it holds enough, or has for long, on a disk with so much room; whether it did.
async fn checkpoint(pools: &SqlitePools, since: Duration, room: u64) -> Result<bool, sqlx::Error> {
    let connection = &mut *pools.read.acquire().await?;
    // One that never read anything doesn't know of the log.
    sqlx::query("PRAGMA user_version").execute(&mut *connection).await?;
    let Some(Log { pages, waiting }) = ask(&mut *connection, "NOOP").await? else { return Ok(false) };
    if room < ROOM_MIN && pages >= PAGES_MAX_SHORT {
        // Commits wait for this one.
        ask(connection, "TRUNCATE").await?;
        return Ok(true);
    }
    if waiting < PAGES_MAX && (waiting == 0 || since < WITHIN) {
        return Ok(false);
    }
    // What is committed during a pass is moved by the next, unless more is committed than a pass can move.
    let mut left = waiting;
    while let Some(Log { waiting, .. }) = ask(&mut *connection, "PASSIVE").await?
        && waiting < left / 2
    {
        left = waiting;
        if left <= REST {
            ask(&pools.write, "PASSIVE").await?;
            break;
        }
    }
    Ok(true)
}

/// What the log holds, in pages, and how much of it isn't in the database yet.
struct Log {
    pages: i64,
    waiting: i64,
}

/// A checkpoint of one of SQLite's modes, of which NOOP looks and does nothing else; none where it didn't come to it, as in
/// the very moment of a commit (sqlite.org/pragma.html#pragma_wal_checkpoint).
async fn ask<'c>(connection: impl SqliteExecutor<'c>, mode: &str) -> Result<Option<Log>, sqlx::Error> {
    let text = format!("PRAGMA wal_checkpoint({mode})");
    let (_busy, pages, moved): (i64, i64, i64) = sqlx::query_as(AssertSqlSafe(text)).fetch_one(connection).await?;
    Ok((pages >= 0).then_some(Log { pages, waiting: pages - moved }))
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::fs;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        store::{Engine, MIGRATIONS, Store},
        testing,
    };

    /// On its first connection that writes, as others may.
    async fn store() -> (tempfile::TempDir, Store, SqlitePools) {
        let (folder, engines) = testing::engines();
        let store = Store::open(&engines[0], &[&MIGRATIONS]).await.expect("a fresh store opens");
        let Engine::Sqlite(pools) = &store.pools else { panic!("the first engine is SQLite") };
        let pools = pools.clone();
        (folder, store, pools)
    }

    async fn write(pools: &SqlitePools, pages: i64) {
        sqlx::query("INSERT OR REPLACE INTO data_keys VALUES ('org', ZEROBLOB($1), 0)")
            .bind(pages * 4_096)
            .execute(&pools.write)
            .await
            .expect("room");
    }

    #[tokio::test]
    async fn on_a_disk_with_little_room_the_log_is_moved_early_and_its_file_cut() {
        let (_folder, _store, pools) = store().await;
        let mut log = pools.read.connect_options().get_filename().to_owned().into_os_string();
        log.push("-wal");
        write(&pools, PAGES_MAX_SHORT).await;
        for (room, is_moved) in [(ROOM_MIN, false), (ROOM_MIN - 1, true), (ROOM_MIN - 1, false)] {
            assert_eq!(checkpoint(&pools, LOOK_EVERY, room).await.expect("nobody is in its way"), is_moved, "{room}");
        }
        assert_eq!(fs::metadata(&log).expect("it is kept").len(), 0);
    }

    /// What is committed during each move would keep the log from beginning anew, and its file growing.
    #[tokio::test]
    async fn while_commits_go_on_the_log_is_moved_to_its_end_and_begins_anew() {
        let (_folder, _store, pools) = store().await;
        let many = 2_048;
        write(&pools, many).await;
        let enough = CancellationToken::new();
        let commits = enough.run_until_cancelled(async {
            loop {
                write(&pools, 1).await;
            }
        });
        let moves = async {
            let mut pages = many;
            for _ in 0..50 {
                checkpoint(&pools, WITHIN, ROOM_MIN).await.expect("nobody is in its way");
                write(&pools, 1).await;
                pages = ask(&pools.read, "NOOP").await.expect("nor here").map_or(many, |log| log.pages);
                if pages < many {
                    break;
                }
            }
            enough.cancel();
            pages
        };
        let (_, pages) = tokio::join!(commits, moves);
        assert!(pages < many, "{pages}");
    }
}
