//! Cursors outlive the relay: what was written while it was down, or stopped at any moment, comes
//! to whoever says where it was.

use serde_json::{Value, json};

use crate::client::Client;
use crate::harness::{ANN, BEN, Daemon, Database, token};

/// Joins with a cursor, and takes the answer.
async fn back(daemon: &Daemon, bindings: &Value, since: Option<&str>) -> Client {
    let mut client = Client::connect(daemon, &token(ANN)).await;
    let payload = json!({
        "config": { "postgres_changes": bindings },
        "rowcast": { "since": since, "cursor": true },
    });
    let frame = json!(["1", "1", "realtime:back", "phx_join", payload]);
    client.send(frame.to_string()).await;
    loop {
        let frame = client.next().await;
        if frame[4]["status"] == "ok" && frame[3] == "system" {
            return client;
        }
        assert_ne!(frame[4]["status"], "error", "{frame}");
    }
}

fn both() -> Value {
    json!([{ "schema": "public", "table": "open" }, { "schema": "public", "table": "note" }])
}

/// What comes up to the row `last` of `open`: table, row, cursor.
async fn until(client: &mut Client, last: i64) -> Vec<(String, i64, String)> {
    let mut came = Vec::new();
    loop {
        let frame = client.next().await;
        if frame[3] != "postgres_changes" {
            assert_eq!(frame[3], "system", "{frame}");
            assert!(
                ["cursor", "warning"].contains(&frame[4]["status"].as_str().unwrap()),
                "{frame}"
            );
            continue;
        }
        let data = &frame[4]["data"];
        let table = data["table"].as_str().unwrap().to_owned();
        let id = data["record"]["id"].as_i64().unwrap();
        let ends = table == "open" && id == last;
        came.push((table, id, data["cursor"].as_str().unwrap().to_owned()));
        if ends {
            return came;
        }
    }
}

#[tokio::test]
async fn nothing_is_missing_and_nothing_comes_twice_over_crashes_and_restarts() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let (mut came, mut expected) = (Vec::new(), Vec::new());
    let (mut last, mut since) = (0_i64, None::<String>);
    for round in 0..5 {
        let mut daemon = database.daemon(&environment).await;
        let mut client = back(&daemon, &both(), since.as_deref()).await;
        for part in 0..3 {
            for _ in 0..7 {
                last += 1;
                let owner = [ANN, BEN][usize::try_from(last % 2).unwrap()];
                database
                    .run(&format!(
                        "begin; insert into note values ({last}, '{owner}', 'n');
                         insert into open values ({last}, 'b'); commit"
                    ))
                    .await;
                if owner == ANN {
                    expected.push(("note".to_owned(), last));
                }
                expected.push(("open".to_owned(), last));
            }
            if part == 0 {
                // The client takes it, and what comes after is missed by it.
                let taken = until(&mut client, last).await;
                since = taken.last().map(|(_, _, cursor)| cursor.clone());
                came.extend(taken);
            }
            if part == 1 {
                if round % 2 == 0 {
                    daemon.signal("KILL");
                } else {
                    daemon.signal("TERM");
                }
                daemon.ended().await;
            }
        }
    }
    let daemon = database.daemon(&environment).await;
    let mut client = back(&daemon, &both(), since.as_deref()).await;
    came.extend(until(&mut client, last).await);
    assert!(
        came.windows(2).all(|pair| pair[0].2 < pair[1].2),
        "cursors ascend: {came:?}"
    );
    let came: Vec<(String, i64)> = came.into_iter().map(|(table, id, _)| (table, id)).collect();
    assert_eq!(came, expected);
}

async fn resync(client: &mut Client) -> Value {
    loop {
        let frame = client.next().await;
        assert_ne!(frame[3], "postgres_changes", "{frame}");
        if frame[4]["status"] == "resync" {
            assert_eq!(client.next().await[3], "phx_error");
            return frame[4].clone();
        }
    }
}

#[tokio::test]
async fn a_policy_that_changed_while_the_relay_was_down_is_said_to_whoever_missed_it() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let daemon = database.daemon(&environment).await;
    let mut client = back(&daemon, &both(), None).await;
    database.insert_open(1).await;
    let came = until(&mut client, 1).await;
    let since = came.last().map(|(_, _, cursor)| cursor.as_str());
    daemon.terminate().await;
    database
        .run(&format!(
            "insert into note values (1, '{BEN}', 'n'); insert into open values (2, 'b');
             alter policy mine on note using (true);
             insert into note values (2, '{BEN}', 'n');"
        ))
        .await;
    let daemon = database.daemon(&environment).await;
    // The table that is as it was is replayed.
    let open = json!([{ "schema": "public", "table": "open" }]);
    let mut client = back(&daemon, &open, since).await;
    assert_eq!(until(&mut client, 2).await.len(), 1);
    let mut client = back(&daemon, &both(), since).await;
    let told = resync(&mut client).await;
    assert_eq!(told["reason"], "access_changed");
    assert_eq!(told["cursor"].as_str().unwrap().len(), 67);
}

