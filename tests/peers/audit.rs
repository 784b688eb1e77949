//! The audit on a disk that fills up, with people at their desktops. The disk is one of its own, which needs root.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use jetway::rdp::connection_request::ConnectionRequest;
use jetway_lab::net::free_address;
use jetway_lab::wait::{PATIENCE, until};
use serde_json::json;

use crate::lab::disk::Disk;
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{BINARY, Gateway, Protection};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::process::tool;
use crate::lab::shadow::{Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::workspace::{self, Workspace};
use crate::monitoring::{get, ready};

#[test]
fn no_session_opens_without_its_record_where_that_is_required() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Tls)?;
        let place = target.place();
        let disk = Disk::mount(workspace.folder("disk")?, "64k")?;
        let audit = disk.file("audit.jsonl");
        let monitoring = free_address();
        let further = format!(
            "[audit]\npath = {audit:?}\nrequired = true\n[monitoring]\naddress = \"{monitoring}\"\n"
        );
        let gateway = Gateway::start_inside_for_with(workspace, &target, &further)?;
        let mut live = come(workspace, "live", &gateway, place)?;
        live.type_until_it_arrives(place)?;

        ensure!(ready(monitoring)?.0 == 200, "{:?}", ready(monitoring)?);
        disk.fill()?;
        until("the audit fails", PATIENCE, || {
            stranger(&gateway)?;
            let failing = !gateway
                .logged("Cannot write the audit; trying again")?
                .is_empty();
            Ok(failing.then_some(()))
        })?;
        // Who is at work stays so, and nobody else begins.
        let refused = come(workspace, "refused", &gateway, place);
        ensure!(refused.is_err(), "a session without a record");
        let told = gateway.logged(REFUSED)?;
        let last = told
            .iter()
            .filter(|line| line.field("rule").as_deref() == Some("audit"));
        ensure!(last.count() > 0, "{told:?}");
        live.type_until_it_arrives(place)?;
        let (status, body) = ready(monitoring)?;
        ensure!(
            status == 503 && body["reasons"] == json!(["audit"]),
            "{body}"
        );
        let metrics = get(monitoring, "/metrics")?.1;
        ensure!(metrics.contains("\njetway_audit_failing 1"), "{metrics}");

        disk.free()?;
        gateway.wait_for("The audit is written again", 1)?;
        ensure!(ready(monitoring)?.0 == 200, "{:?}", ready(monitoring)?);
        let mut back = come(workspace, "back", &gateway, place)?;
        back.end();
        live.end();
        gateway.wait_for(CLOSED, 2)?;
        until("the end of both is recorded", PATIENCE, || {
            let text = fs::read_to_string(&audit)?;
            let ends = text.matches("\"event\":\"session.closed\"").count();
            Ok((ends == 2).then_some(()))
        })?;
        whole(&audit)?;
        let text = fs::read_to_string(&audit)?;
        let opened = text.matches("\"event\":\"session.opened\"").count();
        ensure!(opened == 2, "{opened} records of sessions that opened");
        Ok(())
    })
}

/// A client that has its desktop.
fn come(workspace: &Workspace, name: &str, gateway: &Gateway, place: &Place) -> Result<FreeRdp> {
    let token = gateway.token(&place.address(), Protection::Nested)?;
    let arguments = [format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
    let mut client = FreeRdp::start(workspace, name, Version::Three, &arguments, place)?;
    client.wait_for_desktop(place)?;
    Ok(client)
}

/// Somebody without a token, who is refused and recorded.
fn stranger(gateway: &Gateway) -> Result<()> {
    let mut stream = TcpStream::connect(gateway.address())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&ConnectionRequest::default().encode()?)?;
    // It is told, or cut off.
    let _answer = stream.read_to_end(&mut Vec::new());
    Ok(())
}

fn whole(audit: &Path) -> Result<()> {
    tool(Command::new(BINARY).args(["audit", "verify"]).arg(audit)).map(drop)
}
