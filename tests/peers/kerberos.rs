//! Logons by ticket: MIT's KDC gives them, freerdp-shadow-cli 3 takes them.

use std::net::TcpListener;

use anyhow::{Result, ensure};

use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::kdc::{Clock, Kdc, REALM, Transport};
use crate::lab::log::{CLOSED, Line, REFUSED};
use crate::lab::port::Port;
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::workspace::{self, Workspace};

#[test]
fn a_token_alone_reaches_the_desktop_by_ticket() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], false)?;
        let place = lab.target.place();
        let user = format!("{}@{REALM}", place.user);
        let (token, mut client) = lab.session(workspace, &gateway, "client", &user)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        gateway.wait_for(CLOSED, 1)?;
        expect_ticket(&gateway, 1)?;
        let expected = format!("{}@{REALM} for TERMSRV/localhost@{REALM}", place.user);
        let issued = lab.kdc.log("TGS_REQ")?;
        ensure!(
            issued.len() == 1 && issued[0].contains("ISSUE") && issued[0].ends_with(&expected),
            "{issued:?}"
        );
        gateway.keeps_secret(&[&token, &place.password])
    })
}

#[test]
fn every_spelling_of_the_user_gets_a_ticket() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], false)?;
        let place = lab.target.place();
        let spellings = [
            place.user.clone(),
            format!("{}@corp.example", place.user),
            format!("{REALM}\\{}", place.user),
            format!("CORP\\{}", place.user),
        ];
        for (count, user) in (1..).zip(&spellings) {
            let role = format!("client-{count}");
            let (_, mut client) = lab.session(workspace, &gateway, &role, user)?;
            client.wait_for_desktop(place)?;
            client.end();
            expect_ticket(&gateway, count)?;
            gateway.wait_for(CLOSED, count)?;
        }
        Ok(())
    })
}

#[test]
fn a_kdc_without_tcp_is_asked_by_udp() -> Result<()> {
    workspace::run(|workspace| {
        let kdc = Kdc::start_as(workspace, Transport::Udp, Clock::Right)?;
        let lab = Lab::start(workspace, kdc)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], false)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.wait_for_desktop(place)?;
        expect_ticket(&gateway, 1)
    })
}

#[test]
fn the_next_kdc_is_asked_where_one_is_gone_or_silent() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let gone = Port::free()?;
        // Accepts, by the kernel's hand, and never says a word.
        let silent = TcpListener::bind("127.0.0.1:0")?;
        let kdcs = [
            &format!("127.0.0.1:{}", gone.number()),
            &silent.local_addr()?.to_string(),
            &lab.kdc.address(),
        ];
        let gateway = lab.gateway(workspace, &kdcs.map(String::as_str), false)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.wait_for_desktop(place)?;
        expect_ticket(&gateway, 1)
    })
}

