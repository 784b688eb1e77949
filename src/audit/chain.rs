//! The chain: each line has a number and the digest of the line before it.
//!
//! `previous` is the SHA-256 of the bytes of the line before, without its line feed, in hexadecimal; of the first line that ever was,
//! zeros. `sequence` counts from 1. A chain goes on through all files of an audit and through restarts.

use std::fmt::{self, Write};
use std::time::Duration;

use openssl::sha::sha256;
use serde::Serialize;
use serde_json::Value;

use jetway_base::time::UnixTime;
use jetway_base::{escape, limits};

use crate::record::{Record, VERSION};

/// Bytes of a SHA-256.
pub(crate) const DIGEST_BYTES: usize = 32;

/// The place behind a line: what the next line refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of that line; 0 where there is none.
    pub sequence: u64,
    /// Its digest.
    pub digest: [u8; DIGEST_BYTES],
}

impl Head {
    /// Before the first line.
    pub const START: Self = Self {
        sequence: 0,
        digest: [0; DIGEST_BYTES],
    };

    /// Behind a line.
    #[must_use]
    pub fn behind(sequence: u64, line: &[u8]) -> Self {
        Self {
            sequence,
            digest: sha256(line),
        }
    }
}

/// `SEQUENCE:DIGEST`.
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex::encode(self.digest))
    }
}

/// It is not `SEQUENCE:DIGEST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected SEQUENCE:DIGEST, a number and 64 hexadecimal digits")]
pub struct NotAHead;

impl std::str::FromStr for Head {
    type Err = NotAHead;

    fn from_str(text: &str) -> Result<Self, NotAHead> {
        let (sequence, digest) = text.split_once(':').ok_or(NotAHead)?;
        let mut head = Self {
            sequence: sequence.parse().map_err(|_| NotAHead)?,
            ..Self::START
        };
        hex::decode_to_slice(digest, &mut head.digest).map_err(|_| NotAHead)?;
        Ok(head)
    }
}

/// A record as JSON, without its place in the chain: bounded, and ready to be linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(String);

impl Body {
    /// The record as JSON.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let body = json(record);
        if body.len() <= BODY_BYTES {
            return Self(body);
        }
        Self(json(&shortened(record, body.len())))
    }

    /// Its length, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// A record as it stands in its line, behind its place in the chain.
#[derive(Serialize)]
struct Described<'a> {
    class_uid: u32,
    activity_id: u32,
    severity_id: u32,
    status_id: u32,
    #[serde(flatten)]
    record: &'a Record,
}

fn json(record: &Record) -> String {
    let (class_uid, activity_id) = record.event.class_and_activity();
    let described = Described {
        class_uid,
        activity_id,
        severity_id: record.event.severity(),
        status_id: record.event.status(),
        record,
    };
    // Strings, numbers and maps of strings: nothing in it fails.
    escape::json(&serde_json::to_string(&described).unwrap_or_default())
}

/// Bytes of a line for its place in the chain: names, a number of 20 digits, a digest, a time.
const LINK_BYTES: usize = 256;

const BODY_BYTES: usize = limits::AUDIT_LINE_BYTES - LINK_BYTES;

/// The end of the chain, where lines are added.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    head: Head,
}

impl Chain {
    /// Goes on behind `head`.
    #[must_use]
    pub fn behind(head: Head) -> Self {
        Self { head }
    }

    /// Behind the last line.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The next line, without a line feed. `time` is that of the record, since the Unix epoch.
    pub fn line(&mut self, body: &Body, time: Duration) -> String {
        let sequence = self.head.sequence.saturating_add(1);
        let previous = hex::encode(self.head.digest);
        let time = rfc_3339(time);
        // The body is an object with members: they follow those of the link.
        let members = body.0.strip_prefix('{').unwrap_or("}");
        let line = format!(
            "{{\"version\":{VERSION},\"sequence\":{sequence},\"previous\":\"{previous}\",\"time\":\"{time}\",{members}"
        );
        self.head = Head::behind(sequence, line.as_bytes());
        line
    }
}

