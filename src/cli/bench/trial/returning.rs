//! `--returning`: many clients come back at once, each of which missed the same rows, of which a
//! few are its own; somebody who stayed listens to rows that come meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::fill::Fill;
use super::pulse::{Listener, Pulse};
use super::replay::reached;
use super::{Stage, seconds};
use crate::cli::bench::crowd::token_of;
use crate::cli::bench::database;
use crate::cli::bench::frame::Frame;
use crate::cli::bench::latency::Percentiles;
use crate::cli::bench::plan::{Filter, Plan, Policy, Written};
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{float, millis, over, quotient, times};
use crate::cli::bench::subscriber::{Subscriber, System, Wish};
use crate::cli::bench::verifier::{Tally, Verifier};
use crate::cli::bench::writer::round_and_row;
use crate::log::Cursor;

/// Rows that each client missed, by default.
pub const ROWS: u64 = 60_000;

/// How many of them are a client's own.
const OWN: u64 = 60;

/// Clients that connect and join at the same time.
const JOINING: usize = 64;

/// Between two rows of the one who stayed.
const EVERY: Duration = Duration::from_millis(10);

/// How long that one listens before the others come back.
const BEFORE: Duration = Duration::from_secs(10);

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The rounds whose numbers the rows have.
const MISSED: u32 = 1;
const STEADY: u32 = 2;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Returning {
    /// Where the log was.
    pub log: Storage,
    /// Clients that came back.
    pub clients: u64,
    /// Rows that each missed.
    pub missed_rows: u64,
    /// Rows of each user among them.
    pub own_rows: u64,
    /// What became of the rows, those that came once all were back included.
    #[serde(flatten)]
    pub tally: Tally,
    /// From the first connection until all had been given everything, in seconds.
    pub seconds: f64,
    /// The relay's CPU time meanwhile.
    pub cpu_seconds: f64,
    /// The same for each client, in milliseconds.
    pub cpu_ms_per_client: f64,
    /// The relay's memory then, in bytes.
    pub rss_bytes: u64,
    /// How late rows came to the one who stayed, before: in microseconds.
    pub steady_before_us: Option<Percentiles>,
    /// And while the others came back.
    pub steady_meanwhile_us: Option<Percentiles>,
    /// Rows that this one missed, or got twice.
    pub steady_wrong: u64,
}

impl Returning {
    pub(super) const fn is_clean(&self) -> bool {
        self.tally.is_clean() && self.steady_wrong == 0
    }

    pub(super) fn table(&self) -> String {
        let point = |points: Option<Percentiles>, point: fn(&Percentiles) -> u64| {
            points.as_ref().map(point)
        };
        let p99 = |points| point(points, |points: &Percentiles| points.p99).map_or(0.0, float);
        format!(
            "{} clients return, log {}: each missed {} rows, of which {} are theirs\n\
             all had them after {:.2} s: {:.2} CPU seconds, {:.2} ms a client; RSS {:.1} MiB\n\
             delivered {}, missing {}, duplicated {}, leaked {}, out of order {} (the next row of \
             each included)\n\
             somebody who stayed: p50 {} before, {} meanwhile; p99 {} before, {} meanwhile ({}); \
             wrong {}\n",
            self.clients,
            self.log.as_str(),
            self.missed_rows,
            self.own_rows,
            self.seconds,
            self.cpu_seconds,
            self.cpu_ms_per_client,
            float(self.rss_bytes) / 1_048_576.0,
            self.tally.delivered,
            self.tally.missing,
            self.tally.duplicated,
            self.tally.leaked,
            self.tally.out_of_order,
            millis(point(self.steady_before_us, |points| points.p50)),
            millis(point(self.steady_meanwhile_us, |points| points.p50)),
            millis(point(self.steady_before_us, |points| points.p99)),
            millis(point(self.steady_meanwhile_us, |points| points.p99)),
            times(quotient(
                p99(self.steady_meanwhile_us),
                p99(self.steady_before_us)
            )),
            self.steady_wrong
        )
    }
}

