//! Rows that collide: of each type few values, the same in every table, and NULLs.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio_postgres::Client;

use crate::file::File;

/// The people, and whatever else has a uuid: organisations, teams, rows.
pub(crate) const UUIDS: [&str; 5] = [
    "00000000-0000-4000-8000-00000000000a",
    "00000000-0000-4000-8000-00000000000b",
    "00000000-0000-4000-8000-00000000000c",
    "00000000-0000-4000-8000-00000000000d",
    "00000000-0000-4000-8000-00000000000e",
];

pub(crate) const EMAILS: [&str; 3] = ["ann@example.com", "ben@example.com", "Cat@Example.com"];

#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    kind: String,
    nullable: bool,
    generated: bool,
    labels: Vec<String>,
    /// Of which column's rows its values are.
    refers: Option<(String, String)>,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// As SQL.
    pub(crate) sql: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) key: Vec<String>,
    pub(crate) ruled: bool,
    /// What a `select` that shows the same reads, as SQL.
    pub(crate) read: String,
    count: u32,
}

impl Table {
    /// `schema.table`, as headers have it.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// An SQL expression of a row's key as JSON.
    pub(crate) fn key_sql(&self) -> String {
        let columns: Vec<String> = self.key.iter().map(|name| quoted(name)).collect();
        format!("jsonb_build_array({})::text", columns.join(", "))
    }

    /// A condition that names one row.
    pub(crate) fn is(&self, key: &str) -> String {
        format!("{} = {}", self.key_sql(), literal(key))
    }
}

const TABLES: &str = "
    select c.oid, n.nspname::text, c.relname::text, c.relrowsecurity or exists (select from pg_policy p where p.polrelid = c.oid),
      coalesce((select array_agg(a.attname::text order by array_position(i.indkey::int2[], a.attnum))
        from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])
        where i.indrelid = c.oid and i.indisprimary), '{}')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and c.relpersistence = 'p' and n.nspname !~ '^(pg_|information_schema)'
      and (not c.relispartition or exists (select from pg_policy p where p.polrelid = c.oid))
    order by c.oid";

const COLUMNS: &str = "
    select a.attname::text, format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), null), not a.attnotnull,
      a.attgenerated <> '' or a.attidentity = 'a',
      array(select e.enumlabel::text from pg_enum e where e.enumtypid = a.atttypid order by e.enumsortorder),
      (select k.confrelid::regclass::text from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'f'
        and k.conkey = array[a.attnum] limit 1),
      (select f.attname::text from pg_constraint k join pg_attribute f on f.attrelid = k.confrelid and f.attnum = k.confkey[1]
        where k.conrelid = a.attrelid and k.contype = 'f' and k.conkey = array[a.attnum] limit 1)
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum";

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(crate) async fn tables(sql: &Client) -> Vec<Table> {
    let mut tables = Vec::new();
    for row in sql.query(TABLES, &[]).await.expect("the tables") {
        let (oid, schema, name): (u32, String, String) = (row.get(0), row.get(1), row.get(2));
        let columns = sql.query(COLUMNS, &[&oid]).await.expect("the columns");
        let column = |row: &tokio_postgres::Row| Column {
            name: row.get(0),
            kind: row.get(1),
            nullable: row.get(2),
            generated: row.get(3),
            labels: row.get(4),
            refers: row.get::<_, Option<String>>(5).zip(row.get(6)),
        };
        tables.push(Table {
            oid,
            sql: format!("{}.{}", quoted(&schema), quoted(&name)),
            read: format!("{}.{}", quoted(&schema), quoted(&name)),
            schema,
            name,
            columns: columns.iter().map(column).collect(),
            key: row.get(4),
            ruled: row.get(3),
            count: 0,
        });
    }
    tables
}

/// Parts of the names of columns that say who somebody is, or what belongs together.
const PERSONAL: [&str; 6] = ["user", "owner", "_by", "_id", "uid", "author"];

/// Whether the values of a table's key are the people that claims name.
fn names_people(table: &Table, column: &str) -> bool {
    PERSONAL.iter().any(|part| column.contains(part))
        || table.name.starts_with("profile")
        || table.name == "users"
}

/// Draws values.
pub(crate) struct Draw<'f> {
    pub(crate) random: StdRng,
    pub(crate) file: &'f File,
}

