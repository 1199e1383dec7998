//! What is read for one binding: the statement, made of names and conditions that were held against
//! the catalog, and how its rows are written.

use std::sync::Arc;

use super::Settings;
use crate::change::{Column as Described, ColumnSet, Relation, ReplicaIdentity, Row};
use crate::encode::Shape;
use crate::pg::{Oid, quote_identifier};
use crate::policy::access::Access;
use crate::policy::catalog::{Catalog, Column, Table};
use crate::subscription::order::{Nulls, Term, Wish};

/// A statement over one table, for one role.
#[derive(Debug)]
pub struct Query {
    pub(super) schema: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) oid: Oid,
    pub(super) sql: String,
    /// Rows that are given; the statement asks for one more, to know whether there are others.
    pub(super) limit: u64,
    /// The columns' types without domains, which is how PostgreSQL describes them. Where it
    /// describes others the table is not what the catalog in hand says.
    pub(super) types: Box<[Oid]>,
    shape: Shape,
    max_record_bytes: usize,
}

impl Query {
    /// Words what a binding wants to have read. `condition` is its filter as SQL (empty for none),
    /// which has been held against the table; `selected` says which columns it wants.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn new(
        catalog: &Catalog,
        (table, access, role): (&Table, &Access, &str),
        condition: &str,
        selected: impl Fn(&str) -> bool,
        wish: &Wish,
        settings: &Settings,
    ) -> Result<Self, String> {
        if !catalog.roles.get(role).is_some_and(|role| role.settable) {
            return Err(format!(
                "a snapshot is read as {role}, which the relay's login may not become: grant \
                 {role} to it"
            ));
        }
        let ancestors = table.ancestors.iter();
        let mut ancestors = ancestors.filter_map(|oid| catalog.tables.get(oid));
        let ruled = |ancestor: &Table| ancestor.rules.iter().any(|rule| rule.applies_to(role));
        if ancestors.any(|ancestor| ancestor.row_security || ruled(ancestor)) {
            // To read the partition itself would pass its ancestors' policies by.
            return Err(format!(
                "a snapshot of the partition {}.{} cannot be taken: subscribe to the table that it \
                 is a partition of",
                table.schema, table.name
            ));
        }
        let limit = wish
            .limit
            .unwrap_or_else(|| settings.default_rows.min(settings.max_rows));
        if limit > settings.max_rows {
            return Err(format!(
                "a snapshot's `limit` may be {} at most (snapshot_max_rows), not {limit}",
                settings.max_rows
            ));
        }
        let readable = |column: &&Column| access.may_read(&column.name);
        let columns: Vec<&Column> = table
            .columns
            .iter()
            .filter(readable)
            .filter(|column| table.publishes(&column.name) && selected(&column.name))
            .collect();
        let relation = relation(table, &columns);
        let all = ColumnSet::of(&relation, |_| true);
        let base = |column: &&Column| {
            let base = catalog.base_type(column.type_oid);
            base.map_or(column.type_oid, |base| base.oid)
        };
        Ok(Self {
            schema: Arc::clone(&relation.schema),
            name: Arc::clone(&relation.name),
            oid: table.oid,
            sql: sql(
                table,
                &columns,
                &narrowed(access.narrowed.as_deref(), condition),
                &order(table, access, wish)?,
                limit,
            ),
            limit,
            types: columns.iter().map(base).collect(),
            shape: Shape::new(&relation, table, catalog, &all),
            max_record_bytes: settings.max_record_bytes,
        })
    }

    /// Writes a row as changes have it in `record`, and returns what their `errors` would say.
    pub(super) fn write(&self, out: &mut Vec<u8>, row: &Row) -> Option<&'static str> {
        self.shape.write_record(out, row, self.max_record_bytes)
    }
}

/// The filter behind the rules: it must not raise an error for a row that those hide, as its client
/// would learn something of that. PostgreSQL orders conditions as it likes, but not a CASE.
fn narrowed(rules: Option<&str>, filter: &str) -> String {
    match rules {
        None => filter.to_owned(),
        Some(rules) if filter.is_empty() => rules.to_owned(),
        Some(rules) => format!("{rules} and case when {rules} then ({filter}) end"),
    }
}

/// The table as if the stream described it with these columns.
fn relation(table: &Table, columns: &[&Column]) -> Relation {
    let described = |column: &&Column| Described {
        name: column.name.as_str().into(),
        type_oid: column.type_oid,
        type_modifier: column.modifier,
        identity: table.identity_carries(column),
    };
    Relation {
        oid: table.oid,
        schema: table.schema.as_str().into(),
        name: table.name.as_str().into(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().map(described).collect(),
        version: 0,
        types: Arc::default(),
    }
}

fn sql(
    table: &Table,
    columns: &[&Column],
    condition: &str,
    order: &[String],
    limit: u64,
) -> String {
    let names: Vec<String> = columns
        .iter()
        .map(|column| quote_identifier(&column.name))
        .collect();
    // Changes of a table's children are the children's; those of partitions are the root's.
    let only = if table.leaves.is_some() { "" } else { "only " };
    let mut sql = format!(
        "select {} from {only}{}",
        names.join(", "),
        table.sql_name()
    );
    if !condition.is_empty() {
        sql.push_str(&format!(" where {condition}"));
    }
    if !order.is_empty() {
        sql.push_str(&format!(" order by {}", order.join(", ")));
    }
    sql.push_str(&format!(" limit {}", limit.saturating_add(1)));
    sql
}

/// What the client names, and behind it the primary key: of a limited number of rows it must not be
/// left to chance which.
fn order(table: &Table, access: &Access, wish: &Wish) -> Result<Vec<String>, String> {
    let mut terms = Vec::with_capacity(wish.order.len() + table.key.len());
    for term in &wish.order {
        // A column that the role may not read is as unknown to it as one that is not there.
        if table.column(&term.column).is_none() || !access.may_read(&term.column) {
            return Err(format!("invalid column for order {}", term.column));
        }
        terms.push(worded(term));
    }
    let key = table
        .key
        .iter()
        .filter_map(|number| table.columns.iter().find(|column| column.number == *number));
    for column in key {
        let named = wish.order.iter().any(|term| term.column == column.name);
        if !named && access.may_read(&column.name) {
            terms.push(quote_identifier(&column.name));
        }
    }
    Ok(terms)
}

fn worded(term: &Term) -> String {
    let mut text = quote_identifier(&term.column);
    if term.descending {
        text.push_str(" desc");
    }
    match term.nulls {
        Some(Nulls::First) => text.push_str(" nulls first"),
        Some(Nulls::Last) => text.push_str(" nulls last"),
        None => {}
    }
    text
}
