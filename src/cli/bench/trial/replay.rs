//! `--replay`: how fast the log is passed over for a client that comes back and to whom nothing of
//! it belongs: reading, decoding, and asking the indexes about every change.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::fill::Fill;
use super::pulse::Pulse;
use super::{Stage, seconds};
use crate::cli::bench::crowd::token_of;
use crate::cli::bench::database;
use crate::cli::bench::frame::Frame;
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{float, per};
use crate::cli::bench::subscriber::{Subscriber, System, Wish};
use crate::log::Cursor;

/// The users to whom the rows belong.
const USERS: u64 = 1_000;

/// Somebody whose rows say where the log begins and ends.
const PROBE: u64 = USERS;

/// Whoever comes back.
const STRANGER: u64 = USERS + 1;

/// The rounds whose numbers the rows have.
const FILL: u32 = 1;
const MARKS: u32 = 2;

/// How long a replay may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Replay {
    /// Where the log was.
    pub log: Storage,
    /// Changes that were passed over each time.
    pub changes: u64,
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// By where the changes were.
    pub passes: Vec<Pass>,
}

/// Replays from one place.
#[derive(Debug, Serialize)]
pub struct Pass {
    /// Where the changes were: `memory`, `page cache` or `disk`.
    pub from: &'static str,
    /// How often.
    pub rounds: u32,
    /// From the join to the word that everything was sent, in seconds, all together.
    pub seconds: f64,
    /// The relay's CPU time meanwhile.
    pub cpu_seconds: f64,
    /// Changes a second.
    pub changes_per_second: f64,
    /// Changes a second that one core could do.
    pub changes_per_cpu_second: f64,
}

impl Replay {
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "replay with no receiver: {} changes, {} a transaction, log {} ({:.0} MiB of files)\n",
            self.changes,
            self.transaction_size,
            self.log.as_str(),
            float(self.log_bytes) / 1_048_576.0
        );
        for pass in &self.passes {
            text += &format!(
                "from {:<11} {:>9.0} changes/s, {:>9.0} on one core ({} round(s), {:.2} s, {:.2} \
                 CPU seconds)\n",
                pass.from,
                pass.changes_per_second,
                pass.changes_per_cpu_second,
                pass.rounds,
                pass.seconds,
                pass.cpu_seconds
            );
        }
        text
    }
}

/// Where the changes are when they are replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the relay.
    Memory,
    /// In files that the system has in its cache.
    PageCache,
    /// In files that it has not.
    Disk,
}

impl Place {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::PageCache => "page cache",
            Self::Disk => "disk",
        }
    }
}

