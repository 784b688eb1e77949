//! GNOME Remote Desktop as target: NLA, the graphics pipeline, a clipboard and a desktop that follows the window.

use anyhow::{Result, ensure};
use jetway_lab::wait::{PATIENCE, until};
use serde_json::json;

use crate::guacamole::Carrier;
use crate::injects::{SECURED, stranger, through};
use crate::lab::clipboard::{self, Copied};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::grd::GnomeRemoteDesktop;
use crate::lab::guacd::Guacd;
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::target::Target;
use crate::lab::workspace;

#[test]
fn freerdp3_reaches_gnome_remote_desktop_opaquely_and_comes_back_over_a_cut_link() -> Result<()> {
    workspace::run(|workspace| {
        let target = GnomeRemoteDesktop::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_with(workspace, 60)?;
        let token = gateway.token(&place.address(), Protection::Signed)?;
        let link = Link::start(&gateway.address())?;
        let arguments = [
            format!("/v:{}", link.address()),
            format!("/pcb:{token}"),
            "+auto-reconnect".to_owned(),
        ];
        let mut client = FreeRdp::start(workspace, "client", Version::Three, &arguments, place)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        link.cut();
        gateway.wait_for(CLOSED, 1)?;
        // The terminal is there, though no longer as large as the screen.
        client.type_until_it_arrives(place)?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}

#[test]
fn freerdp2_is_at_home_in_gnome_remote_desktop_logged_on_and_opaquely() -> Result<()> {
    workspace::run(|workspace| {
        let target = GnomeRemoteDesktop::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let logged_on = gateway.token_with(&place.address(), &grant)?;
        let opaque = gateway.token(&place.address(), Protection::Signed)?;
        for (count, token, user) in [
            (1, &logged_on, &stranger(place)),
            // Its user knows the password.
            (2, &opaque, place),
        ] {
            let options = ["+clipboard", "/dynamic-resolution"];
            let (version, role) = (Version::Two, format!("client-{count}"));
            let mut client = through(workspace, &gateway, &role, version, token, &options, user)?;
            client.wait_for_desktop(place)?;
            client.type_until_it_arrives(place)?;

            let to_target = format!("to the target, {count}: é 漢");
            let copied = Copied::text(workspace, "copy-here", client.command("xclip"), &to_target)?;
            target.wait_for_text(&to_target)?;
            drop(copied);
            let to_client = format!("to the client, {count}: ß 字");
            let copied = target.copy(workspace, &to_client)?;
            clipboard::wait_for_text(&to_client, || Ok(client.command("xclip")))?;
            drop(copied);

            let before = target.terminal_size()?;
            client.resize(800, 600)?;
            until("the desktop is smaller", PATIENCE, || {
                let (rows, columns) = target.terminal_size()?;
                Ok((rows < before.0 && columns < before.1).then_some(()))
            })?;
            client.type_until_it_arrives(place)?;
            client.end();
            gateway.wait_for(CLOSED, count)?;
            gateway.keeps_secret(&[token, &place.password, &to_target, &to_client])?;
        }
        let opened = gateway.logged(SECURED)?;
        let modes: Vec<_> = opened
            .iter()
            .filter_map(|line| line.field("mode"))
            .collect();
        ensure!(modes == ["inspected", "opaque"], "{opened:?}");
        let monitor = json!({ "width": 800, "height": 600 });
        gateway.wait_for_audit(&json!({ "event": "monitors_requested", "monitors": [monitor] }))?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}

#[test]
fn freerdp3_without_negotiation_is_logged_on_to_gnome_remote_desktop() -> Result<()> {
    workspace::run(|workspace| {
        let target = GnomeRemoteDesktop::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let options = ["-nego", "/sec:tls"];
        let user = stranger(place);
        let version = Version::Three;
        let mut client = through(
            workspace, &gateway, "client", version, &token, &options, &user,
        )?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)
    })
}

/// Where it makes a monitor for each client it demands the graphics pipeline, which guacd 1.3 does not have.
#[test]
fn guacd_without_the_graphics_pipeline_is_refused_by_gnome_remote_desktop_as_without_a_gateway()
-> Result<()> {
    workspace::run(|workspace| {
        let target = GnomeRemoteDesktop::start(workspace)?;
        let place = target.place();
        let guacd = Guacd::start(workspace)?;
        let direct = guacd.connect(&place.address(), place, &[("security", "nla")])?;
        let refused = direct.error()?;
        target.wait_for(DEMANDS_PIPELINE, 1)?;
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let parameters = Carrier::Token.parameters(&token, "");
        let client = guacd.connect(&gateway.address(), &stranger(place), &parameters)?;
        let told = client.error()?;
        gateway.wait_for(SECURED, 1)?;
        target.wait_for(DEMANDS_PIPELINE, 2)?;
        ensure!(told.0 == refused.0, "{told:?}, not {refused:?}");
        Ok(())
    })
}

const DEMANDS_PIPELINE: &str = "require the Graphics Pipeline, closing connection";
