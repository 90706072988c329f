//! The index against asking everybody, and how many it asks.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::realtime::{claims::Claims, claims::Role};

fn row(json: &str) -> Row {
    Row::parse(json.as_bytes())
}

fn claims(role: Role, id: &str) -> Claims {
    Claims {
        organization: chassis::id::OrganizationId::parse("org").expect("an id"),
        role,
        suppliers: vec![id.to_owned()],
        couple: Some(id.to_owned()),
        weddings: vec!["w1".to_owned()],
        expires: jiff::Timestamp::MAX,
        subject: String::new(),
    }
}

fn binding(filter: &str, predicate: &Arc<Predicate>) -> Binding {
    Binding {
        event: BindingEvent::All,
        schema: "public".to_owned(),
        table: Some("orders".to_owned()),
        filter: Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}")),
        predicate: Arc::clone(predicate),
    }
}

fn update<'a>(old: &'a Row, new: &'a Row) -> RowChange<'a> {
    RowChange { schema: "public", table: "orders", operation: Operation::Update, old: Some(old), new: Some(new) }
}

fn found<T: Copy + Eq + Hash + Ord>(index: &Index<T>, change: &RowChange<'_>) -> BTreeMap<T, Fit> {
    let mut all = BTreeMap::new();
    index.find(change, |handle, fit| assert!(all.insert(handle, fit).is_none(), "each once"));
    all
}

