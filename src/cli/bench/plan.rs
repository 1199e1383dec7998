//! Which row is whose: all of it follows from a row's number, so nothing has to be remembered and
//! nobody has to be asked who must see what.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Who may see a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Policy {
    /// Its owner: `user_id = auth.uid()`.
    User,
    /// The members of its organisation, ten each.
    Membership,
    /// The same, asked of a SECURITY DEFINER function.
    Helper,
    /// Everybody.
    Open,
}

impl Policy {
    /// The word for reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Membership => "membership",
            Self::Helper => "helper",
            Self::Open => "open",
        }
    }
}

/// Whether subscribers ask for a part of the rows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Filter {
    /// For all of them.
    None,
    /// For one of four values of a column.
    Eq,
    /// For the rows that are their own, by the owner's column: each its own value.
    Own,
}

impl Filter {
    /// The word for reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Eq => "eq",
            Self::Own => "own",
        }
    }
}

/// Values of the column that `--filter eq` asks for.
pub const BUCKETS: u64 = 4;

/// Members of an organisation.
pub const MEMBERS: u64 = 10;

/// What is written and who gets it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Plan {
    /// Subscribers, each a user of its own, numbered from 0.
    pub subscribers: u64,
    /// Who may see a row.
    pub policy: Policy,
    /// Who asks for it.
    pub filter: Filter,
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// Connections that write. Transactions are dealt out to them in turn; only the order within
    /// one of them is known beforehand.
    pub writers: u64,
    /// No more rows than this.
    pub limit: u64,
}

impl Plan {
    /// The row's owner.
    #[must_use]
    pub const fn user(&self, row: u64) -> u64 {
        row % self.subscribers
    }

    /// The owner's organisation.
    #[must_use]
    pub const fn organisation(&self, row: u64) -> u64 {
        self.user(row) / MEMBERS
    }

    /// The row's value in the column that filters read. Changes with every turn through the users,
    /// so each of them owns rows with all values.
    #[must_use]
    pub const fn bucket(&self, row: u64) -> u64 {
        (row / self.subscribers) % BUCKETS
    }

    /// The value that a subscriber asks for, with `--filter eq`.
    #[must_use]
    pub const fn wanted_bucket(subscriber: u64) -> u64 {
        subscriber % BUCKETS
    }

    /// The connection that writes the row.
    #[must_use]
    pub const fn writer(&self, row: u64) -> u64 {
        (row / self.transaction_size) % self.writers
    }

    /// Whether a subscriber must get the row.
    #[must_use]
    pub fn sees(&self, subscriber: u64, row: u64) -> bool {
        let may = match self.policy {
            Policy::User => self.user(row) == subscriber,
            Policy::Membership | Policy::Helper => self.organisation(row) == subscriber / MEMBERS,
            Policy::Open => true,
        };
        may && match self.filter {
            Filter::None => true,
            Filter::Eq => self.bucket(row) == Self::wanted_bucket(subscriber),
            Filter::Own => self.user(row) == subscriber,
        }
    }

    /// How many subscribers must get the row.
    #[must_use]
    pub fn audience(&self, row: u64) -> u64 {
        let (first, end) = match self.policy {
            Policy::User => (self.user(row), self.user(row) + 1),
            Policy::Membership | Policy::Helper => self.members(self.organisation(row)),
            Policy::Open => (0, self.subscribers),
        };
        match self.filter {
            Filter::None => end - first,
            // Of 0..n, those that leave this rest.
            Filter::Eq => {
                let below = |n: u64| (n + BUCKETS - 1 - self.bucket(row)) / BUCKETS;
                below(end) - below(first)
            }
            // Who owns it sees it, whatever the policy.
            Filter::Own => 1,
        }
    }

    /// The subscribers of an organisation: the first, and the one after the last.
    fn members(&self, organisation: u64) -> (u64, u64) {
        let first = organisation * MEMBERS;
        (first, (first + MEMBERS).min(self.subscribers))
    }

