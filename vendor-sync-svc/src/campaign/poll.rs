//! Asks vendors what becomes of campaigns: often while something happens, seldom while nothing does, and not for ever.

use std::time::Duration;

use chassis::error::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Campaign, FINAL_AFTER, Maker, State};
use crate::{
    connector::{CallError, Class},
    integration::Integrations,
};

/// After which a draft that is still being made was interrupted.
pub(super) const MADE_WITHIN: SignedDuration = SignedDuration::from_mins(5);
/// How often a draft is asked about.
pub(super) const DRAFT_EVERY: SignedDuration = SignedDuration::from_hours(1);
/// How often one that was sent is, on its first day and then.
const SENT_EVERY: [SignedDuration; 2] = [SignedDuration::from_hours(1), SignedDuration::from_hours(6)];
/// A draft that nobody sends is forgotten.
const DRAFT_FOR: SignedDuration = SignedDuration::from_hours(90 * 24);
/// After a vendor couldn't be asked.
const AGAIN: SignedDuration = SignedDuration::from_mins(15);
/// Campaigns in one look.
const PAGE: i64 = 50;
/// Between looks.
const EVERY: Duration = Duration::from_secs(60);

/// Asks about those that are due.
pub(crate) struct Poller {
    pub(crate) maker: Maker,
    pub(crate) integrations: Integrations,
}

impl Poller {
    /// Looks each minute, until the process stops.
    pub(crate) async fn run(self, stopping: tokio_util::sync::CancellationToken) {
        let looks = async {
            loop {
                self.turn().await;
                self.maker.clock.sleep(EVERY).await;
            }
        };
        stopping.run_until_cancelled(looks).await;
    }

    /// One look: each that is due once.
    pub(super) async fn turn(&self) {
        let due = match self.maker.campaigns.due(self.maker.clock.now(), PAGE).await {
            Ok(due) => due,
            Err(error) => return tracing::warn!(%error, "which campaigns are due can't be read; looking again"),
        };
        for campaign in due {
            let id = campaign.id.clone();
            if let Err(error) = self.ask(campaign).await {
                tracing::warn!(%error, campaign.id = id, "a campaign is asked about again");
            }
        }
    }

    async fn ask(&self, mut campaign: Campaign) -> Result<()> {
        let now = self.maker.clock.now();
        if campaign.state == State::Making {
            (campaign.state, campaign.next_at) = (State::Unknown, None);
            campaign.reason = "it may have been made: look there. It isn't made again".to_owned();
            return self.maker.campaigns.update(&campaign).await;
        }
        let integration = match self.integrations.get(&campaign.organization, &campaign.integration_id).await {
            Ok(integration) => integration,
            Err(Error::NotFound(_)) => {
                (campaign.next_at, campaign.reason) = (None, "its integration was deleted".to_owned());
                return self.maker.campaigns.update(&campaign).await;
            }
            Err(error) => return Err(error),
        };
        if integration.settings.paused || integration.settings.disabled {
            campaign.next_at = Some(now + AGAIN);
            return self.maker.campaigns.update(&campaign).await;
        }
        match self.maker.look(&integration, &mut campaign).await {
            Ok(()) => {
                campaign.reason.clear();
                campaign.next_at = next(&campaign, now);
            }
            Err(error) => failed(&mut campaign, error, now),
        }
        match campaign.next_at {
            None if campaign.state == State::Sent => self.maker.campaigns.conclude(&integration, &campaign).await,
            _ => self.maker.campaigns.update(&campaign).await,
        }
    }
}

/// When it is asked about next; none: never again.
pub(super) fn next(campaign: &Campaign, now: Timestamp) -> Option<Timestamp> {
    let age = |since: Timestamp| now.duration_since(since);
    match (campaign.state, campaign.sent_at) {
        (State::Cancelled | State::Gone | State::Unknown, _) => None,
        (State::Sent, Some(sent)) if age(sent) >= FINAL_AFTER => None,
        // A vendor that says no time: from when we first saw it.
        (State::Sent, None) if age(campaign.created_at) >= FINAL_AFTER + DRAFT_FOR => None,
        (State::Sent, Some(sent)) if age(sent) < SignedDuration::from_hours(24) => Some(now + SENT_EVERY[0]),
        (State::Sent, _) => Some(now + SENT_EVERY[1]),
        _ if age(campaign.created_at) >= DRAFT_FOR => None,
        _ => Some(now + DRAFT_EVERY),
    }
}

/// Takes over how it stands there.
pub(super) fn take_state(campaign: &mut Campaign, said: &Value) -> Result<(), CallError> {
    let state = said["state"].as_str().and_then(State::parse);
    campaign.state = state.ok_or_else(|| CallError::permanent("its vendor says no state that is known"))?;
    if let Some(sent) = said["sent_at"].as_str().and_then(|text| text.parse().ok()) {
        campaign.sent_at = Some(sent);
    }
    Ok(())
}

fn failed(campaign: &mut Campaign, error: CallError, now: Timestamp) {
    let wait = error.retry_after.and_then(|wait| SignedDuration::try_from(wait).ok()).unwrap_or(AGAIN);
    match error.class {
        Class::Gone => (campaign.state, campaign.next_at) = (State::Gone, None),
        Class::Retry | Class::Throttled | Class::Unknown => campaign.next_at = Some(now + wait.max(AGAIN)),
        // It needs somebody: a new credential, or another right.
        _ => campaign.next_at = next(campaign, now),
    }
    campaign.reason = error.class.words().to_owned();
}
