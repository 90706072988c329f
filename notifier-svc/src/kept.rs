//! What is kept of a notification while some of its messages wait: enough to decide and to render them anew.

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys, place},
    store::Store,
    with,
};
use serde::{Deserialize, Serialize};

use crate::{
    category,
    policy::Urgency,
    recipient::Named,
    variable::Variables,
    workflow::{Workflow, find},
};

/// What was to be told, and to whom.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) variables: Variables,
    /// Channels that are offered; empty: the person chooses.
    pub(crate) offered: Vec<String>,
    pub(crate) wedding: Option<String>,
    pub(crate) supplier: Option<String>,
    pub(crate) couple: Option<String>,
    /// Whom the sender named.
    pub(crate) chosen: Vec<String>,
    /// Empty: the workflow's own.
    #[serde(default)]
    pub(crate) category: String,
    /// Somebody who may asked to pass over limits and quiet hours.
    #[serde(default)]
    pub(crate) overridden: bool,
}

impl Kept {
    pub(crate) fn named(&self) -> Named<'_> {
        Named {
            wedding: self.wedding.as_deref(),
            supplier: self.supplier.as_deref(),
            couple: self.couple.as_deref(),
            chosen: &self.chosen,
        }
    }

    pub(crate) fn category<'a>(&'a self, workflow: &str) -> &'a str {
        if self.category.is_empty() { category::of(workflow) } else { &self.category }
    }

    pub(crate) fn urgency(&self, workflow: &str, priority: i64) -> Urgency {
        Urgency::of(workflow, self.category(workflow), priority, self.overridden)
    }

    /// As it is stored with its notification.
    pub(crate) fn seal(&self, key: &DataKey, notification: &str) -> Result<Vec<u8>> {
        let plain = serde_json::to_vec(self).map_err(Error::internal)?;
        Ok(key.seal(&kept_place(notification), &plain))
    }
}

fn kept_place(notification: &str) -> Vec<u8> {
    place("notifications", "kept", notification)
}

/// A notification of which something waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: String,
    pub(crate) organization: OrganizationId,
    /// The name that was asked for.
    pub(crate) asked: String,
    pub(crate) workflow: &'static Workflow,
    pub(crate) event_id: String,
    pub(crate) event_uid: String,
    pub(crate) priority: i64,
    pub(crate) kept: Kept,
}

#[derive(sqlx::FromRow)]
struct Row {
    organization_id: String,
    workflow: String,
    event_id: String,
    event_uid: String,
    priority: i64,
    kept: Option<Vec<u8>>,
}

/// Reads a notification of which something waits.
///
/// # Errors
/// `Error::NotFound` if nothing is kept of it.
pub(crate) async fn read(store: &Store, keys: &DataKeys, id: &str) -> Result<Waiting> {
    let not_found = || Error::NotFound("what is kept of a notification".into());
    let row: Option<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT organization_id, workflow, event_id, event_uid, priority, kept FROM notifications WHERE id = $1",
    ).bind(id).fetch_optional(c).await)?;
    let row = row.ok_or_else(not_found)?;
    let organization = OrganizationId::parse(&row.organization_id)?;
    let sealed = Bytes::from(row.kept.ok_or_else(not_found)?);
    let plain = keys.of(&organization).await?.open(&kept_place(id), &sealed)?;
    Ok(Waiting {
        id: id.to_owned(),
        organization,
        workflow: find(&row.workflow),
        asked: row.workflow,
        event_id: row.event_id,
        event_uid: row.event_uid,
        priority: row.priority,
        kept: serde_json::from_slice(&plain).map_err(Error::internal)?,
    })
}
