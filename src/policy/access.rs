//! What one role may see of one table: its rights, and the policies that apply to it, compiled
//! where that is exact and put as a question where it is not.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use super::ask::image::{self, Asked};
use super::ask::parts::{Judged, Parts, columns_read, combined, question};
use super::body::Body;
use super::catalog::{Catalog, Column, Function, Policy, Table};
use super::closure::{Closure, functions, judged, partitioned};
use super::compile::Raising;
use super::consults;
use super::fingerprint::{Written, fingerprint};
use super::login::reads_login;
use super::predicate::Predicate;
use super::reach::reach;
use super::scope::{Done, applicable, compiled, security_applies, unexecutable};
use crate::change::{ColumnSet, Relation};
use crate::lookup::Wanted;
use crate::pg::Oid;

/// What one role may see of one table.
#[derive(Debug)]
pub struct Access {
    /// Which rows.
    pub rules: Rules,
    /// The columns that decide about rows.
    pub reads: Vec<String>,
    /// Two accesses with equal fingerprints decide alike, and the table has the same columns.
    pub fingerprint: u64,
    /// Why a policy is asked instead of compiled, by name.
    pub asked_because: Vec<(String, String)>,
    /// Why PostgreSQL raises an error where it comes to that, by the policy's name, as far as that is
    /// known beforehand: such rows are hidden.
    pub raises: Vec<(String, Raising)>,
    /// The tables that asked policies look into; `None` where that cannot be told.
    pub consults: Option<Vec<Oid>>,
    /// The same whatever else they look at, and whether or not the stream has these tables: an answer
    /// about a row before a transaction is as of behind it, which is another where it wrote them.
    pub looks_at: Option<Vec<Oid>>,
    /// What the compiled policies read of other tables.
    pub lookups: Vec<Wanted>,
    /// Whether no row can ever be seen, whatever the row and the claims: nothing that happens to
    /// the table is to be told.
    pub hides_all: bool,
    /// The restrictive policies and rules that let no row through, each with its table: others do not
    /// matter then.
    pub refusing: Vec<(Oid, String)>,
    /// The table's own rules as SQL, for who reads its rows; row-level security has the policies
    /// hold there.
    pub narrowed: Option<String>,
    readable: HashSet<String>,
    /// The table's columns by their numbers, and whether the role may read each.
    columns: Vec<(i16, bool)>,
    /// What decides which rows, whatever else is so of them.
    rows: u64,
    /// What the labels of enums are called that policies read: to some as text.
    labels: BTreeMap<Oid, String>,
}

/// Which rows a role may see.
#[derive(Debug)]
pub enum Rules {
    /// None, and why.
    Nothing(String),
    /// All: no row-level security applies.
    Everything,
    /// Those that pass the policies.
    Judged {
        /// The compiled policies; all must say yes.
        predicates: SmallVec<[Arc<Predicate>; 1]>,
        /// Whether something of them is not compiled and undecided there, so that PostgreSQL is
        /// asked where the rest does not decide.
        asked: bool,
        /// The query that asks all policies, compiled or not: also for the rows that a compiled
        /// one cannot decide. `None` where they cannot be asked.
        query: Option<Arc<str>>,
        /// What asks only those that are not decided; `None` where all are to be asked.
        parts: Option<Arc<Parts>>,
    },
}

