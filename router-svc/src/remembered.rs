//! What is stored, remembered in memory: read without keeping anybody waiting, and never older than a change of it.
//!
//! Invariant: what was read before a change was made known is not remembered after it.

use std::{
    hash::{BuildHasher as _, Hash},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moka::sync::Cache;

/// Changes of so many parts of all keys are counted apart: a change makes only what is read of its part be read again.
const PARTS: usize = 64;

/// Values by what they are of. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remembered<K, V> {
    values: Cache<K, V>,
    /// How many changes were made known, by part.
    changes: Arc<[Mutex<u64>; PARTS]>,
    hasher: Arc<std::hash::RandomState>,
}

/// A value is being read, and was so before any change that is made known from here on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading(u64);

impl<K, V> Remembered<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// At most `most` values, for as long as they are asked for.
    pub(crate) fn new(most: u64) -> Self {
        Self::with(Cache::new(most))
    }

    /// At most `most` values, each for at most `age`.
    pub(crate) fn no_older_than(age: Duration, most: u64) -> Self {
        Self::with(Cache::builder().max_capacity(most).time_to_live(age).build())
    }

    fn with(values: Cache<K, V>) -> Self {
        Self { values, changes: Arc::new([const { Mutex::new(0) }; PARTS]), hasher: Arc::default() }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.values.get(key)
    }

    /// To be called before the store is asked.
    pub(crate) fn reading(&self, key: &K) -> Reading {
        Reading(*self.part(key))
    }

    /// Remembers what was read, unless it has changed meanwhile.
    pub(crate) fn keep(&self, key: K, value: V, reading: Reading) {
        let changes = self.part(&key);
        if *changes == reading.0 {
            self.values.insert(key, value);
        }
    }

    /// Remembers what was stored just now; of two changes the later is to be put later.
    pub(crate) fn put(&self, key: K, value: V) {
        let mut changes = self.part(&key);
        *changes += 1;
        self.values.insert(key, value);
    }

    /// It may have changed: it is read again.
    pub(crate) fn forget(&self, key: &K) {
        let mut changes = self.part(key);
        *changes += 1;
        self.values.invalidate(key);
    }

    fn part(&self, key: &K) -> MutexGuard<'_, u64> {
        let hash = self.hasher.hash_one(key);
        self.changes[hash as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_remembered_after_it() {
        let remembered: Remembered<&str, i32> = Remembered::new(10);
        for change in [|it: &Remembered<_, _>| it.forget(&"a"), |it: &Remembered<_, _>| it.put("a", 2)] {
            let reading = remembered.reading(&"a");
            change(&remembered);
            remembered.keep("a", 1, reading);
            assert_ne!(remembered.get(&"a"), Some(1));
        }
        remembered.forget(&"a");
        let reading = remembered.reading(&"a");
        remembered.keep("a", 3, reading);
        assert_eq!(remembered.get(&"a"), Some(3));
    }
}
