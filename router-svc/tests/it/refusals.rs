//! Every bad input gets INVALID_ARGUMENT, naming the field that is at fault.

use proto::router::v1::{
    Change, ConfigureChannelRequest, Content, CreateApiKeyRequest, CreateOrganizationRequest, CreateRouteRequest,
    DeleteApiKeyRequest, DeleteRouteRequest, Destination, Event, GetEventRequest, GetWeddingRequest, Integration,
    ListEventsRequest, Metadata, Operation, Organization, PublishRequest, ReplayEventsRequest, Route, StartConsuming,
    SubscribeRequest, TestRouteRequest, UpdateRouteRequest, UpsertWeddingRequest, Webhooks, Wedding, destination::Kind,
    event::Payload,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::world::{Client, change, content, field, keyed, on_each, raw};

fn with(edit: impl FnOnce(&mut Event)) -> Event {
    let mut event = keyed("e1", "k");
    edit(&mut event);
    event
}

fn changed(edit: impl FnOnce(&mut Change)) -> Event {
    let mut event = change("e1", "things", Operation::Insert, json!(null), json!({"id": 1}));
    if let Some(Payload::Change(change)) = &mut event.payload {
        edit(change);
    }
    event
}

fn metadata(metadata: Metadata) -> Event {
    with(|event| event.metadata = Some(metadata))
}

fn bad_events() -> Vec<(&'static str, Event)> {
    let long = |len: usize| format!("\"{}\"", "x".repeat(len - 2)).into_bytes();
    let of = |content_type: &str, data: &[u8]| {
        let content = Content { content_type: content_type.to_owned(), data: data.to_vec().into() };
        with(|event| event.payload = Some(Payload::Content(content)))
    };
    vec![
        ("event.id", with(|event| event.id = "a b".to_owned())),
        ("event.id", with(|event| event.id = "x".repeat(129))),
        ("event.id", with(|event| event.id = "a\0".to_owned())),
        ("event.type", with(|event| event.r#type = "Wedding".to_owned())),
        ("event.type", with(|event| event.r#type = String::new())),
        ("event.type", with(|event| event.r#type = "a..b".to_owned())),
        ("event.source", with(|event| event.source = "a\0b".to_owned())),
        ("event.subject", with(|event| event.subject = "s".repeat(257))),
        ("event.ordering_key", with(|event| event.ordering_key = "a\0b".to_owned())),
        ("event.priority", with(|event| event.priority = 99)),
        ("event.priority", with(|event| event.priority = -1)),
        ("event.channels", with(|event| event.channels = vec!["wedding:*".to_owned()])),
        ("event.channels", with(|event| event.channels = vec!["a:\0".to_owned()])),
        ("event.channels", with(|event| event.channels = vec!["a".to_owned(); 65])),
        ("event.time", with(|event| event.time = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }))),
        ("event.payload", with(|event| event.payload = None)),
        ("event.content.data", raw("e1", "test.happened", b"{".to_vec())),
        ("event.content.data", raw("e1", "test.happened", Vec::new())),
        ("event.content.data", raw("e1", "test.happened", long((1 << 20) + 1))),
        ("event.content.data", of("application/octet-stream", &vec![0; (1 << 20) + 1])),
        ("event.content.content_type", of("json", b"{}")),
        ("event.metadata.wedding_id", metadata(Metadata { wedding_id: "w\0".to_owned(), ..Metadata::default() })),
        ("event.metadata.origin", metadata(Metadata { origin: "elsewhere".to_owned(), ..Metadata::default() })),
        ("event.metadata.cause", metadata(Metadata { cause: "a b".to_owned(), ..Metadata::default() })),
        ("event.metadata.depth", metadata(Metadata { depth: 5, ..Metadata::default() })),
        ("event.change.table", changed(|change| change.table = "a b".to_owned())),
        ("event.change.table", changed(|change| change.table = String::new())),
        ("event.change.schema", changed(|change| change.schema = "s\0".to_owned())),
        ("event.change.operation", changed(|change| change.operation = 9)),
        ("event.change.operation", changed(|change| change.operation = 0)),
        ("event.change.new_record", changed(|change| change.new_record = "[1]".into())),
        ("event.change.new_record", changed(|change| change.new_record = "".into())),
        ("event.change.old_record", changed(|change| change.old_record = "{}".into())),
        ("event.change", changed(|change| change.new_record = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20)).into())),
        ("event.type", Event { r#type: "other.insert".to_owned(), ..changed(|_| ()) }),
    ]
}

#[tokio::test]
async fn every_fault_of_an_event_names_its_field_and_nothing_is_stored() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        for (expected, event) in bad_events() {
            let shown = format!("{event:.200?}");
            let tried = TestRouteRequest { event: Some(event.clone()), route: None };
            assert_eq!(field(a.routes().test_route(tried).await.unwrap_err()), expected, "a dry run of {shown}");
            assert_eq!(field(a.try_publish(event).await.unwrap_err()), expected, "{shown}");
        }
        assert_eq!(field(a.events().publish(PublishRequest { event: None }).await.unwrap_err()), "event");
        assert_eq!(a.head().await.sequence, 0);
        let fourth = metadata(Metadata { depth: 4, ..Metadata::default() });
        assert_eq!(a.sequence(fourth).await, 1, "a chain of four is the longest");
    })
    .await;
}

fn route(condition: &str) -> Route {
    let webhooks = Destination { kind: Some(Kind::Webhooks(Webhooks {})), ..Destination::default() };
    Route {
        types: vec!["test.*".to_owned()],
        condition: condition.to_owned(),
        destinations: vec![webhooks],
        ..Route::default()
    }
}

async fn refused(client: &Client, route: Route) -> Status {
    client.routes().create_route(CreateRouteRequest { route: Some(route) }).await.unwrap_err()
}

#[tokio::test]
async fn a_route_that_can_not_hold_is_refused_when_it_is_made() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let integration = |kind: &str| Destination {
            kind: Some(Kind::Integration(Integration { kind: kind.to_owned() })),
            ..Destination::default()
        };
        let faults = [
            ("route.types", Route { types: vec!["Bad Type".to_owned()], ..route("") }),
            ("route.types", Route { types: Vec::new(), ..route("") }),
            ("route.description", Route { description: "a\0b".to_owned(), ..route("") }),
            ("route.channel_pattern", Route { channel_pattern: "a:**:b".to_owned(), ..route("") }),
            ("route.channel_pattern", Route { channel_pattern: "a:\0".to_owned(), ..route("") }),
            ("route.destinations", Route { destinations: Vec::new(), ..route("") }),
            ("route.destinations[0].kind", Route { destinations: vec![Destination::default()], ..route("") }),
            (
                "route.destinations[0].integration.kind",
                Route { destinations: vec![integration("no kind")], ..route("") },
            ),
            (
                "route.destinations[0].priority",
                Route {
                    destinations: vec![Destination { priority: 9, ..route("").destinations[0].clone() }],
                    ..route("")
                },
            ),
            ("route.condition", route("new.a ==")),
            ("route.condition", route("unknown.a")),
            ("route.condition", route("('x'*1000)*100000")),
            ("route.condition", route("range(1000000000)|length > 0")),
            ("route.condition", route("'%500000000s'|format('a')")),
            ("route.condition", route(&"(".repeat(10_000))),
            ("route.condition", route(&format!("new.a == '{}'", "x".repeat(17_000)))),
        ];
        for (expected, route) in faults {
            let shown = format!("{route:.120?}");
            let update = UpdateRouteRequest { route: Some(Route { id: "r".to_owned(), version: 1, ..route.clone() }) };
            assert_eq!(field(refused(&a, route.clone()).await), expected, "{shown}");
            assert_eq!(field(a.routes().update_route(update).await.unwrap_err()), expected, "an update to {shown}");
            let tried = TestRouteRequest { event: Some(keyed("e1", "k")), route: Some(route) };
            assert_eq!(field(a.routes().test_route(tried).await.unwrap_err()), expected, "a dry run with {shown}");
        }
        let at_fault = refused(&a, route("new.a == 1\nand new.b ==")).await;
        assert!(at_fault.message().contains("line 2"), "{}", at_fault.message());
    })
    .await;
}

