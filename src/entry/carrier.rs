//! Where an RDP client carries its credential: the text of the preconnection PDU, or the X.224 routing token.
//!
//! `pcb:s:` in a `.rdp` file becomes `wszPCB`, `loadbalanceinfo:s:` becomes the routing token; both can be present. Each
//! holds a token or a [`Ticket`] for one. [JET-PROTO] 2.2.7.

use std::fmt;

use zeroize::Zeroizing;

use crate::ticket::{self, Ticket, TicketError};
use jetway_base::limits;
use jetway_token as token;

/// What a carrier held.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A compact JWS or JWE, not verified.
    Token(Zeroizing<String>),
    /// A reference to one.
    Ticket(Ticket),
}

/// Why a carrier's text is no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarrierError {
    /// Nothing in it.
    #[error("the preconnection PDU carries no token")]
    Empty,
    /// Neither a compact JOSE object nor a ticket.
    #[error("the preconnection PDU carries neither a token nor a ticket")]
    Unknown,
    /// Starts as a ticket and is none.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Longer than any token.
    #[error("the token is longer than {} bytes", limits::TOKEN_BYTES)]
    TooLong,
}

/// Reads `wszPCB`, which exists for nothing but the credential: what is none is an error.
///
/// # Errors
/// Why the text is no credential.
pub fn from_preconnection(wsz_pcb: &str) -> Result<Credential, CarrierError> {
    let text = wsz_pcb.trim();
    if text.is_empty() {
        return Err(CarrierError::Empty);
    }
    if text.len() > limits::TOKEN_BYTES {
        return Err(CarrierError::TooLong);
    }
    if text.starts_with(ticket::PREFIX) {
        return Ok(Credential::Ticket(Ticket::parse(text)?));
    }
    if token::is_compact(text) {
        return Ok(Credential::Token(Zeroizing::new(text.to_owned())));
    }
    Err(CarrierError::Unknown)
}

/// Reads a routing token, which may be meant for somebody else (`tsv://…`, a balancer's cookie): then it is none of ours.
///
/// # Errors
/// A text that starts as a ticket and is none.
pub fn from_routing_token(routing_token: &[u8]) -> Result<Option<Credential>, CarrierError> {
    let Ok(text) = std::str::from_utf8(routing_token) else {
        return Ok(None);
    };
    // ActiveX clients pad to even length; balancers are told the cookie's name.
    let text = text.trim();
    let text = text.strip_prefix("Cookie: msts=").unwrap_or(text);
    match from_preconnection(text) {
        Ok(credential) => Ok(Some(credential)),
        Err(CarrierError::Empty | CarrierError::Unknown) => Ok(None),
        Err(error @ (CarrierError::Ticket(_) | CarrierError::TooLong)) => Err(error),
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Ticket(_) => "Ticket(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const TICKET: &str = "jt-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    #[test]
    fn a_token_or_a_ticket_is_read_from_either_carrier() {
        let token = Credential::Token(Zeroizing::new("eyJh.eyJi.c2ln".to_owned()));
        let ticket = Credential::Ticket(Ticket::parse(TICKET).unwrap());
        assert_eq!(from_preconnection(" eyJh.eyJi.c2ln\r\n"), Ok(token.clone()));
        assert_eq!(from_preconnection(TICKET), Ok(ticket.clone()));
        assert_eq!(from_routing_token(b"eyJh.eyJi.c2ln"), Ok(Some(token)));
        assert_eq!(
            from_routing_token(TICKET.as_bytes()),
            Ok(Some(ticket.clone()))
        );
        let cookie = format!("Cookie: msts={TICKET}");
        assert_eq!(from_routing_token(cookie.as_bytes()), Ok(Some(ticket)));
    }

    #[test]
    fn a_token_is_known_by_its_shape_whatever_white_space_its_header_has() {
        for header in [
            r#"{"alg":"ES256"}"#,
            r#"{ "alg":"ES256"}"#,
            "{\r\n    \"alg\":  \"ES256\",\r\n    \"typ\":  \"JWT\"\r\n}",
            "\n\t {\"alg\":\"ES256\"}",
        ] {
            for rest in [".e30.c2ln", ".a2V5.aXY.dGV4dA.dGFn"] {
                let text = format!("{}{rest}", URL_SAFE_NO_PAD.encode(header));
                let token = Credential::Token(Zeroizing::new(text.clone()));
                assert_eq!(from_preconnection(&text), Ok(token.clone()), "{header}");
                assert_eq!(from_routing_token(text.as_bytes()), Ok(Some(token)));
            }
        }
        // A list, four parts, and a part that is not base64url.
        for text in ["WyJhIl0.e30.c2ln", "eyJhIjoxfQ.e30.c2ln.e30", "e30.e+0.e30"] {
            assert_eq!(
                from_preconnection(text),
                Err(CarrierError::Unknown),
                "{text}"
            );
        }
    }

    #[test]
    fn a_routing_token_for_somebody_else_is_none_of_ours() {
        for text in [
            "tsv://MS Terminal Services Plugin.1.Sessions",
            "Cookie: msts=3640205228.15629.0000",
            "",
        ] {
            assert_eq!(from_routing_token(text.as_bytes()), Ok(None), "{text}");
        }
        assert_eq!(from_routing_token(&[0xFF, 0xFE]), Ok(None));
    }

    #[test]
    fn a_preconnection_pdu_without_a_credential_is_an_error() {
        assert_eq!(from_preconnection(""), Err(CarrierError::Empty));
        assert_eq!(
            from_preconnection("4AC4F1C5-8B9B"),
            Err(CarrierError::Unknown)
        );
        assert_eq!(
            from_preconnection("jt-short"),
            Err(CarrierError::Ticket(TicketError::Body))
        );
        let long = format!("eyJ{}", "a".repeat(limits::TOKEN_BYTES));
        assert_eq!(from_preconnection(&long), Err(CarrierError::TooLong));
    }
}
