//! What was found of a row holds for the next one that says the same to the policies: to tell the
//! ten members of an organisation of its hundredth change takes no look at who its members are.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use smallvec::SmallVec;

use super::Sight;
use crate::lookup::State;
use crate::mutant::JudgedMutant;
use crate::policy::predicate::{Facts, Said};

/// Verdicts that are kept; past this all are found anew. One takes 16 to 40 bytes.
const MAX: usize = 1 << 18;

/// What was found by one state of the tables that the policies look into. Whoever has it forgets it
/// where there are others, or fewer, whom it could be about.
#[derive(Default)]
pub(super) struct Judged {
    states: Vec<Option<State>>,
    /// By the hash of what the rows say.
    rows: HashMap<u64, SmallVec<[Known; 1]>>,
    seed: RandomState,
    kept: usize,
}

/// What is known of rows that say the same.
pub(super) struct Known {
    hash: u64,
    /// To each of the predicates.
    said: SmallVec<[Said; 1]>,
    pub(super) whom: Option<Whom>,
}

/// Who may see a row.
pub(super) enum Whom {
    /// Nobody but these; of those who asked for such a row before it is known.
    Kin(Vec<(usize, Option<Sight>)>),
    /// Anybody. Of those who asked for such a row before it is known, where that is kept.
    Anybody(Option<HashMap<usize, Sight>>),
}

impl Judged {
    /// Takes out what is known of rows that say the same as this one, to be [kept](Self::keep) again;
    /// `None` where nothing is kept of such rows.
    pub(super) fn recall(&mut self, facts: &[Facts<'_>]) -> Option<Known> {
        if !self.is_of(facts) {
            if !JudgedMutant::OutlivesItsLookups.active() {
                self.forget();
            }
            let states = facts.iter().flat_map(Facts::states);
            self.states = states.map(Option::<&State>::cloned).collect();
        }
        let mut hasher = self.seed.build_hasher();
        for facts in facts {
            facts.hash_said(&mut hasher);
        }
        let any = JudgedMutant::IsOfAnyRow.active();
        let hash = if any { 0 } else { hasher.finish() };
        if let Some(alike) = self.rows.get_mut(&hash) {
            let is = |known: &Known| known.said.iter().zip(facts).all(|(said, row)| said.is(row));
            if let Some(at) = alike.iter().position(|known| any || is(known)) {
                let known = alike.swap_remove(at);
                self.kept -= known.len();
                return Some(known);
            }
        }
        let said = facts.iter().map(Facts::said).collect::<Option<_>>()?;
        Some(Known {
            hash,
            said,
            whom: None,
        })
    }

    fn is_of(&self, facts: &[Facts<'_>]) -> bool {
        let states = facts.iter().flat_map(Facts::states);
        self.states.iter().map(Option::as_ref).eq(states)
    }

    pub(super) fn keep(&mut self, known: Known) {
        if self.kept + known.len() > MAX {
            self.forget();
        }
        self.kept += known.len();
        self.rows.entry(known.hash).or_default().push(known);
    }

    /// Forgets everything.
    pub(super) fn forget(&mut self) {
        // A burst must not cost memory for ever.
        self.rows = HashMap::new();
        self.kept = 0;
    }
}

impl Known {
    fn len(&self) -> usize {
        let verdicts = match &self.whom {
            None | Some(Whom::Anybody(None)) => 0,
            Some(Whom::Kin(kin)) => kin.len(),
            Some(Whom::Anybody(Some(known))) => known.len(),
        };
        1 + verdicts
    }
}

impl Whom {
    /// Whether one of them sees the row, who of [`Whom::Kin`] is the one `at` that place; judged once.
    pub(super) fn sight(
        &mut self,
        (at, who): (usize, usize),
        judge: impl FnOnce() -> Sight,
    ) -> Sight {
        match self {
            Self::Kin(kin) => match kin.get_mut(at) {
                Some((_, sight)) => *sight.get_or_insert_with(judge),
                None => judge(),
            },
            Self::Anybody(Some(known)) => *known.entry(who).or_insert_with(judge),
            Self::Anybody(None) => judge(),
        }
    }
}
