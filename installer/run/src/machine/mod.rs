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
mod tests;
