//! When a token is valid ([JET-PROTO] 2.2.3.1).
//!
//! | token has | valid from | valid until |
//! |---|---|---|
//! | `nbf` (or, without it, `iat`) and `exp` | `nbf` or `iat` | `exp`, at most the maximum lifetime after the start |
//! | `nbf` or `iat` only | `nbf` or `iat` | the default lifetime after it |
//! | `exp` only | the maximum lifetime before `exp` | `exp` |
//! | none of them | never | never |
//!
//! The leeway for clocks applies at both ends. All arithmetic saturates: a date is a number that a stranger chose.

use super::error::TokenError;
use super::rules::TokenRules;
use jetway_base::time::UnixTime;

/// The period in which a token is valid, without leeway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: UnixTime,
    /// First second after.
    pub not_after: UnixTime,
}

impl Validity {
    /// The period that these claims state, if `now` is in it.
    ///
    /// # Errors
    /// [`TokenError::NoValidity`], [`TokenError::LifetimeTooLong`], [`TokenError::NotYetValid`],
    /// [`TokenError::Expired`], and [`TokenError::Claim`] for an `exp` that is not after the start.
    pub fn establish(
        nbf: Option<UnixTime>,
        iat: Option<UnixTime>,
        exp: Option<UnixTime>,
        rules: &TokenRules,
        now: UnixTime,
    ) -> Result<Self, TokenError> {
        let max_s = rules.max_lifetime_s;
        let validity = match (nbf.or(iat), exp) {
            (None, None) => return Err(TokenError::NoValidity),
            (Some(start), None) => Self {
                not_before: start,
                not_after: start.plus(rules.default_lifetime_s.min(max_s)),
            },
            (Some(start), Some(end)) => {
                if end <= start {
                    return Err(TokenError::Claim {
                        claim: "exp",
                        problem: "not after nbf or iat",
                    });
                }
                Self {
                    not_before: start,
                    not_after: end.min(start.plus(max_s)),
                }
            }
            (None, Some(end)) => {
                // Without a start its age is unknown; what is left of it is not.
                if end.since(now) > max_s.saturating_add(rules.leeway_s) {
                    return Err(TokenError::LifetimeTooLong { max_s });
                }
                Self {
                    not_before: end.minus(max_s),
                    not_after: end,
                }
            }
        };
        validity.check(rules.leeway_s, now)?;
        Ok(validity)
    }

    /// Whether `now` is in the period.
    ///
    /// # Errors
    /// [`TokenError::NotYetValid`] or [`TokenError::Expired`].
    pub fn check(&self, leeway_s: u64, now: UnixTime) -> Result<(), TokenError> {
        if now.plus(leeway_s) < self.not_before {
            return Err(TokenError::NotYetValid {
                not_before: self.not_before,
                now,
            });
        }
        if now.minus(leeway_s) >= self.not_after {
            return Err(TokenError::Expired {
                not_after: self.not_after,
                now,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn establish(
        nbf: Option<u64>,
        iat: Option<u64>,
        exp: Option<u64>,
    ) -> Result<(u64, u64), &'static str> {
        Validity::establish(
            nbf.map(UnixTime),
            iat.map(UnixTime),
            exp.map(UnixTime),
            &TokenRules::default(),
            UnixTime(NOW),
        )
        .map(|validity| (validity.not_before.0, validity.not_after.0))
        .map_err(|error| error.rule())
    }

    // J-JWT-1
    #[test]
    fn nbf_goes_before_iat() {
        assert_eq!(
            establish(Some(NOW), Some(NOW - 9999), None),
            Ok((NOW, NOW + 120))
        );
        assert_eq!(
            establish(Some(NOW + 9999), Some(NOW), None),
            Err("not-yet-valid")
        );
    }

    // J-JWT-1
    #[test]
    fn a_start_alone_is_good_for_two_minutes() {
        assert_eq!(
            establish(None, Some(NOW - 60), None),
            Ok((NOW - 60, NOW + 60))
        );
        assert_eq!(
            establish(None, Some(NOW - 239), None),
            Ok((NOW - 239, NOW - 119))
        );
        assert_eq!(establish(None, Some(NOW - 240), None), Err("expired"));
    }

    // J-JWT-1
    #[test]
    fn an_end_alone_is_good_if_it_is_near() {
        let max = TokenRules::default().max_lifetime_s;
        assert_eq!(establish(None, None, Some(NOW + max)), Ok((NOW, NOW + max)));
        assert_eq!(
            establish(None, None, Some(NOW + max + 121)),
            Err("lifetime")
        );
        assert_eq!(establish(None, None, Some(u64::MAX)), Err("lifetime"));
        assert_eq!(establish(None, None, Some(NOW - 120)), Err("expired"));
    }

    // J-JWT-1
    #[test]
    fn neither_start_nor_end_is_refused() {
        assert_eq!(establish(None, None, None), Err("no-validity"));
    }

    // J-JWT-1
    #[test]
    fn the_maximum_lifetime_caps_all() {
        let max = TokenRules::default().max_lifetime_s;
        assert_eq!(
            establish(Some(NOW), None, Some(u64::MAX)),
            Ok((NOW, NOW + max))
        );
        assert_eq!(
            establish(Some(NOW - max - 120), None, Some(NOW + 9999)),
            Err("expired")
        );
        let rules = TokenRules {
            max_lifetime_s: 30,
            ..TokenRules::default()
        };
        let now = UnixTime(NOW);
        let capped = Validity::establish(None, Some(now), None, &rules, now).unwrap();
        assert_eq!(capped.not_after, now.plus(30));
    }

    // J-JWT-1
    #[test]
    fn the_leeway_applies_at_both_ends_to_the_second() {
        assert!(establish(Some(NOW + 120), None, Some(NOW + 600)).is_ok());
        assert_eq!(
            establish(Some(NOW + 121), None, Some(NOW + 600)),
            Err("not-yet-valid")
        );
        assert!(establish(Some(NOW - 600), None, Some(NOW - 119)).is_ok());
        assert_eq!(
            establish(Some(NOW - 600), None, Some(NOW - 120)),
            Err("expired")
        );
    }

    #[test]
    fn an_end_before_the_start_is_refused() {
        assert_eq!(establish(Some(NOW), None, Some(NOW)), Err("claim"));
        assert_eq!(establish(Some(NOW), None, Some(NOW - 1)), Err("claim"));
    }

    #[test]
    fn no_date_overflows() {
        for date in [0, 1, NOW, u64::MAX - 1, u64::MAX] {
            for other in [0, NOW, u64::MAX] {
                for now in [0, NOW, u64::MAX] {
                    let rules = TokenRules {
                        leeway_s: u64::MAX,
                        max_lifetime_s: u64::MAX,
                        ..TokenRules::default()
                    };
                    let (date, other) = (Some(UnixTime(date)), Some(UnixTime(other)));
                    let _ = Validity::establish(date, None, other, &rules, UnixTime(now));
                    let _ = Validity::establish(None, date, None, &rules, UnixTime(now));
                    let _ = Validity::establish(None, None, date, &rules, UnixTime(now));
                }
            }
        }
    }
}
