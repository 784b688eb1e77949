//! What arrived, and who serves it: from an accepted connection to its outcome.
//!
//! An RDP client goes through the five steps of [`session`]: identify, authenticate, authorize, connect, open or inspect. Each
//! takes the one before it by value, so a step that was skipped does not compile. HTTP is served by [`api`], a peer of
//! a rendezvous by [`rendezvous`](crate::rendezvous).

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tracing::field::Empty;
use tracing::{Instrument, debug, info_span};

use crate::api;
use crate::connection::Client;
use crate::listener::Listener;
use crate::listener::admission::Admission;
use crate::rendezvous::request;
use crate::session::identify::{self, Identified};
use crate::session::{self, Ready, authenticate, authorize, connect, meet_acceptor, refuse};
use crate::state::Gateway;
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_io::clock;
use jetway_io::keep_alive;
use jetway_io::stream::{Io, Stream};

/// Serves an accepted connection in a task of its own.
pub fn spawn(
    gateway: &Arc<Gateway>,
    listener: &Arc<Listener>,
    stream: TcpStream,
    peer: SocketAddr,
    admission: Admission,
) {
    if let Err(error) = keep_alive::tune(&stream) {
        debug!(%peer, %error, "Client disconnected before it was served");
        return;
    }
    let started = clock::now();
    let client = Client {
        id: SessionId::from(clock::new_uuid()),
        peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        started,
        identify_by: started + limits::IDENTIFY_TIMEOUT,
        establish_by: started + limits::ESTABLISH_TIMEOUT,
        listener: Arc::clone(listener),
        routing_token: None,
        stream: Stream::new(Io::Tcp(stream)),
        admission,
    };
    // Whatever happens on the way to the closing line can be found by the connection's id, called as in lines that have it themselves.
    let span = info_span!("session", session = %client.id, %peer, jet_aid = Empty, jet_ap = Empty);
    gateway
        .connections
        .spawn(handle(Arc::clone(gateway), client).instrument(span));
}

/// Carries one connection from its first byte to its last.
async fn handle(gateway: Arc<Gateway>, client: Client) {
    let (id, peer, evicted) = (client.id, client.peer, client.admission.evicted());
    // Setting up needs far more memory than relaying, so it has a box of its own, gone before the relay starts.
    let ready = tokio::select! {
        biased;
        // Wherever it is: in a handshake, in a request, or while it reads its refusal. Once it has proved itself, never.
        () = evicted.cancelled() => {
            debug!(session = %id, %peer, "Made room for another connection");
            None
        }
        ready = Box::pin(establish(&gateway, client)) => ready,
    };
    if let Some(ready) = ready {
        session::run(&gateway, ready).await;
    }
}

/// Steps 1 to 5, bounded in time. `None`: the connection has had its answer.
async fn establish(gateway: &Arc<Gateway>, client: Client) -> Option<Ready> {
    let client = match identify::identify(client).await {
        Ok(Identified::Rdp(client)) => client,
        Ok(Identified::Http { client, tls }) => {
            api::serve(gateway, *client, tls).await;
            return None;
        }
        Ok(Identified::Jet { client }) => {
            request::serve(gateway, *client).await;
            return None;
        }
        Err(refused) => {
            refuse::refuse(&gateway.refusals, &gateway.audit, *refused).await;
            return None;
        }
    };
    let ready = async {
        let authenticated = authenticate::authenticate(&gateway.tokens, *client).await?;
        let authenticated = meet_acceptor::agree(&gateway.peers.meetings, authenticated)?;
        let (sessions, tokens, audit) = (&gateway.sessions, &gateway.tokens, &gateway.audit);
        let authorized = authorize::authorize(sessions, tokens, audit, authenticated).await?;
        let connected = connect::connect(gateway, authorized).await?;
        session::secure_or_open(gateway, connected).await
    };
    match ready.await {
        Ok(ready) => Some(ready),
        Err(refused) => {
            refuse::refuse(&gateway.refusals, &gateway.audit, *refused).await;
            None
        }
    }
}
