//! Ways from a row through the tables that sub-selects join, equality by equality, to a column that
//! must equal something of the principal's.
//!
//! A way takes into account some of what must be true, so it finds at least those principals whom
//! the row may concern.

use std::collections::BTreeSet;

use super::tables::Table;
use crate::datum::Datum;
use crate::policy::expr::select::{Asked, Place, Select, Source, Step};
use crate::policy::expr::{Comparison, Constant, Expr, Inputs};

/// Where a value that a column must equal comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Known {
    /// The row that is judged, or a constant.
    Expr(Expr),
    /// A column of an earlier table of the way.
    Of(usize, usize),
}

/// A table on the way, and what rows of it are gone through.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Hop {
    pub(super) at: usize,
    pub(super) on: Vec<(usize, Known)>,
}

/// A way to a slot: the column of its last table equals it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path {
    pub(super) hops: Vec<Hop>,
    pub(super) column: usize,
    pub(super) slot: usize,
}

/// What a change of a table's row is looked at by: whether it can matter, and the way from it, which
/// begins with it; `None` where there is none.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) step: Step,
    pub(super) at: usize,
    pub(super) path: Option<Path>,
    /// The columns that more depends on than whether its row is left out for itself.
    pub(super) beyond: BTreeSet<usize>,
}

/// Tables of sub-selects, by depths that are all different, and what must be true of their rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Graph {
    nodes: Vec<(u32, usize)>,
    equal: Vec<(Expr, Expr)>,
    next: u32,
    /// Whether what raises an error counts as well as what is true.
    errors: bool,
}

/// Between the depths that the tables of two sub-selects are given.
const APART: u32 = 1 << 10;

impl Graph {
    /// For changes: what a condition says of whom they concern holds too where it raises an error.
    /// The slots that do so are asked about besides.
    pub(super) fn of_changes() -> Self {
        Self {
            errors: true,
            ..Self::default()
        }
    }

    /// Adds what must be so where an expression is true.
    pub(super) fn demand(&mut self, expr: &Expr) {
        match expr {
            Expr::And(all) => all.iter().for_each(|one| self.demand(one)),
            Expr::IsBool(one, Some(true), false) => self.demand(one),
            Expr::Case(whens, otherwise)
                if matches!(
                    **otherwise,
                    Expr::Const(Constant(None | Some(Datum::Bool(false))))
                ) =>
            {
                if let [(when, then)] = whens.as_slice() {
                    self.demand(when);
                    // Behind an error it is not looked at.
                    if !self.errors {
                        self.demand(then);
                    }
                }
            }
            Expr::Body(args, _, one) if self.passes(args) => self.demand(one),
            // Of no rows a condition on all of them is true, and what aggregates come to may be.
            Expr::Select(select) if matches!(select.result, Asked::Any(true, _)) => {}
            Expr::Select(select) if matches!(select.result, Asked::Folded(..)) => {
                self.outgrown(expr, expr);
            }
            Expr::Select(select) if self.errors && select.result != Asked::Exists => {}
            Expr::Select(select) => {
                let value = self.enter(select);
                if let Some(value) = value {
                    self.demand(&value);
                    let truth = Expr::constant(Datum::Bool(true));
                    self.equal.push((value, truth));
                }
            }
            Expr::Compare(op, two) => {
                self.outgrown(expr, &two.0);
                self.outgrown(expr, &two.1);
                if *op == Comparison::Eq {
                    let two = (self.value(&two.0), self.value(&two.1));
                    self.equal.push(two);
                }
            }
            _ => {}
        }
    }

    /// Adds the rows of an aggregate where the expression around is not true of none.
    fn outgrown(&mut self, around: &Expr, inner: &Expr) {
        let Expr::Select(select) = inner else {
            return;
        };
        if !matches!(select.result, Asked::Folded(..)) {
            return;
        }
        let mut none = (**select).clone();
        none.from = vec![Step {
            source: Source::Optional(Vec::new()),
            condition: vec![Expr::constant(Datum::Bool(false))],
        }];
        let none = Expr::Select(Box::new(none));
        let of_none = if std::ptr::eq(around, inner) {
            none
        } else {
            around.map(&mut |one| if one == inner { &none } else { one }.clone())
        };
        if let Ok(Some(false) | None) = of_none.truth(Inputs::default()) {
            self.enter(select);
        }
    }

    /// What an expression's value is where it has one: a column, where it is that of a sub-select.
    fn value(&mut self, expr: &Expr) -> Expr {
        match expr {
            Expr::Body(args, _, body) if self.passes(args) => self.value(body),
            Expr::Select(select)
                if !self.errors
                    && matches!(select.result, Asked::Scalar(..) | Asked::First(..)) =>
            {
                self.enter(select).unwrap_or_else(|| expr.clone())
            }
            other => other.clone(),
        }
    }

