//! `--restart`: how long nothing comes when the relay is killed and started again.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use super::Stage;
use super::fill::Fill;
use super::pulse::{Pulse, Sequence};
use super::replay::reached;
use crate::cli::bench::crowd::token_of;
use crate::cli::bench::database;
use crate::cli::bench::frame::Frame;
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{float, median};
use crate::cli::bench::subscriber::{Subscriber, System, Wish};
use crate::cli::bench::writer::round_and_row;
use crate::cli::health;
use crate::log::Cursor;

/// The users to whom the log's rows belong.
const USERS: u64 = 1_000;

/// Whoever waits.
const WAITING: u64 = USERS;

/// Bytes of a row, and rows of a transaction, of what fills the log.
const ROW_BYTES: u64 = 8_000;
const ROWS: u64 = 100;

/// Rows in transactions of their own that the end of the log is made of, at once.
const SMALL_ROWS: u64 = 50_000;

/// The file that the relay writes to has to be read through at a start. It is filled up to here,
/// which is most of what it can hold.
const NEWEST_BYTES: u64 = 48 << 20;

/// The size at which the relay begins another file.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Between two rows of the one who waits.
const EVERY: Duration = Duration::from_millis(5);

/// How long rows flow before the relay is killed, and after they flow again.
const FLOWING: Duration = Duration::from_secs(2);

/// Between two attempts to connect, and two questions whether the relay is ready.
const TRY_EVERY: Duration = Duration::from_millis(5);

/// How long it may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Restart {
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// Bytes of the newest of them.
    pub newest_bytes: u64,
    /// Rows in the log.
    pub log_rows: u64,
    /// Each time that the relay was killed.
    pub rounds: Vec<Again>,
    /// From the kill to a green `/readyz`, in milliseconds: the middle one.
    pub ready_ms: f64,
    /// From the kill to the first row that was written after it: the middle one.
    pub flowing_ms: f64,
    /// And the longest.
    pub flowing_max_ms: f64,
    /// Rows that did not arrive.
    pub missing: u64,
    /// Rows that arrived again behind the cursor.
    pub duplicated: u64,
}

/// One restart.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Again {
    /// From the kill to a green `/readyz`, in milliseconds.
    pub ready_ms: f64,
    /// From the kill to the client's join being answered.
    pub joined_ms: f64,
    /// From the kill to the first row that was written after it.
    pub flowing_ms: f64,
}

impl Restart {
    pub(super) const fn is_clean(&self) -> bool {
        self.missing == 0 && self.duplicated == 0
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "kill -9 to flowing: a log of {:.0} MiB with {} rows, {:.0} MiB in its newest file\n",
            float(self.log_bytes) / 1_048_576.0,
            self.log_rows,
            float(self.newest_bytes) / 1_048_576.0
        );
        for round in &self.rounds {
            text += &format!(
                "ready after {:.0} ms, joined after {:.0} ms, the first row written since after \
                 {:.0} ms\n",
                round.ready_ms, round.joined_ms, round.flowing_ms
            );
        }
        text += &format!(
            "median: ready {:.0} ms, flowing {:.0} ms; longest {:.0} ms; missing {}, duplicated {}\n",
            self.ready_ms, self.flowing_ms, self.flowing_max_ms, self.missing, self.duplicated
        );
        text
    }
}

/// Fills the log and kills the relay again and again.
///
/// # Errors
/// Where the relay does not come back, or the database fails.
pub async fn run(stage: &mut Stage<'_>, mebibytes: u64) -> anyhow::Result<Restart> {
    let admin = database::connect(stage.database).await?;
    let mut relay = Relay::rowcast(stage.database, Storage::Disk, stage.jwt_secret, 2).await?;
    let log_rows = fill(stage, &admin, &relay, mebibytes << 20).await?;
    let segments = relay.segments()?;
    let mut found = Restart {
        log_bytes: segments.iter().map(|(_, bytes)| bytes).sum(),
        newest_bytes: segments.last().map_or(0, |(_, bytes)| *bytes),
        log_rows,
        rounds: Vec::new(),
        ready_ms: 0.0,
        flowing_ms: 0.0,
        flowing_max_ms: 0.0,
        missing: 0,
        duplicated: 0,
    };
    for round in 1..=stage.rounds {
        let rounds = stage.rounds;
        let step = format!("round {round} of {rounds}: killing the relay");
        stage.progress.step(&step);
        let (again, sequence) = kill(stage, &mut relay, u32::MAX / 1024 - round).await?;
        found.rounds.push(again);
        found.missing += sequence.missing;
        found.duplicated += sequence.duplicated;
    }
    relay.child.stop().await;
    let figures = |figure: fn(&Again) -> f64| found.rounds.iter().map(figure).collect::<Vec<_>>();
    let flowing = figures(|round| round.flowing_ms);
    found.ready_ms = median(&figures(|round| round.ready_ms)).unwrap_or(0.0);
    found.flowing_ms = median(&flowing).unwrap_or(0.0);
    found.flowing_max_ms = flowing.iter().copied().fold(0.0, f64::max);
    Ok(found)
}

