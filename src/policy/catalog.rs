//! The part of PostgreSQL's catalog that decides who may see which rows, as one immutable value.

mod checking;

mod native;

mod settings;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::body::{Body, Context, FIRST_NORMAL_OBJECT, numbers as numbers_in};
use super::clock::ServerClock;
use super::fingerprint::Fingerprints;
use super::rule::TableRule;
use crate::datum::Types;
use crate::pg::{Lsn, Oid, Xid};

/// What `sql/catalog.sql` returns: published tables, the ancestors of published partitions, and
/// what their policies look into, with their columns, policies and rights, and what those are made of.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// md5 of the text that this was read from: equal texts decide alike.
    pub hash: String,
    /// Where the write-ahead log ended after this was read: whatever commits behind it finds this
    /// catalog or a newer one.
    pub read_at: Lsn,
    /// Whether the stream tells of changes ([`crate::change::Kind::Rules`]) as far as event
    /// triggers are told of them.
    pub marked: bool,
    /// Whether all of it is of one moment. Else something changed as often as it was read, and parts may
    /// be of before and others of behind that.
    pub settled: bool,
    /// What differs between two catalogs of one era is all told by the stream.
    pub era: u64,
    /// Whether the publication publishes deletes.
    pub deletes: bool,
    /// The server's major version.
    pub major: u16,
    /// The published tables, the ancestors of published partitions, and what policies of all these
    /// look into.
    pub tables: HashMap<Oid, Arc<Table>>,
    /// The roles that were asked for and exist.
    pub roles: HashMap<String, Role>,
    /// The types of all columns and what those are made of.
    pub types: HashMap<Oid, Arc<Type>>,
    /// The functions that policies call, outside PostgreSQL's own.
    pub functions: HashMap<Oid, Function>,
    /// Types to which somebody made a cast from text that runs a function.
    pub casts: Vec<Oid>,
    /// Operators with names that filters use, outside PostgreSQL's own: the type on their left,
    /// their name, their schema.
    pub operators: Vec<(Oid, String, String)>,
    /// What is known of types and collations natively.
    pub native: Types,
    /// Whether some setting of the database or a role sets what only requests should: then what
    /// policies read of a request is not known from its claims alone.
    pub request_settings: bool,
    /// A hash of what is set for the database and the relay's login: their sessions begin with it.
    pub settings: u64,
    /// The same of what has a name of its own, which policies may read; 0 where there is nothing.
    pub own_settings: u64,
    /// Why rules are not in force, a sentence each.
    pub unruled: Vec<String>,
    /// The search path that policies' functions are called with; `None` where it is not known.
    pub path: Option<Arc<str>>,
    /// The schemas, by name.
    pub schemas: HashMap<String, Schema>,
    /// Settings that policies and functions name and that nobody has set, in lower case.
    pub unset: Vec<String>,
    /// What time it is on the server that this was read from.
    pub clock: Arc<ServerClock>,
    /// The policies that a check has found to be answered otherwise than by PostgreSQL.
    pub refuted: Arc<BTreeSet<Refuted>>,
    /// Who wrote what counts for many tables.
    pub elsewhere: Elsewhere,
    /// See [`Catalog::fingerprints`]; the same where only `era` and `refuted` are others.
    pub(super) fingerprints: Arc<OnceLock<HashMap<Oid, Fingerprints>>>,
}

/// Who wrote what counts for many tables, as `sql/catalog.sql` sums it up; `None` where nothing stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// Of which roles those are members that clients act as, and those that they are members of; by name.
    pub(super) memberships: BTreeMap<String, Option<String>>,
    /// The labels of enums, by type.
    pub(super) labels: BTreeMap<u32, Option<String>>,
    /// The schemas of tables and functions, by name.
    pub(super) schemas: BTreeMap<String, Option<String>>,
    /// The queries of views.
    pub(super) views: BTreeMap<u32, Option<String>>,
    /// What is set for the database and the relay's login, by both.
    pub(super) settings: BTreeMap<String, Option<String>>,
}

/// A policy of a table, as it is compiled for a role: the table, the role, the policy's name.
pub type Refuted = (Oid, String, String);

/// A schema.
#[derive(Debug, Clone, Deserialize)]
pub struct Schema {
    /// Whether the relay's login may use it.
    pub usable: bool,
    /// The roles that may.
    pub usage: Vec<String>,
}

