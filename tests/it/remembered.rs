//! What one inspected session can make the gateway remember, by the resident size of the real process, with a target and a
//! client that send what no real one does; others are served meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use jetway::demo::client::{ClientSession, Visit};
use jetway::demo::target;
use jetway::limits;
use jetway::rdp::connection_request;
use jetway::rdp::negotiation::ConnectionConfirm;
use jetway::rdp::preconnection;
use jetway::token::algorithm::{Algorithm, SignatureAlgorithm};
use jetway::token::mint::{self, SigningKey};
use jetway_lab::certificate::Identity;
use jetway_lab::net::free_address;
use jetway_lab::recording;
use jetway_lab::tls::{certificate_der, client_config};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, SELECTED_TLS, confirm, request, within};
use crate::process::{Served, wait_until};

/// What the gateway itself takes, with this build and its libraries, and all that a session needs in any case.
const ITSELF_BYTES: u64 = 64 * 1024 * 1024;

/// `drdynvc` of the recording.
const DRDYNVC: u16 = 1007;

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_target_stays_under_the_budget_of_a_session_and_others_are_served() {
    let gateway = Gateway::start();
    let mut hostile = gateway.session().await;
    // Each part of a few bytes is 8 KiB, on 64 channels; 60 MiB are held, in buffers of 64.
    for id in 0..64 {
        hostile.target_says(&create(id, "AUDIO_INPUT")).await;
    }
    for round in 0..120 {
        for id in 0..64 {
            hostile.target_says(&bomb(id, round == 0)).await;
        }
    }
    gateway.serves_another().await;
    // It goes on until it is ended.
    hostile
        .target_floods(|number| bomb(number % 64, false))
        .await;
    gateway.ended_as_told("a message of a dynamic channel");

    // Requests that nobody answers, on channels of one name.
    let mut hostile = gateway.session().await;
    for id in 0..50 {
        hostile.target_says(&create(id, "rdpdr")).await;
    }
    hostile
        .target_floods(|number| open_request(number % 50, number / 50))
        .await;
    gateway.ended_as_told("a device request without an answer");
    gateway.serves_another().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_client_stays_under_the_budget_of_a_session_and_others_are_served() {
    let gateway = Gateway::start();
    let mut hostile = gateway.session().await;
    for id in 0..64 {
        hostile.target_says(&create(id, "AUDIO_INPUT")).await;
    }
    for round in 0..120 {
        for id in 0..64 {
            hostile.client_says(&bomb(id, round == 0)).await;
        }
    }
    gateway.serves_another().await;
    hostile
        .client_floods(|number| bomb(number % 64, false))
        .await;
    gateway.ended_as_told("a message of a dynamic channel");
    gateway.serves_another().await;
}

struct Gateway {
    folder: tempfile::TempDir,
    address: SocketAddr,
    signing: SigningKey,
    certificate: CertificateDer<'static>,
    served: Served,
}

impl Gateway {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        fs::write(path("sign.pub.pem"), key.public_pem().unwrap()).unwrap();
        let identity = Identity::self_signed(&["gw.test"]);
        identity.write(folder.path(), ["c.pem", "k.pem"]);
        let address = free_address();
        let text = format!(
            "[[listener]]\naddress = \"{address}\"\n\
             [token]\nkeys = [{{ path = \"sign.pub.pem\", usage = \"sign\" }}]\n\
             [egress]\nallow = [{{ cidr = \"127.0.0.0/8\" }}]\n\
             [tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n\
             [session]\ninspect = \"always\"\n"
        );
        fs::write(path("jetway.toml"), text).unwrap();
        let served = Served::start(folder.path(), address, 256);
        Self {
            address,
            signing: SigningKey::from_key(&key, None).unwrap(),
            certificate: certificate_der(&identity),
            served,
            folder,
        }
    }

    fn token(&self, target: SocketAddr) -> String {
        mint::mint(&Lab::claims(target, json!({})), Some(&self.signing), None).unwrap()
    }

    /// A session of the recording up to its active phase, both ends of which are here.
    async fn session(&self) -> Ends {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = self.token(listener.local_addr().unwrap());
        let target = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            while connection_request::decode(&bytes).unwrap().is_none() {
                assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
            }
            stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
            let tls = TlsAcceptor::from(target::self_signed().unwrap());
            let stream: Box<dyn Stream> = Box::new(tls.accept(stream).await.unwrap());
            stream
        });
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut bytes = preconnection::encode_v2(0, &token).unwrap();
        let mut asks = request(None);
        if let Some(negotiation) = &mut asks.negotiation {
            negotiation.requested_protocols = 1;
        }
        bytes.extend(asks.encode().unwrap());
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(protocol(&confirm(&mut stream).await), Some(1));
        let name = ServerName::try_from("gw.test").unwrap();
        let tls = TlsConnector::from(client_config(self.certificate.clone()));
        let client = within(tls.connect(name, stream)).await.unwrap();
        let mut ends = Ends {
            client: Box::new(client),
            target: within(target).await.unwrap(),
        };
        ends.play().await;
        ends
    }

    /// Somebody else gets a picture, and the process is no larger than it may be.
    async fn serves_another(&self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = self.token(listener.local_addr().unwrap());
        let tls = target::self_signed().unwrap();
        tokio::spawn(target::serve(listener, tls, CancellationToken::new()));
        let mut visit = Visit::new(self.address, "alice", "any");
        visit.wsz_pcb = Some(&token);
        let mut client = within(ClientSession::connect(&visit)).await.unwrap();
        within(client.settle(visit.settle)).await.unwrap();
        client.leave().await;
        self.is_small();
    }

    /// By the most that was ever resident.
    fn is_small(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.served.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        let most = kib.parse::<u64>().unwrap() * 1024;
        let limit = u64::try_from(limits::REMEMBERED_BYTES).unwrap() + ITSELF_BYTES;
        assert!(most < limit, "{most} of {limit}");
    }

    /// The session's end says what was too much, and whose fault it is.
    fn ended_as_told(&self, what: &str) {
        let told = format!("more for {what} are above the limit");
        wait_until(|| log(self.folder.path()).contains(&told));
        self.is_small();
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Both ends of a session.
struct Ends {
    client: Box<dyn Stream>,
    target: Box<dyn Stream>,
}

impl Ends {
    /// Says what was recorded, PDU by PDU, until both sides are active.
    async fn play(&mut self) {
        for (is_client, pdu) in recording::session("gdi-tls-shadow2", [true, false]) {
            let (said, heard) = match is_client {
                true => (&mut self.client, &mut self.target),
                false => (&mut self.target, &mut self.client),
            };
            said.write_all(&pdu).await.unwrap();
            said.flush().await.unwrap();
            // Nothing of it changes its length.
            within(heard.read_exact(&mut vec![0; pdu.len()]))
                .await
                .unwrap();
            // Confirm Active.
            if is_client && pdu.get(17..19) == Some(&[0x13, 0][..]) {
                return;
            }
        }
        panic!("the recording has no Confirm Active");
    }

    async fn target_says(&mut self, message: &[u8]) {
        let frame = frame(false, message);
        self.target.write_all(&frame).await.unwrap();
        self.target.flush().await.unwrap();
        let mut passed = vec![0; frame.len()];
        within(self.client.read_exact(&mut passed)).await.unwrap();
    }

    async fn client_says(&mut self, message: &[u8]) {
        let frame = frame(true, message);
        self.client.write_all(&frame).await.unwrap();
        self.client.flush().await.unwrap();
        let mut passed = vec![0; frame.len()];
        within(self.target.read_exact(&mut passed)).await.unwrap();
    }

    /// The target goes on until the gateway ends the session.
    async fn target_floods(self, message: impl Fn(u32) -> Vec<u8>) {
        flood(false, self.target, self.client, message).await;
    }

    /// The client goes on until the gateway ends the session.
    async fn client_floods(self, message: impl Fn(u32) -> Vec<u8>) {
        flood(true, self.client, self.target, message).await;
    }
}

async fn flood(
    request: bool,
    mut from: Box<dyn Stream>,
    mut to: Box<dyn Stream>,
    message: impl Fn(u32) -> Vec<u8>,
) {
    let drained =
        tokio::spawn(async move { tokio::io::copy(&mut to, &mut tokio::io::sink()).await });
    for number in 0..200_000 {
        let frame = frame(request, &message(number));
        if from.write_all(&frame).await.is_err() || from.flush().await.is_err() {
            break;
        }
        if drained.is_finished() {
            break;
        }
    }
    // However the connection ends.
    let _ended = within(drained).await.unwrap();
}

/// A message of `drdynvc` in one chunk of one Send Data.
fn frame(request: bool, message: &[u8]) -> Vec<u8> {
    let data = u16::try_from(8 + message.len()).unwrap();
    let total = u16::try_from(15 + 8 + message.len()).unwrap();
    let mut frame = vec![3, 0];
    frame.extend(total.to_be_bytes());
    frame.extend([2, 0xf0, 0x80, if request { 0x64 } else { 0x68 }]);
    // Initiator, less 1001: of the recording's client, and of a server.
    frame.extend(if request { 7_u16 } else { 1 }.to_be_bytes());
    frame.extend(DRDYNVC.to_be_bytes());
    frame.push(0x70);
    frame.extend((data | 0x8000).to_be_bytes());
    frame.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
    frame.extend([3, 0, 0, 0]);
    frame.extend(message);
    frame
}

/// DYNVC_CREATE_REQ.
fn create(id: u32, name: &str) -> Vec<u8> {
    [&[0x12][..], &id.to_le_bytes(), name.as_bytes(), &[0]].concat()
}

/// A part of a message of 16 MiB, which never ends: a literal and a match of 8,191 bytes.
fn bomb(id: u32, first: bool) -> Vec<u8> {
    let segment = [0xe0, 0x26, 0x30, 0xc4, 0x3f, 0xfd, 0xff, 0xe0, 5];
    let id = id.to_le_bytes();
    if first {
        let length = u32::try_from(limits::DYNAMIC_MESSAGE_BYTES).unwrap();
        [&[0x6a][..], &id, &length.to_le_bytes(), &segment].concat()
    } else {
        [&[0x72][..], &id, &segment].concat()
    }
}

/// A request to open a file with a path of 4,000 characters of three bytes, on the dynamic channel `id`.
fn open_request(id: u32, completion: u32) -> Vec<u8> {
    let mut message = [&[0x32][..], &id.to_le_bytes(), b"rDRI"].concat();
    message.extend(
        [1, 0, completion, 0, 0]
            .map(u32::to_le_bytes)
            .as_flattened(),
    );
    message.extend([0; 28]);
    message.extend(8000_u32.to_le_bytes());
    message.extend([0x41; 8000]);
    message
}

fn protocol(confirm: &ConnectionConfirm) -> Option<u32> {
    match confirm {
        ConnectionConfirm::Selected { protocol, .. } => Some(*protocol),
        ConnectionConfirm::Failure { .. } | ConnectionConfirm::Plain => None,
    }
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap()
}
