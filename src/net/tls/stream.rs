//! The two directions of an open TLS stream.
//!
//! What a write says was written is in the kernel, as on a plain socket. The library underneath would keep a rest to
//! itself until the next write or flush; a reply would then stay there until the peer asked again, for ever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, Join, ReadBuf, ReadHalf, WriteHalf, join, split};

use super::mistake::{Failed, Side, explain};
use crate::net::{Outlet, Sink, Source};

/// What TLS runs over.
pub(super) type Joined = Join<BufReader<Source>, Sink>;

/// Bytes read from the kernel at once: the library itself asks for 4 KiB at a time.
const READ: usize = 32 * 1024;
/// Most bytes taken for one write. Each needs as much memory, for as long as the stream lives.
const WRITE: usize = 64 * 1024;

/// One stream of two directions.
pub(super) fn joined(source: Source, sink: Sink) -> Joined {
    join(BufReader::with_capacity(READ, source), sink)
}

/// Two directions of one stream.
pub(super) fn halves<S>(stream: S, side: Side) -> (Source, Sink)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (source, sink) = split(stream);
    (Box::new(TlsSource { inner: source, side }), Box::new(TlsSink { inner: sink, side, taken: Vec::new(), fed: 0 }))
}

/// What TLS has to say of an error; one of the network underneath stays what it is.
fn in_words(error: io::Error, side: Side) -> io::Error {
    if error.get_ref().is_none() {
        return error;
    }
    let failed: Failed = explain(&error, side);
    io::Error::new(failed.kind(), failed)
}

struct TlsSource<S> {
    inner: ReadHalf<S>,
    side: Side,
}

impl<S: AsyncRead + Unpin> AsyncRead for TlsSource<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.inner).poll_read(cx, buf)) {
            // An end without a farewell proves nothing, but neither does any end: payloads have lengths and marks.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            done => Poll::Ready(done.map_err(|error| in_words(error, self.side))),
        }
    }
}

struct TlsSink<S> {
    inner: WriteHalf<S>,
    side: Side,
    /// What was taken from the writer, who has not been told yet.
    taken: Vec<u8>,
    /// How much of that the library has.
    fed: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsSink<S> {
    /// Takes bytes, unless some were taken already: then the writer has to come with the same ones again, as a writer
    /// does who gave up waiting and was told of nothing. Anything else would be sent in the wrong order.
    fn take(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        if self.taken.is_empty() {
            for buf in bufs {
                let room = WRITE - self.taken.len();
                self.taken.extend_from_slice(&buf[..buf.len().min(room)]);
            }
            return Ok(());
        }
        let mut rest = &self.taken[..];
        for buf in bufs {
            let same = buf.len().min(rest.len());
            if buf[..same] != rest[..same] {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write was given up for another one"));
            }
            rest = &rest[same..];
        }
        if rest.is_empty() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "a write was cut short")) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsSink<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.take(bufs)?;
        let this = &mut *self;
        while this.fed < this.taken.len() {
            let fed = ready!(Pin::new(&mut this.inner).poll_write(cx, &this.taken[this.fed..]));
            // A peer that did not accept us says so only now, in TLS 1.3.
            match fed.map_err(|error| in_words(error, this.side))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                fed => this.fed += fed,
            }
        }
        ready!(Pin::new(&mut this.inner).poll_flush(cx)).map_err(|error| in_words(error, this.side))?;
        let written = this.taken.len();
        this.taken.clear();
        this.fed = 0;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let side = self.side;
        Pin::new(&mut self.inner).poll_flush(cx).map_err(|error| in_words(error, side))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A file would be sent in clear: it has to be read, sealed and written.
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Outlet for TlsSink<S> {}
