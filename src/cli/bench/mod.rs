//! `rowcast bench`: the load generator.
//!
//! It runs the relay as a process of its own, writes rows whose readers follow from their numbers
//! ([`plan`]), and holds what every subscriber got against what it must get ([`verifier`]).

#![expect(clippy::print_stdout, reason = "the report is what is asked for")]

pub mod baseline;

pub mod books;

pub mod child;

pub mod crowd;

pub mod database;

pub mod frame;

pub mod in_process;

pub mod latency;

pub mod plan;

pub mod process;

pub mod progress;

pub mod recent;

pub mod relay;

pub mod report;

pub mod round;

pub mod subscriber;

pub mod trial;

pub mod verifier;

pub mod writer;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;

use self::crowd::Recipe;
use self::latency::Clock;
use self::plan::{Filter, Plan, Policy};
use self::progress::Progress;
use self::relay::{Relay, Storage};
use self::report::{Line, Ratio, Report, Settings};
use self::round::{Figures, Round};
use self::subscriber::System;
use self::trial::{Finding, Stage, Trial, Trials};
use self::writer::Pace;
use super::{fail, stop_signal};
use crate::config::{Secret, parse_duration};
use crate::pg::throwaway::{self, Throwaway};

/// Arguments of `rowcast bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Method: the relay runs as a process of its own, so its CPU time and memory (from /proc) are its \
own. Subscribers are real WebSockets, each with a token of its own; with --in-process they live in \
the relay's process, which then is everything of it but sockets, frames and tokens, and whose CPU \
time and memory include taking and checking the messages. Who must see a row follows \
from the row's number; every message is checked, and a missing, duplicated, leaked or disordered \
one makes the exit code 1. Latency counts from when a row was due by the schedule, not from when \
it was written, so a stall is not left out; it includes the commit, whose share is shown. Order is \
checked among the rows of one writer, as that of commits of different writers cannot be known \
beforehand. The bare relay of --baseline has one socket (with --policy open as many as the relay), \
so that it sends as many messages; rounds take turns, begin with a checkpoint and every second one \
from the other end, and every figure becomes a ratio, a latency's the median of the rounds'.

--idle, --backlog, --drain, --decode, --churn, --replay, --returning, --restart and --stalled are trials: each takes the place of \
the rounds and says what it measured. docs/performance.md has them with their conditions.

Examples:
  rowcast bench --subscribers 1 --rate 1000 --baseline
  rowcast bench --compare 1,1000 --rate 500
  rowcast bench --subscribers 1000 --policy open --rate 0 --rows 2000
  rowcast bench --in-process --compare 1,1000,100000
  rowcast bench --log memory,disk --subscribers 1 --rate 1000
  rowcast bench --idle 5000 --json
  rowcast bench --backlog --log memory,disk
  rowcast bench --drain
  rowcast bench --decode
  rowcast bench --churn
  rowcast bench --replay
  rowcast bench --returning
  rowcast bench --restart
  rowcast bench --stalled")]
pub struct Arguments {
    /// The database to measure with, instead of a throw-away PostgreSQL; the benchmark makes and removes schema, role, publication
    /// and slots called rowcast_bench in it. Its wal_level must be logical
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Subscribers, each a user of its own [default: 100; 20 with --stalled]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    subscribers: Option<u64>,
    /// Several numbers of subscribers, taking turns, and the ratio of the last to the first
    #[arg(long, value_name = "COUNT,…", value_delimiter = ',', conflicts_with = "subscribers", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    compare: Vec<u64>,
    /// Rows a second; 0 for as fast as it goes [default: 1000; 200 with --stalled]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    rate: Option<u64>,
    /// Rows of a round [default: as many as the duration holds]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rows: Option<u64>,
    /// How long a round writes, at most
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    duration: Duration,
    /// Rows of a transaction [default: 1; 100 with --drain and --decode]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    transaction_size: Option<u64>,
    /// Connections that write
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    writers: u64,
    /// Who may see a row: its owner, the ten members of its organisation, everybody [default: user]
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// Ask for all rows, for one of four values of a column, or for one's own rows by their owner
    #[arg(long, value_enum, default_value_t = Filter::None)]
    filter: Filter,
    #[command(flatten)]
    trials: Trials,
    /// Leave out the event trigger that `rowcast setup` makes: the relay has to look at the catalog before
    /// it judges rows, as on a host that lets nobody make one
    #[arg(long)]
    no_event_trigger: bool,
    /// Run the bare relay in turns with this one; not with --in-process, as it is all sockets
    #[arg(long)]
    baseline: bool,
    /// Where the relay keeps its log: as the daemon does by default, in memory, or one relay each
    /// in turns, and the ratio of the last to the first (`memory,disk`)
    #[arg(
        long,
        value_enum,
        value_name = "WHERE,…",
        value_delimiter = ',',
        default_value = "disk"
    )]
    log: Vec<Storage>,
    /// How often each measurement is made [default: 5 with --baseline; 3 with --compare, two logs or a trial but --idle, --returning and --churn; else 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Subscribers without sockets, inside the relay's process, for numbers above what sockets allow
    #[arg(long)]
    in_process: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(3600));
    parse_duration(text, least, most).map_err(|expected| format!("it must be {expected}"))
}

