//! What happened, in numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

/// What became of cases.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    pub(crate) worlds: u64,
    pub(crate) transactions: u64,
    /// Events that arrived and had to.
    pub(crate) shown: u64,
    /// The same by kind.
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    /// Nothing arrived, and nothing was to.
    pub(crate) hidden: u64,
    /// Arrived though a select raises an error beside it, or only its key is known.
    pub(crate) allowed: u64,
    /// Shown because an asked policy is answered as of a moment later.
    pub(crate) as_of_later: u64,
    /// Kept from somebody who could see it, by the reason that was told.
    pub(crate) kept: BTreeMap<String, u64>,
    /// `resync`, by reason.
    pub(crate) resyncs: BTreeMap<String, u64>,
    pub(crate) refused: u64,
    /// What was done, by kind.
    pub(crate) done: BTreeMap<&'static str, u64>,
    /// Policies by level.
    pub(crate) levels: BTreeMap<char, u64>,
    pub(crate) questions: u64,
    /// Where the time went, in milliseconds.
    pub(crate) spent: BTreeMap<&'static str, u64>,
    /// Cases of those with a socket.
    pub(crate) sockets: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        fn all<K: Ord + Clone>(sum: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
            for (name, count) in more {
                *sum.entry(name.clone()).or_default() += count;
            }
        }
        self.cases += other.cases;
        self.worlds += other.worlds;
        self.transactions += other.transactions;
        self.shown += other.shown;
        self.hidden += other.hidden;
        self.allowed += other.allowed;
        self.as_of_later += other.as_of_later;
        self.refused += other.refused;
        self.questions += other.questions;
        self.sockets += other.sockets;
        all(&mut self.kinds, &other.kinds);
        all(&mut self.kept, &other.kept);
        all(&mut self.resyncs, &other.resyncs);
        all(&mut self.done, &other.done);
        all(&mut self.levels, &other.levels);
        all(&mut self.spent, &other.spent);
    }

    /// Notes that something has taken until now.
    pub(crate) fn took(&mut self, what: &'static str, since: Instant) {
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap();
        *self.spent.entry(what).or_default() += millis;
    }

    pub(crate) fn line(&self) -> String {
        let kept: u64 = self.kept.values().sum();
        format!(
            "{} cases, {} shown, {} hidden, {kept} kept, {} questions",
            self.cases, self.shown, self.hidden, self.questions
        )
    }

    pub(crate) fn table(&self) -> String {
        fn words<K: std::fmt::Display>(of: &BTreeMap<K, u64>) -> String {
            let words = of.iter().map(|(name, count)| format!("{name} {count}"));
            words.collect::<Vec<_>>().join(", ")
        }
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} worlds, {} transactions, {} cases ({} with a socket), {} questions",
            self.worlds, self.transactions, self.cases, self.sockets, self.questions
        );
        let _ = writeln!(
            text,
            "shown as they had to be: {} ({})",
            self.shown,
            words(&self.kinds)
        );
        let _ = writeln!(text, "rightly hidden: {}", self.hidden);
        let _ = writeln!(
            text,
            "shown where a select raises an error, or the key is all that is known: {}",
            self.allowed
        );
        let _ = writeln!(
            text,
            "asked, and answered as of later: {}",
            self.as_of_later
        );
        let _ = writeln!(text, "kept, with the reason told: {}", words(&self.kept));
        let _ = writeln!(
            text,
            "resync: {}; joins refused: {}",
            words(&self.resyncs),
            self.refused
        );
        let _ = writeln!(text, "policies by level: {}", words(&self.levels));
        let _ = writeln!(text, "milliseconds: {}", words(&self.spent));
        let _ = write!(text, "done: {}", words(&self.done));
        text
    }

    /// A run that draws nothing of a kind would assert nothing about it.
    pub(crate) fn is_worth_something(&self) {
        assert!(self.shown * 50 > self.cases, "too little is shown");
        assert!(self.hidden * 10 > self.cases, "too little is hidden");
        let kept: u64 = self.kept.values().sum();
        assert!(kept * 3 < self.cases, "too much is kept");
        // What no answer of the moment would show: of policies that are asked alone.
        assert!(
            self.as_of_later * 1000 <= self.cases,
            "too much is excused by having been asked later"
        );
        assert!(self.sockets > 0, "nobody has a socket");
        for kind in ["INSERT", "UPDATE", "DELETE", "LEAVE"] {
            assert!(self.kinds.contains_key(kind), "no {kind}");
        }
        for level in ['A', 'B', 'C', 'D', 'E', 'F']
            .into_iter()
            .filter(|_| self.worlds > 4)
        {
            assert!(
                self.levels.contains_key(&level),
                "no policy of level {level}"
            );
        }
    }
}
