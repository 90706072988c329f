//! Reading the log: from the tail in memory where it can, else page by page from the store. A reader from before what is kept
//! is told so, whenever the events that it needs next went.

use std::{pin::pin, sync::Arc};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    store::Store,
    with,
};
use futures_util::{Stream, TryStreamExt as _};
use prost::Message as _;
use proto::router::v1::LoggedEvent;

use super::{Entry, Log, entry::aad, number, stored};

/// Events in one page from the store.
pub(crate) const PAGE: usize = 256;
/// A page ends early at this many bytes.
const PAGE_BYTES: usize = 4 << 20;
/// Sequences that are looked through first where only some of the events are wanted.
const WINDOW: u64 = 4 * PAGE as u64;
/// The priority of most events: the others have an index.
const NORMAL: i64 = 3;

/// What makes up a [`Row`].
const SELECT: &str = "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events";

#[derive(sqlx::FromRow)]
struct Row {
    sequence: i64,
    organization_id: String,
    uid: Vec<u8>,
    r#type: String,
    ordering_key: String,
    priority: i64,
    body: Vec<u8>,
}

/// The first rows of a page.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    bytes: usize,
    /// There are more: a bound ended it.
    cut: bool,
}

/// A page of the log.
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// How far it reaches: nothing that was asked for lies between the last entry and here.
    pub(crate) until: u64,
}

impl Log {
    /// Events after `since`, of everyone; of one organization, those of others may be left out.
    pub(crate) async fn read(&self, organization: Option<&OrganizationId>, since: u64) -> Result<Page> {
        let head = self.head();
        if since >= head {
            return Ok(Page { entries: Vec::new(), until: since });
        }
        if let Some(entries) = self.tail.read(since, PAGE)
            && let Some(last) = entries.last().map(|entry| entry.sequence)
        {
            return Ok(Page { until: last, entries });
        }
        if let Some(organization) = organization {
            return self.read_of(organization, since, head, PAGE).await;
        }
        // The sequences have no gaps: these are a page.
        let until = head.min(since + PAGE as u64);
        let text = format!("{SELECT} WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence");
        let rows = with!(self.store.reader(), c => fitting(sqlx::query_as(sqlx::AssertSqlSafe(text.as_str()))
            .bind(stored(since)).bind(stored(until)).fetch(c)).await)?;
        self.page(since, rows, until).await
    }

    /// Events of one organization after `since` and up to `until`.
    pub(crate) async fn read_of(
        &self,
        organization: &OrganizationId,
        since: u64,
        until: u64,
        limit: usize,
    ) -> Result<Page> {
        let until = until.min(self.head());
        let limit = limit.min(PAGE);
        let (rows, until) =
            sift(&self.store, &sieve(None, Some(organization)), Some(organization), since, until, limit).await?;
        self.page(since, rows, until).await
    }

    /// Events of one priority after `since` and up to `head`, of one organization or of everyone.
    pub(crate) async fn read_priority(
        &self,
        priority: i64,
        organization: Option<&OrganizationId>,
        since: u64,
        head: u64,
    ) -> Result<Page> {
        let wanted = |entry: &Entry| {
            entry.priority == priority && organization.is_none_or(|organization| *organization == entry.organization)
        };
        if let Some((entries, until)) = self.tail.find(since, head, PAGE, wanted) {
            return Ok(Page { entries, until });
        }
        let sieve = sieve(Some(priority), organization);
        let (rows, until) = sift(&self.store, &sieve, organization, since, head, PAGE).await?;
        self.page(since, rows, until).await
    }

    /// Events of one ordering key after `since` and before `below`.
    pub(crate) async fn read_key(
        &self,
        organization: &OrganizationId,
        key: &str,
        since: u64,
        below: u64,
    ) -> Result<Page> {
        let text = format!(
            "{SELECT} WHERE organization_id = $1 AND ordering_key = $2 AND sequence > $3 AND sequence < $4 ORDER BY sequence LIMIT $5"
        );
        let mut rows = with!(self.store.reader(), c => fitting(sqlx::query_as(sqlx::AssertSqlSafe(text.as_str()))
            .bind(organization.as_str()).bind(key).bind(stored(since)).bind(stored(below)).bind(PAGE as i64).fetch(c)).await)?;
        rows.cut |= rows.rows.len() == PAGE;
        self.page(since, rows, below).await
    }

