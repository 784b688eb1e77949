//! What the demo target shows: an evening sky over a runway, a panel that says where one is, and what is live in it.
//!
//! Most of the picture is still and depends only on its size and the user's name, so that whoever receives it can
//! be checked against it pixel by pixel ([`Desktop::check_still_part`]). Clock, session time, typed keys, pointer and
//! an aeroplane are drawn into [`Desktop::live_areas`].

use std::fmt;
use std::time::Duration;

use super::canvas::{Area, Canvas, Colour, Text};
use super::font::Segment;

/// The desktop of a client that names no usable size.
pub const DEFAULT_DESKTOP: (u16, u16) = (1024, 768);

/// The largest desktop; a client that asks for more gets this much.
pub const LARGEST_DESKTOP: (u16, u16) = (2560, 1600);

/// The planar codec is for 32 bits per pixel.
pub(super) const BITS_PER_PIXEL: u16 = 32;

/// Longest user name that is drawn, characters.
const USER_CHARS: usize = 28;

/// Most typed characters that are drawn.
pub const KEYS_CHARS: usize = 24;

/// How long the aeroplane takes from edge to edge.
const CROSSING_MS: f32 = 14_000.0;

/// Where on its way the aeroplane is first seen.
const FIRST_SEEN: f32 = 0.35;

const WHITE: Colour = Colour(245, 247, 255);
const PALE: Colour = Colour(178, 188, 220);
const AMBER: Colour = Colour(255, 176, 92);

/// What changes while a session runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Wall-clock time since the Unix epoch.
    pub now: Duration,
    /// Since the session began.
    pub elapsed: Duration,
    /// The last typed characters.
    pub keys: String,
    /// Where the pointer was last seen.
    pub pointer: Option<(u16, u16)>,
    /// Whether a mouse button is held.
    pub pressed: bool,
}

/// Why a received picture is not this desktop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The picture has another size.
    #[error("the picture is {found:?} pixels large instead of {expected:?}")]
    Size {
        expected: (u16, u16),
        found: (u32, u32),
    },
    /// Pixels that never change are not what was drawn.
    #[error("{count} pixels of the still part differ, the first at {first:?}")]
    Pixels { count: usize, first: (u16, u16) },
}

/// A line of text that changes.
#[derive(Debug)]
struct Field {
    area: Area,
    cap_height: f32,
    colour: Colour,
    shown: String,
}

/// The desktop of one session.
pub struct Desktop {
    /// The picture without anything live in it.
    still: Canvas,
    /// The picture as it was last drawn.
    current: Canvas,
    clock: Field,
    session: Field,
    keys: Field,
    pointer: Field,
    /// Where the aeroplane flies.
    airway: Area,
    /// Where it was last drawn.
    aeroplane: Area,
    scale: f32,
}

impl fmt::Debug for Desktop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desktop")
            .field("size", &self.still)
            .finish_non_exhaustive()
    }
}

