//! From a TOML file, the environment and flags to a [`Config`]; a bad value stops the process before any port is bound.
//!
//! Later layers win: built-in defaults, the file, `JETWAY_…` variables (`__` separates levels, as in
//! `JETWAY_STORE__PATH`), flags. Relative paths in the file are relative to the file, and `${NAME}` in a path is the variable
//! of that name, as systemd sets `CREDENTIALS_DIRECTORY`. Every error names the file, the key and, where the file set it, the
//! line. All are told at once: where one value is at fault, the others are looked at without it ([`Reading`]).

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use jetway_base::limits;
use jetway_log::settings::{LogConfig, LogFormat};
use jetway_policy::egress::{EgressConfig, EgressRules};
use jetway_store::audit::AuditSettings;
use jetway_token::key::KeyUsage;
use jetway_token::target::TargetAddr;
use jetway_token::target_name::TargetName;
use jetway_token::{TokenRules, UnsignedJwe};

/// Everything an administrator can set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Ports to listen on, each with its own narrowing and TLS settings.
    pub listener: Vec<ListenerConfig>,
    /// TLS of the listeners that have none of their own.
    pub tls: Option<TlsConfig>,
    /// Which tokens are accepted.
    pub token: TokenConfig,
    /// Short references that stand for a token.
    #[serde(default)]
    pub tickets: TicketConfig,
    /// HTTP on the same port.
    #[serde(default)]
    pub api: ApiConfig,
    /// Where the gateway may connect to.
    #[serde(default)]
    pub egress: EgressConfig,
    /// Time limits of a session.
    #[serde(default)]
    pub session: SessionConfig,
    /// How the gateway meets clients in sessions that it stands inside of.
    #[serde(default)]
    pub client: ClientConfig,
    /// How the gateway meets targets in sessions that it stands inside of.
    #[serde(default)]
    pub target: TargetConfig,
    /// Rendezvous of peers that can only connect outwards.
    #[serde(default)]
    pub jet: JetConfig,
    /// What must survive a restart.
    #[serde(default)]
    pub store: StoreConfig,
    /// Where decisions are recorded.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Where monitoring asks.
    #[serde(default)]
    pub monitoring: MonitoringConfig,
    /// Bounds on connections.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How the process logs.
    #[serde(default)]
    pub log: LogConfig,
    /// Switches that no production system sets.
    #[serde(default)]
    pub development: DevelopmentConfig,
    /// `egress`, compiled.
    #[serde(skip)]
    pub egress_rules: EgressRules,
    /// Where it was read from, for messages that point into it.
    #[serde(skip)]
    pub source: Source,
}

/// One port.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Address and port; `[::]:3389` listens on IPv6 alone, add a second listener for IPv4.
    pub address: SocketAddr,
    /// What may arrive here.
    #[serde(default = "Arrival::all")]
    pub accept: Vec<Arrival>,
    /// Balancers that may name the client's address by PROXY protocol.
    #[serde(default)]
    pub proxy_protocol_from: Vec<IpNet>,
    /// TLS of this port, in place of the common one.
    pub tls: Option<TlsConfig>,
    /// How this port is known outside, `host:port`, for the URLs of candidates. Without it the host is the one that the
    /// request names, and the port this one.
    pub external: Option<TargetAddr>,
}

/// A protocol that a port may be narrowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// RDP preconnection PDU or X.224 Connection Request.
    Rdp,
    /// TLS; what it carries is asked again.
    Tls,
    /// HTTP.
    Http,
    /// JET binary protocol.
    Jet,
}

impl Arrival {
    fn all() -> Vec<Self> {
        vec![Self::Rdp, Self::Tls, Self::Http, Self::Jet]
    }
}

/// A certificate chain and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Oldest version to speak.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3
    #[serde(rename = "1.3")]
    V1_3,
}

/// Which tokens are accepted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Keys, as PEM, JWK or JWKS files; reloaded when they change.
    pub keys: Vec<KeyFileConfig>,
    /// Tolerated difference of clocks, seconds.
    #[serde(default = "TokenConfig::default_leeway_s")]
    pub leeway_s: u64,
    /// Life of a token without `exp`, seconds from its start.
    #[serde(default = "TokenConfig::default_lifetime_s")]
    pub default_lifetime_s: u64,
    /// Longest life accepted, seconds.
    #[serde(default = "TokenConfig::default_max_lifetime_s")]
    pub max_lifetime_s: u64,
    /// Whether an encrypted token needs a signature inside.
    #[serde(default)]
    pub unsigned_jwe: UnsignedJwe,
    /// Accepted `iss`; empty accepts any.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// Accepted `aud`; empty refuses tokens that name an audience.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Revocation list, JSON: claim name to revoked values. Reloaded when it changes; ends live sessions.
    pub revoked: Option<PathBuf>,
    /// How long after its session a token may open another one from the same address, seconds. Zero: never.
    #[serde(default = "TokenConfig::default_reconnect_window_s")]
    pub reconnect_window_s: u64,
    /// Longest window a token may ask for by `jet_reuse`, seconds.
    #[serde(default = "TokenConfig::default_max_reconnect_window_s")]
    pub max_reconnect_window_s: u64,
}

impl TokenConfig {
    fn default_leeway_s() -> u64 {
        TokenRules::default().leeway_s
    }

    fn default_lifetime_s() -> u64 {
        TokenRules::default().default_lifetime_s
    }

    fn default_max_lifetime_s() -> u64 {
        TokenRules::default().max_lifetime_s
    }

    /// mstsc opens a new connection for a password that was typed again; its user needs a moment for that.
    fn default_reconnect_window_s() -> u64 {
        60
    }

    /// Long enough for a client that has lost its network to come back.
    fn default_max_reconnect_window_s() -> u64 {
        300
    }
}

/// One key file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFileConfig {
    /// PEM, JWK or JWKS.
    pub path: PathBuf,
    /// `sign` or `encrypt`; needed for PEM, may come from a JWK's own `use`.
    pub usage: Option<KeyUsage>,
    /// Key id, where the file has none.
    pub kid: Option<String>,
}

/// Tickets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TicketConfig {
    /// How long a ticket waits for its use, seconds.
    pub lifetime_s: u64,
}

impl Default for TicketConfig {
    fn default() -> Self {
        Self { lifetime_s: 120 }
    }
}

/// HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Who may act without a token of their own.
    pub keys: Vec<ApiKeyConfig>,
    /// Who may use HTTP without TLS.
    pub plain_http: PlainHttp,
}

impl ApiConfig {
    /// Whether this client may use HTTP without TLS.
    #[must_use]
    pub fn allows_plain_http(&self, client: SocketAddr) -> bool {
        match self.plain_http {
            PlainHttp::Off => false,
            PlainHttp::Loopback => client.ip().is_loopback(),
            PlainHttp::Any => true,
        }
    }
}

/// An operator, by the name of their API key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct OperatorName(String);

impl OperatorName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An API key, by the digest of its text: the configuration holds no secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// Name for the log.
    pub name: OperatorName,
    /// SHA-256 of the key, 64 hex digits.
    #[serde(with = "hex::serde")]
    pub sha256: [u8; 32],
}

/// Who may use HTTP without TLS. It carries tokens, so by default only this machine may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainHttp {
    /// Nobody.
    Off,
    /// Loopback addresses.
    #[default]
    Loopback,
    /// Anybody: where a proxy in front speaks TLS.
    Any,
}

/// How the gateway meets clients in sessions that it stands inside of.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// Kerberos for clients that prove themselves; NTLM without it.
    pub kerberos: Option<ClientKerberosConfig>,
}

/// Kerberos from clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientKerberosConfig {
    /// The keys of `TERMSRV/host`, for each host name that clients know the gateway by. Read at the start.
    pub keytab: PathBuf,
    /// Whether a client may show the password of the token by NTLM instead.
    #[serde(default = "default_ntlm_fallback")]
    pub ntlm_fallback: bool,
}

fn default_ntlm_fallback() -> bool {
    true
}

/// How the gateway meets targets in sessions that it stands inside of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// How certificates are judged, unless a token pins one (`cert_thumb256`).
    pub verify: VerifyTarget,
    /// For `ca`: certificate authorities, PEM.
    pub ca: Option<PathBuf>,
    /// For `first-use`: the file that remembers which certificate each target showed first.
    pub pins: PathBuf,
    /// For `first-use`: targets without CredSSP that are trusted all the same, each by name, `host:port` or
    /// `agent NAME host:port`: whatever such a target shows first gets the credentials, and is remembered.
    #[serde(deserialize_with = "target_names")]
    pub tls_only: Vec<TargetName>,
    /// Kerberos for the logon to targets; NTLM without it.
    pub kerberos: Option<KerberosConfig>,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            verify: VerifyTarget::default(),
            ca: None,
            pins: PathBuf::from("jetway.pins"),
            tls_only: Vec::new(),
            kerberos: None,
        }
    }
}

fn target_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TargetName>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let names = names.iter().map(|name| {
        let parsed = name.parse::<TargetName>();
        parsed.map_err(|error| D::Error::custom(format!("{name}: {error}")))
    });
    names.collect()
}

/// How a target's certificate is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyTarget {
    /// By certificate authorities and name.
    Ca,
    /// By what the target showed the first time.
    #[default]
    FirstUse,
    /// Not at all; announced at start-up and for each session.
    AcceptAny,
}

/// Kerberos to targets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KerberosConfig {
    /// `host:port` of the KDCs, in the order in which to try them.
    #[serde(default)]
    pub kdcs: Vec<String>,
    /// Whether DNS is asked for the KDCs of `realm`, in the place of `kdcs`. They are judged by the egress rules.
    #[serde(default)]
    pub dns: bool,
    /// Who is asked, where it is not the name servers of the system.
    #[serde(default)]
    pub nameservers: Vec<SocketAddr>,
    /// The realm of user names that name none.
    pub realm: Option<String>,
    /// Whether NTLM may be used where there is no ticket.
    #[serde(default = "default_ntlm_fallback")]
    pub ntlm_fallback: bool,
}

/// When the gateway stands inside a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InspectWhen {
    /// Where a token asks for what only works inside.
    #[default]
    WhenNeeded,
    /// In every RDP session.
    Always,
}

/// Time limits of a session.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// When the gateway stands inside a session.
    pub inspect: InspectWhen,
    /// Both directions silent for so long, seconds: the session ends. Zero: never.
    pub idle_timeout_s: u64,
    /// A session ends after so long, seconds, whatever its token says. Zero: never.
    pub time_limit_s: u64,
    /// Where one side of a session has ended and its protocol lets the other go on: that one silent for so long, seconds, and the
    /// session ends. RDP does not let it; there it is [`RDP_AFTER_END`](jetway_relay::RDP_AFTER_END).
    pub half_close_timeout_s: u64,
    /// For reaching a target, all its addresses and alternatives together, seconds.
    pub connect_timeout_s: u64,
    /// How long live sessions may go on when the process is told to stop, seconds.
    pub drain_s: u64,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            inspect: InspectWhen::default(),
            idle_timeout_s: 0,
            time_limit_s: 0,
            half_close_timeout_s: limits::HALF_CLOSE_S,
            connect_timeout_s: 10,
            drain_s: 5,
        }
    }
}

impl SessionConfig {
    /// See [`SessionConfig::idle_timeout_s`].
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        nonzero(self.idle_timeout_s)
    }

    /// See [`SessionConfig::time_limit_s`].
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        nonzero(self.time_limit_s)
    }
}

fn nonzero(seconds: u64) -> Option<Duration> {
    (seconds != 0).then(|| Duration::from_secs(seconds))
}

/// Rendezvous.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JetConfig {
    /// Who may be a peer.
    pub peers: JetPeers,
    /// Whether creating, reading and deleting associations needs a token or an API key.
    pub authentication: bool,
    /// From the last accept or connect until a candidate must be in use, seconds.
    pub unused_timeout_s: u64,
    /// How long the figures of a session that is over can be read, seconds.
    pub ended_s: u64,
    /// Associations at one time.
    pub associations: usize,
    /// Of those the ones that one address (IPv6: one /64) has created without a token and without an API key.
    pub associations_per_address: usize,
    /// Origins of web pages that may be peers, as in `https://app.example`; empty means any. Peers that are no page say
    /// none, and are not asked.
    pub origins: Vec<String>,
    /// `Jet-Instance`: the name of this gateway among those behind one address. The machine's own by default.
    pub instance: Option<String>,
}

