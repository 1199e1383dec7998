//! Rows and claims that a policy is tried with: the edges of the columns' types, what the policy
//! itself names, and what stands in the tables.
//!
//! Rows and claims take their values from the same few of each kind, so that comparisons between
//! them come out both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::change::{Relation, Row, RowBuilder, Value};
use crate::datum::{Array, Datum, Type};
use crate::lookup::Lookups;
use crate::policy::catalog::{Catalog, Column};
use crate::policy::clock::ServerClock;
use crate::policy::expr::{Constant, Expr, Function, Inputs, TimeFunction};
use crate::policy::predicate::Predicate;
use crate::policy::predicate::claims::path;

/// Values of one kind that rows and claims share.
const SHARED: usize = 8;

/// Rows of each table whose values are among these.
const FROM_ROWS: usize = 4;

/// Moments around those that policies compare the time with.
const BORDERS: usize = 8;

/// How far from such a border a moment is at least, in microseconds: as long as a check may take.
const CLEAR: i64 = 60_000_000;

/// The same for the one that is farther away.
const FAR: i64 = 40 * DAY;

/// In microseconds.
const DAY: i64 = 86_400_000_000;

/// Moments are no farther than this from 2000-01-01.
const MOST: u64 = 100_000_000_000_000_000;

/// Types whose values can be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Bool,
    Integer,
    Number,
    Text,
    Uuid,
    Date,
    Timestamp,
    Enum,
    Json,
    Other,
}

fn kind_of(of: &Type) -> Kind {
    match of {
        Type::Bool => Kind::Bool,
        Type::Int2 | Type::Int4 | Type::Int8 | Type::Oid => Kind::Integer,
        Type::Float4 | Type::Float8 | Type::Numeric => Kind::Number,
        Type::Text(_) | Type::Citext | Type::Bpchar(_) | Type::Name => Kind::Text,
        Type::Uuid => Kind::Uuid,
        Type::Date => Kind::Date,
        Type::Timestamp | Type::Timestamptz => Kind::Timestamp,
        Type::Enum(_) => Kind::Enum,
        Type::Json | Type::Jsonb => Kind::Json,
        _ => Kind::Other,
    }
}

