//! What holds for every input, one function for each fuzz target.
//!
//! The fuzz targets call these with what libFuzzer makes up, `replay.rs` with the files of `corpus/` and
//! `regressions/`. An oracle that fails panics.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each fuzz target uses one of these functions, and a broken promise is to end the run"
)]

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ironrdp_core::decode as ironrdp_decode;
use ironrdp_pdu::nego;
use ironrdp_pdu::pcb::PreconnectionBlob;
use ironrdp_pdu::x224::X224;
use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_entry::preamble::{self, Preamble, Recognition};
use jetway_entry::proxy_protocol::{self, ProxyHeader};
use jetway_entry::ticket::Ticket;
use jetway_jet::agent::{FromAgent, FromGateway};
use jetway_jet::candidate::CandidateUrl;
use jetway_jet::exchange::{JetPath, Request, Response};
use jetway_jet::frame::{self, Arrival, Deframer, Found};
use jetway_jet::message::Message;
use jetway_jet::packet;
use jetway_rdp::Direction;
use jetway_rdp::budget::Budget;
use jetway_rdp::bulk::Bulk;
use jetway_rdp::channel::Channels;
use jetway_rdp::channel::rdp8_lite::Rdp8Lite;
use jetway_rdp::client_info::ClientInfoCredentials;
use jetway_rdp::connection_request::{self, ConnectionRequestError};
use jetway_rdp::credssp::client::{LogonClient, Package, Progress};
use jetway_rdp::credssp::keytab::Keytab;
use jetway_rdp::credssp::krb_error::KrbError;
use jetway_rdp::credssp::server::ClientKerberos;
use jetway_rdp::credssp::server::{LogonServer, Progress as Served};
use jetway_rdp::credssp::{self, SubjectPublicKeyInfo};
use jetway_rdp::event::{Event, Grounds, HeldMessage, Interest, Sink, Verdict};
use jetway_rdp::farewell::{Farewell, Reason};
use jetway_rdp::negotiation;
use jetway_rdp::preconnection::{self, PreconnectionPdu};
use jetway_rdp::redirection::{Redirection, Redirections};
use jetway_rdp::tracker::{SessionError, Settings, Tracker};
use jetway_stage::inspector::{AuditEvent, Inspector};
use jetway_token::application_protocol::{self, ApplicationProtocol, FirstBytes};
use jetway_token::claims::ConnectionMode;
use jetway_token::mint::{EncryptionKey, SigningKey, mint};
use jetway_token::{KeyDocument, KeySet, Token, TokenRules, Verifier};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use secrecy::SecretString;

/// A whole session of both directions, as records of who speaks (its lowest bit; with the next bit stages decide), a
/// length of four bytes, and bytes: however it is cut into reads it passes, or ends, the same; frames go on whole;
/// nothing that is fed comes out longer than it may.
pub(crate) fn session(data: &[u8]) {
    let_contained_panics_pass();
    let decides = data.first().is_some_and(|first| first & 2 != 0);
    let whole = run_session(data, decides, usize::MAX);
    for size in [1, 7, 1500] {
        let cut = run_session(data, decides, size);
        assert_eq!(whole.error, cut.error);
        assert_eq!(whole.sent, cut.sent);
        assert_eq!(whole.events, cut.events);
    }
    for bytes in &whole.sent {
        let mut rest = bytes.as_slice();
        while let Ok(Some(frame)) = jetway_rdp::frame::find(rest) {
            assert!(frame.length <= rest.len(), "half a frame was passed on");
            rest = &rest[frame.length..];
        }
        assert!(rest.is_empty(), "what is no frame was passed on");
    }
}

/// PDUs with bulk compression, as records of their flags, a length and bytes: they mean the same each time and are
/// bounded; the one that does not decompress is the last.
pub(crate) fn bulk(data: &[u8]) {
    let_contained_panics_pass();
    let (mut first, mut second) = (Bulk::default(), Bulk::default());
    let mut broken = false;
    for (flags, record) in records(data) {
        let plain = first.decompress(record, flags);
        assert_eq!(plain, second.decompress(record, flags));
        assert!(!broken || plain.is_none());
        broken = plain.is_none();
        if let Some(plain) = plain {
            assert!(plain.len() <= 4 * 1024 * 1024);
            assert!(flags & 0xe0 != 0 || plain == record);
        }
    }
}

