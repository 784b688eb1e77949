//! The decoders read what real clients sent: every file of `captures/`, every fact of its index, every split.
//!
//! The recordings are described in `captures/README.md`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod channels;
mod sessions;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use jetway::application_protocol::{ApplicationProtocol, FirstBytes, check_client};
use jetway::limits;
use jetway::preamble::{Preamble, Recognition, recognise};
use jetway::rdp::connection_request::{self, ConnectionRequest, ConnectionRequestError};
use jetway::rdp::preconnection::{self, PreconnectionError, PreconnectionPdu};
use openssl::sha::sha256;
use serde::Deserialize;

#[test]
fn every_recording_is_in_the_index_and_every_entry_has_its_file() {
    let indexed: BTreeSet<String> = index().into_iter().map(|entry| entry.file).collect();
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".hex"))
        .collect();
    assert_eq!(indexed, files);
    assert_eq!(files.len(), 83);
}

#[test]
fn every_fact_of_the_index_is_what_the_decoders_read() {
    for entry in index() {
        let bytes = entry.read();
        let mut rest = bytes.as_slice();
        if let Some(facts) = &entry.pcb {
            rest = check_pcb(&entry, facts, rest);
        }
        if let Some(facts) = &entry.request {
            rest = check_request(&entry, facts, rest);
        }
        check_rest(&entry, rest);
    }
}

#[test]
fn a_capture_that_arrives_byte_by_byte_is_read_the_same() {
    for entry in index() {
        let bytes = entry.read();
        let mut rest = bytes.as_slice();
        if let Some(facts) = &entry.pcb {
            settles(&entry, rest, 8, Preamble::PreconnectionPdu);
            let whole = preconnection::decode(rest);
            let decided = if whole.is_ok() { facts.cb_size } else { 4 };
            for count in 0..=rest.len() {
                let answer = preconnection::decode(&rest[..count]);
                if count < decided {
                    assert_eq!(answer, Ok(None), "{}, {count} bytes", entry.file);
                } else {
                    assert_eq!(answer, whole, "{}, {count} bytes", entry.file);
                }
            }
            rest = &rest[facts.cb_size..];
        }
        if let Some(facts) = &entry.request {
            settles(&entry, rest, 2, Preamble::X224);
            let whole = connection_request::decode(rest);
            for count in 0..=rest.len() {
                let answer = connection_request::decode(&rest[..count]);
                if count < facts.tpkt_length {
                    assert_eq!(answer, Ok(None), "{}, {count} bytes", entry.file);
                } else {
                    assert_eq!(answer, whole, "{}, {count} bytes", entry.file);
                }
            }
            rest = &rest[facts.tpkt_length..];
        }
        if entry.then.is_some() && rest.starts_with(&[0x16]) {
            // `16 03 01` and a length above 255.
            settles(&entry, rest, 4, Preamble::Tls);
        }
    }
}

#[test]
fn both_generations_of_freerdp_send_the_same_text() {
    let entries = index();
    let mut compared = 0;
    for old in entries
        .iter()
        .filter(|entry| entry.file.starts_with("frdp2_"))
    {
        let name = old.file.replace("frdp2_", "frdp3_");
        let Some(new) = entries.iter().find(|entry| entry.file == name) else {
            continue;
        };
        let (old, new) = (carried(&old.read()), carried(&new.read()));
        assert_eq!(old, new, "{name}");
        compared += usize::from(old != (None, None));
    }
    assert_eq!(compared, 24);
}

