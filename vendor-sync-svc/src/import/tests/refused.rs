//! What is read and seen, but no record can hold.

use chassis::testing::noon;

use super::{
    super::{KEPT, Phase, Refusal},
    *,
};
use crate::resolve::{self, Incoming, Resolved};

fn refused(id: &str) -> Incoming {
    Incoming {
        kind: RecordKind::Client,
        external_id: id.to_owned(),
        external_version: String::new(),
        at: noon(),
        fields: Default::default(),
        deleted: false,
        priority_low: true,
        origin: resolve::Origin::Import,
    }
}

#[tokio::test]
async fn what_no_record_can_hold_is_counted_once_with_its_reason() {
    in_each_world(async |world| {
        let mut import = world.upload(world.order(Origin::Csv, RecordKind::Client), b"id,first name\n1,Ann\n").await;
        let incoming = refused("x1");
        let before = import.counts.refused;
        // As it is rehearsed, and as it is applied.
        for phase in [Phase::Counting, Phase::Applying] {
            import.enter(phase);
            import.tally(std::slice::from_ref(&incoming), &[Resolved::Refused { reason: "too much".to_owned() }]);
        }
        assert_eq!((import.counts.refused - before, import.counts.changed, import.refusals.len()), (1, 0, 1));
        let refusal = &import.refusals[0];
        assert_eq!((refusal.external_id.as_str(), refusal.reason.as_str()), ("x1", "too much"));
    })
    .await;
}

#[tokio::test]
async fn what_a_list_refuses_is_counted_beside_what_its_records_are_refused_for_however_many() {
    in_each_world(async |world| {
        let order = world.order(Origin::Vendor, RecordKind::Client);
        let mut import = world.worker.imports.begin(order).await.expect("it begins");
        import.refuse(Refusal { line: 7, external_id: String::new(), reason: "no date".to_owned() });
        let long = "x".repeat(400);
        for phase in [Phase::Counting, Phase::Applying] {
            import.enter(phase);
            for number in 0..150 {
                let incoming = refused(&number.to_string());
                import.tally(&[incoming], &[Resolved::Refused { reason: long.clone() }]);
            }
            assert_eq!((import.counts.refused, import.refusals.len()), (151, KEPT), "{phase:?}");
            assert_eq!(import.refusals[0].line, 7);
        }
    })
    .await;
}

#[tokio::test]
async fn the_first_line_of_a_table_is_legible_to_people_and_not_in_the_store() {
    in_each_world(async |world| {
        let mut order = world.order(Origin::Csv, RecordKind::Client);
        order.options.map.insert("Mail".to_owned(), "email".to_owned());
        let import = world.upload(order, b"Ann Lee,ann@example.com\n").await;
        let import = world.go_on(&import).await;
        assert_eq!(import.state, State::Failed);
        assert_eq!(import.reason, "a column is not in the heading: see what was refused");
        let refusal = &import.refusals[0];
        assert_eq!((refusal.line, refusal.reason.as_str()), (1, "has no column Mail; it has Ann Lee, ann@example.com"));
    })
    .await;
}
