//! From a configuration to a gateway: every file that it names is read and found good before anything listens.

use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_rustls::rustls::RootCertStore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use zeroize::Zeroizing;

use crate::config::{
    self, Config, ConfigError, ConfigErrors, JetPeers, KerberosConfig, KeyFileConfig, Reading,
    TlsConfig, VerifyTarget,
};
use crate::listener::admission::Door;
use crate::listener::{self, Listener};
use crate::live::registry::Registry;
use crate::live::stages::Stages;
use crate::meeting::MeetingPlace;
use crate::state::{Gateway, InspectionTools, Peers, Ports, SessionRules, Sessions, Tokens};
use crate::trail::Trail;
use crate::trust::api_keys::ApiKeys;
use crate::trust::keyring::{KeyFile, Keyring};
use crate::trust::target_certificate::{FilePins, TargetCertificate};
use crate::trust::target_logon::{SecureConfig, TargetKerberos};
use crate::trust::tls::ServerTls;
use crate::upstream;
use crate::upstream::kdc::{KdcLookup, KdcSource};
use jetway_io::clock;
use jetway_io::free_space::FreeSpace;
use jetway_io::pem;
use jetway_io::private_file;
use jetway_jet::rendezvous::RendezvousLimits;
use jetway_policy::work::WorkLimiter;
use jetway_rdp::credssp::keytab::{self, Keytab};
use jetway_rdp::credssp::server::ClientKerberos;
use jetway_store::agents::Agents;
use jetway_store::audit;
use jetway_store::cookies::KnownCookies;
use jetway_store::disk::{self, Disk};
use jetway_store::refusals::Refusals;
use jetway_store::revoked::Revoked;
use jetway_store::tickets::Tickets;
use jetway_store::usage::Usages;
use jetway_token::UnsignedJwe;

/// What a gateway starts with: a configuration, and every file that it names, read and found good. `jetway config check` ends
/// here, and `jetway serve` goes on.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    keyring: Keyring,
    revoked: Revoked,
    listeners: Vec<Listener>,
    tls: Vec<Arc<ServerTls>>,
    secure: SecureConfig,
    taken: Vec<SocketAddr>,
    stages: Option<Arc<dyn Stages>>,
}

impl Prepared {
    /// Reads every file that the configuration names, and looks whether what it names can be written and listened on, by the
    /// user whose process this is. Nothing is written, and no port is open when it returns. Switches that weaken the gateway, and
    /// files that are open to others, are in the log.
    ///
    /// # Errors
    /// All that cannot be used, each with the place in the configuration that names it.
    pub fn read(reading: Reading) -> Result<Self, ConfigErrors> {
        let Reading { config, mut errors } = reading;
        let Some(config) = config else {
            return Err(ConfigErrors(errors));
        };
        let mut faults = Faults {
            config: &config,
            found: Vec::new(),
        };
        let keyring = faults.keyring();
        let revoked = faults.of(
            &["token", "revoked"],
            Revoked::load(config.token.revoked.clone()),
        );
        let listeners = faults.listeners();
        let secure = faults.secure();
        let taken = faults.ports();
        faults.of(&["store", "path"], disk::check(&config.store.path));
        if let Some(files) = config.audit_settings().files {
            faults.of(&["audit", "path"], audit::check(&files.path));
            faults.of(
                &["audit", "path"],
                private_file::check_writable(&files.path),
            );
        }
        // Each dial asks again; where the system does not tell, that is better known now.
        let addresses = upstream::own_addresses().context(
            "cannot read the addresses of this machine (a sandbox has to admit AF_NETLINK)",
        );
        faults.of(&["egress"], addresses.map_err(|error| format!("{error:#}")));
        config::add_new(&mut errors, faults.found);
        warn_of_switches(&config);
        match (keyring, revoked, listeners, secure) {
            (Some(keyring), Some(revoked), Some((listeners, tls)), Some(secure))
                if errors.is_empty() =>
            {
                Ok(Self {
                    config,
                    keyring,
                    revoked,
                    listeners,
                    tls,
                    secure,
                    taken,
                    stages: None,
                })
            }
            _ => Err(ConfigErrors(errors)),
        }
    }

    /// Adds stages to those of every session that is inspected.
    #[must_use]
    pub fn with_stages(mut self, stages: Arc<dyn Stages>) -> Self {
        self.stages = Some(stages);
        self
    }

