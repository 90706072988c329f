//! What people ask for: to connect an integration, to disconnect it, to try it, and to rotate its key.
//!
//! Guarantee: what is put in force was taken by the vendor a moment before; what the vendor refuses changes nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chassis::{
    config::Secret,
    error::{Error, Result},
};
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use url::Url;

use super::{App, Connection, Credential, CredentialError, Credentials, Kept, State, renew::refresh_at};
use crate::{
    connector::Grant,
    integration::{Integration, Integrations, check_overlap},
    oauth::{
        ANSWER_WITHIN, Provider,
        authorize::{Authorizations, Flow},
        grant::{self, Refused},
    },
};

const CALLBACK: &str = "/oauth/callback";
const START: &str = "/oauth/start/";
const CODE_BYTES: usize = 4_096;
const CLIENT_ID_BYTES: usize = 512;

/// Asks a vendor whether an account works, as its connector declares.
pub(crate) trait Probe: Send + Sync + 'static {
    /// Gives the settings that the answer yields.
    fn probe<'a>(
        &'a self,
        integration: &'a Integration,
        credential: &'a Credential,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Refusal>>;
}

/// Why an account doesn't work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The vendor refuses the credential.
    Credential(String),
    /// It takes the credential, and refuses what is asked.
    Account(String),
    /// It is there, and asks to be left alone for a while.
    Busy(String),
    /// It can't be reached.
    Unavailable(String),
}

impl Refusal {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Credential(reason) | Self::Account(reason) | Self::Busy(reason) | Self::Unavailable(reason) => reason,
        }
    }

    /// What somebody can do about it.
    pub(crate) fn next_step(&self) -> &'static str {
        match self {
            Self::Credential(_) => "check the key or password at the vendor, or connect it again",
            Self::Account(_) => "check the integration's parameters, and what its account may do at the vendor",
            Self::Busy(_) | Self::Unavailable(_) => "try again later; changes wait meanwhile",
        }
    }

    fn error(self) -> Error {
        let text = format!("{}: {}", self.reason(), self.next_step());
        match self {
            Self::Busy(_) | Self::Unavailable(_) => Error::Unavailable(text),
            Self::Credential(_) | Self::Account(_) => Error::FailedPrecondition(text),
        }
    }
}

/// What somebody brings to connect an integration with.
#[derive(Debug)]
pub(crate) enum Given {
    Nothing,
    Key(Secret),
    Basic {
        user: String,
        password: Secret,
    },
    /// Consent, asked for at the vendor; with a client of their own or ours.
    OAuth(Option<App>),
}

/// How far connecting came.
#[derive(Debug)]
pub(crate) enum Begun {
    Connected,
    /// A person must open this in a browser.
    Open {
        url: String,
        expires_at: Timestamp,
    },
}

/// How a browser's return ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Completed {
    Connected {
        integration_id: String,
    },
    /// The person, or the vendor, said no.
    Denied,
    /// Nothing of ours, or not any more.
    Unknown,
    /// The vendor's answer led nowhere; it is to be begun anew.
    Failed,
}

/// Connects integrations.
#[derive(Clone)]
pub(crate) struct Connecting {
    pub(crate) credentials: Credentials,
    pub(crate) integrations: Integrations,
    pub(crate) authorizations: Authorizations,
    pub(crate) probe: Arc<dyn Probe>,
    /// Where browsers reach the gateway; none: OAuth is off.
    pub(crate) public_url: Option<Url>,
}

impl Connecting {
    /// Connects `integration` with what is given, or begins to.
    ///
    /// # Errors
    /// `Error::Invalid` for what its connector doesn't take; `Error::FailedPrecondition` with the vendor's refusal.
    pub(crate) async fn connect(&self, integration: &Integration, given: Given) -> Result<Begun> {
        let provider = self.credentials.providers.provider(integration).await?;
        let kept = match (given, provider) {
            (Given::OAuth(Some(app)), _) if app.id.len() > CLIENT_ID_BYTES || app.id.chars().any(char::is_control) => {
                return Err(wrong("client_id must be at most 512 bytes, without control characters"));
            }
            (Given::OAuth(app), Some(provider)) => match provider.declared().grant {
                Grant::AuthorizationCode => return self.begin(integration, app).await,
                Grant::ClientCredentials => self.client_tokens(integration, app).await?,
            },
            (Given::OAuth(_), None) => return Err(wrong("its connector doesn't use OAuth")),
            (Given::Nothing, Some(_)) => return Err(wrong("its connector uses OAuth, or a key: give one of them")),
            // Whether a connector takes keys as well is shown by its vendor.
            (Given::Nothing, None) => Kept::None,
            (Given::Key(key), _) => Kept::Key(checked(key)?),
            (Given::Basic { user, password }, _) => Kept::Basic { user, password: checked(password)? },
        };
        self.put_in_force(integration, &kept).await.map_err(Refusal::error)?;
        Ok(Begun::Connected)
    }