#[tokio::test]
async fn a_condition_that_eats_steps_or_memory_fails_by_itself_and_the_event_is_taken() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let hungry = [
            format!("[{}]|length > 0", "concat(new.text, new.text, new.text, new.text),".repeat(300)),
            format!("new.text|split(',')|join('{}')|length == 1", "x".repeat(10_000)),
        ];
        for condition in &hungry {
            let created = a.routes().create_route(CreateRouteRequest { route: Some(route(condition)) }).await;
            let created =
                created.unwrap_or_else(|status| panic!("{condition:.80}: {status}")).into_inner().route.unwrap();
            let text = "a,".repeat(250_000);
            let receipt = a.publish(content("", "test.happened", json!({"text": text}))).await;
            let stored = a
                .events()
                .get_event(GetEventRequest { id: receipt.id, ..Default::default() })
                .await
                .unwrap()
                .into_inner();
            let decisions = stored.event.unwrap().plan.unwrap().decisions;
            let decision = decisions.iter().find(|decision| decision.route_id == created.id).expect("it is recorded");
            assert!(decision.failed && !decision.matched, "{condition:.80}: {decision:?}");
            let listed = a
                .routes()
                .list_routes(proto::router::v1::ListRoutesRequest::default())
                .await
                .unwrap()
                .into_inner()
                .routes;
            let shown = listed.iter().find(|route| route.id == created.id).unwrap();
            assert!(shown.failures > 0 && !shown.last_failure.is_empty(), "it shows as failing");
        }
    })
    .await;
}

