//! Who sees nothing of a table, and why.

use std::collections::BTreeMap;

use super::{Named, Seen, Tables, policy_sql};
use crate::doctor::publication::Listed;
use crate::doctor::{Finding, Severity, clients};
use crate::pg::{Oid, quote_identifier};
use crate::policy::access::{Access, Rules};
use crate::policy::catalog::{Policy, Rights, Table};
use crate::policy::closure::Closure;

/// A right that a policy needs and its role does not have.
pub(super) struct Denied {
    pub(super) code: &'static str,
    pub(super) sql: Vec<String>,
    pub(super) advice: Option<&'static str>,
}

/// Why a role sees nothing of a table.
struct Blind {
    code: &'static str,
    text: String,
    sql: Vec<String>,
    advice: Option<String>,
    /// Whether that is how somebody may want it: not every role is to see every table.
    may_be_meant: bool,
}

impl<'c> Tables<'c> {
    /// Who sees nothing.
    pub(super) fn sight(
        &self,
        seen: &Seen<'c>,
        (functions, listed): (&BTreeMap<Oid, Named>, &Listed),
        found: &mut Vec<Finding>,
    ) {
        let table = seen.table;
        let name = self.names.of(table);
        let blind = |(role, access): &(&'c str, Access)| {
            let blind = self.blind(table, role, access, functions)?;
            Some((*role, blind))
        };
        let mut blinds: Vec<(&str, Blind)> = seen.accesses.iter().filter_map(blind).collect();
        let nobody = blinds.len() == seen.accesses.len();
        // No policy holds those back who bypass them, but they need rights as others do.
        let holds = self.holds().and_then(|role| self.catalog.roles.get(role));
        if let Some(role) = holds.filter(|role| role.bypass) {
            let access = Access::new(self.catalog, table, &role.name);
            blinds.extend(blind(&(role.name.as_str(), access)));
        }
        // That says already why policies are never true.
        let named = Some(name.as_str());
        let unset = |one: &Finding| one.code == "setting_unset" && one.table.as_deref() == named;
        let unset = found.iter().any(unset);
        for (role, why) in &blinds {
            if unset && why.code == "policy_false" {
                continue;
            }
            let in_focus = *role == self.focus();
            let of_token = self.holder.is_some() && in_focus;
            let severity = if !why.may_be_meant {
                if in_focus || nobody {
                    Severity::Error
                } else {
                    Severity::Warning
                }
            } else if in_focus && nobody || of_token && seen.named {
                Severity::Error
            } else if of_token {
                Severity::Note
            } else {
                continue;
            };
            // Nobody has chosen what FOR ALL TABLES publishes: what clients may not read is not
            // opened to them on its account.
            let chosen = seen.named || !listed.everything || why.code != "table_grant";
            let severity = if chosen { severity } else { Severity::Note };
            let mut finding = Finding::error(why.code, why.text.clone())
                .of_severity(severity)
                .table(name.as_str())
                .role(*role);
            if chosen {
                finding.sql.clone_from(&why.sql);
                finding.advice.clone_from(&why.advice);
            } else {
                finding = finding.advice(format!(
                    "Leave it where clients are not meant to see it; else `rowcast doctor --table \
                     {name}` has the statements."
                ));
            }
            found.push(finding);
        }
        for (role, access) in &seen.accesses {
            let sees = !blinds.iter().any(|(other, _)| other == role);
            if sees && *role == self.focus() {
                found.extend(columns((table, name.clone()), role, access));
            }
        }
    }

