//! What real clients and targets offer each other and the gateway keeps to itself: a way around it by UDP, and logons
//! without credentials.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use jetway::rdp::connection_request;
use jetway_lab::certificate::Identity;
use jetway_lab::tls::acceptor;

use crate::injects::{LOGON_DENIED, SECURED, stranger, the_only, through};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::log::{CLOSED, REFUSED};
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::{Place, Target};
use crate::lab::workspace::{self, Workspace};

/// What a target reads in MCS Connect Initial, straight from FreeRDP 3 and through the gateway.
#[test]
fn the_target_does_not_see_that_freerdp3_offers_udp() -> Result<()> {
    workspace::run(|workspace| {
        let (listener, place) = ear(workspace)?;
        let mut client = FreeRdp::direct(workspace, Version::Three, &place)?;
        let direct = connect_initial(&listener)?;
        client.end();
        ensure!(
            multitransport(&direct, CS_MULTITRANSPORT)?.is_some_and(|flags| flags != 0),
            "FreeRDP 3 offers no UDP: this proves nothing"
        );

        // Another one, as FreeRDP may have called at the first again.
        let (listener, place) = ear(workspace)?;
        let gateway = Gateway::start_inside(workspace, "accept-any")?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let (version, user) = (Version::Three, stranger(&place));
        let mut client = through(workspace, &gateway, "client", version, &token, &[], &user)?;
        let behind = connect_initial(&listener)?;
        client.end();
        ensure!(
            multitransport(&behind, CS_MULTITRANSPORT)? == Some(0),
            "the target is offered UDP"
        );
        gateway.keeps_secret(&[&token, &place.password])
    })
}

/// What FreeRDP 3 writes down of what it received: its target agrees on UDP and asks for it, where nobody is between.
#[test]
fn freerdp3_does_not_see_that_its_target_offers_udp() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start_program(workspace, Program::Three, Security::Nla)?;
        let place = target.place();
        let session = |role: &str, to: Vec<String>, user: &Place| -> Result<Vec<Vec<u8>>> {
            let dump = workspace.path(&format!("{role}.dump"));
            let mut arguments = to;
            arguments.push(format!("/dump:record,file:{}", dump.display()));
            let mut client = FreeRdp::start(workspace, role, Version::Three, &arguments, user)?;
            client.wait_for_desktop(place)?;
            client.end();
            received(&dump)
        };
        let direct = session("direct", vec![format!("/v:{}", place.address())], place)?;
        ensure!(
            offered_by_the_target(&direct)?.is_some_and(|flags| flags != 0)
                && direct.iter().any(|pdu| asks_for_udp(pdu)),
            "freerdp-shadow-cli 3 offers no UDP: this proves nothing"
        );

        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let to = vec![format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
        let behind = session("client", to, &stranger(place))?;
        ensure!(
            offered_by_the_target(&behind)?.unwrap_or_default() == 0,
            "the client is offered UDP"
        );
        ensure!(
            !behind.iter().any(|pdu| asks_for_udp(pdu)),
            "the client is asked to use UDP"
        );
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        gateway.keeps_secret(&[&token, &place.password])
    })
}

#[test]
fn freerdp2_in_restricted_admin_mode_is_told_no() -> Result<()> {
    a_logon_without_credentials_is_refused(Version::Two, "+restricted-admin")
}

#[test]
fn freerdp3_in_restricted_admin_mode_is_told_no() -> Result<()> {
    a_logon_without_credentials_is_refused(Version::Three, "+restricted-admin")
}

#[test]
fn freerdp3_with_remote_guard_is_told_no() -> Result<()> {
    a_logon_without_credentials_is_refused(Version::Three, "+remoteGuard")
}

fn a_logon_without_credentials_is_refused(version: Version, option: &str) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let user = stranger(place);
        let mut client = through(
            workspace,
            &gateway,
            "client",
            version,
            &token,
            &[option],
            &user,
        )?;
        let code = client.exit_code()?;
        ensure!(code != 0, "exit code {code}");
        // STATUS_ACCOUNT_RESTRICTION in CredSSP: what Windows answers where it has these modes switched off.
        let output = client.output()?;
        ensure!(
            output.contains("ERRCONNECT_ACCOUNT_RESTRICTION"),
            "the user is not told: {output}"
        );
        let refused = the_only(gateway.wait_for(REFUSED, 1)?)?;
        ensure!(
            refused.rule_and_reason()
                == "client-leg: the client demands Restricted Admin or Remote Credential Guard",
            "{refused:?}"
        );
        ensure!(gateway.logged(SECURED)?.is_empty(), "legs were secured");
        ensure!(gateway.logged(CLOSED)?.is_empty(), "a session was opened");
        ensure!(
            !target.output()?.contains(LOGON_DENIED),
            "the target was asked to log on: {}",
            target.output()?
        );
        gateway.keeps_secret(&[&token, &place.password, &user.password])
    })
}

