//! What the columns of a table mean: from its heading, or as somebody says, to a record's fields. Pure.
//!
//! A column that names no field is left out; what a cell of a known field can't be is a refusal with the reason. A row
//! must be known again when it comes another time: by a column that holds its id, else by what makes it itself (a
//! client's e-mail address; names and date), of which the id is a hash.

use std::collections::{BTreeMap, BTreeSet};

use chassis::error::{Error, Result};
use jiff::civil;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::record::RecordKind;

/// Columns that are known by other names too, as spreadsheets and vendors' exports have them.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("e_mail", "email"),
    ("email_address", "email"),
    ("mail", "email"),
    ("phone_number", "phone"),
    ("mobile", "phone"),
    ("telephone", "phone"),
    ("firstname", "first_name"),
    ("given_name", "first_name"),
    ("lastname", "last_name"),
    ("surname", "last_name"),
    ("family_name", "last_name"),
    ("partner_email_address", "partner_email"),
    ("date", "wedding_date"),
    ("event_date", "wedding_date"),
    ("guests", "guest_count"),
    ("number_of_guests", "guest_count"),
    ("party_size", "guest_count"),
    ("venue", "venue_name"),
    ("location", "venue_name"),
    ("ceremony_start", "ceremony_time"),
    ("reception_start", "reception_time"),
    ("dietary", "dietary_requirements"),
    ("notes", "special_requests"),
    ("bride", "bride_name"),
    ("groom", "groom_name"),
];
/// The field of a refusal that quotes the first line of a table: where that is no heading, it is somebody's.
pub(crate) const HEADING: &str = "heading";
const ID_COLUMNS: [&str; 3] = ["external_id", "id", "uid"];
const ID_CHARS: usize = 256;
const CELL_BYTES: usize = 16 << 10;

const WEDDING: &[&str] = &[
    "bride_name",
    "groom_name",
    "wedding_date",
    "ceremony_time",
    "setup_time",
    "reception_time",
    "time_zone",
    "venue_id",
    "venue_name",
    "guest_count",
    "dietary_requirements",
    "special_requests",
    "venue_notes",
    "couple_id",
];
const CLIENT: &[&str] = &[
    "first_name",
    "last_name",
    "email",
    "phone",
    "partner_first_name",
    "partner_last_name",
    "partner_email",
    "address",
    "dietary_requirements",
    "preferences",
    "wedding_id",
    "wedding_date",
    "consent_marketing",
    "tags",
    "venue_name",
    "guest_count",
    "special_requests",
    "status",
];
const BOOKING: &[&str] = &[
    "title",
    "wedding_id",
    "client_id",
    "wedding_date",
    "start",
    "end",
    "status",
    "venue_name",
    "location",
    "guest_count",
    "special_requests",
];

/// What somebody says about a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Options {
    /// Columns by their heading, each with its field; `""` leaves it out. Others go by their names.
    pub(crate) map: BTreeMap<String, String>,
    /// The column that holds the row's id.
    pub(crate) id_column: String,
    /// How dates are written, as strptime says it (`%d/%m/%Y`); empty: `YYYY-MM-DD`.
    pub(crate) date_format: String,
}

/// A row, read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) external_id: String,
    pub(crate) fields: BTreeMap<String, Value>,
}

/// The meaning of a table's columns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    kind: RecordKind,
    /// The field of each column, where it has one.
    fields: Vec<Option<String>>,
    id: Option<usize>,
    date_format: String,
}

impl Columns {
    /// From a table's heading.
    ///
    /// # Errors
    /// `Error::Invalid` for a column that isn't there, a field that the kind doesn't have, two columns of one field, or a
    /// table of which no column means anything.
    pub(crate) fn new(kind: RecordKind, heading: &[String], options: &Options) -> Result<Self> {
        let place = |name: &str| heading.iter().position(|column| column == name || normal(column) == normal(name));
        if let Some(missing) = options.map.keys().find(|name| place(name).is_none()) {
            return Err(Error::invalid(HEADING, format!("has no column {missing}; it has {}", heading.join(", "))));
        }
        let id = match options.id_column.as_str() {
            "" => ID_COLUMNS.iter().find_map(|name| heading.iter().position(|column| normal(column) == *name)),
            name => Some(
                place(name).ok_or_else(|| Error::invalid("id_column", format!("the table has no column {name}")))?,
            ),
        };
        let mut fields: Vec<Option<String>> = heading.iter().map(|column| by_name(kind, column)).collect();
        for (column, field) in &options.map {
            let at = place(column).expect("each was found above");
            fields[at] = (!field.is_empty()).then(|| field.clone());
        }
        check_fields(kind, &fields)?;
        Ok(Self { kind, fields, id, date_format: options.date_format.clone() })
    }

