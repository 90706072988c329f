//! In which order, and how urgently, the vendor is told what it lacks.

use chassis::testing::noon;

use super::*;
use crate::record::{RecordKey, RecordKind, Source, Update};

#[tokio::test]
async fn what_is_sent_keeps_the_order_of_its_wedding_and_is_in_nobodys_way() {
    in_each_world(async |world| {
        let (_, address) = Vendor::start(0).await;
        let integration = account(&world, address).await;
        let resolver = world.worker.reconcile().resolver;
        resolver.keys.of(&integration.organization).await.expect("a key");
        let key = RecordKey::new(integration.organization.clone(), RecordKind::Client, "c1").expect("well-formed");
        let fields = json!({"first_name": "Ann", "email": "ann@example.com", "wedding_id": "w7"});
        let fields = serde_json::from_value(fields).expect("an object");
        let mut tx = world.store.begin().await.expect("it begins");
        let update = Update::new(Source::wedsync(), noon(), fields);
        resolver.records.apply_in(&mut tx, &key, &update).await.expect("it is merged");
        tx.commit().await.expect("it is committed");
        assert_eq!(compare(&world, &integration, false).await.counts.sent, 1);
        let (_, letters) = resolver.outbox.look(&integration.organization).await;
        let letter = letters.first().expect("one");
        assert_eq!((letter.ordering_key(), letter.low), ("w7", true));
    })
    .await;
}
