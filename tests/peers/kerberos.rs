//! Logons by Kerberos ticket: MIT's KDC gives them, freerdp-shadow-cli 3 takes them, FreeRDP 3 shows them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use jetway::rdp::credssp::client::{LogonClient, Package, Progress};
use jetway::rdp::credssp::keytab::Keytab;
use jetway::rdp::credssp::server::{ClientKerberos, LogonServer, Progress as Served};

use crate::injects::stranger;
use crate::lab::branch::{self, AGENT};
use crate::lab::dns::Dns;
use crate::lab::freerdp::{FreeRdp, Version, exit};
use crate::lab::gateway::{BINARY, Gateway, Grant};
use crate::lab::kdc::{Clock, Kdc, REALM, Transport};
use crate::lab::log::{CLOSED, Line, REFUSED};
use crate::lab::port::Port;
use crate::lab::process::Process;
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

/// The gateway asks the KDC, and for the name by which the agent knows the desktop.
#[test]
fn a_ticket_is_for_the_desktop_behind_the_agent() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let gateway = lab.gateway(workspace, &[&lab.kdc.address()], false)?;
        let place = lab.target.place();
        let target = format!("localhost:{}", place.port);
        let url = format!("http://{}", gateway.address());
        let key = branch::enrol(workspace, &gateway, &url, None)?;
        let mut command = Command::new(BINARY);
        command
            .args(["agent", "run", "--name", AGENT, "--gateway", &url])
            .args(["--target", &target, "--key"])
            .arg(key);
        let mut agent = Process::start(workspace, "agent", &mut command)?;
        gateway.wait_for("Agent connected", 1)?;
        let logon = (place.user.as_str(), place.password.as_str());
        let file = branch::logon_file(workspace, &gateway, &target, logon, &[])?;
        let version = Version::Three;
        let nobody = stranger(place);
        let mut client = FreeRdp::start(workspace, "client", version, &[file], &nobody)?;
        client.wait_for_desktop(place)?;
        client.end();
        gateway.wait_for(CLOSED, 1)?;
        expect_ticket(&gateway, 1)?;
        let issued = lab.kdc.log("TGS_REQ")?;
        let expected = format!("TERMSRV/localhost@{REALM}");
        ensure!(
            issued.len() == 1 && issued[0].ends_with(&expected),
            "{issued:?}"
        );
        agent.expect_alive()?;
        gateway.keeps_secret(&[&place.password])
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

#[test]
fn kdcs_are_found_by_dns_in_the_order_that_it_says() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let gone = Port::free()?;
        let kdc = lab.kdc.address();
        let dns = Dns::start(
            workspace,
            &[
                srv("_tcp", &kdc, 20),
                srv("_tcp", &format!("127.0.0.1:{}", gone.number()), 10),
                "--host-record=kdc.corp.example,127.0.0.1".to_owned(),
            ],
        )?;
        let gateway = lab.gateway_with_dns(workspace, &dns)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.wait_for_desktop(place)?;
        expect_ticket(&gateway, 1)?;
        client.end();

        for (count, user) in (1..).zip(["alice@evil.example", "EVIL.EXAMPLE\\alice"]) {
            let role = format!("stranger-{count}");
            let (_, mut client) = lab.session(workspace, &gateway, &role, user)?;
            client.exit_code()?;
            gateway.wait_for(REFUSED, count)?;
        }
        // What a token says was not looked up, and what DNS said was asked for once.
        let mut asked = dns.asked()?;
        asked.retain(|name| name != "kdc.corp.example");
        ensure!(asked == ["_kerberos._tcp.corp.example"], "{asked:?}");
        Ok(())
    })
}

