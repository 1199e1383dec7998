//! Rules: conditions on tables that the operator of the relay sets, beside PostgreSQL's policies.
//!
//! For applications whose tables have no row-level security, and for databases to which none can be
//! added. A rule is restrictive: a row has to pass it besides everything else, so it can only narrow
//! what SELECT rights and policies allow. PostgreSQL itself resolves its text ([`analyse`]); from
//! there on it is what a policy is: compiled where that is exact, and asked where it is not. A rule
//! that cannot be resolved hides its table.

mod analysis;

use std::sync::Arc;

use tracing::{info, warn};

use super::catalog::{Catalog, Policy, Table};
use crate::pg::{Oid, quote_identifier};

pub(super) use analysis::{Analysed, analyse};

/// A rule as it is written in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// The condition, an SQL expression over the table's columns.
    pub using: String,
    /// The roles that it applies to, and those that inherit from them; all where there are none.
    pub roles: Vec<String>,
}

impl Rule {
    /// The table as SQL, quoted.
    #[must_use]
    pub fn sql_name(&self) -> String {
        let (schema, table) = (
            quote_identifier(&self.schema),
            quote_identifier(&self.table),
        );
        format!("{schema}.{table}")
    }
}

/// Reads `schema.table` as SQL does: what is not in double quotes is in lower case.
#[must_use]
pub fn table_name(text: &str) -> Option<(String, String)> {
    let (schema, rest) = identifier(text.trim())?;
    let (table, rest) = identifier(rest.strip_prefix('.')?)?;
    rest.is_empty().then_some((schema, table))
}

/// The first identifier of a text, as SQL reads it, and what comes behind it.
pub fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(['.', '"', ' ', ',']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return (!name.is_empty()).then(|| (name.to_lowercase(), rest));
    };
    let (mut name, mut rest) = (String::new(), quoted);
    loop {
        let (part, behind) = rest.split_once('"')?;
        name.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (!name.is_empty()).then_some((name, behind)),
        }
    }
}

/// A rule as it holds for a table.
#[derive(Debug, Clone)]
pub struct TableRule {
    /// The roles that it applies to; `None` for all.
    pub roles: Option<Vec<String>>,
    /// What it says, as a restrictive policy; or why that is not known, which hides the table.
    pub policy: Result<Policy, String>,
}

impl TableRule {
    /// Whether it applies to a role.
    #[must_use]
    pub fn applies_to(&self, role: &str) -> bool {
        let named = |roles: &Vec<String>| roles.iter().any(|one| one == role);
        self.roles.as_ref().is_none_or(named)
    }
}

/// What a published table must have besides SELECT rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Require {
    /// Nothing.
    None,
    /// Row-level security.
    Rls,
    /// Row-level security, or a rule for the role.
    RlsOrRule,
}

impl Require {
    /// Why a table is hidden from a role for want of it.
    #[must_use]
    pub fn lacks(self, table: &Table, role: &str) -> Option<String> {
        let rule = || table.rules.iter().any(|rule| rule.applies_to(role));
        let (has, wanted) = match self {
            Self::None => return None,
            Self::Rls => (table.row_security, ""),
            Self::RlsOrRule => (table.row_security || rule(), " and no rule"),
        };
        (!has).then(|| {
            format!(
                "table {}.{} has no row-level security{wanted}, which this relay requires",
                table.schema, table.name
            )
        })
    }

    /// As it is written in the settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rls => "rls",
            Self::RlsOrRule => "rls or rule",
        }
    }
}

/// Puts rules into a catalog that was read after they were resolved, for the tables that it has.
pub(super) fn install(catalog: &mut Catalog, rules: &[Analysed]) {
    for rule in rules {
        let called = &rule.called;
        if let Err(reason) = &rule.rule.policy {
            let reason = format!("{called} is not in force: {reason}");
            catalog.unruled.push(reason);
        }
        let Some(table) = rule.table else { continue };
        let judged = catalog.tables.values().any(|other| {
            other.published && (other.oid == table || other.ancestors.contains(&table))
        });
        if judged {
            put(catalog, table, rule.rule.clone());
            continue;
        }
        // Of a partition whose changes come as those of a root the rule would be passed by.
        let published = |oid: &&Oid| catalog.tables.get(*oid).is_some_and(|root| root.published);
        let roots: Vec<Oid> = rule.ancestors.iter().filter(published).copied().collect();
        for root in &roots {
            let name = catalog.tables.get(root).map(|root| root.sql_name());
            let reason = format!(
                "{called} is not in force: its table is a partition of {}, as whose its changes \
                 come; write the rule for that",
                name.unwrap_or_default()
            );
            catalog.unruled.push(reason.clone());
            let refused = TableRule {
                roles: rule.rule.roles.clone(),
                policy: Err(reason),
            };
            put(catalog, *root, refused);
        }
        if roots.is_empty() {
            let reason = format!("{called} is of no effect: its table is not published");
            catalog.unruled.push(reason);
        }
    }
}

fn put(catalog: &mut Catalog, table: Oid, rule: TableRule) {
    // Nobody else has the tables of a catalog that is just being made.
    if let Some(table) = catalog.tables.get_mut(&table).and_then(Arc::get_mut) {
        table.rules.push(rule);
    }
}

/// Says which rules are not in force, and once they all are.
pub(super) fn tell_of(before: Option<&Catalog>, catalog: &Catalog) {
    let known = before.map_or(&[][..], |before| &before.unruled);
    for reason in catalog.unruled.iter().filter(|one| !known.contains(one)) {
        warn!("{reason}");
    }
    if !known.is_empty() && catalog.unruled.is_empty() {
        info!("all rules are in force");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tables_name_is_read_as_sql_reads_it() {
        let name = |text| table_name(text).map(|(schema, table)| format!("{schema}|{table}"));
        assert_eq!(name("public.Jobs").as_deref(), Some("public|jobs"));
        assert_eq!(name(r#""My S"."a.""b"#).as_deref(), None);
        assert_eq!(
            name(r#""My S"."a.""b""""#).as_deref(),
            Some(r#"My S|a."b""#)
        );
        assert_eq!(name(r#"public."Jobs""#).as_deref(), Some("public|Jobs"));
        for wrong in [
            "jobs",
            "",
            ".jobs",
            "public.",
            "a.b.c",
            "public.jobs x",
            r#""a"b.c"#,
        ] {
            assert_eq!(table_name(wrong), None, "{wrong}");
        }
    }
}
