//! How a connection ends: its vendor is told, where that can be done, and what it authenticated with is forgotten here.

use chassis::error::{Error, Result};

use super::{Credentials, Kept, State};
use crate::integration::Integration;

impl Credentials {
    /// Ends the access at the vendor, and forgets it here in any case but one: what somebody connected anew meanwhile stays.
    /// What the vendor couldn't be told is given back, for people.
    ///
    /// # Errors
    /// `Error::Aborted` if another credential is in force by now; `Error::Unavailable` while the store is away.
    pub(crate) async fn disconnect(&self, integration: &Integration) -> Result<Option<String>> {
        let connection = self.connections.get(integration).await?;
        let Some(connection) = connection.filter(|connection| connection.state != State::Disconnected) else {
            return Ok(None);
        };
        let untold = match &connection.kept {
            Some(kept) => self.revoke(integration, kept).await,
            None => None,
        };
        let is_done = self.connections.disconnect(integration, connection.version).await?;
        self.forget(integration);
        if !is_done {
            let reason = "another credential was put in force meanwhile: disconnect it again if that is to end, too";
            return Err(Error::Aborted(reason.to_owned()));
        }
        Ok(untold)
    }

    /// Leaves nothing of an integration that is about to be deleted. Its vendor is told beside that, and holds up nobody.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn let_go(&self, integration: &Integration) -> Result<()> {
        let kept = self.connections.get(integration).await?.and_then(|connection| connection.kept);
        self.connections.remove(integration).await?;
        self.forget(integration);
        if let Some(kept @ Kept::Tokens { .. }) = kept {
            let (this, integration) = (self.clone(), integration.clone());
            self.tasks.spawn("credential.revoke", async move {
                if let Some(reason) = this.revoke(&integration, &kept).await {
                    tracing::info!(integration.id, reason, "a deleted integration's access lives on at its vendor");
                }
            });
        }
        Ok(())
    }

    /// Why the vendor couldn't be told; none: it was, or there is nothing to tell.
    async fn revoke(&self, integration: &Integration, kept: &Kept) -> Option<String> {
        let Kept::Tokens { tokens, app } = kept else { return None };
        // The refresh token: with it goes all that was granted (RFC 7009, section 2.1).
        let token = if tokens.refresh.is_empty() { &tokens.access } else { &tokens.refresh };
        match self.provider(integration, app.as_ref()).await {
            Ok((provider, app)) => self.oauth.revoke(provider.declared(), &app, token).await.err(),
            Err(error) => Some(error.to_string()),
        }
    }
}
