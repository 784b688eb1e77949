//! A picture in memory and the few things that are drawn into it.
//!
//! Pixels are RGBA with an opaque alpha. Everything is clipped to the picture. Edges are anti-aliased, and the same
//! calls give the same pixels, so that two pictures can be compared byte for byte.

use super::font::{self, Segment};

/// A colour, without transparency: how much of it arrives is given separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

/// Part of a picture, in whole pixels; `right` and `bottom` are just outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Area {
    pub left: u16,
    pub top: u16,
    pub right: u16,
    pub bottom: u16,
}

impl Area {
    /// The area at a corner with a size.
    #[must_use]
    pub fn new(left: u16, top: u16, width: u16, height: u16) -> Self {
        Self {
            left,
            top,
            right: left.saturating_add(width),
            bottom: top.saturating_add(height),
        }
    }

    #[must_use]
    pub fn width(&self) -> u16 {
        self.right.saturating_sub(self.left)
    }

    #[must_use]
    pub fn height(&self) -> u16 {
        self.bottom.saturating_sub(self.top)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.width() == 0 || self.height() == 0
    }

    /// What both areas share; empty where they do not meet.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        }
    }

    /// The smallest area with both in it.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() {
            return *other;
        }
        if other.is_empty() {
            return *self;
        }
        Self {
            left: self.left.min(other.left),
            top: self.top.min(other.top),
            right: self.right.max(other.right),
            bottom: self.bottom.max(other.bottom),
        }
    }

    #[must_use]
    pub fn contains(&self, x: u16, y: u16) -> bool {
        (self.left..self.right).contains(&x) && (self.top..self.bottom).contains(&y)
    }
}

/// A line of text: where the top of its capital letters begins, how high they are, and in which colour.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub text: &'a str,
    pub left: f32,
    pub top: f32,
    pub cap_height: f32,
    /// Width of the pen as a share of the capital height.
    pub weight: f32,
    pub colour: Colour,
}

impl Text<'_> {
    /// Width of the line, pixels.
    #[must_use]
    pub fn width(&self) -> f32 {
        font::width(self.text) * self.cap_height / font::CAP_HEIGHT
    }
}

/// A picture of fixed size.
///
/// INVARIANT: `pixels` holds `width * height` pixels, row by row from the top.
#[derive(Clone, PartialEq, Eq)]
pub struct Canvas {
    width: u16,
    height: u16,
    pixels: Vec<[u8; 4]>,
}

impl std::fmt::Debug for Canvas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Canvas({} x {})", self.width, self.height)
    }
}

impl Canvas {
    /// A black picture.
    #[must_use]
    pub fn new(width: u16, height: u16) -> Self {
        Self {
            width,
            height,
            pixels: vec![[0, 0, 0, 255]; usize::from(width).saturating_mul(usize::from(height))],
        }
    }

    #[must_use]
    pub fn width(&self) -> u16 {
        self.width
    }

    #[must_use]
    pub fn height(&self) -> u16 {
        self.height
    }

    /// All of the picture.
    #[must_use]
    pub fn area(&self) -> Area {
        Area::new(0, 0, self.width, self.height)
    }

    /// The pixels of one row from `left` up to `right`; empty where there are none.
    #[must_use]
    pub fn row(&self, y: u16, left: u16, right: u16) -> &[[u8; 4]] {
        let range = self.range(y, left, right);
        self.pixels.get(range).unwrap_or_default()
    }

    fn row_mut(&mut self, y: u16, left: u16, right: u16) -> &mut [[u8; 4]] {
        let range = self.range(y, left, right);
        self.pixels.get_mut(range).unwrap_or_default()
    }

    fn range(&self, y: u16, left: u16, right: u16) -> std::ops::Range<usize> {
        if y >= self.height {
            return 0..0;
        }
        let start = usize::from(y).saturating_mul(usize::from(self.width));
        let (left, right) = (left.min(self.width), right.min(self.width));
        let begin = start.saturating_add(usize::from(left));
        begin..start.saturating_add(usize::from(right)).max(begin)
    }

    /// The colour at a point; black outside.
    #[must_use]
    pub fn pixel(&self, x: u16, y: u16) -> [u8; 4] {
        let row = self.row(y, x, x.saturating_add(1));
        row.first().copied().unwrap_or([0, 0, 0, 255])
    }

    /// The picture as bytes, four per pixel.
    #[must_use]
    pub fn to_rgba(&self) -> Vec<u8> {
        self.pixels.as_flattened().to_vec()
    }