impl Access {
    /// Works out what `role` may see of `table`. A partition that is published on its own is
    /// judged by its ancestors' policies too.
    #[must_use]
    pub fn new(catalog: &Catalog, table: &Table, role: &str) -> Self {
        let mut access = Self {
            rules: Rules::Everything,
            reads: Vec::new(),
            fingerprint: as_checked(catalog, table, role),
            asked_because: Vec::new(),
            raises: Vec::new(),
            consults: Some(Vec::new()),
            looks_at: Some(Vec::new()),
            lookups: Vec::new(),
            hides_all: false,
            refusing: Vec::new(),
            narrowed: None,
            readable: HashSet::new(),
            columns: Vec::new(),
            rows: 0,
            labels: BTreeMap::new(),
        };
        let Some(rights) = table.rights.iter().find(|rights| rights.role == role) else {
            access.rules = Rules::Nothing(format!("role {role:?} does not exist"));
            return access;
        };
        if !rights.usage {
            access.rules = Rules::Nothing(format!("permission denied for schema {}", table.schema));
            return access;
        }
        if rights.columns.is_empty() {
            access.rules = Rules::Nothing(format!("permission denied for table {}", table.name));
            return access;
        }
        access.readable = table
            .columns
            .iter()
            .filter(|column| rights.columns.contains(&column.number))
            .map(|column| column.name.clone())
            .collect();
        let columns = table.columns.iter().map(|column| column.number);
        access.columns = columns
            .map(|number| (number, rights.columns.contains(&number)))
            .collect();
        access.judge(catalog, table, role);
        let rules = table
            .rules_for(role)
            .filter_map(|rule| rule.condition.as_deref());
        let rules: Vec<String> = rules.map(|rule| format!("({rule})")).collect();
        access.narrowed = (!rules.is_empty()).then(|| rules.join(" and "));
        access.rows = match &access.rules {
            Rules::Nothing(_) => 0,
            Rules::Everything => 1,
            Rules::Judged { asked, .. } => {
                let decided = rows(catalog, table, role);
                if decided.takes_for_text {
                    access.labels = labels(catalog, table, &access.reads, &decided.looked);
                }
                // What is compiled reads no such setting but those that nobody has set.
                let settings = if *asked { catalog.own_settings } else { 0 };
                decided.rows.wrapping_add(settings)
            }
        };
        access.hides_all |= matches!(access.rules, Rules::Nothing(_));
        access
    }

    /// Whether the role may read a column.
    #[must_use]
    pub fn may_read(&self, column: &str) -> bool {
        self.readable.contains(column)
    }

    /// Whether it shows the same rows as another access to the table did, and of those what both
    /// tables have.
    #[must_use]
    pub fn shows_as(&self, other: &Self) -> bool {
        let shown = |(number, readable): &(i16, bool)| {
            let mut known = other.columns.iter().filter(|(known, _)| known == number);
            known.all(|(_, known)| known == readable)
        };
        // A label that was added was in no row.
        let called = |(label, name): (&Oid, &String)| {
            let known = other.labels.get(label);
            known.is_none_or(|known| known == name)
        };
        self.rows == other.rows
            && self.labels.iter().all(called)
            && self.columns.is_empty() == other.columns.is_empty()
            && self.columns.iter().all(shown)
    }

    /// Whether what decides which rows `role` is shown was written between two catalogs, though it is shown the
    /// same ones by both: for a while it may have been shown others.
    #[must_use]
    pub fn was_else_between(
        &self,
        before: (&Catalog, &Table),
        now: (&Catalog, &Table),
        role: &str,
    ) -> bool {
        let known: Vec<&Table> = judged(before.0, before.1).collect();
        let judges = matches!(self.rules, Rules::Judged { .. });
        let called = functions(before.0, before.1);
        let replaced = functions(now.0, now.1).into_iter().any(|function| {
            let mut known = called.iter().filter(|known| known.oid == function.oid);
            known.any(|known| known.version != function.version)
        });
        let mut judging = judged(now.0, now.1);
        judges && replaced
            || judging.any(|table| {
                let own = partitioned(now.0, now.1).any(|own| own.oid == table.oid);
                let role = own.then_some(role);
                let known = known.iter().find(|known| known.oid == table.oid);
                known.is_some_and(|known| {
                    let policies = policies_of(known, role) != policies_of(table, role);
                    let [was, is] = [known, table].map(Written::of);
                    judges && policies || (own || judges) && was.is_table_anew_in(&is, own)
                })
            })
    }

