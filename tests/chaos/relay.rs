//! The relay as its supervisor sees it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Daemon, SECRET};
use crate::place::Place;
use crate::proxy::Proxy;

pub(crate) const SLOT: &str = "chaos";

/// Starts under a new clock may take a while.
const START: Duration = Duration::from_secs(60);

pub(crate) struct Relay {
    pub(crate) place: Place,
    proxy: Arc<Proxy>,
    daemon: Option<Daemon>,
    environment: Vec<(String, String)>,
    clock: tempfile::TempDir,
    /// Times that it ended by itself.
    pub(crate) ended: u32,
}

/// The library that has a process see another clock.
fn faketime() -> Option<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    libraries
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
}

impl Relay {
    pub(crate) fn new(database_url: String, proxy: Arc<Proxy>) -> Self {
        let place = Place::make();
        let clock = tempfile::tempdir().unwrap();
        let mut environment = vec![
            ("DATABASE_URL".to_owned(), database_url),
            ("JWT_SECRET".to_owned(), SECRET.to_owned()),
            ("ROWCAST_SLOT".to_owned(), SLOT.to_owned()),
            (
                "ROWCAST_DATA".to_owned(),
                place.data().to_str().unwrap().to_owned(),
            ),
            ("ROWCAST_LOG_RETENTION_BYTES".to_owned(), "16MiB".to_owned()),
            ("ROWCAST_DRAIN".to_owned(), "1s".to_owned()),
        ];
        if let Some(library) = faketime() {
            let file = clock.path().join("clock");
            fs::write(&file, "+0").unwrap();
            for (name, value) in [
                ("LD_PRELOAD", library.to_str().unwrap()),
                ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
                ("FAKETIME_CACHE_DURATION", "1"),
                // What jumps is the time of day.
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("DONT_FAKE_MONOTONIC", "1"),
            ] {
                environment.push((name.to_owned(), value.to_owned()));
            }
        } else {
            println!("NOT RUN, as libfaketime is missing: clock jumps");
        }
        Self {
            place,
            proxy,
            daemon: None,
            environment,
            clock,
            ended: 0,
        }
    }

    /// Whether its clock can jump.
    pub(crate) fn has_clock(&self) -> bool {
        self.environment
            .iter()
            .any(|(name, _)| name == "LD_PRELOAD")
    }

    /// Has its clock differ from the machine's, in seconds.
    pub(crate) fn set_clock(&self, seconds: i64) {
        let fresh = self.clock.path().join("fresh");
        fs::write(&fresh, format!("{seconds:+}")).unwrap();
        fs::rename(fresh, self.clock.path().join("clock")).unwrap();
    }

    /// Starts it, without waiting until it serves.
    pub(crate) fn spawn(&mut self) {
        let environment: Vec<(&str, &str)> = self
            .environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.daemon = Some(Daemon::spawn_by(self.place.command(), &environment));
    }

    /// Waits until it serves, and starts it again where it has ended by itself.
    pub(crate) async fn serves(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            let daemon = self.daemon.as_mut().expect("it was started");
            if !daemon.runs() {
                let (code, log) = daemon.ended().await;
                self.ended += 1;
                println!("the relay ended with {code:?}:\n{}", tail(&log));
                assert!(Instant::now() < deadline, "the relay does not stay");
                tokio::time::sleep(Duration::from_millis(200)).await;
                self.spawn();
                continue;
            }
            if let Some(public) = daemon.serving() {
                self.proxy.leads_to(Some(public));
                return;
            }
            assert!(
                Instant::now() < deadline,
                "does not serve:\n{}",
                tail(&daemon.log())
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        self.daemon.as_ref().expect("it runs").signal(name);
    }

    pub(crate) async fn kill(&mut self) {
        self.end("KILL").await;
    }

    pub(crate) async fn terminate(&mut self) {
        self.end("TERM").await;
    }

    async fn end(&mut self, signal: &str) {
        let mut daemon = self.daemon.take().expect("it runs");
        if daemon.runs() {
            daemon.signal(signal);
            daemon.ended().await;
        }
        self.proxy.leads_to(None);
    }

    /// What the relay that runs now has said.
    pub(crate) fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    pub(crate) async fn ask(&self, path: &str) -> (u16, String) {
        self.daemon.as_ref().expect("it runs").ask(path).await
    }
}

pub(crate) fn tail(log: &str) -> &str {
    let from = log.len().saturating_sub(20_000);
    log.get(from..).unwrap_or(log)
}
