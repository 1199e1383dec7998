//! A process of this program's own.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{self, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::process as kernel;

/// A slot has to be made, which waits for every transaction in progress.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long the end of a process may show itself after its pipes have closed, and its last words
/// may be on their way.
const FAREWELL: Duration = Duration::from_secs(1);

/// Lines of a child's log that are kept to explain its end.
const LINES: usize = 20;

/// This program, running once more.
#[derive(Debug)]
pub struct Child {
    child: process::Child,
    pid: u32,
    log: Arc<Mutex<VecDeque<String>>>,
    /// Ends with the log.
    reader: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts what a command of [`this_program`] says.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("A relay cannot be started")?;
        let pid = child.id().context("A relay ended at once")?;
        let log = Arc::new(Mutex::new(VecDeque::with_capacity(LINES)));
        let reader = child.stderr.take().map(|stderr| {
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
            })
        });
        Ok(Self {
            child,
            pid,
            log,
            reader,
        })
    }

    /// Its stdin and stdout, where the command has them piped; once.
    ///
    /// # Errors
    /// Where there are none.
    pub fn pipes(&mut self) -> anyhow::Result<(ChildStdin, ChildStdout)> {
        let pipes = self.child.stdin.take().zip(self.child.stdout.take());
        pipes.context("A relay has no pipes")
    }

    /// CPU time so far, in seconds.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        kernel::cpu_seconds(self.pid)
    }

    /// Memory in RAM, in bytes.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn rss_bytes(&self) -> anyhow::Result<u64> {
        kernel::rss_bytes(self.pid)
    }

    /// Descriptors that it has open.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn descriptors(&self) -> anyhow::Result<u64> {
        kernel::descriptors(self.pid)
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

    /// Fails with the whole end of its log where it ends within so long.
    async fn outlives(&mut self, time: Duration) -> anyhow::Result<()> {
        let Ok(status) = timeout(time, self.child.wait()).await else {
            return Ok(());
        };
        let status = status?;
        if let Some(reader) = self.reader.take() {
            // What it said last may still be in the pipe.
            let _read = timeout(FAREWELL, reader).await;
        }
        bail!("{}", self.obituary(status))
    }

    /// Puts the end of the log in place of an error that it explains: that the process has ended.
    ///
    /// # Errors
    /// Where there was one.
    pub async fn explain<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if result.is_err() {
            // Its sockets close before it is known to have ended.
            self.outlives(FAREWELL).await?;
        }
        result
    }

    /// Ends it.
    pub async fn stop(mut self) {
        self.kill().await;
    }

    /// Ends it as `kill -9` does, and waits until it has ended.
    pub async fn kill(&mut self) {
        // Where it has ended already there is nothing to do.
        let _ended = self.child.kill().await;
    }

    /// Sends it a signal, by its name (`STOP`, `CONT`).
    ///
    /// # Errors
    /// Where it has ended, or there is no program `kill`.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill")
            .args(["-s", name, &self.pid.to_string()])
            .status()
            .await
            .context("There is no program called kill")?;
        ensure!(sent.success(), "A relay cannot be sent the signal {name}.");
        Ok(())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// Where it ends, or is not ready after a minute.
    pub async fn wait_until(&mut self, ready: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if ready().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("A relay is not ready after a minute.{}", self.last_words());
            }
            // Nothing tells when a port of another process opens: it is asked again.
            self.outlives(Duration::from_millis(50)).await?;
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

/// This program, with an environment free of settings that are meant for another relay, and with
/// neither stdin nor stdout.
///
/// # Errors
/// Where it cannot be found.
pub fn this_program() -> anyhow::Result<Command> {
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
    command
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talker() -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "echo its last words >&2; exit 3"]);
        Child::start(command).unwrap()
    }

    #[tokio::test]
    async fn a_process_that_ended_is_explained_by_its_last_words() {
        let waited = talker().wait_until(async || false).await;
        let failed: anyhow::Result<()> = Err(anyhow::anyhow!("a socket closed"));
        let explained = talker().explain(failed).await;
        for error in [waited.unwrap_err(), explained.unwrap_err()] {
            let text = error.to_string();
            assert!(
                text.contains("exit status: 3") && text.ends_with("\n  its last words"),
                "{text}"
            );
        }
        assert_eq!(talker().explain(Ok(7)).await.unwrap(), 7);
    }
}
