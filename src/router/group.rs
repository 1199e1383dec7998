//! Everybody who watches one table under one role: found by who may see a row and by who asked for
//! it, whichever are fewer.

mod judged;

pub(super) mod leave;

mod member;

mod old_rows;

mod route;

mod selection;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;

use self::judged::{Judged, Whom};
pub(super) use self::member::{Begin, Binding, Member, MemberKey, Moment};
use self::member::{Installed, wants};
pub(super) use self::route::Match;
use self::selection::Selections;
pub(super) use self::selection::{Selection, SelectionKey};
use super::few::Few;
use super::filter_index::{FilterIndex, FilterKey};
use super::memberships::{Note, affected};
use super::{ChannelId, Outbox};
use crate::auth::{Claims, Principal};
use crate::change::{Change, Kind, Relation, Row};
use crate::datum::Datum;
use crate::lookup::Lookups;
use crate::mutant::JudgedMutant;
use crate::policy::access::{Access, Rules};
use crate::policy::explain::Found;
use crate::policy::predicate::{
    Affected, Audience, Bound, Facts, Members, Predicate, Probe, Projection, Verdict as Judgement,
};
use crate::subscription::matcher::Filter;

/// Principals whom no policy of the table can tell apart.
#[derive(Debug)]
struct Kin {
    principal: Arc<Principal>,
    projections: SmallVec<[Projection; 1]>,
    members: Few<MemberKey>,
}

/// What one message tells: those of a member's bindings that hear of a change alike.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) member: MemberKey,
    /// The bindings' ids in ascending order.
    pub(super) bindings: SmallVec<[u32; 4]>,
    pub(super) selection: Option<SelectionKey>,
    /// The filter that PostgreSQL still has to say yes for.
    pub(super) asked: Option<FilterKey>,
}

/// What makes two principals kin: what the compiled policies read of them, and, where a policy is
/// asked, all claims.
type KinKey = (SmallVec<[Projection; 1]>, Option<Claims>);

/// Whether no rule of the table can tell two principals apart: what was judged for one holds for
/// the other.
pub(super) fn are_kin(access: &Access, one: &Principal, other: &Principal) -> bool {
    let Rules::Judged {
        predicates, asked, ..
    } = &access.rules
    else {
        return true;
    };
    let mut decided = !asked;
    let alike = predicates.iter().all(|predicate| {
        let (first, second) = (predicate.project(one), predicate.project(other));
        decided &= !first.is_undecided() && !second.is_undecided();
        first == second
    });
    alike && (decided || one.claims.says_the_same(&other.claims))
}

/// All members of one table and role.
pub(super) struct Group {
    pub(super) access: Arc<Access>,
    kin: Slab<Kin>,
    by_key: HashMap<KinKey, usize>,
    /// For every slot of the first predicate that rows are looked up by.
    by_slot: HashMap<usize, HashMap<Datum, Few<usize>>>,
    /// Those whom no slot finds, because it could not be decided what they are.
    unindexed: HashSet<usize>,
    members: Slab<Member>,
    by_filter: FilterIndex,
    selections: Selections,
    leaving: leave::Watching,
    bound: Option<BoundRules>,
    /// What was found for earlier rows, where that takes long.
    judged: Option<Box<Judged>>,
}

/// The rules held against one version of the relation.
struct BoundRules {
    version: u64,
    /// `None` where the stream does not carry a column that a policy reads.
    predicates: Option<SmallVec<[Bound; 1]>>,
}

/// What the compiled policies say of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// It may be seen.
    Visible,
    /// It may not.
    Hidden,
    /// A policy raises an error on it.
    Raised,
    /// It may be seen if PostgreSQL says so: something is not compiled, not known, or not carried
    /// by the stream.
    Undecided,
}

/// The row that decides, and what is known around it.
pub(super) struct Subject<'a> {
    pub(super) relation: &'a Relation,
    pub(super) change: &'a Change,
    pub(super) moment: Moment,
    /// The new row of an insert or update, the old one of a delete; filled as far as possible.
    pub(super) row: &'a Row,
    /// The row before an update, as far as it is carried.
    pub(super) old: Option<&'a Row>,
}

