//! Who takes part: vendors with systems of their own, and the people who are told.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use chassis::{
    clock::Clock,
    outbound::{Outbound, OutboundSettings, Request},
    signature,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proto::{
    notifier::v1::{
        Recipient, RecipientKind, SetWeddingRecipientsRequest, UpsertRecipientRequest, WatchInboxRequest,
        inbox_service_client::InboxServiceClient, recipient_service_client::RecipientServiceClient,
    },
    vendorsync::v1::{
        CreateEndpointRequest, CreateIntegrationRequest, DeleteEndpointRequest, Endpoint, Integration, IntegrationKind,
        endpoint_service_client::EndpointServiceClient, integration_service_client::IntegrationServiceClient,
    },
};
use serde_json::json;

use super::{
    mail::MailServer,
    tally::{Tally, Via},
};
use crate::{
    client::{Authorized, authorized},
    listen::Receiver,
    serve::{Addresses, at},
};

pub(super) const WEDDING: &str = "wedding-rosa-otto";
pub(super) const COUPLE: &str = "0b7e3c1a-51f2-4c55-9a39-6c1b5a6f0d11";

/// A supplier with a system of its own.
pub(super) struct Vendor {
    pub(super) id: &'static str,
    name: &'static str,
    kind: &'static str,
}

pub(super) const VENDORS: [Vendor; 3] = [
    Vendor { id: "ada", name: "Ada, photographer", kind: "photographer" },
    Vendor { id: "oak-hall", name: "Oak Hall, venue", kind: "venue" },
    Vendor { id: "flora", name: "Flora, florist", kind: "florist" },
];
const PLANNER: (&str, &str) = ("pia", "Pia, planner");

/// Everyone, ready to receive.
pub(super) struct Cast {
    crm: Integration,
    crm_secret: String,
    endpoints: Vec<String>,
}

impl Cast {
    /// Makes everybody's endpoint, directory entry and inbox watch.
    pub(super) async fn assemble(addresses: &Addresses, key: &str, mail: &MailServer, tally: &Tally) -> Result<Self> {
        let vendor_sync = authorized(&at(addresses.vendor_sync), key).await?;
        let (mut endpoints, mut ids) = (EndpointServiceClient::new(vendor_sync.clone()), Vec::new());
        for vendor in &VENDORS {
            let receiver = Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
            let endpoint = Endpoint {
                url: format!("http://{}/{}", receiver.address, vendor.id),
                event_types: vec!["*".into()],
                description: vendor.name.into(),
                ..Default::default()
            };
            let made =
                endpoints.create_endpoint(CreateEndpointRequest { endpoint: Some(endpoint) }).await?.into_inner();
            receiver.secret.send_replace(made.secret);
            ids.push(made.endpoint.unwrap_or_default().id);
            tally.collect_webhooks(vendor.name, receiver.received);
        }
        introduce_people(addresses, key, mail, tally).await?;
        let integration = Integration {
            kind: IntegrationKind::ClientSync.into(),
            description: "Ada's CRM".into(),
            supplier_id: "ada".into(),
            ..Default::default()
        };
        let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
        let made = IntegrationServiceClient::new(vendor_sync).create_integration(request).await?.into_inner();
        Ok(Self { crm: made.integration.context("an integration")?, crm_secret: made.secret, endpoints: ids })
    }

    /// What comes now is others' to receive.
    pub(super) async fn leave(&self, vendor_sync: &Authorized) -> Result<()> {
        let mut endpoints = EndpointServiceClient::new(vendor_sync.clone());
        for id in &self.endpoints {
            endpoints.delete_endpoint(DeleteEndpointRequest { id: id.clone() }).await?;
        }
        Ok(())
    }

    pub(super) fn vendors(&self) -> Vec<&'static str> {
        VENDORS.iter().map(|vendor| vendor.name).collect()
    }

    pub(super) fn people(&self) -> Vec<&'static str> {
        VENDORS.iter().map(|vendor| vendor.name).chain([PLANNER.1]).collect()
    }

    /// Ada's CRM posts a signed client update to the gateway.
    pub(super) async fn crm_reports(&self, gateway: SocketAddr, client: &str) -> Result<()> {
        let body = json!({
            "event": "client.updated",
            "data": { "clientId": client, "changes": { "phone": "+44 20 7946 0000" } },
            "timestamp": Clock::System.now().to_string(),
        });
        let body = body.to_string();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/json".to_owned()),
            ("x-wedsync-integration", self.crm.id.clone()),
            ("x-wedsync-signature", signature::hex_sign(self.crm_secret.as_bytes(), body.as_bytes())),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(&value)?);
        }
        let settings = OutboundSettings { allow_networks: vec!["127.0.0.0/8".into()], allow_http: true };
        let url = format!("http://{gateway}/webhooks/client-sync").parse()?;
        let timeout = std::time::Duration::from_secs(10);
        let request = Request { method: Method::POST, url, headers, body: body.into(), timeout };
        let answer = Outbound::new(&settings)?
            .send(request)
            .await
            .map_err(|failure| anyhow::anyhow!("post to the gateway: {failure:?}"))?;
        ensure!(
            answer.status.is_success(),
            "the gateway answered {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(())
    }
}

async fn introduce_people(addresses: &Addresses, key: &str, mail: &MailServer, tally: &Tally) -> Result<()> {
    let notifier = authorized(&at(addresses.notifier), key).await?;
    let mut recipients = RecipientServiceClient::new(notifier.clone());
    let vendors = VENDORS.iter().map(|vendor| (vendor.id, vendor.name, vendor.kind, RecipientKind::Supplier));
    for (id, name, kind, role) in vendors.chain([(PLANNER.0, PLANNER.1, "planner", RecipientKind::Planner)]) {
        let email = format!("{id}@example.com");
        mail.know(&email, name);
        let recipient = Recipient {
            id: id.into(),
            kind: role.into(),
            name: name.into(),
            email,
            vendor_type: kind.into(),
            ..Default::default()
        };
        recipients.upsert_recipient(UpsertRecipientRequest { recipient: Some(recipient) }).await?;
        watch_inbox(&notifier, id, name, tally).await?;
    }
    let recipient_ids = VENDORS.iter().map(|vendor| vendor.id.to_owned()).chain([PLANNER.0.to_owned()]).collect();
    let request = SetWeddingRecipientsRequest { wedding_id: WEDDING.into(), recipient_ids };
    recipients.set_wedding_recipients(request).await?;
    Ok(())
}

/// Notes what comes into somebody's inbox.
pub(super) async fn watch_inbox(notifier: &Authorized, id: &str, name: &'static str, tally: &Tally) -> Result<()> {
    let request = WatchInboxRequest { recipient_id: id.into() };
    let mut notices = InboxServiceClient::new(notifier.clone()).watch_inbox(request).await?.into_inner();
    let arrivals = tally.arrivals();
    #[expect(clippy::disallowed_methods, reason = "a reader of the demo, which no chassis drains")]
    tokio::spawn(async move {
        while let Ok(Some(message)) = notices.message().await {
            if let Some(notice) = message.notice {
                arrivals.note(name, Via::InApp, notice.title, Ok(()));
            }
        }
    });
    Ok(())
}