/// What is said to a client does not depend on how its words arrive, is whole frames, and ends.
pub(crate) fn farewell(data: &[u8]) {
    let say = |size: usize| {
        let mut farewell = Farewell::new(Reason::Denied.error_info(), 3);
        let mut said = Vec::new();
        for read in data.chunks(size) {
            match farewell.feed(read) {
                Ok(answer) => said.extend(answer),
                Err(error) => return (said, Some(error), false),
            }
        }
        let done = farewell.is_done();
        assert!(farewell.feed(&[]).unwrap().is_empty());
        (said, None, done)
    };
    let (said, error, done) = say(data.len().max(1));
    for size in [1, 7] {
        let (said_slowly, slow_error, slow_done) = say(size);
        assert_eq!((slow_error, slow_done), (error, done));
        // Answers to what came before an error are lost with it where both arrive at once.
        assert!(said_slowly == said || error.is_some() && said_slowly.starts_with(&said));
    }
    let mut rest = said.as_slice();
    while let Ok(Some(frame)) = jetway_rdp::frame::find(rest) {
        rest = &rest[frame.length..];
    }
    assert!(rest.is_empty());
    assert!(said.len() < 4096);
}

/// The frame of a `TSRequest` is found once and for all and is bounded; whatever a peer says, a server that knows the
/// password lets nobody in who does not, and no exchange goes on for ever.
pub(crate) fn credssp(data: &[u8]) {
    let_contained_panics_pass();
    settles_once(data, credssp::frame_length, |answer| *answer == Ok(None));
    if let Ok(Some(length)) = credssp::frame_length(data) {
        assert!(length <= credssp::TS_REQUEST_BYTES);
    }
    if let Ok(info) = SubjectPublicKeyInfo::of_certificate(data) {
        assert!(info.key.len() + info.algorithm.len() < data.len());
    }
    let Some((&who, rest)) = data.split_first() else {
        return;
    };
    let mut frames = records(rest).map(|(_, frame)| frame);
    let password = SecretString::from("a password that nobody knows");
    let package = match who % 3 {
        0 => {
            let mut server = LogonServer::new(b"the bits of a public key", "user", &password);
            for (count, frame) in frames.enumerate() {
                assert!(count <= credssp::TS_REQUESTS);
                match server.process(frame) {
                    Ok(Served::Reply(_)) => {}
                    Ok(Served::Finished) => panic!("somebody came in without the password"),
                    Err(_) => return,
                }
            }
            return;
        }
        1 => Package::Ntlm,
        _ => Package::Kerberos {
            realm: Some("REALM.TEST"),
        },
    };
    let key = b"the bits of a public key";
    let Ok(mut client) = LogonClient::new(key, "user", &password, "target.test", package) else {
        return;
    };
    let mut frame = None;
    let mut asked = 0;
    loop {
        let Ok(mut exchange) = client.exchange(frame) else {
            return;
        };
        let mut progress = exchange.start();
        loop {
            match progress {
                Ok(Progress::AskKdc(_)) => {
                    asked += 1;
                    assert!(asked < 100, "questions without end");
                    progress = exchange.resume(frames.next().map(<[u8]>::to_vec));
                }
                Ok(Progress::Send { last: true, .. }) => {
                    panic!("credentials for a target that does not know the password")
                }
                Ok(Progress::Send { last: false, .. }) => break,
                Err(_) => return,
            }
        }
        frame = frames.next();
        if frame.is_none() {
            return;
        }
    }
}

/// libFuzzer ends at every panic, also at those of other projects that are caught where they are called. Those that
/// reach it still end it.
fn let_contained_panics_pass() {
    #[cfg(fuzzing)]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    }
}

/// A byte, a length of two bytes (little endian), and bytes, one behind the other.
fn records(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[first, low, high], rest) = data.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (record, rest) = rest.split_at(length);
        data = rest;
        Some((first, record))
    })
}

#[derive(Default)]
struct Passed {
    /// To the target, to the client, answers to the client, answers to the target.
    sent: [Vec<u8>; 4],
    events: Vec<u64>,
    error: Option<SessionError>,
}

/// Follows a redirection to the host `a`.
#[derive(Debug)]
struct ToA;

impl Redirections for ToA {
    fn follow(&mut self, redirection: &Redirection) -> bool {
        redirection.hosts().any(|host| host == "a")
    }
}

