//! What holds for a whole organization: its clock and language where a person has none, and its Slack channels.

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::{Timestamp, tz::TimeZone};

use crate::{audit, room};

/// How long a wedding's Slack channel stays open after the day, if nothing else is said, and at most.
const ARCHIVE_DAYS: i64 = 14;
const ARCHIVE_DAYS_MAX: i64 = 365;

/// An organization's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// IANA name; empty: UTC.
    pub(crate) time_zone: String,
    /// BCP 47; empty: English.
    pub(crate) locale: String,
    /// Each wedding has a Slack channel.
    pub(crate) slack_weddings: bool,
    /// Days after the wedding until its channel is archived.
    pub(crate) slack_archive_days: i64,
    /// What concerns everybody in a wedding's channel is told there, once.
    pub(crate) slack_notices: bool,
    pub(crate) updated_at: Timestamp,
}

impl Default for Settings {
    fn default() -> Self {
        let (time_zone, locale) = (String::new(), String::new());
        let (slack_archive_days, updated_at) = (ARCHIVE_DAYS, Timestamp::UNIX_EPOCH);
        Self { time_zone, locale, slack_weddings: false, slack_archive_days, slack_notices: false, updated_at }
    }
}

type Row = (String, String, i64, i64, i64, i64);

impl From<Row> for Settings {
    fn from((time_zone, locale, weddings, slack_archive_days, notices, updated_at): Row) -> Self {
        let (slack_weddings, slack_notices, updated_at) = (weddings != 0, notices != 0, from_micros(updated_at));
        Self { time_zone, locale, slack_weddings, slack_archive_days, slack_notices, updated_at }
    }
}

impl Settings {
    /// Holds what a caller gives to every limit.
    ///
    /// # Errors
    /// `Error::Invalid` for the first field at fault.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.time_zone.is_empty() && TimeZone::get(&self.time_zone).is_err() {
            return Err(Error::invalid("time_zone", "must be an IANA time zone, for example Europe/Berlin"));
        }
        check_locale("locale", &self.locale)?;
        if !(1..=ARCHIVE_DAYS_MAX).contains(&self.slack_archive_days) {
            return Err(Error::invalid("slack_archive_days", format!("must be 1 to {ARCHIVE_DAYS_MAX}")));
        }
        Ok(())
    }

    /// The names of what differs.
    fn changed_from(&self, old: &Self) -> Vec<&'static str> {
        let fields = [
            ("time_zone", self.time_zone != old.time_zone),
            ("locale", self.locale != old.locale),
            ("slack_weddings", self.slack_weddings != old.slack_weddings),
            ("slack_archive_days", self.slack_archive_days != old.slack_archive_days),
            ("slack_notices", self.slack_notices != old.slack_notices),
        ];
        fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// A language's tag, or nothing.
///
/// # Errors
/// `Error::Invalid`.
pub(crate) fn check_locale(field: &'static str, locale: &str) -> Result<()> {
    let is_tag = locale.len() <= 35 && locale.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if is_tag { Ok(()) } else { Err(Error::invalid(field, "must be a BCP 47 tag, for example en-GB")) }
}

/// An organization's settings; those that hold for everybody where it has none.
pub(crate) async fn read(store: &Store, organization: &OrganizationId) -> Result<Settings> {
    let row: Option<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT time_zone, locale, slack_weddings, slack_archive_days, slack_notices, updated_at FROM organization_settings
         WHERE organization_id = $1",
    ).bind(organization.as_str()).fetch_optional(c).await)?;
    Ok(row.map_or_else(Settings::default, Settings::from))
}

/// The same, of which nobody else makes anything else before `tx` has ended.
async fn hold(tx: &mut Tx, organization: &OrganizationId) -> Result<Settings> {
    let none = Settings::default();
    let row: Row = with!(tx.on(), c => sqlx::query_as(
        "INSERT INTO organization_settings (organization_id, time_zone, locale, slack_weddings, slack_archive_days, slack_notices,
             updated_at)
         VALUES ($1, $2, $3, 0, $4, 0, 0) ON CONFLICT (organization_id) DO UPDATE SET updated_at = organization_settings.updated_at
         RETURNING time_zone, locale, slack_weddings, slack_archive_days, slack_notices, updated_at",
    )
    .bind(organization.as_str())
    .bind(&none.time_zone)
    .bind(&none.locale)
    .bind(none.slack_archive_days)
    .fetch_one(c).await)?;
    Ok(row.into())
}

/// Replaces an organization's settings, and notes which key changed which of them.
pub(crate) async fn write(store: &Store, organization: &OrganizationId, settings: &Settings, by: &str) -> Result<()> {
    let mut tx = store.begin().await?;
    let changed = settings.changed_from(&hold(&mut tx, organization).await?).join(", ");
    with!(tx.on(), c => sqlx::query(
        "UPDATE organization_settings SET time_zone = $2, locale = $3, slack_weddings = $4, slack_archive_days = $5,
             slack_notices = $6, updated_at = $7
         WHERE organization_id = $1",
    )
    .bind(organization.as_str())
    .bind(&settings.time_zone)
    .bind(&settings.locale)
    .bind(i64::from(settings.slack_weddings))
    .bind(settings.slack_archive_days)
    .bind(i64::from(settings.slack_notices))
    .bind(settings.updated_at.as_microsecond())
    .execute(c).await.map(drop))?;
    room::touch_all(&mut tx, organization, settings.updated_at.as_microsecond()).await?;
    note(&mut tx, organization, &changed, by, settings.updated_at).await?;
    tx.commit().await
}

async fn note(tx: &mut Tx, organization: &OrganizationId, changed: &str, by: &str, now: Timestamp) -> Result<()> {
    let entry = audit::Entry { action: audit::Action::Settings, by, subject: "organization", detail: changed };
    audit::note(tx, organization, &entry, now).await
}