/// A role that clients act as.
#[derive(Debug, Clone, Deserialize)]
pub struct Role {
    /// Its number.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// Superuser or BYPASSRLS: attributes, not inherited.
    pub bypass: bool,
    /// Whether the relay's login may become this role, and so ask questions under it.
    pub settable: bool,
    /// Of roles that policies and functions name beside `pg_has_role`: whether it has their rights
    /// without becoming them (`usage`), and whether it is one of them at all (`member`).
    pub memberships: Vec<(String, bool, bool)>,
}

/// How a publication has a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Publishing {
    /// Whether it has INSERT, UPDATE and DELETE.
    pub operations: [bool; 3],
    /// Which publication it is.
    pub publication: Oid,
    /// All that is said of that publication, and the transaction that wrote it last: of the same that
    /// was written anew nobody knows what it was in between.
    pub said: String,
    /// See `said`.
    pub version: String,
    /// What that says of the table or its ancestors: one that was taken out and put back has another
    /// entry.
    pub entries: String,
}

/// A table.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// Its number.
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it is in the publication; an ancestor of a published partition need not be, nor a
    /// table that policies look into.
    pub published: bool,
    /// Whether policies of these tables look into it.
    pub lookup: bool,
    /// Why its rows cannot be followed in the stream, as a predicate of it; `None` where they can.
    pub unfollowed: Option<String>,
    /// What it shows, where it is a view.
    #[serde(default)]
    pub view: Option<View>,
    /// The columns that the publication carries; `None` for all.
    pub published_columns: Option<Vec<String>>,
    /// How the publication has it, where it does.
    pub publishing: Option<Publishing>,
    /// `row level security` is enabled.
    pub row_security: bool,
    /// … and holds for the owner as well.
    pub force_row_security: bool,
    /// The tables that it is a partition of, directly or not.
    pub ancestors: Vec<Oid>,
    /// The transactions (32 bits) that last wrote its rows of the catalog.
    #[serde(deserialize_with = "numbers")]
    pub written_by: Vec<u32>,
    /// Its columns in order, without dropped ones.
    pub columns: Vec<Column>,
    /// The attribute numbers of its primary key.
    pub key: Vec<i16>,
    /// The attribute numbers that old rows carry; `None` for all (`replica identity full`). Of a
    /// partitioned table: what the old rows of all its partitions carry.
    pub identity: Option<Vec<i16>>,
    /// The partitions that hold the rows of a partitioned table, by their numbers; `None` for every
    /// other table.
    pub leaves: Option<Vec<Leaf>>,
    /// The file that the rows are in; `None` where they are in other tables or nowhere.
    pub file: Option<Oid>,
    /// By its columns' names, the transactions (32 bits, as text) that last wrote what the catalog says
    /// of each.
    pub column_versions: Vec<(String, String)>,
    /// The transaction (32 bits, as text) that last wrote what holds for all of it, as rights.
    pub version: String,
    /// By its policies' names, the transactions (32 bits, as text) that last wrote them: those that are what
    /// they were once may have been others in between.
    pub policy_versions: Vec<(String, String)>,
    /// The policies that apply to SELECT.
    pub policies: Vec<Policy>,
    /// The operator's rules for it.
    #[serde(skip)]
    pub rules: Vec<TableRule>,
    /// What each role may do.
    pub rights: Vec<Rights>,
}

fn numbers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    Vec::<String>::deserialize(deserializer)?
        .iter()
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .collect()
}

impl Table {
    /// Whether a transaction younger than `xid` has written what the catalog says of the table:
    /// then a row of `xid` may be older than that. `truncated` is known to have committed before:
    /// a number is given when a transaction begins to write, and it may have waited for that one.
    #[must_use]
    pub fn written_after(&self, xid: Xid, truncated: Option<Xid>) -> bool {
        let mut writers = self.written_by.iter().map(|writer| xid.widen(*writer));
        writers.any(|writer| writer > xid && Some(writer) != truncated)
    }

    /// Whether `xid` itself has written what the catalog says of the table: its rows may lie before
    /// that or behind it.
    #[must_use]
    pub fn written_by(&self, xid: Xid) -> bool {
        self.written_by
            .iter()
            .any(|writer| xid.widen(*writer) == xid)
    }

