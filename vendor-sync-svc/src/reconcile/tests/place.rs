//! Where a comparison is, and what a list can't say.

use super::*;
use crate::import::work::{Pages, Step};

#[tokio::test]
async fn what_the_vendor_lacks_is_written_once_however_often_the_comparison_goes_on() {
    in_each_world(async |world| {
        let (_vendor, address) = Vendor::start(0).await;
        let integration = account(&world, address).await;
        let rows = (0..1_100).map(|row| format!("n{row},Ann,n{row}@example.com\n"));
        world.import(&format!("id,first name,e-mail\n{}", rows.collect::<String>())).await;
        let told = world.told().await;
        let order = Order::reconcile(integration.organization.clone(), integration.id.clone(), false);
        let import = world.worker.imports.begin(order).await.expect("it begins");
        let mut turns = 0;
        loop {
            // As it is stored, as after a rest or a restart.
            let mut import = world.get(&import).await;
            turns += 1;
            assert!(turns < 20, "it doesn't come to an end");
            if world.worker.work(&mut import, &mut Pages(1)).await.expect("it works") == Step::Ended {
                break;
            }
        }
        let done = world.get(&import).await;
        assert_eq!((done.state, done.counts.sent), (State::Done, 1_100), "{}", done.reason);
        assert_eq!(world.told().await, told + 1_100, "a letter for each, in {turns} turns");
        assert!(turns > 3, "{turns}");
    })
    .await;
}

#[tokio::test]
async fn what_vanished_is_counted_once_however_often_the_comparison_goes_on() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(5).await;
        let integration = account(&world, address).await;
        take_all(&world, &integration).await;
        vendor.shelf().clients.truncate(3);
        let order = Order::reconcile(integration.organization.clone(), integration.id.clone(), true);
        let import = world.worker.imports.begin(order).await.expect("it begins");
        for turn in 1.. {
            let mut import = world.get(&import).await;
            assert!(turn < 20, "it doesn't come to an end");
            if world.worker.work(&mut import, &mut Pages(1)).await.expect("it works") == Step::Ended {
                break;
            }
        }
        let done = world.get(&import).await;
        let vanished = done.examples.iter().filter(|example| example.difference == "vanished").count();
        assert_eq!((done.counts.vanished, vanished), (2, 2));
    })
    .await;
}

#[tokio::test]
async fn an_item_that_cannot_be_read_has_its_own_number_and_has_not_vanished() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(5).await;
        let integration = account(&world, address).await;
        take_all(&world, &integration).await;
        // Two say what no time is, one nothing at all.
        for number in [1, 2] {
            vendor.shelf().clients[number]["modified"] = json!("yesterday");
        }
        vendor.shelf().clients[3] = json!({});
        let done = compare(&world, &integration, false).await;
        let lines: Vec<u64> = done.refusals.iter().map(|refusal| refusal.line).collect();
        assert_eq!((done.state, lines), (State::Done, vec![2, 3, 4]), "{} {:?}", done.reason, done.refusals);
        assert_eq!(
            (done.counts.refused, done.counts.unchanged, done.counts.vanished),
            (3, 2, 1),
            "{:?}",
            done.examples
        );
        assert_eq!(done.examples[0].external_id, "x3");
    })
    .await;
}
