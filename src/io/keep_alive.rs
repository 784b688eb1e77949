//! What every long connection wants of its socket: no delay of small writes, and an end to peers that vanished.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the first keep-alive probe is sent.
const IDLE: Duration = Duration::from_secs(30);

/// Time between keep-alive probes.
const INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered keep-alive probes after which the peer is gone; where there is `TCP_USER_TIMEOUT`, that decides.
const PROBES: u32 = 3;

/// How long sent data may stay unacknowledged, or probes unanswered, before the peer is gone; Linux only.
///
/// Linux also counts the time a living peer does not read at all (a client that was suspended, a target that is being
/// moved to another host), so this is not as short as detecting a dead peer alone would allow.
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Sets it up.
///
/// # Errors
/// The system's; a socket whose peer is gone already may cause one.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(INTERVAL)
        .with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    give_time(stream, USER_TIMEOUT)
}

/// Lets a peer take nothing for `time`, if that is longer than usual: a protocol that is not RDP may pause in the midst of a stream.
///
/// # Errors
/// The system's.
pub fn give_time(stream: &TcpStream, time: Duration) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(time.max(USER_TIMEOUT)))?;
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, time);
    Ok(())
}

#[cfg(test)]
mod tests {
    use jetway_lab::net::tcp_pair;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanishes_is_noticed_and_one_that_pauses_may_have_more_time() {
        let (stream, _far) = tcp_pair().await;
        tune(&stream).unwrap();
        assert!(stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        #[cfg(target_os = "linux")]
        for (given, had) in [(1, 120), (600, 600)] {
            give_time(&stream, Duration::from_secs(given)).unwrap();
            let timeout = socket.tcp_user_timeout().unwrap();
            assert_eq!(timeout, Some(Duration::from_secs(had)));
        }
    }
}