    /// A row's place among those that the policy shows to a subscriber, whatever its filter.
    #[must_use]
    pub fn rank(&self, subscriber: u64, row: u64) -> u64 {
        match self.policy {
            Policy::User => row / self.subscribers,
            Policy::Open => row,
            Policy::Membership | Policy::Helper => {
                let (first, end) = self.members(subscriber / MEMBERS);
                row / self.subscribers * (end - first) + self.user(row).saturating_sub(first)
            }
        }
    }

    /// The row at a place among those that the policy shows to a subscriber.
    #[must_use]
    pub fn row_at(&self, subscriber: u64, rank: u64) -> u64 {
        match self.policy {
            Policy::User => rank * self.subscribers + subscriber,
            Policy::Open => rank,
            Policy::Membership | Policy::Helper => {
                let (first, end) = self.members(subscriber / MEMBERS);
                let members = (end - first).max(1);
                rank / members * self.subscribers + first + rank % members
            }
        }
    }
}

/// A user's `sub`.
#[must_use]
pub fn user_id(user: u64) -> String {
    format!("00000000-0000-4000-8000-{user:012x}")
}

/// Which rows were committed: for each writer, how many of its transactions.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Written {
    /// Transactions by writer.
    pub transactions: Vec<u64>,
}

impl Written {
    /// Whether a row was committed.
    #[must_use]
    pub fn contains(&self, plan: &Plan, row: u64) -> bool {
        let turn = row / plan.transaction_size / plan.writers;
        let of_writer = usize::try_from(plan.writer(row))
            .ok()
            .and_then(|writer| self.transactions.get(writer));
        row < plan.limit && of_writer.is_some_and(|count| turn < *count)
    }

    /// A row number that lies past every row committed.
    #[must_use]
    pub fn end(&self, plan: &Plan) -> u64 {
        let turns = self.transactions.iter().copied().max().unwrap_or(0);
        (turns * plan.writers * plan.transaction_size).min(plan.limit)
    }

    /// Rows committed.
    #[must_use]
    pub fn rows(&self, plan: &Plan) -> u64 {
        let mut rows = 0;
        for (writer, turns) in (0..).zip(&self.transactions) {
            for turn in 0..*turns {
                let first = (turn * plan.writers + writer) * plan.transaction_size;
                rows += plan.limit.saturating_sub(first).min(plan.transaction_size);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plans() -> impl Strategy<Value = Plan> {
        let policy = prop_oneof![
            Just(Policy::User),
            Just(Policy::Membership),
            Just(Policy::Helper),
            Just(Policy::Open)
        ];
        let filter = prop_oneof![Just(Filter::None), Just(Filter::Eq), Just(Filter::Own)];
        (1..40_u64, policy, filter, 1..7_u64, 1..5_u64).prop_map(
            |(subscribers, policy, filter, transaction_size, writers)| Plan {
                subscribers,
                policy,
                filter,
                transaction_size,
                writers,
                limit: 1_000,
            },
        )
    }

    proptest! {
        #[test]
        fn the_audience_is_the_number_of_those_who_see_the_row(plan in plans(), row in 0..500_u64) {
            let seen = (0..plan.subscribers).filter(|s| plan.sees(*s, row)).count() as u64;
            prop_assert_eq!(plan.audience(row), seen);
        }

        #[test]
        fn a_rows_rank_finds_it_again(plan in plans(), row in 0..500_u64) {
            for subscriber in 0..plan.subscribers {
                if plan.sees(subscriber, row) {
                    let rank = plan.rank(subscriber, row);
                    prop_assert_eq!(plan.row_at(subscriber, rank), row);
                }
            }
        }

        #[test]
        fn written_rows_are_counted_one_by_one(
            plan in plans(),
            turns in proptest::collection::vec(0..40_u64, 1..5),
        ) {
            let plan = Plan { writers: turns.len() as u64, ..plan };
            let written = Written { transactions: turns };
            let end = written.end(&plan);
            let rows = (0..end + 50).filter(|row| written.contains(&plan, *row)).count() as u64;
            prop_assert_eq!(written.rows(&plan), rows);
            prop_assert!((end..end + 50).all(|row| !written.contains(&plan, row)));
        }
    }
}
