//! The outbox between a store and a router, on each engine.

use chassis::{service::Chassis, testing::on_each_engine};
use tonic::Status;

use super::*;
use crate::{inbound::tests::Router as Log, sync::tests::alone};

/// An outbox, and the router that it publishes to.
struct World {
    outbox: Outbox,
    router: Router,
    log: Log,
    _chassis: Chassis,
}

impl World {
    async fn open(store: &Store) -> Self {
        let chassis = Chassis::for_test();
        let (log, peer) = Log::serve(&chassis).await;
        let outbox = alone(store).await.resolver.outbox;
        Self { outbox, router: Router::new(&peer), log, _chassis: chassis }
    }

    async fn put(&self, id: &str, key: &str, data: &str) {
        let organization = OrganizationId::parse("acme").expect("well-formed");
        let content = wire::Content { content_type: String::new(), data: Bytes::copy_from_slice(data.as_bytes()) };
        let event = wire::Event {
            id: id.to_owned(),
            organization_id: organization.to_string(),
            r#type: "client.updated".to_owned(),
            ordering_key: key.to_owned(),
            payload: Some(wire::event::Payload::Content(content)),
            ..wire::Event::default()
        };
        let sealing = self.outbox.keys.of(&organization).await.expect("a key");
        let mut tx = self.outbox.store.begin().await.expect("it begins");
        self.outbox.put_in(&mut tx, &sealing, &event).await.expect("it is put");
        tx.commit().await.expect("it is committed");
    }

    async fn turn(&self) -> Result<bool> {
        self.outbox.turn(&self.router, &mut Held::default()).await
    }

    async fn drain(&self) {
        while self.turn().await.expect("the router takes it") {}
    }

    fn published(&self) -> Vec<String> {
        self.log.events().into_iter().map(|event| event.id).collect()
    }

    async fn waiting(&self) -> usize {
        self.outbox.look(&OrganizationId::parse("acme").expect("well-formed")).await.0.len()
    }
}

async fn in_a_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, |store| {
        let test = &test;
        async move { test(World::open(&store).await).await }
    })
    .await;
}

#[tokio::test]
async fn events_of_one_key_are_published_in_the_order_of_their_commits() {
    in_a_world(async |world: World| {
        for number in 0..6 {
            world.put(&format!("a{number}"), "w1", "{}").await;
            world.put(&format!("b{number}"), "w2", "{}").await;
        }
        world.drain().await;
        let published = world.published();
        for key in ["a", "b"] {
            let of_key: Vec<_> = published.iter().filter(|id| id.starts_with(key)).cloned().collect();
            assert_eq!(of_key, (0..6).map(|number| format!("{key}{number}")).collect::<Vec<_>>());
        }
        assert_eq!(world.waiting().await, 0);
    })
    .await;
}

#[tokio::test]
async fn what_is_published_again_after_a_crash_is_one_event() {
    in_a_world(async |world: World| {
        world.put("a1", "w1", "{}").await;
        world.drain().await;
        // The process died between the router's answer and the removal.
        world.put("a1", "w1", "{}").await;
        world.drain().await;
        assert_eq!((world.published(), world.waiting().await), (vec!["a1".to_owned()], 0));
    })
    .await;
}

#[tokio::test]
async fn while_the_router_refuses_for_now_all_waits_and_what_it_never_takes_is_set_aside() {
    in_a_world(async |world: World| {
        world.put("a1", "w1", "{}").await;
        world.put("a2", "w1", "{}").await;
        world.log.refuse(Some(Status::unavailable("away")));
        assert!(matches!(world.turn().await, Err(Error::Unavailable(_))));
        assert_eq!(world.waiting().await, 2);
        world.log.refuse(Some(Status::resource_exhausted("slow down")));
        assert!(!world.turn().await.expect("others go on"));
        assert_eq!(world.waiting().await, 2);
        world.log.refuse(None);
        world.drain().await;
        // The same id with something else in it is never taken.
        world.put("a1", "w1", r#"{"other":1}"#).await;
        world.put("a3", "w1", "{}").await;
        world.drain().await;
        assert_eq!(world.published(), ["a1", "a2", "a3"]);
    })
    .await;
}

#[tokio::test]
async fn what_waits_of_one_organization_refuses_no_others_changes() {
    in_a_world(async |world: World| {
        let organization = |name: &str| OrganizationId::parse(name).expect("well-formed");
        for number in 0..3 {
            world.put(&format!("a{number}"), "w1", "{}").await;
        }
        let holds = async |name: &str, count| world.outbox.holds(&organization(name), count).await.expect("looked");
        assert_eq!((holds("acme", 2).await, holds("acme", 3).await, holds("other", 0).await), (true, false, false));
        let refused = with!(world.outbox.store.writer(), c => {
            sqlx::query("UPDATE outbox SET refused = 'no' WHERE event_id = 'a1'").execute(c).await.map(drop)
        });
        refused.expect("it is refused");
        assert!(!holds("acme", 2).await, "what was refused doesn't wait");
    })
    .await;
}
