//! What `jet_ap` announces, by the programs that speak it: OpenSSH's client and server, and a VNC server; RDP has files of its own.
//!
//! Each goes to its server in all ways: dialled by the gateway, behind a preconnection PDU or by `jetway connect`, met in a rendezvous,
//! and behind an agent.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context, Result, ensure};
use jetway::jet::exchange::Operation;
use jetway::rdp::preconnection;
use jetway_lab::certificate::Identity;
use jetway_lab::tls::thumbprint;
use jetway_lab::wait::PATIENCE;

use crate::lab::branch::{AGENT, enrol};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{BINARY, Gateway, jetway};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::port::Port;
use crate::lab::process::{Process, tool};
use crate::lab::rendezvous::Rendezvous;
use crate::lab::target::{self, TargetKind};
use crate::lab::workspace::{self, Workspace};

/// Seconds after which OpenSSH's client, or what leads it to the gateway, is ended.
const PATIENCE_S: &str = "30";

/// What is run by ssh: bulk, and an exit status that is neither good nor ssh's own.
const REMOTE: &str = "head -c 3000000 /dev/zero | sha256sum; exit 7";

#[test]
fn openssh_reaches_openssh_that_the_gateway_dials() -> Result<()> {
    workspace::run(|workspace| {
        let (gateway, server) = (Gateway::start(workspace)?, SshServer::start(workspace)?);
        let token = forward(&gateway, "ssh", &server.address())?;
        server.is_reached(workspace, &with_token(workspace, &gateway, &token)?)?;
        all_went_well(&gateway)
    })
}

/// The example of the README.
#[test]
fn openssh_reaches_openssh_that_the_gateway_dials_by_jetway_connect() -> Result<()> {
    workspace::run(|workspace| {
        let (gateway, server) = (Gateway::start(workspace)?, SshServer::start(workspace)?);
        let token = forward(&gateway, "ssh", &server.address())?;
        let token = workspace.write("user.jwt", token)?;
        let proxy = format!(
            "{BINARY} connect --gateway http://{} --token-file {}",
            gateway.address(),
            token.display()
        );
        server.is_reached(workspace, &proxy)?;
        all_went_well(&gateway)
    })
}

#[test]
fn a_vnc_client_reaches_xvnc_that_the_gateway_dials_by_jetway_connect() -> Result<()> {
    workspace::run(|workspace| {
        let (gateway, server) = (Gateway::start(workspace)?, VncServer::start(workspace)?);
        let token = forward(&gateway, "vnc", &server.address())?;
        let (_connect, local) = connect_listening(workspace, &gateway, &token)?;
        server.is_reached(&mut connected(local.number())?)?;
        all_went_well(&gateway)
    })
}

#[test]
fn freerdp2_reaches_an_nla_desktop_by_jetway_connect_with_nothing_of_the_gateway() -> Result<()> {
    freerdp_reaches_an_nla_desktop_by_jetway_connect(Version::Two, false)
}

#[test]
fn freerdp3_reaches_an_nla_desktop_by_jetway_connect_with_nothing_of_the_gateway() -> Result<()> {
    freerdp_reaches_an_nla_desktop_by_jetway_connect(Version::Three, false)
}

#[test]
fn freerdp3_reaches_an_nla_desktop_by_jetway_connect_and_a_token_of_its_own() -> Result<()> {
    freerdp_reaches_an_nla_desktop_by_jetway_connect(Version::Three, true)
}

fn freerdp_reaches_an_nla_desktop_by_jetway_connect(
    version: Version,
    own_token: bool,
) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        let place = target.place();
        let gateway = Gateway::start(workspace)?;
        let token = forward(&gateway, "rdp", &place.address())?;
        let (_connect, local) = connect_listening(workspace, &gateway, &token)?;
        let mut arguments = vec![format!("/v:127.0.0.1:{}", local.number())];
        if own_token {
            arguments.push(format!("/pcb:{token}"));
        }
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, place)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        all_went_well(&gateway)
    })
}

