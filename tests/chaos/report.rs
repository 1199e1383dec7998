//! What was broken, and what came of it, as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::fault::Fault;

/// Of one fault.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How long it took until every client had been told everything; `None` where that was wrong.
    pub(crate) healed: Option<Duration>,
    /// Times that the relay ended by itself and was started again.
    pub(crate) ended: u32,
    /// What clients were told of gaps, by reason.
    pub(crate) resyncs: BTreeMap<String, u64>,
}

pub(crate) struct Report {
    seed: u64,
    clients: usize,
    outcomes: Vec<(Fault, Outcome)>,
}

impl Report {
    pub(crate) const fn new(seed: u64, clients: usize) -> Self {
        Self {
            seed,
            clients,
            outcomes: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, fault: Fault, outcome: Outcome) {
        self.outcomes.push((fault, outcome));
    }

    pub(crate) fn difference(
        before: &BTreeMap<String, u64>,
        after: &BTreeMap<String, u64>,
    ) -> BTreeMap<String, u64> {
        let more = after.iter().map(|(reason, count)| {
            (
                reason.clone(),
                count - before.get(reason).copied().unwrap_or(0),
            )
        });
        more.filter(|(_, count)| *count > 0).collect()
    }

    /// In Markdown.
    pub(crate) fn table(&self, (changes, again): (u64, u64), committed: u64) -> String {
        let mut text = String::from(
            "| fault | times | missed | healed, median | longest | told of gaps (`resync`) |\n\
             |---|---|---|---|---|---|\n",
        );
        let mut kinds: BTreeMap<Fault, Vec<&Outcome>> = BTreeMap::new();
        for (fault, outcome) in &self.outcomes {
            kinds.entry(*fault).or_default().push(outcome);
        }
        let all: usize = kinds.values().map(Vec::len).sum();
        let missed = |of: &[&Outcome]| of.iter().filter(|one| one.healed.is_none()).count();
        let mut misses = 0;
        for (fault, of) in &kinds {
            let mut times: Vec<Duration> = of.iter().filter_map(|one| one.healed).collect();
            times.sort();
            let seconds = |time: Option<&Duration>| {
                time.map_or_else(
                    || "–".to_owned(),
                    |time| format!("{:.1} s", time.as_secs_f64()),
                )
            };
            let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
            for (reason, count) in of.iter().flat_map(|one| &one.resyncs) {
                *reasons.entry(reason).or_default() += count;
            }
            let reasons: Vec<String> = reasons
                .iter()
                .map(|(reason, count)| format!("{reason} {count}"))
                .collect();
            misses += missed(of);
            let _written = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                fault.words(),
                of.len(),
                missed(of),
                seconds(times.get(times.len() / 2)),
                seconds(times.last()),
                reasons.join(", "),
            );
        }
        let _written = writeln!(
            text,
            "\n{all} faults, {misses} missed; {} clients, {committed} transactions committed, \
             {changes} changes delivered, {again} of them again to who knew its cursor once a \
             second; seed {}.",
            self.clients, self.seed,
        );
        text
    }
}
