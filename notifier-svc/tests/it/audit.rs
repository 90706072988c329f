//! Who did what that touches other people.

use std::time::Duration;

use proto::{
    common::v1::Priority,
    notifier::v1::{
        AcknowledgeRequest, CreateSuppressionRequest, DeleteSuppressionRequest, DeleteTemplateRequest,
        ErasePersonRequest, ListAuditsRequest, ListAuditsResponse, OrganizationSettings, Preference,
        PutTemplateRequest, SendRequest, Suppression, UpdateOrganizationSettingsRequest,
    },
};

use crate::world::{Client, in_each_world};

async fn list(client: &Client, subject: &str, page_token: &str) -> ListAuditsResponse {
    let request = ListAuditsRequest { page_size: 2, page_token: page_token.to_owned(), subject: subject.to_owned() };
    client.audits().list_audits(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn who_did_what_for_others_stands_for_a_year_and_is_ones_own() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        client.supplier("s1", "florist").await;
        let urgent = SendRequest {
            idempotency_key: "urgent".to_owned(),
            workflow: "emergency".to_owned(),
            recipient_ids: vec!["s1".to_owned()],
            channels: vec!["in_app".to_owned()],
            priority: Priority::Critical.into(),
            override_reason: "the venue floods".to_owned(),
            ..Default::default()
        };
        for _ in 0..2 {
            client.notifications().send(urgent.clone()).await.unwrap();
        }
        let [notification] = &client.of_event("urgent").await[..] else { panic!("one notification") };
        world.time.advance(Duration::from_secs(1));
        client.wish("s1", Preference::default()).await;
        world.time.advance(Duration::from_secs(1));
        let acknowledge = AcknowledgeRequest {
            notification_id: notification.id.clone(),
            recipient_id: "s1".to_owned(),
            ..Default::default()
        };
        client.confirmations().acknowledge(acknowledge).await.unwrap();
        world.time.advance(Duration::from_secs(1));
        client.persons().erase_person(ErasePersonRequest { recipient_id: "s1".to_owned() }).await.unwrap();

        let first = list(&client, "", "").await;
        let rest = list(&client, "", &first.next_page_token).await;
        let all: Vec<_> = first.audits.iter().chain(&rest.audits).collect();
        let said: Vec<_> = all.iter().map(|audit| (&*audit.action, &*audit.subject, &*audit.detail)).collect();
        let id = &*notification.id;
        let expected = [
            ("erase", "s1", ""),
            ("acknowledge", "s1", id),
            ("preference", "s1", ""),
            ("override", id, "the venue floods"),
        ];
        assert_eq!(said, expected, "each once, newest first");
        assert!(all.iter().all(|audit| !audit.by.is_empty()));
        assert_eq!(list(&client, id, "").await.audits.len(), 1);
        let foreign = world.client("wsk_b").await;
        assert!(list(&foreign, "", "").await.audits.is_empty());
        world.time.advance(Duration::from_secs(366 * 86_400));
        assert!(list(&client, "", "").await.audits.is_empty());
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn who_changed_texts_settings_and_the_list_stands_without_an_address_and_what_was_refused_does_not() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        let put = PutTemplateRequest {
            workflow: "timeline_changed".to_owned(),
            part: "sms.text".to_owned(),
            locale: "en".to_owned(),
            source: "The day has changed.".to_owned(),
            expected_version: 0,
        };
        client.templates().put_template(put.clone()).await.unwrap();
        client.templates().put_template(put).await.expect_err("another version is the latest");
        world.time.advance(Duration::from_secs(1));
        let delete = DeleteTemplateRequest {
            workflow: "timeline_changed".to_owned(),
            part: "sms.text".to_owned(),
            locale: "en".to_owned(),
            expected_version: 1,
        };
        client.templates().delete_template(delete).await.unwrap();
        world.time.advance(Duration::from_secs(1));
        let settings = OrganizationSettings { locale: "de".to_owned(), slack_weddings: true, ..Default::default() };
        let update = UpdateOrganizationSettingsRequest { settings: Some(settings) };
        client.settings().update_organization_settings(update).await.unwrap();
        world.time.advance(Duration::from_secs(1));
        let (channel, address) = ("email".to_owned(), "ada@lens.example".to_owned());
        let suppression = Suppression { channel: channel.clone(), address: address.clone(), ..Default::default() };
        let create = CreateSuppressionRequest { suppression: Some(suppression) };
        client.suppressions().create_suppression(create).await.unwrap();
        world.time.advance(Duration::from_secs(1));
        let delete = DeleteSuppressionRequest { channel, address };
        client.suppressions().delete_suppression(delete.clone()).await.unwrap();
        client.suppressions().delete_suppression(delete).await.expect_err("it is off the list already");

        let mut said = Vec::new();
        let mut page = String::new();
        loop {
            let listed = list(&client, "", &page).await;
            said.extend(listed.audits);
            page = listed.next_page_token;
            if page.is_empty() {
                break;
            }
        }
        let shown: Vec<_> = said.iter().map(|audit| (&*audit.action, &*audit.detail)).collect();
        let expected = [
            ("suppression", "taken off"),
            ("suppression", "listed: manual"),
            ("settings", "locale, slack_weddings"),
            ("template", "version 2: ours again"),
            ("template", "version 1: put"),
        ];
        assert_eq!(shown, expected, "each once, newest first");
        assert_eq!(said[4].subject, "timeline_changed/sms.text/en");
        assert_eq!(said[0].subject, said[1].subject);
        assert!(said.iter().all(|audit| !audit.by.is_empty() && !audit.subject.contains("lens.example")));
        assert!(world.chassis.drain().await);
    })
    .await;
}
