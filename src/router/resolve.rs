//! A client's wish held against the catalog: which tables it means, and its filters typed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Refusal;
use super::allowance::Held;
use super::group::{Begin, Binding, Selection};
use crate::auth::Principal;
use crate::datum::Type;
use crate::pg::{Oid, quote_identifier};
use crate::policy::access::{Access, Rules};
use crate::policy::ask::image;
use crate::policy::ask::probe::{Asked, Probe, Reading};
use crate::policy::catalog::{Catalog, Column, Table};
use crate::policy::rule::Require;
use crate::snapshot::Query;
use crate::subscription::filter::MAX_IN_ITEMS;
use crate::subscription::matcher::{Filter, Question, Target, Test};
use crate::subscription::{Condition, Operator, Start, Wanted};

/// What PostgreSQL has told of filters.
#[derive(Debug, Default, Clone)]
pub(super) struct Readings(HashMap<Probe, Reading>);

/// Readings kept for all channels; past this all are forgotten and asked again.
const MAX_READINGS: usize = 10_000;

/// Bytes of a condition's values whose reading is kept for all channels.
const MAX_SHARED: usize = 256;

impl Readings {
    /// All that a join waited for has to be there when it is resolved again: nothing is forgotten.
    pub(super) fn insert(&mut self, probe: Probe, reading: Reading) {
        self.0.insert(probe, reading);
    }

    /// For others, who can ask again.
    pub(super) fn share(&mut self, probe: Probe, reading: Reading) {
        let values = probe.condition.values.iter().flatten();
        if values.map(String::len).sum::<usize>() > MAX_SHARED {
            return;
        }
        if self.0.len() >= MAX_READINGS {
            self.0.clear();
        }
        self.0.insert(probe, reading);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What PostgreSQL has told: to this channel, and to any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) own: &'a Readings,
    pub(super) shared: &'a Readings,
}

impl<'a> Told<'a> {
    fn get(self, probe: &Probe) -> Option<&'a Reading> {
        let own = self.own.0.get(probe);
        own.or_else(|| self.shared.0.get(probe))
    }
}

/// Why the wishes of a channel are not in force yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// The catalog was read without this role.
    Role,
    /// These have to be read by PostgreSQL first.
    Unread(Vec<Probe>),
}

/// A regular expression longer than this is refused, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// The wishes of a channel, as far as they can be put in force.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// The bindings by table.
    pub(super) tables: Vec<(Oid, Vec<Binding>)>,
    /// The wishes that cannot be, in the client's order.
    pub(super) refusals: Vec<Refusal>,
    /// What the client should know.
    pub(super) notices: Vec<String>,
    /// What PostgreSQL had to tell for this.
    pub(super) readings: Readings,
    /// The filters that it will be asked about.
    pub(super) asked: Held,
}

/// What the relay's operator decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rulebook {
    pub(super) require: Require,
    /// Whether deletes that cannot be judged go out with the key.
    pub(super) unjudged_deletes: bool,
    /// Whether all that take deletes are told of rows that leave their view.
    pub(super) all_leaves: bool,
    pub(super) snapshot: crate::snapshot::Settings,
}

impl Rulebook {
    fn leaves(&self, wish: &Wanted) -> bool {
        (self.all_leaves || wish.leave) && wish.events.deletes()
    }
}

/// Whether the relay itself knows a column of a table's old rows.
type Mirrored<'a> = &'a dyn Fn(&Table, &str) -> bool;

