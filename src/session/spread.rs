//! Channels that break at the same time do so one after the other, so that their clients do not all
//! come back at the same instant.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Between two channels: a relay alone takes in more than a thousand a second, but each of their
/// clients reads its tables as well.
const GAP: Duration = Duration::from_millis(1);

/// The times at which channels break, shared by all sockets. A single one breaks at once.
#[derive(Debug)]
pub struct Spread {
    most: Duration,
    /// When the next may, since the clock's start.
    next: Mutex<Duration>,
}

impl Spread {
    /// Nobody is put off for longer than `most`: where more channels break than have room in that
    /// time, they break more closely together.
    #[must_use]
    pub const fn new(most: Duration) -> Self {
        Self {
            most,
            next: Mutex::new(Duration::ZERO),
        }
    }

    /// When a channel that is to break `now` does.
    pub(super) fn place(&self, now: Duration) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = if *next > now + self.most {
            // The time is full: once more from its beginning, between those that are there.
            now
        } else {
            now.max(*next)
        };
        *next = at + GAP;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_breaks_at_once_and_many_one_after_the_other_for_no_longer_than_they_may() {
        let spread = Spread::new(5 * SECOND);
        assert_eq!(spread.place(SECOND), SECOND, "alone");
        assert_eq!(spread.place(2 * SECOND), 2 * SECOND, "alone again");
        let now = 10 * SECOND;
        let mut places: Vec<Duration> = (0..12_000).map(|_| spread.place(now) - now).collect();
        assert_eq!(places[..3], [0, 1, 2].map(Duration::from_millis));
        assert_eq!(places.iter().max(), Some(&(5 * SECOND)));
        places.sort();
        let within = |from: u64, to: u64| {
            let range = Duration::from_millis(from)..Duration::from_millis(to);
            places.iter().filter(|place| range.contains(*place)).count()
        };
        for second in 0..5 {
            let there = within(second * 1000, second * 1000 + 1000);
            assert!((2000..=3000).contains(&there), "{there} in second {second}");
        }
        // All of that is over.
        assert_eq!(spread.place(30 * SECOND), 30 * SECOND);
    }

    #[test]
    fn without_a_time_to_spread_over_all_break_at_once() {
        let spread = Spread::new(Duration::ZERO);
        for _ in 0..10 {
            assert_eq!(spread.place(SECOND), SECOND);
        }
    }
}
