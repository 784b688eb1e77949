//! What all connections of a process share, and the process's own life: start, upkeep, drain, stop.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio_rustls::rustls::RootCertStore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{
    Arrival, Config, ConfigErrors, JetPeers, KerberosConfig, KeyFileConfig, TlsConfig, VerifyTarget,
};
use crate::jet::candidate::{CandidateType, CandidateUrl, TRANSPORTS};
use crate::jet::rendezvous::RendezvousLimits;
use crate::keyring::{KeyFile, Keyring, ReloadOutcome};
use crate::listener::admission::Door;
use crate::listener::reached::Reached;
use crate::listener::{self, Listener};
use crate::meeting::MeetingPlace;
use crate::policy::work::WorkLimiter;
use crate::policy::{Inspecting, Means};
use crate::private_file;
use crate::rdp::credssp::keytab::{self, Keytab};
use crate::rdp::credssp::server::Kerberos as ClientKerberos;
use crate::refusal::Refusal;
use crate::session::kdc::{KdcLookup, KdcSource};
use crate::session::registry::{EndCause, Registry};
use crate::session::secure::{Kerberos, SecureConfig};
use crate::store::agents::Agents;
use crate::store::cookies::KnownCookies;
use crate::store::disk::Disk;
use crate::store::redirections::Returning;
use crate::store::refusals::Refusals;
use crate::store::revoked::Revoked;
use crate::store::tickets::Tickets;
use crate::store::usage::Usages;
use crate::target_certificate::{FilePins, TargetCertificate};
use crate::tls::{self, ServerTls};
use crate::token::{Protection, Token, UnsignedJwe};
use crate::upstream;

/// How often files are looked at for changes.
const UPKEEP: Duration = Duration::from_secs(1);

/// How often what has expired is dropped, in upkeeps.
const FORGET_EVERY: u32 = 60;

/// After live sessions were told to end: how long they are waited for.
const END_GRACE: Duration = Duration::from_secs(2);

/// What all connections share.
#[derive(Debug)]
pub struct Gateway {
    /// As loaded; a changed file needs a restart.
    pub config: Config,
    /// The keys in force.
    pub keyring: Keyring,
    /// The revocations in force.
    pub revoked: Revoked,
    /// Agents.
    pub agents: Arc<Agents>,
    /// Tickets.
    pub tickets: Tickets,
    /// Which tokens were used.
    pub usages: Arc<Usages>,
    /// What refused clients were told.
    pub refusals: Refusals,
    /// The live sessions.
    pub registry: Arc<Registry>,
    /// Auto-reconnect cookies of targets.
    pub cookies: Arc<KnownCookies>,
    /// How many connections there may be.
    pub door: Door,
    /// Fires when no more connections are taken.
    pub stopping: CancellationToken,
    /// Every connection's task.
    pub connections: TaskTracker,
    /// The tasks that accept and look after files.
    chores: TaskTracker,
    /// How inspected sessions meet their targets.
    pub secure: SecureConfig,
    /// Where targets have sent clients that come back.
    pub returning: Arc<Returning>,
    /// Where the peers of rendezvous wait for each other.
    pub meetings: Arc<MeetingPlace>,
    /// The ports.
    pub listeners: Vec<Arc<Listener>>,
    work: Mutex<WorkLimiter>,
    work_reached: Reached,
    tls: Vec<Arc<ServerTls>>,
}

/// A gateway that listens.
#[derive(Debug)]
pub struct Running {
    gateway: Arc<Gateway>,
    addresses: Vec<SocketAddr>,
}

impl Gateway {
    /// Verifies a token that `client` has shown, after booking the work that takes.
    ///
    /// # Errors
    /// The address has shown too many tokens, or this one does not hold.
    pub fn verify_token(&self, text: &str, client: IpAddr) -> Result<Token, Refusal> {
        let verifier = self.keyring.verifier();
        let cost = verifier.cost_us(text);
        self.book(client, cost)?;
        let token = verifier.judge(text, clock::unix_now())?;
        if token.protection == Protection::None {
            // Anybody can make it, so it is no `token` that speaks for its bearer.
            warn!(unsigned = %token.id, peer = %client, "Accepted an unsigned token (development.accept_unsigned_tokens)");
        }
        Ok(token)
    }