impl Default for JetConfig {
    fn default() -> Self {
        Self {
            peers: JetPeers::default(),
            authentication: true,
            unused_timeout_s: 300,
            ended_s: 60,
            associations: limits::JET_ASSOCIATIONS,
            associations_per_address: limits::JET_ASSOCIATIONS_PER_ADDRESS,
            origins: Vec::new(),
            instance: None,
        }
    }
}

/// Who may be a peer of a rendezvous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JetPeers {
    /// The bearer of a token, where the association was created with one; otherwise whoever knows the ids.
    #[default]
    AsCreated,
    /// Bearers of a token only.
    Token,
    /// Whoever knows the ids.
    Anyone,
}

/// What must survive a restart.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// One file: which tokens were used.
    pub path: PathBuf,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("jetway.redb"),
        }
    }
}

/// Where decisions are recorded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Whether there is an audit.
    pub write: bool,
    /// The file to which records are added; `jetway-audit.jsonl` beside the store where there is none.
    pub path: Option<PathBuf>,
    /// A file is followed by another when it is so large, MiB.
    pub rotate_mib: u64,
    /// Likewise when its first record is so old, hours.
    pub rotate_h: u64,
    /// No session opens whose record cannot be written.
    pub required: bool,
    /// Whether what happens inside of inspected sessions is recorded.
    pub activity: bool,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            write: true,
            path: None,
            rotate_mib: 64,
            rotate_h: 24,
            required: false,
            activity: true,
        }
    }
}

/// Where monitoring asks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitoringConfig {
    /// A port of its own for metrics and health, plain HTTP without a key; there is none by default.
    pub address: Option<SocketAddr>,
}

/// Name of the audit's file where none is configured.
const AUDIT_FILE: &str = "jetway-audit.jsonl";

/// What the audit of a gateway is made from.
#[derive(Clone, Debug)]
pub struct TrailSettings {
    /// The files, if there is an audit.
    pub files: Option<AuditSettings>,
    /// As configured.
    pub required: bool,
    /// As configured.
    pub activity: bool,
}

/// Bounds on connections; see [`limits`] for the reasons.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections of any kind.
    pub connections: usize,
    /// Connections that have not shown a valid token.
    pub pending_connections: usize,
    /// The same, for one address.
    pub pending_per_address: usize,
    /// Established sessions of one address.
    pub sessions_per_address: usize,
    /// CPU for the tokens of one address, microseconds each second.
    pub token_work_us_per_s: u32,
    /// The same in a burst, microseconds.
    pub token_work_burst_us: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: limits::CONNECTIONS,
            pending_connections: limits::PENDING_CONNECTIONS,
            pending_per_address: limits::PENDING_PER_ADDRESS,
            sessions_per_address: limits::SESSIONS_PER_ADDRESS,
            token_work_us_per_s: limits::TOKEN_WORK_US_PER_S,
            token_work_burst_us: limits::TOKEN_WORK_BURST_US,
        }
    }
}

/// Switches that no production system sets; each is announced loudly.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevelopmentConfig {
    /// Accept `alg: none`.
    pub accept_unsigned_tokens: bool,
}

/// Values from the command line, above file and environment.
#[derive(Clone, Debug, Default, Serialize, clap::Args)]
pub struct Flags {
    /// Lines for people (human) or for machines (json)
    #[arg(long = "log-format", value_enum)]
    #[serde(skip)]
    pub log_format: Option<LogFormat>,
    /// Log filter, as in info,jetway_gateway=debug
    #[arg(long = "log-filter", value_name = "FILTER")]
    #[serde(skip)]
    pub log_filter: Option<String>,
    /// File for what must survive a restart
    #[arg(long = "store", value_name = "FILE")]
    #[serde(skip)]
    pub store: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Where the value came from: a file, a variable, the defaults.
    pub source_name: String,
    /// Line in that file, from 1.
    pub line: Option<usize>,
    /// Dotted key.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ConfigError {
    /// Whether it is of this key, of a part of it or of what it is a part of.
    fn concerns(&self, key: &str) -> bool {
        is_within(&self.key, key) || is_within(key, &self.key)
    }
}

/// Whether `key` is `whole`, or a key in it.
fn is_within(key: &str, whole: &str) -> bool {
    let rest = key.strip_prefix(whole);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source_name)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// All that is wrong with a configuration, as far as one reading can find it; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

/// What could be read of a configuration.
#[derive(Debug)]
pub struct Reading {
    /// All of it, or with errors what is left without the values at fault, so that the rest can be judged; none where too little
    /// is left.
    pub config: Option<Config>,
    /// What is wrong with it, as far as types and values tell.
    pub errors: Vec<ConfigError>,
}

impl Reading {
    /// The configuration, where nothing is wrong with it.
    ///
    /// # Errors
    /// The values that cannot be used, each with file, key and line.
    pub fn whole(self) -> Result<Config, ConfigErrors> {
        match self.config {
            Some(config) if self.errors.is_empty() => Ok(config),
            Some(_) | None => Err(ConfigErrors(self.errors)),
        }
    }

    /// How the process is to log, whatever else is wrong.
    #[must_use]
    pub fn log(&self) -> LogConfig {
        let at_fault = self.errors.iter().any(|error| error.concerns("log"));
        match &self.config {
            Some(config) if !at_fault => config.log.clone(),
            Some(_) | None => LogConfig::default(),
        }
    }

    fn nothing(error: ConfigError) -> Self {
        Self {
            config: None,
            errors: vec![error],
        }
    }
}

impl From<Config> for Reading {
    fn from(config: Config) -> Self {
        Self {
            config: Some(config),
            errors: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file at `path`, the environment and `flags`.
    ///
    /// # Errors
    /// The values that cannot be used, each with file, key and line.
    pub fn load(path: &Path, flags: &Flags) -> Result<Self, ConfigErrors> {
        Self::read(path, flags).whole()
    }

    /// Reads as [`load`](Self::load) does, and goes on past what is wrong.
    #[must_use]
    pub fn read(path: &Path, flags: &Flags) -> Reading {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                return Reading::nothing(ConfigError {
                    source_name: path.display().to_string(),
                    line: None,
                    key: String::new(),
                    problem: format!("cannot be read: {error}"),
                });
            }
        };
        let environment = Environment {
            // The file's own name is no key of it.
            keys: Env::prefixed("JETWAY_").split("__").ignore(&["config"]),
            variable: |name| std::env::var_os(name),
        };
        Self::from_text(path, &text, flags, &environment)
    }

