//! A person's way through the vendor's page: begun by a ticket, bound to the browser that opened it, and taken up once.
//!
//! Whoever asks for a connection gets a link to our gateway with a ticket, not the vendor's own URL. The browser that opens
//! it first gets a secret of its own in a `__Host-` cookie, which only our gateway's pages can set and read, and only then
//! a state goes out. So a state that leaks (from a log, a referrer, the vendor) completes nothing without the cookie, and
//! nobody's answer ends in a flow that another browser began. A binding given along with the URL would need the dashboard
//! to be on the gateway's own host.
//!
//! Of ticket, state and cookie the store has the hashes alone. A wrong cookie uses nothing up: else a thief could end what
//! he can't complete.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chassis::{
    clock::{Clock, from_micros},
    config::Secret,
    error::{Error, Result},
    id::OrganizationId,
    secret::{self, DataKeys, place},
    store::Store,
    with,
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{credential::App, integration::Integration};

const GOOD_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Flows of one organization that may be open at a time.
const OPEN: i64 = 100;
const LONGEST_TEXT: usize = 128;

/// All flows that are under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Authorizations {
    store: Store,
    keys: DataKeys,
    clock: Clock,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) organization: OrganizationId,
    pub(crate) integration_id: String,
    /// RFC 7636's code verifier.
    pub(crate) verifier: Secret,
    /// The organization's own client; none: ours.
    pub(crate) app: Option<App>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    verifier: String,
    app: Option<(String, String)>,
}

#[derive(sqlx::FromRow)]
struct Row {
    ticket: Vec<u8>,
    organization_id: String,
    integration_id: String,
    secrets: Vec<u8>,
}

impl Authorizations {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock }
    }

    /// Begins one; gives its ticket, and until when it is good.
    ///
    /// # Errors
    /// `Error::Exhausted` while too many are open; `Error::Unavailable` while the store is away.
    pub(crate) async fn begin(&self, integration: &Integration, app: Option<&App>) -> Result<(String, Timestamp)> {
        let (ticket, now) = (random_text(), self.clock.now());
        let expires_at = from_micros((now + GOOD_FOR).as_microsecond());
        self.sweep(&integration.organization, now).await?;
        let sealed =
            Sealed { verifier: random_text(), app: app.map(|app| (app.id.clone(), app.secret.expose().to_owned())) };
        let plain = serde_json::to_vec(&sealed).map_err(Error::internal)?;
        let hash = hash(&ticket);
        let secrets = self.keys.of(&integration.organization).await?.seal(&place_of(&hash), &plain);
        with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO authorizations (ticket, organization_id, integration_id, secrets, expires_at) \
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(&hash)
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(&secrets)
            .bind(expires_at.as_microsecond())
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok((ticket, expires_at))
    }

    /// Forgets what is over, and makes sure that there is room.
    async fn sweep(&self, organization: &OrganizationId, now: Timestamp) -> Result<()> {
        let now = now.as_microsecond();
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM authorizations WHERE expires_at <= $1").bind(now).execute(c).await.map(drop)
        })?;
        let open: i64 = with!(self.store.reader(), c => {
            sqlx::query_scalar("SELECT COUNT(*) FROM authorizations WHERE organization_id = $1")
                .bind(organization.as_str())
                .fetch_one(c)
                .await
        })?;
        if open < OPEN {
            return Ok(());
        }
        let retry_after = std::time::Duration::from_secs(60);
        Err(Error::Exhausted { reason: format!("{OPEN} connections are being made already"), retry_after })
    }

    /// The flow of a `ticket` that no browser has opened yet.
    ///
    /// # Errors
    /// `Error::NotFound` for a ticket that isn't good, or any more.
    pub(crate) async fn peek(&self, ticket: &str) -> Result<Flow> {
        check(ticket)?;
        let row: Option<Row> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT ticket, organization_id, integration_id, secrets FROM authorizations \
                 WHERE ticket = $1 AND state IS NULL AND expires_at > $2",
            )
            .bind(hash(ticket))
            .bind(self.clock.now_micros())
            .fetch_optional(c)
            .await
        })?;
        self.unseal(row.ok_or_else(unknown)?).await
    }

    /// A browser opens `ticket`, for the first and only time: from here on the flow is its. Gives the flow's state.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn open(&self, ticket: &str, browser: &str) -> Result<String> {
        check(ticket)?;
        check(browser)?;
        let state = random_text();
        let opened = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE authorizations SET state = $2, browser = $3 WHERE ticket = $1 AND state IS NULL AND expires_at > $4",
            )
            .bind(hash(ticket))
            .bind(hash(&state))
            .bind(hash(browser))
            .bind(self.clock.now_micros())
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if opened == 1 { Ok(state) } else { Err(unknown()) }
    }

    /// Takes the flow of `state` up, if it is this browser's: it can't be taken up again.
    ///
    /// # Errors
    /// `Error::NotFound` for a state that isn't good, any more, or here.
    pub(crate) async fn take(&self, state: &str, browser: &str) -> Result<Flow> {
        check(state)?;
        check(browser)?;
        let row: Option<Row> = with!(self.store.writer(), c => {
            sqlx::query_as(
                "DELETE FROM authorizations WHERE state = $1 AND browser = $2 AND expires_at > $3 \
                 RETURNING ticket, organization_id, integration_id, secrets",
            )
            .bind(hash(state))
            .bind(hash(browser))
            .bind(self.clock.now_micros())
            .fetch_optional(c)
            .await
        })?;
        self.unseal(row.ok_or_else(unknown)?).await
    }

    async fn unseal(&self, row: Row) -> Result<Flow> {
        let organization = OrganizationId::parse(&row.organization_id)?;
        let plain = self.keys.of(&organization).await?.open(&place_of(&row.ticket), &row.secrets)?;
        let sealed: Sealed = serde_json::from_slice(&plain).map_err(Error::internal)?;
        Ok(Flow {
            organization,
            integration_id: row.integration_id,
            verifier: sealed.verifier.into(),
            app: sealed.app.map(|(id, secret)| App { id, secret: secret.into() }),
        })
    }
}

/// 256 random bits as 43 characters that a URL, a cookie and a verifier may hold.
fn random_text() -> String {
    URL_SAFE_NO_PAD.encode(secret::random::<32>())
}

fn hash(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}

fn place_of(ticket: &[u8]) -> Vec<u8> {
    place("authorizations", "secrets", &hex::encode(ticket))
}

fn check(text: &str) -> Result<()> {
    let is_ours = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let fits = (1..=LONGEST_TEXT).contains(&text.len()) && text.bytes().all(is_ours);
    if fits { Ok(()) } else { Err(unknown()) }
}

fn unknown() -> Error {
    Error::NotFound("authorization".into())
}
