//! What one transaction does, drawn before it is carried out.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::rows::{Change, Held, membership};
use crate::world::Rules;

/// What a transaction may do besides writing rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leave {
    pub(crate) members: bool,
    pub(crate) rules: bool,
    /// Of the rules only those that lock no table whose rows another one has written.
    pub(crate) unlocked: bool,
    /// Whose rows: those of even or of odd keys only.
    pub(crate) parity: Option<i32>,
    /// NULL is not taken by what is in an index.
    pub(crate) always: bool,
}

/// Statements, and what stays of them.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) sql: Vec<String>,
    pub(crate) changes: Vec<Change>,
    pub(crate) rules: u64,
    pub(crate) members: u64,
    pub(crate) undone: u64,
}

impl Plan {
    /// Some more statements.
    pub(crate) fn draw(
        &mut self,
        random: &mut StdRng,
        (rules, held): (&mut Rules, &mut Held),
        (next, seq): (&mut i32, &mut u64),
        leave: Leave,
    ) {
        for _ in 0..random.random_range(2..7) {
            if !random.random_bool(0.12) {
                self.one(random, (rules, held), (next, seq), leave);
                continue;
            }
            // Within a savepoint, of which nothing stays now and then.
            let (kept_rules, kept_held, kept) = (rules.clone(), held.clone(), self.changes.len());
            let counts = (self.rules, self.members);
            self.sql.push("savepoint s".to_owned());
            for _ in 0..random.random_range(1..4) {
                self.one(random, (rules, held), (next, seq), leave);
            }
            if random.random_bool(0.5) {
                self.sql.push("rollback to savepoint s".to_owned());
                (*rules, *held) = (kept_rules, kept_held);
                self.changes.truncate(kept);
                (self.rules, self.members) = counts;
                self.undone += 1;
            } else {
                self.sql.push("release savepoint s".to_owned());
            }
        }
    }

    fn one(
        &mut self,
        random: &mut StdRng,
        (rules, held): (&mut Rules, &mut Held),
        (next, seq): (&mut i32, &mut u64),
        leave: Leave,
    ) {
        match random.random_range(0..100) {
            0..8 if leave.rules => {
                self.sql.push(rules.change(random, leave.unlocked));
                self.rules += 1;
            }
            8..24 if leave.members => {
                self.sql.push(membership(random));
                self.members += 1;
            }
            _ => {
                // Several rows at once: each in a statement of its own, as the stream has them.
                for _ in 0..*[1, 1, 2, 4].choose(random).unwrap() {
                    let whose = (leave.parity, leave.always);
                    let change = Change::random(random, held, (&mut *next, &mut *seq), whose);
                    self.sql.push(change.sql());
                    self.changes.push(change);
                }
            }
        }
    }
}
