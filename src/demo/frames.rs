//! Whole PDUs from a stream: what arrives is cut where [`frame`] says, one at a time.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadHalf, WriteHalf};

use jetway_rdp::frame;

/// A stream, and what was read from it beyond the last PDU.
#[derive(Debug)]
pub(super) struct Frames<S> {
    stream: S,
    arrived: BytesMut,
}

impl<S> Frames<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            arrived: BytesMut::new(),
        }
    }

    /// The stream, to be written to.
    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream itself, where nothing was read from it beyond the last PDU: the other side has to wait there.
    pub(super) fn into_stream(self) -> Option<S> {
        self.arrived.is_empty().then_some(self.stream)
    }
}

impl<S: AsyncRead + AsyncWrite> Frames<S> {
    /// Both halves of the stream; what was read stays with its half.
    pub(super) fn split(self) -> (Frames<ReadHalf<S>>, WriteHalf<S>) {
        let (reader, writer) = tokio::io::split(self.stream);
        let reader = Frames {
            stream: reader,
            arrived: self.arrived,
        };
        (reader, writer)
    }
}

impl<S: AsyncRead + Unpin> Frames<S> {
    /// The next PDU.
    ///
    /// # Errors
    /// `UnexpectedEof` where the stream ends, also within a PDU; `InvalidData` where no PDU begins.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is kept.
    pub(super) async fn next(&mut self) -> io::Result<BytesMut> {
        loop {
            let found = frame::find(&self.arrived)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some(frame) = found
                && frame.length <= self.arrived.len()
            {
                return Ok(self.arrived.split_to(frame.length));
            }
            // A frame has at most 64 KiB, so there is never more than that and one read.
            self.arrived.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.arrived).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Whether a PDU is fast-path rather than TPKT: the two lowest bits of its first byte.
pub(super) fn is_fast_path(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 0b11 == 0)
}

/// Room for one read: a TLS record.
const READ_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const PDUS: &[u8] = b"\x03\x00\x00\x09\x02\xf0\x80\x21\x80\x04\x06\x00\x1e\x01\x1e";

    async fn read(mut frames: Frames<impl AsyncRead + Unpin>) -> Vec<Result<usize, io::ErrorKind>> {
        let mut read = Vec::new();
        loop {
            let next = frames.next().await;
            let ended = next.is_err();
            read.push(next.map(|frame| frame.len()).map_err(|error| error.kind()));
            if ended {
                return read;
            }
        }
    }

    #[tokio::test]
    async fn pdus_are_cut_however_they_arrive() {
        use io::ErrorKind::UnexpectedEof;
        let expected = vec![Ok(9), Ok(6), Err(UnexpectedEof)];
        assert_eq!(read(Frames::new(PDUS)).await, expected);
        let mut pieces = one_by_one(PDUS);
        assert_eq!(read(Frames::new(&mut pieces)).await, expected);
        let cut = &PDUS[..12];
        assert_eq!(read(Frames::new(cut)).await, [Ok(9), Err(UnexpectedEof)]);
    }

    #[tokio::test]
    async fn what_begins_no_pdu_is_an_error() {
        let bytes: &[u8] = b"GET / HTTP/1.1";
        let read = read(Frames::new(bytes)).await;
        assert_eq!(read, [Err(io::ErrorKind::InvalidData)]);
    }

    #[tokio::test]
    async fn a_stream_that_was_read_too_far_is_not_given_back() {
        let mut frames = Frames::new(PDUS);
        frames.next().await.unwrap();
        assert!(frames.into_stream().is_none());
        let mut frames = Frames::new(&PDUS[..9]);
        frames.next().await.unwrap();
        assert!(frames.into_stream().is_some());
    }

    /// A reader that gives one byte at a time.
    fn one_by_one(bytes: &'static [u8]) -> impl AsyncRead + Unpin {
        let (mut writer, reader) = tokio::io::duplex(1);
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            writer.write_all(bytes).await.unwrap();
        });
        reader
    }
}
