//! Desktops that nothing can reach, and whose password no user knows: the gateway stands inside of the session, and the agent does
//! not.

use std::ffi::OsStr;

use anyhow::{Context, Result, bail, ensure};

use crate::injects::{SECURED, WRONG_PASSWORD, expect_told, stranger, the_only, through};
use crate::lab::branch::{AGENT, Branch, Wanted, logon_file};
use crate::lab::freerdp::{FreeRdp, Version, exit};
use crate::lab::gateway::jetway;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::target::TargetKind;
use crate::lab::workspace;
use crate::redirects::BROKERS_SECRET;

#[test]
fn freerdp2_with_a_ticket_alone_is_logged_on_to_the_nla_desktop_behind_an_agent() -> Result<()> {
    a_ticket_alone_reaches_the_desktop(Version::Two, TargetKind::ShadowNla)
}

#[test]
fn freerdp3_with_a_ticket_alone_is_logged_on_to_the_nla_desktop_behind_an_agent() -> Result<()> {
    a_ticket_alone_reaches_the_desktop(Version::Three, TargetKind::ShadowNla)
}

#[test]
fn freerdp2_with_a_ticket_alone_is_logged_on_to_xrdp_behind_an_agent() -> Result<()> {
    a_ticket_alone_reaches_the_desktop(Version::Two, TargetKind::Xrdp)
}

#[test]
fn freerdp3_with_a_ticket_alone_is_logged_on_to_xrdp_behind_an_agent() -> Result<()> {
    a_ticket_alone_reaches_the_desktop(Version::Three, TargetKind::Xrdp)
}

const NLA: Wanted = Wanted {
    kind: TargetKind::ShadowNla,
    pictured_by: None,
    broker: false,
    talkative: false,
};

/// The desktop seen by a client beside it and the desktop through gateway and agent are the same picture, typed keys arrive, operators
/// see both legs and the agent, and neither gateway nor agent shows a secret at its most talkative.
fn a_ticket_alone_reaches_the_desktop(version: Version, kind: TargetKind) -> Result<()> {
    workspace::run(|workspace| {
        let wanted = Wanted {
            kind,
            pictured_by: Some(version),
            talkative: true,
            ..NLA
        };
        let branch = Branch::start(workspace, wanted)?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        let logon = (place.user.as_str(), place.password.as_str());
        // It has TLS alone: the issuer says whose certificate it is.
        let pin = branch.certificate.as_deref();
        let pin = pin.map_or_else(Vec::new, |pin| vec!["--cert-thumb256", pin]);
        let file = logon_file(workspace, gateway, &place.address(), logon, &pin)?;
        let nobody = stranger(place);
        let mut client = FreeRdp::start(workspace, "client", version, &[file], &nobody)?;
        let expected = branch.picture.as_ref().context("a picture")?;
        client.wait_for_picture(workspace, expected)?;
        client.type_until_it_arrives(place)?;
        let live = gateway.live_sessions()?;
        let [live] = live.as_array().map(Vec::as_slice).unwrap_or_default() else {
            bail!("not one live session: {live}");
        };
        client.end();

        let line = the_only(gateway.wait_for(CLOSED, 1)?)?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        ensure!(line.field("agent").as_deref() == Some(AGENT), "{line:?}");
        ensure!(line.field("target") == Some(place.address()), "{line:?}");
        let secured = the_only(gateway.logged(SECURED)?)?;
        let first_use = if pin.is_empty() { "true" } else { "false" };
        ensure!(secured.field("first_use").as_deref() == Some(first_use));
        ensure!(live["agent"] == AGENT, "{live}");
        let inside = &live["inside"];
        for leg in ["client_tls", "target_tls"] {
            ensure!(
                inside[leg]
                    .as_str()
                    .is_some_and(|leg| leg.starts_with("TLS"))
            );
        }
        let logon = if kind == TargetKind::ShadowNla {
            "ntlm"
        } else {
            "none"
        };
        ensure!(inside["target_logon"] == logon, "{live}");
        ensure!(inside["statistics"]["user"] == place.user, "{live}");
        ensure!(inside["statistics"]["keys"].as_u64() > Some(20), "{live}");
        let events = gateway.audit()?;
        for event in ["client", "logon_requested", "channel_opened"] {
            let told = events.iter().any(|told| told["event"] == event);
            ensure!(told, "no {event}");
        }
        ensure!(
            branch.agents_log()?.contains("TRACE"),
            "the agent is not talkative"
        );
        branch.keeps_secret(&[&place.password, WRONG_PASSWORD])
    })
}

#[test]
fn freerdp2_is_told_of_a_wrong_password_behind_an_agent() -> Result<()> {
    a_wrong_password_is_told(Version::Two)
}

#[test]
fn freerdp3_is_told_of_a_wrong_password_behind_an_agent() -> Result<()> {
    a_wrong_password_is_told(Version::Three)
}

fn a_wrong_password_is_told(version: Version) -> Result<()> {
    refused(
        version,
        WRONG_PASSWORD,
        &[],
        "target-credentials: the target does not accept the credentials",
        "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED",
    )
}

#[test]
fn freerdp2_is_told_of_another_certificate_behind_an_agent() -> Result<()> {
    another_certificate_is_told(Version::Two)
}

#[test]
fn freerdp3_is_told_of_another_certificate_behind_an_agent() -> Result<()> {
    another_certificate_is_told(Version::Three)
}

fn another_certificate_is_told(version: Version) -> Result<()> {
    let pin = "5a".repeat(32);
    refused(
        version,
        "Never-Shown-1",
        &["--cert-thumb256", &pin],
        "target-certificate: the target shows certificate",
        "ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS",
    )
}

