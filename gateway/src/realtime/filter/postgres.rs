//! Each operator against PostgreSQL's own answer to the same question, over 1,000 random rows.
//!
//! Texts are ordered under `COLLATE "C"`; cases are folded by the server's locale, which is `C.UTF-8`. Rows come as JSON
//! in both of the forms in which changes carry them: as `to_json` writes times, and as the replication protocol does.

use std::{collections::BTreeSet, fmt::Write as _};

use chassis::testing::{postgres_url, seeds};
use sqlx::{Connection as _, PgConnection, Row as _};

use super::*;

const ROWS: usize = 1_000;
/// Filters of two conditions.
const PAIRS: usize = 500;
const TABLE: &str = r#"CREATE TEMPORARY TABLE sample (
    id int PRIMARY KEY, big bigint, num numeric, ratio double precision, flag boolean, word text COLLATE "C", folded text,
    day date, clock time, local timestamp, moment timestamptz, uid uuid)"#;
/// As the replication protocol writes it.
const AS_TEXT: &str = "SELECT id, json_build_object('big', big, 'num', num, 'ratio', ratio, 'flag', flag, 'word', word, 'folded', folded,
    'day', day::text, 'clock', clock::text, 'local', local::text, 'moment', moment::text, 'uid', uid)::text FROM sample";
const AS_JSON: &str = "SELECT id, to_json(sample)::text FROM sample";

const BIG: &[&str] =
    &["0", "-1", "7", "9007199254740992", "9007199254740993", "9223372036854775807", "-9223372036854775808"];
const NUM: &[&str] =
    &["0", "0.1", "0.10000000000000000001", "1.50", "-1.5", "1e20", "100000000000000000000", "12", "5"];
const RATIO: &[&str] = &["0", "0.1", "-2.5", "1e20", "12"];
const FLAG: &[&str] = &["true", "false"];
const WORD: &[&str] = &[
    "",
    "a",
    "A",
    "b",
    "ab",
    "a%b",
    "a_b",
    r"a\b",
    "Zoë",
    "zoë",
    "ÄÖÜ",
    "äöü",
    "naïve café",
    "日本語",
    "🎉 party",
    "10",
    "9",
    "a, b",
    "(x)",
    "\"q\"",
    "line\nbreak",
    "straße",
    "STRASSE",
    "null",
    "İstanbul",
    "2026",
    "x.y=z",
];
const DAY: &[&str] = &["2026-05-01", "2026-05-02", "2025-12-31", "1999-01-01"];
const CLOCK: &[&str] = &["15:00", "15:00:00.5", "00:00", "23:59:59.999999"];
const LOCAL: &[&str] = &["2026-05-01 12:00:00", "2026-05-01T12:00:00.123456", "2026-05-01", "1999-12-31 23:59:59"];
const MOMENT: &[&str] = &[
    "2026-05-01 12:00:00+00",
    "2026-05-01T14:00:00+02:00",
    "2026-05-01T12:00:00.000001Z",
    "2026-04-30 23:30:00-05:30",
];
const UID: &[&str] = &[
    "0199e1f0-0000-7000-8000-00000000000a",
    "0199E1F0-0000-7000-8000-00000000000A",
    "ffffffff-0000-0000-0000-000000000000",
];
const COLUMNS: &[(&str, &str, &[&str])] = &[
    ("big", "bigint", BIG),
    ("num", "numeric", NUM),
    ("ratio", "double precision", RATIO),
    ("flag", "boolean", FLAG),
    ("word", "text", WORD),
    ("day", "date", DAY),
    ("clock", "time", CLOCK),
    ("local", "timestamp", LOCAL),
    ("moment", "timestamptz", MOMENT),
    ("uid", "uuid", UID),
];
const ORDER: &[(&str, &str)] = &[
    ("eq", "="),
    ("neq", "<>"),
    ("lt", "<"),
    ("lte", "<="),
    ("gt", ">"),
    ("gte", ">="),
    ("isdistinct", "IS DISTINCT FROM"),
];
const LIKES: &[&str] =
    &["%", "a%", "%b", "_", "%ë", r"a\%b", r"a\_b", r"a\\b", "%ï%é", "z__", "Ä%", "%i%", "%SS%", "", "%\n%", "%本%"];
const MATCHES: &[&str] = &["^a", "b$", "a.b", "^[0-9]+$", "ë", "^$", "[äöü]+", "(a|z)o", "e.b", "x\\.y", "^.{3}$", "Z"];

const LETTERS: &[char] =
    &['a', 'b', 'z', 'S', 'ß', 'ë', 'Ä', 'ï', 'i', 'é', '本', '🎉', ' ', '%', '_', '\\', '\'', '"', ',', '(', '.'];

/// xorshift: enough to mix values.
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % count as u64).expect("below a usize")
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    /// A value of a column: one that is asked for, or for one in three any other.
    fn value(&mut self, name: &str, values: &[&str]) -> String {
        let other = self.below(3) == 0;
        match name {
            "big" if other => (self.0 as i64).to_string(),
            "num" | "ratio" if other => format!("-{}.{}", self.below(30), self.below(1_000)),
            "word" if other => (0..self.below(9)).map(|_| LETTERS[self.below(LETTERS.len())]).collect(),
            "day" if other => {
                format!("20{:02}-{:02}-{:02}", self.below(90) + 10, self.below(12) + 1, self.below(28) + 1)
            }
            _ => self.pick(values).to_owned(),
        }
    }
}

