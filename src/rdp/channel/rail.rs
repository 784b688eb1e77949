//! [MS-RDPERP]: remote programs. Only which program is started is read; windows and their moves are not.
//!
//! [MS-RDPERP]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdperp/

use super::Parser;
pub use super::event::RemoteProgramEvent;
use super::event::{ChannelEvent, noted};
use super::read::{ChannelError, Reader, wide};
use crate::Direction;

/// The channel of remote programs of one session.
#[derive(Debug, Default)]
pub struct Rail;

impl Parser for Rail {
    fn feed_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        total: usize,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut reader = Reader::head(head, total);
        let order_type = reader.u16("orderType")?;
        reader.skip(2, "orderLength")?;
        let event = match order_type {
            // 2.2.2.3.1: receivers refuse one that is cut off or has longer names, too.
            TS_RAIL_ORDER_EXEC if direction == Direction::ToTarget => {
                reader.skip(2, "Flags")?;
                let program = usize::from(reader.u16("ExeOrFileLength")?);
                let directory = usize::from(reader.u16("WorkingDirLength")?);
                let argument_bytes = reader.u16("ArgumentsLen")?;
                let program = reader.utf16(program, PATH_BYTES, "ExeOrFile")?;
                let working_directory = reader.utf16(directory, PATH_BYTES, "WorkingDir")?;
                reader.skip(argument_bytes.into(), "Arguments")?;
                RemoteProgramEvent::Requested {
                    program,
                    working_directory,
                    argument_bytes,
                }
            }
            TS_RAIL_ORDER_EXEC_RESULT if direction == Direction::ToClient => {
                return noted("rail", direction, answered(&mut reader));
            }
            // From TS_RAIL_ORDER_ACTIVATE to TS_RAIL_ORDER_CARETBLINKINFO: windows, and how they look.
            0x0002..=0x001a => return Ok(Vec::new()),
            _ => RemoteProgramEvent::Unknown {
                direction,
                order_type,
                bytes: wide(reader.remaining()),
            },
        };
        Ok(vec![ChannelEvent::RemoteProgram(event)])
    }
}

/// What has become of a program: nothing depends on it.
fn answered(reader: &mut Reader<'_>) -> Result<Vec<ChannelEvent>, ChannelError> {
    reader.skip(2, "Flags")?;
    let result = reader.u16("ExecResult")?;
    reader.skip(4 + 2, "RawResult")?;
    let program = usize::from(reader.u16("ExeOrFileLength")?);
    let program = reader.utf16(program, PATH_BYTES, "ExeOrFile")?;
    let event = RemoteProgramEvent::Answered { program, result };
    Ok(vec![ChannelEvent::RemoteProgram(event)])
}

const TS_RAIL_ORDER_EXEC: u16 = 0x0001;
const TS_RAIL_ORDER_EXEC_RESULT: u16 = 0x0080;

/// 2.2.2.3.1: 520 bytes.
const PATH_BYTES: usize = 520;

#[cfg(test)]
mod tests {
    use super::*;

    /// [MS-RDPERP] 4.3.1 TS_RAIL_ORDER_EXEC, up to the arguments, which have 24 bytes.
    const EXEC: &[u8] = b"\x01\0\x5e\0\x08\0\x14\0\x26\0\x18\0|\0|\0i\0e\0x\0p\0l\0o\0r\0e\0\
        f\0:\0\\\0w\0i\0n\0d\0o\0w\0s\0\\\0s\0y\0s\0t\0e\0m\x003\x002\0w\0w\0w\0.\0b\0i\0n\0g\0.\0c\0o\0m\0";

    #[test]
    fn the_example_of_the_specification_is_read_without_its_arguments() {
        let events = Rail.feed(Direction::ToTarget, EXEC).unwrap();
        let expected = RemoteProgramEvent::Requested {
            program: "||iexplore".to_owned(),
            working_directory: "f:\\windows\\system32".to_owned(),
            argument_bytes: 24,
        };
        assert_eq!(events, [ChannelEvent::RemoteProgram(expected)]);
    }

    #[test]
    fn windows_and_their_moves_are_passed_over_and_the_unknown_is_reported() {
        assert_eq!(Rail.feed(Direction::ToTarget, &[8, 0, 12, 0]), Ok(vec![]));
        let events = Rail.feed(Direction::ToTarget, &[0x99, 0, 4, 0]).unwrap();
        assert!(matches!(
            events[..],
            [ChannelEvent::RemoteProgram(
                RemoteProgramEvent::Unknown { .. }
            )]
        ));
    }

    #[test]
    fn a_cut_request_is_an_error_and_what_the_other_side_would_send_is_unknown() {
        for length in 0..EXEC.len() {
            Rail.feed(Direction::ToTarget, &EXEC[..length]).unwrap_err();
        }
        let unknown = |order_type| {
            move |events: &[ChannelEvent]| {
                let [
                    ChannelEvent::RemoteProgram(RemoteProgramEvent::Unknown {
                        order_type: found,
                        ..
                    }),
                ] = events
                else {
                    panic!("{events:?}")
                };
                assert_eq!(*found, order_type);
            }
        };
        unknown(TS_RAIL_ORDER_EXEC)(&Rail.feed(Direction::ToClient, EXEC).unwrap());
        let result = [0x80, 0, 4, 0];
        unknown(TS_RAIL_ORDER_EXEC_RESULT)(&Rail.feed(Direction::ToTarget, &result).unwrap());
        // Of an answer that is cut off nothing depends.
        let events = Rail.feed(Direction::ToClient, &result).unwrap();
        assert!(matches!(events[..], [ChannelEvent::Unreadable(_)]));
    }
}
