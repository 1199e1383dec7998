//! Holds compiled policies against PostgreSQL itself, on rows and claims that are made up and on
//! some that are there. A policy that is answered otherwise is refused: it is asked from then on.
//!
//! All of it happens in one transaction, whose snapshot has both sides look into the same tables,
//! and which is rolled back. What is looked into is copied, as far as it is not large. Only verdicts
//! are compared that are decided natively.

mod cases;

pub mod checker;

pub mod copy;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use self::cases::{Material, rows};
use self::copy::{Copied, copy, sample};
use super::access::{Access, Rules};
use super::ask::Answer;
use super::ask::image;
use super::ask::parts::{asks, combined, question};
use super::ask::sitting::{Sitting, Unanswered};
use super::catalog::{Catalog, Column, Policy, Table};
use super::closure::partitioned;
use super::expr::Expr;
use super::predicate::{Audience, Predicate, Verdict};
use super::scope::{applicable, compiled, security_applies};
use crate::auth::{Claims, Principal};
use crate::change::{self, Relation, ReplicaIdentity, Row};
use crate::datum::Type;
use crate::lookup::Wanted;

/// Rows that are made up.
const MADE: usize = 48;

/// Rows of the table itself.
const SAMPLED: usize = 32;

/// Rows that are tried with claims that are of no use, or of which an error is expected.
const FEW: usize = 6;

/// What a check may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of a table that is looked into; a larger one is not copied.
    pub rows: usize,
    /// How long a statement may take.
    pub statement: Duration,
    /// How long all of it may take.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows: 10_000,
            statement: Duration::from_millis(500),
            whole: Duration::from_secs(2),
        }
    }
}

/// What the check of a policy has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// PostgreSQL says the same.
    Agrees(Tally),
    /// It does not.
    Differs(Tally),
    /// It was not held against PostgreSQL, and why.
    NotChecked(String),
}

/// How much was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows of which something is decided natively.
    pub rows: usize,
    /// Verdicts, each about a row and claims.
    pub verdicts: usize,
}

/// A policy of a table and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The table whose policy it is: for a partition also one that it belongs to.
    pub table: Arc<str>,
    /// The policy's name.
    pub policy: String,
    /// What was found.
    pub found: Found,
    /// As a catalog has it that is told of it.
    pub key: Refuted,
}

/// A policy of a table, as it is compiled for a role.
pub type Refuted = super::catalog::Refuted;

/// Something that is compiled, and the question that it is held against.
struct One {
    /// Empty for all of a table's policies together.
    name: String,
    table: Arc<Table>,
    predicate: Arc<Predicate>,
    query: Arc<str>,
    /// The columns that the question needs.
    needs: Vec<String>,
}

/// What is compiled of a table's policies for a role; nothing where PostgreSQL cannot be asked.
fn compiled_of(catalog: &Catalog, table: &Table, role: &str) -> Vec<One> {
    let access = Access::new(catalog, table, role);
    let Rules::Judged { query: Some(_), .. } = &access.rules else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for judged in partitioned(catalog, table) {
        let known = judged.rights.iter().find(|rights| rights.role == role);
        let (Some(rights), Some(judged)) = (known, catalog.tables.get(&judged.oid)) else {
            continue;
        };
        let open = !security_applies(catalog, judged, rights);
        let policies = applicable(judged, rights).filter(|_| !open);
        let policies: Vec<&Policy> = policies.chain(judged.rules_for(role)).collect();
        let done = compiled(catalog, judged, &policies, role);
        let one = |name: &str, predicate: Predicate, asked: &image::Asked<'_>| One {
            name: name.to_owned(),
            table: Arc::clone(judged),
            predicate: Arc::new(predicate),
            query: image::query(std::slice::from_ref(asked)).into(),
            needs: image::needs(asked)
                .iter()
                .map(|column| column.name.clone())
                .collect(),
        };
        let several = done.len() > 1 || open;
        let first = all.len();
        for one_done in &done {
            let predicate = Predicate::new(vec![one_done.expr.clone()], Vec::new());
            if predicate.is_constant() != Some(Verdict::Undecided) {
                let asked = asks(judged, one_done.policy);
                all.push(one(&one_done.policy.name, predicate, &asked));
            }
        }
        if several && all.len() > first {
            let asked = question(judged, &policies, open);
            all.push(one("", combined(&done, open), &asked));
        }
    }
    all
}

