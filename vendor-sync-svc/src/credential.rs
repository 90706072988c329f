//! What an integration authenticates with at its vendor, and how it is connected.
//!
//! [`Credentials`] hands the credential out that counts now, and knows what else to try when a vendor refuses it: the key
//! before the last rotation, or a fresh token. [`store`] keeps them, [`renew`] refreshes tokens, [`connect`] is what people ask
//! for, [`end`] how they end. How tokens are granted is `oauth`'s.

pub(crate) mod connect;
mod end;
mod held;
mod lease;
mod renew;
mod store;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod vendor;

use chassis::{config::Secret, id::OrganizationId};
use jiff::Timestamp;

pub(crate) use self::{
    held::{Credentials, Providers},
    store::{Connection, Connections},
};
use crate::integration::Integration;

/// What a request to the vendor carries.
#[derive(Clone, Debug)]
pub(crate) enum Credential {
    None,
    Key(Secret),
    Basic {
        user: String,
        password: Secret,
    },
    Token {
        token: Secret,
        /// Id of the organization's own OAuth client, in whose name it was granted; empty: of the installation's.
        client: String,
    },
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Key(a), Self::Key(b)) | (Self::Token { token: a, .. }, Self::Token { token: b, .. }) => {
                a.expose() == b.expose()
            }
            (Self::Basic { user, password }, Self::Basic { user: other, password: others }) => {
                user == other && password.expose() == others.expose()
            }
            _ => false,
        }
    }
}

/// Why there is no credential to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    /// Somebody must connect it again: `reason` says why, for people.
    #[error("it must be connected again: {0}")]
    NeedsReconnect(String),
    /// It may work later.
    #[error("{0}")]
    Unavailable(String),
}

impl From<chassis::error::Error> for CredentialError {
    fn from(error: chassis::error::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// How an integration stands with its vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Connected,
    /// The vendor takes its credential no more.
    NeedsReconnect,
    /// Never connected, or disconnected by somebody.
    Disconnected,
}

impl State {
    const ALL: [Self; 3] = [Self::Connected, Self::NeedsReconnect, Self::Disconnected];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::NeedsReconnect => "needs_reconnect",
            Self::Disconnected => "disconnected",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// An integration whose state has changed, for those who watch.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    pub(crate) organization: OrganizationId,
    pub(crate) id: String,
}

impl Changed {
    pub(crate) fn of(integration: &Integration) -> Self {
        Self { organization: integration.organization.clone(), id: integration.id.clone() }
    }
}

/// An OAuth client: ours with the vendor, or an organization's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct App {
    pub(crate) id: String,
    /// Empty for a public client.
    pub(crate) secret: Secret,
}

/// What a vendor granted.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) access: Secret,
    /// Empty: the vendor gave none.
    pub(crate) refresh: Secret,
    /// Unknown, or never.
    pub(crate) expires_at: Option<Timestamp>,
}

/// What is kept of an integration, from which the credential of a request is made.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    None,
    Key(Secret),
    Basic {
        user: String,
        password: Secret,
    },
    Tokens {
        tokens: Tokens,
        /// The organization's own; none: the configured one.
        app: Option<App>,
    },
}

impl Kept {
    pub(crate) fn credential(&self) -> Credential {
        match self {
            Self::None => Credential::None,
            Self::Key(key) => Credential::Key(key.clone()),
            Self::Basic { user, password } => Credential::Basic { user: user.clone(), password: password.clone() },
            Self::Tokens { tokens, app } => {
                let client = app.as_ref().map(|app| app.id.clone()).unwrap_or_default();
                Credential::Token { token: tokens.access.clone(), client }
            }
        }
    }
}
