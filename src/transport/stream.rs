//! A client's TCP stream that can tell whether writes get on, and that ends politely.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// How long, and for how many bytes, what a client still sends is read after the server closed.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 * 1024 * 1024;

/// What a connection knows of its stream.
#[derive(Debug, Default)]
pub(super) struct Progress {
    written: AtomicU64,
    linger: AtomicBool,
}

impl Progress {
    /// Bytes that the kernel has taken.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Has the stream read on for a while after its end. To close a socket with unread bytes makes
    /// the kernel reset it, and the close frame is lost on its way to the client.
    pub(super) fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }
}

/// A client's TCP stream.
pub(super) struct ClientStream {
    /// Taken only by the destructor.
    stream: Option<TcpStream>,
    progress: Arc<Progress>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream: Some(stream),
            progress: Arc::default(),
        }
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let stream = self.stream.as_mut();
        stream
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            let bytes = u64::try_from(*bytes).unwrap_or(u64::MAX);
            self.progress.written.fetch_add(bytes, Ordering::Relaxed);
        }
        written
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(cx, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write_vectored(cx, slices);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if !self.progress.linger.load(Ordering::Relaxed) {
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
