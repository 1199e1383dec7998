//! Gives sub-selects their tables, the order in which these are looked into and the keys that rows
//! are found by.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::tables::Table;
use super::{index_of, plain};
use crate::datum::Datum;
use crate::policy::expr::select::{Aggregate, Asked, Kind, Place, Select, Source, Step};
use crate::policy::expr::{ArrayFunction, Comparison, Constant, Expr, Function, JsonbFunction};

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
        let tables = select.places().into_iter();
        for place in tables.filter(|place| place.elements.is_none()) {
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
                    let table = place.elements.is_none();
                    let at = self.frames.get(&place.depth).copied();
                    let at = at.filter(|_| table).unwrap_or(usize::MAX);
                    let elements = place.elements.as_ref().map(|of| Box::new(self.look(of)));
                    chain.places.push(Place {
                        at,
                        elements,
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
                if place.elements.is_some() {
                    return 1;
                }
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
            // An array that is a table's waits for the table.
            let waits = |place: &Place| {
                let of = place.elements.as_ref();
                of.is_some_and(|of| missing(of, known, None))
            };
            let best = (0..chain.places.len()).rev().max_by_key(|at| {
                let place = chain.places.get(*at);
                place.map_or((false, 0), |place| (!waits(place), worth(place)))
            });
            let step = if let Some(at) = best {
                let mut place = chain.places.remove(at);
                let mut rest = Vec::new();
                for one in std::mem::take(&mut chain.conditions) {
                    match place.equality(&one) {
                        Some((column, key))
                            if place.elements.is_none()
                                && !missing(key, known, None)
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

    /// Whether something holds for a condition of it, or an array whose elements it goes through,
    /// those of outer joins included.
    fn any(&self, is: &mut dyn FnMut(&Expr) -> bool) -> bool {
        let mut arrays = self
            .places
            .iter()
            .filter_map(|place| place.elements.as_deref());
        arrays.any(&mut *is)
            || self.conditions.iter().any(&mut *is)
            || self.optional.iter().any(|one| one.any(is))
    }
}

/// Where only being true counts, `x in (select …)` is the existence of a row that equals `x`,
/// which an index finds, and what says `false` for NULL says nothing.
pub(super) fn positive(expr: &Expr) -> Expr {
    let nothing =
        |expr: &Expr| matches!(expr, Expr::Const(Constant(None | Some(Datum::Bool(false)))));
    match expr {
        Expr::And(_) | Expr::Or(_) | Expr::IsBool(_, Some(true), false) => expr.map(&mut positive),
        // What a comparison that has to be true evaluates needs no guard.
        Expr::Body(args, false, body) if args.iter().all(|arg| compares(body, arg)) => {
            positive(body)
        }
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
                let any = any_element(&exists).or_else(|| any_cast(select, test));
                any.unwrap_or_else(|| Expr::Select(Box::new(exists)))
            }
            Asked::Exists => any_element(select).unwrap_or_else(|| expr.clone()),
            _ => expr.clone(),
        },
        Expr::AnyOf(Comparison::Eq, false, two) => {
            any_row(&two.0, &two.1).unwrap_or_else(|| expr.clone())
        }
        // Whoever has the key, or is it, is found by it.
        Expr::Call(Function::Has, two) => match two.as_slice() {
            [document, key] => {
                let names = Function::Jsonb(JsonbFunction::Names);
                let names = Expr::Call(names, vec![document.clone()]);
                Expr::AnyOf(Comparison::Eq, false, Box::new((key.clone(), names)))
            }
            _ => expr.clone(),
        },
        other => other.clone(),
    }
}

/// Whether sub-selects are true only where a row's value was compared with that.
fn compares(expr: &Expr, left: &Expr) -> bool {
    match expr {
        Expr::Or(all) => all.iter().all(|one| compares(one, left)),
        Expr::Select(select) => match &select.result {
            Asked::Any(false, test) => {
                matches!(&**test, Expr::Compare(_, two) if two.0 == *left)
            }
            _ => false,
        },
        _ => false,
    }
}

/// An expression, or what is first in a COALESCE whose others have no elements.
fn first_of(array: &Expr) -> Option<&Expr> {
    let empty = |one: &Expr| match one {
        Expr::Const(Constant(Some(Datum::Array(array)))) => array.elements().is_empty(),
        other => *other == Expr::NULL,
    };
    match array {
        Expr::Coalesce(all) => {
            let (one, rest) = all.split_first()?;
            rest.iter().all(empty).then_some(one)
        }
        other => Some(other),
    }
}

/// Equality with an element of an array of rows, as the existence of a row that equals it.
fn any_row(left: &Expr, array: &Expr) -> Option<Expr> {
    match array {
        Expr::Body(args, strict, body) => {
            let any = any_row(left, body)?;
            Some(Expr::Body(args.clone(), *strict, Box::new(any)))
        }
        Expr::Coalesce(_) => any_row(left, first_of(array)?),
        Expr::Call(Function::Array(ArrayFunction::Union(_)), parts) => {
            let any = parts.iter().map(|part| any_row(left, part));
            let any = Expr::Or(any.collect::<Option<_>>()?);
            // All of it is evaluated, whichever part has it.
            let mut guards = Vec::new();
            parts.iter().for_each(|part| outside(part, &mut guards));
            Some(Expr::Body(guards, false, Box::new(any)))
        }
        Expr::Select(select) => {
            let Asked::Folded(depth, all, value) = &select.result else {
                return None;
            };
            let [
                Aggregate {
                    kind: Kind::Array,
                    of: Some(of),
                    filter,
                    ..
                },
            ] = all.as_slice()
            else {
                return None;
            };
            // A variable's sub-select stands where others of its depth may be open: in it `left` would read
            // other rows than outside.
            let own = select.depths();
            if left.reads_field(&|depth| own.contains(&depth)) {
                return None;
            }
            // An array is made of all rows, and an error of any of them is raised.
            if select.children().into_iter().any(Expr::may_raise_by_row) {
                return None;
            }
            let mut from = select.from.clone();
            let last = from
                .last_mut()
                .filter(|_| first_of(value) == Some(&Expr::Field(*depth, 0)))?;
            last.condition.extend(filter.clone());
            let two = Box::new((left.clone(), of.clone()));
            last.condition.push(Expr::Compare(Comparison::Eq, two));
            Some(positive(&Expr::Select(Box::new(Select {
                from,
                result: Asked::Exists,
            }))))
        }
        _ => None,
    }
}

/// What of a sub-select may raise an error, and does not depend on its rows.
fn outside(expr: &Expr, guards: &mut Vec<Expr>) {
    if expr.reads_inner() {
        let mut inner = expr.children().into_iter();
        inner.by_ref().for_each(|one| outside(one, guards));
    } else if expr.may_raise() && !guards.contains(expr) {
        guards.push(expr.clone());
    }
}

/// Equality with an element of an array that does not depend on the row, each of which is cast before
/// any is compared.
fn any_cast(select: &Select, test: &Expr) -> Option<Expr> {
    let [step] = select.from.as_slice() else {
        return None;
    };
    let (Source::Table(place), true) = (&step.source, step.condition.is_empty()) else {
        return None;
    };
    let mut array = single(place)?.clone();
    let Expr::Compare(Comparison::Eq, two) = test else {
        return None;
    };
    let own = Expr::Field(place.depth, 0);
    if array.reads_row() || two.0.reads_field(&|depth| depth == place.depth) {
        return None;
    }
    let (mut casts, mut rest) = (Vec::new(), &two.1);
    while *rest != own {
        let Expr::Call(function, args) = rest else {
            return None;
        };
        let [inner] = args.as_slice() else {
            return None;
        };
        casts.push(function.clone());
        rest = inner;
    }
    for function in casts.into_iter().rev() {
        let each = Function::Array(ArrayFunction::Each(Box::new(function)));
        array = Expr::Call(each, vec![array]);
    }
    Some(Expr::AnyOf(
        Comparison::Eq,
        false,
        Box::new((two.0.clone(), array)),
    ))
}

/// The array whose elements are gone through, where these are no rows.
fn single(place: &Place) -> Option<&Expr> {
    place.elements.as_deref().filter(|_| !place.rows)
}

/// The existence of an element of an array that equals something.
fn any_element(select: &Select) -> Option<Expr> {
    let [step] = select.from.as_slice() else {
        return None;
    };
    let (Source::Table(place), [condition]) = (&step.source, step.condition.as_slice()) else {
        return None;
    };
    let of = single(place)?;
    let (_, key) = place.equality(condition)?;
    let two = Box::new((key.clone(), of.clone()));
    Some(Expr::AnyOf(Comparison::Eq, false, two))
}
