//! `ConfirmationService`: confirming, who knows what, and why somebody was told or not, over gRPC.

use std::sync::Arc;

use chassis::{
    auth::{Caller, caller},
    clock::from_micros,
    error::{Error, Result},
};
use proto::notifier::v1::{
    self as wire, AcknowledgeRequest, AcknowledgeResponse, ExplainNotificationRequest, ExplainNotificationResponse,
    ListInformedRequest, ListInformedResponse, confirmation_service_server::ConfirmationService,
};
use tonic::{Request, Response, Status};

use super::{
    notifications::{print_message, print_state},
    timestamp,
};
use crate::{
    confirm::{self, Confirmation, Confirms},
    informed::{self, Informed},
    notification::{self, Message},
    recipient::check_id,
    tell::Notifier,
    token::{self, Purpose},
};

/// The service.
pub(crate) struct Confirmations(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl ConfirmationService for Confirmations {
    async fn acknowledge(&self, request: Request<AcknowledgeRequest>) -> Result<Response<AcknowledgeResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let response = if request.token.is_empty() {
            self.by_call(&caller, &request).await?
        } else {
            self.by_link(&caller, &request.token).await?
        };
        Ok(Response::new(response))
    }

    async fn list_informed(
        &self,
        request: Request<ListInformedRequest>,
    ) -> Result<Response<ListInformedResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let fact = &request.get_ref().fact;
        if !(1..=200).contains(&fact.len()) {
            return Err(Error::invalid("fact", "must be like `wedding_date:<wedding id>`").into());
        }
        let informed = informed::of(&self.0.store, &organization, fact).await?;
        Ok(Response::new(ListInformedResponse { informed: informed.into_iter().map(print_informed).collect() }))
    }

    async fn explain_notification(
        &self,
        request: Request<ExplainNotificationRequest>,
    ) -> Result<Response<ExplainNotificationResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let mut notification = notification::get(&self.0.store, &organization, &request.id).await?;
        self.0.name(&organization, std::slice::from_mut(&mut notification)).await?;
        let wanted = |recipient: &str| request.recipient_id.is_empty() || recipient == request.recipient_id;
        notification.messages.retain(|message| wanted(&message.recipient));
        let confirmations = confirm::of_notification(&self.0.store, &notification.id).await?;
        Ok(Response::new(ExplainNotificationResponse {
            explanations: notification.messages.into_iter().map(explain).collect(),
            confirmations: confirmations
                .into_iter()
                .filter(|confirmation| wanted(&confirmation.recipient_id))
                .map(print_confirmation)
                .collect(),
            override_by: notification.override_by,
            override_reason: notification.override_reason,
        }))
    }
}

impl Confirmations {
    /// Somebody says it of a person whom they name.
    async fn by_call(&self, caller: &Caller, request: &AcknowledgeRequest) -> Result<AcknowledgeResponse> {
        let organization = caller.organization("")?;
        check_id("notification_id", &request.notification_id)?;
        check_id("recipient_id", &request.recipient_id)?;
        let (notification, recipient) = (request.notification_id.clone(), request.recipient_id.clone());
        let by = recipient.clone();
        let confirms = Confirms { organization, notification, recipient, by, how: "call" };
        self.acknowledge(confirms, Some(&caller.name)).await
    }

    /// A link says it of its message's reader, or of the one for whom they stand in. Whatever is wrong with it, the answer
    /// is the same.
    async fn by_link(&self, caller: &Caller, token: &str) -> Result<AcknowledgeResponse> {
        let (organization, owner) = self.0.owner(caller, Purpose::Acknowledge, token).await?;
        self.acknowledge(Confirms::of(organization, owner, "link"), None).await
    }

    async fn acknowledge(&self, confirms: Confirms, caller: Option<&str>) -> Result<AcknowledgeResponse> {
        let at = confirm::acknowledge(&self.0.store, &confirms, caller, self.0.clock.now()).await?;
        Ok(AcknowledgeResponse {
            notification_id: confirms.notification,
            recipient_id: confirms.recipient,
            acknowledged_at: Some(timestamp(at)),
        })
    }
}

impl Notifier {
    /// Whose message a link was made for.
    ///
    /// # Errors
    /// `Error::NotFound` for one that isn't ours, has ended, or belongs to another organization than the caller.
    pub(crate) async fn owner(
        &self,
        caller: &Caller,
        purpose: Purpose,
        link: &str,
    ) -> Result<(chassis::id::OrganizationId, token::Owner)> {
        let (uid, _) = token::read(link).ok_or_else(token::unknown)?;
        let (organization, owner) = token::owner(&self.store, &uid).await?;
        let foreign = caller.organization.as_ref().is_some_and(|own| *own != organization);
        let key = self.keys.of(&organization).await?;
        if foreign || !token::verify(&key, purpose, link, self.clock.now()) {
            return Err(token::unknown());
        }
        Ok((organization, owner))
    }
}

fn explain(message: Message) -> wire::Explanation {
    let step = |line: &str| {
        let (at, text) = line.split_once(' ')?;
        Some(wire::ExplainedStep { at: at.parse().ok().map(timestamp), text: text.to_owned() })
    };
    let steps = message.trail.lines().filter_map(step).collect();
    wire::Explanation { steps, message: Some(print_message(message)) }
}

fn print_confirmation(confirmation: Confirmation) -> wire::Confirmation {
    wire::Confirmation {
        notification_id: confirmation.notification_id,
        recipient_id: confirmation.recipient_id,
        asked_at: Some(timestamp(from_micros(confirmation.asked_at))),
        escalations: u32::try_from(confirmation.step).unwrap_or(0),
        next_at: confirmation.due_at.map(from_micros).map(timestamp),
        acknowledged_at: confirmation.acknowledged_at.map(from_micros).map(timestamp),
        acknowledged_by: confirmation.acknowledged_by,
        how: confirmation.how,
    }
}

fn print_informed(informed: Informed) -> wire::Informed {
    wire::Informed {
        recipient_id: informed.recipient,
        channel: informed.channel,
        value: informed.value,
        state: print_state(informed.standing).into(),
        notification_id: informed.notification,
        told_at: Some(timestamp(informed.told_at)),
        acknowledged_at: informed.acknowledged_at.map(timestamp),
        acknowledged_by: informed.acknowledged_by,
    }
}