/// Values that come to mind for a type, as it puts them out.
fn edges(of: &Type) -> Vec<String> {
    let texts: &[&str] = match of {
        Type::Bool => &["t", "f"],
        Type::Int2 => &["0", "-1", "32767", "-32768"],
        Type::Int4 => &["0", "-1", "2147483647", "-2147483648"],
        Type::Int8 => &["0", "-1", "9223372036854775807", "-9223372036854775808"],
        Type::Oid => &["0", "4294967295"],
        Type::Float4 | Type::Float8 => &["0", "-1.5", "NaN", "Infinity"],
        Type::Numeric => &["0", "-1.5", "1.00", "NaN"],
        Type::Text(_) | Type::Citext => &["", "a", "A", " ", "\u{e9}", "0"],
        Type::Bpchar(_) | Type::Name => &["a", "A"],
        Type::Uuid => &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
        Type::Date => &["2000-01-01", "infinity", "-infinity", "1999-12-31"],
        Type::Timestamp => &["2000-01-01 00:00:00", "infinity", "-infinity"],
        Type::Timestamptz => &["2000-01-01 00:00:00+00", "infinity", "-infinity"],
        Type::Json | Type::Jsonb => &["null", "{}", "[]", "\"a\"", "1", "true"],
        Type::Bytea => &["\\x", "\\x00"],
        _ => &[],
    };
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// What rows and claims are made of.
#[derive(Debug, Default)]
pub(super) struct Material {
    /// Texts of each kind.
    shared: BTreeMap<Kind, Vec<String>>,
    /// Dates and timestamps that policies name, from 2000-01-01 on in days and microseconds.
    days: Vec<i32>,
    moments: Vec<i64>,
    /// Moments on both sides of those that policies compare the time with.
    borders: Vec<i64>,
    /// The names that lead to a claim, and what its value is read as.
    claims: BTreeMap<Vec<String>, BTreeSet<Kind>>,
}

impl Material {
    /// Gathers what the policies name. `rows` are some of the table's own.
    pub(super) fn gather<'p>(
        catalog: &Catalog,
        columns: &[Column],
        predicates: impl Iterator<Item = &'p Predicate>,
        (relation, rows): (&Relation, &[Row]),
        lookups: &Lookups,
    ) -> Self {
        let mut all = Self::default();
        for expr in predicates.flat_map(Predicate::expressions) {
            all.expression(expr);
        }
        for (_, mirror) in lookups.tables() {
            for row in mirror.rows().take(FROM_ROWS) {
                for (column, value) in mirror.columns().iter().zip(row.iter()) {
                    if let Some(value) = value {
                        all.share_value(&column.of, value);
                    }
                }
            }
        }
        for row in rows.iter().take(FROM_ROWS) {
            for (described, value) in relation.columns.iter().zip(row.values()) {
                let mut columns = columns.iter();
                let column = columns.find(|column| *column.name == *described.name);
                let of = column.and_then(|column| {
                    Type::of(column.type_oid, column.collation, &catalog.native)
                });
                if let (Some(of), Value::Text(text)) = (of, value)
                    && text.len() <= 64
                {
                    match (&of, Datum::from_output(&of, text)) {
                        (Type::Array(_), Ok(value)) => all.share_value(&of, &value),
                        _ => all.share(kind_of(&of), text),
                    }
                }
            }
        }
        // Somebody at least.
        for number in 1..=3 {
            all.share(
                Kind::Uuid,
                &format!("00000000-0000-4000-8000-00000000000{number}"),
            );
            all.share(Kind::Integer, &number.to_string());
            all.share(Kind::Number, &number.to_string());
        }
        all
    }

    fn share(&mut self, kind: Kind, text: &str) {
        let known = self.shared.entry(kind).or_default();
        if known.len() < SHARED && !known.iter().any(|one| one == text) {
            known.push(text.to_owned());
        }
    }

    /// A value that stands somewhere; of an array its elements too.
    fn share_value(&mut self, of: &Type, value: &Datum) {
        if let (Type::Array(of), Datum::Array(array)) = (of, value) {
            for element in array.elements().iter().flatten().take(FROM_ROWS) {
                self.share_value(of, element);
            }
        }
        if let Some(text) = value.output() {
            self.share(kind_of(of), &text);
        }
    }

    fn expression(&mut self, expr: &Expr) {
        if let Some(names) = path(expr)
            && !names.is_empty()
        {
            self.claims.entry(names).or_default().insert(Kind::Text);
        }
        match expr {
            Expr::Const(Constant(Some(datum))) => self.constant(datum),
            Expr::Call(Function::Input(of) | Function::Scalar(of, _), all) => {
                let kind = kind_of(of);
                let mut read = Vec::new();
                all.iter().for_each(|one| claims_in(one, &mut read));
                for names in read {
                    self.claims.entry(names).or_default().insert(kind);
                }
            }
            // What is read of a document otherwise than by a name may be a list.
            Expr::Call(Function::Jsonb(_) | Function::Has, all) => {
                for names in all
                    .iter()
                    .filter_map(path)
                    .filter(|names| !names.is_empty())
                {
                    self.claims.entry(names).or_default().insert(Kind::Json);
                }
            }
            Expr::Timed(off, compared) => self.borders(*off, compared),
            _ => {}
        }
        for child in expr.children() {
            self.expression(child);
        }
    }

    /// Notes moments at which a comparison with the time comes out one way, and such at which it
    /// comes out the other; nearer than `off` it is not decided.
    fn borders(&mut self, off: i64, compared: &Expr) {
        let Expr::Compare(_, two) = compared else {
            return;
        };
        let sides = match (clock_in(&two.0), clock_in(&two.1)) {
            (Some(clock), None) => Some((clock, &two.0, &two.1)),
            (None, Some(clock)) => Some((clock, &two.1, &two.0)),
            _ => None,
        };
        let Some((clock, timed, other)) = sides else {
            return;
        };
        // Both sides as if now() stood in the place of what the row has: what they differ by is how
        // far the border is from now.
        let moved = clock.now().and_then(|now| {
            let (timed, other) = (moment(timed, now)?, moment(other, now)?);
            Some(now + timed - other)
        });
        let Some(border) = moved else { return };
        for aside in [off + CLEAR, off + FAR] {
            for moment in [border - aside, border + aside] {
                let known = self.borders.contains(&moment);
                if !known && self.borders.len() < BORDERS && moment.unsigned_abs() < MOST {
                    self.borders.push(moment);
                }
            }
        }
    }

    fn constant(&mut self, datum: &Datum) {
        let kind = match datum {
            Datum::Bool(_) => Kind::Bool,
            Datum::Int(value) => {
                let near = [value.checked_sub(1), value.checked_add(1)];
                for near in near.into_iter().flatten() {
                    self.share(Kind::Integer, &near.to_string());
                }
                Kind::Integer
            }
            Datum::Float(value) => return self.share(Kind::Number, &value.to_string()),
            Datum::Numeric(_) => Kind::Number,
            Datum::Text(_) => Kind::Text,
            Datum::Uuid(_) => Kind::Uuid,
            Datum::Enum(_) => Kind::Enum,
            Datum::Json(_) | Datum::Jsonb(_) => Kind::Json,
            Datum::Array(array) => {
                let elements = array.elements().iter().flatten();
                elements.for_each(|element| self.constant(element));
                return;
            }
            Datum::Date(day) if (-700_000..2_000_000).contains(day) => {
                self.days.extend([day - 1, *day, day + 1]);
                return;
            }
            Datum::Timestamp(moment) if moment.unsigned_abs() < MOST => {
                self.moments.extend([moment - 1, *moment, moment + 1]);
                return;
            }
            _ => return,
        };
        if let Some(text) = datum.output() {
            self.share(kind, &text);
        }
    }

    /// Days and moments whose texts are to be had for [`Material::share_times`].
    pub(super) fn times(&self) -> (Vec<i32>, Vec<i64>) {
        let days = self.borders.iter().map(|moment| moment.div_euclid(DAY));
        let days = days.filter_map(|day| i32::try_from(day).ok());
        let moments = self.borders.iter().chain(&self.moments);
        (
            days.chain(self.days.iter().copied()).collect(),
            moments.copied().collect(),
        )
    }

    /// Takes the texts of the dates and moments that policies name, or around which they decide.
    /// What stands in tables takes no room from them.
    pub(super) fn share_times(&mut self, dates: Vec<String>, moments: Vec<String>) {
        for (kind, mut texts) in [(Kind::Date, dates), (Kind::Timestamp, moments)] {
            texts.dedup();
            texts.truncate(BORDERS + SHARED);
            let known = self.shared.entry(kind).or_default();
            texts.append(known);
            *known = texts;
        }
    }

    /// What a column may hold, besides NULL.
    pub(super) fn values_of(&self, of: &Type) -> Vec<String> {
        let kind = kind_of(of);
        let mut texts: Vec<String> = self.shared.get(&kind).cloned().unwrap_or_default();
        let known = |kind| self.shared.get(&kind).into_iter().flatten();
        match of {
            // A policy compares an enum's label, and a text with labels.
            Type::Text(_) => {
                let more = [Kind::Uuid, Kind::Integer, Kind::Enum].into_iter();
                texts.extend(more.flat_map(|kind| known(kind).take(3)).cloned());
            }
            Type::Timestamptz => texts.iter_mut().for_each(|text| {
                if !text.contains('+') && !text.contains("infinity") {
                    text.push_str("+00");
                }
            }),
            Type::Timestamp => texts.retain(|text| !text.contains('+')),
            Type::Array(of) => {
                let mut made = arrays(of, &self.values_of(of));
                made.append(&mut texts);
                texts = made;
            }
            Type::Json | Type::Jsonb => texts.extend(self.objects()),
            _ => {}
        }
        texts.extend(edges(of));
        // What is not a value of the type, or not as the type puts it out.
        texts.retain(|text| Datum::from_output(of, text).is_ok());
        texts.dedup();
        texts
    }

    /// Objects with the names that policies look for, and what they compare there.
    fn objects(&self) -> Vec<String> {
        let names: Vec<&String> = self.shared.get(&Kind::Text).into_iter().flatten().collect();
        let mut objects = Vec::new();
        for name in names.iter().take(3) {
            for value in names.iter().take(3) {
                let mut object = serde_json::Map::new();
                object.insert((*name).clone(), (*value).clone().into());
                objects.push(pretty(&object));
            }
        }
        objects
    }

    /// What a claim may be that is read as a document: lists of what rows have, an object with such
    /// names, and nothing.
    fn list(&self, number: usize) -> serde_json::Value {
        let known = |kind| self.shared.get(&kind).into_iter().flatten();
        let texts = known(Kind::Text)
            .chain(known(Kind::Uuid))
            .chain(known(Kind::Enum));
        match number {
            0 => {
                let numbers = known(Kind::Integer).filter_map(|text| text.parse::<i64>().ok());
                let numbers = numbers.map(serde_json::Value::from);
                texts.cloned().map(Into::into).chain(numbers).collect()
            }
            1 => texts
                .skip(1)
                .step_by(2)
                .cloned()
                .map(serde_json::Value::from)
                .collect(),
            2 => {
                let members = texts.map(|text| (text.clone(), serde_json::Value::from(true)));
                serde_json::Value::Object(members.collect())
            }
            _ => serde_json::Value::Array(Vec::new()),
        }
    }

    /// Claims: none, such as rows and tables have (three), such as nobody has, and such as are of
    /// no use; each set with how much it is worth, the most first.
    pub(super) fn claims(&self, role: &str) -> Vec<String> {
        let mut sets = vec!["{}".to_owned()];
        for number in 0..5 {
            let mut claims = serde_json::Map::new();
            claims.insert("role".to_owned(), role.into());
            for (at, (names, kinds)) in self.claims.iter().enumerate() {
                // Read as text on the way to something else.
                let kind = kinds.iter().copied().find(|kind| *kind != Kind::Text);
                let kind = kind.unwrap_or(Kind::Text);
                let known = self.shared.get(&kind).map_or(&[][..], Vec::as_slice);
                let place = (number * (at + 1)) % known.len().max(1);
                if kinds.contains(&Kind::Json) && number < 4 {
                    place_in(&mut claims, names, self.list(number));
                    continue;
                }
                let value = match number {
                    0..3 => known.get(place).map_or("1", String::as_str),
                    3 => match kind {
                        Kind::Uuid => "deadbeef-dead-4eef-8ead-deadbeefdead",
                        Kind::Integer | Kind::Number => "987654321",
                        _ => "nobody at all",
                    },
                    _ => "\u{e9} no such value",
                };
                place_in(&mut claims, names, value.into());
            }
            sets.push(serde_json::Value::Object(claims).to_string());
        }
        sets.dedup();
        sets
    }
}

