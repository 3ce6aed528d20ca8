//! The state machine of a supervisor: maps a state and an event to actions, without side effects. [`crate::supervisor`]
//! carries out the actions.

use std::time::Duration;

/// How long nginx may still send new requests after the flag is removed. nginx checks the flag for each request, so this
/// covers requests that had already passed the check. In 12 measured drains under load no request failed.
pub const SETTLE: Duration = Duration::from_millis(250);
/// After how many failed probes in a row an instance leaves the rotation. A single failure may be a full queue.
const FAILURES_TO_LEAVE: u32 = 3;
/// The interval at which the remaining connections are counted, because the kernel does not report their end. Counting takes
/// about a millisecond per thousand connections of the host.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(50);
/// How long a drain continues when no other instance is in rotation any more. By then a crashed instance is back. Meanwhile
/// nginx, which sends requests to all instances if none is ready, still gets answers.
const ALONE: Duration = Duration::from_secs(5);
/// The time from SIGTERM to SIGKILL for a runtime that has nothing left to do.
const TIME_TO_END: Duration = Duration::from_secs(2);
/// The time from SIGTERM to SIGKILL for a runtime that is cut off. links-host would keep waiting for its requests.
const TIME_TO_CUT_OFF: Duration = Duration::from_millis(250);

/// The timeouts of an instance, from links.toml.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub start_timeout: Duration,
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A probe succeeded.
    Ready,
    /// A probe failed, with the reason.
    NotReady(String),
    /// SIGTERM from systemd, or Ctrl-C.
    StopRequested,
    /// The result of an [`Action::Observe`].
    Observed(Traffic),
    /// The runtime's process has exited, with a description of how.
    Exited(String),
    /// The time set by the last [`Action::Wake`] is over.
    Deadline,
}

/// The remaining traffic of an instance, and whether another one can take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The number of connections to the runtime, or why it is unknown.
    pub connections: Result<usize, String>,
    /// Whether another instance is in rotation.
    pub others: bool,
}

