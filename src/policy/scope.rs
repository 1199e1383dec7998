//! What the policies of a table are compiled against for one role: the functions that may take their
//! place, the tables that they may look into, and what of those each role may see.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::ask::parts::stands_alone;
use super::catalog::{self, Catalog, Column, Policy, Rights, Table};
use super::closure::Closure;
use super::compile::{self, Function, Raising, Reference, Scope, Setting, compile};
use super::expr::Expr;
use crate::datum::Trouble;
use crate::pg::Oid;

/// Why a policy is asked that was found to be answered otherwise.
const REFUTED: &str = "check failed: its compiled form answered otherwise than PostgreSQL";

/// What became of a policy.
pub(super) struct Done<'p> {
    pub(super) policy: &'p Policy,
    /// What it says; undecided where that is not compiled.
    pub(super) expr: Expr,
    /// Why PostgreSQL has to be asked about it, or about parts of it.
    pub(super) refused: Vec<String>,
    /// Whether it, or a part of it, makes statements fail whatever else decides, as far as can be
    /// told: then everything is to be asked.
    pub(super) decides_all: bool,
    /// What PostgreSQL raises for every query of the role because of it.
    pub(super) denied: Option<String>,
    /// What it raises where it comes to that, as far as that is known beforehand.
    pub(super) raising: BTreeSet<Raising>,
}

/// The policies that say something about what may be read, each compiled as far as it can be.
pub(super) fn compiled<'p>(
    catalog: &Catalog,
    table: &Table,
    policies: &[&'p Policy],
    role: &str,
) -> Vec<Done<'p>> {
    let scope = scope(catalog, table, role);
    // With only a WITH CHECK it says nothing about what may be read.
    let saying = policies.iter().filter(|policy| policy.tree.is_some());
    saying
        .map(|policy| {
            let done = done(catalog, table, policy, &scope);
            let mut done = done;
            for reason in &mut done.refused {
                *reason = with_names(catalog, reason);
            }
            if done.denied.is_none() && catalog.refutes(table.oid, role, &policy.name) {
                return refuted(catalog, done);
            }
            done
        })
        .collect()
}

/// A reason with the names of types that somebody made in place of their numbers.
fn with_names(catalog: &Catalog, reason: &str) -> String {
    let Some((before, rest)) = reason.split_once("type ") else {
        return reason.to_owned();
    };
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let (number, after) = rest.split_at(end.unwrap_or(rest.len()));
    let known = number.parse().ok().map(Oid);
    let known = known.and_then(|oid| catalog.types.get(&oid));
    let name = known.map_or(number, |known| &known.name);
    format!("{before}type {name}{}", with_names(catalog, after))
}

/// A policy whose compiled form is known to be wrong.
fn refuted<'p>(catalog: &Catalog, done: Done<'p>) -> Done<'p> {
    Done {
        expr: Expr::Fail(Trouble::Undecided),
        refused: vec![REFUTED.to_owned()],
        decides_all: done.decides_all || !stands_alone(catalog, done.policy),
        ..done
    }
}

