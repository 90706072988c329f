//! Campaigns at Mailchimp and Constant Contact on loopback, on each engine of the store.

use std::{collections::BTreeMap, time::Duration};

use chassis::{
    clock::{Clock, ManualClock},
    config::Secret,
    id::OrganizationId,
    secret::DataKeys,
    service::Chassis,
    store::Store,
    testing::{manual_clock, on_each_engine},
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::{
    credential::{Kept, Tokens},
    integration::{Kind, Settings, tests::settings},
    sync::{Engine, tests::with_keys},
    testing::vendor::{
        Said, Server, Vendor, campaign::Campaigns as Held, constant_contact::ConstantContact, mailchimp::Mailchimp,
    },
};

const LIST: &str = "6d9f1a0e-0000-4000-8000-000000000001";
const FIGURES: [u64; 5] = [90, 40, 12, 3, 2];
const REPORT: Report = Report { sent: 90, opens: 40, clicks: 12, unsubscribes: 3, bounces: 2 };

/// A vendor with campaigns.
trait Marketing: Vendor {
    fn held(&mut self) -> &mut Held;
}

impl Marketing for Mailchimp {
    fn held(&mut self) -> &mut Held {
        &mut self.campaigns
    }
}

impl Marketing for ConstantContact {
    fn held(&mut self) -> &mut Held {
        &mut self.campaigns
    }
}

struct World<V: Vendor> {
    server: Server<V>,
    engine: Engine,
    maker: Maker,
    poller: Poller,
    manual: ManualClock,
    integration: Integration,
}

impl<V: Marketing> World<V> {
    async fn open(store: Store, vendor: V, name: &str, list: &str, kept: Kept) -> Self {
        let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("keys"), Clock::System);
        let engine = with_keys(&store, &keys).await;
        let (manual, clock) = manual_clock();
        let server = Server::start_at(vendor, clock.clone()).await;
        let connector =
            format!("name = \"here\"\ntitle = \"Here\"\nextends = \"{name}\"\nbase_url = \"{}\"\n", server.base());
        let (accounts, acme) = (&engine.accounts, organization("acme"));
        let catalogue = crate::connector::catalogue::Catalogue::new(store.clone(), Clock::System);
        catalogue.put(&acme, &connector, 0).await.expect("it is well-formed");
        let settings = Settings {
            connector: "here".to_owned(),
            vendor: "here".to_owned(),
            parameters: BTreeMap::from([("list_id".to_owned(), list.to_owned())]),
            ..settings(Kind::Connector)
        };
        let secret = Secret::from("a-secret-of-24-bytes-or-more".to_owned());
        let integration = accounts.integrations.create(acme, settings, &secret).await.expect("created");
        engine.credentials.connections.connect(&integration, &kept, &BTreeMap::new(), None).await.expect("connected");
        let campaigns = Campaigns::new(store, keys, engine.resolver.outbox.clone());
        let maker = Maker { campaigns, caller: engine.caller.clone(), clock };
        let poller = Poller { maker: maker.clone(), integrations: engine.accounts.integrations.clone() };
        Self { server, engine, maker, poller, manual, integration }
    }

    async fn make(&self, draft: &Draft) -> Result<Campaign> {
        self.maker.create(&self.integration, draft).await
    }

    async fn get(&self, campaign: &Campaign) -> Campaign {
        self.maker.campaigns.get(&campaign.organization, &campaign.id).await.expect("it is there")
    }

    /// Lets time pass, and whoever asks ask.
    async fn after(&self, span: SignedDuration) {
        self.manual.advance(Duration::try_from(span).expect("forwards"));
        self.poller.turn().await;
    }

    async fn told(&self) -> Vec<Value> {
        let (events, _) = self.engine.resolver.outbox.look(&organization("acme")).await;
        let content = |event: &proto::router::v1::Event| match event.payload.as_ref() {
            Some(proto::router::v1::event::Payload::Content(content)) if event.r#type == "campaign.reported" => {
                Some(serde_json::from_slice(&content.data).expect("JSON"))
            }
            _ => None,
        };
        events.iter().filter_map(content).collect()
    }
}

fn organization(name: &str) -> OrganizationId {
    OrganizationId::parse(name).expect("well-formed")
}

fn draft() -> Draft {
    Draft {
        name: "July couples".to_owned(),
        subject: "Your day is near".to_owned(),
        from_name: "Ada".to_owned(),
        from_email: "ada@example.org".to_owned(),
        html: format!("<html><body>{}[[trackingImage]]</body></html>", "x".repeat(40_000)),
        ..Draft::default()
    }
}

async fn on_each_store<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, test).await;
}

async fn mailchimp(store: Store) -> World<Mailchimp> {
    World::open(
        store,
        Mailchimp::new("k3y", "a1b2c3"),
        "mailchimp",
        "a1b2c3",
        Kept::Key(Secret::from("k3y".to_owned())),
    )
    .await
}

