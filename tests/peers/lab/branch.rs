//! A place that nothing can reach: a network namespace with a desktop and an agent in it, and a gateway at the end of its one wire.
//! Users may be in another, from which nothing else can be reached, either.
//!
//! Both halves are this very program. The half inside is the test `agent::desktop_of_the_namespace`, run in the namespace by
//! [`Branch::start`]; the two talk by files in one folder.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jetway::peer::Site;
use jetway_lab::wait::{PATIENCE, until};
use serde_json::{Value, json};

use super::freerdp::{FreeRdp, Version};
use super::gateway::{API_KEY, BINARY, Gateway, jetway, shows_secret};
use super::namespace::Namespace;
use super::port::Port;
use super::process::Process;
use super::screenshot::Picture;
use super::target::{self, Place, TargetKind};
use super::workspace::Workspace;
use super::xrdp;
use crate::redirects::Broker;

/// The agent's name.
pub(crate) const AGENT: &str = "branch-7";

/// The test that is the half inside.
const HALF_INSIDE: &str = "agent::desktop_of_the_namespace";

/// The folder by which the two halves talk.
const FOLDER: &str = "JETWAY_PEERS_NAMESPACE";

/// What the half outside has written for the half inside, and the other way round.
const ORDER: &str = "order.json";
const PLACE: &str = "place.json";
const DONE: &str = "done";

/// A desktop starts, is visited, and goes.
const LIFE: Duration = Duration::from_secs(120);

/// What there is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The desktop.
    pub(crate) kind: TargetKind,
    /// Which client is to take a picture of it, beside it, before anybody else comes.
    pub(crate) pictured_by: Option<Version>,
    /// Whether there is a broker, too, that sends its clients to the desktop.
    pub(crate) broker: bool,
    /// Whether the gateway's log is at its most talkative; the agent's is.
    pub(crate) talkative: bool,
}

/// The half outside.
#[derive(Debug)]
pub(crate) struct Branch {
    _inside: Inside,
    pub(crate) gateway: Gateway,
    pub(crate) place: Place,
    /// SHA-256 of the desktop's certificate, where it has TLS alone.
    pub(crate) certificate: Option<String>,
    /// What the client inside has seen.
    pub(crate) picture: Option<Picture>,
    /// The port of the broker.
    pub(crate) broker: Option<u16>,
    agent: Agent,
    port: Port,
    namespace: Namespace,
    pub(crate) users: Namespace,
}

/// The agent's process.
#[derive(Debug)]
struct Agent {
    pid: u32,
    log: PathBuf,
}

/// Ends the half inside when it goes out of scope.
#[derive(Debug)]
struct Inside {
    process: Process,
    folder: PathBuf,
}

impl Branch {
    pub(crate) fn start(workspace: &Workspace, wanted: Wanted) -> Result<Self> {
        let namespace = Namespace::of_targets()?;
        let users = Namespace::of_users()?;
        let port = Port::free()?;
        let addresses = [namespace.outside(), users.outside()];
        // Brokers prove nothing, so the gateway is told of this one before it starts.
        let broker = wanted.broker.then(Port::free).transpose()?;
        let tls_only: Vec<String> = broker
            .iter()
            .map(|port| format!("agent {AGENT} localhost:{}", port.number()))
            .collect();
        let (gateway, ca) =
            Gateway::start_for_networks(workspace, &addresses, &port, &tls_only, wanted.talkative)?;
        let url = format!("https://{}:{}", namespace.outside(), port.number());
        let key = enrol(workspace, &gateway, &url, Some(&ca))?;
        let folder = workspace.folder("namespace")?;
        let pictured_by = wanted.pictured_by.map(|version| version == Version::Two);
        let order = json!({
            "xrdp": wanted.kind == TargetKind::Xrdp,
            "pictured_by_two": pictured_by,
            "broker": broker.as_ref().map(Port::number),
            "url": url,
            "ca": ca,
            "key": key,
        });
        fs::write(folder.join(ORDER), order.to_string())?;
        let program = std::env::current_exe()?;
        let process = Process::start(
            workspace,
            "namespace",
            namespace
                .command(program.to_str().context("a path in UTF-8")?)
                .args(["--exact", HALF_INSIDE, "--nocapture"])
                .env(FOLDER, &folder),
        )?;
        let mut inside = Inside { process, folder };
        let told = inside.wait_for_report()?;
        let place = place(&told)?;
        let picture = told["picture"].as_str();
        let picture = picture.map(|path| Picture::read(Path::new(path)));
        gateway.wait_for("Agent connected", 1)?;
        Ok(Self {
            gateway,
            place,
            certificate: told["certificate"].as_str().map(str::to_owned),
            picture: picture.transpose()?,
            broker: serde_json::from_value(told["broker"].clone())?,
            agent: Agent {
                pid: serde_json::from_value(told["agent"].clone())?,
                log: text(&told, "log")?.into(),
            },
            _inside: inside,
            port,
            namespace,
            users,
        })
    }

