use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::record::{RecordKey, RecordKind};

fn blank() -> Record {
    let organization = chassis::id::OrganizationId::parse("acme").expect("well-formed");
    Record::new(RecordKey::new(organization, RecordKind::Wedding, "w1").expect("well-formed"))
}

fn second(at: i64) -> Timestamp {
    Timestamp::from_second(1_000 + at).expect("in range")
}

fn rules() -> Rules {
    Rules::at(second(100))
}

fn source(name: &str) -> Source {
    Source(name.to_owned())
}

fn says(name: &str, at: i64, value: Value) -> Update {
    Update::new(source(name), second(at), BTreeMap::from([("guest_count".to_owned(), value)]))
}

fn apply(record: &Record, updates: &[Update], rules: &Rules) -> Record {
    updates.iter().fold(record.clone(), |record, update| merge(&record, update, rules).expect("within limits").record)
}

fn standing(record: &Record) -> Value {
    record.fields.get("guest_count").map_or(Value::Null, |field| field.value.clone())
}

/// Source, value and reason of each.
fn lost(record: &Record, rules: &Rules) -> Vec<(String, Value, Reason)> {
    let all = losing(record, rules).into_iter();
    all.map(|conflict| (conflict.losing.source.0, conflict.losing.value, conflict.reason)).collect()
}

#[test]
fn the_later_word_stands_whichever_comes_first_and_the_other_is_kept() {
    let (early, late) = (says("a", 1, json!(100)), says("b", 2, json!(120)));
    for updates in [[early.clone(), late.clone()], [late, early]] {
        let record = apply(&blank(), &updates, &rules());
        assert_eq!(standing(&record), json!(120));
        assert_eq!(lost(&record, &rules()), [("a".to_owned(), json!(100), Reason::Older)]);
    }
}

#[test]
fn at_one_time_wedsync_comes_after_vendors_and_among_vendors_the_value_decides() {
    let both = [says("wedsync", 1, json!(1)), says("a", 1, json!(2))];
    assert_eq!(standing(&apply(&blank(), &both, &rules())), json!(1));
    let vendors = [says("b", 1, json!(1)), says("a", 1, json!(2))];
    let record = apply(&blank(), &vendors, &rules());
    assert_eq!((standing(&record), lost(&record, &rules())[0].2), (json!(2), Reason::Tie));
}

#[test]
fn who_replaced_a_value_knowingly_has_no_conflict_with_it() {
    let knowing =
        Update { base: BTreeMap::from([("guest_count".to_owned(), json!("100"))]), ..says("b", 2, json!(120)) };
    let record = apply(&blank(), &[says("a", 1, json!(100)), knowing], &rules());
    assert_eq!((standing(&record), lost(&record, &rules())), (json!(120), vec![]));
}

#[test]
fn what_a_source_shows_unchanged_is_no_word_of_its() {
    let stale = Update { base: BTreeMap::from([("guest_count".to_owned(), json!(100))]), ..says("b", 9, json!("100")) };
    let record = apply(&blank(), &[says("a", 1, json!(130)), stale], &rules());
    assert_eq!((standing(&record), record.others.len()), (json!(130), 0));
}

#[test]
fn a_linked_system_clears_what_it_had_and_nothing_else() {
    let blank_there = says("b", 9, json!(" "));
    let record = apply(&blank(), &[says("wedsync", 1, json!(130)), blank_there.clone()], &rules());
    assert_eq!(standing(&record), json!(130));
    let had = Update { base: BTreeMap::from([("guest_count".to_owned(), json!(130))]), ..blank_there };
    assert_eq!(standing(&apply(&record, &[had], &rules())), Value::Null);
    let own = says("wedsync", 10, Value::Null);
    assert_eq!(standing(&apply(&record, &[own], &rules())), Value::Null);
}

#[test]
fn a_pinned_field_takes_its_sources_words_and_a_persons_alone() {
    let pins = BTreeMap::from([("guest_count".to_owned(), source("wedsync"))]);
    let pinned = Rules { pins, ..rules() };
    let record = apply(&blank(), &[says("wedsync", 1, json!(100)), says("a", 5, json!(140))], &pinned);
    assert_eq!(standing(&record), json!(100));
    assert_eq!(lost(&record, &pinned), [("a".to_owned(), json!(140), Reason::Pinned)]);
    let decided = apply(&record, &[says("person", 6, json!(140))], &pinned);
    assert_eq!((standing(&decided), lost(&decided, &pinned)), (json!(140), vec![]));
    let held = apply(&blank(), &[says("b", 1, json!(90))], &rules());
    let held = apply(&held, &[says("b", 2, json!(95)), says("a", 3, json!(99))], &pinned);
    assert_eq!(standing(&held), json!(90), "its source hasn't spoken yet");
    assert_eq!(standing(&apply(&held, &[says("c", 0, json!(1))], &rules())), json!(99), "no longer pinned");
}

#[test]
fn a_clock_that_is_far_ahead_counts_as_now() {
    let ahead = says("a", 100_000, json!(1));
    let record = apply(&blank(), &[ahead, says("b", 101, json!(2))], &rules());
    assert_eq!((standing(&record), record.others["guest_count"][0].at), (json!(2), second(100)));
    let within = says("a", 100 + 299, json!(3));
    assert_eq!(standing(&apply(&record, &[within], &rules())), json!(3));
}

#[test]
fn a_deletion_of_what_nobody_edited_since_just_deletes() {
    let record = apply(&blank(), &[says("a", 1, json!(1)), Update::deletion(source("b"), second(2))], &rules());
    assert_eq!(record.deleted, Some((second(2), source("b"))));
    assert_eq!(losing(&record, &rules()), []);
}