async fn constant_contact(store: Store) -> World<ConstantContact> {
    let tokens = Tokens { access: Secret::from("t0ken".to_owned()), refresh: Secret::default(), expires_at: None };
    World::open(store, ConstantContact::new("t0ken"), "constant-contact", LIST, Kept::Tokens { tokens, app: None })
        .await
}

/// From a draft to its final report.
async fn lives<V: Marketing>(world: &World<V>) {
    let campaign = world.make(&draft()).await.expect("made");
    assert_eq!((campaign.state, campaign.reason.as_str()), (State::Draft, ""));
    assert_eq!(world.server.vendor().held().get(&campaign.external_id).expect("it is there").html, draft().html);
    world.after(SignedDuration::from_hours(2)).await;
    assert_eq!(world.get(&campaign).await.state, State::Draft, "nobody has sent it");

    let sent_at = world.maker.clock.now();
    world.server.vendor().held().send(&campaign.external_id, sent_at, [90, 1, 0, 0, 2]);
    world.after(SignedDuration::from_hours(2)).await;
    let sent = world.get(&campaign).await;
    assert_eq!((sent.state, sent.report.map(|report| report.opens)), (State::Sent, Some(1)), "{sent:?}");
    assert!(sent.next_at.is_some() && world.told().await.is_empty(), "it may grow");

    world.server.vendor().held().send(&campaign.external_id, sent_at, FIGURES);
    world.after(SignedDuration::from_hours(8 * 24)).await;
    let last = world.get(&campaign).await;
    assert_eq!((last.report, last.next_at), (Some(REPORT), None));
    let told = world.told().await;
    assert_eq!(told.len(), 1, "once");
    assert_eq!(
        (&told[0]["opens"], &told[0]["bounces"], &told[0]["campaign_id"]),
        (&json!(40), &json!(2), &json!(campaign.id))
    );
    let asked = world.server.asked().len();
    world.after(SignedDuration::from_hours(48)).await;
    assert_eq!(world.server.asked().len(), asked, "what is final is asked about no more");
    assert_eq!(world.told().await.len(), 1);
}

#[tokio::test]
async fn a_campaign_lives_from_its_draft_to_its_final_report_at_mailchimp() {
    on_each_store(async |store| lives(&mailchimp(store).await).await).await;
}

#[tokio::test]
async fn a_campaign_lives_from_its_draft_to_its_final_report_at_constant_contact() {
    on_each_store(async |store| lives(&constant_contact(store).await).await).await;
}

#[tokio::test]
async fn a_campaign_goes_to_whom_it_is_meant_for_and_to_nobody_else() {
    on_each_store(async |store| {
        let world = mailchimp(store).await;
        let tagged = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
        world.server.vendor().audience("a1b2c3").tags.insert("h".to_owned(), tagged(&["wedding-2026-07-late"]));
        let meant = Draft { segment: "wedding-2026-07".to_owned(), ..draft() };
        let refused = world.make(&meant).await.expect_err("a tag that only begins so is another");
        assert!(matches!(&refused, Error::Invalid { field, .. } if field == "segment"), "{refused:?}");
        assert_eq!(world.server.vendor().held().all().count(), 0, "nothing was made");
        world.server.vendor().audience("a1b2c3").tags.insert("h".to_owned(), tagged(&["wedding-2026-07"]));
        let made = world.make(&meant).await.expect("made");
        let said = world.server.vendor().held().get(&made.external_id).expect("it is there").said.clone();
        assert_eq!(said["recipients"], json!({"list_id": "a1b2c3", "segment_opts": {"saved_segment_id": 100}}));

        let from_template = Draft { html: String::new(), template_id: "7".to_owned(), ..draft() };
        let made = world.make(&from_template).await.expect("made");
        let said = world.server.vendor().held().get(&made.external_id).expect("it is there").said.clone();
        assert_eq!((&said["settings"]["template_id"], &said["recipients"]["segment_opts"]), (&json!(7), &Value::Null));
        let unknown = Draft { template_id: "8".to_owned(), ..from_template.clone() };
        assert!(matches!(world.make(&unknown).await, Err(Error::Invalid { field, .. }) if field == "template_id"));
    })
    .await;
}