    /// An error where the desktop can be reached without the agent.
    pub(crate) fn expect_unreachable(&self) -> Result<()> {
        let Self {
            namespace, users, ..
        } = self;
        let target = self.place.port;
        let direct = TcpStream::connect((namespace.inside(), target));
        ensure!(direct.is_err(), "the machine leads into the namespace");
        only_the_gateway_is_reached(users, namespace, self.port.number(), target)
    }

    /// The gateway, for users in their namespace.
    pub(crate) fn address_for_users(&self) -> String {
        format!("{}:{}", self.users.outside(), self.port.number())
    }

    /// What the agent has logged.
    pub(crate) fn agents_log(&self) -> Result<String> {
        fs::read_to_string(&self.agent.log).with_context(|| self.agent.log.display().to_string())
    }

    /// None of `secrets` is in what gateway or agent have logged or written, in their command lines or environments.
    pub(crate) fn keeps_secret(&self, secrets: &[&str]) -> Result<()> {
        self.gateway.keeps_secret(secrets)?;
        let mut seen = self.agents_log()?.into_bytes();
        for file in ["cmdline", "environ"] {
            seen.extend(fs::read(format!("/proc/{}/{file}", self.agent.pid))?);
        }
        ensure!(
            shows_secret(&seen, AGENT),
            "the search does not even find what is there"
        );
        for secret in secrets {
            ensure!(
                !shows_secret(&seen, secret),
                "the agent shows a secret: {secret}"
            );
        }
        Ok(())
    }
}

/// A .rdp file by `jetway rdp --via`, whose ticket leads to `target` behind the agent.
pub(crate) fn rdp_file(
    workspace: &Workspace,
    gateway: &Gateway,
    target: &str,
    further: &[&OsStr],
) -> Result<String> {
    let out = workspace.path("via.rdp");
    let address = gateway.address();
    let url = format!("http://{address}");
    let mut arguments = vec![OsStr::new("rdp")];
    for argument in [
        "--full-address",
        &address,
        "--via",
        AGENT,
        "--target",
        target,
    ] {
        arguments.push(OsStr::new(argument));
    }
    arguments.extend([OsStr::new("--sign-key"), gateway.keys().signing.as_os_str()]);
    arguments.extend([OsStr::new("--gateway"), OsStr::new(&url)]);
    arguments.extend([OsStr::new("--out"), out.as_os_str()]);
    arguments.extend(further);
    jetway(&arguments)?;
    Ok(out.display().to_string())
}

/// The same with credentials, by which the gateway logs on to `target`.
pub(crate) fn logon_file(
    workspace: &Workspace,
    gateway: &Gateway,
    target: &str,
    (user, password): (&str, &str),
    further: &[&str],
) -> Result<String> {
    let file = workspace.write("target.password", password)?;
    let mut arguments = vec![OsStr::new("--dst-usr"), OsStr::new(user)];
    arguments.extend([OsStr::new("--dst-pwd-file"), file.as_os_str()]);
    let public = gateway.keys().encryption_public.as_os_str();
    arguments.extend([OsStr::new("--encrypt-key"), public]);
    arguments.extend(further.iter().map(OsStr::new));
    rdp_file(workspace, gateway, target, &arguments)
}

/// From where the users are nothing leads to the targets, nor back, but both reach the gateway.
pub(crate) fn only_the_gateway_is_reached(
    users: &Namespace,
    targets: &Namespace,
    gateway: u16,
    target: u16,
) -> Result<()> {
    for (from, to, port) in [
        (users, targets.inside(), target),
        (users, targets.outside(), gateway),
        (targets, users.inside(), target),
        (targets, users.outside(), gateway),
    ] {
        ensure!(!from.reaches(to, port)?, "{from:?} reaches {to}:{port}");
    }
    for from in [users, targets] {
        ensure!(from.reaches(from.outside(), gateway)?, "{from:?} is alone");
    }
    Ok(())
}

