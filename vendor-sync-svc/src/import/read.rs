//! Pages of records, from whatever was spooled: each record with its line, or why it is refused.
//!
//! A reader goes on wherever a page ended, in this process or in the next; what it holds is a piece of the file.

use std::collections::BTreeMap;

use chassis::{
    error::{Error, Result},
    secret::place,
    with,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Import, Order, Origin, Refusal, Work,
    columns::{Columns, Item},
    csv::{Row, Rows, delimiter},
    ics::{self, Events, Found},
    spool::{self, File},
    store::Imports,
};
use crate::{
    record::RecordKind,
    resolve::{self, Incoming},
};

const MARK: &[u8] = b"\xEF\xBB\xBF";

/// What a page holds.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) incoming: Vec<Incoming>,
    /// The line, or the number, of each.
    pub(super) lines: Vec<u64>,
    pub(super) refusals: Vec<Refusal>,
    /// Where the next one begins.
    pub(super) position: u64,
    pub(super) line: u64,
    pub(super) is_last: bool,
}

/// A record of a vendor's list, as it is spooled: none where only its id was legible.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) external_id: String,
    pub(crate) external_version: String,
    pub(crate) at: Timestamp,
    pub(crate) fields: BTreeMap<String, Value>,
    pub(crate) deleted: bool,
}

/// Reads one import's pages.
pub(super) struct Reader {
    imports: Imports,
    of: Of,
}

enum Of {
    Table { file: File, rows: Box<Rows>, columns: Columns },
    Calendar { file: File, events: Box<Events> },
    List,
}

impl Reader {
    /// From where the import is.
    ///
    /// # Errors
    /// `Error::Invalid` for a file that can't be understood; those of the store.
    pub(super) async fn open(imports: &Imports, import: &Import) -> Result<Self> {
        let of = match import.order.origin {
            Origin::Vendor => Of::List,
            Origin::Csv => table(imports, import).await?,
            Origin::Ics => calendar(imports, import).await?,
        };
        Ok(Self { imports: imports.clone(), of })
    }

    /// The next `limit` records, fewer at the end.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn page(&mut self, import: &Import, limit: usize) -> Result<Page> {
        let mut page = Page::default();
        match &mut self.of {
            Of::List => list(&self.imports, import, limit, &mut page).await?,
            Of::Table { file, rows, columns } => {
                while page.len() < limit && !page.is_last {
                    let rest = file.rest(import).await?;
                    let ended = rest.is_empty();
                    let (used, row) = rows.next(rest);
                    file.consume(used);
                    page.is_last = ended && row.is_none();
                    if let Some(row) = row {
                        page.add(import, row.line, cells(import, row).and_then(|cells| columns.item(&cells)), None);
                    }
                }
                (page.position, page.line) = (file.position(), rows.line());
            }
            Of::Calendar { file, events } => {
                while page.len() < limit && !page.is_last {
                    let rest = file.rest(import).await?;
                    let ended = rest.is_empty();
                    let (used, found) = events.next(rest);
                    file.consume(used);
                    page.is_last = ended && found.is_none();
                    if let Some(Found { line, event }) = found {
                        let changed_at = event.as_ref().ok().and_then(|event| event.changed_at);
                        page.add(import, line, event.and_then(|event| event.item(import.order.kind)), changed_at);
                    }
                }
                (page.position, page.line) = (file.position(), events.line());
            }
        }
        Ok(page)
    }
}

impl Page {
    pub(super) fn len(&self) -> usize {
        self.incoming.len() + self.refusals.len()
    }

    fn add(&mut self, import: &Import, line: u64, item: Result<Item, String>, changed_at: Option<Timestamp>) {
        match item {
            Ok(Item { external_id, fields }) => {
                // What a file doesn't date is as old as the import, however often it is read.
                let at = changed_at.unwrap_or(import.created_at);
                let listed = Listed { external_id, external_version: String::new(), at, fields, deleted: false };
                self.push(line, incoming(&import.order, import.order.kind, listed));
            }
            Err(reason) => self.refusals.push(Refusal { line, external_id: String::new(), reason }),
        }
    }

