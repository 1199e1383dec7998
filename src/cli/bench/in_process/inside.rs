//! The benchmark's end of a relay with subscribers inside.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::wire::{Answer, Count, Order};
use crate::cli::bench::books::Books;
use crate::cli::bench::latency::Clock;
use crate::cli::bench::plan::{Plan, Written};
use crate::cli::bench::progress::Progress;
use crate::cli::bench::verifier::Tally;

/// Every answer comes before this, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers that may wait; there is never more than one question.
const ANSWERS: usize = 16;

/// Orders and answers. Counts go straight into the books of the round.
#[derive(Debug)]
pub struct Inside {
    orders: ChildStdin,
    answers: mpsc::Receiver<Answer>,
    books: Arc<Mutex<Option<Arc<Books>>>>,
}

impl Inside {
    /// Takes over a process's pipes.
    #[must_use]
    pub fn new(orders: ChildStdin, answers: ChildStdout) -> Self {
        let books = Arc::new(Mutex::new(None));
        let (sender, receiver) = mpsc::channel(ANSWERS);
        tokio::spawn(read(answers, sender, Arc::clone(&books)));
        Self {
            orders,
            answers: receiver,
            books,
        }
    }

    /// Waits until changes flow.
    ///
    /// # Errors
    /// Where the process ends or says something else, or after a minute nothing.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        match self.answer().await? {
            Answer::Ready => Ok(()),
            other => bail!("A relay is not ready but says {other:?}"),
        }
    }

    /// Joins a round's subscribers and opens its books, which show from then on how many messages
    /// have arrived.
    ///
    /// # Errors
    /// As [`Inside::ready`].
    pub async fn join(
        &mut self,
        plan: Plan,
        round: u32,
        clock: Clock,
        progress: &mut Progress,
    ) -> anyhow::Result<Arc<Books>> {
        let books = Arc::new(Books::new(round, clock)?);
        *self.books.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&books));
        let clock = clock.read()?;
        self.order(&Order::Join { plan, round, clock }).await?;
        loop {
            match self.answer().await? {
                Answer::Joining { joined } => {
                    progress.update(|| format!("joined {joined} of {}", plan.subscribers));
                }
                Answer::Joined => return Ok(books),
                other => bail!("A relay does not join but says {other:?}"),
            }
        }
    }

    /// Ends a round: the numbers. The latencies go to its books.
    ///
    /// # Errors
    /// As [`Inside::ready`].
    pub async fn finish(&mut self, written: Written, books: &Books) -> anyhow::Result<Tally> {
        self.order(&Order::Finish { written }).await?;
        match self.answer().await? {
            Answer::Done {
                tally,
                latency,
                broken,
            } => {
                let mut times = books.latency.lock().unwrap_or_else(PoisonError::into_inner);
                times.put(&latency);
                if let Some(why) = broken {
                    books.note(why);
                }
                Ok(tally)
            }
            other => bail!("A relay does not finish but says {other:?}"),
        }
    }

    async fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let written = self.orders.write_all(line.as_bytes()).await;
        written.context("A relay takes no orders")
    }

    async fn answer(&mut self) -> anyhow::Result<Answer> {
        let answer = timeout(PATIENCE, self.answers.recv()).await;
        answer
            .context("A relay does not answer")?
            .context("A relay ended")
    }
}

/// Reads until the process ends, or says what nobody understands.
async fn read(
    answers: ChildStdout,
    sender: mpsc::Sender<Answer>,
    books: Arc<Mutex<Option<Arc<Books>>>>,
) {
    let mut lines = BufReader::new(answers).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Answer::Count(count)) => {
                let books = books.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(books) = books.as_deref() {
                    enter(count, books);
                }
            }
            Ok(answer) => {
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "an answer of an unknown form");
                return;
            }
        }
    }
}

fn enter(count: Count, books: &Books) {
    if count.round == books.round {
        books.arrived.store(count.arrived, Ordering::Relaxed);
        books.last.store(count.last, Ordering::Relaxed);
        books.delivered.store(count.delivered, Ordering::Release);
    }
}
