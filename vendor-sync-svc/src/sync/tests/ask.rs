//! Asking: lists that are polled, hints that are read first, a sync that somebody asks for, and handshakes.

use chassis::{lane::State as Stage, with};
use jiff::Timestamp;
use proto::vendorsync::v1::{
    Header, ReceiveWebhookRequest, SyncNowRequest, WebhookResult, sync_service_server::SyncService as _,
    webhook_service_server::WebhookService as _,
};
use serde_json::{Value, json};
use tonic::{Code, Request};

use super::{
    World, acme, changed, guests, in_a_world,
    peer::{Job, Peer},
};
use crate::{
    credential::{Kept, State},
    inbound::Answer,
    record::RecordKind,
    rpc,
    tests::asked,
};

impl World {
    /// Whatever waits for its time is due.
    async fn make_due(&self) {
        for text in ["UPDATE polls SET next_at = 0", "UPDATE rereads SET next_at = 0"] {
            with!(self.store.writer(), c => sqlx::query(text).execute(c).await.map(drop)).expect("written");
        }
    }

    async fn rereads(&self) -> i64 {
        with!(self.store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM rereads").fetch_one(c).await)
            .expect("counted")
    }

    async fn told(&self) -> Vec<String> {
        let (events, _) = self.engine.resolver.outbox.look(&acme()).await;
        events.into_iter().map(|event| event.r#type).collect()
    }
}

fn job(guests: u32) -> Job {
    Job { version: 1, body: json!({"reference": null, "guests": guests, "date": "2026-06-20", "place": "Barn"}) }
}

#[tokio::test]
async fn a_poll_asks_from_where_the_last_that_was_committed_began_and_what_it_finds_twice_changes_nothing() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let account = world.engine.accounts.get(&integration.id).expect("known");
        let poll = async || world.engine.polls.poll(&account, RecordKind::Wedding).await;
        peer.shop().jobs.insert("job-7".to_owned(), job(60));
        let found = poll().await.expect("it answers");
        assert_eq!((found.items, found.changed), (1, 1));
        assert_eq!(world.told().await.len(), 1);
        let found = poll().await.expect("it answers");
        assert_eq!((found.items, found.changed), (1, 0));
        peer.refuse(Some(500));
        assert!(poll().await.is_err());
        peer.refuse(None);
        peer.shop().jobs.insert("job-7".to_owned(), Job { version: 2, ..job(61) });
        assert_eq!(poll().await.expect("it answers").changed, 1);
        let lists = peer.shop().lists.clone();
        assert_eq!((lists.len(), lists[0].as_str()), (3, ""), "the first is asked for all");
        let times: Vec<Timestamp> = lists[1..].iter().map(|since| since.parse().expect("a time")).collect();
        assert!(times[0] < times[1], "what failed moved nothing: {lists:?}");
        assert_eq!(world.told().await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn however_many_look_at_once_each_list_is_walked_by_one() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        world.account(&peer, "").await;
        world.engine.polls.turn().await.expect("the store is there");
        world.make_due().await;
        let before = peer.shop().lists.len();
        let turns = (0..5).map(|_| world.engine.polls.turn());
        futures_util::future::try_join_all(turns).await.expect("the store is there");
        assert_eq!(peer.shop().lists.len(), before + 1);
    })
    .await;
}

#[tokio::test]
async fn a_hint_is_believed_only_once_it_was_read_and_waits_while_it_cant_be() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        peer.shop().jobs.insert("job-9".to_owned(), job(33));
        let hint = json!({"event": "job.hinted", "job": {"id": "job-9", "guests": 9_999}}).to_string();
        assert!(matches!(world.sends(&integration, &hint).await, Answer::Accepted { .. }));
        assert!(world.told().await.is_empty(), "nothing of it is believed");
        let reader = world.engine.reader();
        peer.refuse(Some(503));
        assert!(reader.turn().await.expect("the store is there"));
        assert_eq!(world.rereads().await, 1);
        peer.refuse(None);
        world.make_due().await;
        reader.turn().await.expect("the store is there");
        assert_eq!((world.rereads().await, world.told().await.len()), (0, 1));
        let said = json!({"id": "job-9", "version": "1", "guests": 33});
        world.says(&integration, &said).await;
        assert_eq!(world.told().await.len(), 1, "that is what was read");
    })
    .await;
}

