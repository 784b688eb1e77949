//! Notices that a side has gone behind bytes of it that the other side does not take.
//!
//! A direction that is stuck reads no further, so that it would not come to the end of its source: a target that reads nothing, or a
//! little now and then, could keep the session of a client that has left. The system knows of the end before it is read
//! ([`OverTcp::has_gone`]). Where nothing moves between two looks, or in any case after a few, the session is over.
//!
//! The end of a client that has filled every buffer on the way is still in the client's own system, and nothing on this side tells of
//! it. So bytes of a client whose target takes them slowly are read ahead (`ahead`) until its end shows, or until there are no more:
//! then it is still there, and its target may take its time. Memory for that is bounded; where it
//! ends before the client does, a target that takes next to nothing and says nothing for `STALL_LOOKS` looks has stalled: who is still
//! there comes back by itself.
//!
//! A send buffer of Linux takes more once a third of it is free. Whoever reads slowly seems to take nothing for as long as that lasts,
//! so that a client is given all of its time for the last words of its target.
//!
//! A client that stalls is given the time that its connection has (`TCP_USER_TIMEOUT`): people stop their machines, and come back to
//! their sessions.
//!
//! A stage of an inspected session that cannot take more stops both directions as well. Then it is not the target that has stalled, and
//! what a target has left behind is given all the time that its client would have for it.
//!
//! Other protocols than RDP have half-closes: who has ended may wait for an answer. There only silence ends a session, for the time that
//! is configured, and nothing is read ahead.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::AfterEnd;
use super::side::{Side, Traffic};
use jetway_io::over_tcp::OverTcp;

/// How often directions that are stuck are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(4);

/// Looks in a row between which the target said nothing and took next to nothing of what was read of a client that may have gone, after
/// which it has stalled: as long as a connection may take nothing (`TCP_USER_TIMEOUT`), two minutes.
const STALL_LOOKS: u32 = 30;

/// Next to nothing between two looks, bytes: the slowest modem line takes more.
const STALL_BYTES: u64 = 4096;

/// After a client of RDP was first seen to have gone: looks until its target has had its time to take the rest. The target has no
/// answer that anybody would get.
const CLIENT_GONE_LOOKS: u32 = 2;

/// Likewise a target of RDP: its client gets the last picture and the reason of the end, over a slow line, too.
const TARGET_GONE_LOOKS: u32 = 15;

/// A target that takes less than this of a client between two looks, bytes, is slow: 256 KiB/s. The ends of clients of others show soon
/// enough by themselves.
const SLOW_BYTES: u64 = 1024 * 1024;

/// What each direction had moved when it was looked at last, bytes, and what was seen since.
#[derive(Debug)]
pub(super) struct Looks {
    to_target: Way,
    to_client: Way,
    /// Looks in a row that found the target at rest.
    at_rest: u32,
    /// All that the client had sent was read when it was looked at last, and its end was not among it.
    pub(super) client_is_there: bool,
    ends: Option<AfterEnd>,
}

/// One direction between looks.
#[derive(Debug, Default)]
struct Way {
    moved: Option<u64>,
    /// Looks in a row between which nothing moved.
    still: u32,
    /// Looks since its source was seen to have gone.
    gone: u32,
}

/// Why a session in which a direction is stuck is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The side whose bytes are stuck has gone.
    Gone(Side),
    /// The target takes nothing and says nothing.
    TargetStalled,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The session goes on.
    GoOn,
    /// Likewise, and the end of the client may be behind what the target takes too slowly: it is to be read ahead.
    ReadAhead,
    /// The session is over.
    Over(Stuck),
}

impl Looks {
    /// Nothing was looked at yet. `ends` is how long a session goes on when one side has ended.
    pub(super) fn new(ends: Option<AfterEnd>) -> Self {
        Self {
            to_target: Way::default(),
            to_client: Way::default(),
            at_rest: 0,
            client_is_there: false,
            ends,
        }
    }

    /// Looks at the directions, with the sources of those that are stuck.
    pub(super) fn look(
        &mut self,
        traffic: &Traffic,
        client: Option<&impl OverTcp>,
        target: Option<&impl OverTcp>,
        staged: bool,
    ) -> Look {
        let client_gone = client.map(OverTcp::has_gone);
        let target_gone = target.map(OverTcp::has_gone);
        self.judge(traffic, client_gone, target_gone, staged)
    }

