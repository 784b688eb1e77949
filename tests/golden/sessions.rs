//! Whole sessions of real clients and targets pass the tracker byte for byte, apart from the fields that are named.
//!
//! The recordings are described in `sessions/README.md`. What is expected of the changed PDUs is worked out here
//! with a second reader (`ironrdp-pdu`) and by the signatures of blocks, not with the code under test.

use std::fmt::Write as _;
use std::time::Duration;

use ironrdp_core::decode as ironrdp_decode;
use ironrdp_pdu::mcs::{ConnectInitial, ConnectResponse, McsMessage};
use ironrdp_pdu::rdp::ClientInfoPdu;
use ironrdp_pdu::rdp::client_info::ClientInfoFlags;
use ironrdp_pdu::x224::{X224, X224Data};
use jetway::rdp::Direction;
use jetway::rdp::budget::Budget;
use jetway::rdp::client_info::ClientInfoCredentials;
use jetway::rdp::event::{Event, Interest, Phase, Sink, Verdict};
use jetway::rdp::tracker::{Settings, Tracker};
use jetway::stage::Pipeline;
use jetway::stage::inspector::Inspector;
use openssl::sha::sha256;
use proptest::prelude::*;

/// What the recordings hold.
const SESSIONS: &[Facts] = &[
    Facts {
        file: "gdi-tls-shadow2",
        user: "alice",
        picture: Picture::Bitmap,
        channels: &["rdpdr", "rdpsnd", "cliprdr", "drdynvc"],
        desktops: 1,
        transport: 0,
    },
    Facts {
        file: "logon-tls-xrdp",
        user: "alice",
        picture: Picture::Pointer,
        channels: &["rdpdr", "rdpsnd", "cliprdr", "drdynvc"],
        desktops: 1,
        transport: 0,
    },
    Facts {
        file: "rfx-tls-shadow2",
        user: "alice",
        picture: Picture::Surface,
        channels: &["rdpdr", "rdpsnd", "cliprdr", "drdynvc"],
        desktops: 1,
        transport: 0,
    },
    Facts {
        file: "egfx-nla-shadow3",
        user: "alice",
        picture: Picture::Egfx,
        channels: &["rdpdr", "rdpsnd", "cliprdr", "drdynvc"],
        desktops: 2,
        transport: 2,
    },
    Facts {
        file: "egfx-resize-tls-shadow3",
        user: "alice",
        picture: Picture::Egfx,
        channels: &["rdpdr", "rdpsnd", "cliprdr", "drdynvc"],
        desktops: 2,
        transport: 2,
    },
];

#[derive(Debug)]
struct Facts {
    file: &'static str,
    user: &'static str,
    picture: Picture,
    channels: &'static [&'static str],
    desktops: usize,
    /// PDUs that have to do with UDP.
    transport: usize,
}

/// How the target drew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Picture {
    /// No more than pointers, compressed.
    Pointer,
    /// Bitmap updates or drawing orders.
    Bitmap,
    /// Surface commands, as RemoteFX.
    Surface,
    /// EGFX, in a dynamic channel.
    Egfx,
}

const CLIENT_REQUESTED: u32 = 0x0b;
const TARGET_SELECTED: u32 = 0x08;

#[test]
fn every_pdu_passes_byte_for_byte_apart_from_the_named_fields() {
    for facts in SESSIONS {
        let records = read(facts.file);
        let mut tracker = Tracker::new(settings(true));
        let mut log = Log::default();
        let mut changed = Vec::new();
        let mut withheld = 0;
        for (direction, pdu) in &records {
            let out = feed(&mut tracker, *direction, pdu, &mut log);
            if out == *pdu {
                continue;
            }
            if out.is_empty() {
                withheld += 1;
                continue;
            }
            changed.push(check_change(*direction, pdu, &out));
        }
        assert_eq!(
            changed,
            ["connect initial", "connect response", "client info"],
            "{}",
            facts.file
        );
        // The recorded legs had agreed on UDP: a request, and the client's answer.
        assert_eq!(withheld, facts.transport, "{}", facts.file);
    }
}

