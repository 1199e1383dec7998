//! Holds what is compiled against PostgreSQL, as a relay does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::Trouble;
use super::report;
use crate::pg::Oid;
use crate::policy::ask::sitting::Unanswered;
use crate::policy::catalog::{Catalog, Refuted};
use crate::policy::check::{Found, Limits, check};

/// How long all checks together may take.
const ALL: Duration = Duration::from_secs(10);

/// What was found of each policy, by table and role.
#[derive(Default)]
pub(super) struct Checks {
    found: BTreeMap<Refuted, Found>,
    /// Why nothing was found of a table's policies for a role.
    failed: BTreeMap<(Oid, String), String>,
}

impl Checks {
    pub(super) async fn make(
        &mut self,
        client: &Client,
        catalog: &Catalog,
        (tables, roles): (&[Oid], &[String]),
    ) -> Result<(), Trouble> {
        let began = Instant::now();
        let limits = Limits {
            statement: Duration::from_secs(2),
            whole: Duration::from_secs(5),
            ..Limits::default()
        };
        let tables = tables.iter().filter_map(|oid| catalog.tables.get(oid));
        for table in tables {
            for role in roles {
                let Some(known) = catalog.roles.get(role).filter(|role| !role.bypass) else {
                    continue;
                };
                let failed = if !known.settable {
                    Some(format!("the login may not become {role}"))
                } else if began.elapsed() >= ALL {
                    Some("there are too many: explain this table alone".to_owned())
                } else {
                    let place = (&**table, role.as_str());
                    match Box::pin(check(client, catalog, place, limits)).await {
                        Ok(found) => {
                            let found = found.into_iter().map(|one| (one.key, one.found));
                            self.found.extend(found);
                            None
                        }
                        Err(Unanswered::Broken(problem)) => {
                            return Err(Trouble::Database(problem));
                        }
                        Err(problem) => Some(problem.to_string()),
                    }
                };
                if let Some(reason) = failed {
                    self.failed.insert((table.oid, role.clone()), reason);
                }
            }
        }
        Ok(())
    }

    /// The policies that are not to be decided natively.
    pub(super) fn refuted(&self) -> Arc<BTreeSet<Refuted>> {
        let differs = |found: &Found| matches!(found, Found::Differs(_));
        let refuted = self.found.iter().filter(|(_, found)| differs(found));
        Arc::new(refuted.map(|(key, _)| key.clone()).collect())
    }

    /// Says of a policy what was found.
    pub(super) fn tell(&self, table: Oid, policy: &mut report::Policy) {
        let role = &policy.explained_for;
        if !policy.applies_to.contains(role) {
            return;
        }
        let key = (table, role.clone(), policy.name.clone());
        let (agrees, tally) = match self.found.get(&key) {
            Some(Found::Agrees(tally)) => (true, *tally),
            Some(Found::Differs(tally)) => (false, *tally),
            Some(Found::NotChecked(reason)) => {
                policy.not_checked = Some(reason.clone());
                return;
            }
            None => {
                if matches!(policy.status, "native" | "hybrid") {
                    policy.not_checked = self.failed.get(&(table, role.clone())).cloned();
                }
                return;
            }
        };
        policy.checked = Some(report::Checked {
            agrees,
            rows: tally.rows,
            verdicts: tally.verdicts,
        });
    }
}
