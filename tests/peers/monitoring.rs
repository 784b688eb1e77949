//! Metrics and alerts as Prometheus reads them, and a store on a disk that fills up. The disk is one of its own, which needs root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use jetway_lab::net::free_address;
use jetway_lab::wait::{PATIENCE, until};
use serde_json::{Value, json};

use crate::lab::disk::Disk;
use crate::lab::environment;
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Protection};
use crate::lab::log::CLOSED;
use crate::lab::process::tool;
use crate::lab::shadow::{Security, Shadow};
use crate::lab::target::Target;
use crate::lab::workspace;

/// What a monitor gets from `path`: status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("a status")?.parse()?;
    let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
    Ok((status, body.to_owned()))
}

/// Whether the gateway is ready, and what it says of that.
pub(crate) fn ready(address: SocketAddr) -> Result<(u16, Value)> {
    let (status, body) = get(address, "/health/ready")?;
    Ok((status, serde_json::from_str(&body)?))
}

#[test]
fn promtool_finds_nothing_wrong_with_metrics_and_alerts() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Tls)?;
        let place = target.place();
        let monitoring = free_address();
        let further = format!("[monitoring]\naddress = \"{monitoring}\"\n");
        let gateway = Gateway::start_inside_for_with(workspace, &target, &further)?;
        for protection in [Protection::Nested, Protection::Signed] {
            let token = gateway.token(&place.address(), protection)?;
            let arguments = [format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
            let mut client =
                FreeRdp::start(workspace, "client", Version::Three, &arguments, place)?;
            client.wait_for_desktop(place)?;
            client.end();
        }
        gateway.wait_for(CLOSED, 2)?;
        // Somebody who is refused, so that there are labels to judge.
        let _answer = get(gateway.address().parse()?, "/metrics");
        let (status, text) = get(monitoring, "/metrics")?;
        ensure!(status == 200, "{text}");
        for line in [
            "jetway_sessions_ended_total{outcome=\"closed\"} 2",
            "jetway_tls_handshake_seconds_count{leg=\"client\"}",
        ] {
            ensure!(text.contains(line), "{line} in\n{text}");
        }
        let promtool = environment::program("promtool")?;
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = check.stdin.take().context("its input")?;
        input.write_all(text.as_bytes())?;
        drop(input);
        let judged = check.wait_with_output()?;
        let said =
            [judged.stdout, judged.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        ensure!(
            judged.status.success() && said.concat().is_empty(),
            "{said:?}\n{text}"
        );
        let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/alerts.yml");
        tool(Command::new(&promtool).args(["check", "rules"]).arg(alerts))?;
        Ok(())
    })
}

#[test]
fn a_store_on_a_full_disk_is_a_reason_not_to_be_ready_and_is_none_when_there_is_room_again()
-> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Tls)?;
        let place = target.place();
        let disk = Disk::mount(workspace.folder("gateway")?, "24m")?;
        let monitoring = free_address();
        let further = format!("[monitoring]\naddress = \"{monitoring}\"\n");
        let gateway = Gateway::start_inside_for_with(workspace, &target, &further)?;
        ensure!(ready(monitoring)?.0 == 200, "{:?}", ready(monitoring)?);
        disk.fill()?;
        until("the disk is full", PATIENCE, || {
            let (status, body) = ready(monitoring)?;
            Ok((status == 503 && body["reasons"] == json!(["disk"])).then_some(()))
        })?;
        // Somebody tries all the same, and the use of their token cannot be written.
        until("the store fails", PATIENCE, || {
            let token = gateway.token(&place.address(), Protection::Signed)?;
            let arguments = [format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
            let mut client =
                FreeRdp::start(workspace, "refused", Version::Three, &arguments, place)?;
            let desktop = client.wait_for_desktop(place);
            client.end();
            ensure!(
                desktop.is_err() || ready(monitoring)?.0 == 503,
                "a gateway that is ready"
            );
            let (_, body) = ready(monitoring)?;
            Ok(body["reasons"]
                .as_array()
                .is_some_and(|reasons| reasons.contains(&json!("store")))
                .then_some(()))
        })?;
        disk.free()?;
        // Nobody has to come for that.
        until("the gateway is ready", PATIENCE, || {
            Ok((ready(monitoring)?.0 == 200).then_some(()))
        })?;
        let token = gateway.token(&place.address(), Protection::Signed)?;
        let arguments = [format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
        let mut client = FreeRdp::start(workspace, "client", Version::Three, &arguments, place)?;
        client.wait_for_desktop(place)?;
        client.end();
        Ok(())
    })
}
