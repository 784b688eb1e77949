//! From verified claims and the facts of a connection to a decision with its reason.
//!
//! Nothing else makes a [`Permit`]. A token that demands what cannot be delivered is refused here, before the target
//! hears of it.

pub mod denial;
pub mod egress;
pub mod permit;
pub mod shares;
pub mod work;

use std::time::Duration;

use crate::denial::Denial;
use crate::permit::{Inspection, Permit};
use jetway_token::application_protocol::ApplicationProtocol;
use jetway_token::claims::{Claims, ConnectionMode, RecordingPolicy};

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
pub enum InspectionMode {
    /// The listener has no certificate to end TLS with.
    #[default]
    Unavailable,
    /// Where a token asks for what only works inside.
    WhenNeeded,
    /// Every RDP session.
    Always,
}

/// What a gateway has to stand inside of sessions with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Means {
    /// Whether it can, and whether it is told to.
    pub inspecting: InspectionMode,
    /// Whether certificates of targets are verified without a pin in the token, too.
    pub verifies_targets: bool,
}

/// Decides over a session. One by rendezvous (`jet_cm: rdv`) has no targets to dial: its target is whoever has accepted.
///
/// # Errors
/// The claim that cannot be honoured.
pub fn decide(claims: &Claims, limits: SessionLimits, means: Means) -> Result<Permit, Denial> {
    match claims.jet_rec {
        RecordingPolicy::None => {}
        RecordingPolicy::Proxy => return Err(Denial::Recording),
        RecordingPolicy::Stream => return Err(Denial::ClientRecording),
    }
    if claims.jet_flt {
        return Err(Denial::Filtering);
    }
    Ok(Permit {
        targets: claims.targets.clone(),
        behind: claims
            .agent
            .as_ref()
            .map_or_else(Vec::new, |agent| agent.targets.clone()),
        idle_timeout: limits.idle_timeout,
        time_limit: match (claims.jet_ttl, limits.time_limit) {
            (Some(token), Some(limit)) => Some(token.min(limit)),
            (token, limit) => token.or(limit),
        },
        inspection: inspection(claims, means)?,
        target_tls: None,
    })
}

/// Decides over a session to whose target the gateway itself speaks TLS, which the token pins, while its client says what is
/// inside. The gateway does not stand inside of what is said, so that nothing may be asked for that needs it there.
///
/// # Errors
/// As [`decide`]; or there is no pin, or what the gateway would have to do inside.
pub fn decide_with_target_tls(
    claims: &Claims,
    limits: SessionLimits,
    means: Means,
) -> Result<Permit, Denial> {
    let Some(pin) = claims.cert_thumb256 else {
        return Err(Denial::TargetTls(
            "the token pins no certificate to verify (cert_thumb256)",
        ));
    };
    if claims.has_credentials() {
        return Err(Denial::TargetTls(
            "credentials are injected into RDP only, which begins without TLS",
        ));
    }
    let may_be_rdp = matches!(claims.jet_ap, None | Some(ApplicationProtocol::Rdp));
    if may_be_rdp && means.inspecting == InspectionMode::Always {
        return Err(Denial::TargetTls(
            "RDP is inspected here (session.inspect), and begins without TLS",
        ));
    }
    let unpinned = Claims {
        cert_thumb256: None,
        ..claims.clone()
    };
    Ok(Permit {
        target_tls: Some(pin),
        ..decide(&unpinned, limits, means)?
    })
}

/// What the token wants done inside the session.
fn inspection(claims: &Claims, means: Means) -> Result<Option<Inspection>, Denial> {
    let is_rdp = matches!(claims.jet_ap, None | Some(ApplicationProtocol::Rdp));
    let needed = if claims.has_credentials() {
        Err(Denial::Injection)
    } else if claims.cert_thumb256.is_some() {
        Err(Denial::Pinning)
    } else {
        Ok(())
    };
    match (needed, means.inspecting) {
        (Ok(()), InspectionMode::Unavailable | InspectionMode::WhenNeeded) => return Ok(None),
        (Ok(()), InspectionMode::Always) if !is_rdp => return Ok(None),
        (Err(refusal), InspectionMode::Unavailable) => return Err(refusal),
        (Err(refusal), _) if !is_rdp => return Err(refusal),
        (_, InspectionMode::WhenNeeded | InspectionMode::Always) => {}
    }
    vouched(claims, means.verifies_targets)?;
    Ok(Some(Inspection {
        target_credentials: claims.target_credentials.clone(),
        proxy_credentials: claims.proxy_credentials.clone(),
        certificate_pin: claims.cert_thumb256,
    }))
}

