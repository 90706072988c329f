//! How long the health of an organization's integrations takes to read: 1,000 of them, by pages of 100 (what is given
//! without a wish) and of 500 (the most).

use std::time::Instant;

use proto::vendorsync::v1::{
    CreateIntegrationRequest, Integration, IntegrationKind, ListIntegrationHealthRequest,
    integration_health_service_client::IntegrationHealthServiceClient,
    integration_service_client::IntegrationServiceClient,
};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::{
    figure::{Figure, percentile},
    path::Wanted,
};
use crate::{
    crash::name,
    harness::{Engine, Key, Wedsync, client},
};

type Health = IntegrationHealthServiceClient<InterceptedService<Channel, Key>>;

const INTEGRATIONS: usize = 1_000;
/// Walks over all of them.
const WALKS: usize = 20;
/// What a health report may take.
const PAGE_MS: f64 = 50.0;
const MOST_MS: f64 = 250.0;

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !["health_page_p99", "health_largest_page_p99", "health_rate"].into_iter().any(|name| wanted.wants(name)) {
        return;
    }
    let system = Wedsync::start_on(engine, &[]).await;
    let key = system.tenant("Health").await;
    let mut integrations = IntegrationServiceClient::new(client(system.addresses.vendor_sync, &key));
    for number in 0..INTEGRATIONS {
        let integration = Integration {
            kind: IntegrationKind::Connector.into(),
            connector: "crm".to_owned(),
            supplier_id: format!("s{number}"),
            parameters: [("url".to_owned(), "https://studio.example/".to_owned())].into(),
            ..Integration::default()
        };
        let request = CreateIntegrationRequest { integration: Some(integration), secret: String::new() };
        integrations.create_integration(request).await.expect("an integration");
    }
    let mut health = IntegrationHealthServiceClient::new(client(system.addresses.vendor_sync, &key));
    let store = name(engine);
    let (pages, took) = walk(&mut health, 100).await;
    told(Figure::at_most("health_page_p99", store, percentile(&pages, 99.0), "ms", PAGE_MS));
    let rate = (INTEGRATIONS * WALKS) as f64 / took;
    told(Figure::at_least("health_rate", store, rate, "integrations/s", 100.0 * 1e3 / PAGE_MS));
    let (pages, _) = walk(&mut health, 500).await;
    told(Figure::at_most("health_largest_page_p99", store, percentile(&pages, 99.0), "ms", MOST_MS));
}

/// How long each page took, in ms, in order; and all together, in seconds.
async fn walk(health: &mut Health, page_size: i32) -> (Vec<f64>, f64) {
    let (mut pages, began) = (Vec::new(), Instant::now());
    for _ in 0..WALKS {
        let (mut token, mut seen) = (String::new(), 0);
        loop {
            let asked = Instant::now();
            let request = ListIntegrationHealthRequest { page_size, page_token: token };
            let page = health.list_integration_health(request).await.expect("a page").into_inner();
            pages.push(asked.elapsed().as_secs_f64() * 1e3);
            seen += page.health.len();
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, INTEGRATIONS);
    }
    pages.sort_by(f64::total_cmp);
    (pages, began.elapsed().as_secs_f64())
}
