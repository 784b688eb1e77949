//! From a [`Permit`] to a TCP connection to its target. Nothing else in the gateway dials.
//!
//! The targets of a permit are tried in order; each may use an equal share of the time that is left, so that one that
//! never answers leaves time for the next. The addresses of one target race as in Happy Eyeballs ([RFC 8305] 5): a
//! new attempt starts when the one before has failed or has been silent for 250 ms, and the first connection wins.
//! Egress rules judge each address right before it is dialled, by the addresses that this machine has at that moment. A connection
//! whose two ends have one address is this machine's, too, whatever its interfaces say, and is dropped before a byte.
//!
//! [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305

pub mod kdc;

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use jetway_base::limits;
use jetway_io::keep_alive;
use jetway_policy::egress::{EgressDenied, EgressRules};
use jetway_policy::permit::Permit;
use jetway_token::target::TargetAddr;

/// Time an attempt has for itself before the next address is tried beside it ([RFC 8305] 5).
///
/// [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305#section-5
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection to a target.
#[derive(Debug)]
pub struct TargetConnection {
    /// The connection, [tuned](keep_alive::tune).
    pub stream: TcpStream,
    /// The address that answered.
    pub address: SocketAddr,
    /// The target of the permit that it belongs to.
    pub target: TargetAddr,
    /// How long the TCP handshake took: one round trip.
    pub handshake: Duration,
}