    /// What the operator's rules say, as far as that is known.
    pub fn ruled(&self) -> impl Iterator<Item = &Policy> {
        self.rules
            .iter()
            .filter_map(|rule| rule.policy.as_ref().ok())
    }

    /// What the operator's rules for a role say, as far as that is known.
    pub fn rules_for(&self, role: &str) -> impl Iterator<Item = &Policy> {
        let rules = self.rules.iter().filter(move |rule| rule.applies_to(role));
        rules.filter_map(|rule| rule.policy.as_ref().ok())
    }

    /// The name as SQL, quoted.
    #[must_use]
    pub fn sql_name(&self) -> String {
        format!(
            "{}.{}",
            crate::pg::quote_identifier(&self.schema),
            crate::pg::quote_identifier(&self.name)
        )
    }

    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether the publication carries a column. A generated one, which old publications cannot
    /// name, belongs to a table that is published as a whole.
    #[must_use]
    pub fn publishes(&self, column: &str) -> bool {
        let Some(published) = &self.published_columns else {
            return true;
        };
        let named = |name: &str| published.iter().any(|known| known == name);
        let generated = |column: &Column| column.generated.is_some();
        named(column)
            || self.column(column).is_some_and(generated)
                && self
                    .columns
                    .iter()
                    .all(|column| generated(column) || named(&column.name))
    }

    /// For each partition that held rows of this table and no longer does, or is in another file
    /// (truncated, detached, dropped or rewritten), the transaction (32 bits) that put it there;
    /// `None` where it is gone.
    #[must_use]
    pub fn lost_leaves(&self, now: &Self) -> Vec<Option<u32>> {
        let mut lost = Vec::new();
        let after = now.leaves.as_deref().unwrap_or_default();
        for Leaf(oid, file, _) in self.leaves.iter().flatten() {
            let found = after.binary_search_by_key(oid, |leaf| leaf.0);
            match found.ok().and_then(|at| after.get(at)) {
                Some(leaf) if leaf.1 == *file => {}
                Some(leaf) => lost.push(leaf.2.parse().ok()),
                None => lost.push(None),
            }
        }
        lost
    }

    /// The columns to which DDL may have given other values in all rows (`alter column … type … using
    /// …`): the table is in another file, and the catalog's row of the column is another.
    #[must_use]
    pub fn rewritten_columns<'a>(&self, now: &'a Self) -> Vec<&'a str> {
        let moved = self.file.zip(now.file).is_some_and(|(was, is)| was != is);
        let columns = now.column_versions.iter().filter(|_| moved);
        let rewritten = columns.filter(|version| !self.column_versions.contains(version));
        rewritten.map(|(column, _)| column.as_str()).collect()
    }

    /// Whether old rows carry a column.
    #[must_use]
    pub fn identity_carries(&self, column: &Column) -> bool {
        self.identity
            .as_ref()
            .is_none_or(|identity| identity.contains(&column.number))
    }

    /// Whether a column belongs to the primary key.
    #[must_use]
    pub fn is_key(&self, column: &Column) -> bool {
        self.key.contains(&column.number)
    }
}

/// What a view shows.
#[derive(Debug, Clone, Deserialize)]
pub struct View {
    /// Its query, as PostgreSQL resolved it.
    pub tree: String,
    /// Its owner, with whose rights it reads.
    pub owner: Oid,
    /// Whether it reads with the rights of whoever asks instead (`security_invoker`).
    pub invoker: bool,
}

impl View {
    /// The role with whose rights it reads, where that is not whoever asks.
    pub(super) fn reads_as(&self) -> Option<Oid> {
        (!self.invoker).then_some(self.owner)
    }

    /// The tables that it names, PostgreSQL's own aside.
    pub(super) fn relations(&self) -> BTreeSet<Oid> {
        self.numbers(":relid ")
    }

    /// The functions that it calls, PostgreSQL's own aside.
    pub(super) fn functions(&self) -> BTreeSet<Oid> {
        self.numbers(":funcid ")
    }

    fn numbers(&self, label: &str) -> BTreeSet<Oid> {
        let found = numbers_in(&self.tree, label);
        let own = found.filter(|oid| *oid >= FIRST_NORMAL_OBJECT);
        own.map(Oid).collect()
    }
}

