//! E-mail campaigns: made as drafts at a marketing integration, and followed until what became of them is known for good.
//!
//! What is asked of a vendor is its connector's operations of these names: [`CREATE`], [`FILL`], [`READ`], [`REPORT`] and,
//! where it can, [`FIND_SEGMENT`] (the id of a segment that is known by its name) and [`READ_TEMPLATE`]. Sending a campaign is
//! a person's act, at the vendor.
//!
//! A draft is made once: its row is stored before the vendor is asked, and where nobody knows what came of that it is shown
//! as unknown, and left to people. Bound: [`MOST_OPEN`] campaigns of an integration are followed at a time.

mod poll;
mod store;
#[cfg(test)]
mod tests;

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::{self, OrganizationId},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use self::{poll::Poller, store::Campaigns};
use crate::{
    connector::{CallError, Class, Reply, call::Caller},
    integration::Integration,
};

const CREATE: &str = "create_campaign";
const FILL: &str = "fill_campaign";
const READ: &str = "read_campaign";
const REPORT: &str = "report_campaign";
const FIND_SEGMENT: &str = "find_segment";
const READ_TEMPLATE: &str = "read_template";

/// Of one integration at a time.
const MOST_OPEN: i64 = 200;
const HTML_BYTES: usize = 500 << 10;
const NAME_CHARS: usize = 100;
const LINE_CHARS: usize = 150;
const ID_CHARS: usize = 100;

/// How a campaign stands at its vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Making,
    Unknown,
    Draft,
    Scheduled,
    Sending,
    Sent,
    Cancelled,
    Gone,
}

impl State {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Making, "making"),
        (Self::Unknown, "unknown"),
        (Self::Draft, "draft"),
        (Self::Scheduled, "scheduled"),
        (Self::Sending, "sending"),
        (Self::Sent, "sent"),
        (Self::Cancelled, "cancelled"),
        (Self::Gone, "gone"),
    ];

    fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(state, _)| *state)
    }
}

/// People, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) sent: u64,
    pub(crate) opens: u64,
    pub(crate) clicks: u64,
    pub(crate) unsubscribes: u64,
    pub(crate) bounces: u64,
}

/// One that is, or was, followed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Campaign {
    pub(crate) id: String,
    pub(crate) organization: OrganizationId,
    pub(crate) integration_id: String,
    pub(crate) name: String,
    pub(crate) external_id: String,
    pub(crate) state: State,
    pub(crate) reason: String,
    pub(crate) sent_at: Option<Timestamp>,
    pub(crate) report: Option<Report>,
    pub(crate) reported_at: Option<Timestamp>,
    pub(crate) created_at: Timestamp,
    /// None: never again.
    pub(crate) next_at: Option<Timestamp>,
}

/// What a draft is to say, and to whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) subject: String,
    pub(crate) preview: String,
    pub(crate) from_name: String,
    pub(crate) from_email: String,
    pub(crate) html: String,
    pub(crate) template_id: String,
    pub(crate) segment: String,
}

impl Draft {
    /// # Errors
    /// `Error::Invalid` naming the field.
    fn check(&self) -> Result<()> {
        let line = |field: &'static str, text: &str, most: usize, required: bool| {
            if required && text.trim().is_empty() {
                return Err(Error::invalid(field, "is missing"));
            }
            let fits = text.chars().count() <= most && !text.chars().any(char::is_control);
            if fits {
                Ok(())
            } else {
                Err(Error::invalid(field, format!("must be one line of at most {most} characters")))
            }
        };
        line("name", &self.name, NAME_CHARS, true)?;
        line("subject", &self.subject, LINE_CHARS, true)?;
        line("preview", &self.preview, LINE_CHARS, false)?;
        line("from_name", &self.from_name, NAME_CHARS, true)?;
        line("from_email", &self.from_email, LINE_CHARS, true)?;
        line("template_id", &self.template_id, ID_CHARS, false)?;
        line("segment", &self.segment, ID_CHARS, false)?;
        if !self.from_email.contains('@') {
            return Err(Error::invalid("from_email", "must be an address"));
        }
        if self.html.len() > HTML_BYTES {
            return Err(Error::invalid("html", "must be at most 500 KiB"));
        }
        if self.html.is_empty() == self.template_id.is_empty() {
            return Err(Error::invalid("html", "either this or template_id must be given, and not both"));
        }
        Ok(())
    }

    /// What expressions see as `given`.
    fn given(&self) -> Value {
        json!({
            "name": self.name,
            "subject": self.subject,
            "preview": self.preview,
            "from_name": self.from_name,
            "from_email": self.from_email,
            "html": self.html,
            "template_id": self.template_id,
            "segment": self.segment,
        })
    }
}