/// Runs the benchmark.
pub async fn run(arguments: Arguments) -> ExitCode {
    let report = measure(&arguments).await;
    match report {
        Err(error) => fail(1, format_args!("{error:#}")),
        Ok(report) => {
            if arguments.json {
                match serde_json::to_string_pretty(&report) {
                    Ok(json) => println!("{json}"),
                    Err(error) => return fail(1, format_args!("{error}")),
                }
            } else {
                print!("{}", report.table());
            }
            if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                fail(
                    1,
                    format_args!("messages are missing, duplicated, leaked or out of order"),
                )
            }
        }
    }
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Report> {
    ensure!(
        !(arguments.in_process && arguments.baseline),
        "--baseline compares sockets with sockets, and --in-process has none; leave one of them \
         out."
    );
    let trial = arguments.trials.chosen();
    if let Some(trial) = trial {
        trial.check(&trial::Given {
            in_process: arguments.in_process,
            baseline: arguments.baseline,
            compare: !arguments.compare.is_empty(),
            policy: arguments.policy,
            subscribers: arguments.subscribers.is_some(),
            rows: arguments.rows.is_some(),
            logs: storages(arguments),
        })?;
    }
    let counts = counts(arguments);
    let most = counts.iter().copied().max().unwrap_or(1);
    if !arguments.in_process && !trial.is_some_and(Trial::has_no_sockets) {
        enough_sockets(most + trial.map_or(0, Trial::sockets))?;
    }
    let stop = stop_signal();
    tokio::pin!(stop);
    // Looked at once, so that from here on a signal no longer ends the process: half a cluster,
    // or half of the tables, would be left behind.
    tokio::select! {
        biased;
        () = &mut stop => bail!("stopped before the start"),
        () = std::future::ready(()) => {}
    }
    let mut progress = Progress::start();
    // Lives to the end of the run and goes with it.
    let (database, cluster) = match &arguments.database_url {
        Some(url) => (Secret::new(url.as_str()), None),
        None => {
            progress.step("starting a throw-away PostgreSQL");
            let cluster = Throwaway::start(throwaway::Options {
                // What a commit costs is a part of what is measured.
                fsync: true,
                ..throwaway::Options::default()
            })
            .await?;
            (Secret::new(cluster.url("postgres")), Some(cluster))
        }
    };
    let admin = database::connect(&database).await?;
    database::set_up(&admin, policy(arguments), most).await?;
    if !arguments.no_event_trigger {
        database::have_ddl_told(&admin).await?;
    }
    let report = tokio::select! {
        report = run_on(arguments, &counts, &database, &mut progress) => report,
        // Dropping the other branch ends the relays, so their slots can be removed below.
        () = &mut stop => Err(anyhow::anyhow!("stopped before the end")),
    };
    progress.finish();
    // What is left would hold back WAL, so it goes even after a failure; the failure says more
    // than a second one.
    let taken_down = database::take_down(&admin).await;
    let report = report?;
    taken_down.context("The benchmark's remains cannot be removed")?;
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    Ok(report)
}

fn counts(arguments: &Arguments) -> Vec<u64> {
    if !arguments.compare.is_empty() {
        return arguments.compare.clone();
    }
    vec![match arguments.trials.chosen() {
        Some(Trial::Idle(count)) => count,
        Some(Trial::Drain(_)) => return vec![1, trial::drain::MANY, 100_000],
        Some(Trial::Decode(_)) => arguments.subscribers.unwrap_or(1_000),
        Some(Trial::Stalled(_)) => arguments.subscribers.unwrap_or(20),
        _ => arguments.subscribers.unwrap_or(100),
    }]
}

fn rate(arguments: &Arguments) -> u64 {
    arguments.rate.unwrap_or(match arguments.trials.chosen() {
        Some(Trial::Stalled(_)) => trial::stalled::RATE,
        _ => 1_000,
    })
}

fn policy(arguments: &Arguments) -> Policy {
    let trial = arguments.trials.chosen();
    let only = trial.and_then(Trial::policy);
    only.or(arguments.policy).unwrap_or(Policy::User)
}

