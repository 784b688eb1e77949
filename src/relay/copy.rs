//! Bytes from one stream to another through the stack: nothing is held while nothing moves.
//!
//! What has been read is written in the same poll. Only what the receiver did not take is moved to the heap, and it
//! has to leave before more is read.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::side::Fault;

/// Bytes read at once, and so the most that a direction holds for a receiver that does not read.
///
/// Copying bulk on loopback costs 0.54 CPU seconds for a GB so, 0.39 with four times as much, and 0.24 where it is
/// spliced (medians); what is left to copies is small, or TLS, whose records have 16 KiB.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// What the receiver has not taken yet; never empty.
#[derive(Debug)]
pub(super) struct Leftover {
    bytes: Box<[u8]>,
    sent: usize,
}

/// What one step of copying did.
#[derive(Debug)]
pub(super) struct Copied {
    /// Bytes read; zero at the end of the stream.
    pub(super) read: usize,
    /// Whether that end was one without a word.
    pub(super) cut: bool,
    /// Bytes the receiver took.
    pub(super) written: u64,
    /// The rest.
    pub(super) leftover: Option<Leftover>,
}

/// Reads once and writes what came.
// Its own frame, so that the rest of a relay's poll does not pay for the large array.
#[inline(never)]
pub(super) fn poll_copy<R, W>(
    cx: &mut Context<'_>,
    reader: &mut R,
    writer: &mut W,
) -> Poll<Result<Copied, Fault>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut space = [MaybeUninit::uninit(); CHUNK_BYTES];
    let mut buf = ReadBuf::uninit(&mut space);
    let mut cut = false;
    match ready!(Pin::new(reader).poll_read(cx, &mut buf)) {
        Ok(()) => {}
        // TLS that ends without a close_notify alert, as RDP clients do. RDP has its own framing, so whoever reads
        // on sees the truncation, if it is one.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            buf.clear();
            cut = true;
        }
        Err(error) => return Poll::Ready(Err(Fault::Reader(error))),
    }
    let bytes = buf.filled();
    let sent = write_some(cx, writer, bytes)?;
    let rest = bytes.get(sent..).unwrap_or_default();
    Poll::Ready(Ok(Copied {
        read: bytes.len(),
        cut,
        written: to_u64(sent),
        leftover: (!rest.is_empty()).then(|| Leftover {
            bytes: rest.into(),
            sent: 0,
        }),
    }))
}

/// Reads once, to the heap; `None` is the end.
#[inline(never)]
pub(super) fn poll_read(
    cx: &mut Context<'_>,
    reader: &mut (impl AsyncRead + Unpin),
) -> Poll<io::Result<Option<Box<[u8]>>>> {
    let mut space = [MaybeUninit::uninit(); CHUNK_BYTES];
    let mut buf = ReadBuf::uninit(&mut space);
    ready!(Pin::new(reader).poll_read(cx, &mut buf))?;
    let bytes = buf.filled();
    Poll::Ready(Ok((!bytes.is_empty()).then(|| bytes.into())))
}

impl From<Box<[u8]>> for Leftover {
    fn from(bytes: Box<[u8]>) -> Self {
        Self { bytes, sent: 0 }
    }
}

impl Leftover {
    /// All of it that was not written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.bytes.into_vec();
        bytes.drain(..self.sent.min(bytes.len()));
        bytes
    }

    /// Writes as much as the receiver takes; the second value is whether all of it is gone.
    pub(super) fn write_some<W>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Result<(u64, bool), Fault>
    where
        W: AsyncWrite + Unpin,
    {
        let rest = self.bytes.get(self.sent..).unwrap_or_default();
        let count = write_some(cx, writer, rest)?;
        self.sent = self.sent.saturating_add(count);
        Ok((to_u64(count), self.sent >= self.bytes.len()))
    }
}

/// Writes until the receiver takes no more; where that is before the end, the task will be woken.
fn write_some<W>(cx: &mut Context<'_>, writer: &mut W, bytes: &[u8]) -> Result<usize, Fault>
where
    W: AsyncWrite + Unpin,
{
    let mut rest = bytes;
    while !rest.is_empty() {
        match Pin::new(&mut *writer).poll_write(cx, rest) {
            Poll::Ready(Ok(0)) => return Err(Fault::Writer(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
            Poll::Ready(Err(error)) => return Err(Fault::Writer(error)),
            Poll::Pending => break,
        }
    }
    Ok(bytes.len().saturating_sub(rest.len()))
}

/// A length as a number of bytes to count.
pub(super) fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
