//! The channel parsers read what real peers sent: what the recordings of `channels/` hold is what was done in them.
//!
//! What was done is in `channels/README.md`; the facts below were written from there, not from the parsers' answers.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;

use jetway::rdp::Direction;
use jetway::rdp::channel::{ChannelError, ChannelEvent, Channels};
use jetway::stage::inspector::{AuditEvent, Inspector};

#[test]
fn dump() {
    for name in names() {
        println!("== {name}");
        for event in audit(&name) {
            println!("{}", serde_json::to_string(&event).unwrap());
        }
    }
}

fn audit(name: &str) -> Vec<AuditEvent> {
    let (sender, records) = mpsc::channel();
    let mut inspector = Inspector::new(move |record| sender.send(record).unwrap());
    for (direction, channel, pdu) in recording(name) {
        inspector
            .channel_message(&channel, direction, &pdu)
            .unwrap();
    }
    drop(inspector);
    records.into_iter().collect()
}

fn recording(name: &str) -> Vec<(Direction, String, Vec<u8>)> {
    let text = fs::read_to_string(folder().join(format!("{name}.pdus"))).unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            let direction = match words.next().unwrap() {
                ">" => Direction::ToTarget,
                "<" => Direction::ToClient,
                other => panic!("{other:?} is no direction"),
            };
            let channel = words.next().unwrap().to_owned();
            (
                direction,
                channel,
                hex::decode(words.next().unwrap()).unwrap(),
            )
        })
        .collect()
}

fn names() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".pdus").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/channels")
}