impl Desktop {
    /// Draws the still part for a desktop of `width` by `height` pixels and a user.
    #[must_use]
    pub fn new(width: u16, height: u16, user: &str) -> Self {
        let scale = (f32::from(width) / 1024.0).min(f32::from(height) / 768.0);
        let mut still = Canvas::new(width, height);
        draw_landscape(&mut still, scale);

        let panel = area(64.0, 108.0, 648.0, 492.0, scale);
        still.panel(panel, 22.0 * scale, Colour(9, 12, 30), 0.72);
        let left = f32::from(panel.left) + 44.0 * scale;
        let top = f32::from(panel.top);
        let inner = f32::from(panel.right) - 44.0 * scale - left;
        let mut write = |text: &str, x: f32, y: f32, cap_height: f32, colour| {
            let mut line = Text {
                text,
                left: left + x * scale,
                top: top + y * scale,
                cap_height: cap_height * scale,
                weight: 0.12,
                colour,
            };
            let room = inner - x * scale;
            if line.width() > room {
                line.cap_height *= room / line.width();
            }
            still.text(&line, panel);
        };
        write("JETWAY demo target", 0.0, 48.0, 36.0, WHITE);
        write(
            "You reached this desktop through Jetway",
            0.0,
            130.0,
            17.0,
            PALE,
        );
        let label = |row: f32| 196.0 + row * 42.0;
        let size = format!("{width} x {height} pixels");
        let user = shown_name(user);
        for (row, name) in
            (0_u8..).zip(["User", "Desktop", "Clock", "Session", "Keyboard", "Pointer"])
        {
            write(name, 0.0, label(f32::from(row)) + 2.0, 13.0, PALE);
        }
        write(&user, VALUE_LEFT, label(0.0), 17.0, AMBER);
        write(&size, VALUE_LEFT, label(1.0), 17.0, WHITE);
        write(
            "Type something or move the pointer: it is echoed here.",
            0.0,
            458.0,
            11.0,
            PALE,
        );
        let accent = (left, top + 104.0 * scale);
        let line = Segment {
            from: accent,
            to: (accent.0 + 84.0 * scale, accent.1),
        };
        still.strokes(&[line], 2.5 * scale, AMBER, panel);

        let field = |row: f32, colour| Field {
            area: Area {
                left: super::canvas::pixel(left + VALUE_LEFT * scale),
                top: super::canvas::pixel(top + (label(row) - 8.0) * scale),
                right: super::canvas::pixel(left + inner),
                bottom: super::canvas::pixel(top + (label(row) + 29.0) * scale),
            },
            cap_height: 17.0 * scale,
            colour,
            shown: String::new(),
        };
        Self {
            current: still.clone(),
            clock: field(2.0, WHITE),
            session: field(3.0, WHITE),
            keys: field(4.0, AMBER),
            pointer: field(5.0, WHITE),
            airway: Area {
                right: width,
                ..area(0.0, 24.0, 0.0, 76.0, scale)
            },
            aeroplane: Area::default(),
            scale,
            still,
        }
    }

    /// The picture as it was last drawn.
    #[must_use]
    pub fn picture(&self) -> &Canvas {
        &self.current
    }

    /// Everything that may differ from the still part.
    #[must_use]
    pub fn live_areas(&self) -> [Area; 5] {
        [
            self.clock.area,
            self.session.area,
            self.keys.area,
            self.pointer.area,
            self.airway,
        ]
    }

    /// Where typed keys are echoed.
    #[must_use]
    pub fn keys_area(&self) -> Area {
        self.keys.area
    }

    /// Whether `rgba` (four bytes per pixel, row by row) shows `keys` as the last typed characters.
    #[must_use]
    pub fn echoes(&mut self, keys: &str, rgba: &[u8]) -> bool {
        self.draw(&Live {
            keys: String::from(keys),
            ..Live::default()
        });
        let area = self.keys.area;
        let stride = usize::from(self.current.width()).saturating_mul(4);
        (area.top..area.bottom).all(|y| {
            let drawn = self.current.row(y, area.left, area.right).as_flattened();
            let start = usize::from(y)
                .saturating_mul(stride)
                .saturating_add(usize::from(area.left).saturating_mul(4));
            rgba.get(start..start.saturating_add(drawn.len())) == Some(drawn)
        })
    }

    /// Draws what has changed and says where.
    pub fn draw(&mut self, live: &Live) -> Vec<Area> {
        let pointer = live.pointer.map_or_else(
            || String::from("not seen yet"),
            |(x, y)| format!("{x}, {y}{}", if live.pressed { " pressed" } else { "" }),
        );
        let mut changed = Vec::new();
        for (field, text) in [
            (&mut self.clock, utc(live.now)),
            (&mut self.session, minutes(live.elapsed)),
            (&mut self.keys, format!("{}_", live.keys)),
            (&mut self.pointer, pointer),
        ] {
            if field.shown != text {
                self.current.copy_from(&self.still, field.area);
                let line = Text {
                    text: &text,
                    left: f32::from(field.area.left) + 2.0 * self.scale,
                    top: f32::from(field.area.top) + 8.0 * self.scale,
                    cap_height: field.cap_height,
                    weight: 0.12,
                    colour: field.colour,
                };
                self.current.text(&line, field.area);
                field.shown = text;
                changed.push(field.area);
            }
        }
        changed.extend(self.fly(live.elapsed));
        changed
    }