/// Writes until the log's files have so many bytes, large rows first; how many there are.
async fn fill(
    stage: &mut Stage<'_>,
    admin: &Client,
    relay: &Relay,
    bytes: u64,
) -> anyhow::Result<u64> {
    let large = bytes.saturating_sub(SEGMENT_BYTES) / ROW_BYTES;
    let mut fill = Fill {
        round: 1,
        first: 0,
        end: large,
        users: USERS,
        transaction_size: ROWS,
        bytes: ROW_BYTES,
    };
    let newest = NEWEST_BYTES.min(bytes / 2);
    loop {
        let progress = &mut *stage.progress;
        progress.step(&format!("filling the log: {} rows", fill.end));
        if fill.end > fill.first {
            let barrier = fill.write(admin).await?;
            barrier.passed(admin, &[Storage::Disk.slot()]).await?;
        }
        let segments = relay.segments()?;
        let all: u64 = segments.iter().map(|(_, bytes)| bytes).sum();
        let last = segments.last().map_or(0, |(_, bytes)| *bytes);
        if all >= bytes && last >= newest {
            return Ok(fill.end);
        }
        let rows = if fill.bytes > 0 && last > SEGMENT_BYTES / 4 {
            // Up to where a new file begins.
            SEGMENT_BYTES.saturating_sub(last) / ROW_BYTES + ROWS
        } else {
            (fill.transaction_size, fill.bytes) = (1, 0);
            SMALL_ROWS
        };
        (fill.first, fill.end) = (fill.end, fill.end + rows);
    }
}

/// Kills the relay while rows flow, and waits until they do again.
async fn kill(
    stage: &Stage<'_>,
    relay: &mut Relay,
    number: u32,
) -> anyhow::Result<(Again, Sequence)> {
    let clock = stage.clock;
    let address = relay.address()?;
    let token = token_of(WAITING, stage.jwt_secret)?;
    let wish = Wish {
        cursor: true,
        ..Wish::default()
    };
    let mut client = Waiter {
        subscriber: Subscriber::connect(System::Rowcast, address, &token, &wish).await?,
        number,
        cursor: None,
        sequence: Sequence::default(),
    };
    client.cursor = Some(reached(&mut client.subscriber, None).await?);
    let pulse = Pulse::start(stage.database, (WAITING, number), clock, EVERY).await?;
    let _flowing = timeout(FLOWING, client.until(|_| false)).await;

    let killed = clock.now();
    relay.child.kill().await;
    relay.start_again()?;
    let since = |moment: u64| float(moment - killed) / 1e6;
    let url = relay.ready_url().to_owned();
    let ready = tokio::spawn(async move {
        while !matches!(health::ask(&url).await, Ok((200, _))) {
            sleep(TRY_EVERY).await;
        }
        clock.now()
    });
    // What had been sent before.
    let _ended = client.until(|_| false).await;
    let deadline = Instant::now() + PATIENCE;
    client.subscriber = loop {
        let wish = Wish {
            since: client.cursor,
            ..wish
        };
        match Subscriber::connect(System::Rowcast, address, &token, &wish).await {
            Ok(subscriber) => break subscriber,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_not_yet) => sleep(TRY_EVERY).await,
        }
        relay.child.check()?;
    };
    let joined = clock.now();
    let flowing = timeout(PATIENCE, client.until(|sent| sent > killed)).await;
    flowing.context("Nothing came after the restart")??;
    let flowing = clock.now();
    let ready = timeout(PATIENCE, ready).await;
    let ready = ready.context("The relay is not ready")??;
    let _flowing = timeout(FLOWING, client.until(|_| false)).await;
    let written = pulse.end().await?;
    let rest = async {
        while client.sequence.next < written {
            client.row().await?;
        }
        anyhow::Ok(())
    };
    if let Ok(ended) = timeout(PATIENCE, rest).await {
        ended?;
    }
    client.sequence.missing += written.saturating_sub(client.sequence.next);
    let again = Again {
        ready_ms: since(ready),
        joined_ms: since(joined),
        flowing_ms: since(flowing),
    };
    Ok((again, client.sequence))
}

/// Whoever waits.
struct Waiter {
    subscriber: Subscriber,
    /// The round of its rows.
    number: u32,
    /// How far it has got.
    cursor: Option<Cursor>,
    sequence: Sequence,
}

impl Waiter {
    /// Takes rows up to one whose due time passes.
    async fn until(&mut self, passes: impl Fn(u64) -> bool) -> anyhow::Result<()> {
        while !passes(self.row().await?) {}
        Ok(())
    }

    /// Takes the next row; when it was due.
    async fn row(&mut self) -> anyhow::Result<u64> {
        loop {
            match self.subscriber.next().await {
                Ok(Frame::Row { id, sent, cursor }) => {
                    let (round, row) = round_and_row(id);
                    self.cursor = cursor.or(self.cursor);
                    if round == u64::from(self.number) {
                        self.sequence.take(row);
                        return Ok(sent);
                    }
                    self.sequence.duplicated += 1;
                }
                Ok(Frame::Resync(reason)) => bail!("The client is to read again: {reason}"),
                Ok(_) => {}
                Err(why) => bail!("The client's socket ended: {why}"),
            }
        }
    }
}