/// TLS is between the gateway and the server that the token pins, and the client speaks without.
#[test]
fn curl_reads_a_page_of_an_https_server_by_jetway_connect_and_target_tls() -> Result<()> {
    workspace::run(|workspace| {
        let gateway = Gateway::start(workspace)?;
        let identity = Identity::self_signed(&["inside.test"]);
        let [certificate, key] = identity.write(&workspace.path(""), ["https.pem", "https.key"]);
        let port = Port::free()?;
        let address = format!("127.0.0.1:{}", port.number());
        let mut server = Process::start(
            workspace,
            "https",
            Command::new("openssl")
                .args(["s_server", "-www", "-accept", &address, "-cert"])
                .arg(certificate)
                .arg("-key")
                .arg(key),
        )?;
        port.wait_for_listener(|| server.expect_alive())?;
        let read = |pin: &str| -> Result<Output> {
            let claims = ["--jet-cm", "fwd", "--jet-ap", "none", "--dst-hst", &address];
            let token = token(&gateway, &[&claims[..], &["--cert-thumb256", pin]].concat())?;
            let options = ["--target-tls"];
            let (_connect, local) = connect_listening_with(workspace, &gateway, &token, &options)?;
            let url = format!("http://127.0.0.1:{}/", local.number());
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--noproxy", "*", "--max-time", PATIENCE_S, &url]);
            curl.output().context("start curl")
        };
        let page = read(&thumbprint(&identity))?;
        let text = String::from_utf8_lossy(&page.stdout).into_owned();
        ensure!(page.status.success(), "{page:?}");
        ensure!(text.contains("Protocol  : TLSv1.3"), "{text}");
        all_went_well(&gateway)?;
        // Another server than the one that is pinned is told nothing.
        let page = read(&"5a".repeat(32))?;
        ensure!(page.stdout.is_empty(), "{page:?}");
        let refused = gateway.wait_for(REFUSED, 1)?;
        let rule = refused[0].field("rule");
        ensure!(rule.as_deref() == Some("target-certificate"), "{refused:?}");
        Ok(())
    })
}

/// `jetway connect` on a port of this machine.
fn connect_listening(
    workspace: &Workspace,
    gateway: &Gateway,
    token: &str,
) -> Result<(Process, Port)> {
    connect_listening_with(workspace, gateway, token, &[])
}

/// The same with further options.
fn connect_listening_with(
    workspace: &Workspace,
    gateway: &Gateway,
    token: &str,
    options: &[&str],
) -> Result<(Process, Port)> {
    let local = Port::free()?;
    let token = workspace.write("user.jwt", token)?;
    let mut connect = Process::start(
        workspace,
        "connect",
        Command::new(BINARY)
            .args([
                "connect",
                "--gateway",
                &format!("http://{}", gateway.address()),
            ])
            .arg("--token-file")
            .arg(&token)
            .args(["--listen", &format!("127.0.0.1:{}", local.number())])
            .args(options),
    )?;
    local.wait_for_listener(|| connect.expect_alive())?;
    Ok((connect, local))
}

#[test]
fn openssh_meets_openssh_in_a_rendezvous() -> Result<()> {
    workspace::run(|workspace| {
        let (gateway, server) = (Gateway::start(workspace)?, SshServer::start(workspace)?);
        let met = Rendezvous::create_for(&gateway, &["--jet-ap", "ssh"])?;
        accept(&met, server.port.number())?;
        let token = met.token().to_owned();
        server.is_reached(workspace, &with_token(workspace, &gateway, &token)?)?;
        all_went_well(&gateway)
    })
}

/// The example of the README.
#[test]
fn openssh_reaches_openssh_behind_an_agent_by_jetway_connect() -> Result<()> {
    workspace::run(|workspace| {
        let server = SshServer::start(workspace)?;
        let branch = Branch::start(workspace, &server.address())?;
        let token = branch.token(workspace, "ssh", &server.address())?;
        let proxy = format!(
            "{BINARY} connect --gateway {} --ca {} --token-file {}",
            branch.url,
            branch.ca.display(),
            token.display()
        );
        server.is_reached(workspace, &proxy)?;
        all_went_well(&branch.gateway)
    })
}

#[test]
fn a_vnc_client_reaches_xvnc_that_the_gateway_dials() -> Result<()> {
    workspace::run(|workspace| {
        let (gateway, server) = (Gateway::start(workspace)?, VncServer::start(workspace)?);
        let token = forward(&gateway, "vnc", &server.address())?;
        server.is_reached(&mut announced(&gateway, &token)?)?;
        all_went_well(&gateway)
    })
}

#[test]
fn a_vnc_client_meets_xvnc_in_a_rendezvous() -> Result<()> {
    workspace::run(|workspace| {
        let (gateway, server) = (Gateway::start(workspace)?, VncServer::start(workspace)?);
        for binary in [true, false] {
            let met = Rendezvous::create_for(&gateway, &["--jet-ap", "vnc"])?;
            accept(&met, server.port.number())?;
            let mut client = if binary {
                met.peer(Operation::Connect, "tcp")?.stream
            } else {
                announced(&gateway, met.token())?
            };
            server.is_reached(&mut client)?;
        }
        all_went_well(&gateway)
    })
}

