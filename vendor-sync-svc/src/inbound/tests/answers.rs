//! What a sender is answered, and that what it says is one event.

use super::*;

#[tokio::test]
async fn a_signed_request_becomes_one_event_of_its_organization() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        let answer = world.send(&integration, &CLIENT.replace("12:00:00Z", "11:58:00Z")).await;
        let [event] = &world.router.events()[..] else { panic!("not one event") };
        assert_eq!(answer, Answer::Accepted { event_id: event.id.clone() });
        assert_eq!((event.organization_id.as_str(), event.r#type.as_str()), ("org", "client.updated"));
        assert_eq!(event.source, format!("integration:{}", integration.id));
        let metadata = event.metadata.clone().expect("metadata");
        assert_eq!(
            (metadata.supplier_id.as_str(), metadata.couple_id.as_str()),
            ("s1", "3f2504e0-4f89-41d3-9a0c-0305e82c3301")
        );
        let stored = world.integrations.get(&integration.organization, &integration.id).await.expect("it is there");
        assert_eq!((stored.last_received_at, stored.version), (Some(noon()), 1));
    })
    .await;
}

#[tokio::test]
async fn the_table_of_answers_holds() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        let stranger = |id: &str| Integration { id: id.to_owned(), ..integration.clone() };
        for id in ["", "no-uuid", "a\0b", "01990000-0000-7000-8000-00000000dead"] {
            assert_eq!(world.send(&stranger(id), CLIENT).await, Answer::Unknown, "{id:?}");
        }
        let mut elsewhere = integration.clone();
        elsewhere.settings.vendor = "channel-events".to_owned();
        assert_eq!(world.send(&elsewhere, CLIENT).await, Answer::Unknown, "another path");
        let disabled = world.create(Kind::ClientSync, |settings| settings.disabled = true).await;
        assert_eq!(world.send(&disabled, CLIENT).await, Answer::Unknown);
        assert_eq!(world.receive(&integration, &[], CLIENT).await, Answer::Unverified);
        assert_eq!(
            world.receive(&integration, &[("x-wedsync-signature", &hex("{}"))], CLIENT).await,
            Answer::Unverified
        );
        assert_eq!(
            world.send(&integration, &CLIENT.replace("12:00:00Z", "11:54:59Z")).await,
            Answer::Unverified,
            "stale"
        );
        let invalid = world.send(&integration, &CLIENT.replace("client.updated", "client.exploded")).await;
        assert!(matches!(invalid, Answer::Invalid { ref field, .. } if field == "event"));
        assert!(
            matches!(world.send(&integration, "not JSON").await, Answer::Invalid { ref field, .. } if field == "body")
        );
        world.router.refuse(Some(Status::unavailable("away")));
        assert_eq!(world.send(&integration, CLIENT).await, Answer::Unavailable { retry_after: RETRY_AFTER });
        assert!(world.router.events().is_empty(), "nothing of it was published");
        world.router.refuse(None);
        assert!(is_accepted(&world.send(&integration, CLIENT).await));
        assert!(is_duplicate(&world.send(&integration, CLIENT).await));
    })
    .await;
}

