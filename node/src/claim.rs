//! Things that one worker at a time may hold.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// What is being worked on.
#[derive(Debug)]
pub struct Claims<K>(Arc<Mutex<HashSet<K>>>);

impl<K> Clone for Claims<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Claims<K> {
    /// The claim on `what`, unless somebody holds it.
    #[must_use]
    pub fn take(&self, what: K) -> Option<Claim<K>> {
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(what.clone());
        fresh.then(|| Claim(self.clone(), what))
    }
}

/// Keeps others from what it was taken for, until dropped.
#[derive(Debug)]
pub struct Claim<K: Eq + Hash>(Claims<K>, K);

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}
