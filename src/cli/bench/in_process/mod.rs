//! `--in-process`: a relay whose subscribers live in its own process, without sockets, for numbers
//! that sockets do not allow.
//!
//! The process runs everything of the daemon between PostgreSQL and the sessions, and an outbox
//! for every subscriber. The benchmark itself stays outside, as with the daemon: it writes the
//! rows, reads the process's CPU time and memory, and talks to it in [`wire`].

pub mod audience;

pub mod inside;

pub mod wire;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use self::audience::{Audience, Sessions};
use self::wire::{Answer, Count, Order};
use super::books::Books;
use super::database::NAME;
use super::latency::Clock;
use crate::admin::Readiness;
use crate::app::Core;
use crate::cli::{EXIT_UNAVAILABLE, fail};
use crate::config::{self, Config, Given};
use crate::metrics::Metrics;

/// Between two counts.
const TICK: Duration = Duration::from_millis(50);

/// What the benchmark says to it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long)]
    slot: String,
    #[arg(long)]
    data: String,
    /// The daemon's setting of the same name.
    #[arg(long, default_value = "")]
    old_rows: String,
}

/// Runs the relay until its orders end; `DATABASE_URL` comes from the environment.
pub async fn run(arguments: Arguments) -> ExitCode {
    match relay(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_UNAVAILABLE, format_args!("{error:#}")),
    }
}

/// What may wait for a subscriber: it is measured what a change costs, and not how soon its one task
/// gets a turn beside the relay's.
const OUTBOX_EVENTS: usize = 10_000_000;
const OUTBOX_BYTES: usize = 1 << 32;

async fn relay(arguments: &Arguments) -> anyhow::Result<()> {
    let config = settings(arguments)?;
    // Ctrl-C reaches every process of a terminal; the benchmark decides when this one ends, which
    // is when its orders do.
    tokio::spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
    let mut core = Core::start(&config, Arc::new(Metrics::new()), Readiness::default()).await?;
    let mut sessions = Sessions::new(core.router.clone(), OUTBOX_EVENTS, OUTBOX_BYTES);
    let mut orders = orders()?;
    let mut audience: Option<Audience> = None;
    let mut shown = None;
    let mut tick = tokio::time::interval(TICK);
    answer(&Answer::Ready)?;
    loop {
        let line = tokio::select! {
            line = orders.recv() => line,
            fault = core.broken() => bail!("{fault}"),
            _ = tick.tick() => {
                if let Some(audience) = &audience {
                    let count = count(audience.books());
                    if shown != Some(count) {
                        answer(&Answer::Count(count))?;
                        shown = Some(count);
                    }
                }
                continue;
            }
        };
        let Some(line) = line else {
            break;
        };
        let order = serde_json::from_str(&line).context("An order of an unknown form")?;
        match (order, audience.take()) {
            (Order::Join { plan, round, clock }, None) => {
                let books = Books::new(round, Clock::of(clock)?)?;
                let mut said = 0;
                let joined = sessions
                    .join(plan, books, |joined| {
                        if joined - said < 1_000 {
                            return Ok(());
                        }
                        said = joined;
                        answer(&Answer::Joining { joined })
                    })
                    .await?;
                audience = Some(joined);
                answer(&Answer::Joined)?;
            }
            (Order::Finish { written }, Some(audience)) => {
                let (tally, books) = sessions.finish(audience, written).await?;
                let latency = books.latency().counts();
                answer(&Answer::Done {
                    tally,
                    latency,
                    broken: books.why_broken(),
                })?;
            }
            _ => bail!("An order that is out of turn"),
        }
    }
    core.stop_source().await;
    core.stop().await;
    Ok(())
}

/// The lines of stdin. A thread reads them: a read that blocks cannot be called off, and must not
/// keep the process from ending.
fn orders() -> anyhow::Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("bench-orders".to_owned())
        .spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

/// The daemon's defaults, on the benchmark's slot and with its log where that says.
fn settings(arguments: &Arguments) -> anyhow::Result<Config> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let flag = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let given = Given {
        flags: vec![
            flag("database_url", &url),
            flag("slot", &arguments.slot),
            flag("data", &arguments.data),
            flag("publication", NAME),
            flag("old_rows", &arguments.old_rows),
        ],
        ..Given::default()
    };
    // What is incomplete is the tokens' key, and there are no tokens.
    Ok(config::load(&given, false)?.config)
}

fn count(books: &Books) -> Count {
    // The last to be written is the first to be read: whoever sees that all are delivered sees
    // when the last arrived.
    let delivered = books.delivered.load(Ordering::Acquire);
    Count {
        round: books.round,
        arrived: books.arrived.load(Ordering::Acquire),
        last: books.last.load(Ordering::Acquire),
        delivered,
    }
}

fn answer(answer: &Answer) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(answer)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