    fn fly(&mut self, elapsed: Duration) -> Option<Area> {
        let lap = FIRST_SEEN + elapsed.as_secs_f32() * 1000.0 / CROSSING_MS;
        let width = f32::from(self.still.width());
        let reach = 170.0 * self.scale;
        let x = lap.fract() * (width + reach + 50.0 * self.scale) - 50.0 * self.scale;
        let y = f32::from(self.airway.top) + f32::from(self.airway.height()) / 2.0;
        let last = self.aeroplane;
        self.current.copy_from(&self.still, last);
        let place = |from: (f32, f32), to: (f32, f32)| Segment {
            from: (x + from.0 * self.scale, y + from.1 * self.scale),
            to: (x + to.0 * self.scale, y + to.1 * self.scale),
        };
        let clip = self.airway;
        let mut stroke = |from, to, radius: f32, colour| {
            let strokes = [place(from, to)];
            self.current
                .strokes(&strokes, radius * self.scale, colour, clip);
        };
        stroke((-150.0, 1.0), (-100.0, 1.0), 0.6, Colour(70, 76, 130));
        stroke((-100.0, 1.0), (-44.0, 1.0), 1.2, Colour(120, 126, 178));
        stroke((-2.0, -2.0), (-14.0, -12.0), 2.0, PALE);
        stroke((-30.0, -2.0), (-40.0, -15.0), 3.0, AMBER);
        stroke((-36.0, 0.0), (24.0, 1.0), 4.6, WHITE);
        stroke((2.0, 2.0), (-18.0, 17.0), 2.6, WHITE);
        stroke((-30.0, 1.0), (-40.0, 6.0), 1.8, WHITE);
        if elapsed.subsec_millis() < 300 {
            stroke((-18.0, 17.0), (-18.0, 17.0), 3.4, Colour(255, 70, 70));
        }
        let margin = 3.0;
        self.aeroplane = Area {
            left: super::canvas::pixel(x - 152.0 * self.scale - margin),
            top: clip.top,
            right: super::canvas::pixel(x + 30.0 * self.scale + margin),
            bottom: clip.bottom,
        }
        .intersection(&clip);
        let changed = last.union(&self.aeroplane);
        (!changed.is_empty()).then_some(changed)
    }

    /// Whether `rgba` (four bytes per pixel, row by row) shows this desktop, leaving aside what is live.
    ///
    /// # Errors
    /// [`Difference`] where it does not.
    pub fn check_still_part(&self, size: (u32, u32), rgba: &[u8]) -> Result<(), Difference> {
        let expected = (self.still.width(), self.still.height());
        if size != (u32::from(expected.0), u32::from(expected.1)) {
            return Err(Difference::Size {
                expected,
                found: size,
            });
        }
        let live = self.live_areas();
        let (mut count, mut first) = (0_usize, None);
        let mut rows = rgba.chunks(usize::from(expected.0).saturating_mul(4));
        for y in 0..expected.1 {
            let drawn = self.still.row(y, 0, expected.0);
            let found = rows.next().unwrap_or_default();
            if drawn.as_flattened() == found {
                continue;
            }
            let mut pixels = found.chunks_exact(4);
            for (x, pixel) in (0_u16..).zip(drawn) {
                let same = pixels.next() == Some(pixel.as_slice());
                if !same && !live.iter().any(|area| area.contains(x, y)) {
                    count = count.saturating_add(1);
                    first.get_or_insert((x, y));
                }
            }
        }
        first.map_or(Ok(()), |first| Err(Difference::Pixels { count, first }))
    }
}

