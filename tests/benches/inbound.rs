//! How long an inbound webhook takes: from when it was due until the gateway's 2xx, which says that it is durable. A
//! signed webhook of one vendor, 200 a second, over connections that stay open.

use chassis::signature::{WebhookSecret, sign};
use proto::vendorsync::v1::{
    CreateIntegrationRequest, Integration, IntegrationKind, integration_service_client::IntegrationServiceClient,
};
use reqwest::Client;
use tokio::task::JoinSet;

use super::{
    figure::{Figure, percentile},
    machine,
    path::{Wanted, blocking},
    publisher::pace,
    sink::on_one_thread,
};
use crate::{
    crash::name,
    harness::{Engine, Key, Wedsync, client},
};

const RATE: u32 = 200;
const WEBHOOKS: usize = 10 * RATE as usize;
/// Webhooks before those that aren't counted.
const WARM: usize = 200;
/// The most that an integration may be given: the default of 1,000 an hour lasts for five seconds here.
pub(crate) const RATE_LIMIT_PER_HOUR: u32 = 100_000;
/// All webhooks come from one address here, and are one organization's.
pub(crate) const UNLIMITED: [(&str, &str); 2] =
    [("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0"), ("WEDSYNC_GATEWAY__REQUESTS_PER_MINUTE", "1000000")];
/// What may come on top of the disk's own time.
pub(crate) const MORE_MS: f64 = 20.0;

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !wanted.wants("inbound_p50") && !wanted.wants("inbound_p99") {
        return;
    }
    let system = Wedsync::start_on(engine, &UNLIMITED).await;
    let key = system.tenant("Inbound").await;
    let vendor = Vendor::of(&system, &key).await;
    let folder = system.folder().to_owned();
    let (fsync_p50, fsync_p99) = blocking(move || machine::fsync_ms(&folder)).await;
    let mut taken = blocking(move || on_one_thread(vendor.post_all())).await;
    taken.sort_by(f64::total_cmp);
    let store = name(engine);
    told(Figure::above("inbound_p50", store, percentile(&taken, 50.0), "ms", fsync_p50, MORE_MS));
    told(Figure::above("inbound_p99", store, percentile(&taken, 99.0), "ms", fsync_p99, MORE_MS));
}

/// A system that sends us webhooks.
pub(crate) struct Vendor {
    url: String,
    secret: WebhookSecret,
    /// Of webhook number so much.
    body: fn(usize) -> String,
}

impl Vendor {
    /// One that posts to `url`, and signs with `secret` as we show it.
    pub(crate) fn new(url: String, secret: &str, body: fn(usize) -> String) -> Self {
        Self { url, secret: WebhookSecret::parse(secret).expect("a secret as it is shown"), body }
    }

    async fn of(system: &Wedsync, key: &Key) -> Self {
        let mut integrations = IntegrationServiceClient::new(client(system.addresses.vendor_sync, key));
        let integration = Integration {
            kind: IntegrationKind::SignedWebhook.into(),
            vendor: "bench".to_owned(),
            rate_limit_per_hour: RATE_LIMIT_PER_HOUR,
            ..Integration::default()
        };
        let request = CreateIntegrationRequest { integration: Some(integration), secret: String::new() };
        let created = integrations.create_integration(request).await.expect("an integration").into_inner();
        let path = created.integration.expect("the answer holds it").path;
        Self::new(format!("http://{}{path}", system.addresses.gateway), &created.secret, |number| {
            let pad = "x".repeat(900);
            format!(r#"{{"type":"booking.updated","data":{{"bookingId":{number},"note":"{pad}"}}}}"#)
        })
    }

    /// How long each of those that count took, in ms.
    pub(crate) async fn post_all(self) -> Vec<f64> {
        #[expect(clippy::disallowed_methods, reason = "a vendor's client is a bare one")]
        let client = Client::builder().no_proxy().tcp_nodelay(true).build().expect("a client");
        let mut pace = pace(RATE, 0..WEBHOOKS + WARM);
        let mut under_way = JoinSet::new();
        while let Some((number, due)) = pace.recv().await {
            let request = self.webhook(&client, number);
            under_way.spawn(async move {
                let answer = request.send().await.expect("the gateway answers");
                assert!(answer.status().is_success(), "refused: {}", answer.status());
                // Read to its end, the connection can be used again.
                answer.bytes().await.expect("in full");
                (number, due.elapsed())
            });
        }
        let taken = under_way.join_all().await;
        taken.into_iter().filter(|(number, _)| *number >= WARM).map(|(_, taken)| taken.as_secs_f64() * 1e3).collect()
    }

    /// As Standard Webhooks wants it.
    fn webhook(&self, client: &Client, number: usize) -> reqwest::RequestBuilder {
        let (id, at, body) = (format!("msg_{number}"), timestamp().as_second(), (self.body)(number));
        let signature = sign(&id, at, body.as_bytes(), std::slice::from_ref(&self.secret));
        let request = client.post(&self.url).header("content-type", "application/json").header("webhook-id", id);
        request.header("webhook-timestamp", at).header("webhook-signature", signature).body(body)
    }
}

/// By the vendor's clock.
pub(crate) fn timestamp() -> jiff::Timestamp {
    #[expect(clippy::disallowed_methods, reason = "a vendor's clock is its own")]
    jiff::Timestamp::now()
}
