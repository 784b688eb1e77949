//! What must not open a session: the client says so, the log says why, the target hears nothing.

use anyhow::{Context, Result, bail, ensure};
use jetway_lab::wait::{PATIENCE, until};
use serde_json::json;

use crate::lab::forge::{self, Claims};
use crate::lab::freerdp::{FreeRdp, Version, exit};
use crate::lab::gateway::{Gateway, Keys};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::port::Port;
use crate::lab::target::Place;
use crate::lab::tripwire::Tripwire;
use crate::lab::workspace::{self, Workspace};

/// What a forged token is made from.
struct Forge<'a> {
    workspace: &'a Workspace,
    gateway: &'a Gateway,
    /// Good claims, to be spoiled.
    claims: Claims,
}

impl Forge<'_> {
    fn keys(&self) -> &Keys {
        self.gateway.keys()
    }

    /// The claims with `name` set to `value`, under the right key.
    fn with(mut self, name: &str, value: serde_json::Value) -> Result<String> {
        self.claims.insert(name.to_owned(), value);
        forge::sign_es256(&self.keys().signing, &self.claims)
    }

    fn id(&self) -> Result<String> {
        let id = self.claims.get("jti").and_then(serde_json::Value::as_str);
        id.map(str::to_owned).context("jti")
    }
}

macro_rules! refusals {
    ($($two:ident $three:ident: $rule:expr, $told:expr, $forge:expr;)*) => {$(
        #[test]
        fn $two() -> Result<()> {
            the_token_is_refused(Version::Two, $rule, $told, $forge)
        }
        #[test]
        fn $three() -> Result<()> {
            the_token_is_refused(Version::Three, $rule, $told, $forge)
        }
    )*};
}

refusals! {
    freerdp2_with_expired_token_is_refused
    freerdp3_with_expired_token_is_refused:
        "expired", UNAUTHENTICATED, |mut forge: Forge<'_>| {
            forge.claims.insert("nbf".to_owned(), json!(forge::now()? - 600));
            forge.with("exp", json!(forge::now()? - 300))
        };
    freerdp2_with_not_yet_valid_token_is_refused
    freerdp3_with_not_yet_valid_token_is_refused:
        "not-yet-valid", UNAUTHENTICATED, |mut forge: Forge<'_>| {
            forge.claims.insert("exp".to_owned(), json!(forge::now()? + 600));
            forge.with("nbf", json!(forge::now()? + 300))
        };
    freerdp2_with_wrong_key_is_refused
    freerdp3_with_wrong_key_is_refused:
        "signature", UNAUTHENTICATED, |forge: Forge<'_>| {
            let others = Keys::make(&forge.workspace.folder("other-keys")?)?;
            forge::sign_es256(&others.signing, &forge.claims)
        };
    freerdp2_with_wrong_algorithm_is_refused
    freerdp3_with_wrong_algorithm_is_refused:
        "algorithm", UNAUTHENTICATED, |forge: Forge<'_>| {
            forge::sign_hs256(&std::fs::read(&forge.keys().signing_public)?, &forge.claims)
        };
    freerdp2_with_unsigned_token_is_refused
    freerdp3_with_unsigned_token_is_refused:
        "alg-none", UNAUTHENTICATED, |forge: Forge<'_>| forge::unsigned(&forge.claims);
    freerdp2_with_tampered_token_is_refused
    freerdp3_with_tampered_token_is_refused:
        "signature", UNAUTHENTICATED, |mut forge: Forge<'_>| {
            let honest = forge::sign_es256(&forge.keys().signing, &forge.claims)?;
            forge.claims.insert("jet_ttl".to_owned(), json!(0));
            forge::tampered(&honest, &forge.claims)
        };
    freerdp2_with_oversized_token_is_refused
    freerdp3_with_oversized_token_is_refused:
        "carrier: the token is longer than", UNAUTHENTICATED, |forge: Forge<'_>| forge.with("padding", json!("x".repeat(18_000)));
    freerdp2_with_rendezvous_token_is_refused
    freerdp3_with_rendezvous_token_is_refused:
        "rendezvous", UNAVAILABLE, |mut forge: Forge<'_>| {
            forge.claims.remove("dst_hst");
            forge.with("jet_cm", json!("rdv"))
        };
    freerdp2_with_recording_token_is_refused
    freerdp3_with_recording_token_is_refused:
        "recording", NOT_ALLOWED, |forge: Forge<'_>| forge.with("jet_rec", json!(true));
    freerdp2_with_filtering_token_is_refused
    freerdp3_with_filtering_token_is_refused:
        "filtering", NOT_ALLOWED, |forge: Forge<'_>| forge.with("jetflt", json!(true));
    freerdp2_with_credentials_in_the_open_is_refused
    freerdp3_with_credentials_in_the_open_is_refused:
        "secret-unencrypted", UNAUTHENTICATED, |mut forge: Forge<'_>| {
            forge.claims.insert("dst_pwd".to_owned(), json!("Open-Secret-1"));
            forge.with("dst_usr", json!("alice"))
        };
    freerdp2_with_credentials_to_inject_is_refused
    freerdp3_with_credentials_to_inject_is_refused:
        "injection", NOT_ALLOWED, |mut forge: Forge<'_>| {
            forge.claims.insert("dst_pwd".to_owned(), json!("Sealed-Secret-1"));
            let public = forge.keys().encryption_public.clone();
            forge::encrypted(&public, &forge.with("dst_usr", json!("alice"))?)
        };
    freerdp2_with_revoked_token_is_refused
    freerdp3_with_revoked_token_is_refused:
        "revoked", UNAUTHENTICATED, |forge: Forge<'_>| {
            forge.gateway.revoke(&[&forge.id()?])?;
            forge::sign_es256(&forge.keys().signing, &forge.claims)
        };
    freerdp2_with_forbidden_target_is_refused
    freerdp3_with_forbidden_target_is_refused:
        "egress", UNAVAILABLE, |forge: Forge<'_>| forge.with("dst_hst", json!("192.0.2.1:3389"));
}