#[tokio::test]
async fn at_constant_contact_a_segment_is_named_by_its_id_and_there_are_no_templates() {
    on_each_store(async |store| {
        let world = constant_contact(store).await;
        let made = world.make(&Draft { segment: "42".to_owned(), ..draft() }).await.expect("made");
        assert_eq!(world.server.vendor().held().get(&made.external_id).expect("there").to, Some(vec![json!(42)]));
        let from_template = Draft { html: String::new(), template_id: "7".to_owned(), ..draft() };
        assert!(
            matches!(world.make(&from_template).await, Err(Error::Invalid { field, .. }) if field == "template_id")
        );
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_is_not_there_and_what_may_be_there_is_not_made_again() {
    on_each_store(async |store| {
        let world = constant_contact(store).await;
        world.make(&draft()).await.expect("made");
        let refused = world.make(&draft()).await.expect_err("its name is taken");
        assert!(matches!(refused, Error::FailedPrecondition(_)), "{refused:?}");
        let all = async || world.maker.campaigns.list(&organization("acme"), "", "", 10).await.expect("listed");
        assert_eq!(all().await.len(), 1);

        // It answers, and says no id.
        world.server.next([Said::json(200, &json!({}))]);
        let unknown = world.make(&Draft { name: "Another".to_owned(), ..draft() }).await.expect("it is shown");
        assert_eq!((unknown.state, unknown.next_at), (State::Unknown, None));
        assert!(unknown.reason.contains("look there"), "{}", unknown.reason);

        // A process that ended while it asked.
        let mut left = world.maker.row(&world.integration, "Third", "", State::Making);
        world.maker.campaigns.insert(&left, MOST_OPEN).await.expect("stored");
        world.after(SignedDuration::from_mins(6)).await;
        left = world.get(&left).await;
        assert_eq!((left.state, left.next_at), (State::Unknown, None));
        assert_eq!(world.server.vendor().held().all().count(), 1);
    })
    .await;
}

#[tokio::test]
async fn one_that_is_gone_is_asked_about_no_more_and_a_foreign_one_is_not_found() {
    on_each_store(async |store| {
        let world = mailchimp(store).await;
        let by_hand = world.server.vendor().held().make(&json!({}));
        let followed = world.maker.follow(&world.integration, &by_hand, "By hand").await.expect("it is there");
        let missing = world.maker.follow(&world.integration, "nothing", "").await;
        assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
        let foreign = world.maker.campaigns.get(&organization("other"), &followed.id).await;
        assert!(matches!(foreign, Err(Error::NotFound(_))));
        assert!(world.maker.campaigns.list(&organization("other"), "", "", 10).await.expect("listed").is_empty());
        world.server.vendor().held().remove(&by_hand);
        world.after(SignedDuration::from_hours(2)).await;
        let gone = world.get(&followed).await;
        assert_eq!((gone.state, gone.next_at), (State::Gone, None), "{gone:?}");
        assert!(world.told().await.is_empty());

        let row = world.maker.row(&world.integration, "One", "x", State::Draft);
        world.maker.campaigns.insert(&row, 1).await.expect("there is room");
        let another = world.maker.row(&world.integration, "Two", "y", State::Draft);
        let refused = world.maker.campaigns.insert(&another, 1).await;
        assert!(matches!(refused, Err(Error::FailedPrecondition(_))), "no more than so many are followed");
    })
    .await;
}

#[test]
fn a_draft_says_what_is_missing() {
    let field = |draft: Draft| match draft.check() {
        Err(Error::Invalid { field, .. }) => field.to_string(),
        Ok(()) => String::new(),
        other => panic!("{other:?}"),
    };
    assert_eq!(field(draft()), "");
    assert_eq!(field(Draft { name: " ".to_owned(), ..draft() }), "name");
    assert_eq!(field(Draft { subject: "a\nBcc: b".to_owned(), ..draft() }), "subject");
    assert_eq!(field(Draft { from_email: "ada".to_owned(), ..draft() }), "from_email");
    assert_eq!(field(Draft { html: String::new(), ..draft() }), "html");
    assert_eq!(field(Draft { template_id: "7".to_owned(), ..draft() }), "html");
    assert_eq!(field(Draft { html: "x".repeat(HTML_BYTES + 1), ..draft() }), "html");
}

proptest! {
    /// However a campaign fares, it is asked about at most once in a quarter of an hour, and not for ever.
    #[test]
    fn nothing_is_asked_about_too_often_or_for_ever(hours in 0_i64..5_000, sent in proptest::option::of(0_i64..5_000), state in 2_usize..8) {
        let created = Timestamp::UNIX_EPOCH;
        let now = created + SignedDuration::from_hours(hours);
        let campaign = Campaign {
            id: String::new(),
            organization: organization("acme"),
            integration_id: String::new(),
            name: String::new(),
            external_id: String::new(),
            state: State::ALL[state].0,
            reason: String::new(),
            sent_at: sent.map(|sent| created + SignedDuration::from_hours(sent.min(hours))),
            report: None,
            reported_at: None,
            created_at: created,
            next_at: None,
        };
        let next = poll::next(&campaign, now);
        prop_assert!(next.is_none_or(|next| next >= now + SignedDuration::from_mins(15)));
        if hours > (90 + 7) * 24 && campaign.sent_at.is_none_or(|sent| now.duration_since(sent) > FINAL_AFTER) {
            prop_assert_eq!(next, None);
        }
    }
}
