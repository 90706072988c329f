//! Who may call what, and what nobody sees of another organization.

use std::time::Duration;

use chassis::{id::OrganizationId, sealed_row};
use proto::{
    common::v1::Position,
    router::v1::{
        AuthenticateRequest, ConfigureChannelRequest, CreateApiKeyRequest, CreateOrganizationRequest,
        DeleteApiKeyRequest, DeleteGroupRequest, DeleteRouteRequest, Event, GetEventRequest, GetHeadRequest,
        GetOrganizationRequest, GetWeddingRequest, ListApiKeysRequest, ListChannelConfigurationsRequest,
        ListEventsRequest, ListGroupsRequest, ListOrganizationsRequest, ListRoutesRequest, Operation, Organization,
        PublishRequest, ReplayEventsRequest, Route, Scope, StartConsuming, SubscribeRequest, TestRouteRequest,
        UpdateRouteRequest, UpsertWeddingRequest, Wedding, event::Payload, event_service_client::EventServiceClient,
    },
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Endpoint};

use crate::{
    routes::{create, own_route},
    world::{Client, World, change, content, keyed, on_each},
};

async fn refusal(world: &World, headers: &[&str]) -> Code {
    let channel = Endpoint::from_shared(format!("http://{}", world.address)).unwrap().connect().await.unwrap();
    let mut request = Request::new(GetHeadRequest {});
    for header in headers {
        request.metadata_mut().append("authorization", MetadataValue::try_from(*header).unwrap());
    }
    EventServiceClient::new(channel).get_head(request).await.unwrap_err().code()
}

#[tokio::test]
async fn nobody_is_let_in_without_credentials_that_hold() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let (_, good) = world.key("a", &[Scope::Consume]).await;
        let forged =
            ["", "Bearer", "Bearer ", "Bearer wsk_0", &format!("Basic {good}"), &good, &format!("Bearer {good}x")];
        for header in forged {
            assert_eq!(refusal(&world, &[header]).await, Code::Unauthenticated, "{header}");
        }
        assert_eq!(refusal(&world, &[]).await, Code::Unauthenticated);
        let twice = format!("Bearer {good}");
        assert_eq!(refusal(&world, &[&twice, &twice]).await, Code::Unauthenticated);
        assert_eq!(a.head().await.sequence, 0);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_revoked_or_expired_is_refused_at_once() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let (id, secret) = world.key("a", &[Scope::Consume]).await;
        let revoked = world.client(&secret);
        revoked.head().await;
        a.organizations().delete_api_key(DeleteApiKeyRequest { id: id.clone(), ..Default::default() }).await.unwrap();
        let refused = revoked.events().get_head(GetHeadRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let again =
            a.organizations().delete_api_key(DeleteApiKeyRequest { id, ..Default::default() }).await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
        let soon = chassis::testing::noon().as_second() + 60;
        let expires_at = Some(prost_types::Timestamp { seconds: soon, nanos: 0 });
        let request = CreateApiKeyRequest { scopes: vec![Scope::Consume.into()], expires_at, ..Default::default() };
        let short = world.client(&a.organizations().create_api_key(request).await.unwrap().into_inner().secret);
        short.head().await;
        world.time.advance(Duration::from_secs(60));
        assert_eq!(short.events().get_head(GetHeadRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    })
    .await;
}

/// One call per scope that a key may hold.
async fn tries(client: &Client) -> [Result<(), Status>; 4] {
    let route = TestRouteRequest { event: Some(keyed("e", "k")), route: None };
    [
        client.try_publish(keyed("", "k")).await.map(drop),
        client.events().list_events(ListEventsRequest::default()).await.map(drop),
        client.routes().test_route(route).await.map(drop),
        client.organizations().list_api_keys(ListApiKeysRequest::default()).await.map(drop),
    ]
}

#[tokio::test]
async fn a_key_opens_what_its_scopes_say_and_nothing_else() {
    on_each(|world| async move {
        world.organization("a").await;
        let scopes = [Scope::Publish, Scope::Consume, Scope::Manage, Scope::Admin];
        for (held, scope) in scopes.into_iter().enumerate() {
            let client = world.client(&world.key("a", &[scope]).await.1);
            for (asked, tried) in tries(&client).await.into_iter().enumerate() {
                let expected = if asked == held || scope == Scope::Admin { Code::Ok } else { Code::PermissionDenied };
                assert_eq!(tried.map_or_else(|status| status.code(), |()| Code::Ok), expected, "{scope:?} at {asked}");
            }
            let organization = CreateOrganizationRequest { organization: Some(Organization::default()) };
            let refused = client.organizations().create_organization(organization).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "organizations are the operator's");
            let refused = client.organizations().authenticate(AuthenticateRequest::default()).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "asking whose a key is belongs to services");
        }
        let refused =
            world.service().organizations().list_api_keys(ListApiKeysRequest { organization_id: "a".to_owned() }).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied, "services don't manage keys");
    })
    .await;
}

