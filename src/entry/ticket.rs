//! A ticket: a short opaque reference that stands for a token where a token does not fit.
//!
//! The X.224 routing token holds 238 bytes, less than any signed and encrypted token. A ticket is `jt-` and 32 base64url
//! characters of randomness (192 bits): it says nothing, cannot be guessed, and is worth nothing once it was used.
//!
//! What keeps tickets keeps no token that could be read without them: a token is sealed with a key made of its ticket
//! ([RFC 5869], AES-256-GCM), and found by the ticket's digest. Whoever gets hold of the store has neither.
//!
//! [RFC 5869]: https://www.rfc-editor.org/rfc/rfc5869

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::pkey::Id;
use openssl::pkey_ctx::PkeyCtx;
use openssl::symm::{self, Cipher};
use zeroize::Zeroizing;

use jetway_base::limits;

/// What every ticket starts with.
pub const PREFIX: &str = "jt-";

/// Random bytes in a ticket.
pub const RANDOM_BYTES: usize = 24;

/// A well-formed ticket; whether anything stands behind it, only the store knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Zeroizing<String>);

/// Why a text is not a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Does not start with `jt-`.
    #[error("not a ticket: a ticket starts with jt-")]
    Prefix,
    /// Longer than any ticket.
    #[error("a ticket has at most {} characters", limits::TICKET_CHARS)]
    TooLong,
    /// Not 32 base64url characters behind the prefix.
    #[error("not a ticket: expected 32 base64url characters behind the prefix")]
    Body,
}

/// The digest by which a ticket is stored and found: neither the table nor a timing difference in looking into it tells
/// anything about the tickets in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TicketDigest([u8; DIGEST_BYTES]);

/// A token that nobody reads without its ticket: what AES-256-GCM makes of it, and behind that its tag.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedToken(Vec<u8>);

/// The cryptographic library failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token of a ticket cannot be sealed: {0}")]
pub struct SealError(String);

impl Ticket {
    /// The ticket made of `random`, which the caller took from the system's generator.
    #[must_use]
    pub fn from_random(random: &[u8; RANDOM_BYTES]) -> Self {
        Self(Zeroizing::new(format!(
            "{PREFIX}{}",
            URL_SAFE_NO_PAD.encode(random)
        )))
    }

    /// Reads a ticket as a client sent it.
    ///
    /// # Errors
    /// What is malformed; never whether the ticket exists.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let body = text.strip_prefix(PREFIX).ok_or(TicketError::Prefix)?;
        if text.len() > limits::TICKET_CHARS {
            return Err(TicketError::TooLong);
        }
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        match URL_SAFE_NO_PAD.decode_slice(body, random.as_mut_slice()) {
            Ok(RANDOM_BYTES) => Ok(Self::from_random(&random)),
            Ok(_) | Err(_) => Err(TicketError::Body),
        }
    }

    /// The text for a `loadbalanceinfo` line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Under what the store keeps this ticket.
    #[must_use]
    pub fn digest(&self) -> TicketDigest {
        TicketDigest(openssl::sha::sha256(self.0.as_bytes()))
    }

    /// Makes `token` unreadable for whoever does not have this ticket, which is to seal no other one.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn seal(&self, token: &str) -> Result<SealedToken, SealError> {
        let mut tag = [0_u8; TAG_BYTES];
        let sealed = self.sealing_key().and_then(|key| {
            let (cipher, nonce) = (Cipher::aes_256_gcm(), Some(NONCE.as_slice()));
            symm::encrypt_aead(
                cipher,
                key.as_slice(),
                nonce,
                &[],
                token.as_bytes(),
                &mut tag,
            )
        });
        let mut sealed = sealed.map_err(|error| SealError(error.to_string()))?;
        sealed.extend(tag);
        Ok(SealedToken(sealed))
    }

    /// The token that was sealed with this ticket; `None` of another one, and of what was damaged.
    #[must_use]
    pub fn unseal(&self, sealed: &SealedToken) -> Option<Zeroizing<String>> {
        let (sealed, tag) = sealed.0.split_last_chunk::<TAG_BYTES>()?;
        let key = self.sealing_key().ok()?;
        let (cipher, nonce) = (Cipher::aes_256_gcm(), Some(NONCE.as_slice()));
        let token = symm::decrypt_aead(cipher, key.as_slice(), nonce, &[], sealed, tag).ok()?;
        // Whoever could make the tag of what is no text has the ticket.
        String::from_utf8(token).ok().map(Zeroizing::new)
    }

    fn sealing_key(&self) -> Result<Zeroizing<[u8; KEY_BYTES]>, ErrorStack> {
        let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
        let mut derivation = PkeyCtx::new_id(Id::HKDF)?;
        derivation.derive_init()?;
        derivation.set_hkdf_md(Md::sha256())?;
        derivation.set_hkdf_key(self.0.as_bytes())?;
        derivation.add_hkdf_info(KEY_INFO)?;
        derivation.derive(Some(key.as_mut_slice()))?;
        Ok(key)
    }
}

