//! The relays under test: processes of their own, so that their CPU time and memory are theirs
//! alone.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Stdio;

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

    const fn slot(self) -> &'static str {
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
    /// Its log, where that is on disk.
    _log: Option<TempDir>,
}

impl Relay {
    /// Starts `rowcast serve` and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends or is not ready after a minute; with the end of its log.
    pub async fn rowcast(
        database: &Secret,
        storage: Storage,
        jwt_secret: &Secret,
        connections: u64,
    ) -> anyhow::Result<Self> {
        let (data, log) = storage.data()?;
        let (address, admin) = (free_address().await?, free_address().await?);
        let mut command = this_program()?;
        command
            .arg("serve")
            .env("DATABASE_URL", database.expose())
            .env("JWT_SECRET", jwt_secret.expose())
            .env("ROWCAST_LISTEN", address.to_string())
            .env("ROWCAST_ADMIN_LISTEN", admin.to_string())
            .env("ROWCAST_SLOT", storage.slot())
            .env("ROWCAST_DATA", data)
            .env("ROWCAST_PUBLICATION", NAME)
            .env("ROWCAST_MAX_CONNECTIONS", (connections + 100).to_string())
            .env("ROWCAST_LOG", "warn")
            .env("ROWCAST_LOG_FORMAT", "text");
        let mut child = Child::start(command)?;
        let url = format!("http://{admin}/readyz");
        child
            .wait_until(async || matches!(health::ask(&url).await, Ok((200, _))))
            .await?;
        Ok(Self {
            child,
            front: Front::Sockets(address),
            _log: log,
        })
    }

    /// Starts a relay that has its subscribers inside and waits until it is ready.
    ///
    /// # Errors
    /// As [`Relay::rowcast`].
    pub async fn in_process(database: &Secret, storage: Storage) -> anyhow::Result<Self> {
        let (data, log) = storage.data()?;
        let mut command = this_program()?;
        command
            .arg("bench-in-process")
            .args(["--slot", storage.slot()])
            .arg("--data")
            .arg(data)
            .env("DATABASE_URL", database.expose())
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
            _log: log,
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
            _log: None,
        })
    }
}

async fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?)
}
