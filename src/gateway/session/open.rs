//! Step 5: the first exchange of the protocol that the token announces; everything after it is relayed as it comes.
//!
//! For RDP the Connection Request goes to the target without its routing token, and the target must answer with a
//! Connection Confirm before the client hears anything. Then, and not before, the token counts as used: a target that
//! accepts connections and does not answer costs nobody a token.
//!
//! A client that begins with TLS where its token announces RDP leaves out the Connection Request ([MS-RDPBCGR] 5.4.2.2), without which
//! few targets speak. The gateway sends one for it, which asks for TLS and nothing else, and keeps the answer. FreeRDP and what is
//! built on it show the target in their MCS data that TLS was selected, as then it was; clients do not compare what comes back.
//!
//! For anything else that a token announces, nothing passes from either side before its first bytes are known to begin that protocol,
//! whichever side speaks first.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout_at;

use crate::application_protocol::{self, ApplicationProtocol, FirstBytes};
use crate::gateway::connection::{Client, Opening};
use crate::gateway::live::registry::Registered;
use crate::gateway::state::Gateway;
use crate::io::keep_alive;
use crate::limits;
use crate::policy::Inspecting;
use crate::policy::permit::Permit;
use crate::preamble;
use crate::rdp::connection_request::{ConnectionRequest, NegotiationRequest, PROTOCOL_SSL};
use crate::rdp::negotiation::{self, ConnectionConfirm, FailureCode};
use crate::refusal::Refusal;
use crate::relay::{self, AfterEnd, RDP_AFTER_END, RelayLimits, Traffic};
use crate::session::account::Live;
use crate::session::account::describe;
use crate::session::account::log_opened;
use crate::session::account::spend_behind_limit;
use crate::session::connect::Connected;
use crate::session::reached::Reached;
use crate::session::refuse::Refused;
use crate::store::usage::Reservation;
use crate::stream::{Io, Stream};

/// A session whose bytes can be relayed.
#[derive(Debug)]
pub struct Opened {
    /// What it holds until its end.
    pub live: Live,
    /// The client's transport; what was read ahead is on its way to the target.
    pub client: Io,
    /// The target's.
    pub target: Io,
    /// What the session may do.
    pub permit: Permit,
    /// How long it goes on when one side has ended.
    pub after_end: AfterEnd,
    /// What was announced.
    pub protocol: Option<ApplicationProtocol>,
}

impl Opened {
    /// Relays until the end and accounts for it.
    pub async fn run(self: Box<Self>) {
        let Self {
            live,
            client,
            target,
            permit,
            after_end,
            protocol,
        } = *self;
        let limits = RelayLimits {
            idle: permit.idle_timeout(),
            total: permit
                .time_limit()
                .map(|limit| live.reservation.left_of(limit)),
            half_close: half_closes(protocol.as_ref()),
            after_end: Some(after_end),
        };
        let cancel = live.session.cancelled().clone();
        let relayed = relay::run(client, target, &live.session.traffic, limits, cancel);
        let (end, parting) = relayed.await;
        // Before either side hears of it.
        spend_behind_limit(&live, &end).await;
        let reason = describe(&live.session, &end);
        // In a box: a live session is not to be larger for its end.
        Box::pin(live.close(parting, &reason)).await;
    }
}

/// Whether a session may go on when one side of it has ended.
fn half_closes(protocol: Option<&ApplicationProtocol>) -> bool {
    match protocol {
        Some(
            ApplicationProtocol::Rdp
            | ApplicationProtocol::Ssh
            | ApplicationProtocol::Vnc
            | ApplicationProtocol::Wayk,
        ) => false,
        Some(ApplicationProtocol::None | ApplicationProtocol::Other(_)) | None => true,
    }
}

