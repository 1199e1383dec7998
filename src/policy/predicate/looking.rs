//! Gives sub-selects their tables, the order in which these are looked into and the keys that rows
//! are found by.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::tables::Table;
use super::{index_of, plain};
use crate::datum::Datum;
use crate::policy::expr::select::{Asked, Place, Select, Source, Step};
use crate::policy::expr::{Constant, Expr};

#[derive(Default)]
pub(super) struct Looking {
    pub(super) tables: Vec<Table>,
    /// The tables whose rows are in hand, by depth.
    frames: HashMap<u32, usize>,
}

impl Looking {
    pub(super) fn look(&mut self, expr: &Expr) -> Expr {
        match expr {
            Expr::Inner(depth, column) => {
                let at = self.frames.get(depth).copied();
                let table = at.and_then(|at| self.tables.get_mut(at));
                table.map_or(Expr::NULL, |table| {
                    Expr::Field(*depth, index_of(&mut table.columns, Arc::clone(column)))
                })
            }
            Expr::Select(select) => Expr::Select(Box::new(self.select(select))),
            other => other.map(&mut |inner| self.look(inner)),
        }
    }

    fn select(&mut self, select: &Select) -> Select {
        let around = self.frames.clone();
        for place in select.places() {
            let at = self.table(place);
            self.frames.insert(place.depth, at);
        }
        let mut chain = Chain::default();
        self.gather(&select.from, &mut chain);
        let result = Select {
            from: Vec::new(),
            result: select.result.clone(),
        };
        let result = result.map(&mut |inner| self.look(inner)).result;
        self.frames = around;
        let all: BTreeSet<u32> = select.places().iter().map(|place| place.depth).collect();
        let from = self.ordered(chain, &all, &mut BTreeSet::new());
        Select { from, result }
    }

    fn table(&mut self, place: &Place) -> usize {
        let known = self.tables.iter().position(|one| one.oid == place.table);
        known.unwrap_or_else(|| {
            self.tables.push(Table {
                oid: place.table,
                columns: Vec::new(),
                indexes: BTreeSet::new(),
            });
            self.tables.len() - 1
        })
    }

    /// The tables and conditions of an inner join; an outer join whose row of NULLs a condition
    /// leaves out is an inner one.
    fn gather(&mut self, steps: &[Step], chain: &mut Chain) {
        let mut optional = Vec::new();
        for step in steps {
            match &step.source {
                Source::Table(place) => {
                    let at = self.frames.get(&place.depth).copied().unwrap_or_default();
                    chain.places.push(Place {
                        at,
                        ..place.clone()
                    });
                }
                Source::Optional(steps) => {
                    let mut inner = Chain::default();
                    self.gather(steps, &mut inner);
                    optional.push(inner);
                }
            }
            for one in &step.condition {
                let all = match plain(&positive(&plain(one))) {
                    Expr::And(all) => all,
                    other => vec![other],
                };
                for one in all.iter().map(|one| self.look(one)) {
                    chain.add(one);
                }
            }
        }
        // One that became an inner join may make others so.
        while let Some(at) = optional.iter().position(|one| chain.demands(one)) {
            let inner = optional.swap_remove(at);
            chain.places.extend(inner.places);
            optional.extend(inner.optional);
            inner.conditions.into_iter().for_each(|one| chain.add(one));
        }
        chain.optional.extend(optional);
    }

