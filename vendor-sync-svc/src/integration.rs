//! Integrations: accounts at other systems, what an organization may say about one, and what its secret must be.
//!
//! [`store`] keeps them; `inbound` receives what they send. Settings that passed `check` can be stored and used: their
//! expressions compile. What a kind has no use for is refused, not ignored.

mod store;

use std::{collections::BTreeMap, time::Duration};

use chassis::{
    config::Secret,
    error::{Error, Result},
    expression::{Expression, Mapping},
    id::OrganizationId,
    signature::WebhookSecret,
};
use jiff::Timestamp;

pub(crate) use self::store::Integrations;

/// What an event type or a transformation of a signed webhook may look at.
pub(crate) const NAMES: &[&str] = &["body", "headers"];

const DEFAULT_RATE: u32 = 1_000;
const HIGHEST_RATE: u32 = 100_000;
const DEFAULT_SECRET_HEADER: &str = "x-wedsync-secret";
const TEXT_CHARS: usize = 256;
const PARAMETERS: usize = 64;
const PARAMETER_BYTES: usize = 16 << 10;
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=256;
const SIGNING_SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

/// How long an old secret verifies beside the new one, where the caller doesn't say.
pub(crate) const DEFAULT_OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_OVERLAP: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is sent, and how it is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes of clients, for systems that have no connector of their own.
    ClientSync,
    /// Messages for a live channel.
    ChannelEvents,
    /// A Supabase Database Webhook: a secret header instead of a signature, and no second try.
    Supabase,
    /// Any vendor that signs.
    SignedWebhook,
    /// An account at a vendor whose API a connector declares: synced both ways.
    Connector,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::ClientSync, Self::ChannelEvents, Self::Supabase, Self::SignedWebhook, Self::Connector];

    /// As the store has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ClientSync => "client-sync",
            Self::ChannelEvents => "channel-events",
            Self::Supabase => "supabase",
            Self::SignedWebhook => "signed-webhook",
            Self::Connector => "connector",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether its path holds its vendor's name and its own id.
    fn has_vendor(self) -> bool {
        matches!(self, Self::SignedWebhook | Self::Connector)
    }

    /// The path segment that belongs to this kind alone.
    fn own_vendor(self) -> Option<&'static str> {
        (!self.has_vendor()).then(|| self.as_str())
    }

    /// Whether its sender never tries again, so that a request is kept by us before anything can refuse it.
    pub(crate) fn is_spooled(self) -> bool {
        self == Self::Supabase
    }
}

/// What an organization says about an integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    /// From the path: `[a-z0-9-]{1,64}`.
    pub(crate) vendor: String,
    pub(crate) description: String,
    /// Empty: the organization's own.
    pub(crate) supplier_id: String,
    /// 0: the default.
    pub(crate) rate_limit_per_hour: u32,
    /// Source of an expression over [`NAMES`]; empty: `body.type`.
    pub(crate) event_type: String,
    /// Source of a mapping over [`NAMES`]; empty: `body.data`, else the whole body.
    pub(crate) transformation: String,
    /// In lower case; empty: the default.
    pub(crate) secret_header: String,
    pub(crate) disabled: bool,
    /// Name of its connector; empty for the other kinds.
    pub(crate) connector: String,
    /// What the connector asks an account for, by name. Nothing secret: that is the credential.
    pub(crate) parameters: BTreeMap<String, String>,
    /// Changes for it are kept, and go out when it is resumed.
    pub(crate) paused: bool,
}

impl Settings {
    /// Holds them to the limits, and fills in the vendor where the kind gives it.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field.
    pub(crate) fn check(mut self) -> Result<Self> {
        self.check_connector()?;
        self.vendor = self.checked_vendor()?;
        check_text("description", &self.description)?;
        check_text("supplier_id", &self.supplier_id)?;
        if self.rate_limit_per_hour > HIGHEST_RATE {
            return Err(Error::invalid("rate_limit_per_hour", format!("must be at most {HIGHEST_RATE}")));
        }
        self.check_expressions()?;
        self.secret_header = self.secret_header.to_ascii_lowercase();
        self.check_secret_header()?;
        Ok(self)
    }

    fn checked_vendor(&self) -> Result<String> {
        let vendor = self.vendor.as_str();
        if let Some(own) = self.kind.own_vendor() {
            let fits = vendor.is_empty() || vendor == own;
            return if fits {
                Ok(own.to_owned())
            } else {
                Err(Error::invalid("vendor", format!("must be {own} or empty for this kind")))
            };
        }
        let vendor = if vendor.is_empty() { self.connector.as_str() } else { vendor };
        if !is_name(vendor) {
            return Err(Error::invalid("vendor", "must match [a-z0-9-]{1,64}"));
        }
        if Kind::ALL.into_iter().any(|kind| kind.own_vendor() == Some(vendor)) {
            return Err(Error::invalid("vendor", "is the name of a kind of its own: choose another"));
        }
        Ok(vendor.to_owned())
    }

