//! A row of the stream becomes a change with JSON records, and gets its organization. Pure.
//!
//! A column that an UPDATE didn't send (a large value, TOAST, that it left as it was) is taken from the old row where that
//! is whole (REPLICA IDENTITY FULL); else it is left out of the new record: missing there means unchanged, never null. Of
//! an old row that is its key alone, the record has the key's columns alone.
//!
//! A row that moves from one organization to another is deleted for the one and inserted for the other: neither sees what
//! it was, or is, with the other.

use bytes::Bytes;
use chassis::id::OrganizationId;

use super::{
    config::Owner,
    pgoutput::{Cell, Old, Relation, Tuple},
    value::{Types, quoted},
};
use crate::event::Operation;

/// Characters of a key's value that a refusal shows.
const SHOWN_MAX: usize = 100;

/// What a statement did to one row.
#[derive(Debug)]
pub(super) enum Rows {
    Insert(Tuple),
    Update(Old, Tuple),
    Delete(Old),
}

/// A change as one organization sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) organization: OrganizationId,
    pub(super) operation: Operation,
    pub(super) old: Option<Bytes>,
    pub(super) new: Option<Bytes>,
}

/// Why a row can't become an event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it has another number of columns than its table")]
    Width,
    #[error("column {0} isn't UTF-8")]
    NotUtf8(String),
    #[error("its organization isn't known: column {0} is null, no id or wasn't sent (set REPLICA IDENTITY FULL)")]
    NoOrganization(String),
}

impl Rows {
    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::Insert(_) => Operation::Insert,
            Self::Update(..) => Operation::Update,
            Self::Delete(_) => Operation::Delete,
        }
    }

    fn after(&self) -> Option<&Tuple> {
        match self {
            Self::Insert(new) | Self::Update(_, new) => Some(new),
            Self::Delete(_) => None,
        }
    }

    fn before(&self) -> Option<(&Tuple, bool)> {
        match self {
            Self::Update(Old::Full(old), _) | Self::Delete(Old::Full(old)) => Some((old, true)),
            Self::Update(Old::Key(old), _) | Self::Delete(Old::Key(old)) => Some((old, false)),
            _ => None,
        }
    }

    /// The columns of its key, for those who look for a row that was refused: of a table whose whole row is its identity,
    /// the first.
    pub(super) fn key(&self, relation: &Relation) -> String {
        let Some(tuple) = self.after().or_else(|| self.before().map(|(old, _)| old)) else { return String::new() };
        let is_whole = relation.columns.iter().all(|column| column.is_key);
        let columns = relation.columns.iter().zip(tuple).filter(|(column, _)| column.is_key);
        let shown = columns.take(if is_whole { 1 } else { 8 }).map(|(column, cell)| {
            let text = match cell {
                Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
                Cell::Null | Cell::Unchanged => "null".to_owned(),
            };
            let text: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect();
            format!("{}={text}", column.name)
        });
        shown.collect::<Vec<_>>().join(",")
    }

    /// The change for whom it concerns: one organization, or two where the row moved.
    pub(super) fn owned(mut self, relation: &Relation, owner: &Owner, types: &Types) -> Result<Vec<Owned>, Fault> {
        let width = relation.columns.len();
        if [self.after(), self.before().map(|(old, _)| old)].into_iter().flatten().any(|tuple| tuple.len() != width) {
            return Err(Fault::Width);
        }
        self.fill();
        let old = self.before().map(|(tuple, whole)| record(relation, tuple, types, whole)).transpose()?;
        let new = self.after().map(|tuple| record(relation, tuple, types, true)).transpose()?;
        let operation = self.operation();
        let (before, after) = self.owners(relation, owner)?;
        Ok(match before {
            Some(before) if before != after => vec![
                Owned { organization: before, operation: Operation::Delete, old, new: None },
                Owned { organization: after, operation: Operation::Insert, old: None, new },
            ],
            _ => vec![Owned { organization: after, operation, old, new }],
        })
    }

    /// Takes what wasn't sent from the old row where that has it.
    fn fill(&mut self) {
        if let Self::Update(Old::Full(old), new) = self {
            for (new, old) in new.iter_mut().zip(old) {
                if *new == Cell::Unchanged {
                    *new = old.clone();
                }
            }
        }
    }

    /// Whose it was, where that is known of an update, and whose it is.
    fn owners(&self, relation: &Relation, owner: &Owner) -> Result<(Option<OrganizationId>, OrganizationId), Fault> {
        let column = match owner {
            Owner::Organization(organization) => return Ok((None, organization.clone())),
            Owner::Column(column) => column,
        };
        let at = relation.columns.iter().position(|known| known.name == *column);
        let named = |tuple: &Tuple| match at.and_then(|at| tuple.get(at)) {
            Some(Cell::Text(text)) => std::str::from_utf8(text).ok().and_then(|text| OrganizationId::parse(text).ok()),
            _ => None,
        };
        let (before, after) = (self.before().and_then(|(old, _)| named(old)), self.after().and_then(named));
        let unknown = || Fault::NoOrganization(column.clone());
        match self {
            Self::Delete(_) => Ok((None, before.ok_or_else(unknown)?)),
            Self::Insert(_) | Self::Update(..) => Ok((before, after.ok_or_else(unknown)?)),
        }
    }
}

