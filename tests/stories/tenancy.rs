//! Organizations see nothing of each other: no event, endpoint, delivery or integration; not even that it exists.

use proto::vendorsync::v1::*;
use tonic::{Code, Status};

use super::story::{PLAIN, Tenant, long_ago, on_each_engine, told};

#[tokio::test]
async fn another_organizations_endpoints_get_nothing() {
    on_each_engine(async |story| {
        let rival = story.tenant("Rival").await;
        let (mut ours, mut theirs) = (story.acme.subscribe().await, rival.subscribe().await);
        // The same id in two organizations is two events.
        story.acme.publish_all(&["one", "two"]).await;
        let receipt = rival.publish(told("one", PLAIN, r#"{"of":"Rival"}"#)).await;
        assert!(!receipt.duplicate);
        ours.receiver.several(2).await;
        assert_eq!(theirs.receiver.next().await.json()["data"]["of"], "Rival");
        ours.settled(2, DeliveryState::Delivered).await;
        theirs.settled(1, DeliveryState::Delivered).await;
        ours.receiver.has_nothing_more();
        theirs.receiver.has_nothing_more();
        assert_eq!((story.acme.logged(&[]).await.len(), rival.logged(&[]).await.len()), (2, 1));
        let listed = rival.deliveries().list_deliveries(ListDeliveriesRequest::default()).await.expect("a page");
        assert_eq!(listed.into_inner().deliveries.len(), 1);
        let listed = rival.endpoints().list_endpoints(ListEndpointsRequest::default()).await.expect("a page");
        let ids: Vec<_> = listed.into_inner().endpoints.into_iter().map(|it| it.id).collect();
        assert_eq!(ids, [theirs.id]);
    })
    .await;
}

#[tokio::test]
async fn a_foreign_id_is_not_found_by_any_rpc_and_answered_as_if_nobody_had_it() {
    on_each_engine(async |story| {
        let rival = story.tenant("Rival").await;
        let mut ours = story.acme.subscribe().await;
        story.acme.publish_all(&["one"]).await;
        ours.receiver.next().await;
        let delivery = ours.settled(1, DeliveryState::Delivered).await.remove(0);
        let integration = Integration { kind: IntegrationKind::ClientSync.into(), ..Integration::default() };
        let request = CreateIntegrationRequest { integration: Some(integration), secret: String::new() };
        let created = story.acme.integrations().create_integration(request).await.expect("an integration");
        let integration = created.into_inner().integration.expect("the answer holds it");
        let theirs =
            Ids { endpoint: ours.endpoint().await, delivery: delivery.id.clone(), integration: integration.clone() };
        let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
        let nobodys = Ids {
            endpoint: Endpoint { id: nobody.to_owned(), ..theirs.endpoint.clone() },
            delivery: "123456789".to_owned(),
            integration: Integration { id: nobody.to_owned(), ..integration.clone() },
        };
        let (foreign, unknown) = (ask(&rival, &theirs).await, ask(&rival, &nobodys).await);
        for ((rpc, foreign), (_, unknown)) in foreign.iter().zip(&unknown) {
            let foreign = foreign.as_ref().unwrap_or_else(|| panic!("{rpc} serves a foreign id"));
            let unknown = unknown.as_ref().unwrap_or_else(|| panic!("{rpc} serves an unknown id"));
            assert_eq!((foreign.code(), unknown.code()), (Code::NotFound, Code::NotFound), "{rpc}: {foreign:?}");
            assert_eq!(foreign.message(), unknown.message(), "{rpc} tells whether somebody else has it");
        }
        // And nothing was done.
        ours.receiver.has_nothing_more();
        assert_eq!(ours.endpoint().await, theirs.endpoint);
        assert_eq!(ours.settled(1, DeliveryState::Delivered).await, [delivery]);
        let request = GetIntegrationRequest { id: integration.id.clone() };
        let now = story.acme.integrations().get_integration(request).await.expect("it is there");
        assert_eq!(now.into_inner().integration, Some(integration));
    })
    .await;
}

#[tokio::test]
async fn nobody_may_name_another_organization() {
    on_each_engine(async |story| {
        let rival = story.tenant("Rival").await;
        let organization_id = story.acme.subscribe().await.endpoint().await.organization_id;
        let endpoint = Endpoint {
            organization_id: organization_id.clone(),
            url: "https://example.org/".to_owned(),
            event_types: vec!["*".to_owned()],
            ..Endpoint::default()
        };
        let listed =
            ListEndpointsRequest { organization_id: organization_id.clone(), ..ListEndpointsRequest::default() };
        let delivered =
            ListDeliveriesRequest { organization_id: organization_id.clone(), ..ListDeliveriesRequest::default() };
        let integrated = ListIntegrationsRequest { organization_id, ..ListIntegrationsRequest::default() };
        let answers = [
            ("CreateEndpoint", rival.create(endpoint).await.err()),
            ("ListEndpoints", rival.endpoints().list_endpoints(listed).await.err()),
            ("ListDeliveries", rival.deliveries().list_deliveries(delivered).await.err()),
            ("ListIntegrations", rival.integrations().list_integrations(integrated).await.err()),
        ];
        for (rpc, refusal) in answers {
            assert_eq!(refusal.map(|status| status.code()), Some(Code::NotFound), "{rpc}");
        }
    })
    .await;
}

struct Ids {
    endpoint: Endpoint,
    delivery: String,
    integration: Integration,
}

/// Every RPC of vendor-sync that takes an id, with these.
async fn ask(caller: &Tenant, ids: &Ids) -> Vec<(&'static str, Option<Status>)> {
    let mut all = ask_of_endpoint(caller, &ids.endpoint).await;
    all.extend(ask_of_delivery(caller, &ids.delivery).await);
    all.extend(ask_of_integration(caller, &ids.integration).await);
    all
}

async fn ask_of_endpoint(caller: &Tenant, endpoint: &Endpoint) -> Vec<(&'static str, Option<Status>)> {
    let (mut endpoints, mut deliveries, id) = (caller.endpoints(), caller.deliveries(), || endpoint.id.clone());
    let update = Endpoint { organization_id: String::new(), ..endpoint.clone() };
    let replay = ReplayDeliveriesRequest { endpoint_id: id(), since: long_ago(), until: None, dry_run: false };
    let recover = RecoverDeliveriesRequest { endpoint_id: id(), since: long_ago(), dry_run: false };
    let statistics = GetEndpointStatisticsRequest { id: id(), since: None };
    let rotate = RotateEndpointSecretRequest { id: id(), overlap: None };
    vec![
        ("GetEndpoint", endpoints.get_endpoint(GetEndpointRequest { id: id() }).await.err()),
        ("UpdateEndpoint", endpoints.update_endpoint(UpdateEndpointRequest { endpoint: Some(update) }).await.err()),
        ("PauseEndpoint", endpoints.pause_endpoint(PauseEndpointRequest { id: id() }).await.err()),
        ("ResumeEndpoint", endpoints.resume_endpoint(ResumeEndpointRequest { id: id() }).await.err()),
        ("RotateEndpointSecret", endpoints.rotate_endpoint_secret(rotate).await.err()),
        ("SendTestEvent", endpoints.send_test_event(SendTestEventRequest { id: id() }).await.err()),
        ("GetEndpointStatistics", endpoints.get_endpoint_statistics(statistics).await.err()),
        ("ReplayDeliveries", deliveries.replay_deliveries(replay).await.err()),
        ("RecoverDeliveries", deliveries.recover_deliveries(recover).await.err()),
        ("DeleteEndpoint", endpoints.delete_endpoint(DeleteEndpointRequest { id: id() }).await.err()),
    ]
}

async fn ask_of_delivery(caller: &Tenant, id: &str) -> Vec<(&'static str, Option<Status>)> {
    let (mut deliveries, id) = (caller.deliveries(), || id.to_owned());
    vec![
        ("GetDelivery", deliveries.get_delivery(GetDeliveryRequest { id: id() }).await.err()),
        ("ListAttempts", deliveries.list_attempts(ListAttemptsRequest { delivery_id: id() }).await.err()),
        ("ResendDelivery", deliveries.resend_delivery(ResendDeliveryRequest { id: id() }).await.err()),
    ]
}

async fn ask_of_integration(caller: &Tenant, integration: &Integration) -> Vec<(&'static str, Option<Status>)> {
    let (mut integrations, id) = (caller.integrations(), || integration.id.clone());
    let update = Integration { organization_id: String::new(), ..integration.clone() };
    let rotate = RotateIntegrationSecretRequest { id: id(), ..RotateIntegrationSecretRequest::default() };
    let update = UpdateIntegrationRequest { integration: Some(update) };
    vec![
        ("GetIntegration", integrations.get_integration(GetIntegrationRequest { id: id() }).await.err()),
        ("UpdateIntegration", integrations.update_integration(update).await.err()),
        ("RotateIntegrationSecret", integrations.rotate_integration_secret(rotate).await.err()),
        ("DeleteIntegration", integrations.delete_integration(DeleteIntegrationRequest { id: id() }).await.err()),
    ]
}
