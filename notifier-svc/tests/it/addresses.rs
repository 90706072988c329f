//! The addresses of people beyond mail and telephone: what is shown of them, and what never is.

use proto::notifier::v1::{
    AddPushTargetRequest, GetRecipientRequest, Recipient, RecipientKind, RemovePushTargetRequest,
    UpsertRecipientRequest, WebPushSubscription, add_push_target_request::Target,
};
use tonic::Code;

use crate::world::{Client, in_each_world};

fn person() -> Recipient {
    Recipient {
        id: "s1".to_owned(),
        kind: RecipientKind::Supplier.into(),
        whatsapp: "+15005550010".to_owned(),
        slack_channel: "C012AB3CD".to_owned(),
        slack_user_id: "U012AB3CD".to_owned(),
        ..Recipient::default()
    }
}

async fn upsert(client: &Client, recipient: Recipient) -> Result<Recipient, tonic::Status> {
    let request = UpsertRecipientRequest { recipient: Some(recipient) };
    Ok(client.recipients().upsert_recipient(request).await?.into_inner().recipient.unwrap())
}

async fn get(client: &Client) -> Recipient {
    let request = GetRecipientRequest { id: "s1".to_owned() };
    client.recipients().get_recipient(request).await.unwrap().into_inner().recipient.unwrap()
}

#[tokio::test]
async fn a_webhook_is_never_shown_and_stays_until_it_is_taken_away() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        let hooks = Recipient {
            teams_webhook: Some("https://x.environment.api.powerplatform.com/powerautomate/x?sig=s3cret".to_owned()),
            slack_webhook: Some("https://hooks.slack.com/services/T/B/s3cret".to_owned()),
            ..person()
        };
        let shown = upsert(&client, hooks).await.unwrap();
        assert!(shown.teams_webhook.is_none() && shown.slack_webhook.is_none());
        assert!(!format!("{shown:?}{:?}", get(&client).await).contains("s3cret"));
        assert_eq!(shown.slack_user_id, "U012AB3CD");
        // What is absent stays: a name can be changed by those who don't know the webhook.
        upsert(&client, Recipient { name: "Ada".to_owned(), ..person() }).await.unwrap();
        let wrong = Recipient { teams_webhook: Some("x".to_owned()), ..person() };
        let refused = upsert(&client, wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with("recipient.teams_webhook: "), "{}", refused.message());
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn browsers_and_devices_come_and_go_and_a_new_name_keeps_them() {
    in_each_world(async |world| {
        let client = world.client("wsk_a").await;
        upsert(&client, person()).await.unwrap();
        let web = WebPushSubscription {
            endpoint: "https://updates.push.services.mozilla.com/wpush/v2/x".to_owned(),
            p256dh: "B".repeat(87),
            auth: "a".repeat(22),
        };
        let add = |target| AddPushTargetRequest { recipient_id: "s1".to_owned(), target: Some(target) };
        client.recipients().add_push_target(add(Target::Web(web.clone()))).await.unwrap();
        client.recipients().add_push_target(add(Target::Web(web.clone()))).await.unwrap();
        client.recipients().add_push_target(add(Target::FcmToken("device-1".to_owned()))).await.unwrap();
        assert_eq!(get(&client).await.push_targets, 2, "one is known once");
        assert_eq!(upsert(&client, Recipient { name: "Ada".to_owned(), ..person() }).await.unwrap().push_targets, 2);

        let keyless = add(Target::Web(WebPushSubscription { auth: String::new(), ..web.clone() }));
        let refused = client.recipients().add_push_target(keyless).await.unwrap_err();
        assert!(refused.message().starts_with("target.auth: "), "{}", refused.message());
        let foreign = world.client("wsk_b").await;
        let theirs = foreign.recipients().add_push_target(add(Target::FcmToken("x".to_owned()))).await.unwrap_err();
        assert_eq!(theirs.code(), Code::NotFound);

        let remove = RemovePushTargetRequest { recipient_id: "s1".to_owned(), target: web.endpoint };
        assert_eq!(foreign.recipients().remove_push_target(remove.clone()).await.unwrap_err().code(), Code::NotFound);
        client.recipients().remove_push_target(remove.clone()).await.unwrap();
        client.recipients().remove_push_target(remove).await.unwrap();
        assert_eq!(get(&client).await.push_targets, 1);
        assert!(world.chassis.drain().await);
    })
    .await;
}
