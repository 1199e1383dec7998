//! What all subscribers of a round write down together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::latency::{Clock, Times};
use super::verifier::Verifier;
use super::writer::round_and_row;

/// What all subscribers of a round share.
#[derive(Debug)]
pub struct Books {
    /// The round.
    pub round: u32,
    /// Its clock.
    pub clock: Clock,
    /// Messages that arrived where they belong.
    pub delivered: AtomicU64,
    /// All messages that arrived.
    pub arrived: AtomicU64,
    /// When the last message arrived, by the clock.
    pub last: AtomicU64,
    /// From when a row was due to when it arrived.
    pub latency: Mutex<Times>,
    /// Why a subscriber ended before it was told to: the first of them.
    pub broken: Mutex<Option<String>>,
}

impl Books {
    /// Empty books.
    ///
    /// # Errors
    /// Never; see [`Times::new`].
    pub fn new(round: u32, clock: Clock) -> anyhow::Result<Self> {
        Ok(Self {
            round,
            clock,
            delivered: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            last: AtomicU64::new(0),
            latency: Mutex::new(Times::new()?),
            broken: Mutex::new(None),
        })
    }

    /// Enters a row that arrived.
    pub fn take(&self, verifier: &mut Verifier, id: u64, sent: u64) {
        let now = self.clock.now();
        self.arrived.fetch_add(1, Ordering::Relaxed);
        self.last.fetch_max(now, Ordering::Relaxed);
        let (round, row) = round_and_row(id);
        if round != u64::from(self.round) {
            verifier.take_stray();
        } else if verifier.take(row) {
            self.latency
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .record(now.saturating_sub(sent));
            self.delivered.fetch_add(1, Ordering::Release);
        }
    }

    /// Notes why a subscriber ended; the first to do so is heard.
    pub fn note(&self, why: String) {
        let mut first = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(why);
    }

    /// The times so far.
    #[must_use]
    pub fn latency(&self) -> Times {
        let latency = self.latency.lock();
        latency.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What [`Books::note`] heard first.
    #[must_use]
    pub fn why_broken(&self) -> Option<String> {
        let broken = self.broken.lock();
        broken.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
