//! Filters of subscribers: whether the relay takes them, and whether old rows carry what they read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::identity::Lacking;
use super::old_rows::Kept;
use super::publication::Listed;
use super::table::{Seen, Tables};
use super::{Finding, Patient, Severity};
use crate::auth::{Claims, Principal};
use crate::metrics::Metrics;
use crate::pg::connect::Database;
use crate::pg::quote_identifier;
use crate::policy::access::{Access, Rules};
use crate::policy::ask::{Asker, asker};
use crate::policy::catalog::{Catalog, Table};
use crate::router::dry_run::{Terms, dry_run};
use crate::subscription::{Condition, Start, Wanted, filter};

/// What is known of the tables and of who subscribes.
pub(super) struct Examined<'a, 'c> {
    pub(super) catalog: &'c Catalog,
    pub(super) tables: &'a Tables<'c>,
    pub(super) listed: &'a Listed,
    pub(super) patient: &'a Patient,
    pub(super) kept: &'a Kept,
}

/// What would be said of a filter to whom.
#[derive(Default)]
struct Said {
    /// The relay's words, and the roles whose clients hear them.
    refusals: BTreeMap<String, Vec<String>>,
    notices: BTreeMap<String, Vec<String>>,
    asked: bool,
    /// Whether something could not be asked.
    unknown: bool,
}

