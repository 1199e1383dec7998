//! `--live`: a row of its own, watched.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rowcast::pg::throwaway::Throwaway;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::{DEADLINE, Place, options, signal};

/// Whatever it made is gone.
async fn left_nothing(place: &Place) {
    let left = "select count(*)::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                where c.relname like 'doctor\\_live%'";
    assert_eq!(place.text(left).await, "0");
    let slots = "select count(*)::text from pg_replication_slots where slot_name like 'rowcast\\_doctor%' \
                 and database = current_database()";
    // PostgreSQL drops a temporary one once it notices that its session has ended.
    let gone = async {
        while place.text(slots).await != "0" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, gone).await.expect("its slot is gone");
}

#[tokio::test]
async fn a_row_arrives_through_the_relay_and_nothing_is_left() {
    let place = Place::good().await;
    let more = &[
        ("ROWCAST_LISTEN", place.address()),
        ("ROWCAST_LIVE_DATABASE_URL", place.url.as_str()),
    ];
    let found = place.doctor_with(&["--live"], more).await;
    let live = &found.report["live"];
    assert_eq!(live["arrived"], true, "{:#}", found.report);
    assert_eq!(live["way"], "relay");
    assert!(live["steps"].as_array().unwrap().len() >= 6, "{live:#}");
    // Late is what a busy machine may be.
    assert!(
        found.codes().iter().all(|code| *code == "live_late"),
        "{:#}",
        found.report
    );
    left_nothing(&place).await;
    // The schema of the event trigger stays.
    assert_eq!(
        place.text("select to_regnamespace('rowcast')::text").await,
        "rowcast"
    );
}

#[tokio::test]
async fn without_a_relay_a_row_is_found_in_the_stream() {
    let mut place = Place::good().await;
    place.stop().await;
    let more = &[("ROWCAST_LIVE_DATABASE_URL", place.url.as_str())];
    let found = place.doctor_with(&["--live"], more).await;
    found.is(&["slot_unread"]);
    let live = &found.report["live"];
    assert_eq!(
        (&live["arrived"], &live["way"]),
        (&true.into(), &"slot".into()),
        "{:#}",
        found.report
    );
    left_nothing(&place).await;
}

#[tokio::test]
async fn a_row_that_does_not_arrive_is_said_and_nothing_is_left() {
    let mut place = Place::good().await;
    place.stop().await;
    place
        .run("alter publication rowcast set (publish = 'delete')")
        .await;
    let more = &[("ROWCAST_LIVE_DATABASE_URL", place.url.as_str())];
    let found = place.doctor_with(&["--live"], more).await;
    found.is(&["live_silent", "publication_operations", "slot_unread"]);
    assert_eq!(found.report["live"]["arrived"], false);
    left_nothing(&place).await;
}

#[tokio::test]
async fn a_login_that_may_not_make_the_table_is_told_so() {
    let place = Place::good().await;
    let found = place
        .doctor_with(&["--live"], &[("ROWCAST_LISTEN", place.address())])
        .await;
    found.is(&["live_rights"]);
    left_nothing(&place).await;
}

#[tokio::test]
async fn without_a_publication_there_is_nothing_to_watch_a_row_by() {
    let place = Place::good().await;
    place.run("drop publication rowcast").await;
    let more = &[("ROWCAST_LIVE_DATABASE_URL", place.url.as_str())];
    let found = place.doctor_with(&["--live"], more).await;
    found.is(&["live_impossible", "publication_missing"]);
    left_nothing(&place).await;
}

#[tokio::test]
async fn a_relay_that_is_not_there_or_refuses_the_handshake_is_said() {
    let place = Place::good().await;
    let live = ("ROWCAST_LIVE_DATABASE_URL", place.url.as_str());
    let found = place
        .doctor_with(&["--live"], &[live, ("ROWCAST_LISTEN", "127.0.0.1:9")])
        .await;
    found.is(&["live_connect"]);
    left_nothing(&place).await;
    let here = ("ROWCAST_LISTEN", place.address());
    let other = "another secret of at least thirty-two bytes, for tests";
    let found = place
        .doctor_with(&["--live"], &[live, here, ("JWT_SECRET", other)])
        .await;
    found.is(&["live_connect"]);
    let findings = found.report["findings"].to_string();
    assert!(findings.contains("it answers 401"), "{findings}");
    left_nothing(&place).await;
}