fn done<'p>(catalog: &Catalog, table: &Table, policy: &'p Policy, scope: &Scope) -> Done<'p> {
    let refused = |expr: Expr, refused: Vec<String>, decides_all: bool| Done {
        policy,
        expr,
        denied: None,
        raising: BTreeSet::new(),
        decides_all: decides_all || !refused.is_empty() && !stands_alone(catalog, policy),
        refused,
    };
    let opaque = || Expr::Fail(Trouble::Undecided);
    let tree = policy.tree.as_deref().unwrap_or_default();
    if catalog.request_settings {
        let reason = "a setting of the database or a role begins with \"request.\"".to_owned();
        return refused(opaque(), vec![reason], false);
    }
    let noted = dependencies(table, policy);
    match compile(tree, scope) {
        Ok(compiled) if Reference::noted(&compiled.references, table.oid) == noted => Done {
            raising: compiled.raising,
            ..refused(compiled.expr, Vec::new(), false)
        },
        Ok(_) => {
            let reason = "what its tree names is not what PostgreSQL noted that it depends on";
            refused(opaque(), vec![reason.to_owned()], false)
        }
        Err(refusal) if refusal.denied => Done {
            denied: Some(refusal.reason.clone()),
            ..refused(opaque(), vec![refusal.reason], true)
        },
        Err(refusal) if refusal.always_fails => refused(opaque(), vec![refusal.reason], true),
        Err(refusal) => match compile::in_parts(tree, scope) {
            Some(parts) if Reference::noted(&parts.references, table.oid).is_subset(&noted) => {
                refused(parts.expr, parts.refused, false)
            }
            Some(_) => refused(opaque(), vec![refusal.reason], false),
            None => refused(opaque(), vec![refusal.reason], true),
        },
    }
}

/// What the policies of a table may be compiled against for a role.
fn scope(catalog: &Catalog, table: &Table, role: &str) -> Scope {
    let context = catalog.context(role);
    let closure = Closure::of(catalog, table, &context);
    let looked = closure.tables.iter().filter_map(|(role, oid)| {
        let table = catalog.tables.get(oid)?;
        let name = &catalog.role(*role)?.name;
        Some(((*role, *oid), looked(catalog, table, name)))
    });
    let mut functions: HashMap<Oid, Function> = HashMap::new();
    for (oid, context) in &closure.functions {
        let Some(known) = catalog.functions.get(oid) else {
            continue;
        };
        let function = functions
            .entry(*oid)
            .or_insert_with(|| function(catalog, known));
        if let Some(body) = known.does(context) {
            function.bodies.insert(context.clone(), body.cloned());
        }
    }
    let memberships = catalog.roles.values().flat_map(|role| {
        let of = role.memberships.iter();
        of.map(|(other, usage, member)| ((role.oid, other.as_str().into()), (*usage, *member)))
    });
    let unset = catalog.unset.iter();
    // What only requests set is known already.
    let unset = unset.filter(|name| Setting::of(name).is_none());
    Scope {
        major: catalog.major,
        columns: table.columns.iter().map(column).collect(),
        types: catalog.native.clone(),
        functions,
        tables: looked.collect(),
        context,
        settings: unset.map(|name| (name.clone(), Setting::Unset)).collect(),
        memberships: memberships.collect(),
        clock: Arc::clone(&catalog.clock),
    }
}

fn function(catalog: &Catalog, known: &catalog::Function) -> Function {
    let barred = catalog
        .roles
        .values()
        .filter(|role| !known.execute.contains(&role.name));
    let owner = catalog
        .role(known.owner)
        .map(|owner| Arc::from(owner.name.as_str()));
    Function {
        name: known.name.clone(),
        arguments: known.arguments.clone(),
        result: known.returns,
        row: known.row.clone(),
        set: known.set,
        strict: known.strict,
        defaults: known.defaults.as_deref().map(Arc::from),
        definer: known
            .definer
            .then(|| (known.owner, owner.unwrap_or_default())),
        configured: known.config.is_some(),
        path: known.path().map(Arc::from),
        row_security: known
            .row_security()
            .map(|set| ["on", "true", "yes", "1"].contains(&set.to_lowercase().as_str())),
        barred: barred.map(|role| role.oid).collect(),
        bodies: HashMap::new(),
    }
}

fn column(column: &Column) -> (i16, compile::Column) {
    let known = compile::Column {
        name: column.name.as_str().into(),
        type_oid: column.type_oid,
        type_modifier: column.modifier,
        collation: column.collation,
    };
    (column.number, known)
}

