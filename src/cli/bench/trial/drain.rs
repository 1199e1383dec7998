//! `--drain`: what a change of a drained backlog costs the relay and PostgreSQL's walsender, for few
//! subscribers and many, and for several kinds of them.
//!
//! The subscribers are in the relay's process: no sockets are involved. Each case has a relay of its
//! own, which is held up (`SIGSTOP`) while rows are written, so that everything is decoded within
//! the measurement.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Serialize;

use super::Stage;
use super::fill::Fill;
use crate::cli::bench::crowd::{Crowd, Recipe};
use crate::cli::bench::database;
use crate::cli::bench::plan::{Filter, Plan, Policy, Written};
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::{per, quotient, times};
use crate::cli::bench::round::{GRACE, PATIENCE, await_messages};
use crate::cli::bench::subscriber::System;
use crate::cli::bench::verifier::Tally;

/// Subscribers of the cases that are compared by their kind.
pub const MANY: u64 = 1_000;

/// Of the rows by user, as many are written by membership: each of them goes to ten.
const MEMBERSHIP_SHARE: u64 = 2;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Drain {
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// How often each case was made, taking turns.
    pub rounds: u32,
    /// The cases.
    pub cases: Vec<Case>,
    /// Changes per CPU second with the most subscribers by user, to those with the fewest.
    pub most_to_fewest: Option<f64>,
    /// With an `eq` filter each, to as many without.
    pub filter_to_none: Option<f64>,
    /// The same with a filter by the owner's column, of which each subscriber has another value.
    pub own_filter_to_none: Option<f64>,
    /// By membership in organisations of ten, to as many by user.
    pub membership_to_user: Option<f64>,
    /// The CPU of a change by membership behind a function, to that of one written out.
    pub helper_to_membership: Option<f64>,
    /// With old rows kept, to as many subscribers without.
    pub old_rows_to_none: Option<f64>,
}

/// One kind and number of subscribers, all rounds together.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// Subscribers.
    pub subscribers: u64,
    /// Who may see a row.
    pub policy: &'static str,
    /// What they ask for.
    pub filter: &'static str,
    /// Whether the relay keeps old rows of the table (`old_rows`).
    pub old_rows: bool,
    /// Rows that had piled up.
    pub rows: u64,
    /// What became of the messages.
    #[serde(flatten)]
    pub tally: Tally,
    /// CPU time of the relay, in seconds.
    pub relay_cpu_seconds: f64,
    /// CPU time of its walsender, in seconds.
    pub walsender_cpu_seconds: f64,
    /// Rows for each second of both.
    pub changes_per_cpu_second: f64,
}

