//! The demo's target and its headless client, against each other and without a gateway.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use image::RgbaImage;
use jetway::demo::canvas::Area;
use jetway::demo::client::{Capture, Session, Visit, capture};
use jetway::demo::desktop::Desktop;
use jetway::demo::target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const TLS: u32 = 1;

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
    let began = Instant::now();
    let seen = capture(&Visit::new(target.address, "alice", "any"))
        .await
        .unwrap();
    println!("captured in {:?}", began.elapsed());
    assert_eq!(seen.selected_protocol, TLS);
    assert_eq!(seen.desktop_size, (1024, 768));
    check(&seen, "alice");
    if let Some(path) = std::env::var_os("JETWAY_TEST_PICTURE") {
        seen.image.save(path).unwrap();
    }
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
    let mut session = Session::connect(&visit).await.unwrap();
    let quiet = Duration::from_millis(300);
    let area = Desktop::new(1024, 768, "alice").keys_area();
    session.settle(quiet).await.unwrap();
    let before = cut(&session.image().unwrap(), area);
    session.type_text("Jetway, 2 keys!").await.unwrap();
    session.move_pointer(321, 123).await.unwrap();
    session.settle(quiet).await.unwrap();
    let typed = cut(&session.image().unwrap(), area);
    assert_ne!(before, typed);
    session.type_text("?").await.unwrap();
    session.settle(quiet).await.unwrap();
    assert_ne!(cut(&session.image().unwrap(), area), typed);
    session.leave().await;
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_target_ends_its_sessions() {
    let target = Target::start().await;
    let visit = Visit::new(target.address, "alice", "any");
    let mut session = Session::connect(&visit).await.unwrap();
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
    let mut bystander = Session::connect(&visit).await.unwrap();
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
    let ssl_required = b"\x03\0\0\x13\x0e\xd0\0\0\0\0\0\x03\0\x08\0\x01\0\0\0";
    assert_eq!(answer, ssl_required);

    bystander.settle(Duration::from_millis(200)).await.unwrap();
    bystander.leave().await;
    check(&capture(&visit).await.unwrap(), "alice");
    target.stop().await;
}
