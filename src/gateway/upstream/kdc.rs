//! The network of Kerberos: one question, one answer, from the first KDC that gives one.
//!
//! Which KDCs there are, the configuration says, or DNS where the configuration has it asked ([RFC 4120] 7.2.3.2). DNS is
//! asked for one realm, the configured one: no token can have another name looked up. And whom DNS names is judged by the
//! egress rules, as targets are: a forged record leads to nobody whom the gateway may not talk to.
//!
//! Over TCP ([RFC 4120] 7.2.2); over UDP where a KDC has no TCP port. A KDC that answered is asked first the next time,
//! so that one logon stays with one. Answers are bounded before they are read, and every KDC gets its share of the time
//! that is left.
//!
//! [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::upstream;
use jetway_policy::egress::{EgressDenied, EgressRules};
use jetway_rdp::credssp::client::Question;

/// Where the KDCs are.
#[derive(Clone, Debug)]
pub enum KdcSource {
    /// `host:port`, in the order to ask.
    Listed(Vec<String>),
    /// What DNS says of one realm.
    Dns(Arc<KdcLookup>),
}

impl KdcSource {
    /// `host:port`, in the order to ask.
    ///
    /// # Errors
    /// DNS names none that may be asked.
    pub(crate) async fn addresses(&self, deadline: Instant) -> Result<Vec<String>, NoKdc> {
        match self {
            Self::Listed(addresses) => Ok(addresses.clone()),
            Self::Dns(lookup) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // The KDCs and the target need the rest.
                let share = left.checked_div(3).unwrap_or(left).min(DNS_PATIENCE);
                match timeout(share, lookup.addresses()).await {
                    Ok(found) => found,
                    Err(_elapsed) => Err(NoKdc::Silent),
                }
            }
        }
    }
}

/// Finds the KDCs of one realm by SRV records; remembers them as long as DNS says.
pub struct KdcLookup {
    resolver: TokioResolver,
    realm: Name,
    egress: EgressRules,
}

impl fmt::Debug for KdcLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KdcLookup")
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

impl KdcLookup {
    /// A look-up for `realm` with these name servers; without any, with those of the system.
    ///
    /// # Errors
    /// The realm is no name that DNS could know, or the system's settings cannot be read.
    pub fn new(
        realm: &str,
        nameservers: &[SocketAddr],
        egress: EgressRules,
    ) -> Result<Self, LookupError> {
        let mut name = Name::from_ascii(realm).map_err(|_| LookupError::Realm)?;
        name.set_fqdn(true);
        let settings = |error: &dyn fmt::Display| LookupError::Settings(error.to_string());
        let mut builder = if nameservers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| settings(&error))?
        } else {
            let servers = nameservers.iter().map(|server| {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                let connections = connections.map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                NameServerConfig::new(server.ip(), true, connections.to_vec())
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.timeout = DNS_REPEAT;
        options.attempts = 2;
        options.cache_size = 64;
        options.negative_max_ttl = Some(DNS_FORGET_FAILURE);
        Ok(Self {
            resolver: builder.build().map_err(|error| settings(&error))?,
            realm: name,
            egress,
        })
    }

    async fn addresses(&self) -> Result<Vec<String>, NoKdc> {
        let own = upstream::own_addresses().map_err(NoKdc::OwnAddresses)?;
        let mut failures = Vec::new();
        for service in ["_kerberos._tcp", "_kerberos._udp"] {
            let name = format!("{service}.{}", self.realm);
            let answer = match self.resolver.srv_lookup(name.as_str()).await {
                Ok(answer) => answer,
                Err(error) => {
                    failures.push(LookupFailure::Dns(name, error));
                    continue;
                }
            };
            let mut servers = Vec::new();
            for record in answer.answers() {
                // The root stands for: there is none.
                if let RData::SRV(server) = &record.data
                    && !server.target.is_root()
                {
                    servers.push(server);
                }
            }
            // [RFC 2782] draws by weight; here the heaviest is always asked first.
            servers.sort_by_key(|server| (server.priority, u16::MAX.saturating_sub(server.weight)));
            let mut addresses = Vec::new();
            for server in servers.into_iter().take(DNS_SERVERS) {
                let host = server.target.to_ascii();
                match self.resolver.lookup_ip(server.target.clone()).await {
                    Ok(found) => {
                        for ip in found.iter().take(DNS_ADDRESSES) {
                            let address = SocketAddr::new(ip, server.port);
                            match self.egress.check(&host, address, &own) {
                                Ok(()) => addresses.push(address.to_string()),
                                Err(denied) => {
                                    failures.push(LookupFailure::NotAllowed(host.clone(), denied))
                                }
                            }
                        }
                    }
                    Err(error) => failures.push(LookupFailure::Dns(host, error)),
                }
            }
            if !addresses.is_empty() {
                return Ok(addresses);
            }
        }
        Err(NoKdc::NotFound(failures))
    }
}

/// Why DNS names no KDC that may be asked.
#[derive(Debug, thiserror::Error)]
pub enum NoKdc {
    /// The name servers are silent.
    #[error("DNS does not answer in time")]
    Silent,
    /// The system does not tell what must not be dialled.
    #[error("the addresses of this machine cannot be read: {0}")]
    OwnAddresses(#[source] io::Error),
    /// There is none, or none that may be dialled: what was asked, in order.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NotFound(Vec<LookupFailure>),
}

/// A name of which no KDC came.
#[derive(Debug, thiserror::Error)]
pub enum LookupFailure {
    /// DNS has nothing of it.
    #[error("{0}: {1}")]
    Dns(String, #[source] NetError),
    /// The egress rules refuse its address.
    #[error("{0}: {1}")]
    NotAllowed(String, #[source] EgressDenied),
}

/// DNS cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Not a domain name.
    #[error("not a valid DNS name")]
    Realm,
    /// What the system says of its name servers.
    #[error("the system's name servers: {0}")]
    Settings(String),
}

/// The KDCs of one logon.
#[derive(Debug)]
pub(crate) struct Kdcs {
    /// `host:port`, in the order to ask.
    addresses: Vec<String>,
    failure: Option<String>,
}

impl Kdcs {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            failure: None,
        }
    }

    /// Why there was no answer to the last question, where there was none.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The answer, its length in front as over TCP.
    pub(crate) async fn ask(&mut self, question: &Question, deadline: Instant) -> Option<Vec<u8>> {
        let referred = question.referred_to.as_slice();
        let addresses = if referred.is_empty() {
            &self.addresses
        } else {
            referred
        };
        let mut failures = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let rest = u32::try_from(addresses.len().saturating_sub(at)).unwrap_or(u32::MAX);
            let left = deadline.saturating_duration_since(Instant::now());
            // One share is kept for what comes after the tickets.
            let share = left.checked_div(rest.saturating_add(1)).unwrap_or(left);
            match timeout(share.min(PATIENCE), ask_one(address, &question.message)).await {
                Ok(Ok(answer)) => {
                    self.failure = None;
                    if referred.is_empty() {
                        self.addresses.swap(0, at);
                    }
                    return Some(answer);
                }
                Ok(Err(error)) => failures.push(format!("{address}: {error}")),
                Err(_elapsed) => failures.push(format!("{address}: no answer in time")),
            }
        }
        self.failure = Some(failures.join("; "));
        None
    }
}

