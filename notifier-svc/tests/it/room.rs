//! A wedding's room in Slack: made once, with whom it is for, to its end.

use std::{collections::BTreeSet, time::Duration};

use chassis::{
    config::StoreSettings,
    testing::{engines, manual_clock},
};
use proto::notifier::v1::{
    ListRoomsRequest, OrganizationSettings, Recipient, RecipientKind, Room, RoomStage, RoomStanding,
    SetWeddingRecipientsRequest, UpdateOrganizationSettingsRequest, UpsertRecipientRequest,
};
use proto::router::v1 as router;
use serde_json::{Value, json};

use crate::{
    slack::{BOT, Trouble, Workspace},
    world::{Client, World, change, poll},
};

pub(crate) async fn start(store: StoreSettings) -> (World, Workspace, Client) {
    let (time, clock) = manual_clock();
    let (world, workspace) = World::start_with_slack(store, time, clock, &["U1", "U2"]).await;
    let client = world.client("wsk_a").await;
    vendors(&client).await;
    (world, workspace, client)
}

/// Two that Slack knows, one that it doesn't, and one without Slack.
pub(crate) async fn vendors(client: &Client) {
    for (id, user) in [("one", "U1"), ("two", "U2"), ("ghost", "U9"), ("mute", "")] {
        let recipient = Recipient {
            id: id.to_owned(),
            kind: RecipientKind::Supplier.into(),
            name: id.to_owned(),
            slack_user_id: user.to_owned(),
            ..Recipient::default()
        };
        client.recipients().upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await.unwrap();
    }
}

pub(crate) async fn switch(client: &Client, on: bool) {
    set_up(client, OrganizationSettings { slack_weddings: on, slack_archive_days: 3, ..Default::default() }).await;
}

/// Replaces the organization's settings.
pub(crate) async fn set_up(client: &Client, settings: OrganizationSettings) {
    let request = UpdateOrganizationSettingsRequest { settings: Some(settings) };
    client.settings().update_organization_settings(request).await.unwrap();
}

pub(crate) async fn people(client: &Client, ids: &[&str]) {
    people_of(client, "W 1", ids).await;
}

async fn people_of(client: &Client, wedding: &str, ids: &[&str]) {
    let recipient_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = SetWeddingRecipientsRequest { wedding_id: wedding.to_owned(), recipient_ids };
    client.recipients().set_wedding_recipients(request).await.unwrap();
}

async fn rooms(client: &Client) -> Vec<Room> {
    client.slack_rooms().list_rooms(ListRoomsRequest::default()).await.unwrap().into_inner().rooms
}

/// Waits until the one room is like this.
pub(crate) async fn until(client: &Client, what: &str, is: impl Fn(&Room) -> bool) -> Room {
    let mut last = Vec::new();
    poll(what, async || {
        last = rooms(client).await;
        matches!(&last[..], [room] if is(room))
    })
    .await;
    last.remove(0)
}

pub(crate) fn is_in(room: &Room, user: &str) -> bool {
    room.members.iter().any(|member| member.slack_user_id == user && member.standing() == RoomStanding::In)
}

pub(crate) fn members(workspace: &Workspace, at: usize) -> BTreeSet<String> {
    workspace.rooms()[at].members.clone()
}

pub(crate) fn set(users: &[&str]) -> BTreeSet<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

