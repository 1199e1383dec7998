//! A row of the stream as PostgreSQL can read it again, and the query that asks about it.

use crate::change::{Relation, Row, Value};
use crate::mutant::FilterMutant;
use crate::pg::{Oid, quote_identifier as quoted};
use crate::policy::catalog::{Column, Table};

/// A row as the JSON object that [`query`] reads: every value as its type's text output in a JSON
/// string, of the columns for which `wanted` says yes by place. What the stream does not carry is
/// left out; whoever asks has seen to it that it is not read.
#[must_use]
pub fn of(relation: &Relation, row: &Row, wanted: impl Fn(usize) -> bool) -> String {
    let mut out = Vec::with_capacity(row.size() * 2);
    out.push(b'{');
    let columns = relation.columns.iter().zip(row.values()).enumerate();
    for (position, (column, value)) in columns {
        if value == Value::Unchanged || !wanted(position) {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        // Writing to a Vec does not fail.
        let _name = serde_json::to_writer(&mut out, &*column.name);
        out.push(b':');
        match value {
            Value::Text(text) => {
                let _text = serde_json::to_writer(&mut out, text);
            }
            Value::Null | Value::Unchanged => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
    // Everything written is UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

/// Policies of one table, to be asked about.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The table whose policies they are.
    pub table: &'a Table,
    /// What must be true, as SQL over the table's columns.
    pub condition: String,
    /// The columns that it reads.
    pub reads: Vec<&'a Column>,
    /// Whether it reads the row as a whole, as a value of the table's own type. Then `reads` are all
    /// columns, in order.
    pub whole: bool,
}

/// The SQL that says which rows of `$1` (an array of what [`of`] makes) pass all of `asked`,
/// by their places counted from 1. Each value is cast from its text output to its column's type;
/// generated columns are computed as PostgreSQL computes them.
#[must_use]
pub fn query(asked: &[Asked<'_>]) -> String {
    let mut sql = "select \"rowcast image\".\"rowcast place\" \
                   from pg_catalog.unnest($1::pg_catalog.text[]) with ordinality \
                   as \"rowcast image\"(\"rowcast row\", \"rowcast place\") where "
        .to_owned();
    for (place, asked) in asked.iter().enumerate() {
        if place > 0 {
            sql.push_str(" and ");
        }
        let from = row(asked);
        let condition = &asked.condition;
        sql.push_str(&format!("exists (select 1 from {from} where {condition})"));
    }
    sql
}

/// The SQL that computes the generated columns that `asked` reads, for rows of `$1` as [`query`]
/// takes them: the row's place counted from 1, and the values' text outputs in an array.
#[must_use]
pub fn computation(asked: &Asked<'_>) -> String {
    let alias = quoted(&asked.table.name);
    let outputs: Vec<String> = asked
        .reads
        .iter()
        .map(|column| {
            let value = format!("{alias}.{}", quoted(&column.name));
            // Not "is null", which is true of a row of NULLs too; not a cast to text, which is
            // not every type's output.
            format!(
                "case when pg_catalog.num_nulls({value}) = 0 \
                 then pg_catalog.format('%s', {value}) end"
            )
        })
        .collect();
    format!(
        "select \"rowcast image\".\"rowcast place\", array[{}]::pg_catalog.text[] \
         from pg_catalog.unnest($1::pg_catalog.text[]) with ordinality \
         as \"rowcast image\"(\"rowcast row\", \"rowcast place\") cross join lateral {}",
        outputs.join(", "),
        source(asked)
    )
}

/// The columns that the stream has to carry for `asked` to be decided.
pub fn needs<'a>(asked: &Asked<'a>) -> Vec<&'a Column> {
    let read = |column: &&Column| {
        let computes = |read: &&Column| {
            let inputs = read.computed_from.as_deref().unwrap_or_default();
            inputs.contains(&column.number)
        };
        column.generated.is_none()
            && (asked.reads.iter().any(|read| read.number == column.number)
                || asked.reads.iter().any(computes))
    };
    asked.table.columns.iter().filter(read).collect()
}

/// The column's collation, for a value in its place: a column of a sub-select passes it on as one of
/// a table does.
fn collate(column: &Column) -> String {
    if FilterMutant::CollationIsForgotten.active() {
        return String::new();
    }
    match &column.collation_sql {
        Some(name) => format!(" collate {name}"),
        // An expression may come with another.
        None if column.generated.is_some() && column.collation == DEFAULT_COLLATION => {
            " collate pg_catalog.\"default\"".to_owned()
        }
        None => String::new(),
    }
}

const DEFAULT_COLLATION: Oid = Oid(100);

const REGCLASS: Oid = Oid(2205);

/// One row under the table's own name, of the table's type where it is read as a whole.
fn row(asked: &Asked<'_>) -> String {
    let from = source(asked);
    if !asked.whole {
        return from;
    }
    let Table { schema, name, .. } = asked.table;
    let (schema, alias) = (quoted(schema), quoted(name));
    let columns = asked.reads.iter();
    let values: Vec<String> = columns
        .map(|column| format!("{alias}.{}", quoted(&column.name)))
        .collect();
    // What a function returns of a table's type is a row of that type.
    format!(
        "pg_catalog.unnest(array(select row({})::{schema}.{alias} from {from})) as {alias}",
        values.join(", ")
    )
}

/// One row with the columns that are read, under the table's own name.
fn source(asked: &Asked<'_>) -> String {
    let alias = quoted(&asked.table.name);
    let values: Vec<String> = needs(asked)
        .into_iter()
        .map(|column| {
            let collate = collate(column);
            let text = format!(
                "(\"rowcast image\".\"rowcast row\"::pg_catalog.json ->> {})",
                crate::pg::quote_literal(&column.name)
            );
            // The cast from text to regclass does not take all that its output is.
            let text = if column.type_oid == REGCLASS {
                format!("pg_catalog.regclassin(pg_catalog.textout({text}))")
            } else {
                text
            };
            format!(
                "{text}::{}{collate} as {}",
                column.type_sql,
                quoted(&column.name)
            )
        })
        .collect();
    // A row without columns is a row all the same.
    let values = if values.is_empty() {
        "1 as \"rowcast nothing\"".to_owned()
    } else {
        values.join(", ")
    };
    let computed: Vec<String> = asked
        .reads
        .iter()
        .filter_map(|column| Some((column, column.generated.as_ref()?)))
        // Rounded and cut to the column's type, as it is when it is stored.
        .map(|(column, expression)| {
            format!(
                "({expression})::{}{} as {}",
                column.type_sql,
                collate(column),
                quoted(&column.name)
            )
        })
        .collect();
    if computed.is_empty() {
        return format!("(select {values}) as {alias}");
    }
    let computed = computed.join(", ");
    format!("(select {alias}.*, {computed} from (select {values}) as {alias}) as {alias}")
}