/// Writes rows and has them replayed.
///
/// # Errors
/// Where the relay, a socket or the database fails, or rows arrive that belong to others.
pub async fn run(
    stage: &mut Stage<'_>,
    rows: u64,
    transaction_size: u64,
) -> anyhow::Result<Replay> {
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let admin = database::connect(stage.database).await?;
    let mut relay = Relay::rowcast(stage.database, log, stage.jwt_secret, 2).await?;
    let address = relay.address()?;
    let wish = Wish {
        cursor: true,
        ..Wish::default()
    };
    let token = token_of(PROBE, stage.jwt_secret)?;
    let probe = Subscriber::connect(System::Rowcast, address, &token, &wish);
    let since = reached(&mut probe.await?, None).await?;
    let step = format!("writing {rows} rows");
    stage.progress.step(&step);
    let fill = Fill {
        round: FILL,
        first: 0,
        end: rows,
        users: USERS,
        transaction_size,
        bytes: 0,
    };
    let barrier = fill.write(&admin).await?;
    barrier.passed(&admin, &[log.slot()]).await?;
    let mut probe = Subscriber::connect(System::Rowcast, address, &token, &wish).await?;
    let end = mark(stage, &mut probe).await?;
    drop(probe);

    let mut passes = Vec::new();
    for place in [Place::Memory, Place::PageCache, Place::Disk] {
        if log == Storage::Memory && place != Place::Memory {
            continue;
        }
        if place == Place::PageCache {
            // What it remembered goes with it.
            relay.child.kill().await;
            relay.start_again()?;
            relay.until_ready().await?;
        }
        let (mut nanos, mut cpu) = (0, 0.0);
        for round in 1..=stage.rounds {
            let (from, rounds) = (place.as_str(), stage.rounds);
            let step = format!("round {round} of {rounds}: replaying from {from}");
            stage.progress.step(&step);
            if place == Place::Disk {
                for (path, _) in relay.segments()? {
                    forget(&path).await?;
                }
            }
            let token = token_of(STRANGER, stage.jwt_secret)?;
            let wish = Wish {
                since: Some(since),
                cursor: true,
                ..Wish::default()
            };
            let mut client = Subscriber::open(System::Rowcast, address, &token, &wish).await?;
            let (cpu_before, started) = (relay.child.cpu_seconds()?, stage.clock.now());
            client.join(&token, &wish).await?;
            let told = reached(&mut client, Some(end));
            let told = timeout(PATIENCE, told).await;
            told.context("The replay did not end")??;
            nanos += stage.clock.now() - started;
            cpu += relay.child.cpu_seconds()? - cpu_before;
        }
        let all = rows * u64::from(stage.rounds);
        passes.push(Pass {
            from: place.as_str(),
            rounds: stage.rounds,
            seconds: seconds(nanos),
            cpu_seconds: cpu,
            changes_per_second: per(all, seconds(nanos)),
            changes_per_cpu_second: per(all, cpu),
        });
    }
    let log_bytes = relay.segments()?.iter().map(|(_, bytes)| bytes).sum();
    relay.child.stop().await;
    Ok(Replay {
        log,
        changes: rows,
        transaction_size,
        log_bytes,
        passes,
    })
}

/// Waits until a client has been told that it has everything up to `end`, and returns the place.
///
/// # Errors
/// Where it is told something else.
pub(super) async fn reached(
    client: &mut Subscriber,
    end: Option<Cursor>,
) -> anyhow::Result<Cursor> {
    loop {
        match client.next().await {
            Ok(Frame::Cursor(cursor)) => {
                let there = |end: Cursor| end.epoch == cursor.epoch && end.offset <= cursor.offset;
                if end.is_none_or(there) {
                    return Ok(cursor);
                }
            }
            Ok(Frame::Row { .. }) => bail!("Somebody else's row arrived."),
            Ok(Frame::Resync(reason)) => bail!("The client is to read again: {reason}"),
            Ok(_) => {}
            Err(why) => bail!("A subscriber ended: {why}"),
        }
    }
}

/// Writes a row of the probe's, and returns the place behind it.
async fn mark(stage: &Stage<'_>, probe: &mut Subscriber) -> anyhow::Result<Cursor> {
    let whose = (PROBE, MARKS);
    let pulse = Pulse::start(stage.database, whose, stage.clock, Duration::from_secs(60)).await?;
    let row = async {
        loop {
            match probe.next().await {
                Ok(Frame::Row {
                    cursor: Some(cursor),
                    ..
                }) => return Ok(cursor),
                Ok(_) => {}
                Err(why) => bail!("A subscriber ended: {why}"),
            }
        }
    };
    let found = timeout(PATIENCE, row).await;
    pulse.end().await?;
    found.context("The relay does not get on with what was written")?
}

/// Has the system drop a file from its cache. It must be on the disk.
async fn forget(path: &Path) -> anyhow::Result<()> {
    let mut file = std::ffi::OsString::from("if=");
    file.push(path);
    let dropped = Command::new("dd")
        .arg(file)
        .args(["iflag=nocache", "count=0", "status=none"])
        .status()
        .await
        .context("There is no program called dd")?;
    ensure!(
        dropped.success(),
        "{} cannot be dropped from the system's cache.",
        path.display()
    );
    Ok(())
}
