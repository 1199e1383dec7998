//! The relays under test: processes of their own, so that their CPU time and memory are theirs
//! alone.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::net::{TcpListener, TcpStream};

use super::child::{Child, this_program};
use super::database::{BASELINE_SLOT, NAME, SLOT};
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

/// A relay that runs.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub child: Child,
    /// Its subscribers.
    pub front: Front,
}

impl Relay {
    /// Starts `rowcast serve` and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends or is not ready after a minute; with the end of its log.
    pub async fn rowcast(
        database: &Secret,
        jwt_secret: &Secret,
        connections: u64,
    ) -> anyhow::Result<Self> {
        let (address, admin) = (free_address().await?, free_address().await?);
        let mut command = this_program()?;
        command
            .arg("serve")
            .env("DATABASE_URL", database.expose())
            .env("JWT_SECRET", jwt_secret.expose())
            .env("ROWCAST_LISTEN", address.to_string())
            .env("ROWCAST_ADMIN_LISTEN", admin.to_string())
            .env("ROWCAST_SLOT", SLOT)
            .env("ROWCAST_PUBLICATION", NAME)
            .env("ROWCAST_DATA", "memory")
            .env("ROWCAST_MAX_CONNECTIONS", (connections + 100).to_string())
            .env("ROWCAST_LOG", "warn")
            .env("ROWCAST_LOG_FORMAT", "text");
        let mut child = Child::start(command)?;
        let url = format!("http://{admin}/readyz");
        child
            .wait_until(async || matches!(health::ask(&url).await, Ok((200, _))))
            .await?;
        let front = Front::Sockets(address);
        Ok(Self { child, front })
    }

    /// Starts a relay that has its subscribers inside and waits until it is ready.
    ///
    /// # Errors
    /// As [`Relay::rowcast`].
    pub async fn in_process(database: &Secret) -> anyhow::Result<Self> {
        let mut command = this_program()?;
        command
            .arg("bench-in-process")
            .env("DATABASE_URL", database.expose())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = Child::start(command)?;
        let (orders, answers) = child.pipes()?;
        let mut inside = Inside::new(orders, answers);
        let ready = inside.ready().await;
        child.explain(ready).await?;
        let front = Front::Inside(inside);
        Ok(Self { child, front })
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
        let front = Front::Sockets(address);
        Ok(Self { child, front })
    }
}

async fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?)
}
