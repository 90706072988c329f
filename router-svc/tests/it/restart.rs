//! What a restart must not change.

use proto::router::v1::{
    ListChannelConfigurationsRequest, ListGroupsRequest, Route, Scope, StartConsuming, UpsertWeddingRequest, Wedding,
};

use crate::{
    consume::acknowledged,
    routes::{create, list, own_route},
    weddings::wedding,
    world::{id_of, keyed, low, on_each, sequence_of},
};

#[tokio::test]
async fn a_restart_keeps_positions_ids_routes_keys_weddings_and_groups() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let (_, secret) = world.key("a", &[Scope::Admin]).await;
        for number in 0..5 {
            a.publish(keyed(&format!("e{number}"), "k")).await;
        }
        create(&a, Route { description: "mine".to_owned(), ..own_route("test.*", "new.a == 1") }).await;
        let said = Wedding { id: "w".to_owned(), wedding_date: "2026-06-01".to_owned(), ..Wedding::default() };
        a.weddings().upsert_wedding(UpsertWeddingRequest { wedding: Some(said) }).await.unwrap();
        drop(
            a.start(StartConsuming { group: "g".to_owned(), types: vec!["test.*".to_owned()], ..Default::default() })
                .await
                .unwrap(),
        );
        let before = (a.head().await, a.all().await, list(&a).await, wedding(&a, "w").await);
        let configurations = a
            .routes()
            .list_channel_configurations(ListChannelConfigurationsRequest::default())
            .await
            .unwrap()
            .into_inner();

        let world = world.restart().await;
        let a = world.client(&secret);
        assert_eq!((a.head().await, a.all().await, list(&a).await, wedding(&a, "w").await), before);
        assert_eq!(
            a.routes()
                .list_channel_configurations(ListChannelConfigurationsRequest::default())
                .await
                .unwrap()
                .into_inner(),
            configurations
        );
        let groups = a.consumers().list_groups(ListGroupsRequest {}).await.unwrap().into_inner().groups;
        assert!(
            groups.len() == 1
                && groups[0].types == ["test.*"]
                && groups[0].cursors.iter().all(|cursor| cursor.sequence == 5)
        );
        assert!(a.publish(keyed("e3", "k")).await.duplicate, "known ids are still known");
        assert_eq!(a.sequence(keyed("e5", "k")).await, 6, "and the log goes on without a gap");
        assert!(!world.operator().head().await.log_id.is_empty(), "the operator's key is the first one");
    })
    .await;
}

#[tokio::test]
async fn after_a_restart_what_was_acknowledged_never_comes_and_the_rest_comes_marked() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let (_, secret) = world.key("a", &[Scope::Admin]).await;
        let mut member = a.join("g", 100).await;
        for number in 0..6 {
            let id = format!("e{number}");
            a.publish(if number % 2 == 0 { keyed(&id, &id) } else { low(&id, &id) }).await;
        }
        let mut events = member.rest().await;
        events.sort_by_key(sequence_of);
        member.acknowledge(&events[..4]).await;
        acknowledged(&a, "g", 4).await;
        let world = world.restart().await;
        let a = world.client(&secret);
        let mut member = a.join("g", 100).await;
        let again = member.rest().await;
        let mut ids: Vec<_> = again.iter().map(id_of).collect();
        ids.sort();
        assert_eq!(ids, ["e4", "e5"]);
        assert!(again.iter().all(|event| event.redelivered && !event.replayed));
        a.publish(keyed("fresh", "k")).await;
        assert!(!member.next().await.redelivered);
    })
    .await;
}
