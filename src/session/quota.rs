//! How many sockets somebody has open, and whether one more is too many.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::Principal;
use crate::metrics::{Metrics, Refused};

/// Whose sockets are counted together: one subject of tokens, in one role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    role: Arc<str>,
    subject: Box<str>,
}

impl User {
    /// Who a principal is; `None` where its token names nobody, as an anonymous key does.
    #[must_use]
    pub fn of(principal: &Principal) -> Option<Self> {
        Some(Self {
            role: Arc::clone(&principal.role),
            subject: principal.claims.subject()?.into(),
        })
    }
}

/// Counts the sockets of each key and refuses those beyond a limit. Shared by all sockets.
pub struct Quota<K: Eq + Hash> {
    most: usize,
    refused_as: Refused,
    metrics: Arc<Metrics>,
    taken: Mutex<HashMap<K, usize>>,
}

/// The keys are people and where they are.
impl<K: Eq + Hash> fmt::Debug for Quota<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota")
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// Up to `most` places for each key; `None` for 0, which means that nothing is counted.
    #[must_use]
    pub fn new(most: usize, refused_as: Refused, metrics: Arc<Metrics>) -> Option<Arc<Self>> {
        (most > 0).then(|| {
            Arc::new(Self {
                most,
                refused_as,
                metrics,
                taken: Mutex::default(),
            })
        })
    }

    /// One more place for `key`, until it is dropped.
    ///
    /// # Errors
    /// [`Full`], which is counted.
    pub fn take(self: &Arc<Self>, key: K) -> Result<Place<K>, Full> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let places = taken.entry(key.clone()).or_insert(0);
        // A key without places is only there where `most` is 0, which `new` rules out.
        if *places >= self.most {
            self.metrics.refused(self.refused_as);
            return Err(Full);
        }
        *places += 1;
        Ok(Place {
            quota: Arc::clone(self),
            key,
        })
    }

    /// Keys that hold a place.
    #[must_use]
    pub fn keys(&self) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.len()
    }
}

/// All places of a key are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Too many connected users")]
pub struct Full;

/// A place taken of a [`Quota`]. However its socket ends, dropping this gives it back.
pub struct Place<K: Eq + Hash> {
    quota: Arc<Quota<K>>,
    key: K,
}

impl<K: Eq + Hash> Place<K> {
    /// Whose place it is.
    pub const fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash> fmt::Debug for Place<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let taken = self.quota.taken.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = taken.get_mut(&self.key) {
            *places = places.saturating_sub(1);
            if *places == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_whoever_drops_them_and_nothing_is_kept_of_who_left() {
        let quota = Quota::new(2, Refused::Address, Arc::default()).unwrap();
        let (first, second) = (quota.take("a").unwrap(), quota.take("a").unwrap());
        assert_eq!(quota.take("a").unwrap_err(), Full);
        let other = quota.take("b").unwrap();
        drop(first);
        let third = quota.take("a").unwrap();
        assert!(quota.take("a").is_err());
        drop((second, third, other));
        assert_eq!(quota.keys(), 0);
    }

    #[test]
    fn zero_counts_nothing() {
        assert!(Quota::<u8>::new(0, Refused::User, Arc::default()).is_none());
    }
}
