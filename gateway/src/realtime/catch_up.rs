//! How a subscriber that is behind reads on from the log, page by page, until it is live again: one that resumes, and one
//! whose queue was full. What the log no longer has is said, never passed over.

use std::time::Duration;

use chassis::{grpc::Connection, grpc::MESSAGE_LIMIT};
use proto::{
    common::v1::Position,
    router::v1::{Event, ListEventsRequest, event_service_client::EventServiceClient},
};
use tonic::{Code, Status};

use super::{frame::Wire, hub::Seat};

/// Events in one page.
const PAGE: i32 = 200;
/// How long to wait before asking a router again that didn't answer.
const PAUSE: Duration = Duration::from_millis(500);

/// How reading on ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The subscriber has everything up to a position, and is live.
    Recovered,
    /// What it missed can't be had; it is live from a position on.
    Resync,
}

/// What comes after `since`, without a change to `seat`: dropped and done again it is the same.
pub(crate) async fn page(router: Connection, organization: String, since: Position) -> Result<Page, Status> {
    let mut client = EventServiceClient::new(router).max_decoding_message_size(MESSAGE_LIMIT);
    let request =
        ListEventsRequest { page_size: PAGE, since: Some(since), organization_id: organization, ..Default::default() };
    let answer = client.list_events(request).await;
    match answer {
        Ok(answer) => {
            let answer = answer.into_inner();
            let events = answer.events.into_iter().filter_map(|logged| logged.event).collect();
            Ok(Page { events, is_last: answer.next_page_token.is_empty() })
        }
        Err(status) if status.code() == Code::OutOfRange => Err(status),
        Err(status) => {
            tracing::debug!(%status, "the log was not read");
            tokio::time::sleep(PAUSE).await;
            Ok(Page { events: Vec::new(), is_last: false })
        }
    }
}

/// Some events of the log.
pub(crate) struct Page {
    events: Vec<Event>,
    is_last: bool,
}

/// Takes a page, or the answer that there is none, in; what the subscriber is told of it. Where that ends, `end` is told
/// how and where, before anything that comes.
pub(crate) fn step(seat: &Seat, page: Result<Page, Status>, end: impl FnOnce(End, &Position)) -> Vec<Wire> {
    let Ok(page) = page else {
        seat.skip(|position| end(End::Resync, position));
        return Vec::new();
    };
    let told = seat.read(&page.events);
    if told.is_empty() && page.is_last {
        seat.go_live(|position| end(End::Recovered, position));
    }
    told
}
