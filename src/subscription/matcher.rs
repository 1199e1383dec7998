//! A filter held against a table: typed, and ready to be held against rows.
//!
//! A condition says of a row what `where column operator 'value'` says in PostgreSQL. What is known
//! natively to be exact is decided here; everything else (the order of text outside `C`, regular
//! expressions, types without native values) is put as SQL, for PostgreSQL to decide.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Condition, Operator};
use crate::change::{Relation, Row, Value};
use crate::datum::{Collation, Datum, Type, like};
use crate::mutant::FilterMutant;
use crate::pg::{quote_identifier, quote_literal};

/// What a filter says of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It does not ask for it.
    No,
    /// It asks for it.
    Yes,
    /// PostgreSQL has to say ([`Filter::question`]).
    Asked,
    /// It cannot be told: the stream does not carry the value, or it is none of the column's type
    /// as it was when the filter was typed (a new label).
    Unclear,
}

/// What is to be known of a column to hold a condition against it.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// Its type, where that is understood natively and has PostgreSQL's own operators.
    pub of: Option<Type>,
    /// Whether its values are rows: those are `null` also where all their fields are.
    pub composite: bool,
    /// The schema of the operator.
    pub schema: &'a str,
}

/// One condition with its values typed.
#[derive(Debug, Clone)]
pub struct Test {
    /// The column by name; its place differs between versions of a relation.
    pub column: String,
    negated: bool,
    way: Way,
    /// The type's operators are PostgreSQL's own: NULL makes them NULL.
    strict: bool,
    sql: String,
}

/// How a condition is decided.
#[derive(Debug, Clone)]
enum Way {
    /// `is null`
    Null { composite: bool },
    /// `is true`, `is false`, `is unknown`
    Truth(Option<bool>),
    /// `is distinct from null`
    Known,
    /// `= any ('{}')`: false of everything, also of NULL
    Never,
    /// `=`, `<>`, and `in` with any number of values
    Equal {
        of: Type,
        values: Vec<Option<Datum>>,
        differs: bool,
    },
    /// `is distinct from`
    Distinct { of: Type, value: Datum },
    /// `<` and its kin
    Order {
        of: Type,
        operator: Operator,
        value: Datum,
    },
    /// `like` and, with `fold`, `ilike`
    Like { pattern: String, fold: bool },
    /// PostgreSQL decides.
    Asked { distinct: bool },
}

/// Comparing a text with a pattern may cost up to the product of their lengths (in bytes). Above
/// this it is left to PostgreSQL, where it can be stopped: the router is one task.
const MAX_LIKE_COST: usize = 1 << 20;

/// The same for all patterns that are held against one row.
const MAX_LIKE_COSTS: usize = 16 * MAX_LIKE_COST;

/// What the filters of one table have read of a row so far. Clients choose how many filters there
/// are: a value is read once for all of them, and what patterns cost is bounded in sum.
#[derive(Debug, Default)]
pub struct Values {
    /// By the column's place; `None` where it is none of its type.
    read: HashMap<usize, Option<Datum>>,
    like_costs: usize,
}

impl Values {
    fn read(&mut self, (place, text): (usize, &str), of: &Type) -> Option<&Datum> {
        let read = || Datum::from_output(of, text).ok();
        self.read.entry(place).or_insert_with(read).as_ref()
    }

    /// `like`, as far as it is decided here.
    fn alike(&mut self, text: &str, pattern: &str, fold: bool) -> Said {
        if FilterMutant::LikeIsEqual.active() {
            return Said::Told(Some(text == pattern));
        }
        let cost = text.len().saturating_mul(pattern.len().max(1));
        self.like_costs = self.like_costs.saturating_add(cost.min(MAX_LIKE_COST));
        let costly = cost > MAX_LIKE_COST || self.like_costs > MAX_LIKE_COSTS;
        if costly || (fold && !text.is_ascii()) {
            return Said::Asked;
        }
        let found = if fold {
            like(&text.to_ascii_lowercase(), pattern)
        } else {
            like(text, pattern)
        };
        found.map_or(Said::Asked, |found| Said::Told(Some(found)))
    }
}

