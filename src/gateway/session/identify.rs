//! Step 1: what do the first bytes begin, and where is the token?
//!
//! The same question is asked again after a PROXY protocol header, after a TLS handshake and after a preconnection PDU.

use std::io;

use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;

use crate::config::Arrival;
use crate::connection::{Client, Opening, fill, read_request};
use crate::refusal::Refusal;
use crate::session::refuse::Refused;
use jetway_base::limits;
use jetway_entry::carrier::{self, Credential};
use jetway_entry::preamble::{Behind, Preamble, Recognition, recognise, recognise_behind};
use jetway_entry::proxy_protocol;
use jetway_io::clock;
use jetway_io::stream::{Io, Stream};
use jetway_metrics::{Leg, METRICS};
use jetway_rdp::preconnection::{self, PreconnectionPdu};
use jetway_token::application_protocol::{self, ApplicationProtocol, FirstBytes};
use jetway_token::claims::Claims;

/// What a token announces that its client will speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected<'a> {
    /// RDP.
    Rdp,
    /// It does not say: RDP or anything else.
    Unsaid,
    /// This protocol, which is not RDP.
    Other(&'a ApplicationProtocol),
}

impl<'a> Expected<'a> {
    /// By these claims. What they want done inside a session can be done in RDP only.
    #[must_use]
    pub fn by(claims: &'a Claims) -> Self {
        match &claims.jet_ap {
            Some(ApplicationProtocol::Rdp) => Self::Rdp,
            None if claims.wants_inside() => Self::Rdp,
            None | Some(ApplicationProtocol::None) => Self::Unsaid,
            Some(
                protocol @ (ApplicationProtocol::Wayk
                | ApplicationProtocol::Ssh
                | ApplicationProtocol::Vnc
                | ApplicationProtocol::Other(_)),
            ) => Self::Other(protocol),
        }
    }
}

/// What a client says before its protocol, where its token was shown before that.
#[derive(Debug)]
pub enum Before {
    /// Its protocol has begun.
    Nothing,
    /// It waits for its server.
    Silence,
    /// A preconnection PDU with a credential, as RDP clients write it.
    Preconnection(Credential),
}

/// A client that speaks RDP, or announced that it has a token to show.
#[derive(Debug)]
pub struct RdpClient {
    /// The connection.
    pub client: Client,
    /// From the preconnection PDU.
    pub preconnection: Option<Credential>,
    /// How it goes on.
    pub opening: Opening,
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Identified {
    /// RDP.
    Rdp(Box<RdpClient>),
    /// HTTP.
    Http {
        /// The connection; the request is still in it.
        client: Box<Client>,
        /// Whether TLS protects it.
        tls: bool,
    },
    /// JET binary protocol.
    Jet {
        /// The connection; the packet is still in it.
        client: Box<Client>,
    },
}

/// Finds out what arrived.
///
/// # Errors
/// It is nothing that this listener takes, or it did not arrive in time.
pub async fn identify(client: Client) -> Result<Identified, Box<Refused>> {
    let Client {
        id,
        peer,
        started,
        identify_by,
        ..
    } = client;
    match timeout_at(identify_by.into(), read(client)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Box::new(Refused::without_stream(
            id,
            peer,
            started,
            Refusal::Silent,
        ))),
    }
}

async fn read(mut client: Client) -> Result<Identified, Box<Refused>> {
    let mut tls = false;
    let mut first = true;
    loop {
        let kind = match client.preamble().await {
            Ok(kind) => kind,
            Err(refusal) => return Err(client.refused(refusal, Opening::Unread)),
        };
        if let Err(refusal) = client.check_narrowing(kind) {
            return Err(client.refused(refusal, Opening::Unread));
        }
        match kind {
            Preamble::ProxyProtocol => {
                let result = if first {
                    client.read_proxy_header().await
                } else {
                    Err(Refusal::Unrecognised)
                };
                if let Err(refusal) = result {
                    return Err(client.refused(refusal, Opening::Unread));
                }
            }
            Preamble::Tls if tls => {
                return Err(client.refused(Refusal::Unrecognised, Opening::Unread));
            }
            Preamble::Tls => {
                client = client.handshake().await?;
                tls = true;
            }
            Preamble::PreconnectionPdu => return client.read_preconnection().await,
            Preamble::X224 => {
                return match read_request(&mut client.stream).await {
                    Ok(request) => Ok(Identified::Rdp(Box::new(RdpClient {
                        client,
                        preconnection: None,
                        opening: Opening::X224(request),
                    }))),
                    Err(refusal) => Err(client.refused_request(refusal)),
                };
            }
            Preamble::Http => {
                let client = Box::new(client);
                return Ok(Identified::Http { client, tls });
            }
            Preamble::Jet => {
                let client = Box::new(client);
                return Ok(Identified::Jet { client });
            }
        }
        first = false;
    }
}

