//! [JET-PROTO] 2.2.1.1 JET_PACKET: what every exchange of the binary protocol is wrapped in.
//!
//! ```text
//! signature 4A 45 54 00 | size u16 (big-endian, headers included) | flags u8 = 0 | mask u8 | payload XOR mask
//! ```
//!
//! `size` bounds a packet at 65,535 bytes, so a packet is buffered as a whole. What is wrong with a header is found as
//! soon as the bytes at hand show it. Bytes behind the packet belong to the application and are left alone.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::fmt;

use zeroize::Zeroizing;

/// Bytes before the payload, and the smallest `size`.
pub const HEADER_BYTES: usize = 8;

/// Longest payload, bytes: what `size` can name.
pub const PAYLOAD_BYTES: usize = 65_535 - HEADER_BYTES;

/// Why bytes are not a packet, or a payload does not fit one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The peer's: it begins with something else.
    #[error("signature is not 4A 45 54 00")]
    Signature,
    /// The peer's: less than the header itself.
    #[error("size {0} is below 8")]
    Size(u16),
    /// The peer's: reserved bits.
    #[error("flags {0:#04x} are not zero")]
    Flags(u8),
    /// Ours: more than `size` can name.
    #[error("payload of {0} bytes does not fit a packet")]
    TooLong(usize),
}

/// A packet that arrived.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Unmasked; it may carry a token and is not printed by `Debug`.
    pub payload: Zeroizing<Vec<u8>>,
    /// Bytes of the packet as it arrived; what follows them belongs to the application.
    pub length: usize,
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packet(<{} bytes, not shown>)", self.length)
    }
}

/// Decodes the packet that `bytes` begin with; `None` asks for more.
///
/// # Errors
/// As soon as the bytes at hand cannot become a packet any more.
///
/// # Examples
/// ```
/// use jetway_jet::packet;
///
/// let wire = packet::encode(b"GET", 0x73)?;
/// let packet = packet::decode(&wire)?.expect("complete");
/// assert_eq!((packet.payload.as_slice(), packet.length), (&b"GET"[..], 11));
/// # Ok::<(), packet::PacketError>(())
/// ```
pub fn decode(bytes: &[u8]) -> Result<Option<Packet>, PacketError> {
    if !bytes
        .iter()
        .zip(SIGNATURE)
        .all(|(is, should)| *is == should)
    {
        return Err(PacketError::Signature);
    }
    let Some(size) = bytes.get(4..6).and_then(|size| size.first_chunk()) else {
        return Ok(None);
    };
    let size = u16::from_be_bytes(*size);
    let length = usize::from(size);
    if length < HEADER_BYTES {
        return Err(PacketError::Size(size));
    }
    let flags = bytes.get(6).copied().unwrap_or(0);
    if flags != 0 {
        return Err(PacketError::Flags(flags));
    }
    let Some((header, payload)) = bytes
        .get(..length)
        .and_then(|packet| packet.split_at_checked(HEADER_BYTES))
    else {
        return Ok(None);
    };
    let mask = header.last().copied().unwrap_or(0);
    let payload = payload.iter().map(|byte| byte ^ mask).collect();
    Ok(Some(Packet {
        payload: Zeroizing::new(payload),
        length,
    }))
}

/// Wraps `payload`. The sender takes a random `mask` that is not zero: middleboxes that look for HTTP do not find it.
///
/// # Errors
/// Where the payload is longer than [`PAYLOAD_BYTES`].
pub fn encode(payload: &[u8], mask: u8) -> Result<Vec<u8>, PacketError> {
    let size = payload
        .len()
        .checked_add(HEADER_BYTES)
        .and_then(|size| u16::try_from(size).ok())
        .ok_or(PacketError::TooLong(payload.len()))?;
    let mut packet = Vec::with_capacity(usize::from(size));
    packet.extend_from_slice(&SIGNATURE);
    packet.extend_from_slice(&size.to_be_bytes());
    packet.extend_from_slice(&[0, mask]);
    packet.extend(payload.iter().map(|byte| byte ^ mask));
    Ok(packet)
}

