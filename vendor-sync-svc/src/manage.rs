//! Changes of endpoints: vetted, then kept, then in force (book and lane), one at a time.
//!
//! Invariant: events match an endpoint only while its lane is open (disabled ones have none), since an offer to a lane that
//! isn't open is dropped; and the courier knows it before its lane opens, which sends at once what waits there. Each
//! operation keeps that order, and undoes it where it fails half way.

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::{self, OrganizationId},
    lane::{self, Dispatcher},
    outbound::Outbound,
    secret::DataKeys,
    signature::WebhookSecret,
    store::Store,
};
use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard};

use crate::endpoint::{Endpoint, KeptSecret, Settings, Since, State, book::Book, rows};

/// How many endpoints are read at once at the start.
const PAGE: u32 = 500;

/// All endpoints, and the way to change them.
pub(crate) struct Endpoints {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) book: Book,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) outbound: Outbound,
    pub(crate) clock: Clock,
    changing: Mutex<()>,
}

impl Endpoints {
    /// Reads every endpoint of the store into `book` and opens its lane. Events may be offered once this returns.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn open(
        store: Store,
        keys: DataKeys,
        book: Book,
        dispatcher: Dispatcher,
        outbound: Outbound,
        clock: Clock,
    ) -> Result<Self> {
        let endpoints = Self { store, keys, book, dispatcher, outbound, clock, changing: Mutex::default() };
        let mut after = String::new();
        loop {
            let page = rows::page(&endpoints.store, &endpoints.keys, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(endpoints) };
            after = last.id.to_string();
            for endpoint in page {
                endpoints.enforce(endpoint).await?;
            }
        }
    }

    /// Makes an endpoint that sees what comes after `since`, and its first secret.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field; those of the store.
    pub(crate) async fn create(
        &self,
        organization: OrganizationId,
        settings: Settings,
        since: Since,
    ) -> Result<(Arc<Endpoint>, WebhookSecret)> {
        self.create_as(&id::uuid(self.clock.now()), organization, settings, since, None).await
    }

    /// The same with an id that the caller chose, a UUID, and with its own secret where it has one.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn create_as(
        &self,
        id: &str,
        organization: OrganizationId,
        settings: Settings,
        since: Since,
        secret: Option<WebhookSecret>,
    ) -> Result<(Arc<Endpoint>, WebhookSecret)> {
        let compiled = Arc::new(settings.check()?);
        let (now, secret) = (self.clock.now(), secret.unwrap_or_else(WebhookSecret::generate));
        let endpoint = Endpoint {
            id: id.into(),
            organization,
            settings,
            compiled,
            secrets: vec![KeptSecret { secret: secret.clone(), expires_at: None }],
            state: State::Active,
            state_reason: String::new(),
            announce: false,
            version: 1,
            since,
            created_at: now,
            updated_at: now,
        };
        let _changing = self.changing.lock().await;
        rows::insert(&self.store, &self.keys, &endpoint).await?;
        Ok((self.enforce(endpoint).await?, secret))
    }

    /// Judges a URL with every address that its name has now, and gives the form to keep.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field.
    pub(crate) async fn vet(&self, url: &str) -> Result<String> {
        let vetted = self.outbound.vet_resolved(url).await;
        vetted.map(Into::into).map_err(|error| Error::invalid("url", error.to_string()))
    }

    /// Replaces the settings of version `version`.
    ///
    /// # Errors
    /// `Error::Aborted` if it is another version by now; `Error::Invalid` naming the field; those of the store.
    pub(crate) async fn update(
        &self,
        organization: &OrganizationId,
        id: &str,
        version: u64,
        mut settings: Settings,
    ) -> Result<Arc<Endpoint>> {
        let before = self.book.of(organization, id)?;
        if settings.url != before.settings.url {
            settings.url = self.vet(&settings.url).await?;
        }
        let changing = self.changing.lock().await;
        let mut endpoint = (*self.book.of(organization, id)?).clone();
        if endpoint.version != version {
            return Err(Error::Aborted(format!(
                "the endpoint is at version {} by now: read it again",
                endpoint.version
            )));
        }
        settings.keep_redacted(&endpoint.settings);
        endpoint.compiled = Arc::new(settings.check()?);
        endpoint.settings = settings;
        self.keep(&changing, endpoint).await
    }

    /// Lets deliveries wait.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` for one that is disabled; those of the store.
    pub(crate) async fn pause(&self, organization: &OrganizationId, id: &str) -> Result<Arc<Endpoint>> {
        let changing = self.changing.lock().await;
        let before = self.book.of(organization, id)?;
        match before.state {
            State::Paused => Ok(before),
            State::Disabled => {
                Err(Error::FailedPrecondition("the endpoint is disabled, so nothing is sent: resume it first".into()))
            }
            State::Active => self.change_state(&changing, &before, State::Paused, "paused by its owner").await,
        }
    }

    /// Sends what waits, and enables an endpoint that was disabled.
    ///
    /// # Errors
    /// `Error::Invalid` if the settings of a disabled one don't hold any more; those of the store.
    pub(crate) async fn resume(&self, organization: &OrganizationId, id: &str) -> Result<Arc<Endpoint>> {
        let changing = self.changing.lock().await;
        let before = self.book.of(organization, id)?;
        if before.state == State::Active {
            return Ok(before);
        }
        before.settings.check()?;
        self.change_state(&changing, &before, State::Active, "").await
    }

    /// Ends an endpoint, for `reason`; that is to be published. One that is disabled or gone stays as it is.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn disable(&self, id: &str, reason: &str) -> Result<()> {
        let changing = self.changing.lock().await;
        let Some(before) = self.book.get(id).filter(|endpoint| endpoint.state != State::Disabled) else {
            return Ok(());
        };
        self.change_state(&changing, &before, State::Disabled, reason).await.map(drop)
    }

    /// Notes that an endpoint's end was published.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn announced(&self, endpoint: &Endpoint) -> Result<()> {
        let _changing = self.changing.lock().await;
        rows::announced(&self.store, endpoint).await?;
        if let Some(now) = self.book.get(&endpoint.id).filter(|now| now.version == endpoint.version) {
            self.book.put(Endpoint { announce: false, ..(*now).clone() });
        }
        Ok(())
    }

    /// Gives a new secret; the one before keeps signing for `overlap`. Also gives when that ends.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` while too many still sign; those of the store.
    pub(crate) async fn rotate(
        &self,
        organization: &OrganizationId,
        id: &str,
        overlap: Duration,
    ) -> Result<(WebhookSecret, Timestamp)> {
        let secret = WebhookSecret::generate();
        let ends = self.rotate_to(organization, id, secret.clone(), overlap).await?;
        Ok((secret, ends))
    }

    /// The same with a secret that the caller has. Gives when the one before ends.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn rotate_to(
        &self,
        organization: &OrganizationId,
        id: &str,
        secret: WebhookSecret,
        overlap: Duration,
    ) -> Result<Timestamp> {
        let changing = self.changing.lock().await;
        let mut endpoint = (*self.book.of(organization, id)?).clone();
        let ends = endpoint.rotate(secret, overlap, self.clock.now())?;
        self.keep(&changing, endpoint).await?;
        Ok(ends)
    }

    /// Removes an endpoint and cancels what waits for it. Gives the number cancelled.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn delete(&self, organization: &OrganizationId, id: &str) -> Result<u64> {
        let _changing = self.changing.lock().await;
        let endpoint = self.book.of(organization, id)?;
        self.book.remove(id);
        let cancelled =
            self.dispatcher.remove(id, organization, lane::State::Cancelled, "the endpoint was deleted").await;
        let deleted = match cancelled {
            Ok(cancelled) => rows::delete(&self.store, &endpoint).await.map(|()| cancelled),
            Err(error) => Err(error),
        };
        if deleted.is_err() {
            self.enforce((*endpoint).clone()).await?;
        }
        deleted
    }

    async fn change_state(
        &self,
        changing: &MutexGuard<'_, ()>,
        before: &Endpoint,
        state: State,
        reason: &str,
    ) -> Result<Arc<Endpoint>> {
        let announce = state == State::Disabled;
        // One whose settings once didn't hold has nothing compiled.
        let compiled =
            if state == State::Active { Arc::new(before.settings.check()?) } else { before.compiled.clone() };
        let after = Endpoint { state, state_reason: reason.to_owned(), announce, compiled, ..before.clone() };
        self.keep(changing, after).await
    }

    /// Keeps the next version and puts it in force.
    async fn keep(&self, _changing: &MutexGuard<'_, ()>, mut endpoint: Endpoint) -> Result<Arc<Endpoint>> {
        endpoint.version += 1;
        endpoint.updated_at = self.clock.now();
        rows::update(&self.store, &self.keys, &endpoint).await?;
        self.enforce(endpoint).await
    }

    /// Opens the lane as the settings say, then lets events match.
    async fn enforce(&self, endpoint: Endpoint) -> Result<Arc<Endpoint>> {
        if endpoint.state != State::Disabled {
            self.book.show(&endpoint);
            self.dispatcher.open(&endpoint.id, &endpoint.organization, endpoint.lane()).await?;
        }
        Ok(self.book.put(endpoint))
    }
}
