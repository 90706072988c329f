//! A photographer's CRM is down for two hours, by a clock that the test drives. Nothing is lost, nobody else waits, all of it
//! comes in order per wedding when it is back, and whoever looks at the health of integrations sees it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::{Timestamp, ToSpan as _, civil::date};
use proto::vendorsync::v1::{
    GetIntegrationHealthRequest, HealthState, IntegrationHealth,
    integration_health_service_client::IntegrationHealthServiceClient,
};
use serde_json::{Value, json};
use vendor_sync_svc::testing::vendor::{Asked, Said, Server, Vendor, vsco::Vsco};

use super::{
    inbound::Sender,
    linked::{KEY, link, moved, taken},
    story::{Tenant, eventually, updated},
    web,
    whole::Whole,
};
use crate::harness::{Engine, client};

const WEDDINGS: usize = 3;
/// Changes of each wedding while it is away, one in ten minutes.
const CHANGES: usize = 12;
const BETWEEN: Duration = Duration::from_secs(600);
/// How many times faster than the machine's the clock runs where time is to pass.
const FAST: u32 = 300;
/// Others may take so many times as long as before, where a dozen tests share a machine; that is, they don't wait.
const MOST_DELAYED: f64 = 5.0;

/// A studio that may be away: whoever asks is told 503.
struct Studio {
    away: bool,
    vsco: Vsco,
    /// Dates that each job was given, in their order.
    dates: BTreeMap<String, Vec<Value>>,
}

impl Studio {
    fn new() -> Self {
        Self { away: false, vsco: Vsco::new(KEY, 100_000), dates: BTreeMap::new() }
    }

    /// The date of the job of a wedding.
    fn date(&self, wedding: &str) -> Value {
        let jobs = self.vsco.jobs();
        let job = jobs.values().find(|job| job["externalMappings"][0]["id"] == wedding);
        job.map(|job| job["eventDate"].clone()).unwrap_or_default()
    }
}

impl Vendor for Studio {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        if self.away {
            return Said::status(503);
        }
        let said = self.vsco.answer(asked, now);
        if asked.method == "PUT" {
            self.dates.entry(asked.path.clone()).or_default().push(asked.json()["eventDate"].clone());
        }
        said
    }
}

/// The system, two studios, and the account that a photographer has at each.
struct Scene {
    whole: Whole,
    acme: Tenant,
    ada: (Server<Studio>, Sender),
    bo: (Server<Studio>, Sender),
}

/// The `number`th date of a wedding.
fn day(number: usize) -> String {
    (date(2028, 3, 1) + i64::try_from(number).expect("small").days()).to_string()
}

fn row(wedding: &str, number: usize) -> Value {
    json!({
        "id": wedding, "couple_id": format!("couple-of-{wedding}"), "bride_name": "Rosa", "groom_name": "Otto",
        "wedding_date": day(number), "vendor_ids": ["ada", "bo"],
    })
}

impl Scene {
    async fn set(engine: &Engine) -> Self {
        let whole = Whole::start_on(engine).await;
        let acme = whole.tenant("Acme").await;
        let studio = async |supplier: &str| {
            let server = Server::start_at(Studio::new(), whole.clock.clone()).await;
            let connector = moved(&acme, "vsco-workspace", supplier, server.base()).await;
            let sender = link(&acme, &connector, supplier, &[("job_type_id", "wedding")], KEY).await;
            (server, sender)
        };
        let (ada, bo) = (studio("ada").await, studio("bo").await);
        Self { whole, acme, ada, bo }
    }

    /// Moves a wedding to its `number`th date, and waits until `bo`'s studio has it; how long that took.
    async fn moves(&self, wedding: &str, number: usize) -> Duration {
        // So that the studio's own quota holds nothing up.
        self.whole.pass(Duration::from_secs(3), FAST).await;
        let began = Instant::now();
        let id = format!("{wedding}-{number}");
        self.acme.publish(updated(&id, &row(wedding, number - 1), &row(wedding, number))).await;
        has(&self.bo.0, wedding, number).await;
        began.elapsed()
    }

    async fn health(&self, of: &Sender) -> IntegrationHealth {
        let mut healths = IntegrationHealthServiceClient::new(client(self.acme.addresses.vendor_sync, &self.acme.key));
        let request = GetIntegrationHealthRequest { id: of.integration.id.clone() };
        healths.get_integration_health(request).await.expect("it is ours").into_inner().health.expect("its health")
    }

