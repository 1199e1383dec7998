//! Who loses sight of a row by an update: saw it before and does not see it any more, because of
//! the policies or of what its filter asks for.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::judged::Whom;
use super::{Group, MemberKey, SelectionKey, Sight, Subject, wants};
use crate::auth::Principal;
use crate::change::{Row, Value};
use crate::mutant::LeaveMutant;
use crate::router::filter_index::{FilterKey, Outcomes};
use crate::router::memberships::States;
use crate::subscription::matcher::{Filter, Outcome};

/// The bindings of a group that want to be told when a row leaves their view.
#[derive(Debug, Default)]
pub(super) struct Watching {
    bindings: usize,
    /// The columns that their filters read, with how many of them do.
    columns: HashMap<Box<str>, usize>,
}

impl Watching {
    pub(super) fn add(&mut self, filter: &Filter) {
        self.bindings += 1;
        for test in filter.tests() {
            *self.columns.entry(test.column.as_str().into()).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, filter: &Filter) {
        self.bindings -= 1;
        for test in filter.tests() {
            if let Some(readers) = self.columns.get_mut(test.column.as_str()) {
                *readers -= 1;
                if *readers == 0 {
                    self.columns.remove(test.column.as_str());
                }
            }
        }
    }
}

/// What a filter says of a row that it does not say no of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::router) enum Asks {
    /// It asks for it.
    Yes,
    /// PostgreSQL has to say.
    Asked(FilterKey),
    /// It cannot be told.
    Unclear,
}

impl Asks {
    fn of(outcome: Outcome, filter: FilterKey) -> Option<Self> {
        match outcome {
            Outcome::No => LeaveMutant::UnaskedRowLeaves.active().then_some(Self::Yes),
            Outcome::Yes => Some(Self::Yes),
            Outcome::Asked => Some(Self::Asked(filter)),
            Outcome::Unclear => Some(Self::Unclear),
        }
    }
}

/// What has to be known before the new row is known to be out of sight; one of both is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::router) struct Open {
    /// PostgreSQL has to say whether it may be seen.
    pub(in crate::router) policies: bool,
    /// Whether it is asked for.
    pub(in crate::router) filter: Asks,
}

/// Those of a member's bindings that a row leaves alike.
#[derive(Debug)]
pub(in crate::router) struct Left {
    pub(in crate::router) member: MemberKey,
    /// The bindings' ids in ascending order.
    pub(in crate::router) bindings: SmallVec<[u32; 4]>,
    pub(in crate::router) selection: Option<SelectionKey>,
    /// Whether they asked for the row before.
    pub(in crate::router) before: Asks,
    /// What is still open of the row after; `None` where they do not see it.
    pub(in crate::router) after: Option<Open>,
}

/// One kin's share of those whom a row leaves.
#[derive(Debug)]
pub(in crate::router) struct Leaving {
    /// Which kin of the group.
    pub(in crate::router) kin: usize,
    pub(in crate::router) principal: Arc<Principal>,
    /// Whether the row before could be seen: that, or it is not known natively.
    pub(in crate::router) before: Sight,
    pub(in crate::router) left: Vec<Left>,
}

impl Group {
    /// How many bindings are told when a row leaves their view.
    pub(in crate::router) const fn told_of_leaves(&self) -> usize {
        self.leaving.bindings
    }

    /// Whether an update can take the row out of somebody's view. Where nothing that decides has
    /// changed it cannot: that a policy looks elsewhere, and finds something else there, is no
    /// change of this row.
    pub(in crate::router) fn may_leave(&self, subject: &Subject<'_>, old: &Row) -> bool {
        let filters = self.leaving.columns.keys().map(|name| &**name);
        let reads = self.access.reads.iter().map(String::as_str);
        reads.chain(filters).any(|name| {
            let Some(position) = subject.relation.position(name) else {
                return true;
            };
            match (old.get(position), subject.row.get(position)) {
                // The update did not touch it.
                (_, Some(Value::Unchanged)) => false,
                (before, after) => before != after,
            }
        })
    }