async fn ask_one(address: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    match over_tcp(address, message).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            over_udp(address, message).await
        }
        other => other,
    }
}

async fn over_tcp(address: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = upstream::connect_service(address).await?;
    stream.write_all(message).await?;
    let mut header = [0; LENGTH_BYTES];
    stream.read_exact(&mut header).await?;
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > ANSWER_BYTES {
        let text = format!("an answer of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut answer = header.to_vec();
    answer.resize(header.len().saturating_add(length), 0);
    let (_, body) = answer.split_at_mut(header.len());
    stream.read_exact(body).await?;
    Ok(answer)
}

/// Asks again until somebody answers; the caller limits the time.
async fn over_udp(address: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let socket = upstream::datagram_service(address).await?;
    let question = message.get(LENGTH_BYTES..).unwrap_or_default();
    let mut datagram = vec![0; ANSWER_BYTES];
    loop {
        socket.send(question).await?;
        let Ok(received) = timeout(UDP_REPEAT, socket.recv(&mut datagram)).await else {
            continue;
        };
        let length = received?;
        let mut answer = u32::try_from(length)
            .unwrap_or(u32::MAX)
            .to_be_bytes()
            .to_vec();
        answer.extend_from_slice(datagram.get(..length).unwrap_or_default());
        return Ok(answer);
    }
}

/// How long one KDC may take for one answer: they answer in milliseconds, and clients of their own try the next after
/// one to three seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long DNS may take in all.
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// How long one name server may take for one question.
const DNS_REPEAT: Duration = Duration::from_secs(1);
/// How long DNS is believed that there is no KDC, whatever it says.
const DNS_FORGET_FAILURE: Duration = Duration::from_secs(30);
/// How many records are looked at, and how many addresses of each.
const DNS_SERVERS: usize = 8;
const DNS_ADDRESSES: usize = 4;
/// A lost datagram is sent again after this.
const UDP_REPEAT: Duration = Duration::from_secs(1);
/// Largest answer: a ticket with the largest PAC has 64 KiB at most, as Windows limits it (MaxTokenSize, 48,000).
const ANSWER_BYTES: usize = 64 * 1024;
/// Of the length in front of a message over TCP.
const LENGTH_BYTES: usize = 4;
