//! Tells when a vendor has not taken a change for too long, so that its supplier learns of it another way, and when it has.
//!
//! Each change is told once: what was told is kept by the newest delivery that waited then, and written with the event. A
//! newer change of the same wedding is told when it has waited for as long itself; so a wedding is told of at most once in
//! the stated time. What was told ends in any case: delivered, or given up. Only integrations that were ever connected are
//! looked at, a key at a time; what is no wedding's is noted as looked at, and told to nobody.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    lane::{
        self,
        overdue::{self, Overdue},
    },
    secret::DataKeys,
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};
use proto::router::v1 as wire;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    credential::{Connections, State},
    integration::{Integration, Integrations},
    notice,
    outbox::Outbox,
    sync::letter::Letter,
};

const LOOK_EVERY: Duration = Duration::from_secs(30);
const PAGE: i64 = 100;
/// Of what waits for one wedding, so many letters are looked at, the newest first.
const LETTERS: i64 = 64;
const SUMMARY_CHARS: usize = 500;
const VALUE_CHARS: usize = 60;
/// What a supplier must know of a wedding; nothing of its guests.
const FIELDS: &[&str] = &[
    "bride_name",
    "ceremony_time",
    "groom_name",
    "guest_count",
    "reception_time",
    "setup_time",
    "time_zone",
    "venue_name",
    "wedding_date",
];

/// Looks after what vendors don't take.
pub(crate) struct Behind {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) outbox: Outbox,
    pub(crate) connections: Connections,
    pub(crate) integrations: Integrations,
    /// How long a change may wait before it is told.
    pub(crate) after: SignedDuration,
    pub(crate) clock: Clock,
}

impl Behind {
    /// Until the process stops.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let work = async {
            loop {
                if let Err(error) = self.look().await {
                    tracing::warn!(%error, "what vendors don't take can't be looked at; trying again");
                }
                self.clock.sleep(LOOK_EVERY).await;
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// One look at all integrations.
    ///
    /// # Errors
    /// Those of the store; one integration's failure holds up no other.
    pub(crate) async fn look(&self) -> Result<()> {
        let (mut after, mut failed) = (String::new(), None);
        loop {
            let page = self.connections.list(State::NeedsReconnect, &after, PAGE).await?;
            let Some((_, last)) = page.last() else { return failed.map_or(Ok(()), Err) };
            after = last.clone();
            for (organization, id) in page {
                failed = self.look_at(&organization, &id).await.err().or(failed);
            }
        }
    }

    async fn look_at(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        let integration = match self.integrations.get(organization, id).await {
            Ok(integration) => integration,
            // It was deleted just now.
            Err(Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let late = self.tell_of_late(&integration).await;
        self.tell_of_caught_up(&integration).await.and(late)
    }

    async fn tell_of_late(&self, integration: &Integration) -> Result<()> {
        let before = self.clock.now() - self.after;
        let mut after = String::new();
        loop {
            let page = overdue::keys(&self.store, &integration.id, before, &after, PAGE).await?;
            let (Some(first), Some(last)) = (page.first(), page.last()) else { return Ok(()) };
            let seen = self.seen(integration, first, last).await?;
            after = last.ordering_key.clone();
            for late in page {
                // A newer change than what was told counts once it is late itself.
                if seen.get(&late.ordering_key).is_none_or(|seen| *seen < late.late) {
                    self.tell(integration, &late).await?;
                }
            }
        }
    }

    /// Up to which delivery each key of a page was looked at.
    async fn seen(&self, integration: &Integration, first: &Overdue, last: &Overdue) -> Result<HashMap<String, i64>> {
        let seen: Vec<(String, i64)> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT wedding_id, delivery FROM integration_behind \
                 WHERE integration_id = $1 AND wedding_id >= $2 AND wedding_id <= $3",
            )
            .bind(&integration.id)
            .bind(&first.ordering_key)
            .bind(&last.ordering_key)
            .fetch_all(c)
            .await
        })?;
        Ok(seen.into_iter().collect())
    }