/// A partition that holds rows: its number, the file that they are in, and the transaction (32
/// bits, as text) that wrote so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Leaf(Oid, Oid, String);

/// A column.
#[derive(Debug, Clone, Deserialize)]
pub struct Column {
    /// Its attribute number.
    pub number: i16,
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_oid: Oid,
    /// The type's modifier, -1 for none.
    pub modifier: i32,
    /// Its collation, 0 for none.
    pub collation: Oid,
    /// Its type with the modifier, as SQL.
    pub type_sql: String,
    /// Its collation as SQL; `None` where there is none, or it is the database's default.
    pub collation_sql: Option<String>,
    /// The expression that a generated column is computed by.
    pub generated: Option<String>,
    /// The attribute numbers of the columns that it is computed from.
    pub computed_from: Option<Vec<i16>>,
}

/// A policy that applies to SELECT.
#[derive(Debug, Clone, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Permissive or restrictive.
    pub permissive: bool,
    /// Its condition as SQL; `None` where it has only a WITH CHECK.
    #[serde(rename = "using")]
    pub condition: Option<String>,
    /// Its condition as PostgreSQL resolved it.
    pub tree: Option<String>,
    /// What its condition depends on: catalog, object, column.
    pub depends: Vec<(Oid, Oid, i32)>,
    /// Whether it has a WITH CHECK.
    pub checks: bool,
}

/// What a role may do with a table.
#[derive(Debug, Deserialize)]
pub struct Rights {
    /// The role.
    pub role: String,
    /// USAGE on the schema.
    pub usage: bool,
    /// Attribute numbers of the columns that it may SELECT.
    pub columns: Vec<i16>,
    /// Whether it has the rights of the table's owner.
    pub owner: bool,
    /// The names of the policies that apply to it.
    pub policies: Vec<String>,
}

/// A type.
#[derive(Debug, Deserialize)]
pub struct Type {
    /// Its number.
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// `pg_type.typname`.
    pub name: String,
    /// `pg_type.typtype`: b, c, d, e, m, p or r.
    pub kind: char,
    /// `pg_type.typcategory`.
    pub category: char,
    /// The element type of an array, 0 otherwise.
    pub element: Oid,
    /// Whether it is the extension `hstore`'s.
    pub hstore: bool,
    /// Where it is the extension `citext`'s, the numbers of its `=` and `<>`.
    pub citext: Option<Vec<Oid>>,
    /// What separates an array's elements.
    pub delimiter: char,
    /// The type that a domain is over, 0 otherwise.
    pub base: Oid,
    /// The labels of an enum in sort order: number, label, order.
    pub labels: Option<Vec<(Oid, String, f64)>>,
    /// The attributes of a composite type: name, type. `None` where it has none.
    pub attributes: Option<Vec<(String, Oid)>>,
}

/// What a function returns rows of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Returned {
    /// The table or composite type, as `pg_class` numbers it.
    pub of: Oid,
    /// Its columns: `attnum` and type.
    pub columns: Vec<(i16, Oid)>,
}

/// A function that policies call, directly or through others.
#[derive(Debug, Clone, Deserialize)]
pub struct Function {
    /// Its number.
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its language.
    pub language: String,
    /// Its source text.
    pub source: String,
    /// Its resolved body, where it was made with one (`prosqlbody`).
    body: Option<String>,
    /// The same.
    #[serde(skip)]
    atomic: Option<Body>,
    /// What it does where it was not, by how it runs; why it is not known where PostgreSQL could
    /// not say.
    #[serde(skip)]
    pub bodies: BTreeMap<Context, Result<Body, String>>,
    /// `pg_proc.prokind`.
    pub kind: char,
    /// Whether it returns a set.
    pub set: bool,
    /// Whether it is NULL on NULL input.
    pub strict: bool,
    /// SECURITY DEFINER.
    pub definer: bool,
    /// Its SET clauses.
    pub config: Option<Vec<String>>,
    /// Its argument types.
    pub arguments: Vec<Oid>,
    /// What it returns.
    pub returns: Oid,
    /// Where that is a row, what it is of.
    pub row: Option<Returned>,
    /// Its arguments as SQL.
    pub signature: String,
    /// `pg_proc.proargnames`
    pub argument_names: Option<Vec<String>>,
    /// Its argument types as SQL.
    pub argument_types: Vec<String>,
    /// The columns that RETURNS TABLE names, with their types as SQL.
    pub table_columns: Vec<(String, String)>,
    /// The values of its last arguments where a call leaves them out, as node tree.
    pub defaults: Option<String>,
    /// Whether it has arguments that are results, or takes any number of them.
    pub unusual_arguments: bool,
    /// Its owner.
    pub owner: Oid,
    /// What it returns, as SQL.
    pub result: String,
    /// `pg_proc.xmin`.
    pub version: String,
    /// The roles that may execute it.
    pub execute: Vec<String>,
}

