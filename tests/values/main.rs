//! Values as clients get them against PostgreSQL's own `to_jsonb`.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_CASES` sets how many values are compared.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells its seed"
)]

#[path = "../relay/harness.rs"]
#[allow(dead_code, reason = "what only the tests of the relay use")]
mod harness;

mod generate;

#[cfg(not(feature = "mutants"))]
mod decided;

mod types;

mod world;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use world::World;

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    let seed = number("ROWCAST_SEED", 20_261_121);
    eprintln!("ROWCAST_SEED={seed}");
    seed
}

#[cfg(not(feature = "mutants"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_is_what_to_jsonb_says() {
    let mut rng = StdRng::seed_from_u64(seed());
    let wanted = usize::try_from(number("ROWCAST_CASES", 150_000)).unwrap();
    let mut world = World::make(&mut rng, 30).await;
    let outcome = world.run(wanted, &mut rng).await;
    assert!(
        outcome.wrong.is_empty(),
        "{} wrong:\n{}",
        outcome.wrong.len(),
        outcome
            .wrong
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(outcome.values >= wanted, "{} values", outcome.values);
    assert!(
        outcome.uncovered.is_empty(),
        "types without a value here: {:?}",
        outcome.uncovered
    );
}

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_the_encoder_is_noticed() {
    use rowcast::mutant::EncoderMutant;

    let seed = seed();
    let wanted = usize::try_from(number("ROWCAST_CASES", 5_000)).unwrap();
    let wrong = async |mutant: Option<EncoderMutant>| {
        mutant.map_or_else(EncoderMutant::switch_off, EncoderMutant::switch_on);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::make(&mut rng, 20).await;
        let wrong = world.run(wanted, &mut rng).await.wrong;
        EncoderMutant::switch_off();
        wrong
    };
    let right = wrong(None).await;
    assert!(
        right.is_empty(),
        "right without a mutant: {:?}",
        right.first()
    );
    let only = std::env::var("ROWCAST_MUTANT").ok();
    let mut survivors = Vec::new();
    for &mutant in EncoderMutant::ALL {
        let name = format!("{mutant:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let noticed = wrong(Some(mutant)).await.len();
        eprintln!("{name}: noticed {noticed} times");
        if noticed == 0 {
            survivors.push(name);
        }
    }
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