impl Subject<'_> {
    /// What filters are held against: the row, and whether it is a deleted one.
    const fn row(&self) -> (&Relation, &Row, bool) {
        let deleted = matches!(self.change.kind, Kind::Delete { .. });
        (self.relation, self.row, deleted)
    }
}

impl Group {
    pub(super) fn new(access: Arc<Access>) -> Self {
        let judged = match &access.rules {
            Rules::Judged { predicates, .. } => {
                let lasts = |predicate: &Arc<Predicate>| !predicate.asks_the_time();
                let takes_long = |predicate: &Arc<Predicate>| {
                    !predicate.lookups().is_empty() || predicate.found() == Found::Scan
                };
                predicates.iter().all(lasts) && predicates.iter().any(takes_long)
            }
            Rules::Nothing(_) | Rules::Everything => false,
        };
        let by_slot = match &access.rules {
            Rules::Judged { predicates, .. } => predicates
                .first()
                .map(|predicate| {
                    predicate
                        .probed_slots()
                        .into_iter()
                        .map(|slot| (slot, HashMap::new()))
                        .collect()
                })
                .unwrap_or_default(),
            Rules::Nothing(_) | Rules::Everything => HashMap::new(),
        };
        Self {
            access,
            kin: Slab::new(),
            by_key: HashMap::new(),
            by_slot,
            unindexed: HashSet::new(),
            members: Slab::new(),
            by_filter: FilterIndex::default(),
            selections: Selections::default(),
            leaving: leave::Watching::default(),
            bound: None,
            judged: judged.then(Box::default),
        }
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Users whom no policy can tell apart count once.
    pub(super) fn audience(&self) -> usize {
        self.kin.len()
    }

    pub(super) fn member(&self, key: MemberKey) -> Option<&Member> {
        self.members.get(key.0)
    }

    /// Somebody of that kin.
    pub(super) fn principal(&self, kin: usize) -> Option<&Arc<Principal>> {
        self.kin.get(kin).map(|kin| &kin.principal)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().map(|(_, member)| member)
    }

    /// Those of them whose audience depended on what changed in lookups.
    pub(super) fn concerned(&self, notes: &[Note], lookups: &Lookups) -> Vec<&Member> {
        let Rules::Judged { predicates, .. } = &self.access.rules else {
            return Vec::new();
        };
        let mut kin: HashSet<usize> = HashSet::new();
        for note in notes {
            for (which, predicate) in predicates.iter().enumerate() {
                match affected(note, predicate, lookups) {
                    Affected::Nobody => {}
                    Affected::Everybody => return self.members().collect(),
                    Affected::Probes(probes) => {
                        kin.extend(&self.unindexed);
                        for probe in &probes {
                            self.find(which, probe, &mut kin);
                        }
                    }
                }
            }
        }
        let kin = kin.iter().filter_map(|who| self.kin.get(*who));
        let members = kin.flat_map(|kin| &kin.members);
        members.filter_map(|key| self.members.get(key.0)).collect()
    }

    /// The kin that have a value in a slot of one of the predicates.
    fn find(&self, which: usize, probe: &Probe, found: &mut HashSet<usize>) {
        // Those of the first are indexed, as far as rows are looked up by them.
        if let Some(index) = self.by_slot.get(&probe.slot).filter(|_| which == 0) {
            found.extend(index.get(&probe.datum).into_iter().flatten());
            return;
        }
        found.extend(self.kin.iter().filter_map(|(who, kin)| {
            let projection = kin.projections.get(which)?;
            let meant = projection.fails() || projection.has(probe.slot, &probe.datum);
            meant.then_some(who)
        }));
    }

    pub(super) fn add(
        &mut self,
        principal: &Arc<Principal>,
        outbox: &Arc<Outbox>,
        channel: ChannelId,
        bindings: Vec<Binding>,
    ) -> MemberKey {
        let who = self.kin_of(principal);
        let key = MemberKey(self.members.vacant_key());
        for binding in bindings.iter().filter(|binding| binding.leave) {
            self.leaving.add(&binding.filter);
        }
        let bindings = bindings
            .into_iter()
            .map(|binding| Installed {
                id: binding.id,
                events: binding.events,
                filter: self.by_filter.add(key, &binding.filter),
                selection: binding.selection.map(|names| self.selections.add(names)),
                leave: binding.leave,
                begin: binding.begin,
            })
            .collect();
        if let Some(kin) = self.kin.get_mut(who) {
            kin.members.insert(key);
        }
        self.members.insert(Member {
            outbox: Arc::clone(outbox),
            channel,
            bindings,
            who,
        });
        key
    }

    pub(super) fn remove(&mut self, key: MemberKey) {
        let Some(member) = self.members.try_remove(key.0) else {
            return;
        };
        for binding in &member.bindings {
            if let Some(filter) = self.by_filter.filter(binding.filter)
                && binding.leave
            {
                self.leaving.remove(filter);
            }
            self.by_filter.remove(key, binding.filter);
            if let Some(selection) = binding.selection {
                self.selections.remove(selection);
            }
        }
        let Some(kin) = self.kin.get_mut(member.who) else {
            return;
        };
        kin.members.remove(&key);
        if !kin.members.is_empty() {
            return;
        }
        let kin = self.kin.remove(member.who);
        self.forget_judged();
        self.unindexed.remove(&member.who);
        for (slot, index) in &mut self.by_slot {
            let projection = kin.projections.first();
            for value in projection.into_iter().flat_map(|one| one.keys(*slot)) {
                if let Some(equal) = index.get_mut(value) {
                    equal.remove(&member.who);
                    if equal.is_empty() {
                        index.remove(value);
                    }
                }
            }
        }
        self.by_key
            .remove(&self.access_key(&kin.principal, kin.projections));
    }

    fn kin_of(&mut self, principal: &Arc<Principal>) -> usize {
        let projections: SmallVec<[Projection; 1]> = match &self.access.rules {
            Rules::Judged { predicates, .. } => predicates
                .iter()
                .map(|predicate| predicate.project(principal))
                .collect(),
            Rules::Nothing(_) | Rules::Everything => SmallVec::new(),
        };
        let key = self.access_key(principal, projections.clone());
        if let Some(known) = self.by_key.get(&key) {
            return *known;
        }
        self.forget_judged();
        let who = self.kin.insert(Kin {
            principal: Arc::clone(principal),
            projections,
            members: Few::default(),
        });
        if let Some(projection) = self.kin.get(who).and_then(|kin| kin.projections.first()) {
            let looks = !self.access.lookups.is_empty();
            if projection.is_undecided() || looks && projection.fails() {
                self.unindexed.insert(who);
            }
            for (slot, index) in &mut self.by_slot {
                for value in projection.keys(*slot) {
                    index.entry(value.clone()).or_default().insert(who);
                }
            }
        }
        self.by_key.insert(key, who);
        who
    }

    /// There are others by now whom what was found names, or does not.
    fn forget_judged(&mut self) {
        if let Some(judged) = &mut self.judged
            && !JudgedMutant::OutlivesItsKin.active()
        {
            judged.forget();
        }
    }

    fn access_key(&self, principal: &Principal, projections: SmallVec<[Projection; 1]>) -> KinKey {
        // Where a question may come, all claims matter: it carries one kin's claims for all of it.
        let asked = matches!(&self.access.rules, Rules::Judged { asked: true, .. })
            || projections.iter().any(Projection::is_undecided);
        (projections, asked.then(|| principal.claims.clone()))
    }

    /// The names of that selection.
    pub(super) fn selection(&self, key: SelectionKey) -> Option<&Selection> {
        self.selections.known.get(key.0).map(|(names, _)| names)
    }

    /// The filter of that key.
    pub(super) fn filter(&self, key: FilterKey) -> Option<&Arc<Filter>> {
        self.by_filter.filter(key)
    }

    /// How many asked for this kind of change, whatever the row.
    pub(super) fn watching(&self, kind: &Kind) -> usize {
        let asks = |member: &&Member| {
            let mut bindings = member.bindings.iter();
            bindings.any(|binding| binding.events.includes(kind))
        };
        self.members().filter(asks).count()
    }

    fn bind(&mut self, relation: &Relation) {
        if self
            .bound
            .as_ref()
            .is_some_and(|bound| bound.version == relation.version)
        {
            return;
        }
        let predicates = match &self.access.rules {
            Rules::Judged { predicates, .. } => predicates
                .iter()
                .map(|predicate| predicate.bind(relation))
                .collect(),
            Rules::Nothing(_) | Rules::Everything => Some(SmallVec::new()),
        };
        self.bound = Some(BoundRules {
            version: relation.version,
            predicates,
        });
    }

    /// What each compiled policy reads of a row; `None` where the stream does not carry it.
    fn facts<'a>(&'a self, row: &Row, lookups: &'a Lookups) -> Option<SmallVec<[Facts<'a>; 1]>> {
        let bound = self.bound.as_ref()?.predicates.as_ref()?;
        let read = bound.iter().map(|predicate| predicate.read(row, lookups));
        Some(read.collect())
    }

