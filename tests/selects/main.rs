//! Policies that look into other tables, judged on mirrors, against a real PostgreSQL: random
//! policies of the table and of those that it looks into, random rows, claims and changes.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_SELECTS` sets its number of sets of policies.

#![allow(missing_docs, unreachable_pub, reason = "a test")]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test"
)]
#![allow(clippy::indexing_slicing, reason = "a test")]

mod grammar;
#[cfg(not(feature = "mutants"))]
mod shapes;
mod world;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rowcast::pg::throwaway::{Options, Throwaway};
use tokio_postgres::NoTls;
use world::{Counts, World};

async fn world() -> (Throwaway, World, StdRng, u64) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seed = number("ROWCAST_SEED").unwrap_or(20_261_121);
    let wanted =
        number("ROWCAST_SELECTS").unwrap_or(if cfg!(feature = "mutants") { 250 } else { 100 });
    eprintln!("ROWCAST_SEED={seed}");
    let server = Throwaway::start(Options::default()).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&server.url("postgres"), NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client.batch_execute("set jit = off").await.unwrap();
    client.batch_execute(grammar::SCHEMA).await.unwrap();
    let world = World::new(client, seed).await;
    let mut world = world;
    let mut random = StdRng::seed_from_u64(seed);
    for text in grammar::SINGLES {
        for _ in 0..4 {
            world.single(&mut random, text).await;
        }
    }
    (server, world, random, wanted)
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn what_looks_into_other_tables_is_judged_as_postgresql_judges_it() {
    let (_server, mut world, mut random, wanted) = world().await;
    for _ in 0..wanted {
        world.case(&mut random).await;
    }
    let mut counts = Counts::default();
    let wrong = world.compare(&mut counts);
    eprintln!("{counts:?}");
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n")
    );
    let judged: usize = counts.verdicts.values().sum();
    eprintln!("selects: {judged} cases, 0 shown too much");
    let cases = world.cases();
    assert!(2 * counts.compiled > cases, "most are judged natively");
    assert!(4 * counts.both > counts.compiled, "both outcomes occur");
    assert!(counts.found > 0 && counts.members > 0, "audiences narrow");
    assert!(counts.flips > 0, "changes flip what is seen");
    assert!(
        counts.spared > counts.affected / 4,
        "not everybody is affected"
    );
    assert!(counts.recursions > 0, "cycles occur");
    assert!(counts.denials > 0, "missing rights occur");
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn every_mutant_is_noticed() {
    let (_server, mut world, mut random, wanted) = world().await;
    for _ in 0..wanted {
        world.case(&mut random).await;
    }
    let wrong = world.compare(&mut Counts::default());
    assert!(
        wrong.is_empty(),
        "right without a mutant: {:?}",
        wrong.first()
    );
    let only = std::env::var("ROWCAST_MUTANT").ok();
    let mut survivors = Vec::new();
    for &mutant in rowcast::mutant::SelectMutant::ALL {
        let name = format!("{mutant:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        mutant.switch_on();
        let noticed = world.compare(&mut Counts::default()).len();
        eprintln!("{name}: noticed {noticed} times");
        if noticed == 0 {
            survivors.push(name);
        }
    }
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