impl Function {
    /// Its own search path.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        let settings = self.config.iter().flatten();
        let mut paths = settings.filter_map(|setting| setting.strip_prefix("search_path="));
        paths.next()
    }

    /// What it sets `row_security` to.
    #[must_use]
    pub fn row_security(&self) -> Option<&str> {
        let settings = self.config.iter().flatten();
        let mut set = settings.filter_map(|setting| setting.strip_prefix("row_security="));
        set.next()
    }

    /// Why what it does cannot be told from its body.
    #[must_use]
    pub fn unusual(&self) -> Option<String> {
        if self.kind != 'f' {
            return Some("is an aggregate, a window function or a procedure".to_owned());
        }
        if !matches!(self.language.as_str(), "sql" | "plpgsql") {
            return Some(format!("is written in {}", self.language));
        }
        self.unusual_setting()
            .map(|setting| format!("sets {setting}"))
    }

    /// What it does where it runs so, or why that is not known; `None` where it was not analysed.
    #[must_use]
    pub fn does(&self, context: &Context) -> Option<Result<&Body, String>> {
        if let Some(reason) = self.unusual() {
            return Some(Err(reason));
        }
        if let Some(body) = &self.atomic {
            return Some(Ok(body));
        }
        let body = self.bodies.get(context);
        body.map(|body| body.as_ref().map_err(Clone::clone))
    }

    /// What it does, however it runs.
    pub fn known(&self) -> impl Iterator<Item = &Body> {
        self.atomic.iter().chain(self.bodies.values().flatten())
    }

    /// The same, where all of that is known.
    #[must_use]
    pub fn all_known(&self) -> Option<Vec<&Body>> {
        let known: Vec<&Body> = self.known().collect();
        let whole = self.unusual().is_none() && self.bodies.values().all(Result::is_ok);
        (whole && !known.is_empty()).then_some(known)
    }

    /// A setting of its own that could change what it does in ways that are not known.
    fn unusual_setting(&self) -> Option<&str> {
        let mut settings = self.config.iter().flatten();
        let name = |setting: &str| setting.split('=').next().unwrap_or_default().to_owned();
        let unusual = settings
            .find(|setting| !["search_path", "row_security"].contains(&name(setting).as_str()));
        unusual.map(|setting| setting.split('=').next().unwrap_or_default())
    }

    /// How its body runs where it is called by what runs so.
    #[must_use]
    pub fn within(&self, caller: &Context) -> Context {
        Context {
            role: if self.definer {
                self.owner
            } else {
                caller.role
            },
            path: self.path().map(Arc::from).or_else(|| caller.path.clone()),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    elsewhere: Elsewhere,
    schemas: HashMap<String, Schema>,
    database: Database,
    roles: Vec<Role>,
    tables: Vec<Table>,
    types: Vec<Type>,
    functions: Vec<Function>,
    collations: Vec<Oid>,
    casts: Vec<Oid>,
    operators: Vec<(Oid, String, String)>,
}

#[derive(Deserialize)]
struct Database {
    deletes: bool,
    version: u32,
    encoding: String,
    collate: String,
    ctype: String,
    provider: char,
    search_path: Option<String>,
    login: Oid,
    oid: Oid,
    settings: Vec<(Oid, Oid, Option<Vec<String>>)>,
    unset: Vec<String>,
}

impl Catalog {
    /// The same catalog, with these policies not decided natively.
    #[must_use]
    pub fn refuting(self: &Arc<Self>, refuted: &Arc<BTreeSet<Refuted>>) -> Arc<Self> {
        if self.refuted == *refuted {
            return Arc::clone(self);
        }
        Arc::new(Self {
            refuted: Arc::clone(refuted),
            ..Self::clone(self)
        })
    }

    /// Whether a policy of a table must not be decided natively for a role.
    pub(super) fn refutes(&self, table: Oid, role: &str, policy: &str) -> bool {
        let mut refuted = self.refuted.iter();
        refuted.any(|(of, whose, name)| *of == table && whose == role && name == policy)
    }

    /// Reads the text that `sql/catalog.sql` returns.
    ///
    /// # Errors
    /// Where the text is not what that query returns.
    pub fn parse(text: &str, hash: String, read_at: Lsn) -> Result<Self, serde_json::Error> {
        let document: Document = serde_json::from_str(text)?;
        let request_settings = document
            .database
            .settings
            .iter()
            .flat_map(|(_, _, settings)| settings.iter().flatten())
            .any(|setting| setting.starts_with("request."));
        let (settings, own_settings) = settings::hashes(&document);
        let unset = settings::unset(&document);
        let native = native::types(&document);
        let path = settings::path(&document);
        Ok(Self {
            hash,
            native,
            path,
            unset,
            schemas: document.schemas,
            clock: Arc::default(),
            refuted: Arc::default(),
            fingerprints: Arc::default(),
            elsewhere: document.elsewhere,
            deletes: document.database.deletes,
            major: u16::try_from(document.database.version / 10_000).unwrap_or_default(),
            read_at,
            marked: false,
            settled: true,
            era: 0,
            tables: document
                .tables
                .into_iter()
                .map(|mut table| {
                    for policy in &mut table.policies {
                        policy.forget_check(table.oid);
                    }
                    (table.oid, Arc::new(table))
                })
                .collect(),
            roles: document
                .roles
                .into_iter()
                .map(|role| (role.name.clone(), role))
                .collect(),
            types: document
                .types
                .into_iter()
                .map(|ty| (ty.oid, Arc::new(ty)))
                .collect(),
            functions: document
                .functions
                .into_iter()
                .map(|mut function| {
                    let body = function.body.take();
                    function.atomic = body.map(|body| Body::Query(Arc::from(body)));
                    (function.oid, function)
                })
                .collect(),
            casts: document.casts,
            operators: document.operators,
            unruled: Vec::new(),
            request_settings,
            settings,
            own_settings,
        })
    }

    /// A role by its number.
    #[must_use]
    pub fn role(&self, oid: Oid) -> Option<&Role> {
        self.roles.values().find(|role| role.oid == oid)
    }

    /// How the policies of a role's queries run.
    #[must_use]
    pub fn context(&self, role: &str) -> Context {
        let role = self.roles.get(role).map_or(Oid(0), |role| role.oid);
        Context {
            role,
            path: self.path.clone(),
        }
    }

    /// Whether the same roles have the rights of its tables' owners as in another one, and functions
    /// the same owners, as far as both know them: no event trigger is told of `REASSIGN OWNED`.
    #[must_use]
    pub fn is_owned_as(&self, other: &Self) -> bool {
        let given = |(oid, function): (&Oid, &Function)| {
            let known = other.functions.get(oid);
            known.is_some_and(|known| known.owner != function.owner)
        };
        if self.functions.iter().any(given) {
            return false;
        }
        let owned = |before: &Table, now: &Table| {
            now.rights.iter().all(|now| {
                let mut known = before.rights.iter().filter(|known| known.role == now.role);
                known.all(|known| known.owner == now.owner)
            })
        };
        self.tables.iter().all(|(oid, table)| {
            let known = other.tables.get(oid);
            known.is_none_or(|known| owned(known, table))
        })
    }

    /// The published table of that name.
    #[must_use]
    pub fn published(&self, schema: &str, name: &str) -> Option<&Arc<Table>> {
        self.tables
            .values()
            .find(|table| table.published && table.schema == schema && table.name == name)
    }

    /// A type without its domains: what its values look like.
    #[must_use]
    pub fn base_type(&self, oid: Oid) -> Option<&Arc<Type>> {
        let mut ty = self.types.get(&oid)?;
        // Domains over domains end, but a loop must not depend on the catalog being sound.
        for _ in 0..32 {
            if ty.kind != 'd' {
                return Some(ty);
            }
            ty = self.types.get(&ty.base)?;
        }
        None
    }
}
