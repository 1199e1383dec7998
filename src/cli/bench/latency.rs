//! Times, and how they are distributed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The clock of a run: nanoseconds since it began. Rows carry it, so it has to be the same in the
/// writer and the receivers; where those are another process, a [`Reading`] carries it over.
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

    /// The clock's reading at a moment; 0 for one before it began.
    #[must_use]
    pub fn since(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The moment that a reading of this clock means.
    #[must_use]
    pub fn at(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }

    /// What another process needs to have the same clock. To be used at once: until then the
    /// machine's time of day must not be set.
    ///
    /// # Errors
    /// Where the machine's time is before 1970.
    pub fn read(&self) -> anyhow::Result<Reading> {
        Ok(Reading {
            clock: self.now(),
            unix: unix_nanos()?,
        })
    }

    /// The clock that another process of this machine read.
    ///
    /// # Errors
    /// Where the time of day was set in between.
    pub fn of(reading: Reading) -> anyhow::Result<Self> {
        let since = unix_nanos()?.saturating_sub(reading.unix);
        let origin = Instant::now()
            .checked_sub(Duration::from_nanos(reading.clock.saturating_add(since)))
            .context("The machine's time was set meanwhile")?;
        Ok(Self { origin })
    }
}

/// A clock's reading and the time of day at the same moment, in nanoseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reading {
    clock: u64,
    unix: u64,
}

fn unix_nanos() -> anyhow::Result<u64> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("The machine's time is before 1970")?;
    Ok(u64::try_from(since.as_nanos())?)
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

    /// Every time that was counted, in microseconds, and how often: what another process needs to
    /// [`Times::put`] them together again.
    #[must_use]
    pub fn counts(&self) -> Vec<(u64, u64)> {
        self.0
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect()
    }

    /// Adds what [`Times::counts`] gave.
    pub fn put(&mut self, counts: &[(u64, u64)]) {
        for (micros, count) in counts {
            self.0.saturating_record_n(*micros, *count);
        }
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
    fn counts_carry_a_distribution_over() {
        let mut times = Times::new().unwrap();
        for micros in [1, 7, 7, 1_234, 99_999_999] {
            times.record(micros * 1_000);
        }
        let mut copy = Times::new().unwrap();
        copy.put(&times.counts());
        assert_eq!(copy.percentiles(), times.percentiles());
    }

    #[test]
    fn a_reading_carries_the_clock_over() {
        let clock = Clock::start();
        let copy = Clock::of(clock.read().unwrap()).unwrap();
        let (before, between, after) = (clock.now(), copy.now(), clock.now());
        let slack = 5_000_000;
        assert!(before < between + slack && between < after + slack);
    }

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
