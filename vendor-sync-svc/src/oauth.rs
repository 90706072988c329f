//! OAuth 2 (RFC 6749) with PKCE (RFC 7636) and revocation (RFC 7009), as a client of vendors.
//!
//! [`grant`] writes requests and judges answers, without any effect; [`Client`] sends them through the guard.
//! [`authorize`] is the way of a person's browser to the vendor and back. Written here and not taken from the crate
//! `oauth2`: that one is strict where vendors aren't (texts for numbers, no `token_type`, errors with 200), and brings
//! chrono and second versions of rand and sha2 for four form posts.

pub(crate) mod authorize;
pub(crate) mod grant;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chassis::{clock::Clock, config::Secret, expression::Expression, outbound::Outbound};

use self::grant::{Granted, Refused};
use crate::credential::App;

/// How long a vendor may take to answer; well below the lease under which tokens are refreshed.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a vendor grants tokens, as its connector declares it.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    pub(crate) grant: Grant,
    /// Unused with client credentials.
    pub(crate) authorize_url: String,
    pub(crate) token_url: String,
    /// Empty: it can't be told.
    pub(crate) revoke_url: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) scope_separator: String,
    pub(crate) pkce: bool,
    pub(crate) client_auth: ClientAuth,
    pub(crate) authorize_parameters: BTreeMap<String, String>,
    pub(crate) token_parameters: BTreeMap<String, String>,
    /// Where the answer has what: expressions over `body`.
    pub(crate) access_token: Arc<Expression>,
    pub(crate) refresh_token: Arc<Expression>,
    pub(crate) expires_in: Arc<Expression>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    AuthorizationCode,
    ClientCredentials,
}

/// How our client shows itself at the token URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    Basic,
    Body,
}

/// Speaks to vendors' token URLs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    outbound: Outbound,
    clock: Clock,
}

impl Client {
    pub(crate) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self { outbound, clock }
    }

    /// Asks for tokens.
    ///
    /// # Errors
    /// Why there are none, and whether asking again can help.
    pub(crate) async fn ask(&self, provider: &Provider, app: &App, form: &grant::Form) -> Result<Granted, Refused> {
        let request = grant::request(&provider.token_url, provider, app, form);
        let answer = self.outbound.send(request).await;
        let answer = answer.map_err(|failure| Refused::Passing { reason: failure.to_string(), retry_after: None })?;
        grant::judge(provider, &answer, self.clock.now())
    }

    /// Tells the vendor that `token` is not to be used any more.
    ///
    /// # Errors
    /// What went wrong; the token lives on at the vendor.
    pub(crate) async fn revoke(&self, provider: &Provider, app: &App, token: &Secret) -> Result<(), String> {
        if provider.revoke_url.is_empty() {
            return Err("the vendor has no way to be told: remove the access in its own settings".to_owned());
        }
        let request = grant::request(&provider.revoke_url, provider, app, &grant::revocation(token));
        let answer = self.outbound.send(request).await.map_err(|failure| failure.to_string())?;
        if answer.status.is_success() { Ok(()) } else { Err(format!("the vendor answered {}", answer.status)) }
    }
}