    /// The columns of `relation` that the role may read.
    #[must_use]
    pub fn columns(&self, relation: &Relation) -> ColumnSet {
        ColumnSet::of(relation, |column| self.readable.contains(&*column.name))
    }

    fn look(&mut self, wanted: &[Wanted]) {
        for one in wanted {
            match self
                .lookups
                .iter_mut()
                .find(|known| known.table == one.table)
            {
                Some(known) => known.merge(one),
                None => self.lookups.push(one.clone()),
            }
        }
    }

    fn judge(&mut self, catalog: &Catalog, table: &Table, role: &str) {
        let mut predicates = SmallVec::new();
        let mut questions: Vec<Asked<'_>> = Vec::new();
        let mut asked = false;
        let mut unaskable = None;
        let (mut parts, mut askable_in_parts) = (Vec::new(), true);
        if !catalog.roles.get(role).is_some_and(|role| role.settable) {
            // A membership may exist without the right to SET ROLE from 16 on.
            let option = if catalog.major < 16 {
                ""
            } else {
                " with set true"
            };
            unaskable = Some(format!(
                "policies of {} have to be asked of PostgreSQL, and the relay's login may not \
                 become {role}: grant {role} to it{option}",
                table.name
            ));
        }
        let ancestors = table
            .ancestors
            .iter()
            .filter_map(|oid| catalog.tables.get(oid));
        for judged in std::iter::once(table).chain(ancestors.map(Arc::as_ref)) {
            if let Err(raised) = reach(catalog, judged, role) {
                self.rules = Rules::Nothing(raised);
                return;
            }
            let Some(rights) = judged.rights.iter().find(|rights| rights.role == role) else {
                self.rules = Rules::Nothing(format!("role {role:?} does not exist"));
                return;
            };
            let applies = judged.rules.iter().filter(|rule| rule.applies_to(role));
            let unruled = applies.filter_map(|rule| rule.policy.as_ref().err()).next();
            if let Some(unruled) = unruled {
                let reason = format!("a rule of this relay is not in force: {unruled}");
                self.rules = Rules::Nothing(reason);
                return;
            }
            // Without row-level security the rules alone decide.
            let open = !security_applies(catalog, judged, rights);
            let policies = applicable(judged, rights).filter(|_| !open);
            let applicable: Vec<&Policy> = policies.chain(judged.rules_for(role)).collect();
            if open && applicable.is_empty() {
                continue;
            }
            // A policy with only a WITH CHECK permits nothing to be read.
            let permits = |policy: &&Policy| policy.permissive && policy.condition.is_some();
            let permitted = open || applicable.iter().any(permits);
            // Without a permissive one PostgreSQL does not look at the others.
            if permitted && let Some(refused) = unexecutable(catalog, &applicable, role) {
                self.rules = Rules::Nothing(refused);
                return;
            }
            unaskable = unaskable
                .or_else(|| reads_login(catalog, judged, &applicable))
                .or_else(|| unstored(judged, &applicable))
                .or_else(|| miscast(catalog, judged, &applicable));
            questions.push(question(judged, &applicable, open));
            let both = |(mut all, some): (Vec<Oid>, Vec<Oid>)| {
                all.extend(some);
                all
            };
            let consulted = consults::consults(catalog, judged, &applicable);
            self.consults = self.consults.take().zip(consulted).map(both);
            let looked_at = consults::tables(catalog, judged, &applicable);
            self.looks_at = self.looks_at.take().zip(looked_at).map(both);
            self.hides_all |= !permitted;
            let done = compiled(catalog, judged, &applicable, role);
            let denied = || done.iter().find_map(|one| one.denied.clone());
            if permitted && let Some(raised) = denied() {
                self.rules = Rules::Nothing(raised);
                return;
            }
            let decides_all = done.iter().any(|one| one.decides_all);
            let predicate = combined(&done, open);
            self.look(predicate.lookups());
            self.hides_all |= predicate.is_never();
            let refuses = |one: &&Done<'_>| {
                let alone = || Predicate::new(vec![one.expr.clone()], Vec::new());
                !one.policy.permissive && alone().is_never()
            };
            let refusing = done.iter().filter(refuses);
            self.refusing
                .extend(refusing.map(|one| (judged.oid, one.policy.name.clone())));
            predicates.push(Arc::new(predicate));
            asked |= done.iter().any(|one| !one.refused.is_empty());
            askable_in_parts &= !decides_all;
            if let Some(table) = catalog.tables.get(&judged.oid) {
                parts.push(Judged::new(table, open, &done));
            }
            for one in done {
                let name = &one.policy.name;
                let refused = one.refused.into_iter();
                self.asked_because
                    .extend(refused.map(|reason| (name.clone(), reason)));
                let raising = one.raising.into_iter();
                self.raises.extend(raising.map(|why| (name.clone(), why)));
            }
        }
        self.reads = questions
            .iter()
            .flat_map(image::needs)
            .map(|column| column.name.clone())
            .collect();
        self.reads.sort();
        self.reads.dedup();
        if let Some(left_out) = self.reads.iter().find(|column| !table.publishes(column)) {
            self.rules = Rules::Nothing(format!(
                "policies of {} read column {left_out}, which the publication leaves out",
                table.name
            ));
            return;
        }
        self.rules = match unaskable {
            _ if questions.is_empty() => return,
            // A mirror may be missing at any time, and then PostgreSQL has to be asked.
            Some(reason) if asked || !self.lookups.is_empty() => Rules::Nothing(reason),
            Some(_) => Rules::Judged {
                predicates,
                asked,
                query: None,
                parts: None,
            },
            None => Rules::Judged {
                predicates,
                asked,
                query: Some(image::query(&questions).into()),
                parts: (asked && askable_in_parts)
                    .then(|| Parts::new(parts))
                    .flatten()
                    .map(Arc::new),
            },
        };
    }
}