/// Checks what is compiled of a table's policies and rules for a role.
///
/// # Errors
/// [`Unanswered`]; then nothing is known of any of them. After [`Unanswered::Broken`] the client is
/// of no use.
pub async fn check(
    client: &Client,
    catalog: &Catalog,
    (table, role): (&Table, &str),
    limits: Limits,
) -> Result<Vec<Checked>, Unanswered> {
    let all = compiled_of(catalog, table, role);
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let place = (catalog, table, role);
    let mut found = once(client, place, &all, limits).await?;
    let differs = |found: &[Found]| found.iter().any(|one| matches!(one, Found::Differs(_)));
    if differs(&found) {
        // The catalog may be older than the snapshot. What is so again is so.
        let again = once(client, place, &all, limits).await?;
        for (one, again) in found.iter_mut().zip(again) {
            if matches!(one, Found::Differs(_)) {
                *one = again;
            }
        }
    }
    // Where they differ together and each by itself does not, none of them is trusted.
    let together: BTreeSet<_> = all
        .iter()
        .zip(&found)
        .filter(|(one, found)| one.name.is_empty() && matches!(found, Found::Differs(_)))
        .map(|(one, _)| one.table.oid)
        .collect();
    let alone: BTreeSet<_> = all
        .iter()
        .zip(&found)
        .filter(|(one, found)| !one.name.is_empty() && matches!(found, Found::Differs(_)))
        .map(|(one, _)| one.table.oid)
        .collect();
    let each = all.into_iter().zip(found);
    let each = each.filter(|(one, _)| !one.name.is_empty());
    Ok(each
        .map(|(one, found)| Checked {
            found: match found {
                Found::Agrees(tally)
                    if together.contains(&one.table.oid) && !alone.contains(&one.table.oid) =>
                {
                    Found::Differs(tally)
                }
                found => found,
            },
            key: (one.table.oid, role.to_owned(), one.name.clone()),
            table: one.table.sql_name().into(),
            policy: one.name,
        })
        .collect())
}

async fn once(
    client: &Client,
    place: (&Catalog, &Table, &str),
    all: &[One],
    limits: Limits,
) -> Result<Vec<Found>, Unanswered> {
    let deadline = Instant::now() + limits.whole;
    let begin = format!(
        "begin isolation level repeatable read; set local statement_timeout = {}; set local jit = off; \
         set local lock_timeout = '200ms'; set local idle_in_transaction_session_timeout = '30s'",
        limits.statement.as_millis().max(1)
    );
    client.batch_execute(&begin).await?;
    let found = within(client, place, all, (limits, deadline)).await;
    client.batch_execute("rollback").await?;
    found
}

async fn within(
    client: &Client,
    (catalog, table, role): (&Catalog, &Table, &str),
    all: &[One],
    (limits, deadline): (Limits, Instant),
) -> Result<Vec<Found>, Unanswered> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for one in all.iter().flat_map(|one| one.predicate.lookups()) {
        match wanted.iter_mut().find(|known| known.table == one.table) {
            Some(known) => known.merge(one),
            None => wanted.push(one.clone()),
        }
    }
    let copied = copy(client, catalog, &wanted, limits.rows).await?;
    let relation = relation(table);
    let needed = |column: &Column| {
        let name = &column.name;
        all.iter().any(|one| one.needs.contains(name))
    };
    let read: Vec<&str> = table
        .columns
        .iter()
        .filter(|column| needed(column))
        .map(|column| column.name.as_str())
        .collect();
    let mut tried = sample(client, (table, &relation), &read, SAMPLED).await?;
    let mut material = Material::gather(
        catalog,
        &table.columns,
        all.iter().map(|one| &*one.predicate),
        (&relation, &tried),
        &copied.lookups,
    );
    times(client, &mut material).await?;
    let made = made(client, (catalog, table, role), &material, needed).await?;
    tried.extend(made);
    let claims = material.claims(role).into_iter();
    let principals: Vec<Principal> = claims
        .map(|claims| Principal {
            role: role.into(),
            claims: Claims::verified(claims),
            expires_at: None,
        })
        .collect();
    let mut sitting = Sitting::new(client).await?.until(deadline);
    let mut found = Vec::with_capacity(all.len());
    for one in all {
        let held = (&relation, tried.as_slice(), principals.as_slice());
        found.push(match one.compare(&mut sitting, held, &copied).await {
            Ok(found) => found,
            Err(Unanswered::Broken(problem)) => return Err(Unanswered::Broken(problem)),
            Err(problem) => Found::NotChecked(problem.to_string()),
        });
    }
    Ok(found)
}