/// How often the runtime is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// As often as possible.
    Eager,
    /// At the interval of links.toml.
    Regular,
    /// Never: the result would change nothing, and a probe would count as a connection that the drain waits for.
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enter the rotation.
    SetFlag,
    /// Leave the rotation.
    ClearFlag,
    /// Send READY=1 to systemd, which completes the start of the unit.
    NotifyReady,
    /// Send STOPPING=1 to systemd.
    NotifyStopping,
    /// Send STATUS= to systemd.
    NotifyStatus(String),
    /// Send EXTEND_TIMEOUT_USEC= to systemd. The start or stop must end, or be extended again, within this time.
    ExtendTimeout(Duration),
    /// Log a line.
    Log(String),
    /// Record how long the drain took, counted from the stop request.
    Drained(Duration),
    /// Count the connections and check for other instances in rotation. The result arrives as [`Event::Observed`].
    Observe,
    /// Send [`Event::Deadline`] after this time. Replaces an earlier deadline.
    Wake(Duration),
    /// Send SIGTERM to the runtime.
    Terminate,
    /// Send SIGKILL to the runtime and any processes that it left behind.
    Kill,
    /// End the supervisor, with an error or as requested.
    Leave(Result<(), String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Started, but not healthy yet. `why` is the reason of the last failed probe.
    Starting { why: String },
    /// Has been healthy at least once.
    Serving { in_rotation: bool, failures: u32 },
    /// Out of rotation, but new requests may still arrive. `since` is the time of the stop request.
    Settling { since: Duration },
    /// Out of rotation, and no new requests arrive. Finishing the earlier ones.
    Draining(Drain),
    /// The runtime was asked to end `within` a time. `outcome` is the result of the supervisor.
    Ending {
        outcome: Result<(), String>,
        within: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Drain {
    /// When the stop was requested.
    since: Duration,
    /// Whether another instance was in rotation at the last observation.
    others: Others,
    /// Whether the last observation found no connection. One is not enough: the kernel produces its table in pieces, and may
    /// skip a connection between two pieces.
    quiet: bool,
    /// The last STATUS= that was sent.
    status: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Not observed yet.
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
    /// The machine of a runtime that was just started, and its first actions.
    pub fn start(times: Times) -> (Self, Vec<Action>) {
        let machine = Self {
            times,
            state: State::Starting {
                why: "it has not answered yet".to_owned(),
            },
        };
        let actions = vec![
            Action::NotifyStatus("starting: waiting for /health".to_owned()),
            Action::ExtendTimeout(times.start_timeout + TIME_TO_END),
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

    /// Handles an event. `now` is the time since the start of the supervisor, from a monotonic clock.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Action> {
        use Action::{
            ClearFlag, Drained, ExtendTimeout, Kill, Leave, Log, NotifyReady, NotifyStatus, NotifyStopping, Observe,
            SetFlag, Wake,
        };
        match (&mut self.state, event) {
            (State::Starting { .. }, Event::Ready) => {
                self.state = State::Serving {
                    in_rotation: true,
                    failures: 0,
                };
                vec![SetFlag, NotifyReady, NotifyStatus("ready".to_owned())]
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
                    NotifyStatus("ready".to_owned()),
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
                    vec![ClearFlag, NotifyStatus(text.clone()), Log(text)]
                } else {
                    vec![]
                }
            }

            (State::Starting { .. }, Event::StopRequested) => {
                let mut actions = vec![NotifyStopping];
                actions.extend(self.end(Ok(()), TIME_TO_END));
                actions
            }
            (State::Serving { .. }, Event::StopRequested) => {
                self.state = State::Settling { since: now };
                vec![
                    NotifyStopping,
                    ClearFlag,
                    ExtendTimeout(SETTLE.max(self.times.drain_timeout) + TIME_TO_END),
                    NotifyStatus("draining: out of rotation".to_owned()),
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
                vec![Observe]
            }
            (State::Draining(_), Event::Deadline) => vec![Observe],
            (State::Draining(drain), Event::Observed(traffic)) => match drain.next(&traffic, now, self.times.drain_timeout) {
                Next::Wait(actions) => actions,
                Next::End { why, within } => {
                    let mut actions = vec![Log(why), Drained(now.saturating_sub(drain.since))];
                    actions.extend(self.end(Ok(()), within));
                    actions
                }
            },

            (State::Ending { within, .. }, Event::Deadline) => {
                // SIGKILL cannot be ignored, so the next event is the exit.
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
                // Remaining processes of its group would keep the port occupied.
                vec![ClearFlag, Kill, Leave(Err(format!("the runtime {how}")))]
            }

            // A second SIGTERM requests what is already under way, and probes no longer matter.
            (
                State::Settling { .. } | State::Draining(_) | State::Ending { .. },
                Event::StopRequested | Event::Ready | Event::NotReady(_),
            )
            | (State::Serving { .. }, Event::Deadline)
            // Observed too late.
            | (
                State::Starting { .. } | State::Serving { .. } | State::Settling { .. } | State::Ending { .. },
                Event::Observed(_),
            ) => vec![],
        }
    }

    fn end(&mut self, outcome: Result<(), String>, within: Duration) -> Vec<Action> {
        self.state = State::Ending { outcome, within };
        vec![
            Action::ClearFlag,
            Action::NotifyStatus("stopping: waiting for the runtime to end".to_owned()),
            Action::ExtendTimeout(within + TIME_TO_END),
            Action::Terminate,
            Action::Wake(within),
        ]
    }
}

/// How a drain continues.
enum Next {
    Wait(Vec<Action>),
    /// The drain is over. The runtime has to end within a time.
    End {
        why: String,
        within: Duration,
    },
}

impl Drain {
    fn next(&mut self, traffic: &Traffic, now: Duration, timeout: Duration) -> Next {
        let taken = now.saturating_sub(self.since);
        let left = timeout.saturating_sub(taken);
        let open = describe(&traffic.connections);

        // links-host finishes its requests after SIGTERM, and may use the remaining time for that.
        let within = left.max(TIME_TO_END);
        self.others = match self.others {
            _ if traffic.others => Others::Ready,
            // If no instance is ready, nginx sends requests to all of them: waiting would not move the traffic elsewhere.
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
            actions.push(Action::NotifyStatus(status));
            actions.push(Action::ExtendTimeout(left + TIME_TO_END));
        }
        actions.push(Action::Wake(OBSERVE_INTERVAL.min(left)));
        Next::Wait(actions)
    }
}

fn describe(connections: &Result<usize, String>) -> String {
    match connections {
        Ok(1) => "1 connection".to_owned(),
        Ok(count) => format!("{count} connections"),
        Err(why) => format!("an unknown number of connections ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{ClearFlag, Kill, Leave, NotifyReady, Observe, SetFlag, Terminate, Wake};
    use super::*;

    const TIMES: Times = Times {
        start_timeout: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(10),
    };

    /// A machine and its clock, which [`Event::Deadline`] advances by the current wait.
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

        /// A machine that has served for a minute and was asked to stop. SETTLE is over.
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

        /// Answers each observation with `observed` until the runtime is asked to end. Returns how many seconds this took.
        fn drain(&mut self, observed: &Event) -> f64 {
            let start = self.now;
            loop {
                self.on(observed.clone());
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
                    Action::NotifyStatus(_)
                        | Action::Log(_)
                        | Action::Drained(_)
                        | Action::ExtendTimeout(_)
                        | Action::NotifyStopping
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
                Action::NotifyStatus(text) => Some(text.as_str()),
                _ => None,
            });
            texts.collect()
        }
    }

    /// The actions that follow these events, in order, except for texts and notifications of timeouts.
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

    /// This many connections are left, and another instance is in rotation.
    fn left(connections: usize) -> Event {
        Event::Observed(Traffic {
            connections: Ok(connections),
            others: true,
        })
    }

    /// This many connections are left, and no other instance is in rotation.
    fn alone(connections: usize) -> Event {
        Event::Observed(Traffic {
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
    fn an_instance_enters_the_rotation_after_the_first_healthy_answer() {
        expect(&[not_ready(), not_ready()], &[&[STARTED]]);
        expect(&[not_ready(), Event::Ready], &[&[STARTED, SetFlag, NotifyReady]]);
        expect(&[Event::Ready, Event::Ready], &[&[STARTED, SetFlag, NotifyReady]]);
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
    fn an_instance_leaves_the_rotation_after_three_failures_in_a_row_and_comes_back() {
        let up = [STARTED, SetFlag, NotifyReady];
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
    fn a_stop_clears_the_flag_and_ends_the_runtime_after_two_observations_without_connections() {
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
                &[STARTED, SetFlag, NotifyReady],
                &[ClearFlag, Wake(SETTLE)],
                &[Observe, Wake(OBSERVE_INTERVAL)],
                &[Observe, Wake(OBSERVE_INTERVAL)],
                &[Observe, Wake(OBSERVE_INTERVAL)],
                &[Observe, Wake(OBSERVE_INTERVAL)],
                &[Observe],
                &ENDING,
                &[Kill, Leave(Ok(()))],
            ],
        );
    }

    #[test]
    fn the_duration_of_a_drain_is_logged_and_recorded() {
        let mut run = Run::stopping(TIMES);
        for observed in [left(1), left(0), left(0)] {
            run.on(observed);
            run.on(Event::Deadline);
        }
        assert_eq!(run.logged()[0], "drained in 0.35 s");
        assert!(run.actions.contains(&Action::Drained(Duration::from_millis(350))));
    }

    #[test]
    fn the_status_counts_connections_and_seconds_down() {
        let mut run = Run::stopping(TIMES);
        for observed in [left(3), left(3), left(1), left(0), left(0)] {
            run.on(observed);
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
    fn at_the_deadline_the_remaining_connections_are_cut_off_and_logged() {
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
    fn a_drain_timeout_of_zero_means_one_observation_after_settling() {
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
    fn connections_that_cannot_be_counted_get_the_whole_timeout() {
        let mut run = Run::stopping(TIMES);
        let unknown = Event::Observed(Traffic {
            connections: Err("no such file".to_owned()),
            others: true,
        });
        assert_eq!(run.drain(&unknown), 9.75);
        assert!(run.logged()[0].ends_with("cutting off an unknown number of connections (no such file)"));
    }

    #[test]
    fn a_drain_without_another_instance_ends_at_once() {
        let mut run = Run::stopping(TIMES);
        assert_eq!(run.drain(&alone(3)), 0.0);
        assert_eq!(
            run.logged(),
            ["no other instance is ready: not waiting for traffic to move, 3 connections left"]
        );
        // The runtime may use the rest of the time to finish its requests.
        let rest = TIMES.drain_timeout - SETTLE;
        assert_eq!(run.steps(), [Observe, ClearFlag, Terminate, Wake(rest)]);
    }

    #[test]
    fn a_short_absence_of_the_other_instance_does_not_end_a_drain() {
        let mut run = Run::stopping(TIMES);
        for observed in [left(3), alone(3), alone(3), left(3)] {
            run.on(observed);
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
    fn the_timeout_of_systemd_is_always_extended_in_time() {
        for observed in [left(3), alone(3), left(0)] {
            let mut run = Run::new(TIMES);
            let mut until = Duration::ZERO;
            let mut checked = 0;
            let mut events = vec![Event::Ready, Event::StopRequested, Event::Deadline];
            events.extend((0..400).flat_map(|_| [observed.clone(), Event::Deadline]));
            events.push(exited());
            for event in events {
                run.on(event);
                for action in &run.actions[checked..] {
                    if let Action::ExtendTimeout(time) = action {
                        until = until.max(run.now + *time);
                    }
                }
                checked = run.actions.len();
                if run.steps().contains(&Kill) {
                    break;
                }
                assert!(run.now <= until, "{observed:?}: {:?} is after {until:?}", run.now);
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
    fn the_flag_is_cleared_when_the_runtime_dies() {
        let error = || Leave(Err("the runtime exited with status 1".to_owned()));
        expect(&[exited()], &[&[STARTED, ClearFlag, Kill, error()]]);
        expect(
            &[Event::Ready, exited()],
            &[&[STARTED, SetFlag, NotifyReady, ClearFlag, Kill, error()]],
        );
        let up = [STARTED, SetFlag, NotifyReady];
        let dies = [ClearFlag, Kill, error()];
        expect(
            &[Event::Ready, Event::StopRequested, exited()],
            &[&up, &[ClearFlag, Wake(SETTLE)], &dies],
        );
        expect(
            &[Event::Ready, Event::StopRequested, Event::Deadline, left(1), exited()],
            &[
                &up,
                &[ClearFlag, Wake(SETTLE)],
                &[Observe, Wake(OBSERVE_INTERVAL)],
                &dies,
            ],
        );
    }
}