    /// Whether guards do not raise an error, or that does not count.
    fn passes(&self, guards: &[Expr]) -> bool {
        let calm = |guard: &Expr| matches!(guard, Expr::Const(_) | Expr::Slot(_) | Expr::Field(..));
        !self.errors || guards.iter().all(calm)
    }

    /// Adds a sub-select that must find a row; gives the value of that row, where it has one.
    fn enter(&mut self, select: &Select) -> Option<Expr> {
        let select = self.renamed(select);
        self.join(&select.from);
        match select.result {
            Asked::Scalar(_, value) | Asked::First(_, value) => Some(self.value(&value)),
            Asked::Exists | Asked::Any(..) | Asked::Folded(..) => None,
        }
    }

    /// The sub-select with depths that nothing else here has.
    fn renamed(&mut self, select: &Select) -> Select {
        let first = select.depths().into_iter().min();
        let first = first.unwrap_or_default();
        self.next += APART;
        shifted(select, first, self.next.saturating_sub(first))
    }

    /// Adds the tables of an inner join.
    fn join(&mut self, steps: &[Step]) {
        for step in steps {
            if let Source::Table(place) = &step.source
                && place.elements.is_none()
            {
                self.nodes.push((place.depth, place.at));
                for (column, key) in &place.keys {
                    let key = self.value(key);
                    self.equal.push((Expr::Field(place.depth, *column), key));
                }
            }
        }
        for condition in steps.iter().flat_map(|step| &step.condition) {
            self.demand(condition);
        }
    }

    /// The columns of a table and what they must equal.
    fn of(&self, depth: u32) -> impl Iterator<Item = (usize, &Expr)> {
        let both = self.equal.iter().flat_map(|(a, b)| [(a, b), (b, a)]);
        both.filter_map(move |(own, other)| match own {
            Expr::Field(of, column) if *of == depth => Some((*column, other)),
            _ => None,
        })
    }

    fn at(&self, depth: u32) -> Option<usize> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(of, _)| *of == depth).map(|(_, at)| *at)
    }

    fn slot(&self, depth: u32, keyed: &[(usize, Known)]) -> Option<(usize, usize)> {
        self.of(depth).find_map(|(column, key)| match key {
            Expr::Slot(slot) if keyed.iter().all(|(of, _)| *of != column) => Some((column, *slot)),
            _ => None,
        })
    }

    /// What of a table's columns is known from constants, from the row where `row` says so, and
    /// from the tables before.
    fn on(&self, depth: u32, before: &[u32], row: bool) -> Vec<(usize, Known)> {
        let mut on: Vec<(usize, Known)> = Vec::new();
        for (column, key) in self.of(depth) {
            let known = match key {
                Expr::Const(_) => Some(Known::Expr(key.clone())),
                Expr::Part(_) if row => Some(Known::Expr(key.clone())),
                Expr::Field(other, of) => {
                    let hop = before.iter().position(|one| one == other);
                    hop.map(|hop| Known::Of(hop, *of))
                }
                _ => None,
            };
            if let Some(known) = known
                && on.iter().all(|(of, _)| *of != column)
            {
                on.push((column, known));
            }
        }
        on
    }

    /// The shortest way from one of some tables to one that has a slot.
    fn way(&self, starts: Vec<u32>, row: bool) -> Option<Path> {
        let mut seen: BTreeSet<u32> = starts.iter().copied().collect();
        let mut ways: Vec<Vec<u32>> = starts.into_iter().map(|one| vec![one]).collect();
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                if let Some(path) = self.path(&way, row) {
                    return Some(path);
                }
                for (other, _) in &self.nodes {
                    let reached = way.last().is_some_and(|last| {
                        let mut on = self.of(*other);
                        on.any(|(_, key)| matches!(key, Expr::Field(of, _) if of == last))
                    });
                    if reached && seen.insert(*other) {
                        let mut way = way.clone();
                        way.push(*other);
                        longer.push(way);
                    }
                }
            }
            ways = longer;
        }
        None
    }

    fn path(&self, way: &[u32], row: bool) -> Option<Path> {
        let mut hops = Vec::with_capacity(way.len());
        for (place, depth) in way.iter().enumerate() {
            // A change's row is what it is.
            let on = if place == 0 && !row {
                Vec::new()
            } else {
                self.on(*depth, way.get(..place)?, row)
            };
            let at = self.at(*depth)?;
            hops.push(Hop { at, on });
        }
        let last = hops.last()?;
        let (column, slot) = self.slot(*way.last()?, &last.on)?;
        Some(Path { hops, column, slot })
    }

    /// From the row that is judged to those who may see it.
    pub(super) fn members(&self) -> Option<Path> {
        let of_row = |(depth, _): &&(u32, usize)| {
            let mut keys = self.of(*depth);
            keys.any(|(_, key)| matches!(key, Expr::Part(_)))
        };
        let depth = |(depth, _): &(u32, usize)| *depth;
        let starts: Vec<u32> = self.nodes.iter().filter(of_row).map(depth).collect();
        self.way(starts, true).or_else(|| {
            let slots = self.nodes.iter().map(depth);
            slots.into_iter().find_map(|one| self.path(&[one], true))
        })
    }

    /// Adds the routes of all sub-selects inside an expression. What is here already is true
    /// wherever that expression matters.
    pub(super) fn routes(&self, expr: &Expr, found: &mut Vec<Route>) {
        if let Expr::Select(select) = expr {
            let mut graph = self.clone();
            let select = graph.renamed(select);
            graph.join(&select.from);
            graph.changes(&select, &select.from, found);
            for one in select.asks() {
                graph.routes(one, found);
            }
        } else {
            for inner in expr.children() {
                self.routes(inner, found);
            }
        }
    }

    fn changes(&self, select: &Select, steps: &[Step], found: &mut Vec<Route>) {
        for step in steps {
            match &step.source {
                Source::Table(place) if place.elements.is_some() => {
                    if let Some(of) = &place.elements {
                        self.routes(of, found);
                    }
                }
                Source::Table(place) => {
                    found.push(Route {
                        step: step.clone(),
                        at: place.at,
                        path: self.way(vec![place.depth], false),
                        beyond: beyond(select, step, place),
                    });
                    for (_, key) in &place.keys {
                        self.routes(key, found);
                    }
                }
                Source::Optional(steps) => {
                    // What is joined matters only where it is found.
                    let mut graph = self.clone();
                    graph.join(steps);
                    graph.changes(select, steps, found);
                }
            }
            for one in &step.condition {
                self.routes(one, found);
            }
        }
    }
}