    fn push(&mut self, line: u64, incoming: Incoming) {
        self.lines.push(line);
        self.incoming.push(incoming);
    }
}

fn incoming(order: &Order, kind: RecordKind, listed: Listed) -> Incoming {
    Incoming {
        kind,
        external_id: listed.external_id,
        external_version: listed.external_version,
        at: listed.at,
        fields: listed.fields,
        deleted: listed.deleted,
        priority_low: true,
        origin: match order.work {
            Work::Import => resolve::Origin::Import,
            Work::Reconcile => resolve::Origin::Reconcile,
        },
    }
}

async fn table(imports: &Imports, import: &Import) -> Result<Of> {
    let (mut file, head) = begin(imports, import).await?;
    let mut rows = Rows::new(delimiter(&head), 1);
    let heading = loop {
        let rest = file.rest(import).await?;
        let ended = rest.is_empty();
        let (used, row) = rows.next(rest);
        file.consume(used);
        match row {
            Some(row) => {
                break cells(import, row)
                    .map_err(|reason| Error::invalid("content", format!("its heading {reason}")))?;
            }
            None if ended => return Err(Error::invalid("content", "has no heading")),
            None => {}
        }
    };
    let columns = Columns::new(import.order.kind, &heading, &import.order.options)?;
    if import.next.line > 0 {
        file = File::new(imports.clone(), import.next.position);
        rows = Rows::new(delimiter(&head), import.next.line);
    }
    Ok(Of::Table { file, rows: Box::new(rows), columns })
}

async fn calendar(imports: &Imports, import: &Import) -> Result<Of> {
    let (mut file, head) = begin(imports, import).await?;
    if !head.trim_ascii_start().to_ascii_uppercase().starts_with(b"BEGIN:VCALENDAR") {
        return Err(Error::invalid("content", "is no calendar: it must begin with BEGIN:VCALENDAR"));
    }
    if import.next.line > 0 {
        file = File::new(imports.clone(), import.next.position);
    }
    let zone = ics::zone_of_calendar(import.encoding, &head);
    let events = Box::new(Events::new(import.encoding, import.next.line.max(1), zone));
    Ok(Of::Calendar { file, events })
}

/// A file after its byte order mark, and what it begins with.
async fn begin(imports: &Imports, import: &Import) -> Result<(File, Vec<u8>)> {
    let mut file = File::new(imports.clone(), 0);
    if file.rest(import).await?.starts_with(MARK) {
        file.consume(MARK.len());
    }
    let head = file.rest(import).await?.to_vec();
    Ok((file, head))
}

fn cells(import: &Import, row: Row) -> Result<Vec<String>, String> {
    let cells = row.cells.map_err(|fault| fault.reason().to_owned())?;
    Ok(cells.iter().map(|cell| import.encoding.decode(cell).into_owned()).collect())
}

async fn list(imports: &Imports, import: &Import, limit: usize, page: &mut Page) -> Result<()> {
    let position = import.next.position;
    let rows: Vec<(i64, String, Vec<u8>)> = with!(imports.store.reader(), c => sqlx::query_as(
        "SELECT number, record_kind, body FROM import_items WHERE import_id = $1 AND number >= $2 ORDER BY number LIMIT $3",
    ).bind(&import.id).bind(position.cast_signed()).bind(limit.cast_signed() as i64).fetch_all(c).await)?;
    // Where one is refused a number is missing.
    page.position = rows.last().map_or(position, |(number, ..)| number.unsigned_abs() + 1);
    page.is_last = rows.len() < limit;
    let key = imports.keys.of(&import.order.organization).await?;
    for (number, kind, body) in rows {
        let plain = key.open(&place("import_items", "body", &spool::row(&import.id, number)), &body)?;
        let listed: Option<Listed> = serde_json::from_slice(&plain).map_err(Error::internal)?;
        let Some(listed) = listed else { continue };
        let kind =
            RecordKind::parse(&kind).ok_or_else(|| Error::internal(anyhow::anyhow!("an item of an unknown kind")))?;
        page.push(number.unsigned_abs() + 1, incoming(&import.order, kind, listed));
    }
    Ok(())
}
