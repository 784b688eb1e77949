//! A gateway in this process, a target that answers as RDP does, and clients that write bytes. What other tests use as well is in
//! `tests/lab`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jetway::audit::verify::Verifier;
use jetway::config::{Config, Flags};
use jetway::gateway::Running;
use jetway::rdp::connection_request::{self, ConnectionRequest, NegotiationRequest};
use jetway::rdp::negotiation::{self, ConnectionConfirm};
use jetway::rdp::preconnection;
use jetway::store::audit::files;
use jetway::token::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
use jetway::token::key::Key;
use jetway::token::mint::{self, EncryptionKey, SigningKey};
pub(crate) use jetway_lab::wait::PATIENCE;
use openssl::bn::BigNumRef;
use openssl::ec::EcKey;
use openssl::ecdsa::EcdsaSig;
use openssl::sha::sha256;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The first bytes of a TLS ClientHello: what a client says after a Connection Confirm that selects TLS.
pub(crate) const CLIENT_HELLO: &[u8] =
    &[0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00];

/// A gateway with its keys and files in a folder of its own.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) signing: Key,
    running: Option<Running>,
    extra: String,
}

impl Lab {
    /// A gateway with `extra` at the end of its configuration.
    pub(crate) fn start(extra: &str) -> Self {
        capture_log();
        let folder = tempfile::tempdir().unwrap();
        let signing = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        std::fs::write(
            folder.path().join("sign.pub.pem"),
            signing.public_pem().unwrap(),
        )
        .unwrap();
        // For those who configure it: nothing is revoked.
        std::fs::write(folder.path().join("revoked.json"), "{}").unwrap();
        let mut lab = Self {
            folder,
            signing,
            running: None,
            extra: extra.to_owned(),
        };
        lab.running = Some(Running::start(lab.config()).unwrap());
        lab
    }

    fn config(&self) -> Config {
        let path = self.folder.path().join("jetway.toml");
        // A test that needs its own listener, token or egress tables brings them.
        let mut text = String::new();
        if !self.extra.contains("[[listener]]") {
            text.push_str("[[listener]]\naddress = \"127.0.0.1:0\"\n");
        }
        if !self.extra.contains("[egress]") {
            text.push_str(
                "[egress]\nallow = [{ cidr = \"127.0.0.0/8\" }, { cidr = \"::1/128\" }]\n",
            );
        }
        if !self.extra.contains("[token]") {
            text.push_str("[token]\nreconnect_window_s = 0\n");
            text.push_str(KEYS);
        }
        text.push_str(&self.extra);
        std::fs::write(&path, text).unwrap();
        Config::load(&path, &Flags::default()).unwrap()
    }

