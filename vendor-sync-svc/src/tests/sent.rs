//! From an event to its receiver: what arrives, what comes again, and what never goes.

use super::*;

#[tokio::test]
async fn a_delivered_webhook_verifies_with_the_public_library_and_shows_all_our_headers() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let mut settings = receiver.settings();
        settings.headers.insert("authorization".to_owned(), "Bearer theirs".to_owned());
        let endpoint = world.endpoint(settings).await;
        let event = changed(6);
        let uid = event.event.as_ref().expect("an event").uid.clone();
        world.handle(event).await;
        let (headers, body) = arrivals.recv().await.expect("it arrives");
        let secret = endpoint.secrets[0].secret.expose();
        standardwebhooks::Webhook::new(secret).expect("our secret").verify(&body, &headers).expect("it verifies");
        let text = |name: &str| headers[name].to_str().expect("ASCII").to_owned();
        assert!(hex_verify(secret.as_bytes(), &body, &text("x-wedsync-signature")));
        for (name, expected) in [
            ("webhook-id", format!("msg_{uid}").as_str()),
            ("x-wedsync-event", "wedding_details.update"),
            ("x-wedsync-timestamp", "2026-05-01T12:00:00Z"),
            ("x-wedsync-source", "realtime"),
            ("content-type", "application/json"),
            ("authorization", "Bearer theirs"),
        ] {
            assert_eq!(text(name), expected, "{name}");
        }
        assert!(text("user-agent").starts_with("WedSync/"));
        assert!(text("traceparent").starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["oldRecord"], serde_json::json!({"id": "w1", "guest_count": 1}));
        assert_eq!(body["newRecord"], serde_json::json!({"id": "w1", "guest_count": 2}));
        let record = world.settled(State::Delivered).await;
        assert_eq!((record.priority, record.attempts, record.status_code), (2, 1, Some(200)));
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_retry_repeats_the_bytes_and_the_id() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(500, None)]).await;
        world.endpoint(Settings { schedule: vec![Duration::from_millis(20)], ..receiver.settings() }).await;
        world.handle(changed(6)).await;
        let (first, second) = (arrivals.recv().await.expect("the first"), arrivals.recv().await.expect("the second"));
        assert_eq!(first.1, second.1);
        assert_eq!(first.0["webhook-id"], second.0["webhook-id"]);
        let record = world.settled(State::Delivered).await;
        assert_eq!(record.attempts, 2);
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(503, Some("3600"))]).await;
        world.endpoint(receiver.settings()).await;
        let before = Clock::System.now_micros();
        world.handle(changed(6)).await;
        arrivals.recv().await.expect("the first attempt");
        let record = world.settled(State::Waiting).await;
        assert_eq!((record.attempts, record.status_code), (1, Some(503)));
        assert!(record.next_at - before >= 3_600_000_000, "{record:?}");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_410_disables_the_endpoint_for_good_and_that_is_to_be_published() {
    in_a_world(async |mut world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(410, None)]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.handle(changed(6)).await;
        arrivals.recv().await.expect("the attempt");
        let closing = world.closings.recv().await.expect("its lane is closed");
        assert_eq!(closing.endpoint, &*endpoint.id);
        world.endpoints.disable(&closing.endpoint, &closing.reason).await.expect("the store takes it");
        world.settled(State::Dead).await;
        let now = world.endpoints.book.get(&endpoint.id).expect("it is still there");
        assert_eq!((now.state, now.version), (EndpointState::Disabled, 2));
        assert_eq!(world.endpoints.book.to_announce().len(), 1);
        world.handle(changed(7)).await;
        assert_eq!(world.deliveries().await.len(), 1, "a disabled endpoint gets no new deliveries");
        let refused = world.endpoints.pause(&acme(), &endpoint.id).await.expect_err("nothing is sent anyway");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        world.endpoints.resume(&acme(), &endpoint.id).await.expect("its owner enables it");
        assert!(world.endpoints.book.to_announce().is_empty());
        world.handle(changed(8)).await;
        arrivals.recv().await.expect("it gets what comes now");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_redelivered_event_is_left_as_it_is_and_a_replayed_one_is_sent_again() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        world.endpoint(receiver.settings()).await;
        let event = changed(6);
        world.handle(event.clone()).await;
        let (first, _) = arrivals.recv().await.expect("it arrives");
        world.settled(State::Delivered).await;
        world.handle(wire::ConsumedEvent { redelivered: true, ..event.clone() }).await;
        world.handle(wire::ConsumedEvent { replayed: true, ..event }).await;
        let (second, _) = arrivals.recv().await.expect("it arrives again");
        assert_eq!(second["x-wedsync-source"], "replay");
        assert_eq!(first["webhook-id"], second["webhook-id"]);
        let record = world.settled(State::Delivered).await;
        assert_eq!(record.attempts, 2, "the redelivered one was no attempt");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_paused_endpoints_deliveries_wait_and_a_deleted_ones_are_cancelled() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.endpoints.pause(&acme(), &endpoint.id).await.expect("the store takes it");
        world.handle(changed(6)).await;
        world.settled(State::Waiting).await;
        world.endpoints.resume(&acme(), &endpoint.id).await.expect("the store takes it");
        arrivals.recv().await.expect("it arrives now");
        world.settled(State::Delivered).await;
        world.endpoints.pause(&acme(), &endpoint.id).await.expect("the store takes it");
        world.handle(changed(7)).await;
        assert_eq!(world.endpoints.delete(&acme(), &endpoint.id).await.expect("the store takes it"), 1);
        let states: BTreeSet<i64> = world.deliveries().await.iter().map(|record| record.state).collect();
        assert_eq!(states, BTreeSet::from([State::Delivered as i64, State::Cancelled as i64]));
        world.handle(changed(8)).await;
        assert_eq!(world.deliveries().await.len(), 2);
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_that_cannot_be_rendered_is_a_dead_letter_that_says_why() {
    in_a_world(async |world: World| {
        let (receiver, _arrivals) = Receiver::start(&[]).await;
        world
            .endpoint(Settings { transformation: r#"{"a": "new.bride_name + 1"}"#.to_owned(), ..receiver.settings() })
            .await;
        world.handle(changed(6)).await;
        let record = world.settled(State::Dead).await;
        assert!(record.reason.contains("transformation"), "{}", record.reason);
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_whose_plan_wants_no_webhooks_goes_nowhere() {
    in_a_world(async |world: World| {
        let (receiver, _arrivals) = Receiver::start(&[]).await;
        world.endpoint(receiver.settings()).await;
        world.handle(wire::ConsumedEvent { plan: Some(wire::Plan::default()), ..changed(6) }).await;
        assert!(world.deliveries().await.is_empty());
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn endpoints_are_in_force_again_after_a_restart() {
    on_each_engine(&[&chassis::store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], |store| async move {
        let chassis = Chassis::for_test();
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let world = World::open(&store, &chassis).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.stop().await;
        // The same keys, with tasks that still run.
        let chassis = Chassis::new((*chassis.shared).clone(), Clock::System).expect("they hold");
        let world = World::open(&store, &chassis).await;
        world.handle(changed(6)).await;
        let (headers, body) = arrivals.recv().await.expect("it arrives");
        let secret = endpoint.secrets[0].secret.expose();
        standardwebhooks::Webhook::new(secret)
            .expect("our secret")
            .verify(&body, &headers)
            .expect("the secret is the same");
        world.settled(State::Delivered).await;
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_is_known_before_its_lane_opens_and_matched_after() {
    in_a_world(async |world: World| {
        let (receiver, _arrivals) = Receiver::start(&[]).await;
        // Nobody opens a lane any more.
        assert!(world.chassis.tasks.stop(LONG).await);
        let since = Since { log_id: "log".to_owned(), sequence: 5 };
        let made = world.endpoints.create_as("one", acme(), receiver.settings(), since, None).await;
        assert!(made.is_err_and(|error| error.is_retryable()));
        assert!(world.deliver.book.get("one").is_some());
        let event = crate::rpc::wire::event(changed(6).event.expect("an event")).expect("well-formed");
        assert!(world.deliver.book.find(&event).is_empty());
    })
    .await;
}
