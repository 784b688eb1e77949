//! Pictures of a display, compared pixel by pixel.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::display::Display;
use super::process::tool;

/// Red, green, blue.
pub(crate) type Colour = [u8; 3];

/// How often a picture is tried to be taken.
const DUMPS: usize = 4;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<Colour>,
}

impl Picture {
    pub(crate) fn of(display: &Display) -> Result<Self> {
        let dump = || tool(display.command("xwd").args(["-root", "-silent"]));
        // It asks each window of the display what it is, and fails where one goes meanwhile.
        let dump = (1..DUMPS).find_map(|_| dump().ok()).map_or_else(dump, Ok);
        Self::from_xwd(&dump?)
    }

    /// A picture of `width` pixels a line.
    pub(crate) fn new(width: usize, pixels: Vec<Colour>) -> Self {
        Self {
            width,
            height: pixels.len() / width.max(1),
            pixels,
        }
    }

    pub(crate) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Reads the X Window Dump format (XWDFile.h): 25 big-endian words, the colour table, the lines.
    fn from_xwd(dump: &[u8]) -> Result<Self> {
        let word = |index: usize| -> Result<usize> {
            let bytes = dump.get(index * 4..index * 4 + 4).context("xwd header")?;
            Ok(usize::try_from(u32::from_be_bytes(bytes.try_into()?))?)
        };
        let (width, height, stride) = (word(4)?, word(5)?, word(12)?);
        let pixels = (word(7)?, stride, word(14)?, word(16)?);
        ensure!(
            pixels == (0, 4 * width, 0xff_0000, 0xff),
            "xwd: only little-endian pixels of 32 bits are expected of Xvfb, and not {pixels:?}"
        );
        // Of what it puts together of windows of several visuals xwd says that a pixel has 24 bits, and gives it 32 all the same.
        let bits = word(11)?;
        ensure!([24, 32].contains(&bits), "xwd: {bits} bits a pixel");
        let start = word(0)? + word(19)? * COLOUR_TABLE_ENTRY;
        let lines = dump.get(start..).context("xwd colour table")?;
        ensure!(lines.len() >= stride * height, "xwd: lines are missing");
        let pixels = lines
            .chunks_exact(stride)
            .take(height)
            .flat_map(|line| line.chunks_exact(4).take(width))
            .map(|pixel| [pixel[2], pixel[1], pixel[0]])
            .collect();
        Ok(Self {
            width,
            height,
            pixels,
        })
    }

    /// Reads a portable pixmap as [`save`](Self::save) writes it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let mut words = file.splitn(5, u8::is_ascii_whitespace);
        let mut word = || words.next().context("ppm header");
        ensure!(word()? == b"P6", "not a portable pixmap");
        let mut number = || anyhow::Ok(std::str::from_utf8(word()?)?.parse::<usize>()?);
        let (width, height, maximum) = (number()?, number()?, number()?);
        let pixels = word()?;
        ensure!(
            maximum == 255 && pixels.len() == 3 * width * height,
            "ppm: {width}x{height} with {} bytes",
            pixels.len()
        );
        Ok(Self {
            width,
            height,
            pixels: pixels
                .chunks_exact(3)
                .map(|pixel| [pixel[0], pixel[1], pixel[2]])
                .collect(),
        })
    }

    /// How much of the picture has this colour, give or take what a lossy codec changes; from 0 to 1.
    pub(crate) fn share_of(&self, colour: Colour) -> f64 {
        let alike = self
            .pixels
            .iter()
            .filter(|pixel| alike(pixel, &colour, FLAT))
            .count();
        ratio(alike, self.pixels.len())
    }

    /// How many pixels look different from those of `other`; all of them when the sizes differ.
    pub(crate) fn difference(&self, other: &Self) -> usize {
        if (self.width, self.height) != (other.width, other.height) {
            return self.pixels.len();
        }
        self.pixels
            .iter()
            .zip(&other.pixels)
            .filter(|(one, two)| !alike(one, two, EDGE))
            .count()
    }

    /// Writes a portable pixmap.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut file = format!("P6\n{} {}\n255\n", self.width, self.height).into_bytes();
        file.extend(self.pixels.iter().flatten());
        std::fs::write(path, file).with_context(|| format!("write {}", path.display()))
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

fn alike(one: &Colour, two: &Colour, tolerance: u8) -> bool {
    one.iter()
        .zip(two)
        .all(|(one, two)| one.abs_diff(*two) <= tolerance)
}

fn ratio(part: usize, whole: usize) -> f64 {
    let exact = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
    exact(part) / exact(whole.max(1))
}

/// How far RemoteFX and H.264 shift a channel of a flat colour (3 was seen), with room.
const FLAT: u8 = 12;
/// How far they blur the edge of a letter on a busy machine (70 was seen), with room; ink and paper are 255 apart.
const EDGE: u8 = 110;
const COLOUR_TABLE_ENTRY: usize = 12;
