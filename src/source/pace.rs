//! When to read the replication stream again.
//!
//! A walsender hands each message to the system by itself, so whoever reads as soon as there is
//! something reads the messages of a busy stream one by one: two system calls and a wake-up each, on
//! both sides. A stream that is busy is let collect.

use std::time::Duration;

use tokio::time::Instant;

/// For how long a busy stream is let collect: the shortest time that tokio's clock knows.
const REST: Duration = Duration::from_millis(1);

/// A stream is busy that brings this many frames...
const FRAMES: usize = 64;

/// ... within this time: more than 16,000 in a second. Less is read as it comes.
const WINDOW: Duration = Duration::from_millis(4);

/// More than this in that time came in large pieces anyway, or has collected while we were at work.
const BYTES: usize = 64 << 10;

/// Counts what the last reads brought.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    frames: usize,
    bytes: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            frames: 0,
            bytes: 0,
        }
    }

    /// After a read that brought so much: until when the next one is put off, if at all.
    pub(super) fn read(&mut self, frames: usize, bytes: usize, now: Instant) -> Option<Instant> {
        if now.duration_since(self.since) > WINDOW {
            *self = Self::new(now);
        }
        self.frames += frames;
        self.bytes += bytes;
        if self.frames < FRAMES {
            return None;
        }
        let small = self.bytes < BYTES;
        *self = Self::new(now);
        small.then_some(now + REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_micros(10);

    #[test]
    fn a_busy_stream_is_let_collect_and_stays_so_while_it_is_busy() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 1..FRAMES {
            now += MOMENT;
            assert_eq!(pace.read(1, 100, now), None);
        }
        now += MOMENT;
        assert_eq!(pace.read(1, 100, now), Some(now + REST));
        for _ in 0..3 {
            now += 2 * REST;
            assert_eq!(pace.read(FRAMES, 100 * FRAMES, now), Some(now + REST));
        }
        now += 2 * REST;
        assert_eq!(
            pace.read(FRAMES / 2, 3_200, now),
            None,
            "it has calmed down"
        );
    }

    #[test]
    fn a_stream_that_is_not_busy_is_read_as_it_comes() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 * FRAMES {
            now += WINDOW / 60;
            assert_eq!(pace.read(1, 100, now), None);
        }
    }

    #[test]
    fn large_pieces_are_not_put_off() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 {
            now += MOMENT;
            assert_eq!(pace.read(FRAMES, BYTES, now), None);
        }
    }
}
