//! Tables of many types, the rows that a relay delivers of them, and what PostgreSQL says of those.

use std::collections::BTreeMap;
use std::time::Instant;

use rand::Rng;
use rand::rngs::StdRng;
use rowcast::pg::{quote_identifier, quote_literal};
use rowcast::router::Event;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::generate::{BASE, RANGES};
use crate::harness::{Relay, Watcher, cluster, connect};
use crate::types::{Declared, Ty, odd_name};

/// Settings that would change nearly every text, were they not the relay's own for its session.
const FOREIGN_SETTINGS: &str = "do $$ declare setting text; begin
  foreach setting in array array['timezone = ''Asia/Kathmandu''', 'datestyle = ''SQL, DMY''',
    'intervalstyle = ''iso_8601''', 'bytea_output = ''escape''', 'extra_float_digits = -5'] loop
    execute format('alter database %I set %s', current_database(), setting);
  end loop; end $$;";

/// What the values are compared under.
pub(crate) const ORACLE: &str =
    "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres';
  set bytea_output = 'hex'; set extra_float_digits = 1;
  create function canonical(text) returns text language plpgsql as
  $$ begin return ($1::jsonb)::text; exception when others then return 'not JSON: ' || $1; end $$;
  -- What PostgreSQL says of a row, with what README says is different.
  create function expected(of regclass, whole jsonb) returns jsonb language sql stable as
  $$ select coalesce(jsonb_object_agg(f.key, case
         when a.atttypid = 'bytea'::regtype and f.value <> 'null'
           then to_jsonb(substr(f.value #>> '{}', 3))
         else f.value end), '{}')
     from jsonb_each(whole) f
     join pg_attribute a on a.attrelid = of and a.attname = f.key $$;";

/// A table: its columns' names and types, behind an `id`.
struct Table {
    name: String,
    columns: Vec<(String, Ty)>,
}

impl Table {
    fn ddl(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|(name, ty)| format!("{} {}", quote_identifier(name), ty.sql))
            .collect();
        let name = quote_identifier(&self.name);
        format!(
            "create table {name} (id int primary key, {}); grant select on {name} to anon;",
            columns.join(", ")
        )
    }

    async fn fill(&self, relay: &Relay, rows: usize, rng: &mut StdRng) {
        let name = quote_identifier(&self.name);
        let mut tuples = Vec::new();
        for id in 0..rows {
            let mut tuple = vec![id.to_string()];
            for (_, ty) in &self.columns {
                tuple.push(if rng.random_bool(0.03) {
                    "null".to_owned()
                } else {
                    quote_literal(&ty.input(id, rng))
                });
            }
            tuples.push(format!("({})", tuple.join(",")));
            if tuples.len() == 25 || id + 1 == rows {
                let insert = format!("insert into {name} values {}", tuples.join(","));
                if let Err(error) = relay.sql.batch_execute(&insert).await {
                    let error = error.as_db_error().expect("an answer");
                    let at = match error.position() {
                        Some(tokio_postgres::error::ErrorPosition::Original(at)) => *at as usize,
                        _ => 1,
                    };
                    let near: String = insert.chars().skip(at - 1).take(200).collect();
                    panic!("{}: {}: {near}", self.name, error.message());
                }
                tuples.clear();
            }
        }
    }
}

/// What a change says; values stay the text that was delivered.
#[derive(Deserialize)]
struct Data<'a> {
    table: String,
    #[serde(borrow)]
    columns: &'a RawValue,
    #[serde(borrow)]
    record: &'a RawValue,
}

#[derive(Deserialize)]
struct Identified {
    id: i64,
}

/// The rows of one table as they were delivered.
#[derive(Default)]
pub(crate) struct Delivered {
    columns: String,
    pub(crate) ids: Vec<i32>,
    pub(crate) records: Vec<String>,
}

