//! Schemas as projects have them, each with its policies, through the whole relay: what every
//! principal receives is what a `select` under its role and claims shows as of the commit, and what
//! becomes of each policy is what the schema's header expects.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_SCHEMA` runs the schemas whose names have that in them,
//! `ROWCAST_TRANSACTIONS` sets how many transactions each gets. `ROWCAST_POLICIES_DIR` runs the
//! schemas (`*.sql`) of another directory instead, which need no header: then what is not native is
//! printed, and only what clients see is held against PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "the other suites use the rest of it")]
#[path = "../relay/harness.rs"]
mod harness;

mod expected;
mod file;
mod oracle;
mod run;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt;

/// So many at once, each with its database and its relay.
const AT_ONCE: usize = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_schema_shows_what_postgresql_shows_and_compiles_as_its_header_says() {
    let seed = number("ROWCAST_SEED").unwrap_or(20_261_121);
    let transactions = number("ROWCAST_TRANSACTIONS").map_or(10, |n| usize::try_from(n).unwrap());
    eprintln!("ROWCAST_SEED={seed}");
    let files = file::all();
    let whole = std::env::var_os("ROWCAST_SCHEMA").is_none();
    let runs = files.into_iter().map(|file| async move {
        let name = file.name.clone();
        let run = tokio::spawn(run::run(Arc::new(file), seed, transactions));
        (name, run.await)
    });
    let mut done: Vec<_> = futures_util::stream::iter(runs)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    done.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut policies, mut native) = (0, 0);
    let mut levels: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let (mut resyncs, mut needless) = (0, 0);
    for (name, outcome) in done {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (explained, tally) = (&outcome.explained, outcome.tally);
        eprintln!(
            "{name}: {} of {} native, {} seen, {} hidden, {} refused, {} resyncs ({} needless), {} questions, {} rules changed, {} flips, {:.1} s",
            explained.native,
            explained.policies,
            tally.visible,
            tally.hidden,
            tally.refused,
            tally.resyncs,
            tally.needless,
            tally.questions,
            tally.alters,
            tally.flips,
            outcome.took.as_secs_f32()
        );
        policies += explained.policies;
        native += explained.native;
        for (level, count) in &explained.levels {
            *levels.entry(level.clone()).or_default() += count;
        }
        resyncs += tally.resyncs;
        needless += tally.needless;
        wrong.extend(outcome.wrong);
    }
    eprintln!(
        "{native} of {policies} policies are native; levels {levels:?}; {needless} of {resyncs} resyncs needless"
    );
    wrong.sort_by_key(|text| !text.contains("LEAK"));
    assert!(
        wrong.is_empty(),
        "seed {seed}, {} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    if whole && !file::foreign() {
        assert!(
            100 * native >= 93 * policies,
            "{native} of {policies} are native"
        );
    }
}

#[test]
fn the_schemas_together_have_every_shape_and_every_trap() {
    let files = file::all();
    if std::env::var_os("ROWCAST_SCHEMA").is_some() || file::foreign() {
        return;
    }
    assert!(files.len() >= 60, "{} schemas", files.len());
    let shapes: BTreeSet<&str> = files
        .iter()
        .flat_map(|file| file.shapes.iter().map(String::as_str))
        .collect();
    let known: BTreeSet<&str> = file::SHAPES.iter().copied().collect();
    assert_eq!(shapes, known, "every shape, and no other");
    let traps: BTreeSet<u32> = files.iter().flat_map(|file| file.traps.clone()).collect();
    assert_eq!(traps, (1..=20).collect::<BTreeSet<u32>>());
}
