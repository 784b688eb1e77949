//! Step 2: the token behind the carrier, verified and not revoked.
//!
//! The preconnection PDU wins over the routing token. Where both carry a credential and they do not stand for the same
//! token, somebody has tampered with one of them, and the connection is refused.

use std::net::IpAddr;

use tracing::Span;
use tracing::field::display;
use zeroize::Zeroizing;

use crate::connection::{Client, Opening};
use crate::refusal::Refusal;
use crate::session::identify::{Before, Expected, RdpClient};
use crate::session::refuse::Refused;
use crate::state::Tokens;
use jetway_entry::carrier::{self, Credential};
use jetway_io::clock;
use jetway_rdp::connection_request::ConnectionRequest;
use jetway_relay::Side;
use jetway_token::Token;
use jetway_token::application_protocol::{self, ApplicationProtocol, FirstBytes};
use jetway_token::claims::Claims;

/// A client that has shown a valid token.
#[derive(Debug)]
pub struct Authenticated {
    /// The connection.
    pub client: Client,
    /// How it goes on.
    pub opening: Opening,
    /// What the client has shown.
    pub token: Token,
    /// What goes to the target.
    pub to_target: ToTarget,
}

/// What goes to a target that is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToTarget {
    /// What the client says, or what the token has the gateway make of it.
    AsIs,
    /// TLS, which the gateway speaks, with what the client says inside.
    InTls,
}

/// A valid token that was shown with a request, before the first byte of the session.
#[derive(Debug)]
pub struct ShownBefore {
    /// The token as it was shown.
    pub text: Zeroizing<String>,
    /// What it says.
    pub token: Token,
    /// What the request asks for.
    pub to_target: ToTarget,
}

/// Verifies the client's token.
///
/// # Errors
/// There is none, or it does not hold.
pub async fn authenticate(tokens: &Tokens, rdp: RdpClient) -> Result<Authenticated, Box<Refused>> {
    let RdpClient {
        mut client,
        preconnection,
        mut opening,
    } = rdp;
    let routing = match take_routing(&mut client, &mut opening) {
        Ok(routing) => routing,
        Err(refusal) => return Err(client.refused(refusal, opening)),
    };
    let token = match verify(tokens, &client, preconnection.as_ref().or(routing.as_ref())) {
        Ok(token) => token,
        Err(refusal) => return Err(client.refused(refusal, opening)),
    };
    let (text, token) = token;
    let shown = ShownBefore {
        text,
        token,
        to_target: ToTarget::AsIs,
    };
    begin(tokens, client, opening, shown).await
}

/// The same for a client whose token came with the request for its connection. RDP clients may have a token or a ticket of their own
/// in a preconnection PDU or in the routing token: it has to stand for the same one.
///
/// # Errors
/// It does not, or what the client says is not what the token announces.
pub async fn go_on(
    tokens: &Tokens,
    mut client: Client,
    shown: ShownBefore,
) -> Result<Authenticated, Box<Refused>> {
    let expected = Expected::by(&shown.token.claims);
    let opening = match client.take_preconnection(expected).await {
        Ok(Before::Silence) => Opening::Other,
        Ok(Before::Nothing) => Opening::Unread,
        Ok(Before::Preconnection(credential)) => {
            let (text, token) = (&shown.text, &shown.token);
            let text = Some(text.as_str());
            let peer = client.peer.ip();
            if let Err(refusal) = check_same(tokens, peer, Some(&credential), text, token) {
                return Err(client
                    .refused(refusal, Opening::Unread)
                    .with_token(&shown.token));
            }
            Opening::Unread
        }
        Err(refusal) => {
            return Err(client
                .refused(refusal, Opening::Unread)
                .with_token(&shown.token));
        }
    };
    begin(tokens, client, opening, shown).await
}

/// How a client with a valid token begins, and whether that is what the token announces.
async fn begin(
    tokens: &Tokens,
    mut client: Client,
    mut opening: Opening,
    shown: ShownBefore,
) -> Result<Authenticated, Box<Refused>> {
    let ShownBefore {
        text,
        token,
        to_target,
    } = shown;
    // From here a refusal can name the token.
    let span = Span::current();
    if let Some(jet_aid) = token.claims.jet_aid {
        span.record("jet_aid", display(jet_aid));
    }
    if let Some(jet_ap) = &token.claims.jet_ap {
        span.record("jet_ap", display(jet_ap));
    }
    if matches!(opening, Opening::Unread) {
        opening = match client.read_opening(Expected::by(&token.claims)).await {
            Ok(opening) => opening,
            Err(refusal) => {
                return Err(client.refused(refusal, Opening::Unread).with_token(&token));
            }
        };
    }
    let text = Some(text.as_str());
    let checked = check_routing(tokens, &mut client, &mut opening, text, &token)
        .and_then(|()| check_protocol(&token.claims, &opening, &client));
    if let Err(refusal) = checked {
        return Err(client.refused(refusal, opening).with_token(&token));
    }
    Ok(Authenticated {
        client,
        opening,
        token,
        to_target,
    })
}

