//! `GET /realtime/v1/sse`: the events of one channel, or the changes of one table, as Server-Sent Events (WHATWG HTML,
//! section 9.2), for everything that isn't a Supabase client. Each has its position as its id; whoever reconnects with
//! `Last-Event-ID`, as browsers do by themselves, gets what it missed, in order, or the event `resync`.

use std::{borrow::Cow, collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use http::{
    HeaderMap, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use jiff::{SignedDuration, Timestamp};
use proto::common::v1::Position;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use super::{
    Connected, Full, Realtime,
    catch_up::{self, End, Page},
    claims::Claims,
    frame::{Encoding, Wire},
    group::event_stream,
    hub::Seat,
    hubs::Lease,
    join::Join,
    member::{Member, Place, Subscribed},
    outbox::Outbox,
    rest::{self, Parameters, Refused},
    socket::WRITE_WITHIN,
    token::LEEWAY,
    topic::Topic,
};
use crate::Gateway;

/// A comment comes this often, so that nobody between takes the stream for dead.
const COMMENT_EVERY: SignedDuration = SignedDuration::from_secs(15);
/// How long a client waits before it connects again, in milliseconds.
const RETRY: &str = "retry: 2000\n: connected\n\n";
/// How long changes may take to come.
const LIVE_WITHIN: Duration = Duration::from_secs(5);

/// One stream.
struct EventStream {
    realtime: Arc<Realtime>,
    outbox: Arc<Outbox>,
    seat: Seat,
    /// What goes before anything that waits in the queue.
    first: VecDeque<Wire>,
    behind: bool,
    reading: Option<BoxFuture<'static, Result<Page, Status>>>,
    expires: Timestamp,
    comment: Timestamp,
    leaves: Option<Timestamp>,
    connected: Connected,
    _lease: Lease,
}

/// Opens a stream.
pub(crate) async fn stream(
    State(gateway): State<Gateway>,
    Query(parameters): Parameters,
    headers: HeaderMap,
) -> Response {
    match begin(gateway.realtime, &parameters, &headers).await {
        Ok(stream) => {
            let (out, taken) = mpsc::channel(1);
            stream.realtime.chassis.tasks.clone().spawn("realtime.sse", stream.run(out));
            let next = async |mut taken: mpsc::Receiver<Bytes>| Some((Ok::<_, Infallible>(taken.recv().await?), taken));
            let body = Body::from_stream(stream::unfold(taken, next));
            ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")], body).into_response()
        }
        Err(refused) => refused.into_response(),
    }
}

async fn begin(
    realtime: Arc<Realtime>,
    parameters: &[(String, String)],
    headers: &HeaderMap,
) -> Result<EventStream, Refused> {
    let claims = rest::claims(&realtime, parameters, headers).await?;
    let (topic, join) = asked(parameters)?;
    if !claims.may_join(topic.channel()) {
        return Err(Refused::new(StatusCode::FORBIDDEN, "this token doesn't give you that channel"));
    }
    let busy = |reason: &str| Refused::new(StatusCode::TOO_MANY_REQUESTS, reason);
    let connected = realtime.connect().map_err(|full| match full {
        Full::Connections => busy("too many connected clients"),
        Full::Pace => busy("too many connections per second"),
    })?;
    let lease = realtime.hubs.lease(&claims.organization);
    let lease = lease.ok_or_else(|| busy("too many connections of this organization"))?;
    if !realtime.hubs.admits(&lease, realtime.chassis.clock.now()) {
        return Err(busy("too many joins per second"));
    }
    if !lease.hub().is_live(LIVE_WITHIN).await {
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "try again"));
    }
    let resume = resume(parameters, headers);
    Ok(EventStream::new(realtime, connected, lease, topic, &join, claims, resume))
}