#[tokio::test]
async fn a_wedding_has_one_room_with_its_vendors_until_some_days_after() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        people(&client, &["one", "ghost", "mute"]).await;
        assert!(rooms(&client).await.is_empty(), "nobody has asked for rooms");

        switch(&client, true).await;
        let room = until(&client, "open", |room| room.stage() == RoomStage::Open && is_in(room, "U1")).await;
        assert_eq!((&*room.name, &*room.wedding_id), ("wedding-w-1", "W 1"));
        let ghost = until(&client, "through", |room| room.members.len() == 2).await;
        let ghost = ghost.members.iter().find(|member| member.slack_user_id == "U9").unwrap().clone();
        let ghost = match ghost.standing() {
            RoomStanding::Asked => {
                until(&client, "skipped", |room| room.members.iter().any(|member| member.said == "user_not_found"))
                    .await
                    .members[1]
                    .clone()
            }
            _ => ghost,
        };
        assert_eq!((ghost.standing(), &*ghost.said), (RoomStanding::Skipped, "user_not_found"));
        assert!(workspace.rooms()[0].purpose.contains("[wedsync "), "it is marked as ours");

        people(&client, &["two"]).await;
        until(&client, "of two", |room| is_in(room, "U2") && room.members.len() == 1).await;
        assert_eq!(members(&workspace, 0), set(&[BOT, "U2"]));

        let day = world.chassis.clock.now().to_string()[..10].to_owned();
        let row = json!({"id": "W 1", "wedding_date": day, "time_zone": "UTC"});
        world
            .event(
                change("day", "wedding_details", router::Operation::Insert, Value::Null, row),
                router::Plan::default(),
            )
            .await;
        world.time.advance(Duration::from_secs(3 * 86_400));
        until(&client, "still open", |room| room.stage() == RoomStage::Open).await;
        world.time.advance(Duration::from_secs(86_400));
        until(&client, "archived", |room| room.stage() == RoomStage::Archived).await;
        assert_eq!((workspace.rooms().len(), workspace.rooms()[0].archived), (1, true));
        let foreign = world.client("wsk_b").await;
        assert!(rooms(&foreign).await.is_empty());
        assert!(world.chassis.drain().await);
    }
}

#[tokio::test]
async fn what_was_cut_is_looked_up_and_never_done_twice_even_after_a_restart() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        people(&client, &["one"]).await;
        for method in ["conversations.create", "conversations.setPurpose", "conversations.invite"] {
            workspace.next(method, Trouble::CutAfter);
        }
        switch(&client, true).await;
        until(&client, "cut", |room| !room.said.is_empty()).await;
        assert_eq!(workspace.rooms().len(), 1);
        let world = world.restart().await;
        let client = world.client("wsk_a").await;
        // Each call that was cut is made again after a wait.
        poll("open", async || {
            world.time.advance(Duration::from_secs(10));
            matches!(&rooms(&client).await[..], [room] if room.stage() == RoomStage::Open && is_in(room, "U1"))
        })
        .await;
        assert_eq!(workspace.rooms().len(), 1, "it was found, not made again");
        assert_eq!(members(&workspace, 0), set(&[BOT, "U1"]));
        assert!(world.chassis.drain().await);
    }
}

#[tokio::test]
async fn a_taken_name_is_somebody_elses_and_a_limit_is_waited_out() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        workspace.foreign("wedding-w-1");
        workspace.next("conversations.invite", Trouble::Limited(90));
        people(&client, &["one"]).await;
        switch(&client, true).await;
        let room = until(&client, "limited", |room| room.said == "ratelimited").await;
        assert!(room.name.starts_with("wedding-w-1-") && room.name.len() == "wedding-w-1-".len() + 8, "{}", room.name);
        assert_eq!(members(&workspace, 0), set(&[]), "nobody comes into a room that isn't ours");
        assert_eq!(workspace.rooms()[0].purpose, "");
        world.time.advance(Duration::from_secs(89));
        // What is due later is looked at after what was due before.
        people_of(&client, "W 2", &["two"]).await;
        poll("another room", async || workspace.rooms().get(2).is_some_and(|room| room.members.contains("U2"))).await;
        assert_eq!(workspace.calls("conversations.invite"), 2, "the other's; not before they said");
        world.time.advance(Duration::from_secs(2));
        poll("in", async || members(&workspace, 1).contains("U1")).await;
        assert_eq!(members(&workspace, 1), set(&[BOT, "U1"]));
        assert!(world.chassis.drain().await);
    }
}

