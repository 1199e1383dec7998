//! A private PostgreSQL that is thrown away afterwards, for the demo, the benchmarks and tests.
//!
//! A shell stands between this process and the server. It holds the other end of a pipe, so the
//! server ends, and its directory goes, even where this process is killed without a chance to
//! clean up. PostgreSQL refuses to run as root; root's server runs as `postgres` or `nobody`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::connect::{ConnectError, Database};
use super::quote_identifier;

mod binaries;

pub use binaries::Binaries;

/// How long a server may take to come up (its write-ahead log may have to be replayed).
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a server may take to end in good order.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a port found free may turn out to be taken by the time the server wants it.
const PORT_ATTEMPTS: u32 = 5;

/// Runs the server `$1…` and passes on signals named on its standard input. When that ends, so
/// does the server, and `$REMOVE` is removed where it is set.
const KEEPER: &str = r#"
exec 3<&0 0</dev/null
remove=$REMOVE
unset REMOVE
"$@" 3<&- &
server=$!
trap 'gone=1' USR1
(
    while read -r signal <&3; do kill -s "$signal" $server; done
    kill -s USR1 $$
    kill -s QUIT $server
) 2>/dev/null &
watch=$!
while kill -0 $server 2>/dev/null; do wait $server; done
kill -s KILL $watch 2>/dev/null
if [ -n "$gone" ] && [ -n "$remove" ]; then rm -rf "$remove"; fi
"#;

/// What the cluster is to be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where it lives; it is kept there, and used again where it is there already. `None` for a
    /// temporary directory that goes with it.
    pub directory: Option<PathBuf>,
    /// Whether commits reach the disk. Off, they are much faster and lost with the machine.
    pub fsync: bool,
    /// More lines of `postgresql.conf`; they win.
    pub settings: Vec<String>,
    /// Lines of `pg_hba.conf` before the ones that trust everybody on this machine.
    pub hba: Vec<String>,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// PostgreSQL is not installed.
    #[error(
        "PostgreSQL's initdb and postgres are not to be found ({looked}): install it (Debian and \
         Ubuntu: apt install postgresql; macOS: brew install postgresql@17; Fedora: dnf install \
         postgresql-server) or set PG_BIN to the directory they are in"
    )]
    Binaries {
        /// Where they were looked for.
        looked: String,
    },
    /// PostgreSQL does not run as root and there is no other user to run it as.
    #[error("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")]
    NoUser,
    /// The directory cannot be prepared.
    #[error("{path}: {source}")]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program ended in an error.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// The server runs, but a session with it failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("the new server refused a statement: {0}")]
    Statement(#[from] tokio_postgres::Error),
}

/// A running cluster with a superuser `postgres` who needs no password on this machine. Dropping
/// it ends the server at once, waiting for that for some tens of milliseconds.
#[derive(Debug)]
pub struct Throwaway {
    directory: PathBuf,
    temporary: bool,
    binaries: Binaries,
    owner: Option<(u32, u32)>,
    port: u16,
    keeper: Option<Child>,
}

impl Throwaway {
    /// Makes a cluster and starts its server.
    ///
    /// # Errors
    /// Where PostgreSQL is not installed, or does not start.
    pub async fn start(options: Options) -> Result<Self, ThrowawayError> {
        let made = tokio::task::spawn_blocking(move || Self::initialise(&options)).await;
        let mut cluster = made.map_err(|error| ThrowawayError::Failed {
            program: "initdb",
            output: error.to_string(),
        })??;
        cluster.start_server().await?;
        Ok(cluster)
    }

