//! `ConsumerService`: durable consumer groups.

use std::pin::Pin;

use chassis::{
    auth::{Caller, Role, caller},
    error::{Error, Result},
    id::OrganizationId,
    tasks::Tasks,
};
use futures_util::{Stream, StreamExt as _};
use proto::router::v1::{
    ConsumeRequest, ConsumeResponse, Credit, Cursor, DeleteGroupRequest, DeleteGroupResponse, Group, ListGroupsRequest,
    ListGroupsResponse, StartConsuming, consume_request::Message, consumer_service_server::ConsumerService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{text, wire::print_timestamp};
use crate::{
    consumer::{Ask, BUILT_IN, CREDIT_BYTES_MAX, Consumers, Description, Join},
    log::Log,
};

pub(crate) struct ConsumerRpc {
    pub(crate) consumers: Consumers,
    pub(crate) log: Log,
    pub(crate) tasks: Tasks,
    /// Cancelled when the router begins to stop.
    pub(crate) draining: CancellationToken,
}

#[tonic::async_trait]
impl ConsumerService for ConsumerRpc {
    type ConsumeStream = Pin<Box<dyn Stream<Item = Result<ConsumeResponse, Status>> + Send>>;

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let caller = caller(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(Message::Start(start)) = first else {
            return Err(Error::invalid("start", "must be the first message of the stream").into());
        };
        let credit = start.credit;
        let member = self.consumers.join(self.join(&caller, start)?).await?;
        // Reading and writing are separate: a member that doesn't read still has its acknowledgements taken. No wait before
        // it: a call that is cut off would be a member that nobody takes leave of.
        let reading = read(requests, credit, member.id, member.asks, self.draining.clone());
        self.tasks.spawn("consumer.member", reading);
        let answers = UnboundedReceiverStream::new(member.answers).map(|answer| answer.map_err(Status::from));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> Result<Response<ListGroupsResponse>, Status> {
        let caller = caller(&request)?;
        let groups = self.consumers.list(caller.organization.as_ref()).await?;
        Ok(Response::new(ListGroupsResponse { groups: groups.into_iter().map(print).collect() }))
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let caller = caller(&request)?;
        let organization = caller.organization("")?;
        self.consumers.delete(&organization, text("group", &request.get_ref().group)?).await?;
        Ok(Response::new(DeleteGroupResponse {}))
    }
}

impl ConsumerRpc {
    fn join(&self, caller: &Caller, start: StartConsuming) -> Result<Join> {
        Ok(Join {
            organization: owner(caller, &start.group)?,
            from: start.from.as_ref().map(|from| self.log.since(from)).transpose()?,
            group: start.group,
            types: start.types,
        })
    }
}

/// Whose group it is: the caller's organization's, or for our own services one of the built-in groups.
fn owner(caller: &Caller, group: &str) -> Result<Option<OrganizationId>> {
    match (&caller.organization, caller.role) {
        (Some(own), _) if !BUILT_IN.contains(&group) => Ok(Some(own.clone())),
        (None, Role::Service) if BUILT_IN.contains(&group) => Ok(None),
        (None, Role::Service) => {
            Err(Error::invalid("start.group", format!("services join one of {}", BUILT_IN.join(", "))))
        }
        _ => Err(Error::PermissionDenied(format!(
            "group {group} is not for this caller: use another name, and an organization's key"
        ))),
    }
}

/// Passes on what a member says, until its stream ends or the router stops; then the member is lost.
async fn read(
    mut requests: Streaming<ConsumeRequest>,
    credit: Option<Credit>,
    member: u64,
    asks: mpsc::Sender<Ask>,
    draining: CancellationToken,
) {
    if let Some(credit) = credit {
        // The group's task ends only with the router; the stream then ends with it.
        let _ = asks.send(ask_credit(member, credit)).await;
    }
    while let Some(Ok(Some(request))) = draining.run_until_cancelled(requests.message()).await {
        let ask = match request.message {
            Some(Message::Credit(credit)) => ask_credit(member, credit),
            Some(Message::Acknowledge(done)) => Ask::Acknowledge { member, sequences: done.sequences },
            // A second start says nothing new; an empty message nothing at all.
            Some(Message::Start(_)) | None => continue,
        };
        if asks.send(ask).await.is_err() {
            return;
        }
    }
    // As above: without a group there is nothing to leave.
    let _ = asks.send(Ask::Leave { member }).await;
}

fn ask_credit(member: u64, Credit { events, bytes }: Credit) -> Ask {
    let bytes = if bytes == 0 { CREDIT_BYTES_MAX } else { bytes };
    Ask::Credit { member, events: u64::from(events), bytes }
}

fn print(description: Description) -> Group {
    Group {
        name: description.name,
        built_in: description.built_in,
        types: description.types,
        cursors: description
            .cursors
            .into_iter()
            .map(|(priority, sequence)| Cursor { priority: i32::try_from(priority).unwrap_or(0), sequence })
            .collect(),
        members: i32::try_from(description.members).unwrap_or(i32::MAX),
        created_at: Some(print_timestamp(description.created_at)),
    }
}
