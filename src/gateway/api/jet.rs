//! [JET-PROTO] 2.2.6 WebSocket protocol: `/jet/accept|connect|test/<association>/<candidate>`.
//!
//! The request is decided before the handshake is answered: 101 says that the peer waits, or has met somebody.
//!
//! A peer shows its token, where one is demanded, in one of three ways:
//!
//! - `Authorization: Bearer TOKEN`;
//! - the sub-protocol `bearer.TOKEN` beside `jet`, since scripts in a browser cannot set headers; the answer selects
//!   `jet`, or `jet.half-close` where that is offered, too ([`jetway_io::websocket`]);
//! - `?ticket=jt-...`, a ticket of `POST /jet/tickets`: what a URL shows is worth nothing once it was used.
//!
//! None of them is added by a browser of its own accord, as a cookie is, so a page of any site is as good as what it shows.
//! Where knowing two ids is enough, or being in the right network, `jet.origins` says whose pages may try. Answers have no
//! CORS headers: what is behind the REST interface is for servers, not for pages.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug};
use zeroize::Zeroizing;

use crate::api::held::Held;
use crate::api::operator::bearer;
use crate::api::problem::Problem;
use crate::api::state::Sender;
use crate::connection::{Client, Connection};
use crate::meeting::party::Shown;
use crate::refusal::Refusal;
use crate::rendezvous::admit::NotAdmitted;
use crate::rendezvous::{admit, pair};
use crate::state::Gateway;
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_entry::ticket::Ticket;
use jetway_io::clock;
use jetway_io::stream::{Io, Stream};
use jetway_io::websocket::frames::Role;
use jetway_io::websocket::{Ends, HALF_CLOSE_PROTOCOL, WebSocket};
use jetway_jet::exchange::{JetPath, SUB_PROTOCOL};
use jetway_store::tickets::Tickets;

/// What a peer of a rendezvous may offer, the best first.
pub(super) const SUB_PROTOCOLS: &[&str] = &[HALF_CLOSE_PROTOCOL, SUB_PROTOCOL];

/// What comes before a token that is offered as a sub-protocol.
const BEARER_SUB_PROTOCOL: &str = "bearer.";

/// As much of a foreign origin as is worth logging.
const ORIGIN_CHARS: usize = 200;

/// Handles a WebSocket handshake.
///
/// # Errors
/// A problem document with the status that the specification has for it: 404 for what is not there.
pub async fn websocket(
    State(gateway): State<Arc<Gateway>>,
    State(sender): State<Sender>,
    mut request: Request,
) -> Result<Response, Problem> {
    let (id, peer) = (sender.id, sender.peer);
    let uri = request.uri().clone();
    let path = JetPath::parse(uri.path()).ok_or_else(|| {
        let detail = "expected /jet/accept|connect|test/<association>/<candidate>";
        Problem::new(StatusCode::BAD_REQUEST, "path", detail, id)
    })?;
    let headers = request.headers();
    let refused = |why: NotAdmitted| {
        admit::log_not_admitted(&gateway.audit, id, peer, path, &Shown::Nothing, &why);
        not_admitted(id, &why)
    };
    // Before a ticket is used up.
    check_origin(&gateway.config.jet.origins, headers).map_err(refused)?;
    let text = token(&gateway.tokens.tickets, peer.ip(), headers, uri.query());
    let text = text.map_err(|refusal| refused(refusal.into()))?;
    let upgrade = Upgrade::of(&sender, &mut request, SUB_PROTOCOLS)?;
    let text = text.as_ref().map(|text| text.as_str());
    let judged = admit::judge(&gateway, (id, peer), path, text).await;
    let (shown, admitted) = judged.map_err(|why| not_admitted(id, &why))?;
    let connections = gateway.connections.clone();
    Ok(
        upgrade.go_on_as_client(&connections, move |client| async move {
            pair::proceed(&gateway, client, shown, path.association, admitted).await;
        }),
    )
}

/// A request for an upgrade to WebSocket, on its way to be one.
pub(super) struct Upgrade {
    accept: String,
    sub_protocol: Option<&'static str>,
    upgrade: hyper::upgrade::OnUpgrade,
    evicted: CancellationToken,
    id: SessionId,
    peer: SocketAddr,
}

impl Upgrade {
    /// Reads the request, and selects the first of `sub_protocols` that is offered. The connection stays with HTTP, and with it
    /// its place, until the answer is out.
    ///
    /// # Errors
    /// The request asks for no upgrade.
    pub(super) fn of(
        sender: &Sender,
        request: &mut Request,
        sub_protocols: &[&'static str],
    ) -> Result<Self, Problem> {
        let headers = request.headers();
        let key = handshake_key(headers).ok_or_else(|| {
            let detail = "this path is for WebSocket handshakes of version 13";
            Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade", detail, sender.id)
        })?;
        let accept = derive_accept_key(key.as_bytes());
        let mut known = sub_protocols.iter().copied();
        let sub_protocol = known.find(|known| offered(headers).any(|offered| offered == *known));
        let upgrade = hyper::upgrade::on(request);
        Ok(Self {
            accept,
            sub_protocol,
            upgrade,
            evicted: sender.evicted.clone(),
            id: sender.id,
            peer: sender.peer,
        })
    }

    /// As [`go_on`](Self::go_on), with the peer as a client whose bytes are those of the WebSocket.
    pub(super) fn go_on_as_client<N, F>(self, connections: &TaskTracker, next: N) -> Response
    where
        N: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (id, peer) = (self.id, self.peer);
        let ends = match self.sub_protocol {
            Some(HALF_CLOSE_PROTOCOL) => Ends::Apart,
            Some(_) | None => Ends::Together,
        };
        self.go_on(connections, move |stream, connection| {
            let socket = WebSocket::new(stream, Role::Server, Vec::new(), ends);
            let now = clock::now();
            let client = Client {
                id,
                peer,
                started: connection.started,
                identify_by: now + limits::IDENTIFY_TIMEOUT,
                establish_by: now + limits::ESTABLISH_TIMEOUT,
                listener: connection.listener,
                routing_token: None,
                stream: Stream::new(Io::WebSocket(Box::new(socket))),
                admission: connection.admission,
            };
            next(client)
        })
    }

