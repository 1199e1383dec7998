//! Everything at once, through the whole relay: policies of every kind, tables that they look into,
//! functions that they call, rights, columns and replica identities change between and within the
//! transactions that write rows, move them between partitions and take changes back; and to nobody is
//! told what a `select` did not show at that commit.
//!
//! A case is one change as one subscriber has it. Shown too much is a failure; what is kept from
//! somebody who could see it only passes with a reason that the client was told.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_INTERLEAVED` sets its number of cases, and
//! `ROWCAST_WORLD` plays one of its worlds alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    dead_code,
    reason = "a test fails by panicking, and prints its seed and numbers; the harness is shared"
)]

#[path = "../relay/harness.rs"]
mod harness;

mod check;
mod found;
mod oracle;
mod policies;
mod rows;
mod socket;
mod subscribers;
mod tally;
mod transaction;
mod world;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tally::Tally;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Cases of one world, about: a world takes seconds to make.
const WORLD: std::ops::RangeInclusive<u64> = 15_000..=60_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_interleaved_nobody_is_told_of_what_a_select_did_not_show() {
    let seed = number("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    let cases = number("ROWCAST_INTERLEAVED").unwrap_or(45_000);
    eprintln!("ROWCAST_SEED={seed} ROWCAST_INTERLEAVED={cases}");
    let began = std::time::Instant::now();
    let mut sum = Tally::default();
    let only = number("ROWCAST_WORLD");
    // One world alone is played to where its failure was, whatever the run's size.
    let each = only.map_or(cases / 3, |_| u64::MAX);
    let each = each.clamp(*WORLD.start(), *WORLD.end());
    for world in only.unwrap_or(0).. {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(world));
        let tally = world::play(&mut random, each).await;
        let tally = tally.unwrap_or_else(|failure| {
            panic!("{failure}\nROWCAST_SEED={seed} ROWCAST_WORLD={world}")
        });
        eprintln!("world {world}: {}", tally.line());
        sum.add(&tally);
        if sum.cases >= cases || only.is_some() {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = sum.cases as f64 / seconds;
    eprintln!("{}", sum.table());
    eprintln!(
        "interleaved: {} cases, 0 shown too much, in {seconds:.0} s ({rate:.0} a second)",
        sum.cases
    );
    if sum.worlds > 2 {
        sum.is_worth_something();
    }
}

/// Worlds after which a fault is taken to be unnoticed.
#[cfg(feature = "mutants")]
const TRIED: u64 = 12;

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_what_is_kept_of_judged_rows_is_noticed() {
    use rowcast::mutant::JudgedMutant;
    let only = std::env::var("ROWCAST_MUTANT").ok();
    let mut survivors = Vec::new();
    for &mutant in JudgedMutant::ALL {
        let name = format!("{mutant:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        mutant.switch_on();
        let mut noticed = None;
        for seed in 0..TRIED {
            let world = tokio::spawn(async move {
                world::play(&mut StdRng::seed_from_u64(seed), *WORLD.start()).await
            });
            if !matches!(world.await, Ok(Ok(_))) {
                noticed = Some(seed);
                break;
            }
        }
        eprintln!("{name}: noticed in world {noticed:?}");
        if noticed.is_none() {
            survivors.push(name);
        }
    }
    JudgedMutant::switch_off();
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
