//! What stands between the relay and its slot: a pooler, a server that takes no replication session,
//! another program, another clock.

use std::process::Stdio;

use rowcast::pg::throwaway::{Binaries, Throwaway};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::harness::{DEADLINE, Place, cluster, connect, options, rowcast};

const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

/// Stands before a server: ordinary sessions pass, one for replication is answered with an error.
/// Gives its port.
async fn gate(server: u16, sqlstate: &'static str, message: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // Who goes away on one side is missed by the other.
            tokio::spawn(async move {
                let _ended = pass(client, server, sqlstate, message).await;
            });
        }
    });
    port
}

async fn pass(
    mut client: TcpStream,
    server: u16,
    sqlstate: &str,
    message: &str,
) -> std::io::Result<()> {
    let first = loop {
        let mut length = [0; 4];
        client.read_exact(&mut length).await?;
        let mut rest = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
        client.read_exact(&mut rest).await?;
        if rest == SSL_REQUEST {
            client.write_all(b"N").await?;
            continue;
        }
        break [length.as_slice(), &rest].concat();
    };
    if first.windows(12).any(|part| part == b"replication\0") {
        let mut fields = Vec::new();
        for (field, text) in [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', sqlstate),
            (b'M', message),
        ] {
            fields.push(field);
            fields.extend(text.as_bytes());
            fields.push(0);
        }
        fields.push(0);
        let length = u32::try_from(fields.len() + 4).unwrap();
        client.write_all(b"E").await?;
        client.write_all(&length.to_be_bytes()).await?;
        client.write_all(&fields).await?;
        return client.shutdown().await;
    }
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    server.write_all(&first).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn a_pooler_and_a_server_that_refuses_replication_sessions_are_told_apart() {
    let place = Place::prepared(Place::empty().await).await;
    let real = cluster().await.port();
    for (sqlstate, message, code) in [
        (
            "08P01",
            "unsupported startup parameter: replication",
            "pooler",
        ),
        (
            "28000",
            "no pg_hba.conf entry for replication connection",
            "replication_refused",
        ),
    ] {
        let port = gate(real, sqlstate, message).await;
        let direct = place.relay_url();
        let through = direct.replacen(&format!(":{real}/"), &format!(":{port}/"), 1);
        assert_ne!(direct, through);
        let found = place.doctor_with(&[], &[("DATABASE_URL", &through)]).await;
        found.is(&[code, "slot_missing"]);
        let text = found.report["findings"].to_string();
        assert!(text.contains(message), "{text}");
        place.doctor(&[]).await.is(&["slot_missing"]);
    }
}

#[tokio::test]
async fn another_program_that_reads_the_slot_is_found_and_ended() {
    let mut place = Place::good().await;
    place.stop().await;
    let name = place.text("select current_database()::text").await;
    // Beside a server that has none that of another version reads as well.
    let beside = Binaries::find().unwrap().recvlogical();
    let program = if beside.exists() {
        beside
    } else {
        "pg_recvlogical".into()
    };
    let mut other = Command::new(program)
        .args(["--start", "--no-loop", "-h", "127.0.0.1", "-U", "postgres"])
        .args(["-p", &cluster().await.port().to_string(), "-d", &name])
        .args(["--slot", &place.relay, "-f", "-"])
        .args(["-o", "proto_version=1", "-o", "publication_names=rowcast"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("pg_recvlogical");
    let active = format!(
        "select active::text from pg_replication_slots where slot_name = '{}'",
        place.relay
    );
    let deadline = Instant::now() + DEADLINE;
    while place.text(&active).await != "true" {
        assert!(Instant::now() < deadline, "it does not read");
        sleep(std::time::Duration::from_millis(20)).await;
    }
    let found = place.doctor(&[]).await;
    found.is(&["slot_taken"]);
    place.mend(&found).await;
    let ended = tokio::time::timeout(DEADLINE, other.wait()).await;
    assert!(!ended.expect("it ends").unwrap().success());
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_clock_that_is_another_than_the_databases_is_found() {
    let place = Place::prepared(Place::empty().await).await;
    place
        .run(
            "set allow_system_table_mods = on;
             alter function pg_catalog.clock_timestamp() rename to clock_timestamp_that_is_right;
             create function pg_catalog.clock_timestamp() returns timestamptz language sql volatile
               as 'select pg_catalog.clock_timestamp_that_is_right() - interval ''90 seconds'''",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["clock_skew", "slot_missing"]);
    let text = found.report["findings"].to_string();
    assert!(text.contains("s ahead of that of the database"), "{text}");
    place
        .run(
            "drop function pg_catalog.clock_timestamp();
             alter function pg_catalog.clock_timestamp_that_is_right() rename to clock_timestamp",
        )
        .await;
    place.doctor(&[]).await.is(&["slot_missing"]);
}

/// What minor versions of 2026 have.
#[tokio::test]
async fn a_server_that_loads_other_plugins_only_is_found_and_mended() {
    let cluster = Throwaway::start(options()).await.expect("a cluster");
    let url = cluster.fresh_database().await.unwrap();
    let mut place = Place::prepared(Place::at(url).await).await;
    let known = "select count(*)::text from pg_settings where name = 'output_plugin_libraries'";
    if place.text(known).await == "0" {
        println!("not tested: this server has no output_plugin_libraries");
        return;
    }
    place
        .run("alter system set output_plugin_libraries = 'test_decoding'")
        .await;
    place.run("select pg_reload_conf()").await;
    let found = place.doctor(&[]).await;
    found.is(&["output_plugin_libraries", "slot_missing"]);
    place.mend(&found).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

/// What PostgreSQL has from 17 on.
#[tokio::test]
async fn a_slot_that_standbys_do_not_keep_is_noted_and_mended_by_starting() {
    let cluster = Throwaway::start(options()).await.expect("a cluster");
    let url = cluster.fresh_database().await.unwrap();
    let mut place = Place::prepared(Place::at(url).await).await;
    let version = place
        .text("select current_setting('server_version_num')")
        .await;
    place
        .run(&format!(
            "select pg_create_logical_replication_slot('{}', 'pgoutput'); \
             select pg_create_physical_replication_slot('standby')",
            place.relay
        ))
        .await;
    let found = place.doctor(&[]).await;
    if version.parse::<u32>().unwrap() < 170_000 {
        println!("not tested: standbys keep slots from PostgreSQL 17 on");
        return found.is(&["slot_unread"]);
    }
    found.is(&["slot_failover", "slot_unread"]);
    place.start().await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_policy_that_takes_long_to_be_asked_is_found() {
    let place = Place::prepared(Place::empty().await).await;
    place
        .run(
            "create function rules.slow() returns boolean language plpgsql stable as $$
               begin for i in 1..1 loop perform pg_sleep(0.05); end loop; return true; end $$;
             create policy slow on app.note for select to authenticated using (rules.slow())",
        )
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["policy_slow", "slot_missing"]);
    let findings = found.report["findings"].as_array().unwrap();
    let slow = findings.iter().find(|one| one["code"] == "policy_slow");
    let text = slow.unwrap()["text"].as_str().unwrap();
    assert!(
        text.contains("slow (") && text.contains(" ms here"),
        "{text}"
    );
    place.run("drop policy slow on app.note").await;
    place.doctor(&[]).await.is(&["slot_missing"]);
}

#[tokio::test]
async fn transactions_that_keep_the_slot_from_being_made_are_named_and_ended() {
    let mut options = options();
    options
        .settings
        .push("max_prepared_transactions = 5".to_owned());
    let cluster = Throwaway::start(options).await.expect("a cluster");
    let place = Place::at(cluster.fresh_database().await.unwrap()).await;
    let place = Place::prepared(place).await;
    // In another database of the server too.
    let elsewhere = cluster.fresh_database().await.unwrap();
    let forgotten = connect(&elsewhere).await;
    forgotten
        .batch_execute("set application_name = 'forgotten'; begin; create table x (id int)")
        .await
        .unwrap();
    let prepared = connect(&place.url).await;
    prepared
        .batch_execute("begin; create table app.y (id int); prepare transaction 'it''s half'")
        .await
        .unwrap();
    let mut relay = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .arg("serve")
        .env_clear()
        .envs(place.environment())
        .env("ROWCAST_LISTEN", "127.0.0.1:0")
        .env("ROWCAST_ADMIN_LISTEN", "127.0.0.1:0")
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let waits = async |name: &str| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = place.doctor(&[]).await;
            if found.codes() == ["slot_waits"] && found.text("slot_waits").contains(name) {
                return found;
            }
            assert!(Instant::now() < deadline, "{name}: {:#}", found.report);
            sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    // It waits for one after the other, in the order in which they began.
    let found = waits("forgotten").await;
    assert_eq!(found.code, 2);
    place.mend(&found).await;
    let found = waits("prepared transaction it's half").await;
    let both = found.report["findings"][0]["sql"].to_string();
    assert!(both.contains("-- commit prepared 'it''s half'"), "{both}");
    place.run("rollback prepared 'it''s half'").await;
    let deadline = Instant::now() + DEADLINE;
    while place.doctor(&[]).await.code != 0 {
        assert!(Instant::now() < deadline, "it is not made");
        sleep(std::time::Duration::from_millis(50)).await;
    }
    relay.kill().await.unwrap();
}

#[tokio::test]
async fn a_limit_of_the_logins_sessions_is_not_taken_for_one_of_the_server() {
    let place = Place::prepared(Place::empty().await).await;
    place
        .run(&format!("alter role {} connection limit 1", place.relay))
        .await;
    let found = place.doctor(&[]).await;
    assert!(
        found.codes().contains(&"connections_exhausted"),
        "{:#}",
        found.report
    );
    assert!(
        !found.codes().contains(&"wal_senders_exhausted"),
        "{:#}",
        found.report
    );
    assert!(
        found.sql().iter().all(|sql| !sql.contains("alter system")),
        "{:?}",
        found.sql()
    );
    place.mend(&found).await;
    place.doctor(&[]).await.is(&["slot_missing"]);
}

#[tokio::test]
async fn who_keeps_the_catalog_from_being_read_is_named_and_ended() {
    let place = Place::good().await;
    let other = connect(&place.url).await;
    other
        .batch_execute("set application_name = 'migration'; begin; lock table app.note")
        .await
        .unwrap();
    let found = place.doctor(&[]).await;
    found.is(&["catalog_locked"]);
    let text = found.text("catalog_locked");
    assert!(
        text.contains("app.note") && text.contains("migration"),
        "{text}"
    );
    let environment = place.environment();
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let explained = rowcast(&["explain", "--all"], &environment).await;
    assert_eq!(explained.status.code(), Some(69));
    let said = String::from_utf8(explained.stderr).unwrap();
    assert!(
        said.contains("app.note") && said.contains("migration"),
        "{said}"
    );
    place.mend(&found).await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}