/// Why the policies cannot be asked about a row of the stream: they read what only a stored row
/// has.
fn unstored(table: &Table, policies: &[&Policy]) -> Option<String> {
    policies.iter().find_map(|policy| {
        let system_column = policy.tree.as_ref()?.contains(":varattno -");
        system_column.then(|| {
            format!(
                "policy {} of {} reads a system column, which a change does not carry",
                policy.name, table.name
            )
        })
    })
}

/// Why the policies cannot be asked: somebody made a cast from text to the type of a column that
/// they read, which may be another value than the type's text output stands for.
fn miscast(catalog: &Catalog, table: &Table, policies: &[&Policy]) -> Option<String> {
    columns_read(table, policies)
        .into_iter()
        .find_map(|column| {
            let base = catalog.base_type(column.type_oid).map(|base| base.oid);
            let made = |oid: &Oid| *oid == column.type_oid || Some(*oid) == base;
            catalog.casts.iter().any(made).then(|| {
                format!(
                    "column {} of {} is of a type with a cast from text",
                    column.name, table.name
                )
            })
        })
}

/// What decides which rows a role may see.
struct Decided {
    /// As one number: not how the policies are called, how they are laid out, or who wrote them when.
    rows: u64,
    /// The tables that it looks into, by role.
    looked: BTreeSet<(Oid, Oid)>,
    /// Whether something of it may take a value for a text.
    takes_for_text: bool,
}