impl One {
    /// Compares what is decided natively with PostgreSQL's answers.
    async fn compare(
        &self,
        sitting: &mut Sitting<'_>,
        (relation, rows, principals): (&Relation, &[Row], &[Principal]),
        copied: &Copied,
    ) -> Result<Found, Unanswered> {
        if let Some(reason) = copied.lacks(self.predicate.lookups()) {
            return Ok(Found::NotChecked(reason.to_owned()));
        }
        let computed = self.predicate.columns().any(|column| {
            let known = self.table.column(&column.name);
            known.is_some_and(|known| known.generated.is_some())
        });
        if computed {
            return Ok(Found::NotChecked("it reads a computed column".to_owned()));
        }
        let Some(bound) = self.predicate.bind(relation) else {
            return Ok(Found::NotChecked("its columns are others now".to_owned()));
        };
        let projections: Vec<_> = principals
            .iter()
            .map(|one| self.predicate.project(one))
            .collect();
        // For each of the claims the verdict on each row, and whether the audience has them.
        let mut verdicts: Vec<Vec<(Verdict, bool)>> = vec![Vec::new(); principals.len()];
        let looks = !self.predicate.lookups().is_empty();
        for row in rows {
            let facts = bound.read(row, &copied.lookups);
            let audience = facts.audience();
            for (verdicts, projection) in verdicts.iter_mut().zip(&projections) {
                let unindexed = projection.is_undecided() || looks && projection.fails();
                let named = match &audience {
                    Audience::Nobody => false,
                    Audience::Probes(probes) if !unindexed => probes
                        .iter()
                        .any(|probe| projection.has(probe.slot, &probe.datum)),
                    _ => true,
                };
                verdicts.push((facts.judge(projection), named));
            }
        }
        let wanted = |place: usize| {
            let column = relation.columns.get(place);
            column.is_some_and(|column| self.needs.iter().any(|need| **need == *column.name))
        };
        let images: Vec<String> = rows
            .iter()
            .map(|row| image::of(relation, row, wanted))
            .collect();
        let (mut tally, mut differs) = (Tally::default(), false);
        let mut compared = BTreeSet::new();
        // One difference is enough.
        for (number, (principal, verdicts)) in principals.iter().zip(&verdicts).enumerate() {
            let most = if number + 1 == principals.len() {
                FEW
            } else {
                usize::MAX
            };
            let decided = |(_, (verdict, _)): &(usize, &(Verdict, bool))| {
                matches!(verdict, Verdict::True | Verdict::False | Verdict::Null)
            };
            let raising =
                |(_, (verdict, _)): &(usize, &(Verdict, bool))| matches!(verdict, Verdict::Error);
            let places = verdicts.iter().enumerate();
            let decided: Vec<_> = places.clone().filter(decided).take(most).collect();
            let raising: Vec<_> = places.filter(raising).take(FEW).collect();
            for some in [decided, raising] {
                if some.is_empty() || differs {
                    continue;
                }
                let put: Vec<&str> = some
                    .iter()
                    .filter_map(|(at, _)| images.get(*at).map(String::as_str))
                    .collect();
                let who = (&*principal.role, principal.claims.as_json());
                let answers = sitting.ask(&self.query, who, &put).await?;
                for ((at, (verdict, named)), answer) in some.into_iter().zip(answers) {
                    if answer == Answer::Failed {
                        continue;
                    }
                    tally.verdicts += 1;
                    compared.insert(at);
                    let unnamed = *verdict == Verdict::True && !named;
                    differs |= unnamed || disagrees(&self.predicate, *verdict, answer);
                }
            }
        }
        tally.rows = compared.len();
        Ok(match (differs, tally.verdicts) {
            (true, _) => Found::Differs(tally),
            (false, 0) => Found::NotChecked("nothing of it was decided natively".to_owned()),
            (false, _) => Found::Agrees(tally),
        })
    }
}

/// Whether a native verdict is another than PostgreSQL's answer. Next to what decides an AND or an
/// OR, PostgreSQL may raise an error or not.
#[must_use]
pub fn disagrees(predicate: &Predicate, native: Verdict, said: Answer) -> bool {
    match (native, said) {
        (Verdict::True, Answer::Hidden)
        | (Verdict::False | Verdict::Null | Verdict::Error, Answer::Visible) => true,
        (Verdict::True, Answer::Raised) => !predicate.expressions().any(may_stop_early),
        _ => false,
    }
}

