//! What users are left with when there is no session, or it ends: the rows of the README's table, as FreeRDP shows them. And what an
//! operator or a limit has ended stays ended, whatever clients do by themselves.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result, ensure};
use jetway::rdp::negotiation::ConnectionConfirm;
use jetway_lab::wait::{PATIENCE, until};

use crate::injects::{WRONG_PASSWORD, stranger, the_only, through};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::workspace;
use crate::refuses::{Refused, UNAUTHENTICATED};

/// A row of the README's table of what users of inspected sessions see.
#[derive(Debug)]
pub(crate) struct Row {
    /// `errorInfo`, where there is one.
    pub(crate) code: Option<u32>,
    exit: [i32; 2],
}

/// The row of what FreeRDP calls `name`.
pub(crate) fn row(name: &str) -> Result<Row> {
    let readme = include_str!("../../README.md");
    let cells = readme.lines().find_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", code, called, three, two, _, ""] if called == format!("`{name}`") => {
                Some((code, three, two))
            }
            _ => None,
        }
    });
    let (code, three, two) = cells.with_context(|| format!("the README has no row for {name}"))?;
    let code = code
        .strip_prefix("0x")
        .map(|digits| u32::from_str_radix(digits, 16))
        .transpose()?;
    Ok(Row {
        code,
        exit: [three.parse()?, two.parse()?],
    })
}

impl Row {
    pub(crate) fn exit(&self, version: Version) -> i32 {
        let [three, two] = self.exit;
        match version {
            Version::Three => three,
            Version::Two => two,
        }
    }
}

/// The client ends by itself and has shown what the README says.
fn shows(client: &mut FreeRdp, version: Version, name: &str) -> Result<()> {
    let row = row(name)?;
    let code = client.exit_code()?;
    let output = client.output()?;
    let number = match row.code {
        // As FreeRDP writes it.
        Some(code) => format!("{name} [0x{:08X}]", 0x1_0000 | code),
        None => name.to_owned(),
    };
    ensure!(output.contains(&number), "not {number}: {output}");
    ensure!(code == row.exit(version), "{name}: exit status {code}");
    Ok(())
}

/// A target that answers the Connection Request and goes.
pub(crate) fn halfway(place: &Place) -> Result<Place> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let confirm = ConnectionConfirm::Selected {
                flags: 0,
                protocol: 2,
            };
            // Whoever has gone already need not be left.
            let _gone = stream
                .read(&mut [0; 1024])
                .and_then(|_| stream.write_all(&confirm.encode()));
        }
    });
    Ok(Place {
        port,
        ..place.clone()
    })
}

#[test]
fn freerdp2_shows_what_the_readme_says_where_no_session_is_had() -> Result<()> {
    the_readme_is_right_where_no_session_is_had(Version::Two)
}

#[test]
fn freerdp3_shows_what_the_readme_says_where_no_session_is_had() -> Result<()> {
    the_readme_is_right_where_no_session_is_had(Version::Three)
}

fn the_readme_is_right_where_no_session_is_had(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let wrong = Place {
            password: WRONG_PASSWORD.to_owned(),
            ..place.clone()
        };
        let other = "5a".repeat(32);
        for (role, place, certificate, name) in [
            (
                "wrong-password",
                &wrong,
                None,
                "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED",
            ),
            (
                "pinned",
                place,
                Some(other.as_str()),
                "ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS",
            ),
            (
                "halfway",
                &halfway(place)?,
                None,
                "ERRINFO_CB_DESTINATION_NOT_FOUND",
            ),
        ] {
            let grant = Grant {
                certificate,
                ..Grant::logon(&place.user, &place.password)
            };
            let token = gateway.token_with(&place.address(), &grant)?;
            let user = stranger(place);
            let mut client = through(workspace, &gateway, role, version, &token, &[], &user)?;
            shows(&mut client, version, name).context(role)?;
        }
        ensure!(gateway.logged(CLOSED)?.is_empty(), "a session was opened");
        Ok(())
    })
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Operator,
    TimeLimit,
    Silence,
    TargetDies,
    LinkIsCut,
    GatewayStops,
}

