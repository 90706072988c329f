//! What the router's plan of one event costs, and what it costs vendor-sync to find the endpoints for it, at ten, a
//! thousand and a hundred thousand of them. In this process, on one core, without a store.

use std::time::Instant;

use super::{
    figure::{Figure, percentile},
    path::Wanted,
};

const SIZES: [usize; 3] = [10, 1_000, 100_000];
/// Calls that are timed together: one alone is too short for the clock.
const CALLS: usize = 1_000;
const BATCHES: usize = 21;
const MOST_US: f64 = 20.0;

/// Measures without a store; `told` hears of each figure.
pub(crate) fn run(wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    for size in SIZES {
        measure(&format!("plan_{size}"), wanted, told, || router_svc::testing::planner(size));
    }
    for size in SIZES {
        measure(&format!("match_{size}"), wanted, told, || vendor_sync_svc::testing::matcher(size));
    }
}

fn measure<F: FnMut()>(name: &str, wanted: &Wanted, told: &mut impl FnMut(Figure), prepare: impl FnOnce() -> F) {
    if wanted.wants(name) {
        told(Figure::at_most(name, "none", median_us(prepare()), "us", MOST_US));
    }
}

/// What one call takes, in the median of the batches.
fn median_us(mut call: impl FnMut()) -> f64 {
    let mut batch = || {
        let began = Instant::now();
        (0..CALLS).for_each(|_| call());
        began.elapsed().as_secs_f64() * 1e6 / CALLS as f64
    };
    batch(); // Caches fill, branches are learnt.
    let mut taken: Vec<f64> = (0..BATCHES).map(|_| batch()).collect();
    taken.sort_by(f64::total_cmp);
    percentile(&taken, 50.0)
}
