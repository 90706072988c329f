//! What vendors say is in WedSync's own database, in every other supplier's system and before everybody who looks on, once;
//! and the one who said it hears nothing of it.

use std::time::Instant;

use proto::notifier::v1::{
    Recipient, RecipientKind, SetWeddingRecipientsRequest, UpsertRecipientRequest,
    recipient_service_client::RecipientServiceClient,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use vendor_sync_svc::testing::vendor::{Server, profile::Profile, vsco::Vsco, wedme::WedMe};

use super::{
    inbound::{Sender, assert_taken},
    linked::{KEY, Linked, Profiled, Viewer, on_each_engine_linked, taken},
    linked_out::open_conflicts,
    provider::Taken,
    story::{eventually, now},
    web,
};
use crate::harness::{PATIENCE, client};

impl Linked {
    async fn person(&self, recipient: Recipient) {
        let acme = &self.story.acme;
        let mut recipients = RecipientServiceClient::new(client(acme.addresses.notifier, &acme.key));
        let (id, vendor) = (recipient.id.clone(), recipient.kind() == RecipientKind::Supplier);
        let request = UpsertRecipientRequest { recipient: Some(recipient) };
        recipients.upsert_recipient(request).await.expect("they are known");
        if vendor {
            let request = SetWeddingRecipientsRequest { wedding_id: "w1".to_owned(), recipient_ids: vec![id] };
            recipients.set_wedding_recipients(request).await.expect("they are the wedding's");
        }
    }

    async fn taken(&mut self) -> Taken {
        timeout(PATIENCE, self.providers.taken.recv()).await.expect("in time").expect("they serve")
    }
}

fn capacity_alert(message: &str) -> String {
    let data = json!({ "booking_id": "w1", "venue_id": "v1", "capacity": 100, "party_size": 120, "message": message });
    json!({ "type": "capacity.alert", "timestamp": now().to_string(), "data": data }).to_string()
}

#[tokio::test]
async fn a_venues_capacity_is_live_for_the_couple_and_in_slack_for_the_caterer_even_after_a_crash() {
    on_each_engine_linked(async |linked| {
        let hall = linked.profiled("venue", Profile::Venue, "hall").await;
        linked
            .person(Recipient {
                id: "chef".to_owned(),
                kind: RecipientKind::Supplier.into(),
                name: "Chef Lu".to_owned(),
                vendor_type: "caterer".to_owned(),
                slack_user_id: "U0CHEF".to_owned(),
                channels: vec!["slack".to_owned()],
                ..Recipient::default()
            })
            .await;
        let mut couple = linked.viewer("couple:c1", couple()).await;

        let began = Instant::now();
        assert_taken(&hall.sender.send_standard("alert-1", 0, &capacity_alert("the gallery is closed")).await, false);
        let (name, said) = couple.told().await;
        println!("a venue's capacity: from its webhook to the couple {} ms", began.elapsed().as_millis());
        assert_eq!(
            (name.as_str(), &said["capacity"], &said["wedding_id"]),
            ("capacity.alert", &json!(100), &json!("w1"))
        );
        let message = linked.taken().await;
        println!("a venue's capacity: from its webhook to Slack {} ms", began.elapsed().as_millis());
        assert_eq!((message.channel, message.to.as_str()), ("slack", "U0CHEF"));

        // Whoever is answered 2xx has been heard for good.
        assert_taken(&hall.sender.send_standard("alert-2", 0, &capacity_alert("it is open again")).await, false);
        linked.story.system.kill().await;
        linked.story.system.restart().await;
        assert_eq!(linked.taken().await.to, "U0CHEF");
        let again = hall.sender.send_standard("alert-2", 0, &capacity_alert("it is open again")).await;
        assert!(again.status == 200 || again.status == 409, "{again:?}");
        let alerts = linked.story.acme.logged(&["capacity.alert"]).await;
        assert_eq!(alerts.len(), 2, "{alerts:?}");
        assert!(linked.providers.taken.try_recv().is_err(), "nobody is told again");
    })
    .await;
}

fn couple() -> Value {
    json!({ "app_role": "couple", "couple_id": "c1", "wedding_ids": ["w1"] })
}

fn supplier(id: &str) -> Value {
    json!({ "app_role": "supplier", "supplier_id": id, "wedding_ids": ["w1"] })
}

/// Everybody who is to learn of a date, and the job that it stands in.
struct Stage {
    studio: Server<Vsco>,
    ada: Sender,
    bo: Profiled,
    hall: Profiled,
    database: Sender,
    job: String,
    viewers: [Viewer; 2],
}

impl Stage {
    /// All of them linked, and told of a first date.
    async fn set(linked: &Linked) -> Self {
        let studio = Server::start(Vsco::new(KEY, 1_000)).await;
        let connector = linked.moved("vsco-workspace", studio.base()).await;
        let ada = linked.link_with(&connector, "ada", &[("job_type_id", "wedding")], KEY).await;
        let bo = linked.profiled("crm", Profile::Crm, "bo").await;
        let hall = linked.profiled("venue", Profile::Venue, "hall").await;
        let database = linked.link_database().await;
        linked.wedding_is("wedding_date = '2027-06-19'").await;
        let job = taken(&studio, "a job", |studio| studio.jobs().into_keys().next().ok_or_else(|| "none".to_owned()));
        let job = job.await;
        bo.took(1).await;
        hall.took(1).await;
        let viewers =
            [linked.viewer("wedding:w1", couple()).await, linked.viewer("supplier:dashboard:bo", supplier("bo")).await];
        Self { studio, ada, bo, hall, database, job, viewers }
    }

    /// The photographer edits the job; a second after it was last written, since its version is a time in seconds.
    async fn edits_job(&self, members: &Value) {
        let modified = self.studio.vendor().jobs()[&self.job]["modified"].clone();
        let modified: jiff::Timestamp = modified.as_str().and_then(|at| at.parse().ok()).expect("a time");
        eventually("the next second", async || {
            let now = now();
            if now.as_second() > modified.as_second() { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        self.studio.vendor().edit_job(&self.job, members, now());
    }

    fn written(&self) -> usize {
        self.studio.asked().iter().filter(|asked| asked.method != "GET").count()
    }

    /// Before `last` is the date, each viewer is told of each of these twice: once as the event and once as the row.
    async fn are_seen_once(&mut self, dates: [&str; 2], last: &str) {
        for viewer in &mut self.viewers {
            let told = viewer.told_until(|name, said| name == "UPDATE" && said["wedding_date"] == last).await;
            for date in dates {
                let of = |kind: &str| {
                    told.iter().filter(|(name, said)| name == kind && said["wedding_date"] == date).count()
                };
                assert_eq!((of("UPDATE"), of("wedding.date_changed")), (1, 1), "{date}: {told:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_date_that_a_photographer_moves_in_their_crm_is_everywhere_once_and_nobody_retypes_it() {
    on_each_engine_linked(async |linked| {
        let mut stage = Stage::set(linked).await;
        let written = stage.written();

        // In the studio's own system: its hook says no more than that something is there.
        stage.edits_job(&json!({ "eventDate": "2027-07-03" })).await;
        let hook = Vsco::hook("order.booked", &stage.job).to_string();
        let secret: String = url::form_urlencoded::byte_serialize(stage.ada.secret.as_bytes()).collect();
        let path = format!("{}?secret={secret}", stage.ada.integration.path);
        let began = Instant::now();
        let answer = web::post(stage.ada.gateway, &path, &[], hook.as_bytes()).await;
        assert_taken(&answer, false);
        linked.comes_to_say("wedding_details", "wedding_date", "2027-07-03").await;
        println!("a photographer's date: from the hook to WedSync's database {} ms", began.elapsed().as_millis());
        assert_eq!(stage.bo.took(2).await[1]["wedding_date"], "2027-07-03");
        assert_eq!(stage.hall.took(2).await[1]["event_date"], "2027-07-03");
        println!("a photographer's date: from the hook to everybody {} ms", began.elapsed().as_millis());

        // In another photographer's CRM, which signs what it says.
        let data = json!({ "wedding_id": "w1", "wedding_date": "2027-07-10" });
        let body = json!({ "type": "wedding.date_changed", "timestamp": now().to_string(), "data": data });
        assert_taken(&stage.bo.sender.send_standard("moved-1", 0, &body.to_string()).await, false);
        linked.comes_to_say("wedding_details", "wedding_date", "2027-07-10").await;
        assert_eq!(stage.hall.took(3).await[2]["event_date"], "2027-07-10");
        taken(&stage.studio, "the job moves", |studio| {
            let date = studio.jobs()[&stage.job]["eventDate"].clone();
            if date == "2027-07-10" { Ok(()) } else { Err(date.to_string()) }
        })
        .await;

        // The next change is the next thing that anybody is told: neither date came back, and nobody was told twice.
        linked.wedding_is("wedding_date = '2027-07-17'").await;
        assert_eq!(stage.hall.took(4).await.len(), 4);
        let dates: Vec<_> = stage.bo.took(3).await.iter().map(|body| body["wedding_date"].clone()).collect();
        assert_eq!(dates, ["2027-06-19", "2027-07-03", "2027-07-17"], "not its own");
        taken(&stage.studio, "the job moves", |studio| {
            let date = studio.jobs()[&stage.job]["eventDate"].clone();
            if date == "2027-07-17" { Ok(()) } else { Err(date.to_string()) }
        })
        .await;
        assert_eq!(stage.written() - written, 2, "not its own");
        assert_eq!(linked.deliveries(&stage.database).await.len(), 2, "the two that didn't come from it");
        stage.are_seen_once(["2027-07-03", "2027-07-10"], "2027-07-17").await;
        let rows = linked.story.acme.logged(&["wedding_details.update"]).await;
        assert_eq!(rows.len(), 4, "two by the application, two written back");
        assert_eq!(linked.story.acme.logged(&["wedding.date_changed"]).await.len(), 2);
        assert_eq!(open_conflicts(linked).await, 0);
    })
    .await;
}

#[tokio::test]
async fn what_a_couple_eats_goes_from_wedme_to_the_dashboard_and_the_caterers_system() {
    on_each_engine_linked(async |linked| {
        let made_up = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let wedme = Server::start(WedMe::new(KEY, made_up)).await;
        let account = linked.link("wedme", "", wedme.base(), KEY).await;
        *wedme.vendor() = WedMe::new(KEY, &account.secret);
        let chef = linked.profiled("caterer", Profile::Any, "chef").await;
        linked.link_database().await;
        // What WedSync says of its couple is where WedMe's own knowledge of them begins.
        linked.source.run("UPDATE core_fields SET phone = '+447700900001', updated_at = now()").await;
        taken(&wedme, "the couple's profile", |wedme| {
            if wedme.clients.contains_key("c1") { Ok(()) } else { Err("none".to_owned()) }
        })
        .await;
        let known = chef.took(1).await.len();
        let mut dashboard = linked.viewer("supplier:dashboard:chef", supplier("chef")).await;

        let began = Instant::now();
        let body = wedme.vendor().prefer("c1", "dietary_requirements", &json!("vegan, no nuts"), now()).to_string();
        let headers = wedme.vendor().sign("wm-1", &body, now());
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_taken(&web::post(account.gateway, &account.integration.path, &headers, body.as_bytes()).await, false);
        loop {
            let (name, said) = dashboard.told().await;
            if said.to_string().contains("no nuts") {
                println!("dietary requirements: {name} on the dashboard after {} ms", began.elapsed().as_millis());
                break;
            }
        }
        let sent = chef.took(known + 1).await.remove(known);
        println!("dietary requirements: at the caterer's after {} ms", began.elapsed().as_millis());
        assert_eq!(sent["data"]["dietary_requirements"], "vegan, no nuts", "{sent}");
        assert_eq!((&sent["client_id"], &sent["changed"]), (&json!("c1"), &json!(["dietary_requirements"])));
        linked.comes_to_say("core_fields", "dietary_requirements", "vegan, no nuts").await;

        let versions = wedme.vendor().clients["c1"]["version"].clone();
        linked.source.run("UPDATE core_fields SET phone = '+447700900002', updated_at = now()").await;
        assert_eq!(chef.took(known + 2).await.len(), known + 2, "its row, written back, is told to nobody");
        taken(&wedme, "the other number", |wedme| {
            let client = &wedme.clients["c1"];
            if client["fields"]["phone"]["value"] == "+447700900002" { Ok(()) } else { Err(client.to_string()) }
        })
        .await;
        let version = wedme.vendor().clients["c1"]["version"].as_u64();
        assert_eq!(version, versions.as_u64().map(|version| version + 1), "WedMe isn't told its own");
    })
    .await;
}
