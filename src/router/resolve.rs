//! A client's wish held against the catalog: which tables it means, and its filters typed.

use std::collections::HashMap;
use std::sync::Arc;

use super::Refusal;
use super::group::Binding;
use crate::auth::Principal;
use crate::datum::Type;
use crate::pg::{Oid, quote_identifier};
use crate::policy::access::{Access, Rules};
use crate::policy::catalog::{Catalog, Column, Table};
use crate::policy::reader::Literal;
use crate::subscription::matcher::{Test, Unfit};
use crate::subscription::{Condition, Wanted};

/// Texts whose meaning PostgreSQL has told, by type.
#[derive(Debug, Default)]
pub(super) struct Literals(HashMap<(Oid, String), Literal>);

/// Literals kept; past this all are forgotten and asked again.
const MAX_LITERALS: usize = 10_000;

impl Literals {
    pub(super) fn insert(&mut self, of: Oid, text: String, literal: Literal) {
        if self.0.len() >= MAX_LITERALS {
            self.0.clear();
        }
        self.0.insert((of, text), literal);
    }

    fn get(&self, of: Oid, text: &str) -> Option<&Literal> {
        self.0.get(&(of, text.to_owned()))
    }
}

/// A text that PostgreSQL has to read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Unread {
    pub(super) of: Oid,
    /// The type as SQL.
    pub(super) type_sql: String,
    pub(super) text: String,
}

/// Why the wishes of a channel are not in force yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// The catalog was read without this role.
    Role,
    /// These have to be read by PostgreSQL first.
    Literals(Vec<Unread>),
}

/// The wishes of a channel, as far as they can be put in force.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// The bindings by table.
    pub(super) tables: Vec<(Oid, Vec<Binding>)>,
    /// The wishes that cannot be, in the client's order.
    pub(super) refusals: Vec<Refusal>,
    /// What the client should know.
    pub(super) notices: Vec<String>,
}

/// What the relay's operator decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rulebook {
    pub(super) require_rls: bool,
    /// Whether deletes that cannot be judged go out with the key.
    pub(super) unjudged_deletes: bool,
}

/// Resolves the wishes of one channel. `access` gives what a role may see of a table.
pub(super) fn resolve(
    catalog: &Catalog,
    literals: &Literals,
    rulebook: Rulebook,
    principal: &Principal,
    wanted: &[Wanted],
    mut access: impl FnMut(&Arc<Table>) -> Arc<Access>,
) -> Result<Resolved, Unresolved> {
    if wanted.is_empty() {
        return Ok(Resolved::default());
    }
    if !catalog.roles.contains_key(&*principal.role) {
        return Err(Unresolved::Role);
    }
    let mut resolved = Resolved::default();
    let mut unread = Vec::new();
    for wish in wanted {
        let bound = tables(catalog, rulebook, wish, &mut access).and_then(|tables| {
            let bind = |(table, access): (Arc<Table>, Arc<Access>)| {
                let filter = filter(catalog, literals, wish, &table, &access, &mut unread)?;
                Ok((table, access, filter))
            };
            tables.into_iter().map(bind).collect::<Result<Vec<_>, _>>()
        });
        let bound = match bound {
            Ok(bound) => bound,
            Err(refusal) => {
                resolved.refusals.push(refusal);
                continue;
            }
        };
        for (table, access, filter) in bound {
            if wish.events.deletes() && catalog.deletes {
                resolved
                    .notices
                    .extend(unjudged_delete(rulebook, wish, &table, &access));
            }
            let binding = Binding {
                id: wish.id,
                events: wish.events,
                filter,
            };
            match resolved
                .tables
                .iter_mut()
                .find(|(oid, _)| *oid == table.oid)
            {
                Some((_, bindings)) => bindings.push(binding),
                None => resolved.tables.push((table.oid, vec![binding])),
            }
        }
    }
    resolved.notices.sort();
    resolved.notices.dedup();
    if unread.is_empty() {
        Ok(resolved)
    } else {
        Err(Unresolved::Literals(unread))
    }
}

type Permitted = Vec<(Arc<Table>, Arc<Access>)>;

fn tables(
    catalog: &Catalog,
    rulebook: Rulebook,
    wish: &Wanted,
    access: &mut impl FnMut(&Arc<Table>) -> Arc<Access>,
) -> Result<Permitted, Refusal> {
    let named = wish.schema.is_some() && wish.table.is_some();
    let mut tables: Permitted = Vec::new();
    let mut why_not = None;
    for table in catalog.tables.values().filter(|table| {
        table.published
            && wish
                .schema
                .as_ref()
                .is_none_or(|schema| *schema == table.schema)
            && wish.table.as_ref().is_none_or(|name| *name == table.name)
    }) {
        if rulebook.require_rls && !table.row_security {
            why_not = Some(format!(
                "table {}.{} has no row-level security, which this relay requires",
                table.schema, table.name
            ));
            continue;
        }
        let access = access(table);
        match &access.rules {
            Rules::Nothing(reason) => why_not = Some(reason.clone()),
            Rules::Everything | Rules::Judged { .. } => tables.push((Arc::clone(table), access)),
        }
    }
    if !tables.is_empty() {
        tables.sort_by_key(|(table, _)| table.oid);
        return Ok(tables);
    }
    Err(match why_not {
        Some(reason) if named => refused(
            wish,
            &format!("ERROR 42501 (insufficient_privilege) {reason}"),
        ),
        _ => refused(
            wish,
            "Please check Realtime is enabled for the given connect parameters",
        ),
    })
}

