//! The relays under test: processes of their own, so that their CPU time and memory are theirs
//! alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::database::{BASELINE_SLOT, NAME, SLOT};
use super::process;
use crate::cli::health;
use crate::config::Secret;

/// A slot has to be made, which waits for every transaction in progress.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Lines of a child's log that are kept to explain its end.
const LINES: usize = 20;

/// A relay that runs.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    pid: u32,
    /// Where its clients connect.
    pub address: SocketAddr,
    log: Arc<Mutex<VecDeque<String>>>,
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
            .env("ROWCAST_MAX_CONNECTIONS", (connections + 100).to_string())
            .env("ROWCAST_LOG", "warn")
            .env("ROWCAST_LOG_FORMAT", "text");
        let mut relay = Self::start(command, address)?;
        let url = format!("http://{admin}/readyz");
        relay
            .wait_until(async || matches!(health::ask(&url).await, Ok((200, _))))
            .await?;
        Ok(relay)
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
        let mut relay = Self::start(command, address)?;
        relay
            .wait_until(async || TcpStream::connect(address).await.is_ok())
            .await?;
        Ok(relay)
    }

    /// CPU time so far, in seconds.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        process::cpu_seconds(self.pid)
    }

    /// Memory in RAM, in bytes.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn rss_bytes(&self) -> anyhow::Result<u64> {
        process::rss_bytes(self.pid)
    }

    /// Fails with the end of its log where it has ended.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{}", self.obituary(status)),
        }
    }

    /// Ends it.
    pub async fn stop(mut self) {
        // Where it has ended already there is nothing to do.
        let _ended = self.child.kill().await;
    }

    fn start(mut command: Command, address: SocketAddr) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("A relay cannot be started")?;
        let pid = child.id().context("A relay ended at once")?;
        let log = Arc::new(Mutex::new(VecDeque::with_capacity(LINES)));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    if log.len() == LINES {
                        log.pop_front();
                    }
                    log.push_back(line);
                }
            });
        }
        Ok(Self {
            child,
            pid,
            address,
            log,
        })
    }

    async fn wait_until(&mut self, ready: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                // What it said last may still be in the pipe.
                tokio::time::sleep(Duration::from_millis(50)).await;
                bail!("{}", self.obituary(status));
            }
            if ready().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("A relay is not ready after a minute.{}", self.last_words());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn obituary(&self, status: ExitStatus) -> String {
        format!("A relay ended ({status}).{}", self.last_words())
    }

    fn last_words(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter()
            .fold(String::new(), |text, line| text + "\n  " + line)
    }
}

/// This program, with an environment free of settings that are meant for another relay.
fn this_program() -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("This program cannot be found")?;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        let ours = ["DATABASE_URL", "JWT_SECRET", "JWKS_URL"]
            .iter()
            .any(|setting| name_text.starts_with(setting));
        if ours || name_text.starts_with("ROWCAST_") {
            command.env_remove(&name);
        }
    }
    // A rowcast.toml in this folder is meant for another relay, too.
    command.current_dir(std::env::temp_dir());
    Ok(command)
}

async fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?)
}
