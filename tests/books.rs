//! The books that `endure` keeps can be wrong: a change that is missing, altered, told twice or out of its order is seen.

use proto::common::v1::Position;
use serde_json::{Value, json};

use crate::endure::{
    change::{Change, Kind},
    heard::{Heard, Outcome},
};

const ORGANIZATION: &str = "acme";

fn change(kind: Kind, id: i64, version: i32) -> Change {
    Change { kind, id, version }
}

/// Three changes of one row.
fn committed() -> [Change; 3] {
    [change(Kind::Insert, 1, 1), change(Kind::Update, 1, 2), change(Kind::Delete, 1, 2)]
}

fn tell(heard: &Heard, sequence: u64, change: Change, spoil: impl FnOnce(&mut Value)) {
    let (kind, old, new) = match change.kind {
        Kind::Insert => ("INSERT", Value::Null, change.row(change.version, ORGANIZATION)),
        Kind::Update => {
            ("UPDATE", change.row(change.version - 1, ORGANIZATION), change.row(change.version, ORGANIZATION))
        }
        Kind::Delete => ("DELETE", change.row(change.version, ORGANIZATION), Value::Null),
    };
    let mut records = json!([old, new]);
    spoil(&mut records);
    heard.takes(Position { log_id: "log".to_owned(), sequence }, kind, &records[0], &records[1]);
}

/// What one is told at these positions, held against what was committed.
fn held(told: &[(u64, usize)], spoiled: Option<&str>) -> Outcome {
    let heard = Heard::new("one", ORGANIZATION);
    for (sequence, which) in told {
        tell(&heard, *sequence, committed()[*which], |records| {
            if let (Some(name), 1) = (spoiled, which) {
                records[1][name] = "something else".into();
            }
        });
    }
    heard.held_against(0, &committed())
}

#[test]
fn each_change_once_and_in_order_is_good_and_a_repeat_at_its_position_too() {
    let outcome = held(&[(1, 0), (2, 1), (2, 1), (5, 2)], None);
    assert!(outcome.is_good() && outcome.repeated == 1, "{outcome:?}");
}

#[test]
fn whatever_is_wrong_is_counted() {
    assert_eq!(held(&[(1, 0), (2, 2)], None).missed, 1);
    assert_eq!(held(&[(1, 0), (2, 1), (3, 1), (4, 2)], None).doubled, 1);
    assert_eq!(held(&[(1, 1), (2, 0), (3, 2)], None).disordered, 1);
    for column in ["organization_id", "note", "large", "added"] {
        let outcome = held(&[(1, 0), (2, 1), (3, 2)], Some(column));
        assert_eq!((outcome.altered, outcome.missed), (1, 1), "{column}");
    }
    assert_eq!(held(&[(1, 0), (2, 1), (2, 2), (3, 2)], None).altered, 1, "another change at the same position");
    let heard = Heard::new("one", ORGANIZATION);
    tell(&heard, 1, change(Kind::Insert, 9, 1), |_| {});
    assert_eq!(heard.held_against(0, &[]).strange, 1);
}
