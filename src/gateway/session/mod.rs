//! The steps from an accepted connection to its outcome, one a file; [`arrival`](crate::arrival) takes them in this order.
//!
//! 1. [`identify`]: what do the first bytes begin? Read-ahead travels with the stream.
//! 2. [`authenticate`]: the token behind the carrier, verified, not revoked.
//! 3. [`authorize`]: a [`Permit`](jetway_policy::permit::Permit), the token reserved, the session registered.
//! 4. [`connect`]: the target dialled.
//! 5. [`open`]: the first exchange of the protocol that the token announces, and the use of the token on disk; the relay
//!    takes over from there; a client that says something only then, and may speak RDP, is judged then (`late`). Or, where the gateway stands inside the session, [`inspect`]: both legs
//!    [secured](secure), then PDUs past the stages.
//!
//! Each step takes the one before it by value, so a step that was skipped does not compile. A step that fails returns a
//! [`Refusal`](crate::refusal::Refusal); [`refuse`] tells the client. [`account`] has what a session holds until its end.
//! What happens inside of an inspected one goes to the audit (`activity`).

pub mod account;
mod activity;
pub mod authenticate;
pub mod authorize;
pub mod connect;
pub mod forward;
pub mod identify;
pub mod inspect;
mod late;
pub mod meet_acceptor;
pub mod meet_agent;
pub mod open;
pub mod reached;
pub mod refuse;
pub mod secure;

use crate::session::connect::Connected;
use crate::session::inspect::InspectedSession;
use crate::session::open::Opened;
use crate::session::refuse::Refused;
use crate::state::Gateway;

/// Runs a session to its end and accounts for it.
pub async fn run(gateway: &Gateway, ready: Ready) {
    match ready {
        Ready::Opaque(opened) => {
            let (tokens, refusals) = (&gateway.tokens, &gateway.refusals);
            opened.run(tokens, refusals, &gateway.audit).await;
        }
        // In a box of its own: it needs three times the memory of an opaque one.
        Ready::Inspected(inspected) => Box::pin(inspected.run(&gateway.audit)).await,
    }
}

/// Step 5.
///
/// # Errors
/// The legs cannot be secured, or the first exchange fails.
pub async fn secure_or_open(
    gateway: &Gateway,
    connected: Connected,
) -> Result<Ready, Box<Refused>> {
    match connected.permit.inspection().cloned() {
        None => open::open(&gateway.sessions.rules, &gateway.audit, connected)
            .await
            .map(|opened| Ready::Opaque(Box::new(opened))),
        Some(inspection) => {
            let (tools, returning) = (&gateway.inspection, &gateway.sessions.returning);
            inspect::inspect(tools, returning, &gateway.audit, connected, &inspection)
                .await
                .map(Ready::Inspected)
        }
    }
}

/// A session that can run.
#[derive(Debug)]
pub enum Ready {
    /// Its bytes are passed on as they come.
    Opaque(Box<Opened>),
    /// Its PDUs are moved past the stages.
    Inspected(Box<InspectedSession>),
}