#[test]
fn without_other_credentials_the_logon_of_the_client_passes_as_it_is() {
    for facts in SESSIONS {
        let mut tracker = Tracker::new(settings(false));
        let mut changed = 0;
        for (direction, pdu) in read(facts.file) {
            changed += usize::from(feed(&mut tracker, direction, &pdu, &mut Log::default()) != pdu);
        }
        assert_eq!(changed, 2 + facts.transport, "{}", facts.file);
    }
}

#[test]
fn stages_are_told_who_logs_on_and_not_what_was_typed_in_vain() {
    for facts in SESSIONS {
        for (logon, user) in [(true, "svc"), (false, facts.user)] {
            let mut tracker = Tracker::new(settings(logon));
            let mut log = Log::default();
            for (direction, pdu) in read(facts.file) {
                feed(&mut tracker, direction, &pdu, &mut log);
            }
            assert_eq!(log.user, user, "{}", facts.file);
        }
    }
}

#[test]
fn a_session_that_arrives_byte_by_byte_is_passed_and_read_the_same() {
    for facts in SESSIONS {
        let records = read(facts.file);
        let whole = run(&records, |_| usize::MAX);
        let bytes = run(&records, |_| 1);
        assert!(whole == bytes, "{}", facts.file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_a_session_is_cut_into_reads_it_is_passed_and_read_the_same(
        which in 0..SESSIONS.len(),
        cuts in prop::collection::vec(prop_oneof![1..8_usize, 1..200_usize, 1000..70_000_usize], 1..200),
    ) {
        let records = read(SESSIONS[which].file);
        let mut at = 0;
        let cut = run(&records, |_| {
            at += 1;
            cuts[at % cuts.len()]
        });
        prop_assert!(cut == run(&records, |_| usize::MAX));
    }
}

#[test]
fn what_a_session_was_is_what_its_events_say() {
    for facts in SESSIONS {
        let (log, _) = run(&read(facts.file), |_| usize::MAX);
        assert_eq!(log.channels, facts.channels, "{}", facts.file);
        assert_eq!(
            &log.phases[..4],
            [
                Phase::ChannelConnection,
                Phase::Licensing,
                Phase::CapabilitiesExchange,
                Phase::Active
            ],
            "{}",
            facts.file
        );
        assert_eq!(log.desktops, facts.desktops, "{}", facts.file);
        let again = [Phase::CapabilitiesExchange, Phase::Active];
        assert_eq!(
            log.phases[4..],
            again.repeat(facts.desktops - 1),
            "{}",
            facts.file
        );
        assert!(log.inputs > 0, "{}", facts.file);
        assert!(log.messages > 0, "{}", facts.file);
        let drawn = match facts.picture {
            Picture::Pointer => log.pointers,
            Picture::Bitmap => log.bitmaps,
            Picture::Surface => log.surfaces,
            Picture::Egfx => log.dynamic,
        };
        assert!(drawn > 0, "{}: {log:?}", facts.file);
    }
}

#[test]
fn a_stage_that_decides_sees_messages_first_and_they_pass_whole() {
    for facts in SESSIONS {
        let records = read(facts.file);
        let (observed, passed) = run(&records, |_| usize::MAX);
        let mut log = Log {
            interest: Some(Interest::Decide),
            ..Log::default()
        };
        let mut tracker = Tracker::new(settings(true));
        let mut decided = [Vec::new(), Vec::new()];
        for (direction, pdu) in &records {
            let out = feed(&mut tracker, *direction, pdu, &mut log);
            decided[side(*direction)].extend(out);
        }
        assert_eq!(log.messages, observed.messages, "{}", facts.file);
        // Compression was declined, and a message that was cut off with the recording is held back for good.
        for (decided, passed) in decided.iter().zip(&passed) {
            assert!(decided.len() <= passed.len(), "{}", facts.file);
            assert!(passed.len() - decided.len() < 20_000, "{}", facts.file);
        }
    }
}

#[test]
fn the_password_of_the_client_is_named_as_a_secret_and_the_new_one_too() {
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    for facts in SESSIONS {
        for injected in [true, false] {
            let mut log = Log::default();
            let mut tracker = Tracker::new(settings(injected));
            for (direction, pdu) in read(facts.file) {
                feed(&mut tracker, direction, &pdu, &mut log);
            }
            let expected = if injected { PASSWORD } else { "throw-away" };
            if injected || log.has_password {
                assert!(log.secrets.contains(&wide(expected)), "{}", facts.file);
            }
            for secret in ["throw-away", PASSWORD] {
                let wide = wide(secret);
                let shown = log
                    .redacted
                    .windows(wide.len())
                    .any(|window| window == wide);
                assert!(!shown, "{}", facts.file);
                assert!(!format!("{tracker:?}").contains(secret), "{}", facts.file);
            }
        }
    }
}

#[test]
fn a_session_with_a_bent_byte_ends_or_passes_and_never_hangs_or_panics() {
    // Every byte of the set-up, bent once.
    for facts in SESSIONS {
        let records = read(facts.file);
        let setup = records.len().min(24);
        for bent in 0..setup {
            for position in 0..records[bent].1.len().min(600) {
                let mut tracker = Tracker::new(settings(true));
                for (index, (direction, pdu)) in records[..setup].iter().enumerate() {
                    let mut pdu = pdu.clone();
                    if index == bent {
                        pdu[position] ^= 0x81;
                    }
                    let (mut onward, mut back) = (Vec::new(), Vec::new());
                    let mut log = Log::default();
                    let result =
                        tracker.feed(*direction, &mut pdu, &mut log, &mut onward, &mut back);
                    if result.is_err() {
                        break;
                    }
                }
            }
        }
    }
}

/// Played into the inspector, one millisecond between any two PDUs.
#[test]
fn the_codecs_of_a_session_are_counted_and_frames_are_timed() {
    for (name, codecs, frames) in [
        ("gdi-tls-shadow2", &["compressed bitmap"][..], false),
        ("rfx-tls-shadow2", &["RemoteFX"], true),
        ("egfx-nla-shadow3", &["RemoteFX"], true),
    ] {
        let inspector = Inspector::new(&Budget::default(), |_| {});
        let statistics = inspector.statistics();
        let mut stages = Pipeline::new().with(inspector);
        let mut tracker = Tracker::new(settings(false));
        let (mut onward, mut back) = (Vec::new(), Vec::new());
        for (number, (direction, mut pdu)) in read(name).into_iter().enumerate() {
            stages.set_now(Duration::from_millis(number.try_into().unwrap()));
            tracker
                .feed(direction, &mut pdu, &mut stages, &mut onward, &mut back)
                .unwrap();
        }
        let statistics = statistics.lock().unwrap();
        let pictures = &statistics.pictures;
        let seen: Vec<_> = pictures.codecs.keys().copied().collect();
        assert_eq!(seen, codecs, "{name}: {pictures:?}");
        // Confirmed in all of them, used or not; version 10.7.
        assert_eq!(
            pictures.pipeline.as_ref().unwrap().0,
            "0x000a0701",
            "{name}"
        );
        assert_eq!(pictures.frame_round_trip.is_some(), frames, "{name}");
    }
}

const PASSWORD: &str = "another-throw-away";

fn settings(logon: bool) -> Settings {
    Settings {
        client_requested: CLIENT_REQUESTED,
        target_selected: TARGET_SELECTED,
        logon: logon.then(|| ClientInfoCredentials {
            domain: "CORP".to_owned(),
            user: "svc".to_owned(),
            password: PASSWORD.to_owned().into(),
        }),
        redirections: None,
        routing_token: None,
        cookies: None,
        budget: Budget::default(),
    }
}

/// Feeds a whole PDU and takes what goes on.
fn feed(tracker: &mut Tracker, direction: Direction, pdu: &[u8], log: &mut Log) -> Vec<u8> {
    let (mut arrived, mut onward, mut back) = (pdu.to_vec(), Vec::new(), Vec::new());
    tracker
        .feed(direction, &mut arrived, log, &mut onward, &mut back)
        .unwrap();
    assert!(arrived.is_empty());
    assert_eq!(
        back.is_empty(),
        !onward.is_empty() || direction == Direction::ToTarget
    );
    onward
}

/// Feeds a session in reads of the given sizes. A read may hold the end of one PDU and the beginning of the next,
/// as long as both come from one side.
fn run(
    records: &[(Direction, Vec<u8>)],
    mut size: impl FnMut(usize) -> usize,
) -> (Log, [Vec<u8>; 3]) {
    let mut tracker = Tracker::new(settings(true));
    let mut log = Log::default();
    let mut passed = [Vec::new(), Vec::new()];
    let mut arrived = [Vec::new(), Vec::new()];
    let mut answers = Vec::new();
    for run in records.chunk_by(|a, b| a.0 == b.0) {
        let direction = run[0].0;
        let bytes: Vec<u8> = run
            .iter()
            .flat_map(|(_, pdu)| pdu.iter().copied())
            .collect();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let count = size(rest.len()).min(rest.len());
            let (read, behind) = rest.split_at(count);
            rest = behind;
            let mut back = Vec::new();
            arrived[side(direction)].extend_from_slice(read);
            tracker
                .feed(
                    direction,
                    &mut arrived[side(direction)],
                    &mut log,
                    &mut passed[side(direction)],
                    &mut back,
                )
                .unwrap();
            answers.extend(back);
        }
        assert!(arrived[side(direction)].is_empty());
    }
    let [to_target, to_client] = passed;
    (log, [to_target, to_client, answers])
}

fn side(direction: Direction) -> usize {
    match direction {
        Direction::ToTarget => 0,
        Direction::ToClient => 1,
    }
}

/// The three PDUs that change, and only as they should.
fn check_change(direction: Direction, before: &[u8], after: &[u8]) -> &'static str {
    let data = |frame: &[u8]| {
        let X224(X224Data { data }) = ironrdp_decode::<X224<X224Data<'_>>>(frame).unwrap();
        data.into_owned()
    };
    let (old, new) = (data(before), data(after));
    if let Ok(read) = ironrdp_decode::<ConnectInitial>(&new) {
        assert_eq!(direction, Direction::ToTarget);
        let blocks = read.conference_create_request.into_gcc_blocks();
        let protocol = blocks.core.optional_data.server_selected_protocol.unwrap();
        assert_eq!(protocol.bits(), TARGET_SELECTED);
        let fields = [
            (block(before, [0x01, 0xc0]), 212, TARGET_SELECTED),
            (block(before, [0x0a, 0xc0]), 4, 0),
        ];
        assert_eq!(after, changed(before, &fields));
        return "connect initial";
    }
    if let Ok(read) = ironrdp_decode::<ConnectResponse>(&new) {
        assert_eq!(direction, Direction::ToClient);
        let blocks = read.conference_create_response.into_gcc_blocks();
        let protocol = blocks.core.optional_data.client_requested_protocols;
        assert_eq!(protocol.unwrap().bits(), CLIENT_REQUESTED);
        let fields = [
            (block(before, [0x01, 0x0c]), 8, CLIENT_REQUESTED),
            (block(before, [0x08, 0x0c]), 4, 0),
        ];
        assert_eq!(after, changed(before, &fields));
        return "connect response";
    }
    assert_eq!(direction, Direction::ToTarget);
    let info = |frame: &[u8]| {
        let X224(McsMessage::SendDataRequest(request)) =
            ironrdp_decode::<X224<McsMessage<'_>>>(frame).unwrap()
        else {
            panic!("not data");
        };
        let pdu = ironrdp_decode::<ClientInfoPdu>(&request.user_data).unwrap();
        (
            request.initiator_id,
            request.channel_id,
            pdu,
            request.user_data.into_owned(),
        )
    };
    let (old_initiator, old_channel, mut expected, old_data) = info(before);
    let (initiator, channel, read, new_data) = info(after);
    assert_eq!((initiator, channel), (old_initiator, old_channel));
    let old_credentials = expected.client_info.credentials.clone();
    expected.client_info.credentials.domain = Some("CORP".to_owned());
    expected.client_info.credentials.username = "svc".to_owned();
    expected.client_info.credentials.password = PASSWORD.to_owned();
    expected.client_info.flags |= ClientInfoFlags::AUTOLOGON;
    assert_eq!(read, expected);
    // Security header, CodePage, flags, five lengths; then three strings and what that reader may not know.
    let strings = |domain: &str, user: &str, password: &str| {
        let units: usize = [domain, user, password]
            .iter()
            .map(|text| text.encode_utf16().count() + 1)
            .sum();
        22 + 2 * units
    };
    let old_tail = strings(
        old_credentials.domain.as_deref().unwrap_or_default(),
        &old_credentials.username,
        &old_credentials.password,
    );
    let new_tail = strings("CORP", "svc", PASSWORD);
    assert_eq!(old_data[old_tail..], new_data[new_tail..]);
    assert_eq!(old_data[..8], new_data[..8]);
    assert_eq!(old_data[18..22], new_data[18..22]);
    assert_eq!(old.len() - old_data.len(), new.len() - new_data.len());
    "client info"
}

