//! What our own calls lead to at a vendor, when its webhook, another record or our store comes in between.

use axum::{extract::Request, middleware, response::Response};
use tokio::sync::Semaphore;

use super::*;

/// A shop that does what it is asked at once, and answers once it may.
struct Slow {
    peer: Peer,
    answers: Arc<Semaphore>,
}

impl Slow {
    async fn start() -> Self {
        let answers = Arc::new(Semaphore::new(0));
        let gate = answers.clone();
        let held = middleware::from_fn(move |request: Request, next: middleware::Next| {
            let (gate, is_held) = (gate.clone(), request.method() != "GET");
            async move {
                let answer: Response = next.run(request).await;
                if is_held {
                    gate.acquire().await.expect("it is open").forget();
                }
                answer
            }
        });
        let peer = Peer::behind(|app| app.layer(held)).await;
        Self { peer, answers }
    }

    /// Waits until so much was asked of it.
    async fn asked(&self, count: usize) {
        let asked = async {
            while self.peer.asked().len() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), asked).await.expect("it is asked");
    }
}

async fn told(world: &World) -> usize {
    world.engine.resolver.outbox.look(&acme()).await.0.len()
}

#[tokio::test]
async fn a_webhook_that_is_faster_than_the_answer_to_a_create_makes_no_second_record() {
    in_a_world(async |world: World| {
        let slow = Slow::start().await;
        let integration = world.account(&slow.peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        slow.asked(1).await;
        let job = json!({"id": "job-1", "version": "1", "guests": 90, "date": null});
        let mut said = Box::pin(world.says(&integration, &job));
        assert!(timeout(Duration::from_millis(200), &mut said).await.is_err(), "it may be what is being made");
        slow.answers.add_permits(1);
        assert!(matches!(said.await, Answer::Accepted { .. }));
        world.settled(&integration, 1).await;
        assert_eq!((told(&world).await, world.link(&integration, "w1").await.external_id.as_str()), (0, "job-1"));
    })
    .await;
}

#[tokio::test]
async fn a_webhook_that_is_faster_than_the_answer_to_an_update_undoes_nothing() {
    in_a_world(async |world: World| {
        let slow = Slow::start().await;
        let integration = world.account(&slow.peer, "").await;
        slow.answers.add_permits(1);
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&integration, 1).await;
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        slow.asked(2).await;
        world.handle(changed(3, "w1", guests(95, 100), &[])).await;
        let echo = json!({"id": "job-1", "version": "2", "guests": 95, "date": null});
        assert!(matches!(world.says(&integration, &echo).await, Answer::Accepted { .. }));
        assert_eq!(told(&world).await, 0, "it is our own word");
        slow.answers.add_permits(2);
        world.settled(&integration, 3).await;
        assert_eq!(slow.peer.asked().last().expect("asked").1["guests"], json!(100));
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_refuses_excuses_nothing_that_it_says_later() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&integration, 1).await;
        peer.refuse(Some(422));
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        world.settled(&integration, 2).await;
        world.handle(changed(3, "w1", guests(95, 97), &[])).await;
        world.settled(&integration, 3).await;
        let chosen = json!({"id": "job-1", "version": "4", "guests": 95, "date": null});
        assert!(matches!(world.says(&integration, &chosen).await, Answer::Accepted { .. }));
        assert_eq!(told(&world).await, 1, "somebody there chose it");
    })
    .await;
}

/// A connector that can't find what is there.
fn blind() -> String {
    peer::connector().replace("find = \"find_job\"\n", "").replace("idempotency = \"look_up\"\n", "")
}

