//! Clients and targets of other makers than FreeRDP: the desktop of a direct session and the desktop through Jetway are
//! the same picture, typed keys arrive, and the audit log tells of the session.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::injects::{SECURED, stranger, the_only, through};
use crate::lab::aardwolf::Aardwolf;
use crate::lab::border::Border;
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::log::CLOSED;
use crate::lab::rdesktop::RDesktop;
use crate::lab::shadow::{Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::weston::Weston;
use crate::lab::workspace;
use crate::lab::xrdp::Xrdp;

/// The servers of FreeRDP 2 and 3, weston's among them, close at rdesktop's Erect Domain Request, which is a byte
/// longer than it says; xrdp takes it.
#[test]
fn rdesktop_is_logged_on_to_xrdp() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let options = ["-a", "32"];
        let address = place.address();
        let mut direct = RDesktop::start(workspace, "direct", &address, &options, place)?;
        let expected = direct.wait_for_desktop(place)?;
        direct.end();

        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let border = Border::start(&gateway.address(), &token)?;
        let user = stranger(place);
        let mut client = RDesktop::start(workspace, "client", border.address(), &options, &user)?;
        client.wait_for_picture(workspace, &expected)?;
        client.type_until_it_arrives(place)?;
        client.end();
        the_session_is_told(&gateway, place)?;
        gateway.keeps_secret(&[&token, &place.password, &user.password])
    })
}

#[test]
fn aardwolf_with_a_token_alone_reaches_the_tls_desktop() -> Result<()> {
    aardwolf_reaches_the_desktop(Security::Tls)
}

/// By itself it does not get past CredSSP of FreeRDP's server: each has another idea of NTLM inside SPNEGO.
#[test]
fn aardwolf_with_a_token_alone_reaches_the_nla_desktop() -> Result<()> {
    aardwolf_reaches_the_desktop(Security::Nla)
}

fn aardwolf_reaches_the_desktop(security: Security) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, security)?;
        let place = target.place();
        let expected = match security {
            Security::Nla => None,
            Security::Tls => {
                let mut direct = Aardwolf::start(workspace, "direct", &place.address(), place)?;
                let expected = direct.wait_for_desktop(place)?;
                direct.end()?;
                Some(expected)
            }
        };

        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let border = Border::start(&gateway.address(), &token)?;
        let user = stranger(place);
        let mut client = Aardwolf::start(workspace, "client", border.address(), &user)?;
        match expected {
            Some(expected) => client.wait_for_picture(workspace, &expected)?,
            None => client.wait_for_desktop(place).map(drop)?,
        }
        client.type_until_it_arrives(place)?;
        client.end()?;
        the_session_is_told(&gateway, place)?;
        gateway.wait_for_audit(&json!({ "event": "client", "name": "aardworlf" }))?;
        gateway.keeps_secret(&[&token, &place.password, &user.password])
    })
}

#[test]
fn freerdp2_reaches_the_weston_desktop() -> Result<()> {
    freerdp_reaches_the_weston_desktop(Version::Two)
}

#[test]
fn freerdp3_reaches_the_weston_desktop() -> Result<()> {
    freerdp_reaches_the_weston_desktop(Version::Three)
}

fn freerdp_reaches_the_weston_desktop(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Weston::start(workspace)?;
        let place = target.place();
        let mut direct = FreeRdp::direct(workspace, version, place)?;
        let expected = direct.wait_for_desktop(place)?;
        direct.end();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let user = stranger(place);
        let mut client = through(workspace, &gateway, "client", version, &token, &[], &user)?;
        client.wait_for_picture(workspace, &expected)?;
        client.type_until_it_arrives(place)?;
        client.end();
        the_session_is_told(&gateway, place)?;
        gateway.keeps_secret(&[&token, &place.password, &user.password])
    })
}

/// One session, in which the user of the token logged on.
fn the_session_is_told(gateway: &Gateway, place: &Place) -> Result<()> {
    let line = the_only(gateway.wait_for(CLOSED, 1)?)?;
    ensure!(line.number("bytes_to_target")? > 1000, "{line:?}");
    the_only(gateway.logged(SECURED)?)?;
    let logon = json!({ "event": "logon_requested", "user": place.user, "has_password": true });
    gateway.wait_for_audit(&logon)?;
    gateway.wait_for_audit(&json!({ "event": "desktop_size", "width": 1024, "height": 768 }))?;
    gateway.wait_for_audit(&json!({ "event": "phase", "phase": "active" }))?;
    Ok(())
}
