//! Server Redirection ([MS-RDPBCGR] 2.2.13): a target that sends its client to another one, as brokers of farms do.
//!
//! A client that followed it would leave the gateway. So what the target names is taken out, and the client is told to come
//! back to where it is: the gateway then connects it to what was named, if that is among the targets of its token
//! ([`Redirections`]). Credentials that the target gives away with it go nowhere.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/3b9fb6a4-3ce7-4f7c-bb9e-94bc3a1ab6e1

use std::fmt;

use zeroize::Zeroizing;

use super::bytes::{Reader, utf16};

/// Where a Server Redirection PDU points; what it carries of credentials is not kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Redirection {
    /// Session of the new target.
    pub session_id: u32,
    /// `LB_*`.
    pub flags: u32,
    /// An address.
    pub target_net_address: Option<String>,
    /// A name.
    pub target_fqdn: Option<String>,
    /// A NetBIOS name.
    pub target_net_bios_name: Option<String>,
    /// Further addresses.
    pub target_net_addresses: Vec<String>,
    /// The routing token for the new target, which `Debug` does not print.
    pub load_balance_info: Option<Zeroizing<Vec<u8>>>,
}

/// Decides where the client of a session may be sent.
pub trait Redirections: fmt::Debug + Send {
    /// Whether the gateway will follow `redirection` when the client comes back.
    fn follow(&mut self, redirection: &Redirection) -> bool;
}

impl Redirection {
    /// Every name and address of the new target.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let single = [
            &self.target_fqdn,
            &self.target_net_address,
            &self.target_net_bios_name,
        ];
        let single = single.into_iter().flatten();
        single.chain(&self.target_net_addresses).map(String::as_str)
    }

    /// Whether it only informs: the client is to stay (`LB_NOREDIRECT`).
    #[must_use]
    pub fn only_informs(&self) -> bool {
        self.flags & NOREDIRECT != 0
    }
}

