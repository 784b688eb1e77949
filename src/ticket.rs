//! A ticket: a short opaque reference that stands for a token where a token does not fit.
//!
//! The X.224 routing token holds 238 bytes, less than any signed and encrypted token. A ticket is `jt-` and 32 base64url
//! characters of randomness (192 bits): it says nothing, cannot be guessed, and is worth nothing once it was used.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::limits;

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
pub struct TicketDigest([u8; 32]);

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
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