/// What a condition says of a value.
enum Said {
    /// In SQL's three values.
    Told(Option<bool>),
    Asked,
    Unclear,
}

impl Test {
    /// Types a condition. `values` are its values as PostgreSQL reads them, in the text output of
    /// the type (patterns as they are).
    #[must_use]
    pub fn new(condition: &Condition, target: &Target<'_>, values: Vec<Option<String>>) -> Self {
        let way = way(condition, target, &values);
        Self {
            column: condition.column.clone(),
            negated: condition.negated,
            way,
            strict: target.of.is_some() || target.schema == "pg_catalog",
            sql: sql(condition, target.schema, &values),
        }
    }

    /// Whether a text needs no PostgreSQL to be read as a value of `of`: it is the type's own
    /// output already.
    #[must_use]
    pub fn canonical(of: &Type, text: &str) -> bool {
        match of {
            Type::Text(_) => true,
            // Longer ones are cut.
            Type::Name => text.len() < 64,
            _ => Datum::from_output(of, text)
                .is_ok_and(|datum| datum.output().is_some_and(|output| &*output == text)),
        }
    }

    /// Whether a condition like this is decided here on a column of such a type.
    #[must_use]
    pub fn is_native(condition: &Condition, target: &Target<'_>) -> bool {
        match condition.operator {
            Operator::Is => true,
            Operator::IsDistinct if condition.values == [None] => true,
            Operator::Eq | Operator::Neq | Operator::In | Operator::IsDistinct => {
                target.of.as_ref().is_some_and(Type::has_equality)
            }
            Operator::Lt | Operator::Lte | Operator::Gt | Operator::Gte => {
                target.of.as_ref().is_some_and(Type::has_order)
            }
            Operator::Like | Operator::Ilike => {
                collation(target).is_some_and(|collation| collation.deterministic)
            }
            Operator::Match | Operator::Imatch => false,
        }
    }

    /// The condition as SQL.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Whether PostgreSQL may have to be asked.
    #[must_use]
    pub const fn may_ask(&self) -> bool {
        matches!(
            self.way,
            Way::Asked { .. } | Way::Like { .. } | Way::Null { composite: true }
        )
    }

    /// The values that a row must have one of, where the condition is an equality.
    #[must_use]
    pub fn equalities(&self) -> Option<Vec<&Datum>> {
        match &self.way {
            Way::Equal {
                values, differs, ..
            } if *differs == self.negated && (!self.negated || values.len() == 1) => {
                Some(values.iter().flatten().collect())
            }
            Way::Distinct { value, .. } if self.negated => Some(vec![value]),
            _ => None,
        }
    }

    /// The row's value of the tested column, for looking up who demands it with
    /// [`Test::equalities`]. `Err` where it is not to be had, and anybody may.
    ///
    /// # Errors
    /// [`Outcome::Unclear`], or [`Outcome::No`] where nobody's demand is met.
    pub fn value(&self, relation: &Relation, row: &Row, deleted: bool) -> Result<Datum, Outcome> {
        let (Way::Equal { of, .. } | Way::Distinct { of, .. }) = &self.way else {
            return Err(Outcome::Unclear);
        };
        let position = relation.position(&self.column);
        match position.and_then(|position| row.get(position)) {
            Some(Value::Text(text)) => Datum::from_output(of, text).map_err(|_| Outcome::Unclear),
            Some(Value::Null) => Err(Outcome::No),
            Some(Value::Unchanged) if deleted => Err(Outcome::No),
            Some(Value::Unchanged) | None => Err(Outcome::Unclear),
        }
    }

