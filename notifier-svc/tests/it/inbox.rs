//! The inbox: lists, reading, and the live stream.

use std::time::Duration;

use proto::notifier::v1::{
    ListNoticesRequest, MessageState, UpdateNoticeRequest, WatchInboxRequest, WatchInboxResponse,
};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::world::{in_each_world, moved, tells, two_vendors};

async fn next(stream: &mut Streaming<WatchInboxResponse>) -> (String, bool, u64) {
    let response = timeout(Duration::from_secs(120), stream.message())
        .await
        .expect("within two minutes")
        .unwrap()
        .expect("the stream goes on");
    let notice = response.notice.unwrap();
    (notice.event_uid, notice.read_at.is_some(), response.unread)
}

#[tokio::test]
async fn a_watcher_gets_what_is_unread_then_what_comes_then_what_changes() {
    in_each_world(async |world| {
        two_vendors(&world).await;
        let client = world.client("wsk_a").await;
        let plan = || tells("wedding_date_change", &["in_app"], "");
        world.event(moved("e1", "2026-06-20", "2026-06-27"), plan()).await;
        let mut stream =
            client.inbox().watch_inbox(WatchInboxRequest { recipient_id: "ph".to_owned() }).await.unwrap().into_inner();
        assert_eq!(next(&mut stream).await, ("uid-of-e1".to_owned(), false, 1));
        world.event(moved("e2", "2026-06-27", "2026-07-04"), plan()).await;
        assert_eq!(next(&mut stream).await, ("uid-of-e2".to_owned(), false, 2));

        let list =
            |unread_only| ListNoticesRequest { recipient_id: "ph".to_owned(), unread_only, ..Default::default() };
        let notices = client.inbox().list_notices(list(false)).await.unwrap().into_inner().notices;
        let first = notices.iter().find(|notice| notice.event_uid == "uid-of-e1").unwrap();
        assert!(first.title.contains("Mia & Tom") && first.body.contains("update your calendar"), "{first:?}");
        let read = UpdateNoticeRequest { id: first.id.clone(), read: Some(true), archived: None };
        client.inbox().update_notice(read.clone()).await.unwrap();
        assert_eq!(next(&mut stream).await, ("uid-of-e1".to_owned(), true, 1));
        assert_eq!(client.inbox().list_notices(list(true)).await.unwrap().into_inner().notices.len(), 1);

        let archived = UpdateNoticeRequest { archived: Some(true), read: None, ..read.clone() };
        let archived = client.inbox().update_notice(archived).await.unwrap().into_inner().notice.unwrap();
        assert!(archived.read_at.is_some() && archived.archived_at.is_some());
        assert_eq!(client.inbox().list_notices(list(false)).await.unwrap().into_inner().notices.len(), 1);

        let foreign = world.client("wsk_b").await;
        assert_eq!(foreign.inbox().update_notice(read).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(foreign.inbox().list_notices(list(false)).await.unwrap_err().code(), Code::NotFound);
        let watch = WatchInboxRequest { recipient_id: "ph".to_owned() };
        assert_eq!(foreign.inbox().watch_inbox(watch).await.unwrap_err().code(), Code::NotFound);
        client.until("e2", "fl", "in_app", MessageState::Sent).await;
        assert!(world.chassis.drain().await, "an open stream doesn't hold up the stop");
    })
    .await;
}