#[test]
fn a_vnc_client_reaches_xvnc_behind_an_agent_by_jetway_connect() -> Result<()> {
    workspace::run(|workspace| {
        let server = VncServer::start(workspace)?;
        let branch = Branch::start(workspace, &server.address())?;
        let token = branch.token(workspace, "vnc", &server.address())?;
        let local = Port::free()?;
        let mut connect = Process::start(
            workspace,
            "connect",
            Command::new(BINARY)
                .args(["connect", "--gateway", &branch.url, "--ca"])
                .arg(&branch.ca)
                .arg("--token-file")
                .arg(&token)
                .args(["--listen", &format!("127.0.0.1:{}", local.number())]),
        )?;
        local.wait_for_listener(|| connect.expect_alive())?;
        server.is_reached(&mut connected(local.number())?)?;
        all_went_well(&branch.gateway)
    })
}

/// A gateway, and an agent of it.
struct Branch {
    gateway: Gateway,
    ca: PathBuf,
    url: String,
    _agent: Process,
    _port: Port,
}

impl Branch {
    fn start(workspace: &Workspace, target: &str) -> Result<Self> {
        let port = Port::free()?;
        let (gateway, ca) =
            Gateway::start_for_networks(workspace, &["127.0.0.1"], &port, &[], false)?;
        let url = format!("https://127.0.0.1:{}", port.number());
        let key = enrol(workspace, &gateway, &url, Some(&ca))?;
        let agent = Process::start(
            workspace,
            "agent",
            Command::new(BINARY)
                .args(["agent", "run", "--name", AGENT, "--target", target])
                .args(["--gateway", &url, "--ca"])
                .arg(&ca)
                .arg("--key")
                .arg(key),
        )?;
        gateway.wait_for("Agent connected", 1)?;
        Ok(Self {
            gateway,
            ca,
            url,
            _agent: agent,
            _port: port,
        })
    }

    fn token(&self, workspace: &Workspace, protocol: &str, target: &str) -> Result<PathBuf> {
        let token = token(
            &self.gateway,
            &[
                "--jet-ap",
                protocol,
                "--jet-agent-id",
                AGENT,
                "--jet-agent-dst",
                target,
            ],
        )?;
        workspace.write("user.jwt", token)
    }
}

/// OpenSSH's server, with a host key and a user's key of its own.
struct SshServer {
    port: Port,
    key: PathBuf,
    _process: Process,
}

impl SshServer {
    fn start(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.folder("sshd")?;
        let keys = ["host", "user"].map(|name| folder.join(name));
        for key in &keys {
            tool(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(key),
            )?;
        }
        let [host, key] = keys;
        fs::copy(key.with_extension("pub"), folder.join("authorized"))?;
        // Where it lets go of its rights.
        fs::create_dir_all("/run/sshd")?;
        let port = Port::free()?;
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n",
            port.number(),
            host.display(),
            folder.join("authorized").display(),
        );
        let config = workspace.write("sshd/config", config)?;
        let mut process = Process::start(
            workspace,
            "sshd-server",
            Command::new("/usr/sbin/sshd")
                .args(["-D", "-e", "-f"])
                .arg(config),
        )?;
        port.wait_for_listener(|| process.expect_alive())?;
        Ok(Self {
            port,
            key,
            _process: process,
        })
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Runs something there, by way of `proxy`.
    fn is_reached(&self, workspace: &Workspace, proxy: &str) -> Result<()> {
        let ssh = |proxy: &str| -> Result<Output> {
            let output = Command::new("timeout")
                .args([PATIENCE_S, "ssh", "-F", "none", "-i"])
                .arg(&self.key)
                .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
                .args(["-o", "UserKnownHostsFile=/dev/null"])
                .args([
                    "-o",
                    &format!("ProxyCommand={proxy}"),
                    "root@server",
                    REMOTE,
                ])
                .output()
                .context("start ssh (tests/install.sh peers installs it)")?;
            fs::write(workspace.path("ssh.log"), &output.stderr)?;
            Ok(output)
        };
        let direct = ssh(&format!("socat - TCP:{}", self.address()))?;
        ensure!(
            direct.status.code() == Some(7),
            "without a gateway: {direct:?}"
        );
        let output = ssh(proxy)?;
        ensure!(output.status.code() == Some(7), "{output:?}");
        ensure!(output.stdout == direct.stdout, "{output:?}");
        Ok(())
    }
}

/// A VNC server that has a display of its own.
struct VncServer {
    port: Port,
    _process: Process,
}

