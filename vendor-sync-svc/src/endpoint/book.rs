//! Every endpoint in memory, for matching and for the courier. It is what the store holds: one process owns the store,
//! and `manage.rs` changes both.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};

use super::{Endpoint, State};
use crate::{event::Event, matching::Index};

/// All endpoints. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book(Arc<RwLock<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    by_id: HashMap<Arc<str>, Arc<Endpoint>>,
    /// Those that get deliveries: active and paused ones.
    index: Index,
}

impl Book {
    /// Shows the courier an endpoint that is new; nothing matches it yet.
    pub(crate) fn show(&self, endpoint: &Endpoint) {
        self.write().by_id.entry(endpoint.id.clone()).or_insert_with(|| Arc::new(endpoint.clone()));
    }

    /// Takes an endpoint in, in place of its version before.
    pub(crate) fn put(&self, endpoint: Endpoint) -> Arc<Endpoint> {
        let endpoint = Arc::new(endpoint);
        let mut pages = self.write();
        if let Some(before) = pages.by_id.insert(endpoint.id.clone(), endpoint.clone()) {
            pages.index.remove(&before);
        }
        if endpoint.state != State::Disabled {
            pages.index.insert(&endpoint);
        }
        endpoint
    }

    /// Takes an endpoint out: nothing matches it any more.
    pub(crate) fn remove(&self, id: &str) {
        let mut pages = self.write();
        if let Some(endpoint) = pages.by_id.remove(id) {
            pages.index.remove(&endpoint);
        }
    }

    /// Whoever's it is.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Endpoint>> {
        self.read().by_id.get(id).cloned()
    }

    /// An organization's own.
    ///
    /// # Errors
    /// `Error::NotFound` for an unknown id, and for another organization's.
    pub(crate) fn of(&self, organization: &OrganizationId, id: &str) -> Result<Arc<Endpoint>> {
        let found = self.get(id).filter(|endpoint| endpoint.organization == *organization);
        found.ok_or_else(|| Error::NotFound("endpoint".into()))
    }

    /// The endpoints that want `event`.
    pub(crate) fn find(&self, event: &Event) -> Vec<Arc<Endpoint>> {
        self.read().index.find(event)
    }

    /// Those whose end is still to be published.
    pub(crate) fn to_announce(&self) -> Vec<Arc<Endpoint>> {
        self.read().by_id.values().filter(|endpoint| endpoint.announce).cloned().collect()
    }

    // What panics while it holds the lock leaves whole entries behind: each change is one insertion or removal.
    fn read(&self) -> RwLockReadGuard<'_, Pages> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pages> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoint::tests::{endpoint, settings},
        event::tests::change,
    };

    #[test]
    fn a_new_version_replaces_the_one_before_and_a_disabled_one_gets_nothing() {
        let (book, event) = (Book::default(), change("{}", "{}"));
        let mut one = endpoint("a", settings());
        book.put(one.clone());
        assert_eq!(book.find(&event).len(), 1);
        one.settings.event_types = vec!["payment.received".to_owned()];
        one.compiled = Arc::new(one.settings.check().expect("settings that pass"));
        book.put(one.clone());
        assert!(book.find(&event).is_empty());
        (one.settings, one.compiled) = (settings(), Arc::new(settings().check().expect("settings that pass")));
        one.state = State::Paused;
        book.put(one.clone());
        assert_eq!(book.find(&event).len(), 1);
        one.state = State::Disabled;
        book.put(one);
        assert!(book.find(&event).is_empty() && book.get("a").is_some());
        book.remove("a");
        assert!(book.get("a").is_none());
    }

    #[test]
    fn another_organizations_endpoint_is_not_found() {
        let book = Book::default();
        book.put(endpoint("a", settings()));
        let other = OrganizationId::parse("other").expect("well-formed");
        assert!(matches!(book.of(&other, "a"), Err(Error::NotFound(_))));
    }
}
