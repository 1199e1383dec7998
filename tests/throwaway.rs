//! The throw-away cluster leaves nothing behind, however it ends.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rowcast::pg::connect::Database;
use rowcast::pg::throwaway::{Options, Throwaway};
use tokio::time::{Instant, sleep};

const DEADLINE: Duration = Duration::from_secs(60);

async fn run(cluster: &Throwaway, sql: &str) {
    let database = Database::parse(&cluster.url("postgres")).unwrap();
    let client = database.connect("test").await.unwrap();
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_is_dropped_is_gone() {
    let cluster = Throwaway::start(Options::default()).await.unwrap();
    let (directory, url) = (cluster.directory().to_owned(), cluster.url("postgres"));
    drop(cluster);
    assert!(!directory.exists());
    let database = Database::parse(&url).unwrap();
    assert!(database.connect("test").await.is_err());
}

#[tokio::test]
async fn a_directory_that_was_given_is_kept_and_used_again() {
    let parent = tempfile::tempdir().unwrap();
    let options = Options {
        directory: Some(parent.path().join("kept")),
        ..Options::default()
    };
    // The server's user must be able to pass through.
    #[cfg(unix)]
    std::fs::set_permissions(
        parent.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mut cluster = Throwaway::start(options.clone()).await.unwrap();
    run(&cluster, "create table kept (id int)").await;
    let port = cluster.port();
    cluster.crash_server().await;
    cluster.start_server().await.unwrap();
    // Unless somebody took the port in the moment that it was free.
    let taken = std::net::TcpListener::bind(("127.0.0.1", port));
    assert!(
        cluster.port() == port || taken.is_err(),
        "clients find it again"
    );
    run(&cluster, "insert into kept values (1)").await;
    drop(cluster);
    let cluster = Throwaway::start(options).await.unwrap();
    run(&cluster, "drop table kept").await;
    cluster.stop().await;
}

/// Not a test: what the next one kills.
#[tokio::test]
#[ignore = "runs until it is killed"]
async fn holds_a_cluster() {
    let cluster = Throwaway::start(Options::default()).await.unwrap();
    println!("\ndirectory={}", cluster.directory().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_process_killed_without_warning_leaves_no_server_and_no_directory() {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_cluster", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let directory: PathBuf = BufReader::new(holder.stdout.take().unwrap())
        .lines()
        .find_map(|line| Some(line.unwrap().strip_prefix("directory=")?.into()))
        .unwrap();
    let pid = std::fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
    let server = format!("/proc/{}", pid.lines().next().unwrap());
    // SIGKILL: nothing in the process runs any more.
    holder.kill().unwrap();
    holder.wait().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while directory.exists() || Path::new(&server).exists() {
        assert!(Instant::now() < deadline, "{} is left", directory.display());
        sleep(Duration::from_millis(20)).await;
    }
}
