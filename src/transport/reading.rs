//! The read half of a client's socket: the WebSocket library, for as long as it has something to
//! remember.

use std::io::{self, ErrorKind, Read, Write};

use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::line::Line;
use super::stream::ClientStream;

/// The library's own takes 128 KiB a socket.
const BUFFER: usize = 1024;

/// Reads a client's frames. Between two of them nothing is kept: idle sockets are many.
pub(super) struct Reading {
    library: Option<Box<WebSocketContext>>,
    config: WebSocketConfig,
    /// Bytes that the library has, less those of the messages that it gave back, each counted as
    /// one frame with the shortest header: none are left where this is 0.
    held: usize,
}

impl Reading {
    /// Frames of up to `most` bytes; `early` is what came before it was known who reads it.
    pub(super) fn new(most: usize, early: &[u8]) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_frame_size(Some(most))
            .max_message_size(Some(most));
        // Copied: what it was read into is much larger.
        let library = (!early.is_empty()).then(|| {
            let early = early.to_vec();
            WebSocketContext::from_partially_read(early, Role::Server, Some(config)).into()
        });
        Self {
            library,
            config,
            held: early.len(),
        }
    }

    /// The client's next message. Cancel safe.
    pub(super) async fn receive(&mut self, line: &Line) -> Result<Message, Error> {
        // A client that never pauses must not occupy the thread.
        tokio::task::coop::consume_budget().await;
        loop {
            if self.library.is_none() {
                line.stream.readable().await?;
            }
            let mut read = 0;
            let message = self.say(line, |library, ends| {
                let message = library.read(ends);
                read = ends.read;
                message
            });
            self.held += read;
            match message {
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.forget();
                    line.stream.readable().await?;
                }
                Ok(message) => {
                    self.held = self.held.saturating_sub(length(&message));
                    return Ok(message);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Has the library say something, behind the frames that wait.
    pub(super) fn say<T>(
        &mut self,
        line: &Line,
        say: impl FnOnce(&mut WebSocketContext, &mut Ends<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut ends = Ends {
            stream: &line.stream,
            read: 0,
            said: Vec::new(),
        };
        let config = self.config;
        let library = self
            .library
            .get_or_insert_with(|| WebSocketContext::new(Role::Server, Some(config)).into());
        let result = say(library, &mut ends);
        if !ends.said.is_empty() {
            line.lock().wait(Some(ends.said.into()));
        }
        result
    }

    /// Lets go of the library where it is between two frames.
    fn forget(&mut self) {
        let library = self.library.as_ref();
        if self.held == 0 && library.is_some_and(|library| library.can_write()) {
            self.library = None;
        }
    }
}

/// The bytes of the shortest frame that a client can send a message in.
fn length(message: &Message) -> usize {
    let payload = match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        // Nothing is forgotten any more.
        Message::Close(_) | Message::Frame(_) => return 0,
    };
    let header = match payload {
        0..126 => 2,
        126..65_536 => 4,
        _ => 10,
    };
    header + 4 + payload
}

/// The socket for the library: it reads from the kernel, and what it says by itself is kept to be
/// written between our frames.
pub(super) struct Ends<'a> {
    stream: &'a ClientStream,
    read: usize,
    said: Vec<u8>,
}

impl Read for Ends<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.try_read(buffer)?;
        self.read += read;
        Ok(read)
    }
}

impl Write for Ends<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.said.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
