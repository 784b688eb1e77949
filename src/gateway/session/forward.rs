//! A client of a forward session that shows its token with the request for its connection and not in RDP: a WebSocket of
//! [`crate::api::forward`]. Whatever it speaks, its token leads to the target that the token names.
//!
//! From the handshake on, its connection is one like any other: what it says first is judged by `jet_ap`, its token is reserved and
//! counts as used when the target has answered, egress and limits hold, and what is to be inspected is RDP or is refused.
//! An RDP client behind it may write a preconnection PDU all the same: it has to stand for the same token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::connection::Client;
use crate::listener::Listener;
use crate::refusal::Refusal;
use crate::session::authenticate::{self, ShownBefore, ToTarget};
use crate::session::authorize;
use crate::session::connect;
use crate::session::refuse::{self, Refused};
use crate::session::{Ready, run, secure_or_open};
use crate::state::{Gateway, SessionRules, Tokens};
use crate::trail::Trail;
use jetway_base::session_id::SessionId;
use jetway_token::Token;
use jetway_token::claims::ConnectionMode;

/// A request for a forward session.
#[derive(Debug)]
pub struct Request<'a> {
    /// Correlation id of its connection.
    pub id: SessionId,
    /// The client.
    pub peer: SocketAddr,
    /// When it came.
    pub started: Instant,
    /// The port it came in by.
    pub listener: &'a Listener,
    /// The association in its path.
    pub association: Uuid,
    /// What it asks for.
    pub to_target: ToTarget,
}

/// Verifies what a client shows with its request. What holds of its target and of its token's use is seen later, as with a client
/// that shows its token in RDP.
///
/// # Errors
/// It shows nothing, or what does not hold, or not here, or demands what cannot be delivered; it is logged.
pub fn verify_client_credential(
    tokens: &Tokens,
    rules: &SessionRules,
    audit: &Trail,
    request: &Request<'_>,
    text: Result<Option<Zeroizing<String>>, Refusal>,
) -> Result<ShownBefore, Refusal> {
    let Request {
        id, peer, started, ..
    } = *request;
    let refused = |refusal, token: Option<&Token>| {
        let refused = Box::new(Refused::without_stream(id, peer, started, refusal));
        let refused = match token {
            Some(token) => refused.with_token(token),
            None => refused,
        };
        refused.record_and_log(audit);
        refused.refusal
    };
    let text = match text {
        Ok(Some(text)) => text,
        Ok(None) => return Err(refused(Refusal::NoToken, None)),
        Err(refusal) => return Err(refused(refusal, None)),
    };
    let token = match tokens.verify(&text, peer.ip()) {
        Ok(token) => token,
        Err(refusal) => return Err(refused(refusal, None)),
    };
    let judged = tokens
        .check_revoked(&token)
        .and_then(|()| is_for(rules, request, &token));
    match judged {
        Ok(()) => Ok(ShownBefore {
            text,
            token,
            to_target: request.to_target,
        }),
        Err(refusal) => Err(refused(refusal, Some(&token))),
    }
}

/// Whether a token is for this request.
fn is_for(rules: &SessionRules, request: &Request<'_>, token: &Token) -> Result<(), Refusal> {
    let claims = &token.claims;
    match claims.jet_cm {
        ConnectionMode::Fwd => {}
        ConnectionMode::Rdv => {
            return Err(Refusal::OtherPath(
                "the token is for a rendezvous (jet_cm: rdv), and this path is for jet_cm: fwd",
            ));
        }
    }
    if claims.jet_aid.is_some_and(|id| id != request.association) {
        return Err(Refusal::OtherPath(
            "the path names another association than the token (jet_aid)",
        ));
    }
    // Said before the handshake, where a reason can be read.
    authorize::permit_for(rules, request.listener, claims, request.to_target)?;
    Ok(())
}

/// Carries a client whose handshake was answered to the end of its session.
pub async fn proceed(gateway: &Arc<Gateway>, client: Client, shown: ShownBefore) {
    // As for every session: setting up needs far more memory than relaying.
    if let Some(ready) = Box::pin(establish(gateway, client, shown)).await {
        run(gateway, ready).await;
    }
}

async fn establish(gateway: &Gateway, client: Client, shown: ShownBefore) -> Option<Ready> {
    let ready = async {
        let authenticated = authenticate::go_on(&gateway.tokens, client, shown).await?;
        let (sessions, tokens, audit) = (&gateway.sessions, &gateway.tokens, &gateway.audit);
        let authorized = authorize::authorize(sessions, tokens, audit, authenticated).await?;
        let connected = connect::connect(gateway, authorized).await?;
        secure_or_open(gateway, connected).await
    };
    match ready.await {
        Ok(ready) => Some(ready),
        Err(refused) => {
            refuse::refuse(&gateway.refusals, &gateway.audit, *refused).await;
            None
        }
    }
}
