//! Who sends the requests of associations: the bearer of a rendezvous token, an operator, or anybody.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use tracing::info;

use crate::api::jet::not_admitted;
use crate::api::operator::bearer;
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::config::OperatorName;
use crate::rendezvous::admit::{self, NotAdmitted};
use jetway_base::address::AddressGroup;
use jetway_jet::rendezvous::Proof;
use jetway_token::Token;

/// Who acts when nobody has to say who they are.
const NOBODY: &str = "nobody";

/// Who sent a request. Who has to show something and does not, or what does not hold, is refused.
#[derive(Debug)]
pub enum Caller {
    /// The bearer of a rendezvous token.
    Token(Box<Token>),
    /// The holder of an API key.
    Operator(OperatorName),
    /// Whoever asks from this address, where that is enough (`jet.authentication = false`).
    Nobody(AddressGroup),
}

impl Caller {
    /// What it proves to an association.
    #[must_use]
    pub fn proof(&self) -> Proof<'_> {
        match self {
            Self::Token(token) => Proof::Token {
                id: &token.id,
                jet_aid: token.claims.jet_aid,
            },
            Self::Operator(_) => Proof::Operator,
            Self::Nobody(address) => Proof::Stranger(*address),
        }
    }

    /// Its name for the log.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Token(_) => "token",
            Self::Operator(name) => name.as_str(),
            Self::Nobody(_) => NOBODY,
        }
    }
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let ApiState { gateway, sender } = state;
        let (id, peer) = (sender.id, sender.peer);
        let Some(bearer) = bearer(&parts.headers) else {
            if gateway.config.jet.authentication {
                let detail = "send a rendezvous token or an API key as bearer";
                let (status, rule) = (StatusCode::UNAUTHORIZED, "no-token");
                return Err(Problem::new(status, rule, detail, id));
            }
            return Ok(Self::Nobody(peer.ip().into()));
        };
        if let Some(name) = gateway.api_keys.find(bearer) {
            return Ok(Self::Operator(name.clone()));
        }
        let verified = admit::verify(&gateway.tokens, &gateway.sessions.rules, peer, bearer);
        match verified {
            Ok(token) => Ok(Self::Token(Box::new(token))),
            Err(denied) => {
                let about = denied.about.as_deref();
                info!(
                    session = %id,
                    %peer,
                    user = about.and_then(|about| about.user.as_deref()),
                    target = about.and_then(|about| about.target.as_deref()),
                    token = about.map(|about| about.id.as_str()),
                    rule = denied.refusal.rule(),
                    reason = %denied,
                    "Request refused"
                );
                Err(not_admitted(id, &NotAdmitted::Token(denied)))
            }
        }
    }
}
