//! Live subscriptions: the log from a position on, filtered by channel and type, then whatever comes, and the broadcasts
//! sent meanwhile. Each subscriber reads at its own pace, from the tail in memory while it keeps up and from the store
//! when it doesn't; it slows nobody.

use std::time::Duration;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use futures_util::{Stream, StreamExt as _, stream};
use proto::router::v1::{BroadcastsLost, Progress, SubscribeResponse, subscribe_response::Message};
use tokio::{sync::watch, time::Instant};

use crate::{
    broadcast::{Broadcast, Listener},
    channel::{CLIENT_UPDATES, ChannelName, ChannelPattern},
    event_type::{EventType, TypePattern},
    log::{Entry, Log, PAGE},
    rpc::wire::print_broadcast,
};

/// A quiet subscription hears this often how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Channels and types that one subscription names.
const PATTERNS_MAX: usize = 256;
/// Of a broadcast's name in its type.
const TYPE_CHARACTERS: usize = 100;

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
            channels: channels
                .iter()
                .flat_map(|text| [Some(channel(text)), own_room(text)])
                .flatten()
                .collect::<Result<_>>()?,
            types: types.iter().map(|text| TypePattern::parse(text)).collect::<Result<_>>()?,
        })
    }

    pub(crate) fn organization(&self) -> &OrganizationId {
        &self.organization
    }

    fn matches(&self, entry: &Entry) -> bool {
        let event = entry.logged.event.as_ref();
        let on_channel = || event.is_some_and(|event| event.channels.iter().any(|name| self.on_channel(name)));
        entry.organization == self.organization
            && (self.channels.is_empty() || on_channel())
            && (self.types.is_empty() || self.of_type(&entry.type_))
    }

    fn hears(&self, broadcast: &Broadcast) -> bool {
        (self.channels.is_empty() || self.on_channel(&broadcast.channel))
            && (self.types.is_empty() || self.of_type(&type_of(&broadcast.event)))
    }

    fn on_channel(&self, name: &str) -> bool {
        ChannelName::parse(name).is_ok_and(|name| self.channels.iter().any(|pattern| pattern.matches(&name)))
    }

    fn of_type(&self, type_: &str) -> bool {
        EventType::parse(type_).is_ok_and(|type_| self.types.iter().any(|pattern| pattern.matches(&type_)))
    }
}

/// The type that a broadcast's event has: its name below `broadcast`, with what a type can't hold made lower case or `_`.
pub(crate) fn type_of(event: &str) -> String {
    let segment = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = event.chars().map(segment).take(TYPE_CHARACTERS).collect();
    format!("broadcast.{name}")
}

/// That alias is a room of its own as well.
fn own_room(text: &str) -> Option<Result<ChannelPattern>> {
    (text == CLIENT_UPDATES).then(|| ChannelPattern::parse(text))
}

fn channel(text: &str) -> Result<ChannelPattern> {
    ChannelPattern::parse_alias(text).map_err(|error| match error {
        Error::Invalid { reason, .. } => Error::invalid("channels", reason),
        other => other,
    })
}

/// Every event after `since` that matches, in order, without gap or repeat, for as long as it is polled; and what
/// `broadcasts` brings meanwhile.
pub(crate) fn subscribe(
    log: Log,
    broadcasts: Listener,
    filter: Filter,
    since: u64,
) -> impl Stream<Item = Result<SubscribeResponse>> {
    let head = log.watch();
    stream::unfold(
        Subscriber { log, broadcasts, filter, head, since, behind: true, told: Instant::now() },
        |mut subscriber| async move {
            let found = subscriber.next().await?;
            Some((found, subscriber))
        },
    )
    .flat_map(stream::iter)
}

struct Subscriber {
    log: Log,
    broadcasts: Listener,
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
        // While it catches up as well: what is sent meanwhile is kept for a while only.
        let moved = self.hear(&mut found) || page.until > self.since;
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

    /// Adds the broadcasts that came meanwhile, and how many were lost; whether there was any.
    fn hear(&mut self, found: &mut Vec<Result<SubscribeResponse>>) -> bool {
        let (lost, heard) = self.broadcasts.read();
        if lost > 0 {
            found.push(Ok(message(Message::BroadcastsLost(BroadcastsLost { count: lost }))));
        }
        let wanted = heard.iter().filter(|broadcast| self.filter.hears(broadcast));
        found.extend(wanted.map(|broadcast| Ok(message(Message::Broadcast(print_broadcast(broadcast))))));
        lost > 0 || !heard.is_empty()
    }

    /// Waits until the head moves, a broadcast comes, or it is time to tell again. None when the log is gone.
    async fn wait(&mut self) -> Option<()> {
        tokio::select! {
            changed = self.head.changed() => changed.ok(),
            () = self.broadcasts.wait() => Some(()),
            () = tokio::time::sleep_until(self.told + PROGRESS_EVERY) => Some(()),
        }
    }
}

fn message(message: Message) -> SubscribeResponse {
    SubscribeResponse { message: Some(message) }
}