impl<'c> Examined<'_, 'c> {
    /// Tries the filters that were given on the table that they are meant for.
    pub(super) async fn findings(
        &self,
        database: &Database,
        lacking: &mut Lacking<'c>,
        unseen: &mut Vec<String>,
    ) -> Vec<Finding> {
        let [seen] = self.tables.seen.as_slice() else {
            // Why there is none was said; which of several is meant nobody knows.
            return Vec::new();
        };
        let roles = self.roles(seen);
        if self.patient.filters.is_empty() || roles.is_empty() {
            return Vec::new();
        }
        let limit = self.patient.config.ask_timeout;
        let (asker, task) = asker(database.clone(), Arc::new(Metrics::new()), limit);
        let trying = async {
            let mut found = Vec::new();
            for text in &self.patient.filters {
                found.extend(
                    self.one((seen, &roles), (&asker, text), lacking, unseen)
                        .await,
                );
            }
            found
        };
        tokio::select! {
            found = trying => found,
            () = task => Vec::new(),
        }
    }

    /// The roles under which somebody can subscribe: the token's, or all that may.
    fn roles(&self, seen: &Seen<'c>) -> Vec<String> {
        let table = seen.table;
        let may = |role: &str| {
            let access = Access::new(self.catalog, table, role);
            let refused = matches!(access.rules, Rules::Nothing(_));
            !refused && self.patient.config.require.lacks(table, role).is_none()
        };
        if let Some(role) = self.tables.holds() {
            return may(role).then(|| role.to_owned()).into_iter().collect();
        }
        let each = seen.accesses.iter();
        each.filter(|(role, access)| !access.hides_all && may(role))
            .map(|(role, _)| (*role).to_owned())
            .collect()
    }

    async fn one(
        &self,
        (seen, roles): (&Seen<'c>, &[String]),
        (asker, text): (&Asker, &str),
        lacking: &mut Lacking<'c>,
        unseen: &mut Vec<String>,
    ) -> Vec<Finding> {
        let table = seen.table;
        let name = self.tables.names.of(table);
        let conditions = match filter::parse(text) {
            Ok(conditions) => conditions,
            Err(error) => {
                let finding = refused(&name, text, &error.to_string());
                return vec![finding.advice(
                    "A filter is column=operator.value, several with commas between them: \
                     docs/protocol.md has its grammar.",
                )];
            }
        };
        let said = self.said((table, roles), asker, &conditions).await;
        if said.unknown {
            unseen.push(format!(
                "whether the filter {text} on {name} is taken: PostgreSQL could not be asked"
            ));
        }
        let mut found = Vec::new();
        for (reason, of) in &said.refusals {
            let all = of.len() == roles.len();
            let in_focus = of.iter().any(|role| role == self.tables.focus());
            let mut finding = refused(&name, text, reason).of_severity(if all || in_focus {
                Severity::Error
            } else {
                Severity::Warning
            });
            if let ([role], false) = (of.as_slice(), roles.len() == 1) {
                finding = finding.role(role.as_str());
            }
            found.push(self.mended(finding, (table, &name), of, &conditions));
        }
        let columns: BTreeSet<&str> = conditions.iter().map(|one| one.column.as_str()).collect();
        let missing: Vec<&str> = columns
            .into_iter()
            .filter(|column| !carries(table, column, self.kept))
            .collect();
        // What policies read is a finding of its own.
        let notices = said.notices.keys().filter(|_| !missing.is_empty());
        if let Some(notices) = notices.max_by_key(|notice| notice.len()) {
            lacking.add((table, &name), missing.iter().copied());
            let text = format!("with the filter {text}: {notices}");
            found.push(self.identity((table, &name), text, &missing));
        }
        if said.asked {
            found.push(
                Finding::note(
                    "filter_asked",
                    format!(
                        "the filter {text} on {name} is not decided by the relay: PostgreSQL is asked \
                         about each row, once for all who have the same"
                    ),
                )
                .table(name.as_str())
                .advice(
                    "docs/protocol.md (Filters) has the operators and types that the relay decides \
                     itself.",
                ),
            );
        }
        found
    }

    /// What the relay would say of a filter to clients of these roles.
    async fn said(
        &self,
        (table, roles): (&Table, &[String]),
        asker: &Asker,
        conditions: &[Condition],
    ) -> Said {
        let config = &self.patient.config;
        let terms = Terms {
            require: config.require,
            delete_without_identity: config.delete_without_identity,
            old_rows: self.kept,
        };
        let wanted = [Wanted {
            id: 1,
            events: self.patient.events,
            schema: Some(table.schema.clone()),
            table: Some(table.name.clone()),
            filter: conditions.to_vec(),
            select: None,
            leave: self.patient.events.deletes(),
            start: Start::default(),
        }];
        let mut said = Said::default();
        for role in roles {
            let principal = Principal {
                role: role.as_str().into(),
                claims: Claims::verified("{}".to_owned()),
                expires_at: None,
            };
            let run = dry_run((self.catalog, terms), asker, &principal, &wanted);
            let Some(outcome) = run.await else {
                said.unknown = true;
                continue;
            };
            for refusal in outcome.refusals {
                let of = said.refusals.entry(refusal.reason).or_default();
                of.push(role.clone());
            }
            // What mends it follows in statements.
            let notices = outcome.notices.iter();
            let notices = notices.map(|one| one.split(". To have it").next().unwrap_or(one));
            let notices = notices.collect::<Vec<_>>().join(". ");
            if !notices.is_empty() {
                said.notices.entry(notices).or_default().push(role.clone());
            }
            said.asked |= outcome.asked;
        }
        said
    }

    /// What mends a refusal, where a column is the reason.
    fn mended(
        &self,
        mut finding: Finding,
        (table, name): (&Table, &str),
        roles: &[String],
        conditions: &[Condition],
    ) -> Finding {
        let mut advice = Vec::new();
        for condition in conditions {
            let column = &condition.column;
            let quoted = quote_identifier(column);
            let Some(known) = table.column(column) else {
                let mut alike = table.columns.iter();
                let folded = alike.find(|one| one.name.to_lowercase() == column.to_lowercase());
                advice.push(match folded {
                    Some(other) => format!(
                        "{name} has no column {column}; it has {}: write it as it is, without quotes.",
                        other.name
                    ),
                    None => format!("{name} has no column {column}."),
                });
                continue;
            };
            for role in roles {
                let mut rights = table.rights.iter().filter(|one| one.role == *role);
                if rights.any(|one| !one.columns.contains(&known.number)) {
                    let role = quote_identifier(role);
                    finding =
                        finding.sql(format!("grant select ({quoted}) on table {name} to {role}"));
                }
            }
            if !table.publishes(column) {
                finding.sql.extend(self.listed.whole(name));
                advice.push(format!("The publication leaves out {column}."));
            }
        }
        if finding.sql.is_empty() && advice.is_empty() {
            advice.push("Correct the filter; docs/protocol.md has its grammar.".to_owned());
        }
        if advice.is_empty() {
            finding
        } else {
            finding.advice(advice.join(" "))
        }
    }

    /// Old rows do not carry what filters read.
    fn identity(&self, (table, name): (&Table, &str), text: String, missing: &[&str]) -> Finding {
        let mut finding = Finding::warning("filter_identity", text).table(name);
        for leaf in self.listed.leaves(table.oid.0) {
            finding = finding.sql(format!("alter table {leaf} replica identity full"));
        }
        let columns: Vec<String> = missing
            .iter()
            .map(|column| format!("{name}.{}", quote_identifier(column)))
            .collect();
        let columns = columns.join(",");
        finding
            .sql(format!("alter table {name} replica identity full"))
            .advice(format!(
                "`rowcast setup --only identity --filter-column {columns}` does it, and its --remove \
                 takes it back. Without a change to the database: ROWCAST_OLD_ROWS={columns}, and the \
                 relay keeps in memory what is read of its rows."
            ))
    }

    /// The same of the filters of those who are subscribed now.
    pub(super) fn of_subscribers(&self, lacking: &mut Lacking<'c>) -> Vec<Finding> {
        let mut by_table: HashMap<_, Vec<_>> = HashMap::new();
        for one in &self.patient.filtered {
            by_table.entry(one.table).or_default().push(one);
        }
        let mut found = Vec::new();
        for seen in &self.tables.seen {
            let table = seen.table;
            let mut missing: Vec<_> = by_table.remove(&table.oid).unwrap_or_default();
            missing.retain(|one| !carries(table, &one.column, self.kept));
            if missing.is_empty() || !self.catalog.deletes {
                continue;
            }
            missing.sort_by(|a, b| a.column.cmp(&b.column));
            let name = self.tables.names.of(table);
            let columns: Vec<&str> = missing.iter().map(|one| &*one.column).collect();
            let said: Vec<String> = missing
                .iter()
                .map(|one| match one.subscribers {
                    1 => format!("{}, by which 1 subscriber filters", one.column),
                    many => format!("{}, by which {many} subscribers filter", one.column),
                })
                .collect();
            lacking.add((table, &name), columns.iter().copied());
            let text = format!("DELETEs of {name} do not carry {}", said.join(", and "));
            found.push(self.identity((table, &name), text, &columns));
        }
        found
    }
}

/// Whether old rows of a table carry a column, or the relay keeps it.
fn carries(table: &Table, column: &str, kept: &Kept) -> bool {
    let mut kept = kept.get(&table.oid).into_iter();
    let kept = kept.any(|kept| kept.columns.iter().any(|one| *one.name == *column));
    // What is no column is refused.
    kept || table
        .column(column)
        .is_none_or(|known| table.identity_carries(known))
}

/// The relay does not take a filter; `reason` is what clients are told.
fn refused(name: &str, text: &str, reason: &str) -> Finding {
    Finding::error(
        "filter_refused",
        format!("subscriptions to {name} with the filter {text} are refused: {reason}"),
    )
    .table(name)
}
