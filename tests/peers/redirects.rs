//! Targets that send their clients on, as brokers of farms do: the client stays with the gateway, which goes there.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use ironrdp_core::encode_vec;
use ironrdp_pdu::mcs::SendDataIndication;
use ironrdp_pdu::x224::X224;
use jetway::gateway::upstream;
use jetway::rdp::connection_request;
use jetway::rdp::welcome::{IO_CHANNEL, SERVER_CHANNEL, Welcome, WelcomeStep};
use jetway_lab::certificate::Identity;
use jetway_lab::tls::acceptor;
use openssl::ssl::SslStream;

use crate::injects::{SECURED, stranger, through};
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::log::CLOSED;
use crate::lab::target::{self, TargetKind};
use crate::lab::workspace::{self, Workspace};
use crate::withholds::{SELECTED_TLS, tpkt};

#[test]
fn freerdp2_with_a_pcb_comes_back_and_is_sent_on() -> Result<()> {
    the_client_comes_back_and_is_sent_on(Version::Two, Carrier::Pcb)
}

#[test]
fn freerdp3_with_a_pcb_comes_back_and_is_sent_on() -> Result<()> {
    the_client_comes_back_and_is_sent_on(Version::Three, Carrier::Pcb)
}

#[test]
fn freerdp2_with_a_ticket_comes_back_and_is_sent_on() -> Result<()> {
    the_client_comes_back_and_is_sent_on(Version::Two, Carrier::Ticket)
}

#[test]
fn freerdp3_with_a_ticket_comes_back_and_is_sent_on() -> Result<()> {
    the_client_comes_back_and_is_sent_on(Version::Three, Carrier::Ticket)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Pcb,
    Ticket,
}

fn the_client_comes_back_and_is_sent_on(version: Version, carrier: Carrier) -> Result<()> {
    workspace::run(|workspace| {
        let desktop = target::start(workspace, TargetKind::ShadowNla)?;
        let place = desktop.place();
        // By another name than the broker's, so that the name alone tells them apart.
        let broker = Broker::start("127.0.0.1")?;
        let gateway = Gateway::start_inside(workspace, "accept-any")?;
        let address = place.address();
        let grant = Grant {
            alternative: Some(&address),
            ..Grant::logon(&place.user, &place.password)
        };
        let token = gateway.token_with(&format!("localhost:{}", broker.port), &grant)?;
        let mut client = client(
            workspace,
            &gateway,
            version,
            carrier,
            &token,
            &stranger(place),
        )?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();

        gateway.wait_for(CLOSED, 2)?;
        ensure!(broker.visits()? == 1, "the broker was asked once");
        let [first, second] = &gateway.logged(SECURED)?[..] else {
            anyhow::bail!("not two sessions");
        };
        ensure!(first.field("session") != second.field("session"));
        let redirected = serde_json::json!({ "event": "redirected", "to": "127.0.0.1" });
        gateway.wait_for_audit(&redirected)?;
        gateway.keeps_secret(&[&token, &place.password, BROKERS_SECRET])
    })
}

#[test]
fn a_target_that_the_token_does_not_name_is_not_followed() -> Result<()> {
    workspace::run(|workspace| {
        let desktop = target::start(workspace, TargetKind::ShadowNla)?;
        let place = desktop.place();
        let broker = Broker::start("127.0.0.1")?;
        let gateway = Gateway::start_inside(workspace, "accept-any")?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&format!("localhost:{}", broker.port), &grant)?;
        let user = stranger(place);
        let mut client = client(
            workspace,
            &gateway,
            Version::Three,
            Carrier::Pcb,
            &token,
            &user,
        )?;
        let code = client.exit_code()?;
        ensure!(code != 0, "exit code {code}");
        let closed = gateway.wait_for(CLOSED, 1)?;
        let reason = closed[0].field("reason").context("a reason")?;
        ensure!(
            reason == "target redirects to 127.0.0.1, which is not allowed",
            "{reason}"
        );
        Ok(())
    })
}

#[test]
fn a_target_that_sends_clients_to_the_gateways_own_machine_leads_nowhere() -> Result<()> {
    workspace::run(|workspace| {
        let own = upstream::own_addresses()?.into_iter();
        let mut own = own.filter(|ip| ip.is_ipv4() && !ip.is_loopback());
        let own = own.next().context("a machine with a network")?;
        let inner = TcpListener::bind((own, 0))?;
        inner.set_nonblocking(true)?;
        let broker = Broker::start(&own.to_string())?;
        let gateway = Gateway::start_inside(workspace, "accept-any")?;
        let named = inner.local_addr()?.to_string();
        let grant = Grant {
            alternative: Some(&named),
            ..Grant::logon("user", "password")
        };
        let token = gateway.token_with(&format!("localhost:{}", broker.port), &grant)?;
        let desktop = target::start(workspace, TargetKind::ShadowNla)?;
        let user = stranger(desktop.place());
        let version = Version::Three;
        let mut client = client(workspace, &gateway, version, Carrier::Pcb, &token, &user)?;
        let code = client.exit_code()?;
        ensure!(code != 0, "exit code {code}");
        let redirected = serde_json::json!({ "event": "redirected", "to": own.to_string() });
        gateway.wait_for_audit(&redirected)?;
        let refused = gateway.wait_for("Session refused", 1)?;
        let reason = refused[0].field("reason").context("a reason")?;
        ensure!(reason.contains("this-machine"), "{reason}");
        ensure!(inner.accept().is_err(), "the own machine was dialled");
        ensure!(broker.visits()? == 1, "the broker was asked once");
        Ok(())
    })
}