fn run_session(data: &[u8], decides: bool, size: usize) -> Passed {
    let mut judge = Judge {
        decides,
        messages: 0,
        events: Vec::new(),
        held: Vec::new(),
        tapped: 0,
    };
    let budget = Budget::default();
    let mut tracker = Tracker::new(Settings {
        client_requested: 0x0b,
        target_selected: 2,
        logon: Some(ClientInfoCredentials {
            domain: "D".to_owned(),
            user: "user".to_owned(),
            password: "password".to_owned().into(),
        }),
        redirections: Some(Box::new(ToA)),
        routing_token: Some(b"jt-ticket".to_vec().into()),
        cookies: None,
        budget: budget.clone(),
    });
    let mut passed = Passed::default();
    let mut arrived = [Vec::new(), Vec::new()];
    let mut rest = data;
    'session: while let Some((&from, behind)) = rest.split_first() {
        let Some((length, behind)) = behind.split_first_chunk::<4>() else {
            break;
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
        let (record, behind) = behind.split_at(length.min(behind.len()));
        rest = behind;
        let side = usize::from(from & 1);
        let direction = [Direction::ToTarget, Direction::ToClient][side];
        for read in record.chunks(size.min(record.len().max(1))) {
            arrived[side].extend_from_slice(read);
            let [to_target, to_client, back_to_client, back_to_target] = &mut passed.sent;
            let (onward, back) = match direction {
                Direction::ToTarget => (to_target, back_to_client),
                Direction::ToClient => (to_client, back_to_target),
            };
            let result = tracker.feed(direction, &mut arrived[side], &mut judge, onward, back);
            assert!(arrived[side].len() <= 65_535 || result.is_err());
            let held = [Direction::ToTarget, Direction::ToClient].map(|from| budget.held(from));
            assert!(
                held.iter()
                    .all(|held| *held <= limits::REMEMBERED_PER_DIRECTION_BYTES)
                    && held.iter().sum::<usize>() <= limits::REMEMBERED_BYTES,
                "{held:?} bytes remembered"
            );
            if let Err(error) = result {
                let code = error.error_info();
                let farewell = tracker.farewell(Direction::ToClient, code, &mut judge);
                assert!(farewell.len() < 200);
                passed.error = Some(error);
                break 'session;
            }
        }
        for message in std::mem::take(&mut judge.held) {
            let [to_target, to_client, back_to_client, back_to_target] = &mut passed.sent;
            let (onward, back) = match message.direction {
                Direction::ToTarget => (to_target, back_to_client),
                Direction::ToClient => (to_client, back_to_target),
            };
            if let Err(error) = tracker.resume(message, &mut judge, onward, back) {
                passed.error = Some(error);
                break 'session;
            }
        }
    }
    if passed.error.is_none() {
        let sent: usize = passed.sent.iter().map(Vec::len).sum();
        assert_eq!(judge.tapped, sent, "what was sent is what was reported");
    }
    passed.events = judge.events;
    drop(tracker);
    for from in [Direction::ToTarget, Direction::ToClient] {
        assert_eq!(budget.held(from), 0, "counted, and never given back");
    }
    passed
}

struct Judge {
    decides: bool,
    messages: usize,
    events: Vec<u64>,
    held: Vec<HeldMessage>,
    /// Bytes of all PDUs that were reported as sent.
    tapped: usize,
}

impl Judge {
    fn verdict(&mut self, data: &[u8]) -> Verdict {
        let grounds = Grounds::new("fuzz", "as it comes");
        match self.messages % 3 {
            0 => Verdict::Forward,
            1 => Verdict::Replace {
                data: data.iter().rev().copied().collect(),
                grounds,
            },
            _ => Verdict::Deny {
                answers: vec![data.to_vec()],
                grounds,
            },
        }
    }
}

impl Sink for Judge {
    fn interest(&self, channel: &str) -> Interest {
        match channel {
            "rdpsnd" => Interest::Ignore,
            "cliprdr" | "rdpdr" if self.decides => Interest::Decide,
            _ => Interest::Observe,
        }
    }

    fn decides(&self) -> bool {
        self.decides
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the other events are of no interest here"
    )]
    fn on_event(&mut self, event: &Event<'_>) -> Verdict {
        let mut hash = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&(format!("{event:?}"), event.data()), &mut hash);
        self.events.push(std::hash::Hasher::finish(&hash));
        match event {
            Event::ChannelMessage {
                direction,
                channel,
                data,
            } if self.decides && matches!(channel.name.as_str(), "cliprdr" | "rdpdr") => {
                self.messages += 1;
                if self.messages.is_multiple_of(4) {
                    self.held.push(HeldMessage {
                        channel: channel.id,
                        direction: *direction,
                    });
                    return Verdict::Hold;
                }
                self.verdict(data)
            }
            Event::Pdu { bytes, secrets, .. } => {
                self.tapped += bytes.len();
                for secret in *secrets {
                    assert!(
                        bytes.get(secret.clone()).is_some(),
                        "a secret out of bounds"
                    );
                }
                Verdict::Forward
            }
            _ => Verdict::Forward,
        }
    }

    fn on_answer(&mut self, event: &Event<'_>) -> Verdict {
        self.messages += 1;
        self.verdict(event.data())
    }
}

