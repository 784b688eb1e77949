//! Large messages are read in large pieces.
//!
//! A picture comes in many small PDUs, of which the client shows nothing before the last has arrived. To wake for each of them costs
//! more than to pass it on. So while a message is known to be far from whole, its reader sleeps until much of it is there
//! ([`LowWater`]); its end is read as it comes, and a source that pauses in the middle of a message is waited for once, for a moment.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use jetway_io::buffers;
use jetway_io::low_water::LowWater;

/// Pieces of this size, bytes.
const PIECE_BYTES: usize = buffers::BUFFER_BYTES;

/// Smaller pieces are not worth it, bytes.
const LEAST_BYTES: usize = 8 * 1024;

/// What may have left the socket and has not been seen, bytes: the beginning of a TLS record.
const HIDDEN_BYTES: usize = 20 * 1024;

/// The longest sleep; timers add up to another millisecond.
const PATIENCE: Duration = Duration::from_millis(1);

/// How one direction waits for its source.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// What its source has to have before it wakes, if more than anything, and until when that holds.
    asleep: Option<(usize, Pin<Box<Sleep>>)>,
    /// What the message lacked when that was last known, bytes.
    awaited: usize,
    /// The source has paused in the middle of this message.
    paused: bool,
}

impl Gather {
    /// Wakes at anything again, if the source has paused.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, source: &impl LowWater) {
        if let Some((_, until)) = &mut self.asleep
            && until.as_mut().poll(cx).is_ready()
        {
            self.paused = true;
            self.wake(source);
        }
    }

    /// At least `awaited` bytes are to come before the message is whole. Sleeps until there is a piece of them, if they are many.
    pub(super) fn expect(&mut self, cx: &mut Context<'_>, awaited: usize, source: &impl LowWater) {
        // Another message has begun.
        self.paused &= (1..=self.awaited).contains(&awaited);
        self.awaited = awaited;
        let piece = awaited.saturating_sub(HIDDEN_BYTES).min(PIECE_BYTES);
        if piece < LEAST_BYTES || self.paused {
            self.wake(source);
            return;
        }
        let until = Instant::now() + PATIENCE;
        match &mut self.asleep {
            Some((mark, sleep)) => {
                if *mark != piece && source.set_low_water(piece) {
                    *mark = piece;
                }
                sleep.as_mut().reset(until);
            }
            None => {
                if !source.set_low_water(piece) {
                    return;
                }
                self.asleep = Some((piece, Box::pin(sleep_until(until))));
            }
        }
        self.poll(cx, source);
    }

    /// Wakes at anything from now on.
    pub(super) fn wake(&mut self, source: &impl LowWater) {
        if self.asleep.take().is_some() {
            source.set_low_water(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::task::Waker;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_is_read_in_pieces_and_its_end_as_it_comes() {
        let (mut gather, source) = (Gather::default(), Source::default());
        gather.expect(&mut context(), LEAST_BYTES, &source);
        assert!(source.marks().is_empty());
        let rest = HIDDEN_BYTES + LEAST_BYTES;
        for awaited in [400_000, 300_000, rest, rest - 1, 1000, 0] {
            gather.expect(&mut context(), awaited, &source);
        }
        assert_eq!(source.marks(), [PIECE_BYTES, LEAST_BYTES, 1]);
        // What comes in time is no pause.
        for _ in 0..10 {
            gather.expect(&mut context(), 400_000, &source);
            advance(PATIENCE / 2).await;
            gather.poll(&mut context(), &source);
        }
        assert_eq!(source.marks(), [PIECE_BYTES]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_pauses_is_waited_for_once_in_each_message() {
        let (mut gather, source) = (Gather::default(), Source::default());
        gather.expect(&mut context(), 400_000, &source);
        advance(2 * PATIENCE).await;
        gather.poll(&mut context(), &source);
        assert_eq!(source.marks(), [PIECE_BYTES, 1]);
        for awaited in [400_000, 399_000, 300_000] {
            gather.expect(&mut context(), awaited, &source);
        }
        assert!(source.marks().is_empty());
        // The next message.
        gather.expect(&mut context(), 350_000, &source);
        assert_eq!(source.marks(), [PIECE_BYTES]);
        gather.wake(&source);
        gather.wake(&source);
        assert_eq!(source.marks(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_without_a_mark_is_never_waited_for() {
        let (mut gather, source) = (Gather::default(), tokio::io::duplex(1).0);
        gather.expect(&mut context(), 400_000, &source);
        assert!(gather.asleep.is_none());
    }

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    /// Notes the marks that are set.
    #[derive(Default)]
    struct Source(RefCell<Vec<usize>>);

    impl Source {
        /// Since the last call.
        fn marks(&self) -> Vec<usize> {
            self.0.take()
        }
    }

    impl LowWater for Source {
        fn set_low_water(&self, bytes: usize) -> bool {
            self.0.borrow_mut().push(bytes);
            true
        }
    }
}