    fn blind(
        &self,
        table: &Table,
        role: &str,
        access: &Access,
        functions: &BTreeMap<Oid, Named>,
    ) -> Option<Blind> {
        let name = self.names.of(table);
        let quoted = quote_identifier(role);
        let rights = table.rights.iter().find(|rights| rights.role == role)?;
        let usage = format!(
            "grant usage on schema {} to {quoted}",
            quote_identifier(&table.schema)
        );
        let select = format!("grant select on table {name} to {quoted}");
        let reads = !rights.columns.is_empty();
        let blind = |code, text: String, sql: Vec<String>| Blind {
            code,
            text,
            sql,
            advice: None,
            may_be_meant: false,
        };
        if !reads {
            let mut sql = vec![select];
            let mut advice = None;
            if !table.row_security && table.rules_for(role).next().is_none() {
                // The right alone would show all rows to all: with this nobody sees any until there is
                // a policy.
                advice = Some(
                    "Row-level security holds for every other role but the owner as well, until \
                     policies let them see rows."
                        .to_owned(),
                );
                sql.insert(0, format!("alter table {name} enable row level security"));
            }
            if !rights.usage {
                sql.insert(0, usage);
            }
            return Some(Blind {
                advice,
                may_be_meant: true,
                ..blind(
                    "table_grant",
                    format!(
                        "clients of {role} may not SELECT from {name}: their subscriptions are refused"
                    ),
                    sql,
                )
            });
        }
        if !rights.usage {
            return Some(blind(
                "schema_usage",
                format!(
                    "clients of {role} may SELECT from {name}, but not use its schema: their \
                     subscriptions are refused"
                ),
                vec![usage],
            ));
        }
        match &access.rules {
            Rules::Nothing(reason) => Some(self.refused((table, rights), reason, functions)),
            Rules::Everything => None,
            Rules::Judged { .. } if access.hides_all => {
                Some(self.unpermitted((table, rights), access))
            }
            Rules::Judged { .. } => None,
        }
    }

    /// Nothing can be subscribed to, by the reason that clients are told.
    fn refused(
        &self,
        (table, rights): (&Table, &Rights),
        reason: &str,
        functions: &BTreeMap<Oid, Named>,
    ) -> Blind {
        let name = self.names.of(table);
        let role = &rights.role;
        let text = format!("clients of {role} cannot subscribe to {name}: {reason}");
        let mut blind = Blind {
            code: "policy_unaskable",
            text,
            sql: Vec::new(),
            advice: None,
            may_be_meant: false,
        };
        if reason.starts_with("infinite recursion") {
            blind.code = "policy_recursion";
            blind.advice = Some(
                "Let one of the policies call a SECURITY DEFINER function instead of reading the \
                 table."
                    .to_owned(),
            );
        } else if reason.starts_with("permission denied") {
            let denied = self.denied((table, role), reason, functions);
            (blind.code, blind.sql) = (denied.code, denied.sql);
            blind.advice = denied.advice.map(ToOwned::to_owned);
        } else if reason.contains("may not become") {
            blind.code = "role_membership";
            blind.sql = vec![clients::membership_sql(
                role,
                &self.facts.login,
                self.catalog.major,
            )];
        } else if reason.contains("which the publication leaves out") {
            blind.code = "policy_column_unpublished";
            blind.advice = Some("Publish all of its columns.".to_owned());
        }
        blind
    }

    /// What a right that a policy needs is, and what gives it.
    pub(super) fn denied(
        &self,
        (table, role): (&Table, &str),
        reason: &str,
        functions: &BTreeMap<Oid, Named>,
    ) -> Denied {
        let quoted = quote_identifier(role);
        if reason.contains("permission denied for function") {
            let sql = self
                .called(table)
                .filter(|function| !function.execute.iter().any(|allowed| allowed == role))
                .filter_map(|function| functions.get(&function.oid))
                .map(|named| format!("grant execute on function {} to {quoted}", named.signature));
            return Denied {
                code: "function_execute",
                sql: sql.collect(),
                advice: None,
            };
        }
        let context = self.catalog.context(role);
        let closure = Closure::of(self.catalog, table, &context);
        let mut sql = Vec::new();
        // Inside views and SECURITY DEFINER functions it is their owner who reads.
        for (by, oid) in &closure.tables {
            let mut roles = self.catalog.roles.values();
            let reader = match *by == context.role {
                true => Some(role),
                false => roles
                    .find(|one| one.oid == *by)
                    .map(|one| one.name.as_str()),
            };
            let other = self.catalog.tables.get(oid);
            let Some((other, reader)) = other.zip(reader) else {
                continue;
            };
            let Some(of) = other.rights.iter().find(|of| of.role == reader) else {
                continue;
            };
            let reader = quote_identifier(reader);
            if !of.usage {
                sql.push(format!(
                    "grant usage on schema {} to {reader}",
                    quote_identifier(&other.schema)
                ));
            }
            if of.columns.len() < other.columns.len() {
                sql.push(format!(
                    "grant select on table {} to {reader}",
                    self.names.of(other)
                ));
            }
        }
        Denied {
            code: "lookup_grant",
            sql,
            advice: Some(
                "A policy reads other tables with the client's own rights; a SECURITY DEFINER \
                 function reads them with its owner's.",
            ),
        }
    }

