//! Step 2: the token behind the carrier, verified and not revoked.
//!
//! The preconnection PDU wins over the routing token. Where both carry a credential and they do not stand for the same
//! token, somebody has tampered with one of them, and the connection is refused.

use tracing::Span;
use tracing::field::display;
use zeroize::Zeroizing;

use crate::application_protocol::{self, ApplicationProtocol, FirstBytes};
use crate::carrier::{self, Credential};
use crate::clock;
use crate::gateway::connection::{Client, Opening};
use crate::gateway::state::Gateway;
use crate::refusal::Refusal;
use crate::session::identify::{Before, Expected, RdpClient};
use crate::session::refuse::Refused;
use crate::token::Token;
use crate::token::claims::Claims;

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
pub async fn authenticate(
    gateway: &Gateway,
    rdp: RdpClient,
) -> Result<Authenticated, Box<Refused>> {
    let RdpClient {
        mut client,
        preconnection,
        mut opening,
    } = rdp;
    let routing = match take_routing(&mut client, &mut opening) {
        Ok(routing) => routing,
        Err(refusal) => return Err(client.refused(refusal, opening)),
    };
    let token = match verify(
        gateway,
        &client,
        preconnection.as_ref().or(routing.as_ref()),
    ) {
        Ok(token) => token,
        Err(refusal) => return Err(client.refused(refusal, opening)),
    };
    let (text, token) = token;
    let shown = ShownBefore {
        text,
        token,
        to_target: ToTarget::AsIs,
    };
    begin(gateway, client, opening, shown).await
}

/// The same for a client whose token came with the request for its connection. RDP clients may have a token or a ticket of their own
/// in a preconnection PDU or in the routing token: it has to stand for the same one.
///
/// # Errors
/// It does not, or what the client says is not what the token announces.
pub async fn go_on(
    gateway: &Gateway,
    mut client: Client,
    shown: ShownBefore,
) -> Result<Authenticated, Box<Refused>> {
    let expected = Expected::by(&shown.token.claims);
    let opening = match client.take_preconnection(expected).await {
        Ok(Before::Silence) => Opening::Other,
        Ok(Before::Nothing) => Opening::Unread,
        Ok(Before::Preconnection(credential)) => {
            let (text, token) = (&shown.text, &shown.token);
            if let Err(refusal) = check_same(gateway, &client, Some(&credential), text, token) {
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
    begin(gateway, client, opening, shown).await
}

/// How a client with a valid token begins, and whether that is what the token announces.
async fn begin(
    gateway: &Gateway,
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
    let checked = take_routing(&mut client, &mut opening)
        .and_then(|routing| check_same(gateway, &client, routing.as_ref(), &text, &token))
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
    let Some(routing_token) = request.take_routing_token() else {
        return Ok(None);
    };
    let credential = carrier::from_routing_token(&routing_token)?;
    client.routing_token = Some(routing_token);
    Ok(credential)
}

/// Verifies the token that `credential` is or stands for.
fn verify(
    gateway: &Gateway,
    client: &Client,
    credential: Option<&Credential>,
) -> Result<(Zeroizing<String>, Token), Refusal> {
    let text = match credential {
        None => return Err(Refusal::NoToken),
        Some(Credential::Token(text)) => text.clone(),
        Some(Credential::Ticket(ticket)) => gateway
            .tickets
            .take(ticket, client.peer.ip(), clock::unix_now())
            .ok_or(Refusal::Ticket)?,
    };
    let token = gateway.verify_token(&text, client.peer.ip())?;
    Ok((text, token))
}

/// A second carrier is checked, not used: it must stand for the same token, in whatever that is wrapped. A ticket that no longer
/// exists contradicts nothing: it was good for one use, and a reconnecting client shows it again.
fn check_same(
    gateway: &Gateway,
    client: &Client,
    routing: Option<&Credential>,
    text: &str,
    token: &Token,
) -> Result<(), Refusal> {
    let same = match routing {
        None => true,
        Some(Credential::Token(other)) if other.as_str() == text => true,
        Some(Credential::Token(other)) => match gateway.verify_token(other, client.peer.ip()) {
            Ok(other) => other.id == token.id,
            Err(Refusal::TooMuchWork) => return Err(Refusal::TooMuchWork),
            Err(_) => false,
        },
        Some(Credential::Ticket(ticket)) => gateway
            .tickets
            .stands_for(ticket, &token.id, clock::unix_now())
            .unwrap_or(true),
    };
    if same {
        Ok(())
    } else {
        Err(Refusal::Contradiction)
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
            side: "client",
            protocol: protocol.clone(),
        });
    }
    Ok(())
}
