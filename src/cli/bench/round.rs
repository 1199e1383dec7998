//! One round: connect, write, wait until everything has arrived, and count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;

use super::books::Books;
use super::crowd::{Crowd, Recipe};
use super::database;
use super::latency::{Percentiles, Times};
use super::progress::Progress;
use super::relay::Relay;
use super::verifier::Tally;
use super::writer::{Pace, Writers};
use crate::config::Secret;

/// How long the last messages may take without any progress before they count as missing; where
/// rows were written for longer than that, the same again, as so much may have piled up.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a round listens on for what should not come, after everything has.
pub const GRACE: Duration = Duration::from_millis(300);

/// Figures of a round, or of several of the same kind.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Rows committed.
    pub rows: u64,
    /// Messages that had to arrive.
    pub expected: u64,
    /// What became of them.
    pub tally: Tally,
    /// From when a row was due to when it arrived.
    pub latency: Times,
    /// The same of each round.
    pub rounds: Vec<Percentiles>,
    /// From when a transaction was due to when its commit was acknowledged.
    pub commits: Times,
    /// From the first row to the last message, in seconds.
    pub seconds: f64,
    /// The relay's CPU time meanwhile, in seconds.
    pub cpu_seconds: f64,
    /// The relay's memory afterwards, in bytes: the least of all rounds, as it may not have given
    /// back what a larger one of another kind needed.
    pub rss_bytes: u64,
}

impl Figures {
    /// Adds a round of the same kind.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.expected += other.expected;
        self.tally.add(&other.tally);
        self.latency.add(&other.latency);
        self.rounds.extend_from_slice(&other.rounds);
        self.commits.add(&other.commits);
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.rss_bytes = self.rss_bytes.min(other.rss_bytes);
    }
}

/// What a round needs.
#[derive(Debug)]
pub struct Round<'a> {
    /// The relay.
    pub relay: &'a mut Relay,
    /// Its subscribers.
    pub recipe: Recipe<'a>,
    /// Where rows are written.
    pub database: &'a Secret,
    /// How fast.
    pub pace: Pace,
}

impl Round<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// Where the relay, a socket or the database fails. Wrong messages are no error but figures.
    pub async fn run(self, progress: &mut Progress) -> anyhow::Result<Figures> {
        let Recipe {
            plan,
            number,
            clock,
            ..
        } = self.recipe;
        let relay = self.relay;
        database::checkpoint(self.database).await?;
        let crowd = Crowd::gather(relay, self.recipe, progress).await?;
        let books = Arc::clone(&crowd.books);
        let writers = Writers::open(self.database, plan.writers).await?;
        let expected = Arc::new(AtomicU64::new(0));

        let cpu_before = relay.child.cpu_seconds()?;
        let started = clock.now();
        let writing = writers.write(plan, self.pace, number, clock, Arc::clone(&expected));
        tokio::pin!(writing);
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        let outcome = loop {
            tokio::select! {
                outcome = &mut writing => break outcome?,
                _ = tick.tick() => {
                    relay.child.check()?;
                    progress.update(|| shown(&books, &expected, started));
                }
            }
        };
        let patience = PATIENCE.max(Duration::from_nanos(outcome.nanos));
        await_messages(&books, &expected, started, patience, progress).await;
        let cpu_seconds = relay.child.cpu_seconds()? - cpu_before;
        let rss_bytes = relay.child.rss_bytes()?;
        // Time itself: that nothing more comes has no other sign.
        tokio::time::sleep(GRACE).await;

        let tally = crowd.finish(relay, &outcome.written).await?;
        if tally.missing > 0 {
            // Missing messages of a subscriber that ended are no news; why it ended is.
            if let Some(why) = books.why_broken() {
                let hint = if self.pace.rate == 0 {
                    " (rows written flat out can come faster than they are taken; --rate sets a \
                     pace)"
                } else {
                    ""
                };
                bail!("A subscriber ended: {why}{hint}");
            }
        }
        let last = books.last.load(Ordering::Relaxed);
        let nanos = last.saturating_sub(started).max(outcome.nanos);
        let latency = books.latency();
        Ok(Figures {
            rows: outcome.written.rows(&plan),
            expected: expected.load(Ordering::Relaxed),
            tally,
            rounds: latency.percentiles().into_iter().collect(),
            latency,
            commits: outcome.commits,
            seconds: Duration::from_nanos(nanos).as_secs_f64(),
            cpu_seconds,
            rss_bytes,
        })
    }
}

/// Waits until every message has arrived, or none has for as long as `patience`.
pub async fn await_messages(
    books: &Books,
    expected: &AtomicU64,
    started: u64,
    patience: Duration,
    progress: &mut Progress,
) {
    let mut arrived = 0;
    let mut last = Instant::now();
    loop {
        let now = books.arrived.load(Ordering::Relaxed);
        if now != arrived {
            arrived = now;
            last = Instant::now();
        }
        let done = books.delivered.load(Ordering::Acquire) >= expected.load(Ordering::Relaxed);
        if done || last.elapsed() > patience || books.why_broken().is_some() {
            return;
        }
        progress.update(|| shown(books, expected, started));
        // Looked at now and then: to be woken by each message would be a cost of what is measured.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn shown(books: &Books, expected: &AtomicU64, started: u64) -> String {
    format!(
        "{:.0} s: {} of {} messages",
        Duration::from_nanos(books.clock.now().saturating_sub(started)).as_secs_f64(),
        books.delivered.load(Ordering::Acquire),
        expected.load(Ordering::Relaxed)
    )
}