fn rows(catalog: &Catalog, table: &Table, role: &str) -> Decided {
    let mut takes_text = false;
    let mut hasher = DefaultHasher::new();
    let context = catalog.context(role);
    let mut looked: BTreeSet<(Oid, Oid)> = BTreeSet::new();
    for judged in partitioned(catalog, table) {
        looked.insert((context.role, judged.oid));
        let closure = Closure::of(catalog, judged, &context);
        looked.extend(closure.tables);
        for (oid, context) in closure.functions {
            let Some(function) = catalog.functions.get(&oid) else {
                continue;
            };
            let acting = catalog.role(context.role);
            let acting = acting.map(|role| (&role.name, &role.memberships));
            (oid.0, &context.path, acting).hash(&mut hasher);
            let body = function.does(&context);
            takes_text |= match &body {
                Some(Ok(body)) => {
                    let mut trees = body.trees().into_iter();
                    trees.any(|tree| tree.contains(":relid ") && takes_for_text(tree))
                }
                _ => true,
            };
            does(function, body, role).hash(&mut hasher);
        }
    }
    for judged in partitioned(catalog, table) {
        let rules = judged.rules_for(role);
        let rules = rules.map(|rule| rule.tree.as_deref().map(without_places));
        let mut rules: Vec<Option<String>> = rules.collect();
        rules.sort_unstable();
        (judged.oid.0, rules).hash(&mut hasher);
    }
    for (acting, oid) in looked.iter().copied() {
        let (Some(acting), Some(judged)) = (catalog.role(acting), catalog.tables.get(&oid)) else {
            continue;
        };
        acting.memberships.hash(&mut hasher);
        let trees = judged.policies.iter().chain(judged.ruled());
        let trees = trees.filter_map(|policy| policy.tree.as_deref());
        let view = judged.view.as_ref().map(|view| view.tree.as_str());
        takes_text |= trees.chain(view).any(takes_for_text);
        if let Some(view) = &judged.view {
            (oid.0, without_places(&view.tree), view.reads_as()).hash(&mut hasher);
        }
        let mut rights = judged.rights.iter();
        let Some(rights) = rights.find(|rights| rights.role == acting.name) else {
            continue;
        };
        let applies = security_applies(catalog, judged, rights);
        (&acting.name, judged.oid.0, applies).hash(&mut hasher);
        // Of what is looked into it is an error not to have the right, which hides rows.
        if judged.oid != table.oid {
            let all = |column: &Column| rights.columns.contains(&column.number);
            let some = Some(&rights.columns).filter(|_| !judged.columns.iter().all(all));
            (rights.usage, some).hash(&mut hasher);
        }
        if !applies {
            continue;
        }
        let applicable = judged.policies.iter();
        let applicable = applicable.filter(|policy| rights.policies.contains(&policy.name));
        // By what they say, not by name.
        let mut policies: Vec<u64> = applicable
            .map(|policy| {
                let mut hasher = DefaultHasher::new();
                let tree = policy.tree.as_deref().map(without_places);
                (policy.permissive, tree).hash(&mut hasher);
                hasher.finish()
            })
            .collect();
        policies.sort_unstable();
        policies.hash(&mut hasher);
    }
    Decided {
        rows: hasher.finish(),
        looked,
        takes_for_text: takes_text,
    }
}

/// What the labels of enums are called, of the columns that a table's policies read and of all that are
/// in the tables that they look into.
fn labels(
    catalog: &Catalog,
    table: &Table,
    reads: &[String],
    looked: &BTreeSet<(Oid, Oid)>,
) -> BTreeMap<Oid, String> {
    let own: Vec<Oid> = partitioned(catalog, table).map(|table| table.oid).collect();
    let read = table.columns.iter();
    let read = read.filter(|column| reads.contains(&column.name));
    let others = looked.iter().filter(|(_, oid)| !own.contains(oid));
    let others = others.filter_map(|(_, oid)| catalog.tables.get(oid));
    let columns = read.chain(others.flat_map(|table| &table.columns));
    let mut open: Vec<Oid> = columns.map(|column| column.type_oid).collect();
    let mut seen = BTreeSet::new();
    let mut labels = BTreeMap::new();
    while let Some(oid) = open.pop() {
        let Some(of) = catalog.types.get(&oid).filter(|_| seen.insert(oid)) else {
            continue;
        };
        let named = of.labels.iter().flatten();
        labels.extend(named.map(|(label, name, _)| (*label, name.clone())));
        open.extend([of.element, of.base].iter().filter(|oid| oid.0 != 0));
        let parts = of.attributes.iter().flatten();
        open.extend(parts.map(|(_, part)| *part));
    }
    labels
}

