//! The task of one consumer group: it reads the log for its queues, hands events to members, and notes its cursors.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    store::Store,
    with,
};
use proto::router::v1::{Change, ConsumeResponse, ConsumedEvent, Started, destination::Kind, event::Payload};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::state::{BUFFER_MAX, Handed, Next, REPLAY, State, queue_of};
use crate::{
    event_type::{EventType, TypePattern},
    log::{Entry, Log, PAGE, Page},
};

/// Bytes in one answer, unless one event is larger.
const BATCH_BYTES: usize = 1 << 20;
/// How often in a row it reads on and hands out before it hears what members say and notes its cursors.
const ROUNDS_MAX: usize = 16;
/// When the log could not be read, the next try comes after this.
const AGAIN: Duration = Duration::from_millis(200);

/// What members say to their group.
pub(crate) enum Ask {
    /// The channel is bounded by the member's credit.
    Join {
        member: u64,
        answers: mpsc::UnboundedSender<Result<ConsumeResponse>>,
    },
    Credit {
        member: u64,
        events: u64,
        bytes: u64,
    },
    Acknowledge {
        member: u64,
        sequences: Vec<u64>,
    },
    Leave {
        member: u64,
    },
    /// A range to replay was stored.
    Replay,
}

/// Numbers for members, unique in this process.
pub(super) fn next_member() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(super) struct Group {
    number: i64,
    name: String,
    /// None for a built-in group.
    organization: Option<OrganizationId>,
    types: Vec<TypePattern>,
    store: Store,
    log: Log,
    state: State,
    streams: HashMap<u64, mpsc::UnboundedSender<Result<ConsumeResponse>>>,
    /// Counted up by whoever lets them join.
    members: Arc<AtomicUsize>,
    noted: [u64; 4],
    replay: Option<Replay>,
    /// Whose range was offered last: the next is another's, where one waits.
    replayed: String,
    /// Ranges may be stored that wait for their turn.
    replays_wait: bool,
}

/// Whether there may be more to hand out at once.
enum More {
    Yes,
    No,
}

/// A range that is being offered again.
#[derive(Debug, sqlx::FromRow)]
struct Replay {
    number: i64,
    organization_id: String,
    since: i64,
    until: i64,
}

impl Group {
    pub(super) async fn load(
        number: i64,
        name: String,
        organization: Option<OrganizationId>,
        types: Vec<TypePattern>,
        store: Store,
        log: Log,
    ) -> Result<Self> {
        let rows: Vec<(i64, i64)> = with!(store.reader(), c => sqlx::query_as("SELECT priority, sequence FROM cursors WHERE group_number = $1")
            .bind(number).fetch_all(c).await)?;
        let mut cursors = [0; 4];
        for (priority, sequence) in rows {
            if let Some(cursor) = usize::try_from(priority - 1).ok().and_then(|index| cursors.get_mut(index)) {
                *cursor = u64::try_from(sequence).unwrap_or(0);
            }
        }
        // What an earlier process handed out isn't known: everything up to the head may be a repeat.
        let state = State::new(cursors, log.head());
        Ok(Self {
            number,
            name,
            organization,
            types,
            store,
            log,
            state,
            streams: HashMap::new(),
            members: Arc::default(),
            noted: cursors,
            replay: None,
            replayed: String::new(),
            replays_wait: true,
        })
    }