/// A JSON object of the columns that were sent; of a row that isn't whole, of its key's.
fn record(relation: &Relation, tuple: &Tuple, types: &Types, is_whole: bool) -> Result<Bytes, Fault> {
    let mut json = vec![b'{'];
    for (column, cell) in relation.columns.iter().zip(tuple) {
        if *cell == Cell::Unchanged || !(is_whole || column.is_key) {
            continue;
        }
        if json.len() > 1 {
            json.push(b',');
        }
        quoted(&column.name, &mut json);
        json.push(b':');
        match cell {
            Cell::Text(text) => {
                types.write(column.type_, text, &mut json).map_err(|_| Fault::NotUtf8(column.name.clone()))?;
            }
            Cell::Null | Cell::Unchanged => json.extend(b"null"),
        }
    }
    json.push(b'}');
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::pgoutput::Column;

    fn table() -> Relation {
        let column = |name: &str, type_, is_key| Column { name: name.to_owned(), type_, is_key };
        let columns = vec![column("id", 20, true), column("org", 25, false), column("notes", 25, false)];
        Relation { id: 1, schema: "public".to_owned(), table: "t".to_owned(), columns }
    }

    fn tuple(cells: [&str; 3]) -> Tuple {
        let cell = |text: &str| match text {
            "null" => Cell::Null,
            "same" => Cell::Unchanged,
            text => Cell::Text(Bytes::copy_from_slice(text.as_bytes())),
        };
        cells.map(cell).into()
    }

    fn owned(rows: Rows) -> Result<Vec<String>, Fault> {
        let owned = rows.owned(&table(), &Owner::Column("org".to_owned()), &Types::default())?;
        let text = |record: Option<Bytes>| {
            record.map_or_else(|| "-".to_owned(), |json| String::from_utf8(json.into()).unwrap())
        };
        let line = |owned: Owned| {
            format!("{} {} {} {}", owned.organization, owned.operation.as_str(), text(owned.old), text(owned.new))
        };
        Ok(owned.into_iter().map(line).collect())
    }

    #[test]
    fn what_was_not_sent_comes_from_the_whole_old_row_or_is_left_out() {
        let update = |old| owned(Rows::Update(old, tuple(["1", "a", "same"]))).unwrap();
        assert_eq!(
            update(Old::Full(tuple(["1", "a", "long"]))),
            [r#"a update {"id":1,"org":"a","notes":"long"} {"id":1,"org":"a","notes":"long"}"#]
        );
        assert_eq!(update(Old::Same), [r#"a update - {"id":1,"org":"a"}"#]);
        assert_eq!(update(Old::Key(tuple(["0", "null", "null"]))), [r#"a update {"id":0} {"id":1,"org":"a"}"#]);
    }

    #[test]
    fn a_row_that_moves_is_deleted_for_one_organization_and_inserted_for_the_other() {
        let rows = Rows::Update(Old::Full(tuple(["1", "a", "secret"])), tuple(["1", "b", "null"]));
        let moved =
            [r#"a delete {"id":1,"org":"a","notes":"secret"} -"#, r#"b insert - {"id":1,"org":"b","notes":null}"#];
        assert_eq!(owned(rows).unwrap(), moved);
    }

    #[test]
    fn a_row_whose_organization_is_not_known_is_refused() {
        let unknown = Err(Fault::NoOrganization("org".to_owned()));
        assert_eq!(owned(Rows::Delete(Old::Key(tuple(["1", "null", "null"])))), unknown);
        assert_eq!(owned(Rows::Insert(tuple(["1", "a b", "x"]))), unknown);
        assert_eq!(owned(Rows::Insert(vec![Cell::Null])), Err(Fault::Width));
        let bytes = Cell::Text(Bytes::from_static(b"\xff"));
        let rows = Rows::Insert(vec![Cell::Null, Cell::Text("a".into()), bytes]);
        assert_eq!(owned(rows), Err(Fault::NotUtf8("notes".to_owned())));
    }

    #[test]
    fn a_refusal_names_the_key_alone() {
        assert_eq!(Rows::Insert(tuple(["1", "a", "secret"])).key(&table()), "id=1");
        let mut full = table();
        full.columns.iter_mut().for_each(|column| column.is_key = true);
        assert_eq!(Rows::Insert(tuple(["1", "a", "secret"])).key(&full), "id=1");
    }
}
