//! Webhooks of integrations with a connector: verified and read as the connector declares, resolved into the records.
//!
//! What it says, its receipt, and the events that follow are one transaction; only then the sender is answered 2xx. The same
//! webhook fifty times at once has one effect: the receipt is written once, and who comes second finds it.
//!
//! What a vendor never sends again (`spool`) is refused only by who isn't believed, or while the store is away: what can't be
//! read or taken is kept for people. A hint (`read_first`) is kept and read by its id from the vendor before anything is believed (`sync::reread`).

use std::collections::BTreeMap;

use chassis::{
    clock::from_micros,
    config::Secret,
    error::{Error, Result},
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Answer, Inbound, Request,
    dedupe::Key,
    publish::{self, Event, Payload, Sender},
    spool::{self, Row},
    verify::Proof,
};
use crate::{
    connector::{Connector, InboundItem, Known, Proved, Webhook},
    integration::{Integration, Secrets},
    record::RecordKind,
    resolve::{Incoming, Origin, Resolved, Resolver, Taking},
    sync::{account::Accounts, reread::Rereads},
};

const TRIES: usize = 3;
/// What the records' own changes are told by: `resolve` tells it.
const TOLD: [&str; 8] = [
    "client.created",
    "client.updated",
    "client.deleted",
    "wedding.date_changed",
    "timeline.updated",
    "guest_count.changed",
    "booking.updated",
    "preference.updated",
];

/// What the way in needs for connectors. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Vendors {
    pub(crate) accounts: Accounts,
    pub(crate) resolver: Resolver,
    pub(crate) rereads: Rereads,
}

/// One webhook that is believed, and what it is handled with.
#[derive(Clone, Copy)]
struct Post<'a> {
    inbound: &'a Inbound,
    integration: &'a Integration,
    connector: &'a Connector,
    key: &'a Key,
    request: &'a Request,
    /// When it came.
    at: Timestamp,
}

/// What makes it one effect: whoever writes its receipt, or takes what was kept of it, has it.
#[derive(Clone, Copy)]
enum Claim {
    Receipt,
    /// By its number in the spool.
    Kept(i64),
}

/// What one webhook says, in the parts that are handled apart.
struct Said {
    incoming: Vec<Incoming>,
    /// The type of each of `incoming`.
    types: Vec<String>,
    /// Kind and external id of what is to be read.
    reads: Vec<(RecordKind, String)>,
    events: Vec<(String, Timestamp, BTreeMap<String, Value>)>,
}

impl Vendors {
    /// The steps, once the integration is found.
    pub(super) async fn steps(
        &self,
        inbound: &Inbound,
        request: &Request,
        (integration, secrets): (&Integration, &Secrets),
        now: Timestamp,
    ) -> Result<Answer, Answer> {
        let account = self.accounts.get(&integration.id).ok_or(Answer::Unknown)?;
        let declared = account.connector.inbound().ok_or(Answer::Unknown)?;
        let (shared, url): (Vec<&str>, _) = (secrets.iter().collect(), url(request));
        let known = Known { secrets: &shared, signing: secrets.signing.as_ref().map(Secret::expose) };
        let webhook = webhook(request, &url, &integration.id);
        let settings = account.connector.filled(&integration.settings.parameters);
        let shaken = declared.handshake(&webhook, known, &settings, now).map_err(|_| Answer::Unverified)?;
        if let Some(echo) = shaken {
            return Ok(Answer::Echo { status: echo.status, body: echo.body });
        }
        if request.method != "POST" {
            return Err(Answer::Unknown);
        }
        let proved = declared.verify(&webhook, known, now).map_err(|_| Answer::Unverified)?;
        let key = inbound.receipts.dedupe(integration, proof(proved), &request.body, now).await?;
        // What nobody sends again is taken at whatever rate: it is durable here before its 2xx, whatever the router's state.
        if !declared.is_spooled() {
            inbound.limits.admit(integration, now).await?;
        }
        let post = Post { inbound, integration, connector: &account.connector, key: &key, request, at: now };
        let taken = match self.read(&post) {
            Ok(said) => self.take(&post, &said, Claim::Receipt).await,
            Err(refusal) => Err(refusal),
        };
        match taken {
            Err(refusal) if declared.is_spooled() => keep(&post, refusal).await,
            // What we couldn't take, or had already, isn't one more.
            Err(Answer::Unavailable { .. }) | Ok(Answer::Duplicate { .. }) => {
                inbound.limits.give_back(&integration.id);
                taken
            }
            other => other,
        }
    }