    /// Who may see a row; with `keeps` who of those that ask for it does is to be kept.
    fn whom(&self, facts: Option<&[Facts<'_>]>, keeps: bool) -> Whom {
        let audience = match (&self.access.rules, facts) {
            (Rules::Nothing(_), _) => Audience::Nobody,
            (_, Some(facts)) => facts.first().map_or(Audience::Everyone, Facts::audience),
            (_, None) => Audience::Scan,
        };
        let kin = match audience {
            Audience::Nobody => Vec::new(),
            Audience::Members(probes, members) => self.members_of(&probes, &members),
            Audience::Probes(probes) => self.probed(&probes),
            Audience::Everyone | Audience::Scan => {
                return Whom::Anybody(keeps.then(HashMap::new));
            }
        };
        Whom::Kin(kin.into_iter().map(|who| (who, None)).collect())
    }

    /// The kin that probes find.
    fn probed(&self, probes: &[Probe]) -> Vec<usize> {
        let mut kin: Vec<usize> = probes
            .iter()
            .filter_map(|probe| self.by_slot.get(&probe.slot)?.get(&probe.datum))
            .flatten()
            .chain(&self.unindexed)
            .copied()
            .collect();
        if probes.len() > 1 || !self.unindexed.is_empty() {
            kin.sort_unstable();
            kin.dedup();
        }
        kin
    }

    /// The kin that probes find, or whose value is among members': of those and the different
    /// values that kin have, the fewer are walked.
    fn members_of(&self, probes: &[Probe], members: &[Members]) -> Vec<usize> {
        let mut kin: Vec<usize> = self.unindexed.iter().copied().collect();
        let found = |slot: usize, datum: &Datum| self.by_slot.get(&slot)?.get(datum);
        let probed = probes.iter();
        kin.extend(
            probed
                .filter_map(|probe| found(probe.slot, &probe.datum))
                .flatten(),
        );
        for members in members {
            let Some(known) = self.by_slot.get(&members.slot()) else {
                continue;
            };
            if known.len() < members.len() {
                let among = known.iter().filter(|(datum, _)| members.contains(datum));
                kin.extend(among.flat_map(|(_, who)| who));
            } else {
                let values = members.values();
                kin.extend(values.filter_map(|datum| known.get(datum)).flatten());
            }
        }
        kin.sort_unstable();
        kin.dedup();
        kin
    }

    fn sight(&self, kin: &Kin, facts: Option<&[Facts<'_>]>) -> Sight {
        match &self.access.rules {
            Rules::Nothing(_) => return Sight::Hidden,
            Rules::Everything => return Sight::Visible,
            Rules::Judged { .. } => {}
        }
        let Some(facts) = facts else {
            return Sight::Undecided;
        };
        for (facts, projection) in facts.iter().zip(&kin.projections) {
            match facts.judge(projection) {
                Judgement::True => {}
                Judgement::False | Judgement::Null => return Sight::Hidden,
                Judgement::Error => return Sight::Raised,
                Judgement::Undecided => return Sight::Undecided,
            }
        }
        Sight::Visible
    }
}
