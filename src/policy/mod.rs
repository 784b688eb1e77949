//! From verified claims and the facts of a connection to a decision with its reason.
//!
//! Nothing else makes a [`Permit`]. A token that demands what cannot be delivered is refused here, before the target
//! hears of it.

pub mod egress;
pub mod permit;
pub mod work;

use std::time::Duration;

use crate::application_protocol::ApplicationProtocol;
use crate::policy::permit::{Inspection, Permit};
use crate::refusal::Refusal;
use crate::token::claims::{Claims, RecordingPolicy};

/// Time limits that hold for every session, whatever its token says.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionLimits {
    /// Longest silence.
    pub idle_timeout: Option<Duration>,
    /// Longest life.
    pub time_limit: Option<Duration>,
}

/// Whether the gateway can stand inside a session, and whether it is told to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inspecting {
    /// The listener has no certificate to end TLS with.
    #[default]
    Unavailable,
    /// Where a token asks for what only works inside.
    WhenNeeded,
    /// Every RDP session.
    Always,
}

/// Decides over a session. One by rendezvous (`jet_cm: rdv`) has no targets: its target is whoever has accepted.
///
/// # Errors
/// The claim that cannot be honoured.
pub fn decide(
    claims: &Claims,
    limits: SessionLimits,
    inspecting: Inspecting,
) -> Result<Permit, Refusal> {
    match claims.jet_rec {
        RecordingPolicy::None => {}
        RecordingPolicy::Proxy => return Err(Refusal::Recording),
        RecordingPolicy::Stream => return Err(Refusal::ClientRecording),
    }
    if claims.jet_flt {
        return Err(Refusal::Filtering);
    }
    Ok(Permit {
        targets: claims.targets.clone(),
        idle_timeout: limits.idle_timeout,
        time_limit: match (claims.jet_ttl, limits.time_limit) {
            (Some(token), Some(limit)) => Some(token.min(limit)),
            (token, limit) => token.or(limit),
        },
        inspection: inspection(claims, inspecting)?,
    })
}

/// What the token wants done inside the session.
fn inspection(claims: &Claims, inspecting: Inspecting) -> Result<Option<Inspection>, Refusal> {
    let is_rdp = matches!(claims.jet_ap, None | Some(ApplicationProtocol::Rdp));
    let needed = if claims.target_credentials.is_some() || claims.proxy_credentials.is_some() {
        Err(Refusal::Injection)
    } else if claims.cert_thumb256.is_some() {
        Err(Refusal::Pinning)
    } else {
        Ok(())
    };
    match (needed, inspecting) {
        (Ok(()), Inspecting::Unavailable | Inspecting::WhenNeeded) => return Ok(None),
        (Ok(()), Inspecting::Always) if !is_rdp => return Ok(None),
        (Err(refusal), Inspecting::Unavailable) => return Err(refusal),
        (Err(refusal), _) if !is_rdp => return Err(refusal),
        (_, Inspecting::WhenNeeded | Inspecting::Always) => {}
    }
    Ok(Some(Inspection {
        target_credentials: claims.target_credentials.clone(),
        proxy_credentials: claims.proxy_credentials.clone(),
        certificate_pin: claims.cert_thumb256,
    }))
}
