//! RDP 8.0 bulk compression in its small form, as dynamic channels use it ([MS-RDPEDYC] 2.2.3.3, [MS-RDPEGFX]
//! 2.2.5 and 3.1.9.1): one segment at a time, at most 8,192 bytes each, and a history of 8,192 bytes.
//!
//! [MS-RDPEDYC]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpedyc/
//! [MS-RDPEGFX]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpegfx/

/// The history of one direction of one dynamic channel.
#[derive(Clone, Default)]
pub struct Rdp8Lite {
    /// The last bytes that were decompressed, the newest at the end.
    history: Vec<u8>,
}

// The history is content.
impl std::fmt::Debug for Rdp8Lite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rdp8Lite").finish_non_exhaustive()
    }
}

/// Why data does not decompress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rdp8LiteError {
    /// `descriptor` of RDP_SEGMENTED_DATA is not SINGLE (0xE0).
    #[error("segment descriptor {0:#04x}, expected 0xe0")]
    Descriptor(u8),
    /// `header` of RDP8_BULK_ENCODED_DATA names another algorithm.
    #[error("compression type {0:#x}, expected 6")]
    Type(u8),
    /// The data ends before what it announces.
    #[error("cut off")]
    Truncated,
    /// A segment holds more than 8,192 bytes.
    #[error("more than {SEGMENT_BYTES} bytes in one segment")]
    TooLong,
    /// A match goes back further than anything that was sent.
    #[error("match distance {0} is beyond the history")]
    Distance(usize),
    /// No token begins with these bits.
    #[error("no such token")]
    Token,
}

impl Rdp8Lite {
    /// Decompresses one RDP_SEGMENTED_DATA.
    ///
    /// # Errors
    ///
    /// The data does not decompress; what the peer's history holds is then unknown.
    pub fn decompress(&mut self, data: &[u8]) -> Result<Vec<u8>, Rdp8LiteError> {
        let (descriptor, data) = data.split_first().ok_or(Rdp8LiteError::Truncated)?;
        if *descriptor != SINGLE {
            return Err(Rdp8LiteError::Descriptor(*descriptor));
        }
        let (header, data) = data.split_first().ok_or(Rdp8LiteError::Truncated)?;
        let compression = header & COMPRESSION_TYPE_MASK;
        if compression != PACKET_COMPR_TYPE_RDP8_LITE {
            return Err(Rdp8LiteError::Type(compression));
        }
        let known = self.history.len();
        if header & PACKET_COMPRESSED == 0 {
            self.literals(known, data)?;
        } else {
            self.tokens(known, data)?;
        }
        let output = self.history.get(known..).unwrap_or_default().to_vec();
        let surplus = self.history.len().saturating_sub(HISTORY_BYTES);
        self.history.drain(..surplus);
        Ok(output)
    }

    fn tokens(&mut self, known: usize, data: &[u8]) -> Result<(), Rdp8LiteError> {
        let mut bits = Bits::new(data)?;
        while !bits.is_empty() {
            let token = bits.token()?;
            let value = bits.take(token.value_bits)?.saturating_add(token.base);
            if token.is_literal {
                let byte = u8::try_from(value).map_err(|_| Rdp8LiteError::Token)?;
                self.literals(known, &[byte])?;
                continue;
            }
            let value = usize::try_from(value).map_err(|_| Rdp8LiteError::Token)?;
            if value == 0 {
                let count = bits.take(15)?;
                let raw = bits.bytes(usize::try_from(count).unwrap_or(usize::MAX))?;
                self.literals(known, raw)?;
            } else {
                let count = bits.match_length()?;
                self.repeat(known, value, count)?;
            }
        }
        Ok(())
    }

    fn literals(&mut self, known: usize, bytes: &[u8]) -> Result<(), Rdp8LiteError> {
        self.check_length(known, bytes.len())?;
        self.history.extend_from_slice(bytes);
        Ok(())
    }

    /// Copies `count` bytes from `distance` back; those just written may be among them.
    fn repeat(&mut self, known: usize, distance: usize, count: usize) -> Result<(), Rdp8LiteError> {
        self.check_length(known, count)?;
        if distance > HISTORY_BYTES {
            return Err(Rdp8LiteError::Distance(distance));
        }
        let start = self
            .history
            .len()
            .checked_sub(distance)
            .ok_or(Rdp8LiteError::Distance(distance))?;
        let end = start.saturating_add(count);
        for at in start..end {
            let byte = self.history.get(at).copied();
            self.history
                .push(byte.ok_or(Rdp8LiteError::Distance(distance))?);
        }
        Ok(())
    }

    fn check_length(&self, known: usize, more: usize) -> Result<(), Rdp8LiteError> {
        let written = self.history.len().saturating_sub(known);
        if written.saturating_add(more) > SEGMENT_BYTES {
            return Err(Rdp8LiteError::TooLong);
        }
        Ok(())
    }
}

