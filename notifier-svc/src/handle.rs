//! Events as the router hands them out: read, learnt from, told.
//!
//! Everything happens in `take`, one event after the other, so that a change of the directory is in force for the next
//! event. An event is acknowledged once what it comes to is recorded; nothing of it is sent before.

use std::sync::Arc;

use bytes::Bytes;
use chassis::{
    consume,
    error::{Error, Result},
    id::OrganizationId,
};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use jiff::Timestamp;
use proto::{
    common::v1::Priority,
    router::v1::{self as wire, destination::Kind, event::Payload},
};

use crate::{
    behind::{BEHIND, CAUGHT_UP},
    event::{Change, Event, Operation, Position, Record},
    kept::Kept,
    notification::NewNotification,
    tell::{Notifier, Telling},
    variable::of_event,
    wedding, workflow,
};

/// Takes events in.
pub(crate) struct Handler(pub(crate) Arc<Notifier>);

impl consume::Handler for Handler {
    async fn take(&self, consumed: wire::ConsumedEvent) -> Result<BoxFuture<'static, Result<()>>> {
        let (Some(event), plan) = (consumed.event, consumed.plan.unwrap_or_default()) else {
            return Ok(ready(Ok(())).boxed());
        };
        match read(event) {
            Some(event) => {
                pass_over(&event, self.0.directory.learn(&event).await)?;
                pass_over(&event, wedding::learn(&self.0.store, &event, self.0.clock.now_micros()).await)?;
                for wanted in wanted(plan) {
                    pass_over(&event, self.wanted(&event, &wanted).await)?;
                }
            }
            // The router checked it; were it ever to come, waiting for another would hold up all that follow.
            None => tracing::error!("an event without a well-formed organization is passed over"),
        }
        Ok(ready(Ok(())).boxed())
    }
}

impl Handler {
    async fn wanted(&self, event: &Event, wanted: &Wanted) -> Result<()> {
        match wanted.workflow.as_str() {
            CAUGHT_UP => self.0.caught_up(event).await,
            BEHIND => {
                self.tell(event, wanted).await?;
                self.0.is_behind(event).await
            }
            _ => self.tell(event, wanted).await,
        }
    }

    async fn tell(&self, event: &Event, wanted: &Wanted) -> Result<()> {
        let workflow = workflow::find(&wanted.workflow);
        let telling = Telling {
            notification: NewNotification {
                organization: event.organization.clone(),
                workflow: wanted.workflow.clone(),
                event_id: event.id.clone(),
                event_uid: event.uid.clone(),
                priority: wanted.priority,
                collapse_key: wanted.collapse_key.clone(),
                request: Vec::new(),
                override_by: String::new(),
                override_reason: String::new(),
                confirms: None,
            },
            workflow,
            kept: Kept {
                variables: of_event(workflow, &wanted.workflow, event),
                offered: wanted.channels.clone(),
                wedding: event.wedding.clone(),
                supplier: event.supplier.clone(),
                couple: event.couple.clone(),
                ..Kept::default()
            },
            is_change: event.change.is_some(),
            escalates: None,
        };
        let told = self.0.tell(&telling).await?;
        tracing::debug!(
            event.id,
            notification.id = told.id,
            duplicate = told.duplicate,
            workflow = wanted.workflow,
            "told"
        );
        Ok(())
    }
}

/// What no store will ever take of an event is passed over: waiting for it would hold up all that follow, of everybody.
fn pass_over(event: &Event, done: Result<()>) -> Result<()> {
    let Err(error) = &done else { return Ok(()) };
    if !is_its_own(error) {
        return done;
    }
    tracing::error!(%error, event.id, organization = %event.organization, "a part of an event can't be stored and is passed over");
    metrics::counter!("notifier_passed_over_total").increment(1);
    Ok(())
}

/// Whether an event's own content is at fault, not the store: PostgreSQL's class 22, data exceptions.
fn is_its_own(error: &Error) -> bool {
    let Error::Internal(cause) = error else { return matches!(error, Error::Invalid { .. }) };
    let Some(sqlx::Error::Database(cause)) = cause.downcast_ref::<sqlx::Error>() else { return false };
    cause.code().is_some_and(|code| code.len() == 5 && code.starts_with("22"))
}

/// A notification that the plan asks for.
struct Wanted {
    workflow: String,
    channels: Vec<String>,
    collapse_key: String,
    priority: i64,
}

fn wanted(plan: wire::Plan) -> Vec<Wanted> {
    let of_plan = plan.priority();
    let notification = |destination: wire::Destination| {
        let priority = match destination.priority() {
            Priority::Unspecified => of_plan,
            own => own,
        };
        match destination.kind {
            Some(Kind::Notification(notification)) => Some(Wanted {
                workflow: notification.workflow,
                channels: notification.channels,
                collapse_key: destination.collapse_key,
                priority: number(priority),
            }),
            _ => None,
        }
    };
    plan.destinations.into_iter().filter_map(notification).collect()
}

/// 1 CRITICAL to 4 LOW; what isn't said is NORMAL.
pub(crate) fn number(priority: Priority) -> i64 {
    match priority {
        Priority::Unspecified => Priority::Normal as i64,
        known => known as i64,
    }
}

fn read(event: wire::Event) -> Option<Event> {
    let metadata = event.metadata.unwrap_or_default();
    let position = event.position.unwrap_or_default();
    let (change, old, new) = match event.payload {
        Some(Payload::Change(change)) => {
            let operation = match change.operation() {
                wire::Operation::Insert => Operation::Insert,
                wire::Operation::Delete => Operation::Delete,
                wire::Operation::Update | wire::Operation::Unspecified => Operation::Update,
            };
            (Some(Change { table: change.table, operation }), record(&change.old_record), record(&change.new_record))
        }
        Some(Payload::Content(content)) => (None, Record::new(), record(&content.data)),
        None => (None, Record::new(), Record::new()),
    };
    let known = |id: String| Some(id).filter(|id| !id.is_empty());
    Some(Event {
        organization: OrganizationId::parse(&event.organization_id).ok()?,
        id: event.id,
        uid: event.uid,
        name: event.r#type,
        wedding: known(metadata.wedding_id),
        supplier: known(metadata.supplier_id),
        couple: known(metadata.couple_id),
        position: Position { log_id: position.log_id, sequence: i64::try_from(position.sequence).unwrap_or(i64::MAX) },
        at: event.time.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()).unwrap_or_default(),
        change,
        new,
        old,
    })
}

/// Content that is no JSON object says nothing to templates.
fn record(bytes: &Bytes) -> Record {
    serde_json::from_slice(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chassis::{store, testing::on_each_engine, with};

    use super::*;

    #[tokio::test]
    async fn what_a_store_never_takes_is_the_events_fault_and_what_it_cant_do_is_not() {
        on_each_engine(&[&store::MIGRATIONS], async |store| {
            let of = async |query: &'static str, text: &str| {
                let done = with!(store.reader(), c => sqlx::query(query).bind(text).execute(c).await.map(drop));
                done.map_err(Error::from).err()
            };
            let nul = of("SELECT CAST($1 AS VARCHAR)", "\0").await;
            assert!(nul.as_ref().is_none_or(is_its_own), "{nul:?}");
            assert_eq!(nul.is_some(), matches!(store.reader(), chassis::store::Engine::Postgres(_)));
            let missing = of("SELECT $1 FROM nowhere", "a").await.unwrap();
            assert!(!is_its_own(&missing), "{missing:?}");
        })
        .await;
        assert!(!is_its_own(&Error::Unavailable("the store is away".into())));
    }
}