    /// Copies an area from a picture of the same size.
    pub fn copy_from(&mut self, other: &Self, area: Area) {
        let area = area.intersection(&self.area());
        for y in area.top..area.bottom {
            let from = other.row(y, area.left, area.right);
            let to = self.row_mut(y, area.left, area.right);
            if from.len() == to.len() {
                to.copy_from_slice(from);
            }
        }
    }

    /// Fills an area with a colour that changes from top to bottom through `stops` (position in 0..=1 and colour).
    pub fn gradient(&mut self, area: Area, stops: &[(f32, Colour)]) {
        let area = area.intersection(&self.area());
        let height = f32::from(area.height().max(2)) - 1.0;
        for y in area.top..area.bottom {
            let position = f32::from(y.saturating_sub(area.top)) / height;
            let colour = colour_at(stops, position);
            self.row_mut(y, area.left, area.right)
                .fill([colour.0, colour.1, colour.2, 255]);
        }
    }

    /// Lays a colour over an area with rounded corners; `alpha` 1 hides what was there.
    pub fn panel(&mut self, area: Area, radius: f32, colour: Colour, alpha: f32) {
        let area = area.intersection(&self.area());
        let (centre_x, centre_y) = (
            (f32::from(area.left) + f32::from(area.right)) / 2.0,
            (f32::from(area.top) + f32::from(area.bottom)) / 2.0,
        );
        let half = (
            f32::from(area.width()) / 2.0 - radius,
            f32::from(area.height()) / 2.0 - radius,
        );
        for y in area.top..area.bottom {
            let dy = ((f32::from(y) + 0.5 - centre_y).abs() - half.1).max(0.0);
            for (x, pixel) in (area.left..).zip(self.row_mut(y, area.left, area.right)) {
                let dx = ((f32::from(x) + 0.5 - centre_x).abs() - half.0).max(0.0);
                let inside = if dx == 0.0 || dy == 0.0 {
                    1.0
                } else {
                    (radius + 0.5 - dx.hypot(dy)).clamp(0.0, 1.0)
                };
                blend(pixel, colour, alpha * inside);
            }
        }
    }

    /// Lays a disc over the picture; `softness` is the share of the radius over which it fades out.
    pub fn disc(&mut self, centre: (f32, f32), radius: f32, softness: f32, colour: Colour) {
        let area = self.around(centre, centre, radius + 1.0);
        let fade = (radius * softness).max(1.0);
        for y in area.top..area.bottom {
            let dy = f32::from(y) + 0.5 - centre.1;
            for (x, pixel) in (area.left..).zip(self.row_mut(y, area.left, area.right)) {
                let dx = f32::from(x) + 0.5 - centre.0;
                let cover = (radius + 0.5 - dx.hypot(dy)) / fade;
                blend(pixel, colour, cover.clamp(0.0, 1.0));
            }
        }
    }

    /// Draws pen strokes `2 * radius` wide with round ends.
    pub fn strokes(&mut self, strokes: &[Segment], radius: f32, colour: Colour, clip: Area) {
        let bounds = strokes.iter().fold(Area::default(), |bounds, stroke| {
            bounds.union(&self.around(stroke.from, stroke.to, radius + 1.0))
        });
        let bounds = bounds.intersection(&clip);
        if bounds.is_empty() {
            return;
        }
        // Strokes of one glyph overlap; each pixel takes the strongest, so that joints are no darker than lines.
        let stride = usize::from(bounds.width());
        let mut cover = vec![0.0_f32; stride.saturating_mul(usize::from(bounds.height()))];
        for stroke in strokes {
            let near = self
                .around(stroke.from, stroke.to, radius + 1.0)
                .intersection(&bounds);
            for y in near.top..near.bottom {
                let line = usize::from(y.saturating_sub(bounds.top)).saturating_mul(stride);
                let start = line.saturating_add(usize::from(near.left.saturating_sub(bounds.left)));
                let cells = cover.get_mut(start..).unwrap_or_default();
                for (x, cell) in (near.left..near.right).zip(cells) {
                    let point = (f32::from(x) + 0.5, f32::from(y) + 0.5);
                    let ink = (radius + 0.5 - distance(point, stroke)).clamp(0.0, 1.0);
                    *cell = cell.max(ink);
                }
            }
        }
        for (y, cells) in (bounds.top..bounds.bottom).zip(cover.chunks(stride)) {
            let pixels = self.row_mut(y, bounds.left, bounds.right);
            for (pixel, ink) in pixels.iter_mut().zip(cells) {
                if *ink > 0.0 {
                    blend(pixel, colour, *ink);
                }
            }
        }
    }