    /// One row's fields and id.
    ///
    /// # Errors
    /// Why the row is refused.
    pub(crate) fn item(&self, cells: &[String]) -> Result<Item, String> {
        if let Some(extra) = cells.iter().skip(self.fields.len()).find(|cell| !cell.trim().is_empty()) {
            let extra: String = extra.chars().take(20).collect();
            return Err(format!("has more cells than the heading: {} (the first: {extra})", cells.len()));
        }
        let mut fields = BTreeMap::new();
        for (field, cell) in self.fields.iter().zip(cells) {
            let Some(field) = field else { continue };
            if let Some(value) = self.value(field, cell.trim()).map_err(|reason| format!("{field}: {reason}"))? {
                fields.insert(field.clone(), value);
            }
        }
        if fields.is_empty() {
            return Err("has no value in any column that is read".to_owned());
        }
        let given = self.id.and_then(|at| cells.get(at)).map(|cell| cell.trim()).filter(|id| !id.is_empty());
        let external_id = match given {
            Some(id) if id.chars().count() > ID_CHARS => {
                return Err(format!("its id has more than {ID_CHARS} characters"));
            }
            Some(id) => id.to_owned(),
            None => natural_id(self.kind, &fields)?,
        };
        Ok(Item { external_id, fields })
    }

    /// A cell's value; none for a blank one: a blank in a table says nothing, it doesn't erase.
    fn value(&self, field: &str, cell: &str) -> Result<Option<Value>, String> {
        if cell.is_empty() {
            return Ok(None);
        }
        if cell.len() > CELL_BYTES {
            return Err("is longer than 16 KiB".to_owned());
        }
        let value = match field {
            "wedding_date" => date(cell, &self.date_format)?.into(),
            "ceremony_time" | "setup_time" | "reception_time" => time(cell)?.into(),
            "guest_count" => cell.parse::<u32>().map_err(|_| format!("{cell} is no number of people"))?.into(),
            "consent_marketing" => truth(cell)?.into(),
            "tags" => {
                cell.split([',', ';', '|']).map(str::trim).filter(|tag| !tag.is_empty()).collect::<Vec<_>>().into()
            }
            _ => cell.into(),
        };
        Ok(Some(value))
    }
}

/// `Wedding Date` and `wedding-date` are `wedding_date`.
fn normal(column: &str) -> String {
    let words = column.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("_")
}

fn by_name(kind: RecordKind, column: &str) -> Option<String> {
    let name = normal(column);
    let known = |name: &str| known(kind).contains(&name).then(|| name.to_owned());
    known(&name).or_else(|| OTHER_NAMES.iter().find(|(other, _)| *other == name).and_then(|(_, field)| known(field)))
}

fn known(kind: RecordKind) -> &'static [&'static str] {
    match kind {
        RecordKind::Client => CLIENT,
        RecordKind::Wedding => WEDDING,
        RecordKind::Booking => BOOKING,
    }
}

fn check_fields(kind: RecordKind, fields: &[Option<String>]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for field in fields.iter().flatten() {
        if !known(kind).contains(&field.as_str()) {
            let known = known(kind).join(", ");
            return Err(Error::invalid("map", format!("a {} has no field {field}; it has {known}", kind.as_str())));
        }
        if !seen.insert(field) {
            return Err(Error::invalid("map", format!("two columns are {field}: leave one out with `column=`")));
        }
    }
    if seen.is_empty() {
        let known = known(kind).join(", ");
        return Err(Error::invalid("map", format!("no column is known by its name: map one to {known}")));
    }
    Ok(())
}

/// What a row without an id is known by.
fn natural_id(kind: RecordKind, fields: &BTreeMap<String, Value>) -> Result<String, String> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(|text| text.to_lowercase());
    let all = |names: &[&str]| names.iter().map(|name| text(name)).collect::<Option<Vec<_>>>();
    let (key, needs) = match kind {
        RecordKind::Client => (
            all(&["email"]).or_else(|| all(&["first_name", "last_name", "wedding_date"])),
            "an e-mail address, or both names and a wedding date",
        ),
        RecordKind::Wedding => {
            (all(&["wedding_date", "bride_name", "groom_name"]), "a wedding date and the names of both")
        }
        RecordKind::Booking => {
            (all(&["wedding_id", "title"]).or_else(|| all(&["title", "start"])), "a title, and a wedding or a start")
        }
    };
    let key = key.ok_or_else(|| format!("can't be known again: it has no id, and not {needs}"))?;
    Ok(hashed(kind.as_str(), &key))
}