    /// `client` and `target` are those whose bytes are stuck, and whether they have gone; `staged`, that a stage is what they wait for.
    fn judge(
        &mut self,
        traffic: &Traffic,
        client: Option<bool>,
        target: Option<bool>,
        staged: bool,
    ) -> Look {
        let up = self.to_target.look(&traffic.to_target, client);
        self.to_client.look(&traffic.to_client, target);
        let (client_looks, target_looks, silence) = match self.ends {
            None => return Look::GoOn,
            Some(AfterEnd::Within { .. }) => (CLIENT_GONE_LOOKS, TARGET_GONE_LOOKS, 1),
            Some(AfterEnd::Silent { time_s }) => {
                let looks = time_s.div_ceil(LOOK_INTERVAL.as_secs().try_into().unwrap_or(1));
                (u32::MAX, u32::MAX, looks.max(1))
            }
        };
        let is_rdp = matches!(self.ends, Some(AfterEnd::Within { .. }));
        // An answer keeps a session of a protocol that has half-closes.
        let still =
            |way: &Way, other: &Way| way.still >= silence && (is_rdp || other.still >= silence);
        let over =
            |way: &Way, other: &Way, looks| way.gone > 0 && (still(way, other) || way.gone > looks);
        let target_over = if is_rdp {
            self.to_client.gone > target_looks
        } else {
            over(&self.to_client, &self.to_target, target_looks)
        };
        let at_rest = client.is_some()
            && !staged
            && !self.client_is_there
            && up.is_some_and(|moved| moved < STALL_BYTES)
            && self.to_client.still > 0;
        self.client_is_there = false;
        self.at_rest = if at_rest {
            self.at_rest.saturating_add(1)
        } else {
            0
        };
        if over(&self.to_target, &self.to_client, client_looks) {
            Look::Over(Stuck::Gone(Side::Client))
        } else if target_over {
            Look::Over(Stuck::Gone(Side::Target))
        } else if is_rdp && self.at_rest >= STALL_LOOKS {
            Look::Over(Stuck::TargetStalled)
        } else if is_rdp && client == Some(false) && up.is_some_and(|moved| moved < SLOW_BYTES) {
            Look::ReadAhead
        } else {
            Look::GoOn
        }
    }
}