/// Sockets are files and have a port each, and running out of either half-way looks like a fault of
/// the relay.
fn enough_sockets(subscribers: u64) -> anyhow::Result<()> {
    if let Some(limit) = process::open_files_limit() {
        ensure!(
            subscribers + 100 <= limit,
            "{subscribers} subscribers need as many open files and some more; the limit is \
             {limit} (`ulimit -n`). With --in-process they need none."
        );
    }
    if let Some(ports) = process::local_ports() {
        ensure!(
            subscribers + 100 <= ports,
            "{subscribers} subscribers need as many local ports and some more; there are {ports} \
             (`sysctl net.ipv4.ip_local_port_range`). With --in-process they need none."
        );
    }
    Ok(())
}

/// One measurement that is made in every round.
struct Scenario {
    /// Which of the relays, by its place.
    relay: usize,
    subscribers: u64,
    figures: Option<Figures>,
}

/// A relay that is measured.
struct Measured {
    system: System,
    /// Where its log is; the bare relay has none.
    log: Option<Storage>,
    relay: Relay,
}

/// All measurements, those of one number of subscribers beside each other.
fn scenarios(arguments: &Arguments, counts: &[u64], relays: &[Measured]) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    let mut add = |system, counts: &[u64]| {
        for subscribers in counts {
            let places = relays.iter().enumerate();
            let these = places.filter(|(_, measured)| measured.system == system);
            scenarios.extend(these.map(|(relay, _)| Scenario {
                relay,
                subscribers: *subscribers,
                figures: None,
            }));
        }
    };
    add(System::Rowcast, counts);
    if policy(arguments) == Policy::Open {
        add(System::Baseline, counts);
    } else {
        add(System::Baseline, &[1]);
    }
    scenarios
}