    /// Whether of the row before an update all is carried that the policies read.
    pub(in crate::router) fn can_judge(&self, subject: &Subject<'_>, old: &Row) -> bool {
        let judged = LeaveMutant::NotCarriedIsJudged.active();
        self.access.reads.iter().all(|name| {
            let position = subject.relation.position(name);
            let value = position.and_then(|position| old.get(position));
            judged || value.is_some_and(|value| value != Value::Unchanged)
        })
    }

    /// Finds whom the row leaves: it starts from those who saw it before, so that nobody else can
    /// hear of it. What an old row does not carry no filter asks for: the join has said so.
    pub(in crate::router) fn leaving(
        &mut self,
        subject: &Subject<'_>,
        old: &Row,
        states: &States,
    ) -> Vec<Leaving> {
        self.bind(subject.relation);
        let (was, is) = (
            self.facts(old, &states.before),
            self.facts(subject.row, &states.after),
        );
        let (mut before, mut after) = (Outcomes::default(), Outcomes::default());
        let old = (subject.relation, old, true);
        let members = match self.whom(was.as_deref(), false) {
            Whom::Anybody(_) => self.by_filter.candidates(old, &mut before),
            Whom::Kin(kin) => {
                let kin = kin.iter().filter_map(|(who, _)| self.kin.get(*who));
                kin.flat_map(|kin| &kin.members).copied().collect()
            }
        };
        let mut by_kin: HashMap<usize, (Leaving, Sight)> = HashMap::new();
        for key in members {
            let Some((member, kin)) = self
                .members
                .get(key.0)
                .and_then(|member| Some((member, self.kin.get(member.who)?)))
            else {
                continue;
            };
            for binding in &member.bindings {
                if !binding.leave || !wants(binding.begin.as_deref(), subject.moment) {
                    continue;
                }
                let filter = binding.filter;
                let outcome = self.by_filter.outcome(filter, old, &mut before);
                let Some(asked_before) = Asks::of(outcome, filter) else {
                    continue;
                };
                let (leaving, sees) = by_kin.entry(member.who).or_insert_with(|| {
                    let leaving = Leaving {
                        kin: member.who,
                        principal: Arc::clone(&kin.principal),
                        before: match self.sight(kin, was.as_deref()) {
                            _ if LeaveMutant::HiddenRowLeaves.active() => Sight::Visible,
                            sight => sight,
                        },
                        left: Vec::new(),
                    };
                    (leaving, self.sight(kin, is.as_deref()))
                });
                if matches!(leaving.before, Sight::Hidden | Sight::Raised) {
                    continue;
                }
                let outcome = self.by_filter.outcome(filter, subject.row(), &mut after);
                let open = match (*sees, Asks::of(outcome, filter)) {
                    (Sight::Hidden | Sight::Raised, _) | (_, None) => None,
                    // It still sees it.
                    (Sight::Visible, Some(Asks::Yes)) if LeaveMutant::SeenRowLeaves.active() => {
                        None
                    }
                    (Sight::Visible, Some(Asks::Yes)) => continue,
                    (sees, Some(filter)) => Some(Open {
                        policies: sees != Sight::Visible,
                        filter,
                    }),
                };
                let alike = |one: &&mut Left| {
                    one.member == key
                        && one.selection == binding.selection
                        && (one.before, one.after) == (asked_before, open)
                };
                match leaving.left.iter_mut().rev().find(alike) {
                    Some(one) => one.bindings.push(binding.id),
                    None => leaving.left.push(Left {
                        member: key,
                        bindings: SmallVec::from_slice(&[binding.id]),
                        selection: binding.selection,
                        before: asked_before,
                        after: open,
                    }),
                }
            }
        }
        let leaving = by_kin.into_values().map(|(leaving, _)| leaving);
        leaving.filter(|one| !one.left.is_empty()).collect()
    }
}