    /// The answer to the handshake; behind it, `next` goes on with the connection in a task of its own.
    pub(super) fn go_on<N, F>(self, connections: &TaskTracker, next: N) -> Response
    where
        N: FnOnce(Stream, Connection) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Self {
            accept,
            sub_protocol,
            upgrade,
            evicted,
            id,
            peer,
        } = self;
        let going_on = async move {
            match upgrade.await.map(hyper::upgrade::Upgraded::downcast) {
                Ok(Ok(parts)) => {
                    let parts: hyper::upgrade::Parts<TokioIo<Held>> = parts;
                    let (stream, connection) = parts.io.into_inner().into_parts();
                    let (io, rest) = stream.into_parts();
                    // What the HTTP side had read comes before what it had not.
                    let mut read_ahead = parts.read_buf.to_vec();
                    read_ahead.extend_from_slice(&rest);
                    next(Stream::rewound(io, read_ahead), connection).await;
                }
                Ok(Err(_)) | Err(_) => {
                    debug!(session = %id, %peer, "Peer disconnected during the handshake");
                }
            }
        };
        let until_evicted = async move {
            tokio::select! {
                biased;
                () = evicted.cancelled() => {}
                () = going_on => {}
            }
        };
        connections.spawn(until_evicted.instrument(Span::current()));
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::try_from(accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(selected) = sub_protocol {
            let selected = HeaderValue::from_static(selected);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, selected);
        }
        response
    }
}

/// The problem document of a request that was not granted.
#[must_use]
pub fn not_admitted(id: SessionId, why: &NotAdmitted) -> Problem {
    Problem::answer(why.status(), why.rule(), why.to_string(), id)
}

/// `Sec-WebSocket-Key` of a request that asks for an upgrade to WebSocket ([RFC 6455] 4.2.1).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455#section-4.2.1
fn handshake_key(headers: &HeaderMap) -> Option<&HeaderValue> {
    let has = |name, wanted: &str| {
        let values = headers.get_all(name).iter();
        let mut values = values.filter_map(|value| value.to_str().ok());
        values.any(|value| {
            let mut words = value.split(',');
            words.any(|word| word.trim().eq_ignore_ascii_case(wanted))
        })
    };
    let asks = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    headers
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|key| asks && !key.is_empty())
}

/// The sub-protocols that the peer offers.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Whether a token is among the sub-protocols that the peer offers.
pub(super) fn has_bearer(headers: &HeaderMap) -> bool {
    offered(headers).any(|offered| offered.starts_with(BEARER_SUB_PROTOCOL))
}

/// Judges the page that a browser sends a handshake for ([RFC 6455] 10.2).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455#section-10.2
pub(super) fn check_origin(allowed: &[String], headers: &HeaderMap) -> Result<(), NotAdmitted> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let strange = origins.find(|origin| {
        let known = |allowed: &String| origin.as_bytes() == allowed.as_bytes();
        !allowed.iter().any(known)
    });
    match strange {
        Some(origin) if !allowed.is_empty() => {
            let origin = String::from_utf8_lossy(origin.as_bytes());
            Err(NotAdmitted::Origin(
                origin.chars().take(ORIGIN_CHARS).collect(),
            ))
        }
        Some(_) | None => Ok(()),
    }
}

/// The token that the peer shows, if it shows one.
pub(super) fn token(
    tickets: &Tickets,
    peer: IpAddr,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Option<Zeroizing<String>>, Refusal> {
    if let Some(token) = bearer(headers) {
        return Ok(Some(Zeroizing::new(token.to_owned())));
    }
    let mut offered = offered(headers);
    if let Some(token) = offered.find_map(|offered| offered.strip_prefix(BEARER_SUB_PROTOCOL)) {
        return Ok(Some(Zeroizing::new(token.to_owned())));
    }
    let mut parameters = query.unwrap_or_default().split('&');
    let Some(ticket) = parameters.find_map(|parameter| parameter.strip_prefix("ticket=")) else {
        return Ok(None);
    };
    let token = redeem(tickets, peer, ticket);
    token.map(Some).ok_or(Refusal::Ticket)
}

fn redeem(tickets: &Tickets, peer: IpAddr, ticket: &str) -> Option<Zeroizing<String>> {
    let ticket = Ticket::parse(ticket).ok()?;
    tickets.take(&ticket, peer, clock::unix_now())
}
