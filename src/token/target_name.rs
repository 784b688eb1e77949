//! What a target is called where something is remembered of it: its certificate, its reconnect cookies.
//!
//! | written | who |
//! |---|---|
//! | `pc42:3389` | dialled by the gateway |
//! | `agent branch-7 pc42:3389` | behind an agent, as the agent knows it |
//! | `acceptor 192.0.2.7:51234` | whoever has accepted; an address of the moment, by which nothing is remembered |
//!
//! No host has a space, so none of them can be taken for another: `localhost:3389` behind one agent is not that behind
//! another, nor the gateway's own.

use std::fmt;
use std::str::FromStr;

use crate::agent_name::AgentName;
use crate::target::TargetAddr;

/// A target, with how it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetName {
    /// The gateway dials it.
    Dialled(TargetAddr),
    /// An agent dials it.
    Behind {
        /// The agent.
        agent: AgentName,
        /// The target, as the agent knows it.
        target: TargetAddr,
    },
    /// It has accepted, and has no name.
    Acceptor(TargetAddr),
}

/// A text is no target's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected <host>:<port>, or agent <name> <host>:<port>")]
pub struct NotATargetName;

impl TargetName {
    /// Host and port: for SNI and the service's name.
    #[must_use]
    pub fn address(&self) -> &TargetAddr {
        match self {
            Self::Dialled(target) | Self::Behind { target, .. } | Self::Acceptor(target) => target,
        }
    }

    /// Whether it says the same tomorrow.
    #[must_use]
    pub fn lasts(&self) -> bool {
        match self {
            Self::Dialled(_) | Self::Behind { .. } => true,
            Self::Acceptor(_) => false,
        }
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dialled(target) => target.fmt(f),
            Self::Behind { agent, target } => write!(f, "{AGENT} {agent} {target}"),
            Self::Acceptor(target) => write!(f, "acceptor {target}"),
        }
    }
}

impl FromStr for TargetName {
    type Err = NotATargetName;

    /// Reads what lasts.
    fn from_str(text: &str) -> Result<Self, NotATargetName> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        match words[..] {
            [target] => target
                .parse()
                .map(Self::Dialled)
                .map_err(|_| NotATargetName),
            [AGENT, agent, target] => Ok(Self::Behind {
                agent: agent.parse().map_err(|_| NotATargetName)?,
                target: target.parse().map_err(|_| NotATargetName)?,
            }),
            _ => Err(NotATargetName),
        }
    }
}

const AGENT: &str = "agent";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_addresses_in_two_places_are_two_targets() {
        let names = [
            "localhost:3389",
            "agent branch-7 localhost:3389",
            "agent branch-8 localhost:3389",
            "agent agent [::1]:3389",
        ];
        for text in names {
            let name: TargetName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert!(name.lasts());
        }
        for bad in [
            "",
            "agent",
            "agent branch-7",
            "agent Branch-7 pc:1",
            "agent branch-7 pc",
            "acceptor 192.0.2.7:51234",
            "agent branch-7 pc:1 more",
        ] {
            assert_eq!(bad.parse::<TargetName>(), Err(NotATargetName), "{bad}");
        }
        let acceptor = TargetName::Acceptor("192.0.2.7:51234".parse().unwrap());
        assert_eq!(acceptor.to_string(), "acceptor 192.0.2.7:51234");
        assert!(!acceptor.lasts());
    }
}
