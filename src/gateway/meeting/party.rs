//! Who takes part in a rendezvous: who creates an association, and what peers show to it.

use std::net::IpAddr;

use uuid::Uuid;

use jetway_jet::rendezvous::Proof;
use jetway_policy::shares::Owner;
use jetway_token::agent_name::AgentName;
use jetway_token::target::TargetAddr;
use jetway_token::{Protection, Token};

/// Who creates an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// Whoever has shown an API key.
    Operator,
    /// Whoever has shown the token, from this address.
    Bearer(IpAddr),
    /// Whoever has shown nothing, from this address.
    Stranger(IpAddr),
}

impl Creator {
    pub(super) fn owner(self, token: &Token) -> Owner {
        match self {
            Self::Operator => {
                let mut owner = Owner::default();
                if let Protection::Operator(name) = &token.protection {
                    owner = owner.by_key(name);
                }
                owner
            }
            Self::Bearer(address) => Owner::new(Some(token.id.clone()), Some(address)),
            Self::Stranger(address) => Owner::new(None, Some(address)),
        }
    }

    /// Whether both are counted in the same place.
    pub(super) fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// What a peer has shown with its request.
#[derive(Debug)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// A rendezvous token.
    Token(Box<Token>),
    /// The statement of an agent, for the one candidate that the request is for.
    Agent {
        /// Its name.
        name: AgentName,
        /// The association that it was offered.
        association: Uuid,
        /// The target that it was offered for.
        target: TargetAddr,
    },
}

impl Shown {
    /// What it proves to an association.
    #[must_use]
    pub fn proof(&self) -> Proof<'_> {
        match self {
            Self::Nothing => Proof::Nothing,
            Self::Token(token) => proof_of(Some(token)),
            Self::Agent { association, .. } => Proof::Agent {
                association: *association,
            },
        }
    }

    /// Whether it is more than the knowledge of two UUIDs: proof for this association, which `created` has created.
    #[must_use]
    pub fn proves(&self, association: Uuid, created: Option<&Token>) -> bool {
        match self {
            Self::Nothing => false,
            Self::Token(token) => {
                token.claims.jet_aid == Some(association)
                    || created.is_some_and(|created| created.id == token.id)
            }
            Self::Agent {
                association: offered,
                ..
            } => *offered == association,
        }
    }

    /// The token, if it is one.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        match self {
            Self::Token(token) => Some(token),
            Self::Nothing | Self::Agent { .. } => None,
        }
    }

    /// The token, if it is one.
    #[must_use]
    pub fn into_token(self) -> Option<Token> {
        match self {
            Self::Token(token) => Some(*token),
            Self::Nothing | Self::Agent { .. } => None,
        }
    }
}

/// What a token proves to an association.
#[must_use]
pub fn proof_of(token: Option<&Token>) -> Proof<'_> {
    match token {
        Some(token) => Proof::Token {
            id: &token.id,
            jet_aid: token.claims.jet_aid,
        },
        None => Proof::Nothing,
    }
}