/// The channel that is asked for, or the table: an event stream is one place in the log.
fn asked(parameters: &[(String, String)]) -> Result<(Topic, Join), Refused> {
    let parameter = |wanted: &str| parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let unreadable = |reason: &str| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, reason);
    let (name, changes) = match (parameter("channel"), parameter("table")) {
        (Some(channel), None) => (channel.to_owned(), json!([])),
        (None, Some(table)) => {
            let text = |name: &str, default: &str| parameter(name).unwrap_or(default).to_owned();
            let (event, schema, filter) = (text("event", "*"), text("schema", "public"), text("filter", ""));
            (format!("table {table}"), json!([{ "event": event, "schema": schema, "table": table, "filter": filter }]))
        }
        _ => return Err(unreadable("give one channel, or one table")),
    };
    let topic = Topic::of_name(&name).ok_or_else(|| unreadable("that is no channel"))?;
    let payload: Value = json!({ "config": { "postgres_changes": changes, "presence": { "enabled": false } } });
    let join = Join::parse(&payload.to_string()).ok_or_else(|| unreadable("that is no subscription"))?;
    match join.changes.iter().find_map(|wanted| wanted.parsed.as_ref().err()) {
        Some(failure) => Err(unreadable(failure)),
        None => Ok((topic, join)),
    }
}

/// Where a client that was here before goes on; what is no position of ours is one that no log has.
fn resume(parameters: &[(String, String)], headers: &HeaderMap) -> Option<Position> {
    let parameter = parameters.iter().find(|(name, _)| name == "last_event_id").map(|(_, value)| value.as_str());
    let header = headers.get("last-event-id").map(|value| String::from_utf8_lossy(value.as_bytes()));
    let id = header.or_else(|| parameter.map(Cow::Borrowed)).filter(|id| !id.is_empty())?;
    let position = id.rsplit_once(':').and_then(|(log, sequence)| Some((log, sequence.parse().ok()?)));
    let (log_id, sequence) = position.unwrap_or((&id, 0));
    Some(Position { log_id: log_id.to_owned(), sequence })
}

impl EventStream {
    fn new(
        realtime: Arc<Realtime>,
        connected: Connected,
        lease: Lease,
        topic: Topic,
        join: &Join,
        claims: Claims,
        resume: Option<Position>,
    ) -> Self {
        let outbox = Arc::new(Outbox::new(realtime.config.queue_bytes as usize));
        let predicate = Arc::new(claims.predicate());
        let (expires, now) = (claims.expires, realtime.chassis.clock.now());
        let resumes = resume.is_some();
        let member = Member {
            topic,
            encoding: Encoding::Sse,
            outbox: outbox.clone(),
            changes: Subscribed::all(&join.changes, &predicate),
            predicate,
            claims: Arc::new(claims),
            own: true,
            presence_key: String::new(),
            presence: false,
            positions: false,
            place: Place::Live(0),
        };
        let mut first = VecDeque::from([Wire::Text(RETRY.into())]);
        let seat = lease.hub().join(member, resume, |position, _| {
            if !resumes {
                // An id by itself is no event, but the place to resume from.
                first.push_back(Wire::Text(format!("id: {}:{}\n\n", position.log_id, position.sequence).into()));
            }
        });
        Self {
            realtime,
            outbox,
            seat,
            first,
            behind: resumes,
            reading: None,
            expires: expires.checked_add(LEEWAY).unwrap_or(Timestamp::MAX),
            comment: now + COMMENT_EVERY,
            leaves: None,
            connected,
            _lease: lease,
        }
    }