/// Where a GCC block of this type begins, if there is one.
fn block(frame: &[u8], kind: [u8; 2]) -> Option<usize> {
    let key = frame
        .windows(4)
        .position(|window| window == b"Duca" || window == b"McDn")
        .unwrap();
    // PER length of one or two bytes, then the blocks.
    let mut at = key + 4 + if frame[key + 4] & 0x80 == 0 { 1 } else { 2 };
    while at < frame.len() {
        if frame[at..at + 2] == kind {
            return Some(at);
        }
        at += usize::from(u16::from_le_bytes([frame[at + 2], frame[at + 3]]));
    }
    None
}

fn changed(frame: &[u8], fields: &[(Option<usize>, usize, u32)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (block, offset, value) in fields {
        if let Some(block) = block {
            frame[block + offset..block + offset + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    frame
}

/// What was reported, as far as it can be compared.
#[derive(Default, PartialEq, Eq)]
struct Log {
    interest: Option<Interest>,
    /// Each event in words and digests.
    lines: Vec<String>,
    phases: Vec<Phase>,
    channels: Vec<String>,
    user: String,
    has_password: bool,
    desktops: usize,
    inputs: usize,
    messages: usize,
    dynamic: usize,
    bitmaps: usize,
    surfaces: usize,
    pointers: usize,
    secrets: Vec<Vec<u8>>,
    /// All PDUs with secrets blanked.
    redacted: Vec<u8>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("lines", &self.lines.len())
            .field("phases", &self.phases)
            .field("channels", &self.channels)
            .field("user", &self.user)
            .field("desktops", &self.desktops)
            .field("inputs", &self.inputs)
            .field("messages", &self.messages)
            .field("dynamic", &self.dynamic)
            .field("bitmaps", &self.bitmaps)
            .field("surfaces", &self.surfaces)
            .finish_non_exhaustive()
    }
}

impl Sink for Log {
    fn interest(&self, _: &str) -> Interest {
        self.interest.unwrap_or(Interest::Observe)
    }

    fn decides(&self) -> bool {
        self.interest == Some(Interest::Decide)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the other events are of no interest here"
    )]
    fn on_event(&mut self, event: &Event<'_>) -> Verdict {
        let mut line = String::new();
        match event {
            Event::Phase(phase) => self.phases.push(*phase),
            Event::ServerData { channels, .. } => {
                self.channels = channels
                    .iter()
                    .map(|channel| channel.name.clone())
                    .collect();
            }
            Event::ClientInfo(info) => {
                self.user.clone_from(&info.user);
                self.has_password = info.has_password;
            }
            Event::DesktopSize { .. } => self.desktops += 1,
            Event::Input(_) => self.inputs += 1,
            Event::ChannelMessage { channel, data, .. } => {
                self.messages += 1;
                self.dynamic += usize::from(channel.name == "drdynvc" && data.len() > 200);
            }
            Event::FastPathUpdate { code, .. } => match code {
                0 | 1 => self.bitmaps += 1,
                4 => self.surfaces += 1,
                9..=11 => self.pointers += 1,
                _ => {}
            },
            Event::ShareData { pdu_type2: 2, .. } => self.bitmaps += 1,
            Event::Pdu { bytes, secrets, .. } => {
                let mut bytes = bytes.to_vec();
                for secret in *secrets {
                    self.secrets.push(bytes[secret.clone()].to_vec());
                    bytes[secret.clone()].fill(0);
                }
                self.redacted.extend(bytes);
            }
            _ => {}
        }
        let text = format!("{event:?}");
        let digest = sha256(&[text.as_bytes(), event.data()].concat());
        write!(
            line,
            "{} {}",
            text.get(..40).unwrap_or(&text),
            hex::encode(digest)
        )
        .unwrap();
        self.lines.push(line);
        Verdict::Forward
    }
}

/// The PDUs of a recorded session.
pub(crate) fn read(name: &str) -> Vec<(Direction, Vec<u8>)> {
    jetway_lab::recording::session(name, [Direction::ToTarget, Direction::ToClient])
}
