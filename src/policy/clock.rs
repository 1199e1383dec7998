//! What time it is on the server: policies that compare with `now()` mean that clock, and the relay's
//! may be wrong.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long a look at the server's clock is good for: what runs here meanwhile may be off by a second
/// in some hours.
const GOOD_FOR: Duration = Duration::from_mins(10);

/// The server's clock, from when it was looked at last on; what has passed since is told by the
/// machine's clock that nobody sets.
#[derive(Default)]
pub struct ServerClock(Mutex<Option<(i64, Instant)>>);

impl ServerClock {
    /// One that takes the server's time to be this machine's now, for who runs beside it.
    #[must_use]
    pub fn local() -> Self {
        const EPOCH: i64 = 946_684_800_000_000;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let micros = since
            .ok()
            .and_then(|since| i64::try_from(since.as_micros()).ok());
        let clock = Self::default();
        if let Some(micros) = micros {
            clock.set(micros - EPOCH, Instant::now());
        }
        clock
    }

    /// Notes what time it was there, in microseconds since 2000-01-01 00:00 UTC, at a moment of here.
    pub fn set(&self, micros: i64, at: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((micros, at));
    }

    /// What time it is there, in microseconds since 2000-01-01 00:00 UTC; `None` where it was not
    /// looked for long.
    #[must_use]
    pub fn now(&self) -> Option<i64> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (micros, at) = known?;
        let passed = at.elapsed();
        let passed = i64::try_from(passed.as_micros())
            .ok()
            .filter(|_| passed < GOOD_FOR)?;
        micros.checked_add(passed)
    }
}

/// There is one server.
impl PartialEq for ServerClock {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for ServerClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerClock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_what_was_seen_and_is_not_known_for_ever() {
        let clock = ServerClock::default();
        assert_eq!(clock.now(), None, "nobody has looked");
        let begun = Instant::now();
        clock.set(1_000, begun);
        let now = clock.now().unwrap();
        let most = 1_000 + i64::try_from(begun.elapsed().as_micros()).unwrap();
        assert!((1_000..=most).contains(&now));
        if let Some(long_ago) = begun.checked_sub(GOOD_FOR) {
            clock.set(1_000, long_ago);
            assert_eq!(clock.now(), None);
        }
    }
}
