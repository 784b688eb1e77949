//! Agents: acceptors that stay. An agent runs beside targets that nothing can reach from outside, and keeps a WebSocket to
//! the gateway as its signaling channel ([JET-PROTO] 2.3).
//!
//! ```text
//! agent                                     gateway
//!   |            GET /jet/agent (WebSocket)    |
//!   |------------------------------------------>|
//!   |<---- challenge {gateway, nonce} ----------|
//!   |----- proof {statement} ------------------>|     signed: aud = gateway, sub = name, nonce
//!   |<---- welcome -----------------------------|
//!   |<---- offer {offer, target, candidates} ---|     somebody wants to be met
//!   |----- answer {answer} -------------------->|     or declined {id, reason}
//!   |<---- complete {id, complete} -------------|
//! ```
//!
//! An agent has one channel, and a newer one takes the place of the older: an agent that comes back before its old connection was
//! missed is not shut out. Two agents that share a name and a key would take turns for ever by that. So whoever loses its channel to a
//! newer one is told by the close code [`REPLACED`], and says `yields` in its next proofs: such a channel takes nobody's place, and is
//! closed with the same code while another one is there.
//!
//! The specification leaves open what carries its messages; here they stand in an envelope with a `type`, which
//! also says what the specification has no member for: the target, and the relay candidates to accept on. Unknown members are
//! ignored.
//!
//! A [statement](jetway_token::statement) is what an agent signs. Its `typ` tells the two kinds from each other and from every
//! token, so none can be shown for another; a nonce, or the ids of one candidate, keep it from being shown twice.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::message::{Answer, Candidate, Complete, MessageError, Offer};
use jetway_base::limits;
use jetway_token::agent_name::AgentName;
use jetway_token::target::TargetAddr;

/// `typ` of the statement that answers a challenge.
pub const LOGON_TYPE: &str = "jetway-agent-logon+jwt";

/// `typ` of the statement that is the bearer of an accept.
pub const ACCEPT_TYPE: &str = "jetway-agent-accept+jwt";

/// The close code that says that the agent has another channel (of those for private use, [RFC 6455] 7.4.2).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.2
pub const REPLACED: u16 = 4001;

/// What an agent is told in the close frame whose name and key are not those of an agent of the gateway.
pub const NOT_KNOWN: &str = "not known";

/// What an agent is told in the close frame that an operator has revoked.
pub const REVOKED: &str = "revoked";

/// What every enrolment text starts with.
const ENROLMENT_PREFIX: &str = "je-";

/// Random bytes of an enrolment text and of a nonce.
pub const RANDOM_BYTES: usize = 24;

/// The text by which an agent enrols, once.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolment(Zeroizing<String>);

/// A text is no enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment: expected {ENROLMENT_PREFIX} and 32 base64url characters")]
pub struct NotAnEnrolment;

/// The digest by which an enrolment is kept and found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EnrolmentDigest([u8; 32]);

/// What the gateway says on the signaling channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromGateway {
    /// Say who you are.
    Challenge {
        /// The gateway, as the statement is to name it.
        gateway: String,
        /// To be signed.
        nonce: String,
    },
    /// You are who you say.
    Welcome,
    /// Somebody wants to be met.
    Offer {
        /// Association, version, transports.
        offer: Offer,
        /// What is to be reached.
        target: TargetAddr,
        /// Where to accept.
        #[serde(deserialize_with = "crate::message::bounded_candidates")]
        candidates: Vec<Candidate>,
        /// When the target is to be contacted.
        #[serde(default, skip_serializing_if = "Dial::is_before_answer")]
        dial: Dial,
    },
    /// The client has chosen.
    Complete {
        /// The association.
        id: Uuid,
        /// Its choice.
        complete: Complete,
    },
}

/// When an agent contacts the target of an offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dial {
    /// Before it answers, so that a target that cannot be reached is told in the answer.
    #[default]
    BeforeAnswer,
    /// When the first bytes are there: the client has yet to prove itself to the gateway (`prx_usr`), which lets nothing pass before.
    AtFirstBytes,
}