/// Enrols an agent by `jetway agent enrol`; returns its key.
pub(crate) fn enrol(
    workspace: &Workspace,
    gateway: &Gateway,
    url: &str,
    ca: Option<&Path>,
) -> Result<PathBuf> {
    let site = Site::new(&format!("http://{}", gateway.address()).parse()?, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = json!({ "name": AGENT }).to_string();
    let method = hyper::Method::POST;
    let invited = site.request(method, "/jet/enrolments", API_KEY, body);
    let invited: Value = runtime.block_on(invited)?;
    let enrolment = invited["enrolment"].as_str().context("an enrolment")?;
    let file = workspace.write("enrolment", enrolment)?;
    let out = workspace.path("agent");
    let mut arguments = vec![OsStr::new("agent"), OsStr::new("enrol")];
    arguments.extend([OsStr::new("--gateway"), OsStr::new(url)]);
    arguments.extend([OsStr::new("--enrolment-file"), file.as_os_str()]);
    arguments.extend([OsStr::new("--out"), out.as_os_str()]);
    if let Some(ca) = ca {
        arguments.extend([OsStr::new("--ca"), ca.as_os_str()]);
    }
    jetway(&arguments)?;
    Ok(out.join("agent.private.pem"))
}

impl Inside {
    /// What the half inside says, once it is there.
    fn wait_for_report(&mut self) -> Result<Value> {
        let file = self.folder.join(PLACE);
        let patience = PATIENCE.saturating_mul(2);
        let told = until("a desktop in the namespace", patience, || {
            self.process.expect_alive()?;
            Ok(fs::read_to_string(&file).ok())
        })?;
        Ok(serde_json::from_str(&told)?)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // It ends what it has started; a process that is told to end would leave that behind.
        let _ = fs::write(self.folder.join(DONE), "");
        let _ = self.process.wait(PATIENCE);
    }
}

fn place(told: &Value) -> Result<Place> {
    Ok(Place {
        port: serde_json::from_value(told["port"].clone())?,
        user: text(told, "user")?,
        password: text(told, "password")?,
        background: serde_json::from_value(told["background"].clone())?,
        writable: text(told, "writable")?.into(),
    })
}

fn text(value: &Value, name: &str) -> Result<String> {
    let text = value[name].as_str().map(str::to_owned);
    text.with_context(|| format!("no {name}"))
}

/// The folder of the half outside, where this process is the half inside.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// The half inside: a desktop, and the agent beside it, until the other half is done.
pub(crate) fn be_inside(workspace: &Workspace, folder: &Path) -> Result<()> {
    let order: Value = serde_json::from_str(&fs::read_to_string(folder.join(ORDER))?)?;
    let kind = if order["xrdp"] == true {
        TargetKind::Xrdp
    } else {
        TargetKind::ShadowNla
    };
    let target = target::start(workspace, kind)?;
    let place = target.place();
    let picture = match order["pictured_by_two"].as_bool() {
        Some(two) => {
            let version = if two { Version::Two } else { Version::Three };
            let mut direct = FreeRdp::direct(workspace, version, place)?;
            let picture = direct.wait_for_desktop(place)?;
            direct.end();
            let path = folder.join("picture.ppm");
            picture.save(&path)?;
            Some(path)
        }
        None => None,
    };
    let broker: Option<u16> = serde_json::from_value(order["broker"].clone())?;
    let broker = broker
        .map(|port| Broker::start_at(port, "127.0.0.1"))
        .transpose()?;
    let mut command = Command::new(BINARY);
    command
        .args(["agent", "run", "--name", AGENT, "--log-filter", "trace"])
        .args(["--gateway", &text(&order, "url")?])
        .args(["--ca", &text(&order, "ca")?])
        .args(["--key", &text(&order, "key")?])
        .args(["--target", &place.address()]);
    if let Some(broker) = &broker {
        // By another name than the desktop's, so that the name alone tells them apart.
        command.args(["--target", &format!("localhost:{}", broker.port)]);
    }
    let mut agent = Process::start(workspace, "agent", &mut command)?;
    let certificate = match kind {
        TargetKind::Xrdp => Some(xrdp::certificate(workspace)?),
        TargetKind::ShadowNla | TargetKind::ShadowTls => None,
    };
    let told = json!({
        "port": place.port,
        "user": place.user,
        "password": place.password,
        "background": place.background,
        "writable": place.writable,
        "picture": picture,
        "broker": broker.as_ref().map(|broker| broker.port),
        "agent": agent.pid(),
        "log": workspace.path("agent.log"),
        "certificate": certificate,
    });
    let unfinished = folder.join("place.new");
    fs::write(&unfinished, told.to_string())?;
    fs::rename(unfinished, folder.join(PLACE))?;
    until("the visit is over", LIFE, || {
        agent.expect_alive()?;
        Ok(folder.join(DONE).exists().then_some(()))
    })
}
