//! Writes the rows, paced by an absolute schedule or flat out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};

use super::database::{self, NAME};
use super::latency::{Clock, Times};
use super::plan::{Plan, Written, user_id};
use crate::config::Secret;

/// A row's `id` holds the round it belongs to and its number in it, so that a row that arrives in
/// a later round is known for what it is. JavaScript's numbers hold it without loss.
const ROUND_SHIFT: u32 = 40;

/// The `id` of a row of a round.
#[must_use]
pub const fn row_id(round: u32, row: u64) -> u64 {
    (round as u64) << ROUND_SHIFT | row
}

/// The round and the row that an `id` means.
#[must_use]
pub const fn round_and_row(id: u64) -> (u64, u64) {
    (id >> ROUND_SHIFT, id & ((1 << ROUND_SHIFT) - 1))
}

/// When a round ends and how fast it goes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Rows a second; 0 for as fast as it goes.
    pub rate: u64,
    /// No row is begun after this.
    pub duration: Duration,
}

impl Pace {
    /// When a transaction is due, in nanoseconds from the start; `None` for at once.
    #[must_use]
    pub fn due(&self, plan: &Plan, transaction: u64) -> Option<u64> {
        let row = u128::from(transaction * plan.transaction_size);
        let nanos = (row * 1_000_000_000).checked_div(u128::from(self.rate))?;
        u64::try_from(nanos).ok()
    }

    /// Transactions before the plan's limit, and before the end where there is a schedule.
    #[must_use]
    pub fn transactions(&self, plan: &Plan) -> u64 {
        let of_limit = plan.limit.div_ceil(plan.transaction_size);
        if self.rate == 0 {
            return of_limit;
        }
        let rows = u128::from(self.rate) * self.duration.as_millis() / 1_000;
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        of_limit.min(rows.div_ceil(plan.transaction_size))
    }
}

/// The connections that write, ready to.
#[derive(Debug)]
pub struct Writers(Vec<(Client, Statement)>);

impl Writers {
    /// Opens them.
    ///
    /// # Errors
    /// Where PostgreSQL cannot be reached or the table is not there.
    pub async fn open(url: &Secret, count: u64) -> anyhow::Result<Self> {
        let mut writers = Vec::new();
        for _ in 0..count {
            let client = database::connect(url).await?;
            let statement = client
                .prepare(&format!(
                    "insert into {NAME}.rows (id, user_id, org_id, bucket, sent)
                     select i, u::uuid, o, b, s
                     from unnest($1::int8[], $2::text[], $3::int4[], $4::int4[], $5::text[])
                     as t(i, u, o, b, s)"
                ))
                .await?;
            writers.push((client, statement));
        }
        Ok(Self(writers))
    }

    /// Writes a round. `expected` runs ahead of what is committed: it is the number of messages
    /// that must arrive in the end.
    ///
    /// # Errors
    /// The first that PostgreSQL gives.
    pub async fn write(
        self,
        plan: Plan,
        pace: Pace,
        round: u32,
        clock: Clock,
        expected: Arc<AtomicU64>,
    ) -> anyhow::Result<Outcome> {
        let start = clock.now();
        let transactions = pace.transactions(&plan);
        let mut lanes = JoinSet::new();
        let mut gates = Vec::new();
        for (number, (client, statement)) in (0..).zip(self.0) {
            let (open, gate) = mpsc::channel(1024);
            gates.push(open);
            let lane = Lane {
                client,
                statement,
                plan,
                round,
                clock,
                expected: Arc::clone(&expected),
            };
            let deadline = clock.at(start) + pace.duration;
            lanes.spawn(async move {
                let done = if pace.rate == 0 {
                    lane.flat_out(number, transactions, deadline).await
                } else {
                    lane.paced(gate).await
                };
                done.map(|(count, times)| (number, count, times))
            });
        }
        if pace.rate > 0 {
            // The runtime's timers wake to the millisecond, which would be a good part of what is
            // measured; a thread's wake within some tens of microseconds.
            std::thread::Builder::new()
                .name("bench-pace".to_owned())
                .spawn(move || keep_pace(&plan, pace, start, clock, transactions, &gates))?;
        } else {
            drop(gates);
        }
        let mut outcome = Outcome {
            written: Written {
                transactions: vec![0; lanes.len()],
            },
            commits: Times::new()?,
            nanos: 0,
        };
        while let Some(done) = lanes.join_next().await {
            let (number, count, times) = done??;
            if let Some(of_lane) = outcome.written.transactions.get_mut(number) {
                *of_lane = count;
            }
            outcome.commits.add(&times);
        }
        outcome.nanos = clock.now() - start;
        Ok(outcome)
    }
}

