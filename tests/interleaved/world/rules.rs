//! What decides who sees which rows.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::policies::{FUNCTIONS, Policy, function, inner};
use crate::subscribers::ROLES;

/// A replica identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    Default,
    /// Over the key and columns that decide often.
    Index,
    Full,
}

impl Identity {
    fn sql(self, table: &str) -> String {
        match self {
            Self::Default => format!("alter table {table} replica identity default"),
            Self::Full => format!("alter table {table} replica identity full"),
            Self::Index => format!(
                "create unique index {table}_i on {table} (id, org, u); \
                 alter table {table} replica identity using index {table}_i"
            ),
        }
    }
}

/// The tables that may be granted in part, and how.
const GRANTS: [&str; 4] = ["*", "id, org, seq, s, ok", "id, org, seq, u, n", ""];

#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) by_leaf: bool,
    /// Of `t`, and of the partitions of `p`.
    pub(crate) identities: [Identity; 2],
    pub(crate) policies: Vec<Policy>,
    made: usize,
    secured: BTreeMap<&'static str, bool>,
    forced: BTreeMap<&'static str, bool>,
    /// By role and table, among [`GRANTS`].
    grants: BTreeMap<(&'static str, &'static str), usize>,
    extra: BTreeMap<&'static str, bool>,
    /// Which body each function has.
    bodies: [usize; FUNCTIONS.len()],
    /// The policies of `m` and `g`.
    inner: BTreeMap<&'static str, Vec<String>>,
}

const COLUMNS: &str = "org int NULLS, u uuid NULLS, s text, ok bool, n int, seq bigint not null";

impl Rules {
    pub(crate) fn random(random: &mut StdRng) -> Self {
        let identities = [(); 2].map(|()| {
            *[
                Identity::Full,
                Identity::Full,
                Identity::Index,
                Identity::Default,
            ]
            .choose(random)
            .unwrap()
        });
        let mut rules = Self {
            by_leaf: random.random_bool(0.35),
            identities,
            policies: Vec::new(),
            made: 0,
            secured: [
                ("t", true),
                ("p", true),
                ("m", random.random_bool(0.3)),
                ("g", random.random_bool(0.3)),
            ]
            .into(),
            forced: [("t", false), ("p", false)].into(),
            grants: BTreeMap::new(),
            extra: [("t", false), ("p", false)].into(),
            bodies: [(); FUNCTIONS.len()].map(|()| 0),
            inner: [("m", Vec::new()), ("g", Vec::new())].into(),
        };
        for (at, body) in rules.bodies.iter_mut().enumerate() {
            *body = random.random_range(0..FUNCTIONS[at].1.len());
        }
        for table in ["t", "p"] {
            for _ in 0..random.random_range(1..4) {
                rules.made += 1;
                let policy = Policy::random(random, table, rules.made);
                rules.policies.push(policy);
            }
        }
        for table in ["m", "g"] {
            let text = inner(random, table);
            rules.inner.insert(table, vec![text]);
        }
        rules
    }

    /// NULL is not taken where it may be in an index.
    pub(crate) fn always(&self) -> bool {
        self.identities[0] == Identity::Index
    }

    pub(crate) fn is_whole(&self, table: &str) -> bool {
        self.identities[usize::from(table != "t")] == Identity::Full
    }