#[test]
fn what_is_sent_to_a_target_has_no_token_and_a_valid_length_indicator() {
    for entry in index() {
        let bytes = entry.read();
        let start = entry.pcb.as_ref().map_or(0, |facts| facts.cb_size);
        let Some(facts) = &entry.request else {
            continue;
        };
        let original = &bytes[start..start + facts.tpkt_length];
        let mut request = decoded(original);
        let token = request.take_routing_token();
        let onward = request.encode().unwrap();
        assert_eq!(usize::from(onward[4]), onward.len() - 5, "{}", entry.file);
        assert_eq!(decoded(&onward), request, "{}", entry.file);
        match token {
            None => assert_eq!(onward, original, "{}", entry.file),
            Some(token) => {
                assert!(!contains(&onward, &token), "{}", entry.file);
                // With the token put back, the frame is the client's own, or one that could not be valid.
                request.routing_token = Some(token);
                match request.encode() {
                    Ok(again) => assert_eq!(again, original, "{}", entry.file),
                    Err(ConnectionRequestError::TooLong(_)) => {
                        assert!(facts.li_wrapped, "{}", entry.file);
                    }
                    Err(error) => panic!("{}: {error}", entry.file),
                }
            }
        }
    }
}

fn check_pcb<'a>(entry: &Entry, facts: &Pcb, bytes: &'a [u8]) -> &'a [u8] {
    let file = &entry.file;
    assert_eq!(
        recognise(bytes),
        Recognition::Known(Preamble::PreconnectionPdu),
        "{file}"
    );
    assert_eq!(facts.version, 2, "{file}");
    if facts.cb_size > limits::PRECONNECTION_PDU_BYTES {
        assert_eq!(
            preconnection::decode(bytes),
            Err(PreconnectionError::TooLarge {
                cb_size: facts.cb_size.try_into().unwrap(),
                limit: limits::PRECONNECTION_PDU_BYTES,
            }),
            "{file}"
        );
    } else {
        let (pdu, consumed) = preconnection::decode(bytes).unwrap().unwrap();
        assert_eq!(consumed, facts.cb_size, "{file}");
        let PreconnectionPdu::V2 { id, wsz_pcb } = pdu else {
            panic!("{file} is version 2");
        };
        assert_eq!(id, facts.id, "{file}");
        assert_eq!(wsz_pcb.chars().count(), facts.characters, "{file}");
        assert_eq!(
            hex::encode(sha256(wsz_pcb.as_bytes())),
            facts.sha256,
            "{file}"
        );
        let units = wsz_pcb.encode_utf16().count();
        assert_eq!(units + facts.nuls, facts.cch_pcb, "{file}");
        assert_eq!(18 + 2 * facts.cch_pcb, facts.cb_size, "{file}");

        // Ours has one terminator, as FreeRDP 3 sends it.
        let encoded = preconnection::encode_v2(id, &wsz_pcb).unwrap();
        if facts.nuls == 1 {
            assert_eq!(encoded, bytes[..consumed], "{file}");
        } else {
            assert_eq!(encoded.len(), consumed + 2 - 2 * facts.nuls, "{file}");
        }
    }
    &bytes[facts.cb_size..]
}

fn check_request<'a>(entry: &Entry, facts: &Request, bytes: &'a [u8]) -> &'a [u8] {
    let file = &entry.file;
    assert_eq!(
        recognise(bytes),
        Recognition::Known(Preamble::X224),
        "{file}"
    );
    let (request, consumed) = connection_request::decode(bytes).unwrap().unwrap();
    assert_eq!(consumed, facts.tpkt_length, "{file}");
    assert_eq!(bytes[4], facts.li, "{file}");
    assert_eq!(
        usize::from(facts.li) != consumed - 5,
        facts.li_wrapped,
        "{file}"
    );
    assert_eq!(request.mstshash, facts.mstshash, "{file}");
    match (&request.routing_token, &facts.routing_token) {
        (None, None) => {}
        (Some(token), Some(facts)) => {
            assert_eq!(token.len(), facts.characters, "{file}");
            assert!(token.starts_with(facts.begins.as_bytes()), "{file}");
            assert_eq!(hex::encode(sha256(token)), facts.sha256, "{file}");
        }
        (found, expected) => panic!("{file}: {} {}", found.is_some(), expected.is_some()),
    }
    let negotiation = request
        .negotiation
        .map(|found| (found.flags, found.requested_protocols));
    let expected = facts
        .negotiation
        .as_ref()
        .map(|expected| (expected.flags, expected.requested_protocols));
    assert_eq!(negotiation, expected, "{file}");
    assert_eq!(request.correlation_info, None, "{file}");
    assert_eq!((request.src_ref, request.class), (0, 0), "{file}");
    assert_eq!(
        check_client(&ApplicationProtocol::Rdp, bytes),
        FirstBytes::Conforms,
        "{file}"
    );
    &bytes[consumed..]
}

