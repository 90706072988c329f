//! What is read and seen, but no record can hold.

use chassis::testing::noon;

use super::*;
use crate::resolve::{self, Incoming, Resolved};

#[tokio::test]
async fn what_no_record_can_hold_is_counted_once_with_its_reason() {
    in_each_world(async |world| {
        let mut import = world.upload(world.order(Origin::Csv, RecordKind::Client), b"id,first name\n1,Ann\n").await;
        let incoming = Incoming {
            kind: RecordKind::Client,
            external_id: "x1".to_owned(),
            external_version: String::new(),
            at: noon(),
            fields: Default::default(),
            deleted: false,
            priority_low: true,
            origin: resolve::Origin::Import,
        };
        let before = import.counts.refused;
        // As it is rehearsed, and as it is applied.
        for _ in 0..2 {
            import.tally(std::slice::from_ref(&incoming), &[Resolved::Refused { reason: "too much".to_owned() }]);
        }
        assert_eq!((import.counts.refused - before, import.counts.changed, import.refusals.len()), (1, 0, 1));
        let refusal = &import.refusals[0];
        assert_eq!((refusal.external_id.as_str(), refusal.reason.as_str()), ("x1", "too much"));
    })
    .await;
}
