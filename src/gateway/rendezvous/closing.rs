//! The end of a connection to a peer: its response, where it still gets one, and a close that does not lose it.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use jetway_io::stream::Stream;
use jetway_jet::exchange::Response;
use jetway_jet::packet;

/// How long a peer that is told to go is given to hear it.
const PARTING: Duration = Duration::from_secs(1);

/// Bytes of a peer that are read and thrown away when its connection ends.
const PARTING_BYTES: u64 = 64 * 1024;

/// Says the last word to a peer and ends its connection in order.
pub(super) async fn close_gracefully(mut stream: Stream, response: Option<Response>) {
    let parting = async {
        if let Some(response) = response {
            respond(&mut stream, &response).await?;
        }
        stream.close(PARTING_BYTES).await
    };
    // It has been as polite as it can be.
    let _ = timeout(PARTING, parting).await;
}

/// Writes a response.
pub(super) async fn respond(stream: &mut Stream, response: &Response) -> std::io::Result<()> {
    let packet = packet::encode(&response.to_payload(), packet::mask());
    let packet = packet.map_err(std::io::Error::other)?;
    stream.io_mut().write_all(&packet).await?;
    stream.io_mut().flush().await
}
