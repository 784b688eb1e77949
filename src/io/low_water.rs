//! `SO_RCVLOWAT` (tcp(7), socket(7)): whoever reads a socket sleeps until so much has arrived, or the peer has ended.
//!
//! Each time a reader wakes costs more than reading a few KiB. Where it is known that much is to come, it need not wake for each part.

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetStruct;
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::read_ahead::ReadAhead;
use crate::stream::{Io, Stream};

/// The option.
#[derive(Clone, Debug)]
struct ReceiveLowWater;

nix::setsockopt_impl!(
    ReceiveLowWater,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    libc::c_int,
    SetStruct<'_, libc::c_int>
);

/// A stream above a socket whose low-water mark can be set.
pub trait LowWater {
    /// From now on, `bytes` have to arrive before the reader is woken; with 1, anything does. What has arrived already counts, so that
    /// lowering the mark wakes it at once. Whether it could be set; a stream that cannot wakes its reader for anything.
    fn set_low_water(&self, bytes: usize) -> bool;
}

impl LowWater for TcpStream {
    fn set_low_water(&self, bytes: usize) -> bool {
        libc::c_int::try_from(bytes)
            .is_ok_and(|bytes| setsockopt(self, ReceiveLowWater, &bytes).is_ok())
    }
}

impl<S: LowWater> LowWater for Box<S> {
    fn set_low_water(&self, bytes: usize) -> bool {
        S::set_low_water(self, bytes)
    }
}

impl LowWater for Io {
    fn set_low_water(&self, bytes: usize) -> bool {
        // Where there is TLS or WebSocket in between, some of what is to come has left the socket.
        self.plain().is_some_and(|tcp| tcp.set_low_water(bytes))
    }
}

impl LowWater for Stream {
    fn set_low_water(&self, bytes: usize) -> bool {
        self.io().set_low_water(bytes)
    }
}

impl<S: LowWater> LowWater for ReadAhead<S> {
    fn set_low_water(&self, bytes: usize) -> bool {
        self.get_ref().set_low_water(bytes)
    }
}

impl<S: LowWater> LowWater for client::TlsStream<S> {
    fn set_low_water(&self, bytes: usize) -> bool {
        self.get_ref().0.set_low_water(bytes)
    }
}

impl<S: LowWater> LowWater for server::TlsStream<S> {
    fn set_low_water(&self, bytes: usize) -> bool {
        self.get_ref().0.set_low_water(bytes)
    }
}

/// A pipe in memory wakes its reader for every byte; relays are tested with it.
impl LowWater for tokio::io::DuplexStream {
    fn set_low_water(&self, _: usize) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use jetway_lab::net::tcp_pair;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_reader_sleeps_until_the_mark_is_reached_or_lowered_or_the_peer_ends() {
        let (mut far, mut near) = tcp_pair().await;
        // A read that fills its buffer would not be known to have taken all.
        let mut read = [0; 6001];
        // Until it is tried, a new socket is taken for ready.
        near.try_read(&mut read).unwrap_err();
        assert!(near.set_low_water(6000));
        far.write_all(&[1; 3000]).await.unwrap();
        assert!(!is_awake(&near).await);
        far.write_all(&[2; 3000]).await.unwrap();
        assert_eq!(near.read(&mut read).await.unwrap(), 6000);
        far.write_all(&[3; 3000]).await.unwrap();
        assert!(!is_awake(&near).await);
        assert!(near.set_low_water(1));
        assert_eq!(near.read(&mut read).await.unwrap(), 3000);
        assert!(near.set_low_water(6000));
        far.write_all(&[4; 10]).await.unwrap();
        assert!(!is_awake(&near).await);
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut read).await.unwrap(), 10);
        assert_eq!(near.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn only_a_socket_without_anything_in_between_has_a_mark() {
        let (near, _far) = tcp_pair().await;
        let ahead = ReadAhead::new(Vec::new(), Stream::from(near));
        assert!(ahead.set_low_water(1));
        assert!(!ahead.set_low_water(usize::MAX));
    }

    /// Whether the stream can be read, once the runtime has heard all that the system has to say.
    async fn is_awake(stream: &TcpStream) -> bool {
        for _ in 0..10 {
            yield_now().await;
        }
        let mut cx = Context::from_waker(Waker::noop());
        stream.poll_read_ready(&mut cx).is_ready()
    }
}
