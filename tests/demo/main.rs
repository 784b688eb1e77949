//! The demo's target and its headless client, against each other and without a gateway.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests, too"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image::RgbaImage;
use jetway::demo::canvas::Area;
use jetway::demo::client::{Capture, ClientSession, Visit, capture};
use jetway::demo::desktop::Desktop;
use jetway::demo::show::{Clients, Show, Started};
use jetway::demo::target;
use jetway::rdp::preconnection::{self, PreconnectionPdu};
use jetway::token::{KeyDocument, KeySet, KeyUsage, TokenRules, Verifier};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const TLS: u32 = 1;

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Target {
    address: SocketAddr,
    cancel: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Target {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let tls = target::self_signed().unwrap();
        let task = tokio::spawn(target::serve(listener, tls, cancel.clone()));
        Self {
            address,
            cancel,
            task,
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        let stopped = timeout(Duration::from_secs(5), self.task).await;
        stopped.expect("the target stops").unwrap().unwrap();
    }
}

fn cut(image: &RgbaImage, area: Area) -> RgbaImage {
    let (left, top) = (u32::from(area.left), u32::from(area.top));
    let (width, height) = (u32::from(area.width()), u32::from(area.height()));
    image::imageops::crop_imm(image, left, top, width, height).to_image()
}

fn check(capture: &Capture, user: &str) {
    let (width, height) = capture.desktop_size;
    let desktop = Desktop::new(width, height, user);
    desktop
        .check_still_part(capture.image.dimensions(), capture.image.as_raw())
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_sees_exactly_what_the_target_draws() {
    let target = Target::start().await;
    let seen = capture(&Visit::new(target.address, "alice", "any"))
        .await
        .unwrap();
    assert_eq!(seen.selected_protocol, TLS);
    assert_eq!(seen.desktop_size, (1024, 768));
    check(&seen, "alice");
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_tiles_do_not_divide_arrives_whole() {
    let target = Target::start().await;
    for size in [(1366, 768), (800, 601), (202, 200)] {
        let visit = Visit {
            size,
            ..Visit::new(target.address, "Zoë, from далеко", "")
        };
        let seen = capture(&visit).await.unwrap();
        assert_eq!(seen.desktop_size, size);
        check(&seen, visit.user);
    }
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_keys_are_echoed() {
    let target = Target::start().await;
    let visit = Visit::new(target.address, "alice", "any");
    let mut session = ClientSession::connect(&visit).await.unwrap();
    let quiet = Duration::from_millis(300);
    let area = Desktop::new(1024, 768, "alice").keys_area();
    session.settle(quiet).await.unwrap();
    let before = cut(session.image(), area);
    session.type_text("Jetway, 2 keys!").await.unwrap();
    session.move_pointer(321, 123).await.unwrap();
    session.settle(quiet).await.unwrap();
    let typed = cut(session.image(), area);
    assert_ne!(before, typed);
    session.type_text("?").await.unwrap();
    session.settle(quiet).await.unwrap();
    assert_ne!(cut(session.image(), area), typed);
    session.leave().await;
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_target_ends_its_sessions() {
    let target = Target::start().await;
    let visit = Visit::new(target.address, "alice", "any");
    let mut session = ClientSession::connect(&visit).await.unwrap();
    session.settle(Duration::from_millis(50)).await.unwrap();
    target.stop().await;
    let end = timeout(Duration::from_secs(5), session.ended())
        .await
        .unwrap();
    assert!(end.to_string().contains("ended the session"), "{end:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_only() {
    let target = Target::start().await;
    let visit = Visit::new(target.address, "alice", "any");
    let mut bystander = ClientSession::connect(&visit).await.unwrap();
    let mut every_byte: Vec<u8> = (0..=255).collect();
    every_byte.extend([0; 4096]);
    let request = b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0";
    let plain_rdp = b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\0\0\0\0";
    let early = [request.as_slice(), b"\x16\x03\x01\0\x05hello"].concat();
    let not_tls = [request.as_slice(), &[0; 64]].concat();
    for garbage in [
        b"".as_slice(),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x03\0\0\x04",
        b"\x03\0\0\0",
        b"\x30\0\x30\0\x30\0",
        &every_byte,
        &early,
        &not_tls,
    ] {
        let mut stream = TcpStream::connect(target.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        // A reset is an answer too; silence is not.
        let _ = closed.expect("the target closes a connection that speaks no RDP");
    }
    let mut stream = TcpStream::connect(target.address).await.unwrap();
    stream.write_all(plain_rdp).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let ssl_required = b"\x03\0\0\x13\x0e\xd0\0\0\x12\x34\0\x03\0\x08\0\x01\0\0\0";
    assert_eq!(answer, ssl_required);

    bystander.settle(Duration::from_millis(200)).await.unwrap();
    bystander.leave().await;
    check(&capture(&visit).await.unwrap(), "alice");
    target.stop().await;
}

/// As much of a gateway as the demo needs: verifies the token in the preconnection PDU and passes on what follows.
fn stand_in_gateway(config: &Path) -> anyhow::Result<Started> {
    let text = std::fs::read_to_string(config)?;
    let folder = config.parent().unwrap();
    let mut documents = Vec::new();
    for (file, usage) in [
        ("issuer.pub.pem", KeyUsage::Sign),
        ("gateway.key.pem", KeyUsage::Encrypt),
    ] {
        assert!(text.contains(file), "{text}");
        documents.push((file, std::fs::read(folder.join(file))?, usage));
    }
    let documents: Vec<KeyDocument<'_>> = documents
        .iter()
        .map(|(name, bytes, usage)| KeyDocument {
            name,
            bytes,
            usage: Some(*usage),
            kid: None,
        })
        .collect();
    let keys = KeySet::from_documents(&documents)?;
    let verifier = Arc::new(Verifier::new(keys, TokenRules::default()));
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = TcpListener::from_std(listener)?;
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let verifier = Arc::clone(&verifier);
            tokio::spawn(async move {
                let mut read = Vec::new();
                let (pdu, length) = loop {
                    client.read_buf(&mut read).await.unwrap();
                    if let Some(pdu) = preconnection::decode(&read).unwrap() {
                        break pdu;
                    }
                };
                let PreconnectionPdu::V2 { wsz_pcb, .. } = pdu else {
                    panic!("the demo sends version 2");
                };
                let token = verifier
                    .verify(&wsz_pcb, jetway::clock::unix_now())
                    .unwrap();
                let target = token.claims.targets[0].to_string();
                let mut target = TcpStream::connect(target).await.unwrap();
                target.write_all(&read[length..]).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut target).await;
            });
        }
    });
    Ok(Started {
        address,
        stop: Box::pin(async move { task.abort() }),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_leaves_a_picture_and_a_file_to_connect_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut out = Vec::new();
    let show = Show::open(folder.path(), ANY_PORT, stand_in_gateway, &mut out)
        .await
        .unwrap();
    let said = String::from_utf8(out).unwrap();
    assert!(said.contains("compared and equal"), "{said}");
    let picture = image::open(&show.picture).unwrap().to_rgba8();
    assert_eq!(picture.dimensions(), (1024, 768));
    let rdp = std::fs::read(&show.rdp_file).unwrap();
    let units: Vec<u16> = rdp
        .chunks(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let rdp = String::from_utf16(&units).unwrap();
    let rdp = rdp.trim_start_matches('\u{feff}');
    let token = rdp
        .lines()
        .find_map(|line| line.strip_prefix("pcb:s:"))
        .unwrap();
    let address = rdp
        .lines()
        .find_map(|line| line.strip_prefix("full address:s:"))
        .unwrap();
    let invitation = show.invitation(&Clients {
        freerdp: Some("xfreerdp"),
        display: true,
    });
    assert!(
        !said.contains(token) && !invitation.contains(token),
        "a token is a secret"
    );
    assert!(invitation.contains(show.rdp_file.to_str().unwrap()));
    let visit = Visit {
        wsz_pcb: Some(token),
        ..Visit::new(address.parse().unwrap(), "visitor", "any")
    };
    check(&capture(&visit).await.unwrap(), "visitor");
    #[cfg(unix)]
    for secret in ["gateway.key.pem", "issuer.key.pem", "demo.rdp"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder.path().join(secret))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    show.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_gateway_leads_nowhere_fails() {
    let folder = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let nowhere = |_: &Path| {
        Ok(Started {
            address,
            stop: Box::pin(async {}),
        })
    };
    let error = Show::open(folder.path(), ANY_PORT, nowhere, &mut Vec::new())
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("through the gateway"),
        "{error:#}"
    );
}