    /// With what a session through any of the listeners could be inspected.
    #[must_use]
    pub fn means(&self) -> Means {
        self.means_of(if self.tls.is_empty() {
            Inspecting::Unavailable
        } else {
            Inspecting::WhenNeeded
        })
    }

    /// With what a session through one listener can be inspected.
    #[must_use]
    pub fn means_by(&self, listener: &Listener) -> Means {
        self.means_of(listener.inspecting(self.config.session.inspect))
    }

    fn means_of(&self, inspecting: Inspecting) -> Means {
        Means {
            inspecting,
            verifies_targets: !matches!(
                self.secure.target_certificate,
                TargetCertificate::AcceptAny
            ),
        }
    }

    /// One candidate URL for each transport that some listener has, for a `peer` that knows the gateway as `host`. The listener by
    /// which it came goes first: that one it can reach.
    #[must_use]
    pub fn candidate_urls(
        &self,
        peer: SocketAddr,
        host: Option<&str>,
        came_by: &Arc<Listener>,
    ) -> Vec<CandidateUrl> {
        let plain_http = self.config.api.allows_plain_http(peer);
        let urls = TRANSPORTS.into_iter().filter_map(|transport| {
            let mut listeners = std::iter::once(came_by).chain(&self.listeners);
            let listener = listeners.find(|listener| {
                let tls = !transport.is_tls()
                    || (listener.tls().is_some() && listener.accepts(Arrival::Tls));
                let inner = if transport.is_websocket() {
                    listener.accepts(Arrival::Http) && (transport.is_tls() || plain_http)
                } else {
                    listener.accepts(Arrival::Jet)
                };
                tls && inner
            })?;
            Some(CandidateUrl {
                transport,
                address: listener.external(host)?,
                ctype: Some(CandidateType::Relay),
            })
        });
        urls.collect()
    }

    /// `Jet-Instance`.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.config.jet.instance.as_deref().unwrap_or_default()
    }

    /// Books work that `client` causes.
    ///
    /// # Errors
    /// The address has caused too much.
    pub fn book(&self, client: IpAddr, cost_us: u32) -> Result<(), Refusal> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let booked = work.book(client, cost_us, clock::now());
        drop(work);
        booked.map_err(|_| {
            self.work_reached.by(&client);
            Refusal::TooMuchWork
        })
    }

    /// Reads changed files again.
    fn reload(&self) {
        match self.keyring.reload_if_changed() {
            // The keyring itself tells what it did.
            ReloadOutcome::Unchanged | ReloadOutcome::Reloaded | ReloadOutcome::Kept(_) => {}
        }
        match self.revoked.reload_if_changed() {
            Ok(false) => {}
            Ok(true) => {
                info!("Revocation list reloaded");
                let rules = self.revoked.rules();
                // The sessions first: what ends them is what is told of their end.
                for (session, token, rule) in self.registry.end_revoked(&rules) {
                    info!(%session, %token, rule, "Ending a session whose token was revoked");
                }
                for (association, token, rule) in self.meetings.close_revoked(&rules) {
                    info!(jet_aid = %association, %token, rule, "Closing a peer whose token was revoked");
                }
                for (association, rule) in self.meetings.end_revoked(&rules) {
                    info!(jet_aid = %association, rule, "Removed an association whose token was revoked");
                }
            }
            Err(error) => warn!(%error, "The revocation list was not reloaded, the old one stays"),
        }
        for tls in &self.tls {
            match tls.reload_if_changed() {
                Ok(false) => {}
                Ok(true) => {
                    info!(certificate = %tls.certificate().display(), "Certificate reloaded")
                }
                Err(error) => warn!(%error, "The certificate was not reloaded, the old one stays"),
            }
        }
    }

    /// Looks after files and tables until the gateway stops.
    async fn upkeep(self: Arc<Self>) {
        let mut turns = 0_u32;
        loop {
            tokio::select! {
                () = tokio::time::sleep(UPKEEP) => {}
                () = self.stopping.cancelled() => return,
            }
            self.reload();
            for association in self.meetings.expire() {
                debug!(jet_aid = %association, "Association forgotten");
            }
            self.agents.forget_offers(|id| self.meetings.is_live(id));
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(FORGET_EVERY) {
                let now = clock::unix_now();
                self.usages.forget_expired(now);
                // Who was sent on by its target comes back, whatever its token's window.
                self.tickets.forget(now, |token, window_s| {
                    self.returning.of(token).is_none() && self.usages.is_over(token, window_s, now)
                });
            }
        }
    }
}