    /// Opens the store and makes what connections share; nothing listens yet.
    ///
    /// # Errors
    /// Another process has the store, or what is in it cannot be read.
    pub(super) fn open(self) -> anyhow::Result<Gateway> {
        let Prepared {
            config,
            keyring,
            revoked,
            listeners,
            tls,
            secure,
            stages,
            ..
        } = self;
        let now = clock::unix_now();
        let (disk, contents) = Disk::open(&config.store.path, now)?;
        let disk = Arc::new(disk);
        revoked
            .keep_on(Arc::clone(&disk), &contents.revocations)
            .context("the revocations in the store cannot be read")?;
        let agents = Arc::new(Agents::new(Arc::clone(&disk), &contents.agents));
        let tickets = Tickets::new(Arc::clone(&disk), contents.tickets);
        let tickets = (tickets, config.tickets.lifetime_s);
        let usages = Arc::new(Usages::new(Arc::clone(&disk), contents.usage, now));
        let limits = &config.limits;
        let work = WorkLimiter::new(limits.token_work_us_per_s, limits.token_work_burst_us);
        let rules = SessionRules::new(
            &config.session,
            &config.token,
            !tls.is_empty(),
            !matches!(secure.target_certificate, TargetCertificate::AcceptAny),
        );
        Ok(Gateway {
            audit: Arc::new(Trail::open(
                &config.audit_settings(),
                Arc::clone(&disk),
                contents.audit_head.as_deref(),
            )?),
            store_space: FreeSpace::of(&config.store.path),
            refusals: Refusals::default(),
            tokens: Arc::new(Tokens::new(keyring, revoked, tickets, work)),
            api_keys: Arc::new(ApiKeys::new(config.api.keys.clone())),
            sessions: Arc::new(Sessions {
                rules: Arc::new(rules),
                registry: Arc::new(Registry::new(limits.sessions_per_address)),
                usages,
                returning: Arc::default(),
            }),
            inspection: InspectionTools {
                secure,
                cookies: Arc::new(KnownCookies::new()?),
                stages,
            },
            peers: Arc::new(Peers {
                agents,
                meetings: Arc::new(meeting_place(&config)),
                instance: config.jet.instance.clone().unwrap_or_else(machine_name),
                allowed: config.jet.peers,
            }),
            ports: Ports {
                listeners: listeners.into_iter().map(Arc::new).collect(),
                tls,
            },
            door: Door::new(
                limits.connections,
                limits.pending_connections,
                limits.pending_per_address,
            ),
            stopping: CancellationToken::new(),
            connections: TaskTracker::new(),
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How many keys there are to verify with and to decrypt with.
    #[must_use]
    pub fn keys(&self) -> (usize, usize) {
        self.keyring.verifier().keys().counts()
    }

    /// What an administrator may want to know, and nothing is wrong with.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let verifier = self.keyring.verifier();
        let skipped = verifier.keys().skipped().iter();
        // The others are in the log.
        let skipped = skipped.filter(|key| !key.is_fault);
        let taken = self.taken.iter().map(|address| {
            format!("{address} is in use now, by a gateway that runs already or by another program")
        });
        skipped.map(|key| key.reason.clone()).chain(taken).collect()
    }
}

/// Finds what of a configuration cannot be used.
struct Faults<'a> {
    config: &'a Config,
    found: Vec<ConfigError>,
}

impl Faults<'_> {
    fn fault(&mut self, key: &[&str], problem: &dyn ToString) {
        let error = self.config.source.error(key, &problem.to_string());
        self.found.push(error);
    }

