//! [MS-RDPBCGR] 5.5 Automatic Reconnection: the cookie that lets a client come back to its session of a target without
//! a logon, and who may use it.
//!
//! The target gives `ArcRandomBits` in Save Session Info (2.2.4.2), and the client answers with a `SecurityVerifier` in
//! the Client Info PDU of its next connection (2.2.4.3). Inside TLS there is no client random: the verifier is the same
//! each time, so whoever has it can have the session. A gateway that opens connections with different tokens must not
//! carry it from one to another, so it lets a cookie pass only where [`Cookies`] know it.
//!
//! The random bits are seen once, when they pass; from then on only the verifier matters, and the secret is gone.

use std::fmt;

use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use zeroize::Zeroizing;

use super::bytes::{Reader, u32_at};
use super::logon::AutoReconnectCookie;

/// 2.2.4.3 Client Auto-Reconnect Packet (ARC_CS_PRIVATE_PACKET).
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCookie {
    /// The session of the target.
    pub logon_id: u32,
    /// The secret, as good as a password for that session.
    pub security_verifier: Zeroizing<[u8; 16]>,
}

impl fmt::Debug for ClientCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCookie")
            .field("logon_id", &self.logon_id)
            .finish_non_exhaustive()
    }
}

/// Cookies that may be used in a session: those that a target issued where the same token, or its association, led to
/// the same target.
pub trait Cookies: fmt::Debug + Send {
    /// The target issued a cookie that its client will answer so.
    fn issued(&mut self, cookie: &ClientCookie);

    /// Whether a client may use this one here.
    fn know(&self, cookie: &ClientCookie) -> bool;
}

impl ClientCookie {
    /// What a client inside TLS makes of the target's cookie; `None` where the library has no MD5.
    #[must_use]
    pub fn answer_to(cookie: &AutoReconnectCookie) -> Option<Self> {
        let key = PKey::hmac(cookie.random_bits.as_slice()).ok()?;
        let mut signer = Signer::new(MessageDigest::md5(), &key).ok()?;
        let mut verifier = Zeroizing::new([0; 16]);
        signer.update(&CLIENT_RANDOM).ok()?;
        (signer.sign(verifier.as_mut_slice()).ok()? == verifier.len()).then_some(Self {
            logon_id: cookie.logon_id,
            security_verifier: verifier,
        })
    }

    /// Reads the packet; `None` where it is not exactly one.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(packet);
        let head = [reader.u32_le()?, reader.u32_le()?];
        let logon_id = reader.u32_le()?;
        let security_verifier = Zeroizing::new(reader.array()?);
        (head == [PACKET_BYTES, AUTO_RECONNECT_VERSION_1] && reader.is_empty()).then_some(Self {
            logon_id,
            security_verifier,
        })
    }
}

/// `LogonId` of a packet that may be malformed, for the audit record.
pub(super) fn logon_id(packet: &[u8]) -> Option<u32> {
    u32_at(packet, 8)
}

/// What takes the place of the client random in Enhanced RDP Security.
const CLIENT_RANDOM: [u8; 32] = [0; 32];

/// `cbLen`.
const PACKET_BYTES: u32 = 28;

const AUTO_RECONNECT_VERSION_1: u32 = 1;

#[cfg(test)]
mod tests {
    use ironrdp_pdu::rdp::client_info::ClientAutoReconnect;
    use ironrdp_pdu::rdp::session_info::ServerAutoReconnect;

    use super::*;

    #[test]
    fn the_answer_is_what_another_implementation_gives() {
        // Of the annotated Save Session Info PDU in [MS-RDPBCGR] 4.
        let random_bits = [
            0xa8, 0x02, 0xe7, 0x25, 0xe2, 0x4c, 0x82, 0xb7, 0x52, 0xa5, 0x53, 0x50, 0x34, 0x98,
            0xa1, 0xa8,
        ];
        let logon_id = 2;
        let theirs = ClientAutoReconnect::from_server_cookie(&ServerAutoReconnect {
            logon_id,
            random_bits,
        });
        let cookie = AutoReconnectCookie {
            logon_id,
            random_bits: Zeroizing::new(random_bits),
        };
        let ours = ClientCookie::answer_to(&cookie).unwrap();
        assert_eq!(*ours.security_verifier, theirs.security_verifier);
        assert_eq!(ClientCookie::decode(&theirs.to_bytes()), Some(ours));
    }

    #[test]
    fn a_packet_is_whole_and_of_the_only_version() {
        let mut packet = [28, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0].to_vec();
        packet.extend([9; 16]);
        assert_eq!(ClientCookie::decode(&packet).unwrap().logon_id, 7);
        for length in 0..packet.len() {
            assert_eq!(ClientCookie::decode(&packet[..length]), None);
        }
        for (at, value) in [(0, 29), (4, 2)] {
            let mut packet = packet.clone();
            packet[at] = value;
            assert_eq!(ClientCookie::decode(&packet), None);
        }
        packet.push(0);
        assert_eq!(ClientCookie::decode(&packet), None);
    }

    #[test]
    fn the_secret_is_not_printed() {
        let cookie = ClientCookie {
            logon_id: 1,
            security_verifier: Zeroizing::new([0xab; 16]),
        };
        assert_eq!(format!("{cookie:?}"), "ClientCookie { logon_id: 1, .. }");
    }
}
