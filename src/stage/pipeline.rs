//! Stages in a row, as one judge.

use std::time::Duration;

use super::{Direction, Event, Interest, Stage, Verdict};
use jetway_rdp::event::Sink;

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

    fn at(&mut self, now: Duration) {
        for stage in &mut self.stages {
            stage.at(now);
        }
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

    fn awaited(&self, direction: Direction) -> usize {
        let stages = self.stages.iter();
        let awaited = stages.map(|stage| stage.awaited(direction));
        awaited.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StaticChannel;
    use jetway_rdp::Direction;

    #[test]
    fn the_strongest_interest_of_any_stage_counts() {
        let pipeline = Pipeline::new()
            .with(Fixed::new("observer", Interest::Observe, Verdict::Forward))
            .with(Fixed::new("judge", Interest::Decide, Verdict::Forward));
        assert_eq!(pipeline.interest("cliprdr"), Interest::Decide);
        assert!(pipeline.decides());
        assert_eq!(pipeline.names().collect::<Vec<_>>(), ["observer", "judge"]);
        assert_eq!(Pipeline::new().interest("cliprdr"), Interest::Ignore);
        assert!(!Pipeline::new().decides());
    }

    #[test]
    fn a_later_stage_sees_what_an_earlier_one_put_in_place() {
        let mut pipeline = Pipeline::new()
            .with(Fixed::new(
                "first",
                Interest::Decide,
                Verdict::Replace(b"new".to_vec()),
            ))
            .with(Expects(b"new"));
        let verdict = pipeline.on_event(&message(b"old"));
        assert_eq!(verdict, Verdict::Replace(b"new".to_vec()));
    }

    #[test]
    fn the_first_stage_that_stops_a_message_has_the_last_word() {
        let deny = Verdict::Deny {
            answers: Vec::new(),
            reason: "no".to_owned(),
        };
        let mut pipeline = Pipeline::new()
            .with(Fixed::new("judge", Interest::Decide, deny.clone()))
            .with(Expects(b"never asked"));
        assert_eq!(pipeline.on_event(&message(b"old")), deny);
    }

    fn message(data: &[u8]) -> Event<'_> {
        static CHANNEL: StaticChannel = StaticChannel {
            name: String::new(),
            id: 1004,
            options: 0,
        };
        Event::ChannelMessage {
            direction: Direction::ToClient,
            channel: &CHANNEL,
            data,
        }
    }

    #[derive(Debug)]
    struct Fixed {
        name: &'static str,
        interest: Interest,
        verdict: Verdict,
    }

    impl Fixed {
        fn new(name: &'static str, interest: Interest, verdict: Verdict) -> Self {
            Self {
                name,
                interest,
                verdict,
            }
        }
    }

    impl Stage for Fixed {
        fn name(&self) -> &'static str {
            self.name
        }

        fn interest(&self, _: &str) -> Interest {
            self.interest
        }

        fn decides(&self) -> bool {
            self.interest == Interest::Decide
        }

        fn on_event(&mut self, _: &Event<'_>) -> Verdict {
            self.verdict.clone()
        }
    }

    #[derive(Debug)]
    struct Expects(&'static [u8]);

    impl Stage for Expects {
        fn name(&self) -> &'static str {
            "expects"
        }

        fn on_event(&mut self, event: &Event<'_>) -> Verdict {
            let Event::ChannelMessage { data, .. } = event else {
                panic!("{event:?}");
            };
            assert_eq!(*data, self.0);
            Verdict::Forward
        }
    }
}