    pub(super) fn members(&self) -> Arc<AtomicUsize> {
        self.members.clone()
    }

    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>, stopping: CancellationToken) {
        let mut head = self.log.watch();
        let mut asked = Vec::new();
        loop {
            let again = match self.serve().await {
                Ok(More::No) => None,
                Ok(More::Yes) => Some(Duration::ZERO),
                Err(Error::OutOfRange { metadata, .. }) => {
                    self.end_all(&metadata);
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, group = self.number, "could not read the log; trying again");
                    Some(AGAIN)
                }
            };
            self.note();
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                received = asks.recv_many(&mut asked, 256) => match received {
                    0 => return,
                    _ => for ask in asked.drain(..) { self.take(ask) },
                },
                Ok(()) = head.changed() => {}
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Join { member, answers } => {
                let started = Started {
                    log_id: self.log.id().to_owned(),
                    member_id: member.to_string(),
                    head: Some(self.log.position(self.log.head())),
                };
                // A stream that is gone already is found before the next event is handed out.
                let _ = answers.send(Ok(ConsumeResponse { events: Vec::new(), started: Some(started) }));
                self.state.join(member);
                self.streams.insert(member, answers);
            }
            Ask::Credit { member, events, bytes } => self.state.credit(member, events, bytes),
            Ask::Acknowledge { member, sequences } => {
                chassis::fail::point("router.consumer.acknowledged");
                for sequence in sequences {
                    self.state.acknowledge(member, sequence);
                }
            }
            Ask::Leave { member } => self.leave(member),
            Ask::Replay => self.replays_wait = true,
        }
    }

    fn leave(&mut self, member: u64) {
        if self.streams.remove(&member).is_some() {
            self.state.leave(member);
            self.members.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Events that the group never saw are no longer kept: its members are told, as are those who join later.
    fn end_all(&mut self, metadata: &[(&'static str, String)]) {
        let reason = format!(
            "group {} is behind what is kept and has missed events: delete it, read again from the start, and join anew",
            self.name
        );
        for stream in self.streams.values() {
            // One that is gone has nobody to tell.
            let _ = stream.send(Err(Error::OutOfRange { reason: reason.clone(), metadata: metadata.to_vec() }));
        }
        let all: Vec<u64> = self.streams.keys().copied().collect();
        all.into_iter().for_each(|member| self.leave(member));
    }

    /// Hands out what may go, reading the log as it needs; for a while.
    async fn serve(&mut self) -> Result<More> {
        let gone: Vec<u64> =
            self.streams.iter().filter(|(_, stream)| stream.is_closed()).map(|(member, _)| *member).collect();
        gone.into_iter().for_each(|member| self.leave(member));
        if self.streams.is_empty() {
            return Ok(More::No);
        }
        for _ in 0..ROUNDS_MAX {
            self.begin_replay().await?;
            let moved = self.fill().await?;
            let mut batches: HashMap<u64, (usize, ConsumeResponse)> = HashMap::new();
            let mut handed_out = 0;
            let mut look = None;
            while handed_out < BUFFER_MAX {
                match self.state.next() {
                    Next::Hand(handed) => {
                        self.state.sent(&handed);
                        handed_out += 1;
                        self.batch(&mut batches, handed);
                    }
                    Next::Look { entry, since } => {
                        look = Some((entry, since));
                        break;
                    }
                    Next::Idle => break,
                }
            }
            for (member, (_, response)) in batches {
                self.send(member, response);
            }
            match look {
                Some((entry, since)) => self.look(&entry, since).await?,
                // Of what was read nothing may have been for this group: what comes after it may be.
                None if handed_out == 0 && !moved && !self.end_replay().await? => return Ok(More::No),
                None => {}
            }
        }
        Ok(More::Yes)
    }

    fn batch(&mut self, batches: &mut HashMap<u64, (usize, ConsumeResponse)>, handed: Handed) {
        let size = handed.entry.bytes;
        if let Some((bytes, response)) = batches.get_mut(&handed.member)
            && *bytes + size > BATCH_BYTES
        {
            let full = std::mem::take(response);
            *bytes = 0;
            self.send(handed.member, full);
        }
        let (bytes, response) = batches.entry(handed.member).or_default();
        *bytes += size;
        response.events.push(ConsumedEvent {
            event: handed.entry.logged.event.clone(),
            plan: handed.entry.logged.plan.clone(),
            redelivered: handed.redelivered,
            replayed: handed.replayed,
            credit_bytes: size as u64,
        });
    }

    fn send(&mut self, member: u64, response: ConsumeResponse) {
        if response.events.is_empty() {
            return;
        }
        chassis::fail::point("router.consumer.handed");
        metrics::counter!("consumer_events_total").increment(response.events.len() as u64);
        if self.streams.get(&member).is_none_or(|stream| stream.send(Ok(response)).is_err()) {
            self.leave(member);
        }
    }

    /// Reads the log into queues that want more: once for all where they stand at the same place close to the head, else
    /// each by itself, so that what is urgent is found behind any backlog. True if it came any further.
    async fn fill(&mut self) -> Result<bool> {
        let head = self.log.head();
        let wants: Vec<Option<u64>> = (0..4).map(|index| self.state.wants(index)).collect();
        let is_near = |since: u64| head.saturating_sub(since) <= PAGE as u64;
        let mut moved = false;
        let together = wants[0].filter(|since| is_near(*since) && wants.iter().all(|other| *other == Some(*since)));
        match together {
            Some(since) if since < head => {
                let page = self.log.read(self.organization.as_ref(), since).await?;
                moved |= page.until > since;
                let entries = self.matching(page.entries);
                for index in 0..4 {
                    let of_queue = entries.iter().filter(|entry| queue_of(entry) == index).cloned();
                    self.state.fill(index, of_queue, page.until);
                }
            }
            Some(_) => {}
            None => {
                for (index, since) in wants.into_iter().enumerate() {
                    if let Some(since) = since.filter(|since| *since < head) {
                        let page =
                            self.log.read_priority(index as i64 + 1, self.organization.as_ref(), since, head).await?;
                        moved |= page.until > since;
                        let entries = self.matching(page.entries);
                        self.state.fill(index, entries, page.until);
                    }
                }
            }
        }
        Ok(self.fill_replay().await? || moved)
    }

    async fn fill_replay(&mut self) -> Result<bool> {
        let Some(replay) = &self.replay else { return Ok(false) };
        let until = u64::try_from(replay.until).unwrap_or(0);
        let Some(since) = self.state.wants(REPLAY).filter(|since| *since < until) else { return Ok(false) };
        let organization = OrganizationId::parse(&replay.organization_id)?;
        let page = match self.log.read_of(&organization, since, until, PAGE).await {
            // What is no longer kept can't be offered again.
            Err(Error::OutOfRange { .. }) => Page { entries: Vec::new(), until: self.log.oldest() - 1 },
            read => read?,
        };
        let entries = self.matching(page.entries);
        self.state.fill(REPLAY, entries, page.until);
        Ok(page.until > since)
    }

    /// Finds what lies before an event in its key's order and was not read yet.
    async fn look(&mut self, entry: &Entry, since: u64) -> Result<()> {
        let page = self.log.read_key(&entry.organization, &entry.ordering_key, since, entry.sequence).await?;
        let until = page.until;
        let found = self.matching(page.entries).into_iter().map(|entry| (queue_of(&entry), entry)).collect();
        self.state.predecessors(entry.sequence, found, until);
        Ok(())
    }

    fn matching(&self, mut entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
        entries.retain(|entry| {
            let own = self.organization.as_ref().is_none_or(|organization| *organization == entry.organization);
            let typed = || {
                EventType::parse(&entry.type_)
                    .is_ok_and(|type_| self.types.iter().any(|pattern| pattern.matches(&type_)))
            };
            own && (self.types.is_empty() || typed()) && (self.organization.is_some() || is_for(&self.name, entry))
        });
        entries
    }

    /// Notes cursors that moved, to be stored with the log's next commit.
    fn note(&mut self) {
        for index in 0..4 {
            let watermark = self.state.watermark(index);
            if watermark > self.noted[index] {
                self.noted[index] = watermark;
                self.log.dirty.note(self.number, index as i64 + 1, watermark);
            }
        }
    }

    /// Begins the next range that is to be replayed, unless one is under way.
    async fn begin_replay(&mut self) -> Result<()> {
        if self.replay.is_some() || !self.replays_wait {
            return Ok(());
        }
        let next: Option<Replay> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT number, organization_id, since, until FROM replays WHERE group_number = $1
             ORDER BY CASE WHEN organization_id > $2 THEN 0 ELSE 1 END, organization_id, number LIMIT 1",
        ).bind(self.number).bind(&self.replayed).fetch_optional(c).await)?;
        match &next {
            Some(replay) => {
                self.replayed.clone_from(&replay.organization_id);
                self.state.replay_from(u64::try_from(replay.since).unwrap_or(0));
            }
            None => self.replays_wait = false,
        }
        self.replay = next;
        Ok(())
    }

    /// When the last of a range is acknowledged: forgets it. True if so: the next one can begin.
    async fn end_replay(&mut self) -> Result<bool> {
        let Some(replay) = &self.replay else { return Ok(false) };
        let all_read = self.state.read(REPLAY) >= u64::try_from(replay.until).unwrap_or(0);
        if all_read && self.state.replay_is_done() {
            with!(self.store.writer(), c => sqlx::query("DELETE FROM replays WHERE number = $1").bind(replay.number).execute(c).await.map(drop))?;
            self.replay = None;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Tables that say who is who: the notifier learns from them.
const DIRECTORY: [&str; 3] = ["suppliers", "wedding_vendors", "wedding_details"];

/// Whether the service behind a built-in group has to do with an event: it acts on what the plan asks of it, and the
/// notifier learns from its tables. What isn't handed out needs no acknowledgement.
fn is_for(group: &str, entry: &Entry) -> bool {
    let destinations = entry.logged.plan.iter().flat_map(|plan| &plan.destinations);
    let mut kinds = destinations.filter_map(|destination| destination.kind.as_ref());
    match group {
        "vendor-sync" => kinds.any(|kind| matches!(kind, Kind::Webhooks(_) | Kind::Integration(_))),
        "notifier" => {
            let payload = entry.logged.event.as_ref().and_then(|event| event.payload.as_ref());
            let teaches = |change: &Change| DIRECTORY.contains(&change.table.as_str());
            matches!(payload, Some(Payload::Change(change)) if teaches(change))
                || kinds.any(|kind| matches!(kind, Kind::Notification(_)))
        }
        _ => true,
    }
}
