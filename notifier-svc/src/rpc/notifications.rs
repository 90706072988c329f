//! `NotificationService`: telling people directly, and what became of it.

use std::sync::Arc;

use chassis::{
    auth::{Caller, Role, Scope, caller},
    error::{Error, Result},
    id::{OrganizationId, uuid_text},
};
use jiff::civil::Date;
use proto::{
    common::v1::Priority,
    notifier::v1::{
        self as wire, GetNotificationRequest, GetNotificationResponse, ListNotificationsRequest,
        ListNotificationsResponse, MessageState, SendRequest, SendResponse, SendWeddingDateChangeRequest,
        SendWeddingDateChangeResponse, notification_service_server::NotificationService,
    },
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};

use super::{cut, page_size, timestamp};
use crate::{
    category::{self, MARKETING},
    handle::number,
    kept::Kept,
    notification::{self, Filter, Message, NewNotification, Notification, Standing, digest},
    policy::Urgency,
    recipient::{WEDDING_LIMIT, check_id, is_channel},
    resolve::DEFAULT_CHANNELS,
    tell::{Notifier, Telling, Told},
    variable::{Variables, complete},
    workflow,
};

const VARIABLES_BYTES: usize = 64 * 1024;

/// The service.
pub(crate) struct Notifications(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl NotificationService for Notifications {
    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendResponse>, Status> {
        let caller = caller(&request)?;
        let organization = caller.organization("")?;
        let request = request.into_inner();
        let override_by = overriding(&caller, &request)?;
        let asked = Asked {
            override_by: &override_by,
            override_reason: &request.override_reason,
            category: &request.category,
            key: &request.idempotency_key,
            workflow: &request.workflow,
            recipients: &request.recipient_ids,
            channels: &request.channels,
            wedding: None,
            variables: variables(&request.variables)?,
            priority: request.priority(),
        };
        if request.recipient_ids.is_empty() {
            return Err(Error::invalid("recipient_ids", "must name somebody").into());
        }
        let (told, notification) = self.tell(&organization, asked).await?;
        Ok(Response::new(SendResponse { notification: Some(print(notification)), duplicate: told.duplicate }))
    }

    async fn send_wedding_date_change(
        &self,
        request: Request<SendWeddingDateChangeRequest>,
    ) -> Result<Response<SendWeddingDateChangeResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        check_id("wedding_id", &request.wedding_id)?;
        check_date("old_date", &request.old_date)?;
        check_date("new_date", &request.new_date)?;
        let variables =
            json!({ "wedding_id": request.wedding_id, "old_date": request.old_date, "new_date": request.new_date });
        let asked = Asked {
            override_by: "",
            override_reason: "",
            category: "",
            key: &request.idempotency_key,
            workflow: "wedding_date_change",
            recipients: &request.recipient_ids,
            channels: &[],
            wedding: Some(&request.wedding_id),
            variables: variables.as_object().cloned().unwrap_or_default(),
            priority: Priority::High,
        };
        let (told, notification) = self.tell(&organization, asked).await?;
        Ok(Response::new(SendWeddingDateChangeResponse {
            notification: Some(print(notification)),
            duplicate: told.duplicate,
        }))
    }

    async fn get_notification(
        &self,
        request: Request<GetNotificationRequest>,
    ) -> Result<Response<GetNotificationResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let mut notification = notification::get(&self.0.store, &organization, &request.get_ref().id).await?;
        self.0.name(&organization, std::slice::from_mut(&mut notification)).await?;
        Ok(Response::new(GetNotificationResponse { notification: Some(print(notification)) }))
    }

    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let filter = Filter {
            id: String::new(),
            event: request.event_id,
            recipient: request.recipient_id,
            before: request.page_token,
        };
        let mut notifications = notification::list(&self.0.store, &organization, &filter, size + 1).await?;
        let next_page_token = cut(&mut notifications, size, |notification| &notification.id);
        self.0.name(&organization, &mut notifications).await?;
        let notifications = notifications.into_iter().map(print).collect();
        Ok(Response::new(ListNotificationsResponse { notifications, next_page_token }))
    }
}

/// Who has limits, digests and quiet hours passed over; empty: nobody. It takes a key that may manage, and a reason.
fn overriding(caller: &Caller, request: &SendRequest) -> Result<String> {
    let urgency = Urgency::of(&request.workflow, &request.category, number(request.priority()), false);
    if request.override_reason.is_empty() && urgency == Urgency::Ordinary {
        return Ok(String::new());
    }
    if request.category == MARKETING {
        return Err(Error::invalid("override_reason", "marketing is never urgent"));
    }
    if caller.role == Role::Member && !caller.scopes.contains(Scope::Manage) {
        let lacks = "passing over limits and quiet hours takes the scope Manage: this key lacks it";
        return Err(Error::PermissionDenied(lacks.to_owned()));
    }
    let reason = &request.override_reason;
    if !(1..=200).contains(&reason.len()) || reason.chars().any(char::is_control) {
        let must = "must say in 1 to 200 bytes why limits and quiet hours are passed over";
        return Err(Error::invalid("override_reason", must));
    }
    Ok(caller.name.clone())
}

/// What a call asks for.
struct Asked<'a> {
    override_by: &'a str,
    override_reason: &'a str,
    category: &'a str,
    key: &'a str,
    workflow: &'a str,
    recipients: &'a [String],
    channels: &'a [String],
    wedding: Option<&'a str>,
    variables: Variables,
    priority: Priority,
}