/// How far the clients are.
#[derive(Debug, Default)]
struct Progress {
    /// Have been given what they missed.
    back: AtomicU64,
    /// Have been given the next row as well.
    live: AtomicU64,
    /// Rows that arrived.
    rows: AtomicU64,
}

/// One client.
struct Client {
    address: SocketAddr,
    token: String,
    wish: Wish,
    verifier: Verifier,
    /// Rows that it missed, and where they end.
    own: u64,
    end: Cursor,
    progress: Arc<Progress>,
    joining: Arc<Semaphore>,
}

impl Client {
    async fn run(mut self) -> anyhow::Result<Verifier> {
        let mut subscriber = {
            let _place = self.joining.acquire().await?;
            Subscriber::connect(System::Rowcast, self.address, &self.token, &self.wish).await?
        };
        let (mut rows, mut told, mut back) = (0, false, false);
        while !(back && rows > self.own) {
            match subscriber.next().await {
                Ok(Frame::Row { id, .. }) => {
                    let (round, row) = round_and_row(id);
                    if round != u64::from(MISSED) {
                        self.verifier.take_stray();
                    } else if self.verifier.take(row) {
                        rows += 1;
                    }
                    self.progress.rows.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Frame::Cursor(cursor)) => {
                    told |= cursor.epoch == self.end.epoch && cursor.offset >= self.end.offset;
                }
                Ok(Frame::Resync(reason)) => bail!("A client is to read again: {reason}"),
                Ok(_) => {}
                Err(why) => bail!("A client's socket ended: {why}"),
            }
            if !back && told && rows >= self.own {
                back = true;
                self.progress.back.fetch_add(1, Ordering::Release);
            }
        }
        self.progress.live.fetch_add(1, Ordering::Release);
        Ok(self.verifier)
    }
}

