//! Fast-path ([MS-RDPBCGR] 2.2.8.1.2 and 2.2.9.1.2): the events of a client's input, and where the updates of a
//! target's output begin and end.

use super::bytes::Reader;
use super::input::Input;

/// One update of a fast-path output PDU, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// `updateCode`.
    pub code: u8,
    /// `fragmentation`.
    pub fragmentation: u8,
    /// `compressionFlags`, or zero.
    pub compression: u8,
    /// Its data.
    pub data: &'a [u8],
}

/// The next update of a body, which is the part of a frame behind its header; `None` where it is cut short.
pub(super) fn next_update<'a>(reader: &mut Reader<'a>) -> Option<Update<'a>> {
    let header = reader.u8()?;
    // FASTPATH_OUTPUT_COMPRESSION_USED.
    let compression = if header >> 6 & 0b10 == 0 {
        0
    } else {
        reader.u8()?
    };
    let size = reader.u16_le()?;
    Some(Update {
        code: header & 0x0f,
        fragmentation: header >> 4 & 0b11,
        compression,
        data: reader.take(size.into())?,
    })
}

/// The events of an input PDU with this header byte and body; `None` where it is cut short.
///
/// Nobody knows how long an unknown event is: FreeRDP and xrdp go on with the next byte, others give up. What follows
/// it is not read as events that the target might not see, but reported whole, as are bytes behind the last event.
/// Whatever is in there, it is input: no receiver takes a fast-path PDU for anything else.
pub(super) fn inputs(header: u8, body: &[u8]) -> Option<Vec<Input>> {
    let mut reader = Reader::new(body);
    let count = match header >> 2 & 0x0f {
        0 => reader.u8()?,
        count => count,
    };
    let mut events = Vec::with_capacity(count.into());
    for _ in 0..count {
        let event = input(&mut reader)?;
        events.push(event);
        if matches!(event, Input::Unknown { .. }) {
            return Some(events);
        }
    }
    if !reader.is_empty() {
        events.push(Input::Unknown {
            code: None,
            bytes: reader.rest().len(),
        });
    }
    Some(events)
}

fn input(reader: &mut Reader<'_>) -> Option<Input> {
    let header = reader.u8()?;
    let flags = header & 0x1f;
    let event = match header >> 5 {
        0 => Input::ScanCode {
            release: flags & 1 != 0,
            extended: flags & 2 != 0,
            extended1: flags & 4 != 0,
            code: reader.u8()?,
        },
        1 => Input::Mouse {
            flags: reader.u16_le()?,
            x: reader.u16_le()?,
            y: reader.u16_le()?,
        },
        2 => Input::ExtendedMouse {
            flags: reader.u16_le()?,
            x: reader.u16_le()?,
            y: reader.u16_le()?,
        },
        3 => Input::Synchronize { toggles: flags },
        4 => Input::Unicode {
            release: flags & 1 != 0,
            unit: reader.u16_le()?,
        },
        5 => Input::RelativeMouse {
            flags: reader.u16_le()?,
            dx: signed(reader.u16_le()?),
            dy: signed(reader.u16_le()?),
        },
        6 => Input::QoeTimestamp(reader.u32_le()?),
        code => Input::Unknown {
            code: Some(code.into()),
            bytes: reader.rest().len(),
        },
    };
    Some(event)
}

/// The same bits with a sign.
pub(super) fn signed(bits: u16) -> i16 {
    i16::from_ne_bytes(bits.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_input_is_read() {
        let body = [
            0x01, 0x1e, // released A
            0x20, 0x00, 0x08, 0x10, 0x00, 0x20, 0x00, // pointer
            0x62, // Num Lock
            0x80, 0x41, 0x00, // character A
            0xa0, 0x00, 0x08, 0xff, 0xff, 0x01, 0x00, // movement
            0xc0, 1, 0, 0, 0, // time stamp
        ];
        let expected = vec![
            Input::ScanCode {
                release: true,
                extended: false,
                extended1: false,
                code: 0x1e,
            },
            Input::Mouse {
                flags: 0x0800,
                x: 16,
                y: 32,
            },
            Input::Synchronize { toggles: 2 },
            Input::Unicode {
                release: false,
                unit: 0x41,
            },
            Input::RelativeMouse {
                flags: 0x0800,
                dx: -1,
                dy: 1,
            },
            Input::QoeTimestamp(1),
        ];
        assert_eq!(inputs(6 << 2, &body), Some(expected.clone()));
        // Bits of a security that is not in use change nothing.
        assert_eq!(inputs(0xc0 | 6 << 2, &body), Some(expected.clone()));
        let counted: Vec<u8> = std::iter::once(6).chain(body).collect();
        assert_eq!(inputs(0, &counted), Some(expected));
    }

    #[test]
    fn an_unknown_event_and_what_is_behind_the_last_one_are_told_and_not_guessed_at() {
        let key = Input::ScanCode {
            release: false,
            extended: false,
            extended1: false,
            code: 0x1e,
        };
        let unknown = |code, bytes| Input::Unknown { code, bytes };
        assert_eq!(
            inputs(1 << 2, &[0x00, 0x1e, 0x00]),
            Some(vec![key, unknown(None, 1)])
        );
        // A key behind it may be one to the target, or not.
        assert_eq!(
            inputs(3 << 2, &[0x00, 0x1e, 0xe0, 0x00, 0x1e]),
            Some(vec![key, unknown(Some(7), 2)])
        );
    }

    #[test]
    fn input_that_is_cut_short_is_refused() {
        assert_eq!(inputs(2 << 2, &[0x00, 0x1e]), None);
        assert_eq!(inputs(0, &[]), None);
    }
}
