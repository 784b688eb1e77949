//! Notices that a side has gone behind bytes of it that the other side does not take.
//!
//! A direction that is stuck reads no further, so that it would not come to the end of its source: a target that reads nothing could
//! keep the session of a client that has left. The system knows of the end before it is read (`POLLRDHUP`, poll(2)). Who only takes
//! its time, and takes something between two looks, still gets all that the side has left behind.
//!
//! The end of a client that has filled every buffer on the way is still in the client's own system, and nothing on this side tells of
//! it. But a target that takes nothing and says nothing for `STALL_LOOKS` looks has stalled, and the session ends: who is still there
//! comes back by itself. Where the target still speaks, what it says tells: the system of a client that has gone answers with a reset.
//! A client that stalls is given the time that its connection has (`TCP_USER_TIMEOUT`): people stop their machines, and come back to
//! their sessions.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use super::side::{Side, Traffic};
use crate::read_ahead::ReadAhead;
use crate::stream::{Io, Stream};

/// How often directions that are stuck are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(4);

/// Looks in a row between which nothing moved in either direction, while the target did not take what was read of the client, after
/// which the target has stalled: 32 s.
const STALL_LOOKS: u8 = 8;

/// What the system says of a connection whose peer has ended it, or that broke.
#[cfg(target_os = "linux")]
const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
#[cfg(not(target_os = "linux"))]
const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR);

/// What each direction had moved when it was looked at last, bytes.
#[derive(Debug, Default)]
pub(super) struct Looks {
    to_target: Option<u64>,
    to_client: Option<u64>,
    /// Looks in a row that found the target at rest.
    at_rest: u8,
}

/// Why a session in which a direction is stuck is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The side whose bytes are stuck has gone.
    Gone(Side),
    /// The target takes nothing and says nothing.
    TargetStalled,
}

impl Looks {
    /// Looks at the directions, with their sources where they are stuck: whether one has gone of which nothing moved since the last
    /// look, or the target has stalled.
    pub(super) fn look(
        &mut self,
        traffic: &Traffic,
        client: Option<&impl MayBeGone>,
        target: Option<&impl MayBeGone>,
    ) -> Option<Stuck> {
        let moved = |before: &mut Option<u64>, count: &AtomicU64| {
            let now = count.load(Ordering::Relaxed);
            before.replace(now) != Some(now)
        };
        let up = moved(&mut self.to_target, &traffic.to_target);
        let down = moved(&mut self.to_client, &traffic.to_client);
        let at_rest = !up && !down && client.is_some();
        self.at_rest = if at_rest {
            self.at_rest.saturating_add(1)
        } else {
            0
        };
        if !up && client.is_some_and(MayBeGone::has_gone) {
            Some(Stuck::Gone(Side::Client))
        } else if !down && target.is_some_and(MayBeGone::has_gone) {
            Some(Stuck::Gone(Side::Target))
        } else if self.at_rest >= STALL_LOOKS {
            Some(Stuck::TargetStalled)
        } else {
            None
        }
    }
}

/// A stream above a socket, whose peer may have gone.
pub trait MayBeGone {
    /// Whether the peer has ended or broken its connection, however much of what it sent was not read yet.
    fn has_gone(&self) -> bool;
}

impl MayBeGone for TcpStream {
    fn has_gone(&self) -> bool {
        let fd = self.as_fd();
        let mut socket = [PollFd::from_borrowed_fd(fd, GONE)];
        // What cannot be asked is taken as there: its own errors end it.
        poll(&mut socket, Some(&Timespec::default())).is_ok_and(|answers| answers > 0)
    }
}

impl MayBeGone for Io {
    fn has_gone(&self) -> bool {
        self.tcp().has_gone()
    }
}

impl MayBeGone for Stream {
    fn has_gone(&self) -> bool {
        self.io().has_gone()
    }
}

impl<S: MayBeGone> MayBeGone for Box<S> {
    fn has_gone(&self) -> bool {
        S::has_gone(self)
    }
}

impl<S: MayBeGone> MayBeGone for ReadAhead<S> {
    fn has_gone(&self) -> bool {
        self.get_ref().has_gone()
    }
}

impl<S: MayBeGone> MayBeGone for client::TlsStream<S> {
    fn has_gone(&self) -> bool {
        self.get_ref().0.has_gone()
    }
}

impl<S: MayBeGone> MayBeGone for server::TlsStream<S> {
    fn has_gone(&self) -> bool {
        self.get_ref().0.has_gone()
    }
}

#[cfg(test)]
impl MayBeGone for tokio::io::DuplexStream {
    fn has_gone(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::tcp_pair;

    struct Peer {
        gone: bool,
    }

    impl MayBeGone for Peer {
        fn has_gone(&self) -> bool {
            self.gone
        }
    }

    #[test]
    fn a_side_has_gone_when_nothing_moved_between_two_looks() {
        let (traffic, mut looks) = (Traffic::default(), Looks::default());
        let (here, gone) = (Peer { gone: false }, Peer { gone: true });
        let look = |looks: &mut Looks, client, target| looks.look(&traffic, client, target);
        // The first look sees no time between.
        assert_eq!(look(&mut looks, Some(&gone), Some(&gone)), None);
        // Who takes its time still gets what the other has left behind.
        for _ in 0..3 {
            traffic.to_client.fetch_add(1, Ordering::Relaxed);
            assert_eq!(look(&mut looks, Some(&here), Some(&gone)), None);
        }
        let [client, target] = [Side::Client, Side::Target].map(|side| Some(Stuck::Gone(side)));
        assert_eq!(look(&mut looks, Some(&here), Some(&gone)), target);
        assert_eq!(look(&mut looks, Some(&gone), Some(&here)), client);
        // Whose bytes are all on their way is no matter of looks.
        assert_eq!(look(&mut looks, None::<&Peer>, Some(&here)), None);
    }

    #[test]
    fn a_target_that_takes_and_says_nothing_has_stalled() {
        let (traffic, mut looks) = (Traffic::default(), Looks::default());
        let here = Peer { gone: false };
        let look = |looks: &mut Looks| looks.look(&traffic, Some(&here), None::<&Peer>);
        let rest = |looks: &mut Looks, times: u8| {
            for _ in 0..times {
                assert_eq!(look(looks), None);
            }
        };
        rest(&mut looks, STALL_LOOKS);
        // A byte in either direction, and its time begins anew.
        traffic.to_target.fetch_add(1, Ordering::Relaxed);
        rest(&mut looks, STALL_LOOKS);
        traffic.to_client.fetch_add(1, Ordering::Relaxed);
        rest(&mut looks, STALL_LOOKS);
        assert_eq!(look(&mut looks), Some(Stuck::TargetStalled));
        // A client may take its time.
        let mut looks = Looks::default();
        for _ in 0..=STALL_LOOKS {
            assert_eq!(looks.look(&traffic, None::<&Peer>, Some(&here)), None);
        }
    }

    #[tokio::test]
    async fn a_peer_that_has_ended_or_broken_off_is_seen_behind_what_was_not_read() {
        for breaks in [false, true] {
            let (far, near) = tcp_pair().await;
            far.writable().await.unwrap();
            far.try_write(b"unread").unwrap();
            assert!(!near.has_gone());
            if breaks {
                socket2::SockRef::from(&far)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            drop(far);
            // Loopback delivers before the call returns.
            assert!(near.has_gone());
        }
    }
}
