//! Who asked for a change, and whether they may see it.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::judged::{Judged, Whom};
use super::member::wants;
use super::{Group, MemberKey, Sight, Subject, Told};
use crate::change::Kind;
use crate::mutant::JudgedMutant;
use crate::policy::predicate::Facts;
use crate::router::filter_index::Outcomes;
use crate::router::memberships::States;
use crate::subscription::matcher::Outcome;

/// One kin's share of a change, or that of all who may see it: who of them asked for it.
#[derive(Debug)]
pub(in crate::router) struct Match {
    /// Which kin of the group; where the row may be seen, the first of several.
    pub(in crate::router) kin: usize,
    pub(in crate::router) sight: Sight,
    /// What matched.
    pub(in crate::router) told: Vec<Told>,
    /// Whether the row before an update may be shown as well.
    pub(in crate::router) sees_old: bool,
    /// Whether it cannot be told that the filters ask for it.
    pub(in crate::router) unclear: bool,
}

/// One kin's share of a change.
struct Heard {
    who: usize,
    /// Which it is of those who may see the row, where these are some.
    at: usize,
    told: SmallVec<[Told; 1]>,
    /// Whether these ask for it cannot be told.
    unclear: Vec<Told>,
}

impl Heard {
    /// Nothing yet, with room for so many.
    fn of(who: usize, at: usize, room: usize) -> Self {
        Self {
            who,
            at,
            told: SmallVec::with_capacity(room),
            unclear: Vec::new(),
        }
    }
}

impl Group {
    /// Finds who asked for a change, and whether they may see it. Those who may not are in the
    /// answer only where that has to be counted or said.
    pub(in crate::router) fn route(
        &mut self,
        subject: &Subject<'_>,
        states: &States,
    ) -> Vec<Match> {
        self.bind(subject.relation);
        let mut judged = self.judged.take();
        let matches = self.matches(subject, states, judged.as_deref_mut());
        self.judged = judged;
        matches
    }

