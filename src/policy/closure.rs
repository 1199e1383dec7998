//! What policies come to: the tables that they look into and the functions that they call, directly
//! or by each other, and as whom.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::body::{Context, FIRST_NORMAL_OBJECT, numbers};
use super::catalog::{Catalog, Function, Table};
use crate::pg::Oid;

/// What the policies of some tables come to.
#[derive(Debug, Default)]
pub(crate) struct Closure {
    /// The tables, by the role that looks into them. Those that it began with are there only where
    /// something looks into them.
    pub(crate) tables: BTreeSet<(Oid, Oid)>,
    /// The functions, by how they run.
    pub(super) functions: BTreeSet<(Oid, Context)>,
    /// Tables that are looked into and that the catalog does not have.
    pub(super) unknown_tables: BTreeSet<Oid>,
    /// Functions that are called and that the catalog does not have.
    pub(super) unknown_functions: BTreeSet<Oid>,
}

/// What is come to, how it runs, and of tables with whose rights: inside views that is their owner.
enum Item {
    Policies(Oid, Context, Oid),
    Looked(Oid, Context, Oid),
    Called(Oid, Context),
}

impl Closure {
    /// Follows the policies of a table in the queries of a role.
    pub(crate) fn of(catalog: &Catalog, table: &Table, context: &Context) -> Self {
        let mut found = Self::default();
        found.follow(catalog, [(table.oid, context.clone())]);
        found
    }

    /// Follows the policies of tables.
    pub(super) fn follow(
        &mut self,
        catalog: &Catalog,
        from: impl IntoIterator<Item = (Oid, Context)>,
    ) {
        let from: Vec<(Oid, Context)> = from.into_iter().collect();
        // Rules count where it begins: of tables that are looked into policies alone do.
        let begun: BTreeSet<Oid> = from.iter().map(|(table, _)| *table).collect();
        let begin = from.into_iter();
        let mut open: Vec<Item> = begin
            .map(|(table, context)| {
                let role = context.role;
                Item::Policies(table, context, role)
            })
            .collect();
        let mut done: BTreeSet<(Oid, Context, Oid)> = BTreeSet::new();
        while let Some(item) = open.pop() {
            match item {
                Item::Looked(oid, context, role) => {
                    if catalog.tables.contains_key(&oid) {
                        self.tables.insert((role, oid));
                        open.push(Item::Policies(oid, context, role));
                    } else {
                        self.unknown_tables.insert(oid);
                    }
                }
                Item::Policies(oid, context, role) => {
                    let Some(table) = catalog.tables.get(&oid) else {
                        continue;
                    };
                    if !done.insert((oid, context.clone(), role)) {
                        continue;
                    }
                    if let Some(view) = &table.view {
                        let role = view.reads_as().unwrap_or(context.role);
                        let (relations, functions) = (view.relations(), view.functions());
                        let looked = |oid| Item::Looked(oid, context.clone(), role);
                        open.extend(relations.into_iter().map(looked));
                        let called = |oid| Item::Called(oid, context.clone());
                        open.extend(functions.into_iter().map(called));
                    }
                    let rules = table.ruled().filter(|_| begun.contains(&oid));
                    for policy in table.policies.iter().chain(rules) {
                        let tree = policy.tree.as_deref().unwrap_or_default();
                        let read =
                            numbers(tree, ":relid ").filter(|oid| *oid >= FIRST_NORMAL_OBJECT);
                        open.extend(read.map(|oid| Item::Looked(Oid(oid), context.clone(), role)));
                        for (class, object, _) in &policy.depends {
                            match *class {
                                Oid::PG_PROC => open.push(Item::Called(*object, context.clone())),
                                Oid::PG_CLASS if *object != oid => {
                                    open.push(Item::Looked(*object, context.clone(), role));
                                }
                                _ => {}
                            }
                        }
                    }
                }
                Item::Called(oid, caller) => {
                    if oid.0 < FIRST_NORMAL_OBJECT {
                        continue;
                    }
                    let Some(function) = catalog.functions.get(&oid) else {
                        self.unknown_functions.insert(oid);
                        continue;
                    };
                    // What a call leaves out is evaluated where it stands.
                    let defaults =
                        numbers(function.defaults.as_deref().unwrap_or_default(), ":funcid ");
                    open.extend(defaults.map(|oid| Item::Called(Oid(oid), caller.clone())));
                    let context = function.within(&caller);
                    if !self.functions.insert((oid, context.clone())) {
                        continue;
                    }
                    if let Some(Ok(body)) = function.does(&context) {
                        let relations = body.relations().into_iter();
                        let looked = |oid| Item::Looked(oid, context.clone(), context.role);
                        open.extend(relations.map(looked));
                        let functions = body.functions().into_iter();
                        open.extend(functions.map(|oid| Item::Called(oid, context.clone())));
                    }
                }
            }
        }
    }
}

