//! Apache Guacamole's daemon: with the token in its preconnection field, where it begins with TLS at once, and with a ticket.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::injects::{SECURED, stranger};
use crate::lab::clipboard::{self, Copied};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::guacd::{Guacamole, Guacd};
use crate::lab::link::Link;
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::Target;
use crate::lab::workspace::{self, Workspace};
use crate::lab::xrdp::Xrdp;

/// Where the token or the ticket goes, as the README has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Token,
    Ticket,
}

impl Carrier {
    /// What an administrator of Guacamole sets.
    pub(crate) fn parameters<'a>(
        self,
        token: &'a str,
        ticket: &'a str,
    ) -> [(&'static str, &'a str); 2] {
        match self {
            Self::Token => [("preconnection-blob", token), ("security", "tls")],
            Self::Ticket => [("load-balance-info", ticket), ("security", "any")],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Yes,
    No,
}

/// Log on, keys, the clipboard both ways, another size; and a link that is cut, after which its user connects again.
#[test]
fn guacd_is_at_home_in_xrdp_with_a_token_and_again_with_its_ticket() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_to_restart(workspace, &target)?;
        let link = Link::start(&gateway.address())?;
        let guacd = Guacd::start(workspace)?;
        let mut sessions = 0;
        for inside in [Inside::Yes, Inside::No] {
            let (token, user) = match inside {
                Inside::Yes => {
                    let grant = Grant::logon(&place.user, &place.password);
                    let token = gateway.token_with(&place.address(), &grant)?;
                    (token, stranger(place))
                }
                Inside::No => {
                    let token = gateway.token(&place.address(), Protection::Signed)?;
                    (token, place.clone())
                }
            };
            // A ticket is for a token that has not been used.
            let ticket = gateway.ticket(&token)?;
            for carrier in [Carrier::Token, Carrier::Ticket] {
                sessions += 1;
                let role = format!("{inside:?}-{carrier:?}");
                let parameters = carrier.parameters(&token, &ticket);
                let client = guacd.connect(link.address(), &user, &parameters)?;
                client.wait_for_desktop(place)?;
                client.type_until_it_arrives(place)?;
                has_clipboard(workspace, &role, &target, &client)?;
                let (width, height) = (800, 600);
                client.resize(width, height)?;
                client.wait_for_size(width, height)?;
                client.type_until_it_arrives(place)?;
                let opened = gateway.wait_for(SECURED, sessions)?;
                let mode = opened[sessions - 1].field("mode");
                ensure!(
                    (mode.as_deref() == Some("opaque")) == (inside == Inside::No),
                    "{opened:?}"
                );
                link.cut();
                client.error()?;
                gateway.wait_for(CLOSED, sessions)?;
            }
            gateway.keeps_secret(&[&token, &ticket, &place.password])?;
        }
        let monitor = json!({ "width": 800, "height": 600 });
        gateway.wait_for_audit(&json!({ "event": "monitors_requested", "monitors": [monitor] }))?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}

fn has_clipboard(
    workspace: &Workspace,
    role: &str,
    target: &Xrdp,
    client: &Guacamole,
) -> Result<()> {
    let to_target = format!("to the target of {role}: é 漢");
    client.copy(&to_target)?;
    clipboard::wait_for_text(&to_target, || target.command("xclip"))?;
    let to_client = format!("to the client of {role}: ß 字");
    let xclip = target.command("xclip")?;
    let _copied = Copied::text(workspace, role, xclip, &to_client)?;
    client.wait_for_text(&to_client)
}

/// Logged on by the gateway, and by itself.
#[test]
fn guacd_reaches_the_nla_desktop_with_a_token_and_with_tickets() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let guacd = Guacd::start(workspace)?;
        let grant = Grant::logon(&place.user, &place.password);
        for (inside, carrier) in [
            (Inside::Yes, Carrier::Token),
            (Inside::Yes, Carrier::Ticket),
            (Inside::No, Carrier::Ticket),
        ] {
            let (token, user) = match inside {
                Inside::Yes => (
                    gateway.token_with(&place.address(), &grant)?,
                    stranger(place),
                ),
                Inside::No => (
                    gateway.token(&place.address(), Protection::Signed)?,
                    place.clone(),
                ),
            };
            let ticket = gateway.ticket(&token)?;
            let parameters = carrier.parameters(&token, &ticket);
            let client = guacd.connect(&gateway.address(), &user, &parameters)?;
            client.wait_for_desktop(place)?;
            client.type_until_it_arrives(place)?;
        }
        let opened = gateway.wait_for(SECURED, 3)?;
        ensure!(
            opened[2].field("mode").as_deref() == Some("opaque"),
            "{opened:?}"
        );
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        Ok(())
    })
}