    fn matches(
        &self,
        subject: &Subject<'_>,
        states: &States,
        judged: Option<&mut Judged>,
    ) -> Vec<Match> {
        let deleted = matches!(subject.change.kind, Kind::Delete { .. });
        let standing = if deleted {
            &states.before
        } else {
            &states.after
        };
        let facts = self.facts(subject.row, standing);
        let facts = facts.as_deref();
        let judged = judged.zip(facts);
        let mut kept = judged.and_then(|(judged, facts)| Some((judged.recall(facts)?, judged)));
        let known = kept.as_mut().and_then(|(known, _)| known.whom.take());
        let mut whom = known.unwrap_or_else(|| self.whom(facts, kept.is_some()));
        let heard = self.who_asked(&whom, subject);
        let old = subject.old.map(|old| self.facts(old, &states.before));
        let old = old.as_ref().map(|old| old.as_deref());
        // Who sees a row sees what it was where that said the same.
        let old_alike = facts.zip(old.flatten()).is_some_and(|(new, old)| {
            let mut both = new.iter().zip(old);
            both.all(|(new, old)| new.are_those_of(old)) || JudgedMutant::OldRowIsAlike.active()
        });
        let room = heard.iter().map(|heard| heard.told.len()).sum();
        let mut matches: Vec<Match> = Vec::new();
        // Of those who see the row it does not matter any more who they are.
        let mut seeing: [Option<usize>; 2] = [None; 2];
        for heard in heard {
            if heard.told.is_empty() && heard.unclear.is_empty() {
                continue;
            }
            let who = heard.who;
            let Some(kin) = self.kin.get(who) else {
                continue;
            };
            let sight = whom.sight((heard.at, who), || self.sight(kin, facts));
            let hidden = matches!(sight, Sight::Hidden | Sight::Raised);
            if !heard.unclear.is_empty() && !hidden {
                matches.push(Match {
                    kin: who,
                    sight,
                    told: heard.unclear,
                    sees_old: false,
                    unclear: true,
                });
            }
            if heard.told.is_empty() {
                continue;
            }
            let sees =
                |old: Option<&[Facts<'_>]>| old_alike || self.sight(kin, old) == Sight::Visible;
            let sees_old = sight == Sight::Visible && old.is_some_and(sees);
            let alike = seeing
                .get_mut(usize::from(sees_old))
                .filter(|_| sight == Sight::Visible);
            let told = match alike {
                Some(alike) => {
                    if let Some(known) = alike.and_then(|at| matches.get_mut(at)) {
                        known.told.extend(heard.told);
                        continue;
                    }
                    *alike = Some(matches.len());
                    if heard.told.len() == room {
                        heard.told.into_vec()
                    } else {
                        let mut told = Vec::with_capacity(room);
                        told.extend(heard.told);
                        told
                    }
                }
                None => heard.told.into_vec(),
            };
            matches.push(Match {
                kin: who,
                sight,
                told,
                sees_old,
                unclear: false,
            });
        }
        if let Some((mut known, judged)) = kept {
            known.whom = Some(whom);
            judged.keep(known);
        }
        matches
    }

    /// Who of those that may see a row asked for it.
    fn who_asked(&self, whom: &Whom, subject: &Subject<'_>) -> Vec<Heard> {
        let mut outcomes = Outcomes::default();
        let mut heard: Vec<Heard> = Vec::new();
        let kin = match whom {
            Whom::Kin(kin) => kin,
            Whom::Anybody(_) => {
                let members = self.by_filter.candidates(subject.row(), &mut outcomes);
                let mut by_kin: HashMap<usize, usize> = HashMap::new();
                let mut last = None;
                for key in &members {
                    let Some(who) = self.members.get(key.0).map(|member| member.who) else {
                        continue;
                    };
                    // Mostly there are either many kin or many members of one.
                    let at = match last {
                        Some((kin, at)) if kin == who => at,
                        _ => *by_kin.entry(who).or_insert_with(|| {
                            let alone = self.kin.len() == 1;
                            let room = if alone { members.len() } else { 0 };
                            heard.push(Heard::of(who, 0, room));
                            heard.len() - 1
                        }),
                    };
                    last = Some((who, at));
                    if let Some(heard) = heard.get_mut(at) {
                        self.hear(*key, subject, &mut outcomes, heard);
                    }
                }
                return heard;
            }
        };
        heard.reserve(kin.len());
        for (at, (who, _)) in kin.iter().enumerate() {
            let mut one = Heard::of(*who, at, 0);
            for key in self.kin.get(*who).iter().flat_map(|entry| &entry.members) {
                self.hear(*key, subject, &mut outcomes, &mut one);
            }
            heard.push(one);
        }
        heard
    }

    /// Notes which of a member's bindings ask for the row.
    fn hear(
        &self,
        key: MemberKey,
        subject: &Subject<'_>,
        outcomes: &mut Outcomes,
        heard: &mut Heard,
    ) {
        let Some(member) = self.members.get(key.0) else {
            return;
        };
        let first = heard.told.len();
        let mut unclear: SmallVec<[u32; 4]> = SmallVec::new();
        for binding in &member.bindings {
            if !binding.events.includes(&subject.change.kind)
                || !wants(binding.begin.as_deref(), subject.moment)
            {
                continue;
            }
            let filter = binding.filter;
            let asked = match self.by_filter.outcome(filter, subject.row(), outcomes) {
                Outcome::No => continue,
                Outcome::Unclear => {
                    unclear.push(binding.id);
                    continue;
                }
                Outcome::Yes => None,
                Outcome::Asked => Some(filter),
            };
            let alike = |one: &&mut Told| one.asked == asked && one.selection == binding.selection;
            let own = heard.told.get_mut(first..).unwrap_or_default();
            match own.iter_mut().find(alike) {
                Some(one) => one.bindings.push(binding.id),
                None => heard.told.push(Told {
                    member: key,
                    bindings: SmallVec::from_slice(&[binding.id]),
                    selection: binding.selection,
                    asked,
                }),
            }
        }
        if !unclear.is_empty() {
            heard.unclear.push(Told {
                member: key,
                bindings: unclear,
                selection: None,
                asked: None,
            });
        }
    }
}