/// Where values stand beside their labels, pixels at 1024 by 768.
const VALUE_LEFT: f32 = 150.0;

/// An area given for 1024 by 768 pixels.
fn area(left: f32, top: f32, width: f32, height: f32, scale: f32) -> Area {
    use super::canvas::pixel;
    Area::new(
        pixel(left * scale),
        pixel(top * scale),
        pixel(width * scale),
        pixel(height * scale),
    )
}

fn shown_name(user: &str) -> String {
    let name: String = user
        .chars()
        .filter(|glyph| !glyph.is_control())
        .take(USER_CHARS)
        .collect();
    if name.is_empty() {
        return String::from("(no name given)");
    }
    name
}

fn draw_landscape(canvas: &mut Canvas, scale: f32) {
    let (width, height) = (canvas.width(), canvas.height());
    let horizon = super::canvas::pixel(f32::from(height) * 0.8);
    let sky = Area::new(0, 0, width, horizon);
    canvas.gradient(
        sky,
        &[
            (0.0, Colour(8, 11, 34)),
            (0.45, Colour(36, 38, 92)),
            (0.78, Colour(138, 72, 120)),
            (1.0, Colour(250, 150, 98)),
        ],
    );
    // A fixed sequence, so that the same stars stand in every picture.
    let mut seed = 0x9e37_79b9_u32;
    for _ in 0..90_u8 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [_, a, b, c] = seed.to_be_bytes();
        let x = f32::from(u16::from_be_bytes([a, b])) / 65_535.0 * f32::from(width);
        let y = f32::from(c).powi(2) / 65_025.0 * f32::from(horizon) * 0.62;
        canvas.disc((x, y), 0.6 + f32::from(b & 1) * 0.5, 1.0, PALE);
    }
    let (w, h) = (f32::from(width), f32::from(horizon));
    let sun = (w * 0.845, h - 26.0 * scale);
    canvas.disc(sun, 150.0 * scale, 1.6, Colour(255, 176, 112));
    canvas.disc(sun, 66.0 * scale, 0.0, Colour(255, 226, 176));
    let ground = Area {
        top: horizon,
        bottom: height,
        ..sky
    };
    canvas.gradient(
        ground,
        &[(0.0, Colour(30, 26, 48)), (1.0, Colour(8, 10, 22))],
    );
    draw_runway(canvas, ground, sun.0 - 90.0 * scale, scale);
}

fn draw_runway(canvas: &mut Canvas, ground: Area, far_x: f32, scale: f32) {
    let (top, depth) = (f32::from(ground.top), f32::from(ground.height().max(1)));
    let near_x = far_x - 260.0 * scale;
    // `t` is 0 at the horizon and 1 at the lower edge; `side` is -1 and 1 at the edges of the runway.
    let at = |t: f32, side: f32| {
        let half = (5.0 + 330.0 * t) * scale;
        (far_x + (near_x - far_x) * t + side * half, top + depth * t)
    };
    for y in ground.top..ground.bottom {
        let t = (f32::from(y) + 0.5 - top) / depth;
        let line = Segment {
            from: at(t, -1.0),
            to: at(t, 1.0),
        };
        let row = Area::new(ground.left, y, ground.width(), 1);
        canvas.strokes(&[line], 0.5, Colour(38, 40, 58), row);
    }
    for (near, far) in [
        (1.0, 0.8),
        (0.62, 0.47),
        (0.36, 0.26),
        (0.19, 0.13),
        (0.09, 0.05),
    ] {
        let dash = Segment {
            from: at(near, 0.0),
            to: at(far, 0.0),
        };
        let width = (0.6 + 4.0 * far) * scale;
        canvas.strokes(&[dash], width, Colour(196, 200, 220), ground);
    }
    for t in [0.02, 0.06, 0.12, 0.2, 0.31, 0.45, 0.63, 0.86] {
        for side in [-1.06, 1.06] {
            let radius = (1.2 + 4.5 * t) * scale;
            canvas.disc(at(t, side), radius * 2.4, 1.8, Colour(150, 96, 58));
            canvas.disc(at(t, side), radius, 0.3, Colour(255, 214, 140));
        }
    }
}

