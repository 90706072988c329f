//! A thousand updates of fifty records, in orders by chance: one final state.
//!
//! Twice: the merge alone, by the functions that the store calls, in hundreds of orders in every run; and through each
//! store, sealed and read back between any two updates, with its conflict log, in a few orders (`WEDSYNC_TEST_SEEDS` for
//! more). The first shows that no order matters to what stands and what loses, the second that the stores keep just that.

use chassis::testing::seeds;
use proptest::{
    prelude::{Just, Strategy as _},
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::*;
use crate::record::merge::{Conflict, Rules, losing, merge};

const RECORDS: usize = 50;
const UPDATES: usize = 1_000;
/// Orders that are merged in every run.
const ORDERS: u64 = 500;

fn runner(seed: u64) -> TestRunner {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed.to_le_bytes(); 4].concat());
    TestRunner::new_with_rng(Config::default(), rng)
}

/// Updates, each of the record with this number.
fn random_updates(seed: u64) -> Vec<(usize, Update)> {
    let source = proptest::sample::select(vec!["wedsync", "person", "a", "b", "c"]);
    let one = (0..RECORDS, source, 0..30_i64, 0..4_i64, 0..20_u8).prop_map(|(record, source, at, value, kind)| {
        let fields = if kind < 12 { json!({"guest_count": value}) } else { json!({"guest_count": value, "note": at}) };
        (record, Update { deleted: kind == 19, ..says(source, at, &fields) })
    });
    let mut updates = proptest::collection::vec(one, UPDATES - 1).new_tree(&mut runner(seed)).expect("made").current();
    // One deletion that knows of all else holds, whatever chance gives.
    updates.push((0, Update { deleted: true, ..says("person", 30, &json!({})) }));
    updates
}

fn order(seed: u64, updates: &[(usize, Update)]) -> Vec<(usize, Update)> {
    Just(updates.to_vec()).prop_shuffle().new_tree(&mut runner(seed)).expect("shuffled").current()
}

fn wedding(organization: &OrganizationId, number: usize) -> RecordKey {
    RecordKey::new(organization.clone(), RecordKind::Wedding, format!("w{number:02}")).expect("well-formed")
}

fn merged(order: &[(usize, Update)], rules: &Rules) -> Vec<(Record, Vec<Conflict>)> {
    let mut records: Vec<_> = (0..RECORDS).map(|number| Record::new(wedding(&organization("acme"), number))).collect();
    for (number, update) in order {
        records[*number] = merge(&records[*number], update, rules).expect("within limits").record;
    }
    let lost = |record: &Record| losing(record, rules);
    records.into_iter().map(|record| (lost(&record), record)).map(|(lost, record)| (record, lost)).collect()
}

#[test]
fn five_hundred_orders_of_a_thousand_updates_are_merged_into_one_state() {
    let began = seeds(1).start;
    let (updates, rules) = (random_updates(began), Rules::at(noon()));
    let first = merged(&updates, &rules);
    assert!(first.iter().any(|(record, _)| record.deleted.is_some()) && first.iter().any(|(_, lost)| !lost.is_empty()));
    for seed in began..began.saturating_add(ORDERS) {
        assert!(merged(&order(seed, &updates), &rules) == first, "order {seed} of the updates {began} ends elsewhere");
    }
}

/// The records and what lost, without the ids and times that the log gives.
async fn state(world: &World, organization: &OrganizationId) -> (Vec<String>, Vec<String>) {
    let log = world.records.conflicts(organization, &Filter::default(), "", 100_000).await.expect("read");
    let mut log: Vec<_> = log.into_iter().map(|entry| format!("{} {:?}", entry.key.id, entry.conflict)).collect();
    log.sort();
    let mut records = Vec::new();
    for number in 0..RECORDS {
        let record = world.records.get(&wedding(organization, number)).await.expect("read");
        records.push(format!("{:?}", record.map(|r| (r.fields, r.others, r.deletion, r.deleted))));
    }
    (records, log)
}

#[tokio::test]
async fn a_thousand_updates_of_fifty_records_end_in_one_state_in_each_store_whatever_their_order() {
    in_each_world(async |world| {
        let (seeds, mut first) = (seeds(2), None);
        let (began, updates) = (seeds.start, random_updates(seeds.start));
        for seed in seeds {
            let organization = organization(&format!("order-{seed}"));
            world.records.keys.of(&organization).await.expect("a key");
            for part in order(seed, &updates).chunks(100) {
                let mut tx = world.store.begin().await.expect("begun");
                for (number, update) in part {
                    world.records.apply_in(&mut tx, &wedding(&organization, *number), update).await.expect("applied");
                }
                tx.commit().await.expect("committed");
            }
            let state = state(&world, &organization).await;
            assert!(
                *first.get_or_insert_with(|| state.clone()) == state,
                "order {seed} of the updates {began} ends elsewhere"
            );
        }
    })
    .await;
}