fn client(
    workspace: &Workspace,
    gateway: &Gateway,
    version: Version,
    carrier: Carrier,
    token: &str,
    user: &target::Place,
) -> Result<FreeRdp> {
    match carrier {
        Carrier::Pcb => through(workspace, gateway, "client", version, token, &[], user),
        Carrier::Ticket => {
            let arguments = [
                format!("/v:{}", gateway.address()),
                format!("/load-balance-info:{}", gateway.ticket(token)?),
            ];
            FreeRdp::start(workspace, "client", version, &arguments, user)
        }
    }
}

/// A target that sends every client to one host, once it has let it in.
pub(crate) struct Broker {
    pub(crate) port: u16,
    visits: Arc<Mutex<Vec<Result<()>>>>,
}

impl Broker {
    fn start(to: &str) -> Result<Self> {
        Self::start_at(0, to)
    }

    /// The same at a port that somebody knows beforehand.
    pub(crate) fn start_at(port: u16, to: &str) -> Result<Self> {
        let to = to.to_owned();
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let port = listener.local_addr()?.port();
        let visits = Arc::new(Mutex::new(Vec::new()));
        let broker = Self {
            port,
            visits: Arc::clone(&visits),
        };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let visit = send_on(client, &to);
                let mut visits = visits.lock().unwrap_or_else(PoisonError::into_inner);
                visits.push(visit);
            }
        });
        Ok(broker)
    }

    /// How many clients it has sent on; an error where that failed.
    fn visits(&self) -> Result<usize> {
        let mut visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        let count = visits.len();
        for visit in visits.drain(..) {
            visit?;
        }
        Ok(count)
    }
}

fn send_on(mut client: std::net::TcpStream, to: &str) -> Result<()> {
    client.set_read_timeout(Some(jetway_lab::wait::PATIENCE))?;
    let request = tpkt(&mut client)?;
    ensure!(connection_request::decode(&request)?.is_some());
    client.write_all(&SELECTED_TLS)?;
    let mut client = acceptor(&Identity::self_signed(&["localhost"]))
        .accept(client)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    // What the gateway offers, and expects to read here again.
    let mut welcome = Welcome::new(1 | 2 | 8);
    loop {
        let mut answer = Vec::new();
        let frame = tpkt(&mut client)?;
        let step = welcome.frame(&frame, &mut answer)?;
        client.write_all(&answer)?;
        match step {
            WelcomeStep::On => {}
            WelcomeStep::Welcomed(_) => break,
            WelcomeStep::Left => anyhow::bail!("left before it was welcome"),
        }
    }
    client.write_all(&redirection(to)?)?;
    until_it_leaves(client)
}

/// [MS-RDPBCGR] 2.2.13.3.1 Enhanced Security Server Redirection PDU: an address, a routing token that
/// freerdp-shadow-cli takes, and a password.
fn redirection(to: &str) -> Result<Vec<u8>> {
    let wide = |text: &str| -> Vec<u8> {
        let units = text.encode_utf16().chain([0]);
        units.flat_map(u16::to_le_bytes).collect()
    };
    let fields = [
        wide(to),
        b"Cookie: msts=3640205228.15629.0000\r\n".to_vec(),
        wide(BROKERS_SECRET),
    ];
    let mut packet = vec![0, 4, 0, 0, 7, 0, 0, 0];
    // LB_TARGET_NET_ADDRESS, LB_LOAD_BALANCE_INFO, LB_PASSWORD.
    packet.extend((1_u32 | 2 | 0x10).to_le_bytes());
    for field in fields {
        packet.extend(u32::try_from(field.len())?.to_le_bytes());
        packet.extend(field);
    }
    let length = u16::try_from(packet.len())?;
    packet[2..4].copy_from_slice(&length.to_le_bytes());
    let mut pdu = (length + 8).to_le_bytes().to_vec();
    pdu.extend([0x1a, 0]);
    pdu.extend(SERVER_CHANNEL.to_le_bytes());
    pdu.extend([0, 0]);
    pdu.extend(packet);
    let indication = SendDataIndication {
        initiator_id: SERVER_CHANNEL,
        channel_id: IO_CHANNEL,
        user_data: Cow::Owned(pdu),
    };
    encode_vec(&X224(indication)).map_err(|error| anyhow::anyhow!("{error}"))
}

fn until_it_leaves(mut client: SslStream<std::net::TcpStream>) -> Result<()> {
    let mut bytes = [0; 1024];
    while matches!(client.read(&mut bytes), Ok(1..)) {}
    Ok(())
}

pub(crate) const BROKERS_SECRET: &str = "Cookie-Of-The-Broker-1";