/// An answer is final; what a decoder takes is recognised as its protocol.
pub(crate) fn preamble(data: &[u8]) {
    let answer = preamble::recognise(data);
    settles_once(data, preamble::recognise, |answer| {
        *answer == Recognition::NeedMore
    });
    let expected = |decoded: bool, preamble| {
        assert!(!decoded || answer == Recognition::Known(preamble));
    };
    expected(
        matches!(proxy_protocol::decode(data), Ok(Some(_))),
        Preamble::ProxyProtocol,
    );
    expected(
        matches!(connection_request::decode(data), Ok(Some(_))),
        Preamble::X224,
    );
    // The decoder ignores `Flags`, as specified; recognition needs them.
    let flags = data.get(4..8).is_some_and(|flags| flags == [0; 4]);
    expected(
        flags && matches!(preconnection::decode(data), Ok(Some(_))),
        Preamble::PreconnectionPdu,
    );
}

/// See [`channel`].
pub(crate) fn channel_cliprdr(data: &[u8]) {
    channel("cliprdr", data);
}

/// See [`channel`].
pub(crate) fn channel_rdpdr(data: &[u8]) {
    channel("rdpdr", data);
}

/// See [`channel`].
pub(crate) fn channel_rdpsnd(data: &[u8]) {
    channel("rdpsnd", data);
}

/// See [`channel`]. Remote programs, microphones, displays and tunnelled channels are reached from here.
pub(crate) fn channel_drdynvc(data: &[u8]) {
    channel("drdynvc", data);
}

/// The PDUs of a channel mean the same each time; the head of a PDU means what all of it means, or is not enough;
/// every PDU is recorded or ends the session, with a record of why; what is told is of the order of what was sent.
fn channel(name: &str, data: &[u8]) {
    let (mut whole, mut again, mut heads) = (
        Channels::new(&Budget::default()),
        Channels::new(&Budget::default()),
        Some(Channels::new(&Budget::default())),
    );
    let told = Arc::new(Mutex::new((0, false)));
    let mut inspector = {
        let told = Arc::clone(&told);
        Inspector::new(&Budget::default(), move |record| {
            let mut told = told.lock().unwrap();
            told.0 += serde_json::to_string(&record).unwrap().len();
            told.1 |= matches!(record, AuditEvent::Malformed { .. });
        })
    };
    let mut sent = 0;
    for (direction, pdu) in pdus(data) {
        sent += pdu.len();
        let events = whole.feed(name, direction, pdu);
        assert_eq!(again.feed(name, direction, pdu), events);
        if let Some(parser) = &mut heads {
            let head = &pdu[..pdu.len().min(48)];
            match parser.feed_head(name, direction, head, pdu.len()) {
                Ok(told) => assert_eq!(Ok(told), events),
                Err(_) => heads = None,
            }
        }
        let recorded = inspector.channel_message(name, direction, pdu);
        assert_eq!(recorded.is_err(), events.is_err());
        assert_eq!(told.lock().unwrap().1, events.is_err());
        if events.is_err() {
            break;
        }
    }
    drop(inspector);
    // The path of a file may come again with each of its requests.
    let told = told.lock().unwrap().0;
    assert!(told <= 4096 + sent * 1024, "{told} for {sent}");
}

/// PDUs of both directions, as [`records`].
fn pdus(data: &[u8]) -> impl Iterator<Item = (Direction, &[u8])> {
    records(data).map(|(direction, pdu)| match direction & 1 {
        0 => (Direction::ToTarget, pdu),
        _ => (Direction::ToClient, pdu),
    })
}

/// What comes out of a segment is bounded, is the same each time, and is what went in where it is not compressed.
pub(crate) fn rdp8_lite(data: &[u8]) {
    let (mut first, mut second) = (Rdp8Lite::default(), Rdp8Lite::default());
    for (_, segment) in pdus(data) {
        let plain = first.decompress(segment);
        assert_eq!(second.decompress(segment), plain);
        let Ok(plain) = plain else { return };
        assert!(plain.len() <= 8192);
        if segment[1] & 0x20 == 0 {
            assert_eq!(plain, segment[2..]);
        }
    }
}

/// Decoding is final and bounded, round trips, and agrees with `ironrdp-pdu`.
pub(crate) fn preconnection(data: &[u8]) {
    frames_are_final(data, preconnection::decode);
    let Ok(Some((pdu, consumed))) = preconnection::decode(data) else {
        return;
    };
    assert!(consumed <= limits::PRECONNECTION_PDU_BYTES);
    let theirs = ironrdp_decode::<PreconnectionBlob>(&data[..consumed]).unwrap();
    match &pdu {
        PreconnectionPdu::V1 { id } => {
            assert_eq!((theirs.id, theirs.v2_payload), (*id, None));
        }
        PreconnectionPdu::V2 { id, wsz_pcb } => {
            assert!(!wsz_pcb.contains('\0'));
            assert_eq!(theirs.id, *id);
            assert_eq!(theirs.v2_payload.as_deref(), Some(wsz_pcb.as_str()));
            match preconnection::encode_v2(*id, wsz_pcb) {
                Ok(wire) => {
                    let length = wire.len();
                    assert_eq!(preconnection::decode(&wire), Ok(Some((pdu, length))));
                }
                // Without its terminator it was just within the limit.
                Err(error) => assert!(
                    consumed >= limits::PRECONNECTION_PDU_BYTES - 1,
                    "{consumed}: {error}"
                ),
            }
        }
    }
}

