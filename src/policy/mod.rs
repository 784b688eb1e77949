//! From verified claims and the facts of a connection to a decision with its reason.
//!
//! Nothing else makes a [`Permit`]. A token that demands what cannot be delivered is refused here, before the target
//! hears of it.

pub mod egress;
pub mod permit;
pub mod work;

use std::time::Duration;

use crate::policy::permit::Permit;
use crate::refusal::Refusal;
use crate::token::claims::{Claims, ConnectionMode, RecordingPolicy};

/// Time limits that hold for every session, whatever its token says.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionLimits {
    /// Longest silence.
    pub idle_timeout: Option<Duration>,
    /// Longest life.
    pub time_limit: Option<Duration>,
}

/// Decides over a forward session (`jet_cm: fwd`).
///
/// # Errors
/// The claim that cannot be honoured.
pub fn decide(claims: &Claims, limits: SessionLimits) -> Result<Permit, Refusal> {
    match claims.jet_cm {
        ConnectionMode::Rdv => return Err(Refusal::Rendezvous),
        ConnectionMode::Fwd => {}
    }
    match claims.jet_rec {
        RecordingPolicy::None => {}
        RecordingPolicy::Proxy => return Err(Refusal::Recording),
        RecordingPolicy::Stream => return Err(Refusal::ClientRecording),
    }
    if claims.jet_flt {
        return Err(Refusal::Filtering);
    }
    if claims.target_credentials.is_some() || claims.proxy_credentials.is_some() {
        return Err(Refusal::Injection);
    }
    if claims.cert_thumb256.is_some() {
        return Err(Refusal::Pinning);
    }
    Ok(Permit {
        targets: claims.targets.clone(),
        idle_timeout: limits.idle_timeout,
        time_limit: match (claims.jet_ttl, limits.time_limit) {
            (Some(token), Some(limit)) => Some(token.min(limit)),
            (token, limit) => token.or(limit),
        },
    })
}
