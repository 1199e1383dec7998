//! `--idle`: what a subscriber that only waits costs the relay's memory.

use std::time::Duration;

use serde::Serialize;

use super::Stage;
use crate::cli::bench::crowd::{Crowd, Recipe};
use crate::cli::bench::plan::{Plan, Written};
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{float, over};
use crate::cli::bench::subscriber::System;

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
}

impl Idle {
    /// Works out the difference.
    #[must_use]
    pub fn new(connections: u64, rss_before: u64, rss_after: u64) -> Self {
        Self {
            connections,
            rss_before,
            rss_after,
            bytes_per_connection: over(float(rss_after.saturating_sub(rss_before)), connections),
        }
    }

    pub(super) fn table(&self) -> String {
        format!(
            "idle: {} joined subscribers, {:.1} KiB each (RSS {:.1} MiB before, {:.1} MiB after)\n",
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
    joined.finish(&mut relay, &Written::default()).await?;
    relay.child.stop().await;
    Ok(Idle::new(plan.subscribers, before, after))
}