/// Resolves the wishes of one channel. `access` gives what a role may see of a table.
pub(super) fn resolve(
    catalog: &Catalog,
    told: Told<'_>,
    (rulebook, mirrored): (Rulebook, Mirrored<'_>),
    principal: &Principal,
    wanted: &[Wanted],
    mut access: impl FnMut(&Arc<Table>) -> Arc<Access>,
) -> Result<Resolved, Unresolved> {
    if wanted.is_empty() {
        return Ok(Resolved::default());
    }
    if !catalog.roles.contains_key(&*principal.role) {
        return Err(Unresolved::Role);
    }
    let mut resolved = Resolved::default();
    let mut reader = Reader {
        catalog,
        told,
        role: &principal.role,
        unread: HashSet::new(),
        used: Readings::default(),
    };
    for wish in wanted {
        let bound = tables(
            (catalog, &principal.role),
            rulebook,
            wish,
            &mut access,
            &mut resolved.notices,
        )
        .and_then(|tables| bind(&mut reader, rulebook, wish, tables, &mut resolved.notices));
        let bound = match bound {
            Ok(bound) => bound,
            Err(refusal) => {
                resolved.refusals.push(refusal);
                continue;
            }
        };
        for (table, access, binding) in bound {
            if wish.events.deletes() && catalog.deletes {
                resolved.notices.extend(unjudged_delete(
                    (rulebook, mirrored),
                    wish,
                    &table,
                    &access,
                ));
            }
            if binding.leave {
                let untold = unjudged_leave(mirrored, wish, &table, &access);
                resolved.notices.extend(untold);
            }
            match resolved
                .tables
                .iter_mut()
                .find(|(oid, _)| *oid == table.oid)
            {
                Some((_, bindings)) => bindings.push(binding),
                None => resolved.tables.push((table.oid, vec![binding])),
            }
        }
    }
    resolved.notices.sort();
    resolved.notices.dedup();
    // While something is unread it is not known what fits.
    if reader.unread.is_empty() {
        resolved.readings = reader.used;
        Ok(resolved)
    } else {
        Err(Unresolved::Unread(reader.unread.into_iter().collect()))
    }
}

type Permitted = Vec<(Arc<Table>, Arc<Access>)>;

/// The tables that a wish means. Without a name those that the role may SELECT something of; what
/// else stands against one of these is said.
fn tables(
    (catalog, role): (&Catalog, &str),
    rulebook: Rulebook,
    wish: &Wanted,
    access: &mut impl FnMut(&Arc<Table>) -> Arc<Access>,
    notices: &mut Vec<String>,
) -> Result<Permitted, Refusal> {
    let named = wish.schema.is_some() && wish.table.is_some();
    let mut tables: Permitted = Vec::new();
    let mut why_not = None;
    for table in catalog.tables.values().filter(|table| {
        table.published
            && wish
                .schema
                .as_ref()
                .is_none_or(|schema| *schema == table.schema)
            && wish.table.as_ref().is_none_or(|name| *name == table.name)
    }) {
        let access = access(table);
        let readable = table
            .columns
            .iter()
            .any(|column| access.may_read(&column.name));
        let reason = if let Some(lacking) = rulebook.require.lacks(table, role) {
            lacking
        } else if let Rules::Nothing(reason) = &access.rules {
            reason.clone()
        } else {
            tables.push((Arc::clone(table), access));
            continue;
        };
        if !named && readable {
            notices.push(left_out(table, &reason));
        }
        why_not = Some(reason);
    }
    if !tables.is_empty() {
        tables.sort_by_key(|(table, _)| table.oid);
        return Ok(tables);
    }
    Err(match why_not {
        Some(reason) if named => refused(
            wish,
            &format!("ERROR 42501 (insufficient_privilege) {reason}"),
        ),
        _ => refused(
            wish,
            "Please check Realtime is enabled for the given connect parameters",
        ),
    })
}

fn left_out(table: &Table, reason: &str) -> String {
    format!(
        "Changes of {}.{} are not delivered: {reason}",
        table.schema, table.name
    )
}

type Bound = Vec<(Arc<Table>, Arc<Access>, Binding)>;

/// Holds a wish's filter and selection against its tables. Of several tables those that they do
/// not fit are left out, and that is said: one tenant's column is not in every table.
fn bind(
    reader: &mut Reader<'_>,
    rulebook: Rulebook,
    wish: &Wanted,
    tables: Permitted,
    notices: &mut Vec<String>,
) -> Result<Bound, Refusal> {
    let named = wish.schema.is_some() && wish.table.is_some();
    if wish.start.snapshot.is_some() && !named {
        let reason = "a snapshot needs a schema and a table by name";
        return Err(refused(wish, &raised(reason)));
    }
    let (mut bound, mut first) = (Bound::new(), None);
    let mut unfit = Vec::new();
    for (table, access) in tables {
        let binding = selection(wish, &table, &access).and_then(|selection| {
            let unread = reader.unread.len();
            let filter = reader.filter(&wish.filter, &table, &access)?;
            // While something of the filter is unread it is not worded in full.
            let worded = reader.unread.len() == unread;
            let rows = wish.start.snapshot.as_ref().filter(|_| worded);
            let snapshot = rows.map(|rows| {
                let selected = |name: &str| {
                    let selection = selection.as_ref();
                    selection.is_none_or(|names| names.iter().any(|known| **known == *name))
                };
                let whose = (&*table, &*access, reader.role);
                let (catalog, settings) = (reader.catalog, &rulebook.snapshot);
                let query = Query::new(catalog, whose, filter.text(), selected, rows, settings);
                query.map(Arc::new).map_err(|reason| raised(&reason))
            });
            Ok(Binding {
                id: wish.id,
                events: wish.events,
                filter,
                leave: rulebook.leaves(wish),
                begin: begin(wish),
                snapshot: snapshot.transpose()?,
                selection,
            })
        });
        match binding {
            Ok(binding) => bound.push((table, access, binding)),
            Err(reason) if named => return Err(refused(wish, &reason)),
            Err(reason) => {
                unfit.push(left_out(&table, &reason));
                first.get_or_insert(reason);
            }
        }
    }
    match first {
        Some(reason) if bound.is_empty() => Err(refused(wish, &reason)),
        _ => {
            notices.append(&mut unfit);
            Ok(bound)
        }
    }
}

fn begin(wish: &Wanted) -> Option<Arc<Begin>> {
    let start = &wish.start;
    (*start != Start::default()).then(|| {
        Arc::new(Begin {
            from: start.since.map(|cursor| cursor.offset),
            unseen_by: start.unseen_by.clone(),
        })
    })
}

/// The columns that a wish names and those of the primary key; `None` for all.
fn selection(wish: &Wanted, table: &Table, access: &Access) -> Result<Option<Selection>, String> {
    let Some(select) = &wish.select else {
        return Ok(None);
    };
    for name in select {
        // A column that the role may not read is as unknown to it as one that is not there.
        if table.column(name).is_none() || !access.may_read(name) {
            return Err(raised(&format!("invalid column for select {name}")));
        }
    }
    let key = table.columns.iter().filter(|column| table.is_key(column));
    let names: BTreeSet<&str> = key
        .map(|column| column.name.as_str())
        .chain(select.iter().map(String::as_str))
        .collect();
    Ok(Some(names.into_iter().map(Arc::from).collect()))
}

/// Types filters; what PostgreSQL has to read first is gathered.
struct Reader<'a> {
    catalog: &'a Catalog,
    told: Told<'a>,
    role: &'a str,
    unread: HashSet<Probe>,
    used: Readings,
}

