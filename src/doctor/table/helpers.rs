//! The functions that policies call.

use std::collections::{BTreeMap, BTreeSet};

use super::{Named, Seen, Tables};
use crate::doctor::Finding;
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::Function;
use crate::policy::compile::Raising;
use crate::policy::reader::schemas_named;

impl Tables<'_> {
    /// Functions that mean what whoever calls them has in the search path.
    pub(super) fn helpers(&self, functions: &BTreeMap<Oid, Named>, found: &mut Vec<Finding>) {
        let mut all: BTreeMap<Oid, &Function> = BTreeMap::new();
        for seen in &self.seen {
            all.extend(
                self.called(seen.table)
                    .map(|function| (function.oid, function)),
            );
        }
        let mut unusable: BTreeSet<&str> = BTreeSet::new();
        for (oid, function) in all {
            let schemas = self.unusable(function, functions.get(&oid));
            let mut settings = function.config.iter().flatten();
            let pinned = settings.any(|setting| setting.starts_with("search_path="));
            // Without temporary objects none is resolved, which is said once, and neither is what
            // is in schemas that may not be used.
            let unresolved = function.language == "sql"
                && function.known().next().is_none()
                && self.facts.temporary
                && schemas.is_empty();
            unusable.extend(schemas);
            if pinned || !(function.definer || unresolved) {
                continue;
            }
            let Some(named) = functions.get(&oid) else {
                continue;
            };
            let text = if function.definer {
                "is SECURITY DEFINER and has no search_path of its own: whoever calls it can have its \
                 names mean something else"
            } else {
                "has no search_path of its own, and names what only some path finds: it cannot be \
                 compiled, and is asked of PostgreSQL"
            };
            found.push(
                Finding::warning(
                    "function_search_path",
                    format!("{}, which policies call, {text}", named.signature),
                )
                .sql(format!(
                    "alter function {} {}",
                    named.signature,
                    pinned_path(named)
                ))
                .advice("Put there what its body needs, and nothing that others may create in."),
            );
        }
        let mut roles = self.catalog.roles.values();
        if roles.any(|role| !role.bypass && !role.settable) {
            // With a role that it may become it may use more; that it may not was said.
            return;
        }
        let login = quote_identifier(&self.facts.login);
        found.extend(unusable.into_iter().map(|schema| {
            let schema = quote_identifier(schema);
            Finding::warning(
                "login_schema_usage",
                format!(
                    "the relay's login may not use schema {schema}, which functions that policies \
                     call are in or name: such a policy cannot be held against PostgreSQL or \
                     compiled, and is asked"
                ),
            )
            .sql(format!("grant usage on schema {schema} to {login}"))
        }));
    }

    /// What is known beforehand to raise an error in PostgreSQL.
    pub(super) fn raising(
        &self,
        seen: &Seen<'_>,
        functions: &BTreeMap<Oid, Named>,
        found: &mut Vec<Finding>,
    ) {
        let mut raising: BTreeMap<&Raising, (BTreeSet<&str>, &str)> = BTreeMap::new();
        for (role, access) in &seen.accesses {
            for (policy, why) in &access.raises {
                let (policies, _) = raising.entry(why).or_insert((BTreeSet::new(), role));
                policies.insert(policy);
            }
        }
        let name = self.names.of(seen.table);
        for (why, (policies, role)) in raising {
            let policies: Vec<&str> = policies.into_iter().collect();
            let text = format!(
                "policy {} of {name} raises an error in PostgreSQL where it comes to that, and such \
                 rows are hidden: {why}",
                policies.join(", ")
            );
            let finding = match why {
                Raising::Recursion(oid, _) => {
                    let finding = Finding::error("policy_recursion", text).advice(
                        "It reads the table with its owner's rights then, to whom the policies do not \
                         apply; a table with FORCE ROW LEVEL SECURITY needs an owner with BYPASSRLS.",
                    );
                    match functions.get(oid) {
                        Some(named) => finding.sql(format!(
                            "alter function {} security definer {}",
                            named.signature,
                            pinned_path(named)
                        )),
                        None => finding,
                    }
                }
                Raising::Denied(reason) => {
                    let denied = self.denied((seen.table, role), reason, functions);
                    let mut finding = Finding::warning(denied.code, text);
                    finding.sql = denied.sql;
                    finding.advice = denied.advice.map(ToOwned::to_owned);
                    finding
                }
                // That is said whether or not an error comes of it.
                Raising::Unset(_) => continue,
            };
            found.push(finding.table(name.as_str()).role(role));
        }
    }

    /// The schemas that a function is in or names, and that the relay's login may not use.
    fn unusable(&self, function: &Function, named: Option<&Named>) -> Vec<&'_ str> {
        let mut names = schemas_named(&function.source).unwrap_or_default();
        names.extend(named.map(|named| named.schema.clone()));
        let known = names
            .iter()
            .filter_map(|name| self.catalog.schemas.get_key_value(name.as_str()));
        let unusable = known.filter(|(_, schema)| !schema.usable);
        unusable.map(|(name, _)| name.as_str()).collect()
    }
}

/// A search path on which a function's body finds what stands beside it.
fn pinned_path(named: &Named) -> String {
    let mut path: Vec<String> = vec![quote_identifier(&named.schema)];
    if named.schema != "public" {
        path.push("public".to_owned());
    }
    path.push("pg_temp".to_owned());
    format!("set search_path = {}", path.join(", "))
}
