//! What README says of values, one by one: where they are not what `to_jsonb` says, and what
//! random values do not reach.

use serde_json::json;

use crate::harness::{DEADLINE, Relay, Seen};
use crate::world::{Delivered, ORACLE, delivered, differences};

/// A relay on a table `t`, and everything of it after `rows` was run.
async fn rows_of(schema: &str, rows: &str) -> (Relay, Delivered) {
    let schema = format!("{schema}; grant select on t to anon");
    let mut relay = Relay::start(&schema, "t").await;
    relay.run(ORACLE).await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay.run(rows).await;
    let mut tables = delivered(&mut relay, &watcher).await;
    let delivered = tables.remove("t").expect("rows");
    (relay, delivered)
}

async fn to_jsonb(relay: &Relay, expression: &str) -> String {
    let sql = format!("select to_jsonb({expression})::text from t");
    relay
        .sql
        .query_one(&sql, &[])
        .await
        .expect(expression)
        .get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kinds_where_wires_differ_are_written_byte_for_byte_as_the_readme_says() {
    let (_relay, delivered) = rows_of(
        "create domain hash as bytea; create type pair as (a bytea, b \"char\");
         create table t (id int primary key, bytes bytea, hash hash, list bytea[], pair pair,
           big int8, exact numeric, nan float8, above float4, below numeric, zero float8, small float8,
           object oid, objects oidvector, padded char(5), bits bit(4), letter \"char\", at timestamptz,
           price money, span tstzrange, wait interval)",
        "insert into t values (1, '\\x00ff', '\\x00ff', '{\"\\\\x00ff\"}', '(\"\\\\x00ff\",q)',
           9223372036854775807, 1.50, 'NaN', 'Infinity', '-Infinity', '-0', 1e-7,
           42, '1 2', 'ab', B'0101', 'q', '2024-02-29 12:00:00+02',
           1234.5, '[2024-02-29 12:00:00+02,)', '1 year 2 mons 04:05:06.7')",
    )
    .await;
    assert_eq!(
        delivered.records,
        [concat!(
            r#"{"id":1,"bytes":"00ff","hash":"\\x00ff","list":["\\x00ff"],"pair":{"a":"\\x00ff","b":"q"},"#,
            r#""big":9223372036854775807,"exact":1.50,"nan":"NaN","above":"Infinity","below":"-Infinity","#,
            r#""zero":-0,"small":1e-07,"object":"42","objects":["1","2"],"padded":"ab   ","bits":"0101","#,
            r#""letter":"q","at":"2024-02-29T10:00:00+00:00","price":"$1,234.50","#,
            r#""span":"[\"2024-02-29 10:00:00+00\",)","wait":"1 year 2 mons 04:05:06.7"}"#
        )]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cast_to_json_that_somebody_made_is_not_asked() {
    let (relay, delivered) = rows_of(
        "create type mood as enum ('fine');
         create function mood_json(mood) returns json immutable language sql
           as $$ select json_build_object('mood', $1::text) $$;
         create cast (mood as json) with function mood_json(mood);
         create table t (id int primary key, mood mood, moods mood[])",
        "insert into t values (1, 'fine', '{fine}')",
    )
    .await;
    assert_eq!(
        to_jsonb(&relay, "mood").await,
        r#"{"mood": "fine"}"#,
        "what README says of it"
    );
    assert_eq!(
        delivered.records,
        [r#"{"id":1,"mood":"fine","moods":["fine"]}"#]
    );
}

/// `json` keeps what `jsonb` cannot hold, and JavaScript reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_passed_on_as_it_was_written() {
    let texts = [
        " {\"a\" : 1,\n\t\"a\":2, \"b\":\"\\u0000\"}\r\n",
        "\"\\ud800\"",
        "1e400000",
        "-0.10",
        "null",
        "\"\u{2028}\"",
    ];
    let values: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(id, text)| {
            format!(
                "({id}, {0}, array[{0}]::json[])",
                rowcast::pg::quote_literal(text)
            )
        })
        .collect();
    let (relay, delivered) = rows_of(
        "create table t (id int primary key, j json, a json[])",
        &format!("insert into t values {}", values.join(",")),
    )
    .await;
    for (id, text) in texts.iter().enumerate() {
        let record = format!(r#"{{"id":{id},"j":{text},"a":[{text}]}}"#);
        assert_eq!(delivered.records[id], record);
    }
    let refused = relay
        .sql
        .query("select to_jsonb(j) from t where id < 3", &[])
        .await;
    assert!(refused.is_err(), "to_jsonb has no value for some of these");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_come_whole() {
    let (relay, delivered) = rows_of(
        "create table t (id int primary key, large text, many int[], doc jsonb, bytes bytea[])",
        "insert into t (id, large) select 1, string_agg(chr(1 + n % 5000), '') from generate_series(0, 200000) n;
         insert into t (id, many) select 2, array_agg(n) from generate_series(0, 100000) n;
         insert into t (id, doc) select 3, jsonb_object_agg(n, array[n]) from generate_series(0, 20000) n;
         insert into t (id, bytes) select 4, array_agg(sha256(n::text::bytea)) from generate_series(0, 5000) n",
    )
    .await;
    assert_eq!(delivered.ids, [1, 2, 3, 4]);
    assert_eq!(
        differences(&relay, "t", &delivered).await,
        Vec::<String>::new()
    );
}

/// Rows of the catalog are the richest composites that there are, and hold what no statement can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_only_postgresql_makes_are_what_to_jsonb_says() {
    let (relay, delivered) = rows_of(
        "create table origin (a int default 1 + 2, b int, c text);
         insert into origin select n % 3, n % 3, n % 3 from generate_series(1, 500) n;
         create statistics origin_statistics (ndistinct, dependencies, mcv) on a, b, c from origin;
         analyze origin;
         create view seen as select a, c from origin where b > 1;
         create table t (id serial primary key, tree pg_node_tree, distinct_ pg_ndistinct,
           depends pg_dependencies, common pg_mcv_list, class pg_class, type pg_type, function pg_proc,
           rewrites pg_rewrite[], indexes pg_index[], settings pg_settings)",
        "insert into t (tree) select adbin from pg_attrdef;
         insert into t (distinct_, depends, common)
           select stxdndistinct, stxddependencies, stxdmcv from pg_statistic_ext_data;
         insert into t (class) select c from pg_class c where relname in ('t', 'seen', 'origin', 'pg_class');
         insert into t (type) select y from pg_type y order by oid desc limit 20;
         insert into t (function) select p from pg_proc p where proargdefaults is not null or prosqlbody is not null limit 50;
         insert into t (rewrites) select array_agg(r) from pg_rewrite r where ev_class = 'seen'::regclass;
         insert into t (indexes) select array_agg(i) from pg_index i where indkey::text like '% %';
         insert into t (settings) select s from pg_settings s",
    )
    .await;
    assert!(delivered.ids.len() > 300, "{} rows", delivered.ids.len());
    assert_eq!(
        differences(&relay, "t", &delivered).await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_before_an_update_is_written_as_the_row_after() {
    let schema = "create table t (id int primary key, \"a \"\"b\\\n😀\" text, list numeric[], at timestamptz);
                  alter table t replica identity full; grant select on t to anon";
    let mut relay = Relay::start(schema, "t").await;
    let watcher = relay.watch("anon", &json!({}), "t").await;
    relay
        .run("insert into t values (1, e'\\t\"\\\\', '{1.50,NaN,null}', '0044-03-15 12:00+00 BC')")
        .await;
    let before = to_jsonb(&relay, "t.*").await;
    relay.run("update t set list = null, at = null").await;
    let after = to_jsonb(&relay, "t.*").await;
    relay.run("delete from t").await;
    let seen = relay.seen(&watcher).await;
    let [before, after] =
        [before, after].map(|text| serde_json::from_str::<serde_json::Value>(&text).expect("JSON"));
    assert_eq!(seen[0].change()["record"], before);
    assert_eq!(seen[1].change()["old_record"], before);
    assert_eq!(seen[1].change()["record"], after);
    assert_eq!(seen[2].change()["old_record"], after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn composites_of_composites_and_domains_of_domains_are_what_to_jsonb_says() {
    let (relay, delivered) = rows_of(
        "create type nest_0 as (a text, b int[]);
         do $$ begin
           for n in 1..6 loop
             execute format('create type nest_%s as (a nest_%s, b nest_%s[])', n, n - 1, n - 1);
           end loop;
           for n in 1..40 loop
             execute format('create domain deep_%s as %s', n, case n when 1 then 'nest_6' else 'deep_' || n - 1 end);
           end loop;
         end $$;
         create table t (id int primary key, top nest_6, deep deep_40)",
        "insert into t values (1, '(,)', null), (2, '(\"(,{NULL})\",\"{\"\"(,)\"\"}\")', null);
         insert into t select 3, null, row(row(row(row(row(row(row('\"{', '{1}'), null), null),
           array[row(row(row('x', null), null), null)::nest_2]), null), null), null)::nest_6",
    )
    .await;
    assert_eq!(delivered.ids, [1, 2, 3]);
    assert_eq!(
        differences(&relay, "t", &delivered).await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_composite_type_that_changes_shows_its_new_attributes() {
    let schema = "create type pair as (a int, b text); create table t (id int primary key, pair pair, pairs pair[]);
                  grant select on t to anon";
    let mut relay = Relay::start(schema, "t").await;
    let mut watcher = relay.watch("anon", &json!({}), "t").await;
    let mut id = 0;
    for change in [
        "select 1",
        "alter type pair add attribute \"c d\" numeric",
        "alter type pair drop attribute a",
        "alter type pair rename attribute b to \"\"\"\"",
    ] {
        relay.run(change).await;
        // The stream says nothing of types: this takes until the catalog is looked at again, and
        // rows around that are hidden with a resync.
        let begin = std::time::Instant::now();
        loop {
            id += 1;
            let row = format!(
                "insert into t select {id}, p, array[p, null, p]
                 from (select ('(' || string_agg(attnum::text, ',') || ')')::pair as p from pg_attribute
                       join pg_class c on c.oid = attrelid
                       where relname = 'pair' and attnum > 0 and not attisdropped) q
                 returning to_jsonb(t.*)"
            );
            let expected: serde_json::Value =
                relay.sql.query_one(&row, &[]).await.expect("a row").get(0);
            match &relay.seen(&watcher).await[..] {
                [Seen::Change(data)] if data["record"] == expected => break,
                [Seen::Resync(_)] => watcher.join(&relay.core).await.expect("joined again"),
                _ => {}
            }
            assert!(begin.elapsed() < DEADLINE, "after {change} not {expected}");
        }
    }
}
