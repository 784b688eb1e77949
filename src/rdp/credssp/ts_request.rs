//! [MS-CSSP] 2.2.1 TSRequest: decoded and encoded by sspi, with its panics kept inside.

use std::fmt;

use sspi::credssp::TsRequest;
use zeroize::Zeroizing;

use super::cause::Cause;
use super::{Panicked, TsRequestError, contained, frame_length};

/// A whole frame, decoded.
pub(super) fn decode(frame: &[u8]) -> Result<TsRequest, TsRequestError> {
    match frame_length(frame)? {
        Some(length) if length == frame.len() => {}
        _ => return Err(TsRequestError::Malformed),
    }
    contained(|| TsRequest::from_buffer(frame))
        .map_err(|Panicked| TsRequestError::Malformed)?
        .map_err(|_| TsRequestError::Malformed)
}

pub(super) fn encode(request: &TsRequest) -> Result<Zeroizing<Vec<u8>>, Cause> {
    let failed = |error: &dyn fmt::Display| Cause::Package(error.to_string());
    let length = request.buffer_len().map_err(|error| failed(&error))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(length.into()));
    request
        .encode_ts_request(&mut *frame)
        .map_err(|error| failed(&error))?;
    Ok(frame)
}
