//! A person's digest as a notification of its own.

use chassis::id::{OrganizationId, uuid_text};

use super::{Verdict, WORKFLOW};
use crate::{
    category::MARKETING,
    digest::Gathered,
    escalation,
    kept::Waiting,
    notification::{NewNotification, digest},
};

/// Its first message names it.
pub(super) fn digest_of(
    organization: &OrganizationId,
    recipient: &str,
    digests: &[Gathered<Verdict>],
    first: &[u8; 16],
) -> NewNotification {
    let uid = uuid_text(digest(&[WORKFLOW, organization.as_str(), recipient, &uuid_text(*first)]));
    let urgent = digests.iter().flat_map(|digest| &digest.holds).map(|verdict| verdict.waiting.priority).min();
    NewNotification {
        organization: organization.clone(),
        workflow: WORKFLOW.to_owned(),
        event_id: format!("digest-{uid}"),
        event_uid: uid,
        priority: urgent.unwrap_or(3),
        collapse_key: String::new(),
        request: Vec::new(),
        override_by: String::new(),
        override_reason: String::new(),
        confirms: None,
    }
}

/// What a digest has no place for: the link that confirms it, or what commercial mail must carry.
pub(super) fn goes_alone(waiting: &Waiting) -> bool {
    escalation::asks(&waiting.asked) || waiting.kept.category(&waiting.asked) == MARKETING
}