/// All that the policies of a table come to, whoever asks: other tables, and functions.
pub(super) fn beyond<'c>(
    catalog: &'c Catalog,
    table: &'c Table,
) -> (Vec<&'c Table>, Vec<&'c Function>) {
    let (mut tables, mut functions) = (BTreeSet::new(), BTreeSet::new());
    let (mut open, mut called): (Vec<&Table>, Vec<Oid>) = (vec![table], Vec::new());
    loop {
        let mut looked: BTreeSet<Oid> = BTreeSet::new();
        if let Some(oid) = called.pop() {
            let function = catalog.functions.get(&oid);
            if let Some(function) = function.filter(|_| functions.insert(oid)) {
                let defaults = function.defaults.as_deref().unwrap_or_default();
                called.extend(numbers(defaults, ":funcid ").map(Oid));
                for body in function.known() {
                    called.extend(body.functions());
                    looked.extend(body.relations());
                }
            }
        } else if let Some(one) = open.pop() {
            if let Some(view) = &one.view {
                called.extend(view.functions());
                looked.extend(view.relations());
            }
            let rules = one.ruled().filter(|_| one.oid == table.oid);
            let saying = one.policies.iter().chain(rules);
            for (class, object, _) in saying.flat_map(|policy| &policy.depends) {
                match *class {
                    Oid::PG_PROC => called.push(*object),
                    Oid::PG_CLASS => {
                        looked.insert(*object);
                    }
                    _ => {}
                }
            }
        } else {
            break;
        }
        for oid in looked {
            if let Some(other) = catalog.tables.get(&oid)
                && oid != table.oid
                && tables.insert(oid)
            {
                open.push(other);
            }
        }
    }
    let tables = tables.iter().filter_map(|oid| catalog.tables.get(oid));
    let functions = functions
        .iter()
        .filter_map(|oid| catalog.functions.get(oid));
    (tables.map(Arc::as_ref).collect(), functions.collect())
}

/// The table and those that it is a partition of.
pub(super) fn partitioned<'a>(
    catalog: &'a Catalog,
    table: &'a Table,
) -> impl Iterator<Item = &'a Table> {
    let ancestors = table.ancestors.iter();
    let ancestors = ancestors.filter_map(|oid| catalog.tables.get(oid));
    std::iter::once(table).chain(ancestors.map(Arc::as_ref))
}

/// The same, and what policies of theirs look into, directly or through functions.
pub(super) fn judged<'a>(
    catalog: &'a Catalog,
    table: &'a Table,
) -> impl Iterator<Item = &'a Table> {
    partitioned(catalog, table)
        .flat_map(|table| std::iter::once(table).chain(beyond(catalog, table).0))
}

/// The functions that policies of a table call, directly or through each other.
pub(crate) fn functions<'a>(catalog: &'a Catalog, table: &'a Table) -> Vec<&'a Function> {
    let all = partitioned(catalog, table).flat_map(|table| beyond(catalog, table).1);
    all.collect()
}