#[tokio::test]
async fn an_id_with_another_body_is_a_conflict_and_a_refused_body_may_be_mended() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |_| {}).await;
        assert!(matches!(world.send_as(&integration, "m1", r#"{"n":1}"#).await, Answer::Invalid { .. }));
        assert!(is_accepted(&world.send_as(&integration, "m1", r#"{"type":"a.b","n":1}"#).await));
        assert!(is_duplicate(&world.send_as(&integration, "m1", r#"{"type":"a.b","n":1}"#).await));
        assert_eq!(world.send_as(&integration, "m1", r#"{"type":"a.b","n":2}"#).await, Answer::Conflict);
        assert!(
            is_accepted(&world.send_as(&integration, "m2", r#"{"type":"a.b","n":1}"#).await),
            "the same change again"
        );
        assert_eq!(world.router.events().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_crash_between_publishing_and_its_receipt_leaves_one_event() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        assert!(is_accepted(&world.send(&integration, CLIENT).await));
        with!(world.store.writer(), c => sqlx::query("DELETE FROM inbound_receipts").execute(c).await.map(drop))
            .expect("forgotten");
        assert!(is_duplicate(&world.send(&integration, CLIENT).await), "the router knows it");
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn fifty_repeats_at_once_have_one_effect() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        let repeats = (0..50).map(|_| world.send(&integration, CLIENT));
        let answers = futures_util::future::join_all(repeats).await;
        assert_eq!(answers.iter().filter(|answer| is_accepted(answer)).count(), 1);
        assert_eq!(answers.iter().filter(|answer| is_duplicate(answer)).count(), 49);
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn copies_that_come_at_once_count_once() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |settings| settings.rate_limit_per_hour = 51).await;
        let copies = (0..50).map(|_| world.send(&integration, CLIENT));
        futures_util::future::join_all(copies).await;
        for second in 1..51 {
            let another = CLIENT.replace("12:00:00Z", &format!("12:00:{second:02}Z"));
            assert!(is_accepted(&world.send(&integration, &another).await), "{second}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_limit_is_counted_by_what_is_verified_and_processed() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |settings| settings.rate_limit_per_hour = 2).await;
        let body = r#"{"type":"a.b"}"#;
        for _ in 0..5 {
            assert_eq!(
                world.receive(&integration, &[("x-wedsync-signature", "forged")], body).await,
                Answer::Unverified
            );
        }
        world.router.refuse(Some(Status::unavailable("away")));
        for _ in 0..5 {
            assert!(matches!(world.send_as(&integration, "m1", body).await, Answer::Unavailable { .. }));
        }
        world.router.refuse(None);
        for id in ["m1", "m2"] {
            assert!(is_accepted(&world.send_as(&integration, id, body).await));
            assert!(is_duplicate(&world.send_as(&integration, id, body).await));
        }
        let limited = world.send_as(&integration, "m3", body).await;
        assert_eq!(limited, Answer::Limited { retry_after: Duration::from_secs(3600) });
        world.manual.advance(Duration::from_secs(3600));
        assert!(is_accepted(&world.send_as(&integration, "m3", body).await));
    })
    .await;
}

#[tokio::test]
async fn a_rotated_secret_verifies_beside_the_new_one_until_the_overlap_ends() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |_| {}).await;
        let new = Secret::from("a-new-secret-of-30-characters!".to_owned());
        let overlap = Duration::from_secs(60);
        world.integrations.rotate(&integration.organization, &integration.id, &new, overlap).await.expect("rotated");
        assert!(is_accepted(&world.send_as(&integration, "m1", r#"{"type":"a.b"}"#).await));
        let body = r#"{"type":"a.b","timestamp":"2026-05-01T12:00:30Z"}"#;
        let signature = signature::hex_sign(new.expose().as_bytes(), body.as_bytes());
        assert!(is_accepted(&world.receive(&integration, &[("x-wedsync-signature", &signature)], body).await));
        world.manual.advance(overlap);
        assert_eq!(world.send_as(&integration, "m2", r#"{"type":"a.b"}"#).await, Answer::Unverified);
    })
    .await;
}

#[tokio::test]
async fn settings_change_only_from_the_version_that_was_read_and_only_by_their_owner() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |_| {}).await;
        let (own, other) = (integration.organization.clone(), OrganizationId::parse("other").unwrap());
        let settings = Settings { description: "new".to_owned(), ..integration.settings.clone() };
        let update = async |organization, version| {
            world.integrations.update(organization, &integration.id, version, &settings).await
        };
        assert_eq!(update(&own, 1).await.expect("updated").version, 2);
        assert!(matches!(update(&own, 1).await, Err(Error::Aborted(_))));
        assert!(matches!(update(&other, 2).await, Err(Error::NotFound(_))));
        assert!(matches!(world.integrations.delete(&other, &integration.id).await, Err(Error::NotFound(_))));
        assert!(world.integrations.list(&other, "", 10).await.expect("a page").is_empty());
        assert_eq!(world.integrations.list(&own, "", 10).await.expect("a page").len(), 1);
        world.integrations.delete(&own, &integration.id).await.expect("deleted");
        assert_eq!(world.send_as(&integration, "m1", r#"{"type":"a.b"}"#).await, Answer::Unknown);
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn however_often_and_in_whatever_order_messages_are_repeated_each_has_one_effect(
        sends in prop::collection::vec((0usize..6, any::<bool>()), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(in_each_world(|world| {
            let sends = sends.clone();
            async move {
                let integration = world.create(Kind::SignedWebhook, |_| {}).await;
                let distinct: std::collections::BTreeSet<_> = sends.iter().collect();
                for (n, by_id) in &sends {
                    let body = format!(r#"{{"type":"a.b","n":{n},"by_id":{by_id},"timestamp":"2026-05-01T12:00:00Z"}}"#);
                    let answer = if *by_id { world.send_as(&integration, &format!("m{n}"), &body).await } else { world.send(&integration, &body).await };
                    assert!(is_accepted(&answer) || is_duplicate(&answer), "{answer:?}");
                }
                assert_eq!(world.router.events().len(), distinct.len());
            }
        }));
    }
}