impl Dial {
    fn is_before_answer(&self) -> bool {
        *self == Self::BeforeAnswer
    }
}

/// What an agent says on the signaling channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromAgent {
    /// The answer to the challenge.
    Proof {
        /// An [`AgentLogon`] of type [`LOGON_TYPE`].
        statement: String,
        /// It takes no other channel's place.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        yields: bool,
    },
    /// The answer to an offer.
    Answer {
        /// Where the agent can be met.
        answer: Answer,
    },
    /// No answer will come.
    Declined {
        /// The association.
        id: Uuid,
        /// Why.
        reason: Decline,
    },
}

/// Why an agent does not meet somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Decline {
    /// Its own list has no such target.
    #[error("the agent does not lead to this target")]
    Target,
    /// The target does not answer.
    #[error("the agent cannot reach the target")]
    Unreachable,
    /// It could accept on no candidate.
    #[error("the agent could accept on none of the candidates")]
    Candidates,
    /// It has as many sessions as it can have.
    #[error("the agent has too many sessions")]
    Busy,
    /// A reason that a later version has.
    #[serde(other)]
    #[error("the agent declined")]
    Other,
}

/// What an agent signs to log on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentLogon {
    /// The gateway, as it called itself in the challenge.
    pub aud: String,
    /// The agent.
    pub sub: AgentName,
    /// From the challenge.
    pub nonce: String,
}

/// What an agent signs to accept on one candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The gateway.
    pub aud: String,
    /// The agent.
    pub sub: AgentName,
    /// The association.
    pub jet_aid: Uuid,
    /// The candidate.
    pub candidate: Uuid,
}

/// Why no agent meets somebody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// Never enrolled, or revoked.
    #[error("no agent is named {0}")]
    Unknown(AgentName),
    /// Enrolled, and not there.
    #[error("agent {0} is not connected")]
    NotConnected(AgentName),
    /// What it was enrolled for does not include the target.
    #[error("agent {0} was not enrolled for this target")]
    Target(AgentName),
    /// It does not take what it is sent, or meets too many already.
    #[error("agent {0} is busy")]
    Busy(AgentName),
    /// It said no.
    #[error("agent {0}: {1}")]
    Declined(AgentName, Decline),
    /// It said nothing in time.
    #[error("agent {0} did not answer in time")]
    Silent(AgentName),
    /// An association leads to one target.
    #[error("the association was offered to agent {0} before, for something else")]
    Elsewhere(AgentName),
    /// The acceptor is not who the token leads to.
    #[error("the acceptor is not agent {0}, or is for another target")]
    Other(AgentName),
}

/// How long to wait before the next attempt: doubled after each failure, and spread so that the agents of a gateway that comes back
/// do not all come at once.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    /// After the first failure, at most.
    pub first: Duration,
    /// After many, at most.
    pub longest: Duration,
}

impl BackOff {
    /// The wait after so many failures in a row, between half of its greatest value and all of it.
    #[must_use]
    pub fn wait(&self, failures: u32, random: u8) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let greatest = self.first.saturating_mul(2_u32.saturating_pow(doublings));
        let greatest = greatest.min(self.longest);
        let spread = greatest.saturating_mul(u32::from(random)).checked_div(510);
        let half = greatest.checked_div(2).unwrap_or_default();
        half.saturating_add(spread.unwrap_or_default())
    }
}

impl Enrolment {
    /// The enrolment made of `random`, which the caller took from the system's generator.
    #[must_use]
    pub fn from_random(random: &[u8; RANDOM_BYTES]) -> Self {
        let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(random));
        Self(Zeroizing::new(format!("{ENROLMENT_PREFIX}{}", *body)))
    }

    /// Reads an enrolment.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, NotAnEnrolment> {
        let body = text.strip_prefix(ENROLMENT_PREFIX).ok_or(NotAnEnrolment)?;
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        match URL_SAFE_NO_PAD.decode_slice(body, random.as_mut_slice()) {
            Ok(RANDOM_BYTES) => Ok(Self::from_random(&random)),
            Ok(_) | Err(_) => Err(NotAnEnrolment),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Under what it is kept.
    #[must_use]
    pub fn digest(&self) -> EnrolmentDigest {
        EnrolmentDigest(openssl::sha::sha256(self.0.as_bytes()))
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Enrolment(..)")
    }
}