#[test]
fn a_refusal_of_the_kdc_is_told_as_what_it_is() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let kdc = &lab.kdc;
        let gateway = lab.gateway(workspace, &[&kdc.address()], false)?;
        kdc.admin("addpol -maxfailure 1 -lockoutduration 1h strict")?;
        for user in ["locked", "off", "gone", "old"] {
            kdc.add_user(user, PASSWORD)?;
        }
        kdc.admin("modprinc -policy strict locked")?;
        kdc.admin("modprinc -allow_tix off")?;
        kdc.admin("modprinc -expire yesterday gone")?;
        kdc.admin("modprinc -pwexpire yesterday old")?;
        let wrong = "Not-The-Password-1";
        let credentials = "target-credentials: the target does not accept the credentials: ";
        let restricted = "target-account-restricted: the account may not log on: ";
        let fresh = "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED";
        let denied = "ERRINFO_SERVER_INSUFFICIENT_PRIVILEGES";
        let cases = [
            (
                "nobody",
                PASSWORD,
                credentials,
                "KDC_ERR_C_PRINCIPAL_UNKNOWN (6)",
                fresh,
            ),
            (
                "locked",
                wrong,
                credentials,
                "KDC_ERR_PREAUTH_FAILED (24)",
                fresh,
            ),
            (
                "locked",
                PASSWORD,
                "target-account-locked: the account is locked: ",
                "KDC_ERR_CLIENT_REVOKED (18), \"LOCKED_OUT\"",
                denied,
            ),
            (
                "off",
                PASSWORD,
                restricted,
                "KDC_ERR_CLIENT_REVOKED (18)",
                denied,
            ),
            ("gone", PASSWORD, restricted, "KDC_ERR_NAME_EXP (1)", denied),
            (
                "old",
                PASSWORD,
                restricted,
                "KDC_ERR_KEY_EXPIRED (23)",
                denied,
            ),
        ];
        for (count, (user, password, rule, answer, told)) in (1..).zip(cases) {
            let role = format!("client-{count}");
            let (token, mut client) =
                lab.session_with(workspace, &gateway, &role, (user, password))?;
            client.exit_code()?;
            let refused = gateway.wait_for(REFUSED, count)?;
            let reason = refused[count - 1].rule_and_reason();
            ensure!(
                reason.starts_with(rule) && reason.contains(answer),
                "{user}: not {rule}…{answer}: {reason}"
            );
            let output = client.output()?;
            ensure!(output.contains(told), "{user}: not {told}: {output}");
            gateway.keeps_secret(&[&token, password])?;
        }
        ensure!(gateway.logged(SECURED)?.is_empty(), "legs were secured");
        ensure!(kdc.log("TGS_REQ")?.is_empty(), "a ticket was given");
        Ok(())
    })
}

#[test]
fn a_kdc_that_cannot_be_reached_is_told() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let gone = Port::free()?;
        let gone = format!("127.0.0.1:{}", gone.number());
        let gateway = lab.gateway(workspace, &[&gone], false)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        let expected = format!("kdc: no KDC can be reached: {gone}: ");
        ensure!(
            refused[0].rule_and_reason().starts_with(&expected),
            "{refused:?}"
        );
        let output = client.output()?;
        ensure!(
            output.contains("ERRINFO_CB_SESSION_ONLINE_VM_NO_DNS"),
            "{output}"
        );
        Ok(())
    })
}

/// No ticket, and nothing against the password.
#[test]
fn a_target_that_the_kdc_does_not_know_is_told() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start_without_service(workspace)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], false)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        let reason = refused[0].rule_and_reason();
        let expected =
            "target: the target's logon: the KDC answers KDC_ERR_S_PRINCIPAL_UNKNOWN (7)";
        ensure!(reason.starts_with(expected), "{reason}");
        Ok(())
    })
}

#[test]
fn a_target_that_the_kdc_does_not_know_is_reached_by_ntlm_where_that_is_allowed() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start_without_service(workspace)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], true)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.wait_for_desktop(place)?;
        let secured = gateway.wait_for(SECURED, 1)?;
        ensure!(
            secured[0].field("target_logon").as_deref() == Some("ntlm"),
            "{secured:?}"
        );
        let instead = gateway.logged("NTLM is used in the place of Kerberos")?;
        ensure!(instead.len() == 1, "{instead:?}");
        Ok(())
    })
}

/// Tickets are good for minutes around the right time; a KDC says what time it is.
#[test]
fn a_gateway_with_a_wrong_clock_takes_the_time_of_its_kdc() -> Result<()> {
    workspace::run(|workspace| {
        let kdc = Kdc::start_as(workspace, Transport::TcpAndUdp, Clock::AnHourAhead)?;
        let lab = Lab::start_at(workspace, kdc, Clock::AnHourAhead)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], false)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.wait_for_desktop(place)?;
        expect_ticket(&gateway, 1)?;
        let skew = "Clock skew too great";
        ensure!(!lab.kdc.log(skew)?.is_empty(), "the clocks did not differ");
        Ok(())
    })
}