macro_rules! ends {
    ($($two:ident $three:ident: $end:ident, $name:expr;)*) => {$(
        #[test]
        fn $two() -> Result<()> {
            the_readme_is_right_where_a_session_ends(Version::Two, End::$end, $name)
        }
        #[test]
        fn $three() -> Result<()> {
            the_readme_is_right_where_a_session_ends(Version::Three, End::$end, $name)
        }
    )*};
}

ends! {
    freerdp2_shows_what_the_readme_says_of_an_operators_end
    freerdp3_shows_what_the_readme_says_of_an_operators_end:
        Operator, "ERRINFO_RPC_INITIATED_DISCONNECT";
    freerdp2_shows_what_the_readme_says_of_a_time_limit
    freerdp3_shows_what_the_readme_says_of_a_time_limit:
        TimeLimit, "ERRINFO_LOGON_TIMEOUT";
    freerdp2_shows_what_the_readme_says_of_silence
    freerdp3_shows_what_the_readme_says_of_silence:
        Silence, "ERRINFO_IDLE_TIMEOUT";
    freerdp2_shows_what_the_readme_says_of_a_target_that_dies
    freerdp3_shows_what_the_readme_says_of_a_target_that_dies:
        TargetDies, "ERRCONNECT_CONNECT_TRANSPORT_FAILED";
    freerdp2_shows_what_the_readme_says_of_a_link_that_is_cut
    freerdp3_shows_what_the_readme_says_of_a_link_that_is_cut:
        LinkIsCut, "ERRCONNECT_CONNECT_TRANSPORT_FAILED";
    freerdp2_shows_what_the_readme_says_of_a_gateway_that_stops
    freerdp3_shows_what_the_readme_says_of_a_gateway_that_stops:
        GatewayStops, "ERRCONNECT_CONNECT_TRANSPORT_FAILED";
}

fn the_readme_is_right_where_a_session_ends(version: Version, end: End, name: &str) -> Result<()> {
    workspace::run(|workspace| {
        let mut target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place().clone();
        let limit = match end {
            End::TimeLimit => format!("[session]\ntime_limit_s = {LIMIT_S}\n"),
            End::Silence => format!("[session]\nidle_timeout_s = {SILENCE_S}\n"),
            End::GatewayStops => "[session]\ndrain_s = 0\n".to_owned(),
            End::Operator | End::TargetDies | End::LinkIsCut => String::new(),
        };
        let mut gateway = Gateway::start_inside_with(workspace, "first-use", &limit)?;
        let link = Link::start(&gateway.address())?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let arguments = [format!("/v:{}", link.address()), format!("/pcb:{token}")];
        let user = stranger(&place);
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, &user)?;
        // A limit's time runs whether or not anybody has seen the desktop.
        if !matches!(end, End::TimeLimit | End::Silence) {
            client.wait_for_desktop(&place)?;
        }
        match end {
            End::Operator => gateway.end_session()?,
            End::TargetDies => target.kill(),
            End::LinkIsCut => link.cut(),
            End::GatewayStops => gateway.stop(),
            End::TimeLimit | End::Silence => {}
        }
        shows(&mut client, version, name)?;
        the_only(gateway.wait_for(CLOSED, 1)?).map(drop)
    })
}

/// Who has ended it for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Operator,
    Limit,
}

#[test]
fn freerdp3_that_reconnects_is_refused_when_an_operator_has_ended_its_opaque_session() -> Result<()>
{
    what_has_ended_stays_ended(By::Operator, Inside::No)
}

#[test]
fn freerdp3_that_reconnects_is_refused_when_a_limit_has_ended_its_opaque_session() -> Result<()> {
    what_has_ended_stays_ended(By::Limit, Inside::No)
}

#[test]
fn freerdp3_that_comes_again_is_refused_when_an_operator_has_ended_its_inspected_session()
-> Result<()> {
    what_has_ended_stays_ended(By::Operator, Inside::Yes)
}