    fn from_text(path: &Path, text: &str, flags: &Flags, environment: &Environment) -> Reading {
        // A syntax error has a line of its own and no key.
        if let Err(error) = toml_edit::ImDocument::parse(text) {
            return Reading::nothing(ConfigError {
                source_name: path.display().to_string(),
                line: error.span().map(|span| line_of(text, span.start)),
                key: String::new(),
                problem: error.message().trim_end().to_owned(),
            });
        }
        let set = environment.keys.iter().map(|(key, _)| {
            let key = key.into_string();
            let variable = format!("JETWAY_{}", key.replace('.', "__").to_uppercase());
            (key, variable)
        });
        let mut file = Source {
            path: path.to_owned(),
            text: text.to_owned(),
            above: set.collect(),
        };
        let mut figment = Figment::new()
            .merge(Toml::string(text))
            .merge(environment.keys.clone());
        let mut flag = |key: &str, name: &str| file.above.push((key.to_owned(), name.to_owned()));
        if let Some(format) = flags.log_format {
            flag("log.format", "--log-format");
            figment = figment.merge(Serialized::default("log.format", format));
        }
        if let Some(filter) = &flags.log_filter {
            flag("log.filter", "--log-filter");
            figment = figment.merge(Serialized::default("log.filter", filter));
        }
        if let Some(store) = &flags.store {
            flag("store.path", "--store");
            // A flag's path is relative to where the command was typed, not to the file.
            let store = std::path::absolute(store).unwrap_or_else(|_| store.clone());
            figment = figment.merge(Serialized::default("store.path", store));
        }
        let mut errors = Vec::new();
        let mut config: Self = match figment.extract() {
            Ok(config) => config,
            Err(first) => {
                let (mut found, rest) = type_errors(&figment);
                if found.is_empty() {
                    found.push(first);
                }
                errors.extend(found.iter().map(|error| file.explain(error)));
                match rest.and_then(|rest| rest.deserialize().ok()) {
                    Some(config) => config,
                    None => {
                        return Reading {
                            config: None,
                            errors,
                        };
                    }
                }
            }
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut found = config.anchor(folder, environment.variable, &file);
        found.extend(config.check(&file));
        add_new(&mut errors, found);
        config.source = file;
        Reading {
            config: Some(config),
            errors,
        }
    }

    /// Makes relative paths relative to the configuration's folder, and puts variables in.
    fn anchor(
        &mut self,
        folder: &Path,
        variable: fn(&str) -> Option<OsString>,
        file: &Source,
    ) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (key, path) in self.paths() {
            match with_variables(path, variable) {
                Ok(whole) => *path = folder.join(whole),
                Err(problem) => {
                    let key: Vec<&str> = key.iter().map(String::as_str).collect();
                    errors.push(file.error(&key, &problem));
                }
            }
        }
        errors
    }

