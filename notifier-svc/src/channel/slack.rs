//! Slack: to a channel or a member by the Web API, where the bot has a token; else by the incoming webhook that a person
//! gave. Blocks are made in [`block`]; [`api`] and [`hook`] carry them.

mod api;
pub(super) mod block;
mod hook;
mod rooms;

use bytes::Bytes;
use chassis::{
    clock::Clock,
    expression::ExpressionError,
    lane::{Attempted, Delivery},
    outbound::Outbound,
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{api::Api, hook::Hook};
pub(crate) use self::{
    block::ACKNOWLEDGE,
    rooms::{Fault, Found, Rooms},
};
use super::{
    Carriage, Carrier, Channel, Message,
    provider::{Class, Verdict, is_at},
    words::Words,
};
use crate::{config::Slack as Settings, recipient::Recipient};

/// A message as it waits.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Post {
    Api { to: String, message: Value },
    Hook { url: String, message: Value },
}

/// Slack, by one bot and whatever webhooks people have.
pub(crate) struct SlackChannel {
    public_name: String,
    has_bot: bool,
    hook_hosts: Vec<String>,
    api: Api,
    hook: Hook,
}

impl SlackChannel {
    pub(super) fn new(settings: &Settings, public_name: &str, outbound: &Outbound, clock: &Clock) -> Self {
        Self {
            public_name: public_name.to_owned(),
            has_bot: !settings.bot_token.is_empty(),
            hook_hosts: settings.hook_hosts.clone(),
            api: Api::new(settings, outbound.clone(), clock.clone()),
            hook: Hook::new(outbound.clone(), clock.clone()),
        }
    }

    #[cfg(test)]
    pub(super) fn look_at_once(&mut self) {
        self.api.look_at_once();
    }
}

impl Channel for SlackChannel {
    fn name(&self) -> &'static str {
        "slack"
    }

    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        let contact = &recipient.contact;
        let ids = [&contact.slack_user_id, &contact.slack_channel];
        match ids.into_iter().find(|id| !id.is_empty() && self.has_bot) {
            Some(id) => Ok(id.clone()),
            None if contact.slack_webhook.is_empty() => Err("there is no Slack member, channel or webhook"),
            None if is_at(&contact.slack_webhook, &self.hook_hosts) => Ok(contact.slack_webhook.clone()),
            None => Err("the Slack webhook is none of Slack's"),
        }
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let words = Words::of("slack", message)?;
        let to = self.address(message.recipient).unwrap_or_default();
        let post = if to.contains("://") {
            Post::Hook { url: to, message: block::plain(&words, &self.public_name) }
        } else {
            Post::Api { message: block::addressed(&words, &self.public_name, &to, message.uid), to }
        };
        Ok(serde_json::to_vec(&post).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for SlackChannel {
    fn goes_to(&self, delivery: &Delivery) -> Option<String> {
        let (Post::Api { to, .. } | Post::Hook { url: to, .. }) = serde_json::from_slice(&delivery.content).ok()?;
        Some(to)
    }

    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let verdict = match serde_json::from_slice::<Post>(&delivery.content) {
                Ok(Post::Api { to, message }) => self.api.send(delivery, &to, &message).await,
                Ok(Post::Hook { url, message }) if is_at(&url, &self.hook_hosts) => self.hook.send(url, &message).await,
                Ok(Post::Hook { .. }) => Verdict::new(Class::Refused, "the webhook is none of Slack's"),
                Err(_) => Verdict::new(Class::Refused, "the stored message can't be read"),
            };
            verdict.attempted()
        })
    }

    fn resume<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let verdict = match serde_json::from_slice::<Post>(&delivery.content) {
                Ok(Post::Api { to, message }) => self.api.again(delivery, &to, &message).await,
                _ => Verdict::new(Class::Unsure, "a webhook can't be asked about an earlier attempt"),
            };
            verdict.attempted()
        })
    }
}

#[cfg(test)]
mod tests;