    /// One event, by its id or its uid.
    pub(crate) async fn find(&self, organization: &OrganizationId, id: &str) -> Result<Arc<Entry>> {
        let by_id = format!("{SELECT} WHERE organization_id = $1 AND id = $2");
        let by_uid = format!("{SELECT} WHERE organization_id = $1 AND uid = $2");
        let by_id: Option<Row> = with!(self.store.reader(), c => sqlx::query_as(sqlx::AssertSqlSafe(by_id.as_str()))
            .bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        let row = match (by_id, chassis::id::parse_uuid(id)) {
            (Some(row), _) => Some(row),
            (None, Some(uid)) => with!(self.store.reader(), c => sqlx::query_as(sqlx::AssertSqlSafe(by_uid.as_str()))
                .bind(organization.as_str()).bind(&uid[..]).fetch_optional(c).await)?,
            (None, None) => None,
        };
        let row = row.ok_or_else(|| Error::NotFound("event".into()))?;
        Ok(Arc::new(self.open_row(row).await?))
    }

    /// How many events of one organization lie after `since` and up to `until`.
    pub(crate) async fn count_of(&self, organization: &OrganizationId, since: u64, until: u64) -> Result<u64> {
        let count: i64 = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT COUNT(*) FROM events WHERE organization_id = $1 AND sequence > $2 AND sequence <= $3",
        ).bind(organization.as_str()).bind(stored(since)).bind(stored(until)).fetch_one(c).await)?;
        self.check_kept(since)?;
        Ok(number(count))
    }

    /// Opens rows that follow `since`. A page that was cut, by rows or by bytes, reaches to its last entry only.
    async fn page(&self, since: u64, Rows { rows, cut, .. }: Rows, until: u64) -> Result<Page> {
        self.check_kept(since)?;
        let mut entries: Vec<Arc<Entry>> = Vec::with_capacity(rows.len());
        for row in rows {
            entries.push(Arc::new(self.open_row(row).await?));
        }
        let until = if cut { entries.last().map_or(until, |entry| entry.sequence) } else { until };
        Ok(Page { entries, until })
    }

    async fn open_row(&self, row: Row) -> Result<Entry> {
        let organization = OrganizationId::parse(&row.organization_id)?;
        let uid: [u8; 16] = row
            .uid
            .as_slice()
            .try_into()
            .map_err(|_| Error::internal(anyhow::anyhow!("event {} has a malformed uid", row.sequence)))?;
        let plain = self.keys.of(&organization).await?.open(&aad(&uid), &row.body)?;
        let bytes = plain.len() + 256;
        let mut logged = Box::new(LoggedEvent::decode(plain.as_slice()).map_err(Error::internal)?);
        let sequence = number(row.sequence);
        if let Some(event) = &mut logged.event {
            event.position = Some(self.position(sequence));
        }
        Ok(Entry {
            sequence,
            organization,
            priority: row.priority,
            type_: row.r#type.into(),
            ordering_key: row.ordering_key.into(),
            logged,
            bytes,
        })
    }
}

/// Which events are wanted, of one priority or organization: $1 is its id.
fn sieve(priority: Option<i64>, organization: Option<&OrganizationId>) -> String {
    let priority = match priority {
        None => "TRUE".to_owned(),
        Some(NORMAL) => format!("priority = {NORMAL}"),
        // Said twice: SQLite doesn't conclude by itself that the index holds it.
        Some(rare) => format!("priority = {rare} AND priority <> {NORMAL}"),
    };
    let organization = if organization.is_some() { "organization_id = $1" } else { "$1 = ''" };
    format!("{organization} AND {priority}")
}

/// Up to `limit` rows after `since` and up to `until` that pass the sieve, and how far that reaches if they aren't cut.
///
/// It looks through windows, each twice as wide as the one before: whatever the store plans for one, all of them together
/// cost what the events that they reach over do. Asked for all at once PostgreSQL, whose statistics are behind on a log
/// that grows, collects and sorts everything up to `until` for each page.
async fn sift(
    store: &Store,
    sieve: &str,
    organization: Option<&OrganizationId>,
    since: u64,
    until: u64,
    limit: usize,
) -> Result<(Rows, u64)> {
    let text = format!("{SELECT} WHERE {sieve} AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4");
    let organization = organization.map_or("", OrganizationId::as_str);
    let (mut from, mut width, mut found) = (since, WINDOW, Rows::default());
    loop {
        let (to, left) = (until.min(from.saturating_add(width)), limit - found.rows.len());
        let more = with!(store.reader(), c => fitting(sqlx::query_as(sqlx::AssertSqlSafe(text.as_str()))
            .bind(organization).bind(stored(from)).bind(stored(to)).bind(left as i64).fetch(c)).await)?;
        found.cut = more.cut || more.rows.len() == left;
        found.bytes += more.bytes;
        found.rows.extend(more.rows);
        if found.cut || to >= until || found.bytes >= PAGE_BYTES {
            return Ok((found, to));
        }
        (from, width) = (to, width.saturating_mul(2));
    }
}

