//! Asks every connected integration's vendor every 30 to 60 s whether its account works.
//!
//! Cheap with many: which there are is read once per round, credentials come from memory, single results stay in memory,
//! and no more than [`AT_ONCE`] are asked at a time. Where that isn't enough, probes come later, and each integration still
//! comes in its turn.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chassis::{clock::Clock, error::Result, id::OrganizationId, secret};
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::Healths;
use crate::{
    credential::{
        CredentialError, Credentials, State,
        connect::{Probe, Refusal},
    },
    integration::{Integration, Integrations},
};

const SHORTEST: SignedDuration = SignedDuration::from_secs(30);
const AT_ONCE: usize = 32;
/// A vendor that takes longer to say whether it is there isn't well.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is read which integrations are connected, and how many at a time.
const READ_EVERY: SignedDuration = SignedDuration::from_secs(30);
const PAGE: i64 = 500;

/// The prober.
pub(crate) struct Prober {
    pub(crate) healths: Healths,
    pub(crate) credentials: Credentials,
    pub(crate) integrations: Integrations,
    pub(crate) probe: Arc<dyn Probe>,
    /// One that never steps back: else nobody would be asked until the machine's has come to where it was.
    pub(crate) clock: Clock,
}

/// Who is asked when.
#[derive(Default)]
pub(super) struct Round {
    read_at: Option<Timestamp>,
    integrations: HashMap<String, Integration>,
    due: BTreeSet<(Timestamp, String)>,
}

impl Round {
    /// Those that are due, at most as many as are asked at once; each comes again after 30 to 60 s.
    fn take(&mut self, now: Timestamp) -> Vec<Integration> {
        let mut taken = Vec::new();
        while taken.len() < AT_ONCE {
            if self.due.first().is_none_or(|(due, _)| *due > now) {
                break;
            }
            let Some((_, id)) = self.due.pop_first() else { break };
            let Some(integration) = self.integrations.get(&id) else { continue };
            taken.push(integration.clone());
            self.due.insert((now + SHORTEST + up_to(SHORTEST), id));
        }
        taken
    }

    /// Takes on who is new, at a time of chance, and lets go who isn't connected any more.
    fn learn(&mut self, now: Timestamp, connected: HashMap<String, Integration>) {
        for id in connected.keys().filter(|id| !self.integrations.contains_key(*id)) {
            self.due.insert((now + up_to(SHORTEST), id.clone()));
        }
        self.due.retain(|(_, id)| connected.contains_key(id));
        (self.integrations, self.read_at) = (connected, Some(now));
    }
}

impl Prober {
    /// Until the process stops.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let mut round = Round::default();
        let work = async {
            loop {
                let more = self.look(&mut round).await;
                if !more {
                    self.clock.sleep(LOOK_EVERY).await;
                }
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// One look; whether there may be more to do at once.
    pub(super) async fn look(&self, round: &mut Round) -> bool {
        let now = self.clock.now();
        if round.read_at.is_none_or(|at| now.duration_since(at) >= READ_EVERY) {
            match self.connected().await {
                Ok(connected) => round.learn(now, connected),
                Err(error) => tracing::warn!(%error, "integrations to probe can't be read; trying again"),
            }
            self.healths.retain(|id| round.integrations.contains_key(id));
        }
        let taken = round.take(now);
        let full = taken.len() == AT_ONCE;
        stream::iter(taken).for_each_concurrent(AT_ONCE, async |integration| self.ask(&integration).await).await;
        full
    }

    async fn connected(&self) -> Result<HashMap<String, Integration>> {
        let (mut connected, mut after) = (HashMap::new(), String::new());
        loop {
            let page: Vec<(OrganizationId, String)> =
                self.credentials.connections.list(State::Connected, &after, PAGE).await?;
            let Some((_, last)) = page.last() else { return Ok(connected) };
            after = last.clone();
            for (organization, id) in page {
                // One that was deleted since isn't asked.
                if let Ok(integration) = self.integrations.get(&organization, &id).await
                    && !integration.settings.disabled
                {
                    connected.insert(id, integration);
                }
            }
        }
    }

    async fn ask(&self, integration: &Integration) {
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.try_out(integration)).await;
        let wrong = match asked {
            Ok(Ok(wrong)) => wrong,
            // Its credential is another matter, and told as such.
            Ok(Err(CredentialError::NeedsReconnect(_))) => return,
            Ok(Err(CredentialError::Unavailable(reason))) => reason,
            Err(_) => "no answer in time".to_owned(),
        };
        if let Err(error) = self.healths.sign(integration, &wrong).await {
            tracing::warn!(integration.id, %error, "what a probe found can't be kept");
        }
    }

    /// What is wrong; empty: nothing.
    async fn try_out(&self, integration: &Integration) -> Result<String, CredentialError> {
        let credential = self.credentials.of(integration).await?;
        let probed = match self.probe.probe(integration, &credential).await {
            Err(Refusal::Credential(_)) => {
                let other = self.credentials.refused(integration, &[credential]).await?;
                self.probe.probe(integration, &other).await
            }
            probed => probed,
        };
        Ok(match probed {
            // Whoever asks to be left alone is there.
            Ok(_) | Err(Refusal::Busy(_)) => String::new(),
            Err(refusal) => refusal.reason().to_owned(),
        })
    }
}

/// By chance, so that what began together doesn't stay together.
fn up_to(longest: SignedDuration) -> SignedDuration {
    SignedDuration::from_millis((longest.as_secs_f64() * secret::random_share() * 1e3) as i64)
}