impl Client {
    async fn preamble(&mut self) -> Result<Preamble, Refusal> {
        loop {
            match recognise(self.stream.buffered()) {
                Recognition::Known(kind) => return Ok(kind),
                Recognition::Unknown => return Err(Refusal::Unrecognised),
                Recognition::NeedMore => self.fill(limits::PRECONNECTION_PDU_BYTES).await?,
            }
        }
    }

    fn check_narrowing(&self, kind: Preamble) -> Result<(), Refusal> {
        let (arrival, name) = match kind {
            // The header says where the connection is from, not what it is; who may send one is asked below.
            Preamble::ProxyProtocol => return Ok(()),
            Preamble::PreconnectionPdu | Preamble::X224 => (Arrival::Rdp, "RDP"),
            Preamble::Tls => (Arrival::Tls, "TLS"),
            Preamble::Http => (Arrival::Http, "HTTP"),
            Preamble::Jet => (Arrival::Jet, "JET"),
        };
        if self.listener.accepts(arrival) {
            Ok(())
        } else {
            Err(Refusal::NotAcceptedHere(name))
        }
    }

    async fn read_proxy_header(&mut self) -> Result<(), Refusal> {
        if !self.listener.trusts_proxy(self.peer.ip()) {
            return Err(Refusal::ProxyNotTrusted);
        }
        let (header, length) = loop {
            match proxy_protocol::decode(self.stream.buffered())? {
                Some(found) => break found,
                None => self.fill(limits::PROXY_HEADER_BYTES).await?,
            }
        };
        self.stream.consume(length);
        if let Some(source) = header.source {
            self.peer = source;
            // From here the limits are those of the client, not those of the balancer.
            if !self.admission.rebind(source.ip()) {
                return Err(Refusal::TooManySessions);
            }
        }
        Ok(())
    }

    async fn handshake(self) -> Result<Self, Box<Refused>> {
        let Some(config) = self.listener.tls() else {
            return Err(self.refused(Refusal::NoCertificate, Opening::DirectTls));
        };
        let Self {
            id,
            peer,
            started,
            identify_by,
            establish_by,
            listener,
            routing_token,
            stream,
            admission,
        } = self;
        let failed = |error: io::Error| {
            // Its own doing, as where a peer needs only one of several connections.
            let left = matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            );
            let refusal = if left {
                Refusal::Gone
            } else {
                Refusal::Tls(error)
            };
            Box::new(Refused::without_stream(id, peer, started, refusal))
        };
        let (io, read_ahead) = stream.into_parts();
        let Io::Tcp(tcp) = io else {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        };
        let mut fed = Ok(());
        let handshake = TlsAcceptor::from(config).accept_with(tcp, |connection| {
            // What was read to recognise TLS belongs to the handshake.
            let mut rest = read_ahead.as_slice();
            while !rest.is_empty() && fed.is_ok() {
                fed = match connection.read_tls(&mut rest) {
                    Ok(0) => Err(io::ErrorKind::InvalidData.into()),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
            }
        });
        fed.map_err(failed)?;
        let began = clock::now();
        let tls = handshake.await.map_err(failed)?;
        METRICS.handshake(Leg::Client, clock::seconds_since(began));
        let stream = Stream::new(Io::Tls(Box::new(tls)));
        Ok(Self {
            id,
            peer,
            started,
            identify_by,
            establish_by,
            listener,
            routing_token,
            stream,
            admission,
        })
    }

    async fn read_preconnection(mut self) -> Result<Identified, Box<Refused>> {
        let (pdu, length) = loop {
            match preconnection::decode(self.stream.buffered()) {
                Ok(Some(found)) => break found,
                Ok(None) => {
                    if let Err(refusal) = self.fill(limits::PRECONNECTION_PDU_BYTES).await {
                        return Err(self.refused(refusal, Opening::Unread));
                    }
                }
                Err(error) => return Err(self.refused(error.into(), Opening::Other)),
            }
        };
        self.stream.consume(length);
        let credential = match pdu {
            PreconnectionPdu::V1 { .. } => Err(Refusal::PreconnectionV1),
            PreconnectionPdu::V2 { wsz_pcb, .. } => {
                carrier::from_preconnection(&wsz_pcb).map_err(Refusal::from)
            }
        };
        match credential {
            Ok(credential) => Ok(Identified::Rdp(Box::new(RdpClient {
                client: self,
                preconnection: Some(credential),
                opening: Opening::Unread,
            }))),
            Err(refusal) => Err(self.refused(refusal, Opening::Unread)),
        }
    }

