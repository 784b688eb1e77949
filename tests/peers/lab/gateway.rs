//! The gateway under test: the real binary with keys of its own, on loopback.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use jetway_lab::certificate::Identity;
use jetway_lab::wait::{PATIENCE, until};
use serde_json::{Value, json};

use super::authority::Authority;
use super::log::{CLOSED, Line};
use super::port::Port;
use super::process::{Process, tool};
use super::target::Target;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Gateway {
    process: Process,
    port: Port,
    keys: Keys,
    folder: PathBuf,
    /// Standard error (the log) and standard output.
    outputs: [PathBuf; 2],
}

impl Gateway {
    /// A gateway where a used token is used for good.
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        Self::start_with(workspace, 0)
    }

    /// A gateway where the same address may use a token again within so many seconds.
    pub(crate) fn start_with(workspace: &Workspace, reconnect_window_s: u64) -> Result<Self> {
        Self::start_configured(workspace, reconnect_window_s, "", &[])
    }

    /// A gateway with a certificate of its own, which can stand inside of sessions.
    ///
    /// `verify` says how it judges certificates of targets.
    pub(crate) fn start_inside(workspace: &Workspace, verify: &str) -> Result<Self> {
        Self::start_inside_with(workspace, verify, "")
    }

    /// The same for `target`, which is trusted by its name where it has TLS alone.
    pub(crate) fn start_inside_for(workspace: &Workspace, target: &dyn Target) -> Result<Self> {
        Self::start_inside_for_with(workspace, target, "")
    }

    /// The same with further lines of configuration, the first of them in `[target]`.
    pub(crate) fn start_inside_for_with(
        workspace: &Workspace,
        target: &dyn Target,
        further: &str,
    ) -> Result<Self> {
        let further = format!("{}{further}", tls_only(target));
        Self::start_inside_with(workspace, "first-use", &further)
    }

    /// The same with a log at its most talkative.
    pub(crate) fn start_inside_at_trace(workspace: &Workspace, verify: &str) -> Result<Self> {
        let further = Self::inside(workspace, verify, "")?;
        Self::start_configured(workspace, 0, &further, &["--log-filter", "trace"])
    }

    /// The same with further lines of configuration, the first of them in `[target]`.
    pub(crate) fn start_inside_with(
        workspace: &Workspace,
        verify: &str,
        target: &str,
    ) -> Result<Self> {
        let further = Self::inside(workspace, verify, target)?;
        Self::start_configured(workspace, 0, &further, &[])
    }

    /// The same for `target`, where clients may come back within a minute, and are not waited for when it stops.
    pub(crate) fn start_inside_to_restart(
        workspace: &Workspace,
        target: &dyn Target,
    ) -> Result<Self> {
        let further = format!("{}[session]\ndrain_s = 0\n", tls_only(target));
        let further = Self::inside(workspace, "first-use", &further)?;
        Self::start_configured(workspace, 60, &further, &[])
    }

    /// The same where the same address may use a token again within so many seconds.
    pub(crate) fn start_inside_again(
        workspace: &Workspace,
        reconnect_window_s: u64,
        further: &str,
    ) -> Result<Self> {
        let further = Self::inside(workspace, "first-use", further)?;
        Self::start_configured(workspace, reconnect_window_s, &further, &[])
    }

    fn inside(workspace: &Workspace, verify: &str, target: &str) -> Result<String> {
        let folder = workspace.folder("gateway")?;
        let [certificate, key] = Identity::self_signed(&["localhost"]).write(&folder, FILES);
        Ok(format!(
            r#"{operated}

[target]
verify = "{verify}"
pins = "{pins}"
{target}
"#,
            operated = operated(&certificate, &key),
            pins = folder.join(PINS).display(),
        ))
    }

    /// A gateway with an operator and a certificate, where peers meet; `further` ends its configuration.
    pub(crate) fn start_for_peers(
        workspace: &Workspace,
        authority: &Authority,
        further: &str,
    ) -> Result<Self> {
        let (certificate, key) = authority.of_gateway();
        let further = format!(
            r#"{operated}
{further}
"#,
            operated = operated(&certificate, &key),
        );
        Self::start_configured(workspace, 0, &further, &[])
    }

    /// A gateway that others reach by `addresses`, with TLS; returns the certificate that they are to trust.
    pub(crate) fn start_for_networks(
        workspace: &Workspace,
        addresses: &[&str],
        port: &Port,
        tls_only: &[String],
        talkative: bool,
    ) -> Result<(Self, PathBuf)> {
        let folder = workspace.folder("gateway")?;
        let [certificate, key] = Identity::self_signed(addresses).write(&folder, FILES);
        let port = port.number();
        let listeners: String = addresses
            .iter()
            .map(|address| format!("\n[[listener]]\naddress = \"{address}:{port}\"\n"))
            .collect();
        let further = format!(
            r#"{listeners}{operated}

[target]
verify = "first-use"
pins = "{pins}"
tls_only = {tls_only:?}
"#,
            operated = operated(&certificate, &key),
            pins = folder.join(PINS).display(),
        );
        let arguments: &[&str] = if talkative {
            &["--log-filter", "trace"]
        } else {
            &[]
        };
        let gateway = Self::start_configured(workspace, 0, &further, arguments)?;
        Ok((gateway, certificate))
    }

    fn start_configured(
        workspace: &Workspace,
        reconnect_window_s: u64,
        further: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let folder = workspace.folder("gateway")?;
        let port = Port::free()?;
        let keys = Keys::make(&folder)?;
        fs::write(folder.join(REVOKED), revoked(&[]))?;
        let config = folder.join(CONFIG);
        let mut text = configuration(port.number(), &keys, &folder, reconnect_window_s);
        text.push_str(further);
        fs::write(config, text)?;
        let outputs = [
            workspace.path("jetway.log"),
            workspace.path("jetway-stdout.log"),
        ];
        let binary = Path::new(BINARY);
        let process = serve(binary, workspace, &folder, arguments, &outputs, &port)?;
        Ok(Self {
            process,
            port,
            keys,
            folder,
            outputs,
        })
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// A token for `target` by `jetway token new`, signed or signed and encrypted.
    pub(crate) fn token(&self, target: &str, protection: Protection) -> Result<String> {
        let mut arguments: Vec<&OsStr> = [
            "token",
            "new",
            "--jet-cm",
            "fwd",
            "--jet-ap",
            "rdp",
            "--lifetime",
            "120",
        ]
        .iter()
        .map(OsStr::new)
        .collect();
        arguments.extend([OsStr::new("--dst-hst"), OsStr::new(target)]);
        arguments.extend([OsStr::new("--sign-key"), self.keys.signing.as_os_str()]);
        if protection == Protection::Nested {
            arguments.extend([
                OsStr::new("--encrypt-key"),
                self.keys.encryption_public.as_os_str(),
            ]);
        }
        jetway(&arguments)
    }

    /// A token for `target` by `jetway token new` that has the gateway log on.
    pub(crate) fn token_with(&self, target: &str, grant: &Grant<'_>) -> Result<String> {
        let mut arguments: Vec<OsString> = ["token", "new", "--jet-cm", "fwd", "--jet-ap", "rdp"]
            .iter()
            .map(OsString::from)
            .collect();
        arguments.extend(["--dst-hst".into(), target.into()]);
        arguments.extend(["--sign-key".into(), self.keys.signing.clone().into()]);
        let public = self.keys.encryption_public.clone();
        arguments.extend(["--encrypt-key".into(), public.into()]);
        let credentials = [("dst", Some(grant.target)), ("prx", grant.proxy)];
        for (side, credentials) in credentials {
            let Some((user, password)) = credentials else {
                continue;
            };
            let file = self.secret_file(&format!("{side}.password"), password)?;
            arguments.extend([format!("--{side}-usr").into(), user.into()]);
            arguments.extend([format!("--{side}-pwd-file").into(), file.into()]);
        }
        if let Some(alternative) = grant.alternative {
            arguments.extend(["--dst-alt".into(), alternative.into()]);
        }
        if let Some(thumbprint) = grant.certificate {
            arguments.extend(["--cert-thumb256".into(), thumbprint.into()]);
        }
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        jetway(&arguments)
    }

    /// A ticket that stands for `token`, by `jetway ticket`.
    pub(crate) fn ticket(&self, token: &str) -> Result<String> {
        let file = self.secret_file("ticket-of.jwt", token)?;
        let url = format!("http://{}", self.address());
        jetway(&[
            OsStr::new("ticket"),
            OsStr::new("--gateway"),
            OsStr::new(&url),
            OsStr::new("--token-file"),
            file.as_os_str(),
        ])
    }

    /// A .rdp file by `jetway rdp` with the token in `pcb`, the ticket in `loadbalanceinfo`, or both.
    pub(crate) fn rdp_file(&self, token: Option<&str>, ticket: Option<&str>) -> Result<PathBuf> {
        self.rdp_file_with(token, ticket, &[])
    }

    /// The same with further options.
    pub(crate) fn rdp_file_with(
        &self,
        token: Option<&str>,
        ticket: Option<&str>,
        options: &[&str],
    ) -> Result<PathBuf> {
        let (address, out) = (self.address(), self.folder.join("session.rdp"));
        let token = token
            .map(|token| self.secret_file("rdp.jwt", token))
            .transpose()?;
        let ticket = ticket
            .map(|ticket| self.secret_file("rdp.ticket", ticket))
            .transpose()?;
        let mut arguments = vec![OsStr::new("rdp")];
        arguments.extend(options.iter().map(OsStr::new));
        arguments.extend([OsStr::new("--full-address"), OsStr::new(&address)]);
        arguments.extend([OsStr::new("--out"), out.as_os_str()]);
        if let Some(token) = &token {
            arguments.extend([OsStr::new("--token-file"), token.as_os_str()]);
        }
        if let Some(ticket) = &ticket {
            arguments.extend([OsStr::new("--ticket-file"), ticket.as_os_str()]);
        }
        jetway(&arguments)?;
        Ok(out)
    }

    /// Revokes the tokens with these ids by the file that the gateway watches, and waits until it has read it.
    pub(crate) fn revoke(&self, ids: &[&str]) -> Result<()> {
        let before = self.logged(RELOADED)?.len();
        // A new file in the place of the old one: the gateway never sees half of it.
        let new = self.folder.join("revoked.new");
        fs::write(&new, revoked(ids))?;
        fs::rename(new, self.folder.join(REVOKED)).context("replace the revocations")?;
        self.wait_for(RELOADED, before + 1).map(drop)
    }

    /// What the gateway has logged so far; an error when a line is not JSON.
    pub(crate) fn log(&self) -> Result<Vec<Line>> {
        let text = fs::read_to_string(&self.outputs[0])?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| text.split_at(end).0);
        whole.lines().map(Line::parse).collect()
    }

    /// Waits until `message` was logged `count` times and returns those lines, in order.
    pub(crate) fn wait_for(&self, message: &str, count: usize) -> Result<Vec<Line>> {
        until(&format!("{count} log lines {message:?}"), PATIENCE, || {
            let lines = self.logged(message)?;
            Ok((lines.len() >= count).then_some(lines))
        })
    }

    pub(crate) fn logged(&self, message: &str) -> Result<Vec<Line>> {
        let mut lines = self.log()?;
        lines.retain(|line| line.field("message").as_deref() == Some(message));
        Ok(lines)
    }

    /// What the gateway has told of what happened inside of its sessions, in order.
    pub(crate) fn audit(&self) -> Result<Vec<Value>> {
        let records = self.audit_records()?;
        let activity = records
            .iter()
            .filter(|record| record["event"] == "session.activity");
        Ok(activity.map(|record| record["detail"].clone()).collect())
    }

    /// All that is in the audit; what was closed by now is.
    fn audit_records(&self) -> Result<Vec<Value>> {
        let closed = self.logged(CLOSED)?.len();
        until("the audit", PATIENCE, || {
            let text = fs::read_to_string(self.folder.join(AUDIT))?;
            let lines = text
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'));
            let records: Vec<Value> = lines
                .map(serde_json::from_str)
                .collect::<serde_json::Result<_>>()?;
            let ended = |record: &&Value| record["event"] == "session.closed";
            let whole = records.iter().filter(ended).count() >= closed;
            Ok(whole.then_some(records))
        })
    }

    /// The live sessions, as an operator gets them from the REST interface.
    pub(crate) fn live_sessions(&self) -> Result<Value> {
        self.request("GET /jet/sessions", API_KEY)
    }

    /// Ends the one live session, as an operator does.
    pub(crate) fn end_session(&self) -> Result<()> {
        let live = self.live_sessions()?;
        let id = live[0]["id"].as_str().context("no live session")?;
        self.request(&format!("DELETE /jet/sessions/{id}"), API_KEY)
            .map(drop)
    }

    /// Asks the REST interface for something that is to be granted.
    pub(crate) fn request(&self, what: &str, bearer: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.address())?;
        write!(
            stream,
            "{what} HTTP/1.1\r\nHost: localhost:{}\r\nAuthorization: Bearer {bearer}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n",
            self.port.number()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("HTTP")?;
        let granted = ["HTTP/1.1 200 ", "HTTP/1.1 204 "];
        ensure!(
            granted.iter().any(|granted| head.starts_with(granted)),
            "{what}: {head}"
        );
        // An answer without a body is null.
        let body = if body.is_empty() { "null" } else { body };
        serde_json::from_str(body).with_context(|| body.to_owned())
    }

    /// Ends the gateway as a system does that restarts it.
    pub(crate) fn stop(&mut self) {
        self.process.end();
    }

    /// Ends it so, and starts it again; its log goes on.
    pub(crate) fn restart(&mut self, workspace: &Workspace) -> Result<()> {
        self.restart_as(workspace, Path::new(BINARY))
    }

    /// Likewise, as another program that is a gateway.
    pub(crate) fn restart_as(&mut self, workspace: &Workspace, binary: &Path) -> Result<()> {
        self.stop();
        let outputs = &self.outputs;
        self.process = serve(binary, workspace, &self.folder, &[], outputs, &self.port)?;
        Ok(())
    }

    /// What it has written to standard output.
    pub(crate) fn printed(&self) -> Result<String> {
        let [_log, stdout] = &self.outputs;
        Ok(fs::read_to_string(stdout)?)
    }

    /// Waits until something happened that has all of `expected`, and returns what was told of it.
    pub(crate) fn wait_for_audit(&self, expected: &Value) -> Result<Value> {
        let found = until("an audit event", PATIENCE, || {
            let events = self.audit()?;
            Ok(events.into_iter().find(|event| has(event, expected)))
        });
        found.or_else(|error| {
            let events: Vec<String> = self.audit()?.iter().map(Value::to_string).collect();
            bail!("{error:#}: {expected} among\n{}", events.join("\n"))
        })
    }

    /// None of `secrets` is in what the gateway printed, in the command line that every user of the machine can read,
    /// in its environment, or in a file that it wrote; not in another spelling either.
    pub(crate) fn keeps_secret(&self, secrets: &[&str]) -> Result<()> {
        let mut seen = self.process.command_line()?.into_bytes();
        seen.extend(self.process.environment()?.into_bytes());
        let written = [STORE, PINS, AUDIT].map(|name| self.folder.join(name));
        for file in self.outputs.iter().chain(&written) {
            if file.exists() {
                seen.extend(fs::read(file)?);
            }
        }
        for secret in secrets {
            ensure!(!secret.is_empty(), "an empty secret proves nothing");
            // The signature alone is enough to complete a token whose claims are known.
            let signature = secret.rsplit_once('.').map(|(_, part)| part);
            let signature = signature.filter(|part| part.len() > 20);
            for secret in std::iter::once(*secret).chain(signature) {
                ensure!(
                    !shows_secret(&seen, secret),
                    "the gateway shows a secret: {secret}"
                );
            }
        }
        Ok(())
    }

    fn secret_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, content)?;
        Ok(path)
    }
}

