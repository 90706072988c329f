//! `RecipientService`: the directory over gRPC.

use chassis::{
    auth::caller,
    clock::from_micros,
    error::{Error, Result},
};
use proto::notifier::v1::{
    self as wire, AddPushTargetRequest, AddPushTargetResponse, DeleteRecipientRequest, DeleteRecipientResponse,
    GetRecipientRequest, GetRecipientResponse, ListRecipientsRequest, ListRecipientsResponse, RemovePushTargetRequest,
    RemovePushTargetResponse, SetWeddingRecipientsRequest, SetWeddingRecipientsResponse, UpsertRecipientRequest,
    UpsertRecipientResponse, recipient_service_server::RecipientService,
};
use tonic::{Request, Response, Status};
use wire::add_push_target_request::Target;

use super::{cut, page_size, timestamp};
use crate::recipient::{Contact, Directory, Kind, PushTarget, Recipient, WEDDING_LIMIT, check_id};

/// The service.
pub(crate) struct Recipients(pub(crate) Directory);

#[tonic::async_trait]
impl RecipientService for Recipients {
    async fn upsert_recipient(
        &self,
        request: Request<UpsertRecipientRequest>,
    ) -> Result<Response<UpsertRecipientResponse>, Status> {
        let caller = caller(&request)?;
        let given = request.into_inner().recipient.ok_or_else(|| Error::invalid("recipient", "must be given"))?;
        let organization = caller.organization(&given.organization_id)?;
        let known = self.0.find(&organization, &given.id).await?.map(|known| known.contact).unwrap_or_default();
        let recipient = parse(given, known)
            .and_then(|recipient| recipient.check().map(|()| recipient))
            .map_err(|error| error.within("recipient"))?;
        let recipient = self.0.upsert(&organization, recipient).await?;
        Ok(Response::new(UpsertRecipientResponse { recipient: Some(print(recipient, organization.as_str())) }))
    }

    async fn get_recipient(
        &self,
        request: Request<GetRecipientRequest>,
    ) -> Result<Response<GetRecipientResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let recipient = self.0.get(&organization, &request.get_ref().id).await?;
        Ok(Response::new(GetRecipientResponse { recipient: Some(print(recipient, organization.as_str())) }))
    }

    async fn list_recipients(
        &self,
        request: Request<ListRecipientsRequest>,
    ) -> Result<Response<ListRecipientsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let mut recipients = self.0.list(&organization, &request.wedding_id, &request.page_token, size + 1).await?;
        let next_page_token = cut(&mut recipients, size, |recipient| &recipient.id);
        let recipients = recipients.into_iter().map(|recipient| print(recipient, organization.as_str())).collect();
        Ok(Response::new(ListRecipientsResponse { recipients, next_page_token }))
    }

    async fn delete_recipient(
        &self,
        request: Request<DeleteRecipientRequest>,
    ) -> Result<Response<DeleteRecipientResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        self.0.delete(&organization, &request.get_ref().id).await?;
        Ok(Response::new(DeleteRecipientResponse {}))
    }

    async fn add_push_target(
        &self,
        request: Request<AddPushTargetRequest>,
    ) -> Result<Response<AddPushTargetResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let target = match request.target.ok_or_else(|| Error::invalid("target", "must be given"))? {
            Target::Web(wire::WebPushSubscription { endpoint, p256dh, auth }) => {
                PushTarget::Web { endpoint, p256dh, auth }
            }
            Target::FcmToken(token) => PushTarget::Fcm { token },
        };
        target.check().map_err(|error| error.within("target"))?;
        self.0.add_push(&organization, &request.recipient_id, target).await?;
        Ok(Response::new(AddPushTargetResponse {}))
    }

    async fn remove_push_target(
        &self,
        request: Request<RemovePushTargetRequest>,
    ) -> Result<Response<RemovePushTargetResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        self.0.get(&organization, &request.recipient_id).await?;
        self.0.forget_push(&organization, &request.recipient_id, &request.target).await?;
        Ok(Response::new(RemovePushTargetResponse {}))
    }

    async fn set_wedding_recipients(
        &self,
        request: Request<SetWeddingRecipientsRequest>,
    ) -> Result<Response<SetWeddingRecipientsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        check_id("wedding_id", &request.wedding_id)?;
        if request.recipient_ids.len() > WEDDING_LIMIT {
            return Err(Error::invalid("recipient_ids", format!("must be at most {WEDDING_LIMIT}")).into());
        }
        for id in &request.recipient_ids {
            self.0.get(&organization, id).await?;
        }
        self.0.set_wedding(&organization, &request.wedding_id, &request.recipient_ids).await?;
        Ok(Response::new(SetWeddingRecipientsResponse {}))
    }
}

/// What is never shown is left as it is known where a caller doesn't say otherwise.
fn parse(given: wire::Recipient, known: Contact) -> Result<Recipient> {
    let kind = match given.kind() {
        wire::RecipientKind::Unspecified => return Err(Error::invalid("kind", "must be given")),
        wire::RecipientKind::Supplier => Kind::Supplier,
        wire::RecipientKind::Couple => Kind::Couple,
        wire::RecipientKind::Planner => Kind::Planner,
        wire::RecipientKind::Operator => Kind::Operator,
    };
    Ok(Recipient {
        id: given.id,
        kind,
        contact: Contact {
            email: given.email,
            phone: given.phone,
            whatsapp_open_until: if given.whatsapp == known.whatsapp { known.whatsapp_open_until } else { 0 },
            whatsapp: given.whatsapp,
            slack_channel: given.slack_channel,
            slack_user_id: given.slack_user_id,
            slack_webhook: given.slack_webhook.unwrap_or(known.slack_webhook),
            teams_webhook: given.teams_webhook.unwrap_or(known.teams_webhook),
            push: known.push,
        },
        name: given.name,
        vendor_type: given.vendor_type,
        time_zone: given.time_zone,
        locale: given.locale,
        channels: given.channels,
        updated_at: 0,
    })
}

fn print(recipient: Recipient, organization: &str) -> wire::Recipient {
    let kind = match recipient.kind {
        Kind::Supplier => wire::RecipientKind::Supplier,
        Kind::Couple => wire::RecipientKind::Couple,
        Kind::Planner => wire::RecipientKind::Planner,
        Kind::Operator => wire::RecipientKind::Operator,
    };
    wire::Recipient {
        id: recipient.id,
        organization_id: organization.to_owned(),
        kind: kind.into(),
        name: recipient.name,
        email: recipient.contact.email,
        phone: recipient.contact.phone,
        whatsapp: recipient.contact.whatsapp,
        slack_channel: recipient.contact.slack_channel,
        slack_user_id: recipient.contact.slack_user_id,
        slack_webhook: None,
        teams_webhook: None,
        push_targets: i32::try_from(recipient.contact.push.len()).unwrap_or(i32::MAX),
        vendor_type: recipient.vendor_type,
        time_zone: recipient.time_zone,
        locale: recipient.locale,
        channels: recipient.channels,
        updated_at: Some(timestamp(from_micros(recipient.updated_at))),
    }
}