    /// What the condition says of a row. What a deleted row does not carry does not match: the
    /// join has said so.
    #[must_use]
    pub fn outcome(
        &self,
        relation: &Relation,
        row: &Row,
        deleted: bool,
        values: &mut Values,
    ) -> Outcome {
        let Some(position) = relation.position(&self.column) else {
            return Outcome::Unclear;
        };
        let value = match row.get(position) {
            Some(Value::Unchanged) if deleted => return Outcome::No,
            Some(Value::Unchanged) | None => return Outcome::Unclear,
            Some(Value::Null) => None,
            Some(Value::Text(text)) => Some((position, text)),
        };
        match self.says(value, values) {
            Said::Told(Some(told)) if told != self.negated => Outcome::Yes,
            Said::Told(None) if self.negated && FilterMutant::NullMatchesUnderNot.active() => {
                Outcome::Yes
            }
            Said::Told(_) => Outcome::No,
            Said::Asked if FilterMutant::AskedIsYes.active() => Outcome::Yes,
            Said::Asked => Outcome::Asked,
            Said::Unclear => Outcome::Unclear,
        }
    }

    /// What the condition, not negated, says of a value and its place; `None` is NULL.
    fn says(&self, value: Option<(usize, &str)>, row: &mut Values) -> Said {
        match &self.way {
            Way::Null { composite } => match value {
                None => Said::Told(Some(!FilterMutant::IsNullFlipped.active())),
                Some(_) if *composite => Said::Asked,
                Some(_) => Said::Told(Some(FilterMutant::IsNullFlipped.active())),
            },
            Way::Known => Said::Told(Some(value.is_some())),
            Way::Never => Said::Told(Some(FilterMutant::EmptyListMatches.active())),
            Way::Truth(wanted) => {
                let truth = match value {
                    None => None,
                    Some((_, "t")) => Some(true),
                    Some((_, "f")) => Some(false),
                    Some(_) => return Said::Unclear,
                };
                Said::Told(Some(match wanted {
                    Some(wanted) => truth == Some(*wanted ^ FilterMutant::IsTrueFlipped.active()),
                    None => truth.is_none() ^ FilterMutant::IsUnknownIsNotNull.active(),
                }))
            }
            Way::Equal { of, values, .. } => self.equal(of, values, value, row),
            Way::Distinct { of, value: other } => match value {
                None => Said::Told(Some(!FilterMutant::DistinctForgetsNull.active())),
                Some(value) => match row.read(value, of) {
                    Some(datum) => Said::Told(Some(datum != other)),
                    None => Said::Unclear,
                },
            },
            Way::Order {
                of,
                operator,
                value: bound,
            } => {
                let Some(value) = value else {
                    return Said::Told(None);
                };
                let Some(datum) = row.read(value, of) else {
                    return Said::Unclear;
                };
                match of.compare(datum, bound) {
                    Some(order) => Said::Told(Some(ordered(*operator, order))),
                    None => Said::Asked,
                }
            }
            Way::Like { pattern, fold } => match value {
                None => Said::Told(None),
                Some((_, text)) => row.alike(text, pattern, *fold),
            },
            Way::Asked { distinct } => match value {
                None if self.strict => Said::Told(distinct.then_some(true)),
                _ => Said::Asked,
            },
        }
    }

    fn equal(
        &self,
        of: &Type,
        values: &[Option<Datum>],
        value: Option<(usize, &str)>,
        row: &mut Values,
    ) -> Said {
        let Some(value) = value else {
            return Said::Told(None);
        };
        let Some(datum) = row.read(value, of) else {
            return Said::Unclear;
        };
        let taken = if FilterMutant::InTakesFirst.active() {
            1
        } else {
            values.len()
        };
        let values = values.get(..taken).unwrap_or_default();
        let found = values.iter().flatten().any(|item| item == datum);
        let unknown = !FilterMutant::InForgetsNull.active() && values.iter().any(Option::is_none);
        let (Way::Equal { differs, .. }, single) = (&self.way, values.len() == 1) else {
            return Said::Unclear;
        };
        let flipped = single
            && if *differs {
                FilterMutant::NeqIsEq.active()
            } else {
                FilterMutant::EqIsNeq.active()
            };
        Said::Told(if found {
            Some(*differs == flipped)
        } else if unknown {
            None
        } else {
            Some(*differs != flipped)
        })
    }
}

