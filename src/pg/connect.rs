//! Reaching PostgreSQL: one address, one TLS setting and one way to dial for ordinary and for
//! replication sessions.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::seq::SliceRandom;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::{Client, Config};
use tokio_rustls::TlsConnector;

pub(crate) use super::address::Endpoint;
pub use super::address::InvalidDatabaseUrl;
use super::address::{Address, Encryption};
use super::refusal::{Refusal, Retry, with_causes};
use super::stream::Settled;
pub(crate) use super::stream::Stream;
use super::tls::{certificate_problem, client_config};

/// How long reaching one host may take where the address does not say (`connect_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After how much silence TCP asks whether the other side is still there; it does so three times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long what was sent may go unconfirmed by the other side's kernel; TCP's own answer is a
/// quarter of an hour, and keepalives do not run meanwhile.
const UNCONFIRMED: Duration = Duration::from_secs(60);

/// libpq's default, which the address cannot be told apart from; two hours notice nothing.
const KEEPALIVE_UNSET: Duration = Duration::from_secs(2 * 60 * 60);

/// What every session asks for, so that a value's text, and what is done where policies leave out rows,
/// does not depend on the server's, the database's or the role's own settings.
const SESSION_OPTIONS: &str = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres \
                               -c extra_float_digits=1 -c bytea_output=hex -c row_security=on";

/// A database that can be connected to. Cheap to clone; shows no password.
#[derive(Clone)]
pub struct Database {
    address: Arc<Address>,
    tls: Arc<ClientConfig>,
    settings: Arc<AtomicU64>,
}

/// What `ALTER DATABASE … SET` and `ALTER ROLE … SET` say, as far as it is known: a session goes on with what
/// they said when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings(u64);

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("endpoints", &self.address.endpoints)
            .field("dbname", &self.address.config.get_dbname())
            .finish_non_exhaustive()
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// PostgreSQL answered, with no.
    #[error("{0}")]
    Refused(Refusal),
    /// The server's certificate is not trusted.
    #[error(
        "the certificate of {host} is not trusted ({problem}): correct sslrootcert, sslmode or the \
         host in DATABASE_URL, or the server's certificate"
    )]
    Certificate {
        /// The host.
        host: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The address demands TLS and the server has none.
    #[error(
        "{host} offers no TLS, which sslmode in DATABASE_URL demands: run \"alter system set ssl = \
         on\" with a certificate in place and reload PostgreSQL, or write sslmode=prefer"
    )]
    NoTls {
        /// The host.
        host: String,
    },
    /// The session cannot be proven to be with the server itself.
    #[error("{host} did not bind its proof of the password to the TLS connection")]
    NoChannelBinding {
        /// The host.
        host: String,
    },
    /// The server asks for a proof that is not spoken here.
    #[error(
        "{host} asks for an authentication other than trust, password, md5 or scram-sha-256: \
         change its pg_hba.conf for this user"
    )]
    Authentication {
        /// The host.
        host: String,
    },
    /// `target_session_attrs` asks for another kind of server.
    #[error("{host} is not of the kind that target_session_attrs in DATABASE_URL asks for")]
    WrongServer {
        /// The host.
        host: String,
    },
    /// There is no connection, or it broke.
    #[error("{host} cannot be reached: {problem}")]
    Unreachable {
        /// The host.
        host: String,
        /// What the operating system or the protocol said.
        problem: String,
    },
}

impl ConnectError {
    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused(refusal) => refusal.retry(),
            Self::Certificate { .. }
            | Self::NoTls { .. }
            | Self::NoChannelBinding { .. }
            | Self::Authentication { .. } => Retry::Never,
            Self::WrongServer { .. } | Self::Unreachable { .. } => Retry::Soon,
        }
    }
}

impl Database {
    /// Reads a `DATABASE_URL`, as a URL or in libpq's `key=value` form, and the certificates that
    /// it names.
    ///
    /// `sslmode` and `sslrootcert` mean what they mean to libpq, with two differences: without
    /// `sslrootcert` the modes that verify trust the operating system's store, and `prefer` goes
    /// without encryption only where the server offers none.
    ///
    /// # Errors
    /// One sentence that names `DATABASE_URL` and what would be right; it never shows a password.
    pub fn parse(url: &str) -> Result<Self, InvalidDatabaseUrl> {
        let address = Address::parse(url)?;
        let tls = client_config(address.check, &address.roots)
            .map_err(|error| InvalidDatabaseUrl::Roots(error.to_string()))?;
        Ok(Self {
            address: Arc::new(address),
            tls,
            settings: Arc::default(),
        })
    }