    pub(crate) fn published(&self) -> &'static str {
        if self.by_leaf {
            "t, p_a, p_b"
        } else {
            "t, p with (publish_via_partition_root = true)"
        }
    }

    pub(crate) fn sql(&self) -> String {
        let nulls = if self.always() { "not null" } else { "" };
        let mut sql = vec![
            "do $$ begin
               if to_regrole('interleaved_keeper') is null then create role interleaved_keeper; end if;
             end $$;
             grant usage on schema auth to interleaved_keeper;
             create table m (org int, u uuid, s text, ok bool);
             alter table m replica identity full;
             create table g (id int primary key, org int, u uuid, s text, ok bool);
             grant select on m, g to authenticated, anon, service_role, interleaved_keeper"
                .to_owned(),
            include_str!("../oracle.sql").to_owned(),
            format!("create table t (id int primary key, {})", COLUMNS.replace("NULLS", nulls)),
            format!(
                "create table p (id int not null, {}, primary key (id, org)) partition by list (org);
                 create table p_a partition of p for values in (0, 1);
                 create table p_b (gone int, seq bigint not null, n int, s text, u uuid not null,
                   ok bool, org int not null, id int not null);
                 alter table p_b drop gone; alter table p attach partition p_b for values in (2, 3)",
                COLUMNS.replace("NULLS", "not null")
            ),
            "alter table t owner to interleaved_keeper; alter table p owner to interleaved_keeper;
             grant select on t, p, p_a, p_b to authenticated, anon, service_role, interleaved_keeper"
                .to_owned(),
        ];
        for (tables, identity) in [
            (&["t"][..], self.identities[0]),
            (&["p_a", "p_b"], self.identities[1]),
        ] {
            sql.extend(tables.iter().map(|table| identity.sql(table)));
        }
        for at in 0..FUNCTIONS.len() {
            sql.push(function(at, self.bodies[at]));
        }
        for (table, secured) in &self.secured {
            if *secured {
                sql.push(format!("alter table {table} enable row level security"));
            }
        }
        sql.extend(self.policies.iter().map(Policy::sql));
        if self.by_leaf {
            sql.push(
                "alter table p_a enable row level security;
                 create policy own on p_a for select using (p_a.ok or p_a.u = auth.uid());
                 alter table p_b enable row level security;
                 create policy own on p_b for select using (p_b.n is not null)"
                    .to_owned(),
            );
        }
        for (table, policies) in &self.inner {
            for (at, text) in policies.iter().enumerate() {
                sql.push(format!(
                    "create policy i{at} on {table} for select using ({text})"
                ));
            }
        }
        sql.join(";\n")
    }

    /// One change of them.
    pub(crate) fn change(&mut self, random: &mut StdRng, unlocked: bool) -> String {
        // What nobody may read is given back soon.
        if !unlocked
            && let Some((role, table)) = self.withheld()
            && random.random_bool(0.6)
        {
            return self.grant((role, table), 0);
        }
        if !unlocked
            && let Some(table) = ["t", "p"].into_iter().find(|table| !self.secured[table])
            && random.random_bool(0.6)
        {
            return self.secure(table);
        }
        match random.random_range(0..if unlocked { 8 } else { 22 }) {
            0..4 => {
                let at = random.random_range(0..FUNCTIONS.len());
                self.bodies[at] = random.random_range(0..FUNCTIONS[at].1.len());
                function(at, self.bodies[at])
            }
            4..7 => self.change_inner(random),
            7 => {
                let table = *["m", "g"].choose(random).unwrap();
                self.secure(table)
            }
            8 => {
                let table = *["t", "p"].choose(random).unwrap();
                self.secure(table)
            }
            9 => {
                let table = *["t", "p"].choose(random).unwrap();
                let forced = self.forced.get_mut(table).unwrap();
                *forced = !*forced;
                let no = if *forced { "" } else { "no " };
                format!("alter table {table} {no}force row level security")
            }
            10..13 => {
                let role = ROLES[random.random_range(0..3)];
                let table = if self.by_leaf || random.random() {
                    "t"
                } else {
                    "p"
                };
                let grant = *[0, 0, 1, 2, 3].choose(random).unwrap();
                self.grant((role, table), grant)
            }
            13 => {
                let table = *["t", "p"].choose(random).unwrap();
                let extra = self.extra.get_mut(table).unwrap();
                *extra = !*extra;
                let verb = if *extra {
                    "add column x int default 7"
                } else {
                    "drop column x"
                };
                format!("alter table {table} {verb}")
            }
            14 if self.identities[0] != Identity::Index => {
                self.identities[0] = match self.identities[0] {
                    Identity::Full => Identity::Default,
                    Identity::Default | Identity::Index => Identity::Full,
                };
                self.identities[0].sql("t")
            }
            _ => self.change_policy(random),
        }
    }

    fn withheld(&self) -> Option<(&'static str, &'static str)> {
        let withheld = self.grants.iter().find(|(_, grant)| **grant > 0);
        withheld.map(|(of, _)| *of)
    }

    fn grant(&mut self, (role, table): (&'static str, &'static str), grant: usize) -> String {
        self.grants.insert((role, table), grant);
        match GRANTS[grant] {
            "*" => format!("grant select on {table} to {role}"),
            "" => format!("revoke select on {table} from {role}"),
            columns => format!(
                "revoke select on {table} from {role}; grant select ({columns}) on {table} to {role}"
            ),
        }
    }

    fn secure(&mut self, table: &'static str) -> String {
        let secured = self.secured.get_mut(table).unwrap();
        *secured = !*secured;
        let verb = if *secured { "enable" } else { "disable" };
        format!("alter table {table} {verb} row level security")
    }

    fn change_inner(&mut self, random: &mut StdRng) -> String {
        let table = *["m", "g"].choose(random).unwrap();
        let text = inner(random, table);
        let own = self.inner.get_mut(table).unwrap();
        match random.random_range(0..4) {
            0 if own.len() < 3 => {
                self.made += 1;
                let sql = format!(
                    "create policy i{} on {table} for select using ({text})",
                    own.len()
                );
                own.push(text);
                sql
            }
            1 if own.len() > 1 => {
                own.pop();
                format!("drop policy i{} on {table}", own.len())
            }
            _ => {
                let at = random.random_range(0..own.len());
                own[at].clone_from(&text);
                format!("alter policy i{at} on {table} using ({text})")
            }
        }
    }

    fn change_policy(&mut self, random: &mut StdRng) -> String {
        self.made += 1;
        let table = *["t", "p"].choose(random).unwrap();
        let new = Policy::random(random, table, self.made);
        let own: Vec<usize> = (0..self.policies.len())
            .filter(|at| self.policies[*at].table == table)
            .collect();
        if own.is_empty() || own.len() < 5 && random.random_bool(0.3) {
            let sql = new.sql();
            self.policies.push(new);
            return sql;
        }
        let at = *own.choose(random).unwrap();
        if own.len() > 1 && random.random_bool(0.35) {
            let gone = self.policies.remove(at);
            return format!("drop policy {} on {table}", gone.name);
        }
        let policy = &mut self.policies[at];
        (policy.using, policy.levels) = (new.using, new.levels);
        format!(
            "alter policy {} on {table} using ({})",
            policy.name, policy.using
        )
    }
}
