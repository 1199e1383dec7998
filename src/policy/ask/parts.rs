//! Which of a table's policies have to be asked about a row: those that are not decided natively, and
//! of which the answer depends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::image::{self, Asked};
use crate::auth::Principal;
use crate::change::{Relation, Row};
use crate::datum::{Datum, Trouble};
use crate::lookup::Lookups;
use crate::pg::Oid;
use crate::policy::catalog::{Catalog, Column, Policy, Table};
use crate::policy::expr::Expr;
use crate::policy::predicate::{Bound, Predicate, Verdict};
use crate::policy::scope::Done;

/// Queries that are kept for a table and role; where there would be more all policies are asked.
const KEPT: usize = 64;

/// The policies of a table, and of those that it is a partition of, each by itself.
#[derive(Debug)]
pub struct Parts {
    tables: Vec<Judged>,
    kept: Mutex<HashMap<u64, Partial>>,
    /// The policies with their columns found in the newest description of the table, in order.
    bound: Mutex<Option<Fit>>,
}

/// The policies as they are in rows of one description of a table, with its number and version.
type Fit = (Oid, u64, Arc<[Bound]>);

/// A question about some of the policies.
#[derive(Debug, Clone)]
pub struct Partial {
    /// The query, as [`image::query`] makes it.
    pub query: Arc<str>,
    /// The columns that the stream has to carry for it.
    pub reads: Arc<[String]>,
}

#[derive(Debug)]
pub(in crate::policy) struct Judged {
    pub(in crate::policy) table: Arc<Table>,
    /// Whether no row-level security applies, so that rules alone decide.
    pub(in crate::policy) open: bool,
    pub(in crate::policy) policies: Vec<Part>,
}

/// One policy by itself.
#[derive(Debug)]
pub(in crate::policy) struct Part {
    pub(in crate::policy) policy: Policy,
    pub(in crate::policy) predicate: Arc<Predicate>,
}

impl Judged {
    pub(in crate::policy) fn new(table: &Arc<Table>, open: bool, done: &[Done<'_>]) -> Self {
        let part = |one: &Done<'_>| Part {
            policy: one.policy.clone(),
            predicate: Arc::new(Predicate::new(vec![one.expr.clone()], Vec::new())),
        };
        Self {
            table: Arc::clone(table),
            open,
            policies: done.iter().map(part).collect(),
        }
    }
}

/// Policies as one predicate, undecided where something of them is not compiled.
pub(in crate::policy) fn combined(done: &[Done<'_>], open: bool) -> Predicate {
    if done.iter().any(|one| one.decides_all) {
        return Predicate::new(vec![Expr::Fail(Trouble::Undecided)], Vec::new());
    }
    let asked = done.iter().any(|one| !one.refused.is_empty());
    let of = |permissive: bool| {
        let policies = done
            .iter()
            .filter(move |one| one.policy.permissive == permissive);
        policies.map(move |one| match asked {
            // Here NULL hides as false does, and false decides where something else does not.
            true => Expr::IsBool(Box::new(one.expr.clone()), Some(true), false),
            false => one.expr.clone(),
        })
    };
    let always = open.then(|| Expr::constant(Datum::Bool(true)));
    Predicate::new(of(true).chain(always).collect(), of(false).collect())
}

impl Parts {
    /// Puts them together; `None` where asking for all of them is as good.
    pub(in crate::policy) fn new(tables: Vec<Judged>) -> Option<Self> {
        let policies: usize = tables.iter().map(|table| table.policies.len()).sum();
        (policies > 1 && policies <= 64).then(|| Self {
            tables,
            kept: Mutex::default(),
            bound: Mutex::default(),
        })
    }

    /// The policies as they are in rows of a description; `None` where one does not fit.
    fn bound(&self, relation: &Relation) -> Option<Arc<[Bound]>> {
        let mut known = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((oid, version, bound)) = &*known
            && (*oid, *version) == (relation.oid, relation.version)
        {
            return Some(Arc::clone(bound));
        }
        let policies = self.tables.iter().flat_map(|table| &table.policies);
        let bound = policies.map(|part| part.predicate.bind(relation));
        let bound: Arc<[Bound]> = bound.collect::<Option<_>>()?;
        *known = Some((relation.oid, relation.version, Arc::clone(&bound)));
        Some(bound)
    }

    /// What has to be asked about a row that is not decided natively; `None` for everything.
    #[must_use]
    pub fn of(
        &self,
        (relation, row): (&Relation, &Row),
        principal: &Principal,
        lookups: &Lookups,
    ) -> Option<Partial> {
        let (mut open, mut bit) = (0_u64, 1_u64);
        let all = self.bound(relation)?;
        let mut all = all.iter();
        for table in &self.tables {
            let (mut permitted, mut asked) = (table.open, 0);
            for part in &table.policies {
                let bound = all.next()?;
                let verdict = bound
                    .read(row, lookups)
                    .judge(&part.predicate.project(principal));
                match (verdict, part.policy.permissive) {
                    (Verdict::True, true) => permitted = true,
                    (Verdict::Undecided, true) => asked |= bit,
                    (Verdict::Undecided, false) => open |= bit,
                    (_, true) | (Verdict::True, false) => {}
                    // It hides the row, or raises an error, whatever the others say.
                    (Verdict::False | Verdict::Null | Verdict::Error, false) => return None,
                }
                bit = bit.wrapping_shl(1);
            }
            if !permitted {
                // It would have been hidden.
                if asked == 0 {
                    return None;
                }
                open |= asked;
            }
        }
        if open == 0 {
            return None;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&open) {
            return Some(known.clone());
        }
        if kept.len() >= KEPT {
            return None;
        }
        let partial = self.partial(open);
        kept.insert(open, partial.clone());
        Some(partial)
    }

    fn partial(&self, open: u64) -> Partial {
        let (mut questions, mut bit) = (Vec::new(), 1_u64);
        for table in &self.tables {
            let mut asked = Vec::new();
            for part in &table.policies {
                if open & bit != 0 {
                    asked.push(&part.policy);
                }
                bit = bit.wrapping_shl(1);
            }
            if !asked.is_empty() {
                let open = !asked.iter().any(|policy| policy.permissive);
                questions.push(question(&table.table, &asked, open));
            }
        }
        let mut reads: Vec<String> = questions
            .iter()
            .flat_map(image::needs)
            .map(|column| column.name.clone())
            .collect();
        reads.sort();
        reads.dedup();
        Partial {
            query: image::query(&questions).into(),
            reads: reads.into(),
        }
    }
}

/// Policies of a table as they are asked.
pub(in crate::policy) fn question<'a>(
    table: &'a Table,
    policies: &[&Policy],
    open: bool,
) -> Asked<'a> {
    Asked {
        table,
        condition: condition(policies, open),
        reads: columns_read(table, policies),
        whole: policies.iter().any(|policy| reads_whole_row(policy)),
    }
}