    fn initialise(options: &Options) -> Result<Self, ThrowawayError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let binaries = Binaries::find()?;
        let temporary = options.directory.is_none();
        let directory = options.directory.clone().unwrap_or_else(|| {
            std::env::temp_dir().join(format!(
                "rowcast-{}-{}-{:08x}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed),
                rand::random::<u32>()
            ))
        });
        let failed = |source| ThrowawayError::Directory {
            path: directory.clone(),
            source,
        };
        if temporary || !directory.exists() {
            fs::DirBuilder::new()
                .recursive(!temporary)
                .mode(0o700)
                .create(&directory)
                .map_err(failed)?;
        }
        let owner = other_user().map_err(failed)?;
        // From here on, dropping this removes what was made.
        let cluster = Self {
            directory: directory.canonicalize().map_err(failed)?,
            temporary,
            binaries,
            owner,
            port: 0,
            keeper: None,
        };
        if let Some((user, group)) = owner {
            chown(&cluster.directory, Some(user), Some(group)).map_err(failed)?;
        }
        if !cluster.data().join("PG_VERSION").exists() {
            cluster.initdb("C.UTF-8").or_else(|_| {
                // macOS before 13 has no such locale.
                let _partial = fs::remove_dir_all(cluster.data());
                cluster.initdb("C")
            })?;
            cluster.add_lines(
                "postgresql.conf",
                [
                    "listen_addresses = '127.0.0.1'",
                    "wal_level = logical",
                    "max_wal_senders = 20",
                    "max_replication_slots = 20",
                    "max_connections = 200",
                    "timezone = 'UTC'",
                    if options.fsync {
                        "fsync = on"
                    } else {
                        "fsync = off"
                    },
                ],
            )?;
        }
        cluster.add_lines(
            "postgresql.conf",
            options.settings.iter().map(String::as_str),
        )?;
        let hba = cluster.data().join("pg_hba.conf");
        let mut lines = options.hba.join("\n");
        lines.push_str("\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n");
        fs::write(&hba, lines).map_err(|source| ThrowawayError::Directory { path: hba, source })?;
        Ok(cluster)
    }

    fn initdb(&self, locale: &str) -> Result<(), ThrowawayError> {
        let output = self
            .command(&self.binaries.initdb())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--no-sync", "--no-instructions"])
            .arg(format!("--locale={locale}"))
            .arg("--pgdata")
            .arg(self.data())
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(ThrowawayError::Failed {
                program: "initdb",
                output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            }),
            Err(source) => Err(ThrowawayError::Directory {
                path: self.binaries.initdb(),
                source,
            }),
        }
    }

    /// A program that runs as the server's user, with none of the caller's PostgreSQL settings.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(&self.directory)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            // Ctrl-C is for this process; the server ends after it.
            .process_group(0);
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }

    fn add_lines<'a>(
        &self,
        file: &str,
        lines: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), ThrowawayError> {
        let path = self.data().join(file);
        let write = || {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            lines
                .into_iter()
                .try_for_each(|line| writeln!(file, "{line}"))
        };
        write().map_err(|source| ThrowawayError::Directory { path, source })
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// Where the cluster lives.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The port it listens on, at 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address of one of its databases (`postgres` is always there).
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// The same through the server's Unix domain socket.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "host='{}' port={} user=postgres dbname='{database}'",
            self.directory.display(),
            self.port
        )
    }

    /// Makes an empty database of its own and returns its address.
    ///
    /// # Errors
    /// Where the server is not running.
    pub async fn fresh_database(&self) -> Result<String, ThrowawayError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("fresh_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let database =
            Database::parse(&self.url("postgres")).map_err(|error| ThrowawayError::Failed {
                program: "postgres",
                output: error.to_string(),
            })?;
        database
            .connect("rowcast throwaway")
            .await?
            .batch_execute(&format!("create database {}", quote_identifier(&name)))
            .await?;
        Ok(self.url(&name))
    }

    /// Adds lines to `postgresql.conf`; they win over earlier ones, and count from the next start
    /// or reload on.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn configure(&self, lines: &[&str]) -> Result<(), ThrowawayError> {
        self.add_lines("postgresql.conf", lines.iter().copied())
    }

    /// Starts the server again, on the port it had before where it had one.
    ///
    /// # Errors
    /// Where it ends before it takes connections; the message holds the end of its log.
    pub async fn start_server(&mut self) -> Result<(), ThrowawayError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            if self.port == 0 {
                let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                    .and_then(|listener| listener.local_addr());
                self.port = free
                    .map_err(|source| ThrowawayError::Directory {
                        path: "127.0.0.1".into(),
                        source,
                    })?
                    .port();
            }
            match self.try_start().await {
                Err(ThrowawayError::Failed { output, .. })
                    if attempts < PORT_ATTEMPTS && output.contains("could not bind") =>
                {
                    self.port = 0;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_start(&mut self) -> Result<(), ThrowawayError> {
        let failed = |path: PathBuf| |source| ThrowawayError::Directory { path, source };
        let log = File::create(self.log()).map_err(failed(self.log()))?;
        let errors = log.try_clone().map_err(failed(self.log()))?;
        let status = self.data().join("postmaster.pid");
        // What a server that was killed has left says nothing about the next one.
        let _gone = fs::remove_file(&status);
        let mut keeper = self
            .command(Path::new("/bin/sh"))
            .args(["-c", KEEPER, "rowcast-keeper"])
            .arg(self.binaries.postgres())
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-k"])
            .arg(&self.directory)
            .env(
                "REMOVE",
                if self.temporary {
                    self.directory.as_os_str()
                } else {
                    "".as_ref()
                },
            )
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(failed("/bin/sh".into()))?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let ended = keeper.try_wait().map_err(failed("/bin/sh".into()))?;
            if ended.is_some() || Instant::now() > deadline {
                // Dropping the pipe has the shell end whatever still runs.
                drop(keeper.stdin.take());
                let _ended = keeper.wait();
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                return Err(ThrowawayError::Failed {
                    program: "postgres",
                    output: tail.into_iter().rev().collect::<Vec<_>>().join("; "),
                });
            }
            // The eighth line of this file is the server's state.
            let ready = fs::read_to_string(&status).is_ok_and(|status| {
                status
                    .lines()
                    .nth(7)
                    .is_some_and(|state| state.trim() == "ready")
            });
            if ready {
                self.keeper = Some(keeper);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the server in good order and keeps its data; nothing happens where it is not running.
    /// After 10 seconds it is ended without order.
    pub async fn stop_server(&mut self) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        if let Some(pipe) = &mut keeper.stdin {
            // SIGINT: sessions are ended and the write-ahead log is completed.
            let _closed = writeln!(pipe, "INT");
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut hurried = false;
        while !matches!(keeper.try_wait(), Ok(Some(_)) | Err(_)) {
            if Instant::now() > deadline && !hurried {
                hurried = true;
                if let Some(pipe) = &mut keeper.stdin {
                    let _closed = writeln!(pipe, "QUIT");
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the server as a crash would, keeping its data.
    pub async fn crash_server(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            if let Some(pipe) = &mut keeper.stdin {
                let _closed = writeln!(pipe, "QUIT");
            }
            while !matches!(keeper.try_wait(), Ok(Some(_)) | Err(_)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Stops the server and starts it again on the same port.
    ///
    /// # Errors
    /// As [`Throwaway::start_server`].
    pub async fn restart(&mut self) -> Result<(), ThrowawayError> {
        self.stop_server().await;
        self.start_server().await
    }

    /// Ends the server in good order, and removes the directory where it was temporary.
    pub async fn stop(mut self) {
        self.stop_server().await;
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ended = keeper.wait();
        }
        if self.temporary {
            let _gone = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Whom to run the server as where this is root; `None` where this is anybody else.
fn other_user() -> io::Result<Option<(u32, u32)>> {
    // The owner of a file just made is who we are; asking the system directly takes unsafe code.
    let probe = std::env::temp_dir().join(format!(
        "rowcast-probe-{}-{:08x}",
        std::process::id(),
        rand::random::<u32>()
    ));
    let owner = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)?
        .metadata()?
        .uid();
    fs::remove_file(&probe)?;
    if owner != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let user = fields.nth(1)?.parse().ok()?;
            Some((user, fields.next()?.parse().ok()?))
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .ok_or_else(|| io::Error::other(ThrowawayError::NoUser))
}
