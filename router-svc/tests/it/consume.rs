//! Durable consumer groups: what a member gets, in which order, how often, and when again.

use std::collections::{BTreeSet, HashMap};

use futures_util::future::join_all;
use proto::router::v1::{
    ConsumeRequest, ConsumedEvent, Credit, DeleteGroupRequest, Event, Group, ListGroupsRequest, ReplayEventsRequest,
    StartConsuming, consume_request::Message,
};
use serde_json::json;
use tonic::Code;

use crate::world::{Client, Member, World, content, critical, field, id_of, keyed, low, on_each, sequence_of, until};

async fn groups(client: &Client) -> Vec<Group> {
    client.consumers().list_groups(ListGroupsRequest {}).await.unwrap().into_inner().groups
}

/// Waits until everything up to `sequence` is acknowledged in the store.
pub(crate) async fn acknowledged(client: &Client, group: &str, sequence: u64) {
    until("the cursors are stored", || async {
        let group = groups(client).await.into_iter().find(|known| known.name == group).unwrap();
        group.cursors.iter().all(|cursor| cursor.sequence >= sequence)
    })
    .await;
}

fn ids(events: &[ConsumedEvent]) -> Vec<String> {
    events.iter().map(id_of).collect()
}

/// A new group that starts before the first event.
async fn from_the_first(client: &Client, group: &str, types: &[&str]) -> Member {
    let start = StartConsuming {
        group: group.to_owned(),
        types: types.iter().map(|type_| (*type_).to_owned()).collect(),
        from: Some(client.position(0).await),
        credit: Some(Credit { events: 1_000, bytes: 0 }),
    };
    client.start(start).await.unwrap()
}

/// An event that people are told of.
fn told(id: &str) -> Event {
    content(id, "payment.received", json!({"amount": 1}))
}

#[tokio::test]
async fn a_new_group_begins_at_the_head_unless_it_says_where_and_takes_its_types_alone() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        for id in ["e1", "e2"] {
            a.publish(keyed(id, "k")).await;
        }
        a.publish(content("w1", "wedding.date_changed", json!(null))).await;
        let mut live = a.join("live", 100).await;
        let mut all = from_the_first(&a, "all", &[]).await;
        let mut typed = from_the_first(&a, "typed", &["wedding.*", "payment.failed"]).await;
        a.publish(content("w2", "wedding.date_changed", json!(null))).await;
        assert_eq!(ids(&live.rest().await), ["w2"]);
        assert_eq!(
            ids(&all.rest().await).into_iter().collect::<BTreeSet<_>>(),
            ["e1", "e2", "w1", "w2"].map(str::to_owned).into()
        );
        assert_eq!(ids(&typed.rest().await), ["w1", "w2"]);
        let other = StartConsuming { group: "typed".to_owned(), types: vec!["*".to_owned()], ..Default::default() };
        assert_eq!(
            a.start(other).await.err().unwrap().code(),
            Code::FailedPrecondition,
            "types are fixed when a group is made"
        );
    })
    .await;
}

#[tokio::test]
async fn whoever_does_not_start_is_told_so_and_built_in_groups_are_for_services() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let said =
            tokio_stream::once(ConsumeRequest { message: Some(Message::Credit(Credit { events: 1, bytes: 0 })) });
        assert_eq!(field(a.consumers().consume(said).await.unwrap_err()), "start");
        assert_eq!(field(a.consumers().consume(tokio_stream::empty()).await.unwrap_err()), "start");
        let start = |group: &str| StartConsuming { group: group.to_owned(), ..Default::default() };
        for (client, group) in [(&a, "notifier"), (&world.operator(), "notifier"), (&world.operator(), "other")] {
            assert_eq!(client.start(start(group)).await.err().unwrap().code(), Code::PermissionDenied, "{group}");
        }
        assert_eq!(field(world.service().start(start("other")).await.err().unwrap()), "start.group");
        // What the plan asks nothing of a service for isn't handed to it.
        a.publish(keyed("e0", "k")).await;
        a.publish(told("e1")).await;
        world.organization("b").await.publish(told("e1")).await;
        let mut notifier = world.service().join("notifier", 10).await;
        assert_eq!(notifier.ids(2).await, ["e1", "e1"], "of every organization, from the first event on");
        assert_eq!(
            groups(&world.service()).await.iter().map(|group| &*group.name).collect::<Vec<_>>(),
            ["notifier", "vendor-sync"]
        );
    })
    .await;
}

#[tokio::test]
async fn two_members_share_by_key_and_each_key_is_in_order() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut members = [a.join("g", 1_000).await, a.join("g", 1_000).await];
        for number in 0..200 {
            a.publish(keyed(&format!("{number:03}"), &format!("k{}", number % 20))).await;
        }
        let mut holder: HashMap<String, usize> = HashMap::new();
        let mut counts = [0; 2];
        for (index, member) in members.iter_mut().enumerate() {
            let mut last: HashMap<String, u64> = HashMap::new();
            for event in member.rest().await {
                let key = event.event.as_ref().unwrap().ordering_key.clone();
                assert_eq!(*holder.entry(key.clone()).or_insert(index), index, "{key} is with two members");
                let before = last.insert(key, sequence_of(&event)).unwrap_or(0);
                assert!(before < sequence_of(&event) && !event.redelivered);
                counts[index] += 1;
            }
        }
        assert_eq!(counts[0] + counts[1], 200);
        assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    })
    .await;
}

