//! Push: `[notifier.web_push]` to browsers, `[notifier.fcm]` to devices.

use chassis::config::Secret;
use lettre::Address;
use serde::{Deserialize, Serialize};

use super::Problems;

/// `[notifier.web_push]`: push to browsers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebPush {
    /// The key that browsers subscribe with (VAPID), 65 bytes in base64url; default empty: browsers aren't pushed to.
    pub public_key: String,
    /// The private key that goes with it, 32 bytes in base64url.
    pub private_key: Secret,
    /// Whom push services write to about us: `mailto:` or `https:`.
    pub subject: String,
    /// Hosts that push services may be at, one with a leading dot for all below it; default those of the browsers' makers.
    pub hosts: Vec<String>,
}

impl Default for WebPush {
    fn default() -> Self {
        let hosts = ["fcm.googleapis.com", ".push.services.mozilla.com", ".push.apple.com", ".notify.windows.com"];
        Self {
            public_key: String::new(),
            private_key: Secret::default(),
            subject: String::new(),
            hosts: hosts.map(str::to_owned).into(),
        }
    }
}

impl WebPush {
    pub(crate) fn is_configured(&self) -> bool {
        !self.public_key.is_empty()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::of("web_push");
        let together = self.public_key.is_empty() == self.private_key.is_empty();
        problems.unless(together, "public_key and private_key belong together");
        let is_subject = self.subject.starts_with("https://")
            || self.subject.strip_prefix("mailto:").is_some_and(|address| address.parse::<Address>().is_ok());
        problems.unless(!self.is_configured() || is_subject, "subject must be mailto: and an address, or https:");
        problems.unless(!self.is_configured() || !self.hosts.is_empty(), "hosts must name the push services");
        problems.list
    }
}

/// `[notifier.fcm]`: push to devices, by Firebase Cloud Messaging.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fcm {
    /// The key file of a service account that may send; default empty: devices aren't pushed to.
    pub service_account_file: String,
    /// Where tokens are given out; default `https://oauth2.googleapis.com/token`.
    pub token_url: String,
    /// Where the API is; default `https://fcm.googleapis.com`.
    pub base_url: String,
}

impl Default for Fcm {
    fn default() -> Self {
        Self {
            service_account_file: String::new(),
            token_url: "https://oauth2.googleapis.com/token".to_owned(),
            base_url: "https://fcm.googleapis.com".to_owned(),
        }
    }
}

impl Fcm {
    pub(crate) fn is_configured(&self) -> bool {
        !self.service_account_file.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_push_needs_a_pair_of_keys_and_somebody_to_write_to() {
        assert_eq!(WebPush::default().problems().join("; "), "");
        let push = |public: &str, private: &str, subject: &str| {
            let (public_key, private_key, subject) = (public.to_owned(), private.to_owned().into(), subject.to_owned());
            WebPush { public_key, private_key, subject, ..WebPush::default() }.problems().join("; ")
        };
        assert_eq!(push("B", "p", "mailto:us@example.org"), "");
        assert_eq!(push("B", "p", "https://example.org"), "");
        assert_eq!(
            push("B", "", "https://example.org"),
            "[notifier.web_push] public_key and private_key belong together"
        );
        assert_eq!(push("B", "p", "us"), "[notifier.web_push] subject must be mailto: and an address, or https:");
    }
}