impl Way {
    /// Notes what has moved; how much that was since the last look, bytes, if there was one.
    fn look(&mut self, count: &AtomicU64, gone: Option<bool>) -> Option<u64> {
        let now = count.load(Ordering::Relaxed);
        let moved = self.moved.replace(now).map(|before| now.abs_diff(before));
        self.still = if moved == Some(0) {
            self.still.saturating_add(1)
        } else {
            0
        };
        // Who has gone stays so.
        if self.gone > 0 || gone == Some(true) {
            self.gone = self.gone.saturating_add(1);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RDP: Option<AfterEnd> = Some(AfterEnd::Within { time_s: 2 });

    const GONE: Option<bool> = Some(true);
    const HERE: Option<bool> = Some(false);

    fn gone(side: Side) -> Look {
        Look::Over(Stuck::Gone(side))
    }

    #[test]
    fn a_side_has_gone_when_nothing_moved_between_two_looks() {
        let (traffic, mut looks) = (Traffic::default(), Looks::new(RDP));
        // The first look sees no time between.
        assert_eq!(looks.judge(&traffic, GONE, GONE, false), Look::GoOn);
        assert_eq!(looks.judge(&traffic, GONE, GONE, false), gone(Side::Client));
        let mut looks = Looks::new(RDP);
        // A client has its time for the last words of its target, however little it seems to take.
        for _ in 0..TARGET_GONE_LOOKS {
            assert_eq!(looks.judge(&traffic, None, GONE, false), Look::GoOn);
        }
        assert_eq!(looks.judge(&traffic, None, GONE, false), gone(Side::Target));
        // Whose bytes are all on their way is no matter of looks.
        let mut looks = Looks::new(RDP);
        for _ in 0..100 {
            assert_eq!(looks.judge(&traffic, None, HERE, false), Look::GoOn);
        }
    }

    #[test]
    fn who_takes_a_little_now_and_then_does_not_keep_the_session_of_who_has_gone() {
        let traffic = Traffic::default();
        for (client, target, looked) in [
            (GONE, None, CLIENT_GONE_LOOKS),
            (None, GONE, TARGET_GONE_LOOKS),
        ] {
            let mut looks = Looks::new(RDP);
            for _ in 0..looked {
                assert_eq!(looks.judge(&traffic, client, target, false), Look::GoOn);
                traffic.to_target.fetch_add(100_000, Ordering::Relaxed);
                traffic.to_client.fetch_add(1, Ordering::Relaxed);
            }
            let side = if client.is_some() {
                Side::Client
            } else {
                Side::Target
            };
            assert_eq!(looks.judge(&traffic, client, target, false), gone(side));
        }
    }

    #[test]
    fn a_target_that_takes_and_says_next_to_nothing_has_stalled() {
        let (traffic, mut looks) = (Traffic::default(), Looks::new(RDP));
        let rest = |looks: &mut Looks, times: u32| {
            for _ in 0..times {
                let look = looks.judge(&traffic, HERE, None, false);
                assert!(matches!(look, Look::GoOn | Look::ReadAhead), "{look:?}");
                traffic.to_target.fetch_add(1, Ordering::Relaxed);
            }
        };
        rest(&mut looks, STALL_LOOKS);
        // Something in either direction, and its time begins anew.
        traffic.to_target.fetch_add(STALL_BYTES, Ordering::Relaxed);
        rest(&mut looks, STALL_LOOKS);
        traffic.to_client.fetch_add(1, Ordering::Relaxed);
        rest(&mut looks, STALL_LOOKS);
        let look = looks.judge(&traffic, HERE, None, false);
        assert_eq!(look, Look::Over(Stuck::TargetStalled));
        // Not if the client is known to be there.
        let mut looks = Looks::new(RDP);
        for _ in 0..=STALL_LOOKS {
            looks.client_is_there = true;
            let look = looks.judge(&traffic, HERE, None, false);
            assert!(matches!(look, Look::GoOn | Look::ReadAhead), "{look:?}");
        }
        // A client may take its time.
        let mut looks = Looks::new(RDP);
        for _ in 0..=STALL_LOOKS {
            assert_eq!(looks.judge(&traffic, None, HERE, false), Look::GoOn);
        }
    }

    #[test]
    fn a_stage_that_takes_its_time_is_not_taken_for_a_target_that_does() {
        let (traffic, mut looks) = (Traffic::default(), Looks::new(RDP));
        for _ in 0..100 {
            let look = looks.judge(&traffic, HERE, HERE, true);
            assert!(matches!(look, Look::GoOn | Look::ReadAhead), "{look:?}");
        }
        for _ in 0..TARGET_GONE_LOOKS {
            let look = looks.judge(&traffic, HERE, GONE, true);
            assert!(matches!(look, Look::GoOn | Look::ReadAhead), "{look:?}");
        }
        let look = looks.judge(&traffic, HERE, GONE, true);
        assert_eq!(look, gone(Side::Target));
        let look = looks.judge(&traffic, GONE, HERE, true);
        assert_eq!(look, gone(Side::Client));
    }

    #[test]
    fn the_end_of_a_client_is_looked_for_where_its_target_is_slow() {
        let (traffic, mut looks) = (Traffic::default(), Looks::new(RDP));
        assert_eq!(looks.judge(&traffic, HERE, None, false), Look::GoOn);
        traffic
            .to_target
            .fetch_add(SLOW_BYTES - 1, Ordering::Relaxed);
        assert_eq!(looks.judge(&traffic, HERE, None, false), Look::ReadAhead);
        traffic.to_target.fetch_add(SLOW_BYTES, Ordering::Relaxed);
        assert_eq!(looks.judge(&traffic, HERE, None, false), Look::GoOn);
        assert_eq!(looks.judge(&traffic, None, None, false), Look::GoOn);
    }

    #[test]
    fn a_protocol_with_half_close_is_ended_by_silence_alone() {
        let silent = Some(AfterEnd::Silent { time_s: 9 });
        let (traffic, mut looks) = (Traffic::default(), Looks::new(silent));
        for count in [&traffic.to_target, &traffic.to_client] {
            for _ in 0..10 {
                count.fetch_add(1, Ordering::Relaxed);
                for _ in 0..3 {
                    assert_eq!(looks.judge(&traffic, GONE, None, false), Look::GoOn);
                }
            }
        }
        assert_eq!(looks.judge(&traffic, GONE, None, false), gone(Side::Client));
        // Nor is it for anybody to say how long a target may take nothing of a client that is there.
        let mut looks = Looks::new(silent);
        for _ in 0..100 {
            assert_eq!(looks.judge(&traffic, HERE, None, false), Look::GoOn);
        }
        let mut looks = Looks::new(None);
        for _ in 0..100 {
            assert_eq!(looks.judge(&traffic, GONE, GONE, false), Look::GoOn);
        }
    }
}
