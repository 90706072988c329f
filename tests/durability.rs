//! What was answered OK survives the process, and arrives, on each engine.

use proto::router::v1::{
    Content, Event, GetEventRequest, PublishRequest, event::Payload, event_service_client::EventServiceClient,
};

use super::{
    crash::{
        Chance,
        kill::{self, Kills},
    },
    harness::{Engine, Wedsync, client},
};

fn event(id: &str) -> Event {
    let content = Content { content_type: String::new(), data: r#"{"note":"kept"}"#.into() };
    Event {
        id: id.to_owned(),
        r#type: "test.noted".to_owned(),
        source: "durability".to_owned(),
        payload: Some(Payload::Content(content)),
        ..Event::default()
    }
}

#[tokio::test]
async fn a_killed_process_comes_back_with_all_that_it_acknowledged() {
    for engine in Engine::all() {
        let mut system = Wedsync::start_on(&engine, &[]).await;
        let key = system.tenant("Kept").await;
        let mut events = EventServiceClient::new(client(system.addresses.router, &key));
        let ids: Vec<String> = (0..20).map(|number| format!("kept-{number}")).collect();
        for id in &ids {
            events.publish(PublishRequest { event: Some(event(id)) }).await.expect("it is stored");
        }
        system.kill().await;
        system.restart().await;

        let mut events = EventServiceClient::new(client(system.addresses.router, &key));
        for id in &ids {
            let request = GetEventRequest { id: id.clone(), organization_id: String::new() };
            let logged = events.get_event(request).await.expect("it is still there").into_inner();
            assert_eq!(logged.event.and_then(|logged| logged.event).expect("the event").id, *id, "{engine:?}");
            let again =
                events.publish(PublishRequest { event: Some(event(id)) }).await.expect("a duplicate is no error");
            assert!(again.into_inner().receipt.expect("a receipt").duplicate, "{engine:?}: {id} was stored twice");
        }
        assert!(system.stop().await.success(), "{engine:?}: the stop was not clean:\n{}", system.log());
    }
}

/// A short form of `make crash`.
#[tokio::test]
async fn however_often_it_is_killed_all_that_it_acknowledged_reaches_every_endpoint_unaltered() {
    for engine in Engine::all() {
        let kills = Kills { cycles: 3, seed: Chance::seed(), rate: 90, life_ms: 20..1_000 };
        let summary = kill::run(&engine, &kills, |_| {}).await;
        println!("{engine:?}: {summary:?}");
        assert!(summary.outcome.acknowledged > 0 && summary.outcome.is_good(), "{engine:?}: {summary:#?}");
    }
}
