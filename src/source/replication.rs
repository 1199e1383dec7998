//! A session in PostgreSQL's replication mode: start-up, authentication, and the copy stream in
//! both directions ("Streaming Replication Protocol").

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_postgres::config;

use super::decode::POSTGRESQL_EPOCH;
use super::reader::{Malformed, Reader};
use crate::pg::Lsn;
use crate::pg::connect::{ConnectError, Database, Endpoint, Stream};
use crate::pg::refusal::Refusal;

mod authentication;

/// How much is read at once. Larger messages grow the buffer for as long as they need it.
const READ_BYTES: usize = 128 << 10;

/// The largest message taken: PostgreSQL cannot build one of more than 1 GiB.
const MESSAGE_BYTES: usize = (1 << 30) + (1 << 10);

/// Asked of the server, so that a dead connection is noticed and the slot freed within seconds.
const SENDER_TIMEOUT: &str = "-c wal_sender_timeout=10s";

/// Whatever the role is set to: a warning can tell of changes that are left out.
const WARNINGS: &str = "-c client_min_messages=warning";

/// Why the session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("an authentication is asked for that is not spoken here")]
    Authentication,
    #[error("the proof of the password is not bound to the TLS connection")]
    NoChannelBinding,
    /// From PostgreSQL 18 on a warning; the server goes on without the publication's changes.
    #[error("{0}")]
    ChangesLeftOut(Refusal),
}

/// What the copy stream brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// One message of the output plugin.
    Data(&'a [u8]),
    /// The server is there.
    Keepalive {
        /// Up to here everything has been sent.
        end: Lsn,
        /// Whether the server wants a status update at once.
        reply: bool,
    },
    /// The server has ended the stream (it is shutting down).
    Done,
}

/// A session in replication mode.
#[derive(Debug)]
pub(super) struct Walsender {
    stream: Stream,
    received: BytesMut,
    /// How much at the front of `received` the last frame took.
    consumed: usize,
    outgoing: BytesMut,
}

impl Walsender {
    /// Opens a session with the server at `endpoint`.
    /// `encoding` is that of the texts in the stream.
    pub(super) async fn open(
        database: &Database,
        endpoint: &Endpoint,
        application_name: &str,
        encoding: &str,
    ) -> Result<Self, ConnectError> {
        let attempt = async {
            let options = format!("{} {WARNINGS}", database.session_options());
            // Who says so in the address knows better.
            let with_timeout = if options.contains("wal_sender_timeout") {
                options.clone()
            } else {
                format!("{options} {SENDER_TIMEOUT}")
            };
            match Self::start(
                database,
                endpoint,
                (application_name, encoding),
                &with_timeout,
            )
            .await
            {
                // A server that lets nobody set its timeout (class 22: the value, 42: the right,
                // 55: the moment) is followed at its own pace.
                Err(ConnectError::Refused(refusal))
                    if ["22", "42", "55"]
                        .iter()
                        .any(|class| refusal.sqlstate.starts_with(class)) =>
                {
                    Self::start(database, endpoint, (application_name, encoding), &options).await
                }
                outcome => outcome,
            }
        };
        timeout(database.connect_timeout(), attempt)
            .await
            .unwrap_or_else(|_elapsed| Err(endpoint.unreachable("no answer in time")))
    }

    async fn start(
        database: &Database,
        endpoint: &Endpoint,
        named: (&str, &str),
        options: &str,
    ) -> Result<Self, ConnectError> {
        let mut session = Self {
            stream: database.dial(endpoint).await?,
            received: BytesMut::new(),
            consumed: 0,
            outgoing: BytesMut::new(),
        };
        session
            .start_up(database.config(), named, options)
            .await
            .map_err(|error| match error {
                SessionError::Refused(refusal) | SessionError::ChangesLeftOut(refusal) => {
                    ConnectError::Refused(refusal)
                }
                SessionError::Authentication => ConnectError::Authentication {
                    host: endpoint.to_string(),
                },
                SessionError::NoChannelBinding => ConnectError::NoChannelBinding {
                    host: endpoint.to_string(),
                },
                SessionError::Io(error) => endpoint.unreachable(error),
                SessionError::Malformed(error) => endpoint.unreachable(error),
            })?;
        Ok(session)
    }