/// Takes rows up to the bound in bytes, and none from behind it: of the largest, all that there are would be a hundred
/// times as much. The first one is taken however large it is.
async fn fitting(rows: impl Stream<Item = sqlx::Result<Row>>) -> sqlx::Result<Rows> {
    let (mut all, mut taken) = (pin!(rows), Rows::default());
    while let Some(row) = all.try_next().await? {
        taken.bytes += row.body.len();
        if taken.bytes > PAGE_BYTES && !taken.rows.is_empty() {
            return Ok(Rows { cut: true, ..taken });
        }
        taken.rows.push(row);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use chassis::store::{Engine, MIGRATIONS};
    use futures_util::stream;

    use super::*;

    const LENGTH: u64 = 20_000;

    /// A log in which one event in 41 is CRITICAL and `few`'s: among them the 1,025th, the first of the second window.
    async fn fill(store: &Store) {
        let (bytes, empty) = match store.writer() {
            Engine::Sqlite(_) => ("BLOB", "x''"),
            Engine::Postgres(_) => ("BYTEA", "''"),
        };
        let text = format!(
            "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {LENGTH})
             SELECT n, CASE n % 41 WHEN 0 THEN 'few' ELSE 'many' END, n, CAST(CAST(n AS TEXT) AS {bytes}), 'a.b', 'k',
                 CASE n % 41 WHEN 0 THEN 1 ELSE 3 END, {empty}, 0, {empty} FROM n"
        );
        with!(store.writer(), c => sqlx::query(sqlx::AssertSqlSafe(text.as_str())).execute(c).await.map(drop))
            .expect("the log is filled");
    }

    #[tokio::test]
    async fn pages_of_what_is_wanted_leave_nothing_out_and_reach_the_end() {
        chassis::testing::on_each_engine(&[&MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            fill(&store).await;
            let few = OrganizationId::parse("few").expect("an id");
            for (priority, organization, limit, pages_most) in [
                (Some(1), None, PAGE, 2),
                (Some(3), None, PAGE, 120),
                (Some(1), Some(&few), 30, 17),
                (None, Some(&few), PAGE, 2),
                (None, Some(&few), 7, 70),
                (Some(2), None, PAGE, 1),
            ] {
                let sieve = sieve(priority, organization);
                let (mut since, mut found, mut pages) = (0, Vec::new(), 0);
                while since < LENGTH {
                    let (rows, until) = sift(&store, &sieve, organization, since, LENGTH, limit).await.expect("a page");
                    let last = rows.rows.last().map(|row| number(row.sequence));
                    since = last.filter(|_| rows.cut).unwrap_or(until);
                    found.extend(rows.rows.into_iter().map(|row| number(row.sequence)));
                    pages += 1;
                }
                let wanted = |sequence: &u64| match priority {
                    Some(2) => false,
                    Some(3) => !sequence.is_multiple_of(41),
                    _ => sequence.is_multiple_of(41),
                };
                assert!(found.iter().copied().eq((1..=LENGTH).filter(wanted)), "{sieve}: {found:?}");
                assert!(pages <= pages_most, "{sieve}: {pages} pages");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn rare_priorities_are_found_by_their_index() {
        chassis::testing::on_each_engine(&[&MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            // PostgreSQL plans by what it has counted, and concludes by itself.
            let Engine::Sqlite(pool) = store.reader() else { return };
            let wanted = sieve(Some(1), None);
            let text = format!("EXPLAIN QUERY PLAN {SELECT} WHERE {wanted} AND sequence > 1 AND sequence <= 2");
            let plan: Vec<(i64, i64, i64, String)> =
                sqlx::query_as(sqlx::AssertSqlSafe(text)).fetch_all(pool).await.expect("a plan");
            assert!(plan[0].3.contains("events_priority (priority=? AND sequence>? AND sequence<?)"), "{plan:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_page_is_read_no_further_than_its_bytes_go() {
        let read = Cell::new(0);
        let row = |sequence: usize, bytes: usize| {
            read.set(read.get() + 1);
            Ok(Row {
                sequence: sequence as i64,
                organization_id: "a".to_owned(),
                uid: Vec::new(),
                r#type: "a.b".to_owned(),
                ordering_key: String::new(),
                priority: 0,
                body: vec![0; bytes],
            })
        };
        let large = fitting(stream::iter((0..PAGE).map(|sequence| row(sequence, 1 << 20)))).await.unwrap();
        assert_eq!((large.rows.len(), large.cut, read.replace(0)), (4, true, 5));
        let small = fitting(stream::iter((0..PAGE).map(|sequence| row(sequence, 1)))).await.unwrap();
        assert_eq!((small.rows.len(), small.cut), (PAGE, false));
        let huge = fitting(stream::iter((0..1).map(|sequence| row(sequence, PAGE_BYTES + 1)))).await.unwrap();
        assert_eq!((huge.rows.len(), huge.cut), (1, false), "the first one is taken");
    }
}
