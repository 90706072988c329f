//! What concerns everybody in a wedding's room is told there once, and to nobody twice; where the room doesn't get it, each is
//! told by name after all.

use chassis::testing::engines;
use proto::{
    common::v1::Priority,
    notifier::v1::{MessageState, OrganizationSettings, RoomStage},
    router::v1 as router,
};
use serde_json::json;

use crate::{
    room::{is_in, people, set_up, start, until},
    slack::Workspace,
    world::{Client, World, content, poll, tells},
};

/// A wedding with a room: one and two are in, the ghost is only in the directory.
async fn with_room(client: &Client) {
    people(client, &["one", "two", "ghost", "mute"]).await;
    let settings = OrganizationSettings { slack_weddings: true, slack_notices: true, ..Default::default() };
    set_up(client, settings).await;
    until(client, "open", |room| {
        room.stage() == RoomStage::Open
            && is_in(room, "U1")
            && is_in(room, "U2")
            && room.members.iter().any(|member| !member.said.is_empty())
    })
    .await;
}

/// The wedding's timeline changes.
fn changed(id: &str) -> router::Event {
    content(id, "timeline.updated", json!({"wedding_id": "W 1", "changes": {"ceremony": "15:00"}}))
}

async fn told(client: &Client, event: &str, recipients: &[&str]) -> Vec<String> {
    let mut reasons = Vec::new();
    for recipient in recipients {
        reasons.push(client.until(event, recipient, "slack", MessageState::Sent).await.reason);
    }
    reasons
}

/// How often each has heard by Slack: the room, then one, two, and the ghost.
fn heard(workspace: &Workspace) -> [usize; 4] {
    ["G0", "U1", "U2", "U9"].map(|to| workspace.posts(to).len())
}

async fn urgent(world: &World, id: &str) {
    let mut plan = tells("timeline_changed", &["slack"], "");
    for destination in &mut plan.destinations {
        destination.priority = Priority::Critical.into();
    }
    world.event(changed(id), plan).await;
}

#[tokio::test]
async fn a_room_is_told_once_and_what_is_urgent_or_for_one_of_them_reaches_each_by_name() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        with_room(&client).await;
        let sequence = world.event(changed("t1"), tells("timeline_changed", &["slack"], "")).await;
        let reasons = told(&client, "t1", &["one", "two", "room:W 1", "ghost"]).await;
        assert!(reasons[0].ends_with("told in the wedding's room"), "{reasons:?}");
        assert!(reasons[2].contains("2 who are in it") && !reasons[3].contains("room"), "{reasons:?}");
        assert_eq!(heard(&workspace), [1, 0, 0, 1], "once for those who are in, by name for who isn't");

        world.router.again(sequence);
        world.event(changed("t2"), tells("timeline_changed", &["slack"], "")).await;
        told(&client, "t2", &["one", "two", "room:W 1", "ghost"]).await;
        assert_eq!(heard(&workspace), [2, 0, 0, 2], "an event that comes again tells nobody");

        urgent(&world, "t3").await;
        told(&client, "t3", &["one", "two", "ghost"]).await;
        assert!(client.message("t3", "room:W 1", "slack").await.is_none());
        assert_eq!(heard(&workspace), [2, 1, 1, 3]);

        client.tell("k1", "one", &["slack"], "Gate B").await;
        told(&client, "k1", &["one"]).await;
        assert_eq!(heard(&workspace), [2, 2, 1, 3], "what is for one of them isn't for the others");

        let settings = OrganizationSettings { slack_weddings: true, ..Default::default() };
        set_up(&client, settings).await;
        world.event(changed("t4"), tells("timeline_changed", &["slack"], "")).await;
        told(&client, "t4", &["one", "two", "ghost"]).await;
        assert_eq!(heard(&workspace), [2, 3, 2, 4], "nobody has asked for it any more");
        assert!(world.chassis.drain().await);
    }
}

#[tokio::test]
async fn where_the_room_is_closed_each_is_told_by_name_and_once() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        with_room(&client).await;
        workspace.archive(0);
        world.event(changed("t1"), tells("timeline_changed", &["slack"], "")).await;
        client.until("t1", "room:W 1", "slack", MessageState::Failed).await;
        poll("by name", async || heard(&workspace) == [0, 1, 1, 1]).await;
        told(&client, "t1", &["one", "two", "ghost"]).await;
        let world = world.restart().await;
        let client = world.client("wsk_a").await;
        told(&client, "t1", &["one", "two", "ghost"]).await;
        assert_eq!(heard(&workspace), [0, 1, 1, 1], "and once");
        assert!(world.chassis.drain().await);
    }
}
