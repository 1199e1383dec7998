//! Whether compiled policies answer as PostgreSQL does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Finding;
use super::names::Names;
use crate::pg::connect::Database;
use crate::policy::ask::sitting::Unanswered;
use crate::policy::catalog::{Catalog, Refuted};
use crate::policy::check::{Found, Limits, check};

/// How long all checks together may take.
const ALL: Duration = Duration::from_secs(2);

/// Holds what is compiled of published tables against PostgreSQL, as the relay does; the policies
/// that are answered otherwise. What cannot be checked is no finding.
pub(super) async fn refuted(database: &Database, catalog: &Catalog) -> Arc<BTreeSet<Refuted>> {
    let mut refuted = BTreeSet::new();
    // Questions may need temporary functions, which the doctor's own session may not make.
    let Ok(client) = database.connect("rowcast doctor").await else {
        return Arc::default();
    };
    let began = Instant::now();
    let published = catalog.tables.values().filter(|table| table.published);
    let mut tables: Vec<_> = published.collect();
    tables.sort_by_key(|table| table.oid);
    for table in tables {
        for role in catalog.roles.values() {
            if role.bypass || !role.settable || began.elapsed() >= ALL {
                continue;
            }
            let place = (&**table, role.name.as_str());
            match Box::pin(check(&client, catalog, place, Limits::default())).await {
                Ok(found) => {
                    let differs = found
                        .into_iter()
                        .filter(|one| matches!(one.found, Found::Differs(_)));
                    refuted.extend(differs.map(|one| one.key));
                }
                Err(Unanswered::Broken(_)) => return Arc::new(refuted),
                Err(_) => {}
            }
        }
    }
    Arc::new(refuted)
}

/// What is said of them.
pub(super) fn findings(catalog: &Catalog, names: &Names) -> Vec<Finding> {
    let mut by_table: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for (table, _, policy) in catalog.refuted.iter() {
        by_table.entry(*table).or_default().insert(policy);
    }
    let tables = by_table.into_iter().filter_map(|(oid, policies)| {
        let name = names.of(catalog.tables.get(&oid)?);
        let policies = Vec::from_iter(policies).join(", ");
        let text = format!(
            "what is compiled of policies of {name} answers otherwise than PostgreSQL: {policies}; \
             PostgreSQL is asked about them"
        );
        let finding = Finding::warning("policy_check_failed", text).table(name);
        Some(finding.advice(
            "Nobody sees what they must not, but this is a fault of the relay: please report it with \
             the policy's text (`rowcast explain` prints it).",
        ))
    });
    tables.collect()
}
