//! Scan codes to characters, for the echo of the demo target: a US layout, set 1, without dead keys.

/// What one key does to the echoed line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Character(char),
    Shift,
    CapsLock,
    Backspace,
    Enter,
    Other,
}

/// The key with a scan code; `extended` keys (arrows, right Control and the like) echo nothing.
pub(super) fn key(code: u8, extended: bool, shift: bool, caps: bool) -> Key {
    match (code, extended) {
        (0x1c, _) => return Key::Enter,
        (0x35, true) => return Key::Character('/'),
        (_, true) => return Key::Other,
        (0x2a | 0x36, false) => return Key::Shift,
        (0x3a, false) => return Key::CapsLock,
        (0x0e, false) => return Key::Backspace,
        (0x39, false) => return Key::Character(' '),
        (0x37, false) => return Key::Character('*'),
        (_, false) => {}
    }
    for (first, plain, shifted) in ROWS {
        let Some(at) = code.checked_sub(first) else {
            continue;
        };
        let Some(character) = plain.chars().nth(usize::from(at)) else {
            continue;
        };
        let upper = shift != (caps && character.is_ascii_lowercase());
        let row = if upper { shifted } else { plain };
        return row
            .chars()
            .nth(usize::from(at))
            .map_or(Key::Other, Key::Character);
    }
    Key::Other
}

/// The scan code of a character and whether it needs Shift.
pub(super) fn scan_code(character: char) -> Option<(u8, bool)> {
    if character == ' ' {
        return Some((0x39, false));
    }
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let find = |row: &str| row.chars().position(|other| other == character);
        let (at, shift) = find(plain)
            .map(|at| (at, false))
            .or_else(|| find(shifted).map(|at| (at, true)))?;
        Some((first.checked_add(u8::try_from(at).ok()?)?, shift))
    })
}

/// First scan code, characters, and characters with Shift, of each run of keys.
const ROWS: [(u8, &str, &str); 5] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x47, "789-456+1230.", "789-456+1230."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_can_be_typed_and_is_echoed_as_itself() {
        for character in ' '..='~' {
            let (code, shift) = scan_code(character).expect("on the keyboard");
            assert_eq!(key(code, false, shift, false), Key::Character(character));
        }
    }

    #[test]
    fn caps_lock_changes_letters_only() {
        assert_eq!(key(0x1e, false, false, true), Key::Character('A'));
        assert_eq!(key(0x1e, false, true, true), Key::Character('a'));
        assert_eq!(key(0x02, false, false, true), Key::Character('1'));
    }

    #[test]
    fn every_code_is_some_key() {
        for code in 0..=u8::MAX {
            for flags in 0..8_u8 {
                let _ = key(code, flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
            }
        }
    }
}