/// The client shows `told`, the gateway says why, and nothing was secured.
fn refused(
    version: Version,
    password: &str,
    further: &[&str],
    reason: &str,
    told: &str,
) -> Result<()> {
    workspace::run(|workspace| {
        let branch = Branch::start(workspace, NLA)?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        let logon = (place.user.as_str(), password);
        let file = logon_file(workspace, gateway, &place.address(), logon, further)?;
        let nobody = stranger(place);
        let mut client = FreeRdp::start(workspace, "client", version, &[file], &nobody)?;
        let code = client.exit_code()?;
        ensure!(code != 0, "exit code {code}");
        let lines = gateway.wait_for(REFUSED, 1)?;
        ensure!(
            lines[0].rule_and_reason().starts_with(reason),
            "not {reason}: {lines:?}"
        );
        expect_told(&client, told)?;
        ensure!(gateway.logged(SECURED)?.is_empty(), "legs were secured");
        ensure!(gateway.logged(CLOSED)?.is_empty(), "a session was opened");
        branch.keeps_secret(&[password])
    })
}

#[test]
fn freerdp_is_told_that_nothing_records_or_filters_behind_an_agent() -> Result<()> {
    workspace::run(|workspace| {
        let branch = Branch::start(workspace, NLA)?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        let keys = gateway.keys();
        let mut count = 0;
        for (demand, rule) in [
            ("--jet-rec", "recording: the token demands a recording"),
            ("--jet-flt", "filtering: the token demands filtering"),
        ] {
            for version in [Version::Two, Version::Three] {
                let target = place.address();
                let mut arguments = vec![OsStr::new("token"), OsStr::new("new")];
                for argument in ["--jet-ap", "rdp", demand, "--jet-agent-id", AGENT] {
                    arguments.push(OsStr::new(argument));
                }
                arguments.extend([OsStr::new("--jet-agent-dst"), OsStr::new(&target)]);
                arguments.extend([OsStr::new("--sign-key"), keys.signing.as_os_str()]);
                let token = jetway(&arguments)?;
                let role = format!("client{demand}{version:?}");
                let mut client = through(workspace, gateway, &role, version, &token, &[], place)?;
                let code = client.exit_code()?;
                ensure!(code == exit::NEGOTIATION_FAILURE, "exit code {code}");
                let failures = client.negotiation_failures()?;
                ensure!(
                    failures.first().map(String::as_str) == Some("SSL_NOT_ALLOWED_BY_SERVER"),
                    "{failures:?}"
                );
                count += 1;
                let lines = gateway.wait_for(REFUSED, count)?;
                ensure!(
                    lines[count - 1].rule_and_reason().starts_with(rule),
                    "{lines:?}"
                );
                // Nor is there a ticket for it: the reason is in the message.
                let Err(error) = gateway.ticket(&token) else {
                    bail!("a ticket for what cannot be");
                };
                ensure!(
                    format!("{error:#}").contains("the token demands"),
                    "{error:#}"
                );
            }
        }
        ensure!(
            !branch.agents_log()?.contains("Offer declined")
                && !branch.agents_log()?.contains("Session opened"),
            "the agent has heard of it"
        );
        Ok(())
    })
}

#[test]
fn freerdp2_is_sent_on_to_another_desktop_behind_the_agent() -> Result<()> {
    the_client_is_sent_on(Version::Two)
}

#[test]
fn freerdp3_is_sent_on_to_another_desktop_behind_the_agent() -> Result<()> {
    the_client_is_sent_on(Version::Three)
}

/// A broker in the namespace sends its client to the desktop beside it: through the same agent, since the token names it.
fn the_client_is_sent_on(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let wanted = Wanted {
            broker: true,
            ..NLA
        };
        let branch = Branch::start(workspace, wanted)?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        let broker = format!("localhost:{}", branch.broker.context("a broker")?);
        let logon = (place.user.as_str(), place.password.as_str());
        let desktop = place.address();
        let further = ["--alternative", desktop.as_str()];
        let file = logon_file(workspace, gateway, &broker, logon, &further)?;
        let nobody = stranger(place);
        let mut client = FreeRdp::start(workspace, "client", version, &[file], &nobody)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        let closed = gateway.wait_for(CLOSED, 2)?;
        let targets: Vec<Option<String>> = closed.iter().map(|line| line.field("target")).collect();
        ensure!(targets == [Some(broker), Some(desktop)], "{targets:?}");
        let redirected = serde_json::json!({ "event": "redirected", "to": "127.0.0.1" });
        gateway.wait_for_audit(&redirected)?;
        branch.keeps_secret(&[&place.password, BROKERS_SECRET])
    })
}

#[test]
fn a_desktop_that_the_token_does_not_name_is_not_followed_behind_the_agent() -> Result<()> {
    workspace::run(|workspace| {
        let wanted = Wanted {
            broker: true,
            ..NLA
        };
        let branch = Branch::start(workspace, wanted)?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        let broker = format!("localhost:{}", branch.broker.context("a broker")?);
        let logon = (place.user.as_str(), place.password.as_str());
        let file = logon_file(workspace, gateway, &broker, logon, &[])?;
        let nobody = stranger(place);
        let mut client = FreeRdp::start(workspace, "client", Version::Three, &[file], &nobody)?;
        let code = client.exit_code()?;
        ensure!(code != 0, "exit code {code}");
        let closed = gateway.wait_for(CLOSED, 1)?;
        let reason = closed[0].field("reason").context("a reason")?;
        ensure!(
            reason == "target redirects to 127.0.0.1, which is not allowed",
            "{reason}"
        );
        Ok(())
    })
}