/// Everything that a watcher of all tables gets before the next fence.
pub(crate) async fn delivered(relay: &mut Relay, watcher: &Watcher) -> BTreeMap<String, Delivered> {
    let fence = relay.fence().await;
    let mut tables: BTreeMap<String, Delivered> = BTreeMap::new();
    loop {
        match watcher.event().await {
            Event::Change { change, .. } => {
                let data = &change.data;
                // A mutant may have made something that is no JSON at all.
                let Ok(data) = serde_json::from_slice::<Data<'_>>(data) else {
                    let broken = tables.entry("fence".to_owned()).or_default();
                    broken
                        .records
                        .push(String::from_utf8_lossy(data).into_owned());
                    continue;
                };
                let id = serde_json::from_str::<Identified>(data.record.get())
                    .expect("an id")
                    .id;
                if data.table == "fence" {
                    if u64::try_from(id) == Ok(fence) {
                        return tables;
                    }
                    continue;
                }
                let table = tables.entry(data.table).or_default();
                table.columns = data.columns.get().to_owned();
                table.ids.push(i32::try_from(id).expect("an id"));
                table.records.push(data.record.get().to_owned());
            }
            Event::Resync { reason, .. } => panic!("resync {}", reason.as_str()),
            Event::Joined { .. }
            | Event::Introduced { .. }
            | Event::CaughtUp { .. }
            | Event::Unavailable { .. } => {}
            other @ (Event::Snapshot { .. } | Event::SnapshotFailed { .. }) => {
                panic!("nobody asked for a snapshot: {other:?}")
            }
        }
    }
}

/// What a run found.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) values: usize,
    pub(crate) wrong: Vec<String>,
    /// Built-in types that no column has.
    pub(crate) uncovered: Vec<String>,
}

/// Tables of all built-in types and of random types of users, on a relay of their own.
pub(crate) struct World {
    relay: Relay,
    watcher: Watcher,
    tables: Vec<Table>,
}

impl World {
    pub(crate) async fn make(rng: &mut StdRng, user_types: usize) -> Self {
        let admin = connect(&cluster().await.url("postgres")).await;
        let count: i64 = admin
            .query_one(
                "select count(*) from pg_available_extensions where name = 'hstore'",
                &[],
            )
            .await
            .expect("extensions")
            .get(0);
        let declared = Declared::random(user_types, count > 0, rng);
        let named = |types: Vec<Ty>| -> Vec<(String, Ty)> {
            let name = |(number, ty)| (format!("c{number}"), ty);
            types.into_iter().enumerate().map(name).collect()
        };
        let scalars: Vec<Ty> = BASE.iter().map(|(kind, sql)| Ty::base(kind, sql)).collect();
        let arrays = scalars.iter().cloned().map(Ty::array).collect();
        let mut ranges = Vec::new();
        for (sql, of, multi) in RANGES {
            let range = Ty::range(sql, Ty::base(of, of));
            let multi = Ty::multirange(multi, range.clone());
            ranges.extend([
                Ty::array(range.clone()),
                range,
                Ty::array(multi.clone()),
                multi,
            ]);
        }
        let mut own: Vec<(String, Ty)> = Vec::new();
        for ty in &declared.types {
            own.push((odd_name(own.len(), rng), ty.clone()));
            if !matches!(ty.sql.as_str(), sql if sql.ends_with("[]")) {
                own.push((odd_name(own.len(), rng), Ty::array(ty.clone())));
            }
        }
        let tables = vec![
            Table {
                name: "scalars".to_owned(),
                columns: named(scalars),
            },
            Table {
                name: "arrays".to_owned(),
                columns: named(arrays),
            },
            Table {
                name: "ranges".to_owned(),
                columns: named(ranges),
            },
            Table {
                name: "Own \"types\" \\ 🐘".to_owned(),
                columns: own,
            },
        ];
        let mut schema = format!("{FOREIGN_SETTINGS} {};", declared.ddl.join("; "));
        let mut names = Vec::new();
        for table in &tables {
            schema += &table.ddl();
            names.push(quote_identifier(&table.name));
        }
        let relay = Relay::start(&schema, &names.join(", ")).await;
        relay.run(ORACLE).await;
        let watcher = relay.watch("anon", &json!({}), "*").await;
        Self {
            relay,
            watcher,
            tables,
        }
    }

    /// Writes about as many values as wanted and compares what arrives of them.
    pub(crate) async fn run(&mut self, wanted: usize, rng: &mut StdRng) -> Outcome {
        let columns: usize = self.tables.iter().map(|table| table.columns.len()).sum();
        // Every type's extremes come first.
        let rows = (wanted / columns + 1).max(24);
        let begin = Instant::now();
        self.relay.run("begin").await;
        for table in &self.tables {
            table.fill(&self.relay, rows, rng).await;
        }
        self.relay.run("commit").await;
        let written = begin.elapsed();
        let delivered = delivered(&mut self.relay, &self.watcher).await;
        let arrived = begin.elapsed();
        let mut outcome = Outcome::default();
        for table in &self.tables {
            let Some(delivered) = delivered.get(&table.name) else {
                outcome
                    .wrong
                    .push(format!("nothing of {} was delivered as JSON", table.name));
                continue;
            };
            if delivered.ids.len() != rows {
                outcome.wrong.push(format!(
                    "{} rows of {} in {}",
                    delivered.ids.len(),
                    rows,
                    table.name
                ));
            }
            outcome.values += delivered.ids.len() * table.columns.len();
            let name = quote_identifier(&table.name);
            outcome
                .wrong
                .extend(differences(&self.relay, &name, delivered).await);
            outcome
                .wrong
                .extend(wrong_columns(&self.relay, &name, delivered).await);
        }
        outcome.uncovered = self.uncovered().await;
        eprintln!(
            "{} values in {rows} rows: written after {written:?}, delivered after {arrived:?}, compared after {:?}",
            outcome.values,
            begin.elapsed()
        );
        outcome
    }