/// Decoding is final and bounded; what goes on to the target is valid, has no token and is what was read.
pub(crate) fn connection_request(data: &[u8]) {
    frames_are_final(data, connection_request::decode);
    let Ok(Some((mut request, consumed))) = connection_request::decode(data) else {
        return;
    };
    assert_eq!(&data[..2], [3, 0]);
    assert_eq!(
        consumed,
        usize::from(u16::from_be_bytes([data[2], data[3]]))
    );
    for with_token in [true, false] {
        if !with_token {
            request.take_routing_token();
        }
        match request.encode() {
            Ok(wire) => {
                let length = wire.len();
                assert_eq!(usize::from(wire[4]), length - 5);
                assert!(wire[4] < 255);
                let again = connection_request::decode(&wire);
                assert_eq!(again, Ok(Some((request.clone(), length))));
            }
            Err(ConnectionRequestError::TokenAndCookie) => {
                assert!(
                    with_token && request.routing_token.is_some() && request.mstshash.is_some()
                );
            }
            Err(ConnectionRequestError::TooLong(_)) => assert!(consumed > 254),
            Err(error) => panic!("read but not written: {error}"),
        }
    }
    // The other implementation reads what the target gets, if it can read the name.
    let text = request.mstshash.as_deref().unwrap_or_default();
    if let Ok(wire) = request.encode()
        && text.is_ascii()
        && request.correlation_info.is_none()
        && (request.src_ref, request.class) == (0, 0)
    {
        let X224(theirs) = ironrdp_decode::<X224<nego::ConnectionRequest>>(&wire).unwrap();
        let ours = request.negotiation.unwrap_or_default();
        assert_eq!(theirs.protocol.bits(), ours.requested_protocols);
    }
}

/// Decoding is final and bounded and round trips.
pub(crate) fn connection_confirm(data: &[u8]) {
    frames_are_final(data, negotiation::decode_confirm);
    let Ok(Some((confirm, consumed))) = negotiation::decode_confirm(data) else {
        return;
    };
    assert!(consumed == 11 || consumed == 19);
    let wire = confirm.encode();
    assert_eq!(
        negotiation::decode_confirm(&wire),
        Ok(Some((confirm, consumed)))
    );
    let theirs = ironrdp_decode::<X224<nego::ConnectionConfirm>>(&wire);
    assert!(theirs.is_ok(), "{theirs:?}");
}

/// Decoding is final and bounded; the addresses survive being written by another encoder, in both versions.
pub(crate) fn proxy_protocol(data: &[u8]) {
    frames_are_final(data, proxy_protocol::decode);
    let Ok(Some((header, consumed))) = proxy_protocol::decode(data) else {
        return;
    };
    assert!(consumed <= limits::PROXY_HEADER_BYTES);
    assert_eq!(header.source.is_some(), header.destination.is_some());
    let (Some(source), Some(destination)) = (header.source, header.destination) else {
        return;
    };
    for wire in [proxy_v1(source, destination), proxy_v2(source, destination)] {
        let again = ProxyHeader {
            source: Some(source),
            destination: Some(destination),
        };
        assert_eq!(proxy_protocol::decode(&wire), Ok(Some((again, wire.len()))));
    }
}

/// Judgements are final; a client that conforms to `rdp` is recognised; names survive.
pub(crate) fn application_protocol(data: &[u8]) {
    for name in ["none", "wayk", "rdp", "ssh", "vnc", "other"] {
        let protocol = ApplicationProtocol::from(name.to_owned());
        for check in [
            application_protocol::check_client,
            application_protocol::check_target,
        ] {
            settles_once(
                data,
                |bytes| check(&protocol, bytes),
                |answer| *answer == FirstBytes::NeedMore,
            );
        }
    }
    let rdp = ApplicationProtocol::Rdp;
    if application_protocol::check_client(&rdp, data) == FirstBytes::Conforms {
        let answer = preamble::recognise(data);
        // A record that claims to be empty is TLS to one and nothing to the other.
        let empty = data.get(3..5).is_some_and(|length| length == [0; 2]);
        assert!(
            empty || matches!(answer, Recognition::Known(Preamble::X224 | Preamble::Tls)),
            "{answer:?}"
        );
    }
    if let Ok(name) = str::from_utf8(data) {
        let protocol = ApplicationProtocol::from(name.to_owned());
        // Names that enforcement knows are read in any case; others are kept to the letter.
        assert!(protocol.as_str().eq_ignore_ascii_case(name));
        if matches!(protocol, ApplicationProtocol::Other(_)) {
            assert_eq!(protocol.as_str(), name);
        }
        assert_eq!(protocol.as_str().parse(), Ok(protocol));
    }
}

