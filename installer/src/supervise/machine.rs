//! What the supervisor of one instance does next: (state, event) to actions, purely. [`super::run`] carries them out.

use std::time::Duration;

/// After the flag is gone, this long until nginx surely sends nothing new: it looks per request, so what counts is a
/// request that had passed the look already. Measured with 12 drains under load: none failed.
pub const SETTLE: Duration = Duration::from_millis(250);
/// Failed probes in a row until an instance leaves the rotation; one may be a full queue.
const FAILURES_TO_LEAVE: u32 = 3;

/// The times of one instance, from links.toml.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub start_timeout: Duration,
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The component answered that it serves.
    Ready,
    /// It did not; why.
    NotReady(String),
    /// systemd, or a person's Ctrl-C.
    StopRequested,
    /// The runtime's process is gone; how it ended.
    Exited(String),
    /// The time given by the last [`Action::Wake`] is over.
    Deadline,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Into the rotation.
    SetFlag,
    /// Out of the rotation.
    ClearFlag,
    /// READY=1: whoever waits for the unit may go on.
    TellReady,
    /// STOPPING=1
    TellStopping,
    /// STATUS=
    TellStatus(String),
    /// A line for the journal.
    Log(String),
    /// Send [`Event::Deadline`] after this time, and forget an earlier one.
    Wake(Duration),
    /// SIGTERM to the runtime.
    Terminate,
    /// SIGKILL to the runtime and whatever it left.
    Kill,
    /// The end of the supervisor: with an error, or as asked.
    Leave(Result<(), String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Started, never healthy yet; the last reason.
    Starting { why: String },
    /// Was healthy once.
    Serving { in_rotation: bool, failures: u32 },
    /// Out of rotation, still serving what comes.
    Settling,
    /// The runtime was asked to end; whether that was wanted, or else the error to leave with.
    Ending { outcome: Result<(), String> },
}

#[derive(Debug)]
pub struct Machine {
    times: Times,
    state: State,
}

impl Machine {
    /// The runtime was just started.
    pub fn start(times: Times) -> (Self, Vec<Action>) {
        let machine = Self {
            times,
            state: State::Starting { why: "it has not answered yet".to_owned() },
        };
        let actions = vec![
            Action::TellStatus("starting: waiting for /health".to_owned()),
            Action::Wake(times.start_timeout),
        ];
        (machine, actions)
    }

    /// Whether probes should come as fast as they can.
    pub fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    pub fn on(&mut self, event: Event) -> Vec<Action> {
        use Action::{ClearFlag, Kill, Leave, Log, SetFlag, TellReady, TellStatus, TellStopping, Terminate, Wake};
        match (&mut self.state, event) {
            (State::Starting { .. }, Event::Ready) => {
                self.state = State::Serving { in_rotation: true, failures: 0 };
                vec![SetFlag, TellReady, TellStatus("ready".to_owned())]
            }
            (State::Starting { why }, Event::NotReady(now)) => {
                *why = now;
                vec![]
            }
            (State::Starting { why }, Event::Deadline) => {
                let limit = self.times.start_timeout;
                let error = format!("the runtime did not become healthy within {limit:?}: {why}");
                self.end(Err(error))
            }

            (State::Serving { in_rotation: in_rotation @ false, failures }, Event::Ready) => {
                (*in_rotation, *failures) = (true, 0);
                vec![SetFlag, TellStatus("ready".to_owned()), Log("healthy again: back in rotation".to_owned())]
            }
            (State::Serving { failures, .. }, Event::Ready) => {
                *failures = 0;
                vec![]
            }
            (State::Serving { in_rotation, failures }, Event::NotReady(why)) => {
                *failures = failures.saturating_add(1);
                if *in_rotation && *failures >= FAILURES_TO_LEAVE {
                    *in_rotation = false;
                    let text = format!("out of rotation, not healthy: {why}");
                    vec![ClearFlag, TellStatus(text.clone()), Log(text)]
                } else {
                    vec![]
                }
            }

            (State::Starting { .. }, Event::StopRequested) => {
                let mut actions = vec![TellStopping];
                actions.extend(self.end(Ok(())));
                actions
            }
            (State::Serving { .. }, Event::StopRequested) => {
                self.state = State::Settling;
                vec![TellStopping, ClearFlag, TellStatus("draining: out of rotation".to_owned()), Wake(SETTLE)]
            }
            (State::Settling, Event::Deadline) => self.end(Ok(())),

            (State::Ending { .. }, Event::Deadline) => {
                let limit = self.times.drain_timeout;
                // It cannot refuse: its exit is the next event, and its unit's end comes after it.
                vec![Log(format!("the runtime did not end within {limit:?}: killing it")), Kill, Wake(limit)]
            }
            (State::Ending { outcome }, Event::Exited(_)) => vec![Kill, Leave(outcome.clone())],
            (State::Starting { .. } | State::Serving { .. } | State::Settling, Event::Exited(how)) => {
                // What is left of its process group would hold the port.
                vec![ClearFlag, Kill, Leave(Err(format!("the runtime {how}")))]
            }

            // A second SIGTERM asks for what is already under way, and probes are of no interest any more.
            (State::Settling | State::Ending { .. }, Event::StopRequested | Event::Ready | Event::NotReady(_))
            | (State::Serving { .. }, Event::Deadline) => vec![],
        }
    }