    async fn begin(&self, integration: &Integration, app: Option<App>) -> Result<Begun> {
        let url = self.url(START)?;
        // What is missing is said here, and not to a browser.
        self.credentials.provider(integration, app.as_ref()).await.map_err(precondition)?;
        let (ticket, expires_at) = self.authorizations.begin(integration, app.as_ref()).await?;
        Ok(Begun::Open { url: format!("{url}{ticket}"), expires_at })
    }

    async fn client_tokens(&self, integration: &Integration, app: Option<App>) -> Result<Kept> {
        let (provider, client) = self.credentials.provider(integration, app.as_ref()).await.map_err(precondition)?;
        let form = grant::client_credentials(provider.declared());
        let tokens =
            self.credentials.oauth.ask(provider.declared(), &client, &form).await.map_err(|refused| match refused {
                Refused::Grant(reason) => Error::FailedPrecondition(reason),
                Refused::Passing { reason, .. } => Error::Unavailable(reason),
            })?;
        Ok(Kept::Tokens { tokens, app })
    }

    /// Only what the vendor takes.
    async fn put_in_force(&self, integration: &Integration, kept: &Kept) -> Result<(), Refusal> {
        let credential = kept.credential();
        let probed = timeout(ANSWER_WITHIN, self.probe.probe(integration, &credential)).await;
        let yielded = probed.unwrap_or_else(|_| Err(Refusal::Unavailable("no answer in time".to_owned())))?;
        let refresh_at = refresh_at(kept, self.credentials.clock.now());
        let stored = self.credentials.connections.connect(integration, kept, &yielded, refresh_at).await;
        self.credentials.forget(integration);
        stored.map_err(|error| Refusal::Unavailable(error.to_string()))
    }

    /// A browser opens a ticket: where it is sent.
    ///
    /// # Errors
    /// `Error::NotFound` for a ticket that isn't good, or any more.
    pub(crate) async fn open(&self, ticket: &str, browser: &str) -> Result<Url> {
        // Read before the ticket is used up: whoever begins again in a moment needs it.
        let flow = self.authorizations.peek(ticket).await?;
        let integration = self.integrations.get(&flow.organization, &flow.integration_id).await?;
        let (provider, app) = self.client(&integration, &flow).await?;
        let state = self.authorizations.open(ticket, browser).await?;
        grant::authorization_url(provider.declared(), &app, &self.url(CALLBACK)?, &state, &flow.verifier)
    }

