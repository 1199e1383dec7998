//! A random table with policies, a replica identity and perhaps partitions, who watches it, and
//! what is done to it.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::harness::{ANN, BEN};

pub(super) const CAT: &str = "00000000-0000-4000-8000-00000000000c";
pub(super) const USERS: [&str; 3] = [ANN, BEN, CAT];

/// How the table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One table.
    Plain,
    /// Partitions, published under their root's name.
    ViaRoot,
    /// Partitions, published one by one.
    ByLeaf,
}

/// A replica identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    Default,
    /// Over the key and these columns.
    Index(&'static [&'static str]),
    Full,
}

/// What the relay itself keeps of old rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    /// What policies read.
    Read,
    /// All columns.
    All,
}

/// A condition and the columns that it reads; `{t}` stands for the table's name.
pub(super) type Condition = (&'static str, &'static [&'static str]);

const POLICIES: [Condition; 10] = [
    ("owner = auth.uid()", &["owner"]),
    ("owner = auth.uid()", &["owner"]),
    ("open or owner = auth.uid()", &["open", "owner"]),
    ("grp in (0, 2)", &["grp"]),
    ("n > 3", &["n"]),
    ("n is not null and owner = auth.uid()", &["n", "owner"]),
    ("(auth.jwt() ->> 'level')::int > n", &["n"]),
    ("gen > 6", &["gen"]),
    // PostgreSQL is asked.
    (
        "length(n::text || coalesce(left(note, 3), '')) > 1 and owner = auth.uid()",
        &["n", "note", "owner"],
    ),
    (
        "exists (select from members m where m.grp = {t}.grp and m.uid = auth.uid())",
        &["grp"],
    ),
];

/// A filter as clients write it, as SQL, and the columns that it reads.
pub(super) type Filter = (&'static str, &'static str, &'static [&'static str]);

const FILTERS: [Filter; 11] = [
    ("", "true", &[]),
    ("", "true", &[]),
    ("", "true", &[]),
    ("n=gt.3", "n > 3", &["n"]),
    ("n=is.null", "n is null", &["n"]),
    ("open=eq.true", "open", &["open"]),
    ("grp=in.(1,2)", "grp in (1, 2)", &["grp"]),
    ("note=eq.a", "note = 'a'", &["note"]),
    ("gen=lt.9", "gen < 9", &["gen"]),
    // PostgreSQL is asked.
    ("note=match.^a", "note ~ '^a'", &["note"]),
    (
        "open=eq.true,note=imatch.B",
        "open and note ~* 'B'",
        &["note", "open"],
    ),
];

/// A table.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) shape: Shape,
    /// Of the table, or of each partition.
    pub(super) identities: [Identity; 2],
    /// Permissive ones; what a partition has besides is in `leaf_policies`.
    pub(super) policies: Vec<Condition>,
    pub(super) restrictive: Option<Condition>,
    pub(super) leaf_policies: Vec<Condition>,
    /// Whether `note` may be stored out of line.
    pub(super) large: bool,
    /// Whether everybody is told of leaves.
    pub(super) all: bool,
    pub(super) kept: Kept,
}

impl World {
    pub(super) fn random(random: &mut StdRng) -> Self {
        let identity = |random: &mut StdRng| match random.random_range(0..7) {
            0 => Identity::Default,
            1 => Identity::Index(&["owner"]),
            2 => Identity::Index(&["owner", "open"]),
            _ => Identity::Full,
        };
        let first = identity(random);
        let shapes = [Shape::Plain, Shape::Plain, Shape::ViaRoot, Shape::ByLeaf];
        let policy = |random: &mut StdRng| *POLICIES.choose(random).unwrap();
        let leaf_policies = (0..2).map(|_| policy(random)).collect();
        Self {
            shape: *shapes.choose(random).unwrap(),
            identities: [
                first,
                if random.random_bool(0.5) {
                    first
                } else {
                    identity(random)
                },
            ],
            policies: (0..random.random_range(1..3))
                .map(|_| policy(random))
                .collect(),
            restrictive: random.random_bool(0.3).then(|| policy(random)),
            leaf_policies,
            large: random.random_bool(0.25),
            all: random.random_bool(0.2),
            kept: *[Kept::Nothing, Kept::Nothing, Kept::Read, Kept::All]
                .choose(random)
                .unwrap(),
        }
    }