impl TicketDigest {
    /// The digest with these bytes, as it was stored; `None` of another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As it is stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl SealedToken {
    /// As it was stored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// As it is stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SealedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedToken(..)")
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

const DIGEST_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// What the derived key is for, so that nothing else that is ever made of a ticket is this key.
const KEY_INFO: &[u8] = b"jetway ticket v1: sealed token";
/// Each key is of one ticket and seals one token, so its only nonce may be any.
const NONCE: [u8; 12] = [0; 12];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_token_is_read_with_its_ticket_and_with_nothing_else() {
        let ticket = Ticket::from_random(&[7; RANDOM_BYTES]);
        let token = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln";
        let sealed = ticket.seal(token).unwrap();
        assert_eq!(ticket.unseal(&sealed).unwrap().as_str(), token);
        let stored = sealed.as_bytes();
        assert!(
            !stored
                .windows(8)
                .any(|bytes| token.as_bytes().starts_with(bytes))
        );
        assert_eq!(SealedToken::from_bytes(stored), sealed);
        let mut other = [7; RANDOM_BYTES];
        other[0] ^= 1;
        assert_eq!(Ticket::from_random(&other).unseal(&sealed), None);
        for at in 0..stored.len() {
            let mut damaged = stored.to_vec();
            damaged[at] ^= 1;
            assert_eq!(ticket.unseal(&SealedToken(damaged)), None, "{at}");
            assert_eq!(ticket.unseal(&SealedToken(stored[..at].to_vec())), None);
        }
        assert_eq!(format!("{sealed:?}"), "SealedToken(..)");
        // Nor does the digest, which stands beside it, make the key.
        let digest = ticket.digest();
        assert_ne!(ticket.sealing_key().unwrap().as_slice(), digest.as_bytes());
        assert_eq!(TicketDigest::from_bytes(digest.as_bytes()), Some(digest));
        assert_eq!(TicketDigest::from_bytes(&[0; 31]), None);
    }

    #[test]
    fn a_ticket_round_trips_and_fits_a_routing_token() {
        let ticket = Ticket::from_random(&[0xFF; RANDOM_BYTES]);
        assert!(ticket.as_str().len() <= limits::TICKET_CHARS);
        assert_eq!(Ticket::parse(ticket.as_str()), Ok(ticket));
    }

    #[test]
    fn what_is_not_a_ticket_says_why() {
        let body = "A".repeat(32);
        assert_eq!(Ticket::parse("eyJhbGciOi"), Err(TicketError::Prefix));
        assert_eq!(
            Ticket::parse(&format!("jt-{body}{body}")),
            Err(TicketError::TooLong)
        );
        assert_eq!(Ticket::parse("jt-short"), Err(TicketError::Body));
        assert_eq!(
            Ticket::parse(&format!("jt-{}!", &body[1..])),
            Err(TicketError::Body)
        );
        assert_eq!(
            Ticket::parse(&format!("jt-{body}A")),
            Err(TicketError::Body)
        );
    }

    #[test]
    fn debug_output_does_not_show_a_ticket() {
        let ticket = Ticket::from_random(&[7; RANDOM_BYTES]);
        assert_eq!(format!("{ticket:?}"), "Ticket(..)");
    }
}
