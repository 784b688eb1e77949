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
//! A client whose token does not say what it will speak, and that says nothing for a while, is connected as one whose server speaks
//! first. What it says first is judged when it comes (`late`).
//!
//! For anything else that a token announces, nothing passes from either side before its first bytes are known to begin that protocol,
//! whichever side speaks first.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/

use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep_until, timeout_at};

use crate::connection::{Client, Opening, departed};
use crate::live::registry::Registered;
use crate::refusal::{Refusal, TargetError};
use crate::session::account::Ending;
use crate::session::account::Live;
use crate::session::account::describe;
use crate::session::account::log_opened;
use crate::session::account::opened_record;
use crate::session::account::spend_for_good;
use crate::session::connect::Connected;
use crate::session::late::{self, Begun, Turned};
use crate::session::reached::Reached;
use crate::session::refuse::{Refused, refuse};
use crate::state::{SessionRules, Tokens};
use crate::trail::Trail;
use jetway_base::limits;
use jetway_entry::preamble;
use jetway_io::clock;
use jetway_io::keep_alive;
use jetway_io::stream::Stream;
use jetway_policy::InspectionMode;
use jetway_policy::permit::Permit;
use jetway_rdp::connection_request::{ConnectionRequest, NegotiationRequest, PROTOCOL_SSL};
use jetway_rdp::negotiation::{self, ConnectionConfirm, FailureCode};
use jetway_relay::{
    self as relay, AfterEnd, Parting, RDP_AFTER_END, RelayEnd, RelayLimits, Side, Traffic,
};
use jetway_store::refusals::Refusals;
use jetway_store::usage::Reservation;
use jetway_token::application_protocol::{self, ApplicationProtocol, FirstBytes};

/// A session whose bytes can be relayed.
#[derive(Debug)]
pub struct Opened {
    /// What it holds until its end.
    pub live: Live,
    /// The client's bytes.
    pub client: Stream,
    /// The target's.
    pub target: Stream,
    /// What the session may do.
    pub permit: Permit,
    /// How it ends when one side has ended.
    pub manners: Manners,
    /// Whether it is not known what the client speaks, which may be RDP.
    pub listens: bool,
}

impl Opened {
    /// Relays until the end and accounts for it.
    pub async fn run(self: Box<Self>, tokens: &Tokens, refusals: &Refusals, audit: &Trail) {
        let Self {
            live,
            mut client,
            mut target,
            permit,
            mut manners,
            mut listens,
        } = *self;
        let left = live.time_left(&permit);
        let ends_at = left.and_then(|left| clock::now().checked_add(left));
        let (end, parting) = loop {
            if listens && !client.buffered().is_empty() {
                // In a box: few sessions need it, and none for long.
                let heard = Box::pin(judge_first_words(
                    tokens,
                    &live,
                    ends_at,
                    &mut client,
                    &mut target,
                ));
                match heard.await {
                    Ok(FirstWords::Begun(Begun::Rdp)) => (manners, listens) = (Manners::RDP, false),
                    Ok(FirstWords::Begun(Begun::Other)) => listens = false,
                    Ok(FirstWords::Begun(Begun::Nothing)) => {}
                    Ok(FirstWords::Over(end)) => {
                        // What is left of what it has said is for nobody.
                        let (client, _unjudged) = client.into_parts();
                        let (target, _written) = target.into_parts();
                        break relay::part_from_both(end, client, target);
                    }
                    Err(turned) => {
                        drop(target);
                        let turned = turn_away(refusals, audit, live, client, turned);
                        return Box::pin(turned).await;
                    }
                }
            }
            let limits = RelayLimits {
                idle: permit.idle_timeout(),
                total: ends_at.map(|at| at.saturating_duration_since(clock::now())),
                half_close: manners.half_close,
                after_end: Some(manners.after_end),
                listen: listens,
                client: Some(live.session.peer.ip()),
            };
            let (io, said) = client.into_parts();
            let (target_io, unsent) = target.into_parts();
            for io in [&io, &target_io] {
                // A connection that has gone ends by itself.
                let _ = keep_alive::give_time(io.tcp(), manners.pause());
            }
            let traffic = &live.session.traffic;
            let cancel = live.session.cancelled().clone();
            let (client_side, target_side) = ((io, said), (target_io, unsent));
            match relay::run_on(client_side, target_side, traffic, limits, cancel).await {
                (RelayEnd::ClientSpoke(heard), _) => {
                    client = Stream::rewound(heard.client, heard.said);
                    target = Stream::rewound(heard.target, heard.unsent);
                }
                ended => break ended,
            }
        };
        // Before either side hears of it.
        spend_for_good(&live, &end).await;
        let ending = describe(&live.session, &end);
        // In a box: a live session is not to be larger for its end.
        Box::pin(live.close(audit, parting, &ending)).await;
    }
}