    /// The tables that are watched.
    pub(super) fn tables(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::Plain | Shape::ViaRoot => &["t"],
            Shape::ByLeaf => &["t_a", "t_b"],
        }
    }

    /// The table that a row of this group is published as.
    pub(super) const fn table_of(&self, grp: i32) -> &'static str {
        match self.shape {
            Shape::Plain | Shape::ViaRoot => "t",
            Shape::ByLeaf => Self::leaf(grp),
        }
    }

    pub(super) const fn leaf(grp: i32) -> &'static str {
        if grp < 2 { "t_a" } else { "t_b" }
    }

    pub(super) const fn key(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::Plain => &["id"],
            Shape::ViaRoot | Shape::ByLeaf => &["id", "grp"],
        }
    }

    /// Whether of the old rows of a published table all of these columns are known.
    pub(super) fn carries(&self, table: &str, columns: &[&str]) -> bool {
        let mut columns = columns.iter();
        columns.all(|name| self.streams(table, name) || self.keeps(table, name))
    }

    /// Whether the old rows in the stream carry a column.
    fn streams(&self, table: &str, name: &str) -> bool {
        let carries = |identity: Identity| match identity {
            Identity::Full => true,
            Identity::Default => self.key().contains(&name),
            Identity::Index(more) => self.key().contains(&name) || more.contains(&name),
        };
        match self.shape {
            Shape::Plain => carries(self.identities[0]),
            Shape::ViaRoot => self.identities.iter().all(|identity| carries(*identity)),
            Shape::ByLeaf => carries(self.identities[usize::from(table == "t_b")]),
        }
    }

    /// Whether the relay itself keeps a column, as far as the stream tells of it.
    fn keeps(&self, table: &str, name: &str) -> bool {
        let mut identities = self.identities.iter();
        let tells = self.shape != Shape::ViaRoot
            || identities.all(|one| matches!(one, Identity::Default | Identity::Full));
        let named = match self.kept {
            Kept::Nothing => false,
            // Of what is computed, what it is computed from.
            Kept::Read => {
                let mut read = self.reads(table).into_iter();
                read.any(|read| read == name || read == "gen" && name == "n")
            }
            Kept::All => true,
        };
        tells && named && name != "gen"
    }

    /// The setting, and how many tables come to be kept.
    pub(super) fn old_rows(&self) -> (String, usize) {
        let behind = match self.kept {
            Kept::Nothing => return (String::new(), 0),
            Kept::Read => "",
            Kept::All => ".*",
        };
        let names = self.tables().iter();
        let names: Vec<String> = names.map(|name| format!("public.{name}{behind}")).collect();
        let columns = ["id", "grp", "owner", "open", "n", "note", "seq"];
        let kept = |table: &&&str| {
            let mut columns = columns.iter();
            columns.any(|name| self.keeps(table, name) && !self.streams(table, name))
        };
        (names.join(","), self.tables().iter().filter(kept).count())
    }

    /// What the policies of a published table and of its ancestors read.
    pub(super) fn reads(&self, table: &str) -> Vec<&'static str> {
        let mut policies: Vec<Condition> = self.policies.clone();
        policies.extend(self.restrictive);
        if self.shape == Shape::ByLeaf {
            policies.push(self.leaf_policies[usize::from(table == "t_b")]);
        }
        policies
            .iter()
            .flat_map(|(_, reads)| *reads)
            .copied()
            .collect()
    }

    pub(super) fn sql(&self) -> String {
        let columns = "id int not null, grp int not null, owner uuid not null, open bool not null, \
             n int, note text, seq int, gen int generated always as (coalesce(n, 1) * 2) stored";
        let mut sql = vec![
            "create table members (grp int, uid uuid); grant select on members to authenticated"
                .to_owned(),
            format!(
                "insert into members values (0, '{ANN}'), (1, '{ANN}'), (1, '{BEN}'), (2, '{CAT}'), (3, '{BEN}')"
            ),
        ];
        let key = self.key().join(", ");
        let partitioned = self.shape != Shape::Plain;
        let by = if partitioned {
            "partition by list (grp)"
        } else {
            ""
        };
        sql.push(format!(
            "create table t ({columns}, primary key ({key})) {by}"
        ));
        sql.push("alter table t alter note set storage external".to_owned());
        if partitioned {
            sql.push("create table t_a partition of t for values in (0, 1)".to_owned());
            // Its columns lie elsewhere.
            sql.push(
                "create table t_b (gone int, note text, n int, seq int, open bool not null, \
                 owner uuid not null, grp int not null, id int not null, \
                 gen int generated always as (coalesce(n, 1) * 2) stored)"
                    .to_owned(),
            );
            sql.push(
                "alter table t_b alter note set storage external; alter table t_b drop gone; \
                 alter table t attach partition t_b for values in (2, 3)"
                    .to_owned(),
            );
        }
        let held: &[&str] = if partitioned { &["t_a", "t_b"] } else { &["t"] };
        for (table, identity) in held.iter().zip(self.identities) {
            match identity {
                Identity::Default => {}
                Identity::Full => sql.push(format!("alter table {table} replica identity full")),
                Identity::Index(more) => sql.push(format!(
                    "create unique index {table}_i on {table} ({key}, {}); \
                     alter table {table} replica identity using index {table}_i",
                    more.join(", ")
                )),
            }
        }
        let policy = |table: &str, name: String, kind: &str, (condition, _): Condition| {
            let condition = condition.replace("{t}", table);
            format!("create policy {name} on {table} as {kind} using ({condition})")
        };
        sql.push("alter table t enable row level security".to_owned());
        for (number, one) in self.policies.iter().enumerate() {
            sql.push(policy("t", format!("p{number}"), "permissive", *one));
        }
        if let Some(one) = self.restrictive {
            sql.push(policy("t", "r".to_owned(), "restrictive", one));
        }
        if partitioned {
            for (table, one) in held.iter().zip(&self.leaf_policies) {
                sql.push(format!("alter table {table} enable row level security"));
                sql.push(policy(table, "p".to_owned(), "permissive", *one));
            }
            sql.push("grant select on t_a, t_b to authenticated".to_owned());
        }
        sql.push("grant select on t to authenticated".to_owned());
        sql.join(";\n")
    }

    /// What follows `create publication … for table fence,`.
    pub(super) const fn published(&self) -> &'static str {
        match self.shape {
            Shape::Plain => "t",
            Shape::ViaRoot => "t with (publish_via_partition_root = true)",
            Shape::ByLeaf => "t_a, t_b",
        }
    }
}