/// Makes campaigns. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Maker {
    pub(crate) campaigns: Campaigns,
    pub(crate) caller: Caller,
    pub(crate) clock: Clock,
}

impl Maker {
    /// Makes a draft at the vendor of `integration`, and follows it.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field; `Error::FailedPrecondition` with the vendor's refusal, after which there is none;
    /// `Error::Unavailable` where it wasn't asked.
    pub(crate) async fn create(&self, integration: &Integration, draft: &Draft) -> Result<Campaign> {
        draft.check()?;
        self.check(integration).await?;
        self.template(integration, draft).await?;
        let mut given = draft.given();
        given["segment_id"] = self.segment(integration, draft).await?.into();
        let mut campaign = self.row(integration, &draft.name, "", State::Making);
        self.campaigns.insert(&campaign, MOST_OPEN).await?;
        let made = self.caller.call(integration, CREATE, &json!({ "given": given })).await;
        match made.and_then(named) {
            Ok(reply) => self.fill(integration, draft, given, reply, &mut campaign).await,
            Err(error) if may_be_there(&error) => self.unknown(&mut campaign, &error),
            Err(error) => {
                self.campaigns.delete(&campaign).await?;
                return Err(refusal(&error));
            }
        }
        self.campaigns.update(&campaign).await?;
        Ok(campaign)
    }

    /// Follows one that somebody made at the vendor.
    ///
    /// # Errors
    /// As [`Maker::create`]; `Error::NotFound` where the vendor has none of this id.
    pub(crate) async fn follow(&self, integration: &Integration, external_id: &str, name: &str) -> Result<Campaign> {
        let plain = |text: &str, most: usize| text.chars().count() <= most && !text.chars().any(char::is_control);
        if external_id.is_empty() || !plain(external_id, ID_CHARS) {
            return Err(Error::invalid("external_id", "must be the vendor's id of a campaign"));
        }
        if !plain(name, NAME_CHARS) {
            return Err(Error::invalid("name", "must be one line of at most 100 characters"));
        }
        self.check(integration).await?;
        let mut campaign = self.row(integration, name, external_id, State::Draft);
        let looked = self.look(integration, &mut campaign).await;
        looked.map_err(|error| {
            if error.class == Class::Gone { Error::NotFound("campaign".into()) } else { refusal(&error) }
        })?;
        campaign.next_at = Some(self.clock.now());
        self.campaigns.insert(&campaign, MOST_OPEN).await?;
        Ok(campaign)
    }

    fn row(&self, integration: &Integration, name: &str, external_id: &str, state: State) -> Campaign {
        let now = self.clock.now();
        Campaign {
            id: id::uuid(now),
            organization: integration.organization.clone(),
            integration_id: integration.id.clone(),
            name: name.to_owned(),
            external_id: external_id.to_owned(),
            state,
            reason: String::new(),
            sent_at: None,
            report: None,
            reported_at: None,
            created_at: now,
            // Longer than a vendor may take to make it.
            next_at: Some(now + poll::MADE_WITHIN),
        }
    }

    /// Whether its connector makes campaigns.
    async fn check(&self, integration: &Integration) -> Result<()> {
        for operation in [CREATE, READ, REPORT] {
            if !self.has(integration, operation).await? {
                let reason = format!("{} makes no campaigns", integration.settings.connector);
                return Err(Error::FailedPrecondition(reason));
            }
        }
        Ok(())
    }

    async fn has(&self, integration: &Integration, operation: &str) -> Result<bool> {
        let called = self.caller.called(integration).await.map_err(|error| refusal(&error))?;
        Ok(called.connector.operation(operation).is_some())
    }

