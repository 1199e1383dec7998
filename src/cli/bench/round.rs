//! One round: connect, write, wait until everything has arrived, and count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use serde_json::Map;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::child::Relay;
use super::database::ROLE;
use super::latency::{Clock, Times};
use super::plan::{Plan, user_id};
use super::progress::Progress;
use super::subscriber::{Books, Subscriber, System, bucket};
use super::verifier::{Tally, Verifier};
use super::writer::{Pace, Writers};
use crate::cli::token;
use crate::config::Secret;

/// Handshakes at once: enough to be quick, few enough to measure the relay and not its backlog.
const CONNECTING: usize = 32;

/// How long the last messages may take without any progress before they count as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a round listens on for what should not come, after everything has.
const GRACE: Duration = Duration::from_millis(300);

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
    /// From when a transaction was due to when its commit was acknowledged.
    pub commits: Times,
    /// From the first row to the last message, in seconds.
    pub seconds: f64,
    /// The relay's CPU time meanwhile, in seconds.
    pub cpu_seconds: f64,
    /// The relay's memory afterwards, in bytes: the most of all rounds.
    pub rss_bytes: u64,
}

impl Figures {
    /// Adds a round of the same kind.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.expected += other.expected;
        self.tally.add(&other.tally);
        self.latency.add(&other.latency);
        self.commits.add(&other.commits);
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.rss_bytes = self.rss_bytes.max(other.rss_bytes);
    }
}

/// Connects subscribers, each as a user of its own.
///
/// # Errors
/// The first that fails.
pub async fn connect(
    system: System,
    relay: &Relay,
    plan: &Plan,
    jwt_secret: &Secret,
    progress: &mut Progress,
) -> anyhow::Result<Vec<(u64, Subscriber)>> {
    let address = relay.address;
    let total = plan.subscribers;
    let mut connecting = stream::iter(0..total)
        .map(|number| {
            let bucket = bucket(plan, number);
            async move {
                let token = token_of(number, jwt_secret)?;
                let subscriber = Subscriber::connect(system, address, &token, bucket)
                    .await
                    .with_context(|| format!("Subscriber {number} of {total}"))?;
                anyhow::Ok((number, subscriber))
            }
        })
        .buffer_unordered(CONNECTING);
    let mut subscribers = Vec::new();
    while let Some(subscriber) = connecting.next().await {
        subscribers.push(subscriber?);
        progress.update(|| format!("joined {} of {total}", subscribers.len()));
    }
    Ok(subscribers)
}

fn token_of(user: u64, jwt_secret: &Secret) -> anyhow::Result<String> {
    let mut claims = Map::new();
    claims.insert("sub".into(), user_id(user).into());
    claims.insert("role".into(), ROLE.into());
    token::sign(claims, Duration::from_secs(24 * 3600), jwt_secret).map_err(anyhow::Error::msg)
}

/// What a round needs.
#[derive(Debug)]
pub struct Round<'a> {
    /// Whom it is about.
    pub system: System,
    /// The relay.
    pub relay: &'a mut Relay,
    /// Where rows are written.
    pub database: &'a Secret,
    /// The relay's secret.
    pub jwt_secret: &'a Secret,
    /// Who gets what.
    pub plan: Plan,
    /// How fast.
    pub pace: Pace,
    /// A number that no other round of this run has.
    pub number: u32,
    /// The run's clock.
    pub clock: Clock,
}

impl Round<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// Where the relay, a socket or the database fails. Wrong messages are no error but figures.
    pub async fn run(self, progress: &mut Progress) -> anyhow::Result<Figures> {
        let (plan, clock) = (self.plan, self.clock);
        let subscribers =
            connect(self.system, self.relay, &plan, self.jwt_secret, progress).await?;
        let books = Arc::new(Books::new(self.number, clock)?);
        let stop = CancellationToken::new();
        let mut receivers = JoinSet::new();
        for (number, subscriber) in subscribers {
            let verifier = Verifier::new(plan, number);
            let (books, stop) = (Arc::clone(&books), stop.clone());
            receivers.spawn(async move { subscriber.receive(verifier, &books, stop).await });
        }
        let writers = Writers::open(self.database, plan.writers).await?;
        let expected = Arc::new(AtomicU64::new(0));

        let cpu_before = self.relay.cpu_seconds()?;
        let started = Instant::now();
        let writing = writers.write(plan, self.pace, self.number, clock, Arc::clone(&expected));
        tokio::pin!(writing);
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        let outcome = loop {
            tokio::select! {
                outcome = &mut writing => break outcome?,
                _ = tick.tick() => {
                    self.relay.check()?;
                    progress.update(|| shown(&books, &expected, started));
                }
            }
        };
        let seconds = await_messages(&books, &expected, started, progress).await?;
        let cpu_seconds = self.relay.cpu_seconds()? - cpu_before;
        let rss_bytes = self.relay.rss_bytes()?;
        tokio::time::sleep(GRACE).await;

        stop.cancel();
        let mut tally = Tally::default();
        while let Some(verifier) = receivers.join_next().await {
            tally.add(&verifier?.finish(&outcome.written));
        }
        let latency = books
            .latency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if tally.missing > 0 {
            // Missing messages of a socket that was closed are no news; why it was closed is.
            if let Some(why) = broken(&books) {
                bail!("A subscriber's socket ended: {why}");
            }
        }
        Ok(Figures {
            rows: outcome.written.rows(&plan),
            expected: expected.load(Ordering::Relaxed),
            tally,
            latency,
            commits: outcome.commits,
            seconds,
            cpu_seconds,
            rss_bytes,
        })
    }
}

/// Waits until every message has arrived, or none has for [`PATIENCE`]. Returns the seconds from
/// `started` to the last that did.
async fn await_messages(
    books: &Books,
    expected: &AtomicU64,
    started: Instant,
    progress: &mut Progress,
) -> anyhow::Result<f64> {
    let mut arrived = 0;
    let mut last = Instant::now();
    loop {
        let now = books.arrived.load(Ordering::Relaxed);
        if now != arrived {
            arrived = now;
            last = Instant::now();
        }
        let done = books.delivered.load(Ordering::Relaxed) >= expected.load(Ordering::Relaxed);
        if done || last.elapsed() > PATIENCE {
            return Ok((last - started).as_secs_f64());
        }
        progress.update(|| shown(books, expected, started));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn broken(books: &Books) -> Option<String> {
    let broken = books.broken.lock().unwrap_or_else(PoisonError::into_inner);
    broken.clone()
}

fn shown(books: &Books, expected: &AtomicU64, started: Instant) -> String {
    format!(
        "{:.0} s: {} of {} messages",
        started.elapsed().as_secs_f64(),
        books.delivered.load(Ordering::Relaxed),
        expected.load(Ordering::Relaxed)
    )
}