/// One policy by itself, as it is asked.
#[must_use]
pub fn asks<'a>(table: &'a Table, policy: &Policy) -> Asked<'a> {
    let mut alone = policy.clone();
    alone.permissive = false;
    question(table, &[&alone], true)
}

/// Whether a policy reads a row as a whole, for which no column dependency stands. That may be one of
/// a table that it looks into.
fn reads_whole_row(policy: &Policy) -> bool {
    let tree = policy.tree.as_ref();
    tree.is_some_and(|tree| tree.contains(":varattno 0 "))
}

/// The columns that the policies read, from what PostgreSQL noted as their dependencies.
pub(in crate::policy) fn columns_read<'a>(
    table: &'a Table,
    policies: &[&Policy],
) -> Vec<&'a Column> {
    let depends = |column: &Column| {
        policies
            .iter()
            .flat_map(|policy| &policy.depends)
            .any(|(class, object, number)| {
                *class == Oid::PG_CLASS
                    && *object == table.oid
                    && *number == i32::from(column.number)
            })
    };
    let whole = policies.iter().any(|policy| reads_whole_row(policy));
    table
        .columns
        .iter()
        .filter(|column| whole || depends(column))
        .collect()
}

/// (all restrictive) and (any permissive), in SQL. Without a permissive policy nothing is visible,
/// unless the table is `open`.
///
/// In the order in which PostgreSQL itself puts them, since it stops at what decides and a policy
/// behind that may raise an error: the restrictive ones by name, then the permissive ones by name
/// backwards (its cache of policies is built front to back).
fn condition(policies: &[&Policy], open: bool) -> String {
    let parts = |permissive: bool| -> Vec<String> {
        policies
            .iter()
            .filter(|policy| policy.permissive == permissive)
            .filter_map(|policy| Some(format!("({})", policy.condition.as_ref()?)))
            .collect()
    };
    let (mut all, mut any) = (parts(false), parts(true));
    any.reverse();
    all.push(match (any.is_empty(), open) {
        (_, true) => "true".to_owned(),
        (true, false) => "false".to_owned(),
        (false, false) => format!("({})", any.join(" or ")),
    });
    format!("({})", all.join(" and "))
}

/// Whether a policy may be left unasked where others decide: nothing in it makes a statement fail
/// whatever the rows. Of tables the role's rights are known; a view reads others' on its own.
pub(in crate::policy) fn stands_alone(catalog: &Catalog, policy: &Policy) -> bool {
    let tree = policy.tree.as_deref().unwrap_or_default();
    tree.split(":relid ").skip(1).all(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        let oid = digits.and_then(|digits| digits.parse().ok()).map(Oid);
        if oid == Some(Oid(0)) {
            return true;
        }
        let table = oid.and_then(|oid| catalog.tables.get(&oid));
        table.is_some_and(|table| {
            let why = table.unfollowed.as_deref().unwrap_or_default();
            table.view.is_none() && !why.contains("view") && why != "is not a table"
        })
    })
}
