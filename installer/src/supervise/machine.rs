//! What the supervisor of one instance does next: (state, event) to actions, purely. [`super::run`] carries them out.

use std::time::Duration;

/// After the flag is gone, this long until nginx surely sends nothing new: it looks per request, so what counts is a
/// request that had passed the look already. Measured with 12 drains under load: none failed.
pub const SETTLE: Duration = Duration::from_millis(250);
/// Failed probes in a row until an instance leaves the rotation; one may be a full queue.
const FAILURES_TO_LEAVE: u32 = 3;
/// Between two looks at the connections that are left; nothing tells of their end. A look takes the kernel about a
/// millisecond per thousand connections of the host.
const LOOK: Duration = Duration::from_millis(50);
/// A drain that had begun goes on this long without another instance in rotation: one that crashed is back by then, and
/// nginx, which asks everybody where nobody is ready, is still answered.
const ALONE: Duration = Duration::from_secs(5);
/// A runtime that has nothing left to do has this long from SIGTERM to SIGKILL.
const TIME_TO_END: Duration = Duration::from_secs(2);
/// One that is to be cut off has this long: links-host would go on waiting for the requests that it has got.
const TIME_TO_CUT_OFF: Duration = Duration::from_millis(250);

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
    /// What an [`Action::Look`] saw.
    Seen(Traffic),
    /// The runtime's process is gone; how it ended.
    Exited(String),
    /// The time given by the last [`Action::Wake`] is over.
    Deadline,
}

/// What is left of an instance's work, and who takes it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Connections to the runtime, or why they cannot be counted.
    pub connections: Result<usize, String>,
    /// Whether another instance is in rotation.
    pub others: bool,
}