#[tokio::test]
async fn a_vendor_that_tries_the_address_out_gets_its_challenge_back() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let service = rpc::webhooks::Service::new(world.inbound.clone());
        let request = ReceiveWebhookRequest {
            vendor: "shop".to_owned(),
            integration_id: integration.id.clone(),
            headers: vec![Header { name: "Host".to_owned(), value: "example.com".into() }],
            method: "GET".to_owned(),
            target: format!("/webhooks/shop/{}?challenge=a%2Bb", integration.id),
            ..ReceiveWebhookRequest::default()
        };
        let foreign = ReceiveWebhookRequest { vendor: "other".to_owned(), ..request.clone() };
        let answer = service.receive_webhook(Request::new(request)).await.expect("answered").into_inner();
        assert_eq!((answer.result(), answer.echo_status, answer.echo.as_str()), (WebhookResult::Echo, 200, "a+b"));
        let answer = service.receive_webhook(Request::new(foreign)).await.expect("answered").into_inner();
        assert_eq!(answer.result(), WebhookResult::Unknown);
    })
    .await;
}

#[tokio::test]
async fn who_asks_for_a_sync_has_what_waits_sent_now_and_its_list_read() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let service = rpc::sync::Service { engine: world.engine.clone() };
        let now = || SyncNowRequest { integration_id: integration.id.clone() };
        let foreign = service.sync_now(asked("other", now())).await.expect_err("it isn't theirs");
        assert_eq!(foreign.code(), Code::NotFound);
        peer.refuse(Some(503));
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world
            .until("it waits for its next try", async || {
                world.deliveries(&integration).await[0].attempts == 1 && peer.asked().len() == 1
            })
            .await;
        peer.refuse(None);
        peer.shop().jobs.insert("job-7".to_owned(), job(60));
        let answer = service.sync_now(asked("acme", now())).await.expect("it is done").into_inner();
        assert_eq!(answer.hastened, 1);
        let records = world.settled(&integration, 1).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
        // The first list may have met what was being made.
        let answer = service.sync_now(asked("acme", now())).await.expect("it is done").into_inner();
        assert_eq!((answer.polled.len(), answer.polled[0].failure.as_str()), (1, ""));
        assert!(answer.polled[0].items >= 1, "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn an_integration_to_be_connected_again_waits_with_all_that_it_has_and_goes_on_then() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        peer.refuse(Some(401));
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        let state = || world.engine.accounts.get(&integration.id).map(|account| account.state);
        world.until("its credential is refused", async || state() == Some(State::NeedsReconnect)).await;
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        world.handle(changed(3, "w2", guests(10, 20), &[])).await;
        peer.refuse(None);
        let before = peer.asked().len();
        world.engine.dispatcher.hasten(&integration.id, &acme()).await.expect("the store is there");
        let service = rpc::sync::Service { engine: world.engine.clone() };
        let now = SyncNowRequest { integration_id: integration.id.clone() };
        let refused = service.sync_now(asked("acme", now)).await.expect_err("nobody may be asked");
        assert_eq!((refused.code(), peer.asked().len()), (Code::FailedPrecondition, before));
        let key = Kept::Key("another".to_owned().into());
        let connections = &world.engine.credentials.connections;
        connections.connect(&integration, &key, &Default::default(), None).await.expect("connected");
        world.engine.accounts.refresh(&acme(), &integration.id).await.expect("known");
        let service = rpc::sync::Service { engine: world.engine.clone() };
        let now = SyncNowRequest { integration_id: integration.id.clone() };
        service.sync_now(asked("acme", now)).await.expect("it is connected");
        let records = world.settled(&integration, 3).await;
        assert!(records.iter().all(|record| record.state == Stage::Delivered as i64), "{records:?}");
        let has = |id: &str| peer.shop().jobs.values().find(|job| job.body["reference"] == json!(id)).map(guests_of);
        assert_eq!((has("w1"), has("w2")), (Some(json!(95)), Some(json!(20))));
    })
    .await;
}

fn guests_of(job: &Job) -> Value {
    job.body["guests"].clone()
}
