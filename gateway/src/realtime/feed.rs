//! What feeds a hub: one `Subscribe` of its organization, resumed where it broke off, without gap or repeat. It ends a
//! while after the last subscriber has left.

use std::{sync::Arc, time::Duration};

use chassis::grpc::{Connection, MESSAGE_LIMIT, Peer};
use proto::{
    common::v1::Position,
    router::v1::{
        GetHeadRequest, SubscribeRequest, event_service_client::EventServiceClient, subscribe_response::Message,
        subscription_service_client::SubscriptionServiceClient,
    },
};
use tonic::{Code, Status};

use super::hub::Hub;

/// The first wait after a broken stream; each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Feeds `hub` for as long as it is polled, over a connection of its own.
pub(crate) async fn run(hub: Arc<Hub>, router: Peer) {
    let router = router.separate();
    let mut wait = RETRY_MIN;
    loop {
        let Err(status) = follow(&hub, &router, &mut wait).await;
        hub.set_live(false);
        tracing::debug!(organization = %hub.organization, %status, "live changes broke off");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

async fn follow(hub: &Hub, router: &Peer, wait: &mut Duration) -> Result<std::convert::Infallible, Status> {
    let since = match hub.position() {
        Some(position) => position,
        None => begin(hub, router.channel()).await?,
    };
    let mut client = SubscriptionServiceClient::new(router.channel()).max_decoding_message_size(MESSAGE_LIMIT);
    let organization_id = hub.organization.to_string();
    let request = SubscribeRequest { since: Some(since), organization_id, ..SubscribeRequest::default() };
    let subscribed = client.subscribe(request).await;
    let mut stream = match subscribed {
        Ok(stream) => stream.into_inner(),
        Err(status) if status.code() == Code::OutOfRange => {
            begin(hub, router.channel()).await?;
            return Err(status);
        }
        Err(status) => return Err(status),
    };
    loop {
        let response = stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
        match response.message {
            Some(Message::Event(event)) => hub.deliver(event),
            Some(Message::Broadcast(broadcast)) => hub.broadcast(&broadcast),
            Some(Message::BroadcastsLost(lost)) => hub.lost(lost.count),
            // It comes once the stream has caught up: from here on `ok` is true.
            Some(Message::Progress(progress)) => {
                hub.progress(progress.position.unwrap_or_default());
                hub.set_live(true);
                *wait = RETRY_MIN;
            }
            None => {}
        }
    }
}

/// Starts at the log's head, at first or where the log can't be followed from where it broke off.
async fn begin(hub: &Hub, router: Connection) -> Result<Position, Status> {
    let head = EventServiceClient::new(router).get_head(GetHeadRequest {}).await?.into_inner().head;
    let head = head.ok_or_else(|| Status::internal("no head"))?;
    hub.restart(head.clone());
    Ok(head)
}
