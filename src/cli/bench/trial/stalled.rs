//! `--stalled`: whether subscribers have to wait for others that stop reading.

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::Stage;
use crate::cli::bench::crowd::{Recipe, token_of};
use crate::cli::bench::plan::Plan;
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{Line, Ratio, millis, times};
use crate::cli::bench::round::{Figures, Round};
use crate::cli::bench::subscriber::{Subscriber, System, Wish};
use crate::cli::bench::writer::Pace;

/// What the kernel may keep for a client that does not read, in bytes: little, so that it is the
/// relay that has to.
const RECEIVE_BUFFER: u32 = 4_096;

/// How long the end of a socket may take to show itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Stalled {
    /// Clients that stopped reading, each sent every row.
    pub clients: u64,
    /// How often each was measured, taking turns.
    pub rounds: u32,
    /// The subscribers while there are no such clients.
    pub without: Line,
    /// The subscribers while there are.
    pub with: Line,
    /// Of all rounds, the clients whose sockets the relay closed meanwhile.
    pub closed: u64,
    /// Of these, those that were told to come back.
    pub told_to_come_back: u64,
    /// Median latency with such clients to that without.
    pub latency_p50_ratio: Option<f64>,
    /// Latency of 99 of 100 with such clients to that without.
    pub latency_p99_ratio: Option<f64>,
}

impl Stalled {
    pub(super) fn is_clean(&self) -> bool {
        self.without.is_clean() && self.with.is_clean()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{} clients that stop reading beside {} subscribers, {:.0} rows/s to each, {} round(s)\n",
            self.clients, self.with.subscribers, self.with.changes_per_second, self.rounds
        );
        for (name, line) in [("without", &self.without), ("with", &self.with)] {
            let p50 = line.latency_us.map(|points| points.p50);
            let p99 = line.latency_us.map(|points| points.p99);
            text += &format!(
                "{name:<8} p50 {}, p99 {}; CPU a change {:.1} µs; delivered {}, missing {}, \
                 duplicated {}, leaked {}, out of order {}\n",
                millis(p50),
                millis(p99),
                line.cpu_us_per_change,
                line.delivered,
                line.missing,
                line.duplicated,
                line.leaked,
                line.out_of_order
            );
        }
        text += &format!(
            "with / without: p50 {}, p99 {}; closed by the relay {} of {}, told to come back {}\n",
            times(self.latency_p50_ratio),
            times(self.latency_p99_ratio),
            self.closed,
            self.clients * u64::from(self.rounds),
            self.told_to_come_back
        );
        text
    }
}

/// Measures subscribers with and without others that stop reading, in turns. `plan` says who
/// subscribes; all of them are sent everything.
///
/// # Errors
/// Where the relay, a socket or the database fails.
pub async fn run(
    stage: &mut Stage<'_>,
    plan: Plan,
    pace: Pace,
    clients: u64,
) -> anyhow::Result<Stalled> {
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let connections = plan.subscribers + clients;
    let mut relay = Relay::rowcast(stage.database, log, stage.jwt_secret, connections).await?;
    let mut lines: [Option<Figures>; 2] = [None, None];
    let (mut closed, mut told) = (0, 0);
    let mut number = 0;
    for round in 1..=stage.rounds {
        for (stalling, all) in [false, true].into_iter().zip(&mut lines) {
            number += 1;
            let rounds = stage.rounds;
            let how = if stalling { "with" } else { "without" };
            let step = format!("round {round} of {rounds}: {how} clients that stop reading");
            stage.progress.step(&step);
            let mut stalled = Vec::new();
            for client in 0..clients * u64::from(stalling) {
                let token = token_of(plan.subscribers + client, stage.jwt_secret)?;
                let wish = Wish {
                    receive_buffer: Some(RECEIVE_BUFFER),
                    ..Wish::default()
                };
                let address = relay.address()?;
                let joined = Subscriber::connect(System::Rowcast, address, &token, &wish);
                stalled.push(joined.await?);
            }
            let figures = Round {
                relay: &mut relay,
                recipe: Recipe {
                    system: System::Rowcast,
                    jwt_secret: stage.jwt_secret,
                    plan,
                    number,
                    clock: stage.clock,
                },
                database: stage.database,
                pace,
            }
            .run(stage.progress)
            .await?;
            match all {
                Some(all) => all.add(&figures),
                None => *all = Some(figures),
            }
            for mut client in stalled {
                let why = async {
                    loop {
                        if let Err(why) = client.next().await {
                            return why;
                        }
                    }
                };
                if let Ok(why) = timeout(FAREWELL, why).await {
                    closed += 1;
                    told += u64::from(why.contains("1013"));
                }
            }
        }
    }
    relay.child.stop().await;
    let [Some(without), Some(with)] = lines else {
        anyhow::bail!("There was no round.");
    };
    let without = Line::new("rowcast", Some(log), plan.subscribers, &without);
    let with = Line::new("rowcast", Some(log), plan.subscribers, &with);
    let ratio = Ratio::new(&with, &without);
    Ok(Stalled {
        clients,
        rounds: stage.rounds,
        without,
        with,
        closed,
        told_to_come_back: told,
        latency_p50_ratio: ratio.latency_p50,
        latency_p99_ratio: ratio.latency_p99,
    })
}
