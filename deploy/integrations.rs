//! `wedsync integrations`: accounts at other systems, how each stands, and where its webhooks go. What is done with one is
//! `act`'s.

mod act;

use std::{collections::HashMap, process::ExitCode};

use anyhow::Result;
use clap::Args;
use proto::vendorsync::v1::{
    ConnectionState, HealthState, Integration, IntegrationHealth, ListIntegrationHealthRequest,
    ListIntegrationsRequest, integration_health_service_client::IntegrationHealthServiceClient,
    integration_service_client::IntegrationServiceClient,
};

use crate::{
    client::{Authorized, System},
    command::{breaker_state, time},
    table::show,
};

/// List integrations: accounts at other systems, and how each stands; make, connect, test or pause one.
#[derive(Args)]
#[command(after_help = "Examples:
  wedsync integrations                                   (all of them, and how each stands)
  wedsync integrations connectors mailchimp              (what one of that kind asks for)
  wedsync integrations add mailchimp --set dc=us21 --set list_id=ab12cd34ef
  wedsync integrations connect 0190... --key-from key.txt
  wedsync integrations connect 0190...                   (where people sign in: gives an address to open)
  wedsync integrations test 0190...
  wedsync integrations pause 0190...                     (and resume, disconnect)")]
pub(crate) struct Integrations {
    #[command(flatten)]
    system: System,
    #[command(subcommand)]
    action: Option<act::Action>,
}

impl Integrations {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let channel = self.system.vendor_sync().await?;
        if let Some(action) = self.action {
            return act::run(channel, action).await;
        }
        let healths = healths(channel.clone()).await?;
        let mut integrations = IntegrationServiceClient::new(channel);
        let (mut token, mut rows) = (String::new(), Vec::new());
        loop {
            let request = ListIntegrationsRequest { page_size: 500, page_token: token, ..Default::default() };
            let page = integrations.list_integrations(request).await?.into_inner();
            rows.extend(page.integrations.into_iter().map(|integration| {
                let health = healths.get(&integration.id).cloned().unwrap_or_default();
                row(integration, health)
            }));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let heading = [
            "integration",
            "vendor",
            "supplier",
            "state",
            "health",
            "waiting",
            "breaker",
            "last heard of",
            "webhooks go to",
            "why",
        ];
        show(&heading, rows);
        Ok(ExitCode::SUCCESS)
    }
}

/// How those with a connector stand, by their ids.
async fn healths(channel: Authorized) -> Result<HashMap<String, IntegrationHealth>> {
    let mut service = IntegrationHealthServiceClient::new(channel);
    let (mut token, mut healths) = (String::new(), HashMap::new());
    loop {
        let request = ListIntegrationHealthRequest { page_size: 500, page_token: token };
        let page = service.list_integration_health(request).await?.into_inner();
        healths.extend(page.health.into_iter().map(|health| (health.id.clone(), health)));
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(healths);
        }
    }
}

fn row(integration: Integration, health: IntegrationHealth) -> Vec<String> {
    let state = match (integration.disabled, integration.paused) {
        (true, _) => "disabled",
        (_, true) => "paused",
        _ => "active",
    };
    let (stands, breaker) = (stands(&health), breaker_state(health.breaker()));
    vec![
        integration.id,
        integration.vendor,
        integration.supplier_id,
        state.to_owned(),
        stands.to_owned(),
        health.backlog.to_string(),
        breaker.to_owned(),
        time(integration.last_received_at),
        integration.path,
        if health.probe_error.is_empty() { health.connection_reason } else { health.probe_error },
    ]
}

/// The connection, and where there is one, what the last probe found. Empty: it has no connector.
fn stands(health: &IntegrationHealth) -> &'static str {
    match (health.connection(), health.state()) {
        (ConnectionState::Unspecified, _) => "",
        (ConnectionState::NeedsReconnect, _) => "needs reconnect",
        (ConnectionState::Disconnected, _) => "not connected",
        (ConnectionState::Connected, HealthState::Unspecified) => "connected",
        (ConnectionState::Connected, HealthState::Healthy) => "healthy",
        (ConnectionState::Connected, HealthState::Failing) => "failing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_connected_is_never_shown_as_healthy() {
        let health = |connection: ConnectionState, state: HealthState| IntegrationHealth {
            connection: connection.into(),
            state: state.into(),
            ..Default::default()
        };
        assert_eq!(stands(&health(ConnectionState::Connected, HealthState::Healthy)), "healthy");
        assert_eq!(stands(&health(ConnectionState::NeedsReconnect, HealthState::Healthy)), "needs reconnect");
        assert_eq!(stands(&health(ConnectionState::Disconnected, HealthState::Healthy)), "not connected");
        assert_eq!(stands(&IntegrationHealth::default()), "", "it has no connector");
    }
}