    async fn start_up(
        &mut self,
        config: &config::Config,
        (application_name, encoding): (&str, &str),
        options: &str,
    ) -> Result<(), SessionError> {
        let user = config.get_user().unwrap_or_default();
        let mut parameters = vec![
            ("user", user),
            ("replication", "database"),
            ("client_encoding", encoding),
            ("application_name", application_name),
            ("options", options),
        ];
        if let Some(database) = config.get_dbname() {
            parameters.push(("database", database));
        } else {
            parameters.push(("database", user));
        }
        frontend::startup_message(parameters, &mut self.outgoing)?;
        self.flush().await?;
        self.authenticate(config, user).await?;
        // Parameters and the cancellation key, until the server is ready.
        while self.message().await?.0 != b'Z' {}
        Ok(())
    }

    /// Runs a command of the replication mode; returns the fields of its last row. Where the server
    /// refuses it, the session can go on.
    pub(super) async fn query(
        &mut self,
        command: &str,
    ) -> Result<Vec<Option<String>>, SessionError> {
        frontend::query(command, &mut self.outgoing)?;
        self.flush().await?;
        let mut fields = Vec::new();
        loop {
            let (tag, body) = match self.message().await {
                Ok(message) => message,
                Err(refused @ SessionError::Refused(_)) => {
                    // Where there is no more to come, the refusal says why.
                    while self.message().await.is_ok_and(|(tag, _)| tag != b'Z') {}
                    return Err(refused);
                }
                Err(error) => return Err(error),
            };
            match tag {
                b'D' => {
                    let mut from = Reader(&body);
                    fields.clear();
                    for _ in 0..from.u16()? {
                        let length = from.i32()?;
                        fields.push(match usize::try_from(length) {
                            Ok(length) => {
                                Some(String::from_utf8_lossy(from.bytes(length)?).into_owned())
                            }
                            Err(_negative) => None,
                        });
                    }
                }
                b'Z' => return Ok(fields),
                _ => {}
            }
        }
    }

    /// Has the server stream the slot from where it was last acknowledged.
    pub(super) async fn start_replication(&mut self, command: &str) -> Result<(), SessionError> {
        frontend::query(command, &mut self.outgoing)?;
        self.flush().await?;
        while self.message().await?.0 != b'W' {}
        Ok(())
    }

    /// The next message but for notices; an error of the server is an error here.
    async fn message(&mut self) -> Result<(u8, BytesMut), SessionError> {
        loop {
            while let Some((tag, length)) = self.header()? {
                let mut body = self.received.split_to(length);
                body.advance(5);
                match tag {
                    b'E' => return Err(SessionError::Refused(refusal(&body))),
                    b'N' | b'S' => {}
                    _ => return Ok((tag, body)),
                }
            }
            self.read().await?;
        }
    }

    /// The tag and the whole length of the message at the front, once it is there as a whole.
    fn header(&mut self) -> Result<Option<(u8, usize)>, Malformed> {
        self.received.advance(std::mem::take(&mut self.consumed));
        let mut from = Reader(&self.received);
        let (Ok(tag), Ok(length)) = (from.u8(), from.u32()) else {
            return Ok(None);
        };
        let length = length as usize;
        if !(4..=MESSAGE_BYTES).contains(&length) {
            return Err(Malformed);
        }
        Ok((self.received.len() > length).then_some((tag, length + 1)))
    }

