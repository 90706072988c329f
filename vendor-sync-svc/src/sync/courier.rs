//! The one courier of the dispatcher: webhooks go by their endpoint, letters to vendors by their account.
//!
//! [`carry`](super::carry) does what a letter asks for; this says what came of it for the lane. A vendor that throttles,
//! fails or wants a new credential has its lane wait with all that is in it; what it refuses is a dead letter with its reason;
//! what may have arrived and can't be looked up is shown as unknown and never sent twice. What a vendor says of a failure may
//! name people: it is kept with the attempt, sealed, and the delivery shows of which kind the failure was.

use std::sync::Arc;

use bytes::Bytes;
use chassis::lane::{Attempted, Blame, Courier, Delivery, Outcome};

use super::{
    account::{Account, Accounts},
    carry::{Carried, Carrier},
    letter::Letter,
};
use crate::{
    connector::{CallError, Class},
    webhook::Webhooks,
};

/// Carries everything that this service sends.
pub(crate) struct Couriers {
    pub(crate) webhooks: Webhooks,
    pub(crate) vendors: Arc<std::sync::OnceLock<Vendors>>,
}

/// Carries letters to vendors.
pub(crate) struct Vendors {
    pub(crate) accounts: Accounts,
    pub(crate) carrier: Carrier,
}

impl Courier for Couriers {
    async fn attempt(&self, delivery: Arc<Delivery>) -> Attempted {
        let vendors = self.vendors.get();
        match vendors.and_then(|vendors| Some((vendors, vendors.accounts.get(&delivery.lane_id)?))) {
            // Boxed: else each webhook's attempt, of which there are many more, would be as large.
            Some((vendors, account)) => Box::pin(vendors.attempt(&account, &delivery)).await,
            None => self.webhooks.attempt(delivery).await,
        }
    }

    async fn closed(&self, lane_id: &str, reason: &str) {
        if self.vendors.get().is_some_and(|vendors| vendors.accounts.get(lane_id).is_some()) {
            tracing::error!(integration.id = lane_id, reason, "an integration's lane was closed");
            return;
        }
        self.webhooks.closed(lane_id, reason).await;
    }
}

impl Vendors {
    async fn attempt(&self, account: &Arc<Account>, delivery: &Delivery) -> Attempted {
        let letter = match Letter::open(delivery.content.clone()) {
            Ok(letter) => letter,
            Err(error) => {
                tracing::error!(delivery.id, ?error, "a stored letter can't be read");
                return ended(Outcome::Permanent, "body", "the stored message can't be read");
            }
        };
        match self.carrier.carry(account, &letter, delivery).await {
            Ok(carried) => done(carried),
            Err(error) => self.failed(account, error).await,
        }
    }

    async fn failed(&self, account: &Account, error: CallError) -> Attempted {
        if error.class == Class::Unauthorized {
            // Its lane waits from now on, if nobody may be asked until it is connected again.
            let integration = &account.integration;
            if let Err(error) = self.accounts.refresh(&integration.organization, &integration.id).await {
                tracing::warn!(%error, integration.id, "whether an integration is still connected is asked again later");
            }
        }
        failed(&error, account.connector.is_repeatable())
    }
}

fn done(carried: Carried) -> Attempted {
    match carried {
        Carried::Applied => ended(Outcome::Delivered, "delivered", ""),
        Carried::HandedOver => ended(Outcome::Delivered, "handed_over", "handed over, awaiting acceptance"),
        Carried::Known => ended(Outcome::Delivered, "echo", "the vendor has it already"),
        Carried::NotWanted(reason) => ended(Outcome::Delivered, "not_wanted", &reason),
    }
}

fn failed(error: &CallError, repeatable: bool) -> Attempted {
    let retry = |blame| Outcome::Retry { after: error.retry_after, blame };
    let outcome = match error.class {
        Class::Permanent | Class::Duplicate | Class::Gone => Outcome::Permanent,
        Class::Retry | Class::Throttled => retry(Blame::Destination),
        // Not the fault of how busy or broken it is: it is to be tried again as soon as it is connected again.
        Class::Unauthorized | Class::Conflict => retry(Blame::Message),
        Class::Unknown if repeatable => retry(Blame::Destination),
        Class::Unknown => Outcome::Unknown,
    };
    let response = Bytes::from(error.reason.clone());
    Attempted { response, ..ended(outcome, error.class.as_str(), error.class.words()) }
}

fn ended(outcome: Outcome, class: &'static str, reason: &str) -> Attempted {
    Attempted { outcome, status_code: None, class, error: reason.to_owned(), response: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(class: Class, repeatable: bool) -> Outcome {
        failed(&CallError { class, ..CallError::permanent("no") }, repeatable).outcome
    }

    #[test]
    fn what_is_refused_is_dead_and_what_may_have_arrived_is_not_sent_twice() {
        for class in [Class::Permanent, Class::Duplicate, Class::Gone] {
            assert_eq!(outcome(class, true), Outcome::Permanent, "{class:?}");
        }
        assert_eq!(outcome(Class::Unknown, false), Outcome::Unknown);
        assert!(matches!(outcome(Class::Unknown, true), Outcome::Retry { .. }));
    }

    #[test]
    fn a_vendors_words_are_kept_where_they_are_sealed_and_nowhere_else() {
        let error = CallError::permanent("anna@example.com is not subscribed");
        let attempted = failed(&error, true);
        assert_eq!(attempted.error, "it is refused");
        assert_eq!(attempted.response, "anna@example.com is not subscribed");
        assert!(!error.to_string().contains("anna"), "what is logged");
    }

    #[test]
    fn a_throttle_waits_as_long_as_the_vendor_says() {
        let hour = Duration::from_secs(3600);
        let attempted = failed(&CallError::throttled(hour, "slow down"), true);
        assert_eq!(attempted.outcome, Outcome::Retry { after: Some(hour), blame: Blame::Destination });
    }

    #[test]
    fn a_refused_credential_opens_no_breaker() {
        assert_eq!(outcome(Class::Unauthorized, true), Outcome::Retry { after: None, blame: Blame::Message });
    }

    #[test]
    fn what_was_handed_over_says_so() {
        let attempted = done(Carried::HandedOver);
        assert_eq!(
            (attempted.outcome, attempted.error.as_str()),
            (Outcome::Delivered, "handed over, awaiting acceptance")
        );
    }
}
