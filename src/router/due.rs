//! Who was handed changes and has not been told yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Outbox};

/// How long a change may wait for others that go out with it.
const PATIENCE: Duration = Duration::from_micros(500);

/// Outboxes that are brought to their clients in one go: a write takes a few microseconds.
const AT_ONCE: usize = 128;

/// Changes for each of the outboxes, on average, that are brought to the clients before there are
/// more: so many take one write, and fewer than have the sessions' own tasks look.
const COMPANY: usize = 60;

/// The outboxes that were empty before the pass in hand. What comes for them meanwhile goes out with
/// what they have, in one write.
#[derive(Default)]
pub(super) struct Due {
    outboxes: Vec<Arc<Outbox>>,
    since: Option<Instant>,
    /// Changes that were handed out since.
    changes: usize,
}

impl Due {
    pub(super) fn hand(&mut self, outbox: &Arc<Outbox>, event: Event) {
        self.changes += 1;
        if outbox.push_quietly(event) {
            if self.outboxes.is_empty() {
                self.since = Some(Instant::now());
            }
            self.outboxes.push(Arc::clone(outbox));
        }
    }

    /// Whether the first one has waited long enough.
    pub(super) fn is_pressing(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// Whether much waits, for one write each: a large transaction is not to wait in the outboxes
    /// as a whole.
    pub(super) fn is_full(&self) -> bool {
        !self.outboxes.is_empty() && self.changes >= COMPANY * self.outboxes.len()
    }

    /// Brings everything to the clients, or has their tasks do it. Where they are many, tasks of
    /// their own do so for most of them: other cores take their share, and the router goes on. An
    /// outbox is due again only once it was emptied, so no more than all of them are under way.
    pub(super) fn deliver(&mut self) {
        self.since = None;
        self.changes = 0;
        while self.outboxes.len() > AT_ONCE {
            let part = self.outboxes.split_off(self.outboxes.len() - AT_ONCE);
            tokio::spawn(async move {
                for outbox in part {
                    outbox.deliver();
                }
            });
        }
        for outbox in self.outboxes.drain(..) {
            outbox.deliver();
        }
    }
}