/// Nothing that the gateway can mend; a fallback to NTLM would hide a target that is not who it should be.
#[test]
fn a_target_that_does_not_take_the_ticket_is_told_and_not_tried_by_ntlm() -> Result<()> {
    workspace::run(|workspace| {
        let kdc = Kdc::start_as(workspace, Transport::TcpAndUdp, Clock::AnHourAhead)?;
        let lab = Lab::start(workspace, kdc)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], true)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        let reason = refused[0].rule_and_reason();
        ensure!(
            reason.starts_with("target: the target's logon: the target does not take the ticket: "),
            "{reason}"
        );
        let target = lab.target.output()?;
        ensure!(target.contains("Ticket not yet valid"), "{target}");
        let output = client.output()?;
        ensure!(
            output.contains("ERRINFO_CB_DESTINATION_NOT_FOUND"),
            "{output}"
        );
        Ok(())
    })
}

struct Lab {
    kdc: Kdc,
    target: Shadow,
}

impl Lab {
    fn start(workspace: &Workspace, kdc: Kdc) -> Result<Self> {
        Self::start_at(workspace, kdc, Clock::Right)
    }

    fn start_at(workspace: &Workspace, kdc: Kdc, clock: Clock) -> Result<Self> {
        let target = Shadow::start_with_tickets(workspace, &kdc, clock)?;
        Ok(Self { kdc, target })
    }

    /// The KDC knows the user and not the target, which has the password itself.
    fn start_without_service(workspace: &Workspace) -> Result<Self> {
        let kdc = Kdc::start(workspace)?;
        let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
        let place = target.place();
        kdc.add_user(&place.user, &place.password)?;
        Ok(Self { kdc, target })
    }

    fn gateway(
        &self,
        workspace: &Workspace,
        kdcs: &[&str],
        ntlm_fallback: bool,
    ) -> Result<Gateway> {
        let kerberos = format!(
            "kerberos = {{ kdcs = {kdcs:?}, realm = \"{REALM}\", ntlm_fallback = {ntlm_fallback} }}"
        );
        Gateway::start_inside_with(workspace, "first-use", &kerberos)
    }

    /// A session with a token for the target's own user, spelt like `user`.
    fn session(
        &self,
        workspace: &Workspace,
        gateway: &Gateway,
        role: &str,
        user: &str,
    ) -> Result<(String, FreeRdp)> {
        let password = self.target.place().password.as_str();
        self.session_with(workspace, gateway, role, (user, password))
    }

    fn session_with(
        &self,
        workspace: &Workspace,
        gateway: &Gateway,
        role: &str,
        logon: (&str, &str),
    ) -> Result<(String, FreeRdp)> {
        let place = self.target.place();
        let target = format!("localhost:{}", place.port);
        let token = gateway.token_with(&target, &Grant::logon(logon.0, logon.1))?;
        let arguments = [
            format!("/v:{}", gateway.address()),
            format!("/pcb:{token}"),
            "/sec:tls".to_owned(),
        ];
        let stranger = Place {
            user: "stranger".to_owned(),
            password: "Nobodys-1".to_owned(),
            ..place.clone()
        };
        let client = FreeRdp::start(workspace, role, Version::Three, &arguments, &stranger)?;
        Ok((token, client))
    }
}

/// The last of `count` sessions was secured with a ticket for the target.
fn expect_ticket(gateway: &Gateway, count: usize) -> Result<()> {
    let secured = gateway.wait_for(SECURED, count)?;
    let logon = secured
        .last()
        .and_then(|line: &Line| line.field("target_logon"));
    ensure!(logon.as_deref() == Some("kerberos"), "{secured:?}");
    Ok(())
}

const SECURED: &str = "Session secured";
const PASSWORD: &str = "Of-The-Realm-1";