    /// Every file that is named, with the key that names it.
    fn paths(&mut self) -> Vec<(Vec<String>, &mut PathBuf)> {
        fn key(parts: &[&str]) -> Vec<String> {
            parts.iter().map(|part| (*part).to_owned()).collect()
        }
        fn of_tls<'a>(
            at: &[&str],
            tls: Option<&'a mut TlsConfig>,
        ) -> impl Iterator<Item = (Vec<String>, &'a mut PathBuf)> {
            let at = key(at);
            tls.into_iter().flat_map(move |tls| {
                let named = |name: &str| [at.clone(), vec![name.to_owned()]].concat();
                [
                    (named("certificate"), &mut tls.certificate),
                    (named("key"), &mut tls.key),
                ]
            })
        }
        let mut paths: Vec<(Vec<String>, &mut PathBuf)> = Vec::new();
        paths.extend(of_tls(&["tls"], self.tls.as_mut()));
        for (index, listener) in self.listener.iter_mut().enumerate() {
            let index = index.to_string();
            paths.extend(of_tls(&["listener", &index, "tls"], listener.tls.as_mut()));
        }
        for (index, file) in self.token.keys.iter_mut().enumerate() {
            paths.push((
                key(&["token", "keys", &index.to_string(), "path"]),
                &mut file.path,
            ));
        }
        if let Some(revoked) = &mut self.token.revoked {
            paths.push((key(&["token", "revoked"]), revoked));
        }
        if let Some(ca) = &mut self.target.ca {
            paths.push((key(&["target", "ca"]), ca));
        }
        if let Some(kerberos) = &mut self.client.kerberos {
            paths.push((key(&["client", "kerberos", "keytab"]), &mut kerberos.keytab));
        }
        paths.push((key(&["store", "path"]), &mut self.store.path));
        if let Some(audit) = &mut self.audit.path {
            paths.push((key(&["audit", "path"]), audit));
        }
        paths.push((key(&["target", "pins"]), &mut self.target.pins));
        paths
    }

    /// What the audit is made from.
    #[must_use]
    pub fn audit_settings(&self) -> TrailSettings {
        let AuditConfig {
            write,
            path,
            rotate_mib,
            rotate_h,
            required,
            activity,
        } = &self.audit;
        let files = write.then(|| AuditSettings {
            path: path
                .clone()
                .unwrap_or_else(|| self.store.path.with_file_name(AUDIT_FILE)),
            rotate_bytes: rotate_mib.saturating_mul(1024 * 1024),
            rotate_after: Duration::from_secs(rotate_h.saturating_mul(3600)),
        });
        TrailSettings {
            files,
            required: *required,
            activity: *activity,
        }
    }

    /// What types alone do not say.
    fn check(&mut self, file: &Source) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.listener.is_empty() {
            errors.push(file.error(&["listener"], "at least one listener is needed"));
        }
        for (index, listener) in self.listener.iter().enumerate() {
            if listener.accept.is_empty() {
                let index = index.to_string();
                errors.push(file.error(&["listener", &index, "accept"], "accepts nothing"));
            }
        }
        for (index, listener) in self.listener.iter().enumerate() {
            let before = self.listener.iter().take(index);
            if let Some(other) = before
                .map(|other| other.address)
                .find(|other| take_the_same_port(listener.address, *other))
            {
                let index = index.to_string();
                let problem = format!("takes the port that listener {other} has");
                errors.push(file.error(&["listener", &index, "address"], &problem));
            }
        }
        if let Some(address) = self.monitoring.address {
            let mut listeners = self.listener.iter().map(|listener| listener.address);
            if let Some(other) = listeners.find(|other| take_the_same_port(address, *other)) {
                let problem = format!("takes the port that listener {other} has");
                errors.push(file.error(&["monitoring", "address"], &problem));
            }
        }
        for (name, value) in [
            ("rotate_mib", self.audit.rotate_mib),
            ("rotate_h", self.audit.rotate_h),
        ] {
            if value == 0 {
                errors.push(file.error(&["audit", name], "must be at least 1"));
            }
        }
        if self.audit.required && !self.audit.write {
            let problem = "is demanded, and audit.write is false";
            errors.push(file.error(&["audit", "required"], problem));
        }
        if self.token.keys.is_empty() && !self.development.accept_unsigned_tokens {
            errors.push(file.error(&["token", "keys"], "at least one key is needed"));
        }
        if self.target.verify == VerifyTarget::Ca && self.target.ca.is_none() {
            errors.push(file.error(&["target", "ca"], "needed for verify = \"ca\""));
        }
        if self.target.verify != VerifyTarget::FirstUse && !self.target.tls_only.is_empty() {
            let key = ["target", "tls_only"];
            let problem = "means something for verify = \"first-use\" alone";
            errors.push(file.error(&key, problem));
        }
        if let Some(kerberos) = &self.target.kerberos {
            let key = ["target", "kerberos", "kdcs"];
            if kerberos.kdcs.is_empty() && !kerberos.dns {
                errors.push(file.error(&key, "names no KDC, and dns is not to be asked"));
            }
            if kerberos.dns && !kerberos.kdcs.is_empty() {
                errors.push(file.error(&key, "where KDCs are named, dns is not asked"));
            }
            if kerberos.dns && kerberos.realm.as_deref().is_none_or(str::is_empty) {
                let key = ["target", "kerberos", "realm"];
                errors.push(file.error(&key, "needed for dns"));
            }
            if !kerberos.dns && !kerberos.nameservers.is_empty() {
                let key = ["target", "kerberos", "nameservers"];
                errors.push(file.error(&key, "nobody asks them without dns = true"));
            }
            for kdc in &kerberos.kdcs {
                if let Err(error) = kdc.parse::<TargetAddr>() {
                    errors.push(file.error(&key, &format!("{kdc}: {error}")));
                }
            }
        }
        if self.tickets.lifetime_s == 0 {
            errors.push(file.error(&["tickets", "lifetime_s"], "a ticket needs a lifetime"));
        }
        if self.session.connect_timeout_s == 0 {
            errors.push(file.error(&["session", "connect_timeout_s"], "must not be zero"));
        }
        for origin in &self.jet.origins {
            if !is_origin(origin) {
                let problem = format!("{origin}: expected SCHEME://HOST[:PORT] in lower case");
                errors.push(file.error(&["jet", "origins"], &problem));
            }
        }
        let bounds = [
            ("connections", self.limits.connections),
            ("pending_connections", self.limits.pending_connections),
            ("pending_per_address", self.limits.pending_per_address),
            ("sessions_per_address", self.limits.sessions_per_address),
        ];
        for (key, bound) in bounds {
            if bound == 0 {
                errors.push(file.error(&["limits", key], "must not be zero"));
            }
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            errors.push(file.error(&["log", "filter"], &error.to_string()));
        }
        match EgressRules::try_from(self.egress.clone()) {
            Ok(rules) => self.egress_rules = rules,
            Err(error) => errors.push(file.error(&["egress"], &error.to_string())),
        }
        errors
    }

    /// The rules by which tokens are judged.
    #[must_use]
    pub fn token_rules(&self) -> TokenRules {
        TokenRules {
            leeway_s: self.token.leeway_s,
            default_lifetime_s: self.token.default_lifetime_s,
            max_lifetime_s: self.token.max_lifetime_s,
            unsigned_jwe: self.token.unsigned_jwe,
            allow_none: self.development.accept_unsigned_tokens,
            issuers: self.token.issuers.clone(),
            audiences: self.token.audiences.clone(),
        }
    }

    /// TLS of a listener: its own, or the common one.
    #[must_use]
    pub fn tls_of<'a>(&'a self, listener: &'a ListenerConfig) -> Option<&'a TlsConfig> {
        listener.tls.as_ref().or(self.tls.as_ref())
    }
}

/// Whether browsers would write an origin so ([RFC 6454] 6.2): it is compared as text.
///
/// [RFC 6454]: https://www.rfc-editor.org/rfc/rfc6454#section-6.2
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    let in_host = |byte: u8| !byte.is_ascii_uppercase() && byte.is_ascii_graphic();
    let separates = |byte: u8| b"/?#@*".contains(&byte);
    !scheme.is_empty()
        && scheme.bytes().all(|byte| in_host(byte) && byte != b':')
        && !host.is_empty()
        && host.bytes().all(|byte| in_host(byte) && !separates(byte))
}

/// Whether two listeners cannot both have their port. One for IPv6 takes none of IPv4.
fn take_the_same_port(one: SocketAddr, other: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || any(one.ip()) || any(other.ip()))
}

/// Puts variables into a path.
fn with_variables(path: &Path, variable: fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let Some(mut rest) = path.to_str().filter(|path| path.contains("${")) else {
        return Ok(path.to_owned());
    };
    let mut whole = OsString::new();
    while let Some((before, after)) = rest.split_once("${") {
        whole.push(before);
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| format!("{}: ${{ without its }}", path.display()))?;
        let value = variable(name).filter(|value| !value.is_empty());
        whole.push(value.ok_or_else(|| {
            let hint = match name {
                "CREDENTIALS_DIRECTORY" => {
                    "; systemd sets it for a unit with LoadCredential, and by hand it is the folder of these files"
                }
                "STATE_DIRECTORY" => "; systemd sets it for a unit with StateDirectory",
                _ => "",
            };
            format!("{}: the environment has no {name}{hint}", path.display())
        })?);
        rest = after;
    }
    whole.push(rest);
    Ok(PathBuf::from(whole))
}

