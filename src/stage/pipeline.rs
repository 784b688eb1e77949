//! Stages in a row, as one judge.

use super::{Event, Interest, Stage, Verdict};
use crate::rdp::event::Sink;

/// The stages of a session, in order.
#[derive(Debug, Default)]
pub struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
}

impl Pipeline {
    /// No stages: everything passes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a stage behind the others.
    #[must_use]
    pub fn with(mut self, stage: impl Stage + 'static) -> Self {
        self.stages.push(Box::new(stage));
        self
    }

    /// Names of the stages, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.stages.iter().map(|stage| stage.name())
    }
}

impl Sink for Pipeline {
    fn interest(&self, channel: &str) -> Interest {
        self.stages
            .iter()
            .map(|stage| stage.interest(channel))
            .max()
            .unwrap_or(Interest::Ignore)
    }

    fn decides(&self) -> bool {
        self.stages.iter().any(|stage| stage.decides())
    }

    /// Stages see an event until one of them stops it. What a stage puts in place of a message is what the stages
    /// behind it see, so that a later one never judges, or records, what the other side does not get.
    fn on_event(&mut self, event: &Event<'_>) -> Verdict {
        let mut replacement: Option<Vec<u8>> = None;
        for stage in &mut self.stages {
            let verdict = match (&replacement, event) {
                (
                    Some(data),
                    Event::ChannelMessage {
                        direction, channel, ..
                    },
                ) => stage.on_event(&Event::ChannelMessage {
                    direction: *direction,
                    channel,
                    data,
                }),
                _ => stage.on_event(event),
            };
            match verdict {
                Verdict::Forward => {}
                Verdict::Replace(data) => replacement = Some(data),
                stop @ (Verdict::Deny { .. } | Verdict::Terminate { .. }) => return stop,
            }
        }
        replacement.map_or(Verdict::Forward, Verdict::Replace)
    }
}
