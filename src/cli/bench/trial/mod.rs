//! What is measured of the log, and of clients that go, come back, or stop reading: each trial
//! takes the place of the rounds.

pub mod backlog;

pub mod churn;

pub mod decode;

pub mod drain;

pub mod fill;

pub mod idle;

pub mod pulse;

pub mod replay;

pub mod restart;

pub mod returning;

pub mod stalled;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::latency::Clock;
use super::plan::Policy;
use super::progress::Progress;
use super::relay::Storage;
use crate::config::Secret;

/// Which trial. With a number where the default is not wanted.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Trials {
    /// Measure the memory of so many idle joined connections instead; with `--policy open` also
    /// after a burst of 100 messages to each
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    idle: Option<u64>,
    /// Measure how fast a relay that was held up drains what was written meanwhile: so many rows
    /// (100000), and with `--log memory,disk` the one beside the other
    #[arg(long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "100000", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    backlog: Option<u64>,
    /// Measure how many changes relay and walsender take in a CPU second to drain so many rows
    /// (100000), with subscribers in the relay's process: 1, 1000 and 100000 by user (or as many as
    /// `--compare` says), and 1000 with a filter each, with old rows kept, and with half of the rows
    /// by membership, written out and behind a function
    #[arg(long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "100000", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    drain: Option<u64>,
    /// Measure how many changes that nobody asked for (200000) relay and walsender take in a CPU
    /// second, beside pg_recvlogical and its walsender, which throws them away
    #[arg(long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "200000", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    decode: Option<u64>,
    /// Measure whether the relay keeps memory or descriptors of so many sockets (100000) that
    /// connect, join and close
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "100000", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    churn: Option<u64>,
    /// Measure how fast the log is replayed for a client to whom none of it belongs: so many rows
    /// (500000), from memory, from files that the system has in its cache, and from files that it
    /// has not
    #[arg(long, value_name = "ROWS", num_args = 0..=1, default_missing_value = "500000", value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    replay: Option<u64>,
    /// Measure what it costs when so many clients (10000) come back at once that each missed `--rows`
    /// rows (60000), of which 60 are theirs, and whether somebody who stayed has to wait meanwhile
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10000", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    returning: Option<u64>,
    /// Measure the time from a `kill -9` of the relay until a client is sent what was committed
    /// after it, with a log of so many MiB (1024)
    #[arg(long, value_name = "MIB", num_args = 0..=1, default_missing_value = "1024", value_parser = clap::value_parser!(u64).range(1..=3_500))]
    restart: Option<u64>,
    /// Measure whether subscribers (20) have to wait for so many others (100) that stop reading
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "100", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    stalled: Option<u64>,
}

/// A trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// See [`idle`].
    Idle(u64),
    /// See [`backlog`].
    Backlog(u64),
    /// See [`drain`].
    Drain(u64),
    /// See [`decode`].
    Decode(u64),
    /// See [`churn`].
    Churn(u64),
    /// See [`replay`].
    Replay(u64),
    /// See [`returning`].
    Returning(u64),
    /// See [`restart`].
    Restart(u64),
    /// See [`stalled`].
    Stalled(u64),
}

impl Trials {
    /// The one that was chosen, if any.
    #[must_use]
    pub fn chosen(&self) -> Option<Trial> {
        let idle = self.idle.map(Trial::Idle);
        idle.or(self.backlog.map(Trial::Backlog))
            .or(self.drain.map(Trial::Drain))
            .or(self.decode.map(Trial::Decode))
            .or(self.churn.map(Trial::Churn))
            .or(self.replay.map(Trial::Replay))
            .or(self.returning.map(Trial::Returning))
            .or(self.restart.map(Trial::Restart))
            .or(self.stalled.map(Trial::Stalled))
    }
}