/// Whether it will be known whom the gateway speaks TLS to. Of a target that it dials, the name and the configuration say
/// enough; one that is met may be anybody who could accept.
fn vouched(claims: &Claims, verifies_targets: bool) -> Result<(), Denial> {
    if claims.jet_cm == ConnectionMode::Fwd || claims.cert_thumb256.is_some() {
        return Ok(());
    }
    match &claims.agent {
        Some(_) if verifies_targets => Ok(()),
        // Asked for by the name of accept-any, as for targets that are dialled.
        _ if !verifies_targets && claims.target_credentials.is_none() => Ok(()),
        Some(_) => Err(Denial::Unvouched(
            "credentials go through an agent only to a target whose certificate is verified, and this gateway accepts any",
        )),
        None => Err(Denial::Unvouched(
            "whoever accepts has no name to verify a certificate by: the token needs cert_thumb256, or jet_agent_id",
        )),
    }
}

/// Whether what the acceptor has shown suffices for what is to be sent to it.
///
/// # Errors
/// Credentials would go to somebody who knows two UUIDs and no more.
pub fn may_inject(inspection: &Inspection, acceptor_proven: bool) -> Result<(), Denial> {
    if inspection.target_credentials.is_some() && !acceptor_proven {
        return Err(Denial::Unvouched(
            "credentials are not sent to an acceptor that has shown no token of the association",
        ));
    }
    Ok(())
}

/// Whether the client can prove itself, where it is to: by NLA, which it `offers` in its Connection Request or not.
///
/// Asked before anybody else hears of the client. One that begins with TLS offers nothing, and what a client says in
/// its Client Info comes when the target leg stands: neither counts.
///
/// # Errors
/// It is to, and cannot.
pub fn can_prove(permit: &Permit, offers_nla: bool) -> Result<(), Denial> {
    let wanted = permit
        .inspection
        .as_ref()
        .is_some_and(|inspection| inspection.proxy_credentials.is_some());
    if wanted && !offers_nla {
        return Err(Denial::Unproven);
    }
    Ok(())
}

/// Adds to a connector's claims what another token of the same rendezvous demands, that of the acceptor or the one that created
/// the association: the stricter of both holds, so that no peer drops what another's issuer wants.
///
/// # Errors
/// They contradict each other, or the other one has credentials: those are for its own bearer.
pub fn tighten(claims: &mut Claims, other: &Claims) -> Result<(), Denial> {
    if other.has_credentials() {
        return Err(Denial::Unvouched(
            "another token of this association has credentials: they belong into that of the client",
        ));
    }
    claims.jet_rec = claims.jet_rec.max(other.jet_rec);
    claims.jet_flt |= other.jet_flt;
    claims.jet_ttl = match (claims.jet_ttl, other.jet_ttl) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    if let Some(protocol) = agree(named(&claims.jet_ap), named(&other.jet_ap))?.cloned() {
        claims.jet_ap = Some(protocol);
    }
    claims.cert_thumb256 = agree(claims.cert_thumb256, other.cert_thumb256)?;
    Ok(())
}

/// `none` announces nothing.
fn named(protocol: &Option<ApplicationProtocol>) -> Option<&ApplicationProtocol> {
    protocol
        .as_ref()
        .filter(|protocol| **protocol != ApplicationProtocol::None)
}