/// Bits from the highest of each byte on; the last byte says how many of the last bits are unused.
#[derive(Debug)]
struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits read.
    at: usize,
    /// Bits there are.
    end: usize,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8]) -> Result<Self, Rdp8LiteError> {
        let (unused, bytes) = data.split_last().ok_or(Rdp8LiteError::Truncated)?;
        let end = bytes
            .len()
            .saturating_mul(8)
            .checked_sub(usize::from(*unused))
            .ok_or(Rdp8LiteError::Truncated)?;
        Ok(Self { bytes, at: 0, end })
    }

    fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    fn take(&mut self, count: u32) -> Result<u32, Rdp8LiteError> {
        let mut value = 0_u32;
        for _ in 0..count {
            if self.is_empty() {
                return Err(Rdp8LiteError::Truncated);
            }
            let byte = self.bytes.get(self.at / 8).copied().unwrap_or_default();
            let shift = 7_usize.saturating_sub(self.at % 8);
            value = value << 1 | u32::from(byte >> shift & 1);
            self.at = self.at.saturating_add(1);
        }
        Ok(value)
    }

    fn token(&mut self) -> Result<&'static Token, Rdp8LiteError> {
        let (mut prefix, mut length) = (0, 0);
        for token in &TOKENS {
            while length < token.prefix_length {
                prefix = prefix << 1 | self.take(1)?;
                length = length.saturating_add(1);
            }
            if prefix == token.prefix {
                return Ok(token);
            }
        }
        Err(Rdp8LiteError::Token)
    }

    /// 0 is 3; else each further one bit doubles 4, and as many bits as that took are added.
    fn match_length(&mut self) -> Result<usize, Rdp8LiteError> {
        if self.take(1)? == 0 {
            return Ok(3);
        }
        let (mut count, mut extra) = (4_u32, 2_u32);
        while self.take(1)? == 1 {
            count = count.checked_mul(2).ok_or(Rdp8LiteError::TooLong)?;
            extra = extra.saturating_add(1);
        }
        let count = count.saturating_add(self.take(extra)?);
        usize::try_from(count).map_err(|_| Rdp8LiteError::TooLong)
    }

    /// Whole bytes from the next byte boundary on.
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Rdp8LiteError> {
        let start = self.at.div_ceil(8);
        let end = start.checked_add(count).ok_or(Rdp8LiteError::Truncated)?;
        let taken = self.bytes.get(start..end).ok_or(Rdp8LiteError::Truncated)?;
        self.at = end.saturating_mul(8);
        Ok(taken)
    }
}

/// A row of the token table.
#[derive(Debug)]
struct Token {
    prefix_length: u32,
    prefix: u32,
    value_bits: u32,
    is_literal: bool,
    base: u32,
}

const fn literal(prefix_length: u32, prefix: u32, value_bits: u32, base: u32) -> Token {
    Token {
        prefix_length,
        prefix,
        value_bits,
        is_literal: true,
        base,
    }
}

const fn distance(prefix_length: u32, prefix: u32, value_bits: u32, base: u32) -> Token {
    Token {
        prefix_length,
        prefix,
        value_bits,
        is_literal: false,
        base,
    }
}

/// [MS-RDPEGFX] 3.1.9.1.2, by length of the prefix.
const TOKENS: [Token; 40] = [
    literal(1, 0b0, 8, 0),
    distance(5, 0b10001, 5, 0),
    distance(5, 0b10010, 7, 32),
    distance(5, 0b10011, 9, 160),
    distance(5, 0b10100, 10, 672),
    distance(5, 0b10101, 12, 1_696),
    literal(5, 0b11000, 0, 0x00),
    literal(5, 0b11001, 0, 0x01),
    distance(6, 0b101100, 14, 5_792),
    distance(6, 0b101101, 15, 22_176),
    literal(6, 0b110100, 0, 0x02),
    literal(6, 0b110101, 0, 0x03),
    literal(6, 0b110110, 0, 0xff),
    distance(7, 0b1011100, 18, 54_944),
    distance(7, 0b1011101, 20, 317_088),
    literal(7, 0b1101110, 0, 0x04),
    literal(7, 0b1101111, 0, 0x05),
    literal(7, 0b1110000, 0, 0x06),
    literal(7, 0b1110001, 0, 0x07),
    literal(7, 0b1110010, 0, 0x08),
    literal(7, 0b1110011, 0, 0x09),
    literal(7, 0b1110100, 0, 0x0a),
    literal(7, 0b1110101, 0, 0x0b),
    literal(7, 0b1110110, 0, 0x3a),
    literal(7, 0b1110111, 0, 0x3b),
    literal(7, 0b1111000, 0, 0x3c),
    literal(7, 0b1111001, 0, 0x3d),
    literal(7, 0b1111010, 0, 0x3e),
    literal(7, 0b1111011, 0, 0x3f),
    literal(7, 0b1111100, 0, 0x40),
    literal(7, 0b1111101, 0, 0x80),
    distance(8, 0b10111100, 20, 1_365_664),
    distance(8, 0b10111101, 21, 2_414_240),
    literal(8, 0b11111100, 0, 0x0c),
    literal(8, 0b11111101, 0, 0x38),
    literal(8, 0b11111110, 0, 0x39),
    literal(8, 0b11111111, 0, 0x66),
    distance(9, 0b101111100, 22, 4_511_392),
    distance(9, 0b101111101, 23, 8_705_696),
    distance(9, 0b101111110, 24, 17_094_304),
];

