//! The answer to a client that is turned away, in its own protocol, and the log line.
//!
//! RDP: an RDP_NEG_FAILURE in answer to the Connection Request, which is waited for if it has not come yet. TLS at once:
//! a fatal alert. Whatever else: the connection is closed.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::connection::{Client, Opening, read_request};
use crate::listener::admission::Admission;
use crate::live::registry::Session;
use crate::refusal::Refusal;
use crate::trail::{self, Trail};
use jetway_audit::record::{Event, Record};
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_entry::preamble::{Behind, recognise_behind};
use jetway_io::clock;
use jetway_io::stream::{Io, Stream};
use jetway_io::websocket::Farewell;
use jetway_metrics::METRICS;
use jetway_rdp::connection_request::ConnectionRequest;
use jetway_rdp::negotiation::{self, FailureCode};
use jetway_relay::Side;
use jetway_store::refusals::Refusals;
use jetway_token::{About, Token};

/// A TLS 1.2 record with the fatal alert `access_denied` ([RFC 8446] 6.2), sent before any handshake.
///
/// [RFC 8446]: https://www.rfc-editor.org/rfc/rfc8446#section-6.2
const TLS_ACCESS_DENIED: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x31];

/// Bytes of a refused client that are read and thrown away so that it can read its answer.
const DRAIN_BYTES: u64 = 256 * 1024;

/// What is counted of connections that nothing is recorded of.
const DROPPED: &str = "connection.dropped";

/// A client that is turned away, and why.
#[derive(Debug)]
pub struct Refused {
    /// Correlation id.
    pub id: SessionId,
    /// The client.
    pub peer: SocketAddr,
    /// When the connection was accepted.
    pub started: Instant,
    /// Why.
    pub refusal: Refusal,
    /// What the token that it showed says of itself, if something vouches for that.
    pub about: Option<About>,
    /// Where the answer goes, if it still can be given.
    pub answer: Option<(Stream, Opening)>,
    /// Its place among the connections, kept until the answer is given.
    pub admission: Option<Admission>,
}

impl Refused {
    /// A client that cannot be answered any more.
    #[must_use]
    pub fn without_stream(
        id: SessionId,
        peer: SocketAddr,
        started: Instant,
        refusal: Refusal,
    ) -> Self {
        Self {
            id,
            peer,
            started,
            refusal,
            about: None,
            answer: None,
            admission: None,
        }
    }

    /// Adds what a verified token says, for the log.
    #[must_use]
    pub fn with_token(mut self: Box<Self>, token: &Token) -> Box<Self> {
        self.about = Some(About::of(token));
        self
    }

    /// Adds what a session says, for the log.
    #[must_use]
    pub fn with_session(self: Box<Self>, session: &Session) -> Box<Self> {
        self.with_token(&session.token)
    }

    /// Tells of it, in the audit and in the log.
    pub fn record_and_log(&self, audit: &Trail) {
        self.record(audit);
        self.log();
    }

    fn record(&self, audit: &Trail) {
        let Self {
            id, peer, refusal, ..
        } = self;
        let about = self.about.as_ref().or_else(|| refusal.about());
        // Scans are no decisions about anybody.
        if refusal.is_noise() && about.is_none() {
            METRICS.event(DROPPED, Some(refusal.rule()));
            return;
        }
        let why: (_, &dyn Display) = (refusal.rule(), refusal);
        let record = Record {
            duration_ms: Some(clock::millis_since(self.started)),
            ..trail::of_refusal(Event::SessionRefused, (*id, *peer), about, why)
        };
        match about {
            Some(_) => audit.record_of_proven(peer.ip(), &record),
            None => audit.record_of_anybody(peer.ip(), &record),
        }
    }

    fn log(&self) {
        let Self {
            id,
            peer,
            refusal,
            about,
            started,
            ..
        } = self;
        let about = about.as_ref().or_else(|| refusal.about());
        let duration_ms = clock::millis_since(*started);
        let rule = refusal.rule();
        // Who has shown a valid token is no scan, and its user may ask.
        if refusal.is_noise() && about.is_none() {
            debug!(session = %id, %peer, rule, reason = %refusal, duration_ms, "Connection dropped");
            return;
        }
        warn!(
            session = %id,
            %peer,
            user = about.and_then(|about| about.user.as_deref()),
            target = about.and_then(|about| about.target.as_deref()),
            token = about.map(|about| about.id.as_str()),
            decision = "deny",
            rule,
            reason = %refusal,
            duration_ms,
            "Session refused"
        );
    }
}