/// How long a session may go on when one side of it has ended; `silent_s` is for protocols that can go on with one. RDP cannot, and
/// what began as RDP is RDP unless its token calls it something else.
fn after_end(protocol: Option<&ApplicationProtocol>, opening: &Opening, silent_s: u64) -> AfterEnd {
    let is_rdp = match protocol {
        Some(ApplicationProtocol::Rdp) => true,
        Some(ApplicationProtocol::None) | None => {
            matches!(opening, Opening::X224(_) | Opening::DirectTls)
        }
        Some(
            ApplicationProtocol::Ssh
            | ApplicationProtocol::Vnc
            | ApplicationProtocol::Wayk
            | ApplicationProtocol::Other(_),
        ) => false,
    };
    if is_rdp {
        RDP_AFTER_END
    } else {
        AfterEnd::Silent {
            time_s: u32::try_from(silent_s).unwrap_or(u32::MAX),
        }
    }
}

/// Lets client and target exchange their first messages.
///
/// # Errors
/// One of them does not speak the protocol that the token announces, or is silent.
pub async fn open(gateway: &Gateway, connected: Connected) -> Result<Opened, Box<Refused>> {
    let Connected {
        mut client,
        opening,
        permit,
        protocol,
        session,
        mut reservation,
        reached: Reached {
            stream: mut target,
            met,
            ..
        },
    } = connected;
    let inspecting = gateway.means_by(&client.listener).inspecting;
    let announced = protocol.as_ref().map(|protocol| Announced {
        protocol,
        no_rdp: inspecting == Inspecting::Always,
    });
    let exchange = exchange(
        &mut client,
        &opening,
        &session,
        (&mut reservation, announced),
        &mut target,
    );
    let cancelled = session.cancelled().cancelled();
    let result = tokio::select! {
        result = exchange => result,
        () = cancelled => Err(Failure::before_answer(session.cancellation())),
    };
    if let Err(Failure { refusal, answered }) = result {
        let mut refused = client.refused(refusal, opening).with_session(&session);
        if answered && let Some((_, opening)) = &mut refused.answer {
            // A second answer would make no sense to the client.
            *opening = Opening::Other;
        }
        return Err(refused);
    }
    let after_end = after_end(
        protocol.as_ref(),
        &opening,
        gateway.config.session.half_close_timeout_s,
    );
    let Client {
        stream,
        started,
        mut admission,
        ..
    } = client;
    admission.proven();
    let (client, _sent) = stream.into_parts();
    let (target, _sent) = target.into_parts();
    if let AfterEnd::Silent { time_s } = after_end {
        for io in [&client, &target] {
            // A connection that has gone ends by itself.
            let _ = keep_alive::give_time(io.tcp(), Duration::from_secs(time_s.into()));
        }
    }
    log_opened(&session, None);
    Ok(Opened {
        live: Live {
            session,
            reservation,
            started,
            admission,
            met,
        },
        client,
        target,
        permit,
        after_end,
        protocol,
    })
}

/// What the token announces.
#[derive(Clone, Copy, Debug)]
struct Announced<'a> {
    protocol: &'a ApplicationProtocol,
    /// All RDP is inspected, and none passes as another protocol.
    no_rdp: bool,
}

impl Announced<'_> {
    /// Whether the client has said enough to be heard.
    fn judge_client(self, bytes: &[u8]) -> Result<bool, Refusal> {
        let protocol = self.protocol;
        if !judged(
            application_protocol::check_client(protocol, bytes),
            ("client", protocol),
        )? {
            return Ok(false);
        }
        match preamble::check_no_rdp(bytes) {
            _ if !self.no_rdp || *protocol == ApplicationProtocol::Rdp => Ok(true),
            FirstBytes::Conforms => Ok(true),
            FirstBytes::NeedMore => Ok(false),
            FirstBytes::Violates => Err(Refusal::Disguised),
        }
    }
}

/// What went wrong, and whether the client had heard from the target by then.
struct Failure {
    refusal: Refusal,
    answered: bool,
}

impl Failure {
    fn before_answer(refusal: Refusal) -> Self {
        Self {
            refusal,
            answered: false,
        }
    }

