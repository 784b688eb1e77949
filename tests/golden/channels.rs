//! The channel parsers read what real peers sent: what the recordings hold is what was done in them.
//!
//! What was done is in `channels/README.md` and `sessions/README.md`; what is expected here was written from there,
//! and from the sizes of the files used, not from the parsers' answers.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;

use jetway::rdp::Direction;
use jetway::rdp::budget::Budget;
use jetway::rdp::channel::{ChannelError, ChannelEvent, Channels};
use jetway::rdp::tracker::{Settings, Tracker};
use jetway::stage::Pipeline;
use jetway::stage::inspector::{AuditEvent, Inspector, SessionStatistics};
use serde_json::{Value, json};

use crate::sessions;

#[test]
fn text_and_files_that_were_copied_both_ways_are_in_the_records() {
    let records = audit("frdp3_xrdp_cliprdr");
    let sent = of_kind(&records, "clipboard_sent");
    let text = json!({"id": 13});
    assert_eq!(
        [&sent[0]["direction"], &sent[0]["format"], &sent[0]["bytes"]],
        // Nine characters with their NUL, in UTF-16.
        [&json!("to_target"), &text, &json!(18)]
    );
    assert_eq!(
        [&sent[1]["direction"], &sent[1]["format"], &sent[1]["bytes"]],
        [&json!("to_client"), &text, &json!(18)]
    );
    let listed = of_kind(&records, "clipboard_files_listed");
    assert_eq!(
        listed[0]["files"],
        json!([
            {"name": "blob é.bin", "size": 3072, "directory": false},
            {"name": "second.txt", "size": 4, "directory": false},
        ])
    );
    assert_eq!(listed[1]["files"][0]["name"], "from-session.bin");
    assert_eq!(
        of_kind(&records, "clipboard_file_sent"),
        [
            json!({"event": "clipboard_file_sent", "direction": "to_target", "name": "blob é.bin", "bytes": 3072}),
            json!({"event": "clipboard_file_sent", "direction": "to_client", "name": "from-session.bin", "bytes": 2000}),
        ]
    );
}

#[test]
fn what_was_done_on_a_drive_is_in_the_records() {
    let records = audit("rdesktop_xrdp_rdpdr");
    let devices: Vec<_> = of_kind(&records, "device_announced")
        .into_iter()
        .map(|record| {
            let device = &record["device"];
            (device["kind"].clone(), device["dos_name"].clone())
        })
        .collect();
    assert_eq!(
        devices,
        [
            (json!("drive"), json!("lab")),
            (json!("printer"), json!("PRN1")),
            (json!("serial"), json!("COM1")),
        ]
    );
    let closed = of_kind(&records, "file_closed");
    let with = |field: &str| -> Vec<(Value, Value)> {
        closed
            .iter()
            .filter(|record| record[field] != 0)
            .map(|record| (record["path"].clone(), record[field].clone()))
            .collect()
    };
    assert_eq!(
        with("read"),
        [
            (json!("/hello é.txt"), json!(22)),
            (json!("/new.txt"), json!(8))
        ]
    );
    assert_eq!(with("written"), [(json!("/new.txt"), json!(8))]);
    let renamed = of_kind(&records, "file_renamed");
    assert_eq!(
        [&renamed[0]["path"], &renamed[0]["to"]],
        ["/new.txt", "\\renamed.txt"]
    );
    let deleted: Vec<_> = of_kind(&records, "file_deleted")
        .iter()
        .map(|record| record["path"].clone())
        .collect();
    assert_eq!(deleted, ["/old.txt", "/sub"]);
    assert!(!of_kind(&records, "directory_listed").is_empty());
    // Read where it does not exist: nothing came of it.
    assert!(!json!(records).to_string().contains("missing.txt"));
}

#[test]
fn sound_is_recorded_once_and_added_up() {
    let (records, statistics) = inspect("frdp3_xrdp_rdpsnd");
    let played = of_kind(&records, "sound_played");
    assert_eq!(played.len(), 1);
    assert_eq!(played[0]["format"]["samples_per_s"], 44_100);
    // Two waves: the bodies of their WaveInfo PDUs have 1,004 and 754 bytes, 8 of which are fields.
    assert_eq!(statistics.sound_played, 996 + 746);
    assert_eq!(
        of_kind(&audit("rdesktop_xrdp_rdpsnd"), "sound_played"),
        Vec::<Value>::new()
    );
}