impl Drain {
    /// Works out what is compared.
    #[must_use]
    pub fn new(transaction_size: u64, rounds: u32, cases: Vec<Case>) -> Self {
        let kind = |policy: Policy, filter: Filter| {
            let of = move |case: &&Case| {
                case.policy == policy.as_str() && case.filter == filter.as_str() && !case.old_rows
            };
            cases.iter().filter(of)
        };
        let many = |policy, filter| kind(policy, filter).find(|case| case.subscribers == MANY);
        let rate = |case: Option<&Case>| case.map_or(0.0, |case| case.changes_per_cpu_second);
        let user = many(Policy::User, Filter::None);
        let kept = cases.iter().find(|case| case.old_rows);
        let by_number = |case: &&Case| case.subscribers;
        let most = kind(Policy::User, Filter::None).max_by_key(by_number);
        let fewest = kind(Policy::User, Filter::None).min_by_key(by_number);
        Self {
            transaction_size,
            rounds,
            most_to_fewest: quotient(rate(most), rate(fewest)),
            filter_to_none: quotient(rate(many(Policy::User, Filter::Eq)), rate(user)),
            own_filter_to_none: quotient(rate(many(Policy::User, Filter::Own)), rate(user)),
            membership_to_user: quotient(rate(many(Policy::Membership, Filter::None)), rate(user)),
            helper_to_membership: quotient(
                rate(many(Policy::Membership, Filter::None)),
                rate(many(Policy::Helper, Filter::None)),
            ),
            old_rows_to_none: quotient(rate(kept), rate(user)),
            cases,
        }
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "drained backlog, subscribers in the relay's process, {} row(s) a transaction, {} round(s)\n",
            self.transaction_size, self.rounds
        );
        for case in &self.cases {
            text += &format!(
                "{:>7} by {}, filter {}{}: {} rows, {:.0} changes a CPU second (relay {:.2} s, \
                 walsender {:.2} s); missing {}, duplicated {}, leaked {}, out of order {}\n",
                case.subscribers,
                case.policy,
                case.filter,
                if case.old_rows { ", old rows kept" } else { "" },
                case.rows,
                case.changes_per_cpu_second,
                case.relay_cpu_seconds,
                case.walsender_cpu_seconds,
                case.tally.missing,
                case.tally.duplicated,
                case.tally.leaked,
                case.tally.out_of_order
            );
        }
        text + &format!(
            "most / fewest by user {}; filter / none at {MANY} {}, by owner {}; membership / user at {MANY} {}; CPU \
             behind a function / written out {}; old rows kept / not at {MANY} {}\n",
            times(self.most_to_fewest),
            times(self.filter_to_none),
            times(self.own_filter_to_none),
            times(self.membership_to_user),
            times(self.helper_to_membership),
            times(self.old_rows_to_none)
        )
    }
}

/// The cases, `counts` of subscribers by user first, each with whether old rows are kept. `plan` says
/// how many rows there are.
fn cases(plan: Plan, counts: &[u64]) -> Vec<(Plan, bool)> {
    let by_user = |subscribers: &u64| Plan {
        subscribers: *subscribers,
        policy: Policy::User,
        filter: Filter::None,
        ..plan
    };
    let by_users = counts.iter().map(by_user);
    let mut cases: Vec<(Plan, bool)> = by_users.map(|plan| (plan, false)).collect();
    if counts.contains(&MANY) {
        cases.extend([Filter::Eq, Filter::Own].map(|filter| {
            let plan = Plan {
                filter,
                ..by_user(&MANY)
            };
            (plan, false)
        }));
        cases.extend([Policy::Membership, Policy::Helper].map(|policy| {
            let plan = Plan {
                policy,
                limit: plan.limit.div_ceil(MEMBERSHIP_SHARE),
                ..by_user(&MANY)
            };
            (plan, false)
        }));
        cases.push((by_user(&MANY), true));
    }
    cases
}

