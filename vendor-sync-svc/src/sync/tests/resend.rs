//! Again: deliveries of integrations that are sent once more on request, written anew from the log and the record.

use std::sync::Arc;

use chassis::{
    clock::Clock,
    error::Error,
    id::{self, OrganizationId},
    lane::State as Stage,
    outbound::{Outbound, OutboundSettings},
    secret::DataKeys,
    service::Chassis,
    store::Store,
    testing::on_each_engine,
};
use jiff::Timestamp;
use proto::router::v1 as wire;
use serde_json::json;

use super::{World, acme, changed, guests, peer::Peer};
use crate::{
    body::Renderer,
    endpoint::book::Book,
    inbound::tests::Router as Log,
    manage::Endpoints,
    policy::Personal,
    replay::{Range, Replays},
    router::Router,
};

/// A world with a router whose log is kept, and who sends again.
struct Again {
    world: World,
    log: Log,
    replays: Replays,
}

impl Again {
    async fn open(store: Store, chassis: &Chassis) -> Self {
        let (log, peer) = Log::serve(chassis).await;
        let world = World::over(store.clone(), chassis, &peer).await;
        world.declare().await;
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), Clock::System);
        let outbound = Outbound::new(&OutboundSettings::default()).expect("a client");
        let dispatcher = world.engine.dispatcher.clone();
        let endpoints = Endpoints::open(store, keys, Book::default(), dispatcher, outbound, Clock::System).await;
        let replays = Replays {
            endpoints: Arc::new(endpoints.expect("they are read")),
            router: Router::new(&peer),
            renderer: Renderer::new(Personal::built_in()),
            offers: world.engine.offers.clone(),
            tasks: chassis.tasks.clone(),
        };
        Self { world, log, replays }
    }

    /// Handles an event of the log.
    async fn handle(&self, event: wire::Event) {
        self.log.store(event.clone()).expect("it is kept");
        self.world.handle(event).await;
    }
}

async fn on_each<F: Future<Output = ()>>(test: impl Fn(Again) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, |store| {
        let test = &test;
        async move {
            let chassis = Chassis::for_test();
            test(Again::open(store, &chassis).await).await;
            chassis.drain().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_refused_is_sent_again_as_the_record_is_now() {
    on_each(async |again: Again| {
        let (world, peer) = (&again.world, Peer::start().await);
        let integration = world.account(&peer, "s1").await;
        peer.refuse(Some(422));
        again.handle(changed(1, "w1", guests(80, 90), &["s1"])).await;
        // Refused too: the record goes on, and this vendor has nothing of it.
        again.handle(changed(2, "w1", guests(90, 95), &["s1"])).await;
        let records = world.settled(&integration, 2).await;
        assert!(records.iter().all(|record| record.state == Stage::Dead as i64), "{records:?}");
        let dead = records.last().expect("two").clone();
        peer.refuse(None);
        let opened = again.replays.resend(&acme(), dead.id).await.expect("it is opened");
        assert_eq!((opened.id, &opened.event), (dead.id, &dead.event));
        let records = world.settled(&integration, 2).await;
        assert_eq!(records.last().map(|record| record.state), Some(Stage::Delivered as i64), "{records:?}");
        let said: Vec<_> = peer.asked().into_iter().map(|(method, body)| (method, body["guests"].clone())).collect();
        assert_eq!(said.last(), Some(&("POST".to_owned(), json!(95))), "{said:?}");
        // What it is known to have isn't said again.
        again.replays.resend(&acme(), dead.id).await.expect("it is opened");
        let records = world.settled(&integration, 2).await;
        assert_eq!((records[1].reason.as_str(), peer.asked().len()), ("the vendor has it already", said.len()));
        // Whose wedding it no longer is learns nothing of how it is now.
        again.handle(changed(3, "w1", guests(95, 99), &["s2"])).await;
        assert!(matches!(again.replays.resend(&acme(), dead.id).await, Err(Error::NotFound(_))));
        assert_eq!(peer.asked().len(), said.len());
    })
    .await;
}

#[tokio::test]
async fn an_events_own_operation_is_done_once_however_often_it_is_sent_again() {
    on_each(async |again: Again| {
        let (world, peer) = (&again.world, Peer::start().await);
        let integration = world.account(&peer, "").await;
        let event = milestone("e1");
        again.handle(event.clone()).await;
        let record = world.settled(&integration, 1).await.remove(0);
        assert_eq!(record.state, Stage::Delivered as i64, "{record:?}");
        world.consume(event, true).await;
        again.replays.resend(&acme(), record.id).await.expect("it is opened");
        let records = world.settled(&integration, 1).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
        let asked = peer.asked();
        assert_eq!(asked, [("NOTE".to_owned(), json!({"text": "wedding.milestone_reached"}))]);
    })
    .await;
}

#[tokio::test]
async fn all_of_an_integration_is_opened_again_but_no_other_organizations_nor_what_it_may_not_see() {
    on_each(async |again: Again| {
        let (world, peer) = (&again.world, Peer::start().await);
        let integration = world.account(&peer, "s1").await;
        peer.refuse(Some(422));
        for (number, wedding) in [(1, "w1"), (2, "w2")] {
            again.handle(changed(number, wedding, guests(80, 90), &["s1"])).await;
        }
        // This one is no longer in the log.
        world.handle(changed(3, "w3", guests(80, 90), &["s1"])).await;
        let records = world.settled(&integration, 3).await;
        peer.refuse(None);
        let other = OrganizationId::parse("other").expect("well-formed");
        assert!(again.replays.target(&other, &integration.id).is_err());
        assert!(matches!(again.replays.resend(&other, records[0].id).await, Err(Error::NotFound(_))));
        let target = again.replays.target(&acme(), &integration.id).expect("its own");
        let range = Range { since: Timestamp::UNIX_EPOCH, until: None };
        assert_eq!(again.replays.replay(target.clone(), range, true).await.expect("counted"), 3);
        assert_eq!(again.replays.replay(target.clone(), range, false).await.expect("opened"), 2);
        let records = world.settled(&integration, 3).await;
        let delivered = records.iter().filter(|record| record.state == Stage::Delivered as i64).count();
        assert_eq!((delivered, peer.shop().jobs.len()), (2, 2));
        // Dead letters go out as they were written, whether or not the log still has their event.
        assert_eq!(again.replays.recover(&target, Timestamp::UNIX_EPOCH, false).await.expect("recovered"), 1);
        world.settled(&integration, 3).await;
        assert_eq!(peer.shop().jobs.len(), 3);
    })
    .await;
}

fn milestone(id: &str) -> wire::Event {
    let data = r#"{"wedding_id":"w1","milestone":"menu chosen"}"#.into();
    let content = wire::Content { content_type: "application/json".to_owned(), data };
    wire::Event {
        id: id.to_owned(),
        uid: id::uuid(Clock::System.now()),
        r#type: "wedding.milestone_reached".to_owned(),
        payload: Some(wire::event::Payload::Content(content)),
        ..changed(0, "w1", guests(1, 2), &[])
    }
}