/// Whether a node tree may make a text of what it reads: by a cast, from the row as a whole, or in a
/// function that is given something. What compares labels goes by their numbers.
fn takes_for_text(tree: &str) -> bool {
    let mut calls = tree.split("{FUNCEXPR ").skip(1);
    let given = |call: &str| {
        let arguments = call.split(":args ").nth(1);
        arguments.is_none_or(|arguments| !arguments.starts_with("<>"))
    };
    tree.contains("{COERCEVIAIO ") || tree.contains(":varattno 0 ") || calls.any(given)
}

/// What a function does, and whether the role may have it done.
fn does(function: &Function, body: Option<Result<&Body, String>>, role: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let body = body.and_then(Result::ok);
    let trees: Vec<String> = body
        .map(|body| body.trees().into_iter().map(without_places).collect())
        .unwrap_or_default();
    (&function.source, &function.language, trees).hash(&mut hasher);
    (function.strict, function.definer, function.set).hash(&mut hasher);
    let defaults = function.defaults.as_deref().map(without_places);
    defaults.hash(&mut hasher);
    let allowed = function.execute.iter().any(|allowed| allowed == role);
    (&function.config, allowed).hash(&mut hasher);
    hasher.finish()
}

/// A node tree without where in its text everything stood, and without the names of the columns that a
/// table has, where no row is read as a whole: a table that is looked into may be given more of them.
fn without_places(tree: &str) -> String {
    let whole = tree.contains(":varattno 0 ");
    let mut words = tree.split(' ');
    let mut kept = String::with_capacity(tree.len());
    while let Some(word) = words.next() {
        if word == ":location" {
            // Its number ends in what it ends.
            let number = words.next().unwrap_or_default();
            kept.push_str(number.trim_start_matches(|c: char| c == '-' || c.is_ascii_digit()));
        } else if word == ":colnames" && !whole {
            // What a name has of these is written with a backslash before.
            let end = |word: &str| {
                let mut ends = word.match_indices(')');
                let end = ends
                    .find(|(at, _)| !word.get(..*at).is_some_and(|before| before.ends_with('\\')));
                end.and_then(|(at, _)| word.get(at + 1..))
                    .map(str::to_owned)
            };
            let first = words.next().unwrap_or_default();
            let rest = if first.starts_with('(') {
                end(first).or_else(|| words.find_map(end))
            } else {
                Some(first.to_owned())
            };
            kept.push_str(&rest.unwrap_or_default());
        } else {
            kept.push_str(word);
        }
        kept.push(' ');
    }
    kept
}

/// Everything that decides for this role and table, with what is refused of it: that is decided by
/// somebody else.
fn as_checked(catalog: &Catalog, table: &Table, role: &str) -> u64 {
    let known = fingerprint(catalog, table, role);
    let judged: Vec<Oid> = partitioned(catalog, table).map(|table| table.oid).collect();
    let refuted = catalog.refuted.iter();
    let refuted = refuted.filter(|(of, whose, _)| judged.contains(of) && whose == role);
    let refuted: Vec<_> = refuted.collect();
    if refuted.is_empty() {
        return known;
    }
    let mut hasher = DefaultHasher::new();
    (known, refuted).hash(&mut hasher);
    hasher.finish()
}

/// A table's policies that apply to a role, or all, by name, with who wrote them last.
fn policies_of<'a>(table: &'a Table, role: Option<&str>) -> BTreeSet<&'a (String, String)> {
    let rights = role.and_then(|role| table.rights.iter().find(|known| known.role == role));
    let applies = |name: &String| rights.is_none_or(|rights| rights.policies.contains(name));
    let policies = table.policy_versions.iter();
    policies.filter(|(name, _)| applies(name)).collect()
}