/// How the runtime is to be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// As fast as it can.
    Eager,
    /// At the interval of links.toml.
    Regular,
    /// Not at all: what it answers would change nothing, and a probe is a connection like the ones that are waited for.
    Off,
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
    /// EXTEND_TIMEOUT_USEC=: it may take this long until the next one, or until the start or the stop is over.
    Extend(Duration),
    /// A line for the journal.
    Log(String),
    /// The drain is over; how long it took, from the stop that was asked for.
    Drained(Duration),
    /// Count the connections and look who else is in rotation; [`Event::Seen`] is the answer.
    Look,
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
    Settling { since: Duration },
    /// Out of rotation, and nothing new comes: serving what had come.
    Draining(Drain),
    /// The runtime was asked to end, `within` a time; whether that was wanted, or else the error to leave with.
    Ending {
        outcome: Result<(), String>,
        within: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Drain {
    /// When the stop was asked for.
    since: Duration,
    /// Who else was in rotation at the last look.
    others: Others,
    /// The last look saw no connection. One look is not enough: the kernel writes its table piece by piece, and a
    /// connection between two pieces may be missing.
    quiet: bool,
    /// What STATUS= said last.
    status: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Nobody has looked yet.
    Unknown,
    Ready,
    NoneSince(Duration),
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
            state: State::Starting {
                why: "it has not answered yet".to_owned(),
            },
        };
        let actions = vec![
            Action::TellStatus("starting: waiting for /health".to_owned()),
            Action::Extend(times.start_timeout + TIME_TO_END),
            Action::Wake(times.start_timeout),
        ];
        (machine, actions)
    }

    pub fn probing(&self) -> Probing {
        match self.state {
            State::Starting { .. } => Probing::Eager,
            State::Serving { .. } => Probing::Regular,
            State::Settling { .. } | State::Draining(_) | State::Ending { .. } => Probing::Off,
        }
    }

    /// `now`: since the start of the supervisor, on a clock that nobody sets.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Action> {
        use Action::{
            ClearFlag, Drained, Extend, Kill, Leave, Log, Look, SetFlag, TellReady, TellStatus, TellStopping, Wake,
        };
        match (&mut self.state, event) {
            (State::Starting { .. }, Event::Ready) => {
                self.state = State::Serving {
                    in_rotation: true,
                    failures: 0,
                };
                vec![SetFlag, TellReady, TellStatus("ready".to_owned())]
            }
            (State::Starting { why }, Event::NotReady(now)) => {
                *why = now;
                vec![]
            }
            (State::Starting { why }, Event::Deadline) => {
                let limit = self.times.start_timeout;
                let error = format!("the runtime did not become healthy within {limit:?}: {why}");
                self.end(Err(error), TIME_TO_END)
            }

            (
                State::Serving {
                    in_rotation: in_rotation @ false,
                    failures,
                },
                Event::Ready,
            ) => {
                (*in_rotation, *failures) = (true, 0);
                vec![
                    SetFlag,
                    TellStatus("ready".to_owned()),
                    Log("healthy again: back in rotation".to_owned()),
                ]
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
                actions.extend(self.end(Ok(()), TIME_TO_END));
                actions
            }
            (State::Serving { .. }, Event::StopRequested) => {
                self.state = State::Settling { since: now };
                vec![
                    TellStopping,
                    ClearFlag,
                    Extend(SETTLE.max(self.times.drain_timeout) + TIME_TO_END),
                    TellStatus("draining: out of rotation".to_owned()),
                    Wake(SETTLE),
                ]
            }
            (State::Settling { since }, Event::Deadline) => {
                self.state = State::Draining(Drain {
                    since: *since,
                    others: Others::Unknown,
                    quiet: false,
                    status: String::new(),
                });
                vec![Look]
            }
            (State::Draining(_), Event::Deadline) => vec![Look],
            (State::Draining(drain), Event::Seen(traffic)) => match drain.next(&traffic, now, self.times.drain_timeout) {
                Next::Wait(actions) => actions,
                Next::End { why, within } => {
                    let mut actions = vec![Log(why), Drained(now.saturating_sub(drain.since))];
                    actions.extend(self.end(Ok(()), within));
                    actions
                }
            },

            (State::Ending { within, .. }, Event::Deadline) => {
                // It cannot refuse: its exit is the next event, and its unit's end comes after it.
                vec![
                    Log(format!("the runtime did not end within {within:.2?}: killing it")),
                    Kill,
                    Wake(TIME_TO_END),
                ]
            }
            (State::Ending { outcome, .. }, Event::Exited(_)) => vec![Kill, Leave(outcome.clone())],
            (
                State::Starting { .. } | State::Serving { .. } | State::Settling { .. } | State::Draining(_),
                Event::Exited(how),
            ) => {
                // What is left of its process group would hold the port.
                vec![ClearFlag, Kill, Leave(Err(format!("the runtime {how}")))]
            }

            // A second SIGTERM asks for what is already under way, and probes are of no interest any more.
            (
                State::Settling { .. } | State::Draining(_) | State::Ending { .. },
                Event::StopRequested | Event::Ready | Event::NotReady(_),
            )
            | (State::Serving { .. }, Event::Deadline)
            // Nobody asked.
            | (
                State::Starting { .. } | State::Serving { .. } | State::Settling { .. } | State::Ending { .. },
                Event::Seen(_),
            ) => vec![],
        }
    }

    fn end(&mut self, outcome: Result<(), String>, within: Duration) -> Vec<Action> {
        self.state = State::Ending { outcome, within };
        vec![
            Action::ClearFlag,
            Action::TellStatus("stopping: waiting for the runtime to end".to_owned()),
            Action::Extend(within + TIME_TO_END),
            Action::Terminate,
            Action::Wake(within),
        ]
    }
}

/// How a drain goes on.
enum Next {
    Wait(Vec<Action>),
    /// The runtime is to end, within a time.
    End {
        why: String,
        within: Duration,
    },
}