#[tokio::test]
async fn what_a_lost_member_held_goes_to_another_marked_and_what_it_acknowledged_does_not() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut lost = a.join("g", 100).await;
        for number in 0..10 {
            a.publish(keyed(&format!("e{number}"), &format!("k{number}"))).await;
        }
        let held = lost.rest().await;
        assert!(held.iter().all(|event| !event.redelivered));
        lost.acknowledge(held.iter().filter(|event| sequence_of(event).is_multiple_of(2))).await;
        // Whoever joins later learns that the acknowledgements were taken: they come before its own.
        let mut heir = a.join("g", 0).await;
        lost.acknowledge(&[]).await;
        until("they are taken", || async { groups(&a).await[0].members == 2 }).await;
        tokio::time::sleep(crate::world::QUIET).await;
        drop(lost);
        heir.credit(100, 0).await;
        let again = heir.rest().await;
        assert_eq!(again.iter().map(sequence_of).collect::<BTreeSet<_>>(), [1, 3, 5, 7, 9].into());
        assert!(again.iter().all(|event| event.redelivered));
        a.publish(keyed("fresh", "k")).await;
        let fresh = heir.next().await;
        assert!(id_of(&fresh) == "fresh" && !fresh.redelivered);
        heir.acknowledge(again.iter().chain([&fresh])).await;
        acknowledged(&a, "g", 11).await;
        drop(heir);
        assert!(a.join("g", 100).await.rest().await.is_empty(), "what is acknowledged never comes again");
    })
    .await;
}

#[tokio::test]
async fn critical_overtakes_a_backlog_of_low_and_pulls_the_predecessors_of_its_key_along() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        for number in 0..600 {
            a.publish(low(&format!("low{number}"), &format!("k{}", number % 100))).await;
        }
        a.publish(keyed("normal", "other")).await;
        a.publish(critical("urgent", "k42")).await;
        let mut member = from_the_first(&a, "g", &[]).await;
        let first = member.next().await;
        assert_eq!(id_of(&first), "low42", "the first of the urgent one's key");
        let received: Vec<String> = [vec![id_of(&first)], member.ids(601).await].concat();
        let place = |id: &str| received.iter().position(|other| other == id).unwrap();
        assert!(place("urgent") < 40, "{}", place("urgent"));
        let predecessors = (0..6).map(|turn| place(&format!("low{}", turn * 100 + 42)));
        assert!(predecessors.clone().is_sorted() && predecessors.max().unwrap() < place("urgent"));
        assert_eq!(received.iter().collect::<BTreeSet<_>>().len(), 602, "each once");
    })
    .await;
}

#[tokio::test]
async fn groups_of_two_organizations_have_nothing_in_common() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let (mut of_a, mut of_b) = (a.join("g", 100).await, b.join("g", 100).await);
        a.publish(keyed("a1", "k")).await;
        b.publish(keyed("b1", "k")).await;
        let (got_a, got_b) = (of_a.rest().await, of_b.rest().await);
        assert_eq!((ids(&got_a), ids(&got_b)), (vec!["a1".to_owned()], vec!["b1".to_owned()]));
        // One can't acknowledge for the other.
        of_b.acknowledge(&got_a).await;
        of_b.acknowledge(&got_b).await;
        acknowledged(&b, "g", 2).await;
        assert!(groups(&a).await[0].cursors.iter().any(|cursor| cursor.sequence == 0));
    })
    .await;
}

#[tokio::test]
async fn a_group_is_deleted_when_nobody_is_in_it_and_a_new_one_of_its_name_begins_anew() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut member = from_the_first(&a, "g", &[]).await;
        a.publish(keyed("e1", "k")).await;
        let events = member.rest().await;
        member.acknowledge(&events).await;
        let delete = || async {
            a.consumers()
                .delete_group(DeleteGroupRequest { group: "g".to_owned() })
                .await
                .map(drop)
                .map_err(|status| status.code())
        };
        assert_eq!(delete().await, Err(Code::FailedPrecondition));
        drop(member);
        until("nobody is in it", || async { groups(&a).await[0].members == 0 }).await;
        assert_eq!(delete().await, Ok(()));
        assert_eq!(delete().await, Err(Code::NotFound));
        assert_eq!(from_the_first(&a, "g", &[]).await.ids(1).await, ["e1"]);
    })
    .await;
}

#[tokio::test]
async fn many_groups_can_be_made_at_once() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let names: Vec<String> = (0..16).map(|number| format!("g{number}")).collect();
        let mut members = futures_util::future::join_all(names.iter().map(|name| a.join(name, 10))).await;
        a.publish(keyed("e1", "k")).await;
        for member in &mut members {
            assert_eq!(member.ids(1).await, ["e1"]);
        }
        assert_eq!(groups(&a).await.len(), 16);
    })
    .await;
}

