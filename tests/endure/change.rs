//! What is changed in the planner's database, in words that both ends know: which row became which version. Everything else
//! in a row follows from that, so that whoever reads a change can tell whether it arrived unaltered.

use chassis::signature::hex_sign;
use serde_json::{Value, json};

/// One row in this many has a value that PostgreSQL keeps outside of the row (TOAST), and sends only where it changed.
const LARGE_EVERY: i64 = 10;

pub(crate) const TABLE: &str = "orders";
pub(crate) const SETUP: [&str; 4] = [
    "CREATE TABLE orders (id bigint PRIMARY KEY, organization_id text, version int, note text, large text)",
    "ALTER TABLE orders REPLICA IDENTITY FULL",
    // Not captured: how many transactions were committed, for whose answer was lost.
    "CREATE TABLE progress (transactions bigint)",
    "INSERT INTO progress VALUES (0)",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Insert,
    Update,
    Delete,
}

/// One committed change of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) id: i64,
    /// The row's after it; of a deleted row its last one.
    pub(crate) version: i32,
}

impl Change {
    /// As a statement.
    pub(crate) fn statement(self, organization: &str) -> String {
        let Self { kind, id, version } = self;
        match kind {
            Kind::Insert => format!(
                "INSERT INTO {TABLE} VALUES ({id}, '{organization}', {version}, '{}', '{}')",
                note(id, version),
                large(id)
            ),
            Kind::Update => {
                format!("UPDATE {TABLE} SET version = {version}, note = '{}' WHERE id = {id}", note(id, version))
            }
            Kind::Delete => format!("DELETE FROM {TABLE} WHERE id = {id}"),
        }
    }

    /// Out of what a subscriber was told.
    ///
    /// # Errors
    /// What isn't as it was committed.
    pub(crate) fn read(kind: &str, old: &Value, new: &Value, organization: &str) -> Result<Self, String> {
        let (kind, row) = match kind {
            "INSERT" => (Kind::Insert, new),
            "UPDATE" => (Kind::Update, new),
            "DELETE" => (Kind::Delete, old),
            other => return Err(format!("{other:?} is no kind of a change")),
        };
        let number = |name: &str| row[name].as_i64().ok_or_else(|| format!("no {name} in {row}"));
        let (id, version) = (number("id")?, i32::try_from(number("version")?).map_err(|error| error.to_string())?);
        let change = Self { kind, id, version };
        let (before, after) = match kind {
            Kind::Insert => (Value::Null, change.row(version, organization)),
            Kind::Update => (change.row(version - 1, organization), change.row(version, organization)),
            Kind::Delete => (change.row(version, organization), Value::Null),
        };
        if (old, new) == (&before, &after) { Ok(change) } else { Err(format!("{change:?} came as {old} -> {new}")) }
    }

    /// The row at one of its versions.
    pub(crate) fn row(self, version: i32, organization: &str) -> Value {
        let Self { id, .. } = self;
        json!({ "id": id, "organization_id": organization, "version": version, "note": note(id, version), "large": large(id) })
    }
}

/// Text of one to four bytes a character, of another length each time.
fn note(id: i64, version: i32) -> String {
    let times = usize::try_from((id * 7 + i64::from(version) * 13) % 40).unwrap_or_default();
    format!("{id}/{version} {}", "aß€💍".repeat(times))
}

/// Too random to be compressed into the row.
fn large(id: i64) -> String {
    if id % LARGE_EVERY != 0 {
        return String::new();
    }
    (0..100).map(|part| hex_sign(b"large", format!("{id} {part}").as_bytes())).collect()
}
