//! Events of keyboard and pointer, as fast-path and slow-path PDUs have them.

/// Keyboard and pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key by its scan code.
    ScanCode {
        /// Released rather than pressed.
        release: bool,
        /// With prefix E0.
        extended: bool,
        /// With prefix E1.
        extended1: bool,
        /// The scan code.
        code: u8,
    },
    /// A key by its character.
    Unicode {
        /// Released rather than pressed.
        release: bool,
        /// UTF-16 unit.
        unit: u16,
    },
    /// The pointer, with `PTRFLAGS_*`.
    Mouse {
        /// `pointerFlags`.
        flags: u16,
        /// Column.
        x: u16,
        /// Row.
        y: u16,
    },
    /// The pointer's further buttons, with `PTRXFLAGS_*`.
    ExtendedMouse {
        /// `pointerFlags`.
        flags: u16,
        /// Column.
        x: u16,
        /// Row.
        y: u16,
    },
    /// The pointer, by movement.
    RelativeMouse {
        /// `pointerFlags`.
        flags: u16,
        /// Columns.
        dx: i16,
        /// Rows.
        dy: i16,
    },
    /// Toggle keys.
    Synchronize {
        /// `TS_SYNC_*`.
        toggles: u8,
    },
    /// A time stamp of the client for the target's statistics.
    QoeTimestamp(u32),
    /// What is no event that anybody knows, with all that follows it in the same PDU: there may be further events in
    /// it. A stage that must see every key has to deny it.
    Unknown {
        /// `eventCode` or `messageType`; `None` for bytes behind the last event.
        code: Option<u16>,
        /// Bytes, without the header.
        bytes: usize,
    },
}