/// A target that listens to one client, and no more.
fn ear(workspace: &Workspace) -> Result<(TcpListener, Place)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let place = Place {
        port: listener.local_addr()?.port(),
        user: "alice".to_owned(),
        password: "Of-The-Target-1".to_owned(),
        background: [0, 0, 0],
        writable: workspace.folder("nothing")?,
    };
    Ok((listener, place))
}

/// Accepts one client as a target that knows TLS alone, and returns its MCS Connect Initial.
fn connect_initial(listener: &TcpListener) -> Result<Vec<u8>> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(jetway_lab::wait::PATIENCE))?;
    let request = tpkt(&mut stream)?;
    ensure!(connection_request::decode(&request)?.is_some());
    stream.write_all(&SELECTED_TLS)?;
    let mut stream = acceptor(&Identity::self_signed(&["localhost"]))
        .accept(stream)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    tpkt(&mut stream)
}

/// [MS-RDPBCGR] 2.2.1.2 with RDP_NEG_RSP: EXTENDED_CLIENT_DATA_SUPPORTED, PROTOCOL_SSL.
pub(crate) const SELECTED_TLS: [u8; 19] = [
    3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 1, 8, 0, 1, 0, 0, 0,
];

pub(crate) fn tpkt(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut pdu = vec![0; 4];
    stream.read_exact(&mut pdu)?;
    let length = usize::from(u16::from_be_bytes([pdu[2], pdu[3]]));
    pdu.resize(length, 0);
    stream.read_exact(pdu.get_mut(4..).context("TPKT")?)?;
    Ok(pdu)
}

/// The flags of the multitransport block in the conference data of `pdu`, if there is one.
fn multitransport(pdu: &[u8], header: [u8; 4]) -> Result<Option<u32>> {
    let mut found = pdu.windows(8).filter(|window| window.starts_with(&header));
    let Some(block) = found.next() else {
        return Ok(None);
    };
    ensure!(found.next().is_none(), "two blocks, or something alike");
    let flags = block.last_chunk().context("flags")?;
    Ok(Some(u32::from_le_bytes(*flags)))
}

/// What the target wrote in MCS Connect Response, the first PDU behind the logon.
fn offered_by_the_target(received: &[Vec<u8>]) -> Result<Option<u32>> {
    let is_response = |pdu: &&Vec<u8>| pdu.get(5..9) == Some(&[0xf0, 0x80, 0x7f, 0x66]);
    let response = received.iter().find(is_response);
    multitransport(
        response.context("no MCS Connect Response")?,
        SC_MULTITRANSPORT,
    )
}

/// [MS-RDPBCGR] 2.2.15.1 Server Initiate Multitransport Request, in MCS Send Data Indication.
fn asks_for_udp(pdu: &[u8]) -> bool {
    let (Some(head), Some(data)) = (pdu.get(..13), pdu.get(13..)) else {
        return false;
    };
    // The length is written in one byte or in two.
    let data = data.strip_prefix(&[0x80]).unwrap_or(data);
    // Security header (SEC_TRANSPORT_REQ), requestId, requestedProtocol, reserved, securityCookie.
    let request = |data: &[u8]| data.len() == 1 + 28 && data.starts_with(&[28, 2, 0, 0, 0]);
    head[7] == 0x68 && request(data)
}

/// The PDUs from the target in a recording of FreeRDP 3: time, direction, checksum and length before each.
fn received(dump: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(dump)?;
    let mut rest = bytes.as_slice();
    let mut pdus = Vec::new();
    while let Some((head, behind)) = rest.split_first_chunk::<21>() {
        let length = head.last_chunk().context("length")?;
        let length = usize::try_from(u64::from_le_bytes(*length))?;
        // The client was ended while it wrote.
        let Some((pdu, behind)) = behind.split_at_checked(length) else {
            break;
        };
        if head[8] == 0 {
            pdus.push(pdu.to_vec());
        }
        rest = behind;
    }
    Ok(pdus)
}

/// TS_UD_HEADER of TS_UD_CS_MULTITRANSPORT and TS_UD_SC_MULTITRANSPORT: type and length.
const CS_MULTITRANSPORT: [u8; 4] = [0x0a, 0xc0, 8, 0];
const SC_MULTITRANSPORT: [u8; 4] = [0x08, 0x0c, 8, 0];
