//! What the stream carries.

use std::sync::Arc;

use rowcast::change::{Kind, Value};
use rowcast::pg::Lsn;
use rowcast::source::SourceEvent;

use crate::fixture::{Fixture, batch, event, seen, shown, transaction};

#[tokio::test]
async fn every_kind_of_change_arrives_as_it_was_committed() {
    let fixture = Fixture::new(
        "create table a (id int primary key, name text, big text);
         alter table a alter big set storage external;
         create table b (id int, note text);
         alter table b replica identity full",
    )
    .await;
    let mut opened = fixture.open().await;
    assert!(opened.created, "the slot was made");
    let source = &mut opened.source;
    let run = async |sql: &str| fixture.run(sql).await;

    run("insert into a values (1, 'ö', repeat('x', 5000)), (2, null, '')").await;
    let changes = transaction(source).await;
    let Kind::Insert { new } = &changes[0].kind else {
        panic!("{}", shown(&changes[0]))
    };
    assert_eq!(new.get(1), Some(Value::Text("ö")));
    assert_eq!(new.get(2), Some(Value::Text(&"x".repeat(5000))));
    assert_eq!(shown(&changes[1]), r#"a +["2", "∅", ""]"#);
    assert_eq!(&*changes[0].relation.schema, "public");
    assert!(changes[0].relation.columns[0].identity && !changes[0].relation.columns[1].identity);

    run("update a set name = 'n' where id = 1").await;
    assert_eq!(
        seen(source).await,
        [r#"a ["1", "n", "="]"#],
        "TOAST untouched"
    );
    run("update a set id = 3 where id = 2").await;
    assert_eq!(
        seen(source).await,
        [r#"a key["2", "∅", "∅"] ["3", "∅", ""]"#],
        "a changed key"
    );
    run("delete from a where id = 3").await;
    assert_eq!(seen(source).await, [r#"a -key["3", "∅", "∅"]"#]);
    run("insert into b values (1, 'x'); update b set note = 'y'; delete from b").await;
    assert_eq!(
        seen(source).await,
        [
            r#"b +["1", "x"]"#,
            r#"b full["1", "x"] ["1", "y"]"#,
            r#"b -full["1", "y"]"#
        ]
    );
    run("truncate a, b").await;
    let mut truncated = seen(source).await;
    truncated.sort();
    assert_eq!(truncated, ["a truncate", "b truncate"]);
    opened.source.close().await;
}

#[tokio::test]
async fn values_are_in_one_form_whatever_the_database_is_set_to() {
    let fixture = Fixture::new(
        "create table v (t timestamptz, i interval, f float8, b bytea);
         do $$ begin
           execute format('alter database %I set timezone = ''Asia/Tokyo''', current_database());
           execute format('alter database %I set datestyle = ''SQL''', current_database());
           execute format('alter database %I set intervalstyle = ''iso_8601''', current_database());
           execute format('alter database %I set extra_float_digits = -5', current_database());
           execute format('alter database %I set bytea_output = ''escape''', current_database());
         end $$",
    )
    .await;
    let mut opened = fixture.open().await;
    fixture
        .run("insert into v values ('2026-01-02 03:04:05+00', '1 day 2 hours', 0.1::float8 + 0.2, '\\x01')")
        .await;
    assert_eq!(
        seen(&mut opened.source).await,
        [r#"v +["2026-01-02 03:04:05+00", "1 day 02:00:00", "0.30000000000000004", "\\x01"]"#]
    );
}

#[tokio::test]
async fn a_large_transaction_comes_in_batches_of_a_thousand_in_its_own_order() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture
        .run("insert into a select generate_series(1, 5000)")
        .await;
    let mut next = 1;
    let mut sizes = Vec::new();
    let mut commits = Vec::new();
    loop {
        let batch = batch(&mut opened.source).await;
        for change in &batch.changes {
            assert_eq!(shown(change), format!("a +[\"{next}\"]"));
            next += 1;
        }
        sizes.push(batch.changes.len());
        commits.push((batch.xid, batch.commit_lsn));
        if batch.last {
            assert!(batch.end_lsn > batch.commit_lsn);
            break;
        }
    }
    assert_eq!(sizes, [1000; 5]);
    commits.dedup();
    assert_eq!(commits.len(), 1, "they are of one transaction");
    let known: i64 = fixture
        .client
        .query_one(
            "select count(*) from a where xmin = $1::text::xid",
            &[&(commits[0].0.0 & 0xFFFF_FFFF).to_string()],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(known, 5000, "the transaction's number is PostgreSQL's");
}

#[tokio::test]
async fn a_table_altered_midstream_has_a_new_version_and_old_rows_keep_theirs() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture
        .run(
            "begin; insert into a values (1); alter table a add extra text default 'd'; \
              insert into a values (2); commit",
        )
        .await;
    let changes = transaction(&mut opened.source).await;
    let (first, second) = (&changes[0], &changes[1]);
    assert_eq!(shown(first), r#"a +["1"]"#);
    assert_eq!(shown(second), r#"a +["2", "d"]"#);
    assert!(first.relation.version < second.relation.version);
    assert!(!Arc::ptr_eq(&first.relation, &second.relation));
    assert_eq!(first.relation.oid, second.relation.oid);
}

#[tokio::test]
async fn a_message_outside_transactions_moves_the_position_and_is_no_change() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    let lsn: String = fixture
        .client
        .query_one(
            "select pg_logical_emit_message(false, 'p', 'content')::text",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    fixture
        .run("select pg_logical_emit_message(true, 'p', 'content'); insert into a values (1)")
        .await;
    let lsn: Lsn = lsn.parse().unwrap();
    let mut furthest = Lsn(0);
    let changes = loop {
        match event(&mut opened.source).await {
            SourceEvent::Progress(lsn) => furthest = furthest.max(lsn),
            SourceEvent::Batch(batch) => break batch.changes,
        }
    };
    assert_eq!(changes.len(), 1);
    assert_eq!(shown(&changes[0]), r#"a +["1"]"#);
    assert!(furthest.0 + 100 > lsn.0, "{furthest} is before {lsn}");
}
