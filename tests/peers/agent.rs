//! FreeRDP to desktops that nothing can reach: behind `jetway agent run`, in a network namespace of their own. The bytes of these
//! sessions are for the gateway what they are for the agent: TLS of somebody else.

use anyhow::{Result, ensure};

use crate::lab::branch::{self, AGENT, Branch, Wanted};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::target::TargetKind;
use crate::lab::workspace;

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
        let branch = Branch::start(
            workspace,
            Wanted {
                kind,
                pictured_by: None,
                broker: false,
                talkative: false,
            },
        )?;
        let (gateway, place) = (&branch.gateway, &branch.place);
        // Nothing leads there but the agent.
        branch.expect_unreachable()?;
        let arguments = [branch::rdp_file(workspace, gateway, &place.address(), &[])?];
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, place)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();

        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(closed.len() == 1, "one closing line: {closed:?}");
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        ensure!(closed[0].field("agent").as_deref() == Some(AGENT));
        ensure!(closed[0].field("target") == Some(place.address()));
        ensure!(closed[0].number("bytes_to_client")? > 1000);
        branch.keeps_secret(&[&place.password])
    })
}

/// The half of these tests, and of those of [`behind`](crate::behind), that runs in the namespace. By itself it does nothing.
#[test]
fn desktop_of_the_namespace() -> Result<()> {
    let Some(folder) = branch::folder() else {
        return Ok(());
    };
    workspace::run(|workspace| branch::be_inside(workspace, &folder))
}
