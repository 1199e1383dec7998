//! Compiled policies held against PostgreSQL by the relay itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    dead_code,
    reason = "a test fails by panicking; the harness is shared"
)]

#[path = "../relay/harness.rs"]
mod harness;

#[cfg(not(feature = "mutants"))]
mod agreed;

#[cfg(not(feature = "mutants"))]
mod schemas;

#[cfg(feature = "mutants")]
mod refused;

use std::time::Duration;

use harness::Relay;
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(60);

/// A metric's value; 0 where it was never counted.
fn metric(relay: &Relay, name: &str) -> u64 {
    let text = relay.core.metrics.encode();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.trim().parse().expect("a number"))
}

/// Waits until so many policies have been held against PostgreSQL, or could not be.
async fn checked(relay: &Relay, wanted: u64) {
    let deadline = Instant::now() + DEADLINE;
    let outcomes = ["agrees", "differs", "not_checked"];
    loop {
        let names = outcomes.map(|one| format!("rowcast_policy_checks_total{{outcome=\"{one}\"}}"));
        let counts = names.map(|name| metric(relay, &name));
        if counts.iter().sum::<u64>() >= wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{counts:?} of {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
