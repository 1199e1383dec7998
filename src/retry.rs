//! Waiting between attempts: exponential, capped, with jitter.

use std::time::Duration;

use rand::Rng;

/// How long to wait before the next attempt. Doubles from `first` to `cap`; each wait is drawn
/// from the upper half of its span so that many processes do not come back at the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that starts at `first` and never waits longer than `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            failures: 0,
        }
    }

    /// Counts one failure and returns how long to wait before trying again.
    pub fn after_failure(&mut self) -> Duration {
        let span = self
            .first
            .saturating_mul(1_u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX))
            .min(self.cap);
        self.failures = self.failures.saturating_add(1);
        span.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Forgets the failures: the next wait is short again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last [`Backoff::reset`].
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_never_past_it() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            let wait = backoff.after_failure();
            assert!(wait >= Duration::from_millis(50) && wait <= Duration::from_secs(5));
            longest = longest.max(wait);
        }
        assert!(
            longest >= Duration::from_millis(2500),
            "the cap is reached, got {longest:?}"
        );
        backoff.reset();
        assert!(backoff.after_failure() <= Duration::from_millis(100));
    }
}