#[tokio::test]
async fn a_login_that_may_make_no_slot_is_said() {
    let mut place = Place::good().await;
    place.stop().await;
    place
        .run(&format!("alter role {} noreplication", place.relay))
        .await;
    let more = &[("ROWCAST_LIVE_DATABASE_URL", place.url.as_str())];
    let found = place.doctor_with(&["--live"], more).await;
    found.is(&["live_slot", "login_replication", "slot_unread"]);
    left_nothing(&place).await;
}

#[tokio::test]
async fn an_interrupted_one_cleans_up() {
    let mut place = Place::good().await;
    place.stop().await;
    // The row never comes, so that it waits.
    place
        .run("alter publication rowcast set (publish = 'delete')")
        .await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(["doctor", "--live"])
        .env_clear()
        .envs(place.environment())
        .env("ROWCAST_LIVE_DATABASE_URL", &place.url)
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let there = "select exists (select from pg_class where relname like 'doctor\\_live%')::text";
    let made = async {
        while place.text(there).await != "true" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, made).await.expect("it makes its table");
    signal(&child, "INT");
    let status = timeout(DEADLINE, child.wait())
        .await
        .expect("it ends")
        .unwrap();
    assert_eq!(status.code(), Some(2), "the publication is still broken");
    left_nothing(&place).await;
}

/// A server that has TLS, the certificate of who vouches for it, and one of somebody else.
async fn encrypted(folder: &Path) -> (Throwaway, PathBuf, PathBuf) {
    let mut server = Throwaway::start(options()).await.expect("a cluster");
    let data = server.directory().join("data");
    let mut files = Vec::new();
    for name in ["ours.pem", "theirs.pem"] {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let file = folder.join(name);
        fs::write(&file, authority.self_signed(&key).unwrap().pem()).unwrap();
        files.push(file);
        if name == "theirs.pem" {
            continue;
        }
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate().unwrap();
        let named = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = named.signed_by(&key, &issuer).unwrap();
        let owner = fs::metadata(&data).unwrap();
        for (name, text) in [
            ("server.crt", certificate.pem()),
            ("server.key", key.serialize_pem()),
        ] {
            let path = data.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }
    server.configure(&["ssl = on"]).unwrap();
    server.restart().await.unwrap();
    let theirs = files.pop().unwrap();
    (server, files.pop().unwrap(), theirs)
}

#[tokio::test]
async fn a_row_is_watched_over_encrypted_sessions_with_a_server_that_is_vouched_for() {
    let folder = tempfile::tempdir().unwrap();
    let (server, ours, theirs) = encrypted(folder.path()).await;
    let place = Place::at(server.fresh_database().await.unwrap()).await;
    let place = Place::prepared(place).await;
    let verified = |url: String, authority: &Path| {
        let (address, _) = url.split_once('?').unwrap_or((&url, ""));
        let address = address.replacen("127.0.0.1", "localhost", 1);
        let authority = authority.display();
        format!("{address}?sslmode=verify-full&sslrootcert={authority}")
    };
    let (own, live) = (
        verified(place.relay_url(), &ours),
        verified(place.url.clone(), &ours),
    );
    assert!(own.contains("localhost"), "{own}");
    let more = |own| {
        [
            ("DATABASE_URL", own),
            ("ROWCAST_LIVE_DATABASE_URL", live.as_str()),
        ]
    };
    let found = place.doctor_with(&["--live"], &more(&own)).await;
    assert_eq!(found.report["live"]["arrived"], true, "{:#}", found.report);
    assert_eq!(found.report["live"]["way"], "slot");
    left_nothing(&place).await;
    let other = verified(place.relay_url(), &theirs);
    let found = place.doctor_with(&[], &more(&other)).await;
    found.is(&["database_tls"]);
}
