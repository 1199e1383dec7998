//! What becomes of each policy, for people: native, partly asked, asked or denied, and why; what it
//! reads, and whether whom it concerns is found by an index.

mod level;

use std::collections::BTreeSet;

use super::access::Access;
use super::ask::parts::columns_read;
use super::catalog::{Catalog, Policy, Table};
use super::expr::Expr;
use super::predicate::Predicate;
use super::reach::alone;
use super::scope::{Done, compiled};
use crate::datum::Datum;
pub use level::Level;

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
    /// The columns of the row that it reads.
    pub columns: Vec<String>,
    /// The claims that its compiled part reads; whoever is asked reads what it likes.
    pub claims: BTreeSet<String>,
    /// What is mirrored for it.
    pub lookups: Vec<Looked>,
    /// How its audience is found.
    pub found: Found,
    /// It by itself.
    pub predicate: Predicate,
}

/// Works out what becomes of one policy or rule of a table for one role, whether or not it is among
/// those that apply to it.
#[must_use]
pub fn explain<'c>(
    catalog: &'c Catalog,
    table: &'c Table,
    policy: &'c Policy,
    role: &str,
) -> Explained<'c> {
    let (looked_into, denied) = alone(catalog, table, policy, role);
    let done = compiled(catalog, table, &[policy], (role, &looked_into)).pop();
    let (expr, mut reasons, whole) = match done {
        Some(Done {
            expr,
            refused,
            decides_all,
            ..
        }) => (expr, refused, decides_all),
        // With only a WITH CHECK it says nothing about what may be read.
        None => (Expr::constant(Datum::Bool(false)), Vec::new(), false),
    };
    let predicate = Predicate::new(vec![expr], Vec::new());
    let native = reasons.is_empty();
    let opaque = predicate.is_constant() == Some(super::predicate::Verdict::Undecided);
    let how = match denied {
        Some(reason) => {
            reasons.insert(0, reason);
            How::Deny
        }
        None if native => How::Native,
        None if opaque || whole => How::Asked,
        None => How::Hybrid,
    };
    let names = |table| catalog.tables.get(table).map(|table| table.sql_name());
    let lookups = predicate.lookups().iter().map(|wanted| Looked {
        table: names(&wanted.table).unwrap_or_else(|| wanted.table.to_string()),
        columns: wanted
            .columns
            .iter()
            .map(|column| column.name.to_string())
            .collect(),
    });
    let columns = columns_read(table, &[policy]).into_iter();
    Explained {
        policy,
        level: level::of(catalog, policy),
        how,
        reasons,
        columns: columns.map(|column| column.name.clone()).collect(),
        claims: predicate.claims(),
        lookups: lookups.collect(),
        found: predicate.found(),
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
