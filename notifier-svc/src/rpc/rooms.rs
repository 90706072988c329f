//! `RoomService`: the weddings' rooms, over gRPC.

use std::sync::Arc;

use chassis::auth::caller;
use proto::notifier::v1::{
    self as wire, ListRoomsRequest, ListRoomsResponse, RoomStage, RoomStanding, room_service_server::RoomService,
};
use tonic::{Request, Response, Status};

use super::{cut, page_size};
use crate::{
    room::{Member, Room, Stage, Standing, list, members},
    tell::Notifier,
};

/// The service.
pub(crate) struct Rooms(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl RoomService for Rooms {
    async fn list_rooms(&self, request: Request<ListRoomsRequest>) -> Result<Response<ListRoomsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (wedding, after) = (&request.wedding_id, &request.page_token);
        let mut rooms = list(&self.0.store, &organization, wedding, after, i64::from(size) + 1).await?;
        let next_page_token = cut(&mut rooms, size, |room| &room.wedding);
        let mut printed = Vec::with_capacity(rooms.len());
        for room in rooms {
            let members = members(&self.0.store, &organization, &room.wedding).await?;
            printed.push(print(room, members));
        }
        Ok(Response::new(ListRoomsResponse { rooms: printed, next_page_token }))
    }
}

fn print(room: Room, members: Vec<Member>) -> wire::Room {
    let stage = match room.stage {
        Stage::Wanted => RoomStage::Wanted,
        Stage::Made => RoomStage::Made,
        Stage::Open => RoomStage::Open,
        Stage::Archived => RoomStage::Archived,
    };
    wire::Room {
        wedding_id: room.wedding,
        stage: stage.into(),
        slack_channel_id: room.id,
        name: room.name,
        said: room.said,
        members: members.into_iter().map(print_member).collect(),
    }
}

fn print_member(member: Member) -> wire::RoomMember {
    let standing = match member.standing {
        Standing::Asked => RoomStanding::Asked,
        Standing::In => RoomStanding::In,
        Standing::Skipped => RoomStanding::Skipped,
        Standing::Leaving => RoomStanding::Leaving,
    };
    wire::RoomMember { slack_user_id: member.user, standing: standing.into(), said: member.said }
}
