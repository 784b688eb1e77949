//! The systemd units of `samples`, as their comments say: installed by the commands that are printed there, and started as the same
//! user, with the same credentials, state and read-only files, as their own directives have it.
//!
//! Not proven here is what only systemd sets: filters of system calls and of address families, and devices and kernel settings that
//! are hidden. Needs root.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use jetway::rdp::connection_request::{ConnectionRequest, NegotiationRequest};
use jetway::rdp::negotiation::{self, ConnectionConfirm};
use jetway::rdp::preconnection;
use jetway_lab::process::signal_pid;
use jetway_lab::wait::{PATIENCE, until};
use rustix::process::Signal;

use crate::lab::authority::Authority;
use crate::lab::gateway::BINARY;
use crate::lab::machine::Machine;
use crate::lab::process::{Process, tool};
use crate::lab::unit::{USER, Unit, verify};
use crate::lab::workspace::{self, Workspace};

/// The desktop of the README.
const DESKTOP: &str = "127.0.0.42:3389";
pub(crate) const HOSTS: [(&str, &str); 3] = [
    ("127.0.0.1", "gw.example"),
    ("127.0.0.42", "pc42"),
    ("127.0.0.42", "pc42.corp.example"),
];

#[test]
fn the_gateway_starts_by_its_unit_writes_its_state_and_serves() -> Result<()> {
    workspace::run(|workspace| {
        let machine = Machine::start(workspace, &HOSTS)?;
        let folder = workspace.folder("administrator")?;
        let unit = install(workspace, &machine, &folder)?;
        let mut service = unit.start(workspace, &machine)?;
        wait_for(&mut service, "Listening")?;
        let status = fs::read_to_string(format!("/proc/{}/status", service.pid()))?;
        let user = format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n");
        ensure!(status.contains(&user), "{status}");

        let desktop = machine.listen(DESKTOP)?;
        thread::spawn(move || echo(&desktop));
        let token = user_token(&machine, &folder)?;
        session(&machine, &token)?;
        // Only by what was written, which is in the state's folder, can it be known.
        wait_for(&mut service, "Session closed")?;
        let store = state(workspace).join("jetway.redb");
        let written = fs::metadata(&store)?;
        ensure!(written.uid() == USER && written.mode() & 0o777 == 0o600);

        fs::write(machine.etc("jetway/revoked.json"), r#"{"sub": ["alice"]}"#)?;
        unit.reload(&machine, &service)?;
        wait_for(&mut service, "jetway.toml is read at the start alone")?;
        wait_for(&mut service, "Revocation list reloaded")?;
        signal_pid(service.pid(), Signal::TERM);
        let ended = service.wait(PATIENCE)?;
        ensure!(ended.success(), "{ended}: {}", service.output()?);

        // The state is found again, and so are the revocations.
        let mut again = unit.start(workspace, &machine)?;
        wait_for(&mut again, "Listening")?;
        let refused = session(&machine, &token).unwrap_err().to_string();
        ensure!(refused.contains("Failure"), "{refused}");
        let told = again.output()?;
        ensure!(told.contains("revoked"), "{told}");
        Ok(())
    })
}

#[test]
fn config_check_says_what_the_user_of_the_unit_cannot_read_or_write() -> Result<()> {
    workspace::run(|workspace| {
        let machine = Machine::start(workspace, &HOSTS)?;
        let folder = workspace.folder("administrator")?;
        let unit = install(workspace, &machine, &folder)?;
        let config = machine.etc("jetway/jetway.toml");
        let good = fs::read_to_string(&config)?;
        let mut number = 0;
        let mut run = |text: &str, command: &[&str]| -> Result<(bool, String)> {
            fs::write(&config, text)?;
            number += 1;
            let mut words = vec!["/usr/local/bin/jetway".to_owned()];
            words.extend(command.iter().map(|word| (*word).to_owned()));
            words.extend(["--config", "/etc/jetway/jetway.toml"].map(str::to_owned));
            let mut ran = unit.run(workspace, &machine, &format!("run{number}"), &words)?;
            let ended = ran.wait(PATIENCE)?;
            Ok((ended.success(), ran.output()?))
        };
        let (is_good, told) = run(&good, &["config", "check"])?;
        ensure!(is_good, "{told}");
        ensure!(!told.contains("WARN"), "{told}");

        // By hand, as the comments have it.
        let by_hand = comment("CREDENTIALS_DIRECTORY=")?;
        let told = printed(&machine, &folder, &by_hand)?;
        ensure!(told.contains(": good"), "{told}");

        // The key that is root's; a port and addresses that are not to be had; and state where nothing can be written.
        let bad = good
            .replace(
                "${CREDENTIALS_DIRECTORY}/gateway.private.pem",
                "keys/gateway.private.pem",
            )
            .replace(
                "address = \"127.0.0.1:3389\"",
                "address = \"192.0.2.7:3389\"",
            );
        let line = |start: &str| -> Result<usize> {
            let found = bad
                .lines()
                .position(|line| line.trim_start().starts_with(start));
            Ok(1 + found.with_context(|| start.to_owned())?)
        };
        let key = line("{ path = \"keys/gateway.private.pem\"")?;
        let address = line("address = ")?;
        for command in [&["config", "check"][..], &["serve"]] {
            let (is_good, told) = run(&bad, command)?;
            ensure!(!is_good);
            let start = "/etc/jetway/jetway.toml";
            for (place, words) in [
                (
                    format!("{start}:{key}: token.keys.1.path: "),
                    "Permission denied",
                ),
                (
                    format!("{start}:{address}: listener.0.address: "),
                    "192.0.2.7:3389",
                ),
            ] {
                let found = told
                    .lines()
                    .any(|line| line.contains(&place) && line.contains(words));
                ensure!(found, "{place}{words}: {told}");
            }
        }
        // By a unit that leaves the state beside the configuration.
        let unit = Unit::parse("jetway.service", &without(&unit_text(), "Environment="))?;
        fs::write(&config, &good)?;
        let folder = machine.etc("jetway");
        for (mode, problem) in [
            (0o755, "Permission denied"),
            (0o777, "Read-only file system"),
        ] {
            fs::set_permissions(&folder, Permissions::from_mode(mode))?;
            for command in ["serve", "config check"] {
                let command =
                    format!("/usr/local/bin/jetway {command} --config /etc/jetway/jetway.toml");
                let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
                let mut ran = unit.run(workspace, &machine, "unwritable", &words)?;
                ensure!(!ran.wait(PATIENCE)?.success());
                let told = ran.output()?;
                for key in ["store.path", "target.pins"] {
                    let told_of = |line: &str| line.contains(key) && line.contains(problem);
                    ensure!(told.lines().any(told_of), "{key}: {told}");
                }
            }
        }
        ensure!(!machine.etc("jetway/jetway.redb").exists());
        Ok(())
    })
}

#[test]
fn the_agent_starts_by_its_unit_and_leads_to_its_target() -> Result<()> {
    workspace::run(|workspace| {
        let machine = Machine::start(workspace, &HOSTS)?;
        let folder = workspace.folder("administrator")?;
        let gateway = install(workspace, &machine, &folder)?;
        let mut service = gateway.start(workspace, &machine)?;
        wait_for(&mut service, "Listening")?;
        let key = r#"curl --silent --show-error --fail --header "Authorization: Bearer Of-An-Operator-1" --data '{"name": "branch-7"}' https://gw.example:3389/jet/enrolments > enrolment"#;
        tool(machine.command(&folder, "bash").args(["-c", key]))?;
        let text = fs::read_to_string(sample("jetway-agent.service"))?;
        let enrol = text
            .lines()
            .find_map(|line| line.strip_prefix("#   jetway agent enrol "))
            .context("how to enrol")?;
        tool(
            machine
                .command(&folder, "bash")
                .args(["-c", &format!("jetway agent enrol {enrol}")]),
        )?;
        let file = machine.etc("systemd/system/jetway-agent.service");
        fs::write(&file, &text)?;
        verify(
            &machine,
            Path::new("/etc/systemd/system/jetway-agent.service"),
        )?;
        let unit = Unit::parse("jetway-agent.service", &text)?;
        let mut agent = unit.start(workspace, &machine)?;
        wait_for(&mut service, "Agent connected")?;
        agent.expect_alive()?;

        let desktop = machine.listen(DESKTOP)?;
        thread::spawn(move || echo(&desktop));
        let token = printed(
            &machine,
            &folder,
            "jetway token new --sign-key keys/issuer.private.pem --jet-ap rdp --jet-agent-id branch-7 --jet-agent-dst pc42:3389",
        )?;
        session(&machine, token.trim())?;
        wait_for(&mut agent, "Session closed")?;
        signal_pid(agent.pid(), Signal::TERM);
        let ended = agent.wait(PATIENCE)?;
        ensure!(ended.success(), "{ended}: {}", agent.output()?);
        Ok(())
    })
}

/// Does what the README and the comments of the unit say, on the machine; the unit.
fn install(workspace: &Workspace, machine: &Machine, folder: &Path) -> Result<Unit> {
    symlink_binary(folder)?;
    let path = format!("PATH={}:$PATH", folder.join("target/release").display());
    let readme = fs::read_to_string(repository("README.md"))?;
    for line in readme
        .lines()
        .filter(|line| line.starts_with("jetway keys new "))
    {
        tool(
            machine
                .command(folder, "bash")
                .args(["-c", &format!("{path} {line}")]),
        )?;
    }
    let text = unit_text();
    // What an editor does to the sample: the lines of the unit's comments, the gateway's certificate, an operator, a list of
    // revocations; and other addresses of this very machine are its desktops.
    let edits = [
        (
            r#"address = "0.0.0.0:3389""#.to_owned(),
            r#"address = "127.0.0.1:3389""#.to_owned(),
        ),
        (
            r#"    { path = "keys/gateway.private.pem", usage = "encrypt" },"#.to_owned(),
            comment("{ path = ")?,
        ),
        (
            "# [tls]\n# certificate = \"gateway.pem\"        # chain, leaf first\n# key = \"gateway.key.pem\"\n".to_owned(),
            format!("[tls]\ncertificate = \"gateway.pem\"\n{}\n", comment("key = ")?),
        ),
        ("# revoked = ".to_owned(), "revoked = ".to_owned()),
        ("allow = []".to_owned(), r#"allow = [{ cidr = "127.0.0.0/8" }]"#.to_owned()),
        (
            "\nkeys = []\n".to_owned(),
            format!(
                "\nkeys = [{{ name = \"portal\", sha256 = \"{}\" }}]\n",
                hex::encode(openssl::sha::sha256(b"Of-An-Operator-1"))
            ),
        ),
    ];
    let mut config = fs::read_to_string(sample("jetway.toml"))?;
    for (from, to) in edits {
        ensure!(
            config.matches(&from).count() == 1,
            "{from} is not in the sample once"
        );
        config = config.replace(&from, &to);
    }
    fs::write(folder.join("jetway.toml"), config)?;
    let authority = Authority::certify(workspace, &["gw.example"])?;
    let (certificate, key) = authority.of_gateway();
    fs::copy(&key, folder.join("keys/gateway.key.pem"))?;
    fs::set_permissions(
        folder.join("keys/gateway.key.pem"),
        Permissions::from_mode(0o600),
    )?;
    // As the administrator of the machine has the company's authority there.
    let authorities = machine.etc("ssl/certs/ca-certificates.crt");
    fs::create_dir_all(authorities.parent().context("a folder")?)?;
    fs::write(authorities, fs::read(authority.certificate())?)?;

    for line in text.lines().filter_map(|line| line.strip_prefix("#   ")) {
        if ["install ", "mkdir ", "cp "]
            .iter()
            .any(|start| line.starts_with(start))
        {
            tool(machine.command(folder, "bash").args(["-c", line]))?;
        }
    }
    fs::copy(&certificate, machine.etc("jetway/gateway.pem"))?;
    fs::copy(
        folder.join("keys/gateway.key.pem"),
        machine.etc("jetway/keys/gateway.key.pem"),
    )?;
    fs::write(machine.etc("jetway/revoked.json"), "{}")?;
    let with_tls = text.replace("\n#LoadCredential=", "\nLoadCredential=");
    ensure!(with_tls != text, "no line for the key of [tls]");
    fs::write(machine.etc("systemd/system/jetway.service"), &with_tls)?;
    verify(machine, Path::new("/etc/systemd/system/jetway.service"))?;
    Unit::parse("jetway.service", &with_tls)
}

/// What the comments of the gateway's unit say to type.
fn comment(start: &str) -> Result<String> {
    unit_text()
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .find(|line| line.starts_with(start))
        .map(str::to_owned)
        .with_context(|| format!("a comment that begins with {start}"))
}

fn unit_text() -> String {
    fs::read_to_string(sample("jetway.service")).unwrap_or_default()
}

/// A text without the lines that begin so.
fn without(text: &str, start: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with(start));
    lines.map(|line| format!("{line}\n")).collect()
}

pub(crate) fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn sample(name: &str) -> PathBuf {
    repository("samples").join(name)
}

/// Where `cargo build --release` puts it.
fn symlink_binary(folder: &Path) -> Result<()> {
    let place = folder.join("target/release");
    fs::create_dir_all(&place)?;
    Ok(symlink(BINARY, place.join("jetway"))?)
}

fn state(workspace: &Workspace) -> PathBuf {
    workspace.path("machine/lib/private/jetway")
}

pub(crate) fn wait_for(process: &mut Process, message: &str) -> Result<()> {
    until(message, PATIENCE, || {
        process.expect_alive()?;
        Ok(process.output()?.contains(message).then_some(()))
    })
}

fn printed(machine: &Machine, folder: &Path, command: &str) -> Result<String> {
    let printed = tool(machine.command(folder, "bash").args(["-c", command]))?;
    Ok(String::from_utf8(printed)?)
}

/// The token of the README's user.
fn user_token(machine: &Machine, folder: &Path) -> Result<String> {
    let token = printed(
        machine,
        folder,
        "jetway token new --sign-key keys/issuer.private.pem --encrypt-key keys/gateway.public.pem \
         --jet-cm fwd --jet-ap rdp --dst-hst pc42.corp.example:3389 --sub alice",
    )?;
    Ok(token.trim().to_owned())
}

/// One session to a desktop that echoes.
pub(crate) fn session(machine: &Machine, token: &str) -> Result<()> {
    let pdu = preconnection::encode_v2(0, token)?;
    first_flight(machine, GATEWAY, &pdu, None)
}

/// The same by a ticket, as a routing token.
pub(crate) fn session_by_ticket(machine: &Machine, ticket: &str) -> Result<()> {
    first_flight(machine, GATEWAY, &[], Some(ticket))
}

/// The same at `address`, with nothing to show.
pub(crate) fn session_at(machine: &Machine, address: &str) -> Result<()> {
    first_flight(machine, address, &[], None)
}

const GATEWAY: &str = "127.0.0.1:3389";

fn first_flight(
    machine: &Machine,
    address: &str,
    preconnection: &[u8],
    ticket: Option<&str>,
) -> Result<()> {
    let mut client = machine.connect(address)?;
    client.write_all(preconnection)?;
    let request = ConnectionRequest {
        routing_token: ticket.map(|ticket| ticket.as_bytes().to_vec().into()),
        mstshash: ticket.is_none().then(|| "alice".to_owned()),
        negotiation: Some(NegotiationRequest {
            flags: 0,
            requested_protocols: 3,
        }),
        ..ConnectionRequest::default()
    };
    client.write_all(&request.encode()?)?;
    let answer = confirm(&mut client)?;
    ensure!(
        matches!(answer, ConnectionConfirm::Selected { .. }),
        "{answer:?}"
    );
    client.write_all(HELLO)?;
    let mut echo = vec![0; HELLO.len()];
    client.read_exact(&mut echo)?;
    ensure!(echo == HELLO);
    Ok(())
}

/// The first bytes of a TLS ClientHello.
const HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00];

fn confirm(stream: &mut TcpStream) -> Result<ConnectionConfirm> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        if let Some((confirm, _)) = negotiation::decode_confirm(&bytes)? {
            return Ok(confirm);
        }
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
}

/// A desktop that selects TLS and echoes from then on.
pub(crate) fn echo(desktop: &TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = desktop.accept()?;
        let mut header = [0; 4];
        stream.read_exact(&mut header)?;
        let rest = usize::from(u16::from_be_bytes([header[2], header[3]])).saturating_sub(4);
        stream.read_exact(&mut vec![0; rest])?;
        let selected = ConnectionConfirm::Selected {
            flags: 0,
            protocol: 1,
        };
        stream.write_all(&selected.encode())?;
        thread::spawn(move || -> Result<()> {
            let mut back = stream.try_clone()?;
            std::io::copy(&mut stream, &mut back)?;
            back.shutdown(std::net::Shutdown::Write)?;
            Ok(())
        });
    }
}
