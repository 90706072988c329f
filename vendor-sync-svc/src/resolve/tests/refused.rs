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

#[tokio::test]
async fn a_vendors_answer_writes_over_nothing_that_comes_in_meanwhile() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, ""));
        let id = linked(&world, &tave, json!({"guest_count": 80})).await;
        let mut taking = world.resolver.begin(&organization()).await.expect("it begins");
        taking.take(&tave, &[wedding("x1", after(1), json!({"venue_name": "Barn"}))]).await.expect("it is taken");
        let mut written = Box::pin(world.written(&tave, &id, fields(json!({"guest_count": 90})), "v2"));
        let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut written).await;
        assert!(early.is_err(), "it takes its turn");
        taking.commit().await.expect("it is committed");
        written.await;
        let key = RecordKey::new(organization(), RecordKind::Wedding, id).expect("well-formed");
        let link = world.known.link(&tave, &key).await.expect("it is read").expect("it is linked");
        assert_eq!((&link.synced["venue_name"], &link.synced["guest_count"]), (&json!("Barn"), &json!(90)));
    })
    .await;
}

#[tokio::test]
async fn a_supplier_that_has_left_a_wedding_changes_it_no_more() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, "s1"));
        let id = linked(&world, &tave, json!({"guest_count": 80})).await;
        let row = |guests: u32| format!(r#"{{"id":"{id}","guest_count":{guests}}}"#);
        let mut event = change(&row(80), &row(90));
        event.channels = vec!["supplier:dashboard:s2".to_owned()];
        let said = read(&event).expect("about a wedding");
        world.resolver.observe(&event, &said, &[], false).await.expect("it is observed").expect("it is known");
        let later = wedding("x1", after(60), json!({"guest_count": 120}));
        assert_eq!(world.take(&tave, later).await, Resolved::Unchanged);
        assert_eq!(world.take(&tave, gone("x1", 61, json!({}))).await, Resolved::Unchanged);
        assert_eq!(world.record(&id).await["guest_count"], json!(90));
        assert!(!is_deleted(&world, &id).await);
    })
    .await;
}

#[tokio::test]
async fn who_comes_second_to_a_link_is_asked_to_try_again() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store.clone()).await, integration(1, ""));
        let id = linked(&world, &tave, json!({"guest_count": 80})).await;
        let key = RecordKey::new(organization(), RecordKind::Wedding, id).expect("well-formed");
        let link = world.known.link(&tave, &key).await.expect("it is read").expect("it is linked");
        let link = Link { record_id: "w9".to_owned(), external_id: "x9".to_owned(), ..link };
        // Another process, which takes no turns of ours.
        let mut tx = store.begin().await.expect("it begins");
        world.resolver.links.put_in(&mut tx, &link).await.expect("it is put");
        let mut second = Box::pin(async {
            let mut taking = world.resolver.begin(&organization()).await?;
            taking.take(&tave, &[wedding("x9", after(1), json!({"guest_count": 90}))]).await
        });
        let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut second).await;
        assert!(early.is_err(), "the store has it wait");
        tx.commit().await.expect("it is committed");
        let resolved = second.await;
        assert!(matches!(resolved, Ok(_) | Err(Error::Aborted(_))), "{resolved:?}");
    })
    .await;
}

#[tokio::test]
async fn a_correction_keeps_the_order_of_its_wedding() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave, other) = (World::open(store).await, integration(1, ""), integration(2, ""));
        let client = |minutes, said| Incoming {
            kind: RecordKind::Client,
            origin: Origin::Poll,
            ..wedding("x1", after(minutes), said)
        };
        let said = json!({"first_name": "Ann", "email": "ann@example.com", "wedding_id": "w7"});
        let id = match world.take(&tave, client(0, said)).await {
            Resolved::Created { record_id } => record_id,
            made => panic!("{made:?}"),
        };
        world.clock.advance(std::time::Duration::from_secs(3600));
        let newer = Incoming { external_id: id, ..client(50, json!({"first_name": "Anna"})) };
        assert!(matches!(world.take(&other, newer).await, Resolved::Changed { .. }));
        let lost = world.take(&tave, client(10, json!({"first_name": "Ana"}))).await;
        assert!(matches!(lost, Resolved::Conflicted { .. }), "{lost:?}");
        assert_eq!(world.waiting().await.1[0].ordering_key(), "w7");
    })
    .await;
}