/// `2026-11-21 10:53:20 UTC`.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The Gregorian date of a day counted from 1970-01-01, by whole 400-year cycles that begin on the first of March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn minutes(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_200, "2024-03-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn only_live_areas_change_and_each_change_is_announced() {
        let mut desktop = Desktop::new(640, 480, "alice");
        let still = desktop.still.clone();
        for step in 0..160_u32 {
            let before = desktop.current.clone();
            let changed = desktop.draw(&Live {
                now: Duration::from_millis(1_700_000_000_000) + Duration::from_millis(100) * step,
                elapsed: Duration::from_millis(100) * step,
                keys: "x".repeat(usize::try_from(step % 24).unwrap()),
                pointer: Some((u16::try_from(step).unwrap(), 7)),
                pressed: step % 2 == 0,
            });
            for y in 0..480 {
                let (old, new) = (before.row(y, 0, 640), desktop.current.row(y, 0, 640));
                if old == new {
                    continue;
                }
                for x in 0..640 {
                    if before.pixel(x, y) != desktop.current.pixel(x, y) {
                        assert!(changed.iter().any(|area| area.contains(x, y)), "{step}");
                    }
                }
            }
            if step % 40 == 0 {
                let rgba = desktop.current.to_rgba();
                desktop.check_still_part((640, 480), &rgba).unwrap();
            }
        }
        assert_eq!(desktop.still, still);
    }

    #[test]
    fn one_wrong_pixel_and_a_wrong_size_are_noticed() {
        let desktop = Desktop::new(320, 240, "alice");
        let mut rgba = desktop.still.to_rgba();
        desktop.check_still_part((320, 240), &rgba).unwrap();
        let other = Desktop::new(320, 240, "bob");
        assert!(
            desktop
                .check_still_part((320, 240), &other.still.to_rgba())
                .is_err()
        );
        assert_eq!(
            desktop.check_still_part((240, 320), &rgba),
            Err(Difference::Size {
                expected: (320, 240),
                found: (240, 320)
            })
        );
        *rgba.last_mut().unwrap() ^= 1;
        let at = (319, 239);
        assert_eq!(
            desktop.check_still_part((320, 240), &rgba),
            Err(Difference::Pixels {
                count: 1,
                first: at
            })
        );
        rgba.truncate(1000);
        assert!(desktop.check_still_part((320, 240), &rgba).is_err());
    }

    #[test]
    fn an_echo_is_told_from_another_and_from_none() {
        let mut desktop = Desktop::new(320, 240, "alice");
        let mut session = Desktop::new(320, 240, "alice");
        session.draw(&Live {
            keys: String::from("Hello"),
            now: Duration::from_secs(1_700_000_000),
            ..Live::default()
        });
        let rgba = session.current.to_rgba();
        assert!(desktop.echoes("Hello", &rgba));
        assert!(!desktop.echoes("Hella", &rgba));
        assert!(!desktop.echoes("", &rgba));
        assert!(!desktop.echoes("Hello", &[]));
    }

    #[test]
    fn every_size_a_client_may_ask_for_can_be_drawn() {
        for (width, height) in [(200, 200), (201, 203), (1, 1), (2560, 200), (200, 1600)] {
            let mut desktop = Desktop::new(
                width,
                height,
                "a very long user name that has no end at all",
            );
            desktop.draw(&Live::default());
            assert_eq!(desktop.picture().area(), Area::new(0, 0, width, height));
        }
    }
}