impl Asked<'_> {
    fn check(&self) -> Result<()> {
        let key = self.key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:.-".contains(&b));
        if !key || !(1..=128).contains(&self.key.len()) {
            return Err(Error::invalid("idempotency_key", "must match [A-Za-z0-9_:.-]{1,128}"));
        }
        let workflow = self.workflow.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !workflow || !(1..=64).contains(&self.workflow.len()) {
            return Err(Error::invalid("workflow", "must match [a-z0-9_]{1,64}"));
        }
        if self.recipients.len() > WEDDING_LIMIT {
            return Err(Error::invalid("recipient_ids", format!("must be at most {WEDDING_LIMIT}")));
        }
        for id in self.recipients {
            check_id("recipient_ids", id)?;
        }
        if !self.category.is_empty() && !category::ALL.contains(&self.category) {
            return Err(Error::invalid("category", format!("must be one of {}", category::ALL.join(", "))));
        }
        if self.channels.len() > 16 || !self.channels.iter().all(|channel| is_channel(channel)) {
            return Err(Error::invalid("channels", "must be at most 16 names like `email` or `in_app`"));
        }
        Ok(())
    }

    /// What tells this request from another under the same key.
    fn fingerprint(&self) -> Vec<u8> {
        let mut said =
            json!([self.workflow, self.recipients, self.channels, self.wedding, self.variables, self.priority as i32]);
        // Requests of before keep their fingerprints.
        if let Some(said) =
            said.as_array_mut().filter(|_| !(self.category.is_empty() && self.override_reason.is_empty()))
        {
            said.extend([self.category.into(), self.override_reason.into()]);
        }
        Sha256::digest(said.to_string()).to_vec()
    }
}

impl Notifier {
    /// Fills in what providers call the messages that they took.
    pub(super) async fn name(&self, organization: &OrganizationId, notifications: &mut [Notification]) -> Result<()> {
        notification::provider_id::name(&self.store, &self.keys, organization, notifications).await
    }
}

impl Notifications {
    async fn tell(&self, organization: &OrganizationId, asked: Asked<'_>) -> Result<(Told, Notification)> {
        asked.check()?;
        let workflow = workflow::find(asked.workflow);
        let request = asked.fingerprint();
        let offered: Vec<String> = match asked.channels {
            [] => DEFAULT_CHANNELS.iter().map(|name| (*name).to_owned()).collect(),
            channels => channels.to_vec(),
        };
        let telling = Telling {
            notification: NewNotification {
                organization: organization.clone(),
                workflow: asked.workflow.to_owned(),
                event_id: asked.key.to_owned(),
                event_uid: uuid_text(digest(&["send", organization.as_str(), asked.key])),
                priority: number(asked.priority),
                collapse_key: String::new(),
                request,
                override_by: asked.override_by.to_owned(),
                override_reason: asked.override_reason.to_owned(),
                confirms: None,
            },
            workflow,
            kept: Kept {
                variables: complete(workflow, asked.workflow, asked.variables),
                offered,
                wedding: asked.wedding.map(str::to_owned),
                chosen: asked.recipients.to_vec(),
                category: asked.category.to_owned(),
                overridden: !asked.override_by.is_empty(),
                ..Kept::default()
            },
            is_change: false,
            escalates: None,
        };
        let told = self.0.tell(&telling).await?;
        if !asked.override_by.is_empty() && !told.duplicate {
            let (by, reason) = (asked.override_by, asked.override_reason);
            tracing::warn!(notification.id = told.id, by, reason, "limits and quiet hours were passed over");
            metrics::counter!("notifier_overrides_total").increment(1);
        }
        let notification = notification::get(&self.0.store, organization, &told.id).await?;
        Ok((told, notification))
    }
}

pub(super) fn variables(bytes: &[u8]) -> Result<Variables> {
    if bytes.len() > VARIABLES_BYTES {
        return Err(Error::invalid("variables", "must be at most 64 KiB"));
    }
    if bytes.is_empty() {
        return Ok(Variables::new());
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid("variables", format!("must be a JSON object: {error}")))
}

fn check_date(field: &'static str, text: &str) -> Result<()> {
    let is_date = text.len() == 10 && text.parse::<Date>().is_ok();
    if is_date { Ok(()) } else { Err(Error::invalid(field, "must be a date: YYYY-MM-DD")) }
}

fn print(notification: Notification) -> wire::Notification {
    wire::Notification {
        id: notification.id,
        workflow: notification.workflow,
        event_id: notification.event_id,
        event_uid: notification.event_uid,
        priority: i32::try_from(notification.priority).unwrap_or(0),
        created_at: Some(timestamp(notification.created_at)),
        messages: notification.messages.into_iter().map(print_message).collect(),
    }
}

pub(super) fn print_state(standing: Standing) -> MessageState {
    match standing {
        Standing::Waiting => MessageState::Waiting,
        Standing::Sending => MessageState::Sending,
        Standing::Sent => MessageState::Sent,
        Standing::Failed => MessageState::Failed,
        Standing::Unknown => MessageState::Unknown,
        Standing::Cancelled => MessageState::Cancelled,
        Standing::Skipped => MessageState::Skipped,
        Standing::Delivered => MessageState::Delivered,
        Standing::Read => MessageState::Read,
        Standing::Bounced => MessageState::Bounced,
    }
}

pub(super) fn print_message(message: Message) -> wire::Message {
    wire::Message {
        id: message.id,
        recipient_id: message.recipient,
        channel: message.channel,
        state: print_state(message.standing).into(),
        reason: message.reason,
        attempts: message.attempts,
        created_at: Some(timestamp(message.created_at)),
        sent_at: message.sent_at.map(timestamp),
        due_at: message.due_at.map(timestamp),
        provider_id: message.provider_id,
    }
}