    fn after_answer(refusal: Refusal) -> Self {
        Self {
            refusal,
            answered: true,
        }
    }
}

async fn exchange(
    client: &mut Client,
    opening: &Opening,
    session: &Registered,
    (reservation, announced): (&mut Reservation, Option<Announced<'_>>),
    target: &mut Stream,
) -> Result<(), Failure> {
    let protocol = announced.map(|announced| announced.protocol);
    if let Opening::X224(request) = opening {
        let request = request
            .encode()
            .map_err(|error| Failure::before_answer(error.into()))?;
        let answer = ask(client, &request, &session.traffic, protocol, target).await;
        let answer = answer.map_err(Failure::before_answer)?;
        reservation
            .commit()
            .await
            .map_err(|error| Failure::before_answer(error.into()))?;
        write(client.stream.io_mut(), &answer)
            .await
            .map_err(|error| Failure::after_answer(Refusal::Io(error)))?;
        count(&session.traffic.to_client, answer.len());
        check_second_flight(client, protocol, &answer)
            .await
            .map_err(Failure::after_answer)?;
    } else {
        if let (Opening::DirectTls, Some(ApplicationProtocol::Rdp)) = (opening, protocol) {
            let negotiated = negotiate_tls(client, &session.traffic, protocol, target).await;
            negotiated.map_err(Failure::before_answer)?;
        }
        reservation
            .commit()
            .await
            .map_err(|error| Failure::before_answer(error.into()))?;
        if let Some(announced) = announced {
            first_words(client, target, announced, &session.traffic).await?;
        }
    }
    let read_ahead = client.stream.buffered();
    write(target.io_mut(), read_ahead)
        .await
        .map_err(target_failed)
        .map_err(Failure::after_answer)?;
    count(&session.traffic.to_target, read_ahead.len());
    let sent = read_ahead.len();
    client.stream.consume(sent);
    // What the target said behind what was judged, and a peer of a rendezvous before it was met.
    let early = target.buffered();
    if !early.is_empty() {
        write(client.stream.io_mut(), early)
            .await
            .map_err(|error| Failure::after_answer(Refusal::Io(error)))?;
        count(&session.traffic.to_client, early.len());
        let sent = early.len();
        target.consume(sent);
    }
    Ok(())
}

/// What the target answers to a Connection Request.
async fn ask(
    client: &Client,
    request: &[u8],
    traffic: &Traffic,
    protocol: Option<&ApplicationProtocol>,
    target: &mut Stream,
) -> Result<Vec<u8>, Refusal> {
    let answer = async {
        write(target, request).await.map_err(target_failed)?;
        count(&traffic.to_target, request.len());
        read_confirm(target, protocol).await
    };
    let silent = || {
        Err(Refusal::Target(
            "accepts connections and does not answer".to_owned(),
        ))
    };
    timeout_at(client.establish_by.into(), answer)
        .await
        .unwrap_or_else(|_| silent())
}

/// Has the target expect TLS, for a client that is in the middle of it already.
async fn negotiate_tls(
    client: &Client,
    traffic: &Traffic,
    protocol: Option<&ApplicationProtocol>,
    target: &mut Stream,
) -> Result<(), Refusal> {
    let request = ConnectionRequest {
        negotiation: Some(NegotiationRequest {
            flags: 0,
            requested_protocols: PROTOCOL_SSL,
        }),
        ..ConnectionRequest::default()
    };
    let request = request.encode()?;
    let answer = ask(client, &request, traffic, protocol, target).await?;
    let unsecured = |reason: &str| Refusal::Unsecured {
        rule: "target-security",
        reason: reason.to_owned(),
        code: FailureCode::SslCertNotOnServer,
    };
    match negotiation::decode_confirm(&answer) {
        Ok(Some((
            ConnectionConfirm::Selected {
                protocol: PROTOCOL_SSL,
                ..
            },
            length,
        ))) if length == answer.len() => Ok(()),
        Ok(Some((ConnectionConfirm::Failure { code }, _)))
            if code == FailureCode::HybridRequired.code() =>
        {
            Err(unsecured(NLA_WITHOUT_NEGOTIATION))
        }
        Ok(Some((ConnectionConfirm::Failure { code }, _)))
            if code != FailureCode::SslNotAllowed.code() =>
        {
            Err(unsecured(&format!(
                "the target answers RDP_NEG_FAILURE {code}"
            )))
        }
        Ok(Some((
            ConnectionConfirm::Failure { .. }
            | ConnectionConfirm::Plain
            | ConnectionConfirm::Selected { protocol: 0, .. },
            _,
        ))) => Err(unsecured(
            "the target offers nothing but standard RDP security, and the client begins with TLS",
        )),
        Ok(Some((ConnectionConfirm::Selected { .. }, _)) | None) | Err(_) => {
            Err(violated("target", &ApplicationProtocol::Rdp))
        }
    }
}

/// What an operator is to do about it. Which of TLS and NLA such a client is about to speak cannot be seen.
const NLA_WITHOUT_NEGOTIATION: &str = "the target demands NLA, and the client begins with TLS, without negotiation; let it \
    negotiate (a ticket as load balance info in place of the preconnection PDU, where there is no setting for it), or have the \
    gateway log on (dst_usr, dst_pwd)";

/// The target's Connection Confirm, whole, and whatever came with it.
async fn read_confirm(
    target: &mut Stream,
    protocol: Option<&ApplicationProtocol>,
) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::with_capacity(64);
    loop {
        match negotiation::decode_confirm(&bytes) {
            Ok(Some(_)) => return Ok(bytes),
            Ok(None) => read_more(target, &mut bytes).await?,
            Err(_) => {
                return Err(Refusal::Protocol {
                    side: "target",
                    protocol: protocol.cloned().unwrap_or(ApplicationProtocol::Rdp),
                });
            }
        }
    }
}