/// Starts the gateway that `folder` configures.
fn serve(
    binary: &Path,
    workspace: &Workspace,
    folder: &Path,
    arguments: &[&str],
    outputs: &[PathBuf; 2],
    port: &Port,
) -> Result<Process> {
    let [log, stdout] = outputs.each_ref().map(|path| {
        let mut options = fs::OpenOptions::new();
        options.create(true).append(true).open(path)
    });
    let config = folder.join(CONFIG);
    let mut process = Process::start_as_is(
        workspace,
        "jetway",
        Command::new(binary)
            .args([
                OsStr::new("serve"),
                OsStr::new("--config"),
                config.as_os_str(),
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(log?)
            .stdout(stdout?),
    )?;
    port.wait_for_listener(|| process.expect_alive())?;
    Ok(process)
}

/// Whether `secret` is in `text`, in any spelling.
pub(crate) fn shows_secret(text: &[u8], secret: &str) -> bool {
    let spellings = spellings(secret);
    spellings.iter().any(|spelling| contains(text, spelling))
}

/// The line by which a target is trusted by its name where it has TLS alone.
fn tls_only(target: &dyn Target) -> String {
    let named = match target.has_nla() {
        true => Vec::new(),
        false => vec![target.place().address()],
    };
    format!("tls_only = {named:?}\n")
}

/// The configuration of a gateway with an operator and a certificate.
fn operated(certificate: &Path, key: &Path) -> String {
    format!(
        r#"
[api]
keys = [{{ name = "peers", sha256 = "{digest}" }}]

[tls]
certificate = "{certificate}"
key = "{key}"
"#,
        digest = hex::encode(openssl::sha::sha256(API_KEY.as_bytes())),
        certificate = certificate.display(),
        key = key.display(),
    )
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first() else {
        return true;
    };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        let (_, found) = rest.split_at(at);
        if found.starts_with(part) {
            return true;
        }
        rest = found.get(1..).unwrap_or_default();
    }
    false
}

/// A secret as it may stand in a log: as text, as UTF-16 (the way it is on the wire), in base64 and hexadecimal.
fn spellings(secret: &str) -> Vec<Vec<u8>> {
    let utf16: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bytes = |bytes: &[u8]| {
        let list = format!("{bytes:?}");
        [
            STANDARD_NO_PAD.encode(bytes),
            hex::encode(bytes),
            hex::encode_upper(bytes),
            // As a derived `Debug` prints bytes.
            list.trim_matches(['[', ']']).to_owned(),
        ]
        .map(String::into_bytes)
    };
    let mut spellings = vec![secret.as_bytes().to_vec(), utf16.clone()];
    spellings.extend(bytes(secret.as_bytes()));
    spellings.extend(bytes(&utf16));
    spellings
}

/// How a token is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    Signed,
    /// Signed, then encrypted to the gateway.
    Nested,
}

