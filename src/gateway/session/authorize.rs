//! Step 3: the permit, the token reserved for this session, the session in the registry.

use crate::connection::{Client, Opening};
use crate::listener::Listener;
use crate::live::registry::Registered;
use crate::refusal::Refusal;
use crate::session::authenticate::{Authenticated, ToTarget};
use crate::session::refuse::Refused;
use crate::state::{SessionRules, Sessions, Tokens};
use crate::trail::Trail;
use jetway_policy::denial::Denial;
use jetway_policy::permit::Permit;
use jetway_policy::{self as policy, InspectionMode};
use jetway_rdp::connection_request::{PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX};
use jetway_store::redirections::RETURN_WINDOW;
use jetway_store::usage::{Claim, Reservation, UsageError};
use jetway_token::application_protocol::ApplicationProtocol;
use jetway_token::claims::Claims;

/// A client that may be connected.
#[derive(Debug)]
pub struct Authorized {
    /// The connection.
    pub client: Client,
    /// How it goes on.
    pub opening: Opening,
    /// What it may do.
    pub permit: Permit,
    /// What is announced to be spoken: by its token, and in a rendezvous by those of the others.
    pub protocol: Option<ApplicationProtocol>,
    /// Its session.
    pub session: Registered,
    /// Its token, taken.
    pub reservation: Reservation,
}

impl Authorized {
    /// Turns the client away; its token is free for another attempt, and its session over.
    #[must_use]
    pub fn refused(self, refusal: Refusal) -> Box<Refused> {
        let Self {
            client,
            opening,
            session,
            ..
        } = self;
        client.refused(refusal, opening).with_session(&session)
    }
}

/// Decides.
///
/// # Errors
/// The token demands what cannot be delivered or what this client does not offer, is in use, was used, or was revoked.
pub async fn authorize(
    sessions: &Sessions,
    tokens: &Tokens,
    audit: &Trail,
    authenticated: Authenticated,
) -> Result<Authorized, Box<Refused>> {
    let decided = decide(sessions, tokens, audit, &authenticated).await;
    let Authenticated {
        client,
        opening,
        token,
        ..
    } = authenticated;
    match decided {
        Ok((permit, session, reservation)) => Ok(Authorized {
            client,
            opening,
            permit,
            protocol: token.claims.jet_ap,
            session,
            reservation,
        }),
        Err(refusal) => Err(client.refused(refusal, opening).with_token(&token)),
    }
}

/// What a client with these claims may do.
///
/// # Errors
/// They demand what cannot be delivered.
pub fn permit(
    rules: &SessionRules,
    listener: &Listener,
    claims: &Claims,
) -> Result<Permit, Denial> {
    policy::decide(claims, rules.limits(), rules.means_by(listener))
}

/// The same for a client whose request asks for more than its bytes to be passed on.
///
/// # Errors
/// As [`permit`].
pub fn permit_for(
    rules: &SessionRules,
    listener: &Listener,
    claims: &Claims,
    to_target: ToTarget,
) -> Result<Permit, Denial> {
    match to_target {
        ToTarget::AsIs => permit(rules, listener, claims),
        ToTarget::InTls => {
            policy::decide_with_target_tls(claims, rules.limits(), rules.means_by(listener))
        }
    }
}

/// Whether a client that began so can be let in with this permit: the gateway stands inside of RDP only, and a client
/// that is to prove itself must offer to. Where all RDP is inspected, what is known for RDP does not pass as something else.
///
/// # Errors
/// It cannot.
pub fn check_opening(
    permit: &Permit,
    claims: &Claims,
    opening: &Opening,
    inspecting: InspectionMode,
) -> Result<(), Refusal> {
    if permit.inspection().is_none() {
        return match (opening, inspecting) {
            (Opening::X224(_), InspectionMode::Always) => Err(Refusal::Disguised),
            (
                Opening::X224(_) | Opening::DirectTls | Opening::Unread | Opening::Other,
                InspectionMode::Unavailable | InspectionMode::WhenNeeded | InspectionMode::Always,
            ) => Ok(()),
        };
    }
    let offers_nla = match opening {
        Opening::X224(request) => {
            let negotiation = request.negotiation.unwrap_or_default();
            negotiation.offers(PROTOCOL_HYBRID) || negotiation.offers(PROTOCOL_HYBRID_EX)
        }
        Opening::DirectTls => false,
        Opening::Unread | Opening::Other => {
            return Err(if claims.has_credentials() {
                Denial::Injection.into()
            } else if claims.wants_inside() {
                Denial::Pinning.into()
            } else {
                Refusal::Uninspectable
            });
        }
    };
    policy::can_prove(permit, offers_nla)?;
    Ok(())
}

async fn decide(
    sessions: &Sessions,
    tokens: &Tokens,
    audit: &Trail,
    authenticated: &Authenticated,
) -> Result<(Permit, Registered, Reservation), Refusal> {
    let Authenticated {
        client,
        opening,
        token,
        to_target,
    } = authenticated;
    let rules = &sessions.rules;
    let mut permit = permit_for(rules, &client.listener, &token.claims, *to_target)?;
    // Before the token is taken and anybody is contacted for a client that cannot be let in.
    let inspecting = rules.means_by(&client.listener).inspecting;
    check_opening(&permit, &token.claims, opening, inspecting)?;
    let session = sessions
        .registry
        .register(client.id, token.clone(), client.peer)?;
    // Asked after registering: a rule that arrives between the two finds the session.
    tokens.check_revoked(token)?;
    audit.admits_sessions()?;
    let reconnect_window_s = rules.reconnect_window(&token.claims).as_secs();
    // Who was sent on by the target comes back at once.
    let reconnect_window_s = match sessions.returning.of(&token.id) {
        Some(redirected) => {
            permit.confine_to(&redirected.target);
            reconnect_window_s.max(RETURN_WINDOW.as_secs())
        }
        None => reconnect_window_s,
    };
    let reserve = sessions.usages.reserve(Claim {
        token: token.id.clone(),
        session: client.id,
        client: client.peer.ip(),
        reconnect_window_s,
        keep_until: rules.last_valid(token),
        spent: session.spent().clone(),
    });
    let reservation = reserve.await?;
    let limit = permit.time_limit();
    if limit.is_some_and(|limit| reservation.left_of(limit).is_zero()) {
        return Err(UsageError::OverTime.into());
    }
    Ok((permit, session, reservation))
}