/// What came of what a client has said first.
enum FirstWords {
    /// It is known what it begins.
    Begun(Begun),
    /// Its session was over before.
    Over(RelayEnd),
}

/// Judges what the client has said, for as long as its session may last.
async fn judge_first_words(
    tokens: &Tokens,
    live: &Live,
    ends_at: Option<Instant>,
    client: &mut Stream,
    target: &mut Stream,
) -> Result<FirstWords, Turned> {
    let out_of_time = async {
        match ends_at {
            Some(at) => sleep_until(at.into()).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        () = live.session.cancelled().cancelled() => Ok(FirstWords::Over(RelayEnd::Cancelled)),
        () = out_of_time => Ok(FirstWords::Over(RelayEnd::TimeLimit)),
        begun = late::judge(tokens, &live.session, client, target) => begun.map(FirstWords::Begun),
    }
}

/// A session that was open ends with the answer to what its client has said at last.
async fn turn_away(refusals: &Refusals, audit: &Trail, live: Live, client: Stream, turned: Turned) {
    let Turned { refusal, opening } = turned;
    let ending = Ending {
        outcome: "refused",
        reason: refusal.to_string(),
    };
    let session = &live.session;
    let refused = Refused::without_stream(session.id, session.peer, live.started, refusal);
    let mut refused = Box::new(refused).with_session(session);
    refused.answer = Some((client, opening));
    refuse(refusals, audit, *refused).await;
    live.close(audit, Parting::done(), &ending).await;
}

/// How a session goes on when one side of it has ended.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// For how long.
    after_end: AfterEnd,
    /// Whether the end of one side need not be that of the other.
    half_close: bool,
}

impl Manners {
    /// RDP has no half-close.
    const RDP: Self = Self {
        after_end: RDP_AFTER_END,
        half_close: false,
    };

    /// How long a side may take nothing.
    fn pause(self) -> Duration {
        match self.after_end {
            AfterEnd::Silent { time_s } => Duration::from_secs(time_s.into()),
            AfterEnd::Within { .. } => Duration::ZERO,
        }
    }

    /// `silent_s` is for protocols that can go on with one side. What began as RDP is RDP unless its token calls it something else.
    fn of(protocol: Option<&ApplicationProtocol>, opening: &Opening, silent_s: u64) -> Self {
        let half_close = match protocol {
            Some(ApplicationProtocol::Rdp) => return Self::RDP,
            Some(ApplicationProtocol::None) | None => match opening {
                Opening::X224(_) | Opening::DirectTls => return Self::RDP,
                Opening::Unread | Opening::Other => true,
            },
            Some(
                ApplicationProtocol::Ssh | ApplicationProtocol::Vnc | ApplicationProtocol::Wayk,
            ) => false,
            Some(ApplicationProtocol::Other(_)) => true,
        };
        Self {
            after_end: AfterEnd::Silent {
                time_s: u32::try_from(silent_s).unwrap_or(u32::MAX),
            },
            half_close,
        }
    }
}

/// Whether the client may yet begin RDP that is to be treated as such.
fn listens(
    protocol: Option<&ApplicationProtocol>,
    opening: &Opening,
    inspecting: InspectionMode,
) -> bool {
    let unsaid = matches!(protocol, None | Some(ApplicationProtocol::None));
    let silent = matches!(opening, Opening::Unread | Opening::Other);
    // Where all RDP is inspected, nothing passes before it is known to be none.
    unsaid && silent && inspecting != InspectionMode::Always
}

