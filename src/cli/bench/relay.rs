//! The relays under test: processes of their own, so that their CPU time and memory are theirs
//! alone.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use super::child::{Child, this_program};
use super::database::{BASELINE_SLOT, DISK_SLOT, MEMORY_SLOT, NAME};
use super::in_process::inside::Inside;
use crate::cli::health;
use crate::config::Secret;

/// Where a relay's subscribers are.
#[derive(Debug)]
pub enum Front {
    /// In this process; they connect to this address.
    Sockets(SocketAddr),
    /// In the relay's own.
    Inside(Inside),
}

/// Where a relay keeps its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In memory.
    Memory,
    /// In a directory of its own among the system's temporary files.
    Disk,
}

impl Storage {
    /// The word for reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }

    /// Its relay's replication slot.
    #[must_use]
    pub const fn slot(self) -> &'static str {
        match self {
            Self::Memory => MEMORY_SLOT,
            Self::Disk => DISK_SLOT,
        }
    }

    /// What the setting `data` says, and the directory that goes with the relay.
    fn data(self) -> anyhow::Result<(OsString, Option<TempDir>)> {
        match self {
            Self::Memory => Ok(("memory".into(), None)),
            Self::Disk => {
                let directory = tempfile::Builder::new()
                    .prefix("rowcast-bench-")
                    .tempdir()?;
                Ok((directory.path().into(), Some(directory)))
            }
        }
    }
}

/// A relay that runs.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub child: Child,
    /// Its subscribers.
    pub front: Front,
    /// What another process in its place is started with; only of the daemon.
    seat: Option<Seat>,
    /// Its log, where that is on disk.
    log: Option<TempDir>,
}

/// What the daemon is started with.
#[derive(Debug)]
struct Seat {
    environment: Vec<(&'static str, OsString)>,
    /// Where it says whether it is ready.
    url: String,
}

impl Seat {
    fn start(&self) -> anyhow::Result<Child> {
        let mut command = this_program()?;
        command
            .arg("serve")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        Child::start(command)
    }
}

/// The database's address for a relay that may be held up for as long as it takes to write a backlog:
/// the server must not end its session meanwhile.
fn patient(database: &Secret) -> String {
    let url = database.expose();
    if url.contains("options=") {
        return url.to_owned();
    }
    let sign = if url.contains('?') { '&' } else { '?' };
    format!("{url}{sign}options=-c%20wal_sender_timeout%3D0")
}

impl Relay {
    /// Starts `rowcast serve` for so many connections and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends or is not ready after a minute; with the end of its log.
    pub async fn rowcast(
        database: &Secret,
        storage: Storage,
        jwt_secret: &Secret,
        connections: u64,
    ) -> anyhow::Result<Self> {
        Self::with(database, storage, jwt_secret, connections, &[]).await
    }