impl Path {
    /// Notes what rows are to be found by.
    pub(super) fn index(&self, tables: &mut [Table], first: bool) {
        for (place, hop) in self.hops.iter().enumerate() {
            if place == 0 && !first {
                continue;
            }
            let Some(table) = tables.get_mut(hop.at) else {
                continue;
            };
            let on = || hop.on.iter().map(|(column, _)| *column);
            table.index(on());
            if place + 1 == self.hops.len() {
                table.index(on().chain([self.column]));
            }
        }
    }
}

/// The columns of a table in a sub-select that it reads elsewhere than in conditions on its row alone.
fn beyond(select: &Select, step: &Step, place: &Place) -> BTreeSet<usize> {
    fn read(expr: &Expr, depth: u32, found: &mut BTreeSet<usize>) {
        if let Expr::Field(of, column) = expr
            && *of == depth
        {
            found.insert(*column);
        }
        for inner in expr.children() {
            read(inner, depth, found);
        }
    }
    let keyed = place.keys.iter();
    let keyed = keyed.filter(|(_, key)| !matches!(key, Expr::Const(_)));
    let mut found: BTreeSet<usize> = keyed.map(|(column, _)| *column).collect();
    let own = step.condition.iter();
    let own: Vec<&Expr> = own.filter(|one| one.needs_only(place.depth)).collect();
    for one in select.children() {
        if !own.iter().any(|own| std::ptr::eq(*own, one)) {
            read(one, place.depth, &mut found);
        }
    }
    found
}

/// The sub-select with other depths, its own and those inside.
fn shifted(select: &Select, first: u32, by: u32) -> Select {
    fn expr(one: &Expr, first: u32, by: u32) -> Expr {
        match one {
            Expr::Field(depth, column) if *depth >= first => Expr::Field(depth + by, *column),
            Expr::Select(select) => Expr::Select(Box::new(shifted(select, first, by))),
            Expr::Recursive(recursion) => {
                let mut shifted = recursion.map(|inner| expr(inner, first, by));
                if recursion.depth >= first {
                    shifted.depth += by;
                }
                Expr::Recursive(Box::new(shifted))
            }
            other => other.map(&mut |inner| expr(inner, first, by)),
        }
    }
    fn step(one: &mut Step, by: u32) {
        match &mut one.source {
            Source::Table(place) => place.depth += by,
            Source::Optional(steps) => steps.iter_mut().for_each(|one| step(one, by)),
        }
    }
    let mut shifted = select.map(&mut |inner| expr(inner, first, by));
    shifted.from.iter_mut().for_each(|one| step(one, by));
    if let Asked::Folded(depth, ..) = &mut shifted.result {
        *depth += by;
    }
    shifted
}