/// A text that is no JSON is tried as a token; JSON becomes the payload of tokens that are signed, and nested.
pub(crate) fn token(data: &[u8]) {
    if !data.starts_with(b"{") {
        if let Ok(text) = str::from_utf8(data) {
            verified(text, false);
        }
        return;
    }
    let signed = signed_as_is(data);
    verified(&signed, false);
    let mut forged = signed.into_bytes();
    let last = forged.len() - 43;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    let error = VERIFIER.verify(&forged, NOW).unwrap_err();
    assert!(matches!(error.rule(), "signature" | "oversized"), "{error}");

    if let Ok(claims) = serde_json::from_slice(data)
        && let Ok(nested) = mint(&claims, Some(&SIGNING), Some(&ENCRYPTION))
    {
        verified(&nested, true);
    }
}

/// A ticket has one text, which fits where it is to travel.
pub(crate) fn ticket(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(ticket) = Ticket::parse(text) {
        assert_eq!(ticket.as_str(), text);
        assert!(text.len() <= limits::TICKET_CHARS);
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        let again = Ticket::parse(ticket.as_str()).unwrap();
        assert_eq!(again.digest(), ticket.digest());
        assert!(!format!("{ticket:?}").contains(&text[3..]));
    }
}

/// A keytab, what a KDC says went wrong, and a client that shows a ticket: nobody comes in without a key of the keytab,
/// which is found by all that it belongs to, and what goes into a log is a line.
pub(crate) fn kerberos(data: &[u8]) {
    let_contained_panics_pass();
    if let Ok(keytab) = Keytab::parse(data) {
        assert!(format!("{keytab:?}").len() <= data.len() * 4 + 2);
    }
    let errors = [KrbError::decode(data), KrbError::of_token(data)];
    for error in errors.into_iter().flatten() {
        assert!(!error.to_string().contains(char::is_control));
    }
    let password = SecretString::from("a password that nobody knows");
    let kerberos = ClientKerberos {
        keytab: Arc::clone(&KEYTAB),
        ntlm_fallback: false,
    };
    let server = LogonServer::new(b"the bits of a public key", "user", &password);
    let mut server = server.with_kerberos(Some(&kerberos));
    for (count, (_, frame)) in records(data).enumerate() {
        assert!(count <= credssp::TS_REQUESTS);
        match server.process(frame) {
            Ok(Served::Reply(_)) => {}
            Ok(Served::Finished) => panic!("somebody came in without a ticket"),
            Err(_) => return,
        }
    }
}

/// The key of one gateway, which no corpus knows.
static KEYTAB: LazyLock<Arc<Keytab>> = LazyLock::new(|| {
    let mut entry = vec![0, 2];
    for text in ["CORP.EXAMPLE", "TERMSRV", "gw.corp.example"] {
        entry.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        entry.extend(text.bytes());
    }
    // Type of the name, time, version, AES-256, its key.
    entry.extend([0, 0, 0, 1, 0x6a, 0, 0, 0, 2, 0, 18, 0, 32]);
    entry.extend([0x5A; 32]);
    let mut file = vec![5, 2];
    file.extend(u32::try_from(entry.len()).unwrap().to_be_bytes());
    file.extend(entry);
    Arc::new(Keytab::parse(&file).unwrap())
});

/// A packet and the request or response in it: what is read is written the same, a prefix never reads as something else,
/// and `Debug` does not show a token.
pub(crate) fn jet_packet(data: &[u8]) {
    let whole = packet::decode(data);
    for end in [0, 1, 7, data.len() / 2] {
        let part = packet::decode(data.get(..end).unwrap_or_default());
        assert!(
            part == Ok(None) || part == whole,
            "a prefix reads otherwise"
        );
    }
    let Ok(Some(found)) = whole else {
        return;
    };
    assert!(found.length <= data.len());
    let wire = packet::encode(&found.payload, data[7]).unwrap();
    assert_eq!(wire, data[..found.length]);
    if let Ok(request) = Request::parse(&found.payload) {
        assert_eq!(Request::parse(&request.to_payload()).as_ref(), Ok(&request));
        let mut anonymous = request.clone();
        anonymous.token = anonymous.token.map(|_| "x".to_owned().into());
        assert_eq!(format!("{request:?}"), format!("{anonymous:?}"));
    }
    if let Ok(response) = Response::parse(&found.payload) {
        assert_eq!(Response::parse(&response.to_payload()), Ok(response));
    }
}

