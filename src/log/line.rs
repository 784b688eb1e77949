//! One event as one line: its own fields, and those of the spans around it that it does not have itself. Each field stands once,
//! whoever has said it.
//!
//! As JSON a line is one flat object. What is JSON already (`audit`) stands in it as JSON, and not as a text that would have to be
//! read once more.

use std::fmt::{self, Debug, Write as _};

use serde::de::IgnoredAny;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::queue::Form;
use jetway_base::escape::Escaping;

/// Hands each event on as a line.
#[derive(Debug)]
pub struct Lines<W> {
    form: Form,
    ansi: bool,
    write: W,
}

impl<W: Fn(&[u8])> Lines<W> {
    /// Lines of this form; those for people in colours, where the terminal has them.
    pub fn new(form: Form, ansi: bool, write: W) -> Self {
        Self { form, ansi, write }
    }
}

/// The fields of an event or a span.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    named: Vec<(&'static str, Value)>,
}

#[derive(Clone, Debug)]
enum Value {
    /// A text, quoted for people.
    Text(String),
    /// What a value says of itself.
    Said(String),
    /// A number, a truth value, or whatever else is JSON as it stands.
    Json(String),
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        // What `log` says of a line of its own: nobody has asked.
        if name.starts_with("log.") {
            return;
        }
        if name == "message" {
            self.message = match value {
                Value::Text(text) | Value::Said(text) | Value::Json(text) => text,
            };
            return;
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        match self.named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.named.push((name, value)),
        }
    }

    /// Adds what a span says and this does not.
    fn add(&mut self, other: &Self) {
        for (name, value) in &other.named {
            if !self.named.iter().any(|(known, _)| known == name) {
                self.named.push((name, value.clone()));
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_json = field.name() == AUDIT && serde_json::from_str::<IgnoredAny>(value).is_ok();
        let value = value.to_owned();
        self.put(
            field,
            if is_json {
                Value::Json(value)
            } else {
                Value::Text(value)
            },
        );
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Json(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Json(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Json(value.to_string()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::Said(value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, Value::Said(format!("{value:?}")));
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&[u8]) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().replace(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(around) = span.extensions().get::<Fields>() {
                fields.add(around);
            }
        }
        let level = *event.metadata().level();
        let mut line = String::with_capacity(LINE_CHARS);
        // Writing to a string does not fail.
        let _written = match self.form {
            Form::Json => write_json(&mut line, level, &fields),
            Form::Human => write_human(&mut line, level, &fields, self.ansi),
        };
        (self.write)(line.as_bytes());
    }
}

fn write_json(line: &mut String, level: Level, fields: &Fields) -> fmt::Result {
    line.push_str("{\"timestamp\":\"");
    SystemTime.format_time(&mut Writer::new(line))?;
    write!(
        line,
        "\",\"level\":\"{level}\",\"message\":{}",
        quoted(&fields.message)
    )?;
    for (name, value) in &fields.named {
        write!(line, ",{}:", quoted(name))?;
        match value {
            Value::Text(text) | Value::Said(text) => line.push_str(&quoted(text)),
            Value::Json(json) => line.push_str(json),
        }
    }
    line.push_str("}\n");
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whatever a peer has said is in a field, the message included, and so all of them are escaped.
fn write_human(line: &mut String, level: Level, fields: &Fields, ansi: bool) -> fmt::Result {
    let (dim, italic, end) = if ansi {
        ("\x1b[2m", "\x1b[3m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let colour = match level {
        _ if !ansi => "",
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    };
    line.push_str(dim);
    SystemTime.format_time(&mut Writer::new(line))?;
    write!(line, "{end} {colour}{level:>5}{end} ")?;
    Escaping(&mut *line).write_str(&fields.message)?;
    for (name, value) in &fields.named {
        write!(line, " {italic}{name}{end}{dim}={end}")?;
        let mut escaping = Escaping(&mut *line);
        match value {
            Value::Text(text) => write!(escaping, "{text:?}")?,
            Value::Said(text) | Value::Json(text) => escaping.write_str(text)?,
        }
    }
    line.push('\n');
    Ok(())
}

/// The field that holds JSON.
const AUDIT: &str = "audit";

/// Most lines are shorter.
const LINE_CHARS: usize = 512;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What is written of these events.
    fn written(form: Form, ansi: bool, events: impl FnOnce()) -> String {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&kept);
        let lines = Lines::new(form, ansi, move |line: &[u8]| {
            keep.lock().unwrap().extend_from_slice(line);
        });
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, events);
        let kept = kept.lock().unwrap().clone();
        String::from_utf8(kept).unwrap()
    }

    #[test]
    fn what_a_peer_says_reaches_no_terminal_raw() {
        for ansi in [false, true] {
            let said = "\u{9b}2J\u{202e}\nname\u{1b}[2J";
            let text = written(Form::Human, ansi, || {
                let span = tracing::info_span!("session", origin = %said);
                let _entered = span.enter();
                tracing::warn!(reason = %said, audit = said, user = Some(said), "Refused {said}");
            });
            assert_eq!(text.lines().count(), 1, "{text:?}");
            let hidden = |c: char| c != '\n' && c != '\x1b' && jetway_base::escape::is_hidden(c);
            assert!(!text.contains(hidden), "{text:?}");
            assert!(!text.contains("\u{1b}[2J"), "{text:?}");
            assert_eq!(text.contains('\x1b'), ansi);
            assert_eq!(text.matches(r"\u{202e}").count(), 5, "{text:?}");
        }
    }

    #[test]
    fn a_field_of_an_event_and_of_the_spans_around_it_stands_once() {
        let events = || {
            let outer = tracing::info_span!("session", session = 7, peer = "outer", only = "outer");
            let _outer = outer.enter();
            let inner =
                tracing::info_span!("step", peer = "inner", jet_aid = tracing::field::Empty);
            let _inner = inner.enter();
            inner.record("jet_aid", "late");
            tracing::info!(session = 8, bytes = 9_u64, fine = true, "Done");
        };
        let text = written(Form::Json, false, events);
        let (_, text) = text.split_once("\"level\"").unwrap();
        assert_eq!(
            text,
            ":\"INFO\",\"message\":\"Done\",\"session\":8,\"bytes\":9,\"fine\":true,\"peer\":\"inner\",\
             \"jet_aid\":\"late\",\"only\":\"outer\"}\n"
        );
        let text = written(Form::Human, false, events);
        assert!(
            text.ends_with(
                "Z  INFO Done session=8 bytes=9 fine=true peer=\"inner\" jet_aid=\"late\" only=\"outer\"\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_record_of_a_session_is_json_in_the_line_and_what_others_say_is_a_text() {
        let text = written(Form::Json, false, || {
            tracing::info!(
                audit = r#"{"event":"ended","n":1}"#,
                user = r#"{"a":1}"#,
                "Audit"
            );
            tracing::info!(audit = r#"{"event":"#, "Audit");
        });
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["audit"]["event"], "ended");
        assert_eq!(lines[0]["user"], r#"{"a":1}"#);
        assert_eq!(lines[1]["audit"], r#"{"event":"#);
    }
}