impl fmt::Debug for Redirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirection")
            .field("session_id", &self.session_id)
            .field("flags", &self.flags)
            .field("hosts", &self.hosts().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Reads RDP_SERVER_REDIRECTION_PACKET ([MS-RDPBCGR] 2.2.13.1), behind the share control header, with its padding.
pub(super) fn decode(body: &[u8]) -> Option<Redirection> {
    let mut reader = Reader::new(body);
    // Padding of the enhanced form, then SEC_REDIRECTION_PKT and Length.
    reader.take(2)?;
    if reader.u16_le()? != REDIRECTION_PKT {
        return None;
    }
    reader.take(2)?;
    let session_id = reader.u32_le()?;
    let flags = reader.u32_le()?;
    let mut found = Redirection {
        session_id,
        flags,
        ..Redirection::default()
    };
    let mut field = |flag: u32| -> Option<Option<&[u8]>> {
        if flags & flag == 0 {
            return Some(None);
        }
        let length = usize::try_from(reader.u32_le()?).ok()?;
        reader.take(length).map(Some)
    };
    found.target_net_address = field(TARGET_NET_ADDRESS)?.map(utf16);
    found.load_balance_info = field(LOAD_BALANCE_INFO)?.map(|info| info.to_vec().into());
    for flag in [USERNAME, DOMAIN, PASSWORD] {
        field(flag)?;
    }
    found.target_fqdn = field(TARGET_FQDN)?.map(utf16);
    found.target_net_bios_name = field(TARGET_NET_BIOS_NAME)?.map(utf16);
    for flag in [CLIENT_TSV_URL, REDIRECTION_GUID, TARGET_CERTIFICATE] {
        field(flag)?;
    }
    if let Some(addresses) = field(TARGET_NET_ADDRESSES)? {
        let mut reader = Reader::new(addresses);
        let count = reader.u32_le()?;
        for _ in 0..count.min(ADDRESSES) {
            let length = usize::try_from(reader.u32_le()?).ok()?;
            found.target_net_addresses.push(utf16(reader.take(length)?));
        }
    }
    Some(found)
}

/// The share control PDU that brings a client back to where it is, with what it showed as routing token there, if
/// anything. `source` is the sender's MCS user id. `None` where the routing token is too long for it.
pub(super) fn encode_return(
    redirection: &Redirection,
    routing_token: Option<&[u8]>,
    source: u16,
) -> Option<Vec<u8>> {
    let mut fields = Vec::new();
    let mut flags = redirection.flags & NOREDIRECT;
    if let Some(token) = routing_token {
        flags |= LOAD_BALANCE_INFO;
        let length = token.len().checked_add(CRLF.len())?;
        fields.extend(u32::try_from(length).ok()?.to_le_bytes());
        fields.extend_from_slice(token);
        // As brokers give it: clients send it as it is.
        fields.extend_from_slice(CRLF);
    }
    let length = u16::try_from(fields.len().checked_add(PACKET_BYTES)?).ok()?;
    let total = length.checked_add(SHARE_HEADER_BYTES)?.checked_add(2)?;
    let mut pdu = Vec::with_capacity(total.into());
    pdu.extend(total.to_le_bytes());
    pdu.extend(PDU_TYPE.to_le_bytes());
    pdu.extend(source.to_le_bytes());
    pdu.extend([0, 0]);
    pdu.extend(REDIRECTION_PKT.to_le_bytes());
    pdu.extend(length.to_le_bytes());
    pdu.extend(redirection.session_id.to_le_bytes());
    pdu.extend(flags.to_le_bytes());
    pdu.extend(fields);
    Some(pdu)
}

const CRLF: &[u8] = b"\r\n";

/// `SEC_REDIRECTION_PKT`.
const REDIRECTION_PKT: u16 = 0x0400;

/// `PDUTYPE_SERVER_REDIR_PKT` with the version of the protocol.
const PDU_TYPE: u16 = 0x001A;

/// `totalLength`, `pduType`, `pduSource`.
const SHARE_HEADER_BYTES: u16 = 6;

/// `Flags`, `Length`, `SessionID`, `RedirFlags`.
const PACKET_BYTES: usize = 12;

/// Addresses that are read.
const ADDRESSES: u32 = 64;

// `LB_*` flags of [MS-RDPBCGR] 2.2.13.1.
const TARGET_NET_ADDRESS: u32 = 0x0000_0001;
const LOAD_BALANCE_INFO: u32 = 0x0000_0002;
const USERNAME: u32 = 0x0000_0004;
const DOMAIN: u32 = 0x0000_0008;
const PASSWORD: u32 = 0x0000_0010;
const NOREDIRECT: u32 = 0x0000_0080;
const TARGET_FQDN: u32 = 0x0000_0100;
const TARGET_NET_BIOS_NAME: u32 = 0x0000_0200;
const TARGET_NET_ADDRESSES: u32 = 0x0000_0800;
const CLIENT_TSV_URL: u32 = 0x0000_1000;
const REDIRECTION_GUID: u32 = 0x0000_8000;
const TARGET_CERTIFICATE: u32 = 0x0001_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_to_come_back_with_what_it_had() {
        let redirection = Redirection {
            session_id: 7,
            flags: TARGET_FQDN | PASSWORD,
            target_fqdn: Some("other.example".to_owned()),
            ..Redirection::default()
        };
        let pdu = encode_return(&redirection, Some(b"jt-ticket"), 1002).unwrap();
        #[rustfmt::skip]
        let expected = [
            0x23, 0x00, // totalLength = 35
            0x1A, 0x00, // pduType
            0xEA, 0x03, // pduSource = 1002
            0x00, 0x00, // pad
            0x00, 0x04, // SEC_REDIRECTION_PKT
            0x1B, 0x00, // Length = 27
            0x07, 0x00, 0x00, 0x00, // SessionID
            0x02, 0x00, 0x00, 0x00, // LB_LOAD_BALANCE_INFO
            0x0B, 0x00, 0x00, 0x00, // of 11 bytes
            b'j', b't', b'-', b't', b'i', b'c', b'k', b'e', b't', b'\r', b'\n',
        ];
        assert_eq!(pdu, expected);
        let read = decode(&pdu[6..]).unwrap();
        assert_eq!(read.hosts().count(), 0);
        assert_eq!(read.load_balance_info.unwrap().as_slice(), b"jt-ticket\r\n");
    }

    #[test]
    fn nothing_of_the_other_target_is_left() {
        let redirection = Redirection {
            flags: NOREDIRECT | TARGET_NET_ADDRESS | LOAD_BALANCE_INFO,
            target_net_address: Some("10.0.0.7".to_owned()),
            load_balance_info: Some(b"token".to_vec().into()),
            ..Redirection::default()
        };
        let read = decode(&encode_return(&redirection, None, 1002).unwrap()[6..]).unwrap();
        assert_eq!(read.flags, NOREDIRECT);
        assert!(read.only_informs());
        assert_eq!((read.hosts().count(), read.load_balance_info), (0, None));
    }

    #[test]
    fn debug_output_shows_no_routing_token() {
        let redirection = Redirection {
            load_balance_info: Some(b"secret".to_vec().into()),
            ..Redirection::default()
        };
        assert!(
            !format!("{redirection:?}").contains("115"),
            "no bytes of it"
        );
    }
}
