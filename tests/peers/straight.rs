//! Clients that begin with TLS behind the preconnection PDU, without negotiation, as Guacamole does.

use anyhow::{Result, ensure};

use crate::injects::{SECURED, stranger};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::Target;
use crate::lab::workspace::{self, Workspace};
use crate::lab::xrdp::Xrdp;

#[test]
fn freerdp2_without_negotiation_reaches_the_tls_desktop_opaquely() -> Result<()> {
    reaches_the_desktop(Version::Two, false, |workspace| {
        // That of FreeRDP 3 ends such sessions itself: it measures the network by a channel that its client has not.
        let target = Shadow::start_program(workspace, Program::Two, Security::Tls)?;
        Ok(Box::new(target))
    })
}

#[test]
fn freerdp3_without_negotiation_is_logged_on_to_the_nla_desktop() -> Result<()> {
    reaches_the_desktop(Version::Three, true, |workspace| {
        let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
        Ok(Box::new(target))
    })
}

/// Log on, keys, the clipboard both ways, a link that is cut, after which it is back by itself, and another size.
#[test]
fn freerdp3_without_negotiation_is_at_home_in_xrdp_logged_on_and_opaquely() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_to_restart(workspace, &target)?;
        let link = Link::start(&gateway.address())?;
        let grant = Grant::logon(&place.user, &place.password);
        let logged_on = gateway.token_with(&place.address(), &grant)?;
        let opaque = gateway.token(&place.address(), Protection::Signed)?;
        let mut sessions = 0;
        for (role, token, user) in [
            ("inspected", &logged_on, &stranger(place)),
            ("opaque", &opaque, place),
        ] {
            let arguments = [
                &format!("/v:{}", link.address()),
                &format!("/pcb:{token}"),
                "-nego",
                "/sec:tls",
                "+clipboard",
                "/dynamic-resolution",
                "+auto-reconnect",
            ]
            .map(str::to_owned);
            let mut client = FreeRdp::start(workspace, role, Version::Three, &arguments, user)?;
            client.wait_for_desktop(place)?;
            client.type_until_it_arrives(place)?;
            target.shares_its_clipboard(workspace, &format!("{role}-clipboard"), &client)?;
            link.cut();
            sessions += 2;
            gateway.wait_for(CLOSED, sessions - 1)?;
            let opened = gateway.wait_for(SECURED, sessions)?;
            for line in &opened[sessions - 2..] {
                ensure!(line.field("mode").as_deref() == Some(role), "{opened:?}");
            }
            client.wait_for_desktop(place)?;
            client.type_until_it_arrives(place)?;
            client.resize(800, 600)?;
            target.wait_for_size(|width, height| (width, height) == (800, 600))?;
            client.type_until_it_arrives(place)?;
            client.end();
            gateway.wait_for(CLOSED, sessions)?;
            gateway.keeps_secret(&[token, &place.password])?;
        }
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}

fn reaches_the_desktop(
    version: Version,
    inspected: bool,
    start: impl FnOnce(&Workspace) -> Result<Box<dyn Target>>,
) -> Result<()> {
    workspace::run(|workspace| {
        let target = start(workspace)?;
        let place = target.place();
        let (gateway, token) = if inspected {
            let gateway = Gateway::start_inside_for(workspace, &*target)?;
            let grant = Grant::logon(&place.user, &place.password);
            let token = gateway.token_with(&place.address(), &grant)?;
            (gateway, token)
        } else {
            let gateway = Gateway::start(workspace)?;
            let token = gateway.token(&place.address(), Protection::Signed)?;
            (gateway, token)
        };
        let arguments = [
            format!("/v:{}", gateway.address()),
            format!("/pcb:{token}"),
            "-nego".to_owned(),
            "/sec:tls".to_owned(),
        ];
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, place)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}
