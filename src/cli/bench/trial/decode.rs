//! `--decode`: what it costs to decode and match changes that nobody asked for, beside what
//! PostgreSQL's own `pg_recvlogical` takes to receive the same and throw it away.

use std::process::Stdio;

use anyhow::Context;
use serde::Serialize;
use tokio::process::Command;

use super::Stage;
use super::fill::Fill;
use crate::cli::bench::crowd::{Crowd, Recipe};
use crate::cli::bench::database::{self, BASELINE_SLOT, NAME};
use crate::cli::bench::plan::{Plan, Written};
use crate::cli::bench::process;
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{median, per, quotient, times};
use crate::cli::bench::round::GRACE;
use crate::cli::bench::subscriber::System;
use crate::cli::bench::verifier::Tally;
use crate::pg::throwaway::Binaries;

/// The rows' owners begin here: nobody of them subscribes.
const STRANGERS: u64 = 1 << 24;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Decode {
    /// Rows of a round.
    pub rows: u64,
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// Subscribers, none of whom may see any.
    pub subscribers: u64,
    /// How often it was made.
    pub rounds: u32,
    /// CPU time of the relay in each round, in seconds.
    pub relay_cpu_seconds: Vec<f64>,
    /// CPU time of its walsender in each round, in seconds.
    pub relay_walsender_cpu_seconds: Vec<f64>,
    /// CPU time of `pg_recvlogical` in each round, in seconds.
    pub receiver_cpu_seconds: Vec<f64>,
    /// CPU time of its walsender in each round, in seconds.
    pub receiver_walsender_cpu_seconds: Vec<f64>,
    /// Rows for each second of relay and walsender.
    pub relay_changes_per_cpu_second: f64,
    /// Rows for each second of `pg_recvlogical` and walsender.
    pub receiver_changes_per_cpu_second: f64,
    /// The first to the second, in each round.
    pub ratios: Vec<f64>,
    /// What came to subscribers.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Decode {
    pub(super) fn table(&self) -> String {
        format!(
            "decoded and matched, nobody interested: {} rows, {} a transaction, {} subscriber(s), {} round(s)\n\
             rowcast {:.0} changes a CPU second, pg_recvlogical {:.0}; ratio {} (by round {:.2?})\n\
             CPU seconds by round: rowcast {:.2?} and walsender {:.2?}; pg_recvlogical {:.2?} and walsender {:.2?}\n\
             leaked {}\n",
            self.rows,
            self.transaction_size,
            self.subscribers,
            self.rounds,
            self.relay_changes_per_cpu_second,
            self.receiver_changes_per_cpu_second,
            times(median(&self.ratios)),
            self.ratios,
            self.relay_cpu_seconds,
            self.relay_walsender_cpu_seconds,
            self.receiver_cpu_seconds,
            self.receiver_walsender_cpu_seconds,
            self.tally.leaked
        )
    }
}

/// Has the relay and `pg_recvlogical` read the same, one after the other.
///
/// # Errors
/// Where a relay, `pg_recvlogical` or the database fails.
pub async fn run(stage: &mut Stage<'_>, plan: Plan) -> anyhow::Result<Decode> {
    let admin = database::connect(stage.database).await?;
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let program = Binaries::find()?.recvlogical();
    let mut relay = Relay::in_process(stage.database, log).await?;
    database::make_slot(&admin, BASELINE_SLOT).await?;
    let mut found = Decode {
        rows: plan.limit,
        transaction_size: plan.transaction_size,
        subscribers: plan.subscribers,
        rounds: stage.rounds,
        relay_cpu_seconds: Vec::new(),
        relay_walsender_cpu_seconds: Vec::new(),
        receiver_cpu_seconds: Vec::new(),
        receiver_walsender_cpu_seconds: Vec::new(),
        relay_changes_per_cpu_second: 0.0,
        receiver_changes_per_cpu_second: 0.0,
        ratios: Vec::new(),
        tally: Tally::default(),
    };
    for round in 1..=stage.rounds {
        let step = format!("round {round} of {}", stage.rounds);
        stage.progress.step(&step);
        let recipe = Recipe {
            system: System::Rowcast,
            jwt_secret: stage.jwt_secret,
            plan,
            number: round,
            clock: stage.clock,
        };
        let crowd = Crowd::gather(&mut relay, recipe, stage.progress).await?;
        relay.child.signal("STOP").await?;
        let walsender = database::walsender(&admin, log.slot()).await?;
        let before = (relay.child.cpu_seconds()?, walsender.cpu_seconds()?);
        let fill = Fill {
            round,
            first: STRANGERS,
            end: STRANGERS + plan.limit,
            users: STRANGERS * 2,
            transaction_size: plan.transaction_size,
            bytes: 0,
        };
        let barrier = fill.write(&admin).await?;
        relay.child.signal("CONT").await?;
        barrier.passed(&admin, &[log.slot()]).await?;
        tokio::time::sleep(GRACE).await;
        let ours = (
            relay.child.cpu_seconds()? - before.0,
            walsender.cpu_seconds()? - before.1,
        );
        let written = Written::default();
        found.tally.add(&crowd.finish(&mut relay, &written).await?);

        let mut receiver = Command::new(&program)
            .arg("--dbname")
            .arg(stage.database.expose())
            .args(["--slot", BASELINE_SLOT, "--start", "--no-loop"])
            .args(["--option", "proto_version=1"])
            .args(["--option", &format!("publication_names={NAME}")])
            .args(["--status-interval", "1", "--file", "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("pg_recvlogical cannot be started")?;
        let pid = receiver.id().context("pg_recvlogical ended at once")?;
        // A new process each time: all that it has taken is of this round.
        let walsender = database::walsender(&admin, BASELINE_SLOT).await?;
        barrier.passed(&admin, &[BASELINE_SLOT]).await?;
        let theirs = (process::cpu_seconds(pid)?, walsender.cpu_seconds()?);
        receiver.kill().await?;
        database::released(&admin, BASELINE_SLOT).await?;

        found.relay_cpu_seconds.push(ours.0);
        found.relay_walsender_cpu_seconds.push(ours.1);
        found.receiver_cpu_seconds.push(theirs.0);
        found.receiver_walsender_cpu_seconds.push(theirs.1);
        let ratio = quotient(theirs.0 + theirs.1, ours.0 + ours.1);
        found.ratios.extend(ratio);
    }
    relay.child.stop().await;
    let all = |these: &[f64], those: &[f64]| -> f64 { these.iter().chain(those).sum() };
    let rows = plan.limit * u64::from(stage.rounds);
    found.relay_changes_per_cpu_second = per(
        rows,
        all(&found.relay_cpu_seconds, &found.relay_walsender_cpu_seconds),
    );
    found.receiver_changes_per_cpu_second = per(
        rows,
        all(
            &found.receiver_cpu_seconds,
            &found.receiver_walsender_cpu_seconds,
        ),
    );
    Ok(found)
}