    /// Whether the vendor has the template that is named.
    async fn template(&self, integration: &Integration, draft: &Draft) -> Result<()> {
        if draft.template_id.is_empty() {
            return Ok(());
        }
        if !self.has(integration, READ_TEMPLATE).await? {
            return Err(Error::invalid("template_id", "its vendor makes campaigns from HTML alone"));
        }
        let given = json!({ "given": { "template_id": draft.template_id } });
        match self.caller.call(integration, READ_TEMPLATE, &given).await {
            Ok(_) => Ok(()),
            Err(error) if error.class == Class::Gone => {
                Err(Error::invalid("template_id", "its vendor has no template of this id"))
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// The vendor's own id of the segment that is meant; empty: the whole audience, or it has no other name than that.
    async fn segment(&self, integration: &Integration, draft: &Draft) -> Result<String> {
        if draft.segment.is_empty() || !self.has(integration, FIND_SEGMENT).await? {
            return Ok(String::new());
        }
        let given = json!({ "given": { "segment": draft.segment } });
        let found = self.caller.call(integration, FIND_SEGMENT, &given).await.map_err(|error| refusal(&error))?;
        // Vendors find by beginnings: what only begins so is another segment.
        if found.external_id.is_empty() || found.resource["name"] != draft.segment.as_str() {
            return Err(Error::invalid("segment", "its vendor has none of this name: nobody has the tag yet"));
        }
        Ok(found.external_id)
    }

    /// Gives a draft that was just made what its vendor wants apart from it.
    async fn fill(
        &self,
        integration: &Integration,
        draft: &Draft,
        mut given: Value,
        made: Reply,
        campaign: &mut Campaign,
    ) {
        campaign.external_id = made.external_id;
        (campaign.state, campaign.next_at) = (State::Draft, Some(self.clock.now() + poll::DRAFT_EVERY));
        given["id"] = campaign.external_id.clone().into();
        for (name, value) in made.resource.as_object().into_iter().flatten() {
            if !given[name].is_string() {
                given[name] = value.clone();
            }
        }
        if !self.has(integration, FILL).await.unwrap_or(true) || !draft.template_id.is_empty() {
            return;
        }
        if let Err(error) = self.caller.call(integration, FILL, &json!({ "given": given })).await {
            // The vendor's own words may name people: they are told, and not kept.
            campaign.reason = format!("it is there, but without its text: {}", error.class.words());
        }
    }

    fn unknown(&self, campaign: &mut Campaign, error: &CallError) {
        tracing::warn!(class = error.class.as_str(), campaign.id, "whether a campaign was made is unknown");
        (campaign.state, campaign.next_at) = (State::Unknown, None);
        campaign.reason = "it may have been made: look there. It isn't made again".to_owned();
    }

    /// Brings a campaign up to date with what its vendor says.
    pub(super) async fn look(&self, integration: &Integration, campaign: &mut Campaign) -> Result<(), CallError> {
        let given = json!({ "given": { "id": campaign.external_id } });
        let read = self.caller.call(integration, READ, &given).await?;
        poll::take_state(campaign, &read.resource)?;
        if campaign.state == State::Sent {
            let read = self.caller.call(integration, REPORT, &given).await?;
            let report = serde_json::from_value(read.resource);
            campaign.report = Some(report.map_err(|_| CallError::permanent("its report can't be read"))?);
            campaign.reported_at = Some(self.clock.now());
        }
        Ok(())
    }
}

fn named(reply: Reply) -> Result<Reply, CallError> {
    match reply.external_id.is_empty() {
        true => Err(CallError { class: Class::Unknown, ..CallError::retry("the vendor said no id of it") }),
        false => Ok(reply),
    }
}

fn may_be_there(error: &CallError) -> bool {
    error.class == Class::Unknown
}

fn refusal(error: &CallError) -> Error {
    match error.class {
        Class::Retry | Class::Throttled => {
            Error::Unavailable(format!("the vendor can't be asked now: {}", error.reason))
        }
        _ => Error::FailedPrecondition(format!("the vendor refused it: {}", error.reason)),
    }
}

/// How long after it was sent its report is asked for: nearly everybody who opens a mail does so by then.
pub(crate) const FINAL_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);
