//! Reading the log: from the tail in memory where it can, else page by page from the store.

use std::{pin::pin, sync::Arc};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
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
struct Rows {
    rows: Vec<Row>,
    /// There are more: the bound in bytes ended it.
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
        let rows = with!(self.store.reader(), c => fitting(sqlx::query_as(
            "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events
             WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3",
        ).bind(stored(since)).bind(stored(head)).bind(PAGE as i64).fetch(c)).await)?;
        self.page(rows, head).await
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
        let rows = with!(self.store.reader(), c => fitting(sqlx::query_as(
            "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events
             WHERE organization_id = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4",
        ).bind(organization.as_str()).bind(stored(since)).bind(stored(until)).bind(limit as i64).fetch(c)).await)?;
        let full = rows.rows.len() == limit;
        let mut page = self.page(rows, until).await?;
        if full && let Some(last) = page.entries.last() {
            page.until = last.sequence;
        }
        Ok(page)
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
        let organization = organization.map_or("", OrganizationId::as_str);
        // With the number in the text: the index of the priorities that are rare holds the others alone.
        let text = format!(
            "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events
             WHERE priority = {priority} AND sequence > $1 AND sequence <= $2 AND ($3 = '' OR organization_id = $3) ORDER BY sequence LIMIT $4"
        );
        let rows = with!(self.store.reader(), c => fitting(sqlx::query_as(sqlx::AssertSqlSafe(text.as_str()))
            .bind(stored(since)).bind(stored(head)).bind(organization).bind(PAGE as i64).fetch(c)).await)?;
        self.page(rows, head).await
    }

    /// Events of one ordering key after `since` and before `below`.
    pub(crate) async fn read_key(
        &self,
        organization: &OrganizationId,
        key: &str,
        since: u64,
        below: u64,
    ) -> Result<Page> {
        let rows = with!(self.store.reader(), c => fitting(sqlx::query_as(
            "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events
             WHERE organization_id = $1 AND ordering_key = $2 AND sequence > $3 AND sequence < $4 ORDER BY sequence LIMIT $5",
        ).bind(organization.as_str()).bind(key).bind(stored(since)).bind(stored(below)).bind(PAGE as i64).fetch(c)).await)?;
        self.page(rows, below).await
    }

    /// One event, by its id or its uid.
    pub(crate) async fn find(&self, organization: &OrganizationId, id: &str) -> Result<Arc<Entry>> {
        let by_id: Option<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events WHERE organization_id = $1 AND id = $2",
        ).bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        let row = match (by_id, chassis::id::parse_uuid(id)) {
            (Some(row), _) => Some(row),
            (None, Some(uid)) => with!(self.store.reader(), c => sqlx::query_as(
                "SELECT sequence, organization_id, uid, type, ordering_key, priority, body FROM events WHERE uid = $2 AND organization_id = $1",
            ).bind(organization.as_str()).bind(&uid[..]).fetch_optional(c).await)?,
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
        Ok(number(count))
    }

    /// Opens rows. A page that was cut, by rows or by bytes, reaches to its last entry only.
    async fn page(&self, Rows { rows, cut }: Rows, until: u64) -> Result<Page> {
        let cut = cut || rows.len() == PAGE;
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

/// Takes rows up to the bound in bytes, and none from behind it: of the largest, all that there are would be a hundred
/// times as much. The first one is taken however large it is.
async fn fitting(rows: impl Stream<Item = sqlx::Result<Row>>) -> sqlx::Result<Rows> {
    let (mut all, mut rows, mut bytes) = (pin!(rows), Vec::new(), 0);
    while let Some(row) = all.try_next().await? {
        bytes += row.body.len();
        if bytes > PAGE_BYTES && !rows.is_empty() {
            return Ok(Rows { rows, cut: true });
        }
        rows.push(row);
    }
    Ok(Rows { rows, cut: false })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::stream;

    use super::*;

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