/// `descriptor`: one segment.
const SINGLE: u8 = 0xe0;
const COMPRESSION_TYPE_MASK: u8 = 0x0f;
const PACKET_COMPR_TYPE_RDP8_LITE: u8 = 0x06;
const PACKET_COMPRESSED: u8 = 0x20;

/// Most uncompressed bytes of a segment.
const SEGMENT_BYTES: usize = 8192;

/// How far back a match may reach.
const HISTORY_BYTES: usize = 8192;

/// What a history takes, bytes, once it is used: it holds a segment besides, before that is given out, and room to grow.
pub(super) const HELD_BYTES: usize = 2 * (HISTORY_BYTES + SEGMENT_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of [MS-RDPEGFX] 4.1: three segments, of which the last is compressed; here with the type of the
    /// small form and one segment a message.
    #[test]
    fn the_example_of_the_specification_is_decompressed() {
        let mut context = Rdp8Lite::default();
        let mut text = Vec::new();
        for segment in [
            b"\xe0\x06The quick brown ".as_slice(),
            b"\xe0\x06fox jumps ove",
            b"\xe0\x26\x39\x08\x0e\x91\xf8\xd8\x61\x3d\x1e\x44\x06\x43\x79\x9c\x02",
        ] {
            text.extend(context.decompress(segment).unwrap());
        }
        assert_eq!(text, b"The quick brown fox jumps over the lazy dog");
    }

    #[test]
    fn a_match_that_overlaps_itself_repeats() {
        let mut context = Rdp8Lite::default();
        // Literal 'a', then distance 1 with length 3: 0 01100001, 10001 00001 0; 20 bits, 4 unused.
        let data = [0xe0, 0x26, 0b0011_0000, 0b1100_0100, 0b0010_0000, 4];
        assert_eq!(context.decompress(&data).unwrap(), b"aaaa");
    }

    #[test]
    fn a_match_before_the_beginning_is_an_error() {
        // Distance 1 at once: 10001 00001 0; 11 bits, 5 unused.
        let data = [0xe0, 0x26, 0b1000_1000, 0b0100_0000, 5];
        assert_eq!(
            Rdp8Lite::default().decompress(&data),
            Err(Rdp8LiteError::Distance(1))
        );
    }

    #[test]
    fn raw_bytes_inside_a_compressed_segment_begin_at_a_byte_boundary() {
        // 10001 00000, then 15 bits that say 2: 25 bits, 7 to the boundary, "hi".
        let data = [0xe0, 0x26, 0b1000_1000, 0, 0, 0b1000_0000, b'h', b'i', 0];
        let mut expected_bits = Bits::new(&data[2..]).unwrap();
        assert_eq!(expected_bits.take(10).unwrap(), 0b10_0010_0000);
        assert_eq!(expected_bits.take(15).unwrap(), 1);
        // 15 bits from bit 10: 000000 00000000 1, so one byte follows.
        assert_eq!(
            Rdp8Lite::default().decompress(&[&data[..7], &[0][..]].concat()),
            Ok(b"h".to_vec())
        );
    }

    #[test]
    fn a_segment_is_bounded_whatever_it_announces() {
        let mut context = Rdp8Lite::default();
        let whole = [&[0xe0, 0x06][..], &[7; SEGMENT_BYTES]].concat();
        assert_eq!(context.decompress(&whole).unwrap().len(), SEGMENT_BYTES);
        let above = [&[0xe0, 0x06][..], &[7; SEGMENT_BYTES + 1]].concat();
        assert_eq!(context.decompress(&above), Err(Rdp8LiteError::TooLong));
        // Distance 1, then ones without end: 10001 00001 1 1111...
        let endless = [
            0xe0,
            0x26,
            0b1000_1000,
            0b0111_1111,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0,
        ];
        let error = context.decompress(&endless).unwrap_err();
        assert!(matches!(
            error,
            Rdp8LiteError::TooLong | Rdp8LiteError::Truncated
        ));
        assert!(context.history.len() <= HISTORY_BYTES + SEGMENT_BYTES);
    }

    #[test]
    fn another_algorithm_is_an_error() {
        let mut context = Rdp8Lite::default();
        assert_eq!(
            context.decompress(&[0xe1, 0x06, 0]),
            Err(Rdp8LiteError::Descriptor(0xe1))
        );
        assert_eq!(
            context.decompress(&[0xe0, 0x24, 0]),
            Err(Rdp8LiteError::Type(4))
        );
    }
}
