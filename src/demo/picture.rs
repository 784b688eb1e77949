//! What a session has shown so far: fast-path bitmap updates ([MS-RDPBCGR] 2.2.9.1.2.1.2) drawn into one picture.
//!
//! It takes what the demo's target sends: 32 bits per pixel in RDP 6.0 planar compression, each update in one piece and
//! without bulk compression. Pointers are not drawn.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/d681bb11-f3b5-4add-b092-19fe7075f9e3

use image::RgbaImage;
use ironrdp_core::{Decode as _, ReadCursor};
use ironrdp_graphics::rdp6::BitmapStreamDecoder;
use ironrdp_pdu::bitmap::{BitmapData, Compression};
use ironrdp_pdu::fast_path::{FastPathHeader, FastPathUpdatePdu, Fragmentation, UpdateCode};

/// Why an update cannot be drawn; the server's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PictureError {
    /// Not what the specification says.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// In a form that the client has not announced.
    #[error("the server sends {0}, which was not asked for")]
    NotAskedFor(&'static str),
    /// A bitmap that is partly elsewhere.
    #[error("a bitmap reaches beyond the desktop")]
    Outside,
}

/// The picture of one session.
pub(super) struct Picture {
    image: RgbaImage,
    size: (u16, u16),
    /// Which pixels have been painted, row by row.
    painted: Vec<bool>,
    decoder: BitmapStreamDecoder,
    /// One decoded bitmap, three bytes per pixel.
    rgb: Vec<u8>,
}

impl Picture {
    /// A black picture; the caller bounds the size.
    pub(super) fn new(size: (u16, u16)) -> Self {
        let black = image::Rgba([0, 0, 0, u8::MAX]);
        let (width, height) = (usize::from(size.0), usize::from(size.1));
        Self {
            image: RgbaImage::from_pixel(size.0.into(), size.1.into(), black),
            size,
            painted: vec![false; width.saturating_mul(height)],
            decoder: BitmapStreamDecoder::default(),
            rgb: Vec::new(),
        }
    }

    /// The picture as it is now, opaque.
    pub(super) fn image(&self) -> &RgbaImage {
        &self.image
    }

    /// Width and height.
    pub(super) fn size(&self) -> (u16, u16) {
        self.size
    }

    /// How many pixels there are.
    pub(super) fn pixels(&self) -> usize {
        self.painted.len()
    }

    /// Whether every pixel has been painted.
    pub(super) fn is_complete(&self) -> bool {
        !self.painted.contains(&false)
    }

    /// Draws a whole fast-path output PDU and says how many pixels it has painted.
    ///
    /// # Errors
    /// Where one of its updates cannot be drawn; those before it are.
    pub(super) fn draw(&mut self, frame: &[u8]) -> Result<usize, PictureError> {
        let malformed = |_| PictureError::Malformed("fast-path update");
        let mut cursor = ReadCursor::new(frame);
        FastPathHeader::decode(&mut cursor).map_err(malformed)?;
        let mut painted = 0_usize;
        while !cursor.is_empty() {
            let update = FastPathUpdatePdu::decode(&mut cursor).map_err(malformed)?;
            if update.compression_flags.is_some() {
                return Err(PictureError::NotAskedFor("bulk compression"));
            }
            if update.fragmentation != Fragmentation::Single {
                return Err(PictureError::NotAskedFor("an update in pieces"));
            }
            match update.update_code {
                UpdateCode::Bitmap => {
                    painted = painted.saturating_add(self.bitmaps(update.data)?);
                }
                UpdateCode::Synchronize
                | UpdateCode::HiddenPointer
                | UpdateCode::DefaultPointer
                | UpdateCode::PositionPointer
                | UpdateCode::ColorPointer
                | UpdateCode::CachedPointer
                | UpdateCode::NewPointer => {}
                UpdateCode::Orders => return Err(PictureError::NotAskedFor("drawing orders")),
                UpdateCode::Palette => return Err(PictureError::NotAskedFor("a palette")),
                UpdateCode::SurfaceCommands => {
                    return Err(PictureError::NotAskedFor("surface commands"));
                }
                UpdateCode::LargePointer => {
                    return Err(PictureError::NotAskedFor("a large pointer"));
                }
            }
        }
        Ok(painted)
    }

    /// TS_UPDATE_BITMAP_DATA: type, count, and that many bitmaps.
    fn bitmaps(&mut self, data: &[u8]) -> Result<usize, PictureError> {
        let malformed = PictureError::Malformed("bitmap update");
        let (&[kind_low, kind_high, count_low, count_high], bitmaps) =
            data.split_first_chunk().ok_or(malformed)?;
        if u16::from_le_bytes([kind_low, kind_high]) != UPDATETYPE_BITMAP {
            return Err(malformed);
        }
        let mut cursor = ReadCursor::new(bitmaps);
        let mut painted = 0_usize;
        for _ in 0..u16::from_le_bytes([count_low, count_high]) {
            let bitmap = BitmapData::decode(&mut cursor).map_err(|_| malformed)?;
            painted = painted.saturating_add(self.bitmap(&bitmap)?);
        }
        Ok(painted)
    }