impl Reader<'_> {
    fn filter(
        &mut self,
        conditions: &[Condition],
        table: &Table,
        access: &Access,
    ) -> Result<Arc<Filter>, String> {
        let mut tests = Vec::with_capacity(conditions.len());
        let mut asked = Vec::new();
        for condition in conditions {
            let column = table
                .column(&condition.column)
                .filter(|column| access.may_read(&column.name) && table.publishes(&column.name));
            let Some(column) = column else {
                let name = &condition.column;
                return Err(raised(&format!("invalid column for filter {name}")));
            };
            // Whatever an unread one turns out to be, the others must fit.
            if let Some(test) = self.test(condition, column)? {
                if test.may_ask() {
                    asked.push((test.sql().to_owned(), column));
                }
                tests.push(test);
            }
        }
        let question = self.question(&asked, table)?;
        Ok(Arc::new(Filter::new(tests, question)))
    }

    /// `None` where PostgreSQL has to read the condition first.
    fn test(&mut self, condition: &Condition, column: &Column) -> Result<Option<Test>, String> {
        sound(condition)?;
        let base = self
            .catalog
            .base_type(column.type_oid)
            .ok_or_else(|| raised(&format!("failed to lookup type for column {}", column.name)))?;
        let keyword = condition.values.first().and_then(Option::as_deref);
        if condition.operator == Operator::Is && keyword != Some("null") && base.oid != BOOLEAN {
            return Err(raised(&format!(
                "is {} filter requires a boolean column, got {}",
                keyword.unwrap_or_default(),
                column.type_sql
            )));
        }
        let made = condition.operator.symbol().and_then(|symbol| {
            let operators = &self.catalog.operators;
            let found = operators
                .iter()
                .find(|(of, name, _)| *of == base.oid && name == symbol)?;
            Some(found.2.as_str())
        });
        // A name under another collation than its own orders otherwise.
        let usual = base.oid != NAME || column.collation == C_COLLATION;
        let target = Target {
            of: Type::of(column.type_oid, column.collation, &self.catalog.native)
                .filter(|of| made.is_none() && usual && *of != Type::Citext),
            composite: base.kind == 'c',
            schema: made.unwrap_or("pg_catalog"),
        };
        let native = Test::is_native(condition, &target);
        let canonical = |text: &String| {
            let of = target.of.as_ref();
            of.is_some_and(|of| Test::canonical(of, text))
        };
        let plain = condition.operator == Operator::Is || condition.operator.takes_pattern();
        if native && (plain || condition.values.iter().flatten().all(canonical)) {
            return Ok(Some(Test::new(
                condition,
                &target,
                condition.values.clone(),
            )));
        }
        let asked = !native;
        let probe = Probe {
            // Without what makes no difference, so that others share the answer.
            condition: Condition {
                column: "value".to_owned(),
                operator: if asked {
                    condition.operator
                } else {
                    Operator::Eq
                },
                negated: false,
                values: condition.values.clone(),
            },
            type_sql: format!(
                "{}.{}",
                quote_identifier(&base.schema),
                quote_identifier(&base.name)
            ),
            collation_sql: column.collation_sql.clone().filter(|_| asked),
            asked: if asked {
                Some(Asked {
                    schema: target.schema.to_owned(),
                    role: self.asking_role(column, target.schema)?,
                })
            } else {
                None
            },
        };
        match self.told.get(&probe) {
            Some(Reading::Values(values)) => {
                let test = Test::new(condition, &target, values.clone());
                self.used.0.insert(probe, Reading::Values(values.clone()));
                Ok(Some(test))
            }
            Some(Reading::Refused { code, message }) => {
                Err(refusal(condition, column, code, message))
            }
            None => {
                self.unread.insert(probe);
                Ok(None)
            }
        }
    }

    /// The role that PostgreSQL is asked under: the client's. Where the relay may not become that,
    /// its own, but only for what nobody made: types, operators, and what computes the column.
    fn asking_role(&self, column: &Column, schema: &str) -> Result<Option<String>, String> {
        let role = self.catalog.roles.get(self.role);
        if role.is_some_and(|role| role.settable) {
            return Ok(Some(self.role.to_owned()));
        }
        let made = column.type_oid.0 >= FIRST_MADE || column.generated.is_some();
        if !made && schema == "pg_catalog" {
            return Ok(None);
        }
        Err(raised(&format!(
            "PostgreSQL has to be asked about the filter, and the relay's login may not become \
             {role}: grant {role} to it",
            role = self.role
        )))
    }

    /// What PostgreSQL is asked about the rows of `table` for conditions that it decides.
    fn question(
        &self,
        asked: &[(String, &Column)],
        table: &Table,
    ) -> Result<Option<Question>, String> {
        if asked.is_empty() {
            return Ok(None);
        }
        let mut reads: Vec<&Column> = asked.iter().map(|(_, column)| *column).collect();
        reads.sort_by_key(|column| column.number);
        reads.dedup_by_key(|column| column.number);
        let conditions: Vec<&str> = asked.iter().map(|(sql, _)| sql.as_str()).collect();
        let made = reads.iter().find(|column| {
            let base = self.catalog.base_type(column.type_oid);
            let own = |of: &Oid| *of == column.type_oid || base.is_some_and(|base| base.oid == *of);
            self.catalog.casts.iter().any(own)
        });
        if let Some(column) = made {
            return Err(raised(&format!(
                "column {} is of a type with a cast from text",
                column.name
            )));
        }
        let mut role = None;
        for column in &reads {
            role = self.asking_role(column, "pg_catalog")?;
        }
        let asked = image::Asked {
            table,
            condition: conditions.join(" and "),
            reads,
            whole: false,
        };
        let needs: Vec<String> = image::needs(&asked)
            .into_iter()
            .map(|column| column.name.clone())
            .collect();
        if let Some(left_out) = needs.iter().find(|name| !table.publishes(name)) {
            return Err(raised(&format!(
                "the filter reads column {left_out}, which the publication leaves out"
            )));
        }
        Ok(Some(Question {
            query: image::query(std::slice::from_ref(&asked)).into(),
            role: role.as_deref().unwrap_or("none").into(),
            needs,
        }))
    }
}

