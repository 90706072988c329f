//! Events that tell of changes which nobody can list: a table was emptied by TRUNCATE, or the slot was lost. They go to
//! every organization that may have had rows there: those that the settings name, or all where a column says whose.

use std::collections::BTreeSet;

use chassis::id::OrganizationId;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    CaptureError, Session,
    config::Owner,
    intake::{Intake, WINDOW},
    position::Origin,
    state::Refusal,
};
use crate::{
    event::{Event, Origin as How, Payload},
    event_type::EventType,
    organizations::Organizations,
};

/// Organizations that are read at once.
const PAGE: u32 = 500;

/// Says that changes before this generation may be missing, and waits until that is durable.
pub(super) async fn resync(session: &Session<'_>, origin: &Origin, reason: &str) -> Result<(), CaptureError> {
    let source = session.source;
    let mut tables: Vec<String> = source.owners.keys().map(ToString::to_string).collect();
    tables.sort();
    let read_anew: Vec<String> = source.snapshot.iter().map(ToString::to_string).collect();
    let content = json!({"source": source.name, "reason": reason, "tables": tables, "read_anew": read_anew});
    let mut intake = session.intake();
    let now = session.publisher.clock.now();
    let organizations = concerned(&session.publisher.organizations, source.owners.values()).await?;
    let notice = Notice { id: origin.of_notice(), type_: "capture.resync", at: now, content };
    notice.publish(&mut intake, &source.name, organizations).await?;
    intake.drain(0).await
}

/// One text for many organizations.
pub(super) struct Notice {
    pub(super) id: String,
    pub(super) type_: &'static str,
    pub(super) at: Timestamp,
    pub(super) content: Value,
}

impl Notice {
    pub(super) async fn publish(
        &self,
        intake: &mut Intake<'_>,
        table: &str,
        organizations: BTreeSet<OrganizationId>,
    ) -> Result<(), CaptureError> {
        let data = bytes::Bytes::from(self.content.to_string());
        for organization in organizations {
            let event = Event {
                organization,
                id: self.id.clone(),
                type_: EventType::parse(self.type_)?,
                payload: Payload::Content { content_type: "application/json".to_owned(), data: data.clone() },
                ..intake.blank(self.at, How::Realtime)
            };
            let (event_id, table) = (self.id.clone(), table.to_owned());
            intake.publish(event, Refusal { event_id, table, operation: "notice", key: String::new() }).await?;
            intake.drain(WINDOW).await?;
        }
        Ok(())
    }
}

/// Everybody who may have rows of tables with these owners.
pub(super) async fn concerned(
    organizations: &Organizations,
    owners: impl Iterator<Item = &Owner>,
) -> Result<BTreeSet<OrganizationId>, CaptureError> {
    let (mut concerned, mut all) = (BTreeSet::new(), false);
    for owner in owners {
        match owner {
            Owner::Organization(organization) => drop(concerned.insert(organization.clone())),
            Owner::Column(_) => all = true,
        }
    }
    if !all {
        return Ok(concerned);
    }
    let mut after = String::new();
    loop {
        let page = organizations.list(&after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(concerned) };
        last.id.as_str().clone_into(&mut after);
        concerned.extend(page.into_iter().map(|organization| organization.id));
    }
}