/// Adds what was found in what is left of a configuration: what follows from an error that is known already is none.
pub fn add_new(errors: &mut Vec<ConfigError>, found: Vec<ConfigError>) {
    for error in found {
        if !errors.iter().any(|known| known.concerns(&error.key)) {
            errors.push(error);
        }
    }
}

/// Where variables come from.
struct Environment {
    /// Those that set keys.
    keys: Env,
    /// Any, for paths.
    variable: fn(&str) -> Option<OsString>,
}

/// What is wrong by type alone, in all sections, and what is left without it. Serde stops at the first, so that is taken away
/// and the rest read again.
fn type_errors(figment: &Figment) -> (Vec<figment::Error>, Option<Value>) {
    let Ok(Value::Dict(tag, sections)) = figment.find_value("") else {
        return (Vec::new(), None);
    };
    let mut errors = Vec::new();
    let mut rest = Dict::new();
    for (name, value) in &sections {
        let at = [name.clone()];
        let (found, left) = match name.as_str() {
            "listener" => {
                if let Value::Array(tag, listeners) = value {
                    let mut found = Vec::new();
                    let mut left = Vec::new();
                    for (index, listener) in listeners.iter().enumerate() {
                        let at = [name.clone(), index.to_string()];
                        let (errors, listener) = errors_of::<ListenerConfig>(listener, &at);
                        found.extend(errors);
                        // Another one in its place, so that those behind it keep their numbers.
                        left.push(listener.unwrap_or_else(some_listener));
                    }
                    (found, Some(Value::Array(*tag, left)))
                } else {
                    let (found, _) = errors_of::<Vec<ListenerConfig>>(value, &at);
                    (found, Some(Value::from(vec![some_listener()])))
                }
            }
            "tls" => errors_of::<TlsConfig>(value, &at),
            "token" => {
                let (found, left) = errors_of::<TokenConfig>(value, &at);
                (found, left.or_else(|| without_keys(value)))
            }
            "tickets" => errors_of::<TicketConfig>(value, &at),
            "api" => errors_of::<ApiConfig>(value, &at),
            "egress" => errors_of::<EgressConfig>(value, &at),
            "session" => errors_of::<SessionConfig>(value, &at),
            "client" => errors_of::<ClientConfig>(value, &at),
            "target" => errors_of::<TargetConfig>(value, &at),
            "jet" => errors_of::<JetConfig>(value, &at),
            "store" => errors_of::<StoreConfig>(value, &at),
            "audit" => errors_of::<AuditConfig>(value, &at),
            "limits" => errors_of::<LimitsConfig>(value, &at),
            "log" => errors_of::<LogConfig>(value, &at),
            "development" => errors_of::<DevelopmentConfig>(value, &at),
            _ => {
                let unknown = Kind::UnknownField(name.clone(), &SECTIONS);
                (vec![unknown.into()], None)
            }
        };
        errors.extend(found);
        if let Some(left) = left {
            rest.insert(name.clone(), left);
        }
    }
    for required in ["listener", "token"] {
        if !sections.contains_key(required) {
            errors.push(Kind::MissingField(required.into()).into());
        }
    }
    rest.entry("listener".to_owned())
        .or_insert_with(|| Value::from(vec![some_listener()]));
    rest.entry("token".to_owned())
        .or_insert_with(|| Value::from(no_keys()));
    (errors, Some(Value::Dict(tag, rest)))
}

/// A listener that nothing is wrong with.
fn some_listener() -> Value {
    Value::from(Dict::from([(
        "address".to_owned(),
        Value::from("127.0.0.1:0"),
    )]))
}

fn no_keys() -> Dict {
    Dict::from([("keys".to_owned(), Value::from(Vec::<Value>::new()))])
}

/// A `[token]` whose keys cannot be told: the rest of it.
fn without_keys(token: &Value) -> Option<Value> {
    let mut table = token.as_dict()?.clone();
    table.extend(no_keys());
    errors_of::<TokenConfig>(&Value::from(table), &[]).1
}

/// The keys of the outermost table.
const SECTIONS: [&str; 15] = [
    "listener",
    "tls",
    "token",
    "tickets",
    "api",
    "egress",
    "session",
    "client",
    "target",
    "jet",
    "store",
    "audit",
    "limits",
    "log",
    "development",
];

/// Errors that are told of one section: more are a file of another kind.
const SECTION_ERRORS: usize = 32;

/// What keeps `value`, which stands at `at`, from being a `T`; and what is left of it that is one.
fn errors_of<T: DeserializeOwned>(
    value: &Value,
    at: &[String],
) -> (Vec<figment::Error>, Option<Value>) {
    let mut value = value.clone();
    let mut taken: Vec<Vec<String>> = Vec::new();
    let mut errors = Vec::new();
    while errors.len() < SECTION_ERRORS
        && let Err(mut error) = value.deserialize::<T>()
    {
        let key = key_of(&error);
        // Missing because it was taken away.
        if taken.contains(&key) {
            break;
        }
        let goes_on = take(&mut value, &key);
        taken.push(key);
        error.path.splice(..0, at.iter().cloned());
        errors.push(error);
        if !goes_on {
            break;
        }
    }
    let left = value.deserialize::<T>().is_ok().then_some(value);
    (errors, left)
}

/// Takes a key out of the table that it is in; says whether it was there.
fn take(value: &mut Value, key: &[String]) -> bool {
    let Some((name, tables)) = key.split_last() else {
        return false;
    };
    let mut place = value;
    for segment in tables {
        let inner = match place {
            Value::Dict(_, table) => table.get_mut(segment),
            Value::Array(_, items) => segment
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index)),
            Value::String(..)
            | Value::Char(..)
            | Value::Bool(..)
            | Value::Num(..)
            | Value::Empty(..) => None,
        };
        let Some(inner) = inner else { return false };
        place = inner;
    }
    match place {
        Value::Dict(_, table) => table.remove(name).is_some(),
        // The others would move up and be told under the wrong number.
        Value::Array(..)
        | Value::String(..)
        | Value::Char(..)
        | Value::Bool(..)
        | Value::Num(..)
        | Value::Empty(..) => false,
    }
}

