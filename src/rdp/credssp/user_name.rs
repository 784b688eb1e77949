//! When two user names are the same: without regard to case, as in Windows, and by NTLM and Kerberos alike.
//!
//! Windows turns names into upper case one character at a time: "Jörg" and "JÖRG" are the same user, and "ß", which has no upper case
//! of one character, stays what it is, so that "Weiß" is not "WEISS". Characters that merely share an upper case with others
//! ("ı" and "i", "ſ" and "s") are told apart: a Kerberos ticket is judged by the name alone. The Greek final sigma is the one
//! exception, as no upper case can tell where it stands.
//!
//! Composed and decomposed forms ("ö" as one character or as two) are different names, as they are there.

use std::borrow::Cow;

/// Whether two names are of one user.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    one.chars().map(upper).eq(other.chars().map(upper))
}

/// The spellings of `name` that a look-up has to know which ignores the case of ASCII alone, `name` first. With very many letters
/// beyond ASCII not all of them.
pub(super) fn spellings(name: &str) -> Vec<Cow<'_, str>> {
    let mut spellings = vec![Cow::Borrowed(name)];
    for (at, character) in name.char_indices() {
        let others = [upper(character), lower(character)];
        let Some(other) = others.into_iter().find(|other| *other != character) else {
            continue;
        };
        if character.is_ascii() || spellings.len() >= SPELLINGS {
            continue;
        }
        // By its place among the characters: those before it may have another length by now.
        let place = name.get(..at).map_or(0, |before| before.chars().count());
        let respelt: Vec<_> = spellings
            .iter()
            .map(|known| {
                let characters = known.chars().enumerate();
                let characters =
                    characters.map(|(at, known)| if at == place { other } else { known });
                Cow::Owned(characters.collect())
            })
            .collect();
        spellings.extend(respelt);
    }
    spellings
}

/// Most spellings of one name: five letters beyond ASCII.
const SPELLINGS: usize = 32;

/// The upper case of a character, where it is one character that has this one as its lower case.
fn upper(character: char) -> char {
    if character == FINAL_SIGMA {
        return 'Σ';
    }
    match only(character.to_uppercase()) {
        Some(upper) if lower(upper) == character => upper,
        Some(_) | None => character,
    }
}

fn lower(character: char) -> char {
    only(character.to_lowercase()).unwrap_or(character)
}

fn only(mut characters: impl Iterator<Item = char>) -> Option<char> {
    let first = characters.next()?;
    characters.next().is_none().then_some(first)
}

const FINAL_SIGMA: char = 'ς';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_without_case_beyond_ascii_and_one_character_at_a_time() {
        for (one, other) in [
            ("alice", "ALICE"),
            ("Jörg", "JÖRG"),
            ("jörg", "jÖrg"),
            ("Łukasz", "łUKASZ"),
            ("Ольга", "ОЛЬГА"),
            ("Νίκος", "ΝΊΚΟΣ"),
            ("Weiß", "WEIß"),
            ("ÿ", "Ÿ"),
            ("日本", "日本"),
        ] {
            assert!(is_same(one, other), "{one} {other}");
            assert!(is_same(other, one), "{other} {one}");
        }
        for (one, other) in [
            ("Weiß", "WEISS"),
            ("Jörg", "Jorg"),
            ("Jörg", "Jo\u{308}rg"),
            ("admın", "admin"),
            ("ADMIN", "admın"),
            ("ſmith", "Smith"),
            ("alice", "alic"),
            ("\u{212a}im", "kim"),
        ] {
            assert!(!is_same(one, other), "{one} {other}");
            assert!(!is_same(other, one), "{other} {one}");
        }
    }

    #[test]
    fn every_spelling_of_a_usual_name_is_foreseen() {
        let found = spellings("Jörgë");
        assert_eq!(found, ["Jörgë", "JÖrgë", "JörgË", "JÖrgË"]);
        assert_eq!(spellings("alice"), ["alice"]);
        assert_eq!(spellings("Weiß"), ["Weiß"]);
        let long = "ö".repeat(300);
        let found = spellings(&long);
        assert_eq!(found.len(), SPELLINGS);
        assert!(found.iter().all(|spelling| is_same(spelling, &long)));
    }
}
