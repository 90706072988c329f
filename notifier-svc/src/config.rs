//! The `[notifier]` section.

mod provider;
mod push;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use chassis::config::{Secret, StoreSettings};
use jiff::{SignedDuration, Timestamp};
use lettre::Address;
use serde::{Deserialize, Serialize};
use url::Url;

pub use self::{
    provider::{Resend, Slack, Teams, Twilio, Whatsapp},
    push::{Fcm, WebPush},
};
use crate::policy::Urgency;

/// Settings of the notifier.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it listens; default `127.0.0.1:7430`.
    pub listen: SocketAddr,
    /// Where the router is; default `http://127.0.0.1:7410`.
    pub router: String,
    /// What the product calls itself towards people; default `WedSync`.
    pub public_name: String,
    /// How long a new wedding date may still change before people are told, in milliseconds; default 0: at once.
    pub settle_ms: u64,
    /// Where people reach the gateway, for the links in messages that confirm or end something; https, or mail programs show no
    /// button of theirs (RFC 8058) and Slack and Teams no link. Default empty, which means that there are no links.
    pub public_url: String,
    /// The sender's postal address, which commercial mail must carry; default empty, which means that none is sent.
    pub postal_address: String,
    /// How long what notifications said is kept, in days; default 400. Who was told when, and how it came out, stays.
    pub keep_days: u32,
    /// How long confirmations are waited for.
    pub escalation: Escalation,
    /// How long a provider may leave a message before another channel has it.
    pub failover: Failover,
    /// Where the notifier keeps its data.
    pub store: StoreSettings,
    /// The mail server.
    pub smtp: Smtp,
    /// Mail by Resend, before the mail server.
    pub resend: Resend,
    /// SMS and WhatsApp by Twilio.
    pub twilio: Twilio,
    /// Slack.
    pub slack: Slack,
    /// Microsoft Teams.
    pub teams: Teams,
    /// WhatsApp by Meta, before Twilio.
    pub whatsapp: Whatsapp,
    /// Push to browsers.
    pub web_push: WebPush,
    /// Push to devices.
    pub fcm: Fcm,
}

impl Default for Config {
    fn default() -> Self {
        let url = Secret::from("sqlite:./data/notifier.db".to_owned());
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7430)),
            router: "http://127.0.0.1:7410".to_owned(),
            public_name: "WedSync".to_owned(),
            settle_ms: 0,
            public_url: String::new(),
            postal_address: String::new(),
            keep_days: 400,
            escalation: Escalation::default(),
            failover: Failover::default(),
            store: StoreSettings { url, schema: "notifier".to_owned(), ..StoreSettings::default() },
            smtp: Smtp::default(),
            resend: Resend::default(),
            twilio: Twilio::default(),
            slack: Slack::default(),
            teams: Teams::default(),
            whatsapp: Whatsapp::default(),
            web_push: WebPush::default(),
            fcm: Fcm::default(),
        }
    }
}

/// `[notifier.escalation]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Escalation {
    /// After how long an unconfirmed emergency goes on to the next on the wedding's day, in milliseconds; default 60,000.
    pub wedding_day_ms: u64,
    /// What is urgent otherwise, in milliseconds; default 900,000.
    pub urgent_ms: u64,
    /// Everything else that asks for a confirmation, in milliseconds; default 86,400,000.
    pub otherwise_ms: u64,
}

impl Default for Escalation {
    fn default() -> Self {
        Self { wedding_day_ms: 60_000, urgent_ms: 900_000, otherwise_ms: 86_400_000 }
    }
}

/// `[notifier.failover]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failover {
    /// After how long what is urgent goes on to another channel, while its provider is down or throttles us, in milliseconds;
    /// default 60,000; 0: never.
    pub urgent_ms: u64,
    /// Everything else, in milliseconds; default 600,000; 0: never.
    pub otherwise_ms: u64,
}

impl Default for Failover {
    fn default() -> Self {
        Self { urgent_ms: 60_000, otherwise_ms: 600_000 }
    }
}

impl Failover {
    /// How long is too long; none: nothing is.
    pub(crate) fn wait(&self, urgency: Urgency) -> Option<SignedDuration> {
        let wait_ms = if urgency == Urgency::Ordinary { self.otherwise_ms } else { self.urgent_ms };
        let wait_ms = i64::try_from(wait_ms).unwrap_or(i64::MAX);
        (wait_ms > 0).then(|| SignedDuration::from_millis(wait_ms))
    }

    /// What waits since before this has waited too long.
    pub(crate) fn before(&self, urgency: Urgency, now: Timestamp) -> Option<Timestamp> {
        now.checked_sub(self.wait(urgency)?).ok()
    }
}

