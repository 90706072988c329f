//! Organizations' own texts: what is said with them, their versions, and what is refused.

use proto::notifier::v1::{
    DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest, MessageState, OrganizationSettings, Preference,
    PreviewTemplateRequest, PutTemplateRequest, RollbackTemplateRequest, TemplateSource,
    UpdateOrganizationSettingsRequest,
};
use tonic::Code;

use crate::world::{Client, in_each_world, moved, tells, two_vendors};

const DATE: &str = "wedding_date_change";

fn text(part: &str, locale: &str, source: &str, expected_version: i64) -> PutTemplateRequest {
    let (workflow, part, locale, source) = (DATE.to_owned(), part.to_owned(), locale.to_owned(), source.to_owned());
    PutTemplateRequest { workflow, part, locale, source, expected_version }
}

async fn put(client: &Client, part: &str, locale: &str, source: &str) {
    client.templates().put_template(text(part, locale, source, 0)).await.unwrap();
}

async fn locale(client: &Client, locale: &str) {
    let settings = OrganizationSettings { locale: locale.to_owned(), ..Default::default() };
    let request = UpdateOrganizationSettingsRequest { settings: Some(settings) };
    client.settings().update_organization_settings(request).await.unwrap();
}

#[tokio::test]
async fn everybody_reads_the_organizations_words_in_their_own_language() {
    in_each_world(|world| async move {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        client.wish("ph", Preference { locale: "de-CH".to_owned(), ..Default::default() }).await;
        put(&client, "email.subject", "de", "{{ client_name or 'Eine Hochzeit' }} heiratet am {{ new_date }}").await;
        put(&client, "email.html", "de", "<p>Fuer <b>{{ recipient_name }}</b></p>").await;
        put(&client, "email.subject", "fr", "{{ client_name or 'Un mariage' }} : le {{ new_date }}").await;
        locale(&client, "fr").await;

        world.event(moved("e1", "2026-06-20", "2026-06-27"), tells(DATE, &["email"], "")).await;
        for vendor in ["ph", "fl"] {
            client.until("e1", vendor, "email", MessageState::Sent).await;
        }
        let kept = world.smtp.kept();
        let to = |address: &str| kept.iter().find(|mail| mail.text.contains(&format!("<{address}>"))).unwrap();
        let german = &to("ada@lens.example").text;
        assert!(german.contains("Subject: Mia & Tom heiratet am 2026-06-27"), "{german}");
        assert!(german.contains("Ada &lt;b&gt;Lens&lt;"), "values are escaped in HTML: {german}");
        assert!(german.contains("update your calendar"), "what has no text of its own is ours: {german}");
        let french = &to("eve@petal.example").text;
        assert!(french.contains("Subject: Mia & Tom : le 2026-06-27"), "{french}");
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_version_follows_the_one_that_its_author_saw_and_any_can_be_put_back() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        let mut templates = client.templates();
        for (version, source) in [(1, "One {{ new_date }}"), (2, "Two {{ new_date }}")] {
            let put = templates.put_template(text("sms.text", "EN", source, version - 1)).await.unwrap().into_inner();
            assert_eq!(put.template.unwrap().version, version);
        }
        let late = templates.put_template(text("sms.text", "en", "Three", 1)).await.unwrap_err();
        assert_eq!((late.code(), late.message()), (Code::Aborted, "version 2 is the latest, not 1"));

        let (workflow, part, locale) = (DATE.to_owned(), "sms.text".to_owned(), "en".to_owned());
        let back = RollbackTemplateRequest {
            workflow: workflow.clone(),
            part: part.clone(),
            locale: locale.clone(),
            version: 1,
            expected_version: 2,
        };
        let back = templates.rollback_template(back).await.unwrap().into_inner().template.unwrap();
        assert_eq!((back.version, &*back.source), (3, "One {{ new_date }}"));
        let get = |version| GetTemplateRequest {
            workflow: workflow.clone(),
            part: part.clone(),
            locale: locale.clone(),
            version,
        };
        let two = templates.get_template(get(2)).await.unwrap().into_inner();
        assert_eq!((&*two.template.unwrap().source, two.versions.len()), ("Two {{ new_date }}", 3));
        let listed = templates.list_templates(ListTemplatesRequest::default()).await.unwrap().into_inner().templates;
        assert_eq!(listed.iter().map(|text| text.version).collect::<Vec<_>>(), [3]);
        let foreign = world.client("wsk_b").await;
        assert_eq!(foreign.templates().get_template(get(2)).await.unwrap_err().code(), Code::NotFound);
        let listed = foreign.templates().list_templates(ListTemplatesRequest::default()).await.unwrap().into_inner();
        assert!(listed.templates.is_empty());

        let delete = DeleteTemplateRequest {
            workflow: workflow.clone(),
            part: part.clone(),
            locale: locale.clone(),
            expected_version: 3,
        };
        let gone = templates.delete_template(delete.clone()).await.unwrap().into_inner().template.unwrap();
        assert!(gone.deleted && gone.version == 4);
        let ours = templates.get_template(get(0)).await.unwrap().into_inner().template.unwrap();
        assert!(ours.version == 0 && ours.source.contains("update your calendar"), "{ours:?}");
        assert_eq!(templates.delete_template(delete).await.unwrap_err().code(), Code::NotFound);
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn what_cant_be_said_on_every_channel_or_reads_what_isnt_given_is_refused() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        let endless = "{% for a in range(999) %}{% for b in range(999) %}{{ a }}{% endfor %}{% endfor %}";
        let doubled = format!("{{% for a in instructions %}}{}{{% endfor %}}", "x".repeat(17_000));
        for (part, source, said) in [
            ("email.text", "Hello\n{{ secret }}", "line 2: `secret` is not a variable"),
            ("email.text", "{{ ''.__class__ }}", "line 1"),
            ("email.text", "{% set x = 1 %}", "line 1: `set` is not part of the language"),
            ("email.text", endless, "source"),
            ("email.text", &doubled, "is longer than 16 KiB"),
            ("sms.text", &"é".repeat(613), "of at most 4 parts"),
            ("slack.body", &"x".repeat(3_001), "slack: body: 3001 of at most 3000 characters"),
            ("in_app.title", "{{ client_name }}", "with nothing known"),
        ] {
            let refused = client.templates().put_template(text(part, "en", source, 0)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{source:.40}");
            assert!(refused.message().contains(said), "{part}: {}", refused.message());
        }
        let listed = client.templates().list_templates(ListTemplatesRequest::default()).await.unwrap().into_inner();
        assert!(listed.templates.is_empty());
        assert!(world.chassis.drain().await);
    })
    .await;
}

#[tokio::test]
async fn a_preview_shows_what_each_channel_would_say() {
    in_each_world(|world| async move {
        let client = world.client("wsk_a").await;
        let source = |part: &str, source: &str| TemplateSource { part: part.to_owned(), source: source.to_owned() };
        let request = PreviewTemplateRequest {
            workflow: DATE.to_owned(),
            sources: vec![
                source("email.html", "<p>{{ client_name }}</p>"),
                source("sms.text", "{{ client_name }}: {{ new_date }}"),
            ],
            variables: br#"{"client_name": "<Mia> & Tom", "new_date": "2027-01-02"}"#.to_vec().into(),
            ..Default::default()
        };
        let shown = client.templates().preview_template(request.clone()).await.unwrap().into_inner().previews;
        let of = |channel: &str| shown.iter().find(|shown| shown.channel == channel).unwrap();
        let channels: Vec<_> = shown.iter().map(|shown| &*shown.channel).collect();
        assert_eq!(channels, ["in_app", "email", "sms", "whatsapp", "slack", "teams", "push"]);
        assert!(of("email").html.contains("<p>&lt;Mia&gt; &amp; Tom</p>"), "{}", of("email").html);
        assert!(of("email").text.contains("<Mia> & Tom") && of("email").title.contains("Saturday 2 January 2027"));
        assert_eq!(of("sms").text, "<Mia> & Tom: 2027-01-02 Reply OK to confirm.");
        assert_eq!((of("sms").measures[0].size, of("sms").measures[0].limit), (1, 4));
        for channel in ["slack", "teams", "push"] {
            assert!(serde_json::from_str::<serde_json::Value>(&of(channel).payload).is_ok(), "{channel}");
        }
        let wrong = PreviewTemplateRequest { sources: vec![source("sms.text", "{{ x }}")], ..request };
        let refused = client.templates().preview_template(wrong).await.unwrap_err();
        assert!(refused.message().contains("sms.text: line 1: `x` is not a variable"), "{}", refused.message());
        assert!(world.chassis.drain().await);
    })
    .await;
}
