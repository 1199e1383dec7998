//! Holds what a subscriber got against what it must get.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::plan::{Plan, Written};

/// What became of the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Rows that arrived where they belong, each counted once.
    pub delivered: u64,
    /// Rows that did not arrive where they belong.
    pub missing: u64,
    /// Rows that arrived once more.
    pub duplicated: u64,
    /// Rows that arrived where they do not belong.
    pub leaked: u64,
    /// Rows that arrived behind a later one of the same writer.
    pub out_of_order: u64,
}

impl Tally {
    /// Whether everybody got what is theirs, once, in order, and nothing else.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.missing == 0 && self.duplicated == 0 && self.leaked == 0 && self.out_of_order == 0
    }

    /// Adds another's numbers.
    pub const fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        self.leaked += other.leaked;
        self.out_of_order += other.out_of_order;
    }
}

/// One subscriber's books: a bit for every row that its policy shows to it, and the last row of
/// each writer.
#[derive(Debug)]
pub struct Verifier {
    plan: Plan,
    subscriber: u64,
    // Without a look elsewhere in memory where there are few: it would be measured for the relay's.
    seen: SmallVec<[u64; 2]>,
    last: SmallVec<[Option<u64>; 4]>,
    tally: Tally,
}

impl Verifier {
    /// Empty books.
    #[must_use]
    pub fn new(plan: Plan, subscriber: u64) -> Self {
        let writers = usize::try_from(plan.writers).unwrap_or(0);
        Self {
            plan,
            subscriber,
            seen: SmallVec::new(),
            last: SmallVec::from_elem(None, writers),
            tally: Tally::default(),
        }
    }

    /// Takes a row that arrived, and returns whether it is one that was still to come. A row that
    /// was never written counts as leaked.
    pub fn take(&mut self, row: u64) -> bool {
        if row >= self.plan.limit || !self.plan.sees(self.subscriber, row) {
            self.tally.leaked += 1;
            return false;
        }
        let (word, bit) = place(self.plan.rank(self.subscriber, row));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if let Some(seen) = self.seen.get_mut(word) {
            if *seen & bit != 0 {
                self.tally.duplicated += 1;
                return false;
            }
            *seen |= bit;
        }
        let writer = usize::try_from(self.plan.writer(row)).unwrap_or(usize::MAX);
        if let Some(last) = self.last.get_mut(writer) {
            if last.is_some_and(|last| last > row) {
                self.tally.out_of_order += 1;
            } else {
                *last = Some(row);
            }
        }
        self.tally.delivered += 1;
        true
    }

    /// Takes a row of another round: whatever it is, it does not belong here.
    pub const fn take_stray(&mut self) {
        self.tally.duplicated += 1;
    }

    /// The numbers, once everything that was written is known.
    #[must_use]
    pub fn finish(mut self, written: &Written) -> Tally {
        let end = written.end(&self.plan);
        for rank in 0.. {
            let row = self.plan.row_at(self.subscriber, rank);
            if row >= end {
                break;
            }
            let (word, bit) = place(rank);
            let seen = self.seen.get(word).is_some_and(|seen| seen & bit != 0);
            if !seen && self.plan.sees(self.subscriber, row) && written.contains(&self.plan, row) {
                self.tally.missing += 1;
            }
        }
        self.tally
    }
}

fn place(rank: u64) -> (usize, u64) {
    let word = usize::try_from(rank / 64).unwrap_or(usize::MAX - 1);
    (word, 1 << (rank % 64))
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Filter, Policy};
    use super::*;

    fn plan(policy: Policy) -> Plan {
        Plan {
            subscribers: 20,
            policy,
            filter: Filter::None,
            transaction_size: 1,
            writers: 2,
            limit: 200,
        }
    }

    fn all() -> Written {
        Written {
            transactions: vec![100, 100],
        }
    }

    #[test]
    fn what_arrives_as_planned_is_clean() {
        for policy in [
            Policy::User,
            Policy::Membership,
            Policy::Helper,
            Policy::Open,
        ] {
            let plan = plan(policy);
            for subscriber in 0..plan.subscribers {
                let mut verifier = Verifier::new(plan, subscriber);
                let mut rows = 0;
                for row in (0..200).filter(|row| plan.sees(subscriber, *row)) {
                    assert!(verifier.take(row));
                    rows += 1;
                }
                let tally = verifier.finish(&all());
                assert!(tally.is_clean(), "{tally:?}");
                assert_eq!(tally.delivered, rows);
            }
        }
    }

    #[test]
    fn every_kind_of_mistake_is_found_and_named() {
        let mut verifier = Verifier::new(plan(Policy::User), 3);
        for row in [3, 43, 23, 43, 4, 1_000_000] {
            verifier.take(row);
        }
        assert_eq!(
            verifier.finish(&all()),
            Tally {
                delivered: 3,
                missing: 7,
                duplicated: 1,
                leaked: 2,
                out_of_order: 1,
            }
        );
    }

    #[test]
    fn rows_of_different_writers_may_overtake_each_other() {
        let mut verifier = Verifier::new(plan(Policy::Open), 0);
        for row in [1, 3, 0, 2] {
            assert!(verifier.take(row));
        }
        let written = Written {
            transactions: vec![2, 2],
        };
        assert!(verifier.finish(&written).is_clean());
    }
}