impl Trial {
    /// Its flag.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Idle(_) => "--idle",
            Self::Backlog(_) => "--backlog",
            Self::Drain(_) => "--drain",
            Self::Decode(_) => "--decode",
            Self::Churn(_) => "--churn",
            Self::Replay(_) => "--replay",
            Self::Returning(_) => "--returning",
            Self::Restart(_) => "--restart",
            Self::Stalled(_) => "--stalled",
        }
    }

    /// The only policy that it can be made with, if there is one.
    #[must_use]
    pub const fn policy(self) -> Option<Policy> {
        match self {
            Self::Idle(_) | Self::Backlog(_) => None,
            // Everybody is sent everything.
            Self::Stalled(_) => Some(Policy::Open),
            // It sets each of its policies itself, and needs what this one reads.
            Self::Drain(_) => Some(Policy::Membership),
            Self::Replay(_)
            | Self::Returning(_)
            | Self::Restart(_)
            | Self::Decode(_)
            | Self::Churn(_) => Some(Policy::User),
        }
    }

    /// The sockets that it needs beside `subscribers`.
    #[must_use]
    pub const fn sockets(self) -> u64 {
        match self {
            Self::Idle(count) | Self::Returning(count) | Self::Stalled(count) => count,
            Self::Drain(_) | Self::Decode(_) => 0,
            Self::Churn(_) => 1_024,
            Self::Backlog(_) | Self::Replay(_) | Self::Restart(_) => 1,
        }
    }

    /// Whether it is made with subscribers of which there may be more or fewer.
    #[must_use]
    pub const fn has_subscribers(self) -> bool {
        matches!(self, Self::Backlog(_) | Self::Stalled(_) | Self::Decode(_))
    }

    /// Whether its subscribers are in the relay's process anyway.
    #[must_use]
    pub const fn has_no_sockets(self) -> bool {
        matches!(self, Self::Drain(_) | Self::Decode(_))
    }

    /// Refuses what has no meaning for it.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(self, given: &Given) -> anyhow::Result<()> {
        let flag = self.flag();
        ensure!(
            !given.in_process || self.has_no_sockets() || matches!(self, Self::Idle(_)),
            "{flag} needs sockets, and --in-process has none; leave one of them out."
        );
        ensure!(
            !given.baseline && (!given.compare || matches!(self, Self::Drain(_))),
            "{flag} is measured by itself; leave --baseline and --compare out."
        );
        if let (Some(only), Some(policy)) = (self.policy(), given.policy) {
            ensure!(
                only == policy,
                "{flag} is measured with --policy {}.",
                only.as_str()
            );
        }
        ensure!(
            self.has_subscribers() || !given.subscribers,
            "{flag} says itself how many clients there are; leave --subscribers out."
        );
        ensure!(
            matches!(self, Self::Returning(_) | Self::Idle(_)) || !given.rows,
            "{flag} says itself how much is written; leave --rows out."
        );
        ensure!(
            !matches!(self, Self::Restart(_)) || !given.logs.contains(&Storage::Memory),
            "--restart needs a log that outlives the relay; leave --log out."
        );
        ensure!(
            matches!(self, Self::Backlog(_)) || given.logs.len() <= 1,
            "{flag} is measured with one log; name one."
        );
        Ok(())
    }
}

/// What was said beside the trial.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Whether the subscribers are to be in the relay's process.
    pub in_process: bool,
    /// Whether the bare relay is to run as well.
    pub baseline: bool,
    /// Whether several numbers of subscribers are to be compared.
    pub compare: bool,
    /// The policy.
    pub policy: Option<Policy>,
    /// Whether a number of subscribers was named.
    pub subscribers: bool,
    /// Whether a number of rows was named.
    pub rows: bool,
    /// Where the logs are, each once.
    pub logs: Vec<Storage>,
}

/// What a trial is made with.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The database.
    pub database: &'a Secret,
    /// The relays' secret.
    pub jwt_secret: &'a Secret,
    /// The run's clock.
    pub clock: Clock,
    /// Where the log is, or several in turns.
    pub logs: &'a [Storage],
    /// How often it is made.
    pub rounds: u32,
    /// What is shown of it.
    pub progress: &'a mut Progress,
}

/// What a trial found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// With `--idle`.
    Idle(idle::Idle),
    /// With `--backlog`.
    Backlog(backlog::Backlog),
    /// With `--drain`.
    Drain(drain::Drain),
    /// With `--decode`.
    Decode(Box<decode::Decode>),
    /// With `--churn`.
    Churn(churn::Churn),
    /// With `--replay`.
    Replay(replay::Replay),
    /// With `--returning`.
    Returning(returning::Returning),
    /// With `--restart`.
    Restart(restart::Restart),
    /// With `--stalled`.
    Stalled(Box<stalled::Stalled>),
}

impl Finding {
    /// Whether everybody got what is theirs and nothing else.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        match self {
            // Others' rows end the replay with an error.
            Self::Replay(_) => true,
            Self::Idle(found) => found.tally.is_clean(),
            Self::Drain(found) => found.cases.iter().all(|case| case.tally.is_clean()),
            Self::Decode(found) => found.tally.is_clean(),
            Self::Churn(found) => found.is_clean(),
            Self::Backlog(found) => found.logs.iter().all(|log| log.tally.is_clean()),
            Self::Returning(found) => found.is_clean(),
            Self::Restart(found) => found.is_clean(),
            Self::Stalled(found) => found.is_clean(),
        }
    }

    /// The finding for people.
    #[must_use]
    pub fn table(&self) -> String {
        match self {
            Self::Idle(found) => found.table(),
            Self::Backlog(found) => found.table(),
            Self::Drain(found) => found.table(),
            Self::Decode(found) => found.table(),
            Self::Churn(found) => found.table(),
            Self::Replay(found) => found.table(),
            Self::Returning(found) => found.table(),
            Self::Restart(found) => found.table(),
            Self::Stalled(found) => found.table(),
        }
    }
}

/// Nanoseconds of the clock as seconds.
fn seconds(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64()
}

#[cfg(test)]
mod tests;