impl Drain {
    fn next(&mut self, traffic: &Traffic, now: Duration, timeout: Duration) -> Next {
        let taken = now.saturating_sub(self.since);
        let left = timeout.saturating_sub(taken);
        let open = open(&traffic.connections);

        // A runtime that finishes what it has got at SIGTERM (links-host) may use the time for it.
        let within = left.max(TIME_TO_END);
        self.others = match self.others {
            _ if traffic.others => Others::Ready,
            // nginx asks everybody where nobody is ready: the traffic would not move, however long we waited.
            Others::Unknown => {
                let why = format!("no other instance is ready: not waiting for traffic to move, {open} left");
                return Next::End { why, within };
            }
            Others::Ready => Others::NoneSince(now),
            Others::NoneSince(since) if now.saturating_sub(since) >= ALONE => {
                let why = format!("no other instance is ready any more: not waiting longer, {open} left");
                return Next::End { why, within };
            }
            Others::NoneSince(since) => Others::NoneSince(since),
        };

        let quiet = traffic.connections == Ok(0);
        if quiet && (self.quiet || left.is_zero()) {
            return Next::End {
                why: format!("drained in {:.2} s", taken.as_secs_f64()),
                within: TIME_TO_END,
            };
        }
        if left.is_zero() {
            return Next::End {
                why: format!(
                    "not drained after {:.2} s (drain.timeout): cutting off {open}",
                    taken.as_secs_f64()
                ),
                within: TIME_TO_CUT_OFF,
            };
        }
        self.quiet = quiet;

        let seconds = left.as_millis().div_ceil(1000);
        let status = format!("draining: {open} left, {seconds} s to go");
        let mut actions = vec![];
        if status != self.status {
            self.status.clone_from(&status);
            actions.push(Action::TellStatus(status));
            actions.push(Action::Extend(left + TIME_TO_END));
        }
        actions.push(Action::Wake(LOOK.min(left)));
        Next::Wait(actions)
    }
}