    /// What sessions that begin now begin with, or with what came after it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings(self.settings.load(Ordering::Acquire))
    }

    /// Whether a session that began with `settings` goes on with what one that begins now would have.
    #[must_use]
    pub fn is_set_as(&self, settings: Settings) -> bool {
        self.settings() == settings
    }

    /// Takes note of what they are, as a hash of it; for all clones of this.
    pub fn note_settings(&self, hash: u64) {
        self.settings.store(hash, Ordering::Release);
    }

    /// Opens an ordinary session on the first host that can be reached. A task of its own moves
    /// the bytes until the client is dropped.
    ///
    /// The session's output is in UTF-8, UTC, ISO dates, `postgres` intervals, hexadecimal
    /// `bytea` and shortest exact floats.
    ///
    /// # Errors
    /// The last host's, unless another host's can heal and the last one's cannot.
    pub async fn connect(&self, application_name: &str) -> Result<Client, ConnectError> {
        Ok(self.connect_somewhere(application_name).await?.0)
    }

    /// Like [`Database::connect`], and says where: a replication session must be with the same
    /// server.
    pub(crate) async fn connect_somewhere(
        &self,
        application_name: &str,
    ) -> Result<(Client, Endpoint), ConnectError> {
        let mut endpoints: Vec<_> = self.address.endpoints.iter().collect();
        if self.address.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            endpoints.shuffle(&mut rand::rng());
        }
        let mut failed: Option<ConnectError> = None;
        for endpoint in endpoints {
            let attempt = timeout(
                self.connect_timeout(),
                self.connect_at(endpoint, application_name),
            );
            let error = match attempt.await {
                Ok(Ok(client)) => return Ok((client, endpoint.clone())),
                Ok(Err(error)) => error,
                Err(_elapsed) => endpoint.unreachable("no answer in time"),
            };
            if failed
                .as_ref()
                .is_none_or(|earlier| earlier.retry() == Retry::Never)
            {
                failed = Some(error);
            }
        }
        Err(failed.unwrap_or_else(|| ConnectError::Unreachable {
            host: "PostgreSQL".to_owned(),
            problem: "DATABASE_URL names no host".to_owned(),
        }))
    }

    async fn connect_at(
        &self,
        endpoint: &Endpoint,
        application_name: &str,
    ) -> Result<Client, ConnectError> {
        let stream = self.dial(endpoint).await?;
        let mut config = self.address.config.clone();
        config
            .application_name(application_name)
            .options(self.session_options())
            // The stream is settled; this has tokio-postgres take it as it is.
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        let (client, connection) = config
            .connect_raw(stream, Settled)
            .await
            .map_err(|error| endpoint.failed(&error))?;
        let host = endpoint.to_string();
        tokio::spawn(async move {
            // Whoever uses the client sees the failure there.
            if let Err(error) = connection.await {
                tracing::debug!(%host, %error, "a session with PostgreSQL ended");
            }
        });
        let wanted = match self.address.config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => "off",
            TargetSessionAttrs::ReadOnly => "on",
            _ => return Ok(client),
        };
        let read_only = client
            .query_one("select current_setting('transaction_read_only')", &[])
            .await
            .and_then(|row| row.try_get::<_, String>(0))
            .map_err(|error| endpoint.failed(&error))?;
        if read_only == wanted {
            Ok(client)
        } else {
            Err(ConnectError::WrongServer {
                host: endpoint.to_string(),
            })
        }
    }

    /// Opens a connection and settles its encryption; PostgreSQL's own start-up comes next.
    pub(crate) async fn dial(&self, endpoint: &Endpoint) -> Result<Stream, ConnectError> {
        let name = match &endpoint.host {
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", endpoint.port));
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|error| endpoint.unreachable(error))?;
                return Ok(Stream::Unix(stream));
            }
            Host::Tcp(name) => name,
        };
        let mut stream = match endpoint.address {
            Some(address) => TcpStream::connect((address, endpoint.port)).await,
            None => TcpStream::connect((name.as_str(), endpoint.port)).await,
        }
        .and_then(|stream| self.tune(stream))
        .map_err(|error| endpoint.unreachable(error))?;
        let offered = match (self.address.encryption, self.negotiation()) {
            (Encryption::Never, _) => return Ok(Stream::Tcp(stream)),
            (_, SslNegotiation::Direct) => true,
            _ => offers_tls(&mut stream)
                .await
                .map_err(|error| endpoint.unreachable(error))?,
        };
        if !offered {
            return match self.address.encryption {
                Encryption::Always => Err(ConnectError::NoTls {
                    host: endpoint.to_string(),
                }),
                Encryption::Never | Encryption::IfOffered => Ok(Stream::Tcp(stream)),
            };
        }
        let server_name = ServerName::try_from(name.clone())
            .map_err(|_| endpoint.unreachable("its name cannot be a TLS server's"))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(server_name, stream)
            .await
            .map_err(|error| match certificate_problem(&error) {
                Some(problem) => ConnectError::Certificate {
                    host: endpoint.to_string(),
                    problem,
                },
                None => endpoint.unreachable(error),
            })?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    fn tune(&self, stream: TcpStream) -> io::Result<TcpStream> {
        let config = &self.address.config;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        if config.get_keepalives() {
            let idle = match config.get_keepalives_idle() {
                KEEPALIVE_UNSET => KEEPALIVE_IDLE,
                asked => asked,
            };
            let keepalive = TcpKeepalive::new()
                .with_time(idle)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(3);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(
            config
                .get_tcp_user_timeout()
                .copied()
                .unwrap_or(UNCONFIRMED),
        ))?;
        Ok(stream)
    }

    /// What a replication session needs of the address besides a stream.
    pub(crate) fn config(&self) -> &Config {
        &self.address.config
    }

    /// How long reaching one host may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.address
            .config
            .get_connect_timeout()
            .copied()
            // libpq takes 0 for "no limit".
            .map_or(CONNECT_TIMEOUT, |asked| {
                if asked.is_zero() {
                    Duration::MAX
                } else {
                    asked
                }
            })
    }

    /// The `options` of every session. Ours come last: they win.
    pub(crate) fn session_options(&self) -> String {
        match self.address.config.get_options() {
            Some(options) => format!("{options} {SESSION_OPTIONS}"),
            None => SESSION_OPTIONS.to_owned(),
        }
    }

    fn negotiation(&self) -> SslNegotiation {
        self.address.config.get_ssl_negotiation()
    }
}