/// Looks up the addresses of a name.
pub trait Resolve: Sync {
    /// The addresses of `host`, best first, each with `port`.
    fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The resolver of the operating system, which orders addresses by [RFC 6724] and the administrator's `gai.conf`.
///
/// [RFC 6724]: https://www.rfc-editor.org/rfc/rfc6724
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Why no target of a permit was reached: what was tried, in order. For the log, never for the client.
#[derive(Debug)]
pub struct ConnectError {
    /// One entry for each target, in the order of the permit.
    pub targets: Vec<TargetFailure>,
}

/// Why one target was not reached.
#[derive(Debug)]
pub struct TargetFailure {
    /// The target as the permit names it.
    pub target: TargetAddr,
    /// One entry for each step or address that failed, in the order in which they failed.
    pub causes: Vec<Cause>,
}

/// One thing that stood between the gateway and a target.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Egress rules refuse the address.
    #[error("{0}")]
    NotAllowed(EgressDenied),
    /// The system does not tell what must not be dialled.
    #[error("the addresses of this machine cannot be read: {0}")]
    OwnAddresses(io::Error),
    /// The name could not be looked up.
    #[error("name not resolved: {0}")]
    Resolve(io::Error),
    /// The name has no address.
    #[error("name has no address")]
    NoAddress,
    /// The address answered that nothing listens there.
    #[error("{0} refused the connection")]
    Refused(SocketAddr),
    /// The network has no way to the address, or says so.
    #[error("{address} cannot be reached: {error}")]
    Unreachable {
        /// The address that was dialled.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Whatever else the system said.
    #[error("{address} failed: {error}")]
    Failed {
        /// The address that was dialled.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// No answer within the share of the deadline; without an address, the look-up of the name took that long.
    #[error("{}", timed_out_text(.0.as_ref()))]
    TimedOut(Option<SocketAddr>),
}

/// What a failure to connect amounts to, coarse enough to be told to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectClass {
    /// Egress rules refused every address there was: no packet was sent.
    NotAllowed,
    /// The deadline passed while an address had not answered.
    TimedOut,
    /// Anything else.
    Unreachable,
}

impl ConnectError {
    /// What to tell the client, if anything: it tells nothing about names, addresses or ports.
    #[must_use]
    pub fn class(&self) -> ConnectClass {
        let causes = || self.targets.iter().flat_map(|target| &target.causes);
        if causes().all(|cause| matches!(cause, Cause::NotAllowed(_))) {
            ConnectClass::NotAllowed
        } else if causes().any(|cause| matches!(cause, Cause::TimedOut(_))) {
            ConnectClass::TimedOut
        } else {
            ConnectClass::Unreachable
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for TargetFailure { target, causes } in &self.targets {
            write!(f, "{separator}{target}: ")?;
            separator = "; ";
            let mut comma = "";
            for cause in causes {
                write!(f, "{comma}{cause}")?;
                comma = ", ";
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// Connects to the first target of `permit` that can be reached before `deadline`.
///
/// # Errors
/// What stood in the way of each target.
///
/// # Cancel safety
/// Dropping the future closes every attempt.
pub async fn connect(
    permit: &Permit,
    egress: &EgressRules,
    resolver: &impl Resolve,
    deadline: Instant,
) -> Result<TargetConnection, ConnectError> {
    connect_any(permit.targets(), egress, resolver, &SystemDialler, deadline).await
}

/// Connects to a service that the operator's own configuration names (`host:port`), such as a KDC. Egress rules are about
/// what tokens name; they do not hold here.
///
/// # Errors
/// The system's: no such name, nobody there.
pub async fn connect_service(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket that hears nobody but a service that the operator's own configuration names (`host:port`).
///
/// # Errors
/// The system's: no such name.
pub async fn datagram_service(address: &str) -> io::Result<UdpSocket> {
    let mut failure = None;
    for address in tokio::net::lookup_host(address).await? {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        match socket.connect(address).await {
            Ok(()) => return Ok(socket),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// The addresses of this machine's interfaces at this moment, loopback among them. On Linux they come over a netlink socket, which a
/// sandbox has to admit.
///
/// # Errors
/// The system's.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    Ok(addresses.collect())
}

/// Opens a TCP connection; a seam for tests, which cannot make real addresses silent.
trait Dial: Sync {
    fn dial(&self, address: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// The addresses of this machine.
    fn own(&self) -> io::Result<Vec<IpAddr>> {
        own_addresses()
    }
}

struct SystemDialler;

impl Dial for SystemDialler {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        keep_alive::tune(&stream)?;
        Ok(stream)
    }
}

async fn connect_any(
    targets: &[TargetAddr],
    egress: &EgressRules,
    resolver: &impl Resolve,
    dialler: &impl Dial,
    deadline: Instant,
) -> Result<TargetConnection, ConnectError> {
    let mut failures = Vec::new();
    let mut left = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    for target in targets {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        let mut causes = Vec::new();
        let race = reach(target, egress, resolver, dialler, now + share, &mut causes);
        if let Some((stream, address, handshake)) = race.await {
            return Ok(TargetConnection {
                stream,
                address,
                target: target.clone(),
                handshake,
            });
        }
        failures.push(TargetFailure {
            target: target.clone(),
            causes,
        });
    }
    Err(ConnectError { targets: failures })
}

/// Resolves one target and races its addresses; what failed is added to `causes`.
async fn reach(
    target: &TargetAddr,
    egress: &EgressRules,
    resolver: &impl Resolve,
    dialler: &impl Dial,
    deadline: Instant,
    causes: &mut Vec<Cause>,
) -> Option<(TcpStream, SocketAddr, Duration)> {
    let addresses = match target.host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, target.port)],
        Err(_) => {
            let lookup = resolver.resolve(&target.host, target.port);
            match timeout_at(deadline, lookup).await {
                Ok(Ok(addresses)) => interleave(addresses),
                Ok(Err(error)) => {
                    causes.push(Cause::Resolve(error));
                    return None;
                }
                Err(_) => {
                    causes.push(Cause::TimedOut(None));
                    return None;
                }
            }
        }
    };
    if addresses.is_empty() {
        causes.push(Cause::NoAddress);
        return None;
    }
    race(
        &target.host,
        addresses.into(),
        egress,
        dialler,
        deadline,
        causes,
    )
    .await
}

async fn race(
    host: &str,
    mut waiting: VecDeque<SocketAddr>,
    egress: &EgressRules,
    dialler: &impl Dial,
    deadline: Instant,
    causes: &mut Vec<Cause>,
) -> Option<(TcpStream, SocketAddr, Duration)> {
    let mut attempts = Vec::new();
    loop {
        // Denied addresses cost no time: go on until one may be dialled.
        while let Some(address) = waiting.pop_front() {
            let judged = match dialler.own() {
                Ok(own) => egress.check(host, address, &own).map_err(Cause::NotAllowed),
                Err(error) => Err(Cause::OwnAddresses(error)),
            };
            match judged {
                Ok(()) => {
                    attempts.push((address, Box::pin(timed(dialler.dial(address)))));
                    break;
                }
                Err(cause) => causes.push(cause),
            }
        }
        if attempts.is_empty() {
            return None;
        }
        let until = if waiting.is_empty() {
            deadline
        } else {
            deadline.min(Instant::now() + ATTEMPT_DELAY)
        };
        match timeout_at(until, first_to_finish(&mut attempts)).await {
            Ok((address, Ok((stream, handshake)))) => match last_word(host, egress, &stream) {
                Ok(()) => return Some((stream, address, handshake)),
                Err(denied) => causes.push(Cause::NotAllowed(denied)),
            },
            Ok((address, Err(error))) => causes.push(Cause::of(address, error)),
            Err(_) if until < deadline => {}
            Err(_) => {
                let silent = attempts.iter().map(|(address, _)| Some(*address));
                causes.extend(silent.map(Cause::TimedOut));
                return None;
            }
        }
    }
}

/// Judges a connection by its own ends: one that has the same address at both leads to this machine.
fn last_word(host: &str, egress: &EgressRules, stream: &TcpStream) -> Result<(), EgressDenied> {
    // A connection that has no ends any more brings no byte anywhere.
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
        return Ok(());
    };
    if peer.ip().to_canonical() == local.ip().to_canonical() {
        egress.check(host, peer, &[peer.ip()])
    } else {
        Ok(())
    }
}

/// Also says how long it took.
async fn timed(
    dial: impl Future<Output = io::Result<TcpStream>>,
) -> io::Result<(TcpStream, Duration)> {
    let started = Instant::now();
    let stream = dial.await?;
    Ok((stream, started.elapsed()))
}

/// Waits for any of `attempts` and takes it out.
async fn first_to_finish<F: Future>(
    attempts: &mut Vec<(SocketAddr, Pin<Box<F>>)>,
) -> (SocketAddr, F::Output) {
    poll_fn(|cx| {
        for (index, (address, attempt)) in attempts.iter_mut().enumerate() {
            if let Poll::Ready(output) = attempt.as_mut().poll(cx) {
                let address = *address;
                drop(attempts.swap_remove(index));
                return Poll::Ready((address, output));
            }
        }
        Poll::Pending
    })
    .await
}

/// Alternates between the address families, beginning with that of the best address ([RFC 8305] 4), and keeps no
/// more addresses than a session may try.
///
/// [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305#section-4
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else {
        return addresses;
    };
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut mixed = Vec::new();
    while mixed.len() < limits::ADDRESSES_PER_TARGET {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            break;
        }
        for address in pair.into_iter().flatten() {
            if !mixed.contains(&address) {
                mixed.push(address);
            }
        }
    }
    mixed.truncate(limits::ADDRESSES_PER_TARGET);
    mixed
}

impl Cause {
    fn of(address: SocketAddr, error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let kind = error.kind();
        let unreachable = [
            Kind::HostUnreachable,
            Kind::NetworkUnreachable,
            Kind::NetworkDown,
            Kind::AddrNotAvailable,
        ];
        if kind == Kind::ConnectionRefused {
            Self::Refused(address)
        } else if kind == Kind::TimedOut {
            Self::TimedOut(Some(address))
        } else if unreachable.contains(&kind) {
            Self::Unreachable { address, error }
        } else {
            Self::Failed { address, error }
        }
    }
}

fn timed_out_text(address: Option<&SocketAddr>) -> String {
    match address {
        Some(address) => format!("{address} did not answer in time"),
        None => "name not resolved in time".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;
    use jetway_policy::egress::{DeniedBy, EgressConfig};

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_listening_target_is_reached_and_its_socket_tuned() {
        let (listener, address) = listen("127.0.0.2:0").await;
        let targets = [target(&address.to_string())];
        let connected = connect_any(
            &targets,
            &loopback(),
            &SystemResolver,
            &SystemDialler,
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.address, address);
        assert_eq!(connected.target, targets[0]);
        assert!(connected.stream.nodelay().unwrap());
        drop(listener);
    }

    #[tokio::test]
    async fn an_ipv6_target_in_brackets_is_reached() {
        let (_listener, address) = listen("[::1]:0").await;
        let targets = [target(&format!("[::1]:{}", address.port()))];
        let connected = connect_any(
            &targets,
            &loopback(),
            &SystemResolver,
            &SystemDialler,
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.address, address);
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_localhost() {
        let addresses = SystemResolver.resolve("localhost", 3389).await.unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
        assert!(addresses.iter().all(|address| address.port() == 3389));
        assert!(!addresses.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_first_address_costs_a_quarter_of_a_second() {
        let (_listener, address) = listen("127.0.0.2:0").await;
        let resolver = fixed(["198.51.100.1:9".parse().unwrap(), address]);
        let start = Instant::now();
        let connected = connect_any(
            &[target("rdp.test:9")],
            &loopback_and("198.51.100.0/24"),
            &resolver,
            &Silent("198.51.100."),
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.address, address);
        assert_eq!(start.elapsed(), ATTEMPT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusing_first_address_costs_no_time() {
        let (listener, closed) = listen("127.0.0.3:0").await;
        drop(listener);
        let (_listener, address) = listen("127.0.0.2:0").await;
        let start = Instant::now();
        let connected = connect_any(
            &[target("rdp.test:9")],
            &loopback(),
            &fixed([closed, address]),
            &SystemDialler,
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.address, address);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_still_wins_over_silent_ones() {
        let (_listener, address) = listen("127.0.0.2:0").await;
        let resolver = fixed([
            address,
            "198.51.100.1:9".parse().unwrap(),
            "198.51.100.2:9".parse().unwrap(),
        ]);
        let connected = connect_any(
            &[target("rdp.test:9")],
            &loopback_and("198.51.100.0/24"),
            &resolver,
            &Slow(Duration::from_secs(2)),
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.address, address);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_target_leaves_the_next_its_share_of_the_deadline() {
        let (_listener, address) = listen("127.0.0.2:0").await;
        let start = Instant::now();
        let targets = [
            target("198.51.100.1:9"),
            target("198.51.100.2:9"),
            target(&address.to_string()),
        ];
        let connected = connect_any(
            &targets,
            &loopback_and("198.51.100.0/24"),
            &SystemResolver,
            &Silent("198.51.100."),
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.target, targets[2]);
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds_over_all_targets_and_addresses() {
        let start = Instant::now();
        let targets = [target("a.test:9"), target("198.51.100.2:9")];
        let error = connect_any(
            &targets,
            &loopback_and("198.51.100.0/24"),
            &fixed([
                "198.51.100.1:9".parse().unwrap(),
                "198.51.100.3:9".parse().unwrap(),
            ]),
            &Silent("198.51.100."),
            in_30_s(),
        )
        .await
        .unwrap_err();
        assert!(start.elapsed() <= LIMIT + Duration::from_millis(2));
        assert_eq!(error.class(), ConnectClass::TimedOut);
        assert_eq!(
            error.to_string(),
            "a.test:9: 198.51.100.1:9 did not answer in time, 198.51.100.3:9 did not answer in time; \
             198.51.100.2:9: 198.51.100.2:9 did not answer in time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_never_ends_is_cut_off() {
        struct Never;
        impl Resolve for Never {
            async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
                std::future::pending().await
            }
        }
        let error = connect_any(
            &[target("a.test:9")],
            &loopback(),
            &Never,
            &SystemDialler,
            in_30_s(),
        )
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "a.test:9: name not resolved in time");
        assert_eq!(error.class(), ConnectClass::TimedOut);
    }

    #[tokio::test]
    async fn a_name_that_rebinds_to_a_denied_address_is_not_dialled() {
        /// Answers with an allowed address first and with the metadata service from then on.
        struct Rebinding(AtomicUsize);
        impl Resolve for Rebinding {
            async fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
                let ip = match self.0.fetch_add(1, Ordering::Relaxed) {
                    0 => "127.0.0.3",
                    _ => "169.254.169.254",
                };
                Ok(vec![SocketAddr::new(ip.parse().unwrap(), port)])
            }
        }
        let resolver = Rebinding(AtomicUsize::new(0));
        let dialler = Recording::default();
        let targets = [target("rebind.test:80")];
        let egress = loopback_and("10.0.0.0/8");
        for _ in 0..2 {
            let _ = connect_any(&targets, &egress, &resolver, &dialler, in_30_s()).await;
        }
        let error = connect_any(&targets, &egress, &resolver, &dialler, in_30_s())
            .await
            .unwrap_err();
        assert_eq!(error.class(), ConnectClass::NotAllowed);
        assert_eq!(
            *dialler.0.lock().unwrap(),
            ["127.0.0.3:80".parse::<SocketAddr>().unwrap()]
        );
    }

    #[tokio::test]
    async fn only_the_allowed_addresses_of_a_name_are_dialled() {
        let (_listener, address) = listen("127.0.0.2:0").await;
        let denied = "169.254.169.254:80".parse().unwrap();
        let connected = connect_any(
            &[target("mixed.test:80")],
            &loopback(),
            &fixed([denied, address]),
            &SystemDialler,
            in_30_s(),
        )
        .await
        .unwrap();
        assert_eq!(connected.address, address);
    }

    #[tokio::test]
    async fn each_target_and_address_that_failed_is_named() {
        let (listener, closed) = listen("127.0.0.3:0").await;
        drop(listener);
        let error = connect_any(
            &[
                target(&format!("a.test:{}", closed.port())),
                target("10.9.9.9:22"),
            ],
            &loopback(),
            &fixed(["169.254.169.254:80".parse().unwrap(), closed]),
            &SystemDialler,
            in_30_s(),
        )
        .await
        .unwrap_err();
        let port = closed.port();
        assert_eq!(
            error.to_string(),
            format!(
                "a.test:{port}: 169.254.169.254:80 is refused by the built-in rule link-local, which an egress.allow rule opens \
                 whose cidr is of that kind (cidr = \"169.254.169.254\"), \
                 127.0.0.3:{port} refused the connection; \
                 10.9.9.9:22: 10.9.9.9:22 is refused by default: no egress.allow rule matches"
            )
        );
        assert_eq!(error.class(), ConnectClass::Unreachable);
    }

    #[tokio::test]
    async fn a_name_without_addresses_and_one_that_fails_say_so() {
        struct Fails;
        impl Resolve for Fails {
            async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
                Err(io::Error::other("no such host"))
            }
        }
        let targets = [target("a.test:9")];
        let error = connect_any(&targets, &loopback(), &fixed([]), &SystemDialler, in_30_s())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "a.test:9: name has no address");
        let error = connect_any(&targets, &loopback(), &Fails, &SystemDialler, in_30_s())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.test:9: name not resolved: no such host"
        );
        assert_eq!(error.class(), ConnectClass::Unreachable);
    }

    #[tokio::test]
    async fn an_address_of_this_machine_is_not_dialled_by_any_name() {
        let own = interface();
        let (listener, address) = listen(&SocketAddr::new(own, 0).to_string()).await;
        let mapped = match own {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
            IpAddr::V6(_) => own,
        };
        let texts = [own, mapped].map(|ip| SocketAddr::new(ip, address.port()).to_string());
        let targets = [target("name.test:9"), target(&texts[0]), target(&texts[1])];
        let resolver = fixed([address]);
        for egress in [EgressRules::default(), anywhere()] {
            let connected = connect_any(&targets, &egress, &resolver, &SystemDialler, in_30_s());
            let error = connected.await.unwrap_err();
            assert_eq!(error.class(), ConnectClass::NotAllowed, "{error}");
            for failure in &error.targets {
                let [Cause::NotAllowed(denied)] = &failure.causes[..] else {
                    panic!("{error}");
                };
                assert_eq!(denied.by, DeniedBy::ThisMachine);
            }
        }
        // Nobody has come: the first is the one that comes now.
        let ours = TcpStream::connect(address).await.unwrap();
        let (_, first) = listener.accept().await.unwrap();
        assert_eq!(first, ours.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_connection_whose_ends_have_one_address_is_dropped() {
        /// Does not know what is its own.
        struct Unknowing;
        impl Dial for Unknowing {
            async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
                SystemDialler.dial(address).await
            }

            fn own(&self) -> io::Result<Vec<IpAddr>> {
                Ok(Vec::new())
            }
        }
        let (listener, address) = listen(&SocketAddr::new(interface(), 0).to_string()).await;
        let targets = [target(&address.to_string())];
        let egress = anywhere();
        let connected = connect_any(&targets, &egress, &SystemResolver, &Unknowing, in_30_s());
        let error = connected.await.unwrap_err();
        assert_eq!(error.class(), ConnectClass::NotAllowed, "{error}");
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes);
        assert_eq!(read.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_allow_rule_of_the_one_address_leads_to_this_machine() {
        let own = interface();
        let (_listener, address) = listen(&SocketAddr::new(own, 0).to_string()).await;
        let config = serde_json::json!({ "allow": [{ "cidr": own.to_string() }] });
        let config: EgressConfig = serde_json::from_value(config).unwrap();
        let egress = config.try_into().unwrap();
        let targets = [target(&address.to_string())];
        let connected = connect_any(
            &targets,
            &egress,
            &SystemResolver,
            &SystemDialler,
            in_30_s(),
        );
        assert_eq!(connected.await.unwrap().address, address);
    }

    #[tokio::test]
    async fn where_the_systems_addresses_are_not_known_nothing_is_dialled() {
        struct Blind(Recording);
        impl Dial for Blind {
            async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
                self.0.dial(address).await
            }

            fn own(&self) -> io::Result<Vec<IpAddr>> {
                Err(io::Error::other("no netlink here"))
            }
        }
        let dialler = Blind(Recording::default());
        let targets = [target("127.0.0.1:9")];
        let egress = loopback();
        let connected = connect_any(&targets, &egress, &SystemResolver, &dialler, in_30_s());
        let error = connected.await.unwrap_err().to_string();
        let expected = "127.0.0.1:9: the addresses of this machine cannot be read: no netlink here";
        assert_eq!(error, expected);
        assert!(dialler.0.0.lock().unwrap().is_empty());
    }

    /// An address of this machine that others reach.
    fn interface() -> IpAddr {
        let own = own_addresses().unwrap();
        assert!(own.iter().any(IpAddr::is_loopback), "{own:?}");
        let mut others = own
            .into_iter()
            .filter(|ip| ip.is_ipv4() && !ip.is_loopback());
        others.next().expect("a machine with a network")
    }

    fn anywhere() -> EgressRules {
        let json = r#"{"allow": [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]}"#;
        let config: EgressConfig = serde_json::from_str(json).unwrap();
        config.try_into().unwrap()
    }

    #[test]
    fn families_alternate_and_duplicates_and_excess_are_dropped() {
        let v6 = |n: u16| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 1));
        let v4 = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
        assert_eq!(
            interleave(vec![v6(1), v6(2), v6(3), v4(1), v6(1)]),
            [v6(1), v4(1), v6(2), v6(3)]
        );
        assert_eq!(interleave(vec![v4(1), v4(2), v6(1)]), [v4(1), v6(1), v4(2)]);
        let many = (0..200).map(v4).collect();
        assert_eq!(interleave(many).len(), limits::ADDRESSES_PER_TARGET);
        assert_eq!(interleave(Vec::new()), []);
    }

    /// Never answers for addresses whose text begins so; dials the rest.
    struct Silent(&'static str);

    impl Dial for Silent {
        async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
            if address.to_string().starts_with(self.0) {
                std::future::pending::<()>().await;
            }
            SystemDialler.dial(address).await
        }
    }

    /// Takes its time to dial loopback addresses, and never answers for the rest.
    struct Slow(Duration);

    impl Dial for Slow {
        async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
            tokio::time::sleep(self.0).await;
            Silent("198.51.100.").dial(address).await
        }
    }

    /// Refuses everything and keeps a list of what it was asked for.
    #[derive(Default)]
    struct Recording(Mutex<Vec<SocketAddr>>);

    impl Dial for Recording {
        async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
            self.0.lock().unwrap().push(address);
            std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())).await
        }
    }

    struct Fixed(Vec<SocketAddr>);

    impl Resolve for Fixed {
        async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            std::future::ready(Ok(self.0.clone())).await
        }
    }

    fn fixed<const N: usize>(addresses: [SocketAddr; N]) -> Fixed {
        Fixed(addresses.to_vec())
    }

    fn loopback() -> EgressRules {
        loopback_and("10.0.0.0/30")
    }

    fn loopback_and(cidr: &str) -> EgressRules {
        let json = format!(
            r#"{{"allow": [{{"cidr": "127.0.0.0/8"}}, {{"cidr": "::1/128"}}, {{"cidr": "{cidr}"}}]}}"#
        );
        let config: EgressConfig = serde_json::from_str(&json).unwrap();
        config.try_into().unwrap()
    }

    fn target(text: &str) -> TargetAddr {
        text.parse().unwrap()
    }

    fn in_30_s() -> Instant {
        Instant::now() + LIMIT
    }

    async fn listen(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }
}
