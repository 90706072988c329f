//! `wedsync integrations`: accounts at other systems, and where their webhooks go.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use proto::vendorsync::v1::{
    Integration, ListIntegrationsRequest, integration_service_client::IntegrationServiceClient,
};

use crate::{client::System, command::time, table::show};

/// List integrations: accounts at other systems.
#[derive(Args)]
pub(crate) struct Integrations {
    #[command(flatten)]
    system: System,
}

impl Integrations {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut integrations = IntegrationServiceClient::new(self.system.vendor_sync().await?);
        let (mut token, mut rows) = (String::new(), Vec::new());
        loop {
            let request = ListIntegrationsRequest { page_size: 500, page_token: token, ..Default::default() };
            let page = integrations.list_integrations(request).await?.into_inner();
            rows.extend(page.integrations.into_iter().map(row));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        show(&["integration", "vendor", "supplier", "state", "last heard of", "webhooks go to"], rows);
        Ok(ExitCode::SUCCESS)
    }
}

fn row(integration: Integration) -> Vec<String> {
    let state = match (integration.disabled, integration.paused) {
        (true, _) => "disabled",
        (_, true) => "paused",
        _ => "active",
    };
    vec![
        integration.id,
        integration.vendor,
        integration.supplier_id,
        state.to_owned(),
        time(integration.last_received_at),
        integration.path,
    ]
}