fn way(condition: &Condition, target: &Target<'_>, values: &[Option<String>]) -> Way {
    let operator = condition.operator;
    let asked = Way::Asked {
        distinct: operator == Operator::IsDistinct,
    };
    let first = || values.first().and_then(Option::as_deref);
    match operator {
        Operator::Is => {
            return match first() {
                Some("true") => Way::Truth(Some(true)),
                Some("false") => Way::Truth(Some(false)),
                Some("unknown") => Way::Truth(None),
                _ => Way::Null {
                    composite: target.composite,
                },
            };
        }
        Operator::IsDistinct if values == [None] => return Way::Known,
        Operator::In if values.is_empty() => return Way::Never,
        _ => {}
    }
    if !Test::is_native(condition, target) {
        return asked;
    }
    let Some(of) = target.of.clone() else {
        return asked;
    };
    if operator.takes_pattern() {
        let fold = operator == Operator::Ilike && !FilterMutant::IlikeIsLike.active();
        let plain = collation(target).is_some_and(|collation| collation.plain_case);
        return match first() {
            Some(pattern) if !fold || plain && pattern.is_ascii() => Way::Like {
                pattern: if fold {
                    pattern.to_ascii_lowercase()
                } else {
                    pattern.to_owned()
                },
                fold,
            },
            _ => asked,
        };
    }
    let read = |text: &Option<String>| match text {
        Some(text) => Datum::from_output(&of, text).map(Some),
        None => Ok(None),
    };
    let Ok(mut typed) = values.iter().map(read).collect::<Result<Vec<_>, _>>() else {
        return asked;
    };
    match operator {
        Operator::Eq | Operator::Neq | Operator::In => Way::Equal {
            of,
            values: typed,
            differs: operator == Operator::Neq,
        },
        _ => match typed.pop().flatten() {
            Some(value) if operator == Operator::IsDistinct => Way::Distinct { of, value },
            Some(value) => Way::Order {
                of,
                operator,
                value,
            },
            None => asked,
        },
    }
}

/// The collation that patterns are held against, where the column has text that is understood.
fn collation(target: &Target<'_>) -> Option<Collation> {
    match target.of.as_ref()? {
        Type::Text(collation) | Type::Bpchar(collation) => Some(*collation),
        Type::Name => Some(Collation::C),
        _ => None,
    }
}

fn ordered(operator: Operator, order: Ordering) -> bool {
    match operator {
        Operator::Lt if FilterMutant::LtIsLte.active() => order.is_le(),
        Operator::Lt => order.is_lt(),
        Operator::Lte if FilterMutant::LteIsLt.active() => order.is_lt(),
        Operator::Lte => order.is_le(),
        Operator::Gt if FilterMutant::GtIsGte.active() => order.is_ge(),
        Operator::Gt => order.is_gt(),
        _ if FilterMutant::GteIsGt.active() => order.is_gt(),
        _ => order.is_ge(),
    }
}

/// A condition as SQL over its column. Names of operators are qualified, so that they mean the same
/// under every search path.
#[must_use]
pub fn sql(condition: &Condition, schema: &str, values: &[Option<String>]) -> String {
    let column = quote_identifier(&condition.column);
    let literal = |value: &Option<String>| {
        let text = value.as_deref();
        text.map_or_else(|| "null".to_owned(), quote_literal)
    };
    let symbol = match condition.operator {
        Operator::Match if FilterMutant::MatchIsImatch.active() => Some("~*"),
        Operator::Imatch if FilterMutant::ImatchIsMatch.active() => Some("~"),
        operator => operator.symbol(),
    };
    let compared = |value: &Option<String>| {
        let symbol = symbol.unwrap_or("=");
        let schema = quote_identifier(schema);
        format!("{column} operator({schema}.{symbol}) {}", literal(value))
    };
    let all: Vec<String> = values.iter().map(compared).collect();
    let plain = match condition.operator {
        Operator::Is => {
            let keyword = match values.first().and_then(Option::as_deref) {
                Some("true") => "true",
                Some("false") => "false",
                Some("unknown") => "unknown",
                _ => "null",
            };
            format!("{column} is {keyword}")
        }
        Operator::IsDistinct if values == [None] => format!("{column} is distinct from null"),
        Operator::IsDistinct => format!("({}) is not true", all.join(" or ")),
        _ if all.is_empty() => "false".to_owned(),
        _ => all.join(" or "),
    };
    if condition.negated && !FilterMutant::AskedForgetsNot.active() {
        format!("(not ({plain}))")
    } else {
        format!("({plain})")
    }
}

