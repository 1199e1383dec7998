//! `--backlog`: how fast a relay drains what has piled up in the database's log.
//!
//! The relay is held up (`SIGSTOP`) with its subscribers connected, rows are written, and it is let
//! go on: so a relay whose log is in memory, which after a restart owes nobody what came before,
//! has to deliver as much as one whose log is on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::fill::Fill;
use super::{Stage, seconds};
use crate::cli::bench::crowd::{Crowd, Recipe};
use crate::cli::bench::database;
use crate::cli::bench::plan::{Plan, Written};
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{over, per, quotient, times};
use crate::cli::bench::round::{GRACE, PATIENCE, await_messages};
use crate::cli::bench::subscriber::System;
use crate::cli::bench::verifier::Tally;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Backlog {
    /// Subscribers, to one of whom each row belongs.
    pub subscribers: u64,
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// How often each relay was held up.
    pub rounds: u32,
    /// The relays.
    pub logs: Vec<Drained>,
    /// Rows a second of the last to the first, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes_per_second_ratio: Option<f64>,
    /// CPU time for each row of the last to the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_per_change_ratio: Option<f64>,
}

/// What one relay drained, in all rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Drained {
    /// Where its log was.
    pub log: Storage,
    /// Rows that had piled up.
    pub rows: u64,
    /// What became of them.
    #[serde(flatten)]
    pub tally: Tally,
    /// From when it could go on to the last message, in seconds.
    pub seconds: f64,
    /// The same as a rate.
    pub changes_per_second: f64,
    /// Its CPU time, in seconds.
    pub cpu_seconds: f64,
    /// The same for each row, in microseconds.
    pub cpu_us_per_change: f64,
}

impl Drained {
    const fn new(log: Storage) -> Self {
        Self {
            log,
            rows: 0,
            tally: Tally {
                delivered: 0,
                missing: 0,
                duplicated: 0,
                leaked: 0,
                out_of_order: 0,
            },
            seconds: 0.0,
            changes_per_second: 0.0,
            cpu_seconds: 0.0,
            cpu_us_per_change: 0.0,
        }
    }

    fn add(&mut self, rows: u64, tally: &Tally, seconds: f64, cpu_seconds: f64) {
        self.rows += rows;
        self.tally.add(tally);
        self.seconds += seconds;
        self.cpu_seconds += cpu_seconds;
        self.changes_per_second = per(self.rows, self.seconds);
        self.cpu_us_per_change = over(self.cpu_seconds * 1e6, self.rows);
    }
}

impl Backlog {
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "drained backlog: {} subscriber(s), {} row(s) a transaction, {} round(s)\n",
            self.subscribers, self.transaction_size, self.rounds
        );
        for log in &self.logs {
            text += &format!(
                "{:<8} {} rows, {:.0} changes/s, CPU a change {:.1} µs; missing {}, duplicated {}, \
                 leaked {}, out of order {}\n",
                log.log.as_str(),
                log.rows,
                log.changes_per_second,
                log.cpu_us_per_change,
                log.tally.missing,
                log.tally.duplicated,
                log.tally.leaked,
                log.tally.out_of_order
            );
        }
        if let [first, .., last] = &*self.logs {
            text += &format!(
                "{} / {}: changes/s {}; CPU a change {}\n",
                last.log.as_str(),
                first.log.as_str(),
                times(self.changes_per_second_ratio),
                times(self.cpu_per_change_ratio)
            );
        }
        text
    }
}