/// A table that sub-selects look into, as the role has it.
fn looked(catalog: &Catalog, table: &Table, role: &str) -> Arc<compile::Looked> {
    let rights = table.rights.iter().find(|rights| rights.role == role);
    let known = rights.filter(|_| catalog.roles.contains_key(role));
    let secured = known.is_some_and(|rights| security_applies(catalog, table, rights));
    let policies = known.filter(|_| secured).map(|rights| {
        // Without a permissive one PostgreSQL does not look at the others.
        let permits = |policy: &Policy| policy.permissive && policy.tree.is_some();
        let permitting = applicable(table, rights).any(permits);
        let own = |policy: &Policy| {
            Some(compile::OwnPolicy {
                name: policy.name.clone(),
                permissive: policy.permissive,
                tree: policy.tree.clone()?,
                depends: dependencies(table, policy),
            })
        };
        let policies = applicable(table, rights).filter(|_| permitting);
        policies.filter_map(own).collect()
    });
    let refused = table
        .unfollowed
        .as_ref()
        .map(|why| format!("{} {why}", table.name));
    let unknown = || format!("role {role:?} does not exist");
    // Old streams do not carry what is computed.
    let carried = table
        .columns
        .iter()
        .filter(|column| column.generated.is_none());
    Arc::new(compile::Looked {
        readable: known.map(|rights| rights.columns.iter().copied().collect()),
        name: table.name.clone(),
        columns: carried.map(column).collect(),
        view: table
            .view
            .as_ref()
            .map(|view| (view.tree.as_str().into(), view.reads_as())),
        refused: refused.or_else(|| known.is_none().then(unknown)),
        policies,
    })
}

/// What PostgreSQL noted that a policy depends on, in the compiler's words. What it was made with
/// (below 16384) is not always noted, and not compared.
fn dependencies(table: &Table, policy: &Policy) -> BTreeSet<Reference> {
    let mut references = BTreeSet::new();
    for (class, object, column) in &policy.depends {
        let user_made = object.0 >= 16384;
        let column = i16::try_from(*column).unwrap_or(i16::MIN);
        let own = *object == table.oid;
        match *class {
            Oid::PG_CLASS if own && column == 0 => {}
            Oid::PG_CLASS if own => {
                references.insert(Reference::Column(column));
            }
            Oid::PG_CLASS => {
                references.insert(Reference::Table(*object));
                if column != 0 {
                    references.insert(Reference::Of(*object, column));
                }
            }
            Oid::PG_PROC if user_made => {
                references.insert(Reference::Function(*object));
            }
            Oid(2617) if user_made => {
                references.insert(Reference::Operator(*object));
            }
            Oid(1247) if user_made => {
                references.insert(Reference::Type(*object));
            }
            Oid(3456) if user_made => {
                references.insert(Reference::Collation(*object));
            }
            _ => {}
        }
    }
    references
}

/// The policies of a table that apply to a role.
pub(super) fn applicable<'t>(
    table: &'t Table,
    rights: &'t Rights,
) -> impl Iterator<Item = &'t Policy> {
    let policies = table.policies.iter();
    policies.filter(|policy| rights.policies.contains(&policy.name))
}

/// Whether row-level security decides for this role.
pub(crate) fn security_applies(catalog: &Catalog, table: &Table, rights: &Rights) -> bool {
    let bypass = catalog
        .roles
        .get(&rights.role)
        .is_some_and(|role| role.bypass);
    table.row_security && !bypass && (!rights.owner || table.force_row_security)
}

/// A function that the role may not execute makes every SELECT fail: nothing is visible.
pub(super) fn unexecutable(catalog: &Catalog, policies: &[&Policy], role: &str) -> Option<String> {
    policies
        .iter()
        .flat_map(|policy| &policy.depends)
        .filter(|(class, _, _)| *class == Oid::PG_PROC)
        .filter_map(|(_, function, _)| catalog.functions.get(function))
        .find(|function| !function.execute.iter().any(|allowed| allowed == role))
        .map(|function| format!("permission denied for function {}", function.name))
}