#[tokio::test]
async fn a_cursor_of_a_log_that_was_in_memory_is_of_another_history_after_a_restart() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[("ROWCAST_DATA", "memory")]).await;
    let mut client = back(&daemon, &both(), None).await;
    database.insert_open(1).await;
    let came = until(&mut client, 1).await;
    let since = came.last().map(|(_, _, cursor)| cursor.as_str());
    daemon.terminate().await;
    database.insert_open(2).await;
    let daemon = database.daemon(&[("ROWCAST_DATA", "memory")]).await;
    let mut client = back(&daemon, &both(), since).await;
    assert_eq!(resync(&mut client).await["reason"], "epoch");
}

#[tokio::test]
async fn a_truncate_that_is_on_the_disk_comes_in_its_place() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let asks = json!([{ "event": "*", "table": "open", "rowcast": { "truncate": true } }]);
    let daemon = database.daemon(&environment).await;
    let mut client = back(&daemon, &asks, None).await;
    database.insert_open(1).await;
    let came = until(&mut client, 1).await;
    let since = came.last().map(|(_, _, cursor)| cursor.as_str());
    database.run("truncate open").await;
    assert_eq!(kinds(&mut client, 1).await, ["TRUNCATE null"]);
    database.insert_open(2).await;
    assert_eq!(until(&mut client, 2).await.len(), 1);
    daemon.terminate().await;
    database.insert_open(3).await;
    database.run("truncate open").await;
    // What is read of the disk, and what the slot has kept.
    let daemon = database.daemon(&environment).await;
    let mut client = back(&daemon, &asks, since).await;
    assert_eq!(
        kinds(&mut client, 4).await,
        ["TRUNCATE null", "INSERT 2", "INSERT 3", "TRUNCATE null"]
    );
    let silent = json!([{ "event": "*", "table": "open" }]);
    let mut client = back(&daemon, &silent, since).await;
    assert_eq!(resync(&mut client).await["reason"], "truncated");
    daemon.terminate().await;
}

/// The next changes: their kinds and rows.
async fn kinds(client: &mut Client, number: usize) -> Vec<String> {
    let mut kinds = Vec::new();
    while kinds.len() < number {
        let frame = client.next().await;
        if frame[3] == "postgres_changes" {
            let data = &frame[4]["data"];
            let kind = data["type"].as_str().unwrap();
            kinds.push(format!("{kind} {}", data["record"]["id"]));
        } else {
            assert_ne!(frame[4]["status"], "resync", "{frame}");
        }
    }
    kinds
}

#[tokio::test]
async fn what_was_given_out_before_a_crash_and_not_stored_does_not_come_twice() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("JWT_SECRET", crate::harness::SECRET),
        ("ROWCAST_SLOT", database.slot.as_str()),
        ("ROWCAST_DATA", data.to_str().unwrap()),
    ];
    // A disk that takes 64 KiB and no more.
    let mut limited = tokio::process::Command::new("sh");
    limited
        .args([
            "-c",
            "trap '' XFSZ; ulimit -S -f 128; exec \"$@\"",
            "limited",
        ])
        .arg(env!("CARGO_BIN_EXE_rowcast"));
    let daemon = Daemon::spawn_by(limited, &environment);
    daemon.ready().await;
    let mut client = back(&daemon, &both(), None).await;
    let insert = |id: i64| format!("insert into open values ({id}, repeat('x', 20000))");
    for id in 1..=20 {
        database.run(&insert(id)).await;
    }
    let came = until(&mut client, 20).await;
    let since = came.last().map(|(_, _, cursor)| cursor.clone());
    crate::durable::kill(daemon).await;
    let (_, stored) = crate::durable::held(&data);
    assert!(stored < 20, "some of it was given out only: {stored}");
    let daemon = database.daemon(&environment[3..]).await;
    let mut client = back(&daemon, &both(), since.as_deref()).await;
    database.run(&insert(21)).await;
    let came = until(&mut client, 21).await;
    assert_eq!(came.len(), 1, "{came:?}");
    assert!(came[0].2 > since.unwrap());
    // Once all has come, what lies ahead is of no history.
    let ahead = format!("{}ffffffffffffffff", came[0].2.split_at(17).0);
    let mut client = back(&daemon, &both(), Some(&ahead)).await;
    assert_eq!(resync(&mut client).await["reason"], "epoch");
    daemon.terminate().await;
}

#[tokio::test]
async fn where_it_is_not_known_since_when_the_rules_hold_whoever_missed_something_is_told() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let daemon = database.daemon(&environment).await;
    let mut client = back(&daemon, &both(), None).await;
    database.insert_open(1).await;
    let came = until(&mut client, 1).await;
    let since = came.last().map(|(_, _, cursor)| cursor.as_str());
    daemon.terminate().await;
    database.insert_open(2).await;
    std::fs::remove_file(data.join("access.json")).unwrap();
    let daemon = database.daemon(&environment).await;
    let mut client = back(&daemon, &both(), since).await;
    assert_eq!(resync(&mut client).await["reason"], "access_changed");
    daemon.terminate().await;
}