fn sql(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

fn insertion(random: &mut Random) -> String {
    let mut text = "INSERT INTO sample VALUES ".to_owned();
    for id in 0..ROWS {
        let word = random.value("word", WORD);
        let _ = write!(text, "{}({id}", if id == 0 { "" } else { "," });
        for (name, kind, values) in COLUMNS {
            let value = if *name == "word" { word.clone() } else { random.value(name, values) };
            let value = if random.below(10) == 0 { "NULL".to_owned() } else { format!("{}::{kind}", sql(&value)) };
            let again = if *name == "word" { format!(", {value}") } else { String::new() };
            let _ = write!(text, ", {value}{again}");
        }
        text.push(')');
    }
    text
}

/// Filters, each with the same question in SQL.
fn questions() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, kind, values) in COLUMNS {
        for value in *values {
            let literal = format!("{}::{kind}", sql(value));
            all.extend(ORDER.iter().map(|(operator, sign)| {
                (format!("{name}={operator}.{}", quoted(value)), format!("{name} {sign} {literal}"))
            }));
        }
        for some in values.chunks(2).chain([*values]) {
            let literals = some.iter().map(|value| format!("{}::{kind}", sql(value))).collect::<Vec<_>>().join(", ");
            let listed = some.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", ");
            all.push((format!("{name}=in.({listed})"), format!("{name} IN ({literals})")));
        }
        all.push((format!("{name}=is.null"), format!("{name} IS NULL")));
    }
    all.extend(["true", "false", "unknown"].map(|truth| (format!("flag=is.{truth}"), format!("flag IS {truth}"))));
    for (patterns, operators) in
        [(LIKES, [("like", "LIKE"), ("ilike", "ILIKE")]), (MATCHES, [("match", "~"), ("imatch", "~*")])]
    {
        for (pattern, (operator, sign)) in
            patterns.iter().flat_map(|pattern| operators.map(|operator| (pattern, operator)))
        {
            all.push((format!("folded={operator}.{}", quoted(pattern)), format!("folded {sign} {}", sql(pattern))));
        }
    }
    all
}

/// Two of them at once.
fn pairs(random: &mut Random, all: &[(String, String)]) -> Vec<(String, String)> {
    let mut pair = || (&all[random.below(all.len())], &all[random.below(all.len())]);
    let both = |(one, other): (&(String, String), &(String, String))| {
        (format!("{},{}", negated(&one.0), other.0), format!("NOT ({}) AND ({})", one.1, other.1))
    };
    (0..PAIRS).map(|_| both(pair())).collect()
}

fn negated(filter: &str) -> String {
    filter.replacen('=', "=not.", 1)
}

async fn rows(connection: &mut PgConnection, query: &'static str) -> Vec<(i32, Row)> {
    let rows = sqlx::query(query).fetch_all(connection).await.expect("all rows");
    let parse = |json: String| Row::parse(json.as_bytes());
    rows.iter().map(|row| (row.get(0), parse(row.get(1)))).collect()
}

async fn answer(connection: &mut PgConnection, condition: &str) -> BTreeSet<i32> {
    let query = sqlx::AssertSqlSafe(format!("SELECT id FROM sample WHERE {condition}"));
    sqlx::query_scalar(query)
        .fetch_all(connection)
        .await
        .unwrap_or_else(|error| panic!("{condition}: {error}"))
        .into_iter()
        .collect()
}

#[tokio::test]
async fn every_operator_answers_as_postgresql_does() {
    let Some(url) = postgres_url() else { return };
    let seed = seeds(1).start;
    println!("WEDSYNC_TEST_SEED={seed}");
    let mut connection = PgConnection::connect(&url).await.expect("the server is there");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for statement in ["SET TIME ZONE 'UTC'".to_owned(), TABLE.to_owned(), insertion(&mut random)] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.expect("it runs");
    }
    let forms = [rows(&mut connection, AS_TEXT).await, rows(&mut connection, AS_JSON).await];
    let (mut asked, mut matched) = (0, 0);
    let single = questions();
    let both = pairs(&mut random, &single);
    let negative: Vec<_> =
        single.iter().map(|(filter, condition)| (negated(filter), format!("NOT ({condition})"))).collect();
    for (filter, condition) in single.into_iter().chain(negative).chain(both) {
        let expected = answer(&mut connection, &condition).await;
        let parsed = Filter::parse(&filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
        for rows in &forms {
            let ours: BTreeSet<i32> = rows.iter().filter(|(_, row)| parsed.matches(row)).map(|(id, _)| *id).collect();
            let wrong: Vec<_> = ours.symmetric_difference(&expected).take(3).collect();
            assert!(wrong.is_empty(), "{filter} against {condition}: rows {wrong:?}, {:?}", rows[*wrong[0] as usize]);
        }
        (asked, matched) = (asked + 1, matched + expected.len());
    }
    println!("{asked} questions, {matched} matches");
    assert!(asked > 1_000 && matched > asked, "the questions are about something");
}
