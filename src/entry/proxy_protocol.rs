//! PROXY protocol, versions 1 and 2: who is behind the load balancer that connected.
//!
//! Implements the decoder of the [specification]. The header is believed only from configured addresses; that
//! decision is the listener's. Frames are bounded before they are buffered: a version 1 line has at most 107 bytes,
//! a version 2 header at most [`limits::PROXY_HEADER_BYTES`]. TLVs are skipped, not read.
//!
//! A header that carries no TCP address (`UNKNOWN`, `LOCAL`, `UNSPEC`, and every family and transport other than TCP, which
//! count as `UNSPEC`) decodes to no addresses, and those of the connection stay in force.
//!
//! [specification]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jetway_base::limits;

/// The addresses a load balancer reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client; `None` where the header names none.
    pub source: Option<SocketAddr>,
    /// The address the client connected to; `None` where the header names none.
    pub destination: Option<SocketAddr>,
}

/// Why bytes are not a PROXY protocol header; always the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyProtocolError {
    /// Neither the text of version 1 nor the signature of version 2.
    #[error("not a PROXY protocol header")]
    Signature,
    /// No CR LF within 107 bytes.
    #[error("version 1 line does not end within 107 bytes")]
    LineTooLong,
    /// A version 1 line that does not follow the grammar.
    #[error("version 1 line has a bad {0}")]
    Line(&'static str),
    /// A version other than 2 behind the signature of version 2.
    #[error("version {0} behind the binary signature, expected 2")]
    Version(u8),
    /// A command other than LOCAL and PROXY.
    #[error("command {0} is neither LOCAL nor PROXY")]
    Command(u8),
    /// The length does not hold the addresses of the family.
    #[error("length {length} is too short for addresses of {family:#04x}")]
    TooShort {
        /// The length field.
        length: usize,
        /// The family and transport byte.
        family: u8,
    },
    /// More TLVs than any sender has.
    #[error("header of {0} bytes is above the limit")]
    TooLong(usize),
}

/// Decodes the header that `bytes` begin with, and says how many bytes it has; `None` asks for more bytes.
///
/// # Errors
/// As soon as the bytes at hand cannot become a header any more.
///
/// # Examples
/// ```
/// let bytes = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 3389\r\n\x03\x00";
/// let (header, consumed) = jetway_entry::proxy_protocol::decode(bytes)?.expect("complete");
/// assert_eq!(header.source, Some("192.0.2.7:50000".parse().unwrap()));
/// assert_eq!(&bytes[consumed..], b"\x03\x00");
/// # Ok::<(), jetway_entry::proxy_protocol::ProxyProtocolError>(())
/// ```
pub fn decode(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyProtocolError> {
    // Nothing at all is the start of both, too.
    if V1_PREFIX.starts_with(bytes) || V2_SIGNATURE.starts_with(bytes) {
        Ok(None)
    } else if bytes.starts_with(V1_PREFIX) {
        decode_v1(bytes)
    } else if bytes.starts_with(V2_SIGNATURE) {
        decode_v2(bytes)
    } else {
        Err(ProxyProtocolError::Signature)
    }
}

fn decode_v1(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyProtocolError> {
    let window = bytes.get(..V1_LINE_BYTES).unwrap_or(bytes);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= V1_LINE_BYTES {
            Err(ProxyProtocolError::LineTooLong)
        } else {
            Ok(None)
        };
    };
    let line = window
        .get(V1_PREFIX.len()..end)
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or(ProxyProtocolError::Line("text"))?;
    let consumed = end.saturating_add(2);
    let (protocol, rest) = line.split_once(' ').unwrap_or((line, ""));
    let header = match protocol {
        // The rest of the line is to be ignored.
        "UNKNOWN" => NO_ADDRESSES,
        "TCP4" => v1_addresses(rest, |text| text.parse().ok().map(IpAddr::V4))?,
        "TCP6" => v1_addresses(rest, |text| text.parse().ok().map(IpAddr::V6))?,
        _ => return Err(ProxyProtocolError::Line("protocol")),
    };
    Ok(Some((header, consumed)))
}

fn v1_addresses(
    text: &str,
    parse: impl Fn(&str) -> Option<IpAddr>,
) -> Result<ProxyHeader, ProxyProtocolError> {
    let mut fields = text.split(' ');
    let mut next = |name| fields.next().ok_or(ProxyProtocolError::Line(name));
    let (source, destination) = (next("source address")?, next("destination address")?);
    let (source_port, destination_port) = (next("source port")?, next("destination port")?);
    if fields.next().is_some() {
        return Err(ProxyProtocolError::Line("number of fields"));
    }
    let source = parse(source).ok_or(ProxyProtocolError::Line("source address"))?;
    let destination = parse(destination).ok_or(ProxyProtocolError::Line("destination address"))?;
    let source_port = v1_port(source_port).ok_or(ProxyProtocolError::Line("source port"))?;
    let destination_port =
        v1_port(destination_port).ok_or(ProxyProtocolError::Line("destination port"))?;
    Ok(ProxyHeader {
        source: Some(SocketAddr::new(source, source_port)),
        destination: Some(SocketAddr::new(destination, destination_port)),
    })
}

/// Decimal without sign or leading zeros, as the specification demands.
fn v1_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if digits && !leading_zero {
        text.parse().ok()
    } else {
        None
    }
}