#[test]
fn an_edit_that_the_deletion_didnt_know_of_asks_and_the_record_stays() {
    let unseen = Update { seen: Some(second(1)), ..Update::deletion(source("b"), second(9)) };
    for updates in [
        [says("a", 3, json!(1)), Update::deletion(source("b"), second(2))],
        [Update::deletion(source("b"), second(2)), says("a", 3, json!(1))],
        [says("a", 3, json!(1)), unseen],
    ] {
        let record = apply(&blank(), &updates, &rules());
        assert_eq!(record.deleted, None);
        let asked = losing(&record, &rules());
        assert_eq!((asked.len(), asked[0].field.as_str(), asked[0].reason), (1, "", Reason::DeletedAndEdited));
        let kept = Update { kept: true, ..Update::new(source("person"), second(10), BTreeMap::new()) };
        let kept = apply(&record, &[kept], &rules());
        assert_eq!((kept.deleted.clone(), losing(&kept, &rules())), (None, vec![]));
        let deleted = apply(&record, &[Update::deletion(source("person"), second(10))], &rules());
        assert_eq!((deleted.deleted.is_some(), losing(&deleted, &rules())), (true, vec![]));
    }
}

#[test]
fn a_conflict_is_told_once_and_a_change_once() {
    let (early, late) = (says("a", 1, json!(100)), says("b", 2, json!(120)));
    let first = merge(&blank(), &late, &rules()).expect("merged");
    assert_eq!(first.changes, [Change { field: "guest_count".to_owned(), old: Value::Null, new: json!(120) }]);
    let second = merge(&first.record, &early, &rules()).expect("merged");
    assert_eq!((second.changes.len(), second.conflicts.len()), (0, 1));
    let again = merge(&second.record, &early, &rules()).expect("merged");
    assert_eq!((again.record == second.record, again.conflicts.len()), (true, 0));
}

#[test]
fn limits_are_refused_with_the_field_that_breaks_them() {
    let of = |name: &str, value: Value| Update::new(source("a"), second(1), BTreeMap::from([(name.to_owned(), value)]));
    let many = (0..129).map(|n| (format!("f{n}"), json!(1))).collect();
    for (update, reason) in [
        (of("Guest Count", json!(1)), "fields: Guest Count: a field's name must match [a-z0-9_]{1,64}"),
        (of("venue_notes", json!("x".repeat(70_000))), "fields: must be at most 64 KiB together"),
        (Update::new(source("a"), second(1), many), "fields: must be at most 128"),
    ] {
        assert_eq!(merge(&blank(), &update, &rules()).expect_err("refused").to_string(), reason);
    }
    let big = |name: &str| of(name, json!("x".repeat(40_000)));
    let record = apply(&blank(), &[big("a")], &rules());
    assert!(merge(&record, &big("b"), &rules()).is_err(), "together they are too many bytes");
}

#[test]
fn a_field_remembers_the_newest_sources_alone() {
    let updates: Vec<_> = (0..12).map(|n| says(&format!("s{n}"), n, json!(n))).collect();
    let record = apply(&blank(), &updates, &rules());
    let sources: Vec<_> = record.others["guest_count"].iter().map(|field| field.source.as_str()).collect();
    assert_eq!(sources, ["s10", "s9", "s8", "s7", "s6", "s5", "s4", "s3"]);
}

fn any_source() -> impl Strategy<Value = Source> {
    prop::sample::select(vec!["wedsync", "person", "a", "b", "c"]).prop_map(source)
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), (0..3).prop_map(|n| json!(n)), Just(json!("1"))]
}

fn any_fields() -> impl Strategy<Value = BTreeMap<String, Value>> {
    prop::collection::btree_map("guest_count|note", any_value(), 0..3)
}

prop_compose! {
    fn any_update()(
        source in any_source(), at in 0..8_i64, fields in any_fields(), base in any_fields(), late in 0..8_i64,
        has_base in any::<bool>(), deleted in prop::bool::weighted(0.2), seen in prop::option::of(0..8_i64),
        kept in prop::bool::weighted(0.1),
    ) -> Update {
        let times = BTreeMap::from([("note".to_owned(), second(late))]);
        let base = if has_base { base } else { BTreeMap::new() };
        let kept = kept && source.is_person();
        Update { times, base, deleted, seen: seen.map(second), kept, ..Update::new(source, second(at), fields) }
    }
}

fn many_and_shuffled() -> impl Strategy<Value = (Vec<Update>, Vec<Update>)> {
    let updates = prop::collection::vec(any_update(), 0..14);
    updates.prop_flat_map(|updates| (Just(updates.clone()), Just(updates).prop_shuffle()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_order_of_the_same_updates_gives_the_same_record_and_the_same_losing_values(
        before in prop::collection::vec(any_update(), 0..4),
        (updates, shuffled) in many_and_shuffled(),
        pins in prop::collection::btree_map("guest_count|note", any_source(), 0..2),
    ) {
        let start = apply(&blank(), &before, &rules());
        let rules = Rules { pins, ..rules() };
        let (one, other) = (apply(&start, &updates, &rules), apply(&start, &shuffled, &rules));
        prop_assert_eq!(losing(&one, &rules), losing(&other, &rules));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn the_same_update_again_changes_nothing(updates in prop::collection::vec(any_update(), 1..8), again in 0..8_usize) {
        let record = apply(&blank(), &updates, &rules());
        let repeated = merge(&record, &updates[again % updates.len()], &rules()).expect("merged");
        prop_assert_eq!(&repeated.record, &record);
        prop_assert!(repeated.changes.is_empty() && repeated.conflicts.is_empty());
    }
}