impl Draw<'_> {
    fn pick<'v>(&mut self, values: &[&'v str]) -> &'v str {
        values.choose(&mut self.random).copied().unwrap_or("")
    }

    fn text_for(&mut self, column: &str) -> String {
        let name = column.to_lowercase();
        if name.contains("mail") {
            return self.pick(&EMAILS).to_owned();
        }
        if PERSONAL.iter().any(|part| name.contains(part)) && self.random.random_bool(0.8) {
            return self.pick(&UUIDS).to_owned();
        }
        let words: Vec<&str> = self.file.words.iter().map(String::as_str).collect();
        match self.random.random_range(0..10) {
            0 => String::new(),
            1 => "x".to_owned(),
            _ if words.is_empty() => "x".to_owned(),
            _ => self.pick(&words).to_owned(),
        }
    }

    /// A value of a type, as text; `None` where nothing is known of the type.
    fn of_type(&mut self, column: &Column, kind: &str) -> Option<String> {
        if let Some(element) = kind.strip_suffix("[]") {
            let count = self.random.random_range(0..3);
            let items: Option<Vec<String>> =
                (0..count).map(|_| self.of_type(column, element)).collect();
            let items: Vec<String> = items?
                .into_iter()
                .map(|item| format!("\"{}\"", item.replace('"', "\\\"")))
                .collect();
            return Some(format!("{{{}}}", items.join(",")));
        }
        let numbers = ["1", "2", "3", "4"];
        let kind = kind.split('(').next().unwrap_or(kind);
        let text = match kind {
            "uuid" => self.pick(&UUIDS).to_owned(),
            "smallint" | "integer" | "bigint" => self.pick(&numbers).to_owned(),
            "numeric" | "real" | "double precision" => {
                self.pick(&["0", "1", "1.50", "2"]).to_owned()
            }
            "boolean" => self.pick(&["true", "false"]).to_owned(),
            "text" | "character varying" | "character" | "bpchar" | "name" | "\"char\"" => {
                self.text_for(&column.name)
            }
            "timestamp with time zone" | "timestamp without time zone" | "date" => self
                .pick(&[
                    "2020-02-29 12:00:00",
                    "2024-06-01 00:00:00",
                    "2999-12-31 23:59:59",
                ])
                .to_owned(),
            "json" | "jsonb" => {
                let user = self.pick(&UUIDS);
                let word = self.text_for("word");
                match self.random.random_range(0..4) {
                    0 => "{}".to_owned(),
                    1 => "null".to_owned(),
                    2 => format!("{{\"user_id\": \"{user}\", \"public\": true}}"),
                    _ => format!("{{\"user_id\": \"{user}\", \"kind\": \"{word}\"}}"),
                }
            }
            _ => return None,
        };
        Some(text)
    }

    /// A value as an SQL expression.
    fn value(&mut self, table: &Table, column: &Column) -> String {
        let sole = table.key.len() == 1 && table.key.first() == Some(&column.name);
        if column.nullable && self.random.random_bool(0.15) {
            return "null".to_owned();
        }
        let hinted = self
            .file
            .values
            .get(&format!("{}.{}", table.path(), column.name));
        if let Some(values) = hinted {
            return values.choose(&mut self.random).cloned().expect("values");
        }
        if let Some((other, of)) = &column.refers {
            let at = self.random.random_range(0..4);
            let of = quoted(of);
            return format!(
                "(select {of} from {other} order by {of} offset least({at}, (select count(*) - 1 from {other})) limit 1)"
            );
        }
        if let Some(label) = column.labels.choose(&mut self.random) {
            return literal(label);
        }
        // Keys are few at first, and there are always some more.
        let number = self.random.random_range(1..=8 + table.count);
        if sole {
            match column.kind.as_str() {
                "uuid" if number > 5 && !names_people(table, &column.name) => {
                    return format!("'10000000-0000-4000-8000-{number:012}'");
                }
                "smallint" | "integer" | "bigint" => return number.to_string(),
                "text" if number > 6 => return format!("'k{number}'"),
                _ => {}
            }
        }
        let kind = column.kind.clone();
        self.of_type(column, &kind)
            .map_or_else(|| "default".to_owned(), |text| literal(&text))
    }

    pub(crate) fn insert(&mut self, table: &mut Table) -> String {
        table.count += 1;
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for column in table.columns.iter().filter(|column| !column.generated) {
            names.push(quoted(&column.name));
            values.push(self.value(table, column));
        }
        format!(
            "insert into {} ({}) values ({}) on conflict do nothing",
            table.sql,
            names.join(", "),
            values.join(", ")
        )
    }

    /// `None` where all that the table has is its key.
    pub(crate) fn update(&mut self, table: &Table, key: &str) -> Option<String> {
        let free: Vec<&Column> = table
            .columns
            .iter()
            .filter(|column| !column.generated && !table.key.contains(&column.name))
            .collect();
        let count = self.random.random_range(1..=2);
        let chosen: Vec<&&Column> = free.choose_multiple(&mut self.random, count).collect();
        let sets: BTreeMap<String, String> = chosen
            .into_iter()
            .map(|column| (quoted(&column.name), self.value(table, column)))
            .collect();
        let sets: Vec<String> = sets
            .into_iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        (!sets.is_empty()).then(|| {
            format!(
                "update {} set {} where {}",
                table.sql,
                sets.join(", "),
                table.is(key)
            )
        })
    }
}
