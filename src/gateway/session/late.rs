//! Step 5 of a client that was connected before it had said anything, as one whose server may speak first: it says something at last.
//!
//! Where its token does not say what that will be, RDP is judged as if it had come at once: the routing token stays here and has to
//! stand for the token of the session, the target has to answer with a Connection Confirm, and from then on the session is one of RDP.
//! A preconnection PDU with a credential of this gateway stays here, too; one for somebody else, and a PROXY header, are passed on, and
//! what comes behind them is judged. What begins none of these is relayed, and so is what could begin one and does not go on within
//! [`limits::OPENING_PATIENCE`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::connection::{Opening, read_request};
use crate::live::registry::{Registered, Session};
use crate::refusal::{Refusal, TargetError};
use crate::session::authenticate::{check_same, stands_for, take_credential};
use crate::session::open::{ask, count, target_failed, write};
use crate::state::Tokens;
use jetway_base::limits;
use jetway_entry::carrier::{self, Credential};
use jetway_entry::preamble::{Preamble, Recognition, recognise_late};
use jetway_entry::proxy_protocol;
use jetway_io::clock;
use jetway_io::stream::Stream;
use jetway_rdp::connection_request::ConnectionRequest;
use jetway_rdp::preconnection::{self, PreconnectionPdu};

/// What a client has begun that was silent. What it has said and the target has not got is in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// RDP.
    Rdp,
    /// Another protocol.
    Other,
    /// Nothing yet: what it has said was not for the target, or goes before what is.
    Nothing,
}

/// Why it is turned away, and how it can be told.
#[derive(Debug)]
pub(super) struct Turned {
    /// Why.
    pub(super) refusal: Refusal,
    /// What waits for an answer.
    pub(super) opening: Opening,
}

/// Judges what the client says first, of which something is in its stream.
///
/// # Errors
/// It begins RDP, and its Connection Request is malformed, carries another token, or has no answer of the target.
pub(super) async fn judge(
    tokens: &Tokens,
    session: &Registered,
    client: &mut Stream,
    target: &mut Stream,
) -> Result<Begun, Turned> {
    let hearing = Hearing {
        tokens,
        session,
        started: Instant::from_std(clock::now()),
    };
    let begun = hearing.judge(client, target).await;
    begun.map_err(|turned| {
        // Who has heard something of its target waits for no answer of ours.
        if session.traffic.to_client.load(Ordering::Relaxed) > 0 {
            turned_as_other(turned.refusal)
        } else {
            turned
        }
    })
}

fn turned_as_other(refusal: Refusal) -> Turned {
    Turned {
        refusal,
        opening: Opening::Other,
    }
}

/// It speaks RDP, whatever is wrong with what it says.
fn turned_as_rdp(refusal: Refusal) -> Turned {
    Turned {
        refusal,
        opening: Opening::X224(ConnectionRequest::default()),
    }
}

struct Hearing<'a> {
    tokens: &'a Tokens,
    session: &'a Registered,
    started: Instant,
}