    fn end(&mut self, outcome: Result<(), String>) -> Vec<Action> {
        self.state = State::Ending { outcome };
        vec![
            Action::ClearFlag,
            Action::TellStatus("stopping: the runtime finishes what is in flight".to_owned()),
            Action::Terminate,
            Action::Wake(self.times.drain_timeout),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{ClearFlag, Kill, Leave, SetFlag, TellReady, Terminate, Wake};
    use super::*;

    const TIMES: Times = Times { start_timeout: Duration::from_secs(30), drain_timeout: Duration::from_secs(10) };

    /// Feeds events; returns every action but texts, in order.
    fn after(events: &[Event]) -> Vec<Action> {
        let (mut machine, mut actions) = Machine::start(TIMES);
        for event in events {
            actions.extend(machine.on(event.clone()));
        }
        actions.retain(|action| !matches!(action, Action::TellStatus(_) | Action::Log(_) | Action::TellStopping));
        actions
    }

    fn not_ready() -> Event {
        Event::NotReady("503".to_owned())
    }

    fn exited() -> Event {
        Event::Exited("exited with status 1".to_owned())
    }

    const STARTED: Action = Wake(TIMES.start_timeout);
    const ENDING: [Action; 3] = [ClearFlag, Terminate, Wake(TIMES.drain_timeout)];

    fn expect(events: &[Event], expected: &[&[Action]]) {
        assert_eq!(after(events), expected.concat(), "after {events:?}");
    }

    #[test]
    fn is_in_rotation_only_after_the_first_healthy_answer() {
        expect(&[not_ready(), not_ready()], &[&[STARTED]]);
        expect(&[not_ready(), Event::Ready], &[&[STARTED, SetFlag, TellReady]]);
        expect(&[Event::Ready, Event::Ready], &[&[STARTED, SetFlag, TellReady]]);
    }

    #[test]
    fn a_start_that_takes_too_long_fails_with_the_last_reason() {
        let failed = "the runtime did not become healthy within 30s: 503".to_owned();
        expect(
            &[not_ready(), Event::Deadline, exited()],
            &[&[STARTED], &ENDING, &[Kill, Leave(Err(failed))]],
        );
    }

    #[test]
    fn leaves_the_rotation_after_three_failures_in_a_row_and_comes_back() {
        let up = [STARTED, SetFlag, TellReady];
        expect(&[Event::Ready, not_ready(), not_ready(), Event::Ready, not_ready(), not_ready()], &[&up]);
        expect(&[Event::Ready, not_ready(), not_ready(), not_ready(), not_ready()], &[&up, &[ClearFlag]]);
        expect(
            &[Event::Ready, not_ready(), not_ready(), not_ready(), Event::Ready],
            &[&up, &[ClearFlag, SetFlag]],
        );
    }

    #[test]
    fn a_stop_takes_the_flag_first_and_the_runtime_last() {
        expect(
            &[Event::Ready, Event::StopRequested, Event::Deadline, exited()],
            &[&[STARTED, SetFlag, TellReady], &[ClearFlag, Wake(SETTLE)], &ENDING, &[Kill, Leave(Ok(()))]],
        );
    }

    #[test]
    fn a_second_stop_changes_nothing() {
        let once = after(&[Event::Ready, Event::StopRequested, Event::Deadline]);
        let events = [Event::Ready, Event::StopRequested, Event::StopRequested, Event::Deadline, Event::StopRequested];
        assert_eq!(after(&events), once);
    }

    #[test]
    fn a_runtime_that_does_not_end_is_killed() {
        expect(
            &[Event::StopRequested, Event::Deadline, exited()],
            &[&[STARTED], &ENDING, &[Kill, Wake(TIMES.drain_timeout)], &[Kill, Leave(Ok(()))]],
        );
    }

    #[test]
    fn a_runtime_that_dies_takes_its_flag_along() {
        let error = || Leave(Err("the runtime exited with status 1".to_owned()));
        expect(&[exited()], &[&[STARTED, ClearFlag, Kill, error()]]);
        expect(&[Event::Ready, exited()], &[&[STARTED, SetFlag, TellReady, ClearFlag, Kill, error()]]);
    }
}
