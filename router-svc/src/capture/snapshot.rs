//! The chosen tables as they were when the slot was made: read in one transaction on the snapshot that the slot exported,
//! so that the stream, which begins at that very point, neither repeats nor misses a change.
//!
//! Rows are read as they come off the wire, one at a time: a table may be of any size. Each is an INSERT with the origin
//! `import`, and so LOW. A snapshot that was cut short is read again from its beginning, on a new slot and as a new
//! generation: rows that came before come once more, as they are then.

use super::{
    CaptureError, Session,
    config::{Table, identifier, literal},
    intake::{Captured, Intake, WINDOW},
    pgoutput::{Cell, Column, Relation},
    position::{Lsn, Origin},
    row::Rows,
    slot::text,
    state::Refusal,
    wire::{Answer, Connection, Row},
};
use crate::event::Origin as How;

/// Publishes every row of the source's chosen tables; durable when it returns.
pub(super) async fn take(
    session: &Session<'_>,
    origin: &Origin,
    start: Lsn,
    exported: &str,
) -> Result<(), CaptureError> {
    let mut connection = Connection::open(&session.source.address).await?;
    connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    connection.query(&format!("SET TRANSACTION SNAPSHOT {}", literal(exported))).await?;
    let mut intake = session.intake();
    for (place, table) in session.source.snapshot.iter().enumerate() {
        let select = select(session, &mut connection, table).await?;
        connection.ask(&select).await?;
        let rows =
            publish(session, &mut connection, &mut intake, table, |row| origin.of_row(start, place, row)).await?;
        tracing::info!(source = session.source.name, %table, rows, "read a table as it was");
    }
    intake.drain(0).await?;
    connection.close().await;
    Ok(())
}

/// The columns and rows that the publication has of a table, where its server can say so (PostgreSQL 15).
async fn select(session: &Session<'_>, connection: &mut Connection, table: &Table) -> Result<String, CaptureError> {
    let version = connection.query("SHOW server_version_num").await?;
    let version: u32 = version.first().and_then(|row| text(row, 0).parse().ok()).unwrap_or_default();
    let (mut columns, mut filter) = ("*".to_owned(), String::new());
    if version >= 150_000 {
        let rows = connection
            .query(&format!(
                "SELECT to_json(attnames), rowfilter FROM pg_publication_tables WHERE pubname = {} AND schemaname = {} AND tablename = {}",
                literal(&session.source.publication),
                literal(&table.schema),
                literal(&table.name)
            ))
            .await?;
        let row = rows.first().ok_or_else(|| CaptureError::Source(format!("{table} isn't in the publication")))?;
        let names: Vec<String> = serde_json::from_str(&text(row, 0)).unwrap_or_default();
        if !names.is_empty() {
            columns = names.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(", ");
        }
        filter = Some(text(row, 1)).filter(|filter| !filter.is_empty()).map_or(filter, |text| format!(" WHERE {text}"));
    }
    Ok(format!("SELECT {columns} FROM {}{filter}", table.quoted()))
}

/// Publishes the rows of the answer under way, and says how many they were.
async fn publish(
    session: &Session<'_>,
    connection: &mut Connection,
    intake: &mut Intake<'_>,
    table: &Table,
    id: impl Fn(u64) -> String,
) -> Result<u64, CaptureError> {
    let owner =
        session.source.owners.get(table).ok_or_else(|| CaptureError::Source(format!("{table} has no owner")))?;
    let (schema, name) = (table.schema.clone(), table.name.clone());
    let mut relation = Relation { id: 0, schema, table: name, columns: Vec::new() };
    let (now, mut count) = (session.publisher.clock.now(), 0);
    while let Some(answer) = connection.answer().await? {
        let row = match answer {
            Answer::Columns(columns) => {
                // The first stands for the key: an answer doesn't say which columns are one.
                let column = |(at, column): (usize, super::wire::Column)| Column {
                    name: column.name,
                    type_: column.type_,
                    is_key: at == 0,
                };
                relation.columns = columns.into_iter().enumerate().map(column).collect();
                continue;
            }
            Answer::Row(row) => Some(row),
            Answer::Cut => None,
        };
        let id = id(count);
        count += 1;
        match row.map(insert) {
            Some(rows) => {
                let key = rows.key(&relation);
                let owned = rows.owned(&relation, owner, &session.types);
                let (relation, operation) = (&relation, "insert");
                intake.change(Captured { id, at: now, origin: How::Import, relation, operation, key, owned }).await?;
            }
            None => {
                let (table, key) = (table.to_string(), String::new());
                intake.refuse(Refusal { event_id: id, table, operation: "insert", key }, super::TOO_LONG).await?;
            }
        }
        intake.drain(WINDOW - 1).await?;
    }
    Ok(count)
}

fn insert(row: Row) -> Rows {
    Rows::Insert(row.into_iter().map(|cell| cell.map_or(Cell::Null, Cell::Text)).collect())
}
