//! The dispatcher as services meet it: on a real store of each engine, with a courier that does as it is told and a clock
//! that is moved by hand.

mod basics;
mod crash;
mod flow;
mod manage;
mod oracle;
mod order;
mod random;
mod stall;
mod world;

/// Runs one script of a property test.
fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}
