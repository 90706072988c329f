//! What was answered OK survives the process, and arrives, on each engine: short forms of what `make crash` and
//! `make chaos` do at length.

use std::time::Duration;

use proto::router::v1::{
    Content, Event, GetEventRequest, PublishRequest, event::Payload, event_service_client::EventServiceClient,
};

use super::{
    crash::{
        Chance, Verdict, database,
        kill::{self, Kills},
        standstill, stop,
    },
    endure::{self, Layout, Plan},
    harness::{Engine, Wedsync, client, provided},
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

/// Events a second: little, since other tests share the machine.
const RATE: u32 = 90;

fn assert_kept(verdict: &Verdict) {
    println!("{verdict:?}");
    assert!(verdict.ok && verdict.outcome.acknowledged > 0, "{verdict:#?}");
}

#[tokio::test]
async fn a_process_that_stood_still_goes_on_and_meanwhile_nobody_takes_its_store() {
    for engine in Engine::all() {
        assert_kept(&standstill::run(&engine, RATE, Duration::from_secs(3), 1).await);
    }
}

/// On one engine: the hanging attempts take their ten seconds.
#[tokio::test]
async fn a_stop_beside_a_hanging_receiver_ends_in_time_and_the_healthy_ones_get_everything_once() {
    assert_kept(&stop::run(&Engine::Sqlite, RATE, 1).await);
}

/// On a server of its own.
#[tokio::test]
async fn a_database_that_is_cut_off_and_comes_back_costs_nothing() {
    if provided("WEDSYNC_TEST_POSTGRES").is_some() {
        assert_kept(&database::run(RATE, 2, 500, Chance::seed()).await);
    }
}

/// Short forms of `make endure`: the processes apart and their log in files, or in one on the very server that is captured.
async fn assert_endured(layout: Layout, in_files: bool) {
    if provided("WEDSYNC_TEST_POSTGRES").is_none() || !layout.is_there() {
        return;
    }
    let plan = Plan { seed: Chance::seed(), changes: 600, held: 240, rate: RATE, times: 1, cuts: 8 };
    println!("{plan:?}");
    let mut told = 0;
    let kept = Box::pin(endure::run(layout, in_files, &plan, |line| {
        println!("{line:?}");
        told += line.changes;
    }))
    .await;
    assert!(kept && told >= plan.changes, "{plan:?}");
}

#[tokio::test]
async fn each_committed_change_reaches_each_subscriber_once_whatever_breaks_between_them() {
    assert_endured(Layout::Apart, true).await;
}

#[tokio::test]
async fn each_committed_change_reaches_each_subscriber_once_where_the_log_is_on_the_captured_server() {
    assert_endured(Layout::Together, false).await;
}