    /// All records of the audit so far; the chain is whole.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let path = self.folder.path().join("jetway-audit.jsonl");
        let mut verifier = Verifier::new(None, None);
        let mut records = Vec::new();
        for file in files(&path).unwrap() {
            let text = std::fs::read_to_string(file).unwrap();
            // Half a line is being written.
            let lines = text
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'));
            for line in lines {
                verifier.line(line.as_bytes()).unwrap();
                records.push(serde_json::from_str(line).unwrap());
            }
        }
        records
    }

    /// Waits for a record that is as wanted.
    pub(crate) async fn audited(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                if let Some(record) = self.audit().into_iter().find(|record| wanted(record)) {
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("no such record: {:?}", self.audit()))
    }

    /// The gateway's port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.running().addresses()[0]
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Stops the gateway and starts it again on the same files, as a new process would.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start_again();
    }

    /// The second half of [`restart`](Self::restart).
    pub(crate) fn start_again(&mut self) {
        self.running = Some(Running::start(self.config()).unwrap());
    }

    pub(crate) async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    /// Claims of a forward token to `target`, with `changes` over them (null removes).
    pub(crate) fn claims(target: SocketAddr, changes: Value) -> Value {
        let now = jetway::clock::unix_now().0;
        let mut claims = json!({
            "jet_cm": "fwd",
            "jet_ap": "rdp",
            "dst_hst": target.to_string(),
            "jti": uuid::Uuid::new_v4().to_string(),
            "nbf": now,
            "exp": now + 120,
        });
        let object = claims.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            if value.is_null() {
                object.remove(name);
            } else {
                object.insert(name.clone(), value.clone());
            }
        }
        claims
    }

    /// A token that this gateway accepts, unless `changes` spoil it.
    pub(crate) fn token(&self, target: SocketAddr, changes: Value) -> String {
        let key = SigningKey::from_key(&self.signing, None).unwrap();
        mint::mint(&Self::claims(target, changes), Some(&key), None).unwrap()
    }

    /// The same with a header as it is written here, white space and all.
    pub(crate) fn token_with_header(&self, header: &str, target: SocketAddr) -> String {
        let claims = Self::claims(target, json!({})).to_string();
        let input = [header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let input = input.join(".");
        let pem = self.signing.private_pem().unwrap();
        let key = EcKey::private_key_from_pem(pem.as_bytes()).unwrap();
        let signature = EcdsaSig::sign(&sha256(input.as_bytes()), &key).unwrap();
        let half = |number: &BigNumRef| number.to_vec_padded(32).unwrap();
        let signature = [half(signature.r()), half(signature.s())].concat();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// A connection from 127.0.0.`last`, which is another address than 127.0.0.1.
    pub(crate) async fn connect_from(&self, last: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        socket.connect(self.address()).await.unwrap()
    }

    /// A client that carries `token` in its preconnection PDU and asks for TLS or NLA at once.
    pub(crate) async fn client(&self, token: &str) -> TcpStream {
        Self::greet(self.connect().await, token).await
    }

    async fn greet(mut stream: TcpStream, token: &str) -> TcpStream {
        let mut bytes = preconnection::encode_v2(0, token).unwrap();
        bytes.extend(request(None).encode().unwrap());
        stream.write_all(&bytes).await.unwrap();
        stream
    }

    /// A client whose session to `target` is up.
    pub(crate) async fn session(&self, token: &str) -> TcpStream {
        Self::open(self.connect().await, token).await
    }

    /// A client of the gateway at `address` whose session is up.
    pub(crate) async fn session_at(address: SocketAddr, token: &str) -> TcpStream {
        Self::open(TcpStream::connect(address).await.unwrap(), token).await
    }

    /// A client at 127.0.0.`last` whose session to `target` is up.
    pub(crate) async fn session_from(&self, last: u8, token: &str) -> TcpStream {
        Self::open(self.connect_from(last).await, token).await
    }

    async fn open(stream: TcpStream, token: &str) -> TcpStream {
        let mut stream = Self::greet(stream, token).await;
        assert_eq!(confirm(&mut stream).await, SELECTED_TLS);
        stream.write_all(CLIENT_HELLO).await.unwrap();
        let mut echo = [0_u8; CLIENT_HELLO.len()];
        within(stream.read_exact(&mut echo)).await.unwrap();
        stream
    }
}

/// The `keys` line for a test that brings its own `[token]` table.
pub(crate) const KEYS: &str = "keys = [{ path = \"sign.pub.pem\", usage = \"sign\" }]\n";

/// A key for encrypted tokens.
pub(crate) struct Sealing {
    /// The gateway's `[token]` table.
    pub(crate) table: String,
    key: EncryptionKey,
    _folder: tempfile::TempDir,
}

impl Sealing {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gw.pem");
        let key = mint::generate(Algorithm::KeyManagement(KeyManagement::EcdhEs)).unwrap();
        std::fs::write(&path, key.private_pem().unwrap().as_bytes()).unwrap();
        let keys = KEYS.trim_end().trim_end_matches(']');
        Self {
            table: format!("[token]\n{keys}, {{ path = {path:?}, usage = \"encrypt\" }}]\n"),
            key: EncryptionKey::from_key(&key, None).unwrap(),
            _folder: folder,
        }
    }

    /// A token of `lab`'s issuer that nobody but the gateway can read.
    pub(crate) fn token(&self, lab: &Lab, claims: &Value) -> String {
        let sign = SigningKey::from_key(&lab.signing, None).unwrap();
        mint::mint(claims, Some(&sign), Some(&self.key)).unwrap()
    }

    /// A signed token, encrypted anew.
    pub(crate) fn wrap(&self, signed: &str) -> String {
        self.key.wrap(signed).unwrap()
    }
}

/// What the lab's target answers.
pub(crate) const SELECTED_TLS: ConnectionConfirm = ConnectionConfirm::Selected {
    flags: 0,
    protocol: 1,
};

/// The Connection Request of a client that offers TLS and NLA.
pub(crate) fn request(routing_token: Option<&str>) -> ConnectionRequest {
    ConnectionRequest {
        routing_token: routing_token.map(|token| token.as_bytes().to_vec().into()),
        mstshash: routing_token.is_none().then(|| "alice".to_owned()),
        negotiation: Some(NegotiationRequest {
            flags: 0,
            requested_protocols: 3,
        }),
        ..ConnectionRequest::default()
    }
}

/// Waits, but not for ever.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("the test has waited long enough")
}

/// The Connection Confirm that the client gets.
pub(crate) async fn confirm(stream: &mut TcpStream) -> ConnectionConfirm {
    within(async {
        let mut bytes = Vec::new();
        loop {
            if let Some((confirm, _)) = negotiation::decode_confirm(&bytes).unwrap() {
                return confirm;
            }
            let count = stream.read_buf(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "closed without an answer, log:\n{}", log());
        }
    })
    .await
}