/// The key that an error is about.
fn key_of(error: &figment::Error) -> Vec<String> {
    let mut key = error.path.clone();
    let name = if let Kind::UnknownField(name, _) = &error.kind {
        Some(name.as_str())
    } else if let Kind::MissingField(name) = &error.kind {
        Some(&**name)
    } else {
        None
    };
    if let Some(name) = name
        && key.last().map(String::as_str) != Some(name)
    {
        key.push(name.to_owned());
    }
    key
}

/// The configuration file, for messages that point into it.
#[derive(Clone, Debug, Default)]
pub struct Source {
    path: PathBuf,
    text: String,
    /// Keys that were set above the file, and the variables and flags that did.
    above: Vec<(String, String)>,
}

impl Source {
    fn explain(&self, error: &figment::Error) -> ConfigError {
        let key = key_of(error);
        let segments: Vec<&str> = key.iter().map(String::as_str).collect();
        self.error(&segments, &error.kind.to_string())
    }

    /// What is wrong with the value of `key`.
    #[must_use]
    pub fn error(&self, key: &[&str], problem: &str) -> ConfigError {
        let line = self.line(key);
        let dotted = key.join(".");
        let above = self.above.iter().rev().find(|(set, _)| {
            is_within(&dotted, set) || (line.is_none() && is_within(set, &dotted))
        });
        let (source_name, line) = match above {
            Some((_, name)) => (name.clone(), None),
            None => (self.path.display().to_string(), line),
        };
        ConfigError {
            source_name,
            line,
            key: dotted,
            problem: problem.to_owned(),
        }
    }

    /// The line of the deepest part of `key` that the file has.
    fn line(&self, key: &[&str]) -> Option<usize> {
        let document = toml_edit::ImDocument::parse(self.text.as_str()).ok()?;
        let mut item = document.as_item();
        let mut span = None;
        for segment in key {
            let next = match segment.parse::<usize>() {
                Ok(index) => item.get(index),
                Err(_) => item.get(*segment),
            };
            let Some(next) = next else { break };
            // A value's key stands on the line where its text starts; a table's at its header.
            span = next.span().or(span);
            item = next;
        }
        span.map(|span| line_of(&self.text, span.start))
    }
}