async fn run_on(
    arguments: &Arguments,
    counts: &[u64],
    database: &Secret,
    progress: &mut Progress,
) -> anyhow::Result<Report> {
    let most = counts.iter().copied().max().unwrap_or(1);
    let jwt_secret = Secret::new(format!(
        "{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    ));
    let logs = storages(arguments);
    let trial = arguments.trials.chosen();
    let rounds = arguments.rounds.unwrap_or(match trial {
        Some(Trial::Idle(_) | Trial::Returning(_) | Trial::Churn(_)) => 1,
        Some(_) => 3,
        None if arguments.baseline => 5,
        None if arguments.compare.len() > 1 || logs.len() > 1 => 3,
        None => 1,
    });
    let mut report = Report {
        settings: Settings {
            in_process: arguments.in_process,
            rate: rate(arguments),
            policy: policy(arguments).as_str(),
            filter: arguments.filter.as_str(),
            transaction_size: arguments.transaction_size.unwrap_or(1),
            writers: arguments.writers,
            rounds,
        },
        results: Vec::new(),
        ratios: Vec::new(),
        finding: None,
    };
    if let Some(trial) = trial {
        let stage = Stage {
            database,
            jwt_secret: &jwt_secret,
            clock: Clock::start(),
            logs: &logs,
            rounds,
            progress,
        };
        report.finding = Some(attempt(arguments, trial, stage).await?);
        return Ok(report);
    }
    let mut relays = Vec::new();
    for log in logs {
        progress.step(&format!("starting the relay, log: {}", log.as_str()));
        let relay = if arguments.in_process {
            Relay::in_process(database, log).await?
        } else {
            Relay::rowcast(database, log, &jwt_secret, most).await?
        };
        relays.push(Measured {
            system: System::Rowcast,
            log: Some(log),
            relay,
        });
    }
    if arguments.baseline {
        progress.step("starting the bare relay");
        relays.push(Measured {
            system: System::Baseline,
            log: None,
            relay: Relay::baseline(database).await?,
        });
    }
    let clock = Clock::start();
    let mut scenarios = scenarios(arguments, counts, &relays);
    let mut number = 0;
    for round in 1..=rounds {
        // Whoever comes second finds caches, files and memory as the first left them.
        let mut turns: Vec<&mut Scenario> = scenarios.iter_mut().collect();
        if round % 2 == 0 {
            turns.reverse();
        }
        for scenario in turns {
            number += 1;
            let Some(measured) = relays.get_mut(scenario.relay) else {
                continue;
            };
            progress.step(&format!(
                "round {round} of {rounds}: {} with {} subscriber(s)",
                name(measured.system),
                scenario.subscribers
            ));
            let figures = Round {
                relay: &mut measured.relay,
                recipe: Recipe {
                    system: measured.system,
                    jwt_secret: &jwt_secret,
                    plan: plan(arguments, measured.system, scenario.subscribers),
                    number,
                    clock,
                },
                database,
                pace: Pace {
                    rate: rate(arguments),
                    duration: arguments.duration,
                },
            }
            .run(progress)
            .await?;
            match &mut scenario.figures {
                Some(all) => all.add(&figures),
                None => scenario.figures = Some(figures),
            }
        }
    }
    for scenario in &scenarios {
        if let (Some(figures), Some(measured)) = (&scenario.figures, relays.get(scenario.relay)) {
            let name = name(measured.system);
            let line = Line::new(name, measured.log, scenario.subscribers, figures);
            report.results.push(line);
        }
    }
    stop_all(relays).await;
    report.ratios = ratios(&report.results);
    Ok(report)
}

async fn stop_all(relays: Vec<Measured>) {
    for measured in relays {
        measured.relay.child.stop().await;
    }
}

/// Where the relays' logs are, each once.
fn storages(arguments: &Arguments) -> Vec<Storage> {
    let mut storages = Vec::new();
    for log in &arguments.log {
        if !storages.contains(log) {
            storages.push(*log);
        }
    }
    storages
}

const fn name(system: System) -> &'static str {
    match system {
        System::Rowcast => "rowcast",
        System::Baseline => "baseline",
    }
}

/// The relay against the bare relay, and many subscribers against few.
fn ratios(lines: &[Line]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    let (relay, bare): (Vec<&Line>, Vec<&Line>) =
        lines.iter().partition(|line| line.system == "rowcast");
    for line in &relay {
        let same = bare
            .iter()
            .find(|bare| bare.subscribers == line.subscribers);
        if let Some(bare) = same.or(bare.first()) {
            ratios.push(Ratio::new(line, bare));
        }
    }
    if let Some((first, others)) = relay.split_first() {
        ratios.extend(others.iter().map(|line| Ratio::new(line, first)));
    }
    ratios
}

fn plan(arguments: &Arguments, system: System, subscribers: u64) -> Plan {
    // The bare relay knows neither policies nor filters.
    let (policy, filter) = match system {
        System::Rowcast => (policy(arguments), arguments.filter),
        System::Baseline => (Policy::Open, Filter::None),
    };
    Plan {
        subscribers,
        policy,
        filter,
        transaction_size: arguments.transaction_size.unwrap_or(1),
        writers: arguments.writers,
        // Enough for an hour flat out; a row number beyond it was never written.
        limit: arguments.rows.unwrap_or(1 << 32),
    }
}

/// Makes a trial. Its relays are its own.
async fn attempt(
    arguments: &Arguments,
    trial: Trial,
    mut stage: Stage<'_>,
) -> anyhow::Result<Finding> {
    let count = counts(arguments).first().copied().unwrap_or(1);
    let plan = plan(arguments, System::Rowcast, count);
    Ok(match trial {
        Trial::Idle(_) => {
            let plan = Plan { writers: 1, ..plan };
            Finding::Idle(trial::idle::run(&mut stage, plan, arguments.in_process).await?)
        }
        Trial::Backlog(rows) => {
            // One session writes them.
            let plan = Plan {
                writers: 1,
                limit: rows,
                ..plan
            };
            Finding::Backlog(trial::backlog::run(&mut stage, plan).await?)
        }
        Trial::Drain(rows) => {
            let plan = Plan {
                writers: 1,
                limit: rows,
                transaction_size: arguments.transaction_size.unwrap_or(100),
                ..plan
            };
            Finding::Drain(trial::drain::run(&mut stage, plan, &counts(arguments)).await?)
        }
        Trial::Decode(rows) => {
            let plan = Plan {
                writers: 1,
                limit: rows,
                transaction_size: arguments.transaction_size.unwrap_or(100),
                ..plan
            };
            let found = trial::decode::run(&mut stage, plan).await?;
            Finding::Decode(Box::new(found))
        }
        Trial::Churn(connections) => {
            Finding::Churn(trial::churn::run(&mut stage, connections).await?)
        }
        Trial::Replay(rows) => {
            let size = arguments.transaction_size.unwrap_or(1);
            Finding::Replay(trial::replay::run(&mut stage, rows, size).await?)
        }
        Trial::Returning(clients) => {
            let rows = arguments.rows.unwrap_or(trial::returning::ROWS);
            Finding::Returning(trial::returning::run(&mut stage, clients, rows).await?)
        }
        Trial::Restart(mebibytes) => {
            Finding::Restart(trial::restart::run(&mut stage, mebibytes).await?)
        }
        Trial::Stalled(clients) => {
            let pace = Pace {
                rate: rate(arguments),
                duration: arguments.duration,
            };
            let found = trial::stalled::run(&mut stage, plan, pace, clients).await?;
            Finding::Stalled(Box::new(found))
        }
    })
}

#[cfg(test)]
mod tests;