    fn bitmap(&mut self, bitmap: &BitmapData<'_>) -> Result<usize, PictureError> {
        if bitmap.bits_per_pixel != 32
            || !bitmap
                .compression_flags
                .contains(Compression::BITMAP_COMPRESSION)
        {
            return Err(PictureError::NotAskedFor("a bitmap that is not planar"));
        }
        let place = &bitmap.rectangle;
        let (width, height) = (usize::from(bitmap.width), usize::from(bitmap.height));
        let columns = usize::from(place.left)..usize::from(place.right).saturating_add(1);
        let rows = usize::from(place.top)..usize::from(place.bottom).saturating_add(1);
        let (desktop_width, desktop_height) = (usize::from(self.size.0), usize::from(self.size.1));
        if columns.is_empty()
            || rows.is_empty()
            || columns.end > desktop_width
            || rows.end > desktop_height
        {
            return Err(PictureError::Outside);
        }
        // Rows may be padded, but to four pixels at most; this bounds what is decoded, too.
        if rows.len() != height
            || columns.len() > width
            || width > desktop_width.next_multiple_of(4)
        {
            return Err(PictureError::Malformed("bitmap size"));
        }
        self.rgb.clear();
        self.decoder
            .decode_bitmap_stream_to_rgb24(bitmap.bitmap_data, &mut self.rgb, width, height)
            .map_err(|_| PictureError::Malformed("planar bitmap"))?;
        // Bitmaps are sent bottom-up.
        let lines = self.rgb.chunks_exact(width.saturating_mul(3)).rev();
        let samples: &mut [u8] = self.image.as_mut();
        for (y, line) in rows.clone().zip(lines) {
            let start = y.saturating_mul(desktop_width);
            let pixels = start.saturating_add(columns.start)..start.saturating_add(columns.end);
            let samples =
                samples.get_mut(pixels.start.saturating_mul(4)..pixels.end.saturating_mul(4));
            let (Some(samples), Some(painted)) = (samples, self.painted.get_mut(pixels)) else {
                return Err(PictureError::Outside);
            };
            for (to, from) in samples.chunks_exact_mut(4).zip(line.chunks_exact(3)) {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = *from;
                }
            }
            painted.fill(true);
        }
        Ok(rows.len().saturating_mul(columns.len()))
    }
}

const UPDATETYPE_BITMAP: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Fast-path, one bitmap update with one bitmap of 4 by 2 pixels at (2, 1): planes without run lengths and alpha.
    #[rustfmt::skip]
    const FRAME: &[u8] = &[
        0x00, 60, // fast-path, length
        0x01, 55, 0, // bitmap update, single, size
        1, 0, 1, 0, // UPDATETYPE_BITMAP, one rectangle
        2, 0, 1, 0, 5, 0, 2, 0, // left, top, right, bottom: inclusive
        4, 0, 2, 0, 32, 0, // width, height, bits per pixel
        0x01, 0x04, 33, 0, // BITMAP_COMPRESSION without header, length
        0x20, // no alpha, no run lengths
        1, 2, 3, 4, 5, 6, 7, 8, // red, the lower row first
        11, 12, 13, 14, 15, 16, 17, 18, // green
        21, 22, 23, 24, 25, 26, 27, 28, // blue
        0, 0, 0, 0, 0, 0, 0, 0, // padding
    ];

    fn changed(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = FRAME.to_vec();
        for &(at, value) in changes {
            frame[at] = value;
        }
        frame
    }

    #[test]
    fn a_bitmap_is_drawn_bottom_up_where_it_belongs() {
        let mut picture = Picture::new((8, 4));
        assert_eq!(picture.draw(FRAME), Ok(8));
        assert_eq!(picture.image().get_pixel(2, 2).0, [1, 11, 21, 255]);
        assert_eq!(picture.image().get_pixel(5, 1).0, [8, 18, 28, 255]);
        assert_eq!(picture.image().get_pixel(6, 1).0, [0, 0, 0, 255]);
        let painted = picture.painted.iter().filter(|&&painted| painted).count();
        assert_eq!((painted, picture.is_complete()), (8, false));
    }

    #[test]
    fn padding_at_the_right_edge_is_not_drawn() {
        let mut picture = Picture::new((5, 3));
        let frame = changed(&[(13, 4)]);
        assert_eq!(picture.draw(&frame), Ok(6));
        assert_eq!(picture.image().get_pixel(4, 1).0, [7, 17, 27, 255]);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        use PictureError::{Malformed, NotAskedFor, Outside};
        for (changes, error) in [
            (&[(2, 0x11)][..], NotAskedFor("an update in pieces")),
            (&[(2, 0x00)], NotAskedFor("drawing orders")),
            (&[(2, 0x04)], NotAskedFor("surface commands")),
            (&[(5, 2)], Malformed("bitmap update")),
            (&[(7, 2)], Malformed("bitmap update")),
            (&[(3, 56)], Malformed("fast-path update")),
            (&[(21, 16)], NotAskedFor("a bitmap that is not planar")),
            (&[(23, 0)], NotAskedFor("a bitmap that is not planar")),
            (&[(13, 8)], Outside),
            (&[(15, 4)], Outside),
            (&[(9, 6)], Outside),
            (&[(14, 0xff)], Outside),
            // Less than it covers, and far more than the desktop has.
            (&[(17, 3)], Malformed("bitmap size")),
            (&[(18, 0xff)], Malformed("bitmap size")),
            (&[(19, 1)], Malformed("bitmap size")),
            (&[(20, 0xff)], Malformed("bitmap size")),
            // Run lengths that lead nowhere.
            (&[(27, 0x30)], Malformed("planar bitmap")),
        ] {
            let drawn = Picture::new((8, 4)).draw(&changed(changes));
            assert_eq!(drawn, Err(error), "{changes:?}");
        }
    }

    #[test]
    fn no_frame_makes_the_picture_panic() {
        let mut seed = 3_u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()
        };
        let mut picture = Picture::new((8, 4));
        for _ in 0..50_000 {
            let mut frame = FRAME.to_vec();
            let [count, cut, ..] = random();
            for _ in 0..count % 6 {
                let [at, value, ..] = random();
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            if cut < 64 {
                frame.truncate(usize::from(cut));
            }
            let _ = picture.draw(&frame);
        }
    }
}