    /// There are policies for a role, and they are true for no row.
    fn refusing(&self, (table, role): (&Table, &str), access: &Access) -> Blind {
        let name = self.names.of(table);
        let tables = &self.catalog.tables;
        let mut sql = Vec::new();
        for (oid, policy) in &access.refusing {
            let Some(judged) = tables.get(oid) else {
                continue;
            };
            let (of, quoted) = (self.names.of(judged), quote_identifier(policy));
            // A rule is of the configuration.
            if judged.policies.iter().any(|one| one.name == *policy) {
                sql.push(format!("-- alter policy {quoted} on {of} using (…)"));
            }
        }
        let refusing: Vec<&str> = access
            .refusing
            .iter()
            .map(|(_, one)| one.as_str())
            .collect();
        let (text, advice) = if refusing.is_empty() {
            (
                format!(
                    "the policies of {name} say no to {role} whatever the row and the token are"
                ),
                "Read them, and those of the tables that they look into: \\d+ in psql, or pg_policies.",
            )
        } else {
            (
                format!(
                    "of the policies of {name}, {} must say yes as well, and never does: {role} sees no \
                     row",
                    refusing.join(" and ")
                ),
                "A restrictive policy, and a rule, can only take away what others let through.",
            )
        };
        Blind {
            code: "policy_false",
            text,
            sql,
            advice: Some(advice.to_owned()),
            may_be_meant: true,
        }
    }

    /// Row-level security is on, and no policy lets the role see anything.
    fn unpermitted(&self, (table, rights): (&Table, &Rights), access: &Access) -> Blind {
        let role = &rights.role;
        let permits = |policy: &Policy| policy.permissive && policy.condition.is_some();
        let judged = self.judged(table).find(|one| {
            let of = one.rights.iter().find(|of| of.role == *role);
            let applies =
                |policy: &&Policy| of.is_some_and(|of| of.policies.contains(&policy.name));
            one.row_security && !one.policies.iter().filter(applies).any(permits)
        });
        let Some(judged) = judged else {
            return self.refusing((table, role), access);
        };
        let name = self.names.of(judged);
        let of = judged.rights.iter().find(|of| of.role == *role);
        let restricts = |policy: &Policy| !policy.permissive && policy.condition.is_some();
        let restricted = of.is_some_and(|of| {
            let mut applying = judged.policies.iter();
            applying.any(|policy| of.policies.contains(&policy.name) && restricts(policy))
        });
        // One for other roles may only have to be widened.
        let others: Vec<&Policy> = judged.policies.iter().filter(|one| permits(one)).collect();
        let (code, what) = if restricted {
            (
                "policy_restrictive_only",
                "only restrictive policies for SELECT, which can only take away".to_owned(),
            )
        } else if others.is_empty() {
            ("policy_missing", "no policy for SELECT".to_owned())
        } else {
            let names: Vec<&str> = others.iter().map(|one| one.name.as_str()).collect();
            (
                "policy_missing",
                format!(
                    "policies for SELECT only for other roles ({})",
                    names.join(", ")
                ),
            )
        };
        Blind {
            code,
            text: format!(
                "{name} has row-level security and for {role} {what}: its clients see no row"
            ),
            sql: vec![policy_sql(judged, self.names, role)],
            advice: (!others.is_empty()).then(|| {
                "Or let an existing policy hold for the role as well: alter policy … to …"
                    .to_owned()
            }),
            may_be_meant: true,
        }
    }
}

/// Columns that the role may not read.
fn columns((table, name): (&Table, String), role: &str, access: &Access) -> Option<Finding> {
    let hidden: Vec<&str> = table
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .filter(|column| !access.may_read(column))
        .collect();
    (!hidden.is_empty()).then(|| {
        Finding::note(
            "column_grants",
            format!(
                "clients of {role} may not read {} of {name}: they receive rows without, and cannot \
                 filter by it",
                hidden.join(", ")
            ),
        )
        .table(name.as_str())
        .role(role)
        .sql(format!(
            "grant select on table {name} to {}",
            quote_identifier(role)
        ))
        .advice("Leave it where that is meant.")
    })
}
