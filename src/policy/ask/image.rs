//! A row of the stream as PostgreSQL can read it again, and the query that asks about it.

use crate::change::{Relation, Row, Value};
use crate::pg::{Oid, quote_identifier as quoted};
use crate::policy::catalog::{Column, Table};
use crate::subscription::mutant::Mutant;

/// A row as the JSON object that [`query`] reads: every value as its type's text output in a JSON
/// string. What the stream does not carry is left out; whoever asks has seen to it that no policy
/// reads it.
#[must_use]
pub fn of(relation: &Relation, row: &Row) -> String {
    let mut out = Vec::with_capacity(row.size() * 2);
    out.push(b'{');
    for (column, value) in relation.columns.iter().zip(row.values()) {
        if value == Value::Unchanged {
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
        let from = source(asked);
        let condition = &asked.condition;
        sql.push_str(&format!("exists (select 1 from {from} where {condition})"));
    }
    sql
}

/// The columns that the stream has to carry for `asked` to be decided.
pub fn needs<'a>(asked: &Asked<'a>) -> Vec<&'a Column> {
    let computed = asked.reads.iter().any(|column| column.generated.is_some());
    if computed {
        // What the computation reads is not known by column; all of them do.
        asked
            .table
            .columns
            .iter()
            .filter(|column| column.generated.is_none())
            .collect()
    } else {
        asked.reads.clone()
    }
}

const REGCLASS: Oid = Oid(2205);

/// One row with the columns that are read, under the table's own name.
fn source(asked: &Asked<'_>) -> String {
    let alias = quoted(&asked.table.name);
    let values: Vec<String> = needs(asked)
        .into_iter()
        .map(|column| {
            let collate = column
                .collation_sql
                .as_ref()
                .map_or_else(String::new, |name| {
                    // A column of a sub-select passes its collation on as one of a table does.
                    if Mutant::CollationIsForgotten.active() {
                        String::new()
                    } else {
                        format!(" collate {name}")
                    }
                });
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
        .map(|(column, expression)| format!("({expression}) as {}", quoted(&column.name)))
        .collect();
    if computed.is_empty() {
        return format!("(select {values}) as {alias}");
    }
    let computed = computed.join(", ");
    format!("(select {alias}.*, {computed} from (select {values}) as {alias}) as {alias}")
}
