//! What one record says, and how the [Open Cybersecurity Schema Framework](https://schema.ocsf.io/1.3.0/) (OCSF 1.3) names it.
//!
//! Fields that do not apply are left out. Texts of others are bounded by what they came in (a token, a request, a PDU), and written so that
//! no terminal obeys them ([`mod@jetway_base::escape`]). Passwords, keys and tokens are in no field; a token stands as its id.
//!
//! | Field | OCSF | Content |
//! |---|---|---|
//! | `version` | `metadata.version` of a profile | version of this schema, [`VERSION`] |
//! | `sequence`, `previous` | `metadata.sequence` | the chain ([`super::chain`]) |
//! | `time` | `time` | RFC 3339, UTC, microseconds |
//! | `event` | `metadata.event_code` | [`Event::name`] |
//! | `class_uid`, `activity_id` | the same | [`Event::class_and_activity`] |
//! | `severity_id` | the same | 1 informational, 3 medium for what was refused, 4 high for what concerns the audit itself |
//! | `status_id` | the same | 1 success, 2 failure |
//! | `session` | `metadata.correlation_uid` | id of the session or connection |
//! | `peer` | `src_endpoint` | address and port of the client or peer |
//! | `user` | `actor.user.name` | `sub` of the token |
//! | `by` | `actor.user.name` | name of the API key, the token or the agent that acted |
//! | `target`, `address` | `dst_endpoint.hostname`, `.ip` | the target as asked for, and as dialled |
//! | `agent` | `proxy_endpoint.name` | agent that carries the session |
//! | `token` | `actor.session.uid` | id of the token (`jti`, or a digest) |
//! | `jet_aid` | `connection_info.uid` | association |
//! | `protocol` | `connection_info.protocol_name` | `jet_ap` |
//! | `rule` | `policy.name` | rule that decided, by its stable name |
//! | `reason` | `status_detail` | the same for people |
//! | `bytes_to_target`, `bytes_to_client` | `traffic.bytes_out`, `.bytes_in` | bytes |
//! | `duration_ms` | `duration` | milliseconds |
//! | `detail` | `unmapped` | what belongs to one kind of record |

use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Value;

use jetway_base::session_id::SessionId;

/// Version of the schema. It changes when a field changes its meaning or goes; fields may be added.
pub const VERSION: u32 = 1;

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A client was let in, and its session is relayed.
    SessionOpened,
    /// The session is over.
    SessionClosed,
    /// A client, or one that shows credentials, was turned away.
    SessionRefused,
    /// Something happened inside of an inspected session (`detail.event`).
    SessionActivity,
    /// Somebody has ended a session.
    SessionEnded,
    /// A ticket was issued for a token.
    TicketIssued,
    /// A ticket was not issued.
    TicketRefused,
    /// An agent has logged on.
    AgentConnected,
    /// An agent is not connected any more.
    AgentDisconnected,
    /// An agent was not let in.
    AgentRefused,
    /// An agent's key was registered.
    AgentEnrolled,
    /// An agent's key was revoked.
    AgentRevoked,
    /// Tokens were revoked by a claim of theirs (`detail`).
    TokenRevoked,
    /// That was taken back.
    RevocationWithdrawn,
    /// Somebody may enrol an agent.
    EnrolmentIssued,
    /// An association was created.
    AssociationCreated,
    /// An association was deleted.
    AssociationDeleted,
    /// A request to the API was refused for what it showed.
    ApiRefused,
    /// Keys, revocations or certificates were read again.
    Reloaded,
    /// The process takes connections.
    GatewayStarted,
    /// The process takes no connections any more.
    GatewayStopped,
    /// The audit goes on in this file.
    AuditOpened,
    /// The audit goes on in the next file, or ends in order.
    AuditClosed,
    /// The file did not end with a whole line: the rest was moved aside.
    AuditRecovered,
    /// Records could not be written.
    AuditLost,
    /// Records of one cause were too many.
    AuditSuppressed,
}

