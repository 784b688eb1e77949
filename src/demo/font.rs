//! A stroke font: every glyph is a few pen strokes, so that text is sharp at any size and no font file is needed.
//!
//! Coordinates are base-36 digits on a grid whose capital letters are 20 units high: `y` is 0 at their top, `k`
//! (20) on the baseline, `6` at the top of small letters and `q` (26) at the end of a descender. A stroke is a run of
//! `xy` pairs; a pair after `~` is the control point of a quadratic curve, with the points between two control
//! points implied, as in TrueType. Strokes are separated by spaces; a stroke of one point is a dot.

/// Height of a capital letter, units.
pub const CAP_HEIGHT: f32 = 20.0;

/// Space between two glyphs, units.
const TRACKING: f32 = 6.0;

/// All digits are equally wide, units.
const DIGIT_WIDTH: f32 = 12.0;

/// Straight pieces that stand for one curve; four look round up to 100 pixels.
const PIECES_PER_CURVE: u8 = 5;

/// A straight piece of a pen stroke, in units of the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    pub from: (f32, f32),
    pub to: (f32, f32),
}

/// How far the pen moves on after `glyph`, units.
#[must_use]
pub fn advance(glyph: char) -> f32 {
    match glyph {
        ' ' => 8.0,
        // Clocks and sizes do not jump when a digit changes.
        '0'..='9' => DIGIT_WIDTH + TRACKING,
        _ => {
            let mut segments = Vec::new();
            for stroke in strokes(glyph).split(' ') {
                flatten(stroke, 0.0, &mut segments);
            }
            let right = |width: f32, segment: &Segment| width.max(segment.from.0).max(segment.to.0);
            segments.iter().fold(0.0, right) + TRACKING
        }
    }
}

/// Width of a line of text, units, without the space after its last glyph.
#[must_use]
pub fn width(text: &str) -> f32 {
    let all: f32 = text.chars().map(advance).sum();
    (all - TRACKING).max(0.0)
}

/// The pen strokes of a line of text, from the left end of its capital-letter line.
#[must_use]
pub fn segments(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut pen = 0.0;
    for glyph in text.chars() {
        for stroke in strokes(glyph)
            .split(' ')
            .filter(|stroke| !stroke.is_empty())
        {
            flatten(stroke, pen, &mut segments);
        }
        pen += advance(glyph);
    }
    segments
}

#[derive(Clone, Copy)]
struct Point {
    at: (f32, f32),
    control: bool,
}

fn points(stroke: &str) -> impl Iterator<Item = Point> + '_ {
    let mut digits = stroke.chars();
    std::iter::from_fn(move || {
        let mut x = digits.next()?;
        let control = x == '~';
        if control {
            x = digits.next()?;
        }
        let y = digits.next()?;
        Some(Point {
            at: (unit(x), unit(y)),
            control,
        })
    })
}

fn unit(digit: char) -> f32 {
    let value = digit.to_digit(36).unwrap_or_default();
    f32::from(u8::try_from(value).unwrap_or_default())
}

fn flatten(stroke: &str, pen: f32, segments: &mut Vec<Segment>) {
    let mut points = points(stroke).map(|point| Point {
        at: (point.at.0 + pen, point.at.1),
        ..point
    });
    let Some(first) = points.next() else { return };
    let (mut last, mut pending, mut drawn) = (first.at, None, false);
    for point in points {
        drawn = true;
        match (pending, point.control) {
            (None, false) => {
                segments.push(Segment {
                    from: last,
                    to: point.at,
                });
                last = point.at;
            }
            (None, true) => pending = Some(point.at),
            (Some(control), false) => {
                curve(last, control, point.at, segments);
                (last, pending) = (point.at, None);
            }
            (Some(control), true) => {
                let implied = between(control, point.at, 0.5);
                curve(last, control, implied, segments);
                (last, pending) = (implied, Some(point.at));
            }
        }
    }
    if !drawn {
        segments.push(Segment {
            from: last,
            to: last,
        });
    }
}

fn curve(from: (f32, f32), control: (f32, f32), to: (f32, f32), segments: &mut Vec<Segment>) {
    let mut last = from;
    for piece in 1..=PIECES_PER_CURVE {
        let t = f32::from(piece) / f32::from(PIECES_PER_CURVE);
        let next = between(between(from, control, t), between(control, to, t), t);
        segments.push(Segment {
            from: last,
            to: next,
        });
        last = next;
    }
}

fn between(a: (f32, f32), b: (f32, f32), t: f32) -> (f32, f32) {
    (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t)
}

