//! From a token to the target's desktop, with every client, carrier and target.

use anyhow::{Result, ensure};

use crate::lab::freerdp::{FreeRdp, Version, exit};
use crate::lab::gateway::{Gateway, Protection};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::target::{self, Place, TargetKind};
use crate::lab::workspace::{self, Workspace};

/// How the token, or what stands for it, comes to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    /// The token in the preconnection PDU: `/pcb:TOKEN`.
    Pcb,
    /// A signed and then encrypted token in the preconnection PDU.
    NestedPcb,
    /// A ticket in the routing token: `/load-balance-info:TICKET`.
    Ticket,
    /// `pcb` in a .rdp file that `jetway rdp` made.
    RdpFile,
    /// The token and a ticket for it at once.
    Both,
    /// `loadbalanceinfo` in a .rdp file that `jetway rdp` made.
    RdpFileTicket,
}

macro_rules! sessions {
    ($($name:ident: $version:ident, $carrier:ident, $target:ident;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            the_target_is_reached(Version::$version, Carrier::$carrier, TargetKind::$target)
        }
    )*};
}

// A session to the target that demands NLA proves that CredSSP's binding survives: the client sends the target's TLS
// public key, signed under the user's password, and the target compares it with its own. A gateway that ended TLS, or
// changed one byte of it, could not pass that.
sessions! {
    freerdp2_with_pcb_reaches_the_nla_desktop: Two, Pcb, ShadowNla;
    freerdp2_with_pcb_reaches_the_tls_desktop: Two, Pcb, ShadowTls;
    freerdp2_with_pcb_reaches_the_xrdp_desktop: Two, Pcb, Xrdp;
    freerdp2_with_nested_token_reaches_the_nla_desktop: Two, NestedPcb, ShadowNla;
    freerdp2_with_nested_token_reaches_the_xrdp_desktop: Two, NestedPcb, Xrdp;
    freerdp2_with_ticket_reaches_the_nla_desktop: Two, Ticket, ShadowNla;
    freerdp2_with_ticket_reaches_the_xrdp_desktop: Two, Ticket, Xrdp;
    freerdp2_with_pcb_and_ticket_reaches_the_nla_desktop: Two, Both, ShadowNla;
    freerdp2_with_rdp_file_reaches_the_nla_desktop: Two, RdpFile, ShadowNla;
    freerdp2_with_rdp_file_reaches_the_xrdp_desktop: Two, RdpFile, Xrdp;
    freerdp2_with_rdp_file_and_ticket_reaches_the_nla_desktop: Two, RdpFileTicket, ShadowNla;
    freerdp2_with_rdp_file_and_ticket_reaches_the_xrdp_desktop: Two, RdpFileTicket, Xrdp;

    freerdp3_with_pcb_reaches_the_nla_desktop: Three, Pcb, ShadowNla;
    freerdp3_with_pcb_reaches_the_tls_desktop: Three, Pcb, ShadowTls;
    freerdp3_with_pcb_reaches_the_xrdp_desktop: Three, Pcb, Xrdp;
    freerdp3_with_nested_token_reaches_the_nla_desktop: Three, NestedPcb, ShadowNla;
    freerdp3_with_nested_token_reaches_the_xrdp_desktop: Three, NestedPcb, Xrdp;
    freerdp3_with_ticket_reaches_the_nla_desktop: Three, Ticket, ShadowNla;
    freerdp3_with_ticket_reaches_the_xrdp_desktop: Three, Ticket, Xrdp;
    freerdp3_with_pcb_and_ticket_reaches_the_nla_desktop: Three, Both, ShadowNla;
    freerdp3_with_rdp_file_reaches_the_nla_desktop: Three, RdpFile, ShadowNla;
    freerdp3_with_rdp_file_reaches_the_xrdp_desktop: Three, RdpFile, Xrdp;
    freerdp3_with_rdp_file_and_ticket_reaches_the_nla_desktop: Three, RdpFileTicket, ShadowNla;
    freerdp3_with_rdp_file_and_ticket_reaches_the_xrdp_desktop: Three, RdpFileTicket, Xrdp;
}