    /// Waits until an account's health is so.
    async fn becomes(&self, of: &Sender, state: HealthState) -> IntegrationHealth {
        self.whole.runs(FAST);
        let health = eventually(state.as_str_name(), async || {
            let health = self.health(of).await;
            if health.state() == state { Ok(health) } else { Err(format!("{health:?}")) }
        })
        .await;
        self.whole.runs(1);
        health
    }

    /// What the gateway's page says of an account.
    async fn shown(&self, of: &Sender) -> String {
        let key = format!("Bearer {}", self.acme.key.0);
        let page =
            web::get(self.acme.addresses.gateway, "/integrations/health", &[("authorization", &key)]).await.json();
        let all = page["integrations"].as_array().cloned().unwrap_or_default();
        let own = all.iter().find(|shown| shown["id"] == of.integration.id.as_str());
        own.and_then(|own| own["state"].as_str()).unwrap_or_else(|| panic!("not shown: {page}")).to_owned()
    }
}

async fn has(studio: &Server<Studio>, wedding: &str, number: usize) {
    taken(studio, "the studio has the date", |studio| {
        let date = studio.date(wedding);
        if date == day(number) { Ok(()) } else { Err(date.to_string()) }
    })
    .await;
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crm_that_is_down_for_two_hours_loses_nothing_delays_nobody_and_is_seen() {
    for engine in Engine::all() {
        println!("on {engine:?}");
        Box::pin(tell(Scene::set(&engine).await)).await;
    }
}

async fn tell(scene: Scene) {
    let weddings: Vec<String> = (0..WEDDINGS).map(|number| format!("w{number}")).collect();
    let mut before = Vec::new();
    for number in 1..=CHANGES {
        for wedding in &weddings {
            before.push(scene.moves(wedding, number).await);
            has(&scene.ada.0, wedding, number).await;
        }
    }
    scene.becomes(&scene.ada.1, HealthState::Healthy).await;
    scene.becomes(&scene.bo.1, HealthState::Healthy).await;

    scene.ada.0.vendor().away = true;
    scene.ada.0.vendor().dates.clear();
    let mut during = Vec::new();
    for number in CHANGES + 1..=2 * CHANGES {
        for wedding in &weddings {
            during.push(scene.moves(wedding, number).await);
        }
        scene.whole.pass(BETWEEN, FAST).await;
    }
    let failing = scene.becomes(&scene.ada.1, HealthState::Failing).await;
    assert!(failing.backlog >= (WEDDINGS * CHANGES) as u64, "{failing:?}");
    assert_eq!((scene.shown(&scene.ada.1).await, scene.shown(&scene.bo.1).await), ("failing".into(), "healthy".into()));
    let ratio = median(during.clone()) / median(before.clone());
    println!("others' change: {:.1} ms before, {:.1} ms meanwhile: {ratio:.2}", median(before), median(during));
    assert!(ratio < MOST_DELAYED, "others waited: {ratio}");

    scene.ada.0.vendor().away = false;
    let back = scene.whole.clock.now();
    scene.whole.runs(FAST);
    for wedding in &weddings {
        has(&scene.ada.0, wedding, 2 * CHANGES).await;
    }
    println!("all of it had come {:#} after it was back", scene.whole.clock.now().duration_since(back));
    let given: Vec<Vec<Value>> = scene.ada.0.vendor().dates.values().cloned().collect();
    let expected: Vec<Value> = (CHANGES + 1..=2 * CHANGES).map(|number| day(number).into()).collect();
    assert_eq!(given, vec![expected; WEDDINGS], "each, once, in order");
    scene.becomes(&scene.ada.1, HealthState::Healthy).await;
    // The studio has a change before we know that it has it.
    eventually("nothing waits any more", async || {
        let health = scene.health(&scene.ada.1).await;
        if health.backlog == 0 { Ok(()) } else { Err(format!("{health:?}")) }
    })
    .await;
    assert_eq!(scene.shown(&scene.ada.1).await, "healthy");
    for type_ in ["integration.failing", "integration.recovered"] {
        let logged = scene.acme.logged(&[type_]).await;
        let subjects: Vec<_> = logged.iter().filter_map(|it| it.event.as_ref()).map(|it| it.subject.as_str()).collect();
        assert_eq!(subjects, [scene.ada.1.integration.id.as_str()], "{type_}");
    }
    scene.whole.stop().await;
}
