//! Commits that are in the log and that no snapshot shows yet: their synchronous standby hangs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rowcast::admin::Readiness;
use rowcast::app::Core;
use rowcast::config::Config;
use rowcast::metrics::Metrics;
use rowcast::pg::throwaway::{Options, Throwaway};
use serde_json::json;
use tokio_postgres::Client as Sql;

use crate::client::{Asked, Client, Heard, id, principal};
use crate::harness::{ANN, DEADLINE, config, connect};

pub(crate) async fn start(config: &Config) -> Core {
    let core = Core::start(config, Arc::new(Metrics::new()), Readiness::default());
    core.await.expect("a relay")
}

fn ann(core: &Core) -> Client {
    let who = principal("authenticated", &json!({ "sub": ANN }));
    Client::new(&core.router, who, Asked::of("t"))
}

/// From here on commits hang, those of sessions that wait for their standby.
pub(crate) async fn standby_hangs(sql: &Sql, url: &str) {
    name_standby(sql, "nobody").await;
    // It is the checkpointer that has commits wait, and it looks at its settings when it comes to
    // it: until then they do not hang.
    let probe = connect(url).await;
    let pid = probe.query_one("select pg_backend_pid()", &[]).await;
    let pid: i32 = pid.expect("a process").get(0);
    let commit = "set synchronous_commit = on; select pg_logical_emit_message(true, 'probe', '')";
    let hangs = "select exists (select from pg_stat_activity \
         where pid = $1 and wait_event = 'SyncRep')";
    let hangs = async || loop {
        let row = sql.query_one(hangs, &[&pid]).await;
        if row.expect("what it waits for").get(0) {
            return;
        }
    };
    let hung = async {
        loop {
            let mut committed = pin!(probe.batch_execute(commit));
            tokio::select! {
                done = &mut committed => done.expect("a commit that does not hang yet"),
                () = hangs() => {
                    let cancel = sql.execute("select pg_cancel_backend($1)", &[&pid]).await;
                    cancel.expect("it goes on");
                    return committed.await.expect("it is committed here");
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, hung).await.expect("in time");
}

/// Commits that hang go on.
pub(crate) async fn standby_answers(sql: &Sql) {
    name_standby(sql, "").await;
}

pub(crate) async fn name_standby(sql: &Sql, name: &str) {
    let set = format!("alter system set synchronous_standby_names = '{name}'");
    sql.batch_execute(&set).await.expect("a setting");
    let reload = sql.batch_execute("select pg_reload_conf()").await;
    reload.expect("a reload");
    // Sessions look at their settings before their next statement.
    let shown = async {
        loop {
            let row = sql.query_one("show synchronous_standby_names", &[]).await;
            if row.expect("a setting").get::<_, String>(0) == name {
                return;
            }
        }
    };
    let shown = tokio::time::timeout(DEADLINE, shown).await;
    shown.expect("in time");
}

/// Commits and hangs.
pub(crate) fn write(url: &str, sql: &str) -> tokio::task::JoinHandle<()> {
    let (url, sql) = (url.to_owned(), sql.to_owned());
    tokio::spawn(async move {
        let session = connect(&url).await;
        let set = session.batch_execute("set synchronous_commit = on").await;
        set.expect("a setting");
        session.batch_execute(&sql).await.expect("a row");
    })
}

pub(crate) async fn hears_of(client: &Client, row: i64) {
    loop {
        if let Heard::Change(data) = client.heard().await
            && id(&data["record"]) == row
        {
            return;
        }
    }
}

#[tokio::test]
async fn a_commit_that_hangs_is_not_in_the_rows_but_behind_them_wherever_it_is_in_the_log() {
    let cluster = Throwaway::start(Options::default());
    let cluster = cluster.await.expect("a cluster");
    let url = cluster.fresh_database().await.expect("a database");
    let sql = connect(&url).await;
    sql.batch_execute(
        "set synchronous_commit = local;
         create role authenticated;
         create table fence (id bigint primary key);
         create table t (id bigint primary key, version int default 0);
         grant select on t, fence to authenticated;
         insert into t values (1);
         create publication rowcast for table t, fence;",
    )
    .await
    .expect("a table");
    let mut config = config(&url);
    config.snapshot.timeout = Duration::from_secs(3);
    let core = start(&config).await;
    let mut live = ann(&core);
    assert_eq!(live.snapshot().await[0].rows.len(), 1);
    assert_eq!(live.heard().await, Heard::CaughtUp);
    // The first row of a table waits for the catalog, which waits until the row is visible; where
    // a cohort still reads for the client, that does not count for the router.
    sql.batch_execute("insert into t values (0)").await.unwrap();
    hears_of(&live, 0).await;

    standby_hangs(&sql, &url).await;
    let hanging = write(&url, "insert into t values (2)");
    hears_of(&live, 2).await;
    // It has been handed out, and others behind it that do not hang.
    sql.batch_execute("insert into t values (3)").await.unwrap();
    hears_of(&live, 3).await;
    let mut late = ann(&core);
    let rows: Vec<i64> = late.snapshot().await[0].rows.iter().map(id).collect();
    assert_eq!(rows, [0, 1, 3], "2 hangs");
    sql.batch_execute("insert into t values (4)").await.unwrap();
    assert!(!hanging.is_finished());
    standby_answers(&sql).await;
    hanging.await.expect("it goes on");
    let mut heard = Vec::new();
    while heard.last() != Some(&4) {
        match late.heard().await {
            Heard::Change(data) => heard.push(id(&data["record"])),
            Heard::CaughtUp => {}
            other => panic!("changes were expected, not {other:?}"),
        }
    }
    assert_eq!(
        heard,
        [2, 4],
        "what was handed out before the join, and 3 not again"
    );

    // A relay whose log begins behind a commit that hangs cannot replay it: it waits for a snapshot
    // that shows it, as long as it may.
    standby_hangs(&sql, &url).await;
    let hanging = write(&url, "insert into t values (5)");
    hears_of(&live, 5).await;
    let mut core = core;
    core.stop_source().await;
    core.stop().await;
    let core = start(&config).await;
    let mut early = ann(&core);
    early.join().await;
    assert_eq!(early.heard().await, Heard::Joined(vec![]));
    assert_eq!(early.heard().await, Heard::Again("trimmed".to_owned()));
    early.join().await;
    assert_eq!(early.heard().await, Heard::Joined(vec![]));
    standby_answers(&sql).await;
    hanging.await.expect("it goes on");
    let pages = early.pages().await;
    let rows: Vec<i64> = pages[0].rows.iter().map(id).collect();
    assert_eq!(rows, [0, 1, 2, 3, 4, 5]);
    core.stop().await;
    cluster.stop().await;
}
