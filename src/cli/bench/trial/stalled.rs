//! `--stalled`: whether subscribers have to wait for others that stop reading: once these are not
//! there, once they read, once they do not, in turns.

use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
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

/// Events that the relay may keep for one socket: fewer than by default, so that the sockets of those
/// who do not read are closed, too, while it is measured.
const OUTBOX_EVENTS: &str = "512";

/// How long the end of a socket may take to show itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// Rows a second, where nothing else is said: each goes to all of them.
pub const RATE: u64 = 200;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Stalled {
    /// Clients that stopped reading, each sent every row.
    pub clients: u64,
    /// How often each was measured, taking turns.
    pub rounds: u32,
    /// The subscribers while there are no such clients.
    pub absent: Line,
    /// The subscribers while those clients read.
    pub reading: Line,
    /// The subscribers while they do not.
    pub stalled: Line,
    /// Of all rounds, the clients whose sockets the relay closed meanwhile.
    pub closed: u64,
    /// While they do not read, to while they do.
    pub to_reading: Ratio,
    /// While they do not read, to while they are not there.
    pub to_absent: Ratio,
}

/// What the other clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Absent,
    Reading,
    Stalled,
}

impl Others {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Reading => "reading",
            Self::Stalled => "stalled",
        }
    }
}

impl Stalled {
    pub(super) const fn is_clean(&self) -> bool {
        self.absent.is_clean() && self.reading.is_clean() && self.stalled.is_clean()
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{} clients that stop reading beside {} subscribers, {:.0} rows/s to each, {} round(s)\n",
            self.clients, self.stalled.subscribers, self.stalled.changes_per_second, self.rounds
        );
        for (others, line) in [
            (Others::Absent, &self.absent),
            (Others::Reading, &self.reading),
            (Others::Stalled, &self.stalled),
        ] {
            let p50 = line.latency_us.map(|points| points.p50);
            let p99 = line.latency_us.map(|points| points.p99);
            text += &format!(
                "{:<8} p50 {}, p99 {}; CPU a change {:.1} µs; delivered {}, missing {}, duplicated \
                 {}, leaked {}, out of order {}\n",
                others.as_str(),
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
        for (others, ratio) in [
            (Others::Reading, &self.to_reading),
            (Others::Absent, &self.to_absent),
        ] {
            text += &format!(
                "stalled / {}: p50 {}, p99 {}\n",
                others.as_str(),
                times(ratio.latency_p50),
                times(ratio.latency_p99)
            );
        }
        text += &format!(
            "closed by the relay: {} of {}\n",
            self.closed,
            self.clients * u64::from(self.rounds)
        );
        text
    }
}

/// Measures subscribers beside such others, in turns. `plan` says who
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
    let settings = [("ROWCAST_OUTBOX_MAX_EVENTS", OUTBOX_EVENTS)];
    let relay = Relay::with(
        stage.database,
        log,
        stage.jwt_secret,
        connections,
        &settings,
    );
    let mut relay = relay.await?;
    let mut found: [Option<Figures>; 3] = [None, None, None];
    let mut closed = 0;
    let mut number = 0;
    for round in 1..=stage.rounds {
        let turns = [Others::Absent, Others::Reading, Others::Stalled];
        for (others, all) in turns.into_iter().zip(&mut found) {
            number += 1;
            let (rounds, how) = (stage.rounds, others.as_str());
            let step = format!("round {round} of {rounds}: the others are {how}");
            stage.progress.step(&step);
            let (mut reading, mut stalled) = (JoinSet::new(), Vec::new());
            let count = if others == Others::Absent { 0 } else { clients };
            for client in 0..count {
                let token = token_of(plan.subscribers + client, stage.jwt_secret)?;
                let small = (others == Others::Stalled).then_some(RECEIVE_BUFFER);
                let wish = Wish {
                    receive_buffer: small,
                    ..Wish::default()
                };
                let address = relay.address()?;
                let joined = Subscriber::connect(System::Rowcast, address, &token, &wish);
                let joined = joined.await?;
                if others == Others::Reading {
                    reading.spawn(until_end(joined));
                } else {
                    stalled.push(joined);
                }
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
            reading.shutdown().await;
            for client in stalled {
                closed += u64::from(timeout(FAREWELL, until_end(client)).await.is_ok());
            }
        }
    }
    relay.child.stop().await;
    let [Some(absent), Some(reading), Some(stalled)] = found else {
        anyhow::bail!("There was no round.");
    };
    let line = |figures| Line::new("rowcast", Some(log), plan.subscribers, figures);
    let (absent, reading, stalled) = (line(&absent), line(&reading), line(&stalled));
    Ok(Stalled {
        clients,
        rounds: stage.rounds,
        closed,
        to_reading: Ratio::new(&stalled, &reading),
        to_absent: Ratio::new(&stalled, &absent),
        absent,
        reading,
        stalled,
    })
}

/// Reads all that comes.
async fn until_end(mut client: Subscriber) {
    while client.next().await.is_ok() {}
}