    /// Takes the preconnection PDU of a client whose token was shown before, if it writes one. Where another protocol than RDP is
    /// announced there is none; where none is announced, only what carries a credential is one.
    ///
    /// # Errors
    /// The client leaves, says nothing where RDP is announced, or its PDU carries no credential.
    pub async fn take_preconnection(&mut self, expected: Expected<'_>) -> Result<Before, Refusal> {
        let patience = match expected {
            Expected::Other(_) => return Ok(Before::Nothing),
            Expected::Rdp => self.identify_by,
            Expected::Unsaid => {
                let now = clock::now();
                now.checked_add(limits::OPENING_PATIENCE).unwrap_or(now)
            }
        };
        loop {
            match recognise(self.stream.buffered()) {
                Recognition::Known(Preamble::PreconnectionPdu) => {
                    match preconnection::decode(self.stream.buffered()) {
                        Ok(Some((pdu, length))) => {
                            let credential = match pdu {
                                PreconnectionPdu::V1 { .. } => Err(Refusal::PreconnectionV1),
                                PreconnectionPdu::V2 { wsz_pcb, .. } => {
                                    carrier::from_preconnection(&wsz_pcb).map_err(Refusal::from)
                                }
                            };
                            return match (credential, expected) {
                                (Ok(credential), _) => {
                                    self.stream.consume(length);
                                    Ok(Before::Preconnection(credential))
                                }
                                (Err(refusal), Expected::Rdp) => Err(refusal),
                                (Err(_), Expected::Unsaid | Expected::Other(_)) => {
                                    Ok(Before::Nothing)
                                }
                            };
                        }
                        Ok(None) => {}
                        Err(error) if expected == Expected::Rdp => return Err(error.into()),
                        Err(_) => return Ok(Before::Nothing),
                    }
                }
                Recognition::Known(_) | Recognition::Unknown => return Ok(Before::Nothing),
                Recognition::NeedMore => {}
            }
            let more = self.fill(limits::PRECONNECTION_PDU_BYTES);
            match (timeout_at(patience.into(), more).await, expected) {
                (Ok(more), _) => more?,
                (Err(_elapsed), Expected::Rdp) => return Err(Refusal::Silent),
                (Err(_elapsed), Expected::Unsaid | Expected::Other(_)) => {
                    return Ok(Before::Silence);
                }
            }
        }
    }

    /// Reads how the connection goes on behind a preconnection PDU. Where RDP is announced it has to come; of any other protocol the
    /// server may be who speaks first, so a client that says nothing for a while is connected as it is.
    ///
    /// # Errors
    /// The client leaves, says no valid Connection Request, or nothing where RDP is announced.
    pub async fn read_opening(&mut self, expected: Expected<'_>) -> Result<Opening, Refusal> {
        let patience = match expected {
            Expected::Rdp => self.identify_by,
            Expected::Unsaid | Expected::Other(_) => {
                let now = clock::now();
                now.checked_add(limits::OPENING_PATIENCE).unwrap_or(now)
            }
        };
        loop {
            match expected {
                Expected::Rdp | Expected::Unsaid => {
                    match recognise_behind(self.stream.buffered()) {
                        Behind::X224 => {
                            let deadline = self.identify_by.into();
                            let request = read_request(&mut self.stream);
                            let request = timeout_at(deadline, request).await;
                            return request.unwrap_or(Err(Refusal::Silent)).map(Opening::X224);
                        }
                        Behind::Tls => return Ok(Opening::DirectTls),
                        Behind::Other => return Ok(Opening::Other),
                        Behind::NeedMore => {}
                    }
                }
                Expected::Other(protocol) => {
                    match application_protocol::check_client(protocol, self.stream.buffered()) {
                        FirstBytes::Conforms | FirstBytes::Violates => return Ok(Opening::Other),
                        // What an RDP client says here is seen before the target says what it would not understand.
                        FirstBytes::NeedMore => {}
                    }
                }
            }
            let more = self.fill(limits::CONNECTION_REQUEST_BYTES);
            match (timeout_at(patience.into(), more).await, expected) {
                (Ok(more), _) => more?,
                (Err(_elapsed), Expected::Rdp) => return Err(Refusal::Silent),
                (Err(_elapsed), Expected::Unsaid | Expected::Other(_)) => {
                    return Ok(Opening::Other);
                }
            }
        }
    }

    async fn fill(&mut self, limit: usize) -> Result<(), Refusal> {
        fill(&mut self.stream, limit).await
    }
}