#[test]
fn freerdp3_that_comes_again_is_refused_when_a_limit_has_ended_its_inspected_session() -> Result<()>
{
    what_has_ended_stays_ended(By::Limit, Inside::Yes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Yes,
    No,
}

/// A client that reconnects by itself, and would be let in for a minute.
fn what_has_ended_stays_ended(by: By, inside: Inside) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let limit = match by {
            By::Limit => format!("[session]\ntime_limit_s = {LIMIT_S}\n"),
            By::Operator => String::new(),
        };
        let gateway = Gateway::start_inside_again(workspace, 60, &limit)?;
        let grant = Grant::logon(&place.user, &place.password);
        let (token, user) = match inside {
            Inside::Yes => (
                gateway.token_with(&place.address(), &grant)?,
                stranger(place),
            ),
            Inside::No => (
                gateway.token(&place.address(), Protection::Signed)?,
                place.clone(),
            ),
        };
        let options = ["+auto-reconnect", "/auto-reconnect-max-retries:2"];
        let version = Version::Three;
        let mut client = through(
            workspace, &gateway, "client", version, &token, &options, &user,
        )?;
        if by == By::Operator {
            client.wait_for_desktop(place)?;
            gateway.end_session()?;
        }
        let closed = the_only(gateway.wait_for(CLOSED, 1)?)?;
        let reason = closed.field("reason").unwrap_or_default();
        let expected = match by {
            By::Operator => "ended by peers",
            By::Limit => "time limit reached",
        };
        ensure!(reason == expected, "{closed:?}");
        match inside {
            Inside::No => {
                // By itself, within a second or so.
                let refused = gateway.wait_for(REFUSED, 1)?;
                ensure!(
                    refused[0].field("rule").as_deref() == Some("replayed"),
                    "{refused:?}"
                );
                until("the client was told", PATIENCE, || {
                    let failures = client.negotiation_failures()?;
                    Ok((!failures.is_empty()).then_some(failures))
                })?;
                client.end();
                let failures = client.negotiation_failures()?;
                ensure!(
                    failures.iter().all(|told| told == UNAUTHENTICATED),
                    "{failures:?}"
                );
            }
            Inside::Yes => {
                // It is told, and does not come back by itself; its user does.
                let name = match by {
                    By::Operator => "ERRINFO_RPC_INITIATED_DISCONNECT",
                    By::Limit => "ERRINFO_LOGON_TIMEOUT",
                };
                shows(&mut client, version, name)?;
                ensure!(gateway.logged(REFUSED)?.is_empty(), "it came back");
                Refused {
                    rule: "replayed",
                    told: UNAUTHENTICATED,
                    version,
                    arguments: vec![format!("/pcb:{token}")],
                }
                .by(workspace, &gateway)?;
            }
        }
        the_only(gateway.logged(CLOSED)?).map(drop)
    })
}

#[test]
fn freerdp2_opens_a_written_file_without_a_question() -> Result<()> {
    a_written_file_asks_nothing(Version::Two)
}

#[test]
fn freerdp3_opens_a_written_file_without_a_question() -> Result<()> {
    a_written_file_asks_nothing(Version::Three)
}

/// A file of `jetway rdp --gateway-logs-on`, by a client that is told nothing else and has nobody to ask.
fn a_written_file_asks_nothing(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let session = |role: &str, options: &[&str]| {
            let grant = Grant::logon(&place.user, &place.password);
            let token = gateway.token_with(&place.address(), &grant)?;
            let file = gateway.rdp_file_with(Some(&token), None, options)?;
            FreeRdp::start_alone(workspace, role, version, &[file.display().to_string()])
        };
        let asked = |client: &FreeRdp| {
            let output = client.output()?;
            let questions = ["Username:", "Domain:", "Password:"];
            anyhow::Ok(questions.into_iter().any(|asked| output.contains(asked)))
        };
        // FreeRDP 2 asks for nothing that TLS does not need.
        if version == Version::Three {
            let mut client = session("asks", &[])?;
            client.exit_code()?;
            ensure!(asked(&client)?, "it asks in no case: this proves nothing");
        }
        let mut client = session("asks-nothing", &["--gateway-logs-on"])?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        ensure!(!asked(&client)?, "{}", client.output()?);
        Ok(())
    })
}

/// Long enough for a client to have its desktop on a busy machine, and shorter than it is waited for.
const LIMIT_S: u32 = 15;
const SILENCE_S: u32 = 8;