/// Lets client and target exchange their first messages.
///
/// # Errors
/// One of them does not speak the protocol that the token announces, or is silent.
pub async fn open(
    rules: &SessionRules,
    audit: &Trail,
    connected: Connected,
) -> Result<Opened, Box<Refused>> {
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
    let inspecting = rules.means_by(&client.listener).inspecting;
    let listens = listens(protocol.as_ref(), &opening, inspecting);
    let announced = protocol.as_ref().map(|protocol| Announced {
        protocol,
        no_rdp: inspecting == InspectionMode::Always,
    });
    let exchange = exchange(
        &mut client,
        &opening,
        &session,
        (&mut reservation, announced, listens),
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
    let opened = audit.opens(&opened_record(&session, None)).await;
    if let Err(refusal) = opened {
        // It has been answered.
        let refused = client.refused(refusal, Opening::Other);
        return Err(refused.with_session(&session));
    }
    let silent_s = rules.half_close_timeout_s();
    let manners = Manners::of(protocol.as_ref(), &opening, silent_s);
    let Client {
        stream: client,
        started,
        mut admission,
        ..
    } = client;
    admission.proven();
    log_opened(&session, None, started);
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
        manners,
        listens,
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
            (Side::Client, protocol),
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
    (reservation, announced, listens): (&mut Reservation, Option<Announced<'_>>, bool),
    target: &mut Stream,
) -> Result<(), Failure> {
    let protocol = announced.map(|announced| announced.protocol);
    if let Opening::X224(request) = opening {
        let request = request
            .encode()
            .map_err(|error| Failure::before_answer(error.into()))?;
        let deadline = client.establish_by.into();
        let answer = ask(
            deadline,
            &request,
            &session.traffic,
            protocol,
            (&client.stream, target),
        )
        .await;
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
        if let Some(announced) = announced
            && !listens
        {
            first_words(client, target, announced, &session.traffic).await?;
        }
    }
    if !listens {
        let read_ahead = client.stream.buffered();
        write(target.io_mut(), read_ahead)
            .await
            .map_err(target_failed)
            .map_err(Failure::after_answer)?;
        count(&session.traffic.to_target, read_ahead.len());
        let sent = read_ahead.len();
        client.stream.consume(sent);
    }
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

/// What the target answers to a Connection Request, if the client waits for it.
pub(super) async fn ask(
    deadline: tokio::time::Instant,
    request: &[u8],
    traffic: &Traffic,
    protocol: Option<&ApplicationProtocol>,
    (client, target): (&Stream, &mut Stream),
) -> Result<Vec<u8>, Refusal> {
    let answer = async {
        write(target, request).await.map_err(target_failed)?;
        count(&traffic.to_target, request.len());
        read_confirm(target, protocol).await
    };
    let silent = || Err(TargetError::NoAnswer.into());
    tokio::select! {
        answer = timeout_at(deadline, answer) => answer.unwrap_or_else(|_| silent()),
        left = departed(client, true) => Err(left),
    }
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
    let deadline = client.establish_by.into();
    let answer = ask(
        deadline,
        &request,
        traffic,
        protocol,
        (&client.stream, target),
    )
    .await?;
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
            Err(violated(Side::Target, &ApplicationProtocol::Rdp))
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
                    side: Side::Target,
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
        Err(_) => TargetError::Silent.into(),
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
            said.target = judged(first, (Side::Target, protocol))?;
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
                    0 => return Err(violated(Side::Client, protocol)),
                    _ => {}
                }
            }
            read = target.fill(limits::CONNECTION_REQUEST_BYTES), if !target_ended => {
                match read.map_err(target_failed)? {
                    0 if said.target => target_ended = true,
                    0 => {
                        return Err(TargetError::Closed.into());
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
    (side, protocol): (Side, &ApplicationProtocol),
) -> Result<bool, Refusal> {
    match first {
        FirstBytes::Conforms => Ok(true),
        FirstBytes::NeedMore => Ok(false),
        FirstBytes::Violates => Err(violated(side, protocol)),
    }
}

fn violated(side: Side, protocol: &ApplicationProtocol) -> Refusal {
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
            side: Side::Client,
            protocol: protocol.clone(),
        }),
        Ok(Err(refusal)) => Err(refusal),
        Err(_elapsed) => Err(Refusal::Silent),
    }
}

async fn read_more(target: &mut Stream, bytes: &mut Vec<u8>) -> Result<(), Refusal> {
    if bytes.len() >= limits::CONNECTION_CONFIRM_BYTES {
        return Err(TargetError::TooLong.into());
    }
    match target.read_buf(bytes).await {
        Ok(0) => Err(TargetError::Closed.into()),
        Ok(_) => Ok(()),
        Err(error) => Err(target_failed(error)),
    }
}

pub(super) async fn write(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

pub(super) fn count(bytes: &AtomicU64, more: usize) {
    bytes.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub(super) fn target_failed(error: io::Error) -> Refusal {
    TargetError::Io(error).into()
}
