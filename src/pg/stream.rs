//! The byte stream under a PostgreSQL session, whichever way it was reached.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::tls::end_point_digest;

/// An open connection, encrypted or not, before PostgreSQL's own start-up.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP without encryption.
    Tcp(TcpStream),
    /// A Unix domain socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// One that the runtime does not look at.
    Dozing(Dozing),
}

/// A socket that was taken away from the runtime.
#[derive(Debug)]
pub(crate) enum Dozing {
    /// Was [`Stream::Tcp`].
    Tcp(std::net::TcpStream),
    /// Was [`Stream::Unix`].
    Unix(std::os::unix::net::UnixStream),
    /// The system has refused to go on with it.
    Lost,
}

impl Stream {
    /// The `tls-server-end-point` value that SCRAM binds to; `None` without TLS and for
    /// certificates whose signature names no digest.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Dozing(_) => None,
            Self::Tls(stream) => {
                let certificate = stream.get_ref().1.peer_certificates()?.first()?;
                end_point_digest(certificate)
            }
        }
    }

    /// Has the runtime not look at the socket until [`Stream::wake`]: it wakes a thread for
    /// whatever comes, also where nobody wants to read it yet. One that is encrypted stays awake.
    ///
    /// # Errors
    /// Of the system; then the socket is lost.
    pub(crate) fn doze(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Dozing(Dozing::Lost)) {
            Self::Tcp(stream) => Self::Dozing(Dozing::Tcp(stream.into_std()?)),
            Self::Unix(stream) => Self::Dozing(Dozing::Unix(stream.into_std()?)),
            other @ (Self::Tls(_) | Self::Dozing(_)) => other,
        };
        Ok(())
    }

    /// Has the runtime look at it again, which it needs for reading and writing.
    ///
    /// # Errors
    /// Of the system; then the socket is lost.
    pub(crate) fn wake(&mut self) -> io::Result<()> {
        if let Self::Dozing(dozing) = self {
            *self = match std::mem::replace(dozing, Dozing::Lost) {
                Dozing::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream)?),
                Dozing::Unix(stream) => Self::Unix(UnixStream::from_std(stream)?),
                Dozing::Lost => return Err(asleep()),
            };
        }
        Ok(())
    }
}

fn asleep() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Dozing(_) => Poll::Ready(Err(asleep())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Dozing(_) => Poll::Ready(Err(asleep())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Dozing(_) => Poll::Ready(Err(asleep())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Dozing(_) => Poll::Ready(Err(asleep())),
        }
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point()
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Hands tokio-postgres a stream whose encryption is settled already, so that ordinary and
/// replication sessions are dialled by the same code.
pub(super) struct Settled;

impl TlsConnect<Stream> for Settled {
    type Stream = Stream;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_comes_while_a_socket_dozes_is_there_when_it_is_woken() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = Stream::Unix(near);
        let mut byte = [0; 1];
        for sent in 1..=3 {
            near.doze().unwrap();
            far.write_all(&[sent]).await.unwrap();
            let asleep = near.read(&mut byte).await.unwrap_err();
            assert_eq!(asleep.kind(), io::ErrorKind::NotConnected);
            near.wake().unwrap();
            near.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, [sent]);
        }
    }
}
