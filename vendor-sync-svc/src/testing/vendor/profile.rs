//! The receivers of the generic profiles: a photography CRM and a venue's system, which hold what comes to the profiles'
//! required headers and bodies, and verify its signature with the public library; and one that takes any signed body, for
//! planners, caterers, galleries and Zapier-like hooks.

use jiff::Timestamp;
use serde_json::Value;
use standardwebhooks::Webhook;

use super::{Asked, Said, Vendor};

/// What it expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A photography CRM.
    Crm,
    /// A venue's system.
    Venue,
    /// Anything that is signed.
    Any,
}

/// A receiver.
pub struct Receiver {
    profile: Profile,
    key: String,
    verifier: Webhook,
    /// Bodies that it took, in their order, each id once.
    pub taken: Vec<Value>,
    ids: Vec<String>,
    /// Why it refused what it refused.
    pub refused: Vec<String>,
}

const CRM: &[&str] = &[
    "event_type",
    "wedding_id",
    "client_name",
    "wedding_date",
    "ceremony_time",
    "venue_name",
    "guest_count",
    "photographer_notes",
    "updated_at",
];
const TIMELINE: &[&str] = &["client_id", "shoot_date", "location", "timeline", "special_requests"];
const VENUE: &[&str] = &[
    "booking_id",
    "event_date",
    "party_size",
    "setup_time",
    "ceremony_start",
    "reception_start",
    "special_requirements",
    "coordinator_notes",
    "last_updated",
];
/// Those that every signed request carries.
const HEADERS: &[&str] = &[
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-wedsync-signature",
    "x-wedsync-event",
    "x-wedsync-timestamp",
    "x-wedsync-source",
    "content-type",
];

impl Receiver {
    /// One that knows senders by `key` and verifies with `secret` (`whsec_...`).
    ///
    /// # Panics
    /// For a secret that the public library doesn't take.
    #[must_use]
    pub fn new(profile: Profile, key: &str, secret: &str) -> Self {
        let verifier = Webhook::new(secret).expect("a secret");
        Self { profile, key: key.to_owned(), verifier, taken: Vec::new(), ids: Vec::new(), refused: Vec::new() }
    }

    fn fault(&self, asked: &Asked) -> Option<String> {
        if let Some(missing) = HEADERS.iter().find(|name| asked.header(name).is_empty()) {
            return Some(format!("{missing} is missing"));
        }
        if let Err(error) = self.verifier.verify(&asked.body, &asked.headers) {
            return Some(format!("the signature doesn't verify: {error}"));
        }
        let body = asked.json();
        let has = |names: &[&str]| {
            names.iter().find(|name| body.get(**name).is_none()).map(|name| format!("{name} is missing"))
        };
        match self.profile {
            Profile::Any => None,
            Profile::Crm if asked.header("x-integration-source") != "WedSync-Realtime" => {
                Some("x-integration-source".to_owned())
            }
            Profile::Crm if body["event_type"] == "wedding_update" => has(CRM),
            Profile::Crm if body.get("shoot_date").is_some() => has(TIMELINE),
            Profile::Crm => body["event_type"].is_null().then(|| "neither an update nor a timeline".to_owned()),
            Profile::Venue if asked.header("x-realtime-event") != "wedding-update" => {
                Some("x-realtime-event".to_owned())
            }
            Profile::Venue => has(VENUE),
        }
    }

    fn knows(&self, asked: &Asked) -> bool {
        match self.profile {
            Profile::Crm => asked.header("authorization").strip_prefix("Bearer ") == Some(&self.key),
            Profile::Venue => asked.header("x-venue-api-key") == self.key,
            Profile::Any => true,
        }
    }
}

impl Vendor for Receiver {
    fn answer(&mut self, asked: &Asked, _: Timestamp) -> Said {
        if !self.knows(asked) {
            return Said::status(401);
        }
        if let Some(fault) = self.fault(asked) {
            self.refused.push(fault.clone());
            return Said::text(400, fault);
        }
        let id = asked.header("webhook-id").to_owned();
        if !self.ids.contains(&id) {
            self.ids.push(id);
            self.taken.push(asked.json());
        }
        Said::status(204)
    }
}
