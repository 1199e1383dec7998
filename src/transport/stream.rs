//! A client's TCP stream that can tell whether writes get on, and that ends politely.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How long, and for how many bytes, what a client still sends is read after the server closed.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 * 1024 * 1024;

/// A client's TCP stream: of an HTTP connection at first, and of a WebSocket once that took it over.
pub(super) struct ClientStream {
    /// Taken only by the destructor.
    stream: Option<TcpStream>,
    /// Bytes that the kernel has taken from the WebSocket.
    written: AtomicU64,
    linger: AtomicBool,
}

impl ClientStream {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self {
            stream: Some(stream),
            written: AtomicU64::new(0),
            linger: AtomicBool::new(false),
        }
    }

    /// Bytes that the kernel has taken from [`ClientStream::try_write`].
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Has the stream read on for a while after its end. To close a socket with unread bytes makes
    /// the kernel reset it, and the close frame is lost on its way to the client.
    pub(super) fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }

    /// Writes what the kernel takes at once.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let stream = self.stream()?;
        // `sendmsg`: `writev` asks as of a file first, which is a tenth of what such a write costs.
        let send = || SockRef::from(stream).send_vectored(slices);
        let written = stream.try_io(Interest::WRITABLE, send)?;
        let bytes = u64::try_from(written).unwrap_or(u64::MAX);
        self.written.fetch_add(bytes, Ordering::Relaxed);
        Ok(written)
    }

    /// Reads what is there.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream()?.try_read(buffer)
    }

    /// Waits until [`ClientStream::try_write`] is worth a try. Cancel safe.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.stream()?.writable().await
    }

    /// Waits until [`ClientStream::try_read`] is worth a try. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.stream()?.readable().await
    }

    fn stream(&self) -> io::Result<&TcpStream> {
        self.stream
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn pinned(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let stream = self.stream.as_mut();
        stream
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pinned()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pinned()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pinned()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned()?.poll_shutdown(cx)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if !self.linger.load(Ordering::Relaxed) {
            return;
        }
        if let (Some(mut stream), Ok(runtime)) =
            (self.stream.take(), tokio::runtime::Handle::try_current())
        {
            // Ends by itself within the time of lingering.
            runtime.spawn(tokio::time::timeout(LINGER, async move {
                stream.shutdown().await?;
                let mut rest = stream.take(LINGER_BYTES);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
            }));
        }
    }
}