impl Running {
    /// Opens the store, loads keys and certificates, and listens.
    ///
    /// # Errors
    /// Whatever of these fails; no port is bound before all files have been read.
    pub fn start(mut config: Config) -> anyhow::Result<Self> {
        let now = clock::unix_now();
        // Each dial asks again; where the system does not tell, that is better known now.
        upstream::own_addresses().context(
            "cannot read the addresses of this machine (a sandbox has to admit AF_NETLINK)",
        )?;
        let keyring = load_keys(&config)?;
        let revoked = Revoked::load(config.token.revoked.clone())?;
        let (listeners, tls) = make_listeners(&config)?;
        let (disk, contents) = Disk::open(&config.store.path, now)?;
        let disk = Arc::new(disk);
        let agents = Arc::new(Agents::new(Arc::clone(&disk), &contents.agents));
        let tickets = Tickets::new(Arc::clone(&disk), contents.tickets);
        let usages = Arc::new(Usages::new(disk, contents.usage, now));
        let secure = make_secure(&config)?;
        warn_of_switches(&config);
        config.jet.instance.get_or_insert_with(machine_name);
        let limits = &config.limits;
        let listeners: Vec<Arc<Listener>> = listeners.into_iter().map(Arc::new).collect();
        let gateway = Arc::new(Gateway {
            keyring,
            revoked,
            agents,
            tickets,
            usages,
            refusals: Refusals::default(),
            cookies: Arc::new(KnownCookies::new()?),
            secure,
            returning: Arc::default(),
            meetings: Arc::new(MeetingPlace::new(
                RendezvousLimits {
                    associations: config.jet.associations,
                    unused: Duration::from_secs(config.jet.unused_timeout_s),
                    ended: Duration::from_secs(config.jet.ended_s),
                },
                config.jet.associations_per_address,
                limits.sessions_per_address,
            )),
            listeners,
            registry: Arc::new(Registry::new(limits.sessions_per_address)),
            door: Door::new(
                limits.connections,
                limits.pending_connections,
                limits.pending_per_address,
            ),
            stopping: CancellationToken::new(),
            connections: TaskTracker::new(),
            chores: TaskTracker::new(),
            work: Mutex::new(WorkLimiter::new(
                limits.token_work_us_per_s,
                limits.token_work_burst_us,
            )),
            work_reached: Reached::new("limits.token_work_us_per_s"),
            tls,
            config,
        });
        let mut sockets = Vec::new();
        for listener in &gateway.listeners {
            let socket = listener
                .bind()
                .with_context(|| format!("cannot listen on {}", listener.address()))?;
            sockets.push((Arc::clone(listener), socket));
        }
        let mut addresses = Vec::new();
        for (listener, socket) in sockets {
            let address = socket.local_addr()?;
            info!(%address, "Listening");
            addresses.push(address);
            gateway
                .chores
                .spawn(listener::accept_all(Arc::clone(&gateway), listener, socket));
        }
        gateway.chores.spawn(Arc::clone(&gateway).upkeep());
        Ok(Self { gateway, addresses })
    }

    /// The bound addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What connections share.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Reads changed files again, now.
    pub fn reload(&self) {
        self.gateway.reload();
    }

    /// Stops in two steps: no new connections, and live ones may finish for the configured time; then all are ended.
    pub async fn stop(self) {
        let Self { gateway, .. } = self;
        gateway.stopping.cancel();
        gateway.chores.close();
        gateway.chores.wait().await;
        gateway.registry.close();
        gateway.connections.close();
        let drain = Duration::from_secs(gateway.config.session.drain_s);
        let live = gateway.connections.len();
        if live > 0 {
            info!(live, drain_s = drain.as_secs(), "Waiting for live sessions");
        }
        if tokio::time::timeout(drain, gateway.connections.wait())
            .await
            .is_err()
        {
            gateway.registry.end_all(&EndCause::Shutdown);
            let _ended = tokio::time::timeout(END_GRACE, gateway.connections.wait()).await;
        }
        info!("Stopped");
    }
}