/// What a binding asks of rows of one table, all of it. Equal [`Filter::text`]s ask the same of the
/// rows of a table.
#[derive(Debug)]
pub struct Filter {
    tests: Box<[Test]>,
    text: Box<str>,
    question: Option<Question>,
}

/// The part of a [`Filter`] that PostgreSQL may have to decide.
#[derive(Debug)]
pub struct Question {
    /// The SQL that says of images of rows which match.
    pub query: Arc<str>,
    /// The role that it is put under; `none` for the relay's own login.
    pub role: Arc<str>,
    /// The columns that have to be carried.
    pub needs: Vec<String>,
}

impl Filter {
    /// A filter of these tests; `question` is about those that may have to be asked.
    #[must_use]
    pub fn new(tests: Vec<Test>, question: Option<Question>) -> Self {
        let sql: Vec<&str> = tests.iter().map(Test::sql).collect();
        Self {
            text: sql.join(" and ").into(),
            tests: tests.into(),
            question,
        }
    }

    /// The conditions as SQL.
    #[must_use]
    pub const fn text(&self) -> &str {
        &self.text
    }

    /// The conditions.
    #[must_use]
    pub const fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// Whether PostgreSQL decides a condition of every row that the others let through.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        let asked = |test: &Test| matches!(test.way, Way::Asked { .. });
        self.tests.iter().any(asked)
    }

    /// What is to be asked where the outcome is [`Outcome::Asked`].
    #[must_use]
    pub const fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// What the filter says of a row.
    #[must_use]
    pub fn outcome(
        &self,
        relation: &Relation,
        row: &Row,
        deleted: bool,
        values: &mut Values,
    ) -> Outcome {
        let mut outcome = Outcome::Yes;
        for test in &self.tests {
            match (test.outcome(relation, row, deleted, values), outcome) {
                // One false condition decides, whatever the others are.
                (Outcome::No, _) => return Outcome::No,
                (Outcome::Unclear, _) => outcome = Outcome::Unclear,
                (Outcome::Asked, Outcome::Yes) => outcome = Outcome::Asked,
                (Outcome::Asked | Outcome::Yes, _) => {}
            }
            if FilterMutant::AndIsFirst.active() {
                break;
            }
        }
        if outcome != Outcome::Asked {
            return outcome;
        }
        let carried = |name: &String| {
            let position = relation.position(name);
            let value = position.and_then(|position| row.get(position));
            value.is_some_and(|value| value != Value::Unchanged)
        };
        let needs = self.question.as_ref().map(|question| &question.needs);
        match needs {
            Some(needs) if needs.iter().all(carried) => Outcome::Asked,
            _ if deleted => Outcome::No,
            _ => Outcome::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::filter;

    fn said(filter: &str, of: &Type, value: Option<&str>) -> Outcome {
        let condition = filter::parse(filter).unwrap().remove(0);
        let target = Target {
            of: Some(of.clone()),
            composite: false,
            schema: "pg_catalog",
        };
        let test = Test::new(&condition, &target, condition.values.clone());
        let value = value.map(|text| (0, text));
        match test.says(value, &mut Values::default()) {
            Said::Told(Some(told)) if told != condition.negated => Outcome::Yes,
            Said::Told(_) => Outcome::No,
            Said::Asked => Outcome::Asked,
            Said::Unclear => Outcome::Unclear,
        }
    }

    #[test]
    fn null_matches_only_what_asks_for_it() {
        for (filter, matches) in [
            ("c=eq.1", false),
            ("c=not.eq.1", false),
            ("c=neq.1", false),
            ("c=not.in.(1,2)", false),
            ("c=in.()", false),
            ("c=not.in.()", true),
            ("c=not.lt.1", false),
            ("c=is.null", true),
            ("c=not.is.null", false),
            ("c=isdistinct.1", true),
            ("c=not.isdistinct.1", false),
            ("c=isdistinct.null", false),
            ("c=not.isdistinct.null", true),
        ] {
            let wanted = if matches { Outcome::Yes } else { Outcome::No };
            assert_eq!(said(filter, &Type::Int4, None), wanted, "{filter}");
        }
        assert_eq!(said("c=in.(1,NULL)", &Type::Int4, Some("1")), Outcome::Yes);
        assert_eq!(
            said("c=not.in.(1,NULL)", &Type::Int4, Some("2")),
            Outcome::No
        );
    }

    #[test]
    fn what_is_not_exact_here_is_asked() {
        let text = Type::Text(Collation {
            plain_case: true,
            ..Collation::DEFAULT
        });
        for (filter, value, outcome) in [
            ("c=like.a%", "abc", Outcome::Yes),
            ("c=not.like.a%", "abc", Outcome::No),
            ("c=ilike.A%", "abc", Outcome::Yes),
            ("c=ilike.A%", "abcé", Outcome::Asked),
            ("c=ilike.É%", "abc", Outcome::Asked),
            ("c=lt.b", "a", Outcome::Asked),
            ("c=match.^a", "abc", Outcome::Asked),
            ("c=eq.abc", "abc", Outcome::Yes),
        ] {
            assert_eq!(said(filter, &text, Some(value)), outcome, "{filter}");
        }
        let long = format!("c=like.%{}b", "a".repeat(2000));
        assert_eq!(said(&long, &text, Some(&"a".repeat(2000))), Outcome::Asked);
    }

    #[test]
    fn a_value_is_read_once_for_all_filters_of_a_row() {
        let mut row = Values::default();
        let mut says = |filter: &str, text: &str| {
            let condition = filter::parse(filter).unwrap().remove(0);
            let target = Target {
                of: Some(Type::Int4),
                composite: false,
                schema: "pg_catalog",
            };
            let test = Test::new(&condition, &target, condition.values.clone());
            let said = test.says(Some((0, text)), &mut row);
            matches!(said, Said::Told(Some(true)))
        };
        assert!(says("c=eq.1", "1"));
        // Who reads it again would find another text here.
        for filter in ["c=eq.1", "c=in.(1,5)", "c=isdistinct.2", "c=lt.2"] {
            assert!(says(filter, "2"), "{filter}");
        }
    }

    #[test]
    fn patterns_of_many_filters_cost_no_more_than_one_row_may() {
        let (text, pattern) = ("a".repeat(1 << 10), format!("%{}", "a".repeat(1 << 9)));
        let mut row = Values::default();
        let told = |_: &usize| matches!(row.alike(&text, &pattern, false), Said::Told(Some(true)));
        let decided = (0..1000).take_while(told).count();
        let most = MAX_LIKE_COSTS / (text.len() * pattern.len());
        assert_eq!(decided, most, "the others are asked");
        let mut next = Values::default();
        assert!(matches!(
            next.alike("a", "a", false),
            Said::Told(Some(true))
        ));
    }

    #[test]
    fn a_condition_is_worded_in_sql_whatever_is_in_it() {
        let worded = |filter: &str| {
            let condition = filter::parse(filter).unwrap().remove(0);
            sql(&condition, "s", &condition.values)
        };
        assert_eq!(
            worded("a\"b=eq.it's"),
            "(\"a\"\"b\" operator(\"s\".=) 'it''s')"
        );
        assert_eq!(
            worded("a=not.in.(x,NULL)"),
            "(not (\"a\" operator(\"s\".=) 'x' or \"a\" operator(\"s\".=) null))"
        );
        assert_eq!(worded("a=is.true"), "(\"a\" is true)");
        assert_eq!(
            worded("a=isdistinct.1"),
            "((\"a\" operator(\"s\".=) '1') is not true)"
        );
    }
}
