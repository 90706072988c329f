//! `wedsync spooled`: webhooks that nobody sends again and that couldn't be taken, and another try for one of them.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use proto::vendorsync::v1::{
    GetSpooledWebhookRequest, ListSpooledWebhooksRequest, RetrySpooledWebhookRequest, SpooledWebhook,
    webhook_service_client::WebhookServiceClient,
};

use crate::{
    client::System,
    command::time,
    pages::{at_least_one, list},
    table::say,
};

/// List webhooks that nobody sends again and that couldn't be taken, or try one again.
#[derive(Args)]
#[command(after_help = "Examples:
  wedsync spooled                                    (what was set aside, and why)
  wedsync spooled show 17                            (its body, as it came)
  wedsync spooled retry 17                           (once what was wrong is mended)")]
pub(crate) struct Spooled {
    #[command(flatten)]
    system: System,
    /// Only of this integration.
    #[arg(long, value_name = "ID", default_value = "")]
    integration: String,
    /// How many, oldest first.
    #[arg(long, default_value_t = 50, value_parser = at_least_one())]
    limit: u32,
    #[command(subcommand)]
    action: Option<SpooledAction>,
}

#[derive(Subcommand)]
enum SpooledAction {
    /// Print the body of one, as it came. It may hold personal data.
    Show {
        /// Its number.
        webhook: String,
    },
    /// Try one again, as of the time when it came.
    Retry {
        /// Its number.
        webhook: String,
    },
}

impl Spooled {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut webhooks = WebhookServiceClient::new(self.system.vendor_sync().await?);
        match self.action {
            None => {
                let listed = list(self.limit, async |page_size, page_token| {
                    let integration_id = self.integration.clone();
                    let request = ListSpooledWebhooksRequest { integration_id, page_size, page_token };
                    let page = webhooks.list_spooled_webhooks(request).await?.into_inner();
                    Ok((page.webhooks, page.next_page_token))
                })
                .await?;
                listed.show(&["webhook", "integration", "came", "why"], row);
            }
            Some(SpooledAction::Show { webhook: id }) => {
                let body = webhooks.get_spooled_webhook(GetSpooledWebhookRequest { id }).await?.into_inner().body;
                say(&String::from_utf8_lossy(&body));
            }
            Some(SpooledAction::Retry { webhook: id }) => {
                let tried = webhooks.retry_spooled_webhook(RetrySpooledWebhookRequest { id }).await?.into_inner();
                if !tried.taken {
                    say(&format!("it still can't be taken: {}", tried.reason));
                    return Ok(ExitCode::FAILURE);
                }
                say("it is taken");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(webhook: SpooledWebhook) -> Vec<String> {
    vec![webhook.id, webhook.integration_id, time(webhook.received_at), webhook.reason]
}
