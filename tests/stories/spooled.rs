//! A webhook that nobody sends again and that couldn't be read: an organization finds it, mends what its own connector says,
//! and has it taken, by the commands that a person types.

use std::process::Stdio;

use proto::vendorsync::v1::{
    Integration, IntegrationKind, PutConnectorRequest, connector_service_client::ConnectorServiceClient,
};
use serde_json::json;
use tokio::{process::Command, time::timeout};

use super::{
    inbound::{Sender, assert_taken, create_integration},
    story::{Story, Tenant, eventually, on_each_engine},
};
use crate::harness::{PATIENCE, binary, client};

/// A CRM that sends each webhook once, and how it calls its bookings.
fn connector(id: &str) -> String {
    format!(
        "name = 'hub'\ntitle = 'Hub'\nextends = 'crm'\n[inbound]\nspool = true\n[[inbound.events]]\n\
         when = \"body.type == 'booking.updated'\"\ntype = 'booking.updated'\nrecord = 'wedding'\nexternal_id = '{id}'\n\
         at = 'body.timestamp'\nfields = {{ guest_count = 'body.data.guests' }}\n"
    )
}

async fn put(tenant: &Tenant, id: &str, version: u64) {
    let mut connectors = ConnectorServiceClient::new(client(tenant.addresses.vendor_sync, &tenant.key));
    connectors.put_connector(PutConnectorRequest { source: connector(id), version }).await.expect("it holds");
}

/// Runs `wedsync spooled`; what it printed, and whether it went well.
async fn spooled(story: &Story, tenant: &Tenant, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(binary());
    command.arg("spooled").arg("--system").arg(story.system.data()).args(["--key", &tenant.key.0]).args(arguments);
    let output = timeout(PATIENCE, command.stdin(Stdio::null()).output()).await.expect("it ends").expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

#[tokio::test]
async fn what_could_not_be_read_is_found_mended_and_taken() {
    on_each_engine(async |story| {
        let acme = &story.acme;
        put(acme, "body.data.wedding", 0).await;
        let settings = Integration {
            kind: IntegrationKind::Connector.into(),
            connector: "hub".to_owned(),
            parameters: [("url".to_owned(), "https://hub.example".to_owned())].into(),
            ..Integration::default()
        };
        let (integration, secret) = create_integration(acme, settings, "").await.expect("an integration");
        let sender = Sender { integration, secret, gateway: acme.addresses.gateway };
        let data = json!({ "booking": "b-17", "guests": 40 });
        let body = json!({ "type": "booking.updated", "timestamp": "2026-05-01T12:00:00Z", "data": data }).to_string();
        assert_taken(&sender.send_standard("msg_1", 0, &body).await, false);

        let (said, well) = spooled(&story, acme, &[]).await;
        assert!(well && said.contains(&sender.integration.id) && said.contains("could not be read"), "{said}");
        let number = said.lines().find(|line| line.contains(&sender.integration.id)).expect("its line");
        let number: String =
            number.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        let (said, well) = spooled(&story, acme, &["show", &number]).await;
        assert!(well && said.trim() == body, "{said}");
        let (said, well) = spooled(&story, acme, &["retry", &number]).await;
        assert!(!well && said.contains("still can't be taken"), "{said}");
        let rival = story.tenant("Rival").await;
        let (said, well) = spooled(&story, &rival, &["retry", &number]).await;
        assert!(!well && said.contains("not found"), "{said}");

        put(acme, "body.data.booking", 1).await;
        eventually("the mended connector is in force", async || {
            let (said, well) = spooled(&story, acme, &["retry", &number]).await;
            if well { Ok(()) } else { Err(said) }
        })
        .await;
        eventually("it is told", async || {
            let logged = acme.logged(&["booking.updated"]).await;
            if logged.len() == 1 { Ok(()) } else { Err(format!("{logged:?}")) }
        })
        .await;
        let (said, well) = spooled(&story, acme, &[]).await;
        assert!(well && !said.contains(&sender.integration.id), "{said}");
        assert_taken(&sender.send_standard("msg_1", 0, &body).await, true);
    })
    .await;
}
