//! The JET binary protocol's place: packets are recognised and answered, rendezvous is not offered yet.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::limits;
use crate::stream::Stream;

/// Signature of a JET_PACKET ([JET-PROTO] 2.2.1.1).
const SIGNATURE: [u8; 4] = *b"JET\0";

/// The answer to whatever was asked.
const NOT_IMPLEMENTED: &[u8] = b"HTTP/1.1 501 Not Implemented\r\nJet-Version: 2\r\n\r\n";

/// Bytes of the request that are read and thrown away, so that the client can read the answer.
const DRAIN_BYTES: u64 = 64 * 1024;

/// Tells a JET peer that this gateway has no rendezvous.
pub async fn answer_not_offered(stream: Stream) {
    let answer = async {
        let (mut io, _read_ahead) = stream.into_parts();
        io.write_all(&packet(NOT_IMPLEMENTED, mask())).await?;
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(DRAIN_BYTES), &mut tokio::io::sink()).await
    };
    // A peer that does not take its answer is not waited for.
    let _answered = timeout(limits::REFUSAL_LINGER, answer).await;
}

/// A JET_PACKET around `payload`, which is far shorter than the 65,527 bytes that fit.
fn packet(payload: &[u8], mask: u8) -> Vec<u8> {
    let size = u16::try_from(payload.len() + 8)
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let mut packet = Vec::with_capacity(payload.len() + 8);
    packet.extend_from_slice(&SIGNATURE);
    packet.extend_from_slice(&size);
    packet.extend_from_slice(&[0, mask]);
    packet.extend(payload.iter().map(|byte| byte ^ mask));
    packet
}

/// Random and not zero; where the system has no randomness, the value that other gateways always send.
fn mask() -> u8 {
    let mut random = [0_u8; 1];
    match openssl::rand::rand_bytes(&mut random) {
        Ok(()) => random[0].max(1),
        Err(_) => 0x73,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_signature_size_flags_mask_and_masked_payload() {
        assert_eq!(packet(b"ab", 0x73), b"JET\0\x00\x0A\x00\x73\x12\x11");
    }
}
