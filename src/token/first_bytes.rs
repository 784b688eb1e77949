//! Whether first bytes are those of a protocol: patterns, and what is known of bytes that may go on.

/// What the first bytes of one side show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// They begin the protocol, or no bytes could contradict it; more bytes never change that.
    Conforms,
    /// More bytes decide.
    NeedMore,
    /// They do not begin the protocol; more bytes never change that.
    Violates,
}

impl FirstBytes {
    /// What bytes show that may begin one of several protocols, or one in several forms.
    #[must_use]
    pub fn any(shown: impl IntoIterator<Item = Self>) -> Self {
        let mut answer = Self::Violates;
        for shown in shown {
            match shown {
                Self::Conforms => return Self::Conforms,
                Self::NeedMore => answer = Self::NeedMore,
                Self::Violates => {}
            }
        }
        answer
    }
}

/// One byte of a pattern.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// This one.
    Is(u8),
    /// One of these, both ends among them.
    Within(u8, u8),
    /// Whatever it is.
    Any,
}

impl Expected {
    fn fits(self, byte: u8) -> bool {
        match self {
            Self::Is(value) => byte == value,
            Self::Within(least, most) => (least..=most).contains(&byte),
            Self::Any => true,
        }
    }
}

/// Whether `bytes` begin as `pattern` says.
#[must_use]
pub fn fit(bytes: &[u8], pattern: &[Expected]) -> FirstBytes {
    let fits = bytes
        .iter()
        .zip(pattern)
        .all(|(byte, expected)| expected.fits(*byte));
    match fits {
        true if bytes.len() >= pattern.len() => FirstBytes::Conforms,
        true => FirstBytes::NeedMore,
        false => FirstBytes::Violates,
    }
}

/// Whether `bytes` begin with `text`.
#[must_use]
pub fn fit_text(bytes: &[u8], text: &[u8]) -> FirstBytes {
    if bytes.starts_with(text) {
        FirstBytes::Conforms
    } else if text.starts_with(bytes) {
        FirstBytes::NeedMore
    } else {
        FirstBytes::Violates
    }
}
