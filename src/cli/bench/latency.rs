//! Times, and how they are distributed.

use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The clock of a run: nanoseconds since it began. Rows carry it, so it only has to be the same in
/// the writer and the receivers, which are one process.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Nanoseconds since the clock began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The moment that a reading of this clock means.
    #[must_use]
    pub fn at(&self, nanos: u64) -> Instant {
        self.origin + std::time::Duration::from_nanos(nanos)
    }
}

/// A distribution of times, from a microsecond to an hour, to three digits.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Times {
    /// No times yet.
    ///
    /// # Errors
    /// Never with these bounds; the library cannot say so.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 3_600_000_000, 3)?))
    }

    /// Counts one time, in nanoseconds.
    pub fn record(&mut self, nanos: u64) {
        self.0.saturating_record((nanos / 1_000).max(1));
    }

    /// Adds another distribution.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so nothing can fall outside.
        let _added = self.0.add(&other.0);
    }

    /// The figures of a report; `None` where nothing was counted.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        (!self.0.is_empty()).then(|| Percentiles {
            p50: self.0.value_at_quantile(0.5),
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
        })
    }
}

/// Points of a distribution, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half of them are at most this.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// All of them.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut times = Times::new().unwrap();
        assert_eq!(times.percentiles(), None);
        let mut other = Times::new().unwrap();
        for micros in 1..=50 {
            times.record(micros * 1_000);
            other.record((micros + 50) * 1_000);
        }
        times.add(&other);
        let points = times.percentiles().unwrap();
        assert_eq!((points.p50, points.p90, points.max), (50, 90, 100));
    }
}