fn filter(
    catalog: &Catalog,
    literals: &Literals,
    wish: &Wanted,
    table: &Table,
    access: &Access,
    unread: &mut Vec<Unread>,
) -> Result<Arc<[Test]>, Refusal> {
    let exception = |text: &str| refused(wish, &format!("ERROR P0001 (raise_exception) {text}"));
    wish.filter
        .iter()
        .filter_map(|condition| {
            // A column that the role may not read is as unknown to it as one that is not there.
            let column = table
                .column(&condition.column)
                .filter(|column| access.may_read(&column.name) && table.publishes(&column.name));
            let Some(column) = column else {
                return Some(Err(exception(&format!(
                    "invalid column for filter {}",
                    condition.column
                ))));
            };
            test(catalog, literals, condition, column, unread)
                .map_err(|text| exception(&text))
                .transpose()
        })
        .collect()
}

/// `None` where PostgreSQL has to read a value first.
fn test(
    catalog: &Catalog,
    literals: &Literals,
    condition: &Condition,
    column: &Column,
    unread: &mut Vec<Unread>,
) -> Result<Option<Test>, String> {
    let type_name = catalog
        .types
        .get(&column.type_oid)
        .map_or("unknown", |ty| ty.name.as_str());
    let unsupported = || Unfit::Operator {
        operator: condition.operator.as_str(),
        column: condition.column.clone(),
        type_name: type_name.to_owned(),
    };
    let of = Type::of(column.type_oid, column.collation, &catalog.native)
        .ok_or_else(|| unsupported().to_string())?;
    let base = catalog
        .base_type(column.type_oid)
        .ok_or_else(|| unsupported().to_string())?;
    let mut values = Vec::with_capacity(condition.values.len());
    let mut complete = true;
    for text in &condition.values {
        let Some(text) = text else {
            values.push(None);
            continue;
        };
        if Test::canonical(&of, text) {
            values.push(Some(text.clone()));
            continue;
        }
        match literals.get(base.oid, text) {
            Some(Literal::Value(value)) => values.push(Some(value.clone())),
            Some(Literal::Invalid(reason)) => return Err(reason.clone()),
            None => {
                complete = false;
                unread.push(Unread {
                    of: base.oid,
                    type_sql: format!(
                        "{}.{}",
                        quote_identifier(&base.schema),
                        quote_identifier(&base.name)
                    ),
                    text: text.clone(),
                });
            }
        }
    }
    if !complete {
        // Whatever the value turns out to be, the operator must fit.
        return Test::new(condition, of, type_name, &[])
            .map(|_| None)
            .map_err(|e| e.to_string());
    }
    Test::new(condition, of, type_name, &values)
        .map(Some)
        .map_err(|unfit| unfit.to_string())
}

/// What to say where deletes will not come because old rows do not carry what decides.
fn unjudged_delete(
    rulebook: Rulebook,
    wish: &Wanted,
    table: &Table,
    access: &Access,
) -> Option<String> {
    let policies = access.reads.iter().map(String::as_str);
    // With the key sent regardless only a filter can stand in the way.
    let needed = policies.filter(|_| !rulebook.unjudged_deletes).chain(
        wish.filter
            .iter()
            .map(|condition| condition.column.as_str()),
    );
    let mut missing: Vec<&str> = needed
        .filter(|name| {
            table
                .column(name)
                .is_none_or(|column| !table.identity_carries(column))
        })
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return None;
    }
    let cure = match table.leaves {
        // A partition's old rows carry what its own identity names.
        Some(_) => "the same for each of its partitions: alter table … replica identity full",
        None => "",
    };
    Some(format!(
        "DELETE of {schema}.{name} is not delivered: the replica identity does not carry {columns}, \
         which decides who may see the row. To have it delivered: alter table {table_sql} replica \
         identity full{and}{cure}",
        and = if cure.is_empty() { "" } else { ", and " },
        schema = table.schema,
        name = table.name,
        columns = missing.join(", "),
        table_sql = table.sql_name(),
    ))
}

pub(super) fn refused(wish: &Wanted, exception: &str) -> Refusal {
    Refusal {
        binding: wish.id,
        reason: exception.to_owned(),
    }
}