#[tokio::test]
async fn services_learn_whose_a_key_is_and_not_why_one_is_unknown() {
    on_each(|world| async move {
        world.organization("a").await;
        let (id, secret) = world.key("a", &[Scope::Publish, Scope::Manage]).await;
        let mut asked = world.service().organizations();
        let whose = asked.authenticate(AuthenticateRequest { secret }).await.unwrap().into_inner();
        assert_eq!((&*whose.organization_id, &whose.key_id, whose.operator), ("a", &id, false));
        assert_eq!(whose.scopes, [Scope::Publish as i32, Scope::Manage as i32]);
        let unknown = asked.authenticate(AuthenticateRequest { secret: "wsk_1".to_owned() }).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn another_organizations_id_is_not_found_wherever_it_is_given() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        b.publish(keyed("b1", "k")).await;
        let theirs = create(&b, own_route("test.*", "")).await;
        let (key, _) = world.key("b", &[Scope::Consume]).await;
        let b_id = || "b".to_owned();
        let since = Some(a.position(0).await);
        let event = Event { organization_id: b_id(), ..keyed("e", "k") };
        let wedding = Wedding { id: "w".to_owned(), organization_id: b_id(), ..Wedding::default() };
        b.join("theirs", 0).await;
        let refused = [
            a.events().publish(PublishRequest { event: Some(event.clone()) }).await.map(drop),
            a.events().get_event(GetEventRequest { organization_id: b_id(), id: "b1".to_owned() }).await.map(drop),
            a.events().get_event(GetEventRequest { id: "b1".to_owned(), ..Default::default() }).await.map(drop),
            a.events().list_events(ListEventsRequest { organization_id: b_id(), ..Default::default() }).await.map(drop),
            a.events()
                .replay_events(ReplayEventsRequest {
                    group: "notifier".to_owned(),
                    organization_id: b_id(),
                    since: since.clone(),
                    ..Default::default()
                })
                .await
                .map(drop),
            a.events()
                .replay_events(ReplayEventsRequest { group: "theirs".to_owned(), since, ..Default::default() })
                .await
                .map(drop),
            a.subscriptions()
                .subscribe(SubscribeRequest { organization_id: b_id(), ..Default::default() })
                .await
                .map(drop),
            a.consumers().delete_group(DeleteGroupRequest { group: "theirs".to_owned() }).await.map(drop),
            a.routes().list_routes(ListRoutesRequest { organization_id: b_id() }).await.map(drop),
            a.routes()
                .update_route(UpdateRouteRequest {
                    route: Some(Route { description: "mine".to_owned(), ..theirs.clone() }),
                })
                .await
                .map(drop),
            a.routes().delete_route(DeleteRouteRequest { id: theirs.id.clone() }).await.map(drop),
            a.routes().test_route(TestRouteRequest { event: Some(event), route: None }).await.map(drop),
            a.routes()
                .configure_channel(ConfigureChannelRequest {
                    pattern: "x:*".to_owned(),
                    organization_id: b_id(),
                    ..Default::default()
                })
                .await
                .map(drop),
            a.routes()
                .list_channel_configurations(ListChannelConfigurationsRequest { organization_id: b_id() })
                .await
                .map(drop),
            a.weddings().upsert_wedding(UpsertWeddingRequest { wedding: Some(wedding) }).await.map(drop),
            a.weddings().get_wedding(GetWeddingRequest { id: "w".to_owned(), organization_id: b_id() }).await.map(drop),
            a.organizations().get_organization(GetOrganizationRequest { id: b_id() }).await.map(drop),
            a.organizations()
                .create_api_key(CreateApiKeyRequest { organization_id: b_id(), scopes: vec![1], ..Default::default() })
                .await
                .map(drop),
            a.organizations().list_api_keys(ListApiKeysRequest { organization_id: b_id() }).await.map(drop),
            a.organizations()
                .delete_api_key(DeleteApiKeyRequest { organization_id: b_id(), id: key.clone() })
                .await
                .map(drop),
            a.organizations().delete_api_key(DeleteApiKeyRequest { id: key, ..Default::default() }).await.map(drop),
        ];
        for (number, refused) in refused.into_iter().enumerate() {
            assert_eq!(refused.unwrap_err().code(), Code::NotFound, "call {number}");
        }
        let unknown = Event { organization_id: "nobody".to_owned(), ..keyed("e", "k") };
        assert_eq!(
            world.service().try_publish(unknown).await.unwrap_err().code(),
            Code::NotFound,
            "nor does a service publish for nobody"
        );
    })
    .await;
}

