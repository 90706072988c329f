//! In bulk: records that a vendor doesn't have are put into its lane, with a result for each.

use chassis::{id::OrganizationId, lane::State as Stage};

use super::{World, acme, changed, guests, in_a_world, peer::Peer};
use crate::{
    record::RecordKind,
    sync::bulk::{Outcome, Wanted},
};

#[tokio::test]
async fn records_in_bulk_are_sent_once_and_each_has_a_result() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        world.account(&peer, "s2").await;
        let integration = world.account(&peer, "s1").await;
        let tell = |number, wedding: &'static str| world.handle(changed(number, wedding, guests(80, 90), &["s1"]));
        tell(1, "w1").await;
        tell(2, "w2").await;
        world.settled(&integration, 2).await;
        let wanted = |ids: &[&str]| Wanted {
            organization: acme(),
            kind: RecordKind::Wedding,
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            supplier_id: "s1".to_owned(),
            integration_id: String::new(),
            after: String::new(),
            limit: 1,
        };
        let (results, _) = world.engine.bulk(&wanted(&["w1", "w9"])).await.expect("asked");
        let outcomes: Vec<_> = results.into_iter().map(|synced| (synced.record_id, synced.outcome)).collect();
        let unknown = Outcome::Refused("there is no such record".to_owned());
        assert_eq!(outcomes, [("w1".to_owned(), Outcome::Unchanged), ("w9".to_owned(), unknown)]);
        // Another integration of the supplier doesn't have them.
        let late = world.account(&peer, "s1").await;
        let (first, next) = world.engine.bulk(&wanted(&[])).await.expect("asked");
        assert_eq!((first.len(), next.as_str()), (2, "w1"));
        let sent: Vec<_> = first.iter().filter(|synced| synced.outcome == Outcome::Sent).collect();
        assert_eq!(sent[0].integration_id, late.id);
        let (second, next) = world.engine.bulk(&Wanted { after: next, ..wanted(&[]) }).await.expect("asked");
        assert_eq!((second.len(), next.as_str()), (2, ""));
        let records = world.settled(&late, 2).await;
        assert!(records.iter().all(|record| record.priority == 4 && record.state == Stage::Delivered as i64));
        let foreign = Wanted { organization: OrganizationId::parse("other").expect("well-formed"), ..wanted(&["w1"]) };
        let (results, _) = world.engine.bulk(&foreign).await.expect("asked");
        assert!(matches!(results[0].outcome, Outcome::Refused(_)));
    })
    .await;
}
