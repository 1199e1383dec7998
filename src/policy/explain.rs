//! What becomes of each policy, for people: native, partly asked, asked or denied, and why; what it
//! reads, and whether whom it concerns is found by an index.

mod asked;

mod deciding;

mod level;

mod names;

use std::collections::BTreeSet;

use super::access::Access;
use super::ask::parts::columns_read;
use super::catalog::{Catalog, Policy, Table};
use super::expr::Expr;
use super::predicate::{Predicate, Verdict};
use super::reach::alone;
use super::scope::{Done, compiled};
use crate::datum::Datum;
use crate::lookup::Wanted;
pub use deciding::{Deciding, deciding};
pub use level::Level;
pub use names::by_name;

/// How a policy is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// Natively.
    Native,
    /// Natively where its compiled operands decide, and by asking PostgreSQL elsewhere.
    Hybrid,
    /// By asking PostgreSQL.
    Asked,
    /// Not at all: PostgreSQL refuses every statement of the role, or nothing can be asked.
    Deny,
}

impl How {
    /// Its word in `--json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Hybrid => "hybrid",
            Self::Asked => "asked",
            Self::Deny => "deny",
        }
    }
}

/// How those are found who may see a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The row alone decides: everybody sees it, or nobody.
    Row,
    /// By an index from what a claim says.
    Index,
    /// Each client's principal is judged.
    Scan,
}

impl Found {
    /// Its word in `--json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Index => "index",
            Self::Scan => "scan",
        }
    }
}

/// What is read of another table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// The table as SQL.
    pub table: String,
    /// The columns.
    pub columns: Vec<String>,
    /// What is mirrored of it.
    pub wanted: Wanted,
}

/// One policy or rule, for one role.
#[derive(Debug)]
pub struct Explained<'c> {
    /// The policy.
    pub policy: &'c Policy,
    /// What it uses; `None` where no level has that.
    pub level: Option<Level>,
    /// How it is decided.
    pub how: How,
    /// Why it is not native.
    pub reasons: Vec<String>,
    /// Why PostgreSQL raises an error where it comes to that, as far as that is known beforehand:
    /// such rows are hidden.
    pub raises: Vec<String>,
    /// The columns of the row that it reads.
    pub columns: Vec<String>,
    /// The claims that it reads: of what is not compiled as far as its text says, `*` for all.
    pub claims: BTreeSet<String>,
    /// What is mirrored for it.
    pub lookups: Vec<Looked>,
    /// How its audience is found.
    pub found: Found,
    /// It by itself.
    pub predicate: Predicate,
}

/// Works out what becomes of policies or rules of a table for one role, whether or not they are
/// among those that apply to it.
#[must_use]
pub fn explain<'c>(
    catalog: &'c Catalog,
    table: &Table,
    policies: &[&'c Policy],
    role: &str,
) -> Vec<Explained<'c>> {
    let mut done = compiled(catalog, table, policies, role)
        .into_iter()
        .peekable();
    let each = policies.iter().map(|policy| {
        let done = done.next_if(|done| std::ptr::eq(done.policy, *policy));
        one(catalog, table, (policy, done), role)
    });
    each.collect()
}

fn one<'c>(
    catalog: &'c Catalog,
    table: &Table,
    (policy, done): (&'c Policy, Option<Done<'_>>),
    role: &str,
) -> Explained<'c> {
    let denied = alone(catalog, table, policy, role);
    let (expr, mut reasons, whole, refuses, raising) = match done {
        Some(done) => (
            done.expr,
            done.refused,
            done.decides_all,
            done.denied,
            done.raising,
        ),
        // With only a WITH CHECK it says nothing about what may be read.
        None => {
            let nothing = Expr::constant(Datum::Bool(false));
            (nothing, Vec::new(), false, None, BTreeSet::new())
        }
    };
    let predicate = Predicate::new(vec![expr], Vec::new());
    let native = reasons.is_empty();
    let opaque = predicate.is_constant() == Some(Verdict::Undecided);
    let how = match (denied, refuses) {
        (Some(reason), _) => {
            reasons.insert(0, reason);
            How::Deny
        }
        (None, Some(_)) => How::Deny,
        (None, None) if native => How::Native,
        (None, None) if opaque || whole => How::Asked,
        (None, None) => How::Hybrid,
    };
    let names = |table| catalog.tables.get(table).map(|table| table.sql_name());
    let lookups = predicate.lookups().iter().map(|wanted| Looked {
        table: names(&wanted.table).unwrap_or_else(|| wanted.table.to_string()),
        columns: wanted
            .columns
            .iter()
            .map(|column| column.name.to_string())
            .collect(),
        wanted: wanted.clone(),
    });
    let mut claims = predicate.claims();
    let mut found = predicate.found();
    if matches!(how, How::Hybrid | How::Asked) {
        claims.extend(asked::claims(catalog, policy));
        if found == Found::Row && !claims.is_empty() {
            found = Found::Scan;
        }
    }
    let columns = columns_read(table, &[policy]).into_iter();
    Explained {
        policy,
        level: level::of(catalog, policy),
        how,
        reasons,
        raises: raising.iter().map(ToString::to_string).collect(),
        columns: columns.map(|column| column.name.clone()).collect(),
        claims,
        lookups: lookups.collect(),
        found,
        predicate,
    }
}

/// How the audience of all policies of a table together is found.
#[must_use]
pub fn found(access: &Access) -> Option<Found> {
    let super::access::Rules::Judged { predicates, .. } = &access.rules else {
        return None;
    };
    // Rows are looked up by the first.
    predicates.first().map(|predicate| predicate.found())
}
