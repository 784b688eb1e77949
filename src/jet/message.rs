//! [JET-PROTO] 2.2.4 Message protocol: offer, answer and complete, as JSON over a signaling channel.
//!
//! The role fits the message or the message is refused: an offer is a client's, an answer a server's. Unknown members
//! are ignored, as those of a later version must be. What a peer may send is bounded before and after it is parsed.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::candidate::{CandidateUrl, Transport};
use jetway_base::limits;

/// The version of the protocol, 2 or 3. Version 3 brought tokens and `transports`; everything else is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Version {
    /// Jet V2.
    V2,
    /// Jet V3.
    V3,
}

/// [JET-PROTO] 2.2.4.1: the client wants to be met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The association.
    pub id: Uuid,
    role: ClientRole,
    /// What the client can use; absent: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transports: Option<TransportList>,
    /// Of the protocol.
    pub version: Version,
}

/// [JET-PROTO] 2.2.4.2: where the server can be met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The association.
    pub id: Uuid,
    role: ServerRole,
    /// Of the protocol.
    pub version: Version,
    /// Ways to try.
    #[serde(deserialize_with = "bounded_candidates")]
    pub candidates: Vec<Candidate>,
}

/// [JET-PROTO] 2.2.4.3: the way that the client has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// The chosen one.
    pub candidate: Chosen,
}

/// A candidate by its id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Of the candidate.
    pub id: Uuid,
}

/// A candidate with its URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Unique within the association.
    pub id: Uuid,
    /// The way.
    pub url: CandidateUrl,
}

/// `transports`: names with commas between them. Names of transports to come are kept out of it without a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct TransportList(Vec<Transport>);

/// Any of the three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// From a client.
    Offer(Offer),
    /// From a server.
    Answer(Answer),
    /// From a client.
    Complete(Complete),
}

/// Why a text is not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`limits::JET_MESSAGE_BYTES`].
    #[error("message of {0} bytes is above the limit")]
    TooLong(usize),
    /// Not JSON, or a member is missing or wrong.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

impl Offer {
    /// An offer of `id` over `transports`, or over any.
    #[must_use]
    pub fn new(id: Uuid, version: Version, transports: Option<Vec<Transport>>) -> Self {
        Self {
            id,
            role: ClientRole::Client,
            transports: transports.map(TransportList),
            version,
        }
    }

    /// Whether the client can use this transport.
    #[must_use]
    pub fn admits(&self, transport: Transport) -> bool {
        match &self.transports {
            Some(list) => list.0.contains(&transport),
            None => true,
        }
    }
}

impl Answer {
    /// The answer to `offer`: those of `candidates` that the client can use, in its version.
    #[must_use]
    pub fn to(offer: &Offer, candidates: Vec<Candidate>) -> Self {
        let mut candidates = candidates;
        candidates.retain(|candidate| offer.admits(candidate.url.transport));
        Self {
            id: offer.id,
            role: ServerRole::Server,
            version: offer.version,
            candidates,
        }
    }
}

impl Candidate {
    /// Takes the host that the relay named in `Jet-Instance` when the candidate was accepted: behind a balancer, that is the one
    /// which holds the association ([JET-PROTO] 2.3.2.2.1). A bare machine name, which nobody outside can resolve, is left alone.
    ///
    /// [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway
    pub fn real(&mut self, instance: &str) {
        let address = format!("{instance}:{}", self.url.address.port);
        if instance.contains('.')
            && let Ok(address) = address.parse()
        {
            self.url.address = address;
        }
    }
}

impl Complete {
    /// The choice of `candidate`.
    #[must_use]
    pub fn of(candidate: Uuid) -> Self {
        Self {
            candidate: Chosen { id: candidate },
        }
    }
}

impl Message {
    /// Reads a message; which of the three it is follows from its members.
    ///
    /// # Errors
    /// It is too long, or not what the specification describes.
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        if text.len() > limits::JET_MESSAGE_BYTES {
            return Err(MessageError::TooLong(text.len()));
        }
        // Told apart by members, since a message has no type: a wrong role is thus an error of its message.
        let Shape {
            candidate,
            candidates,
        } = serde_json::from_str(text)?;
        Ok(if candidate.is_some() {
            Self::Complete(serde_json::from_str(text)?)
        } else if candidates.is_some() {
            Self::Answer(serde_json::from_str(text)?)
        } else {
            Self::Offer(serde_json::from_str(text)?)
        })
    }

    /// The message as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let text = match self {
            Self::Offer(offer) => serde_json::to_string(offer),
            Self::Answer(answer) => serde_json::to_string(answer),
            Self::Complete(complete) => serde_json::to_string(complete),
        };
        text.expect("ids, names and URLs are always JSON")
    }
}

impl TryFrom<u8> for Version {
    type Error = &'static str;

    fn try_from(version: u8) -> Result<Self, Self::Error> {
        match version {
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            _ => Err("version is neither 2 nor 3"),
        }
    }
}

impl From<Version> for u8 {
    fn from(version: Version) -> Self {
        match version {
            Version::V2 => 2,
            Version::V3 => 3,
        }
    }
}

impl From<String> for TransportList {
    fn from(text: String) -> Self {
        let names = text.split(',');
        let mut list: Vec<Transport> = names.filter_map(|name| name.trim().parse().ok()).collect();
        list.sort_unstable();
        list.dedup();
        Self(list)
    }
}

impl From<TransportList> for String {
    fn from(list: TransportList) -> Self {
        let names: Vec<&str> = list.0.iter().map(|transport| transport.name()).collect();
        names.join(",")
    }
}

/// The one role an offer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClientRole {
    Client,
}

/// The one role an answer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ServerRole {
    Server,
}