fn open(connections: &Result<usize, String>) -> String {
    match connections {
        Ok(1) => "1 connection".to_owned(),
        Ok(count) => format!("{count} connections"),
        Err(why) => format!("an unknown number of connections ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{ClearFlag, Kill, Leave, Look, SetFlag, TellReady, Terminate, Wake};
    use super::*;

    const TIMES: Times = Times {
        start_timeout: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(10),
    };

    /// A machine and its clock, which goes on to the end of each wait that ends with [`Event::Deadline`].
    struct Run {
        machine: Machine,
        now: Duration,
        wait: Duration,
        actions: Vec<Action>,
    }

    impl Run {
        fn new(times: Times) -> Self {
            let (machine, actions) = Machine::start(times);
            let mut run = Self {
                machine,
                now: Duration::ZERO,
                wait: Duration::ZERO,
                actions: vec![],
            };
            run.take(actions);
            run
        }

        /// Serving, and asked to stop when it had been for a minute; SETTLE is over.
        fn stopping(times: Times) -> Self {
            let mut run = Self::new(times);
            run.on(Event::Ready);
            run.now += Duration::from_mins(1);
            run.on(Event::StopRequested);
            run.actions.clear();
            run.on(Event::Deadline);
            run
        }

        fn take(&mut self, actions: Vec<Action>) {
            for action in &actions {
                if let Wake(wait) = action {
                    self.wait = *wait;
                }
            }
            self.actions.extend(actions);
        }

        fn on(&mut self, event: Event) {
            if event == Event::Deadline {
                self.now += self.wait;
            }
            let actions = self.machine.on(event, self.now);
            self.take(actions);
        }

        /// Answers looks with `seen` until the runtime is asked to end; returns the seconds that this took.
        fn drain(&mut self, seen: &Event) -> f64 {
            let start = self.now;
            loop {
                self.on(seen.clone());
                if self.actions.contains(&Terminate) {
                    return (self.now - start).as_secs_f64();
                }
                self.on(Event::Deadline);
            }
        }

        fn steps(&self) -> Vec<Action> {
            let mut actions = self.actions.clone();
            actions.retain(|action| {
                !matches!(
                    action,
                    Action::TellStatus(_)
                        | Action::Log(_)
                        | Action::Drained(_)
                        | Action::Extend(_)
                        | Action::TellStopping
                )
            });
            actions
        }

        fn logged(&self) -> Vec<&str> {
            let texts = self.actions.iter().filter_map(|action| match action {
                Action::Log(text) => Some(text.as_str()),
                _ => None,
            });
            texts.collect()
        }

        fn statuses(&self) -> Vec<&str> {
            let texts = self.actions.iter().filter_map(|action| match action {
                Action::TellStatus(text) => Some(text.as_str()),
                _ => None,
            });
            texts.collect()
        }
    }

    /// Feeds events; returns every action but texts and what systemd is told of times, in order.
    fn after(events: &[Event]) -> Vec<Action> {
        let mut run = Run::new(TIMES);
        for event in events {
            run.on(event.clone());
        }
        run.steps()
    }

    fn not_ready() -> Event {
        Event::NotReady("503".to_owned())
    }

    fn exited() -> Event {
        Event::Exited("exited with status 1".to_owned())
    }

    /// With another instance in rotation.
    fn left(connections: usize) -> Event {
        Event::Seen(Traffic {
            connections: Ok(connections),
            others: true,
        })
    }

    /// Without one.
    fn alone(connections: usize) -> Event {
        Event::Seen(Traffic {
            connections: Ok(connections),
            others: false,
        })
    }

    const STARTED: Action = Wake(TIMES.start_timeout);
    const ENDING: [Action; 3] = [ClearFlag, Terminate, Wake(TIME_TO_END)];

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
        expect(
            &[
                Event::Ready,
                not_ready(),
                not_ready(),
                Event::Ready,
                not_ready(),
                not_ready(),
            ],
            &[&up],
        );
        expect(
            &[Event::Ready, not_ready(), not_ready(), not_ready(), not_ready()],
            &[&up, &[ClearFlag]],
        );
        expect(
            &[Event::Ready, not_ready(), not_ready(), not_ready(), Event::Ready],
            &[&up, &[ClearFlag, SetFlag]],
        );
    }

    #[test]
    fn a_stop_takes_the_flag_first_and_the_runtime_when_two_looks_saw_no_connection() {
        expect(
            &[
                Event::Ready,
                Event::StopRequested,
                Event::Deadline,
                left(2),
                Event::Deadline,
                left(0),
                Event::Deadline,
                left(1),
                Event::Deadline,
                left(0),
                Event::Deadline,
                left(0),
                exited(),
            ],
            &[
                &[STARTED, SetFlag, TellReady],
                &[ClearFlag, Wake(SETTLE)],
                &[Look, Wake(LOOK)],
                &[Look, Wake(LOOK)],
                &[Look, Wake(LOOK)],
                &[Look, Wake(LOOK)],
                &[Look],
                &ENDING,
                &[Kill, Leave(Ok(()))],
            ],
        );
    }

    #[test]
    fn a_drain_tells_how_long_it_took() {
        let mut run = Run::stopping(TIMES);
        for seen in [left(1), left(0), left(0)] {
            run.on(seen);
            run.on(Event::Deadline);
        }
        assert_eq!(run.logged()[0], "drained in 0.35 s");
        assert!(run.actions.contains(&Action::Drained(Duration::from_millis(350))));
    }

    #[test]
    fn the_status_counts_connections_and_seconds_down() {
        let mut run = Run::stopping(TIMES);
        for seen in [left(3), left(3), left(1), left(0), left(0)] {
            run.on(seen);
            run.on(Event::Deadline);
        }
        assert_eq!(
            run.statuses(),
            [
                "draining: 3 connections left, 10 s to go",
                "draining: 1 connection left, 10 s to go",
                "draining: 0 connections left, 10 s to go",
                "stopping: waiting for the runtime to end",
            ]
        );
        let mut run = Run::stopping(TIMES);
        run.drain(&left(7));
        assert_eq!(run.statuses().len(), 11);
        assert_eq!(run.statuses()[9], "draining: 7 connections left, 1 s to go");
    }

    #[test]
    fn at_the_deadline_what_is_left_is_cut_off_and_told() {
        let mut run = Run::stopping(TIMES);
        assert_eq!(run.drain(&left(3)), 9.75, "SETTLE is part of the time");
        let cut_off = [ClearFlag, Terminate, Wake(TIME_TO_CUT_OFF)];
        assert_eq!(run.steps()[run.steps().len() - 3..], cut_off);
        assert_eq!(
            run.logged(),
            ["not drained after 10.00 s (drain.timeout): cutting off 3 connections"]
        );
    }

    #[test]
    fn no_time_to_drain_is_a_look_after_settling() {
        let none = Times {
            drain_timeout: Duration::ZERO,
            ..TIMES
        };
        let mut run = Run::stopping(none);
        assert_eq!(run.drain(&left(2)), 0.0);
        assert_eq!(
            run.logged(),
            ["not drained after 0.25 s (drain.timeout): cutting off 2 connections"]
        );
        let mut run = Run::stopping(none);
        assert_eq!(run.drain(&left(0)), 0.0);
        assert_eq!(run.logged(), ["drained in 0.25 s"]);
    }

    #[test]
    fn connections_that_cannot_be_counted_get_all_the_time() {
        let mut run = Run::stopping(TIMES);
        let unknown = Event::Seen(Traffic {
            connections: Err("no such file".to_owned()),
            others: true,
        });
        assert_eq!(run.drain(&unknown), 9.75);
        assert!(run.logged()[0].ends_with("cutting off an unknown number of connections (no such file)"));
    }

    #[test]
    fn without_another_instance_there_is_nothing_to_wait_for() {
        let mut run = Run::stopping(TIMES);
        assert_eq!(run.drain(&alone(3)), 0.0);
        assert_eq!(
            run.logged(),
            ["no other instance is ready: not waiting for traffic to move, 3 connections left"]
        );
        // What a runtime finishes by itself may take the rest of the time.
        let rest = TIMES.drain_timeout - SETTLE;
        assert_eq!(run.steps(), [Look, ClearFlag, Terminate, Wake(rest)]);
    }

    #[test]
    fn another_instance_that_is_away_for_a_moment_does_not_end_a_drain() {
        let mut run = Run::stopping(TIMES);
        for seen in [left(3), alone(3), alone(3), left(3)] {
            run.on(seen);
            run.on(Event::Deadline);
        }
        assert!(!run.steps().contains(&Terminate));
        assert_eq!(run.drain(&alone(3)), ALONE.as_secs_f64());
        assert_eq!(
            run.logged(),
            ["no other instance is ready any more: not waiting longer, 3 connections left"]
        );
    }

    #[test]
    fn systemd_always_knows_of_more_time_than_is_taken() {
        for seen in [left(3), alone(3), left(0)] {
            let mut run = Run::new(TIMES);
            let mut until = Duration::ZERO;
            let mut seen_actions = 0;
            let mut events = vec![Event::Ready, Event::StopRequested, Event::Deadline];
            events.extend((0..400).flat_map(|_| [seen.clone(), Event::Deadline]));
            events.push(exited());
            for event in events {
                run.on(event);
                for action in &run.actions[seen_actions..] {
                    if let Action::Extend(time) = action {
                        until = until.max(run.now + *time);
                    }
                }
                seen_actions = run.actions.len();
                if run.steps().contains(&Kill) {
                    break;
                }
                assert!(run.now <= until, "{seen:?}: {:?} is after {until:?}", run.now);
            }
        }
    }

    #[test]
    fn nothing_is_probed_during_a_drain() {
        let mut run = Run::new(TIMES);
        assert_eq!(run.machine.probing(), Probing::Eager);
        run.on(Event::Ready);
        assert_eq!(run.machine.probing(), Probing::Regular);
        for event in [Event::StopRequested, Event::Deadline, left(0), Event::Deadline, left(0)] {
            run.on(event);
            assert_eq!(run.machine.probing(), Probing::Off);
        }
    }

    #[test]
    fn a_second_stop_and_late_probes_change_nothing() {
        let once = after(&[Event::Ready, Event::StopRequested, Event::Deadline, left(1)]);
        let events = [
            Event::Ready,
            Event::StopRequested,
            Event::StopRequested,
            Event::Ready,
            Event::Deadline,
            Event::StopRequested,
            left(1),
            not_ready(),
            Event::StopRequested,
        ];
        assert_eq!(after(&events), once);
    }

    #[test]
    fn a_runtime_that_does_not_end_is_killed() {
        expect(
            &[Event::StopRequested, Event::Deadline, exited()],
            &[&[STARTED], &ENDING, &[Kill, Wake(TIME_TO_END)], &[Kill, Leave(Ok(()))]],
        );
    }

    #[test]
    fn a_runtime_that_dies_takes_its_flag_along() {
        let error = || Leave(Err("the runtime exited with status 1".to_owned()));
        expect(&[exited()], &[&[STARTED, ClearFlag, Kill, error()]]);
        expect(
            &[Event::Ready, exited()],
            &[&[STARTED, SetFlag, TellReady, ClearFlag, Kill, error()]],
        );
        let up = [STARTED, SetFlag, TellReady];
        let dies = [ClearFlag, Kill, error()];
        expect(
            &[Event::Ready, Event::StopRequested, exited()],
            &[&up, &[ClearFlag, Wake(SETTLE)], &dies],
        );
        expect(
            &[Event::Ready, Event::StopRequested, Event::Deadline, left(1), exited()],
            &[&up, &[ClearFlag, Wake(SETTLE)], &[Look, Wake(LOOK)], &dies],
        );
    }
}