    async fn tell(&self, integration: &Integration, late: &Overdue) -> Result<()> {
        let at = (integration.id.as_str(), late.ordering_key.as_str());
        let waiting = overdue::waiting(&self.store, &self.keys, &integration.organization, at, LETTERS).await?;
        let letters: Vec<Letter> =
            waiting.into_iter().filter_map(|waiting| Letter::open(waiting.content).ok()).collect();
        // What is no wedding's is nothing that a calendar entry could tell.
        let content = content(integration, &letters, late.since);
        let mut tx = self.store.begin().await?;
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO integration_behind (integration_id, wedding_id, organization_id, delivery, since, told) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (integration_id, wedding_id) DO UPDATE SET delivery = $4, since = $5, \
                 told = CASE WHEN integration_behind.told = 1 THEN 1 ELSE $6 END",
            )
            .bind(&integration.id)
            .bind(&late.ordering_key)
            .bind(integration.organization.as_str())
            .bind(late.newest)
            .bind(late.since.as_microsecond())
            .bind(i64::from(content.is_some()))
            .execute(c)
            .await
            .map(drop)
        })?;
        let Some(content) = content else { return tx.commit().await };
        let event =
            event(integration, "integration.behind", (&late.ordering_key, late.newest), self.clock.now(), &content);
        self.put(tx, integration, &event).await
    }

    async fn tell_of_caught_up(&self, integration: &Integration) -> Result<()> {
        let mut after = String::new();
        loop {
            let page: Vec<(String, i64, i64)> = with!(self.store.reader(), c => {
                sqlx::query_as(
                    "SELECT wedding_id, delivery, told FROM integration_behind WHERE integration_id = $1 AND wedding_id > $2 \
                     ORDER BY wedding_id LIMIT $3",
                )
                .bind(&integration.id)
                .bind(&after)
                .bind(PAGE)
                .fetch_all(c)
                .await
            })?;
            let Some((last, ..)) = page.last() else { return Ok(()) };
            after = last.clone();
            for (wedding, delivery, told) in page {
                let outcome = match overdue::ended(&self.store, &integration.id, &wedding, delivery).await? {
                    None => continue,
                    Some(lane::State::Delivered) => Outcome::Delivered,
                    Some(_) => Outcome::GivenUp,
                };
                self.settle(integration, (&wedding, delivery), (told == 1).then_some(outcome)).await?;
            }
        }
    }

    /// The vendor has it, or never will: then it is a dead letter, and shown as such. No outcome: nobody was told.
    async fn settle(
        &self,
        integration: &Integration,
        (wedding, delivery): (&str, i64),
        outcome: Option<Outcome>,
    ) -> Result<()> {
        let mut tx = self.store.begin().await?;
        with!(tx.on(), c => {
            sqlx::query("DELETE FROM integration_behind WHERE integration_id = $1 AND wedding_id = $2 AND delivery = $3")
                .bind(&integration.id)
                .bind(wedding)
                .bind(delivery)
                .execute(c)
                .await
                .map(drop)
        })?;
        let Some(outcome) = outcome else { return tx.commit().await };
        self.put(tx, integration, &over(integration, wedding, delivery, outcome, self.clock.now())).await
    }

    async fn put(&self, mut tx: Tx, integration: &Integration, event: &wire::Event) -> Result<()> {
        let key = self.keys.of(&integration.organization).await?;
        self.outbox.put_in(&mut tx, &key, event).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(())
    }
}

/// How it ended with what a vendor was behind with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    /// The vendor will never have it by us: it refused it, or its integration was deleted.
    GivenUp,
}

/// What tells that a vendor is behind with a wedding no more.
pub(crate) fn over(
    integration: &Integration,
    wedding: &str,
    delivery: i64,
    outcome: Outcome,
    now: Timestamp,
) -> wire::Event {
    let outcome = match outcome {
        Outcome::Delivered => "delivered",
        Outcome::GivenUp => "given_up",
    };
    let more = json!({ "wedding_id": wedding, "since": now.to_string(), "outcome": outcome });
    event(integration, "integration.caught_up", (wedding, delivery), now, &notice::content(integration, more))
}

fn event(
    integration: &Integration,
    type_: &str,
    (wedding, delivery): (&str, i64),
    now: Timestamp,
    content: &Value,
) -> wire::Event {
    let mut event = notice::event(integration, type_, &format!("behind.{delivery}"), now, content);
    let metadata = event.metadata.get_or_insert_default();
    wedding.clone_into(&mut metadata.wedding_id);
    if metadata.supplier_id.is_empty() {
        content["supplier_id"].as_str().unwrap_or_default().clone_into(&mut metadata.supplier_id);
    }
    event
}

/// What is said of letters, the newest first; none: they are about no wedding.
fn content(integration: &Integration, letters: &[Letter], since: Timestamp) -> Option<Value> {
    let newest = letters.first().filter(|letter| !letter.wedding_id.is_empty())?;
    let wedding = letters.iter().find(|letter| letter.kind == "wedding").unwrap_or(newest);
    let known: BTreeMap<String, Value> = wedding.fields();
    let fields: BTreeMap<&str, &Value> = FIELDS.iter().filter_map(|name| Some((*name, known.get(*name)?))).collect();
    // The oldest letter says what the vendor has.
    let mut old = BTreeMap::new();
    let mut changed: Vec<&str> = Vec::new();
    for letter in letters {
        old.extend(letter.old().into_iter().filter(|(name, _)| FIELDS.contains(&name.as_str())));
        changed.extend(letter.changed.iter().map(String::as_str));
    }
    changed.sort_unstable();
    changed.dedup();
    let supplier_id = [&integration.settings.supplier_id, &newest.supplier_id];
    let supplier_id = supplier_id.into_iter().find(|id| !id.is_empty()).cloned().unwrap_or_default();
    Some(notice::content(
        integration,
        json!({
            "supplier_id": supplier_id,
            "wedding_id": newest.wedding_id,
            "summary": summary(&integration.settings.vendor, &fields, &old, letters.len(), since),
            "fields": fields,
            "old": old,
            "changed": changed,
            "pending": letters.len(),
            "since": since.to_string(),
            "next_step": "note the change in that system by hand if it can't wait; it is sent there as soon as it answers",
        }),
    ))
}

/// In plain words, one line.
fn summary(
    vendor: &str,
    fields: &BTreeMap<&str, &Value>,
    old: &BTreeMap<String, Value>,
    pending: usize,
    since: Timestamp,
) -> String {
    let show = |value: &Value| match value {
        Value::String(text) => text.chars().filter(|c| !c.is_control()).take(VALUE_CHARS).collect(),
        other => other.to_string().chars().take(VALUE_CHARS).collect::<String>(),
    };
    let changes = old.iter().filter_map(|(name, before)| {
        let after = fields.get(name.as_str())?;
        Some(format!("{}: {} -> {}", name.replace('_', " "), show(before), show(after)))
    });
    let changes: Vec<String> = changes.collect();
    let what = if changes.is_empty() { format!("{pending} changes") } else { changes.join("; ") };
    let text = format!("{vendor} has not taken since {since}: {what}");
    text.chars().take(SUMMARY_CHARS).collect()
}
