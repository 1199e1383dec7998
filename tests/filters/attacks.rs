//! Filters from somebody who means harm, or whose database is not like others.

use std::cell::Cell;

use rowcast::subscription::Events;
use serde_json::json;

use crate::harness::{Relay, brief};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_for_two_types_does_not_take_over_those_for_one() {
    let mut relay = Relay::start(
        "create type money2 as (amount int);
         create function same(a int, b money2) returns bool language sql immutable
           as 'select a = b.amount + 1000';
         create operator = (leftarg = int, rightarg = money2, function = same);
         create function alike(a text, b int) returns bool language sql immutable as 'select true';
         create operator ~~ (leftarg = text, rightarg = int, function = alike);
         create table t (id int primary key, n int, body text);
         grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let mut watchers = Vec::new();
    for filter in ["n=eq.5", "n=in.(5,6)", "n=eq.05", "body=like.a%"] {
        let watcher = relay
            .watch_filtered("authenticated", &claims, "t", Events::All, filter)
            .await;
        watchers.push((filter, watcher.unwrap_or_else(|e| panic!("{filter}: {e}"))));
    }
    relay
        .run("insert into t values (1, 5, 'ab'), (2, 1005, 'ba')")
        .await;
    for (filter, watcher) in &watchers {
        assert_eq!(brief(&relay.seen(watcher).await), ["INSERT 1"], "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_or_generated_column_is_never_evaluated_under_the_relays_own_login() {
    let mut relay = Relay::with(
        "create function spy(v text) returns bool language plpgsql volatile as
           'begin if current_user = ''weak'' then raise exception ''%'', current_user; end if; return true; end';
         create function spying(v text) returns text language plpgsql immutable as
           'begin if current_user = ''weak'' then raise exception ''%'', current_user; end if; return v; end';
         create domain watched as text check (spy(value));
         create table t (id int primary key, d watched, b text, g text generated always as (spying(b)) stored);
         do 'begin create role weak login replication; exception when duplicate_object then null; end';
         create role stranger;
         grant select on t, fence to stranger",
        "t",
        |config| {
            let url = config.database_url.expose().replace("postgres@", "weak@");
            config.database_url = rowcast::config::Secret::new(&url);
        },
    )
    .await;
    for filter in ["d=match.^x", "g=match.^x"] {
        let refused = relay.refused("stranger", "t", filter).await;
        assert!(refused.contains("may not become"), "{filter}: {refused}");
    }
    let plain = relay
        .watch_filtered("stranger", &json!({}), "t", Events::All, "b=match.^x")
        .await
        .expect("nobody's code");
    relay.run("insert into t values (1, 'x', 'xx')").await;
    assert_eq!(brief(&relay.seen(&plain).await), ["INSERT 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_that_are_slow_to_read_do_not_hold_up_other_joins() {
    let relay = Relay::start(
        "create table t (id int primary key, body text); grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let patterns: Vec<String> = (0..40)
        .map(|n| format!("body=match.\"x{n}{}\"", r"(\\w|\\d|\\s){0,60}".repeat(40)))
        .collect();
    let answered = Cell::new(0);
    let slow = patterns.iter().map(async |filter| {
        let _joined = relay
            .watch_filtered("authenticated", &claims, "t", Events::All, filter)
            .await;
        answered.set(answered.get() + 1);
    });
    let slow = futures_util::future::join_all(slow);
    let quick = async {
        let joined = relay
            .watch_filtered("authenticated", &claims, "t", Events::All, "id=eq.007")
            .await;
        (joined.map(|_| ()), answered.get())
    };
    // The slow ones are asked first: what is polled first sends first.
    let (_, (joined, before)) = tokio::join!(slow, quick);
    assert_eq!(joined, Ok(()));
    assert!(before < patterns.len() / 2, "{before} were waited for");
}

/// Whatever one does to the column of a filter, no row is lost in silence and none comes for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_whose_column_is_renamed_or_retyped_says_so_or_stays_true() {
    let mut relay = Relay::start(
        "create table t (id int primary key, n int, body text);
         alter table t replica identity full;
         grant select on t to authenticated",
        "t",
    )
    .await;
    let claims = json!({});
    let fence = relay.watch("authenticated", &claims, "fence").await;
    for (ddl, filter, row, expected) in [
        (
            "alter table t rename n to m",
            "n=eq.5",
            "(1, 5, 'a')",
            "resync schema_changed",
        ),
        (
            "alter table t rename m to n",
            "body=eq.a",
            "(2, 5, 'a')",
            "INSERT 2",
        ),
        (
            "alter table t alter n type text",
            "n=lt.10",
            "(3, '9', 'a')",
            // How it is ordered has to be asked first.
            "resync schema_changed",
        ),
        (
            "alter table t alter n type numeric using n::numeric",
            "n=eq.9",
            "(4, 9.0, 'a')",
            "INSERT 4",
        ),
        (
            "alter table t drop n, add n int",
            "n=eq.9",
            "(5, 'a', 9)",
            "INSERT 5",
        ),
        (
            "alter table t alter body type varchar(2) using left(body, 2)",
            "body=match.^ab",
            "(6, 'ab', 1)",
            "resync schema_changed",
        ),
    ] {
        let watcher = relay
            .watch_filtered("authenticated", &claims, "t", Events::All, filter)
            .await
            .unwrap_or_else(|e| panic!("{filter}: {e}"));
        relay.run(ddl).await;
        relay.run(&format!("insert into t values {row}")).await;
        let seen = brief(&relay.seen(&watcher).await);
        eprintln!("{ddl}; {filter}: {seen:?}");
        let wanted: Vec<&str> = Some(expected)
            .filter(|e| !e.is_empty())
            .into_iter()
            .collect();
        assert_eq!(seen, wanted, "{ddl}; {filter}");
        // The catalog's clock may have told of the change before the row was handed out.
        relay.seen(&fence).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_compare_as_in_sql() {
    let columns = [
        (
            "varchar(3)",
            vec!["'abc'", "'ab '", "''"],
            vec![
                "eq.abcd",
                "eq.ab",
                "eq.ab ",
                "eq.",
                "neq.",
                "like.ab_",
                "in.(abc,abcd)",
            ],
        ),
        (
            "char(4)",
            vec!["'ab'", "'ab  '", "''"],
            vec![
                "eq.ab",
                "eq.ab      ",
                "eq.",
                "like.ab",
                "like.ab  ",
                "like.ab%",
                "in.(ab,x)",
                "ilike.AB__",
                "match.^ab $",
                "lt.abc",
                "isdistinct.ab",
            ],
        ),
        (
            "\"char\"",
            vec!["'a'", "''", "'\\377'::\"char\""],
            vec!["eq.a", "eq.", "eq.abc", "in.(a,b)", "lt.b"],
        ),
        (
            "name",
            vec!["'abc'", "repeat('x', 63)"],
            vec!["eq.abc", "like.a%", "lt.b", "not.in.(abc,NULL)"],
        ),
        (
            "numeric",
            vec!["'NaN'", "'Infinity'", "'-Infinity'", "1.10", "0"],
            vec![
                "eq.nan",
                "gt.1e400",
                "lt.-1e400",
                "eq.1.1",
                "eq.-0.0",
                "gte.NaN",
                "in.(inf,1.1)",
                "eq.infinity",
            ],
        ),
        (
            "float8",
            vec!["'-0'", "'NaN'", "'Infinity'", "1e-320", "0.1"],
            vec![
                "eq.0",
                "eq.nan",
                "gt.inf",
                "lt.NaN",
                "eq.0.1",
                "eq.1e-320",
                "eq.0.1000000000000000055",
            ],
        ),
        (
            "float4",
            vec!["'0.1'", "16777217", "'-0'"],
            vec![
                "eq.0.1",
                "eq.16777216",
                "eq.16777217",
                "lt.0.10000001",
                "eq.-0",
            ],
        ),
        (
            "timestamptz",
            vec![
                "'infinity'",
                "'-infinity'",
                "'0044-03-15 12:00+00 BC'",
                "'294276-01-01 00:00Z'",
                "'2024-01-01 00:00Z'",
            ],
            vec![
                "eq.infinity",
                "lt.0001-01-01",
                "eq.2024-01-01T01:00:00+01:00",
                "gt.294275-01-01 00:00Z",
                "eq.0044-03-15 12:00+00 BC",
                "eq.now",
            ],
        ),
        (
            "timetz",
            vec!["'12:00+00'", "'13:00+01'"],
            vec!["eq.12:00+00", "eq.13:00+01", "lt.13:00+01"],
        ),
        (
            "interval",
            vec!["'1 month'", "'30 days'", "'1 mon -30 days'"],
            vec!["eq.30 days", "eq.720:00", "eq.0", "lt.P1M1D"],
        ),
        (
            "bit(5)",
            vec!["B'10101'"],
            vec!["eq.10101", "eq.B10101", "eq.x15", "eq.101"],
        ),
        (
            "varbit",
            vec!["B''", "B'10101'"],
            vec!["eq.", "eq.10101", "gt.1"],
        ),
        (
            "jsonb",
            vec!["'{\"a\": 1.0, \"b\": [null]}'", "'null'", "'1e2'"],
            vec![
                "eq.\"{\\\"b\\\":[null],\\\"a\\\":1.00}\"",
                "eq.null",
                "eq.100",
                "isdistinct.null",
                "lt.{}",
            ],
        ),
        (
            "inet",
            vec!["'10.0.0.1/8'", "'::1'"],
            vec!["eq.10.0.0.1/8", "eq.10.0.0.1", "lt.::1", "eq.::1/128"],
        ),
        ("cidr", vec!["'10/8'"], vec!["eq.10.0.0.0/8", "eq.10"]),
        (
            "int4range",
            vec!["'[1,4]'", "'empty'", "'(,)'"],
            vec![
                "eq.\"[1,5)\"",
                "eq.\"(0,4]\"",
                "eq.empty",
                "eq.\"(3,3)\"",
                "eq.\"(,)\"",
            ],
        ),
        (
            "int[]",
            vec!["'{{1,2},{3,4}}'", "'[0:1]={1,2}'", "'{NULL}'", "'{}'"],
            vec![
                "eq.{}",
                "eq.{NULL}",
                "eq.\"{1,2}\"",
                "eq.\"{{1,2},{3,4}}\"",
                "eq.\"[0:1]={1,2}\"",
                "lt.\"{1,3}\"",
            ],
        ),
        (
            "money",
            vec!["'$1.00'", "-5"],
            vec!["eq.1", "eq.$1.00", "lt.0"],
        ),
        (
            "bool",
            vec!["true", "false", "null"],
            vec![
                "eq.yes",
                "eq.1",
                "is.unknown",
                "not.is.true",
                "in.(t,null)",
                "not.in.(t,null)",
                "isdistinct.true",
                "is.null",
                "lt.true",
            ],
        ),
        (
            "text collate ci",
            vec!["'Abc'", "'abc'", "'É'"],
            vec![
                "eq.ABC",
                "in.(abC)",
                "neq.abc",
                "eq.é",
                "isdistinct.ABC",
                "lt.abd",
            ],
        ),
        (
            "text",
            vec![
                "'a\"b'",
                "'a\\b'",
                "'%'",
                "'a,b'",
                "'null'",
                "' '",
                "'\u{1F600}'",
                "E'\\n'",
            ],
            vec![
                "eq.a\"b",
                "eq.\"a\\\"b\"",
                "eq.a\\b",
                "like.\\%",
                "eq.\"a,b\"",
                "eq.null",
                "in.(null)",
                "in.(\"null\")",
                "like._",
                "eq. ",
                "eq.\u{1F600}",
                "match.^.$",
                "like.%\\\\%",
                "not.like.%\\\\%",
                "isdistinct.\"null\"",
                "ilike.NULL",
            ],
        ),
        (
            "oid",
            vec!["4294967295", "0"],
            vec!["eq.-1", "gt.5", "eq.0"],
        ),
        (
            "regtype",
            vec!["'int4'", "0"],
            vec!["eq.integer", "eq.23", "eq.-", "gt.5"],
        ),
        (
            "uuid",
            vec!["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"],
            vec![
                "eq.{a0eebc999c0b4ef8bb6d6bb9bd380a11}",
                "gt.00000000-0000-0000-0000-000000000000",
                "like.a%",
            ],
        ),
        (
            "bytea",
            vec!["'\\x00ff'", "''"],
            vec![
                "eq.\\x00FF",
                "eq.\\000\\377",
                "gt.\\x00",
                "eq.",
                "like.\\x00%",
            ],
        ),
        (
            "posint",
            vec!["5"],
            vec!["eq.5", "eq.-5", "lt.0", "in.(-1,5)"],
        ),
        (
            "mood",
            vec!["'sad'", "'ok'", "'a,b'"],
            vec![
                "eq.sad",
                "lt.ok",
                "eq.nope",
                "in.(\"a,b\")",
                "in.(sad,NULL)",
                "like.s%",
            ],
        ),
        ("xml", vec!["'<a/>'"], vec!["is.null", "eq.<a/>", "like.%"]),
        (
            "pair",
            vec!["row(1,'x')", "row(null,null)", "null"],
            vec![
                "is.null",
                "not.is.null",
                "eq.\"(1,x)\"",
                "isdistinct.null",
                "not.isdistinct.null",
            ],
        ),
    ];
    let prelude = "create type mood as enum ('sad', 'ok', 'a,b');
         create domain posint as int check (value > 0);
         create type pair as (a int, b text);
         create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";
    let mut schema = prelude.to_owned();
    let mut names = Vec::new();
    for (n, (declared, _, _)) in columns.iter().enumerate() {
        schema.push_str(&format!("create table t{n} (id serial primary key, \"c%=. é\" {declared}); grant select on t{n} to authenticated;"));
        names.push(format!("t{n}"));
    }
    let mut relay = Relay::start(&schema, &names.join(", ")).await;
    let mut wrong = Vec::new();
    for (n, (declared, values, filters)) in columns.iter().enumerate() {
        let mut watchers = Vec::new();
        for filter in filters {
            let text = format!("c%=. é={filter}");
            // The name has a `=`: it is not to be had.
            let text = text.replace("c%=. é", "c%. é");
            watchers.push((filter, text));
        }
        relay
            .run(&format!("alter table t{n} rename \"c%=. é\" to \"c%. é\""))
            .await;
        let mut joined = Vec::new();
        for (filter, text) in watchers {
            joined.push((
                filter,
                relay
                    .watch_filtered(
                        "authenticated",
                        &json!({}),
                        &format!("t{n}"),
                        Events::All,
                        &text,
                    )
                    .await,
            ));
        }
        for value in values {
            relay
                .run(&format!("insert into t{n} (\"c%. é\") values ({value})"))
                .await;
        }
        for (filter, watcher) in joined {
            let condition = sql_of(filter);
            let found = relay
                .sql
                .simple_query(&format!(
                    "select id from t{n} where {condition} order by id"
                ))
                .await;
            let oracle: Result<Vec<String>, String> = match found {
                Ok(rows) => Ok(rows
                    .iter()
                    .filter_map(|m| match m {
                        tokio_postgres::SimpleQueryMessage::Row(row) => {
                            Some(format!("INSERT {}", row.get(0).unwrap()))
                        }
                        _ => None,
                    })
                    .collect()),
                Err(error) => Err(error.as_db_error().unwrap().message().to_owned()),
            };
            let ours = match watcher {
                Ok(watcher) => Ok(brief(&relay.seen(&watcher).await)),
                Err(reason) => Err(reason),
            };
            if ours.is_err() != oracle.is_err() || ours.is_ok() && ours != oracle {
                wrong.push(format!(
                    "{declared} {filter} [{condition}]: {ours:?}, PostgreSQL {oracle:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the filter says as SQL, put together by another hand than the relay's.
fn sql_of(filter: &str) -> String {
    let conditions = rowcast::subscription::filter::parse(&format!("x={filter}")).unwrap();
    let condition = &conditions[0];
    let literal = |value: &Option<String>| match value {
        Some(text) => format!("e'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
        None => "null".to_owned(),
    };
    let column = "\"c%. é\"";
    let first = literal(&condition.values.first().cloned().flatten());
    let name = condition.operator.as_str();
    let simple = |symbol: &str| format!("{column} {symbol} {first}");
    let sql = match name {
        "eq" => simple("="),
        "neq" => simple("<>"),
        "lt" => simple("<"),
        "lte" => simple("<="),
        "gt" => simple(">"),
        "gte" => simple(">="),
        "like" => simple("like"),
        "ilike" => simple("ilike"),
        "match" => simple("~"),
        "imatch" => simple("~*"),
        "isdistinct" => simple("is distinct from"),
        "is" => format!("{column} is {}", condition.values[0].as_ref().unwrap()),
        "in" => {
            let items: Vec<String> = condition.values.iter().map(literal).collect();
            format!("{column} in ({})", items.join(", "))
        }
        other => panic!("{other}"),
    };
    if condition.negated {
        format!("not ({sql})")
    } else {
        sql
    }
}