const BOOLEAN: Oid = Oid(16);
const NAME: Oid = Oid(19);
const C_COLLATION: Oid = Oid(950);

/// What has a smaller number came with PostgreSQL.
const FIRST_MADE: u32 = 16_384;

/// What is wrong with a condition whatever the column.
fn sound(condition: &Condition) -> Result<(), String> {
    let keyword = condition.values.first().and_then(Option::as_deref);
    let name = condition.operator.as_str();
    let known = ["null", "true", "false", "unknown"];
    let text = match condition.operator {
        Operator::Is if keyword.is_none_or(|keyword| !known.contains(&keyword)) => {
            "invalid value for is filter: must be null, true, false, or unknown".to_owned()
        }
        Operator::In if condition.values.len() > MAX_IN_ITEMS => {
            format!("too many values for `in` filter. Maximum {MAX_IN_ITEMS}")
        }
        Operator::Match | Operator::Imatch
            if keyword.is_some_and(|pattern| pattern.len() > MAX_PATTERN_BYTES) =>
        {
            format!(
                "invalid regular expression for {name} filter: longer than {MAX_PATTERN_BYTES} bytes"
            )
        }
        Operator::Like | Operator::Ilike if keyword.is_some_and(ends_in_escape) => {
            return Err(worded(
                "22025",
                "LIKE pattern must not end with escape character",
            ));
        }
        _ => {
            let nul = condition
                .values
                .iter()
                .flatten()
                .any(|text| text.contains('\0'));
            if nul {
                let text = "invalid byte sequence for encoding \"UTF8\": 0x00";
                return Err(worded("22021", text));
            }
            return Ok(());
        }
    };
    Err(raised(&text))
}

