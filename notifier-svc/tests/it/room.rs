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
    world::{Client, World, change},
};

async fn start(store: StoreSettings) -> (World, Workspace, Client) {
    let (time, clock) = manual_clock();
    let (world, workspace) = World::start_with_slack(store, time, clock, &["U1", "U2"]).await;
    let client = world.client("wsk_a").await;
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
    (world, workspace, client)
}

async fn switch(client: &Client, on: bool) {
    let settings = OrganizationSettings { slack_weddings: on, slack_archive_days: 3, ..Default::default() };
    let request = UpdateOrganizationSettingsRequest { settings: Some(settings) };
    client.settings().update_organization_settings(request).await.unwrap();
}

async fn people(client: &Client, ids: &[&str]) {
    let recipient_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = SetWeddingRecipientsRequest { wedding_id: "W 1".to_owned(), recipient_ids };
    client.recipients().set_wedding_recipients(request).await.unwrap();
}

async fn rooms(client: &Client) -> Vec<Room> {
    client.slack_rooms().list_rooms(ListRoomsRequest::default()).await.unwrap().into_inner().rooms
}

/// Waits until the one room is like this.
async fn until(client: &Client, what: &str, is: impl Fn(&Room) -> bool) -> Room {
    let mut last = Vec::new();
    for _ in 0..12_000 {
        last = rooms(client).await;
        if let [room] = &last[..]
            && is(room)
        {
            return room.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not {what} within two minutes: {last:?}");
}

/// Waits until something holds.
async fn holds(is_so: impl AsyncFn() -> bool) {
    for _ in 0..12_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it doesn't come to it within two minutes");
}

/// Lets hours go by until something holds, with time for a look in each.
async fn passes(world: &World, is_so: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        world.time.advance(Duration::from_secs(3_600));
        for _ in 0..70 {
            if is_so().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("it doesn't come to it");
}

fn is_in(room: &Room, user: &str) -> bool {
    room.members.iter().any(|member| member.slack_user_id == user && member.standing() == RoomStanding::In)
}

fn members(workspace: &Workspace, at: usize) -> BTreeSet<String> {
    workspace.rooms()[at].members.clone()
}

fn set(users: &[&str]) -> BTreeSet<String> {
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
        let is_through = |room: &Room| room.stage() == RoomStage::Open && is_in(room, "U1");
        passes(&world, async || matches!(&rooms(&client).await[..], [room] if is_through(room))).await;
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
        // A room that is due now is attended to, and this one isn't.
        let request =
            SetWeddingRecipientsRequest { wedding_id: "W 2".to_owned(), recipient_ids: vec!["ghost".to_owned()] };
        client.recipients().set_wedding_recipients(request).await.unwrap();
        let other = async || {
            let rooms = rooms(&client).await;
            rooms.iter().any(|room| room.members.iter().any(|member| member.said == "user_not_found"))
        };
        holds(other).await;
        assert_eq!(workspace.calls("conversations.invite"), 2, "the other's, and none before they said");
        world.time.advance(Duration::from_secs(2));
        holds(async || rooms(&client).await.iter().any(|room| is_in(room, "U1"))).await;
        assert_eq!(members(&workspace, 1), set(&[BOT, "U1"]));
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
        holds(async || workspace.rooms().iter().any(|room| room.members.contains("U2"))).await;
        assert!(world.chassis.drain().await);
    }
}
