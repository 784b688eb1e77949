//! JSON objects in which every name occurs once.
//!
//! [RFC 7519] 4 lets a parser take the last of two equal names. Two parsers that choose differently read two
//! different tokens from one text, so a second occurrence, at any depth, is reported here and refused by the callers.
//!
//! [RFC 7519]: https://www.rfc-editor.org/rfc/rfc7519#section-4

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use uuid::Uuid;

/// Why a text is not such an object. Nothing of the text is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ObjectError {
    #[error("not a JSON object")]
    NotAnObject,
    #[error("a name occurs twice")]
    DuplicateName,
}

/// Reads `text` as one JSON object with unique names.
pub(crate) fn object(text: &[u8]) -> Result<Map<String, Value>, ObjectError> {
    let parsed: Checked = serde_json::from_slice(text).map_err(|_| ObjectError::NotAnObject)?;
    match parsed.value {
        Value::Object(_) if parsed.duplicate => Err(ObjectError::DuplicateName),
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(ObjectError::NotAnObject)
        }
    }
}

/// Whether the first character that is not white space ([RFC 8259] 2) opens an object.
///
/// [RFC 8259]: https://www.rfc-editor.org/rfc/rfc8259#section-2
pub(crate) fn begins_an_object(text: &[u8]) -> bool {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    text.iter().find(|byte| !is_space(byte)) == Some(&b'{')
}

/// A value, and whether any object in it has a name twice.
pub(crate) struct Checked {
    pub(crate) value: Value,
    pub(crate) duplicate: bool,
}

impl Checked {
    fn plain(value: impl Into<Value>) -> Self {
        Self {
            value: value.into(),
            duplicate: false,
        }
    }
}

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CheckedVisitor)
    }
}

struct CheckedVisitor;

impl<'de> Visitor<'de> for CheckedVisitor {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked::plain(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Checked, E> {
        Ok(Checked::plain(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Checked, E> {
        Ok(Checked::plain(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Checked, E> {
        Ok(Checked::plain(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Checked, E> {
        Ok(Checked::plain(
            Number::from_f64(value).map_or(Value::Null, Value::Number),
        ))
    }

    fn visit_str<E>(self, value: &str) -> Result<Checked, E> {
        Ok(Checked::plain(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Checked, E> {
        Ok(Checked::plain(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Checked, A::Error> {
        let mut values = Vec::new();
        let mut duplicate = false;
        while let Some(item) = items.next_element::<Checked>()? {
            duplicate |= item.duplicate;
            values.push(item.value);
        }
        Ok(Checked {
            value: Value::Array(values),
            duplicate,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Checked, A::Error> {
        let mut map = Map::new();
        let mut duplicate = false;
        while let Some((name, item)) = entries.next_entry::<String, Checked>()? {
            duplicate |= item.duplicate;
            duplicate |= map.insert(name, item.value).is_some();
        }
        Ok(Checked {
            value: Value::Object(map),
            duplicate,
        })
    }
}

/// The UUID that a text is, in whichever of its forms: with hyphens or without, as URN ([RFC 9562] 4), or in braces, as .NET writes
/// it. None has a case.
///
/// [RFC 9562]: https://www.rfc-editor.org/rfc/rfc9562#section-4
pub(super) fn as_uuid(text: &str) -> Option<Uuid> {
    // uuid takes the prefix of a URN in lower case alone.
    Uuid::try_parse(&text.to_ascii_lowercase()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_twice_is_refused_at_any_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"o":{"a":1,"a":2}}"#,
            r#"{"l":[0,{"a":1,"a":2}]}"#,
        ] {
            assert_eq!(
                object(text.as_bytes()),
                Err(ObjectError::DuplicateName),
                "{text}"
            );
        }
    }

    #[test]
    fn only_an_object_is_an_object() {
        for text in [
            "",
            "[]",
            "1",
            "\"{}\"",
            "{\"a\":}",
            "{} {}",
            "{\"a\":1e999}",
        ] {
            assert_eq!(
                object(text.as_bytes()),
                Err(ObjectError::NotAnObject),
                "{text}"
            );
        }
        // Deeper than any token needs: an error, not the end of the stack.
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert_eq!(object(deep.as_bytes()), Err(ObjectError::NotAnObject));
    }

    #[test]
    fn values_arrive_as_they_are() {
        let map = object(
            br#"{"n":null,"b":true,"i":-1,"u":18446744073709551615,"f":1.5,"s":"x","l":[1]}"#,
        );
        let expected = serde_json::json!({
            "n": null, "b": true, "i": -1, "u": u64::MAX, "f": 1.5, "s": "x", "l": [1]
        });
        assert_eq!(Value::Object(map.unwrap()), expected);
    }
}