/// PostgreSQL raises an error only once a row gets it that far. Better now.
fn ends_in_escape(pattern: &str) -> bool {
    let escapes = pattern.bytes().rev().take_while(|byte| *byte == b'\\');
    !escapes.count().is_multiple_of(2)
}

/// PostgreSQL's refusal of a condition in the words that Supabase has for it.
fn refusal(condition: &Condition, column: &Column, code: &str, message: &str) -> String {
    let name = condition.operator.as_str();
    match code {
        "42883" if condition.operator.takes_pattern() => raised(&format!(
            "operator {name} requires a text-compatible column type, got {}",
            column.type_sql
        )),
        "2201B" | "57014" if condition.operator.takes_pattern() => raised(&format!(
            "invalid regular expression for {name} filter: {message}"
        )),
        _ => worded(code, message),
    }
}

/// An exception of our own, as Supabase raises them.
fn raised(text: &str) -> String {
    worded("P0001", text)
}

/// An error as Supabase's messages show it.
fn worded(code: &str, text: &str) -> String {
    let names = [
        ("P0001", "raise_exception"),
        ("0A000", "feature_not_supported"),
        ("22003", "numeric_value_out_of_range"),
        ("22007", "invalid_datetime_format"),
        ("22008", "datetime_field_overflow"),
        ("22021", "character_not_in_repertoire"),
        ("22023", "invalid_parameter_value"),
        ("22025", "invalid_escape_sequence"),
        ("22P02", "invalid_text_representation"),
        ("22P03", "invalid_binary_representation"),
        ("2200M", "invalid_xml_document"),
        ("2200N", "invalid_xml_content"),
        ("2201B", "invalid_regular_expression"),
        ("42501", "insufficient_privilege"),
        ("42725", "ambiguous_function"),
        ("42846", "cannot_coerce"),
        ("42883", "undefined_function"),
    ];
    let name = names.iter().find(|(known, _)| *known == code);
    match name {
        Some((_, name)) => format!("ERROR {code} ({name}) {text}"),
        None => format!("ERROR {code} {text}"),
    }
}