#[tokio::test]
async fn faults_of_other_requests_name_their_fields_too() {
    on_each(|world| async move {
        let (a, operator) = (world.organization("a").await, world.operator());
        let wedding = |edit: &dyn Fn(&mut Wedding)| {
            let mut wedding = Wedding { id: "w".to_owned(), ..Wedding::default() };
            edit(&mut wedding);
            UpsertWeddingRequest { wedding: Some(wedding) }
        };
        let nul = || "a\0b".to_owned();
        let start = |start: StartConsuming| {
            let a = a.clone();
            async move { a.start(start).await.err().expect("it is refused") }
        };
        let organization = |organization| CreateOrganizationRequest { organization: Some(organization) };
        let key = |scopes: &[i32]| CreateApiKeyRequest { scopes: scopes.to_vec(), ..Default::default() };
        let faults = [
            ("start.group", start(StartConsuming::default()).await),
            ("start.group", start(StartConsuming { group: nul(), ..Default::default() }).await),
            (
                "start.types",
                start(StartConsuming { group: "g".into(), types: vec!["A B".into()], ..Default::default() }).await,
            ),
            (
                "start.types",
                start(StartConsuming { group: "g".into(), types: vec!["a.b".into(); 300], ..Default::default() }).await,
            ),
            (
                "channels",
                a.subscriptions()
                    .subscribe(SubscribeRequest { channels: vec!["a b".into()], ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
            (
                "types",
                a.subscriptions()
                    .subscribe(SubscribeRequest { types: vec!["A".into()], ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
            (
                "page_token",
                a.events()
                    .list_events(ListEventsRequest { page_token: "x".into(), ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
            (
                "page_size",
                a.events().list_events(ListEventsRequest { page_size: -1, ..Default::default() }).await.unwrap_err(),
            ),
            (
                "types",
                a.events()
                    .list_events(ListEventsRequest { types: vec!["A".into()], ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
            ("id", a.events().get_event(GetEventRequest { id: nul(), ..Default::default() }).await.unwrap_err()),
            ("since", a.events().replay_events(ReplayEventsRequest::default()).await.unwrap_err()),
            (
                "types",
                a.events()
                    .list_events(ListEventsRequest { types: vec!["a.b".to_owned(); 257], ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
            (
                "group",
                a.events()
                    .replay_events(ReplayEventsRequest {
                        group: nul(),
                        since: Some(a.head().await),
                        ..Default::default()
                    })
                    .await
                    .unwrap_err(),
            ),
            ("id", a.routes().delete_route(DeleteRouteRequest { id: nul() }).await.unwrap_err()),
            (
                "route.id",
                a.routes()
                    .update_route(UpdateRouteRequest { route: Some(Route { id: nul(), ..route("") }) })
                    .await
                    .unwrap_err(),
            ),
            (
                "pattern",
                a.routes()
                    .configure_channel(ConfigureChannelRequest { pattern: nul(), ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
            ("wedding.id", a.weddings().upsert_wedding(wedding(&|it| it.id = nul())).await.unwrap_err()),
            (
                "wedding.wedding_date",
                a.weddings().upsert_wedding(wedding(&|it| it.wedding_date = "1.5.2026".into())).await.unwrap_err(),
            ),
            (
                "wedding.ceremony_time",
                a.weddings().upsert_wedding(wedding(&|it| it.ceremony_time = "3 pm".into())).await.unwrap_err(),
            ),
            (
                "wedding.time_zone",
                a.weddings().upsert_wedding(wedding(&|it| it.time_zone = "Mars/Base".into())).await.unwrap_err(),
            ),
            ("wedding.couple_id", a.weddings().upsert_wedding(wedding(&|it| it.couple_id = nul())).await.unwrap_err()),
            (
                "wedding.supplier_ids",
                a.weddings().upsert_wedding(wedding(&|it| it.supplier_ids = vec!["s".into(); 201])).await.unwrap_err(),
            ),
            ("id", a.weddings().get_wedding(GetWeddingRequest { id: nul(), ..Default::default() }).await.unwrap_err()),
            (
                "organization.id",
                operator
                    .organizations()
                    .create_organization(organization(Organization { id: "a b".into(), ..Default::default() }))
                    .await
                    .unwrap_err(),
            ),
            (
                "organization.name",
                operator
                    .organizations()
                    .create_organization(organization(Organization { name: nul(), ..Default::default() }))
                    .await
                    .unwrap_err(),
            ),
            (
                "organization.time_zone",
                operator
                    .organizations()
                    .create_organization(organization(Organization { time_zone: "x".into(), ..Default::default() }))
                    .await
                    .unwrap_err(),
            ),
            (
                "page_token",
                operator
                    .organizations()
                    .list_organizations(proto::router::v1::ListOrganizationsRequest {
                        page_token: nul(),
                        ..Default::default()
                    })
                    .await
                    .unwrap_err(),
            ),
            ("scopes", a.organizations().create_api_key(key(&[9])).await.unwrap_err()),
            ("scopes", a.organizations().create_api_key(key(&[])).await.unwrap_err()),
            (
                "description",
                a.organizations()
                    .create_api_key(CreateApiKeyRequest { description: nul(), ..key(&[1]) })
                    .await
                    .unwrap_err(),
            ),
            (
                "id",
                a.organizations()
                    .delete_api_key(DeleteApiKeyRequest { id: nul(), ..Default::default() })
                    .await
                    .unwrap_err(),
            ),
        ];
        for (number, (expected, status)) in faults.into_iter().enumerate() {
            assert_eq!(status.code(), Code::InvalidArgument, "{number}, {expected}: {status:?}");
            assert_eq!(field(status), expected, "{number}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_row_with_ids_that_no_store_takes_is_an_event_like_any_other() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        for (number, odd) in ["a\0b".to_owned(), "x".repeat(9_000)].into_iter().enumerate() {
            let rows = [
                ("wedding_details", json!({"id": odd})),
                ("wedding_details", json!({"id": "w", "couple_id": odd, "venue_id": odd, "vendor_ids": [odd]})),
                ("wedding_vendors", json!({"wedding_id": odd, "supplier_id": "s"})),
                ("wedding_vendors", json!({"wedding_id": "w", "supplier_id": odd})),
                ("form_responses", json!({"id": odd, "form_id": odd, "couple_id": odd})),
            ];
            for (row, (table, new)) in rows.into_iter().enumerate() {
                let event = change(&format!("e{number}{row}"), table, Operation::Insert, json!(null), new);
                let stored = a.try_publish(event).await;
                assert!(stored.is_ok(), "{table}, row {row}: {stored:?}");
            }
        }
    })
    .await;
}
