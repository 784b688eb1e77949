//! Clients that begin with TLS behind the preconnection PDU, without negotiation, as Guacamole does.

use anyhow::{Result, ensure};

use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::log::REFUSED;
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
fn freerdp3_without_negotiation_reaches_xrdp_opaquely() -> Result<()> {
    reaches_the_desktop(Version::Three, false, |workspace| {
        Ok(Box::new(Xrdp::start(workspace)?))
    })
}

#[test]
fn freerdp3_without_negotiation_is_logged_on_to_the_nla_desktop() -> Result<()> {
    reaches_the_desktop(Version::Three, true, |workspace| {
        let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
        Ok(Box::new(target))
    })
}

#[test]
fn freerdp3_without_negotiation_is_logged_on_to_xrdp() -> Result<()> {
    reaches_the_desktop(Version::Three, true, |workspace| {
        Ok(Box::new(Xrdp::start(workspace)?))
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
