//! How pictures come outside of the graphics pipeline ([MS-RDPBCGR] 2.2.9.2, 2.2.7.2.10): the codecs of surface
//! commands and the frames around them, for statistics alone. What cannot be read is not counted.

use super::bytes::{Reader, u16_at};

/// A surface command, without its picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurfaceCommand {
    /// 2.2.9.2.1, 2.2.9.2.2: a picture, with the id that the client gave to its codec.
    Bits {
        /// `codecID`.
        codec: u8,
    },
    /// 2.2.9.2.3 Frame Marker Command, SURFACECMD_FRAMEACTION_END.
    FrameEnded {
        /// `frameId`.
        frame: u32,
    },
}

/// The commands at the front of a surface commands update, or of its first fragment.
pub fn commands(data: &[u8]) -> impl Iterator<Item = SurfaceCommand> {
    let mut reader = Reader::new(data);
    std::iter::from_fn(move || {
        loop {
            match reader.u16_le()? {
                CMDTYPE_FRAME_MARKER => {
                    let action = reader.u16_le()?;
                    let frame = reader.u32_le()?;
                    if action == FRAMEACTION_END {
                        return Some(SurfaceCommand::FrameEnded { frame });
                    }
                }
                CMDTYPE_SET_SURFACE_BITS | CMDTYPE_STREAM_SURFACE_BITS => {
                    // Rectangle; bpp.
                    reader.take(9)?;
                    let flags = reader.u8()?;
                    // Reserved.
                    reader.take(1)?;
                    let codec = reader.u8()?;
                    // Width, height.
                    reader.take(4)?;
                    let length = usize::try_from(reader.u32_le()?).ok()?;
                    let header = if flags & EX_COMPRESSED_BITMAP_HEADER_PRESENT == 0 {
                        0
                    } else {
                        24
                    };
                    // Where the picture is cut off, nothing behind it is at hand.
                    let end = length.saturating_add(header).min(reader.rest().len());
                    reader.take(end)?;
                    return Some(SurfaceCommand::Bits { codec });
                }
                _ => return None,
            }
        }
    })
}

/// The codecs that a Bitmap Codecs Capability Set names: the id of each.
pub fn codecs(set: &[u8]) -> impl Iterator<Item = (u8, &'static str)> {
    let mut reader = Reader::new(set);
    let count = reader.take(4).and_then(|_| reader.u8()).unwrap_or(0);
    (0..count).map_while(move |_| {
        let guid = reader.take(16)?;
        let id = reader.u8()?;
        let length = reader.u16_le()?;
        reader.take(length.into())?;
        let known = CODECS.iter().find(|(known, _)| known == guid);
        Some((id, known.map_or("unknown", |(_, name)| *name)))
    })
}

/// CAPSETTYPE_BITMAP_CODECS.
pub const CAPSTYPE_BITMAP_CODECS: u16 = 0x001d;

/// Whether a bitmap update ([MS-RDPBCGR] 2.2.9.1.1.3.1.2), fast-path or slow-path, has compressed pictures.
#[must_use]
pub fn has_compressed_bitmap(data: &[u8]) -> bool {
    // updateType, numberRectangles, rectangle (8), width, height, bitsPerPixel; BITMAP_COMPRESSION.
    u16_at(data, 18).is_some_and(|flags| flags & 0x0001 != 0)
}

const CODECS: [([u8; 16], &str); 5] = [
    (
        *b"\xb9\x1b\x8d\xca\x0f\x00\x4f\x15\x58\x9f\xae\x2d\x1a\x87\xe2\xd6",
        "NSCodec",
    ),
    (
        *b"\x12\x2f\x77\x76\x72\xbd\x63\x44\xaf\xb3\xb7\x3c\x9c\x6f\x78\x86",
        "RemoteFX",
    ),
    (
        *b"\xd4\xcc\x44\x27\x8a\x9d\x74\x4e\x80\x3c\x0e\xcb\xee\xa1\x9c\x54",
        "RemoteFX Image",
    ),
    (
        *b"\xa6\x51\x43\x9c\x35\x35\xae\x42\x91\x0c\xcd\xfc\xe5\x76\x0b\x58",
        "Ignore",
    ),
    (
        *b"\xed\x9e\x0c\x43\xaf\x1b\xe6\x4c\x86\x9a\xcb\x8b\x37\xb6\x62\x37",
        "JPEG",
    ),
];

const CMDTYPE_SET_SURFACE_BITS: u16 = 1;
const CMDTYPE_FRAME_MARKER: u16 = 4;
const CMDTYPE_STREAM_SURFACE_BITS: u16 = 6;
const FRAMEACTION_END: u16 = 1;
const EX_COMPRESSED_BITMAP_HEADER_PRESENT: u8 = 1;