#[test]
fn a_window_that_was_resized_asks_for_another_desktop() {
    let records = audit("frdp3_xrdp_drdynvc");
    let sizes: Vec<_> = of_kind(&records, "monitors_requested")
        .iter()
        .map(|record| {
            let monitor = &record["monitors"][0];
            (monitor["width"].clone(), monitor["height"].clone())
        })
        .collect();
    assert_eq!(sizes, [(json!(1024), json!(768)), (json!(900), json!(700))]);
}

#[test]
fn nothing_in_the_recordings_is_unknown_or_unmatched() {
    for name in names() {
        for record in audit(&name) {
            assert!(
                !matches!(record, AuditEvent::Unknown { .. }),
                "{name}: {record:?}"
            );
        }
        let events = format!("{:?}", events(&name).unwrap());
        assert!(!events.contains("Unmatched"), "{name}");
        assert!(!events.contains("Unknown"), "{name}");
    }
}

#[test]
fn what_was_copied_or_read_is_in_no_event() {
    for name in names() {
        let told = format!("{:?} {:?}", events(&name).unwrap(), audit(&name));
        for content in ["loc-", "rem-", "from the client", "written\n", "two\n"] {
            assert!(!told.contains(content), "{name}: {content}");
        }
    }
}

#[test]
fn a_pdu_that_is_cut_short_anywhere_is_an_error_or_an_event_and_never_a_panic() {
    for name in names() {
        for (direction, channel, pdu) in recording(&name) {
            for length in 0..pdu.len().min(200) {
                let _ = Channels::new(&Budget::default()).feed(&channel, direction, &pdu[..length]);
            }
        }
    }
}

#[test]
fn contents_need_not_be_at_hand() {
    for name in names() {
        let mut channels = Channels::new(&Budget::default());
        let mut heads = Vec::new();
        for (direction, channel, pdu) in recording(&name) {
            // File lists are read whole; nothing else in the recordings that is longer needs its end.
            let is_list = pdu.starts_with(&[5, 0, 1, 0]);
            let count = if channel == "drdynvc" || is_list {
                pdu.len()
            } else {
                pdu.len().min(360)
            };
            let head = channels.feed_head(&channel, direction, &pdu[..count], pdu.len());
            heads.extend(head.unwrap());
        }
        assert_eq!(heads, events(&name).unwrap(), "{name}");
    }
}

#[test]
fn a_channel_that_is_tunnelled_is_read_the_same() {
    for (name, channel) in [
        ("frdp3_xrdp_cliprdr", "CLIPRDR"),
        ("rdesktop_xrdp_rdpdr", "rdpdr"),
        ("frdp3_xrdp_rdpsnd", "AUDIO_PLAYBACK_DVC"),
    ] {
        for compressed in [false, true] {
            let mut channels = Channels::new(&Budget::default());
            let mut feed =
                |direction, pdu: &[u8]| channels.feed("drdynvc", direction, pdu).unwrap();
            feed(
                Direction::ToClient,
                &[&[0x10, 5][..], channel.as_bytes(), &[0]].concat(),
            );
            feed(Direction::ToTarget, &[0x10, 5, 0, 0, 0, 0]);
            let mut tunnelled = Vec::new();
            for (direction, _, pdu) in recording(name) {
                for part in parts(&pdu, compressed) {
                    tunnelled.extend(feed(direction, &part));
                }
            }
            assert_eq!(tunnelled, events(name).unwrap(), "{name}");
        }
    }
}