    /// Whether the connector exists and what it declares is asked where it is known.
    fn check_connector(&self) -> Result<()> {
        if self.kind != Kind::Connector {
            let unused = [
                ("connector", !self.connector.is_empty()),
                ("parameters", !self.parameters.is_empty()),
                ("paused", self.paused),
            ];
            let field = unused.into_iter().find(|(_, given)| *given).map(|(field, _)| field);
            return field.map_or(Ok(()), |field| Err(Error::invalid(field, "is for connectors alone")));
        }
        if !is_name(&self.connector) {
            return Err(Error::invalid("connector", "must be a connector's name: [a-z0-9-]{1,64}"));
        }
        let bytes: usize = self.parameters.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.parameters.len() > PARAMETERS || bytes > PARAMETER_BYTES {
            let reason = format!("must be at most {PARAMETERS}, of {PARAMETER_BYTES} bytes in all");
            return Err(Error::invalid("parameters", reason));
        }
        if self.parameters.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
            return Err(Error::invalid("parameters", "must not hold NUL"));
        }
        Ok(())
    }

    fn check_expressions(&self) -> Result<()> {
        let signed = self.kind == Kind::SignedWebhook;
        for (field, source) in [("event_type", &self.event_type), ("transformation", &self.transformation)] {
            if !signed && !source.is_empty() {
                return Err(Error::invalid(field, "is for signed webhooks alone"));
            }
        }
        if !self.event_type.is_empty() {
            Expression::compile(&self.event_type, NAMES)
                .map_err(|error| Error::invalid("event_type", error.to_string()))?;
        }
        if !self.transformation.is_empty() {
            Mapping::compile(&self.transformation, NAMES)
                .map_err(|error| Error::invalid("transformation", error.to_string()))?;
        }
        Ok(())
    }

    fn check_secret_header(&self) -> Result<()> {
        let name = self.secret_header.as_str();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if !name.is_empty() && self.kind != Kind::Supabase {
            return Err(Error::invalid("secret_header", "is for Supabase alone"));
        }
        if name.len() > 64 || !name.bytes().all(allowed) {
            return Err(Error::invalid("secret_header", "must be a header's name: [a-z0-9_-]{1,64}"));
        }
        Ok(())
    }

    /// Requests in any hour.
    pub(crate) fn rate(&self) -> u32 {
        if self.rate_limit_per_hour == 0 { DEFAULT_RATE } else { self.rate_limit_per_hour }
    }

    /// The header that holds a Supabase webhook's secret.
    pub(crate) fn secret_header(&self) -> &str {
        if self.secret_header.is_empty() { DEFAULT_SECRET_HEADER } else { &self.secret_header }
    }
}

/// One integration.
#[derive(Clone, Debug)]
pub(crate) struct Integration {
    /// A UUID.
    pub(crate) id: String,
    pub(crate) organization: OrganizationId,
    pub(crate) settings: Settings,
    /// Raised by every update of the settings.
    pub(crate) version: u64,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) last_received_at: Option<Timestamp>,
}

impl Integration {
    /// Where its sender posts to, below the gateway.
    pub(crate) fn path(&self) -> String {
        match self.settings.kind {
            Kind::SignedWebhook | Kind::Connector => format!("/webhooks/{}/{}", self.settings.vendor, self.id),
            kind => format!("/webhooks/{}", kind.as_str()),
        }
    }
}

/// The secrets that verify now: the newest, and until the overlap of a rotation ends the one before it.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    pub(crate) newest: Secret,
    pub(crate) old: Option<Secret>,
    /// What the vendor made for itself to sign with, where it did and somebody has told us.
    pub(crate) signing: Option<Secret>,
}

impl Secrets {
    /// The integration's own, the newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        [Some(&self.newest), self.old.as_ref()].into_iter().flatten().map(Secret::expose)
    }
}

/// The vendor's own secret, or a new one if it gave none.
///
/// # Errors
/// `Error::Invalid` for one that is short, or that no header could carry.
pub(crate) fn secret_or_new(given: &str) -> Result<Secret> {
    if given.is_empty() {
        return Ok(Secret::from(WebhookSecret::generate().expose().to_owned()));
    }
    if !SECRET_BYTES.contains(&given.len()) || !given.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid("secret", "must be 24 to 256 visible ASCII characters"));
    }
    if given.starts_with("whsec_") {
        WebhookSecret::parse(given)?;
    }
    Ok(Secret::from(given.to_owned()))
}