/// What its desktop is called.
const DESKTOP: &str = "announced as vnc";

impl VncServer {
    fn start(workspace: &Workspace) -> Result<Self> {
        let port = Port::free()?;
        // Displays of that number nobody has: it is that of a port that is kept.
        let display = format!(":{}", port.number());
        let mut process = Process::start(
            workspace,
            "xvnc",
            Command::new("Xvnc")
                .args([&display, "-rfbport", &port.number().to_string()])
                .args([
                    "-localhost",
                    "-SecurityTypes",
                    "None",
                    "-geometry",
                    "640x480",
                ])
                .args(["-nolisten", "tcp", "-desktop", DESKTOP]),
        )?;
        port.wait_for_listener(|| process.expect_alive())?;
        Ok(Self {
            port,
            _process: process,
        })
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Opens the desktop as RFC 6143 7.1 to 7.3 has it, and has a picture sent.
    fn is_reached(&self, client: &mut TcpStream) -> Result<()> {
        let read = |client: &mut TcpStream, count: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; count];
            client.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        ensure!(read(client, 12)? == b"RFB 003.008\n");
        client.write_all(b"RFB 003.008\n")?;
        let count = read(client, 1)?[0];
        let types = read(client, count.into())?;
        ensure!(types.contains(&1), "{types:?}");
        client.write_all(&[1])?;
        ensure!(read(client, 4)? == [0; 4], "the handshake is done");
        // ClientInit: the desktop may be shared.
        client.write_all(&[1])?;
        let init = read(client, 24)?;
        ensure!(init[..4] == [640_u16.to_be_bytes(), 480_u16.to_be_bytes()].concat());
        let name = read(client, init[23].into())?;
        ensure!(name == DESKTOP.as_bytes(), "{name:?}");
        // FramebufferUpdateRequest: a corner of 16 by 16, whole.
        client.write_all(&[3, 0, 0, 0, 0, 0, 0, 16, 0, 16])?;
        ensure!(read(client, 4)?[..2] == [0, 0], "a FramebufferUpdate");
        Ok(())
    }
}

/// A token by `jetway token new`.
fn token(gateway: &Gateway, claims: &[&str]) -> Result<String> {
    let mut arguments: Vec<&OsStr> = ["token", "new"]
        .iter()
        .chain(claims)
        .map(OsStr::new)
        .collect();
    arguments.extend([OsStr::new("--sign-key"), gateway.keys().signing.as_os_str()]);
    jetway(&arguments)
}

fn forward(gateway: &Gateway, protocol: &str, target: &str) -> Result<String> {
    token(
        gateway,
        &["--jet-cm", "fwd", "--jet-ap", protocol, "--dst-hst", target],
    )
}

/// A program for ssh that shows the token and then passes on what ssh says.
fn with_token(workspace: &Workspace, gateway: &Gateway, token: &str) -> Result<String> {
    let pdu = workspace.write("pdu", preconnection::encode_v2(0, token)?)?;
    let script = format!(
        "cat {pdu} - | socat - TCP:{gateway}",
        pdu = pdu.display(),
        gateway = gateway.address()
    );
    let script: &Path = &workspace.write("proxy.sh", script)?;
    Ok(format!("sh {}", script.display()))
}

/// A connection that has shown the token.
fn announced(gateway: &Gateway, token: &str) -> Result<TcpStream> {
    let address = gateway.address();
    let (_host, port) = address.rsplit_once(':').context("a port")?;
    let mut stream = connected(port.parse()?)?;
    stream.write_all(&preconnection::encode_v2(0, token)?)?;
    Ok(stream)
}

fn connected(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// An acceptor that leads to a port of this machine.
fn accept(met: &Rendezvous<'_>, port: u16) -> Result<()> {
    let acceptor = met.peer(Operation::Accept, "tcp")?.stream;
    let target = TcpStream::connect(("127.0.0.1", port))?;
    acceptor.set_read_timeout(None)?;
    let ways = [
        (acceptor.try_clone()?, target.try_clone()?),
        (target, acceptor),
    ];
    for (mut from, mut to) in ways {
        // They end with their connections, and those with the gateway.
        thread::spawn(move || {
            let _ended = std::io::copy(&mut from, &mut to);
            let _told = to.shutdown(std::net::Shutdown::Write);
        });
    }
    Ok(())
}

fn all_went_well(gateway: &Gateway) -> Result<()> {
    gateway.wait_for(CLOSED, 1)?;
    let refused = gateway.logged(REFUSED)?;
    ensure!(refused.is_empty(), "{refused:?}");
    Ok(())
}
