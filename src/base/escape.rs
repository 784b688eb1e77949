//! Text of others, on its way to a terminal or a log: what moves the cursor, turns the direction of writing or cannot be
//! seen is written as an escape.

use std::fmt::{self, Write};

/// Writes through to another writer, and escapes on the way: `\n`, `\u{9b}`, `\u{202e}`.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, hidden)) = rest.char_indices().find(|(_, c)| is_hidden(*c)) {
            let (seen, behind) = rest.split_at(at);
            self.0.write_str(seen)?;
            write!(self.0, "{}", hidden.escape_debug())?;
            rest = behind.get(hidden.len_utf8()..).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

/// The text with escapes in the place of what is hidden; lines stay lines.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            escaped.push('\n');
        }
        // Writing to a string does not fail.
        let _written = Escaping(&mut escaped).write_str(line);
    }
    escaped
}

/// A JSON text with `\u` escapes for what is hidden. Such characters stand in strings alone, but for white space between lines.
#[must_use]
pub fn json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_hidden(c) {
            escaped.push(c);
            continue;
        }
        let mut units = [0_u16; 2];
        for unit in c.encode_utf16(&mut units) {
            let _written = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// Control characters, format characters (general category Cf: the bidirectional ones and those of no width are among them),
/// and the separators of lines and paragraphs.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_escaped_and_what_people_write_is_not() {
        let mut out = String::new();
        Escaping(&mut out)
            .write_str("a\u{9b}2J\u{202e}b\n\x1b[31m\u{200b}\u{feff}\u{2028}")
            .unwrap();
        assert_eq!(
            out,
            r"a\u{9b}2J\u{202e}b\n\u{1b}[31m\u{200b}\u{feff}\u{2028}"
        );
        for honest in [
            r#"C:\Users\"J\u{f6}rg""#,
            "Jörg",
            "Jo\u{308}rg",
            "日本語",
            "שלום",
            "🖥️",
        ] {
            let mut out = String::new();
            Escaping(&mut out).write_str(honest).unwrap();
            assert_eq!(out, honest);
        }
        assert_eq!(lines("one\ntwo\u{9b}"), "one\ntwo\\u{9b}");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "text": "a\u{9b}\u{202e}\u{e0001}\u{7f}ö" });
        let escaped = json(&format!("{value}\n"));
        assert!(escaped.is_ascii() || !escaped.contains(|c| c != '\n' && is_hidden(c)));
        assert!(
            escaped.contains(r"\u009b\u202e\udb40\udc01\u007f"),
            "{escaped}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
            value
        );
    }
}