/// What [`check_files`] found.
#[derive(Debug)]
pub struct Checked {
    /// Keys to verify with.
    pub verify: usize,
    /// Keys to decrypt with.
    pub decrypt: usize,
    /// Keys of sets that are not used, and why.
    pub skipped: Vec<String>,
}

/// Reads every file that the configuration names.
///
/// # Errors
/// The files that cannot be used, each with the place in the configuration that names it.
pub fn check_files(config: &Config) -> Result<Checked, ConfigErrors> {
    let mut errors = Vec::new();
    let mut fault = |key: &[&str], problem: &dyn ToString| {
        errors.push(config.source.error(key, &problem.to_string()));
    };
    let mut keys_are_good = true;
    for (index, key) in config.token.keys.iter().enumerate() {
        if let Err(error) = Keyring::load(&[key_file(key)], config.token_rules()) {
            fault(&["token", "keys", &index.to_string(), "path"], &error);
            keys_are_good = false;
        }
    }
    let keyring = keys_are_good.then(|| load_keys(config));
    if let Some(Err(error)) = &keyring {
        fault(&["token", "keys"], &format!("{error:#}"));
    }
    if let Err(error) = Revoked::load(config.token.revoked.clone()) {
        fault(&["token", "revoked"], &error);
    }
    let own = config.listener.iter().enumerate();
    let own = own.filter_map(|(index, listener)| Some((Some(index), listener.tls.as_ref()?)));
    let common_is_used = config
        .listener
        .iter()
        .any(|listener| listener.tls.is_none());
    let common = config.tls.iter().filter(|_| common_is_used);
    for (index, tls) in own.chain(common.map(|tls| (None, tls))) {
        if let Err(error) = ServerTls::load(tls.clone()) {
            let file = if ServerTls::is_fault_of_key(tls, &error) {
                "key"
            } else {
                "certificate"
            };
            match index {
                Some(index) => fault(&["listener", &index.to_string(), "tls", file], &error),
                None => fault(&["tls", file], &error),
            }
        }
    }
    if let Err(error) = target_certificate(config) {
        let key = match config.target.verify {
            VerifyTarget::Ca => "ca",
            VerifyTarget::FirstUse | VerifyTarget::AcceptAny => "pins",
        };
        fault(&["target", key], &format!("{error:#}"));
    }
    if let Some(kerberos) = &config.target.kerberos
        && let Err(error) = kdc_source(kerberos, config)
    {
        fault(&["target", "kerberos"], &format!("{error:#}"));
    }
    if let Some(kerberos) = &config.client.kerberos
        && let Err(error) = read_keytab(&kerberos.keytab)
    {
        fault(&["client", "kerberos", "keytab"], &format!("{error:#}"));
    }
    match keyring {
        Some(Ok(keyring)) if errors.is_empty() => {
            let verifier = keyring.verifier();
            let (verify, decrypt) = verifier.keys().counts();
            let skipped = verifier.keys().skipped().iter();
            Ok(Checked {
                verify,
                decrypt,
                skipped: skipped.map(|key| key.reason.clone()).collect(),
            })
        }
        Some(_) | None => Err(ConfigErrors(errors)),
    }
}

fn load_keys(config: &Config) -> anyhow::Result<Keyring> {
    let files: Vec<KeyFile> = config.token.keys.iter().map(key_file).collect();
    Keyring::load(&files, config.token_rules()).context("token keys")
}

fn key_file(key: &KeyFileConfig) -> KeyFile {
    KeyFile {
        path: key.path.clone(),
        usage: key.usage,
        kid: key.kid.clone(),
    }
}

/// One [`Listener`] each; listeners with equal TLS settings share them.
fn make_listeners(config: &Config) -> anyhow::Result<(Vec<Listener>, Vec<Arc<ServerTls>>)> {
    let mut known: Vec<(TlsConfig, Arc<ServerTls>)> = Vec::new();
    let mut listeners = Vec::new();
    for listener in &config.listener {
        let tls = match config.tls_of(listener) {
            None => None,
            Some(wanted) => match known.iter().find(|(config, _)| config == wanted) {
                Some((_, tls)) => Some(Arc::clone(tls)),
                None => {
                    let tls = Arc::new(ServerTls::load(wanted.clone())?);
                    private_file::warn_if_open(&wanted.key, "Private key file");
                    known.push((wanted.clone(), Arc::clone(&tls)));
                    Some(tls)
                }
            },
        };
        listeners.push(Listener::new(listener.clone(), tls));
    }
    Ok((listeners, known.into_iter().map(|(_, tls)| tls).collect()))
}

