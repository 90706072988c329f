//! Walks over a vendor's list on loopback, on each engine of the store.

use std::collections::BTreeMap;

use chassis::{service::Chassis, testing::on_each_engine, with};

use crate::{
    import::tests::{MIGRATIONS, World},
    reconcile::tests::{Vendor, account},
};

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    on_each_engine(MIGRATIONS, |store| async { test(World::over(store, Chassis::for_test()).await).await }).await;
}

/// Everything is due; one turn.
async fn turn(world: &World) {
    // What is new is put off by up to 30 s, so that not all are asked at once.
    world.engine.polls.schedule().await.expect("the store is there");
    world.age("UPDATE polls SET next_at = 0 WHERE failure <> '' OR since IS NULL").await;
    world.engine.polls.turn().await.expect("the store is there");
}

async fn failure(world: &World) -> String {
    with!(world.store.reader(), c => sqlx::query_scalar("SELECT failure FROM polls").fetch_one(c).await).expect("a row")
}

#[tokio::test]
async fn a_long_list_is_walked_in_several_turns_and_no_page_is_asked_for_twice() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(105).await;
        account(&world, address).await;
        turn(&world).await;
        assert_eq!(vendor.shelf().asked.len(), 50, "others have their turn too");
        turn(&world).await;
        let asked = vendor.shelf().asked.clone();
        assert_eq!(asked, (1..=53).map(|page| (page, 1)).collect::<BTreeMap<_, _>>());
        assert_eq!(world.count("SELECT COUNT(*) FROM records").await, 105);
        turn(&world).await;
        assert_eq!(vendor.shelf().asked.len(), 53, "it has come to its end");
    })
    .await;
}

#[tokio::test]
async fn a_walk_that_breaks_off_goes_on_at_its_page_and_one_whose_place_is_refused_begins_anew() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(7).await;
        account(&world, address).await;
        vendor.shelf().refuses = Some(3);
        turn(&world).await;
        assert!(!failure(&world).await.is_empty());
        vendor.shelf().forbids = Some(4);
        turn(&world).await;
        assert_eq!(vendor.shelf().asked, BTreeMap::from([(1, 1), (2, 1), (3, 2), (4, 1)]));
        assert!(!failure(&world).await.contains("ann@"), "what it says may name people");
        vendor.shelf().forbids = None;
        turn(&world).await;
        assert_eq!(vendor.shelf().asked, BTreeMap::from([(1, 2), (2, 2), (3, 3), (4, 2)]));
        assert_eq!(failure(&world).await, "");
    })
    .await;
}

#[tokio::test]
async fn an_organization_with_many_due_walks_leaves_room_in_each_look() {
    in_each_world(async |world| {
        for number in 0..100_i64 {
            let organization = if number < 99 { "many" } else { "other" };
            with!(world.store.writer(), c => {
                sqlx::query("INSERT INTO polls (integration_id, kind, organization_id, next_at, failure) VALUES ($1, 'client', $2, $3, '')")
                    .bind(number.to_string())
                    .bind(organization)
                    .bind(number)
                    .execute(c)
                    .await
                    .map(drop)
            })
            .expect("a row");
        }
        // Their integrations are gone: a row that is looked at is forgotten.
        world.engine.polls.turn().await.expect("the store is there");
        assert_eq!(world.count("SELECT COUNT(*) FROM polls WHERE organization_id = 'other'").await, 0);
        assert_eq!(world.count("SELECT COUNT(*) FROM polls WHERE organization_id = 'many'").await, 99 - 8);
    })
    .await;
}

#[tokio::test]
async fn walks_of_paused_integrations_leave_room_for_those_of_others() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(1).await;
        let mut last = None;
        for _ in 0..9 {
            last = Some(account(&world, address).await);
        }
        let (accounts, last) = (&world.engine.accounts, last.expect("nine"));
        world.age("UPDATE integrations SET paused = 1 WHERE connector = 'client-book'").await;
        accounts.load().await.expect("they are read again");
        world.age("UPDATE integrations SET paused = 0").await;
        accounts.refresh(&last.organization, &last.id).await.expect("it is read again");
        world.engine.polls.schedule().await.expect("the store is there");
        world.age("UPDATE polls SET next_at = 0").await;
        with!(world.store.writer(), c => {
            sqlx::query("UPDATE polls SET next_at = 1 WHERE integration_id = $1").bind(&last.id).execute(c).await.map(drop)
        })
        .expect("it is the last");
        for _ in 0..2 {
            world.engine.polls.turn().await.expect("the store is there");
        }
        assert_eq!(vendor.shelf().asked, BTreeMap::from([(1, 1)]));
    })
    .await;
}
