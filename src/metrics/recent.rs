//! The last changes that were hidden, for somebody who looks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::HiddenReason;

/// So many are kept.
const KEPT: usize = 100;

/// A change that somebody asked for and did not get. It says nothing of the row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hidden {
    /// When that was decided, in milliseconds since 1970-01-01 00:00 UTC.
    pub at: u64,
    /// The change's place in the log.
    pub place: u64,
    /// The table's schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// The role that was judged; empty where it holds for all.
    pub role: String,
    /// `INSERT`, `UPDATE`, `DELETE` or `TRUNCATE`.
    pub event: &'static str,
    /// Why, as in the metric `rowcast_changes_hidden`.
    pub reason: &'static str,
    /// For how many clients.
    pub clients: u64,
}

/// What a hidden change is of.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The change's place in the log.
    pub place: u64,
    /// The table's schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// The role that was judged.
    pub role: String,
    /// What happened to the row.
    pub event: &'static str,
}

/// A bounded list, which is kept only while somebody looks.
#[derive(Debug, Default)]
pub struct Recent {
    watchers: AtomicUsize,
    kept: Mutex<VecDeque<Hidden>>,
}

/// Somebody looks for as long as this lives.
#[derive(Debug)]
pub struct Watching(Arc<Recent>);

impl Drop for Watching {
    fn drop(&mut self) {
        if self.0.watchers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.kept().clear();
        }
    }
}

impl Recent {
    /// Begins to keep, where nobody looked yet.
    #[must_use]
    pub fn watch(self: &Arc<Self>) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(Arc::clone(self))
    }

    /// Whether somebody looks.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Keeps one, where somebody looks.
    pub fn note(&self, subject: impl FnOnce() -> Subject, reason: HiddenReason, clients: u64) {
        if clients == 0 || !self.is_watched() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        let Subject {
            place,
            schema,
            table,
            role,
            event,
        } = subject();
        let hidden = Hidden {
            at: u64::try_from(now).unwrap_or(u64::MAX),
            place,
            schema,
            table,
            role,
            event,
            reason: reason.as_str(),
            clients,
        };
        let mut kept = self.kept();
        // A change is judged for one group of clients after the other.
        if let Some(last) = kept.back_mut()
            && (last.place, last.reason, &last.role) == (place, hidden.reason, &hidden.role)
        {
            last.clients += clients;
            return;
        }
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(hidden);
    }

    /// Those that are kept, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Hidden> {
        self.kept().iter().rev().cloned().collect()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<Hidden>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(place: u64) -> Subject {
        Subject {
            place,
            schema: "app".to_owned(),
            table: "note".to_owned(),
            role: "anon".to_owned(),
            event: "INSERT",
        }
    }

    #[test]
    fn hidden_changes_are_kept_while_somebody_looks_and_never_too_many() {
        let recent = Arc::new(Recent::default());
        recent.note(|| panic!("nobody looks"), HiddenReason::Policy, 1);
        let first = recent.watch();
        let second = recent.watch();
        for place in 0..250 {
            recent.note(|| subject(place), HiddenReason::Policy, 2);
            recent.note(|| subject(place), HiddenReason::Policy, 3);
        }
        recent.note(|| subject(7), HiddenReason::Policy, 0);
        drop(first);
        let list = recent.list();
        assert_eq!((list.len(), list[0].place, list[0].clients), (KEPT, 249, 5));
        drop(second);
        assert_eq!(recent.list(), []);
    }
}
