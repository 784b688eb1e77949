//! [MS-RDPEDISP]: the client asks for another desktop size.
//!
//! [MS-RDPEDISP]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpedisp/

use super::event::ChannelEvent;
pub use super::event::{DisplayEvent, Monitor};
use super::read::{ChannelError, Reader, only, size, wide};
use crate::Direction;

/// The display control channel of one session.
#[derive(Debug, Default)]
pub struct Display;

impl Display {
    /// Takes the next message.
    ///
    /// # Errors
    ///
    /// It is not a display control message, or a bound was reached.
    pub fn feed(
        &mut self,
        direction: Direction,
        message: &[u8],
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut reader = Reader::new(message);
        let pdu_type = reader.u32("Type")?;
        let length = size(reader.u32("Length")?);
        let body = length.checked_sub(8).ok_or(ChannelError::Invalid {
            what: "Length",
            value: wide(length),
        })?;
        reader.limit(body, "display control message")?;
        let event = match pdu_type {
            DISPLAYCONTROL_PDU_TYPE_CAPS => {
                only(direction, Direction::ToClient, "display capabilities")?;
                let max_monitors = reader.u32("MaxNumMonitors")?;
                DisplayEvent::Capabilities { max_monitors }
            }
            DISPLAYCONTROL_PDU_TYPE_MONITOR_LAYOUT => {
                only(direction, Direction::ToTarget, "monitor layout")?;
                let layout = size(reader.u32("MonitorLayoutSize")?);
                let rest =
                    layout
                        .checked_sub(MONITOR_LAYOUT_READ)
                        .ok_or(ChannelError::Invalid {
                            what: "MonitorLayoutSize",
                            value: wide(layout),
                        })?;
                let count = size(reader.u32("NumMonitors")?);
                if count > MONITORS {
                    return Err(ChannelError::TooMany {
                        what: "monitors",
                        limit: MONITORS,
                    });
                }
                let mut monitors = Vec::with_capacity(count);
                for _ in 0..count {
                    monitors.push(monitor(&mut reader)?);
                    reader.skip(rest, "monitor layout")?;
                }
                DisplayEvent::Layout { monitors }
            }
            _ => DisplayEvent::Unknown {
                direction,
                pdu_type,
                bytes: wide(reader.remaining()),
            },
        };
        Ok(vec![ChannelEvent::Display(event)])
    }
}

fn monitor(reader: &mut Reader<'_>) -> Result<Monitor, ChannelError> {
    let flags = reader.u32("Flags")?;
    Ok(Monitor {
        left: reader.u32("Left")?.cast_signed(),
        top: reader.u32("Top")?.cast_signed(),
        width: reader.u32("Width")?,
        height: reader.u32("Height")?,
        primary: flags & DISPLAYCONTROL_MONITOR_PRIMARY != 0,
    })
}

const DISPLAYCONTROL_PDU_TYPE_MONITOR_LAYOUT: u32 = 0x0000_0002;
const DISPLAYCONTROL_PDU_TYPE_CAPS: u32 = 0x0000_0005;
const DISPLAYCONTROL_MONITOR_PRIMARY: u32 = 0x0000_0001;

/// The fields of a monitor that are read, of 40 bytes.
const MONITOR_LAYOUT_READ: usize = 20;

/// 16 is what the protocol allows; some room.
const MONITORS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_has_as_many_monitors_as_it_says_and_not_too_many() {
        let mut layout = vec![2, 0, 0, 0, 56, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0];
        layout.extend([1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        layout.extend([0, 4, 0, 0, 0, 3, 0, 0]);
        layout.extend([0; 20]);
        let monitor = Monitor {
            left: -1,
            top: 0,
            width: 1024,
            height: 768,
            primary: true,
        };
        assert_eq!(
            Display.feed(Direction::ToTarget, &layout),
            Ok(vec![ChannelEvent::Display(DisplayEvent::Layout {
                monitors: vec![monitor]
            })])
        );
        Display.feed(Direction::ToClient, &layout).unwrap_err();
        for count in [2, 65, 255] {
            layout[12] = count;
            Display.feed(Direction::ToTarget, &layout).unwrap_err();
        }
        layout[12] = 1;
        for length in 0..layout.len() {
            Display
                .feed(Direction::ToTarget, &layout[..length])
                .unwrap_err();
        }
    }
}
