//! Events about integrations: written with the change that they tell of, published from there, in order.
//!
//! Guarantee: each change is published once. Its event's id is made of what changed, so that the router drops a repeat; and
//! a change that was undone before it could be told is told all the same, with the one that undid it behind it.
//! Bound: what can add a row is bounded itself (changes of state, held apart by hysteresis).

use std::{sync::Arc, time::Duration};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use prost::Message as _;
use proto::router::v1 as wire;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{integration::Integration, router::Router, rpc::wire::print_timestamp};

/// How often it is looked without being told, and how long after the store or the router was away.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const AT_ONCE: i64 = 50;

/// The event that tells of one change of `integration`; `change` names the change among all of this integration.
pub(crate) fn event(
    integration: &Integration,
    type_: &str,
    change: &str,
    at: Timestamp,
    content: &serde_json::Value,
) -> wire::Event {
    let content =
        wire::Content { content_type: "application/json".to_owned(), data: content.to_string().into_bytes().into() };
    wire::Event {
        id: format!("{type_}:{}:{change}", integration.id),
        organization_id: integration.organization.to_string(),
        r#type: type_.to_owned(),
        source: "vendor-sync".to_owned(),
        subject: integration.id.clone(),
        time: Some(print_timestamp(at)),
        payload: Some(wire::event::Payload::Content(content)),
        metadata: Some(wire::Metadata {
            supplier_id: integration.settings.supplier_id.clone(),
            ..wire::Metadata::default()
        }),
        ..wire::Event::default()
    }
}

/// Writes `event` so that it is published once `tx` is committed.
///
/// # Errors
/// `Error::Unavailable` while the store is away.
pub(crate) async fn put_in(tx: &mut Tx, keys: &DataKeys, event: &wire::Event) -> Result<()> {
    let organization = OrganizationId::parse(&event.organization_id)?;
    let sealed = keys.of(&organization).await?.seal(&place("notices", "event", &event.id), &event.encode_to_vec());
    with!(tx.on(), c => {
        sqlx::query("INSERT INTO notices (organization_id, event_id, event) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(organization.as_str())
            .bind(&event.id)
            .bind(&sealed)
            .execute(c)
            .await
            .map(drop)
    })?;
    Ok(())
}

/// Publishes what waits, until the process stops; `waiting` says that there is more.
pub(crate) async fn run(
    store: Store,
    keys: DataKeys,
    router: Router,
    waiting: Arc<Notify>,
    stopping: CancellationToken,
) {
    loop {
        match publish(&store, &keys, &router).await {
            Ok(true) => {}
            Ok(false) => tokio::select! {
                () = stopping.cancelled() => return,
                () = waiting.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "events about integrations can't be published yet; trying again");
                if stopping.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Whether there may be more.
async fn publish(store: &Store, keys: &DataKeys, router: &Router) -> Result<bool> {
    let waiting: Vec<(i64, String, String, Vec<u8>)> = with!(store.reader(), c => {
        sqlx::query_as("SELECT sequence, organization_id, event_id, event FROM notices ORDER BY sequence LIMIT $1")
            .bind(AT_ONCE)
            .fetch_all(c)
            .await
    })?;
    let full = i64::try_from(waiting.len()).is_ok_and(|count| count == AT_ONCE);
    for (sequence, organization, id, sealed) in waiting {
        let key = keys.of(&OrganizationId::parse(&organization)?).await?;
        let event = wire::Event::decode(&*key.open(&place("notices", "event", &id), &sealed)?);
        match router.publish(event.map_err(Error::internal)?).await {
            Err(error) if error.is_retryable() => return Err(error),
            // Trying again can't help: it is said here instead.
            Err(error) => tracing::error!(event.id = id, %error, "the router refuses an event about an integration"),
            Ok(()) => {}
        }
        with!(store.writer(), c => {
            sqlx::query("DELETE FROM notices WHERE sequence = $1").bind(sequence).execute(c).await.map(drop)
        })?;
    }
    Ok(full)
}
