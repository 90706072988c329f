//! A wedding's room survives kill -9 at each of its steps: the notifier runs as a process of its own, Slack holds a call, done
//! or not yet, and the process is killed then. Between two calls there is nothing but a commit, so these are all the moments.

use chassis::{
    clock::{Clock, ManualClock},
    config::StoreSettings,
    service::Chassis,
    tasks::Tasks,
    testing::{engines, manual_clock},
};
use proto::{
    notifier::v1::RoomStage,
    router::v1::{Operation, Plan},
};
use serde_json::{Value, json};

use crate::{
    kill::Process,
    room::{is_in, members, people, set, switch, until, vendors},
    router::Router,
    slack::{BOT, Trouble, Workspace},
    world::{Client, change},
};

/// What is around the process, and outlives it.
struct Around {
    chassis: Chassis,
    router: Router,
    workspace: Workspace,
    time: ManualClock,
    told: Value,
}

impl Around {
    async fn start(store: &StoreSettings) -> Self {
        let (time, clock) = manual_clock();
        let chassis = Chassis::new((*Chassis::for_test().shared).clone(), clock).unwrap();
        let (router, at) = Router::start(&chassis).await;
        let workspace = Workspace::start(&Tasks::default(), &["U1", "U2"], chassis.clock.now().as_second()).await;
        let told = json!({
            "url": store.url.expose(),
            "schema": store.schema,
            "router": format!("http://{at}"),
            "smtp": 1,
            "slack": workspace.base(),
            "master_key": chassis.shared.secrets.master_keys[0].expose(),
        });
        Self { chassis, router, workspace, time, told }
    }

    fn process(&self) -> Process {
        let mut told = self.told.clone();
        told["now"] = Clock::Manual(self.time.clone()).now().as_second().into();
        Process::start(&told)
    }

    /// Has a process begin this call, and kills it then; `act` is done before, and `meanwhile` while the call is under way.
    async fn kill_at(
        &self,
        method: &str,
        trouble: Trouble,
        act: impl AsyncFnOnce(&Client),
        meanwhile: impl AsyncFnOnce(&Client),
    ) {
        self.workspace.next(method, trouble);
        let process = self.process();
        let client = process.client().await;
        act(&client).await;
        self.workspace.holds().await;
        meanwhile(&client).await;
    }

    async fn is_open_with(&self, user: &str) {
        let process = self.process();
        let client = process.client().await;
        until(&client, "open", |room| room.stage() == RoomStage::Open && is_in(room, user) && room.members.len() == 1)
            .await;
    }
}

async fn nothing(_: &Client) {}

async fn first(client: &Client) {
    vendors(client).await;
    people(client, &["one"]).await;
    switch(client, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_makes_no_second_room_and_loses_no_invitation_and_no_removal() {
    for trouble in [Trouble::HeldBefore, Trouble::HeldAfter] {
        let (_folder, engines) = engines();
        for store in engines {
            let around = Around::start(&store).await;
            around.kill_at("conversations.create", trouble, first, nothing).await;
            if matches!(trouble, Trouble::HeldAfter) {
                // It is there: what is found under its name is looked at.
                around.kill_at("conversations.list", trouble, nothing, nothing).await;
                around.kill_at("auth.test", trouble, nothing, nothing).await;
            }
            around.kill_at("conversations.setPurpose", trouble, nothing, nothing).await;
            around.kill_at("conversations.invite", trouble, nothing, nothing).await;
            around.is_open_with("U1").await;
            let other = async |client: &Client| people(client, &["two"]).await;
            around.kill_at("conversations.invite", trouble, other, nothing).await;
            around.kill_at("conversations.kick", trouble, nothing, nothing).await;
            around.is_open_with("U2").await;
            assert_eq!(members(&around.workspace, 0), set(&[BOT, "U2"]), "{trouble:?}");

            let day = around.chassis.clock.now().to_string()[..10].to_owned();
            let row = json!({"id": "W 1", "wedding_date": day, "time_zone": "UTC"});
            around
                .router
                .append(change("day", "wedding_details", Operation::Insert, Value::Null, row), Plan::default());
            around.time.advance(std::time::Duration::from_secs(4 * 86_400));
            around.kill_at("conversations.archive", trouble, nothing, nothing).await;
            let process = around.process();
            until(&process.client().await, "archived", |room| room.stage() == RoomStage::Archived).await;
            let rooms = around.workspace.rooms();
            assert_eq!((rooms.len(), rooms[0].archived), (1, true), "{trouble:?}");
            drop(process);
            assert!(around.chassis.drain().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_wanted_changes_while_a_call_is_under_way_and_a_kill_forgets_neither() {
    for trouble in [Trouble::HeldBefore, Trouble::HeldAfter] {
        let (_folder, engines) = engines();
        for store in engines {
            let around = Around::start(&store).await;
            let two = async |client: &Client| people(client, &["two"]).await;
            let one = async |client: &Client| people(client, &["one"]).await;
            around.kill_at("conversations.invite", trouble, first, two).await;
            around.is_open_with("U2").await;
            assert_eq!(members(&around.workspace, 0), set(&[BOT, "U2"]), "{trouble:?}: the first was taken out again");
            around.kill_at("conversations.kick", trouble, one, two).await;
            around.is_open_with("U2").await;
            assert_eq!(
                members(&around.workspace, 0),
                set(&[BOT, "U2"]),
                "{trouble:?}: the second was brought in again"
            );
            assert_eq!(around.workspace.rooms().len(), 1);
            assert!(around.chassis.drain().await);
        }
    }
}