impl FromGateway {
    /// Reads a message of the gateway.
    ///
    /// # Errors
    /// It is too long, or none.
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        bounded(text)?;
        Ok(serde_json::from_str(text)?)
    }

    /// The message as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("ids, names and URLs are always JSON")
    }
}

impl FromAgent {
    /// Reads a message of an agent.
    ///
    /// # Errors
    /// It is too long, or none.
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        bounded(text)?;
        Ok(serde_json::from_str(text)?)
    }

    /// The message as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("ids, names and URLs are always JSON")
    }
}

fn bounded(text: &str) -> Result<(), MessageError> {
    if text.len() > limits::JET_MESSAGE_BYTES {
        return Err(MessageError::TooLong(text.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::candidate::Transport;
    use crate::message::Version;

    #[test]
    fn an_enrolment_is_read_back_and_never_printed() {
        let enrolment = Enrolment::from_random(&[0x5A; RANDOM_BYTES]);
        assert_eq!(Enrolment::parse(enrolment.as_str()), Ok(enrolment.clone()));
        assert_eq!(format!("{enrolment:?}"), "Enrolment(..)");
        for text in ["", "je-", "je-short", "jt-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(Enrolment::parse(text), Err(NotAnEnrolment), "{text}");
        }
    }

    #[test]
    fn an_offer_in_its_envelope_is_what_the_specification_has() {
        // J-MSG-1
        let id = Uuid::from_u128(1);
        let message = FromGateway::Offer {
            offer: Offer::new(id, Version::V3, Some(vec![Transport::Wss])),
            target: "pc:3389".parse().unwrap(),
            candidates: Vec::new(),
            dial: Dial::AtFirstBytes,
        };
        let expected = json!({
            "type": "offer",
            "offer": { "id": id, "role": "client", "transports": "wss", "version": 3 },
            "target": "pc:3389",
            "candidates": [],
            "dial": "at-first-bytes",
        });
        let text = message.to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value, expected);
        assert_eq!(FromGateway::parse(&text).unwrap(), message);
    }

    #[test]
    fn who_yields_says_so_and_others_say_nothing_of_it() {
        let proof = |yields| FromAgent::Proof {
            statement: "s".to_owned(),
            yields,
        };
        let plain = r#"{"type":"proof","statement":"s"}"#;
        assert_eq!(proof(false).to_json(), plain);
        assert_eq!(FromAgent::parse(plain).unwrap(), proof(false));
        let yields = r#"{"type":"proof","statement":"s","yields":true}"#;
        assert_eq!(proof(true).to_json(), yields);
        assert_eq!(FromAgent::parse(yields).unwrap(), proof(true));
    }

    #[test]
    fn messages_are_bounded_and_later_reasons_are_taken() {
        let text = r#"{"type":"declined","id":"00000000-0000-0000-0000-000000000001","reason":"lunch","x":1}"#;
        let declined = FromAgent::Declined {
            id: Uuid::from_u128(1),
            reason: Decline::Other,
        };
        assert_eq!(FromAgent::parse(text).unwrap(), declined);
        assert!(FromAgent::parse(r#"{"type":"offer"}"#).is_err());
        let long = " ".repeat(limits::JET_MESSAGE_BYTES + 1);
        assert!(matches!(
            FromAgent::parse(&long),
            Err(MessageError::TooLong(_))
        ));
        assert!(matches!(
            FromGateway::parse(&long),
            Err(MessageError::TooLong(_))
        ));
    }

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread() {
        let back_off = BackOff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        };
        let wait = |failures, random| back_off.wait(failures, random).as_millis();
        assert_eq!((wait(1, 0), wait(1, 255)), (500, 1000));
        assert_eq!((wait(4, 0), wait(4, 255)), (4000, 8000));
        assert_eq!((wait(1000, 0), wait(u32::MAX, 255)), (30_000, 60_000));
    }
}
