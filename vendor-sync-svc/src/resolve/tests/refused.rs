//! What is not taken in, and doesn't stand in the way of what is.

use super::*;

/// A deletion, as of so many minutes.
fn gone(external_id: &str, minutes: i64, said: Value) -> Incoming {
    Incoming { deleted: true, ..wedding(external_id, after(minutes), said) }
}

async fn is_deleted(world: &World, id: &str) -> bool {
    let key = RecordKey::new(organization(), RecordKind::Wedding, id).expect("well-formed");
    world.resolver.records.get(&key).await.expect("it is read").expect("it is there").deleted.is_some()
}

#[tokio::test]
async fn what_was_never_linked_is_not_deleted_by_a_guess() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, mine, other) = (World::open(store).await, integration(1, ""), integration(2, ""));
        let said = || json!({"wedding_date": "2026-06-20", "bride_name": "Ann Lee", "groom_name": "Bo Ray"});
        let id = linked(&world, &mine, said()).await;
        for external_id in ["y1", &id] {
            assert_eq!(world.take(&other, gone(external_id, 60, said())).await, Resolved::Unchanged);
        }
        assert!(!is_deleted(&world, &id).await);
        assert!(matches!(world.take(&mine, gone("x1", 61, json!({}))).await, Resolved::Changed { .. }));
        assert!(is_deleted(&world, &id).await);
    })
    .await;
}

#[tokio::test]
async fn one_word_beyond_a_limit_is_refused_alone() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, ""));
        let huge = json!({"venue_notes": "x".repeat(70 << 10)});
        let said = vec![
            wedding("x1", noon(), json!({"guest_count": 80})),
            wedding("x2", noon(), huge),
            wedding("x3", noon(), json!({"guest_count": 90})),
        ];
        let resolved = world.resolver.take(&tave, said).await.expect("they are taken");
        let is_expected = matches!(
            resolved.as_slice(),
            [Resolved::Created { .. }, Resolved::Refused { .. }, Resolved::Created { .. }]
        );
        assert!(is_expected, "{resolved:?}");
        assert_eq!(world.waiting().await.0.len(), 2);
    })
    .await;
}