impl Client {
    /// Turns the client away.
    #[must_use]
    pub fn refused(self, refusal: Refusal, opening: Opening) -> Box<Refused> {
        let opening = match (&refusal, opening) {
            // It may be RDP that came where something else was announced, and RDP clients can be told.
            (
                Refusal::Protocol {
                    side: Side::Client, ..
                },
                Opening::Other,
            ) => Opening::Unread,
            (_, opening) => opening,
        };
        Box::new(Refused {
            id: self.id,
            peer: self.peer,
            started: self.started,
            refusal,
            about: None,
            answer: Some((self.stream, opening)),
            admission: Some(self.admission),
        })
    }

    /// Turns away a client whose Connection Request is malformed: it is answered all the same, as it speaks RDP.
    pub(super) fn refused_request(self, refusal: Refusal) -> Box<Refused> {
        let answerable = matches!(refusal, Refusal::ConnectionRequest(_));
        let opening = if answerable {
            Opening::X224(ConnectionRequest::default())
        } else {
            Opening::Unread
        };
        self.refused(refusal, opening)
    }
}

/// Logs the refusal and tells the client.
pub async fn refuse(refusals: &Refusals, audit: &Trail, refused: Refused) {
    refused.record(audit);
    let mut code = refused.refusal.failure_code();
    let address = refused.peer.ip();
    let now = clock::now();
    if matches!(refused.refusal, Refusal::NoToken)
        && let Some(first) = refusals.recall(address, now)
    {
        // Clients come back without their token after a refusal; their user is to read the reason of the first.
        code = Some(first.code);
        info!(session = %refused.id, peer = %refused.peer, first = %first.session, "Retry of a refused client");
    } else {
        refused.log();
        if let Some(code) = code {
            refusals.remember(address, code, refused.id, now);
        }
    }
    if let Some((stream, opening)) = refused.answer {
        let answer = answer(stream, opening, code);
        // A client that does not take its answer is not waited for.
        let _answered = timeout(limits::REFUSAL_LINGER, answer).await;
    }
    drop(refused.admission);
}

async fn answer(
    mut stream: Stream,
    opening: Opening,
    code: Option<FailureCode>,
) -> std::io::Result<()> {
    let opening = match opening {
        // Only a peer that is known to speak RDP is waited for.
        Opening::Unread if code.is_some() => read_opening(&mut stream).await?,
        Opening::Unread | Opening::X224(_) | Opening::DirectTls | Opening::Other => opening,
    };
    match (opening, code) {
        (Opening::X224(_), Some(code)) => {
            stream
                .io_mut()
                .write_all(&negotiation::encode_failure(code))
                .await?;
        }
        (Opening::DirectTls, _) => stream.io_mut().write_all(&TLS_ACCESS_DENIED).await?,
        (Opening::X224(_), None) | (Opening::Unread | Opening::Other, _) => match stream.io_mut() {
            Io::Tcp(_) | Io::Tls(_) | Io::TargetTls(_) => return Ok(()),
            Io::WebSocket(socket) => socket.end_with(Farewell::NotGranted),
        },
    }
    stream.close(DRAIN_BYTES).await
}

/// Waits for what is to be answered.
async fn read_opening(stream: &mut Stream) -> std::io::Result<Opening> {
    loop {
        match recognise_behind(stream.buffered()) {
            Behind::X224 => {
                return Ok(match read_request(stream).await {
                    Err(Refusal::Gone) => Opening::Other,
                    Err(Refusal::Io(error)) => return Err(error),
                    // It speaks RDP, whatever is wrong with it.
                    Err(_) => Opening::X224(ConnectionRequest::default()),
                    Ok(request) => Opening::X224(request),
                });
            }
            Behind::Tls => return Ok(Opening::DirectTls),
            Behind::Other => return Ok(Opening::Other),
            Behind::NeedMore => {}
        }
        if stream.fill(limits::CONNECTION_REQUEST_BYTES).await? == 0 {
            return Ok(Opening::Other);
        }
    }
}