/// Takes the credential out of the routing token, and the routing token out of the request: the target never sees it.
fn take_routing(client: &mut Client, opening: &mut Opening) -> Result<Option<Credential>, Refusal> {
    let Opening::X224(request) = opening else {
        return Ok(None);
    };
    let (routing_token, credential) = take_credential(request)?;
    // Of a request that was asked before, it is known already.
    if routing_token.is_some() {
        client.routing_token = routing_token;
    }
    Ok(credential)
}

/// Takes the routing token out of a Connection Request, with the credential that it may be.
///
/// # Errors
/// It begins as a credential and is none.
pub(super) fn take_credential(request: &mut ConnectionRequest) -> Result<Routing, Refusal> {
    let routing_token = request.take_routing_token();
    let credential = match &routing_token {
        Some(routing_token) => carrier::from_routing_token(routing_token)?,
        None => None,
    };
    Ok((routing_token, credential))
}

type Routing = (Option<Zeroizing<Vec<u8>>>, Option<Credential>);

/// Takes the routing token of a client that has shown `token`, as `text` if that is known: it has to stand for the same.
///
/// # Errors
/// It does not.
pub fn check_routing(
    tokens: &Tokens,
    client: &mut Client,
    opening: &mut Opening,
    text: Option<&str>,
    token: &Token,
) -> Result<(), Refusal> {
    let routing = take_routing(client, opening)?;
    check_same(tokens, client.peer.ip(), routing.as_ref(), text, token)
}

/// Verifies the token that `credential` is or stands for.
fn verify(
    tokens: &Tokens,
    client: &Client,
    credential: Option<&Credential>,
) -> Result<(Zeroizing<String>, Token), Refusal> {
    let text = match credential {
        None => return Err(Refusal::NoToken),
        Some(Credential::Token(text)) => text.clone(),
        Some(Credential::Ticket(ticket)) => tokens
            .tickets
            .take(ticket, client.peer.ip(), clock::unix_now())
            .ok_or(Refusal::Ticket)?,
    };
    let token = tokens.verify(&text, client.peer.ip())?;
    Ok((text, token))
}

/// A second carrier is checked, not used: it must stand for the same token, in whatever that is wrapped. A ticket that no longer
/// exists contradicts nothing: it was good for one use, and a reconnecting client shows it again.
///
/// # Errors
/// It does not, or verifying it is too much work.
pub(super) fn check_same(
    tokens: &Tokens,
    peer: IpAddr,
    second: Option<&Credential>,
    text: Option<&str>,
    token: &Token,
) -> Result<(), Refusal> {
    let same = match second {
        None => true,
        Some(Credential::Token(other)) if Some(other.as_str()) == text => true,
        Some(credential) => stands_for(tokens, peer, credential, token)?
            .unwrap_or(matches!(credential, Credential::Ticket(_))),
    };
    if same {
        Ok(())
    } else {
        Err(Refusal::Contradiction)
    }
}

/// Whether a credential stands for `token`, if it stands for any here.
///
/// # Errors
/// Verifying it is too much work.
pub(super) fn stands_for(
    tokens: &Tokens,
    peer: IpAddr,
    credential: &Credential,
    token: &Token,
) -> Result<Option<bool>, Refusal> {
    match credential {
        Credential::Token(other) => match tokens.verify(other, peer) {
            Ok(other) => Ok(Some(other.id == token.id)),
            Err(Refusal::TooMuchWork) => Err(Refusal::TooMuchWork),
            Err(_) => Ok(None),
        },
        Credential::Ticket(ticket) => {
            let now = clock::unix_now();
            Ok(tokens.tickets.stands_for(ticket, &token.id, now))
        }
    }
}

/// `jet_ap` is enforced from the first byte: what follows the token must be that protocol.
pub fn check_protocol(claims: &Claims, opening: &Opening, client: &Client) -> Result<(), Refusal> {
    let Some(protocol) = &claims.jet_ap else {
        return Ok(());
    };
    let violates = match opening {
        Opening::X224(_) => {
            matches!(
                protocol,
                ApplicationProtocol::Ssh | ApplicationProtocol::Vnc
            )
        }
        Opening::Unread | Opening::DirectTls | Opening::Other => {
            application_protocol::check_client(protocol, client.stream.buffered())
                == FirstBytes::Violates
        }
    };
    if violates {
        return Err(Refusal::Protocol {
            side: Side::Client,
            protocol: protocol.clone(),
        });
    }
    Ok(())
}