/// `[notifier.smtp]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Smtp {
    /// Name or address of the mail server; default empty, which means that no e-mail is sent.
    pub host: String,
    /// Its port; default 587.
    pub port: u16,
    /// How the connection is encrypted: `starttls` (default), `implicit` (port 465), or `none`, on loopback alone.
    pub tls: Tls,
    /// Whom to log in as; default empty, which means not at all.
    pub username: String,
    /// The password that goes with it.
    pub password: Secret,
    /// The sender's address, which is the return path too; no default.
    pub from: String,
    /// How long connecting and each step before the message may take, in milliseconds; default 30,000.
    pub timeout_ms: u64,
    /// How long the server may take to accept a message that it was given whole, in milliseconds; default 120,000. What
    /// takes longer has an unknown outcome.
    pub accept_timeout_ms: u64,
    /// How many connections may be open at once; default 8.
    pub connections: u32,
}

impl Default for Smtp {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 587,
            tls: Tls::Starttls,
            username: String::new(),
            password: Secret::default(),
            from: String::new(),
            timeout_ms: 30_000,
            accept_timeout_ms: 120_000,
            connections: 8,
        }
    }
}

/// How a connection to the mail server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Not at all.
    None,
    /// Begins in the clear and must be encrypted before anything is said (RFC 3207).
    Starttls,
    /// From the first byte (RFC 8314).
    Implicit,
}

impl Config {
    /// Checks what types can't say.
    ///
    /// # Errors
    /// All problems at once, each with its section and key.
    pub fn check(&self) -> Result<()> {
        let mut problems = self.smtp.problems();
        problems.extend(self.resend.problems());
        problems.extend(self.twilio.problems());
        problems.extend(self.slack.problems());
        problems.extend(self.whatsapp.problems());
        problems.extend(self.web_push.problems());
        if self.public_name.trim().is_empty() || self.public_name.chars().any(char::is_control) {
            problems.push("[notifier] public_name must be a name".to_owned());
        }
        // Links are good for thirty days, and what they end or confirm is looked up.
        if self.keep_days < 31 {
            problems.push("[notifier] keep_days must be at least 31".to_owned());
        }
        let Failover { urgent_ms: urgent, otherwise_ms: other } = self.failover;
        if [urgent, other].iter().any(|wait_ms| (1..1_000).contains(wait_ms)) {
            problems.push("[notifier.failover] every wait must be 0 or at least 1000 ms".to_owned());
        }
        let Escalation { wedding_day_ms, urgent_ms, otherwise_ms } = self.escalation;
        if [wedding_day_ms, urgent_ms, otherwise_ms].iter().any(|wait_ms| *wait_ms < 1_000) {
            problems.push("[notifier.escalation] every wait must be at least 1000 ms".to_owned());
        }
        let is_web = |url: &Url| matches!(url.scheme(), "https" | "http") && url.query().is_none() && url.has_host();
        if !self.public_url.is_empty() && !Url::parse(&self.public_url).is_ok_and(|url| is_web(&url)) {
            problems.push("[notifier] public_url must begin with https:// or http:// and have no query".to_owned());
        }
        if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("\n")) }
    }
}

/// What is wrong with a section.
struct Problems {
    section: &'static str,
    list: Vec<String>,
}

impl Problems {
    fn of(section: &'static str) -> Self {
        Self { section, list: Vec::new() }
    }

    fn unless(&mut self, holds: bool, problem: &str) {
        if !holds {
            self.list.push(format!("[notifier.{}] {problem}", self.section));
        }
    }
}

impl Smtp {
    /// Whether there is a mail server.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        !self.host.is_empty()
    }

    fn problems(&self) -> Vec<String> {
        if !self.is_configured() {
            return Vec::new();
        }
        let mut problems = Vec::new();
        if self.tls == Tls::None && !is_loopback(&self.host) {
            problems.push(format!(
                "[notifier.smtp] tls = \"none\" would send mail to {} in the clear: use starttls or implicit",
                self.host
            ));
        }
        if self.from.parse::<Address>().is_err() {
            problems.push("[notifier.smtp] from must be an e-mail address".to_owned());
        }
        if self.username.is_empty() != self.password.is_empty() {
            problems.push("[notifier.smtp] username and password belong together".to_owned());
        }
        if self.timeout_ms == 0 || self.accept_timeout_ms == 0 || self.connections == 0 {
            problems.push("[notifier.smtp] timeout_ms, accept_timeout_ms and connections must be above 0".to_owned());
        }
        problems
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut Smtp)) -> String {
        let mut smtp =
            Smtp { host: "mail.example.org".to_owned(), from: "us@example.org".to_owned(), ..Smtp::default() };
        change(&mut smtp);
        Config { smtp, ..Config::default() }.check().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn mail_leaves_the_machine_encrypted_or_not_at_all() {
        assert_eq!(problems(|_| ()), "");
        assert!(problems(|smtp| smtp.tls = Tls::None).contains("in the clear"));
        for host in ["localhost", "127.0.0.1", "::1"] {
            let said = problems(|smtp| (smtp.tls, smtp.host) = (Tls::None, host.to_owned()));
            assert_eq!(said, "", "{host}");
        }
        assert!(problems(|smtp| smtp.from = "us".to_owned()).contains("from"));
        assert!(problems(|smtp| smtp.username = "us".to_owned()).contains("belong together"));
        Config::default().check().expect("without a mail server nothing is asked of it");
    }
}