/// Has clients miss rows and come back.
///
/// # Errors
/// Where the relay, a socket or the database fails, or a client is told to read again.
pub async fn run(stage: &mut Stage<'_>, clients: u64, rows: u64) -> anyhow::Result<Returning> {
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let users = (rows / OWN).max(1);
    let admin = database::connect(stage.database).await?;
    let mut relay = Relay::rowcast(stage.database, log, stage.jwt_secret, clients + 1).await?;
    let address = relay.address()?;
    let wish = Wish {
        cursor: true,
        ..Wish::default()
    };
    // Nobody of those who return.
    let steady = users;
    let token = token_of(steady, stage.jwt_secret)?;
    let probe = Subscriber::connect(System::Rowcast, address, &token, &wish);
    let since = reached(&mut probe.await?, None).await?;

    stage.progress.step(&format!("writing {rows} rows"));
    let mut fill = Fill {
        round: MISSED,
        first: 0,
        end: rows,
        users,
        transaction_size: 1,
        bytes: 0,
    };
    let barrier = fill.write(&admin).await?;
    barrier.passed(&admin, &[log.slot()]).await?;
    let probe = Subscriber::connect(System::Rowcast, address, &token, &wish);
    let end = reached(&mut probe.await?, None).await?;

    stage.progress.step("listening");
    let listener = Listener::start((address, token), STEADY, stage.clock).await?;
    let pulse = Pulse::start(stage.database, (steady, STEADY), stage.clock, EVERY).await?;
    let listening = stage.clock.now();
    tokio::time::sleep(BEFORE).await;

    stage.progress.step(&format!("{clients} clients return"));
    let mut tokens = Vec::new();
    for client in 0..clients {
        tokens.push(token_of(client % users, stage.jwt_secret)?);
    }
    let plan = Plan {
        subscribers: users,
        policy: Policy::User,
        filter: Filter::None,
        transaction_size: 1,
        writers: 1,
        limit: rows + users,
    };
    let (progress, joining) = (
        Arc::<Progress>::default(),
        Arc::new(Semaphore::new(JOINING)),
    );
    let (cpu_before, started) = (relay.child.cpu_seconds()?, stage.clock.now());
    let mut tasks = JoinSet::new();
    for (number, token) in (0..).zip(tokens) {
        let user = number % users;
        let client = Client {
            address,
            token,
            wish: Wish {
                since: Some(since),
                cursor: true,
                ..Wish::default()
            },
            verifier: Verifier::new(plan, user),
            own: rows / users + u64::from(user < rows % users),
            end,
            progress: Arc::clone(&progress),
            joining: Arc::clone(&joining),
        };
        tasks.spawn(client.run());
    }
    let mut waiting = Waiting {
        tasks,
        progress: Arc::clone(&progress),
        tally: Tally::default(),
        written: Written {
            transactions: vec![rows + users],
        },
    };
    waiting
        .until(&mut relay, stage, "are back", clients, |progress| {
            &progress.back
        })
        .await?;
    let ended = stage.clock.now();
    let cpu_seconds = relay.child.cpu_seconds()? - cpu_before;
    let rss_bytes = relay.child.rss_bytes()?;

    // That they are live shows in the next row of each.
    (fill.first, fill.end) = (rows, rows + users);
    fill.write(&admin).await?;
    waiting
        .until(&mut relay, stage, "are live", clients, |progress| {
            &progress.live
        })
        .await?;
    let tally = waiting.finish().await?;
    let written = pulse.end().await?;
    let (before, meanwhile, wrong) = {
        let late = Instant::now() + PATIENCE;
        while listener.heard().sequence.next < written && Instant::now() < late {
            // Nothing tells when the last of them arrives.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let heard = listener.heard();
        if let Some(why) = &heard.broken {
            bail!("The one who stayed ended: {why}");
        }
        let sequence = heard.sequence;
        let lost = written.saturating_sub(sequence.next);
        (
            heard.between(listening, started)?.percentiles(),
            heard.between(started, ended)?.percentiles(),
            sequence.missing + sequence.duplicated + lost,
        )
    };
    listener.end().await;
    relay.child.stop().await;
    let took = seconds(ended - started);
    Ok(Returning {
        log,
        clients,
        missed_rows: rows,
        own_rows: rows / users,
        tally,
        seconds: took,
        cpu_seconds,
        cpu_ms_per_client: over(cpu_seconds * 1e3, clients),
        rss_bytes,
        steady_before_us: before,
        steady_meanwhile_us: meanwhile,
        steady_wrong: wrong,
    })
}

/// The clients' tasks, and what those that ended have found.
struct Waiting {
    tasks: JoinSet<anyhow::Result<Verifier>>,
    progress: Arc<Progress>,
    tally: Tally,
    written: Written,
}

impl Waiting {
    /// Waits until so many clients are so far.
    async fn until(
        &mut self,
        relay: &mut Relay,
        stage: &mut Stage<'_>,
        what: &str,
        clients: u64,
        so_far: fn(&Progress) -> &AtomicU64,
    ) -> anyhow::Result<()> {
        let (mut known, mut last) = (0, Instant::now());
        while so_far(&self.progress).load(Ordering::Acquire) < clients {
            while let Some(ended) = self.tasks.try_join_next() {
                self.tally.add(&ended??.finish(&self.written));
            }
            relay.child.check()?;
            let rows = self.progress.rows.load(Ordering::Relaxed);
            if rows != known {
                (known, last) = (rows, Instant::now());
            }
            let count = so_far(&self.progress).load(Ordering::Relaxed);
            if last.elapsed() > PATIENCE {
                bail!("Only {count} of {clients} clients {what}; nothing more comes.");
            }
            let show = || format!("{count} of {clients} clients {what}");
            stage.progress.update(show);
            // Looked at now and then: to be woken by each would be a cost of what is measured.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn finish(mut self) -> anyhow::Result<Tally> {
        while let Some(ended) = self.tasks.join_next().await {
            let verifier = ended?.context("A client ended")?;
            self.tally.add(&verifier.finish(&self.written));
        }
        Ok(self.tally)
    }
}
