//! Reading and writing within a deadline, and one message at a time.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::error::{SecureError, SecureStep};
use jetway_rdp::credssp::frame_length;

pub(super) async fn within<T>(
    deadline: Instant,
    step: SecureStep,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, SecureError> {
    match timeout_at(deadline, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(SecureError::Io { step, error }),
        Err(_elapsed) => Err(SecureError::TimedOut(step)),
    }
}

/// One whole `TSRequest`; what comes behind it stays in `read_ahead`.
pub(super) async fn read_ts_request<S: AsyncRead + Unpin>(
    stream: &mut S,
    read_ahead: &mut Vec<u8>,
    step: SecureStep,
) -> Result<Vec<u8>, SecureError> {
    loop {
        let length = frame_length(read_ahead).map_err(|error| {
            let problem = error.to_string();
            SecureError::Protocol { step, problem }
        })?;
        if let Some(length) = length
            && length <= read_ahead.len()
        {
            let rest = read_ahead.split_off(length);
            return Ok(std::mem::replace(read_ahead, rest));
        }
        fill(stream, read_ahead)
            .await
            .map_err(|error| SecureError::Io { step, error })?;
    }
}

/// Reads once; the end of the stream is an error.
pub(super) async fn fill<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    bytes.reserve(READ_BYTES);
    if stream.read_buf(bytes).await? == 0 {
        let text = "the peer closed the connection";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    Ok(())
}

/// Throws away what the peer still says, until it closes.
pub(super) async fn drain<S: AsyncRead + Unpin>(stream: &mut S, deadline: Instant) {
    let until = deadline.min(Instant::now() + jetway_base::limits::REFUSAL_LINGER);
    let read = async {
        let mut bytes = Zeroizing::new(vec![0; READ_BYTES]);
        let mut total = 0_usize;
        while let Ok(count) = stream.read(&mut bytes).await {
            total = total.saturating_add(count);
            if count == 0 || total > DRAIN_BYTES {
                break;
            }
        }
    };
    // Either way it was told.
    let _ = timeout_at(until, read).await;
}

/// Bytes of one read.
pub(super) const READ_BYTES: usize = 4096;
/// A peer that was told and goes on talking is not listened to for longer.
const DRAIN_BYTES: usize = 256 * 1024;
