//! `rowcast demo --relay-url` outside the stack: what its login needs, and what it says.

use std::process::Stdio;

use rowcast::pg::throwaway::{Options, Throwaway};
use tokio::process::Command;
use tokio_postgres::NoTls;

use crate::read;
use crate::run::{get, until};
use crate::stack::SECRET;

fn demo(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command
        .arg("demo")
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[tokio::test]
async fn the_owner_of_the_tables_who_may_act_as_authenticated_is_enough() {
    let cluster = Throwaway::start(Options::default()).await.unwrap();
    let run = async |user: &str, sql: &str| {
        let url = cluster
            .url("postgres")
            .replace("postgres@", &format!("{user}@"));
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
    };
    run("postgres", &read("sql/auth.sql")).await;
    run(
        "postgres",
        "create role owner login; grant authenticated to owner; \
         grant create on schema public to owner; grant create on database postgres to owner",
    )
    .await;
    let url = cluster.url("postgres").replace("postgres@", "owner@");
    let environment = [
        ("ROWCAST_DEMO_DATABASE_URL", url.as_str()),
        ("JWT_SECRET", SECRET),
    ];
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let listen = address.to_string();
    let relay = ["--relay-url", "http://127.0.0.1:9/", "--listen", &listen];
    let missing = demo(&relay, &environment).output().await.unwrap();
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        said.contains("rowcast setup --example agent_tasks"),
        "{said}"
    );

    run("owner", &read("sql/examples/agent_tasks.sql")).await;
    let mut running = demo(&relay, &environment).spawn().unwrap();
    until("the page", async || {
        let connected = tokio::net::TcpStream::connect(address).await;
        connected.is_ok().then_some(())
    })
    .await;
    let rows = get(address, "/demo/rows?user=ann").await;
    assert!(rows.contains("Plan the spring visit"), "{rows}");
    assert!(!rows.contains("Collect papers for the offer"), "{rows}");
    // The worker may write.
    until("a change by the worker", async || {
        let rows = get(address, "/demo/rows?user=ann").await;
        rows.contains("in_progress").then_some(())
    })
    .await;
    running.kill().await.unwrap();
}

#[tokio::test]
async fn a_relay_elsewhere_needs_its_database_and_its_secret() {
    let relay = ["--relay-url", "http://127.0.0.1:9"];
    let database = ("ROWCAST_DEMO_DATABASE_URL", "postgres://u@127.0.0.1:1/d");
    for (arguments, environment, words) in [
        (&relay[..], &[("JWT_SECRET", SECRET)][..], "--database-url"),
        (&relay, &[database], "set JWT_SECRET"),
        (
            &["--relay-url", "localhost:4000"],
            &[database, ("JWT_SECRET", SECRET)],
            "http://localhost:4000",
        ),
    ] {
        let output = demo(arguments, environment).output().await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{words} is missing in {said}");
        assert!(output.stdout.is_empty(), "nothing was started");
    }
}