    /// Writes a line of text, clipped to `clip`.
    pub fn text(&mut self, text: &Text<'_>, clip: Area) {
        let scale = text.cap_height / font::CAP_HEIGHT;
        let place = |at: (f32, f32)| (text.left + at.0 * scale, text.top + at.1 * scale);
        let strokes: Vec<Segment> = font::segments(text.text)
            .into_iter()
            .map(|stroke| Segment {
                from: place(stroke.from),
                to: place(stroke.to),
            })
            .collect();
        let radius = text.cap_height * text.weight / 2.0;
        self.strokes(&strokes, radius, text.colour, clip);
    }

    /// The pixels a stroke between two points can touch.
    fn around(&self, a: (f32, f32), b: (f32, f32), margin: f32) -> Area {
        Area {
            left: pixel(a.0.min(b.0) - margin),
            top: pixel(a.1.min(b.1) - margin),
            right: pixel(a.0.max(b.0) + margin + 1.0),
            bottom: pixel(a.1.max(b.1) + margin + 1.0),
        }
        .intersection(&self.area())
    }
}

/// The whole pixel a coordinate falls into; what lies left of or above the picture becomes zero.
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounds down and saturates, which is what clipping needs; no From exists"
)]
pub(crate) fn pixel(coordinate: f32) -> u16 {
    coordinate.max(0.0) as u16
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a colour between two colours is within 0..=255; no From exists"
)]
fn mix(from: u8, to: u8, share: f32) -> u8 {
    (f32::from(from) + (f32::from(to) - f32::from(from)) * share + 0.5) as u8
}

fn blend(pixel: &mut [u8; 4], colour: Colour, share: f32) {
    let [red, green, blue, _] = pixel;
    *red = mix(*red, colour.0, share);
    *green = mix(*green, colour.1, share);
    *blue = mix(*blue, colour.2, share);
}

fn colour_at(stops: &[(f32, Colour)], position: f32) -> Colour {
    let mut below: Option<(f32, Colour)> = None;
    for (at, colour) in stops {
        if *at >= position {
            let Some((start, from)) = below else {
                return *colour;
            };
            let share = (position - start) / (at - start).max(f32::EPSILON);
            return Colour(
                mix(from.0, colour.0, share),
                mix(from.1, colour.1, share),
                mix(from.2, colour.2, share),
            );
        }
        below = Some((*at, *colour));
    }
    below.map_or(Colour(0, 0, 0), |(_, colour)| colour)
}

fn distance(point: (f32, f32), stroke: &Segment) -> f32 {
    let (dx, dy) = (stroke.to.0 - stroke.from.0, stroke.to.1 - stroke.from.1);
    let (px, py) = (point.0 - stroke.from.0, point.1 - stroke.from.1);
    let length = dx * dx + dy * dy;
    let along = if length > 0.0 {
        ((px * dx + py * dy) / length).clamp(0.0, 1.0)
    } else {
        0.0
    };
    (px - along * dx).hypot(py - along * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHITE: Colour = Colour(255, 255, 255);

    #[test]
    fn drawing_outside_the_picture_is_clipped() {
        let mut canvas = Canvas::new(10, 10);
        let text = Text {
            text: "Wide text",
            left: -20.0,
            top: -3.0,
            cap_height: 30.0,
            weight: 0.2,
            colour: WHITE,
        };
        canvas.text(&text, Area::new(0, 0, 500, 500));
        canvas.panel(Area::new(5, 5, 500, 500), 2.0, WHITE, 0.5);
        canvas.disc((-5.0, 40.0), 30.0, 0.5, WHITE);
        assert_eq!(canvas.to_rgba().len(), 400);
        assert!(canvas.row(3, 8, 90).len() == 2 && canvas.row(10, 0, 5).is_empty());
    }

    #[test]
    fn text_stays_inside_its_clip() {
        let mut canvas = Canvas::new(100, 40);
        let text = Text {
            text: "HHHHHHHH",
            left: 0.0,
            top: 5.0,
            cap_height: 20.0,
            weight: 0.2,
            colour: WHITE,
        };
        canvas.text(&text, Area::new(0, 0, 50, 40));
        let inked = |left, right| {
            (0..40).any(|y| {
                canvas
                    .row(y, left, right)
                    .iter()
                    .any(|p| p != &[0, 0, 0, 255])
            })
        };
        assert!(inked(0, 50));
        assert!(!inked(50, 100));
    }

    #[test]
    fn a_gradient_begins_and_ends_with_its_colours() {
        let mut canvas = Canvas::new(4, 9);
        let (top, bottom) = (Colour(10, 20, 30), Colour(200, 100, 0));
        canvas.gradient(canvas.area(), &[(0.0, top), (1.0, bottom)]);
        assert_eq!(canvas.pixel(0, 0), [10, 20, 30, 255]);
        assert_eq!(canvas.pixel(3, 8), [200, 100, 0, 255]);
    }
}
