//! How many test events an organization may have sent: each is a request to an address that somebody chose, at once.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use jiff::Timestamp;

use crate::hourly::{Log, WINDOW_MICROS};

/// Of one organization, in any hour.
pub(crate) const MOST: usize = 60;
/// Organizations that are kept in mind.
const ORGANIZATIONS: usize = 65_536;

/// What each organization has had sent. Forgotten by a restart.
#[derive(Debug, Default)]
pub(crate) struct Tried(Mutex<HashMap<OrganizationId, Log>>);

impl Tried {
    /// Counts one.
    ///
    /// # Errors
    /// `Error::Exhausted` with the time until there is room.
    pub(crate) fn admit(&self, organization: &OrganizationId, now: Timestamp) -> Result<()> {
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.as_microsecond();
        if logs.len() >= ORGANIZATIONS && !logs.contains_key(organization) {
            logs.retain(|_, log| log.holds_since(now - WINDOW_MICROS));
            // If all of them had some sent within the hour, all get their hour anew.
            if logs.len() >= ORGANIZATIONS {
                logs.clear();
            }
        }
        let admitted = logs.entry(organization.clone()).or_default().admit(MOST, now);
        admitted.map_err(|retry_after| Error::Exhausted {
            reason: format!("an organization may have {MOST} test events sent in an hour"),
            retry_after,
        })
    }
}

#[cfg(test)]
mod tests {
    use chassis::testing::noon;
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn an_organization_has_its_own_hour_of_test_events() {
        let (tried, acme) = (Tried::default(), OrganizationId::parse("acme").expect("one"));
        for _ in 0..MOST {
            tried.admit(&acme, noon()).expect("room");
        }
        let refused = tried.admit(&acme, noon() + SignedDuration::from_mins(10));
        let in_time = |wait: std::time::Duration| wait.as_secs() == 50 * 60;
        assert!(matches!(refused, Err(Error::Exhausted { retry_after, .. }) if in_time(retry_after)));
        tried.admit(&OrganizationId::parse("other").expect("one"), noon()).expect("its own");
        tried.admit(&acme, noon() + SignedDuration::from_hours(1)).expect("room again");
    }
}