    /// Puts tables into the order in which each is found by what is in hand, and conditions behind
    /// the first table that has all they read. `all` are the depths of the sub-select, `known`
    /// those of them in hand.
    fn ordered(
        &mut self,
        mut chain: Chain,
        all: &BTreeSet<u32>,
        known: &mut BTreeSet<u32>,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        loop {
            let missing = |expr: &Expr, known: &BTreeSet<u32>, own: Option<u32>| {
                expr.reads_field(&|depth| {
                    all.contains(&depth) && !known.contains(&depth) && own != Some(depth)
                })
            };
            // Constants find more than what is known of the row or the claims.
            let worth = |place: &Place| {
                let keys = chain
                    .conditions
                    .iter()
                    .filter_map(|one| place.equality(one));
                let keys = keys.filter(|(_, key)| !missing(key, known, None));
                let weight = keys.map(|(_, key)| match key {
                    Expr::Const(_) => 1,
                    _ => 2,
                });
                weight.sum::<u32>()
            };
            let best = (0..chain.places.len()).rev().max_by_key(|at| {
                let place = chain.places.get(*at);
                place.map_or(0, worth)
            });
            let step = if let Some(at) = best {
                let mut place = chain.places.remove(at);
                let mut rest = Vec::new();
                for one in std::mem::take(&mut chain.conditions) {
                    match place.equality(&one) {
                        Some((column, key))
                            if !missing(key, known, None)
                                && !place.keys.iter().any(|(of, _)| *of == column) =>
                        {
                            let key = (column, key.clone());
                            place.keys.push(key);
                        }
                        _ => rest.push(one),
                    }
                }
                chain.conditions = rest;
                known.insert(place.depth);
                if let Some(table) = self.tables.get_mut(place.at) {
                    table.index(place.keys.iter().map(|(column, _)| *column));
                }
                Source::Table(place)
            } else {
                let ready = |inner: &Chain| {
                    let own = inner.depths();
                    !inner.any(&mut |one| {
                        one.reads_field(&|depth| {
                            all.contains(&depth) && !known.contains(&depth) && !own.contains(&depth)
                        })
                    })
                };
                let at = chain.optional.iter().position(ready).unwrap_or(0);
                if at >= chain.optional.len() {
                    return steps;
                }
                let inner = chain.optional.remove(at);
                let own = inner.depths();
                let mut inside = known.clone();
                let steps = self.ordered(inner, all, &mut inside);
                known.extend(own);
                Source::Optional(steps)
            };
            let last = chain.places.is_empty() && chain.optional.is_empty();
            let conditions = std::mem::take(&mut chain.conditions);
            let (now, later) = conditions.into_iter().partition(|one| {
                last || !one.reads_field(&|depth| all.contains(&depth) && !known.contains(&depth))
            });
            chain.conditions = later;
            steps.push(Step {
                source: step,
                condition: now,
            });
        }
    }
}

/// An inner join.
#[derive(Default)]
struct Chain {
    places: Vec<Place>,
    /// What is joined to it by outer joins.
    optional: Vec<Self>,
    conditions: Vec<Expr>,
}

impl Chain {
    fn add(&mut self, condition: Expr) {
        if !self.conditions.contains(&condition) {
            self.conditions.push(condition);
        }
    }

    /// Whether a condition here is true only of a row that an outer join has found.
    fn demands(&self, optional: &Self) -> bool {
        let own = |expr: &Expr| {
            let mut places = optional.places.iter();
            matches!(expr, Expr::Field(depth, _) if places.any(|place| place.depth == *depth))
        };
        self.conditions.iter().any(|one| match one {
            Expr::Compare(_, two) => own(&two.0) || own(&two.1),
            _ => false,
        })
    }

    fn depths(&self) -> BTreeSet<u32> {
        let inner = self.optional.iter().flat_map(Self::depths);
        let own = self.places.iter().map(|place| place.depth);
        own.chain(inner).collect()
    }

    /// Whether something holds for a condition of it, those of outer joins included.
    fn any(&self, is: &mut dyn FnMut(&Expr) -> bool) -> bool {
        self.conditions.iter().any(&mut *is) || self.optional.iter().any(|one| one.any(is))
    }
}

/// Where only being true counts, `x in (select …)` is the existence of a row that equals `x`,
/// which an index finds, and what says `false` for NULL says nothing.
pub(super) fn positive(expr: &Expr) -> Expr {
    let nothing =
        |expr: &Expr| matches!(expr, Expr::Const(Constant(None | Some(Datum::Bool(false)))));
    match expr {
        Expr::And(_) | Expr::Or(_) | Expr::IsBool(_, Some(true), false) => expr.map(&mut positive),
        // The guards are not looked at for their truth.
        Expr::Body(args, strict, body) => {
            Expr::Body(args.clone(), *strict, Box::new(positive(body)))
        }
        Expr::Coalesce(all) => match all.as_slice() {
            [one, rest @ ..] if rest.iter().all(nothing) => positive(one),
            _ => expr.clone(),
        },
        // What is behind a condition that raises an error is not looked at.
        Expr::Case(whens, otherwise) if nothing(otherwise) => match whens.as_slice() {
            [(when, then)] => Expr::Case(vec![(positive(when), positive(then))], otherwise.clone()),
            _ => expr.clone(),
        },
        Expr::Select(select) => match &select.result {
            Asked::Any(false, test) => {
                let mut exists = (**select).clone();
                if let Some(last) = exists.from.last_mut() {
                    last.condition.push((**test).clone());
                    exists.result = Asked::Exists;
                }
                Expr::Select(Box::new(exists))
            }
            _ => expr.clone(),
        },
        other => other.clone(),
    }
}