/// Makes each case in turns.
///
/// # Errors
/// Where a relay or the database fails, or the walsender is not on this machine.
pub async fn run(stage: &mut Stage<'_>, plan: Plan, counts: &[u64]) -> anyhow::Result<Drain> {
    let admin = database::connect(stage.database).await?;
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let plans = cases(plan, counts);
    let mut found: Vec<Case> = plans.iter().map(Case::new).collect();
    let mut number = 0;
    for round in 1..=stage.rounds {
        for ((plan, old_rows), case) in plans.iter().zip(&mut found) {
            number += 1;
            stage.progress.step(&format!(
                "round {round} of {}: {} by {}, filter {}{}",
                stage.rounds,
                case.subscribers,
                case.policy,
                case.filter,
                if *old_rows { ", old rows kept" } else { "" }
            ));
            database::show_to(&admin, plan.policy).await?;
            let mut relay = if *old_rows {
                Relay::with_old_rows(stage.database, log).await?
            } else {
                Relay::in_process(stage.database, log).await?
            };
            let recipe = Recipe {
                system: System::Rowcast,
                jwt_secret: stage.jwt_secret,
                plan: *plan,
                number,
                clock: stage.clock,
            };
            let crowd = Crowd::gather(&mut relay, recipe, stage.progress).await?;
            relay.child.signal("STOP").await?;
            let walsender = database::walsender(&admin, log.slot()).await?;
            let before = (relay.child.cpu_seconds()?, walsender.cpu_seconds()?);
            let fill = Fill {
                round: number,
                first: 0,
                end: plan.limit,
                users: plan.subscribers,
                transaction_size: plan.transaction_size,
                bytes: 0,
            };
            let barrier = fill.write(&admin).await?;
            let books = Arc::clone(&crowd.books);
            let due: u64 = (0..plan.limit).map(|row| plan.audience(row)).sum();
            let started = stage.clock.now();
            relay.child.signal("CONT").await?;
            let expected = AtomicU64::new(due);
            await_messages(&books, &expected, started, PATIENCE, stage.progress).await;
            tokio::time::sleep(GRACE).await;
            let cpu = (
                relay.child.cpu_seconds()? - before.0,
                walsender.cpu_seconds()? - before.1,
            );
            let written = Written {
                transactions: vec![plan.limit.div_ceil(plan.transaction_size)],
            };
            let tally = crowd.finish(&mut relay, &written).await?;
            case.add(plan.limit, &tally, cpu);
            // The next relay begins where this one has acknowledged.
            barrier.passed(&admin, &[log.slot()]).await?;
            relay.child.stop().await;
            database::released(&admin, log.slot()).await?;
        }
    }
    Ok(Drain::new(plan.transaction_size, stage.rounds, found))
}

impl Case {
    const fn new((plan, old_rows): &(Plan, bool)) -> Self {
        Self {
            subscribers: plan.subscribers,
            policy: plan.policy.as_str(),
            filter: plan.filter.as_str(),
            old_rows: *old_rows,
            rows: 0,
            tally: Tally {
                delivered: 0,
                missing: 0,
                duplicated: 0,
                leaked: 0,
                out_of_order: 0,
            },
            relay_cpu_seconds: 0.0,
            walsender_cpu_seconds: 0.0,
            changes_per_cpu_second: 0.0,
        }
    }

    fn add(&mut self, rows: u64, tally: &Tally, (relay, walsender): (f64, f64)) {
        self.rows += rows;
        self.tally.add(tally);
        self.relay_cpu_seconds += relay;
        self.walsender_cpu_seconds += walsender;
        let both = self.relay_cpu_seconds + self.walsender_cpu_seconds;
        self.changes_per_cpu_second = per(self.rows, both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_is_of_the_same_number_or_the_same_kind() {
        let plan = Plan {
            subscribers: 1,
            policy: Policy::User,
            filter: Filter::None,
            transaction_size: 100,
            writers: 1,
            limit: 1_000,
        };
        let plans = cases(plan, &[1, MANY, 100_000]);
        assert_eq!(plans.len(), 8);
        let mut found: Vec<Case> = plans.iter().map(Case::new).collect();
        // Changes per CPU second: 1000, 500, 250, 200, 400, 100, 80 and 400.
        let seconds = [1.0, 2.0, 4.0, 5.0, 2.5, 10.0, 12.5, 2.5];
        for (case, cpu) in found.iter_mut().zip(seconds) {
            case.add(1_000, &Tally::default(), (cpu * 0.75, cpu * 0.25));
        }
        let drain = Drain::new(100, 1, found);
        let near = |ratio: Option<f64>, to: f64| (ratio.unwrap() - to).abs() < 1e-9;
        assert!(near(drain.most_to_fewest, 0.25));
        assert!(near(drain.filter_to_none, 0.4));
        assert!(near(drain.own_filter_to_none, 0.8));
        assert!(near(drain.membership_to_user, 0.2));
        assert!(near(drain.helper_to_membership, 1.25));
        assert!(near(drain.old_rows_to_none, 0.8));
        assert!(drain.table().contains("most / fewest by user 0.25 ×"));
        assert_eq!(cases(plan, &[5]).len(), 1, "nothing to compare with");
    }
}
