//! Policies that call functions, judged by the functions' bodies, against a real PostgreSQL: traps
//! by hand, the shapes that people write, and random functions in random policies.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_FUNCTIONS` sets its number of sets of policies.

#![allow(missing_docs, unreachable_pub, reason = "a test")]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test"
)]
#![allow(clippy::indexing_slicing, reason = "a test")]

mod grammar;
mod shapes;
mod traps;
mod world;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rowcast::pg::throwaway::{Options, Throwaway};
use world::{Counts, World};

async fn world() -> (Throwaway, World) {
    let server = Throwaway::start(Options::default()).await.unwrap();
    let world = World::new(&server.url("postgres")).await;
    (server, world)
}

fn few(wrong: &[String]) -> String {
    wrong.iter().take(4).cloned().collect::<Vec<_>>().join("\n")
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn every_trap_is_judged_as_postgresql_judges_it() {
    let (_server, mut world) = world().await;
    let mut wrong = Vec::new();
    for trap in traps::TRAPS {
        let case = world.trap(trap).await;
        let mut counts = Counts::default();
        world.compare(&case, &mut counts, &mut wrong);
        let became = counts.outcome();
        if !became.contains(trap.becomes) {
            wrong.push(format!("{}: {became}, not {:?}", trap.name, trap.becomes));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), few(&wrong));
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn the_helpers_that_people_write_are_native() {
    let (_server, mut world) = world().await;
    let mut wrong = Vec::new();
    let mut refused = Vec::new();
    for (name, sql) in shapes::SHAPES {
        let case = world.case(name, &[(*sql).to_owned()], None, false).await;
        let mut counts = Counts::default();
        world.compare(&case, &mut counts, &mut wrong);
        if counts.asked + counts.denied > 0 {
            refused.push(format!("{name}: {}", counts.outcome()));
        }
    }
    let all = shapes::SHAPES.len();
    eprintln!("{} of {all} native; not: {refused:#?}", all - refused.len());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), few(&wrong));
    assert!(100 * refused.len() <= 7 * all, "{refused:#?}");
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn a_function_replaced_deep_inside_changes_what_is_judged_and_the_fingerprint() {
    let (_server, mut world) = world().await;
    let inner = |truth: bool| {
        format!(
            "create or replace function f_in(p_org int) returns boolean language sql stable \
             security definer set search_path = '' as $$ select exists (select 1 from public.m x \
             where x.org = p_org) = {truth} $$"
        )
    };
    let outer = "create function f_out(p_org int) returns boolean language plpgsql stable as $$
        begin return public.f_in(p_org); end $$;
        create policy p on t for select using (f_out(org))";
    let before = world
        .case("before", &[inner(true), outer.to_owned()], None, false)
        .await;
    let sql = [inner(true), outer.to_owned(), inner(false)];
    let after = world.case("after", &sql, None, false).await;
    // The same, but another table of that name comes first in the path of a function without one.
    let unpinned = "create function f_un() returns boolean language sql stable as
        $$ select exists (select 1 from m where ok) $$;
        create policy p on t for select using (f_un())"
        .to_owned();
    let plain = world
        .case("plain", std::slice::from_ref(&unpinned), None, false)
        .await;
    let decoy = "create table decoy.m (ok boolean); grant select on decoy.m to public".to_owned();
    let path = Some("decoy, public");
    let covered = world
        .case("covered", &[unpinned.clone(), decoy], path, false)
        .await;
    let mut wrong = Vec::new();
    let mut prints = Vec::new();
    for case in [&before, &after, &plain, &covered] {
        let mut counts = Counts::default();
        world.compare(case, &mut counts, &mut wrong);
        assert_eq!(
            (counts.asked, counts.denied),
            (0, 0),
            "{}",
            counts.outcome()
        );
        let access = world.access(case, "authenticated");
        prints.push(access.fingerprint);
    }
    assert!(wrong.is_empty(), "{}", few(&wrong));
    prints.dedup();
    assert_eq!(prints.len(), 4);
    assert!(
        !world
            .access(&after, "authenticated")
            .shows_as(&world.access(&before, "authenticated"))
    );
}

async fn random_cases(world: &mut World) -> (Vec<world::Case>, u64) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seed = number("ROWCAST_SEED").unwrap_or(20_261_121);
    let wanted =
        number("ROWCAST_FUNCTIONS").unwrap_or(if cfg!(feature = "mutants") { 80 } else { 120 });
    eprintln!("ROWCAST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases = Vec::new();
    while (cases.len() as u64) < wanted {
        let (sql, path) = grammar::case(&mut random);
        if let Some(case) = world.random_case(&mut random, &sql, path).await {
            cases.push(case);
        }
    }
    (cases, seed)
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn random_functions_are_judged_as_postgresql_judges_them() {
    let (_server, mut world) = world().await;
    let (cases, seed) = random_cases(&mut world).await;
    let (mut counts, mut wrong) = (Counts::default(), Vec::new());
    for case in &cases {
        world.compare(case, &mut counts, &mut wrong);
    }
    wrong.sort_by_key(String::len);
    eprintln!("{counts:#?}");
    assert!(
        wrong.is_empty(),
        "seed {seed}, {} wrong:\n{}",
        wrong.len(),
        few(&wrong)
    );
    eprintln!("functions: {} cases, 0 shown too much", counts.judged);
    assert!(
        counts.native > 2 * (counts.asked + counts.denied),
        "most are judged natively"
    );
    assert!(2 * counts.both > counts.native, "both outcomes occur");
    assert!(10 * counts.undecided < counts.judged, "most are decided");
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn every_mutant_is_noticed() {
    let (_server, mut world) = world().await;
    let (mut cases, _) = random_cases(&mut world).await;
    for trap in traps::TRAPS {
        cases.push(world.trap(trap).await);
    }
    let only = std::env::var("ROWCAST_MUTANT").ok();
    let mut survivors = Vec::new();
    let noticed = || {
        let mut wrong = Vec::new();
        for case in &cases {
            world.compare(case, &mut Counts::default(), &mut wrong);
        }
        wrong
    };
    let wrong = noticed();
    assert!(
        wrong.is_empty(),
        "right without a mutant: {:?}",
        wrong.first()
    );
    for &mutant in rowcast::mutant::FunctionMutant::ALL {
        let name = format!("{mutant:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        mutant.switch_on();
        let wrong = noticed().len();
        eprintln!("{name}: noticed {wrong} times");
        if wrong == 0 {
            survivors.push(name);
        }
    }
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