/// The failure code that the client gets, and the end of the connection behind it.
pub(crate) async fn failure(stream: &mut TcpStream) -> u32 {
    let ConnectionConfirm::Failure { code } = confirm(stream).await else {
        panic!("not refused, log:\n{}", log());
    };
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
    code
}

/// A target: reads a Connection Request, selects TLS, and from then on echoes.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Target {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let target = Self {
            address,
            connections: Arc::clone(&connections),
            requests: Arc::clone(&requests),
        };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(stream, Arc::clone(&requests)));
            }
        });
        target
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The first bytes of each connection that sent a Connection Request.
    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        self.requests.lock().unwrap().clone()
    }
}

/// A target that sends `banner` to whoever connects, and then echoes.
pub(crate) async fn speaker(banner: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.write_all(banner).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn answer(mut stream: TcpStream, requests: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut bytes = Vec::new();
    let length = loop {
        match connection_request::decode(&bytes) {
            Ok(Some((_, length))) => break length,
            Ok(None) => match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            },
            // TLS at once: echoed like everything else, as a ServerHello.
            Err(_) => {
                bytes[5] = 0x02;
                break 0;
            }
        }
    };
    let rest = bytes.split_off(length);
    if length > 0 {
        requests.lock().unwrap().push(bytes);
        if stream.write_all(&SELECTED_TLS.encode()).await.is_err() {
            return;
        }
    }
    if stream.write_all(&rest).await.is_err() {
        return;
    }
    let (mut read, mut write) = stream.split();
    let _ended = tokio::io::copy(&mut read, &mut write).await;
    let _closed = write.shutdown().await;
}

/// Every log line of this process so far (each test has a process of its own).
pub(crate) fn log() -> String {
    let bytes = LOG
        .get()
        .map(|log| log.lock().unwrap().clone())
        .unwrap_or_default();
    String::from_utf8(bytes).unwrap()
}

/// Forgets every log line so far.
pub(crate) fn forget_log() {
    if let Some(log) = LOG.get() {
        log.lock().unwrap().clear();
    }
}

/// Waits for a log line with this message and returns it.
pub(crate) async fn logged(message: &str) -> Value {
    logged_times(message, 1).await.pop().unwrap()
}

/// Waits until there are so many log lines with this message and returns them.
pub(crate) async fn logged_times(message: &str, times: usize) -> Vec<Value> {
    within(async {
        loop {
            let found: Vec<Value> = log()
                .lines()
                // Most lines are those of libraries at TRACE.
                .filter(|line| line.contains(message))
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .filter(|line| line["message"] == message)
                .collect();
            if found.len() >= times {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// The closing lines of the gateway, and each of these sessions has been opened by one line.
pub(crate) async fn closed(times: usize) -> Vec<Value> {
    let closed = of_gateway("Session closed", times).await;
    let opened = of_gateway("Session opened", closed.len()).await;
    for line in &closed {
        let opened: Vec<&Value> = opened
            .iter()
            .filter(|opened| opened["session"] == line["session"])
            .collect();
        assert_eq!(opened.len(), 1, "{line}");
        for name in ["peer", "target", "address", "token", "jet_aid", "agent"] {
            assert_eq!(opened[0][name], line[name], "{name}");
        }
    }
    closed
}

/// The lines of opened sessions.
pub(crate) async fn opened(times: usize) -> Vec<Value> {
    of_gateway("Session opened", times).await
}

/// The lines of the gateway with this message; an agent in this process has lines of its own.
async fn of_gateway(message: &str, times: usize) -> Vec<Value> {
    let mut at_least = times;
    loop {
        let mut lines = logged_times(message, at_least).await;
        at_least = lines.len() + 1;
        lines.retain(|line| line["decision"] == "allow");
        if lines.len() >= times {
            return lines;
        }
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();

fn capture_log() {
    capture_log_of(tracing::Level::TRACE);
}

/// Keeps the log to what an operator reads, from before the gateway starts: every frame of a library is a line of its own.
pub(crate) fn quiet() {
    capture_log_of(tracing::Level::INFO);
}

fn capture_log_of(level: tracing::Level) {
    let log = Arc::clone(LOG.get_or_init(Arc::default));
    let writer = move || LogWriter(Arc::clone(&log));
    let _first = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(level)
        .with_writer(writer)
        .try_init();
}

struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file in the lab's folder.
pub(crate) fn path(lab: &Lab, name: &str) -> PathBuf {
    lab.folder.path().join(name)
}
