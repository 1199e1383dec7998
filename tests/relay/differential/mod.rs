//! Random policies, rows, claims and roles, with the rules changing in between: what arrives through
//! the relay is what a `select` under that role and those claims shows as of the commit.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_CASES` sets its size. A case is a change of one row as one
//! watcher sees it. Rules change at fences: the relay judges by the newest rules, so it is held
//! against the rules of a commit before they change again.

#![allow(clippy::print_stderr, reason = "the seed and the numbers are printed")]

mod check;
mod grammar;
mod oracle;
mod round;
mod setting;
mod shrink;
mod steps;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use round::Tally;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_shows_is_what_a_select_shows_as_of_the_commit() {
    let seed = number("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    let cases = number("ROWCAST_CASES").unwrap_or(10_000);
    eprintln!("ROWCAST_SEED={seed} ROWCAST_CASES={cases}");
    let began = std::time::Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let mut sum = Tally::default();
    for asked in [0.5, 0.0, 0.1, 0.0].into_iter().cycle() {
        if sum.cases >= cases {
            break;
        }
        let most = (cases - sum.cases).min(900);
        let tally = match steps::play(&mut random, asked, most).await {
            Ok(tally) => tally,
            Err((failure, script)) => {
                let report = Box::pin(shrink::report(failure, &script)).await;
                panic!("{report}\nROWCAST_SEED={seed} ROWCAST_CASES={cases}");
            }
        };
        sum.cases += tally.cases;
        sum.visible += tally.visible;
        sum.hidden += tally.hidden;
        sum.raising += tally.raising;
        sum.allowed += tally.allowed;
        sum.asked += tally.asked;
        sum.rules += tally.rules;
        sum.members += tally.members;
        sum.refused += tally.refused;
        sum.questions += tally.questions;
    }
    eprintln!("{sum:?} in {:?}", began.elapsed());
    eprintln!("rules at fences: {} cases, 0 shown too much", sum.cases);
    if cases >= 2000 {
        assert!(sum.visible * 10 > sum.cases, "too few rows were visible");
        assert!(sum.visible * 10 < sum.cases * 9, "too few were hidden");
        assert!(sum.asked * 20 > sum.cases, "too few were asked");
        assert!(sum.asked * 20 < sum.cases * 19, "too few were compiled");
        assert!(sum.questions > 0 && sum.rules > 0 && sum.members > 0);
    }
}