    /// As [`Relay::rowcast`], with more settings by the names of their variables.
    ///
    /// # Errors
    /// As [`Relay::rowcast`].
    pub async fn with(
        database: &Secret,
        storage: Storage,
        jwt_secret: &Secret,
        connections: u64,
        more: &[(&'static str, &str)],
    ) -> anyhow::Result<Self> {
        let (data, log) = storage.data()?;
        let (address, admin) = (free_address().await?, free_address().await?);
        let mut seat = Seat {
            environment: vec![
                ("DATABASE_URL", patient(database).into()),
                ("JWT_SECRET", jwt_secret.expose().into()),
                ("ROWCAST_LISTEN", address.to_string().into()),
                ("ROWCAST_ADMIN_LISTEN", admin.to_string().into()),
                ("ROWCAST_SLOT", storage.slot().into()),
                ("ROWCAST_DATA", data),
                ("ROWCAST_PUBLICATION", NAME.into()),
                (
                    "ROWCAST_MAX_CONNECTIONS",
                    (connections + 100).to_string().into(),
                ),
                ("ROWCAST_LOG", "warn".into()),
                ("ROWCAST_LOG_FORMAT", "text".into()),
            ],
            url: format!("http://{admin}/readyz"),
        };
        let more = more.iter().map(|(name, value)| (*name, value.into()));
        seat.environment.extend(more);
        let mut relay = Self {
            child: seat.start()?,
            front: Front::Sockets(address),
            seat: Some(seat),
            log,
        };
        relay.until_ready().await?;
        Ok(relay)
    }

    /// Starts another process in its place, after it was killed. It is not ready yet.
    ///
    /// # Errors
    /// Where it cannot be started; always with anything but the daemon.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let seat = self.seat.as_ref().context("Only the daemon is restarted")?;
        self.child = seat.start()?;
        Ok(())
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// Where it ends or is not ready after a minute; with the end of its log.
    pub async fn until_ready(&mut self) -> anyhow::Result<()> {
        let seat = self.seat.as_ref().context("Only the daemon says so")?;
        let ready = async || matches!(health::ask(&seat.url).await, Ok((200, _)));
        self.child.wait_until(ready).await
    }

    /// Where the daemon says whether it is ready.
    #[must_use]
    pub fn ready_url(&self) -> &str {
        self.seat.as_ref().map_or("", |seat| &seat.url)
    }

    /// Where the subscribers connect.
    ///
    /// # Errors
    /// Where they are in the relay's process.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        match &self.front {
            Front::Sockets(address) => Ok(*address),
            Front::Inside(_) => bail!("This relay has no address"),
        }
    }

    /// Its log's files with their sizes in bytes, oldest first; none where the log is in memory.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn segments(&self) -> anyhow::Result<Vec<(PathBuf, u64)>> {
        let Some(log) = &self.log else {
            return Ok(Vec::new());
        };
        let mut segments = Vec::new();
        for file in std::fs::read_dir(log.path())? {
            let file = file?;
            let path = file.path();
            if path.extension().is_some_and(|name| name == "segment") {
                segments.push((path, file.metadata()?.len()));
            }
        }
        segments.sort();
        Ok(segments)
    }

    /// Starts a relay that has its subscribers inside and waits until it is ready.
    ///
    /// # Errors
    /// As [`Relay::rowcast`].
    pub async fn in_process(database: &Secret, storage: Storage) -> anyhow::Result<Self> {
        Self::inside(database, storage, &[]).await
    }

    /// As [`Relay::in_process`], with old rows of the benchmark's table in memory.
    ///
    /// # Errors
    /// As [`Relay::rowcast`].
    pub async fn with_old_rows(database: &Secret, storage: Storage) -> anyhow::Result<Self> {
        let table = format!("{NAME}.rows");
        Self::inside(database, storage, &["--old-rows", &table]).await
    }

    async fn inside(database: &Secret, storage: Storage, more: &[&str]) -> anyhow::Result<Self> {
        let (data, log) = storage.data()?;
        let mut command = this_program()?;
        command
            .arg("bench-in-process")
            .args(["--slot", storage.slot()])
            .arg("--data")
            .arg(data)
            .args(more)
            .env("DATABASE_URL", patient(database))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = Child::start(command)?;
        let (orders, answers) = child.pipes()?;
        let mut inside = Inside::new(orders, answers);
        let ready = inside.ready().await;
        child.explain(ready).await?;
        Ok(Self {
            child,
            front: Front::Inside(inside),
            seat: None,
            log,
        })
    }

    /// Starts the bare relay and waits until it listens, which it does once the rows flow.
    ///
    /// # Errors
    /// As [`Relay::rowcast`].
    pub async fn baseline(database: &Secret) -> anyhow::Result<Self> {
        let address = free_address().await?;
        let mut command = this_program()?;
        command
            .arg("bench-baseline")
            .args(["--listen", &address.to_string()])
            .args(["--slot", BASELINE_SLOT, "--publication", NAME])
            .env("DATABASE_URL", database.expose());
        let mut child = Child::start(command)?;
        child
            .wait_until(async || TcpStream::connect(address).await.is_ok())
            .await?;
        Ok(Self {
            child,
            front: Front::Sockets(address),
            seat: None,
            log: None,
        })
    }
}

async fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?)
}
