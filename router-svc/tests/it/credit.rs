//! Credits: what a member didn't allow doesn't come.

use proto::router::v1::{Credit, StartConsuming};

use crate::world::{Client, Member, keyed, on_each, raw};

async fn join(client: &Client, events: u32, bytes: u64) -> Member {
    let credit = Some(Credit { events, bytes });
    client.start(StartConsuming { group: "g".to_owned(), credit, ..Default::default() }).await.unwrap()
}

#[tokio::test]
async fn as_many_events_come_as_were_allowed() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut member = join(&a, 0, 0).await;
        for number in 0..10 {
            a.publish(keyed(&format!("e{number}"), "k")).await;
        }
        assert!(member.rest().await.is_empty(), "nothing without credit");
        member.credit(3, 0).await;
        let first = member.rest().await;
        assert_eq!(first.len(), 3);
        member.acknowledge(&first).await;
        assert!(member.rest().await.is_empty(), "an acknowledgement is no credit");
        member.credit(1, 0).await;
        member.credit(4, 0).await;
        assert_eq!(member.rest().await.len(), 5);
    })
    .await;
}

#[tokio::test]
async fn as_many_bytes_are_under_way_as_were_allowed_and_one_event_always_may_be() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut member = join(&a, 100, 250_000).await;
        for number in 0..6 {
            let data = serde_json::to_vec(&"x".repeat(100_000)).unwrap();
            a.publish(raw(&format!("e{number}"), "test.happened", data)).await;
        }
        let first = member.rest().await;
        assert_eq!(first.len(), 2, "a third would go beyond");
        assert!(first.iter().all(|event| (100_000..102_000).contains(&event.credit_bytes)));
        member.acknowledge(&first).await;
        member.credit(0, first.iter().map(|event| event.credit_bytes).sum()).await;
        assert_eq!(member.rest().await.len(), 2);
        drop(member);
        let mut frugal = join(&a, 100, 1).await;
        assert_eq!(frugal.rest().await.len(), 1, "an event larger than the credit goes alone");
    })
    .await;
}

#[tokio::test]
async fn a_member_that_grants_and_never_acknowledges_is_held_back() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut member = join(&a, 1_000, 0).await;
        let large = serde_json::to_vec(&"x".repeat((1 << 20) - 2)).unwrap();
        for number in 0..24 {
            a.publish(raw(&format!("e{number}"), "test.happened", large.clone())).await;
            member.credit(1_000, 4 << 20).await;
        }
        let held = member.rest().await;
        assert!((15..=17).contains(&held.len()), "{} MiB are out", held.len());
        member.acknowledge(&held).await;
        member.credit(0, 4 << 20).await;
        assert!(member.next().await.credit_bytes > 1 << 20, "and goes on when it does");
    })
    .await;
}