/// The strokes of a glyph; an empty frame for what the font does not have.
fn strokes(glyph: char) -> &'static str {
    match glyph {
        ' ' => "",
        'A' => "0k80gk 3ddd",
        'B' => "0k0080~d0~da8a0a 8a~fa~fk8k0k",
        'C' => "f4~d080~000a~0k8k~dkfg",
        'D' => "000k6k~fkfa~f06000",
        'E' => "c0000kck 0aaa",
        'F' => "c0000k 0aaa",
        'G' => "f4~d080~000a~0k8k~fkfdfb9b",
        'H' => "000k e0ek 0aea",
        'I' => "000k",
        'J' => "909e~9k4k~0k0f",
        'K' => "000k d00d 58ek",
        'L' => "000kbk",
        'M' => "0k008dg0gk",
        'N' => "0k00eke0",
        'O' => "80~g0ga~gk8k~0k0a~0080",
        'P' => "0k0080~e0~eb8b0b",
        'Q' => "80~g0ga~gk8k~0k0a~0080 afgk",
        'R' => "0k0080~e0~ea8a0a 8aek",
        'S' => "d3~b070~0005~097a~ebef~ek7k~2k0h",
        'T' => "00e0 707k",
        'U' => "000d~0k7k~ekede0",
        'V' => "007ke0",
        'W' => "004k93eki0",
        'X' => "00dk d00k",
        'Y' => "007ae0 7a7k",
        'Z' => "00d00kdk",
        'a' => "c6ck c9~a666~060d~0k6k~akch",
        'b' => "000k 09~2666~c6cd~ck6k~2k0h",
        'c' => "b9~9666~060d~0k6k~9kbh",
        'd' => "c0ck c9~a666~060d~0k6k~akch",
        'e' => "0dcd~c666~060d~0k6k~9kbh",
        'f' => "80~30353k 0676",
        'g' => "c6cl~cq6q~2q1o c9~a666~060d~0k6k~akch",
        'h' => "000k 0b~0666~b6bcbk",
        'i' => "060k 01",
        'j' => "464l~4q0q 41",
        'k' => "000k a60f 4bbk",
        'l' => "000k",
        'm' => "060k 0b~0656~969c9k 9c~96e6~i6icik",
        'n' => "060k 0b~0666~b6bcbk",
        'o' => "66~c6cd~ck6k~0k0d~0666",
        'p' => "060q 09~2666~c6cd~ck6k~2k0h",
        'q' => "c6cq c9~a666~060d~0k6k~akch",
        'r' => "060k 0b~0676",
        's' => "a8~8656~06~0c5d~ae~ak5k~1k0i",
        't' => "313g~3k7k 0676",
        'u' => "060f~0k5k~bkbe b6bk",
        'v' => "065ka6",
        'w' => "064k88ckg6",
        'x' => "06ak a60k",
        'y' => "065k a64n~3q0q",
        'z' => "06a60kak",
        '0' => "60~c0ca~ck6k~0k0a~0060",
        '1' => "34808k",
        '2' => "05~0060~c0c5~ca0kck",
        '3' => "03~2060~b0b5~ba5a 5a~cacf~ck6k~1k0h",
        '4' => "900ece 909k",
        '5' => "b01009~2767~c7cd~ck6k~2k0i",
        '6' => "b2~a070~000d0e 68~c8ce~ck6k~0k0e~0868",
        '7' => "00c04k",
        '8' => "60~b0b5~ba6a~1a15~1060 6a~cacf~ck6k~0k0f~0a6a",
        '9' => "6c~0c06~0060~c0c6~cc6c c6c7~ck5k~2k1i",
        '.' => "0k",
        ',' => "1k0n",
        ':' => "08 0j",
        ';' => "18 1j0n",
        '!' => "000d 0k",
        '?' => "04~0050~a0a5~a85c5e 5k",
        '-' => "0c8c",
        '_' => "0mcm",
        '+' => "0ccc 666i",
        '=' => "09c9 0fcf",
        '/' => "a00m",
        '\\' => "00am",
        '(' => "40~0b4m",
        ')' => "00~4b0m",
        '[' => "40000m4m",
        ']' => "00404m0m",
        '{' => "50~20~2b0b~2b~2m5m",
        '}' => "00~30~3b5b~3b~3m0m",
        '<' => "940c9k",
        '>' => "049c0k",
        '|' => "000m",
        '^' => "0850a8",
        '~' => "0d~395c~8fab",
        '`' => "0044",
        '\'' => "0005",
        '"' => "0005 5055",
        '*' => "545e 179b 971b",
        '#' => "402k a08k 06c6 0ece",
        '%' => "e02k 30~6063~6636~0603~0030 be~eeeh~ekbk~8k8h~8ebe",
        '&' => "ek36~2060~b094~8749~0b0f~0k5k~akcc",
        '$' => "d3~b070~0005~097a~ebef~ek7k~2k0h 707k",
        '@' => "c8ce~chee~ghgb~g282~020b~0k8k~bkdj cb~c787~474b~4f8f~cfcb",
        '·' => "1c",
        _ => "00c0ck0k00",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_ascii_character_has_a_glyph() {
        for glyph in (' '..='~').filter(|glyph| *glyph != ' ') {
            assert_ne!(strokes(glyph), strokes('\u{fffd}'), "{glyph:?}");
            assert!(!segments(&glyph.to_string()).is_empty(), "{glyph:?}");
        }
    }

    #[test]
    fn strokes_stay_on_the_grid_and_are_well_formed() {
        for glyph in ' '..='~' {
            for stroke in strokes(glyph)
                .split(' ')
                .filter(|stroke| !stroke.is_empty())
            {
                let digits = stroke.chars().filter(|digit| *digit != '~');
                assert!(digits.clone().all(|digit| digit.is_digit(36)), "{glyph:?}");
                assert_eq!(digits.count() % 2, 0, "{glyph:?} {stroke}");
                let points: Vec<_> = points(stroke).collect();
                assert!(points.iter().all(|point| point.at.1 <= 26.0), "{glyph:?}");
                let ends = [points.first(), points.last()];
                assert!(
                    ends.into_iter().flatten().all(|point| !point.control),
                    "{glyph:?} ends on a control point"
                );
            }
        }
    }

    #[test]
    fn a_line_is_as_wide_as_its_glyphs() {
        assert_eq!(width(""), 0.0);
        assert_eq!(width("H"), 14.0);
        assert_eq!(width("HH"), 14.0 + TRACKING + 14.0);
    }
}