fn the_token_is_refused(
    version: Version,
    rule: &str,
    told: &str,
    make: impl FnOnce(Forge<'_>) -> Result<String>,
) -> Result<()> {
    workspace::run(|workspace| {
        let gateway = Gateway::start(workspace)?;
        let target = Tripwire::set()?;
        let claims = forge::good_claims(target.address())?;
        let token = make(Forge {
            workspace,
            gateway: &gateway,
            claims,
        })?;
        let refused = Refused {
            rule,
            told,
            version,
            arguments: vec![format!("/pcb:{token}")],
        };
        refused.by(workspace, &gateway)?;
        ensure!(target.visitors() == 0, "the target saw a connection");
        gateway.keeps_secret(&[&token, "Open-Secret-1", "Sealed-Secret-1"])
    })
}

/// Every refusal above is a good token with one thing wrong; without it the target is reached.
#[test]
fn the_forged_tokens_would_be_accepted_if_nothing_were_wrong() -> Result<()> {
    workspace::run(|workspace| {
        let gateway = Gateway::start(workspace)?;
        let target = Tripwire::set()?;
        let key = &gateway.keys().signing;
        let plain = forge::sign_es256(key, &forge::good_claims(target.address())?)?;
        let inner = forge::sign_es256(key, &forge::good_claims(target.address())?)?;
        let nested = forge::encrypted(&gateway.keys().encryption_public, &inner)?;
        for (count, token) in [plain, nested].iter().enumerate() {
            let arguments = [format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
            let role = format!("client-{count}");
            let mut client =
                FreeRdp::start(workspace, &role, Version::Three, &arguments, &nobody())?;
            until("the target is reached", PATIENCE, || {
                Ok((target.visitors() > count).then_some(()))
            })?;
            client.end();
        }
        Ok(())
    })
}

#[test]
fn freerdp2_without_token_is_refused() -> Result<()> {
    without_token_is_refused(Version::Two, "no-token", Vec::new())
}

#[test]
fn freerdp3_without_token_is_refused() -> Result<()> {
    without_token_is_refused(Version::Three, "no-token", Vec::new())
}

/// FreeRDP sends version 2 of the preconnection PDU with an id and an empty text, never version 1.
#[test]
fn freerdp2_with_preconnection_id_alone_is_refused() -> Result<()> {
    without_token_is_refused(
        Version::Two,
        "carrier: the preconnection PDU carries no token",
        vec!["/pcid:7".to_owned()],
    )
}

#[test]
fn freerdp3_with_preconnection_id_alone_is_refused() -> Result<()> {
    without_token_is_refused(
        Version::Three,
        "carrier: the preconnection PDU carries no token",
        vec!["/pcid:7".to_owned()],
    )
}

fn without_token_is_refused(version: Version, rule: &str, arguments: Vec<String>) -> Result<()> {
    workspace::run(|workspace| {
        let gateway = Gateway::start(workspace)?;
        Refused {
            rule,
            told: UNAUTHENTICATED,
            version,
            arguments,
        }
        .by(workspace, &gateway)
    })
}

#[test]
fn freerdp2_with_unknown_ticket_is_refused() -> Result<()> {
    workspace::run(|workspace| {
        let gateway = Gateway::start(workspace)?;
        let ticket = "jt-BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";
        let arguments = vec![format!("/load-balance-info:{ticket}")];
        Refused {
            rule: "ticket",
            told: UNAUTHENTICATED,
            version: Version::Two,
            arguments,
        }
        .by(workspace, &gateway)?;
        gateway.keeps_secret(&[ticket])
    })
}

#[test]
fn freerdp2_to_a_target_that_is_down_is_refused() -> Result<()> {
    workspace::run(|workspace| {
        let gateway = Gateway::start(workspace)?;
        let nobody_listens = Port::free()?;
        let target = format!("127.0.0.1:{}", nobody_listens.number());
        let token = forge::sign_es256(&gateway.keys().signing, &forge::good_claims(&target)?)?;
        let arguments = vec![format!("/pcb:{token}")];
        Refused {
            rule: "target",
            told: UNAVAILABLE,
            version: Version::Two,
            arguments,
        }
        .by(workspace, &gateway)?;
        gateway.keeps_secret(&[&token])
    })
}

/// The user must show something else.
pub(crate) const UNAUTHENTICATED: &str = "HYBRID_REQUIRED_BY_SERVER";
/// The token asks for what this gateway does not do.
pub(crate) const NOT_ALLOWED: &str = "SSL_NOT_ALLOWED_BY_SERVER";
/// Not the user's fault. A target that is forbidden and one that is down look alike.
const UNAVAILABLE: &str = "SSL_CERT_NOT_ON_SERVER";

/// One refused user: the client and what of it must be seen.
pub(crate) struct Refused<'a> {
    /// The rule that the log must name, and as much of the reason behind it as matters.
    pub(crate) rule: &'a str,
    /// What the user must be left with, by its name in [MS-RDPBCGR] 2.2.1.2.2.
    pub(crate) told: &'a str,
    pub(crate) version: Version,
    pub(crate) arguments: Vec<String>,
}

impl Refused<'_> {
    /// After RDP_NEG_FAILURE FreeRDP connects again by itself, up to twice and without the preconnection PDU: neither
    /// attempt may open a session, and the user must be left with what the first one was told.
    pub(crate) fn by(self, workspace: &Workspace, gateway: &Gateway) -> Result<()> {
        let (closed, before) = (
            gateway.logged(CLOSED)?.len(),
            gateway.logged(REFUSED)?.len(),
        );
        let mut arguments = vec![format!("/v:{}", gateway.address())];
        arguments.extend(self.arguments);
        let role = format!("refused-{before}");
        let mut client = FreeRdp::start(workspace, &role, self.version, &arguments, &nobody())?;
        let code = client.exit_code()?;
        if code != exit::NEGOTIATION_FAILURE {
            bail!("exit code {code}, not {}", exit::NEGOTIATION_FAILURE);
        }
        let failures = client.negotiation_failures()?;
        ensure!(
            !failures.is_empty(),
            "the client names no negotiation failure"
        );
        ensure!(
            failures.iter().all(|told| told == self.told),
            "not {}: {failures:?}",
            self.told
        );

        // What comes after a refusal without any token is no refusal of its own.
        let refused = gateway.wait_for(REFUSED, before + 1)?;
        let refused = refused.get(before..).unwrap_or_default();
        let line = refused.first().context("the first refusal")?;
        for line in refused {
            ensure!(
                line.rule_and_reason().starts_with(self.rule),
                "not {}: {line:?}",
                self.rule
            );
        }
        for field in ["session", "peer", "reason"] {
            ensure!(
                line.field(field).is_some_and(|value| !value.is_empty()),
                "{field}: {line:?}"
            );
        }
        ensure!(
            gateway.logged(CLOSED)?.len() == closed,
            "a session was opened"
        );
        Ok(())
    }
}

/// Credentials that no target ever sees.
fn nobody() -> Place {
    Place {
        port: 0,
        user: "nobody".to_owned(),
        password: "Never-Sent-1".to_owned(),
        background: [0, 0, 0],
        writable: std::path::PathBuf::new(),
    }
}