fn agree<T: PartialEq>(one: Option<T>, other: Option<T>) -> Result<Option<T>, Denial> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => Err(Denial::OtherTerms),
        (one, other) => Ok(one.or(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use jetway_base::time::UnixTime;

    use super::*;

    const WHEN_NEEDED: Means = Means {
        inspecting: InspectionMode::WhenNeeded,
        verifies_targets: true,
    };

    fn claims(changes: Value) -> Claims {
        let mut claims = json!({ "jet_cm": "rdv", "nbf": 0, "exp": 100 });
        let object = claims.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        Claims::check(&claims, true, UnixTime(1)).unwrap()
    }

    fn decided(changes: Value, means: Means) -> Result<Permit, &'static str> {
        let decided = decide(&claims(changes), SessionLimits::default(), means);
        decided.map_err(|refusal| refusal.rule())
    }

    fn logon(changes: Value) -> Value {
        let mut claims = json!({ "dst_usr": "alice", "dst_pwd": "secret", "jet_ap": "rdp" });
        let object = claims.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        claims
    }

    #[test]
    fn credentials_are_injected_where_somebody_vouches_for_the_target() {
        let agent = json!({ "jet_agent_id": "branch-7", "jet_agent_dst": "pc42:3389" });
        let pin = json!({ "cert_thumb256": "07".repeat(32) });
        let forward = json!({ "jet_cm": "fwd", "dst_hst": "pc42:3389" });
        let accept_any = Means {
            verifies_targets: false,
            ..WHEN_NEEDED
        };
        let mut pinned_agent = agent.clone();
        let object = pinned_agent.as_object_mut().unwrap();
        object.extend(pin.as_object().unwrap().clone());
        for (changes, means, expected) in [
            (json!({}), WHEN_NEEDED, Err("unvouched")),
            (pin.clone(), WHEN_NEEDED, Ok(())),
            (agent.clone(), WHEN_NEEDED, Ok(())),
            (json!({}), accept_any, Err("unvouched")),
            (pin, accept_any, Ok(())),
            (agent.clone(), accept_any, Err("unvouched")),
            (pinned_agent, accept_any, Ok(())),
            (forward.clone(), WHEN_NEEDED, Ok(())),
            (forward, accept_any, Ok(())),
            (agent.clone(), Means::default(), Err("injection")),
            (json!({ "jet_ap": "ssh" }), WHEN_NEEDED, Err("injection")),
        ] {
            let decided = decided(logon(changes.clone()), means);
            assert_eq!(decided.map(drop), expected, "{changes} {means:?}");
        }
        let permit = decided(logon(agent), WHEN_NEEDED).unwrap();
        assert_eq!(permit.targets(), []);
        assert_eq!(permit.behind(), ["pc42:3389".parse().unwrap()]);
        let inspection = permit.inspection().unwrap();
        assert!(may_inject(inspection, true).is_ok());
        assert!(may_inject(inspection, false).is_err());
    }

    #[test]
    fn without_credentials_an_acceptor_is_inspected_by_pin_or_where_any_certificate_will_do() {
        let always = |verifies_targets| Means {
            inspecting: InspectionMode::Always,
            verifies_targets,
        };
        let pinned = json!({ "cert_thumb256": "07".repeat(32) });
        assert_eq!(decided(json!({}), always(true)).map(drop), Err("unvouched"));
        for (changes, means) in [
            (json!({}), always(false)),
            (json!({}), WHEN_NEEDED),
            (json!({ "jet_ap": "ssh" }), always(true)),
            (pinned, always(true)),
        ] {
            assert!(decided(changes.clone(), means).is_ok(), "{changes}");
        }
    }

    #[test]
    fn the_strictest_token_of_a_rendezvous_holds() {
        let tightened = |one: Value, other: Value| {
            let mut claims = claims(one);
            tighten(&mut claims, &self::claims(other)).map(|()| claims)
        };
        for swap in [false, true] {
            let tightened = |one: Value, other: Value| {
                let (one, other) = if swap { (other, one) } else { (one, other) };
                tightened(one, other)
            };
            let both = tightened(
                json!({ "jet_rec": true, "jet_ttl": 5, "jet_ap": "rdp" }),
                json!({ "jetflt": true, "jet_ttl": 3, "jet_rec": false, "jet_ap": "none" }),
            );
            let both = both.unwrap();
            assert_eq!(both.jet_rec, RecordingPolicy::Proxy);
            assert!(both.jet_flt);
            assert_eq!(both.jet_ttl, Some(Duration::from_secs(180)));
            assert_eq!(both.jet_ap, Some(ApplicationProtocol::Rdp));
            let pin = json!({ "cert_thumb256": "07".repeat(32) });
            let pinned = tightened(pin.clone(), json!({})).unwrap();
            assert!(pinned.cert_thumb256.is_some());
            let other = json!({ "cert_thumb256": "08".repeat(32) });
            for (one, other) in [
                (json!({ "jet_ap": "ssh" }), json!({ "jet_ap": "rdp" })),
                (pin, other),
            ] {
                let refusal = tightened(one, other).unwrap_err();
                assert_eq!(refusal.rule(), "rendezvous");
            }
        }
        let refusal = tightened(json!({}), logon(json!({}))).unwrap_err();
        assert_eq!(refusal.rule(), "unvouched");
        assert!(tightened(logon(json!({})), json!({})).is_ok());
    }
}
