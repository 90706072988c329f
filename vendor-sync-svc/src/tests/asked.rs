//! What organizations ask of their endpoints and deliveries, over the calls.

use super::*;

#[tokio::test]
async fn a_test_event_is_sent_at_once_and_is_no_delivery() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(200, None), (418, None)]).await;
        let endpoint = world.endpoint(Settings { event_types: vec!["a.b".to_owned()], ..receiver.settings() }).await;
        let send = || async {
            let request = asked("acme", api::SendTestEventRequest { id: endpoint.id.to_string() });
            world.endpoint_rpc.send_test_event(request).await.expect("it is sent").into_inner()
        };
        let sent = send().await;
        assert_eq!((sent.delivered, sent.status_code, &sent.response[..]), (true, 200, &b"noted"[..]));
        let (headers, body) = arrivals.recv().await.expect("it arrives");
        assert_eq!(
            (&headers["x-wedsync-source"], &headers["x-wedsync-event"]),
            (&"test".parse().unwrap(), &"webhook.test".parse().unwrap())
        );
        let secret = endpoint.secrets[0].secret.expose();
        standardwebhooks::Webhook::new(secret).expect("our secret").verify(&body, &headers).expect("it verifies");
        let sent = send().await;
        assert!(!sent.delivered && sent.error.contains("418"), "{}", sent.error);
        assert!(world.deliveries().await.is_empty());
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn test_events_beyond_an_organizations_hour_are_refused_before_anything_is_sent() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        let send = async || {
            let request = asked("acme", api::SendTestEventRequest { id: endpoint.id.to_string() });
            world.endpoint_rpc.send_test_event(request).await
        };
        for _ in 0..crate::tried::MOST {
            assert!(send().await.expect("there is room").into_inner().delivered);
            arrivals.recv().await.expect("it arrives");
        }
        assert_eq!(send().await.expect_err("it is one too many").code(), Code::ResourceExhausted);
        assert!(arrivals.try_recv().is_err(), "nothing was sent");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn another_organizations_ids_are_not_found() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.handle(changed(6)).await;
        arrivals.recv().await.expect("it arrives");
        let record = world.settled(State::Delivered).await;
        let (id, delivery) = (endpoint.id.to_string(), record.id.to_string());
        let (endpoints, deliveries) = (&world.endpoint_rpc, &world.delivery_rpc);
        let since = Some(prost_types::Timestamp::default());
        let mut answers = vec![
            ("get", endpoints.get_endpoint(asked("other", api::GetEndpointRequest { id: id.clone() })).await.map(drop)),
            (
                "delete",
                endpoints
                    .delete_endpoint(asked("other", api::DeleteEndpointRequest { id: id.clone() }))
                    .await
                    .map(drop),
            ),
            (
                "pause",
                endpoints.pause_endpoint(asked("other", api::PauseEndpointRequest { id: id.clone() })).await.map(drop),
            ),
            (
                "resume",
                endpoints
                    .resume_endpoint(asked("other", api::ResumeEndpointRequest { id: id.clone() }))
                    .await
                    .map(drop),
            ),
            (
                "test",
                endpoints.send_test_event(asked("other", api::SendTestEventRequest { id: id.clone() })).await.map(drop),
            ),
        ];
        let rotate = api::RotateEndpointSecretRequest { id: id.clone(), overlap: None };
        answers.push(("rotate", endpoints.rotate_endpoint_secret(asked("other", rotate)).await.map(drop)));
        let statistics = api::GetEndpointStatisticsRequest { id: id.clone(), since: None };
        answers.push(("statistics", endpoints.get_endpoint_statistics(asked("other", statistics)).await.map(drop)));
        let own = endpoints
            .get_endpoint(asked("acme", api::GetEndpointRequest { id: id.clone() }))
            .await
            .expect("it is ours")
            .into_inner();
        let update = api::UpdateEndpointRequest {
            endpoint: own.endpoint.map(|own| api::Endpoint { organization_id: String::new(), ..own }),
        };
        answers.push(("update", endpoints.update_endpoint(asked("other", update)).await.map(drop)));
        let replay = api::ReplayDeliveriesRequest { endpoint_id: id.clone(), since, ..Default::default() };
        answers.push(("replay", deliveries.replay_deliveries(asked("other", replay)).await.map(drop)));
        let recover = api::RecoverDeliveriesRequest { endpoint_id: id.clone(), since, ..Default::default() };
        answers.push(("recover", deliveries.recover_deliveries(asked("other", recover)).await.map(drop)));
        answers.push((
            "delivery",
            deliveries.get_delivery(asked("other", api::GetDeliveryRequest { id: delivery.clone() })).await.map(drop),
        ));
        let attempts = api::ListAttemptsRequest { delivery_id: delivery.clone() };
        answers.push(("attempts", deliveries.list_attempts(asked("other", attempts)).await.map(drop)));
        answers.push((
            "resend",
            deliveries.resend_delivery(asked("other", api::ResendDeliveryRequest { id: delivery })).await.map(drop),
        ));
        for (method, answer) in answers {
            assert_eq!(answer.expect_err(method).code(), Code::NotFound, "{method}");
        }
        let listed =
            deliveries.list_deliveries(asked("other", api::ListDeliveriesRequest::default())).await.expect("its own");
        assert!(listed.into_inner().deliveries.is_empty());
        let listed =
            endpoints.list_endpoints(asked("other", api::ListEndpointsRequest::default())).await.expect("its own");
        assert!(listed.into_inner().endpoints.is_empty());
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_update_needs_the_version_it_read_and_shows_no_header_values() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let mut settings = receiver.settings();
        settings.headers.insert("x-key".to_owned(), "hush".to_owned());
        let endpoint = world.endpoint(settings).await;
        let get = api::GetEndpointRequest { id: endpoint.id.to_string() };
        let read = world.endpoint_rpc.get_endpoint(asked("acme", get)).await.expect("it is ours").into_inner().endpoint;
        let mut read = read.expect("an endpoint");
        assert_eq!(read.headers["x-key"], "<redacted>");
        read.description = "new".to_owned();
        let update = |endpoint: api::Endpoint| {
            world.endpoint_rpc.update_endpoint(asked("acme", api::UpdateEndpointRequest { endpoint: Some(endpoint) }))
        };
        let updated =
            update(read.clone()).await.expect("nobody changed it").into_inner().endpoint.expect("an endpoint");
        assert_eq!((updated.version, updated.description.as_str()), (2, "new"));
        assert_eq!(update(read).await.expect_err("it is at version 2").code(), Code::Aborted);
        world.handle(changed(6)).await;
        let (headers, _) = arrivals.recv().await.expect("it arrives");
        assert_eq!(headers["x-key"], "hush");
        world.settled(State::Delivered).await;
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn deliveries_and_attempts_are_found_by_key_by_uid_and_by_state() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        let event = changed(6);
        let uid = event.event.as_ref().expect("an event").uid.clone();
        world.handle(event).await;
        arrivals.recv().await.expect("it arrives");
        world.settled(State::Delivered).await;
        let list = async |filter: api::ListDeliveriesRequest| {
            world
                .delivery_rpc
                .list_deliveries(asked("acme", filter))
                .await
                .expect("they are listed")
                .into_inner()
                .deliveries
        };
        let by_event =
            |event_id: &str| api::ListDeliveriesRequest { event_id: event_id.to_owned(), ..Default::default() };
        let in_state =
            |state: api::DeliveryState| api::ListDeliveriesRequest { states: vec![state.into()], ..Default::default() };
        assert_eq!(list(by_event("e6")).await.len(), 1);
        assert_eq!(list(in_state(api::DeliveryState::Delivered)).await.len(), 1);
        assert!(list(in_state(api::DeliveryState::Dead)).await.is_empty());
        let found = list(by_event(&uid)).await.pop().expect("by its uid");
        assert_eq!((&found.endpoint_id, &found.webhook_id), (&endpoint.id.to_string(), &format!("msg_{uid}")));
        let attempts = api::ListAttemptsRequest { delivery_id: found.id };
        let attempts = world
            .delivery_rpc
            .list_attempts(asked("acme", attempts))
            .await
            .expect("they are listed")
            .into_inner()
            .attempts;
        assert_eq!(
            (attempts.len(), attempts[0].outcome.as_str(), &attempts[0].response[..]),
            (1, "delivered", &b"noted"[..])
        );
        world.stop().await;
    })
    .await;
}
