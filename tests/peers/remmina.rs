//! Remmina, which can carry nothing but a ticket.

use anyhow::{Result, ensure};

use crate::injects::SECURED;
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::remmina::Remmina;
use crate::lab::target::Target;
use crate::lab::workspace;
use crate::lab::xrdp::Xrdp;

/// Log on, keys, the clipboard both ways, a link that is cut, after which it is back by itself, and another size.
#[test]
fn remmina_with_a_ticket_is_at_home_in_xrdp_logged_on_and_opaquely() -> Result<()> {
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
            ("inspected", &logged_on, None),
            ("opaque", &opaque, Some(place)),
        ] {
            let ticket = gateway.ticket(token)?;
            let mut client = Remmina::start(workspace, role, link.address(), &ticket, user)?;
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

            client.leave_the_full_screen()?;
            client.resize(800, 600)?;
            target.wait_for_size(|width, height| (width, height) == (800, 600))?;
            client.type_until_it_arrives(place)?;
            drop(client);
            gateway.wait_for(CLOSED, sessions)?;
            gateway.keeps_secret(&[token, &ticket, &place.password])?;
        }
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}
