//! Buffers for bulk, lent while something moves.
//!
//! A session that rests holds none. One that moves gives its buffers back whenever it has to wait, which is often, so
//! that they are kept here for whoever moves next on this thread: the allocator would give their memory back to the
//! system and fetch it again, page by page.

use std::cell::RefCell;

/// What a fresh buffer holds without growing: as much as is read at once.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers that have grown beyond this are not kept.
const KEPT_BYTES: usize = 4 * BUFFER_BYTES;

/// Buffers kept for each thread: those of two sessions in the midst of bulk in both directions.
const SPARE_BUFFERS: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for [`BUFFER_BYTES`].
#[must_use]
pub fn take() -> Vec<u8> {
    SPARE
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
}

/// Takes a buffer back, and leaves one without memory. Its owner has wiped it, if what it held was secret.
pub fn give_back(buffer: &mut Vec<u8>) {
    let mut buffer = std::mem::take(buffer);
    if !(BUFFER_BYTES..=KEPT_BYTES).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    // Each test has a thread of its own, and so spare buffers of its own.

    #[test]
    fn a_buffer_that_was_given_back_is_used_again_and_is_empty() {
        let mut buffer = take();
        buffer.extend([1; 1000]);
        let address = buffer.as_ptr();
        give_back(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        let again = take();
        assert_eq!(again.as_ptr(), address);
        assert!(again.is_empty());
    }

    #[test]
    fn neither_many_buffers_nor_large_or_small_ones_are_kept() {
        for length in [0, 1, BUFFER_BYTES - 1, KEPT_BYTES + 1] {
            give_back(&mut Vec::with_capacity(length));
        }
        assert_eq!(SPARE.with_borrow(Vec::len), 0);
        for _ in 0..2 * SPARE_BUFFERS {
            give_back(&mut Vec::with_capacity(BUFFER_BYTES));
        }
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_BUFFERS);
    }
}