/// What a round wrote.
#[derive(Debug)]
pub struct Outcome {
    /// Which rows are committed.
    pub written: Written,
    /// From when a transaction was due to when its commit was acknowledged.
    pub commits: Times,
    /// How long it took, in nanoseconds.
    pub nanos: u64,
}

/// Opens each transaction's gate when it is due. A gate that is full means that the writer lags;
/// its transactions keep the time they were due at, so waiting for it hides nothing.
fn keep_pace(
    plan: &Plan,
    pace: Pace,
    start: u64,
    clock: Clock,
    transactions: u64,
    gates: &[mpsc::Sender<(u64, u64)>],
) {
    for (transaction, gate) in (0..transactions).zip(gates.iter().cycle()) {
        let due = start + pace.due(plan, transaction).unwrap_or(0);
        loop {
            let left = clock.at(due).saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::park_timeout(left);
        }
        if gate.blocking_send((transaction, due)).is_err() {
            return;
        }
    }
}

struct Lane {
    client: Client,
    statement: Statement,
    plan: Plan,
    round: u32,
    clock: Clock,
    expected: Arc<AtomicU64>,
}

impl Lane {
    async fn paced(&self, mut gate: mpsc::Receiver<(u64, u64)>) -> anyhow::Result<(u64, Times)> {
        let mut times = Times::new()?;
        let mut count = 0;
        while let Some((transaction, due)) = gate.recv().await {
            self.transaction(transaction, due).await?;
            times.record(self.clock.now().saturating_sub(due));
            count += 1;
        }
        Ok((count, times))
    }

    async fn flat_out(
        &self,
        number: usize,
        transactions: u64,
        deadline: Instant,
    ) -> anyhow::Result<(u64, Times)> {
        let mut times = Times::new()?;
        let mut count = 0;
        let writers = usize::try_from(self.plan.writers)?;
        for transaction in (number as u64..transactions).step_by(writers) {
            if Instant::now() >= deadline {
                break;
            }
            let due = self.clock.now();
            self.transaction(transaction, due).await?;
            times.record(self.clock.now().saturating_sub(due));
            count += 1;
        }
        Ok((count, times))
    }

    async fn transaction(&self, transaction: u64, due: u64) -> anyhow::Result<()> {
        let plan = &self.plan;
        let first = transaction * plan.transaction_size;
        let end = (first + plan.transaction_size).min(plan.limit);
        let mut ids = Vec::new();
        let mut users = Vec::new();
        let mut organisations = Vec::new();
        let mut buckets = Vec::new();
        let mut audience = 0;
        for row in first..end {
            ids.push(i64::try_from(row_id(self.round, row))?);
            users.push(user_id(plan.user(row)));
            organisations.push(i32::try_from(plan.organisation(row))?);
            buckets.push(i32::try_from(plan.bucket(row))?);
            audience += plan.audience(row);
        }
        let sent = vec![due.to_string(); ids.len()];
        self.expected.fetch_add(audience, Ordering::Relaxed);
        self.client
            .execute(
                &self.statement,
                &[&ids, &users, &organisations, &buckets, &sent],
            )
            .await
            .context("A row cannot be written")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Filter, Policy};
    use super::*;

    #[test]
    fn the_schedule_is_absolute_and_ends_on_time() {
        let plan = Plan {
            subscribers: 1,
            policy: Policy::Open,
            filter: Filter::None,
            transaction_size: 10,
            writers: 4,
            limit: 1_000_000,
        };
        let pace = Pace {
            rate: 1_000,
            duration: Duration::from_secs(3),
        };
        assert_eq!(pace.due(&plan, 0), Some(0));
        assert_eq!(pace.due(&plan, 200), Some(2_000_000_000));
        assert_eq!(pace.transactions(&plan), 300);
        let few = Plan { limit: 95, ..plan };
        assert_eq!(pace.transactions(&few), 10);
        let flat_out = Pace { rate: 0, ..pace };
        assert_eq!(flat_out.due(&plan, 7), None);
        assert_eq!(flat_out.transactions(&few), 10);
    }

    #[test]
    fn an_id_tells_its_round_and_javascript_can_hold_it() {
        let id = row_id(4_000, (1 << 40) - 1);
        assert_eq!(round_and_row(id), (4_000, (1 << 40) - 1));
        assert!(id < 1 << 53);
    }
}
