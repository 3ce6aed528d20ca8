//! Tests of the decisions, with a clock of their own.

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
