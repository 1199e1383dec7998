//! What decides who sees which rows of table t, as SQL.

use std::collections::BTreeMap;

use super::grammar::{COLUMNS, Policy, Row, literal, quoted};

/// The roles that watch: the owner of the table, and a member of `authenticated`, among them.
pub(super) const ROLES: [&str; 9] = [
    "authenticated",
    "authenticated",
    "authenticated",
    "authenticated",
    "anon",
    "anon",
    "differential_member",
    "differential_owner",
    "service_role",
];

/// Bodies of the function that policies ask.
pub(super) const DECISIONS: [&str; 4] = [
    "who = auth.uid()",
    "n > 1",
    "10 / n > 4",
    "exists (select 1 from m where org = n)",
];

const SCHEMA: &str = "
    do $$ begin
      if to_regrole('differential_member') is null then
        create role differential_member inherit;
        grant authenticated to differential_member;
        create role differential_owner;
      end if;
    end $$;
    grant usage on schema auth to differential_owner;
    create type mood as enum ('sad', 'ok', 'meh');
    create table m (org int, uid uuid);
    alter table m enable row level security;
    create policy own on m using (uid = auth.uid());
    grant select on m to authenticated, anon, service_role, differential_owner;
    create function mine(who uuid) returns bool language sql stable
      as 'select who = auth.uid()';";

/// What a role may select of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    All,
    Columns(&'static str),
    None,
}

impl Grant {
    pub(super) fn sql(self, role: &str) -> String {
        let revoke = format!("revoke select on t from {role}");
        match self {
            Self::All => format!("grant select on t to {role}"),
            Self::Columns(columns) => {
                format!("{revoke}; grant select ({columns}) on t to {role}")
            }
            Self::None => revoke,
        }
    }
}

/// The table and what decides about its rows.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// Whether the replica identity is the full row.
    pub(super) full: bool,
    pub(super) policies: Vec<Policy>,
    pub(super) enabled: bool,
    pub(super) forced: bool,
    pub(super) grants: BTreeMap<&'static str, Grant>,
    /// Which of [`DECISIONS`] the function makes.
    pub(super) decision: usize,
    pub(super) members: Vec<(i32, &'static str)>,
    /// Whether there is one more column.
    pub(super) extra: bool,
}

impl Setting {
    /// Makes all of it.
    pub(super) fn sql(&self) -> String {
        let columns = COLUMNS.map(|(name, of, _)| format!("{name} {of}"));
        let mut sql = vec![
            SCHEMA.to_owned(),
            format!(
                "create table t (id int primary key, {})",
                columns.join(", ")
            ),
            "alter table t owner to differential_owner".to_owned(),
            self.decision_sql(),
        ];
        if self.extra {
            sql.push("alter table t add column x int default 7".to_owned());
        }
        if self.full {
            sql.push("alter table t replica identity full".to_owned());
        }
        if self.enabled {
            sql.push("alter table t enable row level security".to_owned());
        }
        if self.forced {
            sql.push("alter table t force row level security".to_owned());
        }
        sql.extend(self.policies.iter().map(Policy::sql));
        sql.extend(self.grants.iter().map(|(role, grant)| grant.sql(role)));
        for (org, uid) in &self.members {
            sql.push(format!("insert into m values ({org}, '{uid}')"));
        }
        sql.join(";\n")
    }

    pub(super) fn decision_sql(&self) -> String {
        format!(
            "create or replace function decides(who uuid, n int) returns bool \
             language plpgsql stable as {}",
            quoted(&format!(
                "begin for i in 1..1 loop perform 1; end loop; return {}; end",
                DECISIONS[self.decision]
            ))
        )
    }

    /// Whether no policy can hold this role back.
    pub(super) fn is_open_to(&self, role: &str) -> bool {
        !self.enabled || role == "service_role" || (role == "differential_owner" && !self.forced)
    }
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Insert {
        id: i32,
        new: Row,
    },
    Update {
        id: i32,
        to: i32,
        old: Row,
        new: Row,
    },
    Delete {
        id: i32,
        old: Row,
    },
}

impl Change {
    /// The row before by its key.
    pub(super) fn before(&self) -> Option<(i32, &Row)> {
        match self {
            Self::Insert { .. } => None,
            Self::Update { id, old, .. } | Self::Delete { id, old } => Some((*id, old)),
        }
    }

    /// The row afterwards by its key.
    pub(super) fn after(&self) -> Option<(i32, &Row)> {
        match self {
            Self::Insert { id, new } | Self::Update { to: id, new, .. } => Some((*id, new)),
            Self::Delete { .. } => None,
        }
    }

    /// The type of its event, and the row's key there.
    pub(super) fn event(&self) -> (&'static str, i32) {
        match self {
            Self::Insert { id, .. } => ("INSERT", *id),
            Self::Update { to, .. } => ("UPDATE", *to),
            Self::Delete { id, .. } => ("DELETE", *id),
        }
    }

    pub(super) fn sql(&self) -> String {
        match self {
            Self::Insert { id, new } => insert(*id, new),
            Self::Update { id, to, old, new } => {
                let mut set: Vec<String> = COLUMNS
                    .iter()
                    .zip(old.iter().zip(new))
                    .filter(|(_, (old, new))| old != new)
                    .map(|((name, _, _), (_, new))| format!("{name} = {}", literal(*new)))
                    .collect();
                if to != id || set.is_empty() {
                    set.push(format!("id = {to}"));
                }
                format!("update t set {} where id = {id}", set.join(", "))
            }
            Self::Delete { id, .. } => format!("delete from t where id = {id}"),
        }
    }
}

pub(super) fn insert(id: i32, row: &Row) -> String {
    let values = row.map(literal);
    format!("insert into t values ({id}, {})", values.join(", "))
}
