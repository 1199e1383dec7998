//! What the benchmark and the relay with subscribers inside say to each other: a JSON value a line.

use serde::{Deserialize, Serialize};

use crate::cli::bench::latency::Reading;
use crate::cli::bench::plan::{Plan, Written};
use crate::cli::bench::verifier::Tally;

/// What the benchmark wants, on stdin. They take turns; the end of stdin ends the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Join a round's subscribers.
    Join {
        /// Who gets what.
        plan: Plan,
        /// The round.
        round: u32,
        /// The run's clock.
        clock: Reading,
    },
    /// Hold what arrived against what was written, and let the subscribers go.
    Finish {
        /// What was written.
        written: Written,
    },
}

/// What the process says, on stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Changes flow.
    Ready,
    /// So many subscribers have joined.
    Joining {
        /// Those of this round, so far.
        joined: u64,
    },
    /// All have.
    Joined,
    /// How far the messages are; comes by itself as they arrive.
    Count(Count),
    /// The answer to [`Order::Finish`].
    Done {
        /// What became of the messages.
        tally: Tally,
        /// From when a row was due to when it arrived, in microseconds, each with its number.
        latency: Vec<(u64, u64)>,
        /// Why a subscriber got nothing any more: the first of them.
        broken: Option<String>,
    },
}

/// How far the messages of a round are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The round.
    pub round: u32,
    /// All messages that arrived.
    pub arrived: u64,
    /// When the last did, by the run's clock.
    pub last: u64,
    /// Messages that arrived where they belong.
    pub delivered: u64,
}
