//! FreeRDP to desktops that nothing can reach: behind `jetway agent run`, in a network namespace of their own.
//!
//! The namespace has one wire, to the gateway. Desktop and agent run in it, started by this very program: the test named
//! [`desktop_of_the_namespace`] does nothing when it is run by itself.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jetway::peer::Site;
use serde_json::{Value, json};

use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{API_KEY, BINARY, Gateway, jetway};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::namespace::Namespace;
use crate::lab::port::Port;
use crate::lab::process::Process;
use crate::lab::target::{self, Place, TargetKind};
use crate::lab::wait::{PATIENCE, until};
use crate::lab::workspace::{self, Workspace};

/// The folder by which the two halves of a test talk.
const FOLDER: &str = "JETWAY_PEERS_NAMESPACE";

/// What the half outside has written for the half inside, and the other way round.
const ORDER: &str = "order.json";
const PLACE: &str = "place.json";
const DONE: &str = "done";

/// A desktop starts, is visited, and goes.
const LIFE: Duration = Duration::from_secs(120);

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
        let namespace = Namespace::create()?;
        let port = Port::free()?;
        let (gateway, ca) = Gateway::start_for_agents(workspace, namespace.outside(), &port)?;
        let url = format!("https://{}:{}", namespace.outside(), port.number());
        let key = enrol(workspace, &gateway, &url, &ca)?;
        let folder = workspace.folder("namespace")?;
        let order = json!({ "xrdp": kind == TargetKind::Xrdp, "url": url, "ca": ca, "key": key });
        fs::write(folder.join(ORDER), order.to_string())?;
        let program = std::env::current_exe()?;
        let inside = Process::start(
            workspace,
            "namespace",
            namespace
                .command(program.to_str().context("a path in UTF-8")?)
                .args(["--exact", "agent::desktop_of_the_namespace", "--nocapture"])
                .env(FOLDER, &folder),
        )?;
        let mut inside = Inside { inside, folder };
        let place = inside.place()?;
        gateway.wait_for("Agent connected", 1)?;

        // Nothing leads there but the agent.
        let direct = TcpStream::connect((namespace.inside(), place.port));
        ensure!(direct.is_err(), "the machine leads into the namespace");
        let arguments = [rdp_file(workspace, &gateway, &place)?];
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, &place)?;
        client.wait_for_desktop(&place)?;
        client.type_until_it_arrives(&place)?;
        client.end();

        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(closed.len() == 1, "one closing line: {closed:?}");
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        ensure!(closed[0].field("agent").as_deref() == Some("branch-7"));
        ensure!(closed[0].field("target") == Some(place.address()));
        ensure!(closed[0].number("bytes_to_client")? > 1000);
        gateway.keeps_secret(&[&place.password])
    })
}

/// Enrols an agent by `jetway agent enrol`; returns its key.
fn enrol(workspace: &Workspace, gateway: &Gateway, url: &str, ca: &Path) -> Result<PathBuf> {
    let site = Site::new(&format!("http://{}", gateway.address()).parse()?, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = json!({ "name": "branch-7" }).to_string();
    let method = axum::http::Method::POST;
    let invited = site.request(method, "/jet/enrolments", API_KEY, body);
    let invited: Value = runtime.block_on(invited)?;
    let enrolment = invited["enrolment"].as_str().context("an enrolment")?;
    let file = workspace.write("enrolment", enrolment)?;
    let out = workspace.path("agent");
    let arguments = [
        OsStr::new("agent"),
        OsStr::new("enrol"),
        OsStr::new("--gateway"),
        OsStr::new(url),
        OsStr::new("--ca"),
        ca.as_os_str(),
        OsStr::new("--enrolment-file"),
        file.as_os_str(),
        OsStr::new("--out"),
        out.as_os_str(),
    ];
    jetway(&arguments)?;
    Ok(out.join("agent.private.pem"))
}

/// A .rdp file by `jetway rdp --via`, whose ticket leads to the desktop.
fn rdp_file(workspace: &Workspace, gateway: &Gateway, place: &Place) -> Result<String> {
    let out = workspace.path("via.rdp");
    let url = format!("http://{}", gateway.address());
    let (address, target) = (gateway.address(), place.address());
    let arguments = [
        OsStr::new("rdp"),
        OsStr::new("--full-address"),
        OsStr::new(&address),
        OsStr::new("--via"),
        OsStr::new("branch-7"),
        OsStr::new("--target"),
        OsStr::new(&target),
        OsStr::new("--sign-key"),
        gateway.keys().signing.as_os_str(),
        OsStr::new("--gateway"),
        OsStr::new(&url),
        OsStr::new("--out"),
        out.as_os_str(),
    ];
    jetway(&arguments)?;
    Ok(out.display().to_string())
}

/// The half that runs in the namespace, seen from outside.
struct Inside {
    inside: Process,
    folder: PathBuf,
}

impl Inside {
    /// The desktop, once it is there.
    fn place(&mut self) -> Result<Place> {
        let file = self.folder.join(PLACE);
        let patience = PATIENCE.saturating_mul(2);
        let text = until("a desktop in the namespace", patience, || {
            self.inside.expect_alive()?;
            Ok(fs::read_to_string(&file).ok())
        })?;
        let place: Value = serde_json::from_str(&text)?;
        let text = |name: &str| {
            let text = place[name].as_str().map(str::to_owned);
            text.with_context(|| format!("no {name}"))
        };
        let port: u16 = serde_json::from_value(place["port"].clone())?;
        Ok(Place {
            port,
            user: text("user")?,
            password: text("password")?,
            background: serde_json::from_value(place["background"].clone())?,
            writable: text("writable")?.into(),
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // It ends what it has started; a process that is told to end would leave that behind.
        let _ = fs::write(self.folder.join(DONE), "");
        let _ = self.inside.wait(PATIENCE);
    }
}

/// The half of the tests above that runs in the namespace: a desktop, and the agent beside it.
#[test]
fn desktop_of_the_namespace() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return Ok(());
    };
    workspace::run(|workspace| {
        let order: Value = serde_json::from_str(&fs::read_to_string(folder.join(ORDER))?)?;
        let kind = if order["xrdp"] == true {
            TargetKind::Xrdp
        } else {
            TargetKind::ShadowNla
        };
        let target = target::start(workspace, kind)?;
        let place = target.place();
        let text = |name: &str| order[name].as_str().map(str::to_owned).context("order");
        let mut agent = Process::start(
            workspace,
            "agent",
            std::process::Command::new(BINARY)
                .args(["agent", "run", "--name", "branch-7"])
                .args(["--gateway", &text("url")?, "--ca", &text("ca")?])
                .args(["--key", &text("key")?, "--target", &place.address()]),
        )?;
        let told = json!({
            "port": place.port,
            "user": place.user,
            "password": place.password,
            "background": place.background,
            "writable": place.writable,
        });
        let unfinished = folder.join("place.new");
        fs::write(&unfinished, told.to_string())?;
        fs::rename(unfinished, folder.join(PLACE))?;
        until("the visit is over", LIFE, || {
            agent.expect_alive()?;
            Ok(folder.join(DONE).exists().then_some(()))
        })
    })
}
