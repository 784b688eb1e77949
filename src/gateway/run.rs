//! The life of a gateway: start, reload, drain, stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::arrival;
use crate::build::Prepared;
use crate::config::{Config, Reading};
use crate::listener;
use crate::live::registry::EndCause;
use crate::monitoring;
use crate::state::Gateway;
use crate::upkeep;
use jetway_audit::record::{Event, Record};

/// After live sessions were told to end: how long they are waited for.
const END_GRACE: Duration = Duration::from_secs(2);

/// A gateway that listens.
#[derive(Debug)]
pub struct Running {
    gateway: Arc<Gateway>,
    /// The tasks that accept and look after files.
    chores: TaskTracker,
    addresses: Vec<SocketAddr>,
    monitoring: Option<Monitoring>,
}

/// The port of monitoring.
#[derive(Debug)]
struct Monitoring {
    address: SocketAddr,
    /// It outlasts the chores: a gateway that drains says so.
    task: JoinHandle<()>,
}

impl Running {
    /// Reads what the configuration names, opens the store and listens.
    ///
    /// # Errors
    /// Whatever of these fails; no port is bound before all files have been read.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_prepared(Prepared::read(Reading::from(config))?)
    }

    /// Opens the store and listens.
    ///
    /// # Errors
    /// Another process has the store, or a port.
    pub fn start_prepared(prepared: Prepared) -> anyhow::Result<Self> {
        let gateway = Arc::new(prepared.open()?);
        let chores = TaskTracker::new();
        let mut sockets = Vec::new();
        for listener in &gateway.ports.listeners {
            let socket = listener
                .bind()
                .with_context(|| format!("cannot listen on {}", listener.address()))?;
            sockets.push((Arc::clone(listener), socket));
        }
        let monitoring = gateway.config.monitoring.address;
        let monitoring = monitoring.map(|address| {
            let socket = listener::listen(address)
                .with_context(|| format!("cannot listen on {address} (monitoring.address)"))?;
            let address = socket.local_addr()?;
            info!(%address, "Listening for monitoring");
            let task = tokio::spawn(monitoring::server::serve(Arc::clone(&gateway), socket));
            anyhow::Ok(Monitoring { address, task })
        });
        let monitoring = monitoring.transpose()?;
        let mut addresses = Vec::new();
        for (listener, socket) in sockets {
            let address = socket.local_addr()?;
            info!(%address, "Listening");
            addresses.push(address);
            let gateway = Arc::clone(&gateway);
            chores.spawn(async move {
                let (door, stopping) = (&gateway.door, &gateway.stopping);
                let serve = |stream, peer, admission| {
                    arrival::spawn(&gateway, &listener, stream, peer, admission);
                };
                listener::accept_all(&listener, socket, door, stopping, serve).await;
            });
        }
        chores.spawn(upkeep::run(Arc::clone(&gateway)));
        gateway.audit.record(&Record {
            detail: serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "addresses": addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            }),
            ..Record::new(Event::GatewayStarted)
        });
        Ok(Self {
            gateway,
            chores,
            addresses,
            monitoring,
        })
    }

    /// The bound addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The bound address of the port of monitoring, if there is one.
    #[must_use]
    pub fn monitoring(&self) -> Option<SocketAddr> {
        self.monitoring.as_ref().map(|port| port.address)
    }

    /// What connections share.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Reads changed files again, now.
    pub fn reload(&self) {
        upkeep::reload(&self.gateway);
    }

    /// Stops in two steps: no new connections, and live ones may finish for the configured time; then all are ended.
    pub async fn stop(self) {
        let Self {
            gateway,
            chores,
            monitoring,
            ..
        } = self;
        gateway.stopping.cancel();
        chores.close();
        chores.wait().await;
        gateway.sessions.registry.close();
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
            gateway.sessions.registry.end_all(&EndCause::Shutdown);
            let _ended = tokio::time::timeout(END_GRACE, gateway.connections.wait()).await;
        }
        gateway.audit.record(&Record::new(Event::GatewayStopped));
        // It waits for the disk.
        let audit = Arc::clone(&gateway.audit);
        let _closed = tokio::task::spawn_blocking(move || audit.close()).await;
        if let Some(port) = monitoring {
            port.task.abort();
        }
        info!("Stopped");
    }
}