/// The desktop of a direct session and the desktop through Jetway are the same picture, typed keys arrive, the session
/// is accounted for in one line, and no secret is in what the gateway shows.
fn the_target_is_reached(version: Version, carrier: Carrier, kind: TargetKind) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, kind)?;
        let place = target.place();
        let mut direct = FreeRdp::direct(workspace, version, place)?;
        let expected = direct.wait_for_desktop(place)?;
        direct.end();

        let gateway = Gateway::start(workspace)?;
        let Way { arguments, secrets } = way(&gateway, carrier, place)?;
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, place)?;
        client.wait_for_picture(workspace, &expected)?;
        client.type_until_it_arrives(place)?;
        client.end();

        let closed = gateway.wait_for(CLOSED, 1)?;
        ensure!(
            closed.len() == 1,
            "one closing line per session: {closed:?}"
        );
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        let line = &closed[0];
        ensure!(
            line.field("target")
                .is_some_and(|target| target.contains(&place.address()))
        );
        for field in ["session", "peer", "reason", "token"] {
            ensure!(
                line.field(field).is_some_and(|value| !value.is_empty()),
                "{field}: {line:?}"
            );
        }
        ensure!(
            line.number("bytes_to_target")? > 1000,
            "what the client said: {line:?}"
        );
        ensure!(
            line.number("bytes_to_client")? > 1000,
            "what the target said: {line:?}"
        );
        line.number("duration_ms")?;
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        gateway.keeps_secret(&secrets)
    })
}

/// The proof behind every session to the NLA desktop: that target does look at the password.
///
/// It closes without a word. FreeRDP then connects once more with the same token and ends with whichever code that
/// gives: the target's silence again, or the gateway's refusal of a token that was used.
#[test]
fn freerdp2_with_a_wrong_password_gets_no_nla_desktop() -> Result<()> {
    a_wrong_password_gets_no_desktop(Version::Two)
}

#[test]
fn freerdp3_with_a_wrong_password_gets_no_nla_desktop() -> Result<()> {
    a_wrong_password_gets_no_desktop(Version::Three)
}

fn a_wrong_password_gets_no_desktop(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        let mut place = target.place().clone();
        place.password.push_str("-wrong");
        // The target closes without a word and the client tries once more with the same token, as mstsc does when a
        // password is typed again: its user must read what the target made of the password, not that the token was used.
        let gateway = Gateway::start_with(workspace, 60)?;
        let Way { arguments, .. } = way(&gateway, Carrier::Pcb, &place)?;
        let mut client = FreeRdp::start(workspace, "client", version, &arguments, &place)?;
        let code = client.exit_code()?;
        ensure!(code == exit::CONNECTION_FAILURE, "exit code {code}");
        ensure!(
            shadow_log(workspace)?.contains(LOGON_DENIED),
            "the target did not judge it"
        );
        gateway.wait_for(CLOSED, 2)?;
        ensure!(
            gateway.logged(REFUSED)?.is_empty(),
            "the second try was refused"
        );
        Ok(())
    })
}

fn shadow_log(workspace: &Workspace) -> Result<String> {
    Ok(std::fs::read_to_string(workspace.path("shadow.log"))?)
}

/// What freerdp-shadow-cli logs when the NTLM response does not fit the password.
const LOGON_DENIED: &str = "client authentication failure";

/// What the client is started with, and what of it no one else may see.
struct Way {
    arguments: Vec<String>,
    secrets: Vec<String>,
}

fn way(gateway: &Gateway, carrier: Carrier, place: &Place) -> Result<Way> {
    let protection = match carrier {
        Carrier::NestedPcb => Protection::Nested,
        Carrier::Pcb
        | Carrier::Ticket
        | Carrier::Both
        | Carrier::RdpFile
        | Carrier::RdpFileTicket => Protection::Signed,
    };
    let token = gateway.token(&place.address(), protection)?;
    let ticket = match carrier {
        Carrier::Ticket | Carrier::Both | Carrier::RdpFileTicket => Some(gateway.ticket(&token)?),
        Carrier::Pcb | Carrier::NestedPcb | Carrier::RdpFile => None,
    };
    let to_gateway = format!("/v:{}", gateway.address());
    let pcb = || format!("/pcb:{token}");
    let load_balance_info = |ticket: &String| format!("/load-balance-info:{ticket}");
    let mut arguments = match carrier {
        Carrier::Pcb | Carrier::NestedPcb => vec![to_gateway, pcb()],
        Carrier::Ticket => vec![to_gateway],
        Carrier::Both => vec![to_gateway, pcb()],
        Carrier::RdpFile => vec![gateway.rdp_file(Some(&token), None)?.display().to_string()],
        Carrier::RdpFileTicket => {
            vec![
                gateway
                    .rdp_file(None, ticket.as_deref())?
                    .display()
                    .to_string(),
            ]
        }
    };
    if matches!(carrier, Carrier::Ticket | Carrier::Both) {
        arguments.extend(ticket.as_ref().map(load_balance_info));
    }
    let secrets = [token, place.password.clone()]
        .into_iter()
        .chain(ticket)
        .collect();
    Ok(Way { arguments, secrets })
}