impl Hearing<'_> {
    async fn judge(&self, client: &mut Stream, target: &mut Stream) -> Result<Begun, Turned> {
        while !client.buffered().is_empty() {
            match Said::by(client.buffered()) {
                Said::Request => {
                    let request = self.read_request(client).await?;
                    return self.negotiate(request, client, target).await;
                }
                Said::Tls => return Ok(Begun::Rdp),
                Said::Credential(credential, length) => {
                    let peer = self.session.peer.ip();
                    let token = &self.session.token;
                    match stands_for(self.tokens, peer, &credential, token) {
                        Ok(Some(true)) => client.consume(length),
                        Ok(Some(false)) => return Err(unread(Refusal::Contradiction)),
                        // Another gateway's, which may be the target.
                        Ok(None) => self.pass(length, client, target).await?,
                        Err(refusal) => return Err(unread(refusal)),
                    }
                }
                Said::Header(length) => self.pass(length, client, target).await?,
                Said::Other => return Ok(Begun::Other),
                Said::Incomplete(patience) => {
                    let more = client.fill(limits::PRECONNECTION_PDU_BYTES);
                    match timeout_at(self.started + patience, more).await {
                        Ok(Ok(1..)) => {}
                        // It says no more, or not now: what it has said is for its server.
                        Ok(Ok(0)) | Err(_) => return Ok(Begun::Other),
                        Ok(Err(error)) => return Err(turned_as_other(Refusal::Io(error))),
                    }
                }
            }
        }
        Ok(Begun::Nothing)
    }

    /// The Connection Request, whole.
    async fn read_request(&self, client: &mut Stream) -> Result<ConnectionRequest, Turned> {
        let deadline = self.started + limits::IDENTIFY_TIMEOUT;
        match timeout_at(deadline, read_request(client)).await {
            Ok(Ok(request)) => Ok(request),
            Ok(Err(refusal @ (Refusal::Gone | Refusal::Io(_)))) => Err(turned_as_other(refusal)),
            Ok(Err(refusal)) => Err(turned_as_rdp(refusal)),
            Err(_elapsed) => Err(turned_as_rdp(Refusal::Silent)),
        }
    }

    /// As with a client that begins with its Connection Request.
    async fn negotiate(
        &self,
        mut request: ConnectionRequest,
        client: &mut Stream,
        target: &mut Stream,
    ) -> Result<Begun, Turned> {
        let Session {
            token,
            peer,
            traffic,
            ..
        } = &**self.session;
        let (_, credential) = take_credential(&mut request).map_err(turned_as_rdp)?;
        check_same(self.tokens, peer.ip(), credential.as_ref(), None, token)
            .map_err(turned_as_rdp)?;
        let request = request
            .encode()
            .map_err(|error| turned_as_rdp(error.into()))?;
        let deadline = self.started + limits::ESTABLISH_TIMEOUT;
        let answer = ask(deadline, &request, traffic, None, (client, target)).await;
        let answer = answer.map_err(|refusal| {
            if matches!(refusal, Refusal::Gone) {
                turned_as_other(refusal)
            } else {
                turned_as_rdp(refusal)
            }
        })?;
        write(client.io_mut(), &answer)
            .await
            .map_err(|error| turned_as_other(Refusal::Io(error)))?;
        count(&traffic.to_client, answer.len());
        Ok(Begun::Rdp)
    }

    /// Passes the first `length` bytes on.
    async fn pass(
        &self,
        length: usize,
        client: &mut Stream,
        target: &mut Stream,
    ) -> Result<(), Turned> {
        let bytes = client.buffered().get(..length).unwrap_or_default();
        let passed = timeout_at(
            self.started + limits::ESTABLISH_TIMEOUT,
            write(target.io_mut(), bytes),
        );
        match passed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(turned_as_other(target_failed(error))),
            Err(_elapsed) => {
                return Err(turned_as_other(TargetError::TakesNothing.into()));
            }
        }
        count(&self.session.traffic.to_target, length);
        client.consume(length);
        Ok(())
    }
}

/// It is known what it wants when it says more.
fn unread(refusal: Refusal) -> Turned {
    Turned {
        refusal,
        opening: Opening::Unread,
    }
}

/// What first bytes are.
enum Said {
    /// A Connection Request, or its beginning.
    Request,
    Tls,
    /// A preconnection PDU of so many bytes, with a credential.
    Credential(Credential, usize),
    /// So many bytes before the protocol: a preconnection PDU for somebody else, or a PROXY header.
    Header(usize),
    Other,
    /// More bytes decide, which may take so long.
    Incomplete(Duration),
}

impl Said {
    fn by(bytes: &[u8]) -> Self {
        let whole = Self::Incomplete(limits::IDENTIFY_TIMEOUT);
        match recognise_late(bytes) {
            Recognition::Known(Preamble::X224) => Self::Request,
            Recognition::Known(Preamble::Tls) => Self::Tls,
            Recognition::Known(Preamble::PreconnectionPdu) => match preconnection::decode(bytes) {
                Ok(Some((PreconnectionPdu::V1 { .. }, length))) => Self::Header(length),
                Ok(Some((PreconnectionPdu::V2 { wsz_pcb, .. }, length))) => {
                    match carrier::from_preconnection(&wsz_pcb) {
                        Ok(credential) => Self::Credential(credential, length),
                        Err(_) => Self::Header(length),
                    }
                }
                Ok(None) => whole,
                Err(_) => Self::Other,
            },
            Recognition::Known(Preamble::ProxyProtocol) => match proxy_protocol::decode(bytes) {
                Ok(Some((_, length))) => Self::Header(length),
                Ok(None) => whole,
                Err(_) => Self::Other,
            },
            Recognition::Known(Preamble::Http | Preamble::Jet) | Recognition::Unknown => {
                Self::Other
            }
            // No other protocol is known whose client begins so and pauses; and its routing token is for nobody else.
            Recognition::NeedMore if bytes.first() == Some(&0x03) => whole,
            Recognition::NeedMore => Self::Incomplete(limits::OPENING_PATIENCE),
        }
    }
}
