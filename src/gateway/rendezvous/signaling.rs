//! An agent's signaling channel, the gateway's side: who is it, and then messages both ways.
//!
//! - The challenge is new for each channel, so an answer holds once.
//! - Each agent has one channel. A newer one ends the older, unless it yields ([`jetway_jet::agent`]).
//! - A ping goes out every [`PING_EVERY`]; an agent that has sent nothing since the last [`SILENT_PINGS`] of them is gone.
//! - Close codes ([RFC 6455] 7.4): 1001 where the gateway stops, 1008 for who is not known or was revoked, 1013 for who has tried too
//!   often, 4001 where the agent has another channel.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::connection::Connection;
use crate::state::{Gateway, Peers, Tokens};
use crate::trail;
use jetway_audit::record::{Event, Record};
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_io::clock;
use jetway_io::stream::Stream;
use jetway_io::websocket::settings::settings;
use jetway_io::websocket::{PING_EVERY, SILENT_PINGS};
use jetway_jet::agent::{FromAgent, FromGateway, NOT_KNOWN, RANDOM_BYTES, REPLACED, REVOKED};
use jetway_store::agents::{Agents, Ended, NoSeat, SignalingChannel, Ways};
use jetway_token::agent_name::AgentName;
use jetway_token::statement::StatementKey;

/// What an agent is told that has another channel.
const ANOTHER: &str = "another agent has this name and key";

/// How long one message may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the channel until its end.
pub async fn serve(
    gateway: &Arc<Gateway>,
    stream: Stream,
    mut connection: Connection,
    (id, peer): (SessionId, SocketAddr),
    ways: Ways,
) {
    let (peers, audit) = (&gateway.peers, &gateway.audit);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(settings()));
    let mut socket = socket.await;
    let log_on = log_on(peers, &gateway.tokens, &mut socket, peer);
    let (name, yields) = match timeout(limits::IDENTIFY_TIMEOUT, log_on).await {
        Ok(Ok(logged_on)) => logged_on,
        Ok(Err(why)) => {
            warn!(session = %id, %peer, decision = "deny", rule = "agent", reason = %why, "Agent refused");
            let record = Record {
                rule: Some("agent"),
                reason: Some(why.to_string()),
                ..trail::of_peer(Event::AgentRefused, id, peer)
            };
            audit.record_of_anybody(peer.ip(), &record);
            let (code, reason) = why.close_reason();
            close(&mut socket, code, reason).await;
            return;
        }
        Err(_elapsed) => {
            debug!(session = %id, %peer, "Agent did not log on in time");
            return;
        }
    };
    let now = clock::unix_now();
    let connected = peers.agents.connect(name.clone(), yields, peer, ways, now);
    let mut connected = match connected {
        Ok(connected) => connected,
        Err(NoSeat::Revoked) => {
            close(&mut socket, CloseCode::Policy, REVOKED).await;
            return;
        }
        Err(NoSeat::Taken) => {
            warn!(session = %id, %peer, agent = %name, "Two agents share a name and a key; one of them waits");
            close(&mut socket, REPLACED.into(), ANOTHER).await;
            return;
        }
    };
    let welcome = Message::text(FromGateway::Welcome.to_json());
    if send(&mut socket, welcome).await.is_err() {
        debug!(session = %id, %peer, agent = %name, "Agent disconnected before the welcome message");
        return;
    }
    connection.admission.proven();
    let agent = name;
    info!(session = %id, %peer, %agent, replaced = connected.replaced, "Agent connected");
    let record = Record {
        agent: Some(agent.to_string()),
        ..trail::of_peer(Event::AgentConnected, id, peer)
    };
    audit.record(&record);
    let reason = match converse(
        &peers.agents,
        &gateway.stopping,
        &mut socket,
        &mut connected,
    )
    .await
    {
        Ok(reason) => reason.to_owned(),
        Err(error) => error.to_string(),
    };
    drop(connected);
    info!(session = %id, %peer, %agent, reason, "Agent disconnected");
    audit.record(&Record {
        event: Event::AgentDisconnected,
        reason: Some(reason),
        ..record
    });
    drop(connection);
}

/// Why an agent is not logged on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum NoLogOn {
    #[error("the system has no randomness")]
    Randomness,
    #[error("it left")]
    Left,
    #[error("no proof")]
    NoProof,
    #[error("too much work")]
    TooMuchWork,
    #[error("the statement does not hold, or there is no such agent")]
    NotKnown,
}

