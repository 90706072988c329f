//! What lies on the disk names nobody.

use std::{fs, time::Duration};

use chassis::testing::engines;
use proto::notifier::v1::MessageState;

use crate::{
    smtp::Mood,
    world::{World, moved, tells, two_vendors},
};

#[tokio::test]
async fn no_name_and_no_address_lies_open_in_the_database() {
    let (folder, engines) = engines();
    let world = World::start(engines[0].clone()).await;
    two_vendors(&world).await;
    let client = world.client("wsk_a").await;
    // One is sent, one waits, one was refused with its address in the answer.
    world.smtp.next([Mood::Recipient(550), Mood::Recipient(450)]);
    world.event(moved("e1", "2026-06-20", "2026-06-27"), tells("wedding_date_change", &["email", "in_app"], "")).await;
    let tried = async {
        while client.of_event("e1").await[0].messages.iter().filter(|message| message.attempts > 0).count() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), tried).await.expect("each is tried");
    world.event(moved("e2", "2026-06-27", "2026-07-04"), tells("wedding_date_change", &["email"], "")).await;
    client.until("e2", "ph", "email", MessageState::Sent).await;
    assert!(world.chassis.drain().await);
    let mut all = String::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        for plain in ["lens.example", "petal.example", "Lens", "Petal", "Mia", "calendar"] {
            assert!(!bytes.contains(plain), "{plain} lies open in {}", path.display());
        }
        all.push_str(&bytes);
    }
    assert!(all.contains("florist") && all.contains("vendor of the wedding"), "it is the database that was looked at");
}
