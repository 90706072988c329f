//! Routes and channel configuration, as they are managed and as they show in plans.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use proto::router::v1::{
    ConfigureChannelRequest, CreateRouteRequest, DeleteRouteRequest, Destination, Event, GetEventRequest, Integration,
    ListChannelConfigurationsRequest, ListRoutesRequest, Operation, Plan, Route, TestRouteRequest, TestRouteResponse,
    UpdateRouteRequest, Webhooks, destination::Kind,
};
use serde_json::json;
use tonic::Code;

use crate::world::{Client, change, content, keyed, on_each};

/// A route to the webhooks.
pub(crate) fn own_route(type_: &str, condition: &str) -> Route {
    let webhooks = Destination { kind: Some(Kind::Webhooks(Webhooks {})), ..Destination::default() };
    Route {
        types: vec![type_.to_owned()],
        condition: condition.to_owned(),
        destinations: vec![webhooks],
        ..Route::default()
    }
}

pub(crate) async fn create(client: &Client, route: Route) -> Route {
    client.routes().create_route(CreateRouteRequest { route: Some(route) }).await.unwrap().into_inner().route.unwrap()
}

pub(crate) async fn list(client: &Client) -> Vec<Route> {
    client.routes().list_routes(ListRoutesRequest::default()).await.unwrap().into_inner().routes
}

async fn update(client: &Client, route: Route) -> Result<Route, Code> {
    let updated = client.routes().update_route(UpdateRouteRequest { route: Some(route) }).await;
    updated.map(|answer| answer.into_inner().route.unwrap()).map_err(|status| status.code())
}

async fn tried(client: &Client, event: Event, route: Option<Route>) -> TestRouteResponse {
    client.routes().test_route(TestRouteRequest { event: Some(event), route }).await.unwrap().into_inner()
}

/// The plan that an event was stored with.
pub(crate) async fn plan(client: &Client, event: Event) -> Plan {
    let id = client.publish(event).await.id;
    let stored = client.events().get_event(GetEventRequest { id, ..Default::default() }).await.unwrap().into_inner();
    stored.event.unwrap().plan.unwrap()
}

pub(crate) fn kinds(plan: &Plan) -> Vec<String> {
    let kind = |destination: &Destination| match destination.kind.as_ref().unwrap() {
        Kind::Webhooks(_) => "webhooks".to_owned(),
        Kind::Notification(notification) => notification.workflow.clone(),
        Kind::Integration(integration) => integration.kind.clone(),
    };
    plan.destinations.iter().map(kind).collect()
}

#[tokio::test]
async fn an_update_counts_only_against_the_version_that_was_read() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let first = create(&a, own_route("test.*", "")).await;
        assert_eq!((first.version, first.built_in), (1, false));
        let second = update(&a, Route { description: "second".to_owned(), ..first.clone() }).await.unwrap();
        assert_eq!((second.version, &*second.description), (2, "second"));
        assert_eq!(update(&a, first.clone()).await, Err(Code::Aborted), "it was changed meanwhile");
        assert_eq!(update(&a, Route { version: u64::MAX, ..first.clone() }).await, Err(Code::Aborted));
        assert_eq!(update(&a, Route { id: "none".to_owned(), ..first.clone() }).await, Err(Code::NotFound));
        let racers =
            join_all((0..8).map(|number| update(&a, Route { description: number.to_string(), ..second.clone() })))
                .await;
        assert_eq!(
            racers.iter().filter(|racer| racer.is_ok()).count(),
            1,
            "of many who read one version, one writes: {racers:?}"
        );
        a.routes().delete_route(DeleteRouteRequest { id: first.id.clone() }).await.unwrap();
        assert_eq!(update(&a, Route { version: 3, ..first }).await, Err(Code::NotFound));
    })
    .await;
}