/// A row without what is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: i32,
    pub(super) grp: i32,
    owner: &'static str,
    open: bool,
    n: Option<i32>,
    note: Option<String>,
}

impl Row {
    fn random(random: &mut StdRng, id: i32, large: bool) -> Self {
        Self {
            id,
            grp: random.random_range(0..4),
            owner: USERS.choose(random).unwrap(),
            open: random.random(),
            n: Self::n(random),
            note: Self::note(random, large),
        }
    }

    fn n(random: &mut StdRng) -> Option<i32> {
        random.random_bool(0.85).then(|| random.random_range(0..13))
    }

    fn note(random: &mut StdRng, large: bool) -> Option<String> {
        let text = match random.random_range(0..6) {
            0 => return None,
            1 | 2 => "a",
            3 => "b",
            4 => "abc",
            _ => "Bcd",
        };
        let large = large && random.random_bool(0.5);
        Some(if large {
            text.repeat(3000)
        } else {
            text.to_owned()
        })
    }
}

/// A change of one row.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Insert(Row),
    Update(Row, Row),
    Delete(Row),
}

impl Change {
    /// One that `rows` permit; `next` is the next key.
    pub(super) fn random(random: &mut StdRng, rows: &[Row], next: i32, large: bool) -> Self {
        let Some(old) = rows.choose(random) else {
            return Self::Insert(Row::random(random, next, large));
        };
        match random.random_range(0..10) {
            0 | 1 if rows.len() < 12 => Self::Insert(Row::random(random, next, large)),
            2 => Self::Delete(old.clone()),
            _ => {
                let mut new = old.clone();
                for _ in 0..random.random_range(1..3) {
                    match random.random_range(0..13) {
                        0..4 => new.owner = USERS.choose(random).unwrap(),
                        4..6 => new.open = !new.open,
                        6..9 => new.n = Row::n(random),
                        9 | 10 => new.note = Row::note(random, large),
                        11 => new.grp = random.random_range(0..4),
                        _ => new.id = next,
                    }
                }
                Self::Update(old.clone(), new)
            }
        }
    }

