//! What the policies of a table are compiled against for one role: the functions that may take their
//! place, the tables that they may look into, and what of those each role may see.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::catalog::{self, Catalog, Column, Policy, Rights, Table};
use super::closure::Closure;
use super::compile::{self, Function, Reference, Scope, compile};
use super::predicate::Predicate;
use crate::pg::Oid;

/// The numbers of catalogs, as `pg_depend` names them.
pub(super) const PG_CLASS: u32 = 1259;
pub(super) const PG_PROC: u32 = 1255;

/// Why policies are not compiled.
pub(super) enum Uncompiled {
    /// These have to be asked, by name, and why.
    Asked(Vec<(String, String)>),
    /// PostgreSQL raises an error for every query of the role.
    Denied(String),
}

/// The policies as one predicate, or the names of those that are not compiled and why.
pub(super) fn compiled(
    catalog: &Catalog,
    table: &Table,
    policies: &[&Policy],
    role: &str,
) -> Result<Predicate, Uncompiled> {
    let scope = scope(catalog, table, role);
    let (mut permissive, mut restrictive, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for policy in policies {
        // With only a WITH CHECK it says nothing about what may be read.
        let Some(tree) = &policy.tree else { continue };
        if catalog.request_settings {
            let reason = "a setting of the database or a role begins with \"request.\"".to_owned();
            refused.push((policy.name.clone(), reason));
            continue;
        }
        let expr = match compile(tree, &scope) {
            Ok(compiled) if compiled.references == dependencies(table, policy) => Ok(compiled.expr),
            Ok(_) => Err(
                "what its tree names is not what PostgreSQL noted that it depends on".to_owned(),
            ),
            Err(refusal) if refusal.denied => return Err(Uncompiled::Denied(refusal.reason)),
            Err(refusal) => Err(refusal.reason),
        };
        match expr {
            Ok(expr) if policy.permissive => permissive.push(expr),
            Ok(expr) => restrictive.push(expr),
            Err(reason) => refused.push((policy.name.clone(), reason)),
        }
    }
    if refused.is_empty() {
        Ok(Predicate::new(permissive, restrictive))
    } else {
        Err(Uncompiled::Asked(refused))
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
    Scope {
        major: catalog.major,
        columns: table.columns.iter().map(column).collect(),
        types: catalog.native.clone(),
        functions,
        tables: looked.collect(),
        context,
        settings: HashMap::new(),
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
        set: known.set,
        strict: known.strict,
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
        match class.0 {
            PG_CLASS if own && column == 0 => {}
            PG_CLASS if own => {
                references.insert(Reference::Column(column));
            }
            PG_CLASS => {
                references.insert(Reference::Table(*object));
                if column != 0 {
                    references.insert(Reference::Of(*object, column));
                }
            }
            PG_PROC if user_made => {
                references.insert(Reference::Function(*object));
            }
            2617 if user_made => {
                references.insert(Reference::Operator(*object));
            }
            1247 if user_made => {
                references.insert(Reference::Type(*object));
            }
            3456 if user_made => {
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
pub(super) fn security_applies(catalog: &Catalog, table: &Table, rights: &Rights) -> bool {
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
        .filter(|(class, _, _)| class.0 == PG_PROC)
        .filter_map(|(_, function, _)| catalog.functions.get(function))
        .find(|function| !function.execute.iter().any(|allowed| allowed == role))
        .map(|function| format!("permission denied for function {}", function.name))
}