    /// Reads what is there; returns how many bytes. Cancel safe: what was read is kept.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        self.stream.wake()?;
        if self.received.is_empty() && self.received.capacity() > 4 * READ_BYTES {
            // One large row must not hold its memory for ever.
            self.received = BytesMut::new();
        }
        self.received.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes),
        }
    }

    /// Nothing is to be read for a while: what comes wakes nobody until the next read.
    pub(super) fn doze(&mut self) -> io::Result<()> {
        self.stream.doze()
    }

    /// The next frame of the copy stream that has been read as a whole. It stays valid until the
    /// next call.
    pub(super) fn frame(&mut self) -> Result<Option<Frame<'_>>, SessionError> {
        loop {
            let Some((tag, length)) = self.header()? else {
                return Ok(None);
            };
            self.consumed = length;
            let body = || self.received.get(5..length).unwrap_or_default();
            match tag {
                b'd' => break,
                b'c' | b'C' => return Ok(Some(Frame::Done)),
                b'E' => return Err(SessionError::Refused(refusal(body()))),
                b'N' => {
                    // Object not in prerequisite state: the publication was not there when the
                    // next change was made. Before PostgreSQL 18 that is an error.
                    let notice = refusal(body());
                    if notice.sqlstate == "55000" {
                        return Err(SessionError::ChangesLeftOut(notice));
                    }
                }
                // Changed parameters.
                b'S' => {}
                _ => return Err(Malformed.into()),
            }
        }
        let mut from = Reader(self.received.get(5..self.consumed).unwrap_or_default());
        match from.u8()? {
            b'w' => {
                // Where it starts, the server's end of WAL, the server's clock.
                from.bytes(24)?;
                Ok(Some(Frame::Data(from.0)))
            }
            b'k' => {
                let end = Lsn(from.u64()?);
                let _clock = from.u64()?;
                let reply = from.u8()? != 0;
                Ok(Some(Frame::Keepalive { end, reply }))
            }
            _ => Err(Malformed.into()),
        }
    }

    /// Tells the server that everything up to `acknowledged` is safe here.
    ///
    /// The position is given for written, flushed and applied alike: the server sends keepalives
    /// about quiet tables only to a receiver that is behind in what it has written.
    /// `ask` has it answer with a keepalive.
    pub(super) async fn send_status(&mut self, acknowledged: Lsn, ask: bool) -> io::Result<()> {
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let clock = i64::try_from(clock.as_micros()).unwrap_or(i64::MAX) - POSTGRESQL_EPOCH;
        let position = acknowledged.0;
        let mut status = Vec::with_capacity(34);
        status.push(b'r');
        for field in [position, position, position, clock.cast_unsigned()] {
            status.extend_from_slice(&field.to_be_bytes());
        }
        status.push(u8::from(ask));
        frontend::CopyData::new(&status[..])?.write(&mut self.outgoing);
        self.flush().await
    }

    /// Ends the copy stream and the session, so that the slot is free for the next one.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        frontend::copy_done(&mut self.outgoing);
        frontend::terminate(&mut self.outgoing);
        self.flush().await?;
        self.stream.shutdown().await
    }

    /// Waits until the server has closed its side; what it still sends is dropped.
    pub(super) async fn drain(&mut self, patience: Duration) {
        let drained = async {
            loop {
                self.received.clear();
                self.consumed = 0;
                if self.read().await.is_err() {
                    break;
                }
            }
        };
        // Whoever takes the slot next waits for the server instead.
        let _in_time = timeout(patience, drained).await;
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.wake()?;
        self.stream.write_all_buf(&mut self.outgoing).await?;
        self.stream.flush().await
    }
}

/// Reads an ErrorResponse. Detail and context stay out: they can quote row values.
fn refusal(body: &[u8]) -> Refusal {
    let mut refusal = Refusal {
        sqlstate: String::new(),
        message: String::new(),
    };
    let mut from = Reader(body);
    while let Ok(kind @ 1..) = from.u8() {
        let Ok(text) = from.terminated() else { break };
        match kind {
            b'C' => refusal.sqlstate = String::from_utf8_lossy(text).into_owned(),
            b'M' => refusal.message = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    refusal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refusal_keeps_code_and_message_and_nothing_that_quotes_rows() {
        let refusal = refusal(b"SFATAL\0C57P03\0Mstarting up\0DKey (id)=(secret)\0\0");
        assert_eq!(refusal.sqlstate, "57P03");
        assert!(!refusal.to_string().contains("secret"));
    }

    /// A session that will be given its bytes by hand.
    async fn session(received: &[u8]) -> Walsender {
        let (near, _far) = tokio::net::UnixStream::pair().unwrap();
        Walsender {
            stream: Stream::Unix(near),
            received: BytesMut::from(received),
            consumed: 0,
            outgoing: BytesMut::new(),
        }
    }

    #[tokio::test]
    async fn frames_are_taken_one_after_the_other_and_never_in_part() {
        let data = [&b"d\0\0\0\x1Fw"[..], &[0; 24], b"ab"].concat();
        let keepalive = [&b"d\0\0\0\x16k"[..], &7_u64.to_be_bytes(), &[0; 8], &[1]].concat();
        let bytes = [data, keepalive, b"c\0\0\0\x04".to_vec()].concat();
        let mut whole = session(&bytes).await;
        assert_eq!(whole.frame().unwrap(), Some(Frame::Data(b"ab")));
        assert_eq!(
            whole.frame().unwrap(),
            Some(Frame::Keepalive {
                end: Lsn(7),
                reply: true
            })
        );
        assert_eq!(whole.frame().unwrap(), Some(Frame::Done));
        assert_eq!(whole.frame().unwrap(), None);
        let mut partial = session(bytes.get(..31).unwrap()).await;
        assert_eq!(partial.frame().unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_from_the_server_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
            tag in proptest::sample::select(b"dcCENSZ".to_vec()),
        ) {
            let length = u32::try_from(bytes.len()).unwrap() + 4;
            let message = [&[tag][..], &length.to_be_bytes(), &bytes].concat();
            refusal(&bytes);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let mut session = session(&message).await;
                while let Ok(Some(_)) = session.frame() {}
            });
        }
    }
}