/// WebSocket frames, of a client (an even first byte) or of a server: in whatever pieces they come, the same is found in them,
/// and what is found, framed again, says the same.
pub(crate) fn jet_frame(data: &[u8]) {
    let Some((&[choice, size], wire)) = data.split_first_chunk() else {
        return;
    };
    let from_client = choice & 1 == 0;
    let deframer = || match choice & 2 {
        0 => Deframer::new(from_client),
        _ => Deframer::new(from_client).with_ends(),
    };
    let take = |wire: &[u8], size: usize| {
        let mut deframer = deframer();
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        for piece in wire.chunks(size) {
            let mut piece = piece.to_vec();
            let kept = deframer.take(&mut piece, |found| all.push(found));
            bytes.extend_from_slice(&piece[..kept]);
        }
        (bytes, all, deframer.is_over())
    };
    let whole = take(wire, wire.len().max(1));
    assert_eq!(take(wire, usize::from(size).max(1)), whole);
    let (bytes, all, over) = whole;
    assert!(bytes.len() <= wire.len());
    let mut again = Vec::new();
    let mut put = |opcode, payload: &[u8]| {
        let mask = from_client.then_some([choice, size, 3, 4]);
        let (head, head_bytes) = frame::head(opcode, payload.len(), mask);
        again.extend_from_slice(&head[..head_bytes]);
        let start = again.len();
        again.extend_from_slice(payload);
        frame::apply(mask.unwrap_or_default(), &mut again[start..]);
    };
    if !bytes.is_empty() {
        put(2, &bytes);
    }
    let mut ends = 0;
    for (number, found) in all.iter().enumerate() {
        let last = number + 1 == all.len();
        match found {
            Found::Ping(payload) => put(9, payload),
            Found::Arrival(Arrival::Sign) => put(0xA, b""),
            Found::Arrival(Arrival::Empty) => {
                put(2, b"");
                ends += 1;
            }
            Found::Arrival(Arrival::Close(code)) => {
                assert!(last && over);
                put(
                    8,
                    &code.map(u16::to_be_bytes).unwrap_or_default()[..code.map_or(0, |_| 2)],
                );
            }
            Found::Arrival(Arrival::Text | Arrival::TooLong | Arrival::Broken(_)) => {
                assert!(last && over);
                return;
            }
            Found::Arrival(Arrival::Bytes | Arrival::CutOff) => panic!("not found in frames"),
        }
    }
    assert!(ends <= 1, "a second end");
    assert_eq!(take(&again, again.len().max(1)), (bytes, all, over));
}

/// A message of a signaling channel: what is read is written so that it reads the same, within its bounds.
pub(crate) fn jet_message(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(message) = FromGateway::parse(text) {
        assert_eq!(FromGateway::parse(&message.to_json()).unwrap(), message);
    }
    if let Ok(message) = FromAgent::parse(text) {
        assert_eq!(FromAgent::parse(&message.to_json()).unwrap(), message);
    }
    if let Ok(message) = Message::parse(text) {
        assert!(text.len() <= limits::JET_MESSAGE_BYTES);
        let again = message.to_json();
        assert_eq!(Message::parse(&again).unwrap(), message);
        if let Message::Answer(answer) = message {
            assert!(answer.candidates.len() <= limits::JET_CANDIDATES);
        }
    }
}

/// A candidate's URL, or the path of a request: what is read is written so that it reads the same.
pub(crate) fn jet_url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(url) = text.parse::<CandidateUrl>() {
        let written = url.to_string();
        assert_eq!(written.parse::<CandidateUrl>().as_ref(), Ok(&url));
        assert!(url.address.port != 0);
    }
    if let Some(path) = JetPath::parse(text) {
        assert_eq!(JetPath::parse(&path.to_string()), Some(path));
    }
}

/// Verifies `text`; what is accepted keeps every rule, and errors do not repeat it.
fn verified(text: &str, encrypted: bool) {
    let _ = VERIFIER.cost_us(text);
    let _ = VERIFIER.inspect(text, NOW);
    match VERIFIER.verify(text, NOW) {
        Ok(token) => {
            assert!(text.len() <= limits::TOKEN_BYTES);
            // Another text for the same token would be another token to a memory of texts.
            for part in text.split('.') {
                let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
                assert_eq!(URL_SAFE_NO_PAD.encode(bytes), part);
            }
            assert!(!encrypted || token.protection.is_encrypted());
            accepted(&token);
        }
        Err(error) => {
            assert!(!error.rule().is_empty());
            let again = VERIFIER.verify(text, NOW).unwrap_err();
            assert_eq!(again, error);
            let said = format!("{error} {error:?}");
            for part in text.split('.').filter(|part| part.len() > 24) {
                assert!(!said.contains(part));
            }
        }
    }
}