/// Brings the first bytes of each side to the other, once they are those of `protocol` and not before. Which side speaks first is the
/// protocol's matter, so neither waits for the other here. What follows the first bytes is judged by nobody and passed on as it comes:
/// a ClientHello may need more than one segment, and its answer waits for all of it.
async fn first_words(
    client: &mut Client,
    target: &mut Stream,
    announced: Announced<'_>,
    traffic: &Traffic,
) -> Result<(), Failure> {
    let deadline = client.establish_by.into();
    let mut said = Said::default();
    let words = exchange_words(client, target, announced, traffic, &mut said);
    let silent = match timeout_at(deadline, words).await {
        Ok(exchanged) => {
            return exchanged.map_err(|refusal| Failure {
                refusal,
                answered: said.answered,
            });
        }
        Err(_) if said.target => Refusal::Silent,
        Err(_) => Refusal::Target("accepts connections and is silent".to_owned()),
    };
    Err(Failure {
        refusal: silent,
        answered: said.answered,
    })
}

/// Who has said enough to be heard.
#[derive(Default)]
struct Said {
    client: bool,
    target: bool,
    /// The client has got something of it.
    answered: bool,
}

async fn exchange_words(
    client: &mut Client,
    target: &mut Stream,
    announced: Announced<'_>,
    traffic: &Traffic,
    said: &mut Said,
) -> Result<(), Refusal> {
    let protocol = announced.protocol;
    let (mut client_ended, mut target_ended) = (false, false);
    loop {
        if !said.client {
            said.client = client_ended || announced.judge_client(client.stream.buffered())?;
        }
        if said.client {
            pass_on(&mut client.stream, target.io_mut(), &traffic.to_target)
                .await
                .map_err(target_failed)?;
        }
        if !said.target {
            let first = application_protocol::check_target(protocol, target.buffered());
            said.target = judged(first, ("target", protocol))?;
        }
        if said.target {
            said.answered |= !target.buffered().is_empty();
            pass_on(target, client.stream.io_mut(), &traffic.to_client)
                .await
                .map_err(Refusal::Io)?;
        }
        if said.client && said.target {
            return Ok(());
        }
        tokio::select! {
            read = client.stream.fill(limits::CONNECTION_REQUEST_BYTES), if !client_ended => {
                match read.map_err(Refusal::Io)? {
                    // A client that does not like the answer may go; one that breaks off in the middle of a mark has not spoken.
                    0 if said.client || client.stream.buffered().is_empty() => client_ended = true,
                    0 => return Err(violated("client", protocol)),
                    _ => {}
                }
            }
            read = target.fill(limits::CONNECTION_REQUEST_BYTES), if !target_ended => {
                match read.map_err(target_failed)? {
                    0 if said.target => target_ended = true,
                    0 => {
                        return Err(Refusal::Target(
                            "closed the connection without an answer".to_owned(),
                        ));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Whether one side has said enough to be heard.
fn judged(
    first: FirstBytes,
    (side, protocol): (&'static str, &ApplicationProtocol),
) -> Result<bool, Refusal> {
    match first {
        FirstBytes::Conforms => Ok(true),
        FirstBytes::NeedMore => Ok(false),
        FirstBytes::Violates => Err(violated(side, protocol)),
    }
}

fn violated(side: &'static str, protocol: &ApplicationProtocol) -> Refusal {
    Refusal::Protocol {
        side,
        protocol: protocol.clone(),
    }
}

/// Writes what has arrived from one side to the other.
async fn pass_on(
    from: &mut Stream,
    to: &mut (impl AsyncWriteExt + Unpin),
    traffic: &AtomicU64,
) -> io::Result<()> {
    let bytes = from.buffered();
    if bytes.is_empty() {
        return Ok(());
    }
    write(to, bytes).await?;
    let sent = bytes.len();
    count(traffic, sent);
    from.consume(sent);
    Ok(())
}

/// With `jet_ap: rdp`, what the client says next must be what the target has selected: TLS, or RDP's own security.
async fn check_second_flight(
    client: &mut Client,
    protocol: Option<&ApplicationProtocol>,
    answer: &[u8],
) -> Result<(), Refusal> {
    let Some(protocol @ ApplicationProtocol::Rdp) = protocol else {
        return Ok(());
    };
    let expected: [u8; 2] = match negotiation::decode_confirm(answer) {
        Ok(Some((ConnectionConfirm::Selected { protocol: 1.., .. }, _))) => [0x16, 0x03],
        Ok(Some((ConnectionConfirm::Selected { .. } | ConnectionConfirm::Plain, _))) => {
            [0x03, 0x00]
        }
        // The target has refused; the client hears that and goes.
        Ok(Some((ConnectionConfirm::Failure { .. }, _)) | None) | Err(_) => return Ok(()),
    };
    let deadline = client.establish_by.into();
    let read = async {
        while client.stream.buffered().len() < expected.len() {
            match client.stream.fill(limits::CONNECTION_REQUEST_BYTES).await {
                // A client that does not like the answer may go.
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) => return Err(Refusal::Io(error)),
            }
        }
        Ok(client.stream.buffered().starts_with(&expected))
    };
    match timeout_at(deadline, read).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(Refusal::Protocol {
            side: "client",
            protocol: protocol.clone(),
        }),
        Ok(Err(refusal)) => Err(refusal),
        Err(_elapsed) => Err(Refusal::Silent),
    }
}

async fn read_more(target: &mut Stream, bytes: &mut Vec<u8>) -> Result<(), Refusal> {
    if bytes.len() >= limits::CONNECTION_CONFIRM_BYTES {
        return Err(Refusal::Target("its first answer is too long".to_owned()));
    }
    match target.read_buf(bytes).await {
        Ok(0) => Err(Refusal::Target(
            "closed the connection without an answer".to_owned(),
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(target_failed(error)),
    }
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

fn count(bytes: &AtomicU64, more: usize) {
    bytes.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn target_failed(error: io::Error) -> Refusal {
    Refusal::Target(error.to_string())
}
