//! Random JSON documents, of the kinds that trip signers and parsers up: Unicode, control characters, floats, deep
//! nesting, nothing at all, and much.

use std::hash::{BuildHasher as _, RandomState};

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Number, Value, json};

use crate::harness::variable;

/// `count` documents: some fixed ones, then random ones from a seed that is printed.
pub(crate) fn payloads(count: usize) -> Vec<String> {
    let seed = seed();
    println!("seed {seed}: WEDSYNC_TEST_SEED={seed} gives the same documents");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = document();
    let random = std::iter::from_fn(|| Some(strategy.new_tree(&mut runner).expect("nothing is filtered").current()));
    fixed().into_iter().chain(random).take(count).map(|document| document.to_string()).collect()
}

fn seed() -> u64 {
    let given = variable("WEDSYNC_TEST_SEED").map(|seed| seed.parse().expect("WEDSYNC_TEST_SEED is a number"));
    given.unwrap_or_else(|| RandomState::new().hash_one(()))
}

fn fixed() -> Vec<Value> {
    let nested = (0..30).fold(json!({}), |inside, level| json!({ format!("level {level}"): [inside] }));
    let text = "größer 漢字 🎉👩\u{200d}👩\u{200d}👧 \u{0} \u{7f} \u{2028} \u{feff} <script> \\ \" \r\n";
    vec![
        json!({}),
        json!({ "": "" }),
        json!({ "text": text }),
        json!({ "numbers": [0, -1, u64::MAX, i64::MIN, 0.1, -0.0, 1e300, 5e-324, f64::MAX] }),
        nested,
        json!({ "large": text.repeat(3_000) }),
        json!({ "many": vec![json!({ "id": 1.5, "none": null }); 5_000] }),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    prop::collection::hash_map(any::<String>(), value(), 0..6).prop_map(|members| members.into_iter().collect())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| Number::from_f64(number).map_or(Value::Null, Value::Number)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inside| {
        prop_oneof![
            prop::collection::vec(inside.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inside, 0..6).prop_map(|members| members.into_iter().collect()),
        ]
    })
}
