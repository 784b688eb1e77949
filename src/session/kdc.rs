//! The network of Kerberos: one question, one answer, from the first KDC that gives one.
//!
//! Over TCP ([RFC 4120] 7.2.2); over UDP where a KDC has no TCP port. A KDC that answered is asked first the next time,
//! so that one logon stays with one. Answers are bounded before they are read, and every KDC gets its share of the time
//! that is left.
//!
//! [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::rdp::credssp::client::Question;
use crate::upstream;

/// The KDCs of one logon.
#[derive(Debug)]
pub(super) struct Kdcs {
    /// `host:port`, in the order to ask.
    addresses: Vec<String>,
    failure: Option<String>,
}

impl Kdcs {
    pub(super) fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            failure: None,
        }
    }

    /// Why there was no answer to the last question, where there was none.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The answer, its length in front as over TCP.
    pub(super) async fn ask(&mut self, question: &Question, deadline: Instant) -> Option<Vec<u8>> {
        let referred = question.referred_to.as_slice();
        let addresses = if referred.is_empty() {
            &self.addresses
        } else {
            referred
        };
        let mut failures = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let rest = u32::try_from(addresses.len().saturating_sub(at)).unwrap_or(u32::MAX);
            let left = deadline.saturating_duration_since(Instant::now());
            // One share is kept for what comes after the tickets.
            let share = left.checked_div(rest.saturating_add(1)).unwrap_or(left);
            match timeout(share.min(PATIENCE), ask_one(address, &question.message)).await {
                Ok(Ok(answer)) => {
                    self.failure = None;
                    if referred.is_empty() {
                        self.addresses.swap(0, at);
                    }
                    return Some(answer);
                }
                Ok(Err(error)) => failures.push(format!("{address}: {error}")),
                Err(_elapsed) => failures.push(format!("{address}: no answer in time")),
            }
        }
        self.failure = Some(failures.join("; "));
        None
    }
}

async fn ask_one(address: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    match over_tcp(address, message).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            over_udp(address, message).await
        }
        other => other,
    }
}

async fn over_tcp(address: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = upstream::connect_service(address).await?;
    stream.write_all(message).await?;
    let mut header = [0; LENGTH_BYTES];
    stream.read_exact(&mut header).await?;
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > ANSWER_BYTES {
        let text = format!("an answer of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut answer = header.to_vec();
    answer.resize(header.len().saturating_add(length), 0);
    let (_, body) = answer.split_at_mut(header.len());
    stream.read_exact(body).await?;
    Ok(answer)
}

/// Asks again until somebody answers; the caller limits the time.
async fn over_udp(address: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let socket = upstream::datagram_service(address).await?;
    let question = message.get(LENGTH_BYTES..).unwrap_or_default();
    let mut datagram = vec![0; ANSWER_BYTES];
    loop {
        socket.send(question).await?;
        let Ok(received) = timeout(UDP_REPEAT, socket.recv(&mut datagram)).await else {
            continue;
        };
        let length = received?;
        let mut answer = u32::try_from(length)
            .unwrap_or(u32::MAX)
            .to_be_bytes()
            .to_vec();
        answer.extend_from_slice(datagram.get(..length).unwrap_or_default());
        return Ok(answer);
    }
}

/// How long one KDC may take for one answer: they answer in milliseconds, and clients of their own try the next after
/// one to three seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// A lost datagram is sent again after this.
const UDP_REPEAT: Duration = Duration::from_secs(1);
/// Largest answer: a ticket with the largest PAC has 64 KiB at most, as Windows limits it (MaxTokenSize, 48,000).
const ANSWER_BYTES: usize = 64 * 1024;
/// Of the length in front of a message over TCP.
const LENGTH_BYTES: usize = 4;
