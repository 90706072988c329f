//! Requests of senders that never retry: taken whatever the router does, and published in order.

use proto::vendorsync::v1::{self as api, webhook_service_server::WebhookService as _};
use tonic::Code;

use super::*;
use crate::{rpc::webhooks::Service, tests::asked};

#[tokio::test]
async fn a_database_webhook_is_accepted_whatever_the_router_does_and_arrives_in_order() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |settings| settings.rate_limit_per_hour = 1).await;
        world.router.refuse(Some(Status::unavailable("away")));
        for id in 0..40 {
            assert!(is_accepted(&world.spool(&integration, id).await));
        }
        assert!(!world.turn().await);
        assert_eq!(world.waiting().await, 40);
        world.router.refuse(None);
        while world.turn().await {}
        let records: Vec<String> = world.router.events().iter().map(record).collect();
        assert_eq!(records, (0..40).map(|id| format!(r#"{{"id":{id}}}"#)).collect::<Vec<_>>());
        assert_eq!(world.waiting().await, 0);
    })
    .await;
}

fn record(event: &wire::Event) -> String {
    let Some(wire::event::Payload::Change(change)) = &event.payload else { panic!("not a change") };
    String::from_utf8(change.new_record.to_vec()).expect("JSON")
}

#[tokio::test]
async fn two_database_webhooks_that_look_alike_are_two_changes() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        for _ in 0..2 {
            assert!(is_accepted(&world.spool(&integration, 7).await));
        }
        while world.turn().await {}
        assert_eq!(world.router.events().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn what_is_spooled_survives_its_integration_and_is_not_readable_in_the_store() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.spool(&integration, 7).await;
        let body: Vec<u8> =
            with!(world.store.reader(), c => sqlx::query_scalar("SELECT body FROM inbound_spool").fetch_one(c).await)
                .expect("the row");
        assert!(!String::from_utf8_lossy(&body).contains("record"));
        world.integrations.delete(&integration.organization, &integration.id).await.expect("deleted");
        while world.turn().await {}
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_refused_or_limited_integration_holds_no_other_up() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.spool(&integration, 1).await;
        world.router.refuse(Some(Status::resource_exhausted("over the limit")));
        assert!(!world.turn().await, "held, not failed");
        assert_eq!(world.waiting().await, 1);
        world.router.refuse(Some(Status::invalid_argument("never")));
        assert!(world.turn().await);
        assert_eq!(world.waiting().await, 0, "set aside");
        world.router.refuse(None);
        world.spool(&integration, 2).await;
        while world.turn().await {}
        assert_eq!(world.router.events().len(), 1);
        world.inbound.spool.purge(noon() + jiff::SignedDuration::from_hours(31 * 24)).await.expect("purged");
    })
    .await;
}

#[tokio::test]
async fn the_spool_is_published_in_the_background_and_outlives_a_router_that_is_away() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.router.refuse(Some(Status::unavailable("away")));
        world.inbound.start(&world.chassis.tasks);
        world.spool(&integration, 1).await;
        world.router.refuse(None);
        while world.waiting().await > 0 {
            world.manual.advance(Duration::from_secs(5));
            tokio::task::yield_now().await;
        }
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

impl World {
    fn rpc(&self) -> Service {
        Service::new(self.inbound.clone())
    }

    async fn listed(&self, organization: &str, page_size: i32, page_token: &str) -> (Vec<api::SpooledWebhook>, String) {
        let request = api::ListSpooledWebhooksRequest {
            page_size,
            page_token: page_token.to_owned(),
            ..api::ListSpooledWebhooksRequest::default()
        };
        let page = self.rpc().list_spooled_webhooks(asked(organization, request)).await.expect("a page").into_inner();
        (page.webhooks, page.next_page_token)
    }

    async fn retry(&self, organization: &str, id: &str) -> Result<api::RetrySpooledWebhookResponse, Code> {
        let request = api::RetrySpooledWebhookRequest { id: id.to_owned() };
        let retried = self.rpc().retry_spooled_webhook(asked(organization, request)).await;
        retried.map(tonic::Response::into_inner).map_err(|status| status.code())
    }

    /// Has these set aside.
    async fn sets_aside(&self, integration: &Integration, ids: std::ops::Range<usize>) {
        self.router.refuse(Some(Status::invalid_argument("never")));
        for id in ids {
            self.spool(integration, id).await;
        }
        while self.turn().await {}
    }
}

#[tokio::test]
async fn what_was_set_aside_is_shown_and_taken_once_it_can_be() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.sets_aside(&integration, 7..8).await;
        let [webhook] = &world.listed("org", 0, "").await.0[..] else { panic!("not one") };
        assert_eq!(webhook.integration_id, integration.id);
        assert!(webhook.reason.contains("never"), "{webhook:?}");
        let request = api::GetSpooledWebhookRequest { id: webhook.id.clone() };
        let got = world.rpc().get_spooled_webhook(asked("org", request)).await.expect("it is shown").into_inner();
        assert!(got.webhook.as_ref() == Some(webhook) && got.body.starts_with(br#"{"type":"INSERT""#), "{got:?}");

        let refused = world.retry("org", &webhook.id).await.expect("it is tried");
        assert!(!refused.taken && refused.reason.contains("never"), "{refused:?}");
        world.router.refuse(Some(Status::unavailable("away")));
        assert_eq!(world.retry("org", &webhook.id).await, Err(Code::Unavailable));
        assert_eq!(world.listed("org", 0, "").await.0.len(), 1, "it stays");
        world.router.refuse(None);
        assert!(world.retry("org", &webhook.id).await.expect("it is tried").taken);
        assert!(world.listed("org", 0, "").await.0.is_empty());
        assert_eq!(world.retry("org", &webhook.id).await, Err(Code::NotFound));
        assert_eq!(world.router.events().iter().map(record).collect::<Vec<_>>(), [r#"{"id":7}"#]);
    })
    .await;
}

#[tokio::test]
async fn what_was_set_aside_is_its_organizations_own_and_comes_in_pages() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.sets_aside(&integration, 0..5).await;
        world.router.refuse(None);
        let (first, next) = world.listed("org", 3, "").await;
        let (second, end) = world.listed("org", 3, &next).await;
        assert_eq!((first.len(), second.len(), end.as_str()), (3, 2, ""));
        let id = first[0].id.clone();
        assert!(world.listed("other", 0, "").await.0.is_empty());
        assert_eq!(world.retry("other", &id).await, Err(Code::NotFound));
        let request = api::GetSpooledWebhookRequest { id: id.clone() };
        let got = world.rpc().get_spooled_webhook(asked("other", request)).await;
        assert_eq!(got.expect_err("it is nobody's").code(), Code::NotFound);
        // What still waits isn't set aside, and nobody's number is a text.
        world.spool(&integration, 9).await;
        assert_eq!(world.listed("org", 0, "").await.0.len(), 5);
        assert_eq!(world.retry("org", "1 OR 1=1").await, Err(Code::NotFound));
        world.integrations.delete(&integration.organization, &integration.id).await.expect("deleted");
        assert_eq!(
            world.retry("org", &id).await,
            Err(Code::FailedPrecondition),
            "nobody knows how to read it any more"
        );
        assert!(world.router.events().is_empty());
    })
    .await;
}
