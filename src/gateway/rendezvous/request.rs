//! The request of a peer of the binary protocol, a `JET_PACKET`, and its response.

use std::io;
use std::sync::Arc;

use tokio::time::timeout_at;
use tracing::{debug, info};

use crate::connection::Client;
use crate::rendezvous::admit::{Admitted, judge};
use crate::rendezvous::closing::{close_gracefully, respond};
use crate::rendezvous::pair::proceed;
use crate::state::{Gateway, Peers};
use jetway_jet::exchange::{ExchangeError, Operation, Request, Response, Status};
use jetway_jet::message::Version;
use jetway_jet::packet::{self, PacketError};

/// Largest packet, bytes.
const PACKET_BYTES: usize = packet::PAYLOAD_BYTES + packet::HEADER_BYTES;

/// Serves a connection that begins with a packet.
pub async fn serve(gateway: &Arc<Gateway>, mut client: Client) {
    let deadline = client.identify_by.into();
    let (id, peer) = (client.id, client.peer);
    let request = match timeout_at(deadline, read_request(&mut client)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            info!(session = %id, %peer, reason = error.to_string(), "Invalid JET packet");
            return;
        }
        Err(_elapsed) => {
            debug!(session = %id, %peer, "JET peer sent nothing in time");
            return;
        }
    };
    let request = match request {
        Ok(request) => request,
        Err(answer) => {
            close_gracefully(client.stream, Some(answer)).await;
            return;
        }
    };
    let Request {
        path,
        version,
        token,
        ..
    } = request;
    let text = token.as_ref().map(|text| text.as_str());
    match judge(gateway, (id, peer), path, text).await {
        Ok((shown, admitted)) => {
            let response = granted(&gateway.peers, version, path.operation);
            if matches!(admitted, Admitted::Tested) {
                close_gracefully(client.stream, Some(response)).await;
                return;
            }
            if let Err(error) = respond(&mut client.stream, &response).await {
                debug!(session = %id, %peer, %error, "JET peer left before its response");
                return;
            }
            proceed(gateway, client, shown, path.association, admitted).await;
        }
        Err(not_admitted) => {
            let response = Response::new(not_admitted.status(), version);
            close_gracefully(client.stream, Some(response)).await;
        }
    }
}

/// Why there is no request that could be answered.
#[derive(Debug, thiserror::Error)]
enum NoRequest {
    #[error("cut off")]
    CutOff,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Request(#[from] ExchangeError),
}

/// Reads the packet and its request. The outer error closes without a word; the inner one is an answer.
async fn read_request(client: &mut Client) -> Result<Result<Request, Response>, NoRequest> {
    let packet = loop {
        if let Some(packet) = packet::decode(client.stream.buffered())? {
            break packet;
        }
        if client.stream.fill(PACKET_BYTES).await? == 0 {
            return Err(NoRequest::CutOff);
        }
    };
    client.stream.consume(packet.length);
    match Request::parse(&packet.payload) {
        Ok(request) => Ok(Ok(request)),
        Err(error) => {
            info!(session = %client.id, peer = %client.peer, reason = %error, "Invalid JET request");
            match Response::to_error(&error) {
                Some(response) => Ok(Err(response)),
                None => Err(error.into()),
            }
        }
    }
}

fn granted(peers: &Peers, version: Version, operation: Operation) -> Response {
    let mut response = Response::new(Status::Ok, version);
    response.instance = Some(peers.instance.clone());
    if operation == Operation::Accept {
        response.timeout = Some(peers.meetings.unused_timeout());
    }
    response
}
