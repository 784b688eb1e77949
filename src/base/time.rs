//! A moment, as tokens name it: whole seconds since the Unix epoch.
//!
//! The core takes the time as an argument; only `jetway::io::clock` reads it from the system.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01T00:00:00Z, the unit of `exp`, `nbf` and `iat` ([RFC 7519] 2, NumericDate).
///
/// [RFC 7519]: https://www.rfc-editor.org/rfc/rfc7519#section-2
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// This moment and `seconds` more, stopping at the end of time instead of wrapping.
    #[must_use]
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// This moment less `seconds`, stopping at the epoch instead of wrapping.
    #[must_use]
    pub const fn minus(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }

    /// Seconds from `earlier` until this moment; zero where `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl UnixTime {
    /// How far this moment and another are apart, for people.
    #[must_use]
    pub const fn apart(self, other: Self) -> Span {
        Span(self.0.abs_diff(other.0))
    }
}

/// As [RFC 3339] writes it, in UTC: `2026-11-30T09:00:00Z`. A year of more than four digits has the sign that ISO 8601 wants.
///
/// [RFC 3339]: https://www.rfc-editor.org/rfc/rfc3339
impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0 / DAY_S);
        let second = self.0 % DAY_S;
        let sign = if year > 9999 { "+" } else { "" };
        write!(
            f,
            "{sign}{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            second / HOUR_S,
            second % HOUR_S / MINUTE_S,
            second % MINUTE_S
        )
    }
}

/// Seconds between two moments, as people say them: the two largest units, so `3 min 20 s` or `2 d 4 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        let (larger, smaller) = match seconds {
            DAY_S.. => ((DAY_S, "d"), (HOUR_S, "h")),
            HOUR_S.. => ((HOUR_S, "h"), (MINUTE_S, "min")),
            MINUTE_S.. => ((MINUTE_S, "min"), (1, "s")),
            _ => return write!(f, "{seconds} s"),
        };
        write!(f, "{} {}", seconds / larger.0, larger.1)?;
        match seconds % larger.0 / smaller.0 {
            0 => Ok(()),
            rest => write!(f, " {rest} {}", smaller.1),
        }
    }
}

/// Year, month and day in the Gregorian calendar, so many days after 1970-01-01. Years are counted from March here, so that the
/// day that some have and others have not is the last one.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_BEFORE_1970;
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = year + era * 400;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

const MINUTE_S: u64 = 60;
const HOUR_S: u64 = 60 * MINUTE_S;
const DAY_S: u64 = 24 * HOUR_S;

/// From 0000-03-01.
const DAYS_BEFORE_1970: u64 = 719_468;
const DAYS_OF_400_YEARS: u64 = 146_097;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_rfc_3339_has_it() {
        // What `date -u -d @N` of GNU coreutils says.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (253_402_300_800, "+10000-01-01T00:00:00Z"),
        ] {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
        assert!(UnixTime(u64::MAX).to_string().starts_with("+5845"));
    }

    #[test]
    fn a_span_is_said_in_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (200, "3 min 20 s"),
            (3600, "1 h"),
            (7_505, "2 h 5 min"),
            (187_200, "2 d 4 h"),
        ] {
            assert_eq!(Span(seconds).to_string(), text);
            assert_eq!(UnixTime(9).apart(UnixTime(9 + seconds)), Span(seconds));
        }
    }
}