fn decode_v2(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyProtocolError> {
    let rest = bytes.get(V2_SIGNATURE.len()..).unwrap_or_default();
    let Some(&version_and_command) = rest.first() else {
        return Ok(None);
    };
    if version_and_command >> 4 != 2 {
        return Err(ProxyProtocolError::Version(version_and_command >> 4));
    }
    let local = match version_and_command & 0x0f {
        0 => true,
        1 => false,
        command => return Err(ProxyProtocolError::Command(command)),
    };
    let Some(&[_, family, high, low]) = rest.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let total = V2_FIXED_BYTES.saturating_add(length);
    if total > limits::PROXY_HEADER_BYTES {
        return Err(ProxyProtocolError::TooLong(total));
    }
    // LOCAL: the balancer speaks for itself (a health check); family and addresses are to be ignored.
    let kind = if local { UNSPEC } else { family };
    let needed = match kind {
        TCP_OVER_IPV4 => 12,
        TCP_OVER_IPV6 => 36,
        // Datagrams, UNIX sockets and what is not assigned count as UNSPEC (specification 2.2): no address to be used.
        _ => 0,
    };
    if length < needed {
        return Err(ProxyProtocolError::TooShort { length, family });
    }
    let Some(addresses) = bytes.get(V2_FIXED_BYTES..total) else {
        return Ok(None);
    };
    let header = match kind {
        TCP_OVER_IPV4 => v2_ipv4(addresses),
        TCP_OVER_IPV6 => v2_ipv6(addresses),
        _ => Some(NO_ADDRESSES),
    };
    let header = header.ok_or(ProxyProtocolError::TooShort { length, family })?;
    Ok(Some((header, total)))
}

fn v2_ipv4(bytes: &[u8]) -> Option<ProxyHeader> {
    let (source, rest) = bytes.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    v2_ports(
        Ipv4Addr::from(*source).into(),
        Ipv4Addr::from(*destination).into(),
        rest,
    )
}

fn v2_ipv6(bytes: &[u8]) -> Option<ProxyHeader> {
    let (source, rest) = bytes.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    v2_ports(
        Ipv6Addr::from(*source).into(),
        Ipv6Addr::from(*destination).into(),
        rest,
    )
}

fn v2_ports(source: IpAddr, destination: IpAddr, rest: &[u8]) -> Option<ProxyHeader> {
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let destination_port = rest.first_chunk::<2>()?;
    Some(ProxyHeader {
        source: Some(SocketAddr::new(source, u16::from_be_bytes(*source_port))),
        destination: Some(SocketAddr::new(
            destination,
            u16::from_be_bytes(*destination_port),
        )),
    })
}

const NO_ADDRESSES: ProxyHeader = ProxyHeader {
    source: None,
    destination: None,
};

const V1_PREFIX: &[u8] = b"PROXY ";

/// The longest line of version 1, CR LF included (specification 2.1).
const V1_LINE_BYTES: usize = 107;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length.
const V2_FIXED_BYTES: usize = 16;

const UNSPEC: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 2, PROXY, TCP over IPv4, 12 bytes: 192.0.2.7:50000 to 198.51.100.1:3389.
    const V2_TCP4: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc3\x50\x0d\x3d";

    #[test]
    fn version_1_names_source_and_destination() {
        let header = complete(b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 3389\r\n");
        assert_eq!(header.source, Some("192.0.2.7:50000".parse().unwrap()));
        assert_eq!(
            header.destination,
            Some("198.51.100.1:3389".parse().unwrap())
        );

        let header = complete(b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n");
        assert_eq!(header.source, Some("[2001:db8::7]:1".parse().unwrap()));
        assert_eq!(header.destination, Some("[::1]:65535".parse().unwrap()));
    }

    #[test]
    fn version_1_unknown_names_nothing() {
        assert_eq!(complete(b"PROXY UNKNOWN\r\n"), NO_ADDRESSES);
        let longest = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(complete(longest), NO_ADDRESSES);
    }

    #[test]
    fn version_1_lines_off_the_grammar_are_refused() {
        let cases: [(&[u8], &str); 11] = [
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n",
                "destination port",
            ),
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 3389 \r\n",
                "number of fields",
            ),
            (
                b"PROXY TCP4 192.0.2.7  198.51.100.1 50000 3389\r\n",
                "number of fields",
            ),
            (
                b"PROXY TCP4 192.0.2.07 198.51.100.1 50000 3389\r\n",
                "source address",
            ),
            (b"PROXY TCP4 ::1 ::1 50000 3389\r\n", "source address"),
            (b"PROXY TCP6 192.0.2.7 ::1 50000 3389\r\n", "source address"),
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 050 3389\r\n",
                "source port",
            ),
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 +50 3389\r\n",
                "source port",
            ),
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 50 65536\r\n",
                "destination port",
            ),
            (b"PROXY UDP4 192.0.2.7 198.51.100.1 50 51\r\n", "protocol"),
            (b"PROXY \xff\r\n", "text"),
        ];
        for (line, field) in cases {
            assert_eq!(
                decode(line),
                Err(ProxyProtocolError::Line(field)),
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn version_1_line_of_107_bytes_is_the_longest() {
        let line = |fill: usize| {
            let mut line = b"PROXY UNKNOWN ".to_vec();
            line.resize(fill, b'x');
            line.extend(b"\r\n");
            line
        };
        assert_eq!(complete(&line(105)), NO_ADDRESSES);
        assert_eq!(decode(&line(106)), Err(ProxyProtocolError::LineTooLong));
        assert_eq!(
            decode(&line(106)[..107]),
            Err(ProxyProtocolError::LineTooLong)
        );
    }

    #[test]
    fn version_2_names_source_and_destination() {
        let header = complete(V2_TCP4);
        assert_eq!(header.source, Some("192.0.2.7:50000".parse().unwrap()));
        assert_eq!(
            header.destination,
            Some("198.51.100.1:3389".parse().unwrap())
        );

        let mut bytes = v2(0x21, 0x21, 36);
        bytes.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 1, 0xff, 0xff]);
        let header = complete(&bytes);
        assert_eq!(header.source, Some("[2001:db8::7]:1".parse().unwrap()));
        assert_eq!(header.destination, Some("[::1]:65535".parse().unwrap()));
    }

    #[test]
    fn version_2_tlvs_are_skipped() {
        let mut bytes = V2_TCP4.to_vec();
        bytes[15] = 19;
        bytes.extend([0x02, 0x00, 0x04, b'a', b'b', b'c', b'd']);
        assert_eq!(complete(&bytes), complete(V2_TCP4));
    }

    #[test]
    fn version_2_without_tcp_addresses_names_nothing() {
        let mut local = V2_TCP4.to_vec();
        local[12] = 0x20;
        assert_eq!(complete(&local), NO_ADDRESSES);
        assert_eq!(complete(&v2(0x20, 0xee, 0)), NO_ADDRESSES);
        assert_eq!(complete(&v2(0x21, UNSPEC, 0)), NO_ADDRESSES);
    }

    #[test]
    fn a_family_or_transport_other_than_tcp_counts_as_unspec() {
        // UDP over both, UNIX stream and datagram, an undefined transport, an undefined family.
        for family in [0x12, 0x22, 0x31, 0x32, 0x13, 0x41, 0x01, 0xFF] {
            for length in [0_u16, 12, 216] {
                let mut header = v2(0x21, family, length);
                header.resize(V2_FIXED_BYTES + usize::from(length), b'/');
                assert_eq!(complete(&header), NO_ADDRESSES, "{family:#04x} {length}");
            }
        }
    }

    #[test]
    fn version_2_headers_off_the_grammar_are_refused_before_their_addresses() {
        let cases = [
            (v2(0x11, 0x11, 12), ProxyProtocolError::Version(1)),
            (v2(0x22, 0x11, 12), ProxyProtocolError::Command(2)),
            (
                v2(0x21, 0x11, 11),
                ProxyProtocolError::TooShort {
                    length: 11,
                    family: 0x11,
                },
            ),
            (
                v2(0x21, 0x21, 35),
                ProxyProtocolError::TooShort {
                    length: 35,
                    family: 0x21,
                },
            ),
            (v2(0x21, 0x11, 65_535), ProxyProtocolError::TooLong(65_551)),
        ];
        for (bytes, error) in cases {
            assert_eq!(decode(&bytes), Err(error));
        }
    }

    #[test]
    fn other_bytes_are_refused_at_the_first_that_differs() {
        assert_eq!(decode(b""), Ok(None));
        assert_eq!(decode(b"PRO"), Ok(None));
        assert_eq!(decode(b"POST"), Err(ProxyProtocolError::Signature));
        assert_eq!(decode(b"\r\n\r\n\0\r\nQUIT"), Ok(None));
        assert_eq!(decode(b"\r\n\r\n\n"), Err(ProxyProtocolError::Signature));
    }

    /// Decodes `bytes` at every split, with and without bytes behind them.
    fn complete(bytes: &[u8]) -> ProxyHeader {
        for count in 0..bytes.len() {
            assert_eq!(decode(&bytes[..count]), Ok(None), "{count} bytes");
        }
        let (header, consumed) = decode(bytes).unwrap().unwrap();
        assert_eq!(consumed, bytes.len());
        let mut longer = bytes.to_vec();
        longer.extend(b"\r\n\x03\x00");
        assert_eq!(decode(&longer), Ok(Some((header, consumed))));
        header
    }

    fn v2(version_and_command: u8, family: u8, length: u16) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([version_and_command, family]);
        bytes.extend(length.to_be_bytes());
        bytes
    }
}