    /// Serves it to its end, which doesn't wait for a client that takes nothing.
    async fn run(mut self, out: mpsc::Sender<Bytes>) {
        while let Some(bytes) = self.next(&out).await {
            let left = self.expires.duration_since(self.realtime.chassis.clock.now());
            let within = WRITE_WITHIN.min(left.try_into().unwrap_or_default());
            if !matches!(timeout(within, out.send(bytes)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// What comes next; none at the stream's end.
    async fn next(&mut self, out: &mpsc::Sender<Bytes>) -> Option<Bytes> {
        loop {
            let now = self.realtime.chassis.clock.now();
            let leaves = self.leaves.is_some_and(|leaves| leaves <= now);
            if self.outbox.take_ended() || self.expires <= now || leaves || out.is_closed() {
                return None;
            }
            if let Some(wire) = self.first.pop_front().or_else(|| self.outbox.take()) {
                return Some(bytes(wire));
            }
            if self.comment <= now {
                self.comment = now + COMMENT_EVERY;
                return Some(Bytes::from_static(b": \n\n"));
            }
            self.wait(out).await;
        }
    }

    /// Waits until there is something to do, and does it.
    async fn wait(&mut self, out: &mpsc::Sender<Bytes>) {
        let lost = self.outbox.take_lost();
        if lost > 0 {
            return self.first.push_back(event_stream("lost", &json!({ "broadcasts": lost }).to_string(), None));
        }
        self.behind |= self.outbox.take_behind();
        if self.behind && self.reading.is_none() {
            if let Some(missed) = self.seat.catch_up(|_| {}) {
                self.behind = false;
                return self.first.extend(missed);
            }
            let since = self.seat.behind();
            self.reading = since.map(|since| self.realtime.read(self.seat.hub(), since));
            self.behind = self.reading.is_some();
        }
        let wake = [Some(self.expires), Some(self.comment), self.leaves].into_iter().flatten().min();
        let (draining, is_draining) = (self.realtime.chassis.draining(), self.leaves.is_some());
        tokio::select! {
            () = self.outbox.ready() => {}
            () = out.closed() => {}
            page = read(&mut self.reading), if self.reading.is_some() => self.catch_up(page),
            () = self.realtime.chassis.clock.sleep_until(wake.unwrap_or(self.comment)) => {}
            () = draining.cancelled(), if !is_draining => {
                self.leaves = Some(self.realtime.leaves(self.connected.number));
            }
        }
    }

    fn catch_up(&mut self, page: Result<Page, Status>) {
        self.reading = None;
        let mut resync = None;
        let told = catch_up::step(&self.seat, page, |end, position| {
            let id = format!("{}:{}", position.log_id, position.sequence);
            resync = (end == End::Resync).then(|| event_stream("resync", "{}", Some(&id)));
        });
        self.first.extend(told.into_iter().chain(resync));
    }
}

async fn read(reading: &mut Option<BoxFuture<'static, Result<Page, Status>>>) -> Result<Page, Status> {
    match reading {
        Some(page) => page.await,
        None => std::future::pending().await,
    }
}

fn bytes(wire: Wire) -> Bytes {
    match wire {
        Wire::Text(text) => text.into(),
        Wire::Binary(bytes) => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_stream_is_one_channel_or_one_table() {
        let (topic, join) = asked(&parameters(&[("channel", "supplier_7")])).expect("a channel");
        assert_eq!((&**topic.channel(), join.changes.len()), ("supplier:dashboard:7", 0));
        let table = parameters(&[("table", "orders"), ("filter", "supplier_id=eq.7")]);
        assert_eq!(asked(&table).expect("a table").1.changes.len(), 1);
        for bad in [
            &[][..],
            &[("channel", "a"), ("table", "b")],
            &[("channel", "")],
            &[("table", "a"), ("event", "TRUNCATE")],
            &[("table", "a"), ("filter", "nonsense")],
        ] {
            assert!(asked(&parameters(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_last_id_is_a_position_and_any_other_is_one_that_no_log_has() {
        let of = |id: &str| resume(&parameters(&[("last_event_id", id)]), &HeaderMap::new());
        assert_eq!(of("log:7"), Some(Position { log_id: "log".to_owned(), sequence: 7 }));
        assert_eq!(of("nonsense"), Some(Position { log_id: "nonsense".to_owned(), sequence: 0 }));
        assert_eq!(of(""), None);
        let headers = HeaderMap::from_iter([("last-event-id".parse().unwrap(), "log:8".parse().unwrap())]);
        assert_eq!(resume(&parameters(&[("last_event_id", "log:7")]), &headers).unwrap().sequence, 8);
        let strange = HeaderMap::from_iter([(
            "last-event-id".parse().unwrap(),
            http::HeaderValue::from_bytes(b"l\xf6g:8").unwrap(),
        )]);
        assert_ne!(resume(&[], &strange).expect("told that it can't be had").log_id, "log");
    }
}
