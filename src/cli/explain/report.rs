//! What is printed with `--json`, in the order in which docs/explain.md has it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::lookup::Wanted;

/// Everything.
#[derive(Serialize)]
pub(super) struct Report {
    /// The version of this shape.
    pub(super) version: u32,
    pub(super) server: Server,
    /// What could not be seen or done.
    pub(super) notes: Vec<String>,
    pub(super) roles: Vec<String>,
    pub(super) tables: Vec<Table>,
    pub(super) totals: Totals,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) row: Option<Row>,
}

impl Report {
    pub(super) fn differs(&self) -> bool {
        let policies = self.tables.iter().flat_map(|table| &table.policies);
        let mut checked = policies.filter_map(|policy| policy.checked.as_ref());
        checked.any(|one| !one.agrees) || self.row.as_ref().is_some_and(|row| row.differs)
    }
}

#[derive(Serialize)]
pub(super) struct Server {
    pub(super) version: u32,
    pub(super) standby: bool,
    pub(super) login: String,
    pub(super) publication: Option<String>,
}

#[derive(Serialize, Default, Clone)]
pub(super) struct Totals {
    pub(super) tables: usize,
    pub(super) policies: usize,
    pub(super) native: usize,
    pub(super) hybrid: usize,
    pub(super) asked: usize,
    pub(super) deny: usize,
    /// By letter; "none" for what no level has.
    pub(super) levels: BTreeMap<&'static str, usize>,
}

impl Totals {
    pub(super) fn count(&mut self, policy: &Policy) {
        self.policies += 1;
        *match policy.status {
            "native" => &mut self.native,
            "hybrid" => &mut self.hybrid,
            "asked" => &mut self.asked,
            _ => &mut self.deny,
        } += 1;
        *self
            .levels
            .entry(policy.level.unwrap_or("none"))
            .or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.tables += other.tables;
        self.policies += other.policies;
        self.native += other.native;
        self.hybrid += other.hybrid;
        self.asked += other.asked;
        self.deny += other.deny;
        for (level, count) in &other.levels {
            *self.levels.entry(level).or_default() += count;
        }
    }
}

#[derive(Serialize)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) published: bool,
    pub(super) row_security: bool,
    pub(super) force_row_security: bool,
    /// What is known of the row before an UPDATE or DELETE.
    pub(super) old_rows: OldRows,
    pub(super) policies: Vec<Policy>,
    pub(super) roles: Vec<Role>,
    pub(super) totals: Totals,
}

impl Table {
    /// Why something is asked, or nothing is seen.
    pub(super) fn reasons(&mut self) -> impl Iterator<Item = &mut String> {
        let policies = self.policies.iter_mut().flat_map(|policy| {
            let others = policy.by_role.values_mut();
            let others = others.flat_map(|other| &mut other.reasons);
            let own = policy.reasons.iter_mut().chain(&mut policy.raises);
            own.chain(others)
        });
        let roles = self.roles.iter_mut();
        policies.chain(roles.filter_map(|role| role.reason.as_mut()))
    }
}

/// The row before an UPDATE or DELETE.
#[derive(Serialize)]
pub(super) struct OldRows {
    /// The replica identity: "key", "index", "full", "nothing"; "relay" where `old_rows` has the relay
    /// keep them itself.
    pub(super) from: &'static str,
    /// The columns that are known of it.
    pub(super) columns: Vec<String>,
    /// Those that policies read besides: DELETEs are not judged, and reach nobody.
    pub(super) lacks: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Policy {
    pub(super) name: String,
    /// "policy" or "rule".
    pub(super) kind: &'static str,
    pub(super) permissive: bool,
    /// For which of the explained roles it applies.
    pub(super) applies_to: Vec<String>,
    /// The role for which it is explained here.
    pub(super) explained_for: String,
    pub(super) using: Option<String>,
    pub(super) level: Option<&'static str>,
    pub(super) status: &'static str,
    pub(super) reasons: Vec<String>,
    /// Why PostgreSQL raises an error where it comes to that: rows for which it does are hidden.
    pub(super) raises: Vec<String>,
    pub(super) columns: Vec<String>,
    pub(super) claims: Vec<String>,
    pub(super) lookups: Vec<Lookup>,
    /// "index", "scan" or "row".
    pub(super) audience: &'static str,
    /// What holding what is compiled of it against PostgreSQL has found, for that role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checked: Option<Checked>,
    /// Why that was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_checked: Option<String>,
    /// Where it is something else for another role.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) by_role: BTreeMap<String, ByRole>,
}

#[derive(Serialize)]
pub(super) struct ByRole {
    pub(super) status: &'static str,
    pub(super) reasons: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Lookup {
    pub(super) table: String,
    pub(super) columns: Vec<String>,
    /// Why it cannot be mirrored: the policy is asked then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_mirrored: Option<String>,
    #[serde(skip)]
    pub(super) wanted: Wanted,
}

#[derive(Serialize)]
pub(super) struct Role {
    pub(super) role: String,
    /// "nothing", "everything", or "judged".
    pub(super) sees: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// Whether PostgreSQL may have to be asked.
    pub(super) asked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) audience: Option<&'static str>,
}

/// A row and a client.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) role: String,
    /// Whether the login may read the row, so that values can be shown.
    pub(super) readable: bool,
    /// What the client gets of it: true, false, or null where that is not known.
    pub(super) visible: Option<bool>,
    /// PostgreSQL's own verdict: "visible", "hidden", "unknown" or "error".
    pub(super) postgresql: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) postgresql_says: Option<String>,
    /// The policies that decided, by name.
    pub(super) decided_by: Vec<String>,
    pub(super) because: String,
    pub(super) policies: Vec<Judged>,
    /// Whether the relay decides something natively that PostgreSQL decides otherwise.
    pub(super) differs: bool,
}

#[derive(Serialize)]
pub(super) struct Judged {
    pub(super) name: String,
    pub(super) permissive: bool,
    /// "true", "not true", "error", or "unknown".
    pub(super) postgresql: &'static str,
    /// "true", "false", "null", "error", or "undecided".
    pub(super) relay: &'static str,
    /// Why it is undecided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) undecided_because: Option<String>,
    /// The columns that it reads, as the login reads them.
    pub(super) values: BTreeMap<String, Option<String>>,
    /// The rows of other tables without which the relay would decide otherwise.
    pub(super) lookups: Vec<Looked>,
}

#[derive(Serialize)]
pub(super) struct Looked {
    pub(super) table: String,
    pub(super) values: BTreeMap<String, Option<String>>,
}

/// What holding a policy against PostgreSQL has found.
#[derive(Serialize, Clone)]
pub(super) struct Checked {
    /// Whether every verdict was PostgreSQL's.
    pub(super) agrees: bool,
    pub(super) rows: usize,
    pub(super) verdicts: usize,
}