/// The rules that hold for every token that was accepted.
fn accepted(token: &Token) {
    let claims = &token.claims;
    let rules = VERIFIER.rules();
    assert!(claims.validity.not_before <= NOW.plus(rules.leeway_s));
    assert!(claims.validity.not_after.plus(rules.leeway_s) >= NOW);
    let life_s = claims.validity.not_after.since(claims.validity.not_before);
    assert!(life_s <= rules.max_lifetime_s, "{life_s}");
    assert_eq!(
        claims.jet_cm == ConnectionMode::Fwd,
        !claims.targets.is_empty()
    );
    assert!(claims.targets.len() <= limits::TARGETS);
    for target in &claims.targets {
        assert_eq!(target.to_string().parse(), Ok(target.clone()));
    }
    for secret in ["dst_usr", "dst_pwd", "prx_usr", "prx_pwd"] {
        assert!(!claims.extra.contains_key(secret), "{secret}");
    }
    let with_credentials =
        claims.target_credentials.is_some() || claims.proxy_credentials.is_some();
    assert!(!with_credentials || token.protection.is_encrypted());
    assert!(!token.id.as_str().is_empty());
}

/// The compact JWS with `payload` as it is, duplicate names and all.
fn signed_as_is(payload: &[u8]) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let key = PKey::hmac(SECRET).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    let signature = signer.sign_oneshot_to_vec(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Symmetric keys: fast, and the corpus may hold tokens that verify.
const SECRET: &[u8; 32] = b"signing key of the fuzz targets.";
const KEYS: &[u8] = br#"{"keys":[
    {"kty":"oct","use":"sig","k":"c2lnbmluZyBrZXkgb2YgdGhlIGZ1enogdGFyZ2V0cy4"},
    {"kty":"oct","use":"enc","k":"Y29udGVudCBrZXkgb2YgdGhlIGZ1enogdGFyZ2V0cy4"}
]}"#;

/// The time of all tokens in the corpus.
const NOW: UnixTime = UnixTime(1_800_000_000);

const KEY_DOCUMENT: KeyDocument<'static> = KeyDocument {
    name: "fuzz.jwks",
    bytes: KEYS,
    usage: None,
    kid: None,
};
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let keys = KeySet::from_documents(&[KEY_DOCUMENT]).unwrap();
    Verifier::new(keys, TokenRules::default())
});
static SIGNING: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_document(&KEY_DOCUMENT, None).unwrap());
static ENCRYPTION: LazyLock<EncryptionKey> =
    LazyLock::new(|| EncryptionKey::from_document(&KEY_DOCUMENT, None).unwrap());

/// What a decoder answers for a part of the input.
type Decoded<T, E> = Result<Option<(T, usize)>, E>;

/// A decoder asks for more until it decides, then never changes its mind, and needs what it consumes and no more.
fn frames_are_final<T, E>(data: &[u8], decode: impl Fn(&[u8]) -> Decoded<T, E>)
where
    T: PartialEq + Debug,
    E: PartialEq + Debug,
{
    settles_once(data, &decode, |answer| matches!(answer, Ok(None)));
    if let Ok(Some((_, consumed))) = decode(data) {
        assert!(0 < consumed && consumed <= data.len());
        assert_eq!(decode(&data[..consumed]), decode(data));
        assert!(matches!(decode(&data[..consumed - 1]), Ok(None)));
    }
}

/// The first answer that is not `undecided` is the answer for all longer parts of the input.
fn settles_once<A: PartialEq + Debug>(
    data: &[u8],
    answer: impl Fn(&[u8]) -> A,
    undecided: impl Fn(&A) -> bool,
) {
    let mut settled: Option<A> = None;
    for count in splits(data.len()) {
        let now = answer(&data[..count]);
        match &settled {
            Some(settled) => assert_eq!(&now, settled, "after {count} bytes"),
            None if undecided(&now) => {}
            None => settled = Some(now),
        }
    }
}

/// Where to split: everywhere in short inputs; in long ones at the start, at the end and here and there.
fn splits(length: usize) -> impl Iterator<Item = usize> {
    (0..=length).filter(move |&count| {
        length <= 300 || count < 64 || length - count < 16 || count % 997 == 0
    })
}

fn proxy_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

fn proxy_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let (family, length) = if source.is_ipv4() {
        (0x11, 12)
    } else {
        (0x21, 36)
    };
    bytes.extend([family, 0, length]);
    for address in [source, destination] {
        match address {
            SocketAddr::V4(address) => bytes.extend(address.ip().octets()),
            SocketAddr::V6(address) => bytes.extend(address.ip().octets()),
        }
    }
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes
}