#[test]
fn whole_sessions_are_read_through_the_pipeline() {
    for (name, picture, dynamic) in [
        ("gdi-tls-shadow2", "bitmap", None),
        ("rfx-tls-shadow2", "surface commands", None),
        (
            "egfx-nla-shadow3",
            "",
            Some("Microsoft::Windows::RDS::Graphics"),
        ),
    ] {
        let (sender, records) = mpsc::channel();
        let inspector = Inspector::new(&Budget::default(), move |record| {
            sender.send(record).unwrap()
        });
        let statistics = inspector.statistics();
        let mut pipeline = Pipeline::new().with(inspector);
        let mut tracker = Tracker::new(Settings {
            client_requested: 1,
            target_selected: 1,
            logon: None,
            redirections: None,
            routing_token: None,
            cookies: None,
            budget: Budget::default(),
        });
        let (mut onward, mut back) = (Vec::new(), Vec::new());
        for (direction, mut pdu) in sessions::read(name) {
            tracker
                .feed(direction, &mut pdu, &mut pipeline, &mut onward, &mut back)
                .unwrap();
        }
        drop(pipeline);
        let records: Vec<AuditEvent> = records.into_iter().collect();
        let statistics = statistics.lock().unwrap().clone();
        assert_eq!(statistics.user.as_deref(), Some("alice"), "{name}");
        assert_eq!(statistics.phase.as_deref(), Some("active"), "{name}");
        assert_eq!(
            statistics.static_channels,
            ["rdpdr", "rdpsnd", "cliprdr", "drdynvc"],
            "{name}"
        );
        if !picture.is_empty() {
            assert!(
                statistics.graphics.contains_key(picture),
                "{name}: {statistics:?}"
            );
        }
        if let Some(dynamic) = dynamic {
            assert!(
                statistics.dynamic_channels.contains(dynamic),
                "{name}: {statistics:?}"
            );
        }
        let unread = |record: &&AuditEvent| {
            matches!(
                record,
                AuditEvent::Unknown { .. } | AuditEvent::Malformed { .. }
            )
        };
        assert_eq!(records.iter().find(unread), None, "{name}");
    }
}

/// A message as parts of a dynamic channel with id 5.
fn parts(message: &[u8], compressed: bool) -> Vec<Vec<u8>> {
    let chunks: Vec<_> = message.chunks(700).collect();
    let (first, next): (u8, u8) = if compressed {
        (0x68, 0x70)
    } else {
        (0x28, 0x30)
    };
    let wrap: &[u8] = if compressed { &[0xe0, 0x06] } else { &[] };
    let total = u32::try_from(message.len()).unwrap().to_le_bytes();
    let mut parts = Vec::new();
    for (at, chunk) in chunks.iter().enumerate() {
        let header = if chunks.len() > 1 && at == 0 {
            [&[first, 5][..], &total].concat()
        } else {
            vec![next, 5]
        };
        parts.push([&header, wrap, chunk].concat());
    }
    parts
}

fn of_kind(records: &[AuditEvent], kind: &str) -> Vec<Value> {
    records
        .iter()
        .map(|record| serde_json::to_value(record).unwrap())
        .filter(|record| record["event"] == kind)
        .collect()
}

fn audit(name: &str) -> Vec<AuditEvent> {
    inspect(name).0
}

fn inspect(name: &str) -> (Vec<AuditEvent>, SessionStatistics) {
    let (sender, records) = mpsc::channel();
    let mut inspector = Inspector::new(&Budget::default(), move |record| {
        sender.send(record).unwrap()
    });
    for (direction, channel, pdu) in recording(name) {
        inspector
            .channel_message(&channel, direction, &pdu)
            .unwrap();
    }
    let statistics = inspector.statistics();
    drop(inspector);
    let statistics = statistics.lock().unwrap().clone();
    (records.into_iter().collect(), statistics)
}

fn events(name: &str) -> Result<Vec<ChannelEvent>, ChannelError> {
    let mut channels = Channels::new(&Budget::default());
    let mut events = Vec::new();
    for (direction, channel, pdu) in recording(name) {
        events.extend(channels.feed(&channel, direction, &pdu)?);
    }
    Ok(events)
}

fn recording(name: &str) -> Vec<(Direction, String, Vec<u8>)> {
    let text = fs::read_to_string(folder("channels").join(format!("{name}.pdus"))).unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            let direction = match words.next().unwrap() {
                ">" => Direction::ToTarget,
                "<" => Direction::ToClient,
                other => panic!("{other:?} is no direction"),
            };
            let channel = words.next().unwrap().to_owned();
            let pdu = hex::decode(words.next().unwrap()).unwrap();
            (direction, channel, pdu)
        })
        .collect()
}

fn names() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder("channels"))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".pdus").map(str::to_owned)
        })
        .collect();
    names.sort();
    assert_eq!(names.len(), 7);
    names
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}