const SIGNATURE: [u8; 4] = *b"JET\0";

/// A mask for a packet, random and not zero; where the system has no randomness, the value that other gateways always send.
#[must_use]
pub fn mask() -> u8 {
    let mut random = [0_u8; 1];
    match openssl::rand::rand_bytes(&mut random) {
        Ok(()) => random.first().copied().unwrap_or_default().max(1),
        Err(_) => 0x73,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An accept response of an existing relay, as its clients receive it: mask 0x73.
    const RESPONSE: &[u8] = &[
        0x4A, 0x45, 0x54, 0x00, // signature
        0x00, 0x2F, // size = 47
        0x00, // flags
        0x73, // mask
        // "HTTP/1.1 200 OK 200\r\nJet-Version: 2\r\n\r\n" XOR 0x73
        0x3B, 0x27, 0x27, 0x23, 0x5C, 0x42, 0x5D, 0x42, 0x53, 0x41, 0x43, 0x43, 0x53, 0x3C, 0x38,
        0x53, 0x41, 0x43, 0x43, 0x7E, 0x79, 0x39, 0x16, 0x07, 0x5E, 0x25, 0x16, 0x01, 0x00, 0x1A,
        0x1C, 0x1D, 0x49, 0x53, 0x41, 0x7E, 0x79, 0x7E, 0x79,
    ];

    #[test]
    fn a_packet_of_another_relay_is_read() {
        // J-PKT-1
        let Packet { payload, length } = decode(RESPONSE).unwrap().unwrap();
        assert_eq!(
            payload.as_slice(),
            b"HTTP/1.1 200 OK 200\r\nJet-Version: 2\r\n\r\n"
        );
        assert_eq!(length, RESPONSE.len());
        assert_eq!(encode(&payload, 0x73).unwrap(), RESPONSE);
    }

    #[test]
    fn every_mask_works() {
        // J-PKT-2
        for mask in 0..=255 {
            let wire = encode(b"GET /", mask).unwrap();
            assert_eq!(decode(&wire).unwrap().unwrap().payload.as_slice(), b"GET /");
        }
    }

    #[test]
    fn what_is_no_packet_is_refused_with_the_fewest_bytes() {
        // J-PKT-3
        assert_eq!(decode(b"JEX"), Err(PacketError::Signature));
        assert_eq!(decode(b"JET\x01"), Err(PacketError::Signature));
        assert_eq!(decode(b"JET\0\0\x07"), Err(PacketError::Size(7)));
        assert_eq!(decode(b"JET\0\xFF\xFF\x80"), Err(PacketError::Flags(0x80)));
    }

    #[test]
    fn the_longest_packet_fits_and_one_byte_more_does_not() {
        let longest = vec![7; PAYLOAD_BYTES];
        let wire = encode(&longest, 1).unwrap();
        assert_eq!(wire.len(), 65_535);
        assert_eq!(decode(&wire).unwrap().unwrap().payload.as_slice(), longest);
        let longer = vec![7; PAYLOAD_BYTES + 1];
        assert_eq!(
            encode(&longer, 1),
            Err(PacketError::TooLong(PAYLOAD_BYTES + 1))
        );
    }

    proptest! {
        #[test]
        fn a_prefix_asks_for_more_and_what_follows_is_not_touched(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            mask: u8,
            behind in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut wire = encode(&payload, mask).unwrap();
            for end in 0..wire.len() {
                prop_assert_eq!(decode(&wire[..end]), Ok(None));
            }
            let length = wire.len();
            wire.extend(behind);
            let packet = decode(&wire).unwrap().unwrap();
            prop_assert_eq!(packet.payload.as_slice(), payload);
            prop_assert_eq!(packet.length, length);
        }
    }
}