#[tokio::test]
async fn nothing_of_one_organization_shows_to_another() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let stored = a.publish(content("a1", "test.happened", json!({"wedding_id": "w"}))).await;
        let theirs = create(&a, own_route("test.*", "")).await;
        let _member = a.join("readers", 0).await;
        let wedding = Wedding { id: "w".to_owned(), wedding_date: "2026-05-02".to_owned(), ..Wedding::default() };
        a.weddings().upsert_wedding(UpsertWeddingRequest { wedding: Some(wedding) }).await.unwrap();
        assert!(b.all().await.is_empty());
        let by_uid = b.events().get_event(GetEventRequest { id: stored.uid, ..Default::default() }).await.unwrap_err();
        assert_eq!(by_uid.code(), Code::NotFound);
        assert!(b.consumers().list_groups(ListGroupsRequest {}).await.unwrap().into_inner().groups.is_empty());
        let routes = b.routes().list_routes(ListRoutesRequest::default()).await.unwrap().into_inner().routes;
        assert!(routes.iter().all(|route| route.id != theirs.id));
        assert_eq!(
            b.weddings()
                .get_wedding(GetWeddingRequest { id: "w".to_owned(), ..Default::default() })
                .await
                .unwrap_err()
                .code(),
            Code::NotFound
        );
        let listed =
            b.organizations().list_organizations(ListOrganizationsRequest::default()).await.unwrap().into_inner();
        assert_eq!(listed.organizations.iter().map(|it| &*it.id).collect::<Vec<_>>(), ["b"]);
        let counted = ReplayEventsRequest {
            group: "notifier".to_owned(),
            since: Some(Position { sequence: 0, ..b.head().await }),
            dry_run: true,
            ..Default::default()
        };
        assert_eq!(b.events().replay_events(counted).await.unwrap().into_inner().events, 0);
        let from = Some(b.position(0).await);
        let start = StartConsuming {
            group: "readers".to_owned(),
            from,
            credit: Some(proto::router::v1::Credit { events: 10, bytes: 0 }),
            ..Default::default()
        };
        let mut member = b.start(start).await.unwrap();
        assert!(member.rest().await.is_empty(), "a group of the same name is another group");
        let guest = b.publish(content("b1", "guest_count.changed", json!({"wedding_id": "w"}))).await;
        assert_eq!(guest.priority(), proto::common::v1::Priority::Normal, "their wedding is unknown here");
    })
    .await;
}

#[tokio::test]
async fn the_operator_lists_every_organization_page_by_page() {
    on_each(|world| async move {
        for id in ["c", "a", "b"] {
            world.organization(id).await;
        }
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListOrganizationsRequest { page_size: 2, page_token };
            let page = world.operator().organizations().list_organizations(request).await.unwrap().into_inner();
            listed.extend(page.organizations.into_iter().map(|organization| organization.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, ["a", "b", "c"]);
        let again =
            CreateOrganizationRequest { organization: Some(Organization { id: "a".to_owned(), ..Default::default() }) };
        let again = world.operator().organizations().create_organization(again).await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
    })
    .await;
}

#[tokio::test]
async fn rows_of_configuration_tables_are_a_managers_word_and_sealed_for_all_who_read_events() {
    on_each(|world| async move {
        let admin = world.organization("a").await;
        let row = json!({"id": 7, "api_url": "https://venue.example", "api_key": "hush-hush"});
        let said = || change("c1", "venue_integrations", Operation::Insert, Value::Null, row.clone());
        let publisher = world.client(&world.key("a", &[Scope::Publish]).await.1);
        assert_eq!(publisher.try_publish(said()).await.unwrap_err().code(), Code::PermissionDenied);
        let manager = world.client(&world.key("a", &[Scope::Publish, Scope::Manage]).await.1);
        assert!(!manager.publish(said()).await.duplicate);
        assert!(manager.publish(said()).await.duplicate, "the same row again is the same event");
        let events = admin.all().await;
        let [logged] = events.as_slice() else { panic!("one event: {events:?}") };
        let Some(Payload::Change(change)) = logged.event.as_ref().unwrap().payload.clone() else { panic!("a change") };
        let seen: Value = serde_json::from_slice(&change.new_record).unwrap();
        assert_eq!((&seen["id"], seen.as_object().unwrap().len()), (&json!(7), 2), "{seen}");
        let keyring = world.chassis.keyring().unwrap();
        let opened = sealed_row::open(&keyring, &OrganizationId::parse("a").unwrap(), &change.new_record).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&opened.unwrap()).unwrap(), row);
    })
    .await;
}

#[tokio::test]
async fn rows_of_configuration_tables_are_sealed_even_where_the_route_that_follows_them_is_off() {
    on_each(|world| async move {
        let admin = world.organization("a").await;
        let off = Route { id: "configuration_changed".to_owned(), disabled: true, ..Route::default() };
        admin.routes().update_route(UpdateRouteRequest { route: Some(off) }).await.unwrap();
        let row = json!({"id": 7, "api_key": "hush-hush"});
        let said = || change("c1", "venue_integrations", Operation::Insert, Value::Null, row.clone());
        let publisher = world.client(&world.key("a", &[Scope::Publish]).await.1);
        assert_eq!(publisher.try_publish(said()).await.unwrap_err().code(), Code::PermissionDenied);
        admin.publish(said()).await;
        let events = admin.all().await;
        assert!(events[0].plan.as_ref().unwrap().destinations.is_empty(), "nobody follows it");
        let Some(Payload::Change(change)) = events[0].event.as_ref().unwrap().payload.clone() else {
            panic!("a change")
        };
        assert!(!String::from_utf8_lossy(&change.new_record).contains("hush"), "{:?}", change.new_record);
    })
    .await;
}