/// What a token gives its bearer besides the way to the target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant<'a> {
    /// User and password that the gateway shows the target.
    pub(crate) target: (&'a str, &'a str),
    /// User and password that the client must show the gateway.
    pub(crate) proxy: Option<(&'a str, &'a str)>,
    /// SHA-256 of the only certificate that the target may show.
    pub(crate) certificate: Option<&'a str>,
    /// Another target that will do.
    pub(crate) alternative: Option<&'a str>,
}

impl<'a> Grant<'a> {
    /// The gateway logs on; the client needs nothing but the token.
    pub(crate) fn logon(user: &'a str, password: &'a str) -> Self {
        Self {
            target: (user, password),
            proxy: None,
            certificate: None,
            alternative: None,
        }
    }
}

/// The key pairs of one gateway, as `jetway keys new` makes them.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) signing: PathBuf,
    pub(crate) signing_public: PathBuf,
    pub(crate) encryption: PathBuf,
    pub(crate) encryption_public: PathBuf,
}

impl Keys {
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        for (name, algorithm) in [("sign", "ES256"), ("enc", "RSA-OAEP-256")] {
            jetway(&[
                OsStr::new("keys"),
                OsStr::new("new"),
                OsStr::new("--alg"),
                OsStr::new(algorithm),
                OsStr::new("--out"),
                folder.as_os_str(),
                OsStr::new("--name"),
                OsStr::new(name),
            ])?;
        }
        Ok(Self {
            signing: folder.join("sign.private.pem"),
            signing_public: folder.join("sign.public.pem"),
            encryption: folder.join("enc.private.pem"),
            encryption_public: folder.join("enc.public.pem"),
        })
    }
}