/// Whether a session is with PostgreSQL itself. A pooler that drops the options of the start-up
/// would hand a session's settings to whoever is served next on the same connection.
pub(crate) async fn is_direct(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let direct = "select source = 'client' from pg_catalog.pg_settings where name = 'bytea_output'";
    client.query_one(direct, &[]).await?.try_get(0)
}

impl Endpoint {
    pub(crate) fn unreachable(&self, problem: impl fmt::Display) -> ConnectError {
        ConnectError::Unreachable {
            host: self.to_string(),
            problem: problem.to_string(),
        }
    }

    fn failed(&self, error: &tokio_postgres::Error) -> ConnectError {
        if let Some(refusal) = error.as_db_error() {
            return ConnectError::Refused(refusal.into());
        }
        let text = with_causes(error);
        let host = self.to_string();
        if text.contains("server did not use channel binding") {
            ConnectError::NoChannelBinding { host }
        } else if text.contains("unsupported") {
            ConnectError::Authentication { host }
        } else {
            self.unreachable(text)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) => write!(f, "{name}:{}", self.port),
            Host::Unix(directory) => write!(f, "{}:{}", directory.display(), self.port),
        }
    }
}

/// Asks the server for TLS. Exactly one byte is read: what follows must come encrypted.
async fn offers_tls(stream: &mut TcpStream) -> io::Result<bool> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it does not speak PostgreSQL's protocol",
        )),
    }
}
