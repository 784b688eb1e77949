//! Settings of WebSockets that carry JSON messages: the signaling channel of agents, on either side.

use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use jetway_base::limits;

/// Settings of the WebSocket, on either side: messages are JSON of a bounded size.
#[must_use]
pub fn settings() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .max_message_size(Some(limits::JET_MESSAGE_BYTES))
        .max_frame_size(Some(limits::JET_MESSAGE_BYTES))
}