/// Whether all of `expected` is in `event`, down to the last field.
fn has(event: &Value, expected: &Value) -> bool {
    match (event, expected) {
        (Value::Object(event), Value::Object(expected)) => expected
            .iter()
            .all(|(name, value)| event.get(name).is_some_and(|found| has(found, value))),
        (Value::Array(event), Value::Array(expected)) => expected
            .iter()
            .all(|value| event.iter().any(|found| has(found, value))),
        (event, expected) => event == expected,
    }
}

fn configuration(port: u16, keys: &Keys, folder: &Path, reconnect_window_s: u64) -> String {
    format!(
        r#"
[[listener]]
address = "127.0.0.1:{port}"

[token]
keys = [
    {{ path = "{sign}", usage = "sign" }},
    {{ path = "{encrypt}", usage = "encrypt" }},
]
revoked = "{revoked}"
leeway_s = 5
reconnect_window_s = {reconnect_window_s}

[egress]
allow = [{{ cidr = "127.0.0.0/8" }}]

[store]
path = "{store}"

[log]
format = "json"
"#,
        sign = keys.signing_public.display(),
        encrypt = keys.encryption.display(),
        revoked = folder.join(REVOKED).display(),
        store = folder.join(STORE).display(),
    )
}

fn revoked(ids: &[&str]) -> String {
    json!({ "jti": ids }).to_string()
}

/// Runs a command of the binary under test and returns the one value it prints.
pub(crate) fn jetway(arguments: &[&OsStr]) -> Result<String> {
    let printed = String::from_utf8(tool(Command::new(BINARY).args(arguments))?)?;
    Ok(printed.trim().to_owned())
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_jetway");
pub(crate) const API_KEY: &str = "Of-An-Operator-1";
/// The gateway's certificate and key.
const FILES: [&str; 2] = ["tls.pem", "tls.key"];
const CONFIG: &str = "jetway.toml";
const AUDIT: &str = "jetway-audit.jsonl";
const PINS: &str = "targets.pins";
const STORE: &str = "state.redb";
const REVOKED: &str = "revoked.json";
const RELOADED: &str = "Revocation list reloaded";