impl NoLogOn {
    /// What the agent hears: whether it is worth to come back.
    fn close_reason(self) -> (CloseCode, &'static str) {
        match self {
            Self::Randomness => (CloseCode::Error, "the gateway cannot make a challenge"),
            Self::Left | Self::NoProof => (CloseCode::Policy, "no proof"),
            Self::TooMuchWork => (CloseCode::Again, "too many attempts from this address"),
            Self::NotKnown => (CloseCode::Policy, NOT_KNOWN),
        }
    }
}

/// The challenge and its answer: who it is, and whether it yields.
async fn log_on(
    peers: &Peers,
    tokens: &Tokens,
    socket: &mut WebSocketStream<Stream>,
    peer: SocketAddr,
) -> Result<(AgentName, bool), NoLogOn> {
    let mut random = [0_u8; RANDOM_BYTES];
    openssl::rand::rand_bytes(&mut random).map_err(|_| NoLogOn::Randomness)?;
    let nonce = URL_SAFE_NO_PAD.encode(random);
    let challenge = FromGateway::Challenge {
        gateway: peers.instance.clone(),
        nonce: nonce.clone(),
    };
    let sent = send(socket, Message::text(challenge.to_json())).await;
    sent.map_err(|_| NoLogOn::Left)?;
    let (statement, yields) = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => match FromAgent::parse(&text) {
                Ok(FromAgent::Proof { statement, yields }) => break (statement, yields),
                Ok(FromAgent::Answer { .. } | FromAgent::Declined { .. }) | Err(_) => {
                    return Err(NoLogOn::NoProof);
                }
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Binary(_) | Message::Close(_)) | Err(_)) | None => {
                return Err(NoLogOn::NoProof);
            }
        }
    };
    let booked = tokens.book(peer.ip(), StatementKey::cost_us());
    booked.map_err(|_| NoLogOn::TooMuchWork)?;
    let name = peers.agents.log_on(&statement, &peers.instance, &nonce);
    let name = name.ok_or(NoLogOn::NotKnown)?;
    Ok((name, yields))
}

/// Messages both ways, until one side ends it; says why.
async fn converse(
    agents: &Agents,
    stopping: &CancellationToken,
    socket: &mut WebSocketStream<Stream>,
    connected: &mut SignalingChannel,
) -> tungstenite::Result<&'static str> {
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent_pings = 0_u32;
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => {
                close(socket, CloseCode::Away, "the gateway stops").await;
                return Ok("the gateway stops");
            }
            ended = &mut connected.close => {
                return Ok(match ended {
                    Ok(Ended::Replaced) => {
                        close(socket, REPLACED.into(), ANOTHER).await;
                        "a newer channel took its place"
                    }
                    Ok(Ended::Revoked) | Err(_) => {
                        close(socket, CloseCode::Policy, REVOKED).await;
                        "revoked"
                    }
                });
            }
            message = connected.outbox.recv() => {
                if let Some(message) = message {
                    send(socket, Message::text(message.to_json())).await?;
                }
            }
            _ = ping.tick() => {
                if silent_pings >= SILENT_PINGS {
                    return Ok("silent for too long");
                }
                silent_pings = silent_pings.saturating_add(1);
                send(socket, Message::Ping(Bytes::new())).await?;
            }
            message = socket.next() => {
                silent_pings = 0;
                match message {
                    Some(Ok(Message::Text(text))) => on_agent_message(agents, connected, &text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Binary(_))) => {
                        close(socket, CloseCode::Unsupported, "text messages only").await;
                        return Ok("it sent bytes");
                    }
                    Some(Ok(Message::Close(_))) | None => return Ok("it left"),
                    Some(Err(error)) => return Err(error),
                }
            }
        }
    }
}

fn on_agent_message(agents: &Agents, connected: &SignalingChannel, text: &str) {
    let agent = connected.name();
    match FromAgent::parse(text) {
        Ok(FromAgent::Answer { answer }) => {
            agents.answered(agent, answer.id, Ok(answer));
        }
        Ok(FromAgent::Declined { id, reason }) => {
            agents.answered(agent, id, Err(reason));
        }
        Ok(FromAgent::Proof { .. }) => debug!(%agent, "An agent proves itself again"),
        // One of a later version may say more.
        Err(error) => debug!(%agent, %error, "An agent said what is no message"),
    }
}

async fn send(socket: &mut WebSocketStream<Stream>, message: Message) -> tungstenite::Result<()> {
    match timeout(SEND_TIMEOUT, socket.send(message)).await {
        Ok(sent) => sent,
        Err(_elapsed) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

async fn close(socket: &mut WebSocketStream<Stream>, code: CloseCode, reason: &'static str) {
    let frame = CloseFrame {
        code,
        reason: Utf8Bytes::from_static(reason),
    };
    // The end of the connection says it as well.
    let _ = timeout(SEND_TIMEOUT, socket.close(Some(frame))).await;
}