#[test]
fn a_row_that_leaves_the_filter_or_its_owner_is_told() {
    let mut index = Index::default();
    index.insert(&binding("status=eq.open", &Arc::new(Predicate::All)), "open");
    for supplier in ["s1", "s2"] {
        index.insert(&binding("", &Arc::new(claims(Role::Supplier, supplier).predicate())), supplier);
    }
    let old = row(r#"{"status":"open","supplier_id":"s1"}"#);
    let new = row(r#"{"status":"done","supplier_id":"s2"}"#);
    let expected = BTreeMap::from([("open", Fit::Left), ("s1", Fit::Left), ("s2", Fit::Matches)]);
    assert_eq!(found(&index, &update(&old, &new)), expected);
    let deleted = RowChange { operation: Operation::Delete, old: Some(&old), new: None, ..update(&old, &new) };
    assert_eq!(found(&index, &deleted), BTreeMap::from([("open", Fit::Matches), ("s1", Fit::Matches)]));
}

#[test]
fn what_was_taken_out_leaves_nothing_behind() {
    let mut index = Index::default();
    let all = Arc::new(Predicate::All);
    let bindings = ["a=eq.1", "a=in.(1,2)", "a=gt.1", "a=lte.5", "a=neq.1", ""].map(|filter| binding(filter, &all));
    for (number, binding) in bindings.iter().enumerate() {
        index.insert(binding, number);
        index.insert(binding, number + 100);
    }
    for (number, binding) in bindings.iter().enumerate() {
        index.remove(binding, number);
        index.remove(binding, number);
    }
    assert_eq!(found(&index, &update(&row(r#"{"a":1}"#), &row(r#"{"a":1}"#))).len(), 4);
    bindings.iter().enumerate().for_each(|(number, binding)| index.remove(binding, number + 100));
    assert!(index.schemas.is_empty() && index.by_binding.is_empty() && index.slots.iter().all(Option::is_none));
}

#[test]
fn a_binding_is_found_by_what_the_fewest_share() {
    let mut index = Index::default();
    let all = Arc::new(Predicate::All);
    for number in 0..1_000 {
        index.insert(&binding(&format!("status=eq.open,id=eq.{number},at=gt.5"), &all), number);
    }
    let row = row(r#"{"status":"open","id":7,"at":9}"#);
    assert!(index.candidates(&update(&row, &row)).len() <= 2, "the first one may be found by its status");
    assert_eq!(found(&index, &update(&row, &row)).into_keys().collect::<Vec<_>>(), [7]);
}

#[test]
fn a_supplier_without_a_filter_costs_the_others_nothing() {
    let mut index = Index::default();
    for number in 0..1_000 {
        index.insert(&binding("", &Arc::new(claims(Role::Supplier, &format!("s{number}")).predicate())), number);
    }
    index.insert(&binding("", &Arc::new(claims(Role::Guest, "s7").predicate())), 1_000);
    let row = row(r#"{"id":7,"supplier_id":"s7"}"#);
    assert_eq!(index.candidates(&update(&row, &row)).len(), 1);
}

/// However many there are, one is asked.
#[test]
fn a_change_costs_the_same_among_many_subscriptions_as_among_few() {
    let row = row(r#"{"id":7,"supplier_id":"s5","status":"open","name":"Ada","at":"2026-05-01T12:00:00+00:00"}"#);
    let all = Arc::new(Predicate::All);
    for count in [10_u32, 1_000, 100_000] {
        let mut index = Index::default();
        (0..count).for_each(|number| index.insert(&binding(&format!("supplier_id=eq.s{number}"), &all), number));
        assert_eq!(index.candidates(&update(&row, &row)).len(), 1, "of {count}");
        let mut hits = 0;
        index.find(&update(&row, &row), |_, _| hits += 1);
        assert_eq!(hits, 1, "of {count}");
    }
}

fn filters() -> impl Strategy<Value = String> {
    let value = prop::sample::select(vec![
        "0",
        "1",
        "2",
        "2.0",
        "a",
        "b",
        "s1",
        "2026-05-01",
        "2026-05-02T00:00:00",
        "true",
        "t",
    ]);
    let values = prop::collection::vec(value.clone(), 1..4).prop_map(|all| format!("in.({})", all.join(",")));
    let operator = prop::sample::select(vec!["eq", "neq", "lt", "lte", "gt", "gte", "isdistinct", "not.eq", "not.gt"]);
    let one = (operator, value).prop_map(|(operator, value)| format!("{operator}.{value}"));
    let test = prop_oneof![4 => one, 2 => values, 1 => Just("is.null".to_owned()), 1 => Just("like.%a%".to_owned())];
    let clause = (prop::sample::select(vec!["x", "y", "supplier_id"]), test)
        .prop_map(|(column, test)| format!("{column}={test}"));
    prop::collection::vec(clause, 0..4).prop_map(|clauses| clauses.join(","))
}

fn rows() -> impl Strategy<Value = Row> {
    let value = prop::sample::select(vec![
        "null",
        "0",
        "1",
        "2",
        r#""a""#,
        r#""b""#,
        r#""s1""#,
        r#""2026-05-01""#,
        r#""2026-05-02T00:00:00""#,
        "true",
        r#"["s1","a"]"#,
        "{}",
    ]);
    let column = prop::sample::select(vec!["x", "y", "supplier_id", "couple_id", "wedding_id", "vendor_ids", "id"]);
    prop::collection::hash_map(column, value, 0..6).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        row(&format!("{{{}}}", members.join(",")))
    })
}

fn bindings() -> impl Strategy<Value = Binding> {
    let event =
        prop::sample::select(vec![BindingEvent::All, BindingEvent::Insert, BindingEvent::Update, BindingEvent::Delete]);
    let role = prop::sample::select(vec![Role::Admin, Role::Supplier, Role::Couple, Role::Guest]);
    let table = prop::sample::select(vec![None, Some("orders"), Some("suppliers"), Some("weddings")]);
    let id = prop::sample::select(vec!["s1", "1", "a"]);
    let schema = prop::sample::select(vec!["public", "*", "other"]);
    (event, role, id, table, schema, filters()).prop_map(|(event, role, id, table, schema, filter)| Binding {
        event,
        schema: schema.to_owned(),
        table: table.map(str::to_owned),
        predicate: Arc::new(claims(role, id).predicate()),
        ..binding(&filter, &Arc::new(Predicate::All))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_index_finds_whom_asking_everybody_finds(
        bindings in prop::collection::vec(bindings(), 0..40),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        old in prop::option::of(rows()),
        new in prop::option::of(rows()),
        table in prop::sample::select(vec!["orders", "suppliers", "weddings"]),
        operation in prop::sample::select(vec![Operation::Insert, Operation::Update, Operation::Delete]),
    ) {
        let mut index = Index::default();
        let mut kept: BTreeMap<usize, &Binding> = bindings.iter().enumerate().collect();
        kept.iter().for_each(|(number, binding)| index.insert(binding, *number));
        for number in removed.iter().filter(|_| !bindings.is_empty()).map(|at| at.index(bindings.len())) {
            index.remove(&bindings[number], number);
            kept.remove(&number);
        }
        let change = RowChange { schema: "public", table, operation, old: old.as_ref(), new: new.as_ref() };
        let is_for = |binding: &Binding| {
            ["public", "*"].contains(&&*binding.schema) && binding.table.as_deref().is_none_or(|wanted| wanted == table)
        };
        let asked = kept.into_iter().filter(|(_, binding)| is_for(binding));
        let expected: BTreeMap<_, _> = asked.filter_map(|(number, binding)| Some((number, binding.fit(&change)?))).collect();
        prop_assert_eq!(found(&index, &change), expected);
    }
}
