//! Filters against `where`: what the relay delivers under a random filter is what PostgreSQL selects
//! with the same words as SQL, for every type, and it refuses what PostgreSQL refuses.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_FILTERS` sets its size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod columns;
mod generate;
mod run;
mod samples;

#[allow(dead_code, reason = "it is the other tests' too")]
#[path = "../relay/harness.rs"]
mod harness;

#[cfg(not(feature = "mutants"))]
mod wishes;

#[cfg(not(feature = "mutants"))]
mod attacks;

#[cfg(not(feature = "mutants"))]
mod encodings;

#[cfg(not(feature = "mutants"))]
mod flood;

use run::differential;

fn number(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(otherwise, |text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    let seed = number("ROWCAST_SEED", rand::random::<u32>().into());
    eprintln!("ROWCAST_SEED={seed}");
    seed
}

#[cfg(not(feature = "mutants"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_filter_delivers_is_what_a_where_selects() {
    let size = usize::try_from(number("ROWCAST_FILTERS", 20_000)).unwrap();
    let seed = seed();
    let began = std::time::Instant::now();
    let usual = differential("", seed, size * 9 / 10, false).await;
    let icu = if run::server_version().await >= 150_000 {
        "template template0 locale_provider icu icu_locale 'en-US'"
    } else {
        // A database of ICU's collation needs 15.
        "template template0 lc_collate 'C' lc_ctype 'C'"
    };
    let icu = differential(icu, seed + 1, size - size * 9 / 10, true).await;
    for report in [&usual, &icu] {
        eprintln!("{report} ({:?} since the start)", began.elapsed());
        assert!(report.wrong.is_empty(), "seed {seed}: {:#?}", report.wrong);
    }
    assert!(
        usual.filters + icu.filters >= size,
        "as many as were asked for"
    );
    // Asking everything would be exact as well, and useless.
    assert_eq!(usual.native_questions, 0, "these types are decided here");
    assert!(
        usual.questions * 10 < usual.decisions * 7,
        "most is not asked: {usual}"
    );
    assert!(
        usual.questions * 10 > usual.decisions,
        "much is really asked: {usual}"
    );
}

/// Runs after which a fault is taken to be unnoticed.
#[cfg(feature = "mutants")]
const TRIED: u64 = 5;

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_is_noticed() {
    use rowcast::mutant::FilterMutant;
    let named = std::env::var("ROWCAST_MUTANT").ok();
    let size = usize::try_from(number("ROWCAST_FILTERS", 3000)).unwrap();
    let seed = seed();
    let mut unnoticed = Vec::new();
    FilterMutant::switch_off();
    let report = differential("", seed, size, true).await;
    assert!(
        report.wrong.is_empty(),
        "without a fault: {:#?}",
        report.wrong
    );
    for &mutant in FilterMutant::ALL {
        if named
            .as_ref()
            .is_some_and(|name| *name != format!("{mutant:?}"))
        {
            continue;
        }
        mutant.switch_on();
        let mut wrong = 0;
        // Some faults show in one of a thousand filters.
        for more in 0..TRIED {
            let report = differential("", seed.wrapping_add(more), size, true).await;
            wrong = report.wrong.len();
            if wrong > 0 {
                break;
            }
        }
        FilterMutant::switch_off();
        eprintln!("{mutant:?}: {wrong} wrong");
        if wrong == 0 {
            unnoticed.push(mutant);
        }
    }
    assert!(
        unnoticed.is_empty(),
        "seed {seed}: not noticed: {unnoticed:?}"
    );
}