    pub(super) const fn before(&self) -> Option<&Row> {
        match self {
            Self::Insert(_) => None,
            Self::Update(old, _) | Self::Delete(old) => Some(old),
        }
    }

    pub(super) const fn after(&self) -> Option<&Row> {
        match self {
            Self::Insert(new) | Self::Update(_, new) => Some(new),
            Self::Delete(_) => None,
        }
    }

    /// `seq` makes an update one even where it changes nothing else.
    pub(super) fn sql(&self, seq: u64) -> String {
        let text = |note: &Option<String>| {
            note.as_ref()
                .map_or_else(|| "null".to_owned(), |note| format!("'{note}'"))
        };
        let number = |n: Option<i32>| n.map_or_else(|| "null".to_owned(), |n| n.to_string());
        match self {
            Self::Insert(row) => format!(
                "insert into t (id, grp, owner, open, n, note, seq) values ({}, {}, '{}', {}, {}, {}, {seq})",
                row.id,
                row.grp,
                row.owner,
                row.open,
                number(row.n),
                text(&row.note)
            ),
            Self::Delete(row) => format!("delete from t where id = {}", row.id),
            Self::Update(old, new) => {
                // What it does not name stays where it is stored.
                let mut set = vec![format!("seq = {seq}")];
                let mut change = |differs: bool, what: String| {
                    if differs {
                        set.push(what);
                    }
                };
                change(old.id != new.id, format!("id = {}", new.id));
                change(old.grp != new.grp, format!("grp = {}", new.grp));
                change(old.owner != new.owner, format!("owner = '{}'", new.owner));
                change(old.open != new.open, format!("open = {}", new.open));
                change(old.n != new.n, format!("n = {}", number(new.n)));
                change(old.note != new.note, format!("note = {}", text(&new.note)));
                format!("update t set {} where id = {}", set.join(", "), old.id)
            }
        }
    }
}

/// Who watches what.
#[derive(Debug, Clone)]
pub(super) struct Who {
    pub(super) user: &'static str,
    pub(super) table: &'static str,
    pub(super) event: &'static str,
    pub(super) filter: Filter,
    pub(super) select: Option<&'static [&'static str]>,
    pub(super) leave: bool,
}

impl Who {
    pub(super) fn random(random: &mut StdRng, user: &'static str, table: &'static str) -> Self {
        let event = *["*", "*", "*", "DELETE", "UPDATE"].choose(random).unwrap();
        Self {
            user,
            table,
            event,
            filter: *FILTERS.choose(random).unwrap(),
            select: random.random_bool(0.2).then_some(&["open"]),
            leave: event != "UPDATE" && random.random_bool(0.7),
        }
    }

    pub(super) fn claims(&self) -> serde_json::Value {
        let level = USERS.iter().position(|user| *user == self.user).unwrap() * 4;
        serde_json::json!({"sub": self.user, "level": level})
    }
}