#[tokio::test]
async fn two_organizations_with_a_wedding_of_one_name_never_share_a_room() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, one) = start(store).await;
        let other = world.client("wsk_b").await;
        vendors(&other).await;
        // The first has made its room, and can't mark it yet.
        workspace.next("conversations.setPurpose", Trouble::Limited(90));
        people(&one, &["one"]).await;
        switch(&one, true).await;
        let made = until(&one, "made", |room| room.said == "ratelimited").await;
        people(&other, &["two"]).await;
        switch(&other, true).await;
        let opened = until(&other, "open", |room| room.stage() == RoomStage::Open && is_in(room, "U2")).await;
        assert_ne!((&made.slack_channel_id, &made.name), (&opened.slack_channel_id, &opened.name));
        world.time.advance(Duration::from_secs(91));
        until(&one, "open", |room| room.stage() == RoomStage::Open && is_in(room, "U1")).await;
        assert_eq!((members(&workspace, 0), members(&workspace, 1)), (set(&[BOT, "U1"]), set(&[BOT, "U2"])));
        assert_eq!(workspace.rooms().len(), 2);
        assert!(world.chassis.drain().await);
    }
}

async fn day(world: &World, id: &str, wedding: &str, days: i64) {
    let day = world.chassis.clock.now().to_zoned(jiff::tz::TimeZone::UTC).date() + jiff::Span::new().days(days);
    let row = json!({"id": wedding, "wedding_date": day.to_string(), "time_zone": "UTC"});
    let event = change(id, "wedding_details", router::Operation::Insert, Value::Null, row);
    world.event(event, router::Plan::default()).await;
}

#[tokio::test]
async fn whoever_cant_be_taken_out_keeps_nobody_else_in() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        people(&client, &["one", "two"]).await;
        switch(&client, true).await;
        until(&client, "full", |room| is_in(room, "U1") && is_in(room, "U2")).await;
        workspace.sticks("U1");
        people(&client, &[]).await;
        let room = until(&client, "refused", |room| !room.said.is_empty()).await;
        assert_eq!(members(&workspace, 0), set(&[BOT, "U1"]), "U2 is out");
        let left: Vec<_> = room.members.iter().map(|member| (&*member.slack_user_id, &*member.said)).collect();
        assert_eq!(left, [("U1", "cant_kick_from_general")]);
        assert!(world.chassis.drain().await);
    }
}

#[tokio::test]
async fn a_day_that_is_corrected_after_the_end_makes_another_room() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        people(&client, &["one"]).await;
        switch(&client, true).await;
        until(&client, "open", |room| room.stage() == RoomStage::Open && is_in(room, "U1")).await;
        day(&world, "wrong", "W 1", -400).await;
        until(&client, "archived", |room| room.stage() == RoomStage::Archived).await;
        day(&world, "right", "W 1", 30).await;
        let room = until(&client, "open again", |room| room.stage() == RoomStage::Open && is_in(room, "U1")).await;
        assert!(room.name.starts_with("wedding-w-1-"), "{}", room.name);
        assert_eq!((workspace.rooms().len(), members(&workspace, 1)), (2, set(&[BOT, "U1"])));
        assert!(world.chassis.drain().await);
    }
}

#[tokio::test]
async fn a_person_who_cant_be_read_holds_up_no_other_weddings_room() {
    let (_folder, engines) = engines();
    for store in engines {
        let (world, workspace, client) = start(store).await;
        people(&client, &["one"]).await;
        let request =
            SetWeddingRecipientsRequest { wedding_id: "W 2".to_owned(), recipient_ids: vec!["two".to_owned()] };
        client.recipients().set_wedding_recipients(request).await.unwrap();
        // Nothing opens what is said of the first.
        let broken = "UPDATE recipients SET contact = substr(contact, 1, 5) WHERE id = 'one'";
        let world = world.restart_after(&[broken]).await;
        let client = world.client("wsk_a").await;
        switch(&client, true).await;
        poll("the other room", async || workspace.rooms().iter().any(|room| room.members.contains("U2"))).await;
        assert!(world.chassis.drain().await);
    }
}