    /// A browser comes back from the vendor, with a code or (empty) without. A code is good once, and what the vendor grants
    /// for it is known to nobody else: it is seen through even if the browser leaves.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn complete(&self, state: &str, code: &str, browser: &str) -> Result<Completed> {
        let (this, state, code, browser) = (self.clone(), state.to_owned(), code.to_owned(), browser.to_owned());
        let seen_through = async move { this.come_back(&state, &code, &browser).await };
        let completed = self.credentials.tasks.through("credential.complete", seen_through).await;
        completed.unwrap_or(Ok(Completed::Failed))
    }

    async fn come_back(&self, state: &str, code: &str, browser: &str) -> Result<Completed> {
        let flow = match self.authorizations.take(state, browser).await {
            Ok(flow) => flow,
            Err(Error::NotFound(_)) => return Ok(Completed::Unknown),
            Err(error) => return Err(error),
        };
        if code.is_empty() || code.len() > CODE_BYTES {
            return Ok(Completed::Denied);
        }
        let integration = match self.integrations.get(&flow.organization, &flow.integration_id).await {
            Ok(integration) => integration,
            Err(Error::NotFound(_)) => return Ok(Completed::Unknown),
            Err(error) => return Err(error),
        };
        match self.exchange(&integration, flow, code).await {
            Ok(()) => Ok(Completed::Connected { integration_id: integration.id }),
            Err(error) => {
                tracing::warn!(integration.id, %error, "a connection that was begun in a browser failed");
                Ok(Completed::Failed)
            }
        }
    }

    async fn exchange(&self, integration: &Integration, flow: Flow, code: &str) -> Result<()> {
        let (provider, app) = self.client(integration, &flow).await?;
        let form = grant::code(provider.declared(), code, &self.url(CALLBACK)?, &flow.verifier);
        let tokens = self.credentials.oauth.ask(provider.declared(), &app, &form).await;
        let tokens = tokens.map_err(|refused| Error::FailedPrecondition(refused.to_string()))?;
        let kept = Kept::Tokens { tokens, app: flow.app };
        self.put_in_force(integration, &kept).await.map_err(Refusal::error)
    }

    async fn client(&self, integration: &Integration, flow: &Flow) -> Result<(Provider, App)> {
        self.credentials.provider(integration, flow.app.as_ref()).await.map_err(precondition)
    }

    /// Whether `integration` works now, as a request of its own would.
    pub(crate) async fn test(&self, integration: &Integration) -> Result<(), Refusal> {
        let refusal = |error: CredentialError| match error {
            CredentialError::NeedsReconnect(reason) => Refusal::Credential(reason),
            CredentialError::Unavailable(reason) => Refusal::Unavailable(reason),
        };
        let credential = self.credentials.of(integration).await.map_err(refusal)?;
        match self.probe.probe(integration, &credential).await {
            Err(Refusal::Credential(_)) => {
                let other = self.credentials.refused(integration, &[credential]).await.map_err(refusal)?;
                self.probe.probe(integration, &other).await.map(drop)
            }
            tried => tried.map(drop),
        }
    }

    /// Puts a new key in force; the one before it is tried where the new one is refused, for `overlap`. Gives its end.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` with the vendor's refusal, or where there is no key to rotate.
    pub(crate) async fn rotate(&self, integration: &Integration, given: Given, overlap: Duration) -> Result<Timestamp> {
        let overlap = check_overlap(overlap)?;
        let connection = self.credentials.connections.get(integration).await?;
        let connected = connection.filter(|connection| connection.state == State::Connected);
        let Some(Connection { version, kept: Some(old), .. }) = connected else {
            return Err(Error::FailedPrecondition("it isn't connected: connect it".to_owned()));
        };
        let new = match (given, &old) {
            (Given::Key(key), Kept::Key(_)) => Kept::Key(checked(key)?),
            (Given::Basic { user, password }, Kept::Basic { .. }) => Kept::Basic { user, password: checked(password)? },
            _ => return Err(wrong("only a key or a password is rotated, by another of its kind")),
        };
        self.probe.probe(integration, &new.credential()).await.map_err(Refusal::error)?;
        let until = self.credentials.clock.now() + SignedDuration::try_from(overlap).unwrap_or(SignedDuration::ZERO);
        let rotated = self.credentials.connections.rotate(integration, version, (&new, &old), until).await;
        self.credentials.forget(integration);
        rotated.map(|()| until)
    }

    fn url(&self, path: &str) -> Result<String> {
        let base = self.public_url.as_ref().ok_or_else(|| {
            Error::FailedPrecondition(
                "OAuth needs [vendor_sync] public_url: ask whoever runs this installation".to_owned(),
            )
        })?;
        Ok(format!("{}{path}", base.as_str().trim_end_matches('/')))
    }
}

fn precondition(error: CredentialError) -> Error {
    Error::FailedPrecondition(error.to_string())
}

fn wrong(reason: &str) -> Error {
    Error::invalid("credential", reason)
}

/// What no header could carry is no key.
fn checked(secret: Secret) -> Result<Secret> {
    let text = secret.expose();
    let fits = (1..=8_192).contains(&text.len()) && !text.chars().any(char::is_control);
    if fits { Ok(secret) } else { Err(wrong("must be 1 to 8,192 bytes, without control characters")) }
}
