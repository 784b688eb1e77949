//! Remmina, which can carry nothing but a ticket.

use anyhow::{Result, ensure};

use crate::injects::SECURED;
use crate::lab::clipboard::{self, Copied};
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::remmina::Remmina;
use crate::lab::target::Target;
use crate::lab::workspace;
use crate::lab::xrdp::Xrdp;

#[test]
fn remmina_with_a_ticket_is_logged_on_to_xrdp_and_comes_back_over_a_cut_link() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_to_restart(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let link = Link::start(&gateway.address())?;
        let mut client = Remmina::start(workspace, link.address(), &gateway.ticket(&token)?)?;
        gateway.wait_for(SECURED, 1)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;

        let to_target = "to the target: é 漢";
        let copied = Copied::text(workspace, "copy-here", client.command("xclip"), to_target)?;
        clipboard::wait_for_text(to_target, || target.command("xclip"))?;
        drop(copied);
        let to_client = "to the client: ß 字";
        let copied = Copied::text(workspace, "copy-there", target.command("xclip")?, to_client)?;
        clipboard::wait_for_text(to_client, || Ok(client.command("xclip")))?;
        drop(copied);

        link.cut();
        gateway.wait_for(CLOSED, 1)?;
        gateway.wait_for(SECURED, 2)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}