#[derive(Deserialize)]
struct Shape<'a> {
    #[serde(borrow)]
    candidate: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    candidates: Option<&'a serde_json::value::RawValue>,
}

pub(super) fn bounded_candidates<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Candidate>, D::Error> {
    let candidates = Vec::<Candidate>::deserialize(deserializer)?;
    if candidates.len() > limits::JET_CANDIDATES {
        return Err(serde::de::Error::custom("too many candidates"));
    }
    Ok(candidates)
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Offer(offer) => offer.serialize(serializer),
            Self::Answer(answer) => answer.serialize(serializer),
            Self::Complete(complete) => complete.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = r#"{
        "id": "4daeb814-cdb6-4779-a16b-6479064e8107",
        "role": "client",
        "transports": "tcp,wss",
        "version": 2
    }"#;

    const ANSWER: &str = r#"{
        "id": "4daeb814-cdb6-4779-a16b-6479064e8107",
        "role": "server",
        "version": 2,
        "candidates": [
            { "id": "174a46de-7c56-30e0-e083-b6b03a2df15f",
              "url": "tcp://10.1.21.34:4489?ctype=host" },
            { "id": "fdc2726d-e228-59cd-3536-2c0919b509a3",
              "url": "tcp://192.168.25.1:4489?ctype=host" },
            { "id": "4fab2441-b8a5-4bd5-9831-fe7aa8cccb36",
              "url": "tcp://jet.wayk.net:8080?ctype=relay" },
            { "id": "b1b4db92-9cc0-49d6-a940-1846fc07cf05",
              "url": "wss://jet.wayk.net:7171?ctype=relay" }
        ]
    }"#;

    const COMPLETE: &str = r#"{"candidate":{"id":"4fab2441-b8a5-4bd5-9831-fe7aa8cccb36"}}"#;

    #[test]
    fn the_messages_of_the_specification_are_read_and_written() {
        // J-MSG-1
        for text in [OFFER, ANSWER, COMPLETE] {
            let message = Message::parse(text).unwrap();
            let written: serde_json::Value = serde_json::from_str(&message.to_json()).unwrap();
            let given: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(written, given);
        }
    }

    #[test]
    fn the_role_must_fit_the_message() {
        // J-MSG-1
        let offer = OFFER.replace("client", "server");
        assert!(
            Message::parse(&offer)
                .unwrap_err()
                .to_string()
                .contains("client")
        );
        let answer = ANSWER.replace("\"server\"", "\"client\"");
        assert!(
            Message::parse(&answer)
                .unwrap_err()
                .to_string()
                .contains("server")
        );
    }

    #[test]
    fn versions_are_2_and_3() {
        // J-MSG-2
        for (version, accepted) in [(1, false), (2, true), (3, true), (4, false)] {
            let offer = OFFER.replace("2\n", &format!("{version}\n"));
            assert_eq!(Message::parse(&offer).is_ok(), accepted, "{version}");
        }
    }

    #[test]
    fn transports_filter_the_answer() {
        // J-MSG-2
        let Message::Offer(offer) = Message::parse(OFFER).unwrap() else {
            panic!("an offer");
        };
        let Message::Answer(answer) = Message::parse(ANSWER).unwrap() else {
            panic!("an answer");
        };
        let all = answer.candidates.clone();
        let wss_only = Offer::new(offer.id, Version::V3, Some(vec![Transport::Wss]));
        assert_eq!(Answer::to(&offer, all.clone()).candidates.len(), 4);
        assert_eq!(Answer::to(&wss_only, all.clone()).candidates, all[3..]);
        assert_eq!(Answer::to(&wss_only, all.clone()).version, Version::V3);
        let any = Offer::new(offer.id, Version::V2, None);
        assert_eq!(Answer::to(&any, all.clone()).candidates, all);
    }

    #[test]
    fn names_of_unknown_transports_are_ignored() {
        let offer = OFFER.replace("tcp,wss", "quic, tcp ,,tcp");
        let Message::Offer(offer) = Message::parse(&offer).unwrap() else {
            panic!("an offer");
        };
        assert!(offer.admits(Transport::Tcp));
        assert!(!offer.admits(Transport::Wss));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            "7",
            r#"{"candidate":7}"#,
            r#"{"candidates":[]}"#,
        ] {
            Message::parse(text).unwrap_err();
        }
        let long = " ".repeat(limits::JET_MESSAGE_BYTES) + COMPLETE;
        assert!(matches!(
            Message::parse(&long),
            Err(MessageError::TooLong(_))
        ));
        let one = r#"{ "id": "174a46de-7c56-30e0-e083-b6b03a2df15f", "url": "h:1" }"#;
        let many = vec![one; limits::JET_CANDIDATES + 1].join(",");
        let answer = format!(
            r#"{{"id":"4daeb814-cdb6-4779-a16b-6479064e8107","role":"server","version":2,"candidates":[{many}]}}"#
        );
        assert!(
            Message::parse(&answer)
                .unwrap_err()
                .to_string()
                .contains("too many")
        );
    }

    #[test]
    fn the_instance_that_holds_the_association_takes_the_place_of_the_balancer() {
        // J-SEQ-1
        let real = |instance: &str| {
            let mut candidate = Candidate {
                id: Uuid::nil(),
                url: "tls://balancer.example:443?ctype=relay".parse().unwrap(),
            };
            candidate.real(instance);
            candidate.url.to_string()
        };
        assert_eq!(
            real("jet101.example"),
            "tls://jet101.example:443?ctype=relay"
        );
        for instance in ["jet101", "", "jet 101.example", "a.b:1/"] {
            assert_eq!(
                real(instance),
                "tls://balancer.example:443?ctype=relay",
                "{instance}"
            );
        }
    }
}