/// OCSF classes.
mod class {
    pub(super) const AUTHENTICATION: u32 = 3002;
    pub(super) const NETWORK_ACTIVITY: u32 = 4001;
    pub(super) const RDP_ACTIVITY: u32 = 4005;
    pub(super) const APPLICATION_LIFECYCLE: u32 = 6002;
    pub(super) const API_ACTIVITY: u32 = 6003;
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::SessionOpened,
        Self::SessionClosed,
        Self::SessionRefused,
        Self::SessionActivity,
        Self::SessionEnded,
        Self::TicketIssued,
        Self::TicketRefused,
        Self::AgentConnected,
        Self::AgentDisconnected,
        Self::AgentRefused,
        Self::AgentEnrolled,
        Self::AgentRevoked,
        Self::TokenRevoked,
        Self::RevocationWithdrawn,
        Self::EnrolmentIssued,
        Self::AssociationCreated,
        Self::AssociationDeleted,
        Self::ApiRefused,
        Self::Reloaded,
        Self::GatewayStarted,
        Self::GatewayStopped,
        Self::AuditOpened,
        Self::AuditClosed,
        Self::AuditRecovered,
        Self::AuditLost,
        Self::AuditSuppressed,
    ];

    /// Its name: stable, to search and count by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionOpened => "session.opened",
            Self::SessionClosed => "session.closed",
            Self::SessionRefused => "session.refused",
            Self::SessionActivity => "session.activity",
            Self::SessionEnded => "session.ended",
            Self::TicketIssued => "ticket.issued",
            Self::TicketRefused => "ticket.refused",
            Self::AgentConnected => "agent.connected",
            Self::AgentDisconnected => "agent.disconnected",
            Self::AgentRefused => "agent.refused",
            Self::AgentEnrolled => "agent.enrolled",
            Self::AgentRevoked => "agent.revoked",
            Self::TokenRevoked => "token.revoked",
            Self::RevocationWithdrawn => "revocation.withdrawn",
            Self::EnrolmentIssued => "enrolment.issued",
            Self::AssociationCreated => "association.created",
            Self::AssociationDeleted => "association.deleted",
            Self::ApiRefused => "api.refused",
            Self::Reloaded => "gateway.reloaded",
            Self::GatewayStarted => "gateway.started",
            Self::GatewayStopped => "gateway.stopped",
            Self::AuditOpened => "audit.opened",
            Self::AuditClosed => "audit.closed",
            Self::AuditRecovered => "audit.recovered",
            Self::AuditLost => "audit.lost",
            Self::AuditSuppressed => "audit.suppressed",
        }
    }

    /// `class_uid` and `activity_id` of OCSF.
    #[must_use]
    pub fn class_and_activity(self) -> (u32, u32) {
        match self {
            // Open, Close, Refuse.
            Self::SessionOpened => (class::NETWORK_ACTIVITY, 1),
            Self::SessionClosed | Self::SessionEnded => (class::NETWORK_ACTIVITY, 2),
            Self::SessionRefused => (class::NETWORK_ACTIVITY, 5),
            // Traffic.
            Self::SessionActivity => (class::RDP_ACTIVITY, 6),
            // Logon, Logoff.
            Self::AgentConnected | Self::AgentRefused => (class::AUTHENTICATION, 1),
            Self::AgentDisconnected => (class::AUTHENTICATION, 2),
            // Create, Read, Delete.
            Self::TicketIssued
            | Self::TicketRefused
            | Self::AgentEnrolled
            | Self::TokenRevoked
            | Self::EnrolmentIssued
            | Self::AssociationCreated => (class::API_ACTIVITY, 1),
            Self::ApiRefused => (class::API_ACTIVITY, 2),
            Self::AgentRevoked | Self::RevocationWithdrawn | Self::AssociationDeleted => {
                (class::API_ACTIVITY, 4)
            }
            // Start, Stop, Update, Other.
            Self::GatewayStarted | Self::AuditOpened => (class::APPLICATION_LIFECYCLE, 3),
            Self::GatewayStopped | Self::AuditClosed => (class::APPLICATION_LIFECYCLE, 4),
            Self::Reloaded => (class::APPLICATION_LIFECYCLE, 8),
            Self::AuditRecovered | Self::AuditLost | Self::AuditSuppressed => {
                (class::APPLICATION_LIFECYCLE, 99)
            }
        }
    }

    /// `severity_id` of OCSF.
    #[must_use]
    pub fn severity(self) -> u32 {
        match self {
            Self::SessionRefused | Self::TicketRefused | Self::AgentRefused | Self::ApiRefused => 3,
            Self::AuditRecovered | Self::AuditLost | Self::AuditSuppressed => 4,
            Self::SessionOpened
            | Self::SessionClosed
            | Self::SessionActivity
            | Self::SessionEnded
            | Self::TicketIssued
            | Self::AgentConnected
            | Self::AgentDisconnected
            | Self::AgentEnrolled
            | Self::AgentRevoked
            | Self::TokenRevoked
            | Self::RevocationWithdrawn
            | Self::EnrolmentIssued
            | Self::AssociationCreated
            | Self::AssociationDeleted
            | Self::Reloaded
            | Self::GatewayStarted
            | Self::GatewayStopped
            | Self::AuditOpened
            | Self::AuditClosed => 1,
        }
    }

    /// `status_id` of OCSF: 1 success, 2 failure.
    #[must_use]
    pub fn status(self) -> u32 {
        if self.severity() > 1 { 2 } else { 1 }
    }
}

impl Serialize for Event {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One record, without its place in the chain.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// What it is of.
    pub event: Event,
    /// Session, or connection that may become one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Client or peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// `sub` of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who acted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Target as asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Target as dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Id of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Association.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jet_aid: Option<String>,
    /// `jet_ap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'static str>,
    /// Reason, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes written to the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_to_target: Option<u64>,
    /// Bytes written to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_to_client: Option<u64>,
    /// How long it took, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What belongs to this kind of record.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

impl Record {
    /// A record of `event` that says nothing else yet.
    #[must_use]
    pub fn new(event: Event) -> Self {
        Self {
            event,
            session: None,
            peer: None,
            user: None,
            by: None,
            target: None,
            address: None,
            agent: None,
            token: None,
            jet_aid: None,
            protocol: None,
            rule: None,
            reason: None,
            bytes_to_target: None,
            bytes_to_client: None,
            duration_ms: None,
            detail: Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_differ_and_say_what_kind_of_thing_it_is() {
        let names: HashSet<&str> = Event::ALL.iter().map(|event| event.name()).collect();
        assert_eq!(names.len(), Event::ALL.len());
        for name in names {
            let (noun, verb) = name.split_once('.').unwrap();
            assert!(
                !noun.is_empty() && verb.chars().all(|c| c.is_ascii_lowercase()),
                "{name}"
            );
        }
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let text = serde_json::to_string(&Record::new(Event::GatewayStarted)).unwrap();
        assert_eq!(text, r#"{"event":"gateway.started"}"#);
    }
}