    /// Takes one that was kept, as of the time when it came.
    pub(super) async fn take_again(
        &self,
        inbound: &Inbound,
        integration: &Integration,
        request: &Request,
        row: &Row,
    ) -> Result<Answer, Answer> {
        let account = self.accounts.get(&integration.id).ok_or(Answer::Unknown)?;
        let (key, at) = (Key::of_event(&row.event_id), from_micros(row.received_at));
        let post = Post { inbound, integration, connector: &account.connector, key: &key, request, at };
        self.take(&post, &self.read(&post)?, Claim::Kept(row.sequence)).await
    }

    /// What it says, as its connector declares.
    fn read(&self, post: &Post<'_>) -> Result<Said, Answer> {
        let declared = post.connector.inbound().ok_or(Answer::Unknown)?;
        let url = url(post.request);
        let settings = post.connector.filled(&post.integration.settings.parameters);
        match declared.events(&webhook(post.request, &url, &post.integration.id), &settings) {
            Ok(items) => Ok(said(items, post.at)),
            Err(reason) => {
                tracing::warn!(post.integration.id, reason, "a vendor's webhook could not be read");
                Err(Answer::invalid("body", "could not be read as this integration's connector declares"))
            }
        }
    }

    async fn take(&self, post: &Post<'_>, said: &Said, claim: Claim) -> Result<Answer, Answer> {
        let mut tries = 1;
        loop {
            match self.try_take(post, said, claim).await {
                Err(Error::Aborted(_)) if tries < TRIES => {
                    tries += 1;
                    self.resolver.making.ended(&post.integration.id).await;
                }
                Ok(answer) => return Ok(answer),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn try_take(&self, post: &Post<'_>, said: &Said, claim: Claim) -> Result<Answer> {
        let Post { inbound, integration, connector, key, request, at } = *post;
        let event_id = key.event_id.clone();
        let spooled = connector.inbound().is_some_and(crate::connector::Inbound::is_spooled);
        let mut taking = if spooled {
            // However much waits for the router: it would not come again.
            self.resolver.begin_at_once(&integration.organization).await?
        } else {
            self.resolver.begin(&integration.organization).await?
        };
        let is_first = match claim {
            Claim::Receipt => inbound.receipts.record_in(&mut taking.tx, integration, key, at).await?,
            Claim::Kept(sequence) => spool::remove_in(&mut taking.tx, sequence).await?,
        };
        if !is_first {
            return Ok(Answer::Duplicate { event_id });
        }
        let resolved = taking.take(integration, &said.incoming).await?;
        let mut events = named(said, &resolved);
        events.extend(said.events.iter().cloned());
        let base = base(integration, key, &request.body);
        for (index, (type_, at, fields)) in events.into_iter().enumerate() {
            self.tell(&mut taking, integration, event(format!("{base}:{index}"), type_, at, fields)).await?;
        }
        for (kind, external_id) in &said.reads {
            let readable = connector.record(*kind).is_some_and(|spec| spec.read.is_some() || spec.list.is_some());
            if readable {
                self.rereads.put_in(&mut taking.tx, integration, *kind, external_id, at).await?;
            }
        }
        taking.commit().await?;
        if !said.reads.is_empty() {
            self.rereads.wake();
        }
        Ok(Answer::Accepted { event_id })
    }

    async fn tell(&self, taking: &mut Taking, integration: &Integration, event: Event) -> Result<()> {
        let event = publish::print(&Sender::of(integration), &event);
        taking.publish(&event).await
    }
}

/// Nobody sends it again: it is kept for people, and answered as taken.
async fn keep(post: &Post<'_>, refusal: Answer) -> Result<Answer, Answer> {
    let Post { inbound, integration, key, request, at, .. } = *post;
    let reason = match &refusal {
        Answer::Invalid { field, reason } => format!("{field}: {reason}"),
        other => other.name().to_owned(),
    };
    let event_id = key.event_id.clone();
    match inbound.spool.keep(&inbound.receipts, integration, key, (request, &reason), at).await {
        Ok(true) => Ok(Answer::Accepted { event_id }),
        Ok(false) => Ok(Answer::Duplicate { event_id }),
        // The store is away, for which it was refused.
        Err(error) => Err(error.into()),
    }
}

/// Where the vendor posted to. Who stands before the gateway ends TLS.
fn url(request: &Request) -> String {
    format!("https://{}{}", request.headers.one("host").unwrap_or_default(), request.target)
}

fn webhook<'a>(request: &'a Request, url: &'a str, integration_id: &'a str) -> Webhook<'a> {
    let query = request.target.split_once('?').map_or("", |(_, query)| query);
    Webhook { method: &request.method, url, query, headers: &request.headers.0, body: &request.body, integration_id }
}

fn proof(proved: Proved) -> Proof {
    match proved {
        Proved::Id(id) => Proof::Id(id),
        Proved::Body => Proof::Body,
        Proved::Sender => Proof::Sender,
    }
}

fn said(items: Vec<InboundItem>, now: Timestamp) -> Said {
    let mut said = Said { incoming: Vec::new(), types: Vec::new(), reads: Vec::new(), events: Vec::new() };
    for item in items {
        let at = item.at.unwrap_or(now);
        match item.kind {
            None => said.events.push((item.event_type, at, item.fields)),
            Some(kind) if item.read_first => said.reads.push((kind, item.external_id)),
            Some(kind) => {
                said.types.push(item.event_type);
                said.incoming.push(Incoming {
                    kind,
                    external_id: item.external_id,
                    external_version: item.external_version,
                    at,
                    fields: item.fields,
                    deleted: item.deleted,
                    priority_low: false,
                    origin: Origin::Webhook,
                });
            }
        }
    }
    said
}

/// Events of records that say more than their change does: an unsubscription, a bounce.
fn named(said: &Said, resolved: &[Resolved]) -> Vec<(String, Timestamp, BTreeMap<String, Value>)> {
    let mut events = Vec::new();
    for ((incoming, type_), resolved) in said.incoming.iter().zip(&said.types).zip(resolved) {
        let record_id = match resolved {
            Resolved::Created { record_id } | Resolved::Changed { record_id, .. } => record_id,
            _ => continue,
        };
        if !TOLD.contains(&type_.as_str()) {
            let mut fields = incoming.fields.clone();
            let id = if incoming.kind == RecordKind::Wedding { "wedding_id" } else { "client_id" };
            fields.insert(id.to_owned(), json!(record_id));
            events.push((type_.clone(), incoming.at, fields));
        }
    }
    events
}

/// The same however often the same webhook comes. What proves its sender alone is known by its body.
fn base(integration: &Integration, key: &Key, body: &[u8]) -> String {
    let named = key.event_id.starts_with(&integration.id);
    let said = if named { key.event_id.as_bytes() } else { body };
    format!("{}:{}", integration.id, hex::encode(&Sha256::digest(said)[..16]))
}

fn event(id: String, type_: String, time: Timestamp, fields: BTreeMap<String, Value>) -> Event {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (subject, couple_id) = (text("wedding_id"), text("client_id"));
    let content = Value::Object(Map::from_iter(fields.clone())).to_string();
    Event {
        id,
        type_,
        subject: if subject.is_empty() { couple_id.clone() } else { subject },
        couple_id,
        time,
        channels: Vec::new(),
        traceparent: chassis::trace::current().map(|context| context.to_string()).unwrap_or_default(),
        payload: Payload::Content(content.into()),
    }
}