#[tokio::test]
async fn a_built_in_route_is_disabled_and_enabled_and_never_changed_or_removed() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let payment = |id: &str| content(id, "payment.received", json!({"wedding_id": "w"}));
        let built_in =
            list(&a).await.into_iter().find(|route| route.types.contains(&"payment.received".to_owned())).unwrap();
        assert!(built_in.built_in && kinds(&plan(&a, payment("p1")).await).contains(&"webhooks".to_owned()));
        let off =
            Route { disabled: true, description: "mine".to_owned(), condition: "false".to_owned(), ..built_in.clone() };
        for _ in 0..2 {
            let disabled = update(&a, off.clone()).await.unwrap();
            assert!(
                disabled.disabled
                    && disabled.description == built_in.description
                    && disabled.condition == built_in.condition
            );
        }
        assert!(!kinds(&plan(&a, payment("p2")).await).contains(&"webhooks".to_owned()));
        assert!(list(&a).await.iter().any(|route| route.id == built_in.id && route.disabled));
        assert!(kinds(&plan(&b, payment("p2")).await).contains(&"webhooks".to_owned()), "for others it is on");
        update(&a, built_in.clone()).await.unwrap();
        assert!(kinds(&plan(&a, payment("p3")).await).contains(&"webhooks".to_owned()));
        let refused = a.routes().delete_route(DeleteRouteRequest { id: built_in.id }).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_says_where_an_event_would_go_and_why_and_stores_nothing() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let row = |date: &str| json!({"id": "w", "wedding_date": date, "venue_id": "v"});
        let moved = || change("e1", "wedding_details", Operation::Update, row("2026-09-01"), row("2026-09-02"));
        let answer = tried(&a, moved(), None).await;
        let plan = answer.plan.unwrap();
        assert!(
            ["webhooks", "wedding_date_change", "photography_crm"]
                .iter()
                .all(|kind| kinds(&plan).contains(&(*kind).to_owned())),
            "{:?}",
            kinds(&plan)
        );
        assert!(answer.channels.contains(&"wedding:w".to_owned()), "{:?}", answer.channels);
        let matched: Vec<_> = plan.decisions.iter().filter(|decision| decision.matched).collect();
        assert!(matched.iter().any(|decision| decision.reason.contains("wedding_date")), "{matched:?}");
        assert!(
            plan.decisions.iter().any(|decision| !decision.matched && decision.reason.starts_with("not ")),
            "why others don't"
        );
        assert!(!plan.priority_reason.is_empty());

        let extra = |condition: &str| Some(own_route("wedding_details.*", condition));
        let failing = tried(&a, moved(), extra("new.venue.city.name == 'x'")).await.plan.unwrap();
        assert!(
            failing.decisions.iter().any(|decision| decision.failed && decision.reason.contains("undefined")),
            "{failing:?}"
        );
        let matching = tried(&a, moved(), extra("new.venue_id == 'v'")).await.plan.unwrap();
        assert!(matching.decisions.iter().any(|decision| decision.matched && decision.reason == "new.venue_id == 'v'"));
        assert_eq!(a.head().await.sequence, 0);
        assert!(list(&a).await.iter().all(|route| route.built_in));
    })
    .await;
}

#[tokio::test]
async fn a_channel_configuration_adds_destinations_and_an_empty_one_takes_them_away() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let event = |id: &str| Event { channels: vec!["room:blue".to_owned()], ..keyed(id, "k") };
        assert!(plan(&a, event("e1")).await.destinations.is_empty());
        let crm = Destination {
            kind: Some(Kind::Integration(Integration { kind: "photography_crm".to_owned() })),
            ..Destination::default()
        };
        let configure = |pattern: &str, destinations: Vec<Destination>| ConfigureChannelRequest {
            pattern: pattern.to_owned(),
            destinations,
            ..Default::default()
        };
        a.routes().configure_channel(configure("room:*", vec![crm.clone()])).await.unwrap();
        assert_eq!(kinds(&plan(&a, event("e2")).await), ["photography_crm"]);
        a.routes().configure_channel(configure("room:*", Vec::new())).await.unwrap();
        assert!(plan(&a, event("e3")).await.destinations.is_empty());

        let listed = || async {
            a.routes()
                .list_channel_configurations(ListChannelConfigurationsRequest::default())
                .await
                .unwrap()
                .into_inner()
                .configurations
        };
        let built_in = listed().await.into_iter().find(|it| it.pattern == "supplier:dashboard:*").unwrap();
        assert!(built_in.built_in && !built_in.destinations.is_empty());
        let dashboard = |id: &str| Event { channels: vec!["supplier:dashboard:s".to_owned()], ..keyed(id, "k") };
        assert!(kinds(&plan(&a, dashboard("e4")).await).contains(&"photography_crm".to_owned()));
        a.routes().configure_channel(configure("supplier:dashboard:*", Vec::new())).await.unwrap();
        assert!(plan(&a, dashboard("e5")).await.destinations.is_empty(), "the built-in one is silenced");
    })
    .await;
}

#[tokio::test]
async fn a_route_that_was_made_is_in_force_for_whatever_is_published_next() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let done = Arc::new(AtomicBool::new(false));
        let publishing = (0..3).map(|number| {
            let (a, done) = (a.clone(), done.clone());
            async move {
                for event in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    a.publish(keyed(&format!("{number}-{event}"), "k")).await;
                }
            }
        });
        let managing = async {
            for number in 0..40 {
                let made = join_all((0..2).map(|_| create(&a, own_route("made.*", "")))).await;
                let decisions = plan(&a, content(&format!("m{number}"), "made.now", json!(null))).await.decisions;
                assert!(
                    made.iter().all(|route| decisions.iter().any(|decision| decision.route_id == route.id)),
                    "after {number}"
                );
            }
            done.store(true, Ordering::Relaxed);
        };
        tokio::join!(join_all(publishing), managing);
        assert_eq!(list(&a).await.iter().filter(|route| !route.built_in).count(), 80);
    })
    .await;
}
