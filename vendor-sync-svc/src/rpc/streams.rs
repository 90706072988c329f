//! How many streams are open: so many of all, of which no organization has more than its share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chassis::{
    error::{Error, RETRY_AFTER, Result},
    id::OrganizationId,
};

/// Places for streams of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    most: usize,
    share: usize,
    open: Arc<Mutex<HashMap<OrganizationId, usize>>>,
}

/// That of one stream, while it is open.
#[derive(Debug)]
pub(crate) struct Place(Streams, OrganizationId);

impl Streams {
    pub(crate) fn new(most: usize, share: usize) -> Self {
        Self { most, share, open: Arc::default() }
    }

    /// A place for one more.
    ///
    /// # Errors
    /// `Error::Exhausted` where the organization has its share, or all are taken.
    pub(crate) fn place(&self, organization: &OrganizationId) -> Result<Place> {
        let mut open = self.lock();
        let own = open.get(organization).copied().unwrap_or(0);
        if own >= self.share || open.values().sum::<usize>() >= self.most {
            let reason = format!("{own} streams of this kind are open already");
            return Err(Error::Exhausted { reason, retry_after: RETRY_AFTER });
        }
        open.insert(organization.clone(), own + 1);
        Ok(Place(self.clone(), organization.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OrganizationId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.0.lock();
        match open.get_mut(&self.1) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(open.remove(&self.1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_has_no_more_than_its_share_and_gets_it_back() {
        let streams = Streams::new(3, 2);
        let place = |name: &str| streams.place(&OrganizationId::parse(name).expect("well-formed"));
        let (one, two) = (place("a"), place("a"));
        assert!(one.is_ok() && two.is_ok() && matches!(place("a"), Err(Error::Exhausted { .. })));
        let three = place("b");
        assert!(three.is_ok() && place("c").is_err(), "all are taken");
        drop(one);
        let four = place("a");
        assert!(four.is_ok() && place("a").is_err());
        drop((two, three, four));
        assert!(streams.lock().is_empty(), "nobody is remembered");
    }
}