#[tokio::test]
async fn two_records_that_are_one_thing_there_are_a_dead_letter_and_no_endless_overwriting() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        assert!(
            Catalogue::new(world.store.clone(), Clock::System).put(&acme(), &blind(), 1).await.is_ok(),
            "it parses"
        );
        let integration = world.account(&peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&integration, 1).await;
        // The next that is made gets the same id.
        peer.shop().jobs.clear();
        world.handle(changed(2, "w2", guests(80, 90), &[])).await;
        let records = world.settled(&integration, 2).await;
        assert_eq!((records[0].state, peer.asked().len()), (Stage::Dead as i64, 2));
        assert_eq!(records[0].reason, "it is refused");
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_made_while_our_store_was_away_is_not_made_twice() {
    in_a_world(async |world: World| {
        let slow = Slow::start().await;
        assert!(
            Catalogue::new(world.store.clone(), Clock::System).put(&acme(), &blind(), 1).await.is_ok(),
            "it parses"
        );
        let integration = world.account(&slow.peer, "").await;
        let rename = async |from: &str, to: &str| {
            let text = format!("ALTER TABLE {from} RENAME TO {to}");
            let renamed = with!(world.store.writer(), c => {
                sqlx::query(sqlx::AssertSqlSafe(text.as_str())).execute(c).await.map(drop)
            });
            renamed.expect("renamed");
        };
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        slow.asked(1).await;
        rename("record_links", "links_away").await;
        slow.answers.add_permits(1);
        // Whether it has tried by now or not, it must go on until they are back.
        drop(timeout(Duration::from_millis(250), std::future::pending::<()>()).await);
        rename("links_away", "record_links").await;
        let records = world.settled(&integration, 1).await;
        assert_eq!((records[0].state, slow.peer.asked().len()), (Stage::Delivered as i64, 1));
        assert_eq!(world.link(&integration, "w1").await.external_id, "job-1");
    })
    .await;
}

#[tokio::test]
async fn what_a_process_that_died_had_made_is_known_by_what_was_written_there() {
    in_a_world(async |world: World| {
        let slow = Slow::start().await;
        assert!(
            Catalogue::new(world.store.clone(), Clock::System).put(&acme(), &blind(), 1).await.is_ok(),
            "it parses"
        );
        let integration = world.account(&slow.peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        slow.asked(1).await;
        // Its answer reaches nobody: the next process knows what the store knows.
        let next = with_keys(&world.store, &world.engine.resolver.keys).await;
        let foreign = json!({"reference": null, "guests": 90, "date": "2026-06-20", "place": "Castle"});
        slow.peer.shop().jobs.insert("job-7".to_owned(), peer::Job { version: 1, body: foreign });
        let account = next.accounts.get(&integration.id).expect("known");
        for changed in [1, 0] {
            let found = next.polls.poll(&account, RecordKind::Wedding).await.expect("it answers");
            assert_eq!((found.items, found.changed), (2, changed), "another's job is new, once");
        }
        assert_eq!((told(&world).await, world.link(&integration, "w1").await.external_id.as_str()), (1, "job-1"));
        let records = next.resolver.records.list(&acme(), RecordKind::Wedding, "", 10).await.expect("listed");
        assert_eq!(records.len(), 2);
        let moved = json!({"id": "job-1", "version": "5", "guests": 95, "date": null});
        assert!(matches!(world.says(&integration, &moved).await, Answer::Accepted { .. }));
    })
    .await;
}

#[tokio::test]
async fn of_two_that_were_made_alike_neither_is_guessed() {
    in_a_world(async |world: World| {
        let slow = Slow::start().await;
        assert!(
            Catalogue::new(world.store.clone(), Clock::System).put(&acme(), &blind(), 1).await.is_ok(),
            "it parses"
        );
        let integration = world.account(&slow.peer, "").await;
        for (number, wedding) in [(1, "w1"), (2, "w2")] {
            world.handle(changed(number, wedding, guests(80, 90), &[])).await;
        }
        slow.asked(2).await;
        let next = with_keys(&world.store, &world.engine.resolver.keys).await;
        let account = next.accounts.get(&integration.id).expect("known");
        let found = next.polls.poll(&account, RecordKind::Wedding).await.expect("it answers");
        assert_eq!((found.items, found.changed), (2, 2), "somebody must say");
    })
    .await;
}
