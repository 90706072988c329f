//! What bounds imports: turns, spools, and what nobody can work at.

use super::{
    super::{Phase, work::Step},
    *,
};

async fn spooled(world: &World) -> i64 {
    world.count("SELECT (SELECT COUNT(*) FROM import_items) + (SELECT COUNT(*) FROM import_chunks)").await
}

#[tokio::test]
async fn a_turn_ends_after_its_pages_and_the_next_goes_on_there() {
    in_each_world(async |world| {
        let file = table(2_100, |row| row);
        let import = world.upload(world.order(Origin::Csv, RecordKind::Client), file.as_bytes()).await;
        let mut turns = 1;
        loop {
            let mut import = world.get(&import).await;
            if world.worker.work(&mut import, &mut Pages(2)).await.expect("it works") == Step::Ended {
                break;
            }
            assert_eq!(world.get(&import).await.counts.seen, 1_000 * turns, "two pages a turn");
            turns += 1;
        }
        let done = world.get(&import).await;
        assert_eq!((turns, done.state, done.counts.created), (3, State::Done, 2_100), "{}", done.reason);
    })
    .await;
}

#[tokio::test]
async fn every_import_that_runs_is_found_however_many_do() {
    in_each_world(async |world| {
        for number in 0..1_001 {
            let mut order = world.order(Origin::Vendor, RecordKind::Client);
            order.integration_id = number.to_string();
            world.worker.imports.begin(order).await.expect("it begins");
        }
        let running = world.worker.imports.running().await.expect("a look");
        assert!(running.len() == 1_001 && running.is_sorted_by_key(|(_, id)| id));
    })
    .await;
}

#[tokio::test]
async fn an_import_that_cannot_be_read_rests() {
    in_each_world(async |world| {
        let import = world.upload(world.order(Origin::Csv, RecordKind::Client), table(1, |row| row).as_bytes()).await;
        world.age("UPDATE imports SET examples = refusals").await;
        let came = world.worker.attend(&import.order.organization, &import.id).await;
        assert!(matches!(&came, Came::Waits(error) if !error.is_retryable()), "{came:?}");
    })
    .await;
}

#[tokio::test]
async fn what_can_never_go_on_keeps_nothing_and_cannot_be_resumed() {
    in_each_world(async |world| {
        let imports = &world.worker.imports;
        let order = || world.order(Origin::Csv, RecordKind::Client);
        // Broken off.
        let import = imports.begin(order()).await.expect("it begins");
        let mut upload = Upload::new(imports.clone(), import);
        upload.push(&vec![b'x'; 600_000]).await.expect("it is taken in");
        assert_eq!(spooled(&world).await, 2);
        upload.fail(&Error::invalid("content", "was cut off")).await;
        imports.forget_spools().await.expect("it is forgotten");
        assert_eq!(spooled(&world).await, 0);
        // Of what nobody understands.
        let import = world.import("shoe,size\n1,2\n").await;
        assert_eq!((import.state, spooled(&world).await), (State::Failed, 0));
        let refused = imports.resume(&import.order.organization, &import.id).await.expect_err("it is as it was");
        assert!(refused.to_string().contains("start it again"), "{refused}");
        // Followed by another one.
        let mut import = world.upload(order(), table(1, |row| row).as_bytes()).await;
        world.worker.end(&mut import, State::Failed).await.expect("it ends");
        imports.forget_spools().await.expect("nothing is over");
        assert_eq!(spooled(&world).await, 1, "it can be resumed");
        world.import(&table(1, |row| row)).await;
        assert_eq!(spooled(&world).await, 0);
        let refused = imports.resume(&import.order.organization, &import.id).await.expect_err("another one came");
        assert!(refused.to_string().contains("start it again"), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn what_an_organizations_imports_hold_together_is_bounded() {
    in_each_world(async |world| {
        let imports = &world.worker.imports;
        let import = imports.begin(world.order(Origin::Csv, RecordKind::Client)).await.expect("it begins");
        let mut other = world.order(Origin::Vendor, RecordKind::Client);
        other.integration_id = "another".to_owned();
        let failed = imports.begin(other).await.expect("it begins");
        world.age("UPDATE imports SET spooled = 4294967296 WHERE integration_id = 'another'").await;
        let mut upload = Upload::new(imports.clone(), import.clone());
        let refused = upload.push(&vec![b'x'; 300_000]).await.expect_err("it is too much");
        assert!(matches!(refused, Error::Exhausted { .. }), "{refused}");
        assert_eq!(spooled(&world).await, 0);
        // One list alone has less.
        let mut tx = world.store.begin().await.expect("begun");
        let refused = imports.spooled_in(&mut tx, &failed, 1).await.expect_err("it is too long");
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
        drop(tx);
        imports.cancel(&failed.order.organization, &failed.id).await.expect("it is open");
        imports.forget_spools().await.expect("it is forgotten");
        upload.push(&vec![b'x'; 300_000]).await.expect("there is room");
    })
    .await;
}

#[tokio::test]
async fn what_is_cancelled_keeps_what_was_committed_meanwhile_and_says_so() {
    in_each_world(async |world| {
        let import = world.upload(world.order(Origin::Csv, RecordKind::Client), table(1, |row| row).as_bytes()).await;
        let (organization, imports) = (&import.order.organization, &world.worker.imports);
        let cancelled = imports.cancel(organization, &import.id).await.expect("it runs");
        assert!(cancelled.state == State::Cancelled && cancelled.finished_at.is_some());
        let again = imports.cancel(organization, &import.id).await.expect_err("it is");
        assert!(again.to_string().contains("is cancelled already"), "{again}");
        // Whoever works at it lets it go, and nothing is written back over its end.
        let mut stale = import.clone();
        stale.enter(Phase::Applying);
        assert!(matches!(imports.save(State::Running, &stale).await, Err(Error::Aborted(_))));
        let came = world.worker.attend(organization, &import.id).await;
        assert!(matches!(came, Came::Ended), "{came:?}");
    })
    .await;
}

#[tokio::test]
async fn only_another_open_import_is_called_one() {
    in_each_world(async |world| {
        let mut failed =
            world.upload(world.order(Origin::Csv, RecordKind::Client), table(1, |row| row).as_bytes()).await;
        world.worker.end(&mut failed, State::Failed).await.expect("it ends");
        let (organization, imports) = (&failed.order.organization, &world.worker.imports);
        // The store refuses the row for a reason of its own.
        world.age("DROP INDEX imports_open").await;
        world.age("CREATE UNIQUE INDEX imports_open ON imports (state)").await;
        let mut other = world.order(Origin::Vendor, RecordKind::Client);
        other.integration_id = "another".to_owned();
        imports.begin(other).await.expect("it begins");
        let refused = imports.resume(organization, &failed.id).await.expect_err("the store refuses it");
        assert!(matches!(refused, Error::Internal(_)), "{refused}");
    })
    .await;
}
