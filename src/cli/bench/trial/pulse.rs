//! One user's rows at a steady pace, and one who listens to them: each on a thread of its own, so
//! that neither waits for whatever else the benchmark does meanwhile.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cli::bench::database::{self, NAME};
use crate::cli::bench::frame::Frame;
use crate::cli::bench::latency::{Clock, Times};
use crate::cli::bench::plan::user_id;
use crate::cli::bench::subscriber::{Subscriber, System, Wish};
use crate::cli::bench::writer::{round_and_row, row_id};
use crate::config::Secret;

/// Writes rows of one user, numbered from 0, each in a transaction of its own.
#[derive(Debug)]
pub struct Pulse {
    stop: CancellationToken,
    task: Apart<anyhow::Result<u64>>,
}

impl Pulse {
    /// Begins.
    ///
    /// # Errors
    /// Where PostgreSQL cannot be reached.
    pub async fn start(
        database: &Secret,
        (user, round): (u64, u32),
        clock: Clock,
        every: Duration,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let user = user_id(user);
        let database = database.clone();
        let (ready, waiting) = oneshot::channel();
        let task = apart(async move {
            let client = database::connect(&database).await?;
            let statement = client
                .prepare(&format!(
                    "insert into {NAME}.rows values ($1, $2::text::uuid, 0, 0, $3)"
                ))
                .await?;
            let _nobody_waits = ready.send(());
            let mut tick = tokio::time::interval(every);
            // What was due while PostgreSQL was slow is written at once, and late.
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut rows = 0;
            loop {
                let due = tokio::select! {
                    () = stopped.cancelled() => return Ok(rows),
                    due = tick.tick() => clock.since(due.into_std()),
                };
                let id = i64::try_from(row_id(round, rows))?;
                let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                    [&id, &user, &due.to_string()];
                client
                    .execute(&statement, &values)
                    .await
                    .context("A row cannot be written")?;
                rows += 1;
            }
        })?;
        if waiting.await.is_err() {
            task.ended().await??;
            bail!("The rows could not be begun.");
        }
        Ok(Self { stop, task })
    }

    /// Ends it, and says how many rows were written.
    ///
    /// # Errors
    /// Where one could not be.
    pub async fn end(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        self.task.ended().await?
    }
}

/// What runs on a thread of its own.
#[derive(Debug)]
struct Apart<T>(oneshot::Receiver<T>);

impl<T> Apart<T> {
    async fn ended(self) -> anyhow::Result<T> {
        self.0.await.context("A thread ended of a fault")
    }
}

/// Runs something on a thread of its own until it ends.
fn apart<T: Send + 'static>(
    what: impl Future<Output = T> + Send + 'static,
) -> anyhow::Result<Apart<T>> {
    let (done, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("bench-apart".to_owned())
        .spawn(move || {
            let _nobody_waits = done.send(runtime.block_on(what));
        })?;
    Ok(Apart(ended))
}

/// Whether one user's rows come one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sequence {
    /// The next row's number.
    pub next: u64,
    /// Rows that were passed over.
    pub missing: u64,
    /// Rows that came once more, or late.
    pub duplicated: u64,
}

impl Sequence {
    /// Takes a row that arrived, and says whether it is new.
    pub const fn take(&mut self, row: u64) -> bool {
        if row < self.next {
            self.duplicated += 1;
            return false;
        }
        self.missing += row - self.next;
        self.next = row + 1;
        true
    }
}

/// A subscriber that notes how late the rows of a [`Pulse`] come.
#[derive(Debug)]
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    stop: CancellationToken,
    task: Apart<()>,
}

/// What a listener has heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Which rows.
    pub sequence: Sequence,
    /// When each was due and when it came, by the clock.
    times: Vec<(u64, u64)>,
    /// Why it ended before it was told to.
    pub broken: Option<String>,
}

impl Heard {
    /// How late those came that were due between two moments of the clock.
    ///
    /// # Errors
    /// Never; see [`Times::new`].
    pub fn between(&self, from: u64, to: u64) -> anyhow::Result<Times> {
        let mut times = Times::new()?;
        for (due, came) in &self.times {
            if (from..to).contains(due) {
                times.record(came.saturating_sub(*due));
            }
        }
        Ok(times)
    }
}

impl Listener {
    /// Joins as the holder of a token, and listens to the rows of a round.
    ///
    /// # Errors
    /// Where the join fails.
    pub async fn start(
        (address, token): (SocketAddr, String),
        round: u32,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let stop = CancellationToken::new();
        let (notes, stopped) = (Arc::clone(&heard), stop.clone());
        let (ready, waiting) = oneshot::channel();
        let task = apart(async move {
            let wish = Wish::default();
            let joined = Subscriber::connect(System::Rowcast, address, &token, &wish).await;
            let mut subscriber = match joined {
                Ok(subscriber) => {
                    let _nobody_waits = ready.send(Ok(()));
                    subscriber
                }
                Err(error) => {
                    let _nobody_waits = ready.send(Err(error));
                    return;
                }
            };
            loop {
                let frame = tokio::select! {
                    () = stopped.cancelled() => return,
                    frame = subscriber.next() => frame,
                };
                let mut heard = lock(&notes);
                match frame {
                    Ok(Frame::Row { id, sent, .. }) => {
                        let (of, row) = round_and_row(id);
                        if of == u64::from(round) && heard.sequence.take(row) {
                            heard.times.push((sent, clock.now()));
                        }
                    }
                    Ok(Frame::Resync(reason)) => heard.broken = Some(format!("resync {reason}")),
                    Ok(_) => {}
                    Err(why) => {
                        heard.broken = Some(why);
                        return;
                    }
                }
            }
        })?;
        waiting.await.context("A thread ended of a fault")??;
        Ok(Self { heard, stop, task })
    }

    /// What it has heard so far.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        lock(&self.heard)
    }

    /// Ends it.
    pub async fn end(self) {
        self.stop.cancel();
        // It does nothing but listen.
        let _ended = self.task.ended().await;
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    // No code under this lock panics half-way through a change.
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_passed_over_and_rows_that_come_again_are_told_apart() {
        let mut sequence = Sequence::default();
        let new: Vec<bool> = [0, 1, 4, 4, 2, 5].map(|row| sequence.take(row)).into();
        assert_eq!(new, [true, true, true, false, false, true]);
        let Sequence {
            next,
            missing,
            duplicated,
        } = sequence;
        assert_eq!((next, missing, duplicated), (6, 2, 2));
    }

    #[test]
    fn only_what_was_due_in_a_window_is_counted_in_it() {
        let heard = Heard {
            times: vec![(1_000, 2_000_000), (5_000, 9_000_000), (7_000, 9_000_000)],
            ..Heard::default()
        };
        let points = heard.between(1_000, 7_000).unwrap().percentiles().unwrap();
        assert_eq!((points.p50, points.max), (1_999, 8_999));
        assert!(heard.between(8_000, 9_000).unwrap().percentiles().is_none());
    }
}