    /// What `key` has led to, if it is good.
    fn of<T, E: ToString>(&mut self, key: &[&str], result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.fault(key, &error)).ok()
    }

    fn keyring(&mut self) -> Option<Keyring> {
        let error = match load_keys(self.config) {
            Ok(keyring) => return Some(keyring),
            Err(error) => error,
        };
        let before = self.found.len();
        for (index, key) in self.config.token.keys.iter().enumerate() {
            let key = Keyring::load(&[key_file(key)], self.config.token_rules());
            self.of(&["token", "keys", &index.to_string(), "path"], key);
        }
        // Each for itself is good.
        if self.found.len() == before {
            self.fault(&["token", "keys"], &format!("{error:#}"));
        }
        None
    }

    /// One [`Listener`] each; listeners with equal TLS settings share them.
    fn listeners(&mut self) -> Option<(Vec<Listener>, Vec<Arc<ServerTls>>)> {
        let mut known: Vec<(TlsConfig, Option<Arc<ServerTls>>)> = Vec::new();
        let mut listeners = Vec::new();
        for (index, listener) in self.config.listener.iter().enumerate() {
            let tls = self.config.tls_of(listener).map(|wanted| {
                if let Some((_, tls)) = known.iter().find(|(config, _)| config == wanted) {
                    return tls.clone();
                }
                let own = listener.tls.is_some().then_some(index);
                let tls = self.tls(own, wanted);
                known.push((wanted.clone(), tls.clone()));
                tls
            });
            listeners.push(Listener::new(listener.clone(), tls.flatten()));
        }
        let all = known.len();
        let tls: Vec<_> = known.into_iter().filter_map(|(_, tls)| tls).collect();
        (tls.len() == all).then_some((listeners, tls))
    }

    /// The certificate of one listener, or of all that have none of their own.
    fn tls(&mut self, listener: Option<usize>, wanted: &TlsConfig) -> Option<Arc<ServerTls>> {
        match ServerTls::load(wanted.clone()) {
            Ok(tls) => {
                private_file::warn_if_open(&wanted.key, "Private key file");
                Some(Arc::new(tls))
            }
            Err(error) => {
                let file = if ServerTls::is_fault_of_key(wanted, &error) {
                    "key"
                } else {
                    "certificate"
                };
                match listener {
                    Some(index) => {
                        self.fault(&["listener", &index.to_string(), "tls", file], &error);
                    }
                    None => self.fault(&["tls", file], &error),
                }
                None
            }
        }
    }

    /// The addresses that somebody listens on already: this gateway, where it runs and is checked.
    fn ports(&mut self) -> Vec<SocketAddr> {
        let listeners = self.config.listener.iter().enumerate();
        let listeners = listeners.map(|(index, listener)| {
            let key = vec![
                "listener".to_owned(),
                index.to_string(),
                "address".to_owned(),
            ];
            (key, listener.address)
        });
        let monitoring = self.config.monitoring.address.map(|address| {
            let key = vec!["monitoring".to_owned(), "address".to_owned()];
            (key, address)
        });
        let mut taken = Vec::new();
        for (key, address) in listeners.chain(monitoring) {
            match listener::is_ours(address) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken.push(address),
                Err(error) => {
                    let key: Vec<&str> = key.iter().map(String::as_str).collect();
                    self.fault(&key, &format!("cannot listen on {address}: {error}"));
                }
            }
        }
        taken
    }

    /// How inspected sessions meet their targets.
    fn secure(&mut self) -> Option<SecureConfig> {
        let config = self.config;
        let target_certificate = target_certificate(config);
        let key = match config.target.verify {
            VerifyTarget::Ca => "ca",
            VerifyTarget::FirstUse | VerifyTarget::AcceptAny => "pins",
        };
        let target_certificate = target_certificate.map_err(|error| format!("{error:#}"));
        let target_certificate = self.of(&["target", key], target_certificate);
        let kdcs = config.target.kerberos.as_ref().map(|kerberos| {
            let source = kdc_source(kerberos, config).map_err(|error| format!("{error:#}"));
            let kdcs = self.of(&["target", "kerberos"], source)?;
            Some(TargetKerberos {
                kdcs,
                realm: kerberos.realm.clone(),
                ntlm_fallback: kerberos.ntlm_fallback,
            })
        });
        let keytab = config.client.kerberos.as_ref().map(|kerberos| {
            let keytab = read_keytab(&kerberos.keytab).map_err(|error| format!("{error:#}"));
            let keytab = self.of(&["client", "kerberos", "keytab"], keytab)?;
            Some(ClientKerberos {
                keytab: Arc::new(keytab),
                ntlm_fallback: kerberos.ntlm_fallback,
            })
        });
        Some(SecureConfig {
            target_certificate: target_certificate?,
            kerberos: with_option(kdcs)?,
            client_kerberos: with_option(keytab)?,
        })
    }
}

/// Nothing where what was asked for is not to be had.
fn with_option<T>(asked: Option<Option<T>>) -> Option<Option<T>> {
    match asked {
        None => Some(None),
        Some(Some(had)) => Some(Some(had)),
        Some(None) => None,
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

/// How certificates of targets are judged.
fn target_certificate(config: &Config) -> anyhow::Result<TargetCertificate> {
    let target = &config.target;
    Ok(match target.verify {
        VerifyTarget::Ca => {
            let mut roots = RootCertStore::empty();
            if let Some(path) = &target.ca {
                for certificate in pem::read_certificates(path)? {
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
            private_file::check_writable(&target.pins)?;
            TargetCertificate::TrustOnFirstUse {
                pins: Arc::new(pins),
                tls_only: target.tls_only.iter().cloned().collect(),
            }
        }
        VerifyTarget::AcceptAny => TargetCertificate::AcceptAny,
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

fn meeting_place(config: &Config) -> MeetingPlace {
    let limits = RendezvousLimits {
        associations: config.jet.associations,
        unused: Duration::from_secs(config.jet.unused_timeout_s),
        ended: Duration::from_secs(config.jet.ended_s),
    };
    MeetingPlace::new(
        limits,
        config.jet.associations_per_address,
        config.limits.sessions_per_address,
    )
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
    if let Some(address) = config.monitoring.address
        && !address.ip().is_loopback()
    {
        warn!(%address, "Whoever reaches this port reads metrics and health without a key (monitoring.address)");
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
