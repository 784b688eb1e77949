//! Forward sessions by WebSocket: `GET /jet/fwd/tcp/<jet_aid>` and `GET /jet/fwd/tls/<jet_aid>`, for clients that write no
//! preconnection PDU. The token is shown as peers of a rendezvous show theirs ([`crate::api::jet`]), and leads to its `dst_hst`.
//!
//! The id in the path is the token's `jet_aid`, or any where it has none. With `tls` the gateway speaks TLS to the target, whose
//! certificate the token has to pin (`cert_thumb256`), and the client says what is inside.
//!
//! What the token itself says against it is a problem document in answer to the handshake. What shows behind it (the token in
//! use, the target down, another protocol) closes the WebSocket with code 1008, or is told in RDP to a client that speaks it; the
//! log has the reason.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tracing::info;
use uuid::Uuid;

use crate::api::jet::{SUB_PROTOCOLS, Upgrade, check_origin, not_admitted, token};
use crate::api::problem::Problem;
use crate::api::state::Sender;
use crate::rendezvous::admit::NotAdmitted;
use crate::session::authenticate::ToTarget;
use crate::session::forward;
use crate::state::Gateway;
use crate::trail::{self, Trail};
use jetway_audit::record::Event;
use jetway_base::session_id::SessionId;
use jetway_io::clock;

/// Handles a handshake for `/jet/fwd/tcp`.
///
/// # Errors
/// A problem document: 401 for a token that does not hold, 403 for one that is not for this.
pub async fn tcp(
    gateway: State<Arc<Gateway>>,
    sender: State<Sender>,
    association: Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    websocket(&gateway, &sender, &association, request, ToTarget::AsIs)
}

/// Handles a handshake for `/jet/fwd/tls`.
///
/// # Errors
/// As [`tcp`].
pub async fn tls(
    gateway: State<Arc<Gateway>>,
    sender: State<Sender>,
    association: Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    websocket(&gateway, &sender, &association, request, ToTarget::InTls)
}

fn websocket(
    gateway: &Arc<Gateway>,
    sender: &Sender,
    association: &str,
    mut request: Request,
    to_target: ToTarget,
) -> Result<Response, Problem> {
    let (id, peer) = (sender.id, sender.peer);
    let association = Uuid::parse_str(association).map_err(|_| {
        let detail = "expected /jet/fwd/tcp|tls/<association>";
        Problem::new(StatusCode::BAD_REQUEST, "path", detail, id)
    })?;
    let headers = request.headers();
    // Before a ticket is used up.
    check_origin(&gateway.config.jet.origins, headers).map_err(|why| {
        log_origin(&gateway.audit, id, peer, &why);
        not_admitted(id, &why)
    })?;
    let text = token(
        &gateway.tokens.tickets,
        peer.ip(),
        headers,
        request.uri().query(),
    );
    let upgrade = Upgrade::of(sender, &mut request, SUB_PROTOCOLS)?;
    let asked = forward::Request {
        id,
        peer,
        started: clock::now(),
        listener: &sender.listener,
        association,
        to_target,
    };
    let shown = forward::verify_client_credential(
        &gateway.tokens,
        &gateway.sessions.rules,
        &gateway.audit,
        &asked,
        text,
    )
    .map_err(|refusal| not_admitted(id, &NotAdmitted::from(refusal)))?;
    let connections = gateway.connections.clone();
    let gateway = Arc::clone(gateway);
    Ok(
        upgrade.go_on_as_client(&connections, move |client| async move {
            forward::proceed(&gateway, client, shown).await;
        }),
    )
}

/// The one line of a page that is not to ask.
fn log_origin(audit: &Trail, id: SessionId, peer: SocketAddr, why: &NotAdmitted) {
    info!(session = %id, %peer, decision = "deny", rule = why.rule(), reason = %why, "Session refused");
    let record = trail::of_refusal(
        Event::SessionRefused,
        (id, peer),
        why.about(),
        (why.rule(), why),
    );
    audit.record_of_anybody(peer.ip(), &record);
}
