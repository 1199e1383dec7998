//! The primary waits for a standby that has stopped: what commits is in the stream, and not visible.

use std::process::Command;

use serde_json::{Value, json};

use crate::client::Client;
use crate::harness::{ANN, BEN, Daemon, connect, soon, token, until};
use crate::promotion::Pair;

async fn readiness(daemon: &Daemon) -> (u16, Value) {
    let (status, body) = daemon.ask("/readyz").await;
    (status, serde_json::from_str(&body).unwrap())
}

fn signal(name: &str, process: &str) {
    let sent = Command::new("kill").args(["-s", name, process]).status();
    assert!(sent.unwrap().success(), "SIG{name}");
}

#[tokio::test]
async fn a_standby_that_stops_is_named_and_holds_up_no_join() {
    let pair = Pair::start().await;
    let database = &pair.database;
    database.run("set synchronous_commit = local").await;
    let daemon = database.daemon(&[("DATABASE_URL", &database.url)]).await;
    let mut ann = Client::following(&daemon, &token(ANN), "note").await;
    until("the standby follows", async || {
        let receiver = "select count(*)::text from pg_stat_wal_receiver where status = 'streaming'";
        pair.ask_standby(receiver).await == "1"
    })
    .await;
    let receiver = "select pid::text from pg_stat_wal_receiver";
    let receiver = pair.ask_standby(receiver).await;
    let names = ["synchronous_standby_names = 'walreceiver'"];
    pair.primary.configure(&names).unwrap();
    database.run("select pg_reload_conf()").await;
    let synchronous = "select count(*)::text from pg_stat_replication where sync_state = 'sync'";
    until("it is synchronous", async || {
        database.text(synchronous).await == "1"
    })
    .await;
    signal("STOP", &receiver);
    let writer = connect(&database.url).await;
    let hanging = tokio::spawn(async move {
        let insert = format!("insert into note values (1, '{ANN}', 'b')");
        writer.batch_execute(&insert).await.unwrap();
    });
    until("it is named", async || {
        let (status, said) = readiness(&daemon).await;
        assert_eq!((status, &said["ready"]), (200, &json!(true)), "{said}");
        let reason = said["reason"].as_str().unwrap_or_default();
        reason.contains("synchronous_standby_names")
    })
    .await;
    assert!(daemon.metric("rowcast_catalog_wait_seconds").await > Some(4.0));
    let _joined = Client::following(&daemon, &token(BEN), "open").await;
    assert!(!hanging.is_finished());
    signal("CONT", &receiver);
    soon("the commit", hanging).await.unwrap();
    assert_eq!(ann.change().await, "INSERT 1");
    until("nothing is named", async || {
        readiness(&daemon).await.1["reason"] == Value::Null
    })
    .await;
    let said = daemon.logged("changes wait for a commit").await;
    assert!(said["xid"].is_string(), "{said}");
    daemon.terminate().await;
}