#[test]
fn a_kdc_with_a_udp_record_alone_is_found() -> Result<()> {
    workspace::run(|workspace| {
        let kdc = Kdc::start_as(workspace, Transport::Udp, Clock::Right)?;
        let lab = Lab::start(workspace, kdc)?;
        let dns = Dns::start(
            workspace,
            &[
                srv("_udp", &lab.kdc.address(), 0),
                "--host-record=kdc.corp.example,127.0.0.1".to_owned(),
            ],
        )?;
        let gateway = lab.gateway_with_dns(workspace, &dns)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.wait_for_desktop(place)?;
        expect_ticket(&gateway, 1)
    })
}

#[test]
fn dns_leads_to_nobody_whom_the_egress_rules_deny() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let dns = Dns::start(
            workspace,
            &[
                srv("_tcp", &lab.kdc.address(), 0),
                "--host-record=kdc.corp.example,169.254.169.254".to_owned(),
            ],
        )?;
        let gateway = lab.gateway_with_dns(workspace, &dns)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        let reason = refused[0].rule_and_reason();
        ensure!(
            reason.starts_with("kdc: no KDC can be reached: kdc.corp.example.: ")
                && reason.contains("169.254.169.254"),
            "{reason}"
        );
        Ok(())
    })
}

#[test]
fn a_realm_that_dns_does_not_know_is_told() -> Result<()> {
    workspace::run(|workspace| {
        let lab = Lab::start(workspace, Kdc::start(workspace)?)?;
        let dns = Dns::start(workspace, &[])?;
        let gateway = lab.gateway_with_dns(workspace, &dns)?;
        let place = lab.target.place();
        let (_, mut client) = lab.session(workspace, &gateway, "client", &place.user)?;
        client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        let reason = refused[0].rule_and_reason();
        let expected = "kdc: no KDC can be reached: _kerberos._tcp.CORP.EXAMPLE.: ";
        ensure!(reason.starts_with(expected), "{reason}");
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
        let instead = gateway.logged("Using NTLM instead of Kerberos")?;
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
            reason.starts_with(
                "target: the target's logon: the target does not take the Kerberos ticket: "
            ),
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

#[test]
fn a_client_with_a_ticket_proves_itself_by_it() -> Result<()> {
    workspace::run(|workspace| {
        let door = Door::start(workspace, false)?;
        let cache = door.kdc.log_on("visitor", PASSWORD)?;
        let mut client = door.client(workspace, "client", "visitor", Some(&cache))?;
        let place = door.target.place();
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        door.gateway.wait_for(CLOSED, 1)?;
        door.expect_proof("kerberos")?;
        let issued = door
            .kdc
            .log("visitor@CORP.EXAMPLE for TERMSRV/localhost@CORP.EXAMPLE")?;
        ensure!(!issued.is_empty(), "no ticket for the gateway was given");
        door.gateway
            .keeps_secret(&[&place.password, PASSWORD, PROXY_PASSWORD])
    })
}

#[test]
fn a_ticket_of_anybody_else_opens_nothing() -> Result<()> {
    workspace::run(|workspace| {
        let door = Door::start(workspace, true)?;
        for (count, user) in (1..).zip(["mallory", "visitor/admin"]) {
            door.kdc.add_user(user, PASSWORD)?;
            let cache = door.kdc.log_on(user, PASSWORD)?;
            let role = format!("client-{count}");
            let mut client = door.client(workspace, &role, user, Some(&cache))?;
            let expected =
                "client-leg: the client's logon: the client's Kerberos ticket is another user's";
            door.expect_denied(&mut client, count, expected)?;
        }
        Ok(())
    })
}

/// The KDC has a new key for the gateway that its keytab has not.
#[test]
fn a_ticket_that_the_keytab_does_not_open_is_told() -> Result<()> {
    workspace::run(|workspace| {
        let door = Door::start(workspace, true)?;
        door.kdc.admin("cpw -randkey TERMSRV/localhost")?;
        let cache = door.kdc.log_on("visitor", PASSWORD)?;
        let mut client = door.client(workspace, "client", "visitor", Some(&cache))?;
        let expected = "client-leg: the client's logon: the client's Kerberos ticket: no key for \"TERMSRV/localhost\" \
of \"CORP.EXAMPLE\", encryption type 18, version 3";
        door.expect_denied(&mut client, 1, expected)
    })
}

#[test]
fn a_client_without_a_ticket_is_let_in_by_the_password_only_where_that_is_allowed() -> Result<()> {
    workspace::run(|workspace| {
        let door = Door::start(workspace, true)?;
        let mut client = door.client(workspace, "client", "visitor", None)?;
        client.wait_for_desktop(door.target.place())?;
        door.expect_proof("ntlm")
    })
}

#[test]
fn a_client_without_a_ticket_is_denied_where_only_a_ticket_counts() -> Result<()> {
    workspace::run(|workspace| {
        let door = Door::start(workspace, false)?;
        let mut client = door.client(workspace, "client", "visitor", None)?;
        let expected = "client-leg: the client's logon: the client shows no Kerberos ticket, and NTLM is not allowed";
        door.expect_denied(&mut client, 1, expected)
    })
}

/// What FreeRDP does not do: the ticket is in the first message, behind no other mechanism. Both halves are Jetway's, the
/// KDC between them is not.
#[test]
fn a_ticket_in_the_first_message_is_taken_and_binds_the_tls_key() -> Result<()> {
    workspace::run(|workspace| {
        let kdc = Kdc::start(workspace)?;
        kdc.add_user("visitor", PASSWORD)?;
        let keytab = std::fs::read(kdc.add_service("TERMSRV/localhost")?)?;
        let kerberos = ClientKerberos {
            keytab: Arc::new(Keytab::parse(&keytab)?),
            ntlm_fallback: false,
        };
        let logon = |expected: &str, client_key: &[u8], server_key: &[u8]| {
            let password = PASSWORD.into();
            let package = Package::Kerberos { realm: Some(REALM) };
            let mut client =
                LogonClient::new(client_key, "visitor", &password, "localhost", package)?;
            let mut server = LogonServer::new(server_key, expected, &"of no use".into())
                .with_kerberos(Some(&kerberos));
            let mut messages = 0;
            let mut answer: Option<Vec<u8>> = None;
            loop {
                let mut exchange = client.exchange(answer.as_deref())?;
                let mut progress = exchange.start()?;
                let (frame, last) = loop {
                    match progress {
                        Progress::AskKdc(question) => {
                            let mut stream = TcpStream::connect(kdc.address())?;
                            stream.write_all(&question.message)?;
                            let mut answer = vec![0; 4];
                            stream.read_exact(&mut answer)?;
                            stream.read_to_end(&mut answer)?;
                            progress = exchange.resume(Some(answer))?;
                        }
                        Progress::Send { frame, last } => break (frame, last),
                    }
                };
                messages += 1;
                match server.process(&frame)? {
                    Served::Reply(reply) => answer = Some(reply),
                    Served::Finished => {
                        ensure!(last && server.uses_kerberos());
                        return Ok(messages);
                    }
                }
            }
        };
        ensure!(
            logon("visitor", b"key", b"key")? == 3,
            "ticket, key, credentials"
        );
        ensure!(logon("VISITOR@corp.example", b"key", b"key")? == 3);
        for (expected, server_key, cause) in [
            (
                "visitor",
                b"kez",
                "the client's proof does not fit this TLS connection",
            ),
            (
                "mallory",
                b"key",
                "the client's Kerberos ticket is another user's",
            ),
            (
                "OTHER\\visitor",
                b"key",
                "the client's Kerberos ticket is another user's",
            ),
        ] {
            let denied = logon(expected, b"key", server_key).err();
            let denied = denied.map(|error| error.to_string());
            ensure!(denied.as_deref() == Some(cause), "{expected}: {denied:?}");
        }
        Ok(())
    })
}

/// A gateway whose clients prove themselves by tickets, in front of a target that they know nothing of.
struct Door {
    kdc: Kdc,
    target: Shadow,
    gateway: Gateway,
}

impl Door {
    fn start(workspace: &Workspace, ntlm_fallback: bool) -> Result<Self> {
        let kdc = Kdc::start(workspace)?;
        kdc.add_user("visitor", PASSWORD)?;
        let keytab = kdc.add_service("TERMSRV/localhost")?;
        let target = Shadow::start(workspace, Security::Nla)?;
        let client = format!(
            "[client]\nkerberos = {{ keytab = {keytab:?}, ntlm_fallback = {ntlm_fallback} }}"
        );
        let gateway = Gateway::start_inside_with(workspace, "first-use", &client)?;
        Ok(Self {
            kdc,
            target,
            gateway,
        })
    }

    /// A client with a token for `visitor`. It has the tickets of `cache` and, where there are none, the password that
    /// the token names.
    fn client(
        &self,
        workspace: &Workspace,
        role: &str,
        user: &str,
        cache: Option<&Path>,
    ) -> Result<FreeRdp> {
        let place = self.target.place();
        let grant = Grant {
            proxy: Some(("visitor", PROXY_PASSWORD)),
            ..Grant::logon(&place.user, &place.password)
        };
        let token = self.gateway.token_with(&place.address(), &grant)?;
        let port = self.gateway.address();
        let port = port.rsplit(':').next().unwrap_or_default();
        // By its name: there is no ticket for an address.
        let mut arguments = vec![
            format!("/v:localhost:{port}"),
            format!("/pcb:{token}"),
            "/sec:nla".to_owned(),
        ];
        let mut visitor = Place {
            user: user.to_owned(),
            password: PROXY_PASSWORD.to_owned(),
            ..place.clone()
        };
        let configuration = self.kdc.krb5_conf();
        let mut environment = vec![("KRB5_CONFIG", configuration.as_os_str())];
        if let Some(cache) = cache {
            arguments.push(format!("/d:{REALM}"));
            visitor.password = "of no use".to_owned();
            environment.push(("KRB5CCNAME", cache.as_os_str()));
        }
        let environment: Vec<_> = environment
            .into_iter()
            .map(|(name, value)| (name, value.to_str().unwrap_or_default()))
            .collect();
        FreeRdp::start_in(
            workspace,
            role,
            Version::Three,
            &arguments,
            &visitor,
            &environment,
        )
    }

    fn expect_proof(&self, logon: &str) -> Result<()> {
        let secured = self.gateway.wait_for(SECURED, 1)?;
        let proof = secured[0].field("client_logon");
        ensure!(proof.as_deref() == Some(logon), "{secured:?}");
        Ok(())
    }

    fn expect_denied(&self, client: &mut FreeRdp, count: usize, reason: &str) -> Result<()> {
        let code = client.exit_code()?;
        ensure!(code == exit::LOGON_FAILURE, "exit code {code}");
        let refused = self.gateway.wait_for(REFUSED, count)?;
        let said = refused[count - 1].rule_and_reason();
        ensure!(said == reason, "not {reason}: {said}");
        ensure!(
            self.gateway.logged(SECURED)?.is_empty(),
            "legs were secured"
        );
        ensure!(
            self.gateway.logged(CLOSED)?.is_empty(),
            "a session was opened"
        );
        Ok(())
    }
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

    fn gateway_with_dns(&self, workspace: &Workspace, dns: &Dns) -> Result<Gateway> {
        let kerberos = format!(
            "kerberos = {{ dns = true, nameservers = [{:?}], realm = \"{REALM}\", ntlm_fallback = false }}",
            dns.address()
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

/// A record that names `kdc.corp.example`, on the port of `address`.
fn srv(protocol: &str, address: &str, priority: u16) -> String {
    let port = address.rsplit(':').next().unwrap_or_default();
    format!("--srv-host=_kerberos.{protocol}.corp.example,kdc.corp.example,{port},{priority},0")
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

const SECURED: &str = "Session opened";
const PASSWORD: &str = "Of-The-Realm-1";
const PROXY_PASSWORD: &str = "Of-The-Token-1";
