//! `InboxService`: what people read inside the product, and its live stream.

use std::sync::Arc;

use chassis::{
    auth::caller,
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use proto::notifier::v1::{
    self as wire, GetUnreadCountRequest, GetUnreadCountResponse, ListNoticesRequest, ListNoticesResponse,
    UpdateNoticeRequest, UpdateNoticeResponse, WatchInboxRequest, WatchInboxResponse,
    inbox_service_server::InboxService,
};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{cut, page_size, timestamp};
use crate::{
    inbox::{Filter, Inbox, Notice},
    recipient::{Directory, check_id},
};

/// Notices that one page of the stream's beginning reads.
const PAGE: u32 = 100;

/// The service.
pub(crate) struct Inboxes {
    pub(crate) inbox: Inbox,
    pub(crate) directory: Directory,
    pub(crate) tasks: Tasks,
}

#[tonic::async_trait]
impl InboxService for Inboxes {
    type WatchInboxStream = ReceiverStream<Result<WatchInboxResponse, Status>>;

    async fn list_notices(
        &self,
        request: Request<ListNoticesRequest>,
    ) -> Result<Response<ListNoticesResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        self.directory.get(&organization, &request.recipient_id).await?;
        let size = page_size(request.page_size)?;
        let filter = Filter { unread_only: request.unread_only, before: &request.page_token };
        let mut notices = self.inbox.list(&organization, &request.recipient_id, &filter, size + 1).await?;
        let next_page_token = cut(&mut notices, size, |notice| &notice.id);
        Ok(Response::new(ListNoticesResponse { notices: notices.into_iter().map(print).collect(), next_page_token }))
    }

    async fn get_unread_count(
        &self,
        request: Request<GetUnreadCountRequest>,
    ) -> Result<Response<GetUnreadCountResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let recipient = &request.get_ref().recipient_id;
        self.directory.get(&organization, recipient).await?;
        let unread = self.inbox.unread(&organization, recipient).await?;
        Ok(Response::new(GetUnreadCountResponse { unread }))
    }

    async fn update_notice(
        &self,
        request: Request<UpdateNoticeRequest>,
    ) -> Result<Response<UpdateNoticeResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        check_id("id", &request.id)?;
        let notice = self.inbox.update(&organization, &request.id, request.read, request.archived).await?;
        Ok(Response::new(UpdateNoticeResponse { notice: Some(print(notice)) }))
    }

    async fn watch_inbox(
        &self,
        request: Request<WatchInboxRequest>,
    ) -> Result<Response<Self::WatchInboxStream>, Status> {
        let organization = caller(&request)?.organization("")?;
        let recipient = request.into_inner().recipient_id;
        self.directory.get(&organization, &recipient).await?;
        let (responses, stream) = mpsc::channel(16);
        let watcher = Watcher { inbox: self.inbox.clone(), organization, recipient, responses };
        let stopping = self.tasks.stopping();
        self.tasks.spawn("inbox.watch", async move {
            let gone = watcher.responses.clone();
            tokio::select! {
                () = watcher.run() => {}
                () = gone.closed() => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One live stream.
struct Watcher {
    inbox: Inbox,
    organization: OrganizationId,
    recipient: String,
    responses: mpsc::Sender<Result<WatchInboxResponse, Status>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.inbox.leave(&self.organization, &self.recipient);
    }
}

impl Watcher {
    async fn run(&self) {
        let ended = self.stream().await;
        // The client may have gone away; then nobody needs to hear why.
        let _ = self.responses.send(Err(ended.into())).await;
    }

    /// Runs until something ends it, and gives what that was.
    async fn stream(&self) -> Error {
        // Watching begins before reading, so that nothing can come between.
        let mut changes = self.inbox.watch(&self.organization, &self.recipient);
        if let Err(error) = self.unread().await {
            return error;
        }
        loop {
            let sent = match changes.recv().await {
                Ok(id) => self.changed(&id).await,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    return Error::Unavailable("the watcher fell behind: watch again".into());
                }
                Err(broadcast::error::RecvError::Closed) => {
                    return Error::Unavailable("the service is stopping".into());
                }
            };
            if let Err(error) = sent {
                return error;
            }
        }
    }

    /// Sends what is unread, newest first.
    async fn unread(&self) -> Result<()> {
        let mut before = String::new();
        loop {
            let filter = Filter { unread_only: true, before: &before };
            let notices = self.inbox.list(&self.organization, &self.recipient, &filter, PAGE).await?;
            let Some(last) = notices.last() else { return Ok(()) };
            before.clone_from(&last.id);
            for notice in notices {
                self.send(notice).await?;
            }
        }
    }

    async fn changed(&self, id: &Arc<str>) -> Result<()> {
        match self.inbox.get(&self.organization, id).await {
            Ok(notice) => self.send(notice).await,
            // Removed with its recipient since.
            Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn send(&self, notice: Notice) -> Result<()> {
        let unread = self.inbox.unread(&self.organization, &self.recipient).await?;
        let response = WatchInboxResponse { notice: Some(print(notice)), unread };
        self.responses.send(Ok(response)).await.map_err(|_| Error::Unavailable("the watcher is gone".into()))
    }
}

fn print(notice: Notice) -> wire::Notice {
    wire::Notice {
        id: notice.id,
        recipient_id: notice.recipient,
        workflow: notice.workflow,
        title: notice.words.title,
        body: notice.words.body,
        priority: i32::try_from(notice.priority).unwrap_or(0),
        event_uid: notice.event_uid,
        created_at: Some(timestamp(notice.created_at)),
        read_at: notice.read_at.map(timestamp),
        archived_at: notice.archived_at.map(timestamp),
        resolved_at: notice.resolved_at.map(timestamp),
    }
}
