//! Whether compiled policies answer as PostgreSQL does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Finding;
use super::names::Names;
use crate::pg::Oid;
use crate::pg::connect::Database;
use crate::policy::ask::sitting::Unanswered;
use crate::policy::catalog::{Catalog, Refuted};
use crate::policy::check::{Found, Limits, check};

/// How long all checks together may take.
const ALL: Duration = Duration::from_secs(2);

/// What was found of compiled policies.
#[derive(Debug, Default)]
pub(super) struct Checks {
    found: BTreeMap<Refuted, Found>,
    /// The tables of which nothing is known for a role: there was no time, or no answer.
    left: BTreeSet<Oid>,
}

impl Checks {
    /// Holds what is compiled of published tables against PostgreSQL, as the relay does.
    pub(super) async fn make(&mut self, database: &Database, catalog: &Catalog) {
        let published = catalog.tables.values().filter(|table| table.published);
        let mut tables: Vec<_> = published.collect();
        tables.sort_by_key(|table| table.oid);
        // Questions may need temporary functions, which the doctor's own session may not make.
        let Ok(client) = database.connect("rowcast doctor").await else {
            self.left.extend(tables.iter().map(|table| table.oid));
            return;
        };
        let began = Instant::now();
        let mut broken = false;
        for table in tables {
            for role in catalog.roles.values() {
                if role.bypass || !role.settable {
                    // What follows from that is said of the role.
                    continue;
                }
                if broken || began.elapsed() >= ALL {
                    self.left.insert(table.oid);
                    continue;
                }
                let place = (&**table, role.name.as_str());
                match Box::pin(check(&client, catalog, place, Limits::default())).await {
                    Ok(found) => {
                        for one in found {
                            if one.found == Found::NotChecked(Unanswered::Slow.to_string()) {
                                self.left.insert(table.oid);
                            } else {
                                self.found.insert(one.key, one.found);
                            }
                        }
                    }
                    Err(problem) => {
                        broken |= matches!(problem, Unanswered::Broken(_));
                        self.left.insert(table.oid);
                    }
                }
            }
        }
    }

    /// The policies that are answered otherwise.
    pub(super) fn refuted(&self) -> Arc<BTreeSet<Refuted>> {
        let differs = |found: &Found| matches!(found, Found::Differs(_));
        let refuted = self.found.iter().filter(|(_, found)| differs(found));
        Arc::new(refuted.map(|(key, _)| key.clone()).collect())
    }

    /// What is said of them, and of those that cannot be checked.
    pub(super) fn findings(&self, catalog: &Catalog, names: &Names) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut differing: BTreeMap<Oid, BTreeSet<&str>> = BTreeMap::new();
        for (table, _, policy) in catalog.refuted.iter() {
            differing.entry(*table).or_default().insert(policy);
        }
        for (table, policies) in differing {
            let Some(table) = catalog.tables.get(&table) else {
                continue;
            };
            let name = names.of(table);
            let policies = Vec::from_iter(policies).join(", ");
            let text = format!(
                "what is compiled of policies of {name} answers otherwise than PostgreSQL: \
                 {policies}; PostgreSQL is asked about them"
            );
            found.push(Finding::warning("policy_check_failed", text).table(name).advice(
                "Nobody sees what they must not, but this is a fault of the relay: please report it \
                 with the policy's text (`rowcast explain` prints it).",
            ));
        }
        for (table, policies) in self.unchecked() {
            let Some(table) = catalog.tables.get(&table) else {
                continue;
            };
            let name = names.of(table);
            let policies: Vec<String> = policies
                .into_iter()
                .map(|(policy, reason)| format!("{policy} ({reason})"))
                .collect();
            let text = format!(
                "what is compiled of policies of {name} could not be held against PostgreSQL: {}",
                policies.join("; ")
            );
            found.push(Finding::note("policy_unchecked", text).table(name).advice(
                "`rowcast explain` with --row and --claims holds any one row against PostgreSQL.",
            ));
        }
        found
    }

    /// The policies that are checked for no role, each with why, by table.
    fn unchecked(&self) -> BTreeMap<Oid, BTreeMap<&str, &str>> {
        let mut unchecked: BTreeMap<Oid, BTreeMap<&str, &str>> = BTreeMap::new();
        for ((table, _, policy), found) in &self.found {
            if let Found::NotChecked(reason) = found {
                let of = unchecked.entry(*table).or_default();
                of.insert(policy, reason);
            }
        }
        for ((table, _, policy), found) in &self.found {
            if let (Some(of), false) = (
                unchecked.get_mut(table),
                matches!(found, Found::NotChecked(_)),
            ) {
                of.remove(policy.as_str());
            }
        }
        unchecked.retain(|_, policies| !policies.is_empty());
        unchecked
    }

    /// What there was no time for.
    pub(super) fn unseen(&self, catalog: &Catalog, names: &Names) -> Option<String> {
        let tables = self.left.iter().filter_map(|oid| catalog.tables.get(oid));
        let mut names: Vec<String> = tables.map(|table| names.of(table)).collect();
        names.sort();
        let first = names.first()?;
        Some(format!(
            "whether PostgreSQL answers as what is compiled does, of policies of {}, within {} s \
             (rowcast explain takes longer)",
            match names.len() {
                1 => first.clone(),
                many => format!("{many} tables, the first of them {first}"),
            },
            ALL.as_secs()
        ))
    }
}