async fn replay(client: &Client, group: &str, since: u64, dry_run: bool) -> u64 {
    let request = ReplayEventsRequest {
        group: group.to_owned(),
        since: Some(client.position(since).await),
        dry_run,
        ..Default::default()
    };
    client.events().replay_events(request).await.unwrap().into_inner().events
}

#[tokio::test]
async fn a_replay_offers_stored_events_again_once_to_that_group_alone() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let (mut member, mut other) = (a.join("g", 1_000).await, a.join("other", 1_000).await);
        for number in 0..5 {
            a.publish(keyed(&format!("e{number}"), "k")).await;
            b.publish(keyed(&format!("b{number}"), "k")).await;
        }
        let first = member.rest().await;
        member.acknowledge(&first).await;
        assert_eq!(other.rest().await.len(), 5);
        assert_eq!(replay(&a, "g", 4, true).await, 3);
        assert!(member.rest().await.is_empty(), "a dry run offers nothing");
        assert_eq!(replay(&a, "g", 4, false).await, 3);
        let again = member.rest().await;
        assert_eq!(ids(&again), ["e2", "e3", "e4"]);
        assert!(again.iter().all(|event| event.replayed));
        assert!(
            again
                .iter()
                .all(|event| event.plan == first.iter().find(|known| id_of(known) == id_of(event)).unwrap().plan)
        );
        // A second range waits until the first is done.
        assert_eq!(replay(&a, "g", 8, false).await, 1);
        assert!(member.rest().await.is_empty());
        member.acknowledge(&again).await;
        let second = member.rest().await;
        assert_eq!(ids(&second), ["e4"]);
        member.acknowledge(&second).await;
        a.publish(keyed("fresh", "k")).await;
        let fresh = member.rest().await;
        assert!(ids(&fresh) == ["fresh"] && !fresh[0].replayed, "it ended");
        assert_eq!(ids(&other.rest().await), ["fresh"]);
        drop(member);
        assert!(ids(&a.join("g", 100).await.rest().await).iter().all(|id| id == "fresh"), "nor does it come again");
    })
    .await;
}

#[tokio::test]
async fn a_replay_to_a_built_in_group_holds_the_callers_events_alone_and_survives_a_restart() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        a.publish(told("a1")).await;
        a.publish(keyed("a2", "k")).await;
        b.publish(told("b1")).await;
        let mut notifier = world.service().join("notifier", 100).await;
        let events = notifier.rest().await;
        notifier.acknowledge(&events).await;
        acknowledged(&world.service(), "notifier", 3).await;
        drop(notifier);
        assert_eq!(replay(&a, "notifier", 0, false).await, 2);
        let world: World = world.restart().await;
        let mut notifier = world.service().join("notifier", 100).await;
        let again = notifier.rest().await;
        assert!(ids(&again) == ["a1"] && again[0].replayed && again[0].redelivered);
        notifier.acknowledge(&again).await;
        // What is done is forgotten in the store as well.
        until("the range is forgotten", || async { notifier_is_quiet(&world).await }).await;
    })
    .await;
}

#[tokio::test]
async fn an_organization_has_a_few_replays_before_it_and_another_ones_come_in_between() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        a.publish(told("a1")).await;
        b.publish(told("b1")).await;
        let mut notifier = world.service().join("notifier", 100).await;
        let events = notifier.rest().await;
        notifier.acknowledge(&events).await;
        acknowledged(&world.service(), "notifier", 2).await;
        drop(notifier);
        for _ in 0..4 {
            replay(&a, "notifier", 0, false).await;
        }
        let more = ReplayEventsRequest {
            group: "notifier".to_owned(),
            since: Some(a.position(0).await),
            ..Default::default()
        };
        let refused = a.events().replay_events(more).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        replay(&b, "notifier", 0, false).await;
        let mut notifier = world.service().join("notifier", 100).await;
        let mut order = Vec::new();
        for _ in 0..5 {
            let event = notifier.next().await;
            notifier.acknowledge([&event]).await;
            order.push(id_of(&event));
        }
        assert_eq!(order, ["a1", "b1", "a1", "a1", "a1"]);
    })
    .await;
}

async fn notifier_is_quiet(world: &World) -> bool {
    world.service().join("notifier", 100).await.rest().await.is_empty()
}

#[tokio::test]
async fn what_is_not_for_a_group_never_hides_what_comes_after_it() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let start =
            StartConsuming { group: "g".to_owned(), types: vec!["rare.event".to_owned()], ..Default::default() };
        drop(a.start(start).await.unwrap());
        // More than the group reads at once, while nobody is there to read.
        let common: Vec<String> = (0..600).map(|number| number.to_string()).collect();
        join_all(common.iter().map(|id| a.publish(keyed(id, "k")))).await;
        a.publish(content("late", "rare.event", json!({}))).await;
        let mut member = a.join("g", 10).await;
        assert_eq!(member.ids(1).await, ["late"]);
    })
    .await;
}