/// How certificates of targets are judged.
fn target_certificate(config: &Config) -> anyhow::Result<TargetCertificate> {
    let target = &config.target;
    Ok(match target.verify {
        VerifyTarget::Ca => {
            let mut roots = RootCertStore::empty();
            if let Some(path) = &target.ca {
                for certificate in tls::read_certificates(path)? {
                    let added = roots.add(certificate);
                    added.with_context(|| path.display().to_string())?;
                }
            }
            TargetCertificate::Ca {
                roots: Arc::new(roots),
                name: None,
            }
        }
        VerifyTarget::FirstUse => {
            let pins = FilePins::open(&target.pins);
            let pins = pins.with_context(|| target.pins.display().to_string())?;
            TargetCertificate::TrustOnFirstUse {
                pins: Arc::new(pins),
                tls_only: target.tls_only.iter().cloned().collect(),
            }
        }
        VerifyTarget::AcceptAny => TargetCertificate::AcceptAny,
    })
}

/// How inspected sessions meet their targets.
fn make_secure(config: &Config) -> anyhow::Result<SecureConfig> {
    let target_certificate = target_certificate(config)?;
    let kerberos = match &config.target.kerberos {
        Some(kerberos) => Some(Kerberos {
            kdcs: kdc_source(kerberos, config)?,
            realm: kerberos.realm.clone(),
            ntlm_fallback: kerberos.ntlm_fallback,
        }),
        None => None,
    };
    let client_kerberos = match &config.client.kerberos {
        Some(kerberos) => Some(ClientKerberos {
            keytab: Arc::new(read_keytab(&kerberos.keytab)?),
            ntlm_fallback: kerberos.ntlm_fallback,
        }),
        None => None,
    };
    Ok(SecureConfig {
        target_certificate,
        kerberos,
        client_kerberos,
    })
}

fn kdc_source(kerberos: &KerberosConfig, config: &Config) -> anyhow::Result<KdcSource> {
    if !kerberos.dns {
        return Ok(KdcSource::Listed(kerberos.kdcs.clone()));
    }
    let realm = kerberos.realm.as_deref().unwrap_or_default();
    let egress = config.egress_rules.clone();
    let lookup = KdcLookup::new(realm, &kerberos.nameservers, egress);
    let lookup = lookup.with_context(|| format!("target.kerberos: {realm}"))?;
    Ok(KdcSource::Dns(Arc::new(lookup)))
}

fn read_keytab(path: &Path) -> anyhow::Result<Keytab> {
    let read = || {
        let file = fs::File::open(path)?;
        private_file::warn_if_open(path, "Keytab");
        let mut bytes = Zeroizing::new(Vec::with_capacity(keytab::FILE_BYTES));
        let bound = u64::try_from(keytab::FILE_BYTES)?;
        file.take(bound).read_to_end(&mut bytes)?;
        anyhow::Ok(Keytab::parse(&bytes)?)
    };
    read().with_context(|| path.display().to_string())
}

/// The machine's name, for peers that look for the gateway that holds their association.
fn machine_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Switches that weaken the gateway are announced where nobody can miss them.
fn warn_of_switches(config: &Config) {
    if config.development.accept_unsigned_tokens {
        warn!("DEVELOPMENT SWITCH: tokens with alg none are accepted; anybody can make them");
    }
    if !config.jet.authentication {
        warn!("Anybody may create associations (jet.authentication = false)");
    }
    if config.jet.peers == JetPeers::Anyone {
        warn!(
            "Whoever knows two UUIDs may be a peer of any association, without a token (jet.peers = anyone)"
        );
    }
    if config.target.verify == VerifyTarget::AcceptAny {
        warn!("Certificates of targets are not verified (target.verify = accept-any)");
    }
    for target in &config.target.tls_only {
        warn!(%target, "The first certificate that this target shows is trusted with credentials, without CredSSP (target.tls_only)");
    }
    if config.token.unsigned_jwe == UnsignedJwe::Accept {
        warn!(
            "Encrypted tokens need no signature (token.unsigned_jwe = accept): whoever has the public key can make them"
        );
    }
}