fn check_rest(entry: &Entry, rest: &[u8]) {
    let file = &entry.file;
    let Some(facts) = &entry.then else {
        assert!(rest.is_empty(), "{file}");
        return;
    };
    assert_eq!(rest.len(), facts.bytes, "{file}");
    assert!(
        rest.starts_with(&hex::decode(&facts.begins).unwrap()),
        "{file}"
    );
    match recognise(rest) {
        Recognition::Known(Preamble::Tls) => assert_eq!(
            check_client(&ApplicationProtocol::Rdp, rest),
            FirstBytes::Conforms,
            "{file}"
        ),
        // MCS Connect-Initial in X.224 Data: not how a connection begins.
        Recognition::Known(Preamble::X224) => {
            assert!(connection_request::decode(rest).is_err(), "{file}");
        }
        Recognition::Known(_) | Recognition::NeedMore | Recognition::Unknown => {
            panic!("{file} goes on with an unknown protocol")
        }
    }
}

fn settles(entry: &Entry, bytes: &[u8], enough: usize, preamble: Preamble) {
    for count in 0..=bytes.len() {
        let expected = if count < enough {
            Recognition::NeedMore
        } else {
            Recognition::Known(preamble)
        };
        assert_eq!(
            recognise(&bytes[..count]),
            expected,
            "{}, {count}",
            entry.file
        );
    }
}

/// The texts of both carriers.
fn carried(bytes: &[u8]) -> (Option<String>, Option<Vec<u8>>) {
    let (text, rest) = match preconnection::decode(bytes) {
        Ok(Some((PreconnectionPdu::V2 { wsz_pcb, .. }, consumed))) => {
            (Some(wsz_pcb.to_string()), &bytes[consumed..])
        }
        _ => (None, bytes),
    };
    let token = match connection_request::decode(rest) {
        Ok(Some((mut request, _))) => request.take_routing_token(),
        _ => None,
    };
    (text, token.map(|token| token.to_vec()))
}

fn decoded(bytes: &[u8]) -> ConnectionRequest {
    connection_request::decode(bytes).unwrap().unwrap().0
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/captures")
}

fn index() -> Vec<Entry> {
    serde_json::from_slice(&fs::read(folder().join("index.json")).unwrap()).unwrap()
}

/// One recording.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: String,
    #[serde(rename = "client")]
    _client: String,
    #[serde(rename = "about")]
    _about: String,
    bytes: usize,
    pcb: Option<Pcb>,
    request: Option<Request>,
    then: Option<Then>,
}

impl Entry {
    fn read(&self) -> Vec<u8> {
        let text = fs::read_to_string(folder().join(&self.file)).unwrap();
        let bytes = hex::decode(text.replace('\n', "")).unwrap();
        assert_eq!(bytes.len(), self.bytes, "{}", self.file);
        bytes
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pcb {
    cb_size: usize,
    version: u32,
    id: u32,
    cch_pcb: usize,
    characters: usize,
    nuls: usize,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    tpkt_length: usize,
    li: u8,
    li_wrapped: bool,
    mstshash: Option<String>,
    routing_token: Option<RoutingToken>,
    negotiation: Option<Negotiation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutingToken {
    characters: usize,
    begins: String,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Negotiation {
    flags: u8,
    requested_protocols: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Then {
    bytes: usize,
    begins: String,
}