/// What to say where deletes will not come because old rows do not carry what decides.
fn unjudged_delete(
    (rulebook, mirrored): (Rulebook, Mirrored<'_>),
    wish: &Wanted,
    table: &Table,
    access: &Access,
) -> Option<String> {
    let policies = access.reads.iter().map(String::as_str);
    // With the key sent regardless only a filter can stand in the way.
    let needed = policies.filter(|_| !rulebook.unjudged_deletes).chain(
        wish.filter
            .iter()
            .map(|condition| condition.column.as_str()),
    );
    undelivered_delete(table, needed.filter(|name| !mirrored(table, name)))
}

/// What to say where DELETEs of a table do not reach those for whom these columns decide; `None`
/// where they do.
pub fn undelivered_delete<'a>(
    table: &Table,
    needed: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let missing = not_carried(table, needed);
    if missing.is_empty() {
        return None;
    }
    Some(format!(
        "DELETE of {schema}.{name} is not delivered: the replica identity does not carry {columns}, \
         which decides who may see the row. {cure}",
        cure = cure(table),
        schema = table.schema,
        name = table.name,
        columns = missing.join(", "),
    ))
}

/// What to say where nobody is told of rows that leave their view, because old rows do not carry
/// what decides who saw them, or the key.
fn unjudged_leave(
    mirrored: Mirrored<'_>,
    wish: &Wanted,
    table: &Table,
    access: &Access,
) -> Option<String> {
    let key = table.columns.iter().filter(|column| table.is_key(column));
    let needed = access.reads.iter().map(String::as_str);
    let needed = needed
        .chain(
            wish.filter
                .iter()
                .map(|condition| condition.column.as_str()),
        )
        .filter(|name| !mirrored(table, name))
        // What goes out of the row before is what the stream carries.
        .chain(key.map(|column| column.name.as_str()));
    let missing = not_carried(table, needed);
    (!missing.is_empty()).then(|| {
        format!(
            "Rows of {schema}.{name} that leave your view are not told: the replica identity does \
             not carry {columns}, which decides who saw the row. {cure}",
            cure = cure(table),
            schema = table.schema,
            name = table.name,
            columns = missing.join(", "),
        )
    })
}

/// Those of the columns that old rows do not carry, in order.
fn not_carried<'a>(table: &Table, needed: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut missing: Vec<&str> = needed
        .filter(|name| {
            table
                .column(name)
                .is_none_or(|column| !table.identity_carries(column))
        })
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// What has old rows carry all.
fn cure(table: &Table) -> String {
    let cure = match table.leaves {
        // A partition's old rows carry what its own identity names.
        Some(_) => "the same for each of its partitions: alter table … replica identity full",
        None => "",
    };
    format!(
        "To have it delivered: alter table {table_sql} replica identity full{and}{cure}; or let the \
         relay keep its old rows (old_rows)",
        and = if cure.is_empty() { "" } else { ", and " },
        table_sql = table.sql_name(),
    )
}

pub(super) fn refused(wish: &Wanted, exception: &str) -> Refusal {
    Refusal {
        binding: wish.id,
        reason: exception.to_owned(),
    }
}