/// The clock of an expression.
fn clock_in(expr: &Expr) -> Option<Arc<ServerClock>> {
    match expr {
        Expr::Now(clock) => Some(Arc::clone(clock)),
        _ => expr.children().into_iter().find_map(clock_in),
    }
}

/// The moment that an operand comes to, where what it is computed of is now; of a date its first.
fn moment(expr: &Expr, now: i64) -> Option<i64> {
    let Expr::Call(Function::Time(function), of) = expr else {
        return Some(now);
    };
    let inner = moment(of.first()?, now)?;
    let value = match function {
        TimeFunction::AddDays(_) | TimeFunction::Midnight => {
            Datum::Date(i32::try_from(inner.div_euclid(DAY)).ok()?)
        }
        TimeFunction::Shift(..) | TimeFunction::ToDate => Datum::Timestamp(inner),
    };
    let inputs = Inputs::default();
    let call = Expr::Call(
        Function::Time(function.clone()),
        vec![Expr::constant(value)],
    );
    match call.outcome(inputs).ok()?? {
        Datum::Timestamp(moment) => Some(moment),
        Datum::Date(day) => Some(i64::from(day) * DAY),
        _ => None,
    }
}

/// Arrays of these elements: of one each, of none, of some, and such as hold NULL.
fn arrays(of: &Type, elements: &[String]) -> Vec<String> {
    let elements: Vec<Datum> = elements
        .iter()
        .filter_map(|text| Datum::from_output(of, text).ok())
        .take(SHARED)
        .collect();
    let some = |from: usize, count: usize| -> Vec<Option<Datum>> {
        let some = elements.iter().skip(from).take(count);
        some.cloned().map(Some).collect()
    };
    let mut all: Vec<Vec<Option<Datum>>> = vec![some(0, 1), Vec::new(), some(0, 2)];
    all.extend((1..elements.len()).map(|at| some(at, 1)));
    all.extend((1..elements.len().saturating_sub(1)).map(|at| some(at, 2)));
    all.push(some(0, SHARED));
    all.push(vec![None]);
    all.push(some(0, 1).into_iter().chain([None]).collect());
    let mut texts = Vec::with_capacity(all.len());
    for text in all.into_iter().filter_map(|one| Array::new(one).output()) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

/// The names that lead to what an expression reads of the claims.
fn claims_in(expr: &Expr, found: &mut Vec<Vec<String>>) {
    match path(expr) {
        Some(names) if !names.is_empty() => found.push(names),
        _ => {
            for child in expr.children() {
                claims_in(child, found);
            }
        }
    }
}

/// As `jsonb` puts an object of one member out.
fn pretty(object: &serde_json::Map<String, serde_json::Value>) -> String {
    let members: Vec<String> = object
        .iter()
        .map(|(name, value)| format!("{}: {value}", serde_json::Value::from(name.as_str())))
        .collect();
    format!("{{{}}}", members.join(", "))
}

fn place_in(
    claims: &mut serde_json::Map<String, serde_json::Value>,
    names: &[String],
    value: serde_json::Value,
) {
    match names {
        [] => {}
        [name] => {
            claims.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let inner = claims
                .entry(name.clone())
                .or_insert_with(|| serde_json::Map::new().into());
            if !inner.is_object() {
                *inner = serde_json::Map::new().into();
            }
            if let serde_json::Value::Object(inner) = inner {
                place_in(inner, rest, value);
            }
        }
    }
}

/// Makes rows: of each column that is read some of its values, `None` for NULL; the others count as
/// not carried. The same each time.
pub(super) fn rows(columns: &[Option<Vec<Option<String>>>], count: usize) -> Vec<Row> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| -> usize {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or(0) % below.max(1)
    };
    let mut made: Vec<Row> = Vec::with_capacity(count);
    for number in 0..count {
        let mut row = RowBuilder::default();
        for values in columns {
            let Some(values) = values else {
                row.push(Value::Unchanged);
                continue;
            };
            // Each value comes up with the first rows; what stands in front comes up more often.
            let place = if number < values.len() {
                (number + next(2)) % values.len().max(1)
            } else {
                next(values.len()).min(next(values.len()))
            };
            row.push(match values.get(place) {
                Some(Some(text)) => Value::Text(text),
                Some(None) | None => Value::Null,
            });
        }
        let row = row.finish();
        if !made.contains(&row) {
            made.push(row);
        }
    }
    made
}
