//! Live subscriptions: the log from a position on, filtered by channel and type, then whatever comes. Each subscriber
//! reads at its own pace, from the tail in memory while it keeps up and from the store when it doesn't; it slows nobody.

use std::time::Duration;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use futures_util::{Stream, StreamExt as _, stream};
use proto::router::v1::{Progress, SubscribeResponse, subscribe_response::Message};
use tokio::{sync::watch, time::Instant};

use crate::{
    channel::{ChannelName, ChannelPattern},
    event_type::{EventType, TypePattern},
    log::{Entry, Log, PAGE},
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
            channels: channels.iter().map(|text| channel(text)).collect::<Result<_>>()?,
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

fn channel(text: &str) -> Result<ChannelPattern> {
    ChannelPattern::parse_alias(text).map_err(|error| match error {
        Error::Invalid { reason, .. } => Error::invalid("channels", reason),
        other => other,
    })
}

/// Every event after `since` that matches, in order, without gap or repeat, for as long as it is polled.
pub(crate) fn subscribe(log: Log, filter: Filter, since: u64) -> impl Stream<Item = Result<SubscribeResponse>> {
    let head = log.watch();
    stream::unfold(
        Subscriber { log, filter, head, since, behind: true, told: Instant::now() },
        |mut subscriber| async move {
            let found = subscriber.next().await?;
            Some((found, subscriber))
        },
    )
    .flat_map(stream::iter)
}

struct Subscriber {
    log: Log,
    filter: Filter,
    head: watch::Receiver<u64>,
    /// Everything up to here was sent or doesn't match.
    since: u64,
    /// It is told when it has caught up.
    behind: bool,
    /// When it was last told how far it is.
    told: Instant,
}

impl Subscriber {
    /// What comes next; empty when nothing of a page matched.
    async fn next(&mut self) -> Option<Vec<Result<SubscribeResponse>>> {
        let page = match self.log.read(Some(&self.filter.organization), self.since).await {
            Ok(page) => page,
            Err(error) => return Some(vec![Err(error)]),
        };
        let events = page.entries.iter().filter(|entry| self.filter.matches(entry));
        let events = events.filter_map(|entry| entry.logged.event.clone());
        let mut found: Vec<_> = events.map(|event| Ok(message(Message::Event(event)))).collect();
        let moved = page.until > self.since;
        self.since = page.until;
        self.behind |= page.entries.len() == PAGE;
        let caught_up = self.since >= self.log.head();
        if self.told.elapsed() >= PROGRESS_EVERY || (self.behind && caught_up) {
            (self.told, self.behind) = (Instant::now(), !caught_up);
            found.push(Ok(message(Message::Progress(Progress { position: Some(self.log.position(self.since)) }))));
        } else if !moved {
            self.wait().await?;
        }
        Some(found)
    }

    /// Waits until the head moves, or until it is time to tell again. None when the log is gone.
    async fn wait(&mut self) -> Option<()> {
        match tokio::time::timeout_at(self.told + PROGRESS_EVERY, self.head.changed()).await {
            Ok(changed) => changed.ok(),
            Err(_) => Some(()),
        }
    }
}

fn message(message: Message) -> SubscribeResponse {
    SubscribeResponse { message: Some(message) }
}