/// Whether something of an expression may be left unevaluated.
fn may_stop_early(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::And(_)
            | Expr::Or(_)
            | Expr::Any(..)
            | Expr::Coalesce(_)
            | Expr::Case(..)
            | Expr::Body(..)
            | Expr::Select(_)
            | Expr::Recursive(_)
    ) || expr.children().into_iter().any(may_stop_early)
}

/// The table as a stream would describe it that carries all.
#[must_use]
pub fn relation(table: &Table) -> Relation {
    let described = |column: &Column| change::Column {
        name: column.name.as_str().into(),
        type_oid: column.type_oid,
        type_modifier: column.modifier,
        identity: true,
    };
    Relation {
        oid: table.oid,
        schema: table.schema.as_str().into(),
        name: table.name.as_str().into(),
        replica_identity: ReplicaIdentity::Default,
        columns: table.columns.iter().map(described).collect(),
        version: 0,
        types: Arc::default(),
    }
}

/// Has PostgreSQL put out the dates and moments that policies name.
async fn times(client: &Client, material: &mut Material) -> Result<(), Unanswered> {
    let (days, moments) = material.times();
    if days.is_empty() && moments.is_empty() {
        return Ok(());
    }
    let sql = "select array(select (date '2000-01-01' + day)::text from unnest($1::int4[]) day), \
               array(select (timestamp '2000-01-01' + moment * interval '1 microsecond')::text \
                     from unnest($2::int8[]) moment)";
    let row = client.query_one(sql, &[&days, &moments]).await?;
    material.share_times(row.try_get(0)?, row.try_get(1)?);
    Ok(())
}

/// Rows that are made up, where each column that is read has a value.
async fn made(
    client: &Client,
    (catalog, table, role): (&Catalog, &Table, &str),
    material: &Material,
    needed: impl Fn(&Column) -> bool,
) -> Result<Vec<Row>, Unanswered> {
    let mut columns = Vec::with_capacity(table.columns.len());
    for column in &table.columns {
        if !needed(column) {
            columns.push(None);
            continue;
        }
        let of = Type::of(column.type_oid, column.collation, &catalog.native);
        let mut values: Vec<Option<String>> = Vec::new();
        if let Some(of) = &of {
            values.extend(material.values_of(of).into_iter().map(Some));
        }
        let base = catalog.base_type(column.type_oid);
        for (_, label, _) in base.iter().flat_map(|base| base.labels.iter().flatten()) {
            if !values.contains(&Some(label.clone())) && values.len() < 16 {
                values.push(Some(label.clone()));
            }
        }
        values.insert(values.len().min(2), None);
        // A length cuts or rounds, and a domain refuses.
        let domain = base.is_some_and(|base| base.oid != column.type_oid);
        if domain || column.modifier != -1 {
            values = put_out(client, role, column, values).await?;
        }
        if values.is_empty() {
            return Ok(Vec::new());
        }
        columns.push(Some(values));
    }
    Ok(rows(&columns, MADE))
}

/// Values as PostgreSQL puts them out as the column's type; without those that it does not take. As
/// the client's role: what a domain checks may be a function of anybody's.
async fn put_out(
    client: &Client,
    role: &str,
    column: &Column,
    values: Vec<Option<String>>,
) -> Result<Vec<Option<String>>, Unanswered> {
    let sql = format!(
        "select array(select case when value is null then (value::{0})::text \
         else pg_catalog.format('%s', value::{0}) end \
         from unnest($1::text[]) with ordinality as given(value, place) order by place)",
        column.type_sql
    );
    let mut taken = Vec::with_capacity(values.len());
    let mut open = vec![values];
    while let Some(some) = open.pop() {
        client.batch_execute("savepoint rowcast_value").await?;
        let put = async {
            let statement = client.prepare(&sql).await?;
            let become_role = "select pg_catalog.set_config('role', $1, true)";
            client.query(become_role, &[&role]).await?;
            client.query_one(&statement, &[&some]).await
        };
        let put: Result<Vec<Option<String>>, _> = put.await.and_then(|row| row.try_get(0));
        let undo = "rollback to savepoint rowcast_value; release savepoint rowcast_value";
        client.batch_execute(undo).await?;
        match put {
            Ok(texts) => taken.extend(texts),
            Err(error) if error.as_db_error().is_none() => return Err(error.into()),
            // One by one.
            Err(_) if some.len() > 1 => {
                open.extend(some.into_iter().rev().map(|value| vec![value]));
            }
            Err(_) => {}
        }
    }
    let mut once = BTreeSet::new();
    taken.retain(|value| once.insert(value.clone()));
    Ok(taken)
}
