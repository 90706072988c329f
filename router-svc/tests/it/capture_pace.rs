//! How fast captured changes come. A measurement, run by hand: `cargo test -p router-svc --test it pace -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use proto::router::v1::{SubscribeRequest, subscribe_response::Message};
use serde_json::Value;
use tokio::time::interval;

use crate::{
    capture::{capturing, change, with_source},
    world::until,
};

const TABLE: &str =
    "CREATE TABLE t (id bigint PRIMARY KEY, org text, name text, at timestamptz DEFAULT now(), n numeric)";
const ROWS: u32 = 20_000;
const LATE: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn pace() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        let began = Instant::now();
        for first in (0..ROWS).step_by(100) {
            database
                .run(&format!(
                    "INSERT INTO t SELECT id, 'a', 'name ' || id, now(), 1.5 FROM generate_series({first}, {}) id",
                    first + 99
                ))
                .await;
        }
        until("all are durable", || async { a.head().await.sequence >= u64::from(ROWS) }).await;
        let took = began.elapsed();
        println!(
            "{}: {ROWS} rows in {took:?}, {:.0}/s",
            world.config.store.url.expose().split(':').next().unwrap(),
            f64::from(ROWS) / took.as_secs_f64()
        );
        let mut changes = a.subscriptions().subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
        let mut tick = interval(Duration::from_millis(5));
        let (mut sent, mut late) = (Vec::new(), Vec::new());
        while late.len() < LATE {
            tokio::select! {
                _ = tick.tick(), if sent.len() < LATE => {
                    let id = ROWS as usize + sent.len();
                    sent.push(Instant::now());
                    database.run(&format!("INSERT INTO t VALUES ({id}, 'a', 'x', now(), 1.5)")).await;
                }
                message = changes.message() => {
                    let Some(Message::Event(event)) = message.unwrap().unwrap().message else { continue };
                    let id = serde_json::from_str::<Value>(&change(&event).2).unwrap()["id"].as_u64().unwrap() as usize;
                    late.push(sent[id - ROWS as usize].elapsed());
                }
            }
        }
        late.sort();
        println!(
            "statement sent -> subscriber: p50 {:?}, p99 {:?}, most {:?}",
            late[LATE / 2],
            late[LATE * 99 / 100],
            late[LATE - 1]
        );
        world
    })
    .await;
}