    /// Built-in types that no column has and no value can be had of otherwise: types of a newer
    /// PostgreSQL that this test does not know.
    async fn uncovered(&self) -> Vec<String> {
        let rows = self.relay.sql.query(
            "select y.typname::text from pg_type y
             where y.oid < 16384 and y.typtype in ('b', 'd', 'e', 'm', 'r')
               and y.oid not in (select atttypid from pg_attribute a join pg_class c on c.oid = attrelid
                                 where c.oid >= 16384 and not attisdropped)
               -- Rows of PostgreSQL's own tables are composites as others are.
               and not exists (select 1 from pg_type e where e.oid = y.typelem and e.typtype in ('c', 'p'))
               -- What nothing but PostgreSQL itself can make a value of.
               and y.typname not in ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list',
                 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'gtsvector', '_gtsvector')
             order by 1", &[],
        ).await.expect("types");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// What was delivered of a table against `to_jsonb`: for each value that differs its type and both.
pub(crate) async fn differences(relay: &Relay, table: &str, delivered: &Delivered) -> Vec<String> {
    let compared = format!(
        "select s.record, expected('{regclass}', to_jsonb(t.*))::text
         from unnest($1::int[], $2::text[]) as s(id, record)
         left join {table} t on t.id = s.id
         where canonical(s.record) is distinct from expected('{regclass}', to_jsonb(t.*))::text",
        regclass = table.replace('\'', "''"),
    );
    let rows = relay
        .sql
        .query(&compared, &[&delivered.ids, &delivered.records])
        .await;
    let rows = rows.unwrap_or_else(|error| panic!("{error:?}"));
    let mut wrong = Vec::new();
    for row in rows {
        let (ours, theirs): (String, Option<String>) = (row.get(0), row.get(1));
        let detail = format!(
            "select format('%s (%s): %s, but PostgreSQL says %s', f.key, coalesce(
                 format_type(a.atttypid, a.atttypmod), 'no column'), o.value::text, f.value::text)
             from json_each($1::text::json) o
             full join jsonb_each($2::text::jsonb) f using (key)
             left join pg_attribute a on a.attrelid = '{}'::regclass and a.attname = key
             where canonical(o.value::text) is distinct from f.value::text",
            table.replace('\'', "''")
        );
        match relay.sql.query(&detail, &[&ours, &theirs]).await {
            Ok(rows) => wrong.extend(rows.iter().map(|row| row.get::<_, String>(0))),
            Err(_) => wrong.push(format!("not JSON: {ours}")),
        }
    }
    wrong
}

/// Whether `columns` names the columns and their types, and the record's keys are in their order.
async fn wrong_columns(relay: &Relay, table: &str, delivered: &Delivered) -> Option<String> {
    let row = relay.sql.query_one(
        &format!(
            "select jsonb_agg(jsonb_build_object('name', attname, 'type', typname) order by attnum)::text,
                    canonical($1), array_agg(attname::text order by attnum),
                    (select array_agg(key order by place)
                     from json_object_keys($2::text::json) with ordinality k(key, place))
             from pg_attribute a join pg_type y on y.oid = atttypid
             where attrelid = '{}'::regclass and attnum > 0 and not attisdropped",
            table.replace('\'', "''")
        ),
        &[&delivered.columns, &delivered.records.first()],
    ).await.expect("columns");
    let (theirs, ours): (String, String) = (row.get(0), row.get(1));
    let (order, keys): (Vec<String>, Vec<String>) = (row.get(2), row.get(3));
    if theirs != ours {
        return Some(format!("columns are {ours}, but PostgreSQL says {theirs}"));
    }
    (order != keys).then(|| format!("keys are {keys:?}, but the columns' order is {order:?}"))
}
