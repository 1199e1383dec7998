//! `--idle`: what a subscriber that only waits costs the relay's memory.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::Serialize;

use super::Stage;
use super::fill::Fill;
use crate::cli::bench::crowd::{Crowd, Recipe};
use crate::cli::bench::database;
use crate::cli::bench::plan::{Plan, Policy, Written};
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{float, over};
use crate::cli::bench::round::{PATIENCE, await_messages};
use crate::cli::bench::subscriber::System;
use crate::cli::bench::verifier::Tally;

/// What the first subscribers make the relay allocate once is not what one costs.
const WARM_UP: u64 = 50;

/// Until what joining needed has been given back.
const SETTLE: Duration = Duration::from_secs(2);

/// What idle connections cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// Sockets, each joined to a channel with one binding.
    pub connections: u64,
    /// The relay's memory before they came, in bytes.
    pub rss_before: u64,
    /// The relay's memory with them, in bytes.
    pub rss_after: u64,
    /// The difference, shared out.
    pub bytes_per_connection: f64,
    /// The same after a burst of so many messages to each, where everybody sees every row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_connection_after_burst: Option<f64>,
    /// What became of the burst.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Messages to each, committed at once.
const BURST: u64 = 100;

impl Idle {
    /// Works out the difference.
    #[must_use]
    pub fn new(connections: u64, rss_before: u64, rss_after: u64) -> Self {
        Self {
            connections,
            rss_before,
            rss_after,
            bytes_per_connection: over(float(rss_after.saturating_sub(rss_before)), connections),
            bytes_per_connection_after_burst: None,
            tally: Tally::default(),
        }
    }

    pub(super) fn table(&self) -> String {
        let burst = self
            .bytes_per_connection_after_burst
            .map_or(String::new(), |bytes| {
                format!(
                    "after a burst of {BURST} messages to each: {:.1} KiB each; missing {}\n",
                    bytes / 1024.0,
                    self.tally.missing
                )
            });
        format!(
            "idle: {} joined subscribers, {:.1} KiB each (RSS {:.1} MiB before, {:.1} MiB after)\n{burst}",
            self.connections,
            self.bytes_per_connection / 1024.0,
            float(self.rss_before) / 1_048_576.0,
            float(self.rss_after) / 1_048_576.0
        )
    }
}

/// Joins the plan's subscribers, with sockets or in the relay's process, and looks.
///
/// # Errors
/// Where a join fails.
pub async fn run(stage: &mut Stage<'_>, plan: Plan, in_process: bool) -> anyhow::Result<Idle> {
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let mut relay = if in_process {
        Relay::in_process(stage.database, log).await?
    } else {
        Relay::rowcast(stage.database, log, stage.jwt_secret, plan.subscribers).await?
    };
    let recipe = Recipe {
        system: System::Rowcast,
        jwt_secret: stage.jwt_secret,
        plan,
        number: 0,
        clock: stage.clock,
    };
    stage.progress.step("warming up");
    let mut few = recipe;
    few.plan.subscribers = WARM_UP;
    let warm = Crowd::gather(&mut relay, few, stage.progress).await?;
    warm.finish(&mut relay, &Written::default()).await?;
    tokio::time::sleep(SETTLE).await;
    let before = relay.child.rss_bytes()?;
    stage.progress.step("joining");
    let joined = Crowd::gather(&mut relay, recipe, stage.progress).await?;
    tokio::time::sleep(SETTLE).await;
    let after = relay.child.rss_bytes()?;
    let mut idle = Idle::new(plan.subscribers, before, after);
    let mut written = Written::default();
    if plan.policy == Policy::Open {
        stage.progress.step("a burst");
        let admin = database::connect(stage.database).await?;
        let fill = Fill {
            round: recipe.number,
            first: 0,
            end: BURST,
            users: 1,
            transaction_size: BURST,
            bytes: 0,
        };
        let started = stage.clock.now();
        fill.write(&admin).await?;
        written
            .transactions
            .push(BURST.div_ceil(plan.transaction_size));
        let due = AtomicU64::new(BURST * plan.subscribers);
        await_messages(&joined.books, &due, started, PATIENCE, stage.progress).await;
        tokio::time::sleep(SETTLE).await;
        let after = relay.child.rss_bytes()?;
        let more = float(after.saturating_sub(before));
        idle.bytes_per_connection_after_burst = Some(over(more, plan.subscribers));
    }
    idle.tally = joined.finish(&mut relay, &written).await?;
    relay.child.stop().await;
    Ok(idle)
}
