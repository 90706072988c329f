//! Old events go once our services have taken them, and whoever comes too late for them is told so.

use std::time::Duration;

use proto::router::v1::{
    Credit, DeleteGroupRequest, GetEventRequest, GetHeadRequest, ReplayEventsRequest, Scope, StartConsuming,
    SubscribeRequest,
};
use tonic::Code;

use crate::{
    consume::acknowledged,
    subscribe::Subscriber,
    world::{Client, World, id_of, keyed, on_each, until},
};

const HOUR: Duration = Duration::from_secs(3_600);
/// Longer than events are kept.
const LATER: Duration = Duration::from_secs(91 * 86_400);

async fn oldest(client: &Client) -> u64 {
    client.events().get_head(GetHeadRequest {}).await.unwrap().into_inner().oldest.unwrap().sequence
}

/// The built-in groups take everything up to `sequence`.
async fn take(world: &World, sequence: u64) {
    let service = world.service();
    for group in ["vendor-sync", "notifier"] {
        let mut member = service.join(group, 100).await;
        let taking = async {
            loop {
                let event = member.next().await;
                member.acknowledge([&event]).await;
            }
        };
        tokio::select! {
            () = taking => {}
            () = acknowledged(&service, group, sequence) => {}
        }
    }
}

#[tokio::test]
async fn old_events_go_and_whoever_comes_too_late_for_them_is_told_how_to_go_on() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        drop(a.join("slow", 0).await);
        for id in ["e1", "e2", "e3"] {
            a.publish(keyed(id, "k")).await;
        }
        take(&world, 3).await;
        world.time.advance(LATER);
        a.publish(keyed("e4", "k")).await;
        until("the old ones are gone", || async {
            world.time.advance(HOUR);
            let third = GetEventRequest { id: "e3".to_owned(), ..Default::default() };
            a.events().get_event(third).await.is_err_and(|status| status.code() == Code::NotFound)
        })
        .await;
        assert_eq!((oldest(&a).await, a.all().await.len()), (4, 1));

        let world = world.restart().await;
        let a = world.client(&world.key("a", &[Scope::Admin]).await.1);
        let (too_late, just_right) = (a.position(2).await, a.position(3).await);
        let from = |since| SubscribeRequest { since: Some(since), ..Default::default() };
        let refused = Subscriber::start(&a, from(too_late.clone())).await.err().unwrap();
        assert_eq!(refused.code(), Code::OutOfRange);
        assert_eq!(Subscriber::start(&a, from(just_right.clone())).await.unwrap().event().await.id, "e4");
        let replay = ReplayEventsRequest { group: "slow".to_owned(), since: Some(too_late), ..Default::default() };
        assert_eq!(a.events().replay_events(replay).await.err().unwrap().code(), Code::OutOfRange);

        let credit = Some(Credit { events: 10, bytes: 0 });
        let slow = |from| StartConsuming { group: "slow".to_owned(), credit, from, ..Default::default() };
        let mut behind = a.start(slow(None)).await.unwrap();
        let told = behind.broken_off().await;
        assert_eq!(told.code(), Code::OutOfRange);
        assert!(told.message().contains("group slow"), "{told:?}");
        a.consumers().delete_group(DeleteGroupRequest { group: "slow".to_owned() }).await.unwrap();
        let mut anew = a.start(slow(Some(just_right))).await.unwrap();
        assert_eq!(id_of(&anew.next().await), "e4");

        let again = a.publish(keyed("e1", "k")).await;
        assert_eq!((again.duplicate, again.position.unwrap().sequence), (false, 5), "it is known no more");
    })
    .await;
}

#[tokio::test]
async fn what_our_services_have_not_taken_is_kept_however_old_it_is() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        a.publish(keyed("e1", "k")).await;
        take(&world, 1).await;
        a.publish(keyed("e2", "k")).await;
        world.time.advance(LATER);
        until("what was taken is gone", || async {
            world.time.advance(HOUR);
            oldest(&a).await == 2
        })
        .await;
        take(&world, 2).await;
        until("the other one too", || async {
            world.time.advance(HOUR);
            a.all().await.is_empty()
        })
        .await;
        assert_eq!((oldest(&a).await, a.head().await.sequence), (3, 2));
        assert_eq!(a.sequence(keyed("e3", "k")).await, 3, "the places go on");
    })
    .await;
}

#[tokio::test]
async fn a_replay_that_was_asked_for_long_ago_offers_what_is_still_kept() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut member = a.join("g", 10).await;
        for id in ["e1", "e2"] {
            a.publish(keyed(id, "k")).await;
        }
        world.time.advance(LATER);
        a.publish(keyed("e3", "k")).await;
        for _ in 0..3 {
            let event = member.next().await;
            member.acknowledge([&event]).await;
        }
        acknowledged(&a, "g", 3).await;
        drop(member);
        let replay =
            ReplayEventsRequest { group: "g".to_owned(), since: Some(a.position(0).await), ..Default::default() };
        assert_eq!(a.events().replay_events(replay).await.unwrap().into_inner().events, 3);
        take(&world, 3).await;
        until("the old ones are gone", || async {
            world.time.advance(HOUR);
            oldest(&a).await == 3
        })
        .await;
        let mut member = a.join("g", 10).await;
        let again = member.next().await;
        assert!(id_of(&again) == "e3" && again.replayed);
        member.acknowledge(&[again]).await;
        a.publish(keyed("e4", "k")).await;
        assert_eq!(member.ids(1).await, ["e4"], "it ended");
    })
    .await;
}
