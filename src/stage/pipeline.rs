//! Stages in a row, as one judge.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::{Direction, Event, HeldMessage, Interest, Stage, Termination, Verdict};
use jetway_rdp::event::Sink;

/// The stages of a session, in order.
#[derive(Debug, Default)]
pub struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
    held: Vec<Held>,
}

/// A message that one of the stages holds.
#[derive(Debug)]
struct Held {
    message: HeldMessage,
    /// Position of that stage.
    stage: usize,
    /// What the stages before it have put in its place.
    replaced: Option<Verdict>,
    /// What that stage has answered in the end.
    verdict: Option<Verdict>,
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
        self.push(Box::new(stage));
        self
    }

    /// Likewise.
    pub fn push(&mut self, stage: Box<dyn Stage>) {
        self.stages.push(stage);
    }

    /// Asks the stages from `first` on, which has given its `answer` already if it held the message, of an event in whose place others
    /// have `replaced` something.
    fn judge(
        &mut self,
        event: &Event<'_>,
        first: usize,
        mut replaced: Option<Verdict>,
        mut answer: Option<Verdict>,
    ) -> Verdict {
        for position in first..self.stages.len() {
            let (_, from) = self.stages.split_at_mut(position);
            let Some((stage, behind)) = from.split_first_mut() else {
                break;
            };
            let seen = match (&replaced, event) {
                (
                    Some(Verdict::Replace { data, .. }),
                    Event::ChannelMessage {
                        direction, channel, ..
                    },
                ) => &Event::ChannelMessage {
                    direction: *direction,
                    channel,
                    data,
                },
                _ => event,
            };
            let verdict = answer.take().unwrap_or_else(|| stage.on_event(seen));
            match verdict {
                Verdict::Forward => continue,
                Verdict::Hold => {
                    if let Some(message) = held_message(event) {
                        self.held.push(Held {
                            message,
                            stage: position,
                            replaced,
                            verdict: None,
                        });
                    }
                    return Verdict::Hold;
                }
                Verdict::Replace { .. } | Verdict::Deny { .. } | Verdict::Terminate(_) => {}
            }
            let by = stage.name();
            for stage in behind {
                stage.on_ruling(seen, by, &verdict);
            }
            if let Verdict::Replace { .. } = verdict {
                replaced = Some(verdict);
            } else {
                return verdict;
            }
        }
        replaced.unwrap_or(Verdict::Forward)
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

    fn set_now(&mut self, now: Duration) {
        for stage in &mut self.stages {
            stage.set_now(now);
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Termination>> {
        for stage in &mut self.stages {
            ready!(stage.poll_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Stages see an event until one of them stops it; the others hear of that. What a stage puts in place of a message is what the
    /// stages behind it see, so that a later one never judges, or records, what the other side does not get.
    fn on_event(&mut self, event: &Event<'_>) -> Verdict {
        self.judge(event, 0, None, None)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<HeldMessage> {
        for (position, stage) in self.stages.iter_mut().enumerate() {
            while let Poll::Ready((message, verdict)) = stage.poll_answer(cx) {
                let mut held = self.held.iter_mut();
                let held = held.find(|held| held.message == message && held.stage == position);
                // A stage that answers what it does not hold is mistaken.
                if let Some(held) = held
                    && verdict != Verdict::Hold
                {
                    held.verdict = Some(verdict);
                    return Poll::Ready(message);
                }
            }
        }
        Poll::Pending
    }

    fn on_answer(&mut self, event: &Event<'_>) -> Verdict {
        let Some(message) = held_message(event) else {
            return self.on_event(event);
        };
        let mut held = self.held.iter();
        let answered = held.position(|held| held.message == message && held.verdict.is_some());
        match answered.map(|position| self.held.swap_remove(position)) {
            Some(Held {
                stage,
                replaced,
                verdict,
                ..
            }) => self.judge(event, stage, replaced, verdict),
            None => Verdict::Hold,
        }
    }

    fn awaited(&self, direction: Direction) -> usize {
        let stages = self.stages.iter();
        let awaited = stages.map(|stage| stage.awaited(direction));
        awaited.max().unwrap_or(0)
    }
}

/// What a stage would hold.
fn held_message(event: &Event<'_>) -> Option<HeldMessage> {
    let Event::ChannelMessage {
        direction, channel, ..
    } = event
    else {
        return None;
    };
    Some(HeldMessage {
        channel: channel.id,
        direction: *direction,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Waker;

    use super::*;
    use crate::{Grounds, StaticChannel};
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
            .with(Fixed::new("first", Interest::Decide, replace(b"new")))
            .with(Expects(b"new"));
        let verdict = pipeline.on_event(&message(b"old"));
        assert_eq!(verdict, replace(b"new"));
    }

    #[test]
    fn the_first_stage_that_stops_a_message_has_the_last_word() {
        let deny = deny("no");
        let mut pipeline = Pipeline::new()
            .with(Fixed::new("judge", Interest::Decide, deny.clone()))
            .with(Expects(b"never asked"));
        assert_eq!(pipeline.on_event(&message(b"old")), deny);
    }

    #[test]
    fn stages_behind_one_that_rules_hear_what_it_saw_why_and_of_whom() {
        for (verdict, passes) in [
            (deny("no"), false),
            (replace(b"new"), true),
            (
                Verdict::Terminate(Termination {
                    grounds: Grounds::new("rule", "enough"),
                    error_info: 1,
                }),
                false,
            ),
        ] {
            let heard = Arc::default();
            let mut pipeline = Pipeline::new()
                .with(Fixed::new("judge", Interest::Decide, verdict.clone()))
                .with(Fixed::new("other", Interest::Decide, Verdict::Forward))
                .with(Hears(Arc::clone(&heard)));
            assert_eq!(pipeline.on_event(&message(b"old")), verdict);
            let mut expected = vec![format!("judge {verdict:?} of old")];
            expected.extend(passes.then(|| "new".to_owned()));
            assert_eq!(*heard.lock().unwrap(), expected);
        }
    }

    #[test]
    fn a_message_that_is_held_comes_to_the_stages_behind_once_it_has_its_verdict() {
        for (verdict, in_the_end) in [
            (Verdict::Forward, replace(b"new")),
            (replace(b"newer"), replace(b"newer")),
            (deny("no"), deny("no")),
        ] {
            let (heard, answers) = (Arc::default(), Arc::new(Mutex::new(Vec::new())));
            let mut pipeline = Pipeline::new()
                .with(Fixed::new("first", Interest::Decide, replace(b"new")))
                .with(Holds(Arc::clone(&answers)))
                .with(Hears(Arc::clone(&heard)));
            let event = message(b"old");
            let mut cx = Context::from_waker(Waker::noop());
            assert_eq!(pipeline.on_event(&event), Verdict::Hold);
            assert_eq!(
                heard.lock().unwrap().drain(..).count(),
                1,
                "what was replaced"
            );
            assert!(pipeline.poll_answer(&mut cx).is_pending());
            // Nobody has answered.
            assert_eq!(pipeline.on_answer(&event), Verdict::Hold);
            let key = held_message(&event).unwrap();
            let other = HeldMessage { channel: 7, ..key };
            answers
                .lock()
                .unwrap()
                .extend([(key, verdict.clone()), (other, deny("?"))]);
            assert_eq!(pipeline.poll_answer(&mut cx), Poll::Ready(key));
            assert_eq!(pipeline.on_answer(&event), in_the_end);
            let heard = heard.lock().unwrap();
            match &verdict {
                Verdict::Forward => assert_eq!(*heard, ["new"]),
                Verdict::Replace { .. } => assert_eq!(heard[1], "newer"),
                Verdict::Hold | Verdict::Deny { .. } | Verdict::Terminate(_) => {
                    assert_eq!(*heard, [format!("holds {verdict:?} of new")]);
                }
            }
        }
    }

    #[test]
    fn all_stages_have_to_be_ready_and_one_that_fails_ends_the_session() {
        let mut cx = Context::from_waker(Waker::noop());
        let failed = Termination {
            grounds: Grounds::new("record", "disk full"),
            error_info: 1,
        };
        for (answer, expected) in [
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))),
            (Poll::Pending, Poll::Pending),
            (
                Poll::Ready(Err(failed.clone())),
                Poll::Ready(Err(failed.clone())),
            ),
        ] {
            let mut pipeline = Pipeline::new()
                .with(Fixed::new("one", Interest::Ignore, Verdict::Forward))
                .with(Ready(answer));
            assert_eq!(pipeline.poll_ready(&mut cx), expected);
        }
    }

    fn deny(reason: &str) -> Verdict {
        Verdict::Deny {
            answers: Vec::new(),
            grounds: Grounds::new("rule", reason),
        }
    }

    fn replace(data: &[u8]) -> Verdict {
        Verdict::Replace {
            data: data.to_vec(),
            grounds: Grounds::new("rule", "other"),
        }
    }

    /// Notes what it sees and hears.
    #[derive(Debug)]
    struct Hears(Arc<Mutex<Vec<String>>>);

    impl Stage for Hears {
        fn name(&self) -> &'static str {
            "hears"
        }

        fn on_event(&mut self, event: &Event<'_>) -> Verdict {
            let text = String::from_utf8(event.data().to_vec()).unwrap();
            self.0.lock().unwrap().push(text);
            Verdict::Forward
        }

        fn on_ruling(&mut self, event: &Event<'_>, by: &'static str, verdict: &Verdict) {
            let data = str::from_utf8(event.data()).unwrap();
            let text = format!("{by} {verdict:?} of {data}");
            self.0.lock().unwrap().push(text);
        }
    }

    /// Holds every message until its answer is there.
    #[derive(Debug)]
    struct Holds(Arc<Mutex<Vec<(HeldMessage, Verdict)>>>);

    impl Stage for Holds {
        fn name(&self) -> &'static str {
            "holds"
        }

        fn on_event(&mut self, _: &Event<'_>) -> Verdict {
            Verdict::Hold
        }

        fn poll_answer(&mut self, _: &mut Context<'_>) -> Poll<(HeldMessage, Verdict)> {
            match self.0.lock().unwrap().pop() {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            }
        }
    }

    #[derive(Debug)]
    struct Ready(Poll<Result<(), Termination>>);

    impl Stage for Ready {
        fn name(&self) -> &'static str {
            "ready"
        }

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Termination>> {
            self.0.clone()
        }

        fn on_event(&mut self, _: &Event<'_>) -> Verdict {
            Verdict::Forward
        }
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
