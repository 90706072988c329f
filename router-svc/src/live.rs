//! Live subscriptions: the log from a position on, filtered by channel and type, then whatever comes. Each subscriber
//! reads at its own pace, from the tail in memory while it keeps up and from the store when it doesn't; it slows nobody.

use std::{pin::pin, time::Duration};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use futures_util::{Stream, StreamExt as _, stream};
use proto::router::v1::{Progress, SubscribeResponse, subscribe_response::Message};

use crate::{
    channel::{ChannelName, ChannelPattern},
    event_type::{EventType, TypePattern},
    log::{Entry, Log},
};

/// A quiet subscription hears this often how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Channels and types that one subscription names.
const PATTERNS_MAX: usize = 256;

/// Which events a subscriber sees.
#[derive(Debug)]
pub(crate) struct Filter {
    organization: OrganizationId,
    channels: Vec<ChannelPattern>,
    types: Vec<TypePattern>,
}

impl Filter {
    /// # Errors
    /// `Error::Invalid` naming the pattern that doesn't parse.
    pub(crate) fn parse(organization: OrganizationId, channels: &[String], types: &[String]) -> Result<Self> {
        if channels.len() > PATTERNS_MAX || types.len() > PATTERNS_MAX {
            return Err(Error::invalid("channels", format!("at most {PATTERNS_MAX} channels and as many types")));
        }
        Ok(Self {
            organization,
            channels: channels.iter().map(|text| ChannelPattern::parse_alias(text)).collect::<Result<_>>()?,
            types: types.iter().map(|text| TypePattern::parse(text)).collect::<Result<_>>()?,
        })
    }

    fn matches(&self, entry: &Entry) -> bool {
        let event = entry.logged.event.as_ref();
        let on_channel = |name: &String| {
            ChannelName::parse(name).is_ok_and(|name| self.channels.iter().any(|pattern| pattern.matches(&name)))
        };
        let of_type = |type_: EventType| self.types.iter().any(|pattern| pattern.matches(&type_));
        entry.organization == self.organization
            && (self.channels.is_empty() || event.is_some_and(|event| event.channels.iter().any(on_channel)))
            && (self.types.is_empty() || EventType::parse(&entry.type_).is_ok_and(of_type))
    }
}

/// Every event after `since` that matches, in order, without gap or repeat, for as long as it is polled.
pub(crate) fn subscribe(log: Log, filter: Filter, since: u64) -> impl Stream<Item = Result<SubscribeResponse>> {
    let head = log.watch();
    stream::unfold((log, filter, since, head, true), |(log, filter, since, mut head, tell)| async move {
        let mut tell = tell;
        loop {
            let page = match log.read(since).await {
                Ok(page) => page,
                Err(error) => return Some((vec![Err(error)], (log, filter, since, head, false))),
            };
            let mut found: Vec<Result<SubscribeResponse>> = Vec::new();
            for entry in page.entries.iter().filter(|entry| filter.matches(entry)) {
                found.extend(entry.logged.event.clone().map(|event| Ok(message(Message::Event(event)))));
            }
            let (moved, caught_up) = (page.until > since, page.until >= log.head());
            let since = page.until;
            if caught_up && tell {
                found.push(Ok(message(Message::Progress(Progress { position: Some(log.position(since)) }))));
            }
            if !found.is_empty() {
                return Some((found, (log, filter, since, head, !caught_up)));
            }
            if moved {
                return Some((found, (log, filter, since, head, tell)));
            }
            tell = wait(&mut head).await?;
        }
    })
    .flat_map(stream::iter)
}

/// Waits until the head moves; true when it didn't for so long that the subscriber is told how far it is.
async fn wait(head: &mut tokio::sync::watch::Receiver<u64>) -> Option<bool> {
    let changed = pin!(head.changed());
    match tokio::time::timeout(PROGRESS_EVERY, changed).await {
        Ok(Ok(())) => Some(false),
        Ok(Err(_)) => None,
        Err(_) => Some(true),
    }
}

fn message(message: Message) -> SubscribeResponse {
    SubscribeResponse { message: Some(message) }
}
