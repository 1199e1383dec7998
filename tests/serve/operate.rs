//! What operators see: readiness, metrics, the log.

use serde_json::{Value, json};

use crate::client::Client;
use crate::harness::{ANN, BEN, Database, get, token};

#[tokio::test]
async fn operators_see_how_it_fares_and_the_public_port_says_only_ok() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let (status, body) = daemon.ask("/readyz").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["ready"]), (200, &json!(true)), "{body}");
    assert_eq!(daemon.ask("/healthz").await, (200, "ok".to_owned()));
    let public = daemon.public().await;
    assert_eq!(get(public, "/healthz").await, (200, "ok".to_owned()));
    for path in ["/readyz", "/metrics"] {
        assert_eq!(get(public, path).await.0, 404, "{path}");
    }

    let mut ann = Client::following(&daemon, &token(ANN), "plan").await;
    let mut ben = Client::following(&daemon, &token(BEN), "plan").await;
    ben.follow("open").await;
    database.run("insert into plan values (1, 1, 'a')").await;
    assert_eq!(ann.change().await, "INSERT 1");
    database.insert_open(2).await;
    assert_eq!(ben.change().await, "INSERT 2", "the plan is not Ben's");
    // What is delivered is counted once it is written.
    daemon
        .metric_reaches("rowcast_changes_delivered_total", 2.0)
        .await;
    for (name, least, most) in [
        ("rowcast_connections", 2.0, 2.0),
        ("rowcast_subscriptions", 3.0, 3.0),
        ("rowcast_changes_read_total", 2.0, 2.0),
        ("rowcast_changes_delivered_total", 2.0, 2.0),
        ("rowcast_changes_hidden_total", 1.0, 1.0),
        ("rowcast_commit_to_socket_seconds_count", 2.0, 2.0),
        ("rowcast_commit_to_socket_seconds_sum", 0.000_001, 30.0),
        ("rowcast_questions_total", 1.0, 2.0),
        ("rowcast_source_up", 1.0, 1.0),
        ("rowcast_source_retries_total", 0.0, 0.0),
        ("rowcast_slot_lag_bytes", 1.0, 1e9),
    ] {
        let value = daemon.metric(name).await;
        let fits = value.is_some_and(|value| value >= least && value <= most);
        assert!(fits, "{name} is {value:?}");
    }
    let hidden = "rowcast_changes_hidden_total{reason=\"policy\"} 1";
    let (_, text) = daemon.ask("/metrics").await;
    assert!(text.lines().any(|line| line == hidden), "{text}");
    ann.socket.close(None).await.unwrap();
    ann.closed().await;
    daemon.metric_reaches("rowcast_closes_total", 1.0).await;
    let (_, text) = daemon.ask("/metrics").await;
    assert!(
        text.contains("rowcast_closes_total{reason=\"client\"} 1"),
        "{text}"
    );
    daemon.terminate().await;
}

#[tokio::test]
async fn the_log_is_json_and_holds_neither_tokens_nor_values() {
    const MARKER: &str = "a-value-of-a-row";
    let database = Database::new("rowcast").await;
    database
        .run(
            "create function boom(value text) returns boolean language plpgsql stable as \
               $$ begin for i in 1..1 loop perform 1; end loop; raise exception 'no: %', value using detail = value; end $$; \
             create table raising (id bigint primary key, body text); \
             alter table raising enable row level security; \
             create policy p on raising for select using (boom(body)); \
             create table casting (id bigint primary key, body text); \
             alter table casting enable row level security; \
             create policy p on casting for select using (body::int = 1); \
             create table asking (id bigint primary key, body text); \
             alter table asking enable row level security; \
             create policy p on asking for select using \
               (exists (select from member m where m.team = asking.body::bigint)); \
             grant select on raising, casting, asking to authenticated; \
             alter publication rowcast add table raising, casting, asking",
        )
        .await;
    let level = "debug,tokio_postgres=info,hyper=info";
    let mut daemon = database.daemon(&[("ROWCAST_LOG", level)]).await;
    let good = token(ANN);
    let bad = format!("{good}x");
    assert_eq!(Client::refused(&daemon, &bad).await.0, 401);
    let mut client = Client::connect(&daemon, &good).await;
    for table in ["raising", "casting", "asking", "open", "note"] {
        client.follow(table).await;
    }
    for table in ["raising", "casting", "asking"] {
        database
            .run(&format!("insert into {table} values (1, '{MARKER}')"))
            .await;
    }
    database
        .run(&format!(
            "insert into note values (1, '{ANN}', '{MARKER}'); \
             insert into note values (2, '{BEN}', '{MARKER}'); \
             insert into open values (1, '{MARKER}')"
        ))
        .await;
    assert_eq!(client.change().await, "INSERT 1", "the note");
    assert_eq!(client.change().await, "INSERT 1", "the open one");
    let (_, text) = daemon.ask("/metrics").await;
    assert!(text.contains("{reason=\"policy_error\"}"), "{text}");
    assert!(!text.contains(MARKER), "{text}");
    client.refresh("realtime:note", &bad).await;
    let (system, closed) = (client.next().await, client.next().await);
    assert_eq!(system[4]["status"], "error", "{system}");
    assert_eq!(closed[3], "phx_close", "{closed}");
    client.send("{ not json").await;
    client.socket.close(None).await.unwrap();
    client.closed().await;
    daemon.logged("client gone").await;
    daemon.signal("TERM");
    let (code, log) = daemon.ended().await;
    assert_eq!(code, Some(0));
    for line in log.lines() {
        let line: Result<Value, _> = serde_json::from_str(line);
        assert!(line.is_ok_and(|line| line.is_object()), "{log}");
    }
    assert!(log.contains("client connected"), "{log}");
    let signature = good.rsplit('.').next().unwrap();
    let payload = good.split('.').nth(1).unwrap();
    for secret in [MARKER, signature, payload, crate::harness::SECRET, ANN] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
}