/// The line, from 1, that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[[listener]]\naddress = \"127.0.0.1:3389\"\n\n[token]\nkeys = [{ path = \"k.pem\", usage = \"sign\" }]\n";

    fn load_all(text: &str) -> Result<Config, ConfigErrors> {
        let path = Path::new("/etc/jetway/jetway.toml");
        Config::from_text(path, text, &Flags::default(), &NOTHING_SET()).whole()
    }

    const NOTHING_SET: fn() -> Environment = || Environment {
        keys: Env::prefixed("JETWAY_UNSET_IN_TESTS_"),
        variable: |name| {
            (name == "CREDENTIALS_DIRECTORY").then(|| "/run/credentials/jetway".into())
        },
    };

    /// With the one error that there is.
    fn load(text: &str) -> Result<Config, ConfigError> {
        load_all(text).map_err(|errors| {
            assert_eq!(errors.0.len(), 1, "{errors}");
            errors.0.into_iter().next().unwrap()
        })
    }

    #[test]
    fn all_errors_are_told_at_once_each_with_its_line() {
        let text = format!(
            "{MINIMAL}levway_s = 1\nleeway_s = \"long\"\n\n[session]\nidle_timeout_s = \"long\"\ndrain_s = []\n\n\
             [[listener]]\naddress = \"nowhere\"\naccept = 7\n\n[sesion]\na = 1\n"
        );
        let errors = load_all(&text).unwrap_err();
        let told = errors.0.iter().map(|e| (e.key.as_str(), e.line.unwrap()));
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        let expected = [
            ("listener.1.accept", 15),
            ("listener.1.address", 14),
            ("sesion", 17),
            ("session.drain_s", 11),
            ("session.idle_timeout_s", 10),
            ("token.leeway_s", 7),
            ("token.levway_s", 6),
        ];
        assert_eq!(told, expected, "{errors}");
        assert_eq!(errors.to_string().lines().count(), expected.len());

        let values = format!(
            "{MINIMAL}\n[tickets]\nlifetime_s = 0\n[limits]\nconnections = 0\npending_connections = 0\n[log]\nfilter = \"jetway=loud\"\n"
        );
        let errors = load_all(&values).unwrap_err();
        let keys: Vec<_> = errors.0.iter().map(|e| e.key.as_str()).collect();
        let expected = [
            "tickets.lifetime_s",
            "limits.connections",
            "limits.pending_connections",
            "log.filter",
        ];
        assert_eq!(keys, expected, "{errors}");
    }

    #[test]
    fn values_are_judged_beside_those_of_a_wrong_type() {
        let text = format!(
            "{MINIMAL}leeway_s = \"long\"\nrevoked = \"${{NOWHERE}}/revoked.json\"\n\n[[listener]]\nadress = \"127.0.0.1:3390\"\n\n\
             [[listener]]\naddress = \"0.0.0.0:3389\"\n\n[tls]\nkey = 7\n\n[tickets]\nlifetime_s = 0\n[sesion]\na = 1\n"
        );
        let reading = Config::from_text(
            Path::new("j.toml"),
            &text,
            &Flags::default(),
            &NOTHING_SET(),
        );
        let told = reading.errors.iter();
        let mut told: Vec<_> = told.map(|e| (e.key.as_str(), e.line.unwrap())).collect();
        told.sort_unstable();
        let expected = [
            ("listener.1.address", 9),
            ("listener.1.adress", 10),
            ("listener.2.address", 13),
            ("sesion", 20),
            ("tickets.lifetime_s", 19),
            ("tls.certificate", 15),
            ("tls.key", 16),
            ("token.leeway_s", 6),
            ("token.revoked", 7),
        ];
        assert_eq!(told, expected, "{:?}", reading.errors);
        // What is left can be looked at further.
        let rest = reading.config.unwrap();
        assert_eq!(rest.token.keys.len(), 1);
        assert!(rest.tls.is_none());
    }

    #[test]
    fn a_variable_in_a_path_is_put_in_and_one_that_is_not_set_is_named() {
        let with = |path: &str| {
            let keys = format!("keys = [{{ path = \"{path}\" }}]");
            load(&format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\n[token]\n{keys}\n"
            ))
        };
        let config = with("${CREDENTIALS_DIRECTORY}/gateway.private.pem").unwrap();
        let expected = Path::new("/run/credentials/jetway/gateway.private.pem");
        assert_eq!(config.token.keys[0].path, expected);
        for (path, words) in [
            (
                "${STATE_DIRECTORY}/k.pem",
                "the environment has no STATE_DIRECTORY",
            ),
            ("a/${CREDENTIALS_DIRECTORY", "without its }"),
        ] {
            let error = with(path).unwrap_err();
            assert_eq!(
                (error.key.as_str(), error.line),
                ("token.keys.0.path", Some(4))
            );
            assert!(error.problem.contains(words), "{error}");
        }
    }

    #[test]
    fn what_a_variable_or_a_flag_sets_is_told_as_its_own() {
        let above = [
            ("store.path", "--store"),
            ("token.keys", "JETWAY_TOKEN__KEYS"),
        ];
        let above = above.map(|(key, name)| (key.to_owned(), name.to_owned()));
        let file = Source {
            path: PathBuf::from("j.toml"),
            text: "[store]\npath = \"a\"\n".to_owned(),
            above: above.to_vec(),
        };
        let told = |key: &[&str]| file.error(key, "bad").to_string();
        assert_eq!(told(&["store", "path"]), "--store: store.path: bad");
        assert_eq!(
            told(&["token", "keys", "0", "path"]),
            "JETWAY_TOKEN__KEYS: token.keys.0.path: bad"
        );
        assert_eq!(told(&["store", "paht"]), "j.toml:1: store.paht: bad");
    }

    #[test]
    fn the_smallest_file_is_enough_and_paths_are_relative_to_it() {
        let config = load(MINIMAL).unwrap();
        assert!(config.client.kerberos.is_none());
        assert_eq!(config.token.keys[0].path, Path::new("/etc/jetway/k.pem"));
        assert_eq!(config.store.path, Path::new("/etc/jetway/jetway.redb"));
        assert_eq!(config.token.leeway_s, TokenRules::default().leeway_s);
        assert_eq!(config.api.plain_http, PlainHttp::Loopback);
        assert!(!config.development.accept_unsigned_tokens);
    }

    #[test]
    fn a_bad_value_names_file_key_and_line() {
        let cases = [
            (
                "[session]\nidle_timeout_s = \"long\"\n",
                "session.idle_timeout_s",
                8,
            ),
            (
                "[session]\n\nidle_timout_s = 5\n",
                "session.idle_timout_s",
                9,
            ),
            ("[limits]\nconnections = 0\n", "limits.connections", 8),
            (
                "[target]\nkerberos = { kdcs = [] }\n",
                "target.kerberos.kdcs",
                8,
            ),
            (
                "[target.kerberos]\ndns = true\nkdcs = [\"dc1.corp.example:88\"]\nrealm = \"A\"\n",
                "target.kerberos.kdcs",
                9,
            ),
            (
                "[target.kerberos]\ndns = true\n",
                "target.kerberos.realm",
                7,
            ),
            (
                "[target.kerberos]\nkdcs = [\"dc1:88\"]\nnameservers = [\"192.0.2.53:53\"]\n",
                "target.kerberos.nameservers",
                9,
            ),
            (
                "[target]\nkerberos = { kdcs = [\"dc1.corp.example\"] }\n",
                "target.kerberos.kdcs",
                8,
            ),
            ("[tickets]\nlifetime_s = 0\n", "tickets.lifetime_s", 8),
            ("[jet]\norigins = [\"app.example\"]\n", "jet.origins", 8),
            ("[jet]\norigins = [\"https://\"]\n", "jet.origins", 8),
            (
                "[jet]\norigins = [\"https://App.example\"]\n",
                "jet.origins",
                8,
            ),
            (
                "[jet]\norigins = [\"https://app.example:8443\", \"https://app.example/\"]\n",
                "jet.origins",
                8,
            ),
            ("[log]\nfilter = \"jetway=loud\"\n", "log.filter", 8),
            ("[api]\nplain_http = \"sometimes\"\n", "api.plain_http", 8),
        ];
        for (addition, key, line) in cases {
            let error = load(&format!("{MINIMAL}\n{addition}")).unwrap_err();
            assert_eq!(error.key, key, "{error}");
            assert_eq!(error.line, Some(line), "{error}");
            assert!(
                error.to_string().starts_with("/etc/jetway/jetway.toml:"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bad_value_in_a_listener_names_which() {
        let text = format!("{MINIMAL}\n[[listener]]\naddress = \"nowhere\"\n");
        let error = load(&text).unwrap_err();
        assert_eq!(error.key, "listener.1.address", "{error}");
        assert_eq!(error.line, Some(8), "{error}");
    }

    #[test]
    fn targets_with_tls_alone_are_named() {
        let target = |lines: &str| load(&format!("{MINIMAL}\n[target]\n{lines}\n"));
        let names = "tls_only = [\"pc7:3389\", \"agent branch-7 pc7:3389\"]";
        let config = target(names).unwrap();
        let known: Vec<String> = config
            .target
            .tls_only
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(known, ["pc7:3389", "agent branch-7 pc7:3389"]);
        for bad in [
            "tls_only = [\"pc7\"]",
            "tls_only = true",
            &format!("verify = \"accept-any\"\n{names}"),
        ] {
            let error = target(bad).unwrap_err();
            assert_eq!(error.key, "target.tls_only", "{error}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let error = load(&format!("{MINIMAL}\n[session\n")).unwrap_err();
        assert_eq!(error.line, Some(7), "{error}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = load("[[listener]]\naddress = \"127.0.0.1:3389\"\n").unwrap_err();
        assert_eq!(error.key, "token", "{error}");
    }

    #[test]
    fn flags_are_above_the_file() {
        let flags = Flags {
            log_filter: Some("debug".to_owned()),
            ..Flags::default()
        };
        let config = Config::from_text(
            Path::new("j.toml"),
            &format!("{MINIMAL}\n[log]\nfilter = \"warn\"\n"),
            &flags,
            &NOTHING_SET(),
        )
        .whole()
        .unwrap();
        assert_eq!(config.log.filter, "debug");
    }
}