/// The same for the same words, whoever's they are; `row-` and 32 hexadecimal digits.
fn hashed(kind: &str, key: &[String]) -> String {
    let mut digest = Sha256::new_with_prefix(kind);
    for part in key {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    format!("row-{}", hex::encode(&digest.finalize()[..16]))
}

fn date(cell: &str, format: &str) -> Result<String, String> {
    let read = if format.is_empty() { cell.parse() } else { civil::Date::strptime(format, cell) };
    let expected = if format.is_empty() { "YYYY-MM-DD, unless a date format is given" } else { format };
    let date = read.map_err(|_| format!("{cell} is no date as {expected}"))?;
    Ok(date.to_string())
}

fn time(cell: &str) -> Result<String, String> {
    let upper = cell.to_uppercase();
    let formats = ["%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M%p", "%I %p", "%I%p"];
    let read = formats.iter().find_map(|format| civil::Time::strptime(format, &upper).ok());
    let time = read.ok_or_else(|| format!("{cell} is no time as HH:MM or 3:00 PM"))?;
    Ok(time.strftime("%H:%M").to_string())
}

fn truth(cell: &str) -> Result<bool, String> {
    match cell.to_lowercase().as_str() {
        "yes" | "true" | "1" | "y" | "x" => Ok(true),
        "no" | "false" | "0" | "n" => Ok(false),
        _ => Err(format!("{cell} is neither yes nor no")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn strings(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    fn columns(heading: &[&str]) -> Columns {
        Columns::new(RecordKind::Client, &strings(heading), &Options::default()).expect("a heading that is understood")
    }

    fn refusal(options: &Options) -> String {
        let heading = strings(&["E-Mail", "Name 1", "First name"]);
        Columns::new(RecordKind::Client, &heading, options).expect_err("refused").to_string()
    }

    #[test]
    fn columns_are_known_by_their_names_however_they_are_written() {
        let columns = columns(&["E-Mail", "First Name", "surname", "Favourite colour", "GUESTS", "Wedding Date"]);
        let item = columns.item(&strings(&["a@b.c", "Ann", " Lee ", "red", "80", "2027-06-01"])).expect("a row");
        let expected = json!({"email": "a@b.c", "first_name": "Ann", "last_name": "Lee", "guest_count": 80, "wedding_date": "2027-06-01"});
        assert_eq!(json!(item.fields), expected);
    }

    #[test]
    fn a_column_is_what_somebody_says_it_is() {
        let map = BTreeMap::from([("Name 1".to_owned(), "last_name".to_owned()), ("E-Mail".to_owned(), String::new())]);
        let options = Options { map, id_column: "E-Mail".to_owned(), date_format: "%d/%m/%Y".to_owned() };
        let heading = strings(&["E-Mail", "Name 1", "date"]);
        let columns = Columns::new(RecordKind::Client, &heading, &options).expect("understood");
        let item = columns.item(&strings(&["a@b.c", "Lee", "03/04/2027"])).expect("a row");
        assert_eq!(json!(item.fields), json!({"last_name": "Lee", "wedding_date": "2027-04-03"}));
        assert_eq!(item.external_id, "a@b.c");
    }

    #[test]
    fn what_nobody_can_mean_is_refused_with_what_is_there() {
        let map = |column: &str, field: &str| Options {
            map: BTreeMap::from([(column.to_owned(), field.to_owned())]),
            ..Options::default()
        };
        assert_eq!(refusal(&map("Nam", "last_name")), "heading: has no column Nam; it has E-Mail, Name 1, First name");
        assert!(refusal(&map("Name 1", "shoe_size")).contains("a client has no field shoe_size"));
        assert!(refusal(&map("Name 1", "first_name")).contains("two columns are first_name"));
        assert!(refusal(&Options { id_column: "no".to_owned(), ..Options::default() }).contains("no column no"));
        let unknown = Columns::new(RecordKind::Client, &strings(&["a", "b"]), &Options::default());
        assert!(unknown.expect_err("refused").to_string().contains("no column is known"));
    }

    #[test]
    fn a_row_without_an_id_is_known_by_what_makes_it_itself() {
        let columns = columns(&["email", "first name"]);
        let id = |cells: &[&str]| columns.item(&strings(cells)).map(|item| item.external_id);
        assert_eq!(id(&["A@b.c", "Ann"]), id(&["a@b.c", "Anne"]));
        assert_ne!(id(&["a@b.c", "Ann"]), id(&["b@b.c", "Ann"]));
        assert!(id(&["", "Ann"]).expect_err("refused").contains("can't be known again"));
        assert_ne!(hashed("client", &strings(&["ab", "c"])), hashed("client", &strings(&["a", "bc"])));
    }

    #[test]
    fn a_blank_cell_says_nothing_and_a_wrong_one_is_refused_with_its_field() {
        let columns = columns(&["email", "guests", "date", "consent marketing", "tags"]);
        let item = columns.item(&strings(&["a@b.c", "", " ", "Yes", "a, b"])).expect("a row");
        assert_eq!(json!(item.fields), json!({"email": "a@b.c", "consent_marketing": true, "tags": ["a", "b"]}));
        for (cells, reason) in [
            (["a@b.c", "many", "", "", ""], "guest_count: many is no number of people"),
            (
                ["a@b.c", "", "1/2/2027", "", ""],
                "wedding_date: 1/2/2027 is no date as YYYY-MM-DD, unless a date format is given",
            ),
            (["a@b.c", "", "", "perhaps", ""], "consent_marketing: perhaps is neither yes nor no"),
        ] {
            assert_eq!(columns.item(&strings(&cells)), Err(reason.to_owned()));
        }
        assert!(columns.item(&strings(&["a@b.c", "", "", "", "", "more"])).is_err());
        assert_eq!(time("3:05 pm"), Ok("15:05".to_owned()));
        assert_eq!((time("15:05:30"), time("25:00").is_err()), (Ok("15:05".to_owned()), true));
    }
}