/// Holds each relay up in turns. `plan` says who subscribes, and how many rows there are.
///
/// # Errors
/// Where a relay, a socket or the database fails.
pub async fn run(stage: &mut Stage<'_>, plan: Plan) -> anyhow::Result<Backlog> {
    let admin = database::connect(stage.database).await?;
    let slots: Vec<&str> = stage.logs.iter().map(|log| log.slot()).collect();
    let mut relays = Vec::new();
    for log in stage.logs {
        let relay = Relay::rowcast(stage.database, *log, stage.jwt_secret, plan.subscribers);
        relays.push(relay.await?);
    }
    let mut logs: Vec<Drained> = stage.logs.iter().copied().map(Drained::new).collect();
    let written = Written {
        transactions: vec![plan.limit.div_ceil(plan.transaction_size)],
    };
    let due: u64 = (0..plan.limit).map(|row| plan.audience(row)).sum();
    let expected = AtomicU64::new(due);
    let mut number = 0;
    for round in 1..=stage.rounds {
        for (at, drained) in logs.iter_mut().enumerate() {
            number += 1;
            let name = drained.log.as_str();
            let rounds = stage.rounds;
            stage
                .progress
                .step(&format!("round {round} of {rounds}: log {name}"));
            let recipe = Recipe {
                system: System::Rowcast,
                jwt_secret: stage.jwt_secret,
                plan,
                number,
                clock: stage.clock,
            };
            let Some(relay) = relays.get_mut(at) else {
                continue;
            };
            let crowd = Crowd::gather(relay, recipe, stage.progress).await?;
            for relay in &relays {
                relay.child.signal("STOP").await?;
            }
            let fill = Fill {
                round: number,
                first: 0,
                end: plan.limit,
                users: plan.subscribers,
                transaction_size: plan.transaction_size,
                bytes: 0,
            };
            let barrier = fill.write(&admin).await?;
            let Some(relay) = relays.get_mut(at) else {
                continue;
            };
            let books = Arc::clone(&crowd.books);
            let cpu_before = relay.child.cpu_seconds()?;
            let started = stage.clock.now();
            relay.child.signal("CONT").await?;
            await_messages(&books, &expected, started, PATIENCE, stage.progress).await;
            let last = books.last.load(Ordering::Relaxed);
            // Until nothing more comes, and the disk has what was delivered.
            tokio::time::sleep(GRACE).await;
            let cpu = relay.child.cpu_seconds()? - cpu_before;
            let tally = crowd.finish(relay, &written).await?;
            let took = seconds(last.saturating_sub(started));
            drained.add(plan.limit, &tally, took, cpu);
            // Whoever was not measured has the same to read, and must not do so in its own turn.
            for relay in &relays {
                relay.child.signal("CONT").await?;
            }
            barrier.passed(&admin, &slots).await?;
        }
    }
    for relay in relays {
        relay.child.stop().await;
    }
    let ratio = |figure: fn(&Drained) -> f64| match &*logs {
        [first, .., last] => quotient(figure(last), figure(first)),
        _ => None,
    };
    Ok(Backlog {
        subscribers: plan.subscribers,
        transaction_size: plan.transaction_size,
        rounds: stage.rounds,
        changes_per_second_ratio: ratio(|log| log.changes_per_second),
        cpu_per_change_ratio: ratio(|log| log.cpu_us_per_change),
        logs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_add_up_to_one_rate() {
        let mut drained = Drained::new(Storage::Disk);
        let tally = Tally {
            delivered: 100,
            ..Tally::default()
        };
        drained.add(100, &tally, 1.0, 0.5);
        drained.add(100, &tally, 3.0, 0.5);
        assert!((drained.changes_per_second - 50.0).abs() < 1e-9);
        assert!((drained.cpu_us_per_change - 5_000.0).abs() < 1e-9);
        assert_eq!(drained.tally.delivered, 200);
        let found = Backlog {
            subscribers: 10,
            transaction_size: 1,
            rounds: 2,
            changes_per_second_ratio: Some(0.9),
            cpu_per_change_ratio: Some(1.1),
            logs: vec![Drained::new(Storage::Memory), drained],
        };
        let table = found.table();
        assert!(
            table.contains("disk / memory: changes/s 0.90 ×; CPU a change 1.10 ×"),
            "{table}"
        );
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["logs"][1]["delivered"], 200);
    }
}
