//! The gateway's log: one JSON object per line.

use anyhow::{Context, Result};
use serde_json::Value;

/// The messages that end a session's story, exactly one of them per session.
pub(crate) const REFUSED: &str = "Session refused";
pub(crate) const CLOSED: &str = "Session closed";

#[derive(Clone, Debug)]
pub(crate) struct Line(Value);

impl Line {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map(Self)
            .with_context(|| format!("not JSON: {text}"))
    }

    /// A field of the event, or else of the spans around it, innermost first.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let spans = self
            .0
            .get("spans")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .rev();
        let places = [Some(&self.0), self.0.get("fields"), self.0.get("span")];
        let value = places
            .into_iter()
            .flatten()
            .chain(spans)
            .find_map(|place| place.get(name))?;
        Some(
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        )
    }

    /// Why a session was refused: `rule: reason`.
    pub(crate) fn rule_and_reason(&self) -> String {
        let field = |name| self.field(name).unwrap_or_default();
        format!("{}: {}", field("rule"), field("reason"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        let text = self
            .field(name)
            .with_context(|| format!("{name} is missing in {self:?}"))?;
        text.parse().with_context(|| format!("{name} = {text}"))
    }
}