/// The record without what may be long in it.
fn shortened(record: &Record, bytes: usize) -> Record {
    let short = |text: &Option<String>| {
        let text = text.as_deref()?;
        Some(text.chars().take(SHORT_CHARS).collect())
    };
    Record {
        user: short(&record.user),
        by: short(&record.by),
        target: short(&record.target),
        agent: short(&record.agent),
        token: short(&record.token),
        jet_aid: short(&record.jet_aid),
        protocol: short(&record.protocol),
        reason: short(&record.reason),
        detail: serde_json::json!({
            "event": record.detail.get("event").and_then(Value::as_str).map(|event| event.chars().take(SHORT_CHARS).collect::<String>()),
            "too_long_bytes": bytes,
        }),
        ..record.clone()
    }
}

/// Characters that are left of a text in a record that is too long.
const SHORT_CHARS: usize = 256;

/// With microseconds.
fn rfc_3339(since_epoch: Duration) -> String {
    let mut text = UnixTime(since_epoch.as_secs()).to_string();
    if text.pop() == Some('Z') {
        // Writing to a string does not fail.
        let _written = write!(text, ".{:06}Z", since_epoch.subsec_micros());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Event;

    #[test]
    fn a_line_says_when_and_what_and_what_came_before() {
        let mut chain = Chain::behind(Head::START);
        let now = Duration::new(1_795_982_281, 123_456_789);
        let first = chain.line(&Body::of(&Record::new(Event::GatewayStarted)), now);
        let digest = hex::encode(sha256(first.as_bytes()));
        assert_eq!(
            first,
            format!(
                "{{\"version\":1,\"sequence\":1,\"previous\":\"{}\",\"time\":\"2026-11-29T19:58:01.123456Z\",\
                 \"class_uid\":6002,\"activity_id\":3,\"severity_id\":1,\"status_id\":1,\"event\":\"gateway.started\"}}",
                "0".repeat(64)
            )
        );
        assert_eq!(chain.head().to_string(), format!("1:{digest}"));
        let second = chain.line(&Body::of(&Record::new(Event::GatewayStopped)), now);
        let second: Value = serde_json::from_str(&second).unwrap();
        assert_eq!(second["sequence"], 2);
        assert_eq!(second["previous"], digest);
        assert_eq!(chain.head().to_string().parse(), Ok(chain.head()));
        assert_eq!("1:".parse::<Head>(), Err(NotAHead));
    }

    #[test]
    fn no_text_of_others_ends_a_line_or_is_obeyed_by_a_terminal() {
        let mut chain = Chain::behind(Head::START);
        let hostile = "\n\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}\u{0}\u{7f}\"\\";
        let record = Record {
            user: Some(hostile.to_owned()),
            reason: Some(hostile.to_owned()),
            detail: serde_json::json!({ hostile: [hostile] }),
            ..Record::new(Event::SessionRefused)
        };
        let line = chain.line(&Body::of(&record), Duration::ZERO);
        assert!(!line.chars().any(escape::is_hidden), "{line}");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["user"], hostile);
        assert_eq!(read["detail"][hostile][0], hostile);
    }

    #[test]
    fn a_line_is_bounded_whatever_it_is_to_say() {
        let mut chain = Chain::behind(Head::START);
        let long = "\u{202e}".repeat(limits::AUDIT_LINE_BYTES);
        let record = Record {
            user: Some(long.clone()),
            by: Some(long.clone()),
            target: Some(long.clone()),
            agent: Some(long.clone()),
            token: Some(long.clone()),
            jet_aid: Some(long.clone()),
            protocol: Some(long.clone()),
            reason: Some(long.clone()),
            detail: serde_json::json!({ "event": long, "name": long }),
            ..Record::new(Event::SessionActivity)
        };
        let line = chain.line(&Body::of(&record), Duration::ZERO);
        assert!(line.len() <= limits::AUDIT_LINE_BYTES, "{}", line.len());
        let read: Value = serde_json::from_str(&line).unwrap();
        assert!(read["detail"]["too_long_bytes"].as_u64().unwrap() > 0);
    }
}
