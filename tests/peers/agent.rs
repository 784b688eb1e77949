//! FreeRDP and others to what nothing can reach: behind `jetway agent run`, in a network namespace of its own. Who connects is in
//! another. The bytes of these sessions are for the gateway what they are for the agent: TLS of somebody else.

use std::ffi::OsStr;
use std::fs;

use anyhow::{Result, ensure};
use jetway_lab::wait::{PATIENCE, until};

use crate::lab::branch::{self, AGENT, Branch, Wanted, enrol, only_the_gateway_is_reached};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{BINARY, Gateway, jetway};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::namespace::Namespace;
use crate::lab::port::Port;
use crate::lab::process::Process;
use crate::lab::target::TargetKind;
use crate::lab::workspace;

/// Ports inside the namespaces, where nobody else is.
const SERVER: u16 = 21_000;
const LOCAL: u16 = 21_001;

const BULK_BYTES: usize = 8 * 1024 * 1024;

#[test]
fn freerdp3_reaches_by_ticket_an_xrdp_desktop_behind_an_agent() -> Result<()> {
    the_desktop_behind_the_agent_is_reached(Version::Three, TargetKind::Xrdp)
}

#[test]
fn freerdp3_reaches_by_ticket_an_nla_desktop_behind_an_agent() -> Result<()> {
    the_desktop_behind_the_agent_is_reached(Version::Three, TargetKind::ShadowNla)
}

#[test]
fn freerdp2_reaches_by_ticket_an_nla_desktop_behind_an_agent() -> Result<()> {
    the_desktop_behind_the_agent_is_reached(Version::Two, TargetKind::ShadowNla)
}

fn the_desktop_behind_the_agent_is_reached(version: Version, kind: TargetKind) -> Result<()> {
    workspace::run(|workspace| {
        let branch = Branch::start(
            workspace,
            Wanted {
                kind,
                pictured_by: None,
                broker: false,
                talkative: false,
            },
        )?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        // Nothing leads there but the agent.
        branch.expect_unreachable()?;
        let file = branch::rdp_file(workspace, gateway, &place.address(), &[])?;
        // The file names the address for the machine itself.
        let arguments = [file, format!("/v:{}", branch.address_for_users())];
        let users = &branch.users;
        let mut client =
            FreeRdp::start_within(users, workspace, "client", version, &arguments, place)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();

        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(closed.len() == 1, "one closing line: {closed:?}");
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        ensure!(closed[0].field("agent").as_deref() == Some(AGENT));
        ensure!(closed[0].field("target") == Some(place.address()));
        ensure!(closed[0].number("bytes_to_client")? > 1000);
        branch.keeps_secret(&[&place.password])
    })
}

/// `jetway connect` brings programs to the target that know nothing of gateways.
#[test]
fn socat_reaches_by_jetway_connect_a_server_behind_an_agent() -> Result<()> {
    workspace::run(|workspace| {
        let targets = Namespace::of_targets()?;
        let users = Namespace::of_users()?;
        let port = Port::free()?;
        let addresses = [targets.outside(), users.outside()];
        let (gateway, ca) = Gateway::start_for_networks(workspace, &addresses, &port, &[], false)?;
        let url =
            |namespace: &Namespace| format!("https://{}:{}", namespace.outside(), port.number());
        let key = enrol(workspace, &gateway, &url(&targets), Some(&ca))?;

        // It answers when the other side has ended, as many servers do.
        let server = format!("TCP-LISTEN:{SERVER},bind=127.0.0.1,fork");
        let mut served = Process::start(
            workspace,
            "server",
            targets.command("socat").args([&server, "EXEC:sha256sum"]),
        )?;
        until("the server listens", PATIENCE, || {
            served.expect_alive()?;
            Ok(targets.reaches("127.0.0.1", SERVER).ok().filter(|is| *is))
        })?;
        let target = format!("127.0.0.1:{SERVER}");
        let _agent = Process::start(
            workspace,
            "agent",
            targets
                .command(BINARY)
                .args(["agent", "run", "--name", AGENT, "--target", &target])
                .args(["--gateway", &url(&targets)])
                .args([OsStr::new("--ca"), ca.as_os_str()])
                .args([OsStr::new("--key"), key.as_os_str()]),
        )?;
        gateway.wait_for("Agent connected", 1)?;
        only_the_gateway_is_reached(&users, &targets, port.number(), SERVER)?;

        let token = [
            "token",
            "new",
            "--jet-agent-id",
            AGENT,
            "--jet-agent-dst",
            &target,
        ];
        let mut arguments: Vec<&OsStr> = token.iter().map(OsStr::new).collect();
        arguments.extend([OsStr::new("--sign-key"), gateway.keys().signing.as_os_str()]);
        let token = jetway(&arguments)?;
        let token_file = workspace.write("user.jwt", &token)?;
        let local = format!("127.0.0.1:{LOCAL}");
        let mut connect = Process::start(
            workspace,
            "connect",
            users
                .command(BINARY)
                .args(["connect", "--listen", &local, "--gateway", &url(&users)])
                .args([OsStr::new("--ca"), ca.as_os_str()])
                .args([OsStr::new("--token-file"), token_file.as_os_str()]),
        )?;
        until("the local port is there", PATIENCE, || {
            connect.expect_alive()?;
            let listens = connect.output()?.contains("listening on");
            Ok(listens.then_some(()))
        })?;

        let mut bulk = vec![0; BULK_BYTES];
        openssl::rand::rand_bytes(&mut bulk)?;
        let expected = format!("{}  -\n", hex::encode(openssl::sha::sha256(&bulk)));
        let file = workspace.write("bulk", &bulk)?;
        let output = users
            .command("timeout")
            // It gives up on the other direction after half a second by default.
            .args(["60", "socat", "-t", "60", "-", &format!("TCP:{local}")])
            .stdin(fs::File::open(file)?)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said == expected,
            "{said:?} instead of {expected:?}, {output:?}"
        );
        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(
            closed[0].field("target") == Some(target.clone()),
            "{closed:?}"
        );
        ensure!(closed[0].number("bytes_to_target")? == u64::try_from(BULK_BYTES)?);
        gateway.keeps_secret(&[&token])
    })
}

/// The half of these tests, and of those of [`behind`](crate::behind), that runs in the namespace. By itself it does nothing.
#[test]
fn desktop_of_the_namespace() -> Result<()> {
    let Some(folder) = branch::folder() else {
        return Ok(());
    };
    workspace::run(|workspace| branch::be_inside(workspace, &folder))
}