/// What a vendor made for itself to sign with, as it showed it.
///
/// # Errors
/// `Error::Invalid` for one that is short, or that can't be one.
pub(crate) fn check_signing_secret(given: &str) -> Result<Secret> {
    if !SIGNING_SECRET_BYTES.contains(&given.len()) || !given.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid("secret", "must be 16 to 256 visible ASCII characters"));
    }
    Ok(Secret::from(given.to_owned()))
}

/// How long the old secret is to verify.
///
/// # Errors
/// `Error::Invalid` beyond seven days.
pub(crate) fn check_overlap(overlap: Duration) -> Result<Duration> {
    if overlap > LONGEST_OVERLAP { Err(Error::invalid("overlap", "must be at most 7 days")) } else { Ok(overlap) }
}

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// PostgreSQL can't store NUL, and logs stay one line.
fn check_text(field: &'static str, text: &str) -> Result<()> {
    if text.chars().count() <= TEXT_CHARS && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(Error::invalid(field, format!("must be at most {TEXT_CHARS} characters, without control characters")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Settings that hold, of `kind`.
    pub(crate) fn settings(kind: Kind) -> Settings {
        let vendor = if kind == Kind::SignedWebhook { "tave" } else { "" };
        let settings = Settings {
            kind,
            vendor: vendor.to_owned(),
            description: String::new(),
            supplier_id: "s1".to_owned(),
            rate_limit_per_hour: 0,
            event_type: String::new(),
            transformation: String::new(),
            secret_header: String::new(),
            disabled: false,
            connector: if kind == Kind::Connector { "venue".to_owned() } else { String::new() },
            parameters: BTreeMap::new(),
            paused: false,
        };
        settings.check().expect("they hold")
    }

    fn field_at_fault(kind: Kind, change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = settings(kind);
        change(&mut settings);
        match settings.check() {
            Err(Error::Invalid { field, .. }) => field.into_owned(),
            other => panic!("accepted, or refused in another way: {other:?}"),
        }
    }

    #[test]
    fn each_fault_names_its_field() {
        use Kind::{ClientSync, Connector, SignedWebhook, Supabase};
        assert_eq!(field_at_fault(SignedWebhook, |s| s.vendor = "Tave".to_owned()), "vendor");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.vendor = "supabase".to_owned()), "vendor");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.vendor = String::new()), "vendor");
        assert_eq!(field_at_fault(ClientSync, |s| s.vendor = "tave".to_owned()), "vendor");
        assert_eq!(field_at_fault(ClientSync, |s| s.description = "a\0b".to_owned()), "description");
        assert_eq!(field_at_fault(ClientSync, |s| s.supplier_id = "s".repeat(257)), "supplier_id");
        assert_eq!(field_at_fault(ClientSync, |s| s.rate_limit_per_hour = 100_001), "rate_limit_per_hour");
        assert_eq!(field_at_fault(ClientSync, |s| s.event_type = "body.x".to_owned()), "event_type");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.event_type = "new.type".to_owned()), "event_type");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.transformation = "{".to_owned()), "transformation");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.secret_header = "x-secret".to_owned()), "secret_header");
        assert_eq!(field_at_fault(Supabase, |s| s.secret_header = "x secret".to_owned()), "secret_header");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.connector = "venue".to_owned()), "connector");
        assert_eq!(field_at_fault(SignedWebhook, |s| s.paused = true), "paused");
        assert_eq!(field_at_fault(Connector, |s| s.connector = "Venue".to_owned()), "connector");
        let long = || ("a".to_owned(), "x".repeat(PARAMETER_BYTES));
        assert_eq!(field_at_fault(Connector, |s| s.parameters.extend([long()])), "parameters");
    }

    #[test]
    fn the_vendor_of_a_kind_with_a_path_of_its_own_is_filled_in() {
        assert_eq!(settings(Kind::ChannelEvents).vendor, "channel-events");
        assert_eq!(settings(Kind::Connector).vendor, "venue", "a connector's is its name, unless said otherwise");
    }

    #[test]
    fn a_weak_or_unsendable_secret_is_refused_and_an_empty_one_is_made() {
        for text in
            ["short", &"x".repeat(257), "a secret with blanks in it is no header", "whsec_thatisnotbase64atall!!"]
        {
            assert!(secret_or_new(text).is_err(), "{text}");
        }
        assert!(secret_or_new("a-vendors-own-24-byte-sec").is_ok());
        let made = secret_or_new("").expect("made");
        assert!(WebhookSecret::parse(made.expose()).is_ok(), "every public library reads it");
    }
}
