//! Tells when a vendor has not taken a change for too long, so that its supplier learns of it another way, and when it has.
//!
//! Each change is told once: what was told is kept by the newest delivery that waited then, and written with the event. A
//! newer change of the same wedding is told when it has waited for as long itself; so a wedding is told of at most once in
//! the stated time. Only integrations that were ever connected are looked at, a key at a time.

use std::{collections::BTreeMap, time::Duration};

use chassis::{
    clock::Clock,
    error::{Error, Result},
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
    /// Those of the store.
    pub(crate) async fn look(&self) -> Result<()> {
        let mut after = String::new();
        loop {
            let page = self.connections.list(State::NeedsReconnect, &after, PAGE).await?;
            let Some((_, last)) = page.last() else { return Ok(()) };
            after = last.clone();
            for (organization, id) in page {
                match self.integrations.get(&organization, &id).await {
                    Ok(integration) => {
                        self.tell_of_late(&integration).await?;
                        self.tell_of_caught_up(&integration).await?;
                    }
                    Err(Error::NotFound(_)) => self.forget(&id).await?,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    async fn tell_of_late(&self, integration: &Integration) -> Result<()> {
        let before = self.clock.now() - self.after;
        let mut after = String::new();
        loop {
            let page = overdue::keys(&self.store, &integration.id, before, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.ordering_key.clone();
            for late in page {
                // A newer change than what was told counts once it is late itself.
                let told = self.told(integration, &late.ordering_key).await?;
                if told.is_none_or(|told| told < late.late) {
                    self.tell(integration, &late).await?;
                }
            }
        }
    }

    async fn told(&self, integration: &Integration, wedding: &str) -> Result<Option<i64>> {
        Ok(with!(self.store.reader(), c => {
            sqlx::query_scalar("SELECT delivery FROM integration_behind WHERE integration_id = $1 AND wedding_id = $2")
                .bind(&integration.id)
                .bind(wedding)
                .fetch_optional(c)
                .await
        })?)
    }

    async fn tell(&self, integration: &Integration, late: &Overdue) -> Result<()> {
        let at = (integration.id.as_str(), late.ordering_key.as_str());
        let waiting = overdue::waiting(&self.store, &self.keys, &integration.organization, at, LETTERS).await?;
        let letters: Vec<Letter> =
            waiting.into_iter().filter_map(|waiting| Letter::open(waiting.content).ok()).collect();
        // What is no wedding's is nothing that a calendar entry could tell.
        let Some(content) = content(integration, &letters, late.since) else { return Ok(()) };
        let event = self.event(integration, "integration.behind", late, &content);
        let mut tx = self.store.begin().await?;
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO integration_behind (integration_id, wedding_id, organization_id, delivery, since) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (integration_id, wedding_id) DO UPDATE SET delivery = $4, since = $5",
            )
            .bind(&integration.id)
            .bind(&late.ordering_key)
            .bind(integration.organization.as_str())
            .bind(late.newest)
            .bind(late.since.as_microsecond())
            .execute(c)
            .await
            .map(drop)
        })?;
        self.put(tx, integration, &event).await
    }

    async fn tell_of_caught_up(&self, integration: &Integration) -> Result<()> {
        let mut after = String::new();
        loop {
            let page: Vec<(String, i64)> = with!(self.store.reader(), c => {
                sqlx::query_as(
                    "SELECT wedding_id, delivery FROM integration_behind WHERE integration_id = $1 AND wedding_id > $2 \
                     ORDER BY wedding_id LIMIT $3",
                )
                .bind(&integration.id)
                .bind(&after)
                .bind(PAGE)
                .fetch_all(c)
                .await
            })?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = last.clone();
            for (wedding, delivery) in page {
                match overdue::ended(&self.store, &integration.id, &wedding, delivery).await? {
                    None => {}
                    ended => {
                        self.settle(integration, &wedding, delivery, ended == Some(lane::State::Delivered)).await?
                    }
                }
            }
        }
    }

    /// The vendor has it, or never will: that is a dead letter, and shown as such.
    async fn settle(&self, integration: &Integration, wedding: &str, delivery: i64, delivered: bool) -> Result<()> {
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
        if !delivered {
            return tx.commit().await;
        }
        let late =
            Overdue { ordering_key: wedding.to_owned(), since: self.clock.now(), late: delivery, newest: delivery };
        let more = json!({ "wedding_id": wedding, "since": late.since.to_string() });
        let content = notice::content(integration, more);
        let event = self.event(integration, "integration.caught_up", &late, &content);
        self.put(tx, integration, &event).await
    }

    fn event(&self, integration: &Integration, type_: &str, late: &Overdue, content: &Value) -> wire::Event {
        let change = format!("behind.{}", late.newest);
        let mut event = notice::event(integration, type_, &change, self.clock.now(), content);
        event.metadata.get_or_insert_default().wedding_id = late.ordering_key.clone();
        if let Some(metadata) = &mut event.metadata
            && metadata.supplier_id.is_empty()
        {
            metadata.supplier_id = content["supplier_id"].as_str().unwrap_or_default().to_owned();
        }
        event
    }

    async fn put(&self, mut tx: Tx, integration: &Integration, event: &wire::Event) -> Result<()> {
        let key = self.keys.of(&integration.organization).await?;
        self.outbox.put_in(&mut tx, &key, event).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(())
    }

    async fn forget(&self, integration_id: &str) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM integration_behind WHERE integration_id = $1")
                .bind(integration_id)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }
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
